//! The real process, `bowline dataplane`, driven over sockets in fixed bursts. What one I/O costs
//! is the difference between so many bursts and twice as many: start, connecting, asking and stop
//! do not count.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process;

use super::EPOLL;
use super::callgrind;
use super::figures::{Group, Parts, are_kept};
use super::script::Programs;
use super::spread;

/// Where namespace 1 is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    Memory,
    File,
}

impl Medium {
    pub(super) const ALL: [Self; 2] = [Self::Memory, Self::File];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
        }
    }
}

/// Bursts that are sent over and over.
struct Bursts {
    scenario: &'static str,
    commands: u32,
    /// At first; then twice as many.
    rounds: u32,
}

const BURSTS: &[Bursts] = &[
    bursts("read_4k_qd1", 1, 200),
    bursts("read_4k_qd32", 32, 50),
    bursts("write_4k_qd1", 1, 200),
    bursts("write_4k_qd32", 32, 50),
];

const fn bursts(scenario: &'static str, commands: u32, rounds: u32) -> Bursts {
    Bursts {
        scenario,
        commands,
        rounds,
    }
}

impl Bursts {
    /// What one I/O costs, if so many bursts cost `once` and twice as many `twice`.
    fn per_io(&self, once: u64, twice: u64) -> Result<f64> {
        let difference = u32::try_from(twice.saturating_sub(once))?;
        Ok(f64::from(difference) / f64::from(self.commands * self.rounds))
    }
}

const DISK_BYTES: u64 = 64 << 20;
const NQN: &str = "nqn.2026-11.io.bowline:guard:process";
/// What else happens in the process (timers, metrics), and a burst that falls into pieces, only
/// ever add: the least of several runs is the closest to what they cost. So many are made unless
/// an earlier one is as good as the figure on file.
const ATTEMPTS: u32 = 5;
/// The metrics answer within five seconds or not at all.
const METRICS_LIMIT: Duration = Duration::from_secs(10);
/// Whose system calls and whose allocations are counted.
const REACTOR: &str = "reactor";
const PROCESS: &str = "process";
/// Reactors' counters of system calls on the data path.
const SYSCALLS: &[&str] = &[
    "bowline_reactor_enters_total",
    "bowline_reactor_epoll_waits_total",
    "bowline_reactor_epoll_ctls_total",
    "bowline_reactor_recvs_total",
    "bowline_reactor_sends_direct_total",
    "bowline_reactor_accept_calls_total",
];

/// What the design allows with `io_uring` over memory, whatever is on file: system calls per I/O.
const LIMITS: &[(&str, f64)] = &[
    ("read_4k_qd1", 2.1),
    ("read_4k_qd32", 0.15),
    ("write_4k_qd1", 2.1),
    ("write_4k_qd32", 0.15),
];

/// What goes beyond the design's limits in this group.
pub(super) fn beyond_limits(group: &Group) -> Vec<String> {
    let figure = |name: &str| group.get(name)?.get(REACTOR).copied();
    let beyond = |&(name, limit): &(&str, f64)| match figure(name) {
        Some(found) if found <= limit => None,
        Some(found) => Some(format!("{name}: {found:.3} per I/O; at most {limit}")),
        None => Some(format!("{name} was not counted")),
    };
    LIMITS.iter().filter_map(beyond).collect()
}

impl Programs {
    /// System calls of the reactor per I/O, by its own counters; `filed` is what they were.
    ///
    /// Target and host share a core: a burst is sent as a whole before anybody looks at it.
    pub(super) fn syscalls(
        &self,
        engine: &str,
        medium: Medium,
        filed: Option<&Group>,
    ) -> Result<Group> {
        let core = some_core()?;
        let scratch = tempfile::tempdir().context("no folder for temporary files")?;
        let pinned = |program: &Path| {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", &core]).arg(program);
            command
        };
        let mut plane = Plane::start(pinned(&self.bowline), engine, medium, scratch.path())?;
        let run = |plane: &Plane, scenario, rounds| {
            let before = plane.syscalls()?;
            plane.drive(pinned(&self.guard), scenario, rounds)?;
            Ok::<_, anyhow::Error>(plane.syscalls()?.saturating_sub(before))
        };
        let mut found = Group::new();
        for bursts in BURSTS {
            // The thread pool hands back drive requests as they end: how many at a time is the
            // scheduler's choice.
            if engine == EPOLL && medium == Medium::File && bursts.commands > 1 {
                continue;
            }
            let before = filed.and_then(|filed| filed.get(bursts.scenario));
            let (mut once, mut twice) = (u64::MAX, u64::MAX);
            let parts = least(REACTOR, before, || {
                once = once.min(run(&plane, bursts.scenario, bursts.rounds)?);
                twice = twice.min(run(&plane, bursts.scenario, 2 * bursts.rounds)?);
                bursts.per_io(once, twice)
            });
            let parts = parts.with_context(|| bursts.scenario.to_owned())?;
            found.insert(bursts.scenario.to_owned(), parts);
        }
        plane.stop()?;
        Ok(found)
    }

