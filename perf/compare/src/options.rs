//! The command line, and what each command puts together.

use std::cell::Cell as Counter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;

use crate::bare::{Shape, load, serve};
use crate::cell::{Subject, Workload};
use crate::child::{ChildArguments, pin};
use crate::client::{self, Client};
use crate::environment;
use crate::goals::Goals;
use crate::hosts::HostsArguments;
use crate::meter::Meter;
use crate::process::{own_cpu_time, watch_signals};
use crate::report;
use crate::result::{Document, Program};
use crate::run::{Bench, Settings};
use crate::summary;
use crate::target::{self, Backing, Contender, Kit, SpdkVariant};
use crate::{cgroup, network};

/// Measures bowline against other targets and against bare sockets.
#[derive(Debug, Parser)]
#[command(name = "bowline-compare", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure, and write NAME.json, NAME.md and NAME.svg
    Run(Box<RunArguments>),
    /// Make the tables and the chart again, of one or several results together
    Report(ReportArguments),
    /// Hold a result against goals; exit code 1 if one is missed, or none is met
    Check(CheckArguments),
    /// What can be measured
    List,
    #[command(hide = true)]
    Child(ChildArguments),
    #[command(hide = true)]
    BareTarget(BareTargetArguments),
    #[command(hide = true)]
    BareClient(BareClientArguments),
    #[command(hide = true)]
    IdleHosts(HostsArguments),
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// What to measure, by name (see `list`); everything when absent
    #[arg(value_name = "SUBJECT", value_parser = Subject::parse)]
    subjects: Vec<Subject>,

    /// Cycles of a cell, each a pair for every comparison; fewer than 16 claim nothing
    /// [default: 48, 4 with --quick]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(2..=1000))]
    pairs: Option<u16>,

    /// A short look: 4 cycles, and nothing claimed
    #[arg(long)]
    quick: bool,

    /// Keep every slice, whatever other processes did meanwhile; nothing is claimed
    #[arg(long)]
    ungated: bool,

    /// Length of a slice in milliseconds; twice as long for a target held to half a core
    #[arg(long, value_name = "MS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice_ms: u64,

    /// Seconds after which a cell has to do with the cycles it has
    #[arg(long, value_name = "SECONDS", default_value_t = 110, value_parser = clap::value_parser!(u64).range(1..))]
    cell_seconds: u64,

    /// The bowline executable
    #[arg(long, value_name = "PATH")]
    bowline: PathBuf,

    /// What is measured of bowline: its own memory; a malloc bdev of SPDK, the engine being built
    /// in, compared with its own memory among others; or a volume of a pool on a file, compared
    /// with such a file
    #[arg(long, value_enum, default_value_t = Engine::Kernel)]
    engine: Engine,

    /// bowline's --poll
    #[arg(long, value_name = "MODE", default_value = "adaptive")]
    poll: String,

    /// The bowline-perf executable [default: searched on PATH]
    #[arg(long, value_name = "PATH")]
    perf: Option<PathBuf>,

    /// SPDK's nvmf_tgt [default: searched on PATH; without one its rows are skipped]
    #[arg(long, value_name = "PATH")]
    spdk_target: Option<PathBuf>,

    /// spdk_nvme_perf, as a second client with verdicts of its own
    #[arg(long, value_name = "PATH")]
    spdk_perf: Option<PathBuf>,

    /// Leave a contender out; may be repeated
    #[arg(long, value_name = "NAME", value_parser = ["bowline-mem", "bowline-file", "bowline-block", "spdk", "bare"])]
    without: Vec<String>,

    /// Core of the targets
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    target_core: usize,

    /// Core of the clients
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    client_core: usize,

    /// TCP congestion control; fails where it cannot be set [default: cubic where it can]
    #[arg(long, value_name = "NAME")]
    congestion_control: Option<String>,

    /// Where the files of the file and block contenders go
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,

    /// Name of the profile that bowline was built with, for the report
    #[arg(long, value_name = "NAME", default_value = "unknown")]
    profile: String,

    /// Revision that bowline was built from, for the report
    #[arg(long, value_name = "TEXT")]
    revision: Option<String>,

    #[command(flatten)]
    output: OutputArguments,

    /// Add to the result of this name instead of replacing it; it has to be of the same machine,
    /// builds and settings
    #[arg(long)]
    append: bool,

    /// Then hold the result against the goals in this file; exit code 1 if one is missed
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

/// What moves the data of the bowline that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Kernel,
    Spdk,
    Pool,
}

impl Engine {
    /// The subject's backing, and whom it is compared with besides SPDK's target.
    fn measured(self) -> (Backing, Vec<Contender>) {
        let (subject, others): (_, &[Backing]) = match self {
            Self::Kernel => (Backing::Memory, &[Backing::File, Backing::Block]),
            Self::Spdk => (Backing::Spdk, &[Backing::Memory]),
            Self::Pool => (Backing::Pool, &[Backing::File, Backing::Verify]),
        };
        let others = others.iter().copied().map(Contender::Bowline);
        (
            subject,
            [Contender::Bare].into_iter().chain(others).collect(),
        )
    }
}

