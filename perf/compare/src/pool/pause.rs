//! How long writes wait while snapshots are taken: one host writes all the time, one block after
//! the other answer, while somebody else takes snapshots and, between them, asks for the volume. The
//! latter goes the same way, to the reactor and back, and changes nothing: what writes wait beside it
//! is what the machine takes, and who makes calls.
//!
//! There are two cores, of which the data plane's reactor has one. All that serves and makes calls
//! shares the other with the host, which goes first: it has the core as soon as it has its answer.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::host::ControllerConfig;
use bowline_reactor::{Config, PollMode};
use bowline_tcp::host::Initiator;
use rustix::thread::gettid;

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
/// How long one command may take before the run is given up.
const PATIENCE: Nanos = Nanos::from_secs(20);
/// Where writes wait longer than this beside calls that change nothing, what they wait beside
/// snapshots tells of the machine.
const STILL_MAX_NS: f64 = 500_000.0;

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
        }
        let is_over = AtomicBool::new(false);
        let (ready, is_ready) = mpsc::channel();
        let (calls, writes) = thread::scope(|scope| {
            let writer = scope.spawn(|| write(&target, ready, &is_over));
            let calls = match is_ready.recv() {
                Ok(()) => call(&manager, count),
                // The writer says why.
                Err(_) => Ok(Calls::default()),
            };
            is_over.store(true, Ordering::Release);
            let writes = writer.join().map_err(|_| anyhow!("the writer panicked"))?;
            Ok::<_, anyhow::Error>((calls?, writes?))
        })?;
        self.pause_figure(&calls, &writes)
    }

    fn pause_figure(&self, calls: &Calls, writes: &[Span]) -> Result<Vec<PoolFigure>> {
        let snapshots = waits(&calls.snapshots, writes);
        let look_ups = waits(&calls.look_ups, writes);
        let all = sorted(writes);
        let took = sorted(&calls.snapshots);
        let at = |values: &[f64], per_mille| quantile(values, per_mille).unwrap_or(0.0) / 1e3;
        let detail = format!(
            "{} snapshots beside {} writes, one at a time: the longest write beside each {:.0} µs (p50), {:.0} µs (p99); \
             beside as many look-ups {:.0} and {:.0} µs; of all writes {:.0} and {:.0} µs; a snapshot took {:.0} µs (p50)",
            calls.snapshots.len(),
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
        let still = quantile(&look_ups, 990).context("nothing was looked up")?;
        let figure = ("snapshot-pause", Measure::SnapshotPauseP99Ns, p99);
        let mut figure = self.pool_figure(figure, detail);
        if still > STILL_MAX_NS {
            let why = format!("{:.0} µs beside calls that change nothing", still / 1e3);
            figure.unclaimed.get_or_insert(why);
        }
        Ok(vec![figure])
    }
}

/// Has the calling thread run as soon as it can: whoever else is on its core gives way at once, and
/// not at the end of a turn of some milliseconds.
fn go_first() -> Result<()> {
    let status = Command::new("chrt")
        .args(["--fifo", "--reset-on-fork", "--pid", "1"])
        .arg(gettid().as_raw_nonzero().to_string())
        .stdin(Stdio::null())
        .status()
        .context("cannot run chrt")?;
    if !status.success() {
        bail!("chrt: {status}");
    }
    Ok(())
}

/// Writes until it is over, from the moment on that `ready` is told.
fn write(target: &Target, ready: mpsc::Sender<()>, is_over: &AtomicBool) -> Result<Vec<Span>> {
    let mut host = Host::connect(target)?;
    go_first()?;
    ready.send(()).context("nobody calls")?;
    let mut writes = Vec::new();
    while !is_over.load(Ordering::Acquire) {
        writes.push(host.write()?);
    }
    Ok(writes)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the load has its own time: nothing is waited for"
)]
fn rest() {
    thread::sleep(PERIOD);
}

fn call(manager: &Manager, count: u32) -> Result<Calls> {
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
            .max_by_key(|write| write.ended - write.begun)
    });
    sorted(longest)
}

/// What each took, in ns, in order.
fn sorted<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Vec<f64> {
    let took = spans.into_iter().map(|it| it.ended - it.begun);
    let mut values: Vec<f64> = took.map(|it| it.as_secs_f64() * 1e9).collect();
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
