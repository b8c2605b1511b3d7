//! A run from its connections to its report.

use bowline_block::{BufPool, ClassConfig, PoolConfig, Segments};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::host::{CloseReason, ControllerConfig, ControllerFacts, HostNamespace};
use bowline_reactor::{Config, IoBackend, PollMode, monotonic_now};
use bowline_tcp::host::{BLOCKS_MAX, PathId};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::arrivals::Arrivals;
use crate::client::Client;
use crate::error::PerfError;
use crate::job::{Job, Load as LoadPlan, Pace, Payload, Poll, Workload};
use crate::load::{Load, LoadService, Phase, Plan, Slot};
use crate::pattern::Addresses;
use crate::progress::{INTERVAL, Progress};
use crate::random::{Random, mix};
use crate::report::{Measured, Report, Setting};
use crate::responder::Responder;
use crate::units::show_size;
use crate::verify::{Ledger, UNITS_MAX};

/// How long connecting may take, all associations together.
const CONNECT_TIMEOUT: Nanos = Nanos::from_secs(30);
/// How long outstanding commands may take after the end of the counted time.
const DRAIN_TIMEOUT: Nanos = Nanos::from_secs(30);
/// How long orderly shutdown may take.
const DISCONNECT_TIMEOUT: Nanos = Nanos::from_secs(5);
/// Commands time out after this, and with them the run.
const IO_TIMEOUT: Nanos = Nanos::from_secs(30);

/// Does what the job says, on the calling thread.
///
/// # Errors
/// The load is not possible, the subsystem cannot be reached or is lost. Commands that fail are
/// part of the report.
pub fn run(job: &Job, progress: &mut Progress) -> Result<Report, PerfError> {
    job.load.check()?;
    if let Some(core) = job.load.core {
        pin(core)?;
    }
    let mut client = Client::new(&reactor_config(job), job.load.poll).map_err(|error| {
        PerfError::failed("the reactor cannot be started")
            .cause(error)
            .hint("lower --queue-depth or --block-size if memory is short")
    })?;
    let paths = connect(&mut client, job)?;
    let setting = examine(&client, job, &paths)?;
    let slots = slots(client.reactor().pool(), job, &paths)?;
    let plan = plan(job, &setting);
    client.parts().0.load = Some(Load::new(plan, slots));
    let measured = execute(&mut client, job, progress);
    let lost = first_loss(&client, &paths);
    disconnect(&mut client, &paths);
    let measured = measured.map_err(|error| match lost {
        Some(reason) => error.cause(reason),
        None => error,
    })?;
    let Some(load) = client.parts().0.load.take() else {
        return Err(PerfError::failed("the load is gone"));
    };
    Ok(Report::new(job, &setting, &measured, &load))
}

/// Does what the load says against a controller in this process that does nothing: what this
/// client can drive at most. The responder runs on a thread of its own, on a core if one is given.
///
/// # Errors
/// As [`run`], or the responder cannot be started.
pub fn ceiling(
    load: &LoadPlan,
    responder_core: Option<usize>,
    progress: &mut Progress,
) -> Result<Report, PerfError> {
    load.check()?;
    let responder = Responder::start(responder_core)?;
    let name =
        |name: &str| Nqn::new(name).map_err(|error| PerfError::failed("no name").cause(error));
    let job = Job {
        address: responder.address,
        subsystem: name("nqn.2026-11.io.bowline:null")?,
        host: name("nqn.2026-11.io.bowline:perf")?,
        host_id: [1; 16],
        namespace: NamespaceId(1),
        digests: Digests::NONE,
        io: IoBackend::Auto,
        load: load.clone(),
    };
    run(&job, progress)
}

/// Binds the calling thread to a core.
pub(crate) fn pin(core: usize) -> Result<(), PerfError> {
    let refused = |cause: String| {
        PerfError::usage(format!("cannot run on core {core}"))
            .cause(cause)
            .hint("choose one of the cores that this process may use")
    };
    if core >= CpuSet::MAX_CPU {
        return Err(refused("there is no such core".to_owned()));
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).map_err(|error| refused(error.to_string()))
}

