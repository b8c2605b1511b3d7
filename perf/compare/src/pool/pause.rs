//! How long writes wait while snapshots are taken: one host writes all the time, one block after
//! the other answer, while somebody else takes snapshots and, between them, asks for the volume. The
//! latter shows what such a call costs writes when nothing is to be done.
//!
//! There are two cores, of which the data plane's reactor has one. All that serves and makes calls
//! shares the other with the host, and gives way to it: what it takes from the host is no pause.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::host::ControllerConfig;
use bowline_reactor::{Config, PollMode};
use bowline_tcp::host::Initiator;
use rustix::process::setpriority_process;

use super::manage::Manager;
use crate::child::pin_thread;
use crate::goals::Measure;
use crate::result::PoolFigure;
use crate::run::Bench;
use crate::statistics::quantile;
use crate::target::{Target, VOLUME};

/// Snapshots that are taken, and as many calls that change nothing.
const SNAPSHOTS: u32 = 1000;
const SNAPSHOTS_QUICK: u32 = 50;
/// Time between two calls.
const PERIOD: Duration = Duration::from_millis(10);
/// What is written to, so that most writes are the first ones since a snapshot.
const SPAN_BLOCKS: u64 = 16 << 10;
const BLOCK_BYTES: usize = 4096;
/// The thread of a data plane that answers calls.
const MANAGEMENT: &str = "management";
/// The lowest priority.
const GIVES_WAY: i32 = 19;
/// How long one command may take before the run is given up.
const PATIENCE: Nanos = Nanos::from_secs(20);

/// From when to when something took place.
#[derive(Debug, Clone, Copy)]
struct Span {
    begun: Instant,
    ended: Instant,
}

/// What the other side called, in order.
#[derive(Debug, Default)]
struct Calls {
    snapshots: Vec<Span>,
    look_ups: Vec<Span>,
}

impl Bench {
    /// The longest wait of a write beside each of many snapshots.
    pub(super) fn snapshot_pause(&self) -> Result<Vec<PoolFigure>> {
        let target = self.pool_target()?;
        let count = if self.settings.unclaimed.is_some() {
            SNAPSHOTS_QUICK
        } else {
            SNAPSHOTS
        };
        let manager = Manager::connect(target.rpc.context("no management")?)?;
        for thread in target.process.threads(MANAGEMENT)? {
            pin_thread(Some(thread), self.meter.client_core)?;
            setpriority_process(Some(thread), GIVES_WAY).context("priority")?;
        }
        let mut host = Host::connect(&target)?;
        let is_over = AtomicBool::new(false);
        let (calls, writes) = thread::scope(|scope| {
            let caller = scope.spawn(|| {
                let calls = call(&manager, count);
                is_over.store(true, Ordering::Release);
                calls
            });
            let mut writes = Vec::new();
            while !is_over.load(Ordering::Acquire) {
                writes.push(host.write()?);
            }
            let calls = caller.join().map_err(|_| anyhow!("the caller panicked"))?;
            Ok::<_, anyhow::Error>((calls?, writes))
        })?;
        let snapshots = waits(&calls.snapshots, &writes);
        let look_ups = waits(&calls.look_ups, &writes);
        let all = sorted(writes.iter().map(|it| it.ended - it.begun).collect());
        let took = sorted(
            calls
                .snapshots
                .iter()
                .map(|it| it.ended - it.begun)
                .collect(),
        );
        let at = |values: &[f64], per_mille| quantile(values, per_mille).unwrap_or(0.0) / 1e3;
        let detail = format!(
            "{count} snapshots beside {} writes, one at a time: the longest write beside each {:.0} µs (p50), {:.0} µs (p99); \
             beside as many look-ups {:.0} and {:.0} µs; of all writes {:.0} and {:.0} µs; a snapshot took {:.0} µs (p50)",
            writes.len(),
            at(&snapshots, 500),
            at(&snapshots, 990),
            at(&look_ups, 500),
            at(&look_ups, 990),
            at(&all, 500),
            at(&all, 990),
            at(&took, 500),
        );
        let p99 = quantile(&snapshots, 990).context("no snapshot was taken")?;
        let figure = ("snapshot-pause", Measure::SnapshotPauseP99Ns, p99);
        Ok(vec![self.pool_figure(figure, detail)])
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the load has its own time: nothing is waited for"
)]
fn rest() {
    thread::sleep(PERIOD);
}

