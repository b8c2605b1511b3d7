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

struct Scenario {
    name: String,
    /// There to be compared with a smaller one.
    is_growth: bool,
}

/// What is run, built.
pub(super) struct Programs {
    pub(super) bowline: PathBuf,
    pub(super) guard: PathBuf,
    scenarios: Vec<Scenario>,
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
            scenarios,
        })
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
        let wanted = |it: &&Scenario| engine == EPOLL || !it.is_growth;
        let wanted: Vec<&Scenario> = self.scenarios.iter().filter(wanted).collect();
        let count = |it: &&Scenario| self.count(&it.name, engine, scratch.path());
        spread(&wanted, |it| &it.name, count)
    }

    fn count(&self, name: &str, engine: &str, scratch: &Path) -> Result<Parts> {
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
        let commands: f64 = said
            .strip_prefix("commands ")
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("{name} did not say how many commands it ran: {said}"))?;
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
