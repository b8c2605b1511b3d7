//! The guard against slow decay: what a command costs in figures that do not depend on the clock,
//! held against those on file. perf/guard/README.md says what is counted and how to renew it.

mod callgrind;
mod figures;
mod growth;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;
use std::{fs, thread};

use anyhow::{Context, Result, bail};

use crate::tally::{Tally, seconds};
use crate::workspace::Workspace;
use crate::{debian, process};

use callgrind::Instructions;
use figures::{Changes, Figures, Group, MadeWith, Parts};

/// Where figures are kept, relative to the root.
const FILE: &str = "perf/results/guard.toml";
/// The profile that is counted, which is the one that everything is tested with.
const PROFILE: &str = "release";
/// Functions whose instructions are counted.
const COUNTED: &str = "*counted_*";
/// The C library's choice of copying routines is pinned to what every x86-64 processor has:
/// otherwise it goes by the processor, and by the size of its caches. Callgrind itself shows
/// programs the same features everywhere but for AVX.
const PINNED_ROUTINES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM:\
    glibc.cpu.x86_non_temporal_threshold=1073741824";

/// Every machine has it; growth is shown with it.
const EPOLL: &str = "epoll";
/// What containers often forbid.
const URING: &str = "uring";

pub(crate) fn run(workspace: &Workspace, tally: &mut Tally, renew: bool) {
    if let Err(why) = valgrind() {
        return tally.unavailable("perf guard", &format!("{why:#}"));
    }
    let mut guard = None;
    let built = tally.check("perf guard: build", || {
        guard = Some(Guard::build(workspace)?);
        Ok(())
    });
    let (true, Some(guard)) = (built, guard) else {
        return;
    };
    let mut found = BTreeMap::new();
    for engine in [EPOLL, URING] {
        let name = format!("perf guard: instructions with {engine}");
        if let Err(why) = guard.try_engine(engine)
            && engine == URING
        {
            tally.unavailable(&name, &format!("{why:#}"));
            continue;
        }
        let started = Instant::now();
        match guard.instructions(engine) {
            Ok(group) => {
                found.insert(instructions_with(engine), group);
                println!("{name}: counted in {}", seconds(started.elapsed()));
            }
            Err(why) => tally.failed(&name, &format!("{why:#}")),
        }
    }
    if let Some(group) = found.get(&instructions_with(EPOLL)) {
        tally.check("perf guard: growth", || {
            let broken = growth::broken(group);
            if broken.is_empty() {
                return Ok(());
            }
            bail!("\n  {}", broken.join("\n  "))
        });
    }
    let path = workspace.root().join(FILE);
    if renew {
        tally.check("perf guard: renew", || write(&path, found));
    } else {
        compare(&path, &found, tally);
    }
}

/// The name of a group of figures.
fn instructions_with(engine: &str) -> String {
    format!("instructions_{engine}")
}

/// Callgrind, installed if need be.
fn valgrind() -> Result<()> {
    if !cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
        bail!("figures are of x86-64 with glibc");
    }
    if process::find_program("valgrind").is_some() {
        return Ok(());
    }
    match debian::unusable() {
        Some(why) => bail!("valgrind is not here, and {why}"),
        // Valgrind needs the symbols of the C library's loader.
        None => debian::install(&["valgrind", "libc6-dbg"]),
    }
}

struct Scenario {
    name: String,
    /// There to be compared with a smaller one.
    is_growth: bool,
}

/// The scripted program, built.
struct Guard {
    program: PathBuf,
    scenarios: Vec<Scenario>,
}

impl Guard {
    fn build(workspace: &Workspace) -> Result<Self> {
        process::run(&mut workspace.cargo(&[
            "build",
            "--quiet",
            "--locked",
            "--profile",
            PROFILE,
            "--package",
            "bowline-guard",
        ]))?;
        let program = workspace.target().join(PROFILE).join("bowline-guard");
        let listing = process::capture(Command::new(&program).arg("list"))?;
        let scenarios = listing.lines().map(|line| {
            let (name, kind) = line.split_once(' ').context("a list of another form")?;
            Ok(Scenario {
                name: name.to_owned(),
                is_growth: kind == "growth",
            })
        });
        let scenarios = scenarios.collect::<Result<_>>()?;
        Ok(Self { program, scenarios })
    }

