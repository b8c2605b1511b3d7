//! The way to the pool for who is not on its reactor.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bowline_api::{Failure, Reason};
use bowline_nvme::Nanos;
use bowline_nvmf::target::AnaState;
use bowline_pool::{
    ChecksumCounts, Mismatch, Operation, Outcome, Pool, PoolError, ScrubOptions, ScrubReport,
    ScrubState, Usage, VolumeInfo,
};
use tokio::sync::watch;
use uuid::Uuid;

use super::{Ending, PoolHealth, explain_operation, withdraw};
use crate::drive::Drive;
use crate::fleet::{Fleet, Served};

/// The pool that this data plane serves.
#[derive(Debug)]
pub(crate) struct PoolFacts {
    pub(crate) uuid: Uuid,
    /// As it was given at start.
    pub(crate) device: String,
    /// The same, where it is a path: what is behind it may change.
    pub(crate) path: Option<PathBuf>,
    /// The reactor that owns it and all its volumes.
    pub(crate) reactor: usize,
    /// Whether it works.
    pub(crate) health: watch::Receiver<PoolHealth>,
    /// What the flags at start say of every volume's subsystem.
    pub(crate) defaults: VolumeDefaults,
}

/// What the flags at start say of every volume's subsystem.
#[derive(Debug)]
pub(crate) struct VolumeDefaults {
    pub(crate) cntlids: Option<(u16, u16)>,
    pub(crate) controllers_max: Option<u16>,
    /// State of an ANA group at first. Hosts are always told of ANA: a volume may get other paths
    /// later, and a host asks only when it connects.
    pub(crate) ana: AnaState,
    /// Hosts that may use every volume.
    pub(crate) hosts: Vec<String>,
}

/// What changes with every write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolNow {
    pub(crate) usage: Usage,
    pub(crate) health: PoolHealth,
    pub(crate) checksums: ChecksumCounts,
    pub(crate) scrub: Option<ScrubReport>,
    /// The last that was told, and when.
    pub(crate) mismatch: Option<(Mismatch, SystemTime)>,
    /// Groups of the journal and checkpoints since the pool was opened.
    pub(crate) written: (u64, u64),
}

/// Why what takes subsystems away was not begun.
enum NotBegun {
    /// By so many associations.
    Used(usize),
    Refused(PoolError),
}

/// Cheap to clone; needs no lock.
#[derive(Clone)]
pub(crate) struct PoolAccess {
    fleet: Arc<Fleet>,
    pub(crate) facts: Arc<PoolFacts>,
}

impl PoolAccess {
    pub(crate) fn new(fleet: Arc<Fleet>, facts: PoolFacts) -> Self {
        let facts = Arc::new(facts);
        Self { fleet, facts }
    }

