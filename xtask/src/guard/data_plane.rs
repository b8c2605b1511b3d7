//! The real process, `bowline dataplane`, driven over sockets in fixed bursts. What one I/O costs
//! is the difference between so many bursts and twice as many: start, connecting, asking and stop
//! do not count.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process;

use super::callgrind;
use super::figures::{Group, Parts, are_kept};
use super::script::{self, Programs};
use super::spread;
use super::{EPOLL, URING};

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
/// The reactor's system calls by its own counters, and as the kernel counts them, whoever makes
/// them there.
const REACTOR: &str = "reactor";
const KERNEL: &str = "kernel";
/// Whose allocations are counted.
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

/// What the design allows, whatever is on file: system calls per I/O of the reactor.
struct Limits {
    engine: &'static str,
    medium: Medium,
    scenarios: &'static [(&'static str, f64)],
}

const LIMITS: &[Limits] = &[
    Limits {
        engine: URING,
        medium: Medium::Memory,
        scenarios: &[
            ("read_4k_qd1", 2.1),
            ("read_4k_qd32", 0.15),
            ("write_4k_qd1", 2.1),
            ("write_4k_qd32", 0.15),
        ],
    },
    // The scheduler's choice, but no command costs more than one alone does.
    Limits {
        engine: EPOLL,
        medium: Medium::File,
        scenarios: &[("read_4k_qd32", 4.0), ("write_4k_qd32", 4.0)],
    },
];

/// What goes beyond the design's limits in the groups that were counted, `group` gives them.
pub(super) fn beyond_limits<'a>(group: impl Fn(&str, Medium) -> Option<&'a Group>) -> Vec<String> {
    let mut beyond = Vec::new();
    for limits in LIMITS {
        let Some(group) = group(limits.engine, limits.medium) else {
            continue;
        };
        for (name, limit) in limits.scenarios {
            let of = format!("{} over {}: {name}", limits.engine, limits.medium.name());
            match group.get(*name).and_then(|parts| parts.get(REACTOR)) {
                Some(found) if found <= limit => {}
                Some(found) => beyond.push(format!("{of}: {found:.3} per I/O, at most {limit}")),
                None => beyond.push(format!("{of} was not counted")),
            }
        }
    }
    beyond
}

/// Whether other threads do what the drive is asked for.
fn has_thread_pool(engine: &str, medium: Medium) -> bool {
    engine == EPOLL && medium == Medium::File
}

/// Takes out of a group what depends on the scheduler: only limits hold it.
pub(super) fn take_unsteady(engine: &str, medium: Medium, group: &mut Group) -> Group {
    let is_unsteady = |name: &str| {
        let mut bursts = BURSTS.iter().filter(|bursts| bursts.scenario == name);
        // The thread pool hands back drive requests as they end: how many at a time is its choice.
        has_thread_pool(engine, medium) && bursts.any(|bursts| bursts.commands > 1)
    };
    let (unsteady, steady) = std::mem::take(group)
        .into_iter()
        .partition(|(name, _)| is_unsteady(name));
    *group = steady;
    unsteady
}

/// Where the kernel's count was not to be had this time, the one on file stays.
pub(super) fn keep_kernels_count(
    filed: &BTreeMap<String, Group>,
    found: &mut BTreeMap<String, Group>,
) {
    for (kind, group) in found {
        for (scenario, parts) in group {
            let before = filed.get(kind).and_then(|group| group.get(scenario));
            if let Some(&count) = before.and_then(|parts| parts.get(KERNEL)) {
                parts.entry(KERNEL.to_owned()).or_insert(count);
            }
        }
    }
}

/// System calls of a reactor: by its own counters, and by the kernel's where that lets us.
#[derive(Clone, Copy)]
struct Calls {
    reactor: u64,
    kernel: Option<u64>,
}

impl Calls {
    const MOST: Self = Self {
        reactor: u64::MAX,
        kernel: Some(u64::MAX),
    };

    fn min(self, other: Self) -> Self {
        Self {
            reactor: self.reactor.min(other.reactor),
            kernel: self.kernel.zip(other.kernel).map(|(a, b)| a.min(b)),
        }
    }
}