fn reactor_config(job: &Job) -> Config {
    let load = &job.load;
    let block_bytes = usize::try_from(load.block_bytes).unwrap_or(usize::MAX);
    let outstanding = usize::try_from(load.outstanding()).unwrap_or(usize::MAX);
    let reads = outstanding * usize::from(load.reads());
    let writes = match load.write_payload() {
        Some(Payload::Own) => outstanding,
        Some(Payload::Shared) => 1,
        None => 0,
    };
    let class = if load.workload == Workload::Deallocate {
        // What a command carries is its list of ranges; one more may still be on its way out.
        ClassConfig {
            bytes: 4096,
            count: 2 * outstanding,
        }
    } else {
        ClassConfig {
            bytes: block_bytes.next_multiple_of(4096),
            count: reads + writes,
        }
    };
    let classes = vec![class];
    Config {
        io: job.io,
        poll: match load.poll {
            // Who dozes waits by itself, and never in the reactor.
            Poll::Spin | Poll::Doze => PollMode::Always,
            Poll::Park => PollMode::Never,
        },
        name: "load".to_owned(),
        pool: PoolConfig { classes },
        ..Config::default()
    }
}

fn connect(client: &mut Client, job: &Job) -> Result<Vec<PathId>, PerfError> {
    let load = &job.load;
    let deadline = monotonic_now().after(CONNECT_TIMEOUT);
    let mut paths = Vec::with_capacity(usize::from(load.connections));
    for number in 0..load.connections {
        let config = ControllerConfig {
            io_queues: load.queues,
            io_queue_entries: load.queue_depth + 1,
            digests: job.digests,
            // The reactor sleeps through none of it: it runs all the time.
            keep_alive: Nanos::from_secs(30),
            async_events: false,
            open_timeout: CONNECT_TIMEOUT,
            setup_timeout: CONNECT_TIMEOUT,
            admin_timeout: CONNECT_TIMEOUT,
            io_timeout: Some(IO_TIMEOUT),
            reconnect: None,
            seed: mix(load.seed ^ u64::from(number)),
            ..ControllerConfig::new(job.host, job.host_id, job.subsystem)
        };
        let (service, reactor) = client.parts();
        let now = monotonic_now();
        let path = service.host.connect(reactor, now, job.address, config);
        client.run_until_that(deadline, |service, _| {
            let path = service.host.path(path);
            path.is_ready() || path.stopped().is_some()
        });
        if !client.service().host.path(path).is_ready() {
            return Err(not_connected(client, job, path));
        }
        paths.push(path);
    }
    Ok(paths)
}

fn not_connected(client: &Client, job: &Job, path: PathId) -> PerfError {
    let what = format!(
        "{} at {} not connected",
        job.subsystem.as_str(),
        job.address
    );
    let error = PerfError::failed(what);
    match client.service().host.path(path).stopped() {
        Some(reason) => error.cause(reason),
        None => error.cause("it did not answer in time"),
    }
    .hint("check that a target listens there, that it has this subsystem, and that it lets this host in (--host-nqn)")
}

/// Compares what is wanted with what the controllers offer.
fn examine(client: &Client, job: &Job, paths: &[PathId]) -> Result<Setting, PerfError> {
    let mut setting = None;
    for path in paths {
        let controller = client.service().host.path(*path).controller();
        let facts = controller
            .facts()
            .ok_or_else(|| PerfError::failed("the controller said nothing about itself"))?;
        let mut namespaces = controller.namespaces().iter();
        let namespace = namespaces
            .find(|namespace| namespace.nsid == job.namespace)
            .ok_or_else(|| no_namespace(job, controller.namespaces()))?;
        if facts.io_queues < job.load.queues {
            let what = format!("{} I/O queues not possible", job.load.queues);
            return Err(PerfError::failed(what)
                .cause(format!("the controller grants {}", facts.io_queues))
                .hint("lower --queues, or add --connections"));
        }
        for queue in 1..=job.load.queues {
            let depth = controller.depth_max(queue);
            if depth < usize::from(job.load.queue_depth) {
                let what = format!("queue depth of {} not possible", job.load.queue_depth);
                return Err(PerfError::failed(what)
                    .cause(format!("the controller's queues hold {depth}"))
                    .hint("lower --queue-depth, or add --queues or --connections"));
            }
        }
        setting = Some(check_geometry(job, facts, namespace)?);
    }
    let mut setting = setting.ok_or_else(|| PerfError::usage("no connection was asked for"))?;
    setting.backend = client.reactor().backend().to_string();
    Ok(setting)
}

