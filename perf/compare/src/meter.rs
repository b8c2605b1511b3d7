//! One slice: a client loads a target for a moment, and everything about it is written down.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::client::{Client, Demand, Latency};
use crate::gate::{FOREIGN_MAX, IdleTicks, foreign_share};
use crate::process::{Launch, Process, kernel_threads_cpu_time, own_cpu_time, reaped_cpu_time};
use crate::target::Target;

/// How often the target's clock is read during a slice.
const SAMPLE_PERIOD: Duration = Duration::from_millis(50);
/// What a client may need besides its slice: start, connect, disconnect.
const CLIENT_SLACK: Duration = Duration::from_secs(15);

/// What was measured in one slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slice {
    pub(crate) contender: String,
    /// Share of the two cores that others used.
    pub(crate) foreign_share: f64,
    pub(crate) accepted: bool,
    pub(crate) iops: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) latency_ns: Latency,
    /// CPU seconds of the target per second, in the middle of the slice.
    pub(crate) target_cores: f64,
    pub(crate) client_cpu_seconds: f64,
    pub(crate) commands: Option<u64>,
    /// Merged over all slices of a contender when they are reported.
    #[serde(skip)]
    pub(crate) histogram: Option<String>,
}

impl Slice {
    pub(crate) fn iops_per_cpu_second(&self) -> f64 {
        if self.target_cores > 0.0 {
            self.iops / self.target_cores
        } else {
            0.0
        }
    }
}

/// The cores that a slice uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    pub(crate) target_core: usize,
    pub(crate) client_core: usize,
    /// Slices in which others were busy are rejected.
    pub(crate) gated: bool,
}

impl Meter {
    /// Puts the target on its core, loads it, takes it off again.
    pub(crate) fn slice(&self, target: &Target, client: &Client, demand: &Demand) -> Result<Slice> {
        target.process.resume()?;
        let slice = self.loaded(target, client, demand);
        target.process.pause()?;
        slice.with_context(|| format!("{} with {}", target.process.name(), client.name()))
    }

    fn loaded(&self, target: &Target, client: &Client, demand: &Demand) -> Result<Slice> {
        let cores = [self.target_core, self.client_core];
        let program = client.program()?;
        let own = || -> Result<Duration> {
            let mut own = own_cpu_time()? + reaped_cpu_time()? + target.process.cpu_time()?;
            if target.contender.uses_drive() {
                own += kernel_threads_cpu_time()?;
            }
            Ok(own)
        };
        let (idle_before, own_before) = (IdleTicks::now(&cores)?, own()?);
        let reaped_before = reaped_cpu_time()?;
        let begun = Instant::now();
        let mut process = Process::start(Launch {
            name: client.name(),
            program: &program,
            arguments: client.arguments(demand),
            core: demand.core,
            cgroup: None,
        })?;
        let limit = demand.warm_up + demand.duration + CLIENT_SLACK;
        let mut samples = Vec::new();
        loop {
            samples.push((begun.elapsed(), target.process.cpu_time()?));
            if process.wait_end(SAMPLE_PERIOD)? {
                break;
            }
            if begun.elapsed() > limit {
                bail!("no answer after {limit:?}: {}", process.last_words());
            }
        }
        let elapsed = begun.elapsed();
        samples.push((elapsed, target.process.cpu_time()?));
        let status = process.reap()?;
        let idle_after = IdleTicks::now(&cores)?;
        let own = own()?.saturating_sub(own_before);
        if !status.success() {
            bail!("{status}: {}", process.last_words());
        }
        let report = client.parse(&process.stdout()?)?;
        let foreign = foreign_share(idle_before, idle_after, elapsed, cores.len(), own);
        Ok(Slice {
            contender: target.contender.name(),
            foreign_share: foreign,
            accepted: !self.gated || foreign <= FOREIGN_MAX,
            iops: report.iops,
            bytes_per_second: report.bytes_per_second,
            latency_ns: report.latency_ns,
            target_cores: middle_rate(&samples, demand.duration),
            client_cpu_seconds: (reaped_cpu_time()?.saturating_sub(reaped_before)).as_secs_f64(),
            commands: report.commands,
            histogram: report.histogram,
        })
    }
}

/// CPU seconds per second in the middle of the slice, which ended with the last sample: its
/// first and last tenth, and all before it, are start and end of the client.
fn middle_rate(samples: &[(Duration, Duration)], duration: Duration) -> f64 {
    let Some(&(end, _)) = samples.last() else {
        return 0.0;
    };
    let tenth = duration / 10;
    let (from, to) = (
        end.saturating_sub(duration - tenth),
        end.saturating_sub(tenth),
    );
    let first = samples.iter().find(|(at, _)| *at >= from);
    let last = samples.iter().rev().find(|(at, _)| *at <= to);
    let pair = match (first, last) {
        (Some(first), Some(last)) if last.0 > first.0 => Some((first, last)),
        // A slice too short to have a middle.
        _ => samples.first().zip(samples.last()),
    };
    let Some((first, last)) = pair else {
        return 0.0;
    };
    let elapsed = last.0.saturating_sub(first.0).as_secs_f64();
    let used = last.1.saturating_sub(first.1).as_secs_f64();
    if elapsed > 0.0 { used / elapsed } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_that_of_the_middle() {
        let at = |ms| Duration::from_millis(ms);
        // 200 ms of start without CPU, 1 s at half a core, 0.
        let samples: Vec<_> = (0..=24)
            .map(|step| (at(step * 50), at((step * 50).clamp(200, 1150) / 2)))
            .collect();
        let rate = middle_rate(&samples, Duration::from_secs(1));
        assert!((rate - 0.5).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn short_slice_is_taken_whole() {
        let samples = [
            (Duration::ZERO, Duration::ZERO),
            (Duration::from_millis(20), Duration::from_millis(5)),
        ];
        let rate = middle_rate(&samples, Duration::from_millis(10));
        assert!((rate - 0.25).abs() < 1e-9);
        assert!(middle_rate(&[], Duration::from_millis(10)).abs() < 1e-9);
    }
}
