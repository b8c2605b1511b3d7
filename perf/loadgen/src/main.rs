//! The `bowline-perf` executable.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    bowline_loadgen::cli::main()
}
