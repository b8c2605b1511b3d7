//! The workspace's own tests, plain and under a sanitizer, and their totals.

use std::process::Command;
use std::time::Instant;

use crate::conformance::Outcomes;
use crate::process;
use crate::tally::{Tally, seconds};
use crate::workspace::Workspace;

/// Crates with unsafe code: what a sanitizer has to look at.
const UNSAFE_CRATES: &[&str] = &["bowline-block", "bowline-reactor", "bowline-engine-kernel"];
const SANITIZER_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Gives what became of each test.
pub(crate) fn workspace_tests(workspace: &Workspace, tally: &mut Tally) -> Outcomes {
    let mut command = workspace.cargo(&["test", "--workspace", "--no-fail-fast", "--locked"]);
    count("cargo test", &mut command, tally)
}

/// The tests that assert figures, once more with the optimiser: what is claimed of the product is
/// claimed of its release build.
pub(crate) fn release_figures(workspace: &Workspace, tally: &mut Tally) {
    let mut command = workspace.cargo(&["test", "--release", "--no-fail-fast", "--locked"]);
    command.args([
        "--package",
        "bowline-tcp",
        "--test",
        "steady_state",
        "--test",
        "syscalls",
    ]);
    count("cargo test --release", &mut command, tally);
}

pub(crate) fn address_sanitizer(workspace: &Workspace, tally: &mut Tally) {
    if cfg!(all(
        target_arch = "x86_64",
        target_os = "linux",
        target_env = "gnu"
    )) {
        let mut command =
            workspace.cargo(&["test", "--lib", "--tests", "--no-fail-fast", "--locked"]);
        for name in UNSAFE_CRATES {
            command.args(["--package", name]);
        }
        // The sanitizer's runtime ships with the stable toolchain, only its flag is gated. With a
        // target named, build scripts and macros stay without it. A folder of its own keeps the
        // plain build's objects valid.
        command
            .args(["--target", SANITIZER_TARGET, "--target-dir"])
            .arg(workspace.target().join("asan"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "-Zsanitizer=address");
        count("AddressSanitizer", &mut command, tally);
    } else {
        tally.unavailable(
            "AddressSanitizer",
            &"set up for x86-64 Linux with glibc only",
        );
    }
    tally.skipped(
        "miri",
        &"not part of the stable toolchain; AddressSanitizer runs instead",
    );
}

pub(crate) fn count(name: &str, command: &mut Command, tally: &mut Tally) -> Outcomes {
    let (mut totals, mut outcomes) = (Totals::default(), Outcomes::default());
    let started = Instant::now();
    let ended = process::stream(command, |line| {
        totals.read(line);
        outcomes.read(line);
    });
    match ended {
        Ok(true) if totals.passed == 0 => tally.failed(name, &"ran no test"),
        Ok(succeeded) => {
            // Cargo also fails without a failed test: a crate that does not build, a test binary
            // that died.
            let broken = !succeeded && totals.failed == 0;
            let failed = if broken { 1 } else { totals.failed };
            let passed = totals.passed.saturating_sub(totals.gave_up);
            tally.add(name, passed, failed, totals.ignored + totals.gave_up);
        }
        Err(error) => tally.failed(name, &format!("{error:#}")),
    }
    println!("{name}: took {}", seconds(started.elapsed()));
    outcomes
}

/// Sums of libtest's closing lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Tests that skipped themselves; also in `passed`.
    gave_up: u64,
}

impl Totals {
    fn read(&mut self, line: &str) {
        let Some(summary) = line.strip_prefix("test result: ") else {
            // A test that finds its surroundings wanting says so past libtest's capture and
            // returns. Libtest counts it as passed; it is not.
            if line.starts_with("skipped: ") {
                self.gave_up += 1;
            }
            return;
        };
        for part in summary.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed() {
        let mut totals = Totals::default();
        totals.read("test a ... ok");
        totals.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        totals.read("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured");
        totals.read("skipped: no loop devices here");
        assert_eq!(
            totals,
            Totals {
                passed: 15,
                failed: 2,
                ignored: 1,
                gave_up: 1
            }
        );
    }
}
