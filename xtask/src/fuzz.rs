//! Fuzzing the protocol machines with libFuzzer, guided by coverage. The kept corpus is replayed
//! first, then each target runs for a fixed number of inputs from a fixed seed, so that a check
//! asks the same question every time; `--seconds` searches instead.
//!
//! Built without cargo-fuzz: instrumentation is a set of code generation options of the stable
//! compiler. The folder is laid out as cargo-fuzz wants it all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::tally::Tally;
use crate::workspace::Workspace;

/// A fuzz target, and how much of it is enough for a check: about 15 s each.
struct Target {
    name: &'static str,
    runs: u32,
    bytes_max: u32,
}

const TARGETS: &[Target] = &[
    Target {
        name: "pdu",
        runs: 200_000,
        bytes_max: 1024,
    },
    Target {
        name: "logs",
        runs: 50_000,
        bytes_max: 4200,
    },
    Target {
        name: "target",
        runs: 20_000,
        bytes_max: 2048,
    },
    Target {
        name: "host",
        runs: 5_000,
        bytes_max: 1024,
    },
];

/// What `cargo fuzz build --sanitizer none` passes: counters for edges, traced comparisons. There
/// is no unsafe code in what is fuzzed, so a sanitizer would only make it slower.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg fuzzing";

/// One input that takes longer hangs.
const INPUT_SECONDS_MAX: u32 = 20;
/// A machine too slow for the number of runs does what it can in this time.
const CHECK_SECONDS_MAX: u64 = 60;
const MEMORY_MIB_MAX: u32 = 1024;
/// Lines of the fuzzer's last words that a failure shows.
const LAST_LINES: usize = 40;

/// What the command line asks for.
#[derive(Default)]
pub(crate) struct Wishes {
    /// Only these targets; all when empty.
    pub(crate) targets: Vec<String>,
    /// Search for so long instead of checking.
    pub(crate) seconds: Option<u64>,
    /// Afterwards reduce the kept corpus and what was found to what covers the same.
    pub(crate) merge: bool,
}

pub(crate) fn run(workspace: &Workspace, tally: &mut Tally, wishes: &Wishes) {
    if let Some(why) = unusable() {
        return tally.unavailable("fuzz", &why);
    }
    for name in &wishes.targets {
        if !TARGETS.iter().any(|target| target.name == name) {
            tally.failed("fuzz", &format!("there is no target {name}"));
        }
    }
    if !tally.check("fuzz: build", || build(workspace)) {
        return;
    }
    let wanted = |target: &&Target| {
        wishes.targets.is_empty() || wishes.targets.iter().any(|name| name == target.name)
    };
    for target in TARGETS.iter().filter(wanted) {
        let replayed = tally.check(&format!("fuzz: {} corpus", target.name), || {
            fuzzer(
                workspace,
                target,
                &["-runs=0"],
                &[&corpus(workspace, target)],
            )
        });
        if !replayed {
            continue;
        }
        tally.check(&format!("fuzz: {}", target.name), || match wishes.seconds {
            Some(seconds) => search(workspace, target, seconds),
            None => check(workspace, target),
        });
        if wishes.merge {
            tally.check(&format!("fuzz: {} merge", target.name), || {
                merge(workspace, target)
            });
        }
    }
}

fn unusable() -> Option<&'static str> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return Some("set up for Linux with glibc only");
    }
    let compiler = process::find_program("c++");
    compiler
        .is_none()
        .then_some("libFuzzer is compiled by c++, which is not here")
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.root().join("dataplane/fuzz")
}

/// The inputs that are part of the tree.
fn corpus(workspace: &Workspace, target: &Target) -> PathBuf {
    folder(workspace).join("corpus").join(target.name)
}

/// Where everything is that is not part of the tree: objects, findings, what a search collects.
fn output(workspace: &Workspace) -> PathBuf {
    workspace.target().join("fuzz")
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn program(workspace: &Workspace, target: &Target) -> PathBuf {
    let built = output(workspace).join(triple()).join("release");
    built.join(target.name)
}

fn build(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&["build", "--release", "--locked", "--quiet", "--bins"]);
    // With a target named, build scripts stay without instrumentation.
    command
        .args(["--target", &triple(), "--manifest-path"])
        .arg(folder(workspace).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(output(workspace))
        .env("RUSTFLAGS", INSTRUMENTATION);
    process::run(&mut command)
}

fn check(workspace: &Workspace, target: &Target) -> Result<()> {
    // New inputs go into a folder of no further use.
    let scratch = tempfile::tempdir().context("no folder for temporary files")?;
    let runs = format!("-runs={}", target.runs);
    let time = format!("-max_total_time={CHECK_SECONDS_MAX}");
    let folders = [scratch.path(), &corpus(workspace, target)];
    fuzzer(workspace, target, &["-seed=1", &runs, &time], &folders)
}

fn search(workspace: &Workspace, target: &Target, seconds: u64) -> Result<()> {
    let time = format!("-max_total_time={seconds}");
    let folders = [&*found(workspace, target)?, &corpus(workspace, target)];
    fuzzer(workspace, target, &[&time], &folders)
}

/// What searches have collected so far.
fn found(workspace: &Workspace, target: &Target) -> Result<PathBuf> {
    let folder = output(workspace).join("corpus").join(target.name);
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

/// Replaces the kept corpus by the fewest and smallest inputs that cover what all of them cover.
fn merge(workspace: &Workspace, target: &Target) -> Result<()> {
    let kept = corpus(workspace, target);
    let smaller = output(workspace).join("merged").join(target.name);
    if smaller.exists() {
        fs::remove_dir_all(&smaller).context("cannot remove the last merge")?;
    }
    fs::create_dir_all(&smaller).context("cannot make a folder to merge into")?;
    let folders = [&*smaller, &kept, &found(workspace, target)?];
    fuzzer(workspace, target, &["-set_cover_merge=1"], &folders)?;
    fs::remove_dir_all(&kept).context("cannot replace the corpus")?;
    fs::create_dir_all(&kept).context("cannot replace the corpus")?;
    for entry in fs::read_dir(&smaller).context("cannot read the merged corpus")? {
        let entry = entry.context("cannot read the merged corpus")?;
        fs::copy(entry.path(), kept.join(entry.file_name())).context("cannot keep an input")?;
    }
    Ok(())
}

/// Runs the fuzzer; a finding is told with the input's path and how to see it again.
fn fuzzer(
    workspace: &Workspace,
    target: &Target,
    arguments: &[&str],
    folders: &[&Path],
) -> Result<()> {
    let program = program(workspace, target);
    let findings = output(workspace).join("artifacts").join(target.name);
    fs::create_dir_all(&findings)
        .with_context(|| format!("cannot make the folder {}", findings.display()))?;
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .arg(format!("-max_len={}", target.bytes_max))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        // The end of the path is part of a file's name.
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args(folders)
        .current_dir(workspace.root());
    let result = command
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if result.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&result.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    let input = lines
        .iter()
        .find_map(|line| line.split_once("Test unit written to "));
    let again = match input {
        Some((_, path)) => format!(
            "the input is {path}\nsee it again: {} {path}",
            program.display()
        ),
        None => format!("see it again: {}", program.display()),
    };
    bail!("{}\n{}\n{again}", result.status, last.join("\n"))
}