#[derive(Debug, Args)]
pub(crate) struct OutputArguments {
    /// Folder of results
    #[arg(long, value_name = "DIR", default_value = "perf/results")]
    output: PathBuf,
    /// Name of the result
    #[arg(long, value_name = "NAME", default_value = "compare")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArguments {
    /// Results of the same machine, settings and versions; the later wins
    #[arg(value_name = "FILE", required = true)]
    results: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[arg(value_name = "RESULT")]
    result: PathBuf,
    #[arg(value_name = "GOALS")]
    goals: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct BareTargetArguments {
    /// Sleep while nothing comes
    #[arg(long)]
    sleeping: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BareClientArguments {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long, value_parser = parse_workload)]
    workload: Workload,
    #[arg(long)]
    block_bytes: usize,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    queue_depth: u16,
    #[arg(long)]
    digests: bool,
    /// Requests a second
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    #[arg(long)]
    warm_up_ms: u64,
    #[arg(long)]
    duration_ms: u64,
}

fn parse_workload(word: &str) -> Result<Workload, String> {
    [Workload::Read, Workload::Write]
        .into_iter()
        .find(|workload| workload.word() == word)
        .ok_or_else(|| "read or write".to_owned())
}

/// Measures.
pub(crate) fn run(arguments: &RunArguments) -> Result<bool> {
    let goals = arguments.check.as_deref().map(Goals::read).transpose()?;
    let network = network::enter(arguments.congestion_control.as_deref())?;
    watch_signals()?;
    cgroup::sweep();
    let environment = environment::describe(
        network,
        arguments.target_core,
        arguments.client_core,
        &arguments.profile,
        arguments.revision.as_deref(),
        environment::Settings {
            poll: arguments.poll.clone(),
            slice_ms: arguments.slice_ms,
            gated: !arguments.ungated,
        },
    );
    pin(arguments.client_core)?;
    let mut bench = bench(arguments)?;
    let programs = programs(&bench)?;
    let json = arguments
        .output
        .output
        .join(format!("{}.json", arguments.output.name));
    let mut document = bench.document(&environment, &programs);
    if arguments.append && json.exists() {
        let newer = document;
        document = Document::read(&json)?;
        document.merge(newer)?;
    }
    let subjects = subjects(arguments, &bench)?;
    for subject in subjects {
        eprintln!("measuring {}", subject.name());
        let mut part = bench.document(&environment, &programs);
        measure(&mut bench, subject, &mut part)?;
        part.skipped.clone_from(&bench.skipped);
        document.merge(part)?;
        report::write(&document, &arguments.output.output, &arguments.output.name)?;
    }
    report::print(&document, &arguments.output.name);
    Ok(goals.is_none_or(|goals| goals.check(&document)))
}

/// What was asked for, or everything that there is of this engine.
fn subjects(arguments: &RunArguments, bench: &Bench) -> Result<Vec<Subject>> {
    let has_pool = bench.subject.is_pool();
    let is_there = |subject: &Subject| has_pool || !subject.needs_pool();
    if arguments.subjects.is_empty() {
        return Ok(Subject::all().into_iter().filter(is_there).collect());
    }
    if let Some(subject) = arguments.subjects.iter().find(|it| !is_there(it)) {
        bail!("{} needs --engine pool", subject.name());
    }
    Ok(arguments.subjects.clone())
}

fn measure(bench: &mut Bench, subject: Subject, part: &mut Document) -> Result<()> {
    match subject {
        Subject::Cell(cell) => {
            if cell.half_core
                && let Err(error) = cgroup::HalfCore::new("probe")
            {
                bench.skip(&cell.name(), &format!("{error:#}"));
                return Ok(());
            }
            part.cells = bench.cell(&cell)?;
        }
        Subject::Idle => part.idle = bench.idle()?,
        Subject::FirstIo => part.first_io = bench.first_io()?,
        Subject::Memory => part.memory = bench.memory()?,
        Subject::SnapshotPause | Subject::Volumes | Subject::Recovery => {
            part.pool = bench.pool(subject)?;
        }
    }
    Ok(())
}

