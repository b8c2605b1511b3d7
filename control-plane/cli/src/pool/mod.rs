//! `bowline pool`: the pool of a running data plane; and one that nothing uses, to look at and to repair.

mod device;
mod report;

use std::path::{Path, PathBuf};

use bowline_pool::offline::{
    Depth, EraseError, InspectError, Inspection, MendError, Mended, Severity, Source, erase,
    inspect, mend,
};
use clap::{Args, Subcommand, ValueEnum};

use crate::error::CliError;
use crate::manage::{
    OutputFlags, RpcFlags, block_on, pause_scrub, resume_scrub, say, show_pool, start_scrub,
    stop_scrub,
};
use crate::size::Size;
use device::{Access, Device};
use report::Report;

/// Show the pool of a data plane; look at one that no data plane uses, and repair it.
#[derive(Debug, Args)]
pub(crate) struct PoolCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the pool that a data plane serves: its size, how full it is, whether it works.
    Show {
        #[command(flatten)]
        rpc: RpcFlags,
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Have a data plane read everything that volumes have and compare it with its checksums.
    Scrub {
        #[command(flatten)]
        rpc: RpcFlags,
        /// What it reads in a second at most [default: as fast as the drive is while hosts do not
        /// use it].
        #[arg(long, value_name = "SIZE")]
        rate: Option<Size>,
        /// Also volumes without checksums, to see whether they can be read.
        #[arg(long)]
        everything: bool,
        /// End the scrub that goes on or pauses.
        #[arg(long, conflicts_with_all = ["rate", "everything"])]
        stop: bool,
        /// Have the scrub pause, until it is told to go on or the data plane ends.
        #[arg(long, conflicts_with_all = ["rate", "everything", "stop"])]
        pause: bool,
        /// Have the scrub that pauses go on where it was.
        #[arg(long, conflicts_with_all = ["rate", "everything", "stop", "pause"])]
        resume: bool,
    },
    /// Show what a pool says about itself and which volumes it has. Changes nothing.
    Inspect(Flags),
    /// Look for everything that can be wrong with a pool, and explain it. Changes nothing.
    ///
    /// Volumes' data is not read, unless that is asked for. Ends with exit code 1 if anything is
    /// damaged or lost.
    Check {
        #[command(flatten)]
        flags: Flags,
        /// Read the data of volumes that have checksums too, and compare it with them.
        #[arg(long)]
        data: bool,
    },
    /// Put right what can be without losing anything: a damaged superblock.
    Repair {
        /// The drive, or a copy of one in a file.
        device: PathBuf,
        /// Do it. Without this it is only said what would be done.
        #[arg(long)]
        yes: bool,
    },
    /// Give a pool up, in whatever state it is, so that the drive may be formatted. All its volumes
    /// are lost.
    Erase {
        /// The drive, or a copy of one in a file.
        device: PathBuf,
        /// It is meant: the data is gone for ever.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct Flags {
    /// The drive, or a copy of one in a file.
    device: PathBuf,
    /// How the result is printed; JSON is stable.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

impl PoolCommand {
    pub(crate) fn run(self) -> Result<(), CliError> {
        match self.verb {
            Verb::Show { rpc, output } => block_on(show_pool(&rpc, &output)),
            Verb::Scrub {
                rpc, stop: true, ..
            } => block_on(stop_scrub(&rpc)),
            Verb::Scrub {
                rpc, pause: true, ..
            } => block_on(pause_scrub(&rpc)),
            Verb::Scrub {
                rpc, resume: true, ..
            } => block_on(resume_scrub(&rpc)),
            Verb::Scrub {
                rpc,
                rate,
                everything,
                ..
            } => block_on(start_scrub(&rpc, rate, everything)),
            Verb::Inspect(flags) => {
                let (mut device, is_in_use) = Device::open_in_use(&flags.device)?;
                let inspection = look(&flags.device, &mut device, Depth::Opening)?;
                print(&flags, &inspection, is_in_use)
            }
            Verb::Check { flags, data } => {
                let mut device = Device::open(&flags.device, Access::Read)?;
                let depth = if data { Depth::Data } else { Depth::Everything };
                let inspection = look(&flags.device, &mut device, depth)?;
                print(&flags, &inspection, false)?;
                verdict(&flags.device, &inspection)
            }
            Verb::Repair { device, yes } => repair(&device, yes),
            Verb::Erase { device, yes } => give_up(&device, yes),
        }
    }
}

fn look(path: &Path, source: &mut dyn Source, depth: Depth) -> Result<Inspection, CliError> {
    inspect(source, depth).map_err(|error| not_looked_at(path, &error))
}

fn not_looked_at(path: &Path, error: &InspectError) -> CliError {
    let failed = CliError::failed(format!("{} not opened as a pool", path.display())).cause(error);
    match error {
        InspectError::Read(_) => failed.hint("look for errors of the drive in the kernel log"),
        InspectError::Superblock(error) => failed.hint(error.hint()),
    }
}

fn print(flags: &Flags, inspection: &Inspection, is_in_use: bool) -> Result<(), CliError> {
    let report = Report::of(inspection, is_in_use);
    match flags.output {
        Format::Text => say(report.to_string().trim_end()),
        Format::Json => match serde_json::to_string_pretty(&report) {
            Ok(json) => say(&json),
            Err(error) => Err(CliError::failed("the result cannot be printed").cause(error)),
        },
    }
}

fn verdict(path: &Path, inspection: &Inspection) -> Result<(), CliError> {
    let failed = |what: &str| CliError::failed(format!("the pool on {} {what}", path.display()));
    match inspection.worst() {
        None | Some(Severity::Notice) => Ok(()),
        Some(Severity::Loss) => {
            let lost = inspection.data.unwrap_or_default();
            if lost.mismatches + lost.unreadable > 0 {
                return Err(failed("has lost data").hint(
                    "restore what is listed from replicas or backups; reading it fails until it is \
                     written again, if the volume verifies what is read",
                ));
            }
            Err(failed("has lost checksums").hint(
                "volumes can be used; what is not verified any more is known again once it is \
                 written",
            ))
        }
        Some(Severity::Damage) => Err(failed("is damaged").hint(
            "copy the drive before anything else is tried with it; restore the volumes from \
             replicas or backups",
        )),
    }
}

fn give_up(path: &Path, yes: bool) -> Result<(), CliError> {
    if !yes {
        let what = format!("the pool on {} not erased", path.display());
        return Err(CliError::usage(what)
            .cause("all its volumes would be lost for ever")
            .hint("see which with `bowline pool inspect`, and add --yes if that is meant"));
    }
    let mut device = Device::open(path, Access::Write)?;
    match erase(&mut device) {
        Ok(()) => say("the pool is erased"),
        Err(EraseError::Inspect(error)) => Err(not_looked_at(path, &error)),
        Err(error @ EraseError::Write(_)) => {
            let failed = CliError::failed(format!("the pool on {} not erased", path.display()));
            Err(failed
                .cause(error)
                .hint("look for errors of the drive in the kernel log"))
        }
    }
}

fn repair(path: &Path, yes: bool) -> Result<(), CliError> {
    if !yes {
        let mut device = Device::open(path, Access::Read)?;
        let inspection = look(path, &mut device, Depth::Opening)?;
        verdict(path, &inspection)?;
        return match inspection.to_mend {
            None => say("nothing to repair"),
            Some(copy) => say(&format!(
                "superblock {copy} would be written again; say --yes"
            )),
        };
    }
    let mut device = Device::open(path, Access::Write)?;
    match mend(&mut device) {
        Ok(Mended::Nothing) => say("nothing to repair"),
        Ok(Mended::Superblock(copy)) => say(&format!("superblock {copy} written again")),
        Err(MendError::Inspect(error)) => Err(not_looked_at(path, &error)),
        Err(error) => {
            let failed = CliError::failed(format!("{} not repaired", path.display())).cause(&error);
            Err(match error {
                MendError::Foreign(error) => failed.hint(error.hint()),
                MendError::Write { .. } => {
                    failed.hint("look for errors of the drive in the kernel log")
                }
                _ => failed.hint("see everything that is wrong with `bowline pool check`"),
            })
        }
    }
}
