//! `cargo xtask perf compare`: builds what is compared and starts `bowline-compare` with it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::process;
use crate::tally::Tally;
use crate::workspace::Workspace;

#[derive(Args)]
pub(crate) struct CompareArguments {
    /// Cargo profile of what is measured.
    #[arg(long, default_value = "release")]
    profile: String,
    /// The SPDK engine, over a malloc bdev, in the place of the kernel's over memory.
    #[arg(long)]
    spdk: bool,
    /// A volume of a pool on a file, in the place of memory.
    #[arg(long, conflicts_with = "spdk")]
    pool: bool,
    /// What `bowline-compare run` is told, after `--`: subjects and options.
    #[arg(last = true)]
    rest: Vec<OsString>,
}

impl CompareArguments {
    /// What `bowline-compare` calls it.
    const fn engine(&self) -> &'static str {
        match (self.spdk, self.pool) {
            (true, _) => "spdk",
            (_, true) => "pool",
            _ => "kernel",
        }
    }
}

/// Builds and measures. Results go to perf/results unless the arguments say otherwise.
pub(crate) fn compare(workspace: &Workspace, tally: &mut Tally, arguments: &CompareArguments) {
    let mut built = None;
    tally.check("build", || {
        built = Some(build(workspace, arguments)?);
        Ok(())
    });
    let Some(folder) = built else {
        return;
    };
    let begun = Instant::now();
    let mut command = Command::new(folder.join("bowline-compare"));
    command
        .arg("run")
        .arg("--bowline")
        .arg(folder.join("bowline"))
        .arg("--perf")
        .arg(folder.join("bowline-perf"))
        .args(["--profile", &arguments.profile])
        .args(["--revision", &revision(workspace)])
        .args(["--engine", arguments.engine()])
        .args(&arguments.rest)
        .current_dir(workspace.root());
    match process::run(&mut command) {
        Ok(()) => tally.passed("perf compare", begun.elapsed()),
        Err(error) => tally.failed("perf compare", &format!("{error:#}")),
    }
}

/// Gives the folder of the executables.
fn build(workspace: &Workspace, arguments: &CompareArguments) -> Result<PathBuf> {
    let profile = arguments.profile.as_str();
    let mut command = workspace.cargo(&["build", "--locked", "--profile", profile]);
    for package in ["bowline", "bowline-loadgen", "bowline-compare"] {
        command.args(["--package", package]);
    }
    if arguments.spdk {
        command.args(["--features", "bowline/spdk"]);
    }
    process::run(&mut command)?;
    // The one profile whose folder has another name.
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(workspace.target().join(folder))
}

/// What is measured, as git names it; a tree without git is named so.
fn revision(workspace: &Workspace) -> String {
    let described = process::capture(
        Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .current_dir(workspace.root()),
    );
    described.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