fn no_namespace(job: &Job, there: &[HostNamespace]) -> PerfError {
    let ids: Vec<String> = there
        .iter()
        .take(16)
        .map(|it| it.nsid.to_string())
        .collect();
    let what = format!("namespace {} not found", job.namespace);
    PerfError::failed(what)
        .cause(format!(
            "the subsystem shows {} of them: {}",
            there.len(),
            ids.join(", ")
        ))
        .hint("choose one of these with --namespace")
}

fn check_geometry(
    job: &Job,
    facts: &ControllerFacts,
    namespace: &HostNamespace,
) -> Result<Setting, PerfError> {
    let load = &job.load;
    let size = show_size(load.block_bytes.into());
    let refused = || PerfError::failed(format!("block size of {size} not possible"));
    if !load.block_bytes.is_multiple_of(namespace.block_bytes) {
        return Err(refused()
            .cause(format!(
                "logical blocks have {} bytes",
                namespace.block_bytes
            ))
            .hint("give a multiple of that as --block-size"));
    }
    let unit_blocks = load.block_bytes / namespace.block_bytes;
    let limit = u64::from(facts.transfer_bytes_max)
        .min(u64::from(BLOCKS_MAX) * u64::from(namespace.block_bytes));
    if u64::from(load.block_bytes) > limit {
        return Err(refused()
            .cause(format!("the controller takes {} at once", show_size(limit)))
            .hint("lower --block-size"));
    }
    let bytes = namespace.bytes();
    let span = load.span_bytes.unwrap_or(bytes);
    if span > bytes || span < u64::from(load.block_bytes) {
        return Err(
            PerfError::failed(format!("a span of {} not possible", show_size(span)))
                .cause(format!("the namespace has {}", show_size(bytes)))
                .hint("choose --span between the block size and the namespace's size"),
        );
    }
    if namespace.read_only && load.writes() {
        return Err(PerfError::failed("the namespace cannot be written to")
            .cause("it is write protected")
            .hint("use --workload read without --verify"));
    }
    let units = span / u64::from(load.block_bytes);
    if load.verify && units > UNITS_MAX {
        let what = format!("{units} blocks of {size} cannot be verified");
        return Err(PerfError::failed(what)
            .cause("what each should hold is kept in memory, for 134217728 at most")
            .hint("verify a part of the namespace with --span, or raise --block-size"));
    }
    Ok(Setting {
        unit_blocks,
        units,
        namespace_bytes: bytes,
        logical_block_bytes: namespace.block_bytes,
        in_capsule_bytes: facts.in_capsule_bytes,
        model: text(&facts.model),
        firmware: text(&facts.firmware),
        backend: String::new(),
    })
}

/// An identification string, without its padding.
fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim_end().to_owned()
}

fn slots(pool: &BufPool, job: &Job, paths: &[PathId]) -> Result<Vec<Slot>, PerfError> {
    let load = &job.load;
    let len = usize::try_from(load.block_bytes).unwrap_or(usize::MAX);
    let mut random = Random::new(mix(load.seed));
    let mut buffer = || {
        fresh(pool, len, &mut random)
            .ok_or_else(|| PerfError::failed("too little memory for the commands' data"))
    };
    let shared = match load.write_payload() {
        Some(Payload::Shared) => buffer()?,
        Some(Payload::Own) | None => Segments::new(),
    };
    let mut slots = Vec::new();
    for _ in 0..load.queue_depth {
        for path in paths {
            for queue in 1..=load.queues {
                let read = if load.reads() {
                    buffer()?
                } else {
                    Segments::new()
                };
                let write = match load.write_payload() {
                    Some(Payload::Own) => buffer()?,
                    Some(Payload::Shared) | None => shared.clone(),
                };
                slots.push(Slot::new(*path, queue, read, write));
            }
        }
    }
    Ok(slots)
}

