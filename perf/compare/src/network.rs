//! A network of our own: the loopback of a fresh namespace, so that the congestion control is the
//! same for all contenders and nobody else's setting is touched.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

const CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Where all traffic of a run flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) congestion_control: String,
    /// It is a namespace of the run's own.
    pub(crate) own_namespace: bool,
}

/// Moves this process, before it has threads, to a network namespace of its own with a working
/// loopback and this congestion control. Where that is not allowed the machine's own network is
/// used as it is, which is the same for all contenders too; but what was `asked` for must hold.
pub(crate) fn enter(asked: Option<&str>) -> Result<Network> {
    let own_namespace = match own_namespace() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("note: no network namespace of our own, so nothing is set: {error:#}");
            false
        }
    };
    let wanted = asked.unwrap_or("cubic");
    if own_namespace && let Err(error) = fs::write(CONTROL, wanted) {
        if asked.is_some() {
            return Err(error)
                .with_context(|| format!("cannot set the congestion control {wanted}"));
        }
        eprintln!("note: the congestion control stays as it is: {wanted}: {error}");
    }
    let current = fs::read_to_string(CONTROL).with_context(|| format!("cannot read {CONTROL}"))?;
    let congestion_control = current.trim().to_owned();
    if let Some(asked) = asked
        && asked != congestion_control
    {
        bail!("the congestion control is {congestion_control} and cannot be made {asked} here");
    }
    Ok(Network {
        congestion_control,
        own_namespace,
    })
}

fn own_namespace() -> Result<()> {
    // Opened before leaving: afterwards it has no name that is sure.
    let path = "/proc/thread-self/ns/net";
    let before = fs::File::open(path).with_context(|| format!("cannot open {path}"))?;
    unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
    let status = Command::new("ip")
        .args(["link", "set", "dev", "lo", "up"])
        .stdin(Stdio::null())
        .status();
    let why = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => format!("ip link set dev lo up: {status}"),
        Err(error) => format!("ip link set dev lo up: {error}"),
    };
    // Nothing works in a namespace without a loopback.
    nix::sched::setns(before, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("{why}; and there is no way back"))?;
    bail!("{why}")
}
