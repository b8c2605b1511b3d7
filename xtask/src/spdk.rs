//! The crates over SPDK: their checks over the double on every machine, over SPDK where there is one.

use std::process::Command;

use crate::cargo_tests;
use crate::debian;
use crate::process;
use crate::tally::Tally;
use crate::workspace::Workspace;

const CRATES: &[&str] = &["bowline-spdk-sys", "bowline-spdk-rs", "bowline-engine-spdk"];
/// A crate and its program for readers, which needs no device.
const EXAMPLE: (&str, &str) = ("bowline-spdk-rs", "first_block");
/// What makes the bindings.
const LIBCLANG: &str = "libclang-dev";
/// By its presence SPDK's is known.
const PACKAGE: &str = "spdk_event_bdev";
/// Why something was skipped.
pub(crate) const NOT_INSTALLED: &str =
    "pkg-config finds no SPDK (PKG_CONFIG_PATH names the folder of its .pc files)";

pub(crate) fn run(workspace: &Workspace, tally: &mut Tally) {
    if let Err(reason) = libclang() {
        tally.unavailable("spdk double", &reason);
        return;
    }
    over(workspace, "double", "spdk double", tally);
    if is_installed() {
        over(workspace, "spdk", "spdk", tally);
    } else {
        tally.skipped("spdk", &NOT_INSTALLED);
    }
}

/// Everything over the library that a feature stands for.
fn over(workspace: &Workspace, feature: &str, name: &str, tally: &mut Tally) {
    tally.check(&format!("{name}: clippy"), || {
        let mut command = with_feature(workspace, "clippy", feature);
        command.args(["--all-targets", "--", "-D", "warnings"]);
        process::run(&mut command)
    });
    let mut command = with_feature(workspace, "test", feature);
    cargo_tests::count(name, command.arg("--no-fail-fast"), tally);
    tally.check(&format!("{name}: example"), || {
        let mut command = workspace.cargo(&["run", "--locked", "--package", EXAMPLE.0]);
        command.args(["--features", feature, "--example", EXAMPLE.1]);
        process::run(&mut command)
    });
    tally.check(&format!("{name}: clippy of the executable"), || {
        let mut command = executable(workspace, "clippy", feature);
        command.args(["--all-targets", "--", "-D", "warnings"]);
        process::run(&mut command)
    });
    let mut command = executable(workspace, "test", feature);
    command.args(["--no-fail-fast", "--test", "process", "--", "spdk::"]);
    cargo_tests::count(&format!("{name}: executable"), &mut command, tally);
}

/// Why there is none, if there is none. A machine that has it need not be Debian's.
pub(crate) fn libclang() -> Result<(), String> {
    if std::env::var_os("LIBCLANG_PATH").is_some() || process::find_program("clang").is_some() {
        return Ok(());
    }
    match debian::unusable() {
        Some(reason) => Err(reason),
        None => debian::install(&[LIBCLANG]).map_err(|error| format!("{error:#}")),
    }
}

fn with_feature(workspace: &Workspace, what: &str, feature: &str) -> Command {
    let mut command = workspace.cargo(&[what, "--locked"]);
    for name in CRATES {
        command.args(["--package", name]);
        command.args(["--features", &format!("{name}/{feature}")]);
    }
    command
}

/// `bowline dataplane --engine spdk`, which calls the double by a longer name.
fn executable(workspace: &Workspace, what: &str, feature: &str) -> Command {
    let feature = match feature {
        "double" => "spdk-double",
        other => other,
    };
    let mut command = workspace.cargo(&[what, "--locked", "--package", "bowline"]);
    command.args(["--features", feature]);
    command
}

pub(crate) fn is_installed() -> bool {
    let mut command = Command::new("pkg-config");
    process::capture(command.args(["--exists", PACKAGE])).is_ok()
}