/// A buffer, touched before the first command, so that no page fault is measured; and no zeroes,
/// which a device may treat in a special way.
fn fresh(pool: &BufPool, len: usize, random: &mut Random) -> Option<Segments> {
    let mut buf = pool.alloc(len)?;
    for word in buf.as_mut()?.chunks_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
    }
    Some(Segments::from(buf))
}

fn plan(job: &Job, setting: &Setting) -> Plan {
    let load = &job.load;
    // Different numbers for different purposes, all from one seed.
    let seed = |purpose: u64| mix(load.seed.wrapping_add(purpose << 32));
    Plan {
        nsid: job.namespace,
        unit_blocks: setting.unit_blocks,
        read_percent: load.workload.read_percent(),
        deallocates: load.workload == Workload::Deallocate,
        addresses: Addresses::new(load.pattern, setting.units, seed(1)),
        mix: Random::new(seed(2)),
        ledger: load.verify.then(|| {
            // A run of its own, so that what an earlier one left is not taken for ours.
            let run = mix(monotonic_now().0 ^ u64::from(std::process::id()) << 32);
            let block_bytes = setting.logical_block_bytes;
            Ledger::new(
                run,
                job.namespace,
                block_bytes,
                setting.unit_blocks,
                setting.units,
            )
        }),
    }
}

/// The whole run.
fn execute(client: &mut Client, job: &Job, progress: &mut Progress) -> Result<Measured, PerfError> {
    if job.load.verify && job.load.workload != Workload::Write {
        with_load(client, |load| load.enter(Phase::Fill { next: 0 }));
        finish(client, "filling", progress)?;
    }
    let measured = match job.load.commands {
        Some(count) => measure_commands(client, job, count, progress)?,
        None => measure(client, job, progress)?,
    };
    drain(client)?;
    if job.load.verify {
        with_load(client, |load| load.enter(Phase::ReadBack { next: 0 }));
        finish(client, "reading back", progress)?;
    }
    Ok(measured)
}

/// Runs until a phase that ends by itself has.
fn finish(client: &mut Client, phase: &str, progress: &mut Progress) -> Result<(), PerfError> {
    loop {
        let now = monotonic_now();
        let load = client.service().load.as_ref();
        progress.tell(phase, None, now, load.map_or(0, |load| load.completed));
        let over = |service: &LoadService| {
            let load = service.load.as_ref();
            load.is_none_or(|load| load.broken || (load.is_resting() && load.is_idle()))
        };
        client.run_until_that(now.after(INTERVAL), |service, _| over(service));
        if is_broken(client.service()) {
            return Err(PerfError::failed(
                "the run ended early: a connection was lost",
            ));
        }
        if over(client.service()) {
            return Ok(());
        }
    }
}

/// Warms up, then counts for a while.
fn measure(client: &mut Client, job: &Job, progress: &mut Progress) -> Result<Measured, PerfError> {
    with_load(client, |load| match job.load.pace {
        Pace::Closed => load.enter(Phase::Run { left: None }),
        Pace::Open {
            per_second,
            spacing,
        } => {
            let seed = mix(job.load.seed.wrapping_add(3 << 32));
            load.run_open(Arrivals::new(spacing, per_second, monotonic_now(), seed));
        }
    });
    let from = monotonic_now().after(job.load.warm_up);
    go_on(client, "warming up", from, progress)?;
    let begin = Usage::of(client);
    let to = begin.at.after(job.load.duration);
    with_load(client, |load| load.count(begin.at, to));
    go_on(client, "measuring", to, progress)?;
    let mut measured = begin.until_now(client);
    // What completed later was not counted.
    measured.duration = job.load.duration;
    with_load(client, Load::stop);
    Ok(measured)
}