fn call(manager: &Manager, count: u32) -> Result<Calls> {
    // Of this thread alone.
    setpriority_process(None, GIVES_WAY).context("priority")?;
    let mut calls = Calls::default();
    for number in 0..count {
        rest();
        let begun = Instant::now();
        manager.take_snapshot(VOLUME, &format!("snapshot-{number}"))?;
        let ended = Instant::now();
        calls.snapshots.push(Span { begun, ended });
        rest();
        let begun = Instant::now();
        manager.look_up(VOLUME)?;
        let ended = Instant::now();
        calls.look_ups.push(Span { begun, ended });
    }
    Ok(calls)
}

/// The longest of the writes that were under way during each call, in ns, sorted.
fn waits(calls: &[Span], writes: &[Span]) -> Vec<f64> {
    let longest = calls.iter().filter_map(|call| {
        let first = writes.partition_point(|write| write.ended < call.begun);
        let beside = writes.get(first..).unwrap_or_default().iter();
        beside
            .take_while(|write| write.begun <= call.ended)
            .map(|write| write.ended - write.begun)
            .max()
    });
    sorted(longest.collect())
}

fn sorted(durations: Vec<Duration>) -> Vec<f64> {
    let mut values: Vec<f64> = durations.iter().map(|it| it.as_secs_f64() * 1e9).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// A host that writes.
struct Host {
    initiator: Initiator,
    path: bowline_tcp::host::PathId,
    data: Vec<u8>,
    next: u64,
}

impl Host {
    fn connect(target: &Target) -> Result<Self> {
        let config = Config {
            poll: PollMode::Never,
            ..Config::default()
        };
        let mut initiator = Initiator::new(&config).context("cannot make a reactor")?;
        let host = Nqn::new("nqn.2026-11.io.bowline:compare-writer").context("host")?;
        let subsystem = Nqn::new(target.contender.subsystem()).context("subsystem")?;
        let config = ControllerConfig {
            reconnect: None,
            ..ControllerConfig::new(host, [0xb1; 16], subsystem)
        };
        let path = initiator.connect(target.address, config);
        let deadline = initiator.now().saturating_add(PATIENCE);
        initiator.wait_ready(path, deadline).context("no host")?;
        Ok(Self {
            initiator,
            path,
            data: vec![0x5a; BLOCK_BYTES],
            next: 0,
        })
    }

    /// Writes a block somewhere.
    fn write(&mut self) -> Result<Span> {
        // A prime: neighbours in time are none in space, and every block has its turn.
        self.next = (self.next + 6_151) % SPAN_BLOCKS;
        let offset = self.next * BLOCK_BYTES as u64;
        let deadline = self.initiator.now().saturating_add(PATIENCE);
        let begun = Instant::now();
        self.initiator
            .write_at(
                self.path,
                NamespaceId(1),
                offset,
                &self.data,
                false,
                deadline,
            )
            .context("a write")?;
        let ended = Instant::now();
        Ok(Span { begun, ended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_is_the_longest_write_that_was_under_way_during_a_call() {
        let origin = Instant::now();
        let span = |from, to| Span {
            begun: origin + Duration::from_micros(from),
            ended: origin + Duration::from_micros(to),
        };
        let writes = [span(0, 10), span(10, 90), span(90, 95), span(95, 300)];
        let of = |from, to| waits(&[span(from, to)], &writes);
        assert_eq!(of(91, 94), [5_000.0]);
        assert_eq!(of(80, 94), [80_000.0]);
        assert_eq!(of(0, 400), [205_000.0]);
        assert!(of(301, 400).is_empty(), "the load had ended");
    }
}
