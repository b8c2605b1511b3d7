//! `cargo xtask`: the developer's commands. Everything CI runs is here, so that a red check can be
//! repeated on any machine with one line.

#![forbid(unsafe_code)]

mod cargo_tests;
mod conformance;
mod debian;
mod dependency_rule;
mod e2e;
mod fuzz;
mod guard;
mod lint;
mod perf;
mod process;
mod spdk;
mod tally;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::e2e::Release;
use crate::tally::Tally;
use crate::workspace::Workspace;

/// The developer's commands. Each ends with one line: `N passed, N failed, N skipped`.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything: lint, all tests, figures, the bindings to SPDK, the guard of what commands cost,
    /// the sanitizer, the fuzzer, then a real Linux host, power cuts, and with SPDK a drive of its own.
    Test,
    /// Formatting, clippy, dependency rule, cargo-deny and tidy rules.
    Lint,
    /// All workspace tests.
    Unit,
    /// The tests of the crates with unsafe code under AddressSanitizer.
    Asan,
    /// The protocol machines under a fuzzer: the kept corpus, then a fixed number of inputs.
    Fuzz {
        /// Only these targets; all when absent.
        targets: Vec<String>,
        /// Search with a random seed for so many seconds per target, and keep what is found.
        #[arg(long)]
        seconds: Option<u64>,
        /// Then reduce the corpus, and what searches found, to what covers the same.
        #[arg(long)]
        merge: bool,
    },
    /// The bindings to SPDK: over their double, then over SPDK itself where pkg-config finds it.
    Spdk,
    /// What the product costs.
    Perf {
        #[command(subcommand)]
        what: Perf,
    },
    /// End-to-end checks against a real peer.
    E2e {
        #[command(subcommand)]
        peer: Peer,
    },
}

#[derive(Subcommand)]
enum Perf {
    /// Bowline against other targets and bare sockets, on a quiet machine; results in perf/results.
    Compare(perf::CompareArguments),
    /// Instructions, system calls and allocations per command, held against the figures on
    /// file; no clock is involved.
    Guard {
        /// Write what is found to the file instead.
        #[arg(long)]
        renew: bool,
    },
}

#[derive(Subcommand)]
enum Peer {
    /// Boots Debian kernels in QEMU and uses the data plane as their disk.
    Kernel {
        /// Only this kernel series; both when absent.
        #[arg(long)]
        kernel: Option<Release>,
        /// Keep the run's folder (logs, images, backing files) and say where it is.
        #[arg(long)]
        keep: bool,
    },
    /// A data plane in the guest serves a drive that is logged; then the drive is served and read as
    /// power cuts would have left it.
    Power {
        /// This kernel series; 6.12 when absent.
        #[arg(long)]
        kernel: Option<Release>,
        /// Keep the run's folder (logs, images, backing files) and say where it is.
        #[arg(long)]
        keep: bool,
    },
    /// Where SPDK is installed: a data plane in the guest drives an emulated NVMe drive from user
    /// space, which is pulled and put back; then one on this machine serves memory of SPDK.
    Spdk {
        /// Only this kernel series; both when absent.
        #[arg(long)]
        kernel: Option<Release>,
        /// Keep the run's folder (logs, images, backing files) and say where it is.
        #[arg(long)]
        keep: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tally = Tally::new();
    match Workspace::find() {
        Ok(workspace) => run(&arguments.command, &workspace, &mut tally),
        Err(error) => tally.failed("workspace", &format!("{error:#}")),
    }
    println!("{}", tally.summary());
    if tally.is_green() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(command: &Command, workspace: &Workspace, tally: &mut Tally) {
    match command {
        Command::Test => {
            lint::run(workspace, tally);
            unit(workspace, tally);
            spdk::run(workspace, tally);
            guard::run(workspace, tally, false);
            cargo_tests::address_sanitizer(workspace, tally);
            fuzz::run(workspace, tally, &fuzz::Wishes::default());
            if e2e::kernel(workspace, tally, None, false) {
                conformance::check_e2e(workspace, tally);
            }
            e2e::power(workspace, tally, None, false);
            e2e::spdk(workspace, tally, None, false);
        }
        Command::Lint => lint::run(workspace, tally),
        Command::Unit => unit(workspace, tally),
        Command::Asan => cargo_tests::address_sanitizer(workspace, tally),
        Command::Fuzz {
            targets,
            seconds,
            merge,
        } => {
            let wishes = fuzz::Wishes {
                targets: targets.clone(),
                seconds: *seconds,
                merge: *merge,
            };
            fuzz::run(workspace, tally, &wishes);
        }
        Command::Spdk => spdk::run(workspace, tally),
        Command::Perf {
            what: Perf::Compare(arguments),
        } => perf::compare(workspace, tally, arguments),
        Command::Perf {
            what: Perf::Guard { renew },
        } => guard::run(workspace, tally, *renew),
        Command::E2e {
            peer: Peer::Kernel { kernel, keep },
        } => {
            e2e::kernel(workspace, tally, *kernel, *keep);
        }
        Command::E2e {
            peer: Peer::Power { kernel, keep },
        } => e2e::power(workspace, tally, *kernel, *keep),
        Command::E2e {
            peer: Peer::Spdk { kernel, keep },
        } => e2e::spdk(workspace, tally, *kernel, *keep),
    }
}

fn unit(workspace: &Workspace, tally: &mut Tally) {
    let ran = cargo_tests::workspace_tests(workspace, tally);
    conformance::check_tests(workspace, &ran, tally);
    cargo_tests::release_figures(workspace, tally);
}