impl Programs {
    /// System calls of the reactor per I/O; `filed` is what they were.
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
            let mut guard = pinned(&self.guard);
            if self.watches {
                guard.args(["drive", "--watch", &plane.child.id().to_string()]);
            } else {
                guard.arg("drive");
            }
            let before = plane.syscalls()?;
            let said = plane.drive(guard, scenario, rounds)?;
            let reactor = plane.syscalls()?.saturating_sub(before);
            let kernel = self.watches.then(|| script::told(&said, "system_calls"));
            let kernel = kernel.transpose()?.map(u64::from);
            Ok::<_, anyhow::Error>(Calls { reactor, kernel })
        };
        let mut found = Group::new();
        for bursts in BURSTS {
            let before = filed.and_then(|filed| filed.get(bursts.scenario));
            let (mut once, mut twice) = (Calls::MOST, Calls::MOST);
            let parts = least(before, || {
                once = once.min(run(&plane, bursts.scenario, bursts.rounds)?);
                twice = twice.min(run(&plane, bursts.scenario, 2 * bursts.rounds)?);
                let reactor = bursts.per_io(once.reactor, twice.reactor)?;
                let mut parts = Parts::from([(REACTOR.to_owned(), reactor)]);
                // How often the thread pool has to be woken is the scheduler's choice.
                if let (Some(once), Some(twice)) = (once.kernel, twice.kernel)
                    && !has_thread_pool(engine, medium)
                {
                    parts.insert(KERNEL.to_owned(), bursts.per_io(once, twice)?);
                }
                Ok(parts)
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
            least(before, || {
                once = once.min(self.allocate(medium, bursts.scenario, bursts.rounds)?);
                twice = twice.min(self.allocate(medium, bursts.scenario, 2 * bursts.rounds)?);
                let allocations = bursts.per_io(once, twice)?;
                Ok(Parts::from([(PROCESS.to_owned(), allocations)]))
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
        let mut guard = Command::new(&self.guard);
        guard.arg("drive");
        plane.drive(guard, scenario, rounds)?;
        plane.stop()?;
        let text = fs::read_to_string(&counts).context("callgrind left no counts")?;
        match callgrind::allocations(&text) {
            Some(0) => bail!("not even the start has allocated: is the allocator another one?"),
            found => found.context("callgrind's counts are of another form"),
        }
    }
}

/// Takes what `attempt` gives until it is as good as the figure on file, but not for ever.
fn least(filed: Option<&Parts>, mut attempt: impl FnMut() -> Result<Parts>) -> Result<Parts> {
    let mut parts = Parts::new();
    for _ in 0..ATTEMPTS {
        parts = attempt()?;
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

    /// Has `guard`, which is told to drive, send so many bursts; gives what it says.
    fn drive(&self, mut guard: Command, scenario: &str, rounds: u32) -> Result<String> {
        let address = self.ready.listen.first().context("no listener")?;
        guard.args([scenario, address, NQN, &rounds.to_string()]);
        process::capture(&mut guard)
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

    fn parts(figure: f64) -> Parts {
        Parts::from([(REACTOR.to_owned(), figure)])
    }

    #[test]
    fn limits_hold_whatever_is_on_file() {
        let named = LIMITS[0].scenarios.iter();
        let mut group: Group = named
            .map(|&(name, limit)| (name.to_owned(), parts(limit)))
            .collect();
        let beyond = |group: &Group| {
            beyond_limits(|engine, medium| {
                (engine == URING && medium == Medium::Memory).then_some(group)
            })
        };
        assert_eq!(beyond(&group), [""; 0]);
        group.insert("read_4k_qd32".to_owned(), parts(0.2));
        group.remove("write_4k_qd1");
        assert_eq!(
            beyond(&group),
            [
                "uring over memory: read_4k_qd32: 0.200 per I/O, at most 0.15",
                "uring over memory: write_4k_qd1 was not counted"
            ]
        );
    }

    #[test]
    fn what_a_thread_pool_hands_back_is_held_by_limits_only() {
        let named = BURSTS.iter();
        let all: Group = named
            .map(|bursts| (bursts.scenario.to_owned(), parts(1.0)))
            .collect();
        let names = |engine, medium| {
            let mut group = all.clone();
            let unsteady = take_unsteady(engine, medium, &mut group);
            assert_eq!(group.len() + unsteady.len(), all.len());
            unsteady.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(
            names(EPOLL, Medium::File),
            ["read_4k_qd32", "write_4k_qd32"]
        );
        assert_eq!(names(URING, Medium::File), [""; 0]);
        assert_eq!(names(EPOLL, Medium::Memory), [""; 0]);
    }

    #[test]
    fn attempts_end_with_one_that_is_as_good_as_the_file() {
        let filed = parts(2.0);
        let mut left = vec![2.0, 3.0, 4.0];
        let found = least(Some(&filed), || Ok(parts(left.pop().unwrap()))).unwrap();
        assert_eq!(found, filed);
        let mut tries = 0;
        let mut fail = || {
            tries += 1;
            Ok(parts(3.0))
        };
        least(Some(&filed), &mut fail).unwrap();
        assert_eq!(tries, ATTEMPTS);
    }
}