    /// Runs a closure on the pool's reactor, and waits for what it returns. The drive is not waited
    /// for.
    pub(crate) async fn work<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Served, Nanos) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let reactor = self.facts.reactor;
        self.fleet
            .work(reactor, move |served, _, now| job(served, now))
            .await
    }

    /// Has the pool do something, and waits until it is durable: for the drive, so never under a
    /// lock.
    pub(crate) async fn operate(
        &self,
        what: &str,
        start: impl FnOnce(&mut Pool<Drive>) -> Result<Operation, PoolError> + Send + 'static,
    ) -> Result<Outcome, Failure> {
        let begun = self.work(|served, _| -> Result<Ending, PoolError> {
            let seat = served.pool.as_mut().ok_or(PoolError::Closing)?;
            seat.start(start)
        });
        let explain = |error| explain_operation(what, error);
        let ending = begun.await?.map_err(explain)?;
        ending
            .await
            .unwrap_or(Err(PoolError::Closing))
            .map_err(explain)
    }

    /// The same for what takes these subsystems away: in one turn of the reactor it is seen that no
    /// host uses them (which does not count if it is forced), the pool begins, and they are gone, so
    /// that no host comes in between. Gives how each was reached, and what has become of it.
    pub(crate) async fn operate_without(
        &self,
        what: &str,
        (nqns, force): (Vec<String>, bool),
        start: impl FnOnce(&mut Pool<Drive>) -> Result<Operation, PoolError> + Send + 'static,
    ) -> Result<(Vec<Option<AnaState>>, Result<Outcome, Failure>), Failure> {
        let begun = self.work(move |served, now| {
            let target = served.service.target();
            let each = nqns.iter().map(|nqn| target.controller_count(nqn));
            let hosts: usize = each.sum();
            if hosts > 0 && !force {
                return Err(NotBegun::Used(hosts));
            }
            let seat = served.pool.as_mut().ok_or(PoolError::Closing);
            let ending = seat.and_then(|seat| seat.start(start));
            let ending = ending.map_err(NotBegun::Refused)?;
            let states = nqns.iter().map(|nqn| withdraw(served, now, nqn));
            Ok((states.collect(), ending))
        });
        let explain = |error| explain_operation(what, error);
        let (states, ending) = begun.await?.map_err(|why| match why {
            NotBegun::Refused(error) => explain(error),
            NotBegun::Used(hosts) => Failure::new(Reason::InUse, what)
                .cause(format!("{hosts} associations of hosts use it"))
                .hint("disconnect them first (`bowline controller list` shows them), or force it")
                .with("association_count", hosts.to_string()),
        })?;
        let ended: Result<Outcome, PoolError> = ending.await.unwrap_or(Err(PoolError::Closing));
        Ok((states, ended.map_err(explain)))
    }

    /// Asks the pool itself.
    async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&super::PoolSeat) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let answer = self.work(move |served, _| served.pool.as_ref().map(question));
        answer.await?.ok_or_else(|| {
            Failure::new(Reason::Stopping, "the pool is being closed")
                .hint("ask again after the restart")
        })
    }

    pub(crate) async fn now(&self) -> Result<PoolNow, Failure> {
        self.ask(|seat| PoolNow {
            usage: seat.pool().usage(),
            health: seat.health(),
            checksums: seat.pool().checksum_counts(),
            scrub: seat.pool().scrub_report(),
            mismatch: seat.mismatch(),
            written: seat.pool().written(),
        })
        .await
    }

    /// Begins to compare everything with its checksums.
    pub(crate) async fn start_scrub(&self, options: ScrubOptions) -> Result<(), Failure> {
        let started = self.work(move |served, _| {
            let seat = served.pool.as_mut().ok_or(PoolError::Closing)?;
            seat.pool_mut().start_scrub(options)
        });
        started.await?.map_err(|error| match error {
            PoolError::Busy => Failure::new(Reason::InUse, "no scrub was started")
                .cause("one goes on already, or pauses")
                .hint("wait for its end, or stop it: `bowline pool scrub --stop`"),
            error => explain_operation("no scrub was started", error),
        })
    }

    pub(crate) async fn stop_scrub(&self) -> Result<(), Failure> {
        self.work(|served, _| {
            if let Some(seat) = &mut served.pool {
                seat.pool_mut().stop_scrub();
            }
        })
        .await
    }

    /// Has the scrub that there is pause, or go on.
    pub(crate) async fn pause_scrub(&self, is_pause: bool) -> Result<(), Failure> {
        let done = self.work(move |served, _| {
            let Some(seat) = &mut served.pool else {
                return Err(PoolError::Closing);
            };
            let pool = seat.pool_mut();
            let state = pool.scrub_report().map(|report| report.state);
            let has_one = matches!(state, Some(ScrubState::Running | ScrubState::Paused));
            match is_pause {
                true => pool.pause_scrub(),
                false => pool.resume_scrub(),
            }
            Ok(has_one)
        });
        let explain = |error| explain_operation("the scrub stays as it is", error);
        match done.await?.map_err(explain)? {
            true => Ok(()),
            false => Err(Failure::new(Reason::NotFound, "no scrub goes on or pauses")
                .hint("start one with `bowline pool scrub`")),
        }
    }

    /// What these volumes have allocated now: as hosts see it, and of the pool.
    pub(crate) async fn allocated(&self, volumes: Vec<u32>) -> Result<Vec<(u64, u64)>, Failure> {
        self.ask(move |seat| {
            let pool = seat.pool();
            let each = |volume: &u32| pool.allocated(*volume).unwrap_or_default();
            volumes.iter().map(each).collect()
        })
        .await
    }

    pub(crate) async fn volume(&self, volume: u32) -> Result<Option<VolumeInfo>, Failure> {
        self.ask(move |seat| seat.pool().volume(volume)).await
    }
}
