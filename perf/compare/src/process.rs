//! Programs that run for us: started on a core, watched, stopped, continued, and killed when
//! whoever holds them lets go.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_getcpuclockid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How much of a program's last words is repeated in an error.
const COMPLAINT_CHARS_MAX: usize = 300;

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Makes Ctrl-C and SIGTERM end the run at its next wait instead of in the middle, so that
/// everything started is ended by its owner. A SIGKILL is covered by the children's own
/// arrangement to die with us.
pub(crate) fn watch_signals() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("signal handlers")?;
    }
    Ok(())
}

/// The run was told to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED
        .get()
        .is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// What it is called in messages.
    pub(crate) name: &'a str,
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) core: usize,
    pub(crate) cgroup: Option<&'a Path>,
}

/// A program that runs, and does not outlive this.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    handle: OwnedFd,
    stdout: File,
    stderr: File,
}

impl Process {
    pub(crate) fn start(launch: Launch<'_>) -> Result<Self> {
        let name = launch.name.to_owned();
        let context = || format!("cannot start {name}");
        let ourselves = std::env::current_exe().with_context(context)?;
        let stdout = tempfile::tempfile().with_context(context)?;
        let stderr = tempfile::tempfile().with_context(context)?;
        let mut command = Command::new(ourselves);
        command.args(["child", "--parent", &std::process::id().to_string()]);
        command.args(["--core", &launch.core.to_string()]);
        if let Some(group) = launch.cgroup {
            command.arg("--cgroup").arg(group);
        }
        command
            .arg("--")
            .arg(launch.program)
            .args(launch.arguments)
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().with_context(context)?)
            .stderr(stderr.try_clone().with_context(context)?);
        let mut child = command.spawn().with_context(context)?;
        let handle = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(error) => {
                // Nobody else knows of it yet.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error).with_context(context);
            }
        };
        Ok(Self {
            name,
            child,
            handle,
            stdout,
            stderr,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_pid()
    }

    /// Waits until it has ended (true), or the time is over (false).
    ///
    /// # Errors
    /// The run was interrupted.
    pub(crate) fn wait_end(&self, limit: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(limit).context("time limit")?;
        let mut events = [PollFd::new(&self.handle, PollFlags::IN)];
        let ended = match poll(&mut events, Some(&timeout)) {
            Ok(count) => count > 0,
            Err(rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error).context("cannot wait for a process"),
        };
        if interrupted() {
            bail!("interrupted");
        }
        Ok(ended)
    }

    /// Takes the result of a process that has ended.
    pub(crate) fn reap(&mut self) -> Result<ExitStatus> {
        self.child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Everything it has printed.
    pub(crate) fn stdout(&self) -> Result<String> {
        read_all(&self.stdout).with_context(|| format!("output of {}", self.name))
    }

    /// What it complained about last, for an error message.
    pub(crate) fn last_words(&self) -> String {
        let text = match read_all(&self.stderr) {
            Ok(text) => text,
            Err(error) => return format!("(its standard error cannot be read: {error})"),
        };
        last_complaint(&text)
    }

    /// Waits until `found` finds what it looks for in the program's output.
    pub(crate) fn wait_output<T>(
        &mut self,
        limit: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        self.wait_until(limit, |process| Ok(found(&process.stdout()?)))
    }

    /// Asks `look` again and again until it finds something; fails when the program ends first.
    pub(crate) fn wait_until<T>(
        &mut self,
        limit: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        const PERIOD: Duration = Duration::from_millis(10);
        let begun = Instant::now();
        loop {
            let ended = self.wait_end(PERIOD)?;
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if ended {
                let status = self.reap()?;
                bail!("{} ended ({status}): {}", self.name, self.last_words());
            }
            if begun.elapsed() > limit {
                let words = self.last_words();
                bail!("{} is not ready after {limit:?}: {words}", self.name);
            }
        }
    }

    /// Takes it off its core until [`Process::resume`].
    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        // The child is not reaped while we hold it, so its number is nobody else's.
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// CPU time of all its threads, dead ones too.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let context = || format!("CPU clock of {}", self.name);
        let clock =
            clock_getcpuclockid(nix::unistd::Pid::from_raw(self.pid())).with_context(context)?;
        let time = clock.now().with_context(context)?;
        Ok(Duration::from(time))
    }

    /// Its threads of this name, now.
    pub(crate) fn threads(&self, name: &str) -> Result<Vec<Pid>> {
        let folder = format!("/proc/{}/task", self.pid());
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
        let is_named = |entry: &fs::DirEntry| {
            let found = fs::read_to_string(entry.path().join("comm"));
            found.is_ok_and(|found| found.trim_end() == name)
        };
        let named = entries.flatten().filter(is_named);
        let numbers = named.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(numbers.filter_map(Pid::from_raw).collect())
    }

    /// Memory that it keeps from others, now.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.pid());
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let status = read("status")?;
        Ok(Memory {
            resident_bytes: kib_field(&status, "VmRSS").unwrap_or(0),
            huge_page_bytes: kib_field(&status, "HugetlbPages").unwrap_or(0),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Also of a stopped process. Failure means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) resident_bytes: u64,
    /// Not part of the resident set, but nobody else can have it.
    pub(crate) huge_page_bytes: u64,
}

impl Memory {
    pub(crate) const fn total_bytes(self) -> u64 {
        self.resident_bytes.saturating_add(self.huge_page_bytes)
    }
}

/// The first line that speaks of an error, as those that follow are of its consequences, or the
/// last line; and not more than a line holds.
fn last_complaint(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let complaint = lines
        .clone()
        .find(|line| line.to_lowercase().contains("error"));
    let last = complaint.or_else(|| lines.next_back());
    let words = last.unwrap_or("it said nothing");
    words.chars().take(COMPLAINT_CHARS_MAX).collect()
}

fn kib_field(status: &str, name: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// By position: the offset is shared with the program that writes.
fn read_all(file: &File) -> io::Result<String> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    let mut filled = 0;
    while filled < bytes.len() {
        let offset = filled as u64;
        match file.read_at(&mut bytes[filled..], offset)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What `/proc/PID/stat` holds for every process that there is now, by its number; one that ends
/// meanwhile tells nothing.
pub(crate) fn stats() -> Result<impl Iterator<Item = (i32, String)>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    Ok(entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let text = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        Some((pid, text))
    }))
}

