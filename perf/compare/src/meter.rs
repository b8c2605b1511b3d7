//! One slice: a client loads a target for a moment, and everything about it is written down.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::client::{Client, Demand, Latency};
use crate::gate::{FOREIGN_MAX, Ticks, foreign_share};
use crate::neighbours::{Neighbours, Ours};
use crate::process::{KernelThreads, Launch, Process, own_cpu_time, reaped_cpu_time};
use crate::target::Target;

/// How often the clocks are read during a slice: often enough to find its middle, seldom enough
/// that reading them takes less than a hundredth of the client's core.
const SAMPLES: u32 = 10;
/// One of the target, one of the client.
const CORES: usize = 2;
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
        let program = client.program()?;
        let kernel = if target.contender.uses_drive() {
            KernelThreads::find()?
        } else {
            KernelThreads::default()
        };
        let ours = Ours {
            starter: std::process::id(),
            kernel: target.contender.uses_drive(),
        };
        let neighbours = Neighbours::now(ours)?;
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
        // Also of the client that has ended, as long as it is not reaped.
        let sample = |process: &Process| -> Result<Sample> {
            let target = target.process.cpu_time()?;
            Ok(Sample {
                at: begun.elapsed(),
                target,
                own: target + process.cpu_time()? + own_cpu_time()? + kernel.cpu_time(),
                ticks: Ticks::now([self.target_core, self.client_core])?,
            })
        };
        let mut samples = vec![sample(&process)?];
        while !process.wait_end(demand.duration / SAMPLES)? {
            samples.push(sample(&process)?);
            if begun.elapsed() > limit {
                bail!("no answer after {limit:?}: {}", process.last_words());
            }
        }
        samples.push(sample(&process)?);
        let others = Neighbours::now(ours)?.used_since(&neighbours);
        let status = process.reap()?;
        if !status.success() {
            bail!("{status}: {}", process.last_words());
        }
        let report = client.parse(&process.stdout()?)?;
        let duration = match demand.commands {
            Some(_) => report.duration().context("no time is told")?,
            None => demand.duration,
        };
        let (first, last) = middle(&samples, duration).context("no time passed")?;
        let foreign = first.foreign_share(last, others);
        Ok(Slice {
            contender: target.contender.name(),
            foreign_share: foreign,
            accepted: !self.gated || foreign <= FOREIGN_MAX,
            iops: report.iops,
            bytes_per_second: report.bytes_per_second,
            latency_ns: report.latency_ns,
            target_cores: first.target_cores(last),
            client_cpu_seconds: reaped_cpu_time()?
                .saturating_sub(reaped_before)
                .as_secs_f64(),
            commands: report.commands,
            histogram: report.histogram,
        })
    }
}

/// Clocks at one moment of a slice.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    /// CPU time of the target.
    target: Duration,
    /// CPU time of the target, the client, ourselves and the kernel for us.
    own: Duration,
    ticks: Ticks<CORES>,
}

impl Sample {
    fn target_cores(&self, later: &Self) -> f64 {
        let used = later.target.saturating_sub(self.target);
        used.as_secs_f64() / later.at.saturating_sub(self.at).as_secs_f64()
    }

    fn foreign_share(&self, later: &Self, others: Duration) -> f64 {
        let elapsed = later.at.saturating_sub(self.at);
        let own = later.own.saturating_sub(self.own);
        foreign_share(self.ticks, later.ticks, elapsed, own, others)
    }
}

/// First and last sample of the middle of the slice, which ended with the last of all: its first
/// and last tenth, and all before it, are start and end of the client. All of a slice that is too
/// short to have a middle; none of one without length.
fn middle(samples: &[Sample], duration: Duration) -> Option<(&Sample, &Sample)> {
    let end = samples.last()?.at;
    let tenth = duration / 10;
    let (from, to) = (
        end.saturating_sub(duration - tenth),
        end.saturating_sub(tenth),
    );
    let first = samples.iter().find(|sample| sample.at >= from)?;
    let last = samples.iter().rev().find(|sample| sample.at <= to);
    let whole = samples.first().zip(samples.last());
    let pair = last
        .filter(|last| last.at > first.at)
        .map(|last| (first, last));
    pair.or(whole).filter(|(first, last)| last.at > first.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n";

    fn sample(at_ms: u64, target_ms: u64) -> Sample {
        Sample {
            at: Duration::from_millis(at_ms),
            target: Duration::from_millis(target_ms),
            own: Duration::from_millis(target_ms),
            ticks: Ticks::parse(STAT, [0, 1]).unwrap(),
        }
    }

    #[test]
    fn rate_is_that_of_the_middle() {
        // 200 ms of start without CPU, 1 s at half a core, end.
        let samples: Vec<_> = (0..=24)
            .map(|step| sample(step * 50, (step * 50).clamp(200, 1150) / 2))
            .collect();
        let (first, last) = middle(&samples, Duration::from_secs(1)).unwrap();
        let rate = first.target_cores(last);
        assert!((rate - 0.5).abs() < 1e-9, "{rate}");
        // Two cores that were never idle: three quarters were not the target's.
        assert!((first.foreign_share(last, Duration::ZERO) - 0.75).abs() < 1e-9);
    }

    #[test]
    fn short_slice_is_taken_whole() {
        let samples = [sample(0, 0), sample(20, 5)];
        let (first, last) = middle(&samples, Duration::from_millis(10)).unwrap();
        assert!((first.target_cores(last) - 0.25).abs() < 1e-9);
        assert!(middle(&samples[..1], Duration::from_millis(10)).is_none());
        assert!(middle(&[], Duration::from_millis(10)).is_none());
    }
}
