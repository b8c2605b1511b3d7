//! Our data plane over memory, a malloc bdev, a file, a loop device or a pool.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{Backing, Kit, START_LIMIT, Started, listening_address, rpc_address, spdk};
use crate::cell::State;
use crate::client::SUBSYSTEM;
use crate::process::{Launch, Process};

/// The volume of a pool that is measured, and the subsystem that follows from it.
pub(crate) const VOLUME: &str = "5c1e2a34-9b7d-4e0f-8a61-7d3c0b9f4e52";
pub(super) const VOLUME_SUBSYSTEM: &str =
    "nqn.2026-11.io.bowline:volume:5c1e2a34-9b7d-4e0f-8a61-7d3c0b9f4e52";

/// Of every file that is served.
pub(super) const BLOCK_BYTES: u32 = 4096;

pub(super) fn start(
    kit: &Kit,
    (backing, state): (Backing, State),
    poll: &str,
    name: &str,
    cgroup: Option<&Path>,
) -> Result<Started> {
    let mut arguments: Vec<OsString> = vec!["dataplane".into()];
    let Backed {
        flags,
        folder,
        device,
    } = back(kit, backing, state)?;
    arguments.extend(flags);
    if !backing.is_pool() {
        arguments.extend(["--nqn".into(), SUBSYSTEM.into()]);
    }
    arguments.extend(common(kit, poll));
    let mut process = Process::start(Launch {
        name,
        program: &kit.bowline,
        arguments,
        core: kit.core,
        cgroup,
    })?;
    let address = process.wait_output(START_LIMIT, listening_address)?;
    let mut rpc = None;
    if backing.is_pool() {
        rpc = rpc_address(&process.stdout()?);
        let rpc = rpc.context("the data plane does not tell its RPC address")?;
        create_volume(kit, backing, state, &rpc.to_string())?;
    }
    // The kernel keeps a detached loop device until its last user is gone, so that it goes with
    // the data plane however this run ends.
    drop(device);
    Ok(Started {
        process,
        address,
        rpc,
        folder,
    })
}

/// A data plane over a drive that has a pool already, and how long it took from its start until it
/// was ready.
pub(crate) fn serve_pool(kit: &Kit, drive: &Path) -> Result<(Process, Duration)> {
    let mut arguments: Vec<OsString> = vec!["dataplane".into(), "--device".into(), drive.into()];
    arguments.extend(["--block-size".into(), BLOCK_BYTES.to_string().into()]);
    arguments.extend(common(kit, &kit.poll));
    let begun = Instant::now();
    let mut process = Process::start(Launch {
        name: "bowline",
        program: &kit.bowline,
        arguments,
        core: kit.core,
        cgroup: None,
    })?;
    process.wait_output(START_LIMIT, listening_address)?;
    Ok((process, begun.elapsed()))
}

/// What every data plane is told.
fn common(kit: &Kit, poll: &str) -> Vec<OsString> {
    let mut arguments = Vec::new();
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
        arguments.extend([OsString::from(flag), value.into()]);
    }
    arguments
}

/// The file that is served, or that a loop device is over.
pub(super) fn drive_in(folder: &Path) -> PathBuf {
    folder.join("namespace")
}

/// What a data plane is told to serve, and what has to be there meanwhile.
struct Backed {
    flags: Vec<OsString>,
    folder: Option<TempDir>,
    device: Option<LoopDevice>,
}

fn back(kit: &Kit, backing: Backing, state: State) -> Result<Backed> {
    let mut made = Backed {
        flags: Vec::new(),
        folder: None,
        device: None,
    };
    match backing {
        Backing::Memory => {
            let size = state.namespace_bytes().to_string();
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
            let mut path = drive_in(folder.path());
            let bytes = if backing.is_pool() {
                state.drive_bytes()
            } else {
                state.namespace_bytes()
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
            made.flags
                .extend(["--block-size".into(), BLOCK_BYTES.to_string().into()]);
            if backing.is_pool() {
                made.flags.push("--format".into());
            }
            made.folder = Some(folder);
        }
    }
    Ok(made)
}

/// Makes the volume of a pool that is measured. What a completed write is, is what it is of a file
/// that is served as it is; where writes change the map, what it is of volumes unless asked for
/// otherwise, so that they wait until the change is durable.
fn create_volume(kit: &Kit, backing: Backing, state: State, rpc: &str) -> Result<()> {
    let checksums = if backing == Backing::Verify {
        "verify"
    } else {
        "off"
    };
    let durability = if state.is_used_up() {
        "media"
    } else {
        "device"
    };
    let size = state.namespace_bytes().to_string();
    let output = Command::new(&kit.bowline)
        .args(["volume", "--rpc", rpc, "create", "compare"])
        .args(["--size", &size, "--uuid", VOLUME])
        .args(["--durability", durability, "--checksums", checksums])
        .stdin(Stdio::null())
        .output()
        .context("cannot make a volume")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("no volume: {}", words.trim());
    }
    Ok(())
}

/// Has the pool keep its volume as it is.
pub(super) fn take_snapshot(kit: &Kit, rpc: &str) -> Result<()> {
    let output = Command::new(&kit.bowline)
        .args(["snapshot", "--rpc", rpc, "create", "compare/one"])
        .stdin(Stdio::null())
        .output()
        .context("cannot take a snapshot")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("no snapshot: {}", words.trim());
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