/// The kernel's own threads, which do part of the work of who uses a drive.
#[derive(Debug, Default)]
pub(crate) struct KernelThreads(Vec<ClockId>);

impl KernelThreads {
    /// Those that there are now.
    pub(crate) fn find() -> Result<Self> {
        let mut clocks = Vec::new();
        for (pid, stat) in stats()? {
            if is_kernel_thread(&stat) {
                clocks.extend(clock_getcpuclockid(nix::unistd::Pid::from_raw(pid)));
            }
        }
        Ok(Self(clocks))
    }

    /// Their CPU time together; one that has ended counts no more.
    pub(crate) fn cpu_time(&self) -> Duration {
        let times = self.0.iter().filter_map(|clock| clock.now().ok());
        times.map(Duration::from).sum()
    }
}

/// The parent of them all is process 2.
fn is_kernel_thread(stat: &str) -> bool {
    // The name stands in parentheses and may hold anything; after it: state and parent.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().nth(1) == Some("2")
}

/// CPU time of this process.
pub(crate) fn own_cpu_time() -> Result<Duration> {
    usage(UsageWho::RUSAGE_SELF)
}

/// CPU time of all children that were reaped.
pub(crate) fn reaped_cpu_time() -> Result<Duration> {
    usage(UsageWho::RUSAGE_CHILDREN)
}

fn usage(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who).context("getrusage")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaint_is_the_first_error_or_the_last_line() {
        let text = "NOTICE: hello\nERROR: no sockets\nerror response:\n{ \"code\": 1 }\n\n";
        assert_eq!(last_complaint(text), "ERROR: no sockets");
        assert_eq!(last_complaint("one\ntwo\n\n"), "two");
        assert_eq!(last_complaint(&"é".repeat(1000)).chars().count(), 300);
        assert_eq!(last_complaint(""), "it said nothing");
    }

    #[test]
    fn kernel_threads_are_known_by_their_parent() {
        assert!(is_kernel_thread("77 (kdamond.0) I 2 0 0 0 -1"));
        assert!(!is_kernel_thread("78 (a) I 2 (b) S 1 0 0"));
        assert!(!is_kernel_thread(""));
    }

    #[test]
    fn memory_fields_are_read_by_name() {
        let status = "Name:\tx\nVmRSS:\t    1234 kB\nHugetlbPages:\t       0 kB\n";
        assert_eq!(kib_field(status, "VmRSS"), Some(1234 * 1024));
        assert_eq!(kib_field(status, "HugetlbPages"), Some(0));
        assert_eq!(kib_field(status, "Vm"), None);
    }
}
