//! Our data plane over memory, a malloc bdev, a file, a loop device or a pool.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{
    Backing, Kit, NAMESPACE_BYTES, START_LIMIT, Started, listening_address, rpc_address, spdk,
};
use crate::client::SUBSYSTEM;
use crate::process::{Launch, Process};

/// The volume of a pool that is measured, and the subsystem that follows from it.
const VOLUME: &str = "5c1e2a34-9b7d-4e0f-8a61-7d3c0b9f4e52";
pub(super) const VOLUME_SUBSYSTEM: &str =
    "nqn.2026-11.io.bowline:volume:5c1e2a34-9b7d-4e0f-8a61-7d3c0b9f4e52";
/// The drive that a pool is made on.
const POOL_BYTES: u64 = 1 << 30;

pub(super) fn start(
    kit: &Kit,
    backing: Backing,
    poll: &str,
    name: &str,
    cgroup: Option<&Path>,
) -> Result<Started> {
    let mut arguments: Vec<OsString> = vec!["dataplane".into()];
    let Backed {
        flags,
        folder,
        device,
    } = back(kit, backing)?;
    arguments.extend(flags);
    if !backing.is_pool() {
        arguments.extend(["--nqn".into(), SUBSYSTEM.into()]);
    }
    let core = kit.core.to_string();
    for (flag, value) in [
        ("--host", "any"),
        ("--listen", "127.0.0.1:0"),
        ("--rpc", "127.0.0.1:0"),
        ("--metrics", "127.0.0.1:0"),
        ("--cores", core.as_str()),
        ("--poll", poll),
        ("--log-level", "warn"),
    ] {
        arguments.extend([flag.into(), value.into()]);
    }
    let mut process = Process::start(Launch {
        name,
        program: &kit.bowline,
        arguments,
        core: kit.core,
        cgroup,
    })?;
    let address = process.wait_output(START_LIMIT, listening_address)?;
    if backing.is_pool() {
        let output = process.stdout()?;
        let rpc = rpc_address(&output).context("the data plane does not tell its RPC address")?;
        create_volume(kit, backing, &rpc.to_string())?;
    }
    // The kernel keeps a detached loop device until its last user is gone, so that it goes with
    // the data plane however this run ends.
    drop(device);
    Ok(Started {
        process,
        address,
        folder,
    })
}

/// What a data plane is told to serve, and what has to be there meanwhile.
struct Backed {
    flags: Vec<OsString>,
    folder: Option<TempDir>,
    device: Option<LoopDevice>,
}

fn back(kit: &Kit, backing: Backing) -> Result<Backed> {
    let mut made = Backed {
        flags: Vec::new(),
        folder: None,
        device: None,
    };
    match backing {
        Backing::Memory => {
            let size = NAMESPACE_BYTES.to_string();
            made.flags.extend(["--memory".into(), size.into()]);
        }
        Backing::Spdk => {
            let folder = tempfile::tempdir().context("temporary folder")?;
            let configuration = folder.path().join("spdk.json");
            fs::write(&configuration, spdk::bdev_configuration()).context("configuration")?;
            let device = format!("bdev:{}", spdk::BDEV);
            made.flags.extend(["--engine".into(), "spdk".into()]);
            made.flags.extend(["--device".into(), device.into()]);
            made.flags
                .extend(["--spdk-config".into(), configuration.into()]);
            if !kit.huge_pages {
                made.flags.push("--no-huge".into());
            }
            made.folder = Some(folder);
        }
        Backing::File | Backing::Block | Backing::Pool | Backing::Verify => {
            let folder = tempfile::tempdir_in(&kit.scratch).context("scratch folder")?;
            let mut path = folder.path().join("namespace");
            let bytes = if backing.is_pool() {
                POOL_BYTES
            } else {
                NAMESPACE_BYTES
            };
            File::create_new(&path)
                .and_then(|file| file.set_len(bytes))
                .with_context(|| format!("cannot make {}", path.display()))?;
            if backing == Backing::Block {
                let attached = LoopDevice::attach(&path)?;
                path.clone_from(&attached.path);
                made.device = Some(attached);
            }
            made.flags.extend(["--device".into(), path.into()]);
            made.flags.extend(["--block-size".into(), "4096".into()]);
            if backing.is_pool() {
                made.flags.push("--format".into());
            }
            made.folder = Some(folder);
        }
    }
    Ok(made)
}

/// Makes the volume of a pool that is measured. What a completed write is, is what it is of a file
/// that is served as it is.
fn create_volume(kit: &Kit, backing: Backing, rpc: &str) -> Result<()> {
    let checksums = if backing == Backing::Verify {
        "verify"
    } else {
        "off"
    };
    let size = NAMESPACE_BYTES.to_string();
    let output = Command::new(&kit.bowline)
        .args(["volume", "--rpc", rpc, "create", "compare"])
        .args(["--size", &size, "--uuid", VOLUME])
        .args(["--durability", "device", "--checksums", checksums])
        .stdin(Stdio::null())
        .output()
        .context("cannot make a volume")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("no volume: {}", words.trim());
    }
    Ok(())
}

/// A file as a block device, while this is held or somebody has it open.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn attach(file: &Path) -> Result<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on", "--sector-size=4096"])
            .arg(file)
            .stdin(Stdio::null())
            .output()
            .context("cannot run losetup")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("no loop device: {}", words.trim());
        }
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self { path: path.into() })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("note: {} could not be detached", self.path.display());
        }
    }
}
