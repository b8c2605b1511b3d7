//! System calls of a process, counted by the kernel's tracepoint; the same way for every target.

use std::fs;

use anyhow::{Context, Result};
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};

const IDS: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];

/// Counts from its making to [`SystemCalls::count`].
#[derive(Debug)]
pub(crate) struct SystemCalls {
    /// One per thread: a counter of a process counts its first thread only.
    counters: Vec<Counter>,
}

impl SystemCalls {
    /// Watches every thread that the process has now.
    pub(crate) fn watch(pid: i32) -> Result<Self> {
        let id = IDS.iter().find_map(|path| fs::read_to_string(path).ok());
        let id = id.context("no tracepoint raw_syscalls:sys_enter")?;
        let event = Tracepoint::with_id(id.trim().parse().context("number of the tracepoint")?);
        let folder = format!("/proc/{pid}/task");
        let mut counters = Vec::new();
        for thread in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
            let name = thread.context("threads")?.file_name();
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let mut counter = Builder::new(event)
                .observe_pid(thread)
                .include_kernel()
                .build()
                .context("perf_event_open")?;
            counter.enable().context("counter")?;
            counters.push(counter);
        }
        Ok(Self { counters })
    }

    /// Calls since it was made.
    pub(crate) fn count(mut self) -> Result<u64> {
        let mut sum = 0_u64;
        for counter in &mut self.counters {
            sum = sum.saturating_add(counter.read().context("counter")?);
        }
        Ok(sum)
    }
}
