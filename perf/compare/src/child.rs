//! The step between us and a program we start: a process of our own executable that settles what
//! the program inherits (its core, its control group, its death with us) and becomes the program.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

/// `bowline-compare child`, which only `bowline-compare` calls.
#[derive(Debug, Args)]
pub(crate) struct ChildArguments {
    /// The process that starts us, and without which we are not to run.
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    core: usize,
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[arg(required = true, last = true)]
    program: Vec<OsString>,
}

/// Becomes the program. Returns only with what went wrong.
pub(crate) fn run(arguments: &ChildArguments) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("death with the parent")?;
    // It may have died before the line above.
    if getppid().map(Pid::as_raw_pid) != Some(arguments.parent) {
        bail!("the process that started this one is gone");
    }
    pin(arguments.core)?;
    if let Some(group) = &arguments.cgroup {
        let members = group.join("cgroup.procs");
        // 0 is whoever writes it.
        fs::write(&members, "0").with_context(|| format!("cannot join {}", group.display()))?;
    }
    let Some((program, rest)) = arguments.program.split_first() else {
        bail!("no program named");
    };
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Keeps the calling thread, and what it starts, on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    pin_thread(None, core)
}

/// Keeps a thread, or the calling one, on one core.
pub(crate) fn pin_thread(thread: Option<Pid>, core: usize) -> Result<()> {
    if core >= CpuSet::MAX_CPU {
        bail!("there is no core {core}");
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(thread, &cores).with_context(|| format!("cannot run on core {core}"))
}
