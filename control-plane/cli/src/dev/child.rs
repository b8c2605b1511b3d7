//! The data plane that `bowline dev` starts: this executable, as a process of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::Deserialize;

use super::signals::Signals;
use crate::error::CliError;

/// Time to drain, flush and end.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Time to be gone after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a wait looks whether it was interrupted.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Time to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// What the environment may tell a data plane; ours is told by its flags alone.
const ENVIRONMENT_PREFIX: &str = "BOWLINE_";
/// Lines of the log shown when it did not start.
const LOG_LINES: usize = 5;

/// A running data plane. Killed when dropped.
pub(crate) struct DataPlane {
    process: Child,
    /// Kept open: the process may write to it.
    _stdout: Option<BufReader<ChildStdout>>,
    pub(crate) ready: Ready,
    log: PathBuf,
    /// Where the log lines of this start begin, in bytes.
    log_from: u64,
}

/// The ready line of a data plane.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ready {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) rpc: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

/// How to start one.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    pub(crate) drive: &'a Path,
    pub(crate) nqn: &'a str,
    pub(crate) block_bytes: u32,
    /// Where its log lines go.
    pub(crate) log: &'a Path,
    /// The addresses of its predecessor; free ports without one.
    pub(crate) again: Option<Ready>,
}

impl DataPlane {
    pub(crate) fn start(signals: &Signals, plan: &Plan<'_>) -> Result<Self, CliError> {
        let not_started = || CliError::failed("the data plane did not start");
        let log_from = std::fs::metadata(plan.log).map_or(0, |metadata| metadata.len());
        let spawned = command(plan).and_then(|mut command| command.spawn());
        let mut process = spawned.map_err(|error| not_started().cause(error))?;
        let stdout = process.stdout.take().map(BufReader::new);
        let mut plane = Self {
            process,
            _stdout: None,
            ready: Ready {
                listen: Vec::new(),
                rpc: SocketAddr::from(([127, 0, 0, 1], 0)),
                metrics: SocketAddr::from(([127, 0, 0, 1], 0)),
            },
            log: plan.log.to_owned(),
            log_from,
        };
        let (line, stdout) = first_line(signals, stdout)?.ok_or_else(|| {
            not_started()
                .cause(plane.last_words())
                .hint(plane.log_hint())
        })?;
        let json = line.strip_prefix("ready ").unwrap_or_default();
        plane.ready = serde_json::from_str(json).map_err(|_| {
            not_started()
                .cause(plane.last_words())
                .hint(plane.log_hint())
        })?;
        plane._stdout = Some(stdout);
        Ok(plane)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where hosts connect.
    pub(crate) fn address(&self) -> Result<SocketAddr, CliError> {
        let none = || CliError::failed("the data plane names no address in its ready line");
        self.ready.listen.first().copied().ok_or_else(none)
    }

    /// Ends it as a power cut would end it: nothing is drained or flushed.
    pub(crate) fn kill(mut self) -> Result<Ready, CliError> {
        let pid = self.pid();
        let not_killed = || CliError::failed(format!("process {pid} was not killed"));
        let killed = self.process.kill();
        match killed.and_then(|()| self.wait(KILL_TIMEOUT)) {
            Ok(Some(_)) => Ok(self.ready.clone()),
            Ok(None) => Err(not_killed().cause("it waits for a device that does not answer")),
            Err(error) => Err(not_killed().cause(error)),
        }
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> Result<(), CliError> {
        let not_stopped = || CliError::failed("the data plane did not stop well");
        kill_process(Pid::from_child(&self.process), Signal::TERM)
            .map_err(|error| not_stopped().cause(error))?;
        let ended = self.wait(STOP_TIMEOUT);
        let cause = match ended.map_err(|error| not_stopped().cause(error))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => format!("it ended with {status}"),
            // Killed when dropped.
            None => format!("it had not ended after {} s", STOP_TIMEOUT.as_secs()),
        };
        Err(not_stopped().cause(cause).hint(self.log_hint()))
    }

    /// Waits for its end that long.
    fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.process.try_wait()? {
            return Ok(Some(status));
        }
        let end = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty())?;
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        while let Err(error) = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&limit)) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        self.process.try_wait()
    }

    /// Says of a failure that the data plane had ended, if that is what happened.
    pub(crate) fn blame<T>(&mut self, result: Result<T, CliError>) -> Result<T, CliError> {
        match (result, self.process.try_wait()) {
            (Err(error), Ok(Some(status))) => Err(error
                .cause(format!("the data plane ended by itself with {status}"))
                .hint(self.log_hint())),
            (result, _) => result,
        }
    }

    /// True once it has ended on its own.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(self.log_from).unwrap_or(usize::MAX);
        last_words(&String::from_utf8_lossy(
            log.get(from..).unwrap_or_default(),
        ))
    }

    pub(crate) fn log_hint(&self) -> String {
        format!("its log is {}", self.log.display())
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ended = self.process.kill();
        let _reaped = self.wait(KILL_TIMEOUT);
    }
}

fn command(plan: &Plan<'_>) -> io::Result<Command> {
    let log = File::options().create(true).append(true).open(plan.log)?;
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(ENVIRONMENT_PREFIX) {
            command.env_remove(name);
        }
    }
    command
        .args(["dataplane", "--host", "any", "--nqn", plan.nqn, "--device"])
        .arg(plan.drive);
    command.args(["--block-size", &plan.block_bytes.to_string()]);
    match &plan.again {
        None => {
            command.args(["--listen", "127.0.0.1:0", "--rpc", "127.0.0.1:0"]);
            command.args(["--metrics", "127.0.0.1:0"]);
        }
        Some(ready) => {
            for address in &ready.listen {
                command.args(["--listen", &address.to_string()]);
            }
            command.args(["--rpc", &ready.rpc.to_string()]);
            command.args(["--metrics", &ready.metrics.to_string()]);
        }
    }
    command.args(["--end-with", &std::process::id().to_string()]);
    // Ctrl-C is for us; we stop it in our own time.
    command.process_group(0);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    Ok(command)
}

/// What a start says last: its error if there is one, or else the last lines of its log.
fn last_words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let error = lines.iter().rposition(|line| line.starts_with("error:"));
    let from = error.unwrap_or_else(|| lines.len().saturating_sub(LOG_LINES));
    match lines.get(from..) {
        None | Some([]) => "it said nothing".to_owned(),
        Some(said) => said.join("\n       "),
    }
}

/// The first line, and the rest of the stream; nothing if none comes in time.
fn first_line(
    signals: &Signals,
    stdout: Option<BufReader<ChildStdout>>,
) -> Result<Option<(String, BufReader<ChildStdout>)>, CliError> {
    let Some(mut stdout) = stdout else {
        return Ok(None);
    };
    let (sender, receiver) = mpsc::channel();
    // Ends by itself at the end of the process, which its owner sees to.
    std::thread::spawn(move || {
        let mut line = String::new();
        if stdout.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            let _unheard = sender.send((line, stdout));
        }
    });
    let begun = Instant::now();
    while begun.elapsed() < READY_TIMEOUT {
        match receiver.recv_timeout(LOOK_INTERVAL) {
            Ok(line) => return Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => signals.check()?,
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_error_and_what_belongs_to_it() {
        for (log, expected) in [
            ("", "it said nothing"),
            ("a\nb", "a\n       b"),
            (
                "1\n2\n3\n4\n5\n6\n",
                "2\n       3\n       4\n       5\n       6",
            ),
            ("a\nerror: e\ncause: c\n", "error: e\n       cause: c"),
        ] {
            assert_eq!(last_words(log), expected, "{log:?}");
        }
    }
}
