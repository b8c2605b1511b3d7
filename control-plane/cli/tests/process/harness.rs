//! Processes of the executable, as an operator or a script runs them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

/// Far longer than anything here takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The executable with an empty configuration from the environment.
pub(crate) fn bowline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bowline"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BOWLINE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs to the end: exit code, stdout, stderr.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    finish(bowline(arguments).output().unwrap())
}

pub(crate) fn finish(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

pub(crate) fn terminate(process: &Child) {
    let pid = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// A running data plane on free ports; killed when dropped.
pub(crate) struct DataPlane {
    process: Child,
    pub(crate) ready: Ready,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ready {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) rpc: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) pid: u32,
}

impl DataPlane {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let ports = [
            "dataplane",
            "--listen",
            "127.0.0.1:0",
            "--rpc",
            "127.0.0.1:0",
            "--metrics",
        ];
        let mut command = bowline(&ports);
        command
            .arg("127.0.0.1:0")
            .args(arguments)
            .stderr(Stdio::null());
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            let _ = sender.send(line);
            // Whatever else it prints has a reader.
            let _ = stdout.read_to_end(&mut Vec::new());
        });
        let line = receiver.recv_timeout(PATIENCE).unwrap();
        let json = line
            .strip_prefix("ready ")
            .unwrap_or_else(|| panic!("not ready: {line:?}"));
        let ready = serde_json::from_str(json).unwrap();
        Self { process, ready }
    }

    pub(crate) fn rpc(&self) -> String {
        self.ready.rpc.to_string()
    }

    pub(crate) fn stop(mut self) -> ExitStatus {
        terminate(&self.process);
        self.process.wait().unwrap()
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// `GET /metrics`, as a scraper does it.
    pub(crate) fn scrape(&self) -> String {
        let mut stream = TcpStream::connect(self.ready.metrics).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
