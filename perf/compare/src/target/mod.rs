//! The contenders: each can be started, loaded, taken off its core and put back.

mod bowline;
mod ground;
mod spdk;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::cell::{Ground, State};
use crate::cgroup::HalfCore;
use crate::client::SUBSYSTEM;
use crate::environment::free_huge_pages_bytes;
use crate::process::{Launch, Process};

pub(crate) use bowline::{VOLUME, serve_pool};
pub(crate) use spdk::SpdkVariant;

/// How long a target may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    Bowline(Backing),
    /// A second process of the subject: what it differs by from the first is noise.
    Twin(Backing),
    /// The subject, polling all the time.
    Polling(Backing),
    Spdk(SpdkVariant),
    Bare,
    /// Bare sockets that sleep while nothing comes.
    BareSleeping,
}

/// What bowline serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Its own, of the kernel's engine.
    Memory,
    /// A malloc bdev, of the SPDK engine.
    Spdk,
    File,
    /// A loop device over a file.
    Block,
    /// A volume of a pool on a file.
    Pool,
    /// The same with checksums, which every read compares.
    Verify,
}

impl Backing {
    pub(crate) const fn is_pool(self) -> bool {
        matches!(self, Self::Pool | Self::Verify)
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Memory => "mem",
            Self::Spdk => "spdk",
            Self::File => "file",
            Self::Block => "block",
            Self::Pool => "pool",
            Self::Verify => "pool-verify",
        }
    }
}

impl Contender {
    /// The kernel works for it, in threads that are not its own.
    pub(crate) const fn uses_drive(self) -> bool {
        let (Self::Bowline(backing) | Self::Twin(backing) | Self::Polling(backing)) = self else {
            return false;
        };
        matches!(backing, Backing::File | Backing::Block) || backing.is_pool()
    }

    /// What a client asks it for.
    pub(crate) const fn subsystem(self) -> &'static str {
        match self {
            Self::Bowline(backing) | Self::Twin(backing) | Self::Polling(backing)
                if backing.is_pool() =>
            {
                bowline::VOLUME_SUBSYSTEM
            }
            _ => SUBSYSTEM,
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Bowline(backing) => format!("bowline-{}", backing.word()),
            Self::Twin(backing) => format!("bowline-{}-2", backing.word()),
            Self::Polling(backing) => format!("bowline-{}-always", backing.word()),
            Self::Spdk(variant) => variant.name(),
            Self::Bare => "bare".to_owned(),
            Self::BareSleeping => "bare-sleeping".to_owned(),
        }
    }
}

/// What targets are made of, found once.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) bowline: PathBuf,
    /// `--poll` of bowline.
    pub(crate) poll: String,
    pub(crate) spdk: Option<PathBuf>,
    pub(crate) core: usize,
    /// Where backing files go.
    pub(crate) scratch: PathBuf,
    /// There are enough huge pages for all that use SPDK at once; if not, none uses them.
    pub(crate) huge_pages: bool,
}

/// Whether as many users of SPDK find huge pages.
pub(crate) fn huge_pages_suffice(targets: usize) -> bool {
    free_huge_pages_bytes() >= (spdk::MEMORY_MIB << 20) * targets as u64
}

/// A target that runs.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) contender: Contender,
    // Fields are dropped in this order: the process, then what it lived in.
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// Where it is managed, if it serves a pool.
    pub(crate) rpc: Option<SocketAddr>,
    _group: Option<HalfCore>,
    folder: Option<TempDir>,
}

impl Target {
    /// Starts a contender, held to half a core or not, and waits until it listens. Its namespace has
    /// the size that belongs to a state, and is empty.
    pub(crate) fn start(
        kit: &Kit,
        contender: Contender,
        state: State,
        half_core: bool,
    ) -> Result<Self> {
        let name = contender.name();
        let group = if half_core {
            Some(HalfCore::new(&name)?)
        } else {
            None
        };
        let cgroup = group.as_ref().map(HalfCore::path);
        let started = match contender {
            Contender::Bowline(backing) | Contender::Twin(backing) => {
                bowline::start(kit, (backing, state), &kit.poll, &name, cgroup)?
            }
            Contender::Polling(backing) => {
                bowline::start(kit, (backing, state), "always", &name, cgroup)?
            }
            Contender::Spdk(variant) => spdk::start(kit, variant, &name, cgroup)?,
            Contender::Bare => start_bare(kit, &["bare-target"], &name, cgroup)?,
            Contender::BareSleeping => {
                start_bare(kit, &["bare-target", "--sleeping"], &name, cgroup)?
            }
        };
        Ok(Self {
            contender,
            process: started.process,
            address: started.address,
            rpc: started.rpc,
            _group: group,
            folder: started.folder,
        })
    }

    /// Has the kernel find memory for what is going to be written, if that is in a file.
    pub(crate) fn lay(&self, ground: Ground, state: State) -> Result<()> {
        match &self.folder {
            Some(folder) if self.contender.uses_drive() => {
                let drive = bowline::drive_in(folder.path());
                ground::lay(&drive, ground, state, self.rpc.is_some())
            }
            _ => Ok(()),
        }
    }

    /// Has the pool, if there is one, keep its volume as it is.
    pub(crate) fn take_snapshot(&self, kit: &Kit) -> Result<()> {
        match self.rpc {
            Some(rpc) => bowline::take_snapshot(kit, &rpc.to_string()),
            None => Ok(()),
        }
    }

    /// Kills it and leaves what it served, if that is a file.
    pub(crate) fn leave_drive(self) -> Option<(TempDir, PathBuf)> {
        drop(self.process);
        let folder = self.folder?;
        let drive = bowline::drive_in(folder.path());
        Some((folder, drive))
    }
}

struct Started {
    process: Process,
    address: SocketAddr,
    rpc: Option<SocketAddr>,
    folder: Option<TempDir>,
}

fn start_bare(kit: &Kit, arguments: &[&str], name: &str, cgroup: Option<&Path>) -> Result<Started> {
    let program = std::env::current_exe().context("own executable")?;
    let mut process = Process::start(Launch {
        name,
        program: &program,
        arguments: arguments.iter().map(OsString::from).collect(),
        core: kit.core,
        cgroup,
    })?;
    let address = process.wait_output(START_LIMIT, listening_address)?;
    Ok(Started {
        process,
        address,
        rpc: None,
        folder: None,
    })
}

/// Where management is spoken, by the same line.
fn rpc_address(output: &str) -> Option<SocketAddr> {
    ready(output)?["rpc"].as_str()?.parse().ok()
}

/// The first listener of a line `ready {"listen":["127.0.0.1:4420"],…}`.
fn listening_address(output: &str) -> Option<SocketAddr> {
    ready(output)?["listen"][0].as_str()?.parse().ok()
}

fn ready(output: &str) -> Option<Value> {
    let line = output
        .split_inclusive('\n')
        .find(|line| line.ends_with('\n') && line.starts_with("ready "))?;
    serde_json::from_str(line.strip_prefix("ready ")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_taken_from_a_whole_ready_line() {
        let line =
            "noise\nready {\"listen\":[\"127.0.0.1:4601\"],\"rpc\":\"127.0.0.1:4602\",\"pid\":1}";
        assert_eq!(listening_address(line), None);
        let line = format!("{line}\n");
        let address = listening_address(&line);
        assert_eq!(address, Some("127.0.0.1:4601".parse().unwrap()));
        assert_eq!(rpc_address(&line), Some("127.0.0.1:4602".parse().unwrap()));
    }
}
