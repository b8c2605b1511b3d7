//! The life of a data plane: bind, open, start, serve, stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bowline_api::dataplane::v1::data_plane_service_server::DataPlaneServiceServer;
use bowline_api::dataplane::v1::pool_service_server::PoolServiceServer;
use bowline_api::{FILE_DESCRIPTOR_SET, Failure};
use bowline_engine_spdk::Spdk;
use bowline_nvmf::target::{AnaState, TargetConfig};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use crate::admission::Admission;
use crate::backing::Opened;
use crate::catalog::Origin;
use crate::config::{BackingConfig, Config};
use crate::error::{RunError, StartError};
use crate::fleet::{Ended, Fleet};
use crate::listen::{Portal, Sockets};
use crate::manage::{Manager, NewNamespace, NewSubsystem};
use crate::metrics;
use crate::pool::{self, Begun, PoolAccess, PoolFacts, Surveyed, VolumeDefaults};
use crate::prepare::Prepared;
use crate::service::Management;
use crate::signals::Signals;
use crate::state::{Health, Keeper, Loaded, SubsystemRecord};
use crate::volumes;

/// Where a started data plane listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// NVMe/TCP, in the order of the configuration.
    pub listen: Vec<SocketAddr>,
    /// Management API.
    pub rpc: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
}

/// Serves until SIGTERM or SIGINT, then stops gracefully: no new connections, commands
/// in flight finish, devices are flushed, connections close. A second signal ends it
/// at once. `ready` is called when everything listens.
///
/// # Errors
/// It did not start, or it did not end well.
pub fn run(config: Config, ready: impl FnOnce(&Ready) + Send + 'static) -> Result<(), RunError> {
    config.check()?;
    let failed = |source| StartError::Management { source };
    let work = move || -> Result<(), RunError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(failed)?;
        let result = runtime.block_on(live(config, ready));
        // An open that hangs (a lease, a dead file server) must not keep the process.
        runtime.shutdown_background();
        result
    };
    let management = thread::Builder::new()
        .name("management".to_owned())
        .spawn(work);
    match management.map_err(failed)?.join() {
        Ok(result) => result,
        Err(_) => Err(RunError::ManagementLost),
    }
}

/// From the first signal handler to the last flush.
async fn live(config: Config, ready: impl FnOnce(&Ready)) -> Result<(), RunError> {
    let failed = |source| StartError::Management { source };
    // First of all: to process 1 of a container a signal without a handler does not come.
    let mut signals = Signals::watch().map_err(failed)?;
    tracing::info!(?config, "configuration in effect");
    let prepared = tokio::select! {
        biased;
        () = signals.next() => {
            tracing::info!("stopped before anything was served");
            return Ok(());
        }
        prepared = Prepared::off_thread(config) => prepared?,
    };
    let mut prepared = prepared;
    let (keeper, loaded) = match prepared.state.take() {
        Some((folder, loaded)) => (Some(Keeper::start(folder).map_err(failed)?), loaded),
        None => (None, Loaded::default()),
    };
    let config = &prepared.config;
    let (ended, ends) = mpsc::channel(config.cores.len().max(1));
    let target = target_config(config, &prepared.discovery_nqn);
    let library = prepared.spdk.clone();
    let memory = library.as_ref().map(Spdk::memory).unwrap_or_default();
    let fleet = Arc::new(Fleet::start(
        config,
        &target,
        keeper.as_ref(),
        &memory,
        &ended,
    )?);
    drop(ended);
    let reactors = Arc::clone(&fleet);
    let begun = tokio::select! {
        biased;
        () = signals.next() => {
            // The reactor may wait for the drive, which the end of the process ends.
            tracing::info!("stopped before anything was served");
            if let Some(library) = library {
                library.abandon();
            }
            return Ok(());
        }
        begun = begin_pool(&fleet, &mut prepared) => begun,
    };
    let plane = match begun {
        Ok(pool) => {
            let kept = (keeper, loaded);
            DataPlane::assemble(prepared, pool, target, fleet, kept, ends, signals).await
        }
        Err(failure) => Err(StartError::Backing(failure)),
    };
    let result = match plane {
        Ok(plane) => plane.serve(ready).await,
        Err(error) => {
            reactors.stop();
            Err(error.into())
        }
    };
    if let (Err(_), Some(library)) = (&result, library) {
        // It would wait for the devices of reactors that have not ended.
        library.abandon();
    }
    result
}

