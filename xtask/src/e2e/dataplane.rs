//! The data plane under test: the real executable as a child process.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// From start to the ready line.
const READY_MAX: Duration = Duration::from_secs(60);
/// From SIGTERM to the end of the process.
const STOP_MAX: Duration = Duration::from_secs(60);

/// How to start a data plane, again and again on the same port.
pub(crate) struct Setup {
    pub(crate) executable: PathBuf,
    pub(crate) device: PathBuf,
    pub(crate) allow_path: PathBuf,
    pub(crate) serves: Serves,
    /// Who may connect.
    pub(crate) host_nqns: Vec<String>,
    pub(crate) log: PathBuf,
    /// Where it keeps what outlives it, if anywhere.
    pub(crate) state: Option<PathBuf>,
    /// SPDK's configuration, where it serves a device of SPDK.
    pub(crate) spdk: Option<PathBuf>,
    /// What this data plane is told besides.
    pub(crate) flags: &'static [&'static str],
}

/// What a data plane serves of its device.
pub(crate) enum Serves {
    /// All of it, in blocks of 512 bytes, as the namespace of the subsystem with this name.
    Whole(String),
    /// The volumes of the pool that is on it, or that is made if nothing is on it.
    Pool,
}

/// A running data plane; dropping it kills it.
pub(crate) struct DataPlane {
    child: Child,
    /// Closes when the process has closed its standard output, so when it has ended.
    ended: Receiver<String>,
    /// Where hosts connect, on the loopback address.
    pub(crate) port: u16,
    /// Address of the management API.
    rpc: String,
    executable: PathBuf,
}

impl DataPlane {
    /// Starts it on `port`, or on a free one if that is 0, and waits until it listens.
    pub(crate) fn start(setup: &Setup, port: u16) -> Result<Self> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&setup.log);
        let mut child = command(
            setup,
            port,
            log.context("cannot write the data plane's log")?,
        )
        .spawn()
        .context("cannot start the data plane")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut plane = Self {
            child,
            ended: lines,
            port: 0,
            rpc: String::new(),
            executable: setup.executable.clone(),
        };
        let line = plane
            .ended
            .recv_timeout(READY_MAX)
            .context("the data plane is not ready")?;
        (plane.port, plane.rpc) = parse_ready(&line)?;
        Ok(plane)
    }

    /// A command line of the operator against this data plane; gives its standard output.
    pub(crate) fn manage(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.executable);
        process::capture(command.args(arguments).args(["--rpc", &self.rpc]))
    }

    /// True if the process is gone though nobody asked it to go.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, as if the machine had lost it.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill the data plane")?;
        self.child
            .wait()
            .context("cannot wait for the data plane")?;
        Ok(())
    }

    /// SIGTERM; it must drain and end by itself without an error.
    pub(crate) fn stop(mut self) -> Result<()> {
        let id = self.child.id().to_string();
        process::capture(Command::new("kill").args(["-TERM", &id]))?;
        while self.ended.recv_timeout(STOP_MAX).is_ok() {}
        match self
            .child
            .try_wait()
            .context("cannot wait for the data plane")?
        {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the data plane ended with {status} after SIGTERM"),
            // Standard output closes a moment before the process is reaped.
            None if self.ended.try_recv() == Err(mpsc::TryRecvError::Disconnected) => {
                let status = self
                    .child
                    .wait()
                    .context("cannot wait for the data plane")?;
                if status.success() {
                    Ok(())
                } else {
                    bail!("ended with {status} after SIGTERM")
                }
            }
            None => bail!("the data plane did not stop within {STOP_MAX:?} of SIGTERM"),
        }
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // Both fail only if the process is already gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(setup: &Setup, port: u16, log: File) -> Command {
    // `setpriv` ends the process with us, however we end.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(&setup.executable)
        .args([
            "dataplane",
            "--rpc",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
        ])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(setup.host_nqns.iter().flat_map(|nqn| ["--host", nqn]))
        .args(setup.flags)
        .args(
            setup
                .state
                .iter()
                .flat_map(|folder| [OsStr::new("--state"), folder.as_os_str()]),
        )
        .args(spdk_flags(setup))
        .arg("--device")
        .arg(&setup.device)
        .arg("--allow-path")
        .arg(&setup.allow_path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    match &setup.serves {
        Serves::Whole(nqn) => command.args(["--nqn", nqn, "--block-size", "512"]),
        Serves::Pool => command.arg("--format"),
    };
    command
}

/// Without huge pages, which this machine may not have set aside.
fn spdk_flags(setup: &Setup) -> impl Iterator<Item = &OsStr> {
    let flags = |config| {
        ["--engine", "spdk", "--no-huge", "--spdk-config"]
            .into_iter()
            .map(OsStr::new)
            .chain([config])
    };
    let config = setup.spdk.iter().map(|config| config.as_os_str());
    config.flat_map(flags)
}

/// `ready {"listen":["127.0.0.1:4420"],"rpc":"127.0.0.1:7410",…}`: the port and the RPC address.
fn parse_ready(line: &str) -> Result<(u16, String)> {
    let json = line
        .strip_prefix("ready ")
        .with_context(|| format!("not a ready line: {line}"))?;
    let ready: Value = serde_json::from_str(json).context("the ready line is not JSON")?;
    let listen = ready["listen"][0]
        .as_str()
        .context("the ready line has no listener")?;
    let (_, port) = listen
        .rsplit_once(':')
        .context("the listener has no port")?;
    let rpc = ready["rpc"]
        .as_str()
        .context("the ready line has no RPC address")?;
    Ok((
        port.parse()
            .context("the listener's port is not a number")?,
        rpc.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_line_names_port_and_rpc() {
        let line = r#"ready {"listen":["127.0.0.1:41234"],"rpc":"127.0.0.1:5","pid":1}"#;
        assert_eq!(
            parse_ready(line).unwrap(),
            (41234, "127.0.0.1:5".to_owned())
        );
        assert!(parse_ready("something else").is_err());
        assert!(parse_ready("ready {}").is_err());
    }
}
