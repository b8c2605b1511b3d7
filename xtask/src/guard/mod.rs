//! The guard against slow decay: what a command costs in figures that do not depend on the clock,
//! held against those on file. perf/guard/README.md says what is counted and how to renew it.

mod callgrind;
mod data_plane;
mod figures;
mod growth;
mod script;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::tally::{Tally, seconds};
use crate::workspace::Workspace;
use crate::{debian, process};

use data_plane::Medium;
use figures::{Changes, Figures, Group, MadeWith, Parts};
use script::Programs;

/// Where figures are kept, relative to the root.
const FILE: &str = "perf/results/guard.toml";
/// The profile that is counted, which is the one that everything is tested with.
const PROFILE: &str = "release";

/// Every machine has it; growth is shown with it.
const EPOLL: &str = "epoll";
/// What containers often forbid.
const URING: &str = "uring";

pub(crate) fn run(workspace: &Workspace, tally: &mut Tally, renew: bool) {
    if let Err(why) = valgrind() {
        return tally.unavailable("perf guard", &format!("{why:#}"));
    }
    let mut built = None;
    tally.check("perf guard: build", || {
        built = Some(Programs::build(workspace)?);
        Ok(())
    });
    let Some(programs) = built else {
        return;
    };
    let path = workspace.root().join(FILE);
    // To be written anew, or not there yet: nothing is held against it.
    let filed = if renew {
        None
    } else {
        match filed(&path) {
            Ok(filed) => filed,
            Err(error) => return tally.failed("perf guard: figures", &format!("{error:#}")),
        }
    };
    let found = count(&programs, filed.as_ref(), tally);
    if let Some(group) = found.get(&instructions_with(EPOLL)) {
        tally.check("perf guard: growth", || {
            let broken = growth::broken(group);
            if broken.is_empty() {
                return Ok(());
            }
            bail!("\n  {}", broken.join("\n  "))
        });
    }
    if let Some(group) = found.get(&syscalls_with(URING, Medium::Memory)) {
        tally.check("perf guard: system calls", || {
            let beyond = data_plane::beyond_limits(group);
            if beyond.is_empty() {
                return Ok(());
            }
            bail!("\n  {}", beyond.join("\n  "))
        });
    }
    if renew {
        tally.check("perf guard: renew", || write(&path, found));
    } else {
        compare(filed.as_ref(), &found, tally);
    }
}

/// Everything that can be counted here, by group.
fn count(
    programs: &Programs,
    filed: Option<&Figures>,
    tally: &mut Tally,
) -> BTreeMap<String, Group> {
    let mut found = BTreeMap::new();
    for engine in [EPOLL, URING] {
        if let Err(why) = programs.try_engine(engine) {
            let name = format!("perf guard: {engine}");
            if engine == URING {
                tally.unavailable(&name, &format!("{why:#}"));
            } else {
                tally.failed(&name, &format!("{why:#}"));
            }
            continue;
        }
        let mut take = |kind: String, count: &dyn Fn() -> Result<Group>| {
            let started = Instant::now();
            match count() {
                Ok(group) => {
                    println!("{kind}: counted in {}", seconds(started.elapsed()));
                    found.insert(kind, group);
                }
                Err(why) => tally.failed(&format!("perf guard: {kind}"), &format!("{why:#}")),
            }
        };
        take(instructions_with(engine), &|| programs.instructions(engine));
        for medium in Medium::ALL {
            let kind = syscalls_with(engine, medium);
            let known = filed.and_then(|filed| filed.figures.get(&kind));
            take(kind, &|| programs.syscalls(engine, medium, known));
            if engine == EPOLL {
                let kind = format!("allocations_{engine}_{}", medium.name());
                let known = filed.and_then(|filed| filed.figures.get(&kind));
                take(kind, &|| programs.allocations(medium, known));
            }
        }
    }
    found
}

/// The name of a group of figures.
fn instructions_with(engine: &str) -> String {
    format!("instructions_{engine}")
}

/// The name of a group of figures.
fn syscalls_with(engine: &str, medium: Medium) -> String {
    format!("syscalls_{engine}_{}", medium.name())
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

/// Does `work` for every item, as many at a time as there are cores, and collects what it gives.
fn spread<T: Sync>(
    items: &[T],
    name: impl Fn(&T) -> &str + Sync,
    work: impl Fn(&T) -> Result<Parts> + Sync,
) -> Result<Group> {
    let next = Mutex::new(items.iter());
    let found = Mutex::new(Group::new());
    let worker = || -> Result<()> {
        loop {
            // A panic elsewhere ends the whole scope.
            let Some(item) = next.lock().ok().and_then(|mut next| next.next()) else {
                return Ok(());
            };
            let parts = work(item).with_context(|| name(item).to_owned())?;
            if let Ok(mut found) = found.lock() {
                found.insert(name(item).to_owned(), parts);
            }
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().map(|worker| match worker.join() {
            Ok(ended) => ended,
            Err(_) => bail!("counting panicked"),
        });
        ended.collect::<Result<()>>()
    })?;
    found.into_inner().ok().context("counting panicked")
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

/// The figures on file, if they are of what is counted here.
fn filed(path: &Path) -> Result<Option<Figures>> {
    let (filed, here) = (Figures::read(path)?, made_with()?);
    Ok((filed.made_with == here).then_some(filed))
}

fn compare(filed: Option<&Figures>, found: &BTreeMap<String, Group>, tally: &mut Tally) {
    let Some(filed) = filed else {
        let why = "the file is of another compiler or architecture: renew it with `cargo xtask \
                   perf guard --renew` before anything else changes";
        return tally.unavailable("perf guard: figures", &why);
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