/// Opens the pool of the drive on the reactor that owns it from now on, if it has one or is to have one.
async fn begin_pool(
    fleet: &Fleet,
    prepared: &mut Prepared,
) -> Result<Option<(PoolFacts, Vec<Surveyed>)>, Failure> {
    let opened = std::mem::replace(&mut prepared.opened, Opened::There);
    let config = &prepared.config;
    let (device, serve) = (prepared.backing.to_string(), config.serve);
    let (name, is_shared) = (device.clone(), config.backing.is_shared());
    let begun = fleet.work(POOL_REACTOR, move |served, cx, _| {
        match pool::begin(opened, serve, (&name, is_shared), cx)? {
            Begun::Whole(drive) => {
                served.drive = Some(*drive);
                Ok(None)
            }
            Begun::Pool(seat) => {
                let found = (seat.pool().uuid(), pool::survey(seat.pool()));
                served.pool = Some(*seat);
                Ok(Some(found))
            }
        }
    });
    let Some((uuid, volumes)) = begun.await?? else {
        return Ok(None);
    };
    if !prepared.of_one_disk.is_empty() {
        tracing::warn!(
            flags = prepared.of_one_disk.join(" "),
            "not used: the device has a pool, and each of its volumes is a disk of its own"
        );
    }
    let facts = PoolFacts {
        uuid,
        device,
        reactor: POOL_REACTOR,
        defaults: VolumeDefaults {
            cntlids: config.cntlids,
            controllers_max: config.controllers_max,
            ana: config.ana.unwrap_or(AnaState::Optimized),
            hosts: config.hosts.clone(),
        },
    };
    Ok(Some((facts, volumes)))
}

/// What the protocol machines are told.
fn target_config(config: &Config, discovery_nqn: &str) -> TargetConfig {
    // Controller IDs start somewhere else after each start, so that a host which missed
    // the restart does not find its old controller's number. [BASE-2.0 CNTLID]
    let (seed, _) = uuid::Uuid::new_v4().as_u64_pair();
    TargetConfig {
        icd_bytes: config.limits.in_capsule_data_bytes,
        mdts_bytes: config.limits.max_transfer_bytes,
        io_queue_entries_max: config.limits.queue_depth,
        connections_max: config.limits.connections_max,
        queues_per_host_max: config.limits.queues_per_host_max,
        discovery_nqn: Some(discovery_nqn.to_owned()),
        seed,
        ..TargetConfig::default()
    }
}

/// Everything of a running data plane that lives on the management thread.
struct DataPlane {
    management: Management,
    fleet: Arc<Fleet>,
    ends: mpsc::Receiver<Ended>,
    rpc: TcpListener,
    metrics: TcpListener,
    ready: Ready,
    signals: Signals,
    /// The counters of the first subsystem, if they are kept.
    health: Option<Health>,
}