    /// Whether this machine lets a reactor use the engine.
    fn try_engine(&self, engine: &str) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["run", "flush_qd1", "--engine", engine]);
        process::capture(&mut command).map(drop)
    }

    /// Instructions per command of all scenarios, of those that show growth with one engine only.
    fn instructions(&self, engine: &str) -> Result<Group> {
        let scratch = tempfile::tempdir().context("no folder for temporary files")?;
        let wanted = |it: &&Scenario| engine == EPOLL || !it.is_growth;
        let next = Mutex::new(self.scenarios.iter().filter(wanted));
        let found = Mutex::new(Group::new());
        let work = || -> Result<()> {
            loop {
                // A panic elsewhere ends the whole scope.
                let Some(Scenario { name, .. }) = next.lock().ok().and_then(|mut next| next.next())
                else {
                    return Ok(());
                };
                let parts = self.count(name, engine, scratch.path())?;
                if let Ok(mut found) = found.lock() {
                    found.insert(name.clone(), parts);
                }
            }
        };
        thread::scope(|scope| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
            let ended = workers.into_iter().map(|worker| match worker.join() {
                Ok(ended) => ended,
                Err(_) => bail!("counting panicked"),
            });
            ended.collect::<Result<()>>()
        })?;
        found.into_inner().ok().context("counting panicked")
    }

    fn count(&self, name: &str, engine: &str, scratch: &Path) -> Result<Parts> {
        let file = scratch.join(name);
        let mut command = Command::new("valgrind");
        command
            .env("GLIBC_TUNABLES", PINNED_ROUTINES)
            .args(["--tool=callgrind", "--quiet"])
            .arg(format!("--toggle-collect={COUNTED}"))
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(&self.program)
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

fn made_with() -> Result<MadeWith> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = process::capture(Command::new(rustc).arg("--version"))?;
    let version = version.split_whitespace().nth(1).context("no version")?;
    Ok(MadeWith {
        profile: PROFILE.to_owned(),
        rustc: version.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
    })
}

/// Replaces what was counted; what this machine cannot count stays.
fn write(path: &Path, found: BTreeMap<String, Group>) -> Result<()> {
    let made_with = made_with()?;
    let mut figures = match Figures::read(path) {
        Ok(figures) if figures.made_with == made_with => figures,
        _ => Figures {
            made_with,
            figures: BTreeMap::new(),
        },
    };
    figures.figures.extend(found);
    figures.write(path)
}

fn compare(path: &Path, found: &BTreeMap<String, Group>, tally: &mut Tally) {
    let filed = match (Figures::read(path), made_with()) {
        (Ok(filed), Ok(here)) if filed.made_with == here => filed,
        (Ok(filed), Ok(here)) => {
            let why = format!(
                "figures are of {:?}, this is {here:?}: renew them with `cargo xtask perf guard \
                 --renew` before anything else changes",
                filed.made_with
            );
            return tally.unavailable("perf guard: figures", &why);
        }
        (Err(error), _) | (_, Err(error)) => {
            return tally.failed("perf guard: figures", &format!("{error:#}"));
        }
    };
    for (kind, group) in found {
        let none = Group::new();
        let changes = Changes::between(filed.figures.get(kind).unwrap_or(&none), group);
        for line in &changes.better {
            println!("fell    {kind} {line}");
        }
        if !changes.better.is_empty() {
            println!("        keep what was won: cargo xtask perf guard --renew");
        }
        tally.check(&format!("perf guard: {kind} against the file"), || {
            if changes.worse.is_empty() {
                return Ok(());
            }
            bail!(
                "\n  {}\n  what has to cost more is renewed: cargo xtask perf guard --renew",
                changes.worse.join("\n  ")
            )
        });
    }
}
