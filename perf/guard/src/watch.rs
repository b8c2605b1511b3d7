//! System calls of another process's reactors, as the kernel counts them: whoever makes them.

use std::fs;

use anyhow::{Context, Result, ensure};
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};

/// Where the kernel says which number the tracepoint at the entry of every system call has.
const NUMBERS: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];
/// What the names of their threads begin with.
const REACTORS: &str = "reactor-";

/// Counters that run from their making on, one for each reactor.
pub(crate) struct Watch {
    counters: Vec<Counter>,
}

impl Watch {
    /// Watches the reactors of a process.
    pub(crate) fn reactors(pid: u32) -> Result<Self> {
        let event = event()?;
        let mut counters = Vec::new();
        let folder = format!("/proc/{pid}/task");
        for thread in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
            let thread = thread?.path();
            let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
            let id = thread.file_name().and_then(|id| id.to_str()?.parse().ok());
            if let Some(id) = id.filter(|_| name.starts_with(REACTORS)) {
                counters.push(counter(event, Some(id))?);
            }
        }
        ensure!(!counters.is_empty(), "process {pid} has no reactor");
        Ok(Self { counters })
    }

    /// Calls so far.
    pub(crate) fn count(&mut self) -> Result<u64> {
        let mut sum = 0_u64;
        for counter in &mut self.counters {
            sum = sum.saturating_add(counter.read().context("reading a counter")?);
        }
        Ok(sum)
    }
}

/// Whether this machine lets us count at all; why not, and what would help.
pub(crate) fn probe() -> Result<()> {
    let mut counter = counter(event()?, None)?;
    // Reading is a system call, too.
    let (before, after) = (counter.read()?, counter.read()?);
    ensure!(after > before, "the kernel's counter does not count");
    Ok(())
}

fn event() -> Result<Tracepoint> {
    let number = NUMBERS
        .iter()
        .find_map(|path| fs::read_to_string(path).ok());
    let number = number.with_context(|| {
        format!(
            "cannot read {}: run as root, with tracefs mounted (mount -t tracefs nodev \
             /sys/kernel/tracing)",
            NUMBERS[0]
        )
    })?;
    let number = number.trim().parse();
    Ok(Tracepoint::with_id(
        number.context("number of the tracepoint")?,
    ))
}

/// A running counter of a thread's system calls, of this one's if none is named.
fn counter(event: Tracepoint, thread: Option<i32>) -> Result<Counter> {
    let mut builder = Builder::new(event);
    builder.include_kernel();
    if let Some(thread) = thread {
        builder.observe_pid(thread);
    }
    let made = builder.build().and_then(|mut counter| {
        counter.enable()?;
        Ok(counter)
    });
    made.context(
        "perf_event_open is refused: run as root, or with CAP_PERFMON where the sandbox allows it",
    )
}
