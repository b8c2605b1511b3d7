//! The life of a data plane: bind, open, start, serve, stop.

mod api;
mod begin;
mod drive;
mod front;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bowline_api::Failure;
use bowline_engine_spdk::Spdk;
use bowline_nvmf::target::TargetConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::catalog::Origin;
use crate::config::Config;
use crate::error::{RunError, StartError};
use crate::fleet::{Ended, Fleet};
use crate::listen::Sockets;
use crate::manage::Manager;
use crate::pool::{PoolFacts, Surveyed};
use crate::prepare::Prepared;
use crate::service::Management;
use crate::signals::Signals;
use crate::state::{Health, Keeper, Loaded};
use crate::volumes;

use begin::{begin_pool, listen, serve_pool, serve_whole, target_config, warn_where_exposed};
use front::Front;

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
    let (stop, stopped) = watch::channel(false);
    let (told, recovery) = watch::channel(None);
    let front = Front::serve(&prepared.sockets.rpc, recovery, stopped);
    let front = front.await.map_err(failed)?;
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
        begun = begin_pool(&fleet, &mut prepared, told) => begun,
    };
    let plane = match begun {
        Ok(pool) => {
            let kept = (keeper, loaded);
            DataPlane::assemble(prepared, pool, target, fleet, kept, ends, signals).await
        }
        Err(failure) => Err(StartError::Backing(failure)),
    };
    let result = match plane {
        Ok(plane) => plane.serve(&front, stop, ready).await,
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

/// Everything of a running data plane that lives on the management thread.
struct DataPlane {
    management: Management,
    fleet: Arc<Fleet>,
    ends: mpsc::Receiver<Ended>,
    metrics: TcpListener,
    ready: Ready,
    signals: Signals,
    /// The counters of the first subsystem, if they are kept.
    health: Option<Health>,
    /// The pool, if there is one.
    pool: Option<Arc<PoolFacts>>,
}

/// Why a data plane does not go on serving.
enum Told {
    /// A signal came.
    Signal,
    /// This reactor has ended.
    Lost(usize),
    /// The pool's drive was gone, and is there again.
    DriveBack,
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
        let pool = manager.pool().ok().map(|it| Arc::clone(&it.facts));
        let management = Management::new(manager, config.node, target);
        tokio::spawn(volumes::tell_discovery(Arc::downgrade(&management.state)));
        Ok(Self {
            management,
            fleet,
            ends,
            metrics,
            ready,
            signals,
            health,
            pool,
        })
    }

    async fn serve(
        mut self,
        front: &Front,
        stop: watch::Sender<bool>,
        announce: impl FnOnce(&Ready),
    ) -> Result<(), RunError> {
        let failed = |source| StartError::Management { source };
        self.serve_metrics(stop.subscribe()).map_err(failed)?;
        let health = self.pool.as_ref().map(|facts| facts.health.clone());
        front.open(api::routes(&self.management), health).await;
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
        let mut told = Told::Signal;
        // A signal that came meanwhile: nobody is told of a data plane that goes at once.
        if !self.signals.came().await {
            announce(&self.ready);
            told = self.until_told().await;
            if let Told::Lost(index) = told {
                return Err(RunError::ReactorLost { index });
            }
        }
        let stopped = self.stop(front).await;
        // Callers that still wait see their connection end; nothing is left to manage.
        let _nobody_listens = stop.send(true);
        match (told, stopped) {
            // That its end was not in order is no news then.
            (Told::DriveBack, Ok(()) | Err(RunError::NotFlushed { .. })) => {
                Err(RunError::DriveBack)
            }
            (_, stopped) => stopped,
        }
    }

    /// Keeps the counters while it serves, until there is a reason to end.
    async fn until_told(&mut self) -> Told {
        let mut due = tokio::time::interval(SAVE_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is due at once, and what there is was just written.
        due.tick().await;
        let pool = self.pool.clone();
        let drive_back = async {
            match &pool {
                Some(facts) => drive::drive_back(facts).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(drive_back);
        let mut saving: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                ended = self.ends.recv() => match ended {
                    Some(Ended { index, .. }) => return Told::Lost(index),
                    None => return Told::Signal,
                },
                () = self.signals.next() => return Told::Signal,
                () = &mut drive_back => return Told::DriveBack,
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
    async fn stop(&mut self, front: &Front) -> Result<(), RunError> {
        tracing::info!("stopping: draining and flushing; a second signal ends at once");
        self.read_health().await;
        let kept = self.health.take();
        let (fleet, ends) = (&self.fleet, &mut self.ends);
        let drained = async {
            fleet.stop();
            front.stop().await;
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
