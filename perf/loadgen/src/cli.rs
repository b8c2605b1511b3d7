//! The command line of `bowline-perf`.

use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;

use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_reactor::IoBackend;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::arrivals::Spacing;
use crate::error::PerfError;
use crate::fio::{self, FioFlags};
use crate::job::{Job, Load, Pace, Poll, Workload};
use crate::pattern::Pattern;
use crate::progress::Progress;
use crate::report::Report;
use crate::runner;
use crate::units::{parse_size, parse_span};

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed (also when a command failed), 2 wrong usage. Results go to stdout, \
all else to stderr.";

/// Load on NVMe/TCP subsystems, and what came of it.
#[derive(Debug, Parser)]
#[command(name = "bowline-perf", version, max_term_width = 100, after_help = AFTER_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<RunFlags>),
    Fio(FioFlags),
    Ceiling(CeilingFlags),
}

/// Drive a namespace, and measure.
///
/// Latency is taken from turn to turn of the client's event loop, whose clock is read once per
/// turn. In a closed loop (without --rate) it is service time: a target that stalls is sent less.
/// In an open loop (--rate) it is counted from the moment a command was to start, whether or not
/// it could: nothing is left out when the target stalls.
#[derive(Debug, Args)]
struct RunFlags {
    /// Where the subsystem listens: an address or name, and a port
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// Name of the subsystem
    #[arg(long, value_name = "NQN")]
    subsystem: String,
    /// Name of this host [default: one made up for this run]
    #[arg(long, value_name = "NQN")]
    host_nqn: Option<String>,
    /// Namespace to use
    #[arg(long, value_name = "ID", default_value_t = 1)]
    namespace: u32,
    /// Checksums over PDU headers
    #[arg(long)]
    header_digest: bool,
    /// Checksums over data
    #[arg(long)]
    data_digest: bool,
    /// What moves bytes
    #[arg(long, value_enum, default_value_t = IoFlag::Auto)]
    io: IoFlag,
    #[command(flatten)]
    load: LoadFlags,
    #[command(flatten)]
    output: OutputFlags,
}

/// Drive a controller in this process that does nothing: what this client can drive at most.
///
/// The responder is a second thread on the same machine, connected over loopback, that answers
/// every command at once and looks at none. What comes out is the ceiling of the client: a target
/// that comes near it is not measured, the client is.
#[derive(Debug, Args)]
struct CeilingFlags {
    #[command(flatten)]
    load: LoadFlags,
    /// Core for the responder [default: any]
    #[arg(long, value_name = "NUMBER")]
    responder_core: Option<usize>,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Debug, Args)]