impl DataPlane {
    async fn assemble(
        prepared: Prepared,
        pool: Option<(PoolFacts, Vec<Surveyed>)>,
        target: TargetConfig,
        fleet: Arc<Fleet>,
        (keeper, mut loaded): (Option<Keeper>, Loaded),
        ends: mpsc::Receiver<Ended>,
        signals: Signals,
    ) -> Result<Self, StartError> {
        let failed = |source| StartError::Management { source };
        let Prepared {
            config,
            allow,
            sockets,
            backing,
            spdk,
            nqn,
            ..
        } = prepared;
        let Sockets { nvme, rpc, metrics } = sockets;
        let ready = Ready {
            listen: nvme.iter().map(|(portal, _)| portal.bound).collect(),
            rpc: rpc.local_addr().map_err(failed)?,
            metrics: metrics.local_addr().map_err(failed)?,
        };
        let portals = nvme.iter().map(|(portal, _)| *portal).collect();
        let mut manager = Manager::new(Arc::clone(&fleet), portals, allow);
        manager.spdk = spdk;
        manager.keep_reservations(keeper.clone(), loaded.reservations);
        let health = match pool {
            Some((facts, volumes)) => {
                serve_pool(&mut manager, facts, volumes)
                    .await
                    .map_err(StartError::Backing)?;
                None
            }
            None => {
                let record = loaded.subsystems.remove(&nqn);
                serve_whole(&mut manager, &config, &nqn, backing, keeper, record)
                    .await
                    .map_err(StartError::Backing)?
            }
        };
        for referral in &config.referrals {
            manager
                .create_referral(referral, Origin::Start)
                .await
                .map_err(StartError::Backing)?;
        }
        listen(&fleet, nvme).await?;
        warn_where_exposed(&ready);
        let management = Management::new(manager, config.node, target);
        tokio::spawn(volumes::tell_discovery(Arc::downgrade(&management.state)));
        Ok(Self {
            management,
            fleet,
            ends,
            rpc,
            metrics,
            ready,
            signals,
            health,
        })
    }

    async fn serve(mut self, announce: impl FnOnce(&Ready)) -> Result<(), RunError> {
        let failed = |source| StartError::Management { source };
        let (stop, stopped) = watch::channel(false);
        let health = self.serve_rpc(stopped.clone()).map_err(failed)?;
        self.serve_metrics(stopped).map_err(failed)?;
        for (index, member) in self.fleet.members.iter().enumerate() {
            tracing::info!(
                reactor = index,
                backend = member.info.backend.name(),
                features = member.info.features.join(" "),
                cpu = member.cpu,
                "reactor started"
            );
            if let Some(reason) = &member.info.fallback {
                tracing::warn!(reactor = index, %reason, "io_uring is not in use");
            }
        }
        tracing::info!(
            listen = ?self.ready.listen, rpc = %self.ready.rpc, metrics = %self.ready.metrics,
            "data plane ready"
        );
        // A signal that came meanwhile: nobody is told of a data plane that goes at once.
        if !self.signals.came().await {
            announce(&self.ready);
            let ended = self.until_told().await;
            if let Some(Ended { index, .. }) = ended {
                return Err(RunError::ReactorLost { index });
            }
        }
        let result = self.stop(&health).await;
        // Callers that still wait see their connection end; nothing is left to manage.
        let _nobody_listens = stop.send(true);
        result
    }