    /// Allocations of the whole process per I/O, by callgrind; `filed` is what they were.
    ///
    /// With epoll only: under callgrind `io_uring` does not get far.
    pub(super) fn allocations(&self, medium: Medium, filed: Option<&Group>) -> Result<Group> {
        let count = |bursts: &Bursts| {
            let before = filed.and_then(|filed| filed.get(bursts.scenario));
            let (mut once, mut twice) = (u64::MAX, u64::MAX);
            least(PROCESS, before, || {
                once = once.min(self.allocate(medium, bursts.scenario, bursts.rounds)?);
                twice = twice.min(self.allocate(medium, bursts.scenario, 2 * bursts.rounds)?);
                bursts.per_io(once, twice)
            })
        };
        spread(BURSTS, |bursts| bursts.scenario, count)
    }

    /// Allocations of one life of the process.
    fn allocate(&self, medium: Medium, scenario: &str, rounds: u32) -> Result<u64> {
        let scratch = tempfile::tempdir().context("no folder for temporary files")?;
        let counts = scratch.path().join("counts");
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--quiet"])
            .arg(format!("--callgrind-out-file={}", counts.display()))
            .arg(&self.bowline);
        let mut plane = Plane::start(command, EPOLL, medium, scratch.path())?;
        plane.drive(Command::new(&self.guard), scenario, rounds)?;
        plane.stop()?;
        let text = fs::read_to_string(&counts).context("callgrind left no counts")?;
        match callgrind::allocations(&text) {
            Some(0) => bail!("not even the start has allocated: is the allocator another one?"),
            found => found.context("callgrind's counts are of another form"),
        }
    }
}

/// Takes what `attempt` gives until it is as good as the figure on file, but not for ever.
fn least(
    part: &str,
    filed: Option<&Parts>,
    mut attempt: impl FnMut() -> Result<f64>,
) -> Result<Parts> {
    let mut parts = Parts::new();
    for _ in 0..ATTEMPTS {
        parts = Parts::from([(part.to_owned(), attempt()?)]);
        if filed.is_some_and(|filed| are_kept(filed, &parts)) {
            break;
        }
    }
    Ok(parts)
}

/// The last CPU that this process may use.
fn some_core() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status").context("no /proc")?;
    let lines = status.lines();
    let mut list = lines.filter_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let last = list.next().and_then(|list| list.rsplit([',', '-']).next());
    Ok(last.context("no list of CPUs")?.trim().to_owned())
}

#[derive(Deserialize)]
struct Ready {
    listen: Vec<String>,
    metrics: String,
}

/// A data plane that is counted; dropping it kills it.
struct Plane {
    child: Child,
    ready: Ready,
}

impl Plane {
    /// `command` starts the executable, to which arguments are added.
    fn start(mut command: Command, engine: &str, medium: Medium, scratch: &Path) -> Result<Self> {
        command
            .args(["dataplane", "--host", "any", "--nqn", NQN])
            .args(["--block-size", "512"])
            .args(["--poll", "never", "--io", engine, "--log-level", "warn"]);
        for port in ["--listen", "--rpc", "--metrics"] {
            command.args([port, "127.0.0.1:0"]);
        }
        match medium {
            Medium::Memory => {
                command.args(["--memory", &DISK_BYTES.to_string()]);
            }
            Medium::File => {
                let path = scratch.join("disk");
                File::create(&path)?.set_len(DISK_BYTES)?;
                command.arg("--device").arg(path);
            }
        }
        let log = File::create(scratch.join("log"))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start the data plane")?;
        let stdout = child.stdout.take().context("no standard output")?;
        // From here on it is killed whatever happens.
        let mut plane = Self {
            child,
            ready: Ready {
                listen: Vec::new(),
                metrics: String::new(),
            },
        };
        // It is ready or ends; either closes the wait.
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready = line.strip_prefix("ready ").with_context(|| {
            let log = fs::read_to_string(scratch.join("log")).unwrap_or_default();
            format!("the data plane did not start:\n{log}")
        })?;
        plane.ready = serde_json::from_str(ready)?;
        Ok(plane)
    }

