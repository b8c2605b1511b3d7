//! The scripted program: a host and the whole target on one thread, counted by callgrind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

use super::callgrind::Instructions;
use super::figures::{Group, Parts};
use super::{EPOLL, PROFILE, spread};

/// Functions whose instructions are counted.
const COUNTED: &str = "*counted_*";
/// The C library's choice of copying routines is pinned to what every x86-64 processor has:
/// otherwise it goes by the processor, and by the size of its caches. Callgrind itself shows
/// programs the same features everywhere but for AVX.
const PINNED_ROUTINES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM:\
    glibc.cpu.x86_non_temporal_threshold=1073741824";

/// What a run tells beside the number of its commands, and is held per command.
pub(super) const SYSTEM_CALLS: &str = "system_calls";
pub(super) const ALLOCATIONS: &str = "allocations";
const CALLS: &[&str] = &[SYSTEM_CALLS, ALLOCATIONS];

struct Scenario {
    name: String,
    /// There to be compared with a smaller one.
    is_growth: bool,
}

/// What is run, built.
pub(super) struct Programs {
    pub(super) bowline: PathBuf,
    pub(super) guard: PathBuf,
    /// Whether the kernel's own count of system calls is to be had.
    pub(super) watches: bool,
    scenarios: Vec<Scenario>,
}

/// The number in the line that begins with this word.
pub(super) fn told(said: &str, word: &str) -> Result<u32> {
    let line = |line: &str| line.strip_prefix(word)?.trim().parse().ok();
    let number = said.lines().find_map(line);
    number.with_context(|| format!("the program did not tell its {word}: {said}"))
}

impl Programs {
    pub(super) fn build(workspace: &Workspace) -> Result<Self> {
        process::run(&mut workspace.cargo(&[
            "build",
            "--quiet",
            "--locked",
            "--profile",
            PROFILE,
            "--package",
            "bowline-guard",
            "--package",
            "bowline",
        ]))?;
        let folder = workspace.target().join(PROFILE);
        let guard = folder.join("bowline-guard");
        let listing = process::capture(Command::new(&guard).arg("list"))?;
        let scenarios = listing.lines().map(|line| {
            let (name, kind) = line.split_once(' ').context("a list of another form")?;
            Ok(Scenario {
                name: name.to_owned(),
                is_growth: kind == "growth",
            })
        });
        let scenarios = scenarios.collect::<Result<_>>()?;
        Ok(Self {
            bowline: folder.join("bowline"),
            guard,
            watches: false,
            scenarios,
        })
    }

    /// Whether this machine lets the system calls of another process be counted.
    pub(super) fn try_watch(&self) -> Result<()> {
        process::capture(Command::new(&self.guard).arg("probe")).map(drop)
    }

    /// Whether this machine lets a reactor use the engine.
    pub(super) fn try_engine(&self, engine: &str) -> Result<()> {
        let mut command = Command::new(&self.guard);
        command.args(["run", "flush_qd1", "--engine", engine]);
        process::capture(&mut command).map(drop)
    }

    /// Instructions per command of all scenarios, of those that show growth with one engine only.
    pub(super) fn instructions(&self, engine: &str) -> Result<Group> {
        let scratch = tempfile::tempdir().context("no folder for temporary files")?;
        let count = |it: &&Scenario| self.count_instructions(&it.name, engine, scratch.path());
        spread(&self.wanted(engine), |it| &it.name, count)
    }

    /// System calls and allocations per command of the same scenarios.
    pub(super) fn calls(&self, engine: &str) -> Result<Group> {
        let count = |it: &&Scenario| {
            let mut command = Command::new(&self.guard);
            command.args(["run", &it.name, "--engine", engine]);
            let said = process::capture(&mut command)?;
            let commands = told(&said, "commands")?;
            let per_command = CALLS.iter().map(|&part| {
                let sum = told(&said, part)?;
                Ok((part.to_owned(), f64::from(sum) / f64::from(commands)))
            });
            per_command.collect::<Result<Parts>>()
        };
        spread(&self.wanted(engine), |it| &it.name, count)
    }

    fn wanted(&self, engine: &str) -> Vec<&Scenario> {
        let wanted = |it: &&Scenario| engine == EPOLL || !it.is_growth;
        self.scenarios.iter().filter(wanted).collect()
    }

    fn count_instructions(&self, name: &str, engine: &str, scratch: &Path) -> Result<Parts> {
        let file = scratch.join(name);
        let mut command = Command::new("valgrind");
        command
            .env("GLIBC_TUNABLES", PINNED_ROUTINES)
            .args(["--tool=callgrind", "--quiet"])
            .arg(format!("--toggle-collect={COUNTED}"))
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(&self.guard)
            .args(["run", name, "--engine", engine]);
        let said = process::capture(&mut command)?;
        let commands = f64::from(told(&said, "commands")?);
        let text = fs::read_to_string(&file)
            .with_context(|| format!("callgrind left no {}", file.display()))?;
        let sums = Instructions::read(&text);
        if sums.target == 0 {
            bail!("{name}: nothing was counted; is {COUNTED} still what the program calls?");
        }
        let parts = [
            ("target", sums.target),
            ("copies", sums.copies),
            ("checksums", sums.checksums),
        ];
        let per_command = parts.into_iter().map(|(part, sum)| {
            let sum = u32::try_from(sum).context("more instructions than a run has")?;
            Ok((part.to_owned(), f64::from(sum) / commands))
        });
        per_command.collect()
    }
}
