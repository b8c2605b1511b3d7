//! Debian's packages: installing tools, resolving and downloading what is only unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::process;

/// A package at one version.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// Why this machine's packages cannot be used at all.
pub(crate) fn unusable() -> Option<String> {
    if process::find_program("apt-get").is_none() || process::find_program("dpkg-deb").is_none() {
        return Some("this is not a Debian machine (no apt-get)".to_owned());
    }
    None
}

/// Installs what is missing of `names`; needs root only when something is.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !is_installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? {
        bail!(
            "not root: as root run `apt-get install {}`",
            missing.join(" ")
        );
    }
    update_lists();
    let mut command = apt_get();
    command
        .args(["install", "--yes", "--quiet=2", "--no-install-recommends"])
        .args(&missing);
    process::run(&mut command)
}

/// The package that a metapackage's newest version stands for: its first versioned dependency.
pub(crate) fn resolve(metapackage: &str) -> Result<Package> {
    if let Ok(package) = resolve_now(metapackage) {
        return Ok(package);
    }
    update_lists();
    resolve_now(metapackage)
}

fn resolve_now(metapackage: &str) -> Result<Package> {
    // `--no-all-versions`: the candidate only, so the security suite's where it has one.
    let mut command = Command::new("apt-cache");
    let shown = process::capture(command.args(["show", "--no-all-versions", metapackage]))?;
    parse_first_dependency(&shown)
        .with_context(|| format!("{metapackage} names no kernel package of one version"))
}

fn parse_first_dependency(shown: &str) -> Option<Package> {
    let depends = shown
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))?;
    let first = depends.split(',').next()?.trim();
    let (name, rest) = first.split_once(" (= ")?;
    let version = rest.strip_suffix(')')?;
    Some(Package {
        name: name.to_owned(),
        version: version.to_owned(),
    })
}

/// Downloads a package file into `folder` without installing it.
pub(crate) fn download(package: &Package, folder: &Path) -> Result<PathBuf> {
    let wanted = format!("{}={}", package.name, package.version);
    let fetch = || {
        // apt's own user cannot write into a private folder; we can.
        let mut command = apt_get();
        command.args([
            "-o",
            "APT::Sandbox::User=root",
            "--quiet=2",
            "download",
            &wanted,
        ]);
        process::run(command.current_dir(folder))
    };
    if fetch().is_err() {
        // The lists are older than the archive: what they name is gone from it.
        update_lists();
        fetch()?;
    }
    let prefix = format!("{}_", package.name);
    for entry in fs::read_dir(folder).context("cannot read the download folder")? {
        let path = entry.context("cannot read the download folder")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            return Ok(path);
        }
    }
    bail!("apt-get download {wanted} left no file")
}

/// Unpacks a package file's tree into `folder`; `only` names paths in tar's glob form.
pub(crate) fn unpack(file: &Path, folder: &Path, only: &[&str]) -> Result<()> {
    let mut tarball = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(file)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stream = tarball.stdout.take().context("no output of dpkg-deb")?;
    let unpacked = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--wildcards", "--directory"])
        .arg(folder)
        .args(only)
        .stdin(stream)
        .status()
        .context("cannot run tar")?;
    let packed = tarball.wait().context("cannot wait for dpkg-deb")?;
    if !unpacked.success() || !packed.success() {
        bail!("cannot unpack {}", file.display());
    }
    Ok(())
}

fn is_installed(name: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    let status = process::capture(query.args(["--show", "--showformat=${db:Status-Status}", name]));
    status.is_ok_and(|status| status == "installed")
}

fn is_root() -> Result<bool> {
    Ok(process::capture(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Refreshes the package lists, once per run; without root the old ones have to do.
fn update_lists() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let updated = process::run(apt_get().args(["update", "--quiet=2"]));
        if let Err(error) = updated {
            // Whatever is missing because of it says so itself.
            eprintln!("package lists stay as they are: {error:#}");
        }
    });
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metapackage_names_its_kernel() {
        let shown = "Package: linux-image-amd64\nVersion: 6.1.5-1\n\
                     Depends: linux-image-6.1.0-9-amd64 (= 6.1.5-1), other\n";
        let package = parse_first_dependency(shown).unwrap();
        assert_eq!(package.name, "linux-image-6.1.0-9-amd64");
        assert_eq!(package.version, "6.1.5-1");
        assert!(parse_first_dependency("Depends: libc6 (>= 2.3)\n").is_none());
    }
}
