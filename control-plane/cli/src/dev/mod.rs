//! `bowline dev`: a data plane on this machine, proved from the outside before it is
//! handed to anybody: written, killed, restarted and read back over NVMe/TCP.

mod child;
mod disk;
mod folder;
mod ledger;
mod pattern;
mod proof;
mod report;
mod signals;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::error::CliError;
use crate::size::Size;

use child::DataPlane;
use folder::Folder;
use ledger::{BLOCKS_MAX, Ledger, Phase};
use proof::Bench;
use report::Report;
use signals::Signals;

/// Logical block size of the drive in bytes.
const BLOCK_BYTES: u32 = 4096;
/// Smallest drive on which every step has something to do.
const SIZE_MIN: Size = Size(8 << 20);
/// Largest drive whose blocks can be followed.
const SIZE_MAX: Size = Size(BLOCKS_MAX * BLOCK_BYTES as u64);
/// The subsystem that the drive is served as.
const NQN: &str = "nqn.2026-11.io.bowline:dev:drive";
/// How often a data plane that stays up is looked after.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

const LONG_ABOUT: &str = "\
Start a data plane over a file on this machine, and prove that it keeps what it acknowledges.

The data plane is a process of its own, on free ports of the loopback address. Our own NVMe/TCP
initiator writes a self-describing pattern, verifies it, kills the process with SIGKILL while
writes are in flight, starts it again, reconnects and verifies every acknowledged block. The last
line is \"verified: …\", and the exit code is 0, only if all of it was right.

Without --once the data plane then stays up for hosts, until Ctrl-C. No root is needed; only
`nvme connect` itself needs it.";

/// Prove a data plane on this machine, and keep it for trying things.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub(crate) struct DevFlags {
    /// Stop after the proof.
    #[arg(long)]
    once: bool,
    /// Folder for the drive, its ledger and the log
    /// [default: bowline/dev in the user's state folder].
    #[arg(long, value_name = "DIR", env = "BOWLINE_DIR", hide_env = true)]
    dir: Option<PathBuf>,
    /// Keep the drive at the end; the next run verifies it before it writes anew.
    #[arg(long)]
    keep: bool,
    /// Size of the drive.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    size: Size,
}

/// Runs the proof, and without `--once` stays up after it.
pub(crate) fn run(flags: DevFlags) -> Result<(), CliError> {
    if flags.size < SIZE_MIN || flags.size > SIZE_MAX {
        return Err(
            CliError::usage(format!("--size {} is not possible", flags.size))
                .hint(format!("give {SIZE_MIN} to {SIZE_MAX}")),
        );
    }
    let signals = Signals::watch()?;
    let folder = Folder::open(flags.dir.clone())?;
    let report = Report::begin(&folder.drive());
    let bench = Bench {
        folder: &folder,
        report: &report,
        signals: &signals,
    };
    match folder.load()? {
        Some((ledger, Phase::HandedOver)) => return again(&bench, &flags, &ledger),
        Some((ledger, Phase::Acknowledged)) => bench.verify_earlier(ledger)?,
        Some((_, Phase::Writing)) => report.note("an earlier run ended early; it starts anew"),
        None => {}
    }
    let (plane, proved) = bench.prove(flags.size)?;
    let address = plane.address()?;
    if flags.once {
        plane.stop()?;
        report.connect_lines(address, NQN, "while it runs (leave out --once)");
    } else {
        // From here on hosts may write, and the ledger knows nothing of it.
        folder.store(&proved, Phase::HandedOver)?;
        report.connect_lines(address, NQN, "now, as root");
        report.verified(&proved);
        stay_up(plane, &report, &signals)?;
    }
    if !flags.keep {
        folder.remove()?;
    }
    if flags.once {
        report.verified(&proved);
    }
    Ok(())
}

/// Serves a drive that hosts have used: nothing is written over it.
fn again(bench: &Bench<'_>, flags: &DevFlags, ledger: &Ledger) -> Result<(), CliError> {
    let folder = bench.folder;
    if flags.once {
        return Err(
            CliError::failed("the drive is not ours to write on any more")
                .cause("it was kept by a run without --once, and hosts may have data on it")
                .hint(format!(
                    "delete {} to start anew, or choose another folder with --dir",
                    folder.path().display()
                )),
        );
    }
    let plane = bench.start(None, ledger.block_bytes)?;
    bench
        .report
        .note("the drive was kept by an earlier run and is served as it is, not proved");
    bench
        .report
        .connect_lines(plane.address()?, NQN, "now, as root");
    stay_up(plane, bench.report, bench.signals)?;
    if flags.keep { Ok(()) } else { folder.remove() }
}

/// Serves until Ctrl-C, or until the data plane ends by itself.
fn stay_up(mut plane: DataPlane, report: &Report, signals: &Signals) -> Result<(), CliError> {
    report.note("stays up until Ctrl-C");
    while !signals.wait(WATCH_INTERVAL) {
        if plane.has_ended() {
            return Err(CliError::failed("the data plane ended by itself").cause(plane.log_hint()));
        }
    }
    plane.stop()?;
    report.note("stopped: drained, flushed and closed");
    Ok(())
}
