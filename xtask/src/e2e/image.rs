//! The guest's files: programs of this Debian machine with their libraries, the kernel's modules
//! and our scripts, as one initramfs. Building it takes a second, so it is not cached.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::Kernel;
use crate::process;

const PROGRAMS: &[&str] = &[
    "base64",
    "bash",
    "blkdiscard",
    "blockdev",
    "cat",
    "cmp",
    "cp",
    "dd",
    "df",
    "e2fsck",
    "fio",
    "fsfreeze",
    "fstrim",
    "grep",
    "head",
    "insmod",
    "ip",
    "jq",
    "ls",
    "mkdir",
    "mkfs.ext4",
    "mount",
    "nvme",
    "od",
    "perl",
    "resize2fs",
    "rm",
    "rmmod",
    "sed",
    "seq",
    "setsid",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "timeout",
    "tr",
    "truncate",
    "umount",
    "wc",
    "wipefs",
];

/// Opened at run time, so that `ldd` does not see it.
const EXTRA_FILES: &[&str] = &["/lib/x86_64-linux-gnu/libgcc_s.so.1", "/etc/mke2fs.conf"];

/// The guest's first program, and what its checks are made of.
const SCRIPTS: &[(&str, &str)] = &[
    ("init", include_str!("../../guest/init.sh")),
    ("checks.sh", include_str!("../../guest/checks.sh")),
    ("drive.sh", include_str!("../../guest/drive.sh")),
    ("pool.sh", include_str!("../../guest/pool.sh")),
    ("power.sh", include_str!("../../guest/power.sh")),
];

/// Identity of the host in the guest; fixed, so that the data plane can be told to allow it.
pub(crate) const HOST_NQN: &str =
    "nqn.2014-08.org.nvmexpress:uuid:6b7c0a4e-3d55-4a53-9d0e-5f2f1a0c9e11";
const HOST_ID: &str = "6b7c0a4e-3d55-4a53-9d0e-5f2f1a0c9e11";

/// The other host that the guest can play, which the checks name too.
pub(crate) const SECOND_HOST_NQN: &str =
    "nqn.2014-08.org.nvmexpress:uuid:9a3f77c2-5c0e-4d0f-8f5b-2f0c3f6f6d02";

/// Writes the initramfs for `kernel`, with `programs` of ours among its programs.
pub(crate) fn write(path: &Path, kernel: &Kernel, programs: &[&Path]) -> Result<()> {
    let output = fs::File::create(path).context("cannot write the guest's image")?;
    let mut archive = Archive::new(BufWriter::new(output));
    skeleton(&mut archive)?;
    for file in files(programs)? {
        archive.file(&place_of(&file), &read(&file)?)?;
    }
    for program in programs {
        let name = program.file_name().context("the program has no name")?;
        let name = format!("usr/bin/{}", name.to_string_lossy());
        archive.file(&name, &read(program)?)?;
    }
    for (name, content) in SCRIPTS {
        archive.file(name, content.as_bytes())?;
    }
    let mut output = archive.finish()?;
    let mut modules = fs::File::open(&kernel.modules).context("cannot read the modules")?;
    io::copy(&mut modules, &mut output).context("cannot write the guest's image")?;
    io::Write::flush(&mut output).context("cannot write the guest's image")
}

fn skeleton<W: io::Write>(archive: &mut Archive<W>) -> io::Result<()> {
    // The root itself is among them, as DPDK trusts no folder that everybody may write to.
    for folder in [
        ".", "dev", "etc/nvme", "mnt", "proc", "run", "sys", "tmp", "usr/bin", "usr/sbin",
        "var/tmp",
    ] {
        archive.folder(folder)?;
    }
    for (link, to) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("var/run", "/run"),
    ] {
        archive.symlink(link, to)?;
    }
    // The kernel opens it for init before anything is mounted.
    archive.character_device("dev/console", 5, 1)?;
    archive.symlink("etc/mtab", "/proc/self/mounts")?;
    // SPDK does not start without it.
    archive.file("usr/lib/ssl/openssl.cnf", b"")?;
    archive.file("etc/passwd", b"root:x:0:0:root:/:/bin/bash\n")?;
    archive.file("etc/nvme/hostnqn", format!("{HOST_NQN}\n").as_bytes())?;
    archive.file("etc/nvme/hostid", format!("{HOST_ID}\n").as_bytes())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Programs, the libraries that they and `ours` link, and the loader.
