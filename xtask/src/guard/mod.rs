//! The guard against slow decay: what a command costs in figures that do not depend on the clock,
//! held against those on file. perf/guard/README.md says what is counted and how to renew it.

mod callgrind;
mod data_plane;
mod figures;
mod growth;
mod script;
mod tools;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::tally::{Tally, seconds};
use crate::workspace::Workspace;

use data_plane::Medium;
use figures::{Changes, Figures, Group, MadeWith, Parts};
use script::Programs;
use tools::Tools;

/// Where figures are kept, relative to the root.
const FILE: &str = "perf/results/guard.toml";
/// What is made of them for people.
const GROWTH: &str = "perf/results/GROWTH.md";
/// The profile that is counted, which is the one that everything is tested with.
const PROFILE: &str = "release";

/// Every machine has it; growth is shown with it.
const EPOLL: &str = "epoll";
/// What containers often forbid.
const URING: &str = "uring";

pub(crate) fn run(workspace: &Workspace, tally: &mut Tally, renew: bool) {
    if !cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
        return tally.unavailable("perf guard", &"figures are of x86-64 with glibc");
    }
    let tools = Tools::find(tally);
    let mut built = None;
    tally.check("perf guard: build", || {
        built = Some(Programs::build(workspace)?);
        Ok(())
    });
    let Some(mut programs) = built else {
        return;
    };
    match programs.try_watch() {
        Ok(()) => programs.watches = true,
        Err(why) => {
            let name = "perf guard: system calls as the kernel counts them";
            tally.skipped(name, &format!("{why:#}"));
        }
    }
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
    let found = Counting {
        programs: &programs,
        tools,
        filed: filed.as_ref(),
    }
    .count(tally);
    let group = |kind: String| found.groups.get(&kind);
    let epoll = group(instructions_with(EPOLL)).zip(group(calls_with(EPOLL)));
    if let Some((instructions, calls)) = epoll {
        tally.check("perf guard: growth", || {
            none(&growth::broken(instructions, calls))
        });
    }
    tally.check("perf guard: system calls", || {
        none(&data_plane::beyond_limits(|engine, medium| {
            found.syscalls.get(&syscalls_with(engine, medium))
        }))
    });
    let table = workspace.root().join(GROWTH);
    if renew {
        tally.check("perf guard: renew", || write(&path, &table, found.groups));
    } else {
        compare(filed.as_ref(), &found.groups, tally);
        if let Some(filed) = &filed {
            tally.check("perf guard: table of growth", || check_table(&table, filed));
        }
    }
}

fn none(broken: &[String]) -> Result<()> {
    if broken.is_empty() {
        return Ok(());
    }
    bail!("\n  {}", broken.join("\n  "))
}

/// What was counted.
#[derive(Default)]
struct Found {
    /// What the file holds, by kind.
    groups: BTreeMap<String, Group>,
    /// All system calls of the real process, also those that only limits hold.
    syscalls: BTreeMap<String, Group>,
}

/// What is counted, and with what.
struct Counting<'a> {
    programs: &'a Programs,
    tools: Tools,
    filed: Option<&'a Figures>,
}

impl Counting<'_> {
    /// Everything that can be counted here.
    fn count(&self, tally: &mut Tally) -> Found {
        let mut found = Found::default();
        for engine in [EPOLL, URING] {
            match self.programs.try_engine(engine) {
                Ok(()) => self.count_engine(engine, &mut found, tally),
                Err(why) => {
                    let name = format!("perf guard: {engine}");
                    if engine == URING {
                        tally.unavailable(&name, &format!("{why:#}"));
                    } else {
                        tally.failed(&name, &format!("{why:#}"));
                    }
                }
            }
        }
        found
    }

    fn count_engine(&self, engine: &str, found: &mut Found, tally: &mut Tally) {
        let programs = self.programs;
        let filed = |kind: &str| self.filed.and_then(|filed| filed.figures.get(kind));
        let mut take = |kind: String, count: &dyn Fn() -> Result<Group>| {
            let started = Instant::now();
            match count() {
                Ok(group) => {
                    println!("{kind}: counted in {}", seconds(started.elapsed()));
                    Some((kind, group))
                }
                Err(why) => {
                    tally.failed(&format!("perf guard: {kind}"), &format!("{why:#}"));
                    None
                }
            }
        };
        let calls = take(calls_with(engine), &|| programs.calls(engine));
        found.groups.extend(calls);
        if self.tools.valgrind {
            let kind = instructions_with(engine);
            let instructions = take(kind, &|| programs.instructions(engine));
            found.groups.extend(instructions);
        }
        for medium in Medium::ALL {
            let kind = syscalls_with(engine, medium);
            if self.tools.taskset
                && let Some((kind, mut group)) = take(kind.clone(), &|| {
                    programs.syscalls(engine, medium, filed(&kind))
                })
            {
                found.syscalls.insert(kind.clone(), group.clone());
                data_plane::take_unsteady(engine, medium, &mut group);
                found.groups.insert(kind, group);
            }
            if self.tools.valgrind && engine == EPOLL {
                let kind = format!("allocations_{engine}_{}", medium.name());
                let count = || programs.allocations(medium, filed(&kind));
                let allocations = take(kind.clone(), &count);
                found.groups.extend(allocations);
            }
        }
    }
}

/// The name of a group of figures.
fn instructions_with(engine: &str) -> String {
    format!("instructions_{engine}")
}

/// The name of a group of figures.
fn calls_with(engine: &str) -> String {
    format!("calls_{engine}")
}

/// The name of a group of figures.
fn syscalls_with(engine: &str, medium: Medium) -> String {
    format!("syscalls_{engine}_{}", medium.name())
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
fn write(path: &Path, table: &Path, mut found: BTreeMap<String, Group>) -> Result<()> {
    let made_with = made_with()?;
    let mut figures = match Figures::read(path) {
        Ok(figures) if figures.made_with == made_with => figures,
        _ => Figures {
            made_with,
            figures: BTreeMap::new(),
        },
    };
    data_plane::keep_kernels_count(&figures.figures, &mut found);
    figures.figures.extend(found);
    figures.write(path)?;
    // What holds the tables is asked for again when the file is.
    let Some(text) = growth::table(&figures) else {
        return Ok(());
    };
    fs::write(table, text).with_context(|| format!("cannot write {}", table.display()))
}

fn check_table(path: &Path, filed: &Figures) -> Result<()> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the tables in {}", path.display()))?;
    if growth::table(filed) != Some(text) {
        bail!("{GROWTH} is not made of the figures in {FILE}: cargo xtask perf guard --renew");
    }
    Ok(())
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
                "\n  {}\n  where: perf/guard/README.md says how to look at a scenario; what has to \
                 cost more is renewed in the same commit: cargo xtask perf guard --renew",
                changes.worse.join("\n  ")
            )
        });
    }
}