/// Warms up, waits until nothing is outstanding, then counts so many commands from the first to
/// the last.
fn measure_commands(
    client: &mut Client,
    job: &Job,
    count: u64,
    progress: &mut Progress,
) -> Result<Measured, PerfError> {
    if job.load.warm_up > Nanos::ZERO {
        with_load(client, |load| load.enter(Phase::Run { left: None }));
        let until = monotonic_now().after(job.load.warm_up);
        go_on(client, "warming up", until, progress)?;
        with_load(client, Load::stop);
        drain(client)?;
    }
    let begin = Usage::of(client);
    with_load(client, |load| {
        load.count(begin.at, Nanos::MAX);
        load.enter(Phase::Run { left: Some(count) });
    });
    finish(client, "measuring", progress)?;
    let measured = begin.until_now(client);
    // What may follow, to verify, is not counted.
    with_load(client, |load| load.count_no_more(monotonic_now()));
    Ok(measured)
}

/// What was used up to a point in time.
struct Usage {
    at: Nanos,
    cpu: Nanos,
    gathers: u64,
    system_calls: u64,
}

impl Usage {
    fn of(client: &Client) -> Self {
        Self {
            at: monotonic_now(),
            cpu: cpu_time(),
            gathers: client.reactor().counters().gathers,
            system_calls: client.system_calls(),
        }
    }

    fn until_now(&self, client: &Client) -> Measured {
        let now = Self::of(client);
        Measured {
            duration: now.at.saturating_sub(self.at),
            client_cpu: now.cpu.saturating_sub(self.cpu),
            gathers: now.gathers - self.gathers,
            system_calls: now.system_calls - self.system_calls,
        }
    }
}

/// Runs to a point in time.
fn go_on(
    client: &mut Client,
    phase: &str,
    until: Nanos,
    progress: &mut Progress,
) -> Result<(), PerfError> {
    loop {
        let now = monotonic_now();
        let next = if progress.is_shown() {
            let completed = client
                .service()
                .load
                .as_ref()
                .map_or(0, |load| load.completed);
            progress.tell(phase, Some(until.saturating_sub(now)), now, completed);
            until.min(now.after(INTERVAL))
        } else {
            until
        };
        let broken = client.run_until_that(next, |service, _| is_broken(service));
        if broken {
            return Err(PerfError::failed(
                "the run ended early: a connection was lost",
            ));
        }
        if monotonic_now() >= until {
            return Ok(());
        }
    }
}

/// Waits for what is outstanding.
fn drain(client: &mut Client) -> Result<(), PerfError> {
    let deadline = monotonic_now().after(DRAIN_TIMEOUT);
    let idle = |service: &LoadService| service.load.as_ref().is_none_or(Load::is_idle);
    client.run_until_that(deadline, |service, _| idle(service) || is_broken(service));
    if is_broken(client.service()) {
        return Err(PerfError::failed(
            "the run ended early: a connection was lost",
        ));
    }
    if idle(client.service()) {
        return Ok(());
    }
    Err(
        PerfError::failed("commands did not complete").cause(format!(
            "some were still outstanding {} s after the end",
            DRAIN_TIMEOUT.as_millis() / 1000
        )),
    )
}

fn disconnect(client: &mut Client, paths: &[PathId]) {
    let (service, reactor) = client.parts();
    for path in paths {
        service
            .host
            .path_mut(*path)
            .disconnect(reactor, monotonic_now());
    }
    // What is not over by then is cut off by the end of the process.
    let deadline = monotonic_now().after(DISCONNECT_TIMEOUT);
    client.run_until_that(deadline, |service, _| {
        paths
            .iter()
            .all(|path| service.host.path(*path).is_closed())
    });
}

fn first_loss(client: &Client, paths: &[PathId]) -> Option<CloseReason> {
    let host = &client.service().host;
    paths.iter().find_map(|path| host.path(*path).stopped())
}

fn is_broken(service: &LoadService) -> bool {
    service.load.as_ref().is_some_and(|load| load.broken)
}

fn with_load(client: &mut Client, act: impl FnOnce(&mut Load)) {
    if let Some(load) = &mut client.parts().0.load {
        act(load);
    }
}

/// Processor time of the calling thread.
pub(crate) fn cpu_time() -> Nanos {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Nanos::from_secs(seconds).saturating_add(Nanos(nanos))
}
