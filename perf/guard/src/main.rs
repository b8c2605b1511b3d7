//! What a command costs, in a form that can be counted: a scripted host drives the whole target
//! on one thread. Nothing waits and nothing spins, so that two runs do the same.
//!
//! A counter of instructions is told to count `counted_turn` and `counted_attach` only: what the
//! host does is not part of the figure. `cargo xtask perf guard` runs it.

#![forbid(unsafe_code)]

mod host;
mod machine;
mod remote;
mod scenario;
mod volume;
mod watch;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bowline_reactor::IoBackend;
use clap::{Parser, Subcommand, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::machine::Counts;
use crate::scenario::{SCENARIOS, Scenario};
use crate::watch::Watch;

#[derive(Parser)]
#[command(name = "bowline-guard")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the names of all scenarios, and of what kind each is: `cost`, or `growth`, which is
    /// there to be compared with a smaller one.
    List,
    /// Runs a scenario in this process and prints how many commands were counted, and the turns,
    /// system calls and allocations of the target that they took.
    Run {
        scenario: String,
        /// Engine of the reactor.
        #[arg(long, value_enum, default_value_t = Engine::Epoll)]
        engine: Engine,
    },
    /// Runs a scenario of one connection against a target elsewhere.
    Drive {
        scenario: String,
        address: SocketAddr,
        /// NQN of a subsystem whose namespace 1 is written to.
        subsystem: String,
        /// Bursts.
        rounds: u32,
        /// Also count the system calls that the reactors of this process make meanwhile.
        #[arg(long, value_name = "PID")]
        watch: Option<u32>,
    },
    /// Ends well if this machine lets system calls be counted, as `drive --watch` does.
    Probe,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    Epoll,
    Uring,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::List => {
            for scenario in SCENARIOS {
                let kind = if scenario.is_growth() {
                    "growth"
                } else {
                    "cost"
                };
                println!("{} {kind}", scenario.name);
            }
            Ok(())
        }
        Command::Run { scenario, engine } => {
            raise_descriptor_limit()?;
            let io = match engine {
                Engine::Epoll => IoBackend::Epoll,
                Engine::Uring => IoBackend::Uring,
            };
            let scenario = Scenario::of(scenario)?;
            let counted = scenario.run(io).context(scenario.name)?;
            let Counts {
                turns,
                system_calls,
                allocations,
            } = counted.counts;
            let commands = counted.commands;
            println!("commands {commands}");
            println!("turns {turns}");
            println!("system_calls {system_calls}");
            println!("allocations {allocations}");
            Ok(())
        }
        Command::Drive {
            scenario,
            address,
            subsystem,
            rounds,
            watch,
        } => {
            let scenario = Scenario::of(scenario)?;
            let mut watch = watch.map(Watch::reactors).transpose()?;
            let commands = remote::drive(scenario, *address, subsystem, *rounds)?;
            println!("commands {commands}");
            if let Some(watch) = &mut watch {
                println!("system_calls {}", watch.count()?);
            }
            Ok(())
        }
        Command::Probe => watch::probe(),
    }
}

/// Both ends of every connection are here.
fn raise_descriptor_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).context("the limit of open files cannot be raised")
}