    /// Keeps the counters while it serves, until a signal comes or a reactor ends.
    async fn until_told(&mut self) -> Option<Ended> {
        let mut due = tokio::time::interval(SAVE_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is due at once, and what there is was just written.
        due.tick().await;
        let mut saving: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                ended = self.ends.recv() => return ended,
                () = self.signals.next() => return None,
                _ = due.tick(), if self.health.is_some() => {}
            }
            if saving.as_ref().is_some_and(|it| !it.is_finished()) {
                // The disk hangs: what is handed to it does not grow.
                continue;
            }
            self.read_health().await;
            if let Some(health) = self.health.clone() {
                // A slow disk must not keep a signal waiting.
                let save = async move { tell("counters not kept", health.save().await) };
                saving = Some(tokio::spawn(save));
            }
        }
    }

    async fn read_health(&mut self) {
        if let Some(health) = &mut self.health {
            let state = self.management.state.lock().await;
            let found = state.manager.subsystem(health.nqn());
            let is_first = found.is_ok_and(|it| it.origin == Origin::Start);
            drop(state);
            if !is_first {
                // Deleted over the API: one made there in its place counts for itself.
                return;
            }
            tell("counters not read", health.read(&self.fleet).await);
        }
    }

    /// Drains, flushes and closes; or gives up at the second signal.
    async fn stop(&mut self, health: &HealthReporter) -> Result<(), RunError> {
        tracing::info!("stopping: draining and flushing; a second signal ends at once");
        self.read_health().await;
        let kept = self.health.take();
        let (fleet, ends) = (&self.fleet, &mut self.ends);
        let drained = async {
            fleet.stop();
            set_health(health, false).await;
            for _ in 0..fleet.members.len() {
                if let Some(Ended {
                    index,
                    regular: false,
                }) = ends.recv().await
                {
                    return Err(RunError::ReactorLost { index });
                }
            }
            match fleet.not_flushed.load(Ordering::Acquire) {
                0 => {
                    if let Some(health) = kept {
                        // A disk that hangs must not keep the process: all else is done.
                        match tokio::time::timeout(END_PATIENCE, health.end()).await {
                            Ok(ended) => tell("the end was not written down", ended),
                            Err(_) => tracing::error!("the end was not written down in time"),
                        }
                    }
                    tracing::info!("stopped");
                    Ok(())
                }
                devices => Err(RunError::NotFlushed { devices }),
            }
        };
        tokio::select! {
            biased;
            () = self.signals.next() => Err(RunError::Forced),
            result = drained => result,
        }
    }

    fn serve_rpc(&self, mut stopped: watch::Receiver<bool>) -> io::Result<HealthReporter> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(io::Error::other)?;
        let server = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .add_service(health)
            .add_service(reflection)
            .add_service(DataPlaneServiceServer::new(self.management.clone()))
            .add_service(PoolServiceServer::new(self.management.clone()));
        let incoming = Admission::new(to_tokio(&self.rpc)?, "management API", CALLERS_MAX);
        let ready = reporter.clone();
        tokio::spawn(async move {
            set_health(&ready, true).await;
            let until = async move {
                let _sender_gone = stopped.wait_for(|stopped| *stopped).await;
            };
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, until).await {
                tracing::error!(%error, "management API ended");
            }
        });
        Ok(reporter)
    }

    fn serve_metrics(&self, mut stopped: watch::Receiver<bool>) -> io::Result<()> {
        let listener = Admission::new(to_tokio(&self.metrics)?, "metrics", SCRAPERS_MAX);
        let router = metrics::router(self.management.clone());
        tokio::spawn(async move {
            let until = async move {
                let _sender_gone = stopped.wait_for(|stopped| *stopped).await;
            };
            let served = axum::serve(listener, router)
                .with_graceful_shutdown(until)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "metrics ended");
            }
        });
        Ok(())
    }
}

/// Every volume of the pool, as a subsystem of its own.
async fn serve_pool(
    manager: &mut Manager,
    facts: PoolFacts,
    found: Vec<Surveyed>,
) -> Result<(), Failure> {
    let access = PoolAccess::new(Arc::clone(&manager.fleet), facts);
    let facts = Arc::clone(&access.facts);
    volumes::serve_pool(manager, access, found).await?;
    tracing::info!(
        pool = %facts.uuid, device = %facts.device, volumes = manager.catalog.volumes.len(),
        hosts = ?facts.defaults.hosts, "pool serves"
    );
    Ok(())
}