fn bench(arguments: &RunArguments) -> Result<Bench> {
    let quick = arguments.quick;
    let without = |name: &str| arguments.without.iter().any(|one| one == name);
    let mut clients = Vec::new();
    let own = client::find(arguments.perf.as_deref(), "bowline-perf");
    if let Ok(path) = &own {
        clients.push(Client::Bowline(path.clone()));
    }
    if let Some(path) = &arguments.spdk_perf {
        let found = client::find(Some(path), "spdk_nvme_perf").map_err(anyhow::Error::msg)?;
        clients.push(Client::Spdk(found));
    }
    if clients.is_empty() {
        bail!("no client: {}", own.err().unwrap_or_default());
    }
    let (subject, others) = arguments.engine.measured();
    // The subject has a twin.
    let own_spdk = if subject == Backing::Spdk { 2 } else { 0 };
    let spdk = client::find(arguments.spdk_target.as_deref(), "nvmf_tgt");
    let settings = Settings {
        pairs: usize::from(arguments.pairs.unwrap_or(if quick { 4 } else { 48 })),
        slice: Duration::from_millis(arguments.slice_ms),
        warm_up: Duration::from_millis(40),
        cell_limit: Duration::from_secs(arguments.cell_seconds),
        idle: Duration::from_secs(if quick { 5 } else { 60 }),
        alternations: if quick { 2 } else { 5 },
        unclaimed: match (quick, arguments.ungated) {
            (true, _) => Some("a short look"),
            (false, true) => Some("ungated"),
            (false, false) => None,
        },
    };
    let mut bench = Bench {
        kit: Kit {
            bowline: arguments.bowline.clone(),
            poll: arguments.poll.clone(),
            spdk: None,
            core: arguments.target_core,
            scratch: arguments.scratch.clone(),
            huge_pages: target::huge_pages_suffice(SpdkVariant::POLLING.len() + own_spdk),
        },
        subject,
        meter: Meter {
            target_core: arguments.target_core,
            client_core: arguments.client_core,
            gated: !arguments.ungated,
        },
        settings,
        clients,
        others: others
            .into_iter()
            .filter(|contender| !without(&contender.name()))
            .collect(),
        spdk: Vec::new(),
        skipped: Vec::new(),
        slices: Counter::new(0),
    };
    match spdk {
        Ok(_) if without("spdk") => {}
        Ok(path) => {
            bench.kit.spdk = Some(path);
            bench.spdk = SpdkVariant::POLLING.to_vec();
        }
        Err(why) if arguments.spdk_target.is_some() => bail!("{why}"),
        Err(why) => bench.skip("spdk", &why),
    }
    Ok(bench)
}

/// What each program says its version is.
fn programs(bench: &Bench) -> Result<Vec<Program>> {
    let mut programs = vec![Program {
        role: "bowline".to_owned(),
        version: version(&bench.kit.bowline)?,
    }];
    if let Some(path) = &bench.kit.spdk {
        let pages = if bench.kit.huge_pages {
            "huge pages"
        } else {
            "no huge pages"
        };
        programs.push(Program {
            role: "nvmf_tgt".to_owned(),
            version: format!("{}, {pages}", version(path)?),
        });
    }
    Ok(programs)
}

fn version(program: &Path) -> Result<String> {
    let output = std::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().next().unwrap_or("unknown").trim().to_owned())
}

/// Puts results together.
pub(crate) fn report(arguments: &ReportArguments) -> Result<bool> {
    let mut documents = arguments.results.iter().map(|path| Document::read(path));
    let mut document = documents.next().context("no results")??;
    for other in documents {
        document.merge(other?)?;
    }
    document.judge();
    report::write(&document, &arguments.output.output, &arguments.output.name)?;
    report::print(&document, &arguments.output.name);
    Ok(true)
}

/// Holds a result against goals.
pub(crate) fn check(arguments: &CheckArguments) -> Result<bool> {
    let goals = Goals::read(&arguments.goals)?;
    let document = Document::read(&arguments.result)?;
    Ok(goals.check(&document))
}

/// The bare sockets' server.
pub(crate) fn bare_target(arguments: &BareTargetArguments) -> Result<()> {
    serve::run(if arguments.sleeping {
        serve::Waiting::Sleeping
    } else {
        serve::Waiting::Spinning
    })
}

/// The bare sockets' client, which answers as bowline-perf does.
pub(crate) fn bare_client(arguments: &BareClientArguments) -> Result<()> {
    let plan = load::Plan {
        address: arguments.address,
        shape: Shape {
            workload: arguments.workload,
            digests: arguments.digests,
            block_bytes: arguments.block_bytes,
        },
        queue_depth: usize::from(arguments.queue_depth),
        interval: arguments.rate.map(|rate| Duration::from_secs(1) / rate),
        warm_up: Duration::from_millis(arguments.warm_up_ms),
        duration: Duration::from_millis(arguments.duration_ms),
    };
    let outcome = load::run(&plan).context("bare sockets")?;
    let seconds = outcome.elapsed.as_secs_f64();
    let iops = outcome.commands as f64 / seconds;
    let histogram = &outcome.histogram;
    let answer = json!({
        "schema_version": 1,
        "iops": iops,
        "bytes_per_second": iops * arguments.block_bytes as f64,
        "latency_ns": {
            "p50": histogram.value_at_quantile(0.5),
            "p99": histogram.value_at_quantile(0.99),
            "p99_9": histogram.value_at_quantile(0.999),
        },
        "client_cpu_seconds": own_cpu_time()?.as_secs_f64(),
        "commands": outcome.commands,
        "errors": 0,
        "histogram": summary::encode(histogram)?,
    });
    println!("{answer}");
    Ok(())
}
