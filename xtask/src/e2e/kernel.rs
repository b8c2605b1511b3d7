//! A Debian kernel: resolved through its metapackage, downloaded, unpacked, never installed.
//! What is kept is the boot image and an archive of the few modules that the guest needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Release;
use super::cpio::Archive;
use crate::debian::{self, Package};
use crate::workspace;

/// Loaded by the guest's init, after what they depend on.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_rng",
    "crc32c_generic",
    "ext4",
    "nvme_tcp",
];

/// Loaded where the guest has a drive of its own: the kernel's driver for it, and those through which
/// a program drives it instead.
const DRIVE_MODULES: &[&str] = &["nvme", "uio_pci_generic", "vfio_pci", "vfio_iommu_type1"];

/// Changes whenever the content of the module archive does.
const RECIPE: u32 = 3;

/// What QEMU boots.
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// Archive with `modules/*.ko`, and which to load in which order: `modules/order` in every
    /// guest, then `modules/order.drive` in one with a drive.
    pub(crate) modules: PathBuf,
    pub(crate) version: String,
}

/// The newest kernel of the series that the package lists know, from the cache if it is there.
pub(crate) fn provide(release: Release) -> Result<Kernel> {
    let metapackage = match release {
        Release::V6_1 => "linux-image-amd64",
        Release::V6_12 => "linux-image-6.12-amd64",
    };
    let package = debian::resolve(metapackage)?;
    if !package
        .name
        .starts_with(&format!("linux-image-{}.", release.name()))
    {
        bail!(
            "{metapackage} stands for {}, not for {}",
            package.name,
            release.name()
        );
    }
    let kernels = workspace::cache()?.join("kernels");
    fs::create_dir_all(&kernels).context("cannot make the folder for kernels")?;
    let name = format!("{}_{}_{RECIPE}", package.name, package.version);
    let home = kernels.join(&name);
    if !home.is_dir() {
        make(&package, &kernels, &home)?;
        forget_older(&kernels, release, &name)?;
    }
    Ok(Kernel {
        image: home.join("vmlinuz"),
        modules: home.join("modules.cpio"),
        version: package.version,
    })
}

fn make(package: &Package, kernels: &Path, home: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(kernels).context("cannot make a scratch folder")?;
    let file = debian::download(package, scratch.path())?;
    let tree = scratch.path().join("tree");
    let ready = scratch.path().join("ready");
    fs::create_dir_all(&tree).context("cannot make a folder")?;
    fs::create_dir_all(&ready).context("cannot make a folder")?;
    debian::unpack(&file, &tree, &["./boot/vmlinuz*", "./lib/modules/*"])?;
    let image = only_entry(&tree.join("boot"))?;
    fs::copy(image, ready.join("vmlinuz")).context("cannot copy the boot image")?;
    let modules = ModuleTree::open(&only_entry(&tree.join("lib/modules"))?)?;
    modules.write_archive(&ready.join("modules.cpio"))?;
    // Complete or not there at all: another run may be looking.
    fs::rename(&ready, home).context("cannot move the kernel into the cache")
}

/// Kernels are large and their versions never come back.
fn forget_older(kernels: &Path, release: Release, current: &str) -> Result<()> {
    let series = format!("linux-image-{}.", release.name());
    for entry in fs::read_dir(kernels).context("cannot read the folder of kernels")? {
        let entry = entry.context("cannot read the folder of kernels")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&series) && name != current {
            fs::remove_dir_all(entry.path()).context("cannot remove an older kernel")?;
        }
    }
    Ok(())
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let mut entries =
        fs::read_dir(folder).with_context(|| format!("the package has no {}", folder.display()))?;
    let entry = entries.next().context("the package's folder is empty")??;
    Ok(entry.path())
}

/// All modules of a kernel by name, and what is built into it.
struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
}

impl ModuleTree {
    fn open(folder: &Path) -> Result<Self> {
        let builtin = fs::read_to_string(folder.join("modules.builtin"))
            .context("the kernel package does not say what is built in")?;
        let builtin = builtin
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut tree = Self {
            files: BTreeMap::new(),
            builtin,
        };
        tree.index(&folder.join("kernel"))?;
        Ok(tree)
    }

    fn index(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).context("cannot read the module tree")? {
            let entry = entry.context("cannot read the module tree")?;
            if entry
                .file_type()
                .context("cannot read the module tree")?
                .is_dir()
            {
                self.index(&entry.path())?;
            } else if let Some(name) = module_name(&entry.path()) {
                self.files.insert(name, entry.path());
            }
        }
        Ok(())
    }

    fn write_archive(&self, path: &Path) -> Result<()> {
        let mut modules = Vec::new();
        let mut orders = Vec::new();
        for (order, names) in [("order", MODULES), ("order.drive", DRIVE_MODULES)] {
            let first = modules.len();
            for name in names {
                self.load_order(name, &mut modules)?;
            }
            let lines = modules[first..].iter().map(|(name, _)| format!("{name}\n"));
            orders.push((order, lines.collect::<String>()));
        }
        let output = fs::File::create(path).context("cannot write the module archive")?;
        let mut archive = Archive::new(std::io::BufWriter::new(output));
        for (name, content) in &modules {
            archive.file(&format!("modules/{name}.ko"), content)?;
        }
        for (name, lines) in &orders {
            archive.file(&format!("modules/{name}"), lines.as_bytes())?;
        }
        archive.finish()?;
        Ok(())
    }

    /// Appends `name` after everything it depends on.
    fn load_order(&self, name: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let listed = order.iter().any(|(other, _)| other == name);
        if listed || self.builtin.iter().any(|other| other == name) {
            return Ok(());
        }
        let path = self
            .files
            .get(name)
            .with_context(|| format!("no module {name}"))?;
        let content = decompressed(path)?;
        for dependency in dependencies(&content) {
            self.load_order(&dependency, order)?;
        }
        order.push((name.to_owned(), content));
        Ok(())
    }
}

/// `kernel/net/9p/9pnet-virtio.ko.xz` is the module `9pnet_virtio`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, suffix) = file.split_once(".ko")?;
    matches!(suffix, "" | ".xz").then(|| name.replace('-', "_"))
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("cannot run xz")?;
    if !output.status.success() {
        bail!("cannot decompress {}", path.display());
    }
    Ok(output.stdout)
}

/// What the module says of itself in its `.modinfo` section: zero-terminated `key=value` strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    let text = String::from_utf8_lossy(&value[..end]);
    text.split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_use_underscores() {
        assert_eq!(
            module_name(Path::new("a/nvme-tcp.ko.xz")).as_deref(),
            Some("nvme_tcp")
        );
        assert_eq!(module_name(Path::new("a/ext4.ko")).as_deref(), Some("ext4"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }

    #[test]
    fn dependencies_are_read_from_the_module_itself() {
        let module = b"\x7fELF\0name=nvme_tcp\0depends=nvme-core,nvme-fabrics\0intree=Y\0";
        assert_eq!(dependencies(module), ["nvme_core", "nvme_fabrics"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