/// The subsystem that the flags ask for, with the whole device as namespace 1; and its counters, if
/// they are kept.
async fn serve_whole(
    manager: &mut Manager,
    config: &Config,
    nqn: &str,
    backing: BackingConfig,
    keeper: Option<Keeper>,
    record: Option<SubsystemRecord>,
) -> Result<Option<Health>, Failure> {
    let before = record.as_ref().map(SubsystemRecord::health_before);
    let subsystem = NewSubsystem {
        nqn: nqn.to_owned(),
        serial: config.serial.clone(),
        cntlids: config.cntlids,
        controllers_max: config.controllers_max,
        namespaces_max: config.namespaces_max,
        ana: config.ana,
        health: before.unwrap_or_default(),
    };
    manager.create_subsystem(subsystem, Origin::Start).await?;
    let device = NewNamespace {
        nsid: Some(FIRST_NSID),
        backing,
        block_bytes: config.block_bytes,
        uuid: config.uuid,
        nguid: config.nguid,
        ana_group: None,
    };
    manager
        .attach_namespace(nqn, device, Opened::There, Origin::Start)
        .await?;
    for host in &config.hosts {
        manager.allow_host(nqn, host, Origin::Start).await?;
    }
    if config.hosts.is_empty() {
        tracing::warn!(
            subsystem_nqn = %nqn,
            "no host may connect: allow one with --host or `bowline host allow`"
        );
    }
    tracing::info!(
        subsystem_nqn = %nqn, device = %config.backing, hosts = ?config.hosts, "subsystem serves"
    );
    match keeper {
        Some(keeper) => begin_health(keeper, manager, nqn, record).await.map(Some),
        None => Ok(None),
    }
}

/// Gives every listener to a reactor; from here on hosts come.
async fn listen(fleet: &Fleet, nvme: Vec<(Portal, TcpListener)>) -> Result<(), StartError> {
    for (index, (portal, listener)) in nvme.into_iter().enumerate() {
        let owner = index % fleet.members.len();
        let listened = fleet
            .call(owner, move |service, cx, _| {
                service.listen(cx, listener, portal.id)
            })
            .await
            .map_err(StartError::Backing)?;
        listened.map_err(|source| StartError::Reactor {
            index: owner,
            source,
        })?;
    }
    Ok(())
}

/// Writes down that the first subsystem is served from now on.
async fn begin_health(
    keeper: Keeper,
    manager: &Manager,
    nqn: &str,
    record: Option<SubsystemRecord>,
) -> Result<Health, Failure> {
    let (subsystem, namespace) = manager.namespace(nqn, FIRST_NSID)?;
    let record = SubsystemRecord {
        nqn: nqn.to_owned(),
        serial: subsystem.serial,
        uuid: namespace.uuid,
        nguid: namespace.nguid,
        ..record.unwrap_or_default()
    };
    let health = Health::new(keeper, record.begun(), subsystem.reactor);
    health.save().await?;
    Ok(health)
}

fn tell(what: &'static str, outcome: Result<(), Failure>) {
    if let Err(failure) = outcome {
        tracing::error!(cause = %failure.cause, message = %failure.message, "{what}");
    }
}

/// How often the counters are kept: what a cut in between costs.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// How long the --state folder may take to be told of a regular end.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Connections to the management API, and to the metrics; more are closed.
const CALLERS_MAX: usize = 256;
const SCRAPERS_MAX: usize = 64;

/// Calls of one client at a time; more wait.
const STREAMS_MAX: u32 = 64;

/// The reactor that owns the drive which the data plane is started with.
const POOL_REACTOR: usize = 0;

/// The whole device is this namespace of the first subsystem.
const FIRST_NSID: u32 = 1;

/// Nothing authenticates yet, so leaving the loopback address deserves a word.
fn warn_where_exposed(ready: &Ready) {
    for address in &ready.listen {
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "hosts on this network are told apart by their NQN alone");
        }
    }
    if !ready.rpc.ip().is_loopback() {
        tracing::warn!(address = %ready.rpc, "anybody on this network may manage this data plane");
    }
}

async fn set_health(reporter: &HealthReporter, serving: bool) {
    let status = match serving {
        true => tonic_health::ServingStatus::Serving,
        false => tonic_health::ServingStatus::NotServing,
    };
    // The empty name stands for the whole server.
    reporter.set_service_status("", status).await;
    let services = [
        <DataPlaneServiceServer<Management> as tonic::server::NamedService>::NAME,
        <PoolServiceServer<Management> as tonic::server::NamedService>::NAME,
    ];
    for service in services {
        reporter.set_service_status(service, status).await;
    }
}

fn to_tokio(listener: &TcpListener) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(listener.try_clone()?)
}
