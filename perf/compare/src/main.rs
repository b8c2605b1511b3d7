//! `bowline-compare`: bowline against other targets and against bare sockets, measured so that
//! the result can be believed on a small and noisy machine. What is measured, how and on what is
//! in `perf/SPECIFICATION.md`.

#![forbid(unsafe_code)]

mod bare;
mod cell;
mod cgroup;
mod child;
mod client;
mod cycle;
mod environment;
mod gate;
mod goals;
mod hosts;
mod meter;
mod neighbours;
mod network;
mod options;
mod pool;
mod process;
mod report;
mod rest;
mod result;
mod run;
mod statistics;
mod summary;
mod syscalls;
mod target;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::options::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(&arguments.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything asked for was reached.
fn dispatch(command: &Command) -> Result<bool> {
    match command {
        Command::Run(arguments) => options::run(arguments),
        Command::Report(arguments) => options::report(arguments),
        Command::Check(arguments) => options::check(arguments),
        Command::List => {
            for subject in cell::Subject::all() {
                println!("{}", subject.name());
            }
            Ok(true)
        }
        Command::Child(arguments) => child::run(arguments).map(|()| true),
        Command::BareTarget(arguments) => options::bare_target(arguments).map(|()| true),
        Command::BareClient(arguments) => options::bare_client(arguments).map(|()| true),
        Command::IdleHosts(arguments) => hosts::run(arguments).map(|()| true),
    }
}
