//! The data plane that `bowline dev` starts: this executable, as a process of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use crate::error::CliError;

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
    pub(crate) fn start(plan: &Plan<'_>) -> Result<Self, CliError> {
        let not_started = || CliError::failed("the data plane did not start");
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
        };
        let (line, stdout) = first_line(stdout).ok_or_else(|| {
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
        let killed = self.process.kill().and_then(|()| self.process.wait());
        killed.map_err(|error| {
            CliError::failed(format!("process {pid} was not killed")).cause(error)
        })?;
        Ok(self.ready.clone())
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> Result<(), CliError> {
        let not_stopped = || CliError::failed("the data plane did not stop well");
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .map_err(|error| not_stopped().cause(error))?;
        }
        let status = self
            .process
            .wait()
            .map_err(|error| not_stopped().cause(error))?;
        if status.success() {
            return Ok(());
        }
        Err(not_stopped()
            .cause(format!("it ended with {status}"))
            .hint(self.log_hint()))
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
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(LOG_LINES).collect();
        match lines.is_empty() {
            true => "it said nothing".to_owned(),
            false => lines
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
                .join("\n       "),
        }
    }

    pub(crate) fn log_hint(&self) -> String {
        format!("its log is {}", self.log.display())
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
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
    // Ctrl-C is for us; we stop it in our own time.
    command.process_group(0);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    Ok(command)
}

/// The first line, and the rest of the stream; nothing if none comes in time.
fn first_line(stdout: Option<BufReader<ChildStdout>>) -> Option<(String, BufReader<ChildStdout>)> {
    let mut stdout = stdout?;
    let (sender, receiver) = mpsc::channel();
    // Ends by itself at the end of the process, which its owner sees to.
    std::thread::spawn(move || {
        let mut line = String::new();
        if stdout.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            let _unheard = sender.send((line, stdout));
        }
    });
    receiver.recv_timeout(READY_TIMEOUT).ok()
}
