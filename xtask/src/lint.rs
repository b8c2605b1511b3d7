//! Everything that judges the source without running it.

use std::path::PathBuf;

use anyhow::Result;

use crate::process;
use crate::tally::Tally;
use crate::workspace::{self, Workspace};
use crate::{conformance, dependency_rule, tidy};

/// Pinned, because a newer release may judge differently; installed once per version.
const CARGO_DENY_VERSION: &str = "0.20.2";
/// The one crate that is not a member of the workspace.
const FUZZ_MANIFEST: &str = "dataplane/fuzz/Cargo.toml";

pub(crate) fn run(workspace: &Workspace, tally: &mut Tally) {
    tally.check("lint: format", || {
        process::run(&mut workspace.cargo(&["fmt", "--all", "--check"]))?;
        // Not a member. Clippy sees what it fuzzes with as tests of `nvmf`.
        let fuzz = ["fmt", "--manifest-path", FUZZ_MANIFEST, "--check"];
        process::run(&mut workspace.cargo(&fuzz))
    });
    tally.check("lint: clippy", || {
        let arguments = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        process::run(&mut workspace.cargo(&arguments))
    });
    tally.check("lint: dependency rule", || {
        dependency_rule::check_edges(workspace)
    });
    tally.check("lint: unsafe policy", || {
        dependency_rule::check_unsafe_policy(workspace)
    });
    tally.check("lint: tidy", || tidy::check(workspace));
    tally.check("lint: conformance table", || {
        conformance::check_sources(workspace)
    });
    deny(workspace, tally);
}

fn deny(workspace: &Workspace, tally: &mut Tally) {
    match install_cargo_deny(workspace) {
        Ok(program) => {
            for what in ["bans", "licenses", "sources"] {
                tally.check(&format!("lint: deny {what}"), || {
                    let mut command = std::process::Command::new(&program);
                    // Not `--offline`: it looks at all platforms, so at crates never built here.
                    command.args(["--locked", "check", what]);
                    process::run(command.current_dir(workspace.root()))
                });
            }
            tally.check("lint: deny fuzz", || {
                let mut command = std::process::Command::new(&program);
                command.args(["--locked", "--manifest-path", FUZZ_MANIFEST]);
                command.args(["--config", "deny.toml", "check"]);
                command.args(["bans", "licenses", "sources"]);
                process::run(command.current_dir(workspace.root()))
            });
        }
        Err(error) => tally.unavailable("lint: deny", &format!("{error:#}")),
    }
    tally.skipped(
        "lint: deny advisories",
        &"the advisory database is not a package of any registry",
    );
}

/// The pinned cargo-deny, built into the cache the first time.
fn install_cargo_deny(workspace: &Workspace) -> Result<PathBuf> {
    let home = workspace::cache()?.join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let program = home.join("bin/cargo-deny");
    if !program.is_file() {
        let version = format!("cargo-deny@{CARGO_DENY_VERSION}");
        let mut command = workspace.cargo(&["install", "--quiet", "--locked", &version, "--root"]);
        // Its own target folder, so that the caller's is not filled with a tool's objects; the
        // optimiser would cost more than one run of the tool saves.
        process::run(
            command
                .arg(&home)
                .env_remove("CARGO_TARGET_DIR")
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        )?;
    }
    Ok(program)
}