    /// Has `guard` send so many bursts.
    fn drive(&self, mut guard: Command, scenario: &str, rounds: u32) -> Result<()> {
        let address = self.ready.listen.first().context("no listener")?;
        guard.args(["drive", scenario, address, NQN, &rounds.to_string()]);
        process::capture(&mut guard).map(drop)
    }

    /// System calls on the data path so far.
    fn syscalls(&self) -> Result<u64> {
        let mut stream = TcpStream::connect(&self.ready.metrics).context("no metrics")?;
        stream.set_read_timeout(Some(METRICS_LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("no metrics")?;
        sum(&text, SYSCALLS)
    }

    fn stop(&mut self) -> Result<()> {
        let id = self.child.id().to_string();
        process::capture(Command::new("kill").args(["-TERM", &id]))?;
        let ended = self.child.wait();
        let status = ended.context("cannot wait for the data plane")?;
        if !status.success() {
            bail!("the data plane ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of these metrics over all their labels; each has to be there.
fn sum(metrics: &str, names: &[&str]) -> Result<u64> {
    let mut sum = 0_u64;
    for name in names {
        let of_name = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|it| it.starts_with('{'))
        };
        let mut lines = metrics.lines().filter(of_name).peekable();
        lines.peek().with_context(|| format!("no metric {name}"))?;
        for line in lines {
            let value = line.rsplit(' ').next().and_then(|it| it.parse().ok());
            let value: u64 = value.with_context(|| format!("no number: {line}"))?;
            sum = sum.checked_add(value).context("more than can be")?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_reactors_and_have_to_be_there() {
        let text = "# HELP a_total Calls\na_total{reactor=\"0\"} 3\na_total{reactor=\"1\"} 4\n\
            a_total_more{reactor=\"0\"} 100\nb_total{reactor=\"0\"} 5\n# EOF\n";
        assert_eq!(sum(text, &["a_total", "b_total"]).unwrap(), 12);
        assert!(sum(text, &["a_total", "c_total"]).is_err());
    }

    #[test]
    fn bursts_cost_what_twice_as_many_cost_more() {
        let bursts = bursts("read_4k_qd32", 32, 50);
        assert_eq!(bursts.per_io(29, 189).unwrap().to_bits(), 0.1_f64.to_bits());
    }

    #[test]
    fn limits_hold_whatever_is_on_file() {
        let parts = |figure: f64| Parts::from([(REACTOR.to_owned(), figure)]);
        let named = LIMITS
            .iter()
            .map(|&(name, limit)| (name.to_owned(), parts(limit)));
        let mut group: Group = named.collect();
        assert_eq!(beyond_limits(&group), [""; 0]);
        group.insert("read_4k_qd32".to_owned(), parts(0.2));
        group.remove("write_4k_qd1");
        assert_eq!(
            beyond_limits(&group),
            [
                "read_4k_qd32: 0.200 per I/O; at most 0.15",
                "write_4k_qd1 was not counted"
            ]
        );
    }

    #[test]
    fn attempts_end_with_one_that_is_as_good_as_the_file() {
        let filed = Parts::from([(REACTOR.to_owned(), 2.0)]);
        let mut left = vec![2.0, 3.0, 4.0];
        let parts = least(REACTOR, Some(&filed), || Ok(left.pop().unwrap())).unwrap();
        assert_eq!(parts, filed);
        let mut tries = 0;
        let mut fail = || {
            tries += 1;
            Ok(3.0)
        };
        least(REACTOR, Some(&filed), &mut fail).unwrap();
        assert_eq!(tries, ATTEMPTS);
    }
}