struct LoadFlags {
    /// Which commands
    #[arg(long, value_enum, default_value_t = WorkloadFlag::Read)]
    workload: WorkloadFlag,
    /// Of a hundred commands of a mixed workload, this many are reads [default: 70]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    read_percent: Option<u8>,
    /// Where: sequential, random, zipf, zipf:EXPONENT, or every:BLOCKS, the first block of each
    /// group of so many, in scattered order, then the second of each
    #[arg(long, default_value = "random")]
    pattern: Pattern,
    /// Bytes of one command
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = parse_size)]
    block_size: u64,
    /// Commands outstanding on each queue
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    queue_depth: u16,
    /// Associations, each with a controller of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    connections: u16,
    /// I/O queues (TCP connections) of each association
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    queues: u16,
    /// Open loop: commands to start per second, however the target fares [default: closed loop]
    #[arg(long, value_name = "IOPS", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rate: Option<u64>,
    /// How the commands of an open loop are spaced [default: constant]
    #[arg(long, value_enum, requires = "rate")]
    arrivals: Option<ArrivalsFlag>,
    /// Part of the namespace to use, from its start [default: all]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    span: Option<u64>,
    /// Write blocks that describe themselves and check every block that is read, during the run and
    /// after it; the span is filled first if the workload reads. Nobody else may write meanwhile
    #[arg(long)]
    verify: bool,
    /// Time before counting begins
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = parse_span)]
    warm_up: Nanos,
    /// Time that is counted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_span)]
    duration: Nanos,
    /// Count exactly so many commands instead, however long they take: for figures per command from
    /// programs that look at the whole process. Those of the warm-up come on top
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["duration", "rate"])]
    commands: Option<u64>,
    /// Core to run on [default: any]
    #[arg(long, value_name = "NUMBER")]
    core: Option<usize>,
    /// What the client does while it waits: spin takes a whole core, park adds the time to wake up,
    /// doze sleeps for short times by the clock, for larger batches
    #[arg(long, value_enum, default_value_t = PollFlag::Spin)]
    poll: PollFlag,
    /// Decides addresses, mix and arrivals: the same seed gives the same ones
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct OutputFlags {
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t = OutputFlag::Table)]
    pub(crate) output: OutputFlag,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WorkloadFlag {
    Read,
    Write,
    Mixed,
    Deallocate,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArrivalsFlag {
    Constant,
    Poisson,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PollFlag {
    Spin,
    Park,
    Doze,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum IoFlag {
    Auto,
    Uring,
    Epoll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFlag {
    Table,
    Json,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(flags) => run(&flags),
        Command::Fio(flags) => fio::run(&flags),
        Command::Ceiling(flags) => ceiling(&flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if stderr is gone.
            let _ = writeln!(std::io::stderr(), "{error}");
            error.exit_code()
        }
    }
}

fn run(flags: &RunFlags) -> Result<(), PerfError> {
    let job = flags.job()?;
    let mut progress = Progress::on_terminal();
    let report = runner::run(&job, &mut progress);
    drop(progress);
    show(&report?, flags.output.output)
}

fn ceiling(flags: &CeilingFlags) -> Result<(), PerfError> {
    let load = flags.load.load()?;
    if load.verify {
        return Err(PerfError::usage("--verify given for the ceiling")
            .cause("the null responder keeps no data")
            .hint("leave --verify out, or use `bowline-perf run` with a target"));
    }
    let mut progress = Progress::on_terminal();
    let report = runner::ceiling(&load, flags.responder_core, &mut progress);
    drop(progress);
    show(&report?, flags.output.output)
}

fn show(report: &Report, form: OutputFlag) -> Result<(), PerfError> {
    print(&match form {
        OutputFlag::Table => report.table(),
        OutputFlag::Json => json(report)?,
    })?;
    report
        .failure()
        .map_or(Ok(()), |what| Err(PerfError::failed(what)))
}

pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, PerfError> {
    let text = serde_json::to_string_pretty(value);
    let text =
        text.map_err(|error| PerfError::failed("the result has no JSON form").cause(error))?;
    Ok(text + "\n")
}

pub(crate) fn print(text: &str) -> Result<(), PerfError> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|error| PerfError::failed("the result cannot be printed").cause(error))
}

impl RunFlags {
    fn job(&self) -> Result<Job, PerfError> {
        let load = self.load.load()?;
        let (host, host_id) = host(self.host_nqn.as_deref())?;
        Ok(Job {
            address: resolve(&self.address)?,
            subsystem: nqn("--subsystem", &self.subsystem)?,
            host,
            host_id,
            namespace: NamespaceId(self.namespace),
            digests: Digests {
                header: self.header_digest,
                data: self.data_digest,
            },
            io: match self.io {
                IoFlag::Auto => IoBackend::Auto,
                IoFlag::Uring => IoBackend::Uring,
                IoFlag::Epoll => IoBackend::Epoll,
            },
            load,
        })
    }
}

impl LoadFlags {
    fn load(&self) -> Result<Load, PerfError> {
        let workload = match (self.workload, self.read_percent) {
            (WorkloadFlag::Mixed, percent) => Workload::Mixed {
                read_percent: percent.unwrap_or(70),
            },
            (WorkloadFlag::Read, None) => Workload::Read,
            (WorkloadFlag::Write, None) => Workload::Write,
            (WorkloadFlag::Deallocate, None) => Workload::Deallocate,
            (_, Some(_)) => {
                return Err(
                    PerfError::usage("--read-percent given without a mixed workload")
                        .cause("a workload of reads or writes alone has nothing to mix")
                        .hint("add --workload mixed, or leave --read-percent out"),
                );
            }
        };
        let spacing = match self.arrivals {
            None | Some(ArrivalsFlag::Constant) => Spacing::Constant,
            Some(ArrivalsFlag::Poisson) => Spacing::Poisson,
        };
        let load = Load {
            workload,
            pattern: self.pattern,
            pace: self.rate.map_or(Pace::Closed, |per_second| Pace::Open {
                per_second,
                spacing,
            }),
            // What does not fit is too large in any case; `check` says so.
            block_bytes: u32::try_from(self.block_size).unwrap_or(0xFFFF_FE00),
            queue_depth: self.queue_depth,
            connections: self.connections,
            queues: self.queues,
            warm_up: self.warm_up,
            duration: self.duration,
            commands: self.commands,
            poll: match self.poll {
                PollFlag::Spin => Poll::Spin,
                PollFlag::Park => Poll::Park,
                PollFlag::Doze => Poll::Doze,
            },
            core: self.core,
            seed: self.seed,
            span_bytes: self.span,
            verify: self.verify,
        };
        load.check()?;
        Ok(load)
    }
}

fn nqn(flag: &str, text: &str) -> Result<Nqn, PerfError> {
    Nqn::new(text).map_err(|error| {
        PerfError::usage(format!("{text:?} is no name for {flag}"))
            .cause(error)
            .hint("names look like nqn.2026-11.com.example:storage")
    })
}

/// The name and the identifier of this host. A name that is made of a UUID goes with that UUID.
fn host(given: Option<&str>) -> Result<(Nqn, [u8; 16]), PerfError> {
    const PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";
    let fresh = uuid::Uuid::new_v4();
    let name = given.map_or_else(|| format!("{PREFIX}{fresh}"), str::to_owned);
    let named = name.strip_prefix(PREFIX).and_then(|id| id.parse().ok());
    let id: uuid::Uuid = named.unwrap_or(fresh);
    Ok((nqn("--host-nqn", &name)?, id.into_bytes()))
}

fn resolve(text: &str) -> Result<SocketAddr, PerfError> {
    let refused = |cause: String| {
        PerfError::usage(format!("{text:?} is no address"))
            .cause(cause)
            .hint("give a host and a port, such as 127.0.0.1:4420 or [::1]:4420")
    };
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| refused(error.to_string()))?;
    found
        .next()
        .ok_or_else(|| refused("the name has no address".to_owned()))
}
