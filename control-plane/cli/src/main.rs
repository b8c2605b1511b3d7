//! The `bowline` executable: every process and every command of the product.
#![forbid(unsafe_code)]

mod dataplane;
mod dev;
mod error;
mod log;
mod manage;
mod pool;
mod size;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::dataplane::DataplaneFlags;
use crate::dev::DevFlags;
use crate::error::CliError;
use crate::manage::{
    AnaCommand, ConnectionCommand, ControllerCommand, HostCommand, NamespaceCommand,
    ReferralCommand, ReservationCommand, SnapshotCommand, StatisticsCommand, SubsystemCommand,
    VolumeCommand,
};
use crate::pool::PoolCommand;

/// Version of the executable.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 start it again as it was. Results go to stdout,
all else to stderr.

See it work on this machine, without root or a device:
  bowline dev --once";

/// Block storage over NVMe/TCP.
#[derive(Debug, Parser)]
#[command(name = "bowline", version, max_term_width = 100, after_help = AFTER_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dataplane(Box<DataplaneFlags>),
    Dev(DevFlags),
    Volume(VolumeCommand),
    Snapshot(SnapshotCommand),
    Pool(PoolCommand),
    Subsystem(SubsystemCommand),
    Namespace(NamespaceCommand),
    Host(HostCommand),
    Ana(AnaCommand),
    Reservation(ReservationCommand),
    Referral(ReferralCommand),
    Controller(ControllerCommand),
    Connection(ConnectionCommand),
    Statistics(StatisticsCommand),
}

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(cli.command, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::last_words(&error.to_string());
            error.exit_code()
        }
    }
}

fn run(command: Command, matches: &ArgMatches) -> Result<(), CliError> {
    match command {
        Command::Dataplane(flags) => {
            let matches = matches.subcommand_matches("dataplane").unwrap_or(matches);
            dataplane::run(*flags, matches)
        }
        Command::Dev(flags) => dev::run(flags),
        Command::Volume(command) => manage::block_on(command.run()),
        Command::Snapshot(command) => manage::block_on(command.run()),
        Command::Subsystem(command) => manage::block_on(command.run()),
        Command::Namespace(command) => manage::block_on(command.run()),
        Command::Reservation(command) => manage::block_on(command.run()),
        Command::Ana(command) => manage::block_on(command.run()),
        Command::Host(command) => manage::block_on(command.run()),
        Command::Referral(command) => manage::block_on(command.run()),
        Command::Controller(command) => manage::block_on(command.run()),
        Command::Pool(command) => command.run(),
        Command::Statistics(command) => manage::block_on(command.run()),
        Command::Connection(command) => manage::block_on(command.run()),
    }
}
