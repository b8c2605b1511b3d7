//! What `bowline dev` prints: one line for each step, with its figures.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::ledger::Ledger;
use crate::size::Size;

/// Width of the first column.
const STEP_WIDTH: usize = 10;

/// Prints to stdout as it goes. Nobody reading is no reason to stop proving.
pub(crate) struct Report {}

impl Report {
    pub(crate) fn begin(drive: &Path) -> Self {
        let report = Self {};
        report.line(format_args!(
            "bowline {} dev: a data plane over a file",
            crate::VERSION
        ));
        report.step("drive", format_args!("{}", drive.display()));
        report
    }

    /// A step without figures.
    pub(crate) fn step(&self, step: &str, text: impl fmt::Display) {
        self.line(format_args!("  {step:<STEP_WIDTH$} {text}"));
    }

    /// A remark between steps.
    pub(crate) fn note(&self, text: &str) {
        self.step("note", text);
    }

    /// A step that moved data.
    pub(crate) fn moved(&self, step: &str, what: &str, commands: u64, bytes: u64, took: Duration) {
        let seconds = took.as_secs_f64().max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (rate, iops) = (
            bytes as f64 / seconds / 1048576.0,
            commands as f64 / seconds,
        );
        self.step(
            step,
            format_args!(
                "{what:<34} {:>10} in {seconds:>6.2} s  {rate:>7.0} MiB/s  {iops:>7.0} IOPS",
                Size(bytes).to_string()
            ),
        );
    }

    /// The exact lines for a host.
    pub(crate) fn connect_lines(&self, address: SocketAddr, nqn: &str, when: &str) {
        let (ip, port) = (address.ip(), address.port());
        self.line(format_args!("connect a host on this machine, {when}:"));
        self.line(format_args!("  modprobe nvme-tcp"));
        self.line(format_args!("  nvme discover -t tcp -a {ip} -s {port}"));
        self.line(format_args!(
            "  nvme connect -t tcp -a {ip} -s {port} -n {nqn}"
        ));
        self.line(format_args!("  nvme disconnect -n {nqn}"));
    }

    /// The line that says that all of it was right.
    pub(crate) fn verified(&self, ledger: &Ledger) {
        self.line(format_args!(
            "verified: {} blocks of {} bytes hold what was acknowledged, before and after SIGKILL",
            ledger.blocks(),
            ledger.block_bytes
        ));
    }

    fn line(&self, text: fmt::Arguments<'_>) {
        let mut stdout = io::stdout().lock();
        let _unread = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    }
}