fn files(ours: &[&Path]) -> Result<BTreeSet<PathBuf>> {
    let mut files: BTreeSet<PathBuf> = EXTRA_FILES.iter().map(PathBuf::from).collect();
    for name in PROGRAMS {
        let program = process::find_program(name)
            .with_context(|| format!("{name} is not on this machine"))?;
        files.extend(libraries(&program)?);
        files.insert(program);
    }
    for program in ours {
        files.extend(libraries(program)?);
    }
    let modules = files.iter().filter_map(|file| dpdk_modules(file));
    let modules: Vec<_> = modules.flatten().collect();
    files.extend(modules);
    Ok(files)
}

/// Beside DPDK's shared libraries lies a folder with the rest of it, which it opens when it starts, so
/// that `ldd` does not see it: of that, what no program of it runs without.
fn dpdk_modules(library: &Path) -> Option<Vec<PathBuf>> {
    let name = library.file_name()?.to_str()?;
    if !name.starts_with("librte_eal.so") {
        return None;
    }
    let entries = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let is_needed = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("librte_mempool_ring.so") && !file.is_symlink()
    };
    let folders = entries(&library.parent()?.join("dpdk"));
    let files = folders.iter().flat_map(|folder| entries(folder));
    Some(files.filter(is_needed).collect())
}

fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listing = process::capture(Command::new("ldd").arg(program))?;
    Ok(listing.lines().filter_map(library).collect())
}

/// The path in a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x7f…)`, or the loader's own line.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
    Some(PathBuf::from(path))
}

/// Debian merged `/bin`, `/sbin` and `/lib` into `/usr`; an archive has only one name for a file.
fn place_of(file: &Path) -> String {
    let path = file.to_string_lossy();
    let path = path.trim_start_matches('/');
    let merged = ["bin/", "sbin/", "lib/", "lib64/"]
        .iter()
        .any(|head| path.starts_with(head));
    if merged {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_lines_of_ldd_are_understood() {
        let path = |text: &str| library(text).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(
            path("\tlibc.so.6 => /lib/libc.so.6 (0x7f)").as_deref(),
            Some("/lib/libc.so.6")
        );
        assert_eq!(
            path("\t/lib64/ld-linux.so.2 (0x7f)").as_deref(),
            Some("/lib64/ld-linux.so.2")
        );
        assert_eq!(path("\tlinux-vdso.so.1 (0x7f)"), None);
    }

    #[test]
    fn modules_beside_dpdk_are_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("dpdk/pmds-23.0");
        fs::create_dir_all(&modules).unwrap();
        let module = modules.join("librte_mempool_ring.so.23.0");
        fs::write(&module, b"").unwrap();
        fs::write(modules.join("librte_net_null.so.23.0"), b"").unwrap();
        std::os::unix::fs::symlink(&module, modules.join("librte_mempool_ring.so")).unwrap();
        let found = |library: &str| dpdk_modules(&folder.path().join(library));
        assert_eq!(found("librte_eal.so.23"), Some(vec![module]));
        assert_eq!(found("libc.so.6"), None);
    }

    #[test]
    fn merged_folders_have_one_name() {
        assert_eq!(place_of(Path::new("/bin/bash")), "usr/bin/bash");
        assert_eq!(place_of(Path::new("/usr/bin/bash")), "usr/bin/bash");
        assert_eq!(place_of(Path::new("/etc/mke2fs.conf")), "etc/mke2fs.conf");
    }
}
