//! The pool on its reactor: polled with every turn, and asked by management through closures.

use std::collections::HashMap;
use std::time::SystemTime;

use bowline_nvme::Nanos;
use bowline_nvmf::target::StoreId;
use bowline_pool::{Mismatch, Operation, Outcome, Pool, PoolError, PoolEvent};
use bowline_reactor::Reactor;
use tokio::sync::{oneshot, watch};

use super::{Stores, attribute};
use crate::drive::{Drive, Patience};
use crate::fleet::Service;

/// The pool, and who waits for it.
pub(crate) struct PoolSeat {
    pool: Pool<Drive>,
    patience: Patience,
    health: watch::Sender<PoolHealth>,
    waiting: HashMap<Operation, Waiter>,
    mismatch: Option<(Mismatch, SystemTime)>,
}

/// Whether the pool works. It gets better only when it is opened again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PoolHealth {
    #[default]
    Active,
    JournalFailed,
    DriveGone,
    /// The drive was gone, and is there again: the pool is not, until it is opened again.
    DriveBack,
}

impl PoolHealth {
    fn after(self, event: PoolEvent) -> Self {
        match (event, self) {
            (PoolEvent::Vanished, _) => Self::DriveGone,
            (PoolEvent::Returned, _) => Self::DriveBack,
            (PoolEvent::JournalFailed(_), Self::Active) => Self::JournalFailed,
            // The journal of a drive that is gone fails too.
            (PoolEvent::JournalFailed(_), worse) => worse,
            (
                PoolEvent::Used(_)
                | PoolEvent::Mismatch(_)
                | PoolEvent::ChecksumsLost
                | PoolEvent::ScrubDone,
                same,
            ) => same,
        }
    }
}

/// Who wants to know how an operation ended.
enum Waiter {
    Caller(oneshot::Sender<Result<Outcome, PoolError>>),
    Reservations(StoreId),
}

/// How an operation ended, some time.
pub(crate) type Ending = oneshot::Receiver<Result<Outcome, PoolError>>;

impl PoolSeat {
    pub(super) fn new(pool: Pool<Drive>, patience: Patience) -> Self {
        Self {
            pool,
            patience,
            health: watch::Sender::default(),
            waiting: HashMap::new(),
            mismatch: None,
        }
    }

    pub(crate) fn pool(&self) -> &Pool<Drive> {
        &self.pool
    }

    pub(crate) fn pool_mut(&mut self) -> &mut Pool<Drive> {
        &mut self.pool
    }

    /// The last mismatch that was told, and when.
    pub(crate) fn mismatch(&self) -> Option<(Mismatch, SystemTime)> {
        self.mismatch
    }

    pub(crate) fn health(&self) -> PoolHealth {
        *self.health.borrow()
    }

    /// To be told when that changes.
    pub(crate) fn watch(&self) -> watch::Receiver<PoolHealth> {
        self.health.subscribe()
    }

    /// Starts an operation; it goes on with the next turn.
    pub(crate) fn start(
        &mut self,
        start: impl FnOnce(&mut Pool<Drive>) -> Result<Operation, PoolError>,
    ) -> Result<Ending, PoolError> {
        let operation = start(&mut self.pool)?;
        let (sender, ending) = oneshot::channel();
        self.waiting.insert(operation, Waiter::Caller(sender));
        Ok(ending)
    }

    /// What the pool has to do, before the turn of its volumes: they take what has ended.
    pub(crate) fn turn(&mut self, service: &mut Service, stores: &Stores, now: Nanos) {
        while let Some((volume, request)) = stores.next() {
            let image = request.state.map(|state| state.encode());
            let bytes = image.unwrap_or_default();
            let kind = attribute::RESERVATIONS;
            match self.pool.set_attribute(volume, kind, bytes) {
                Ok(operation) => {
                    let waiter = Waiter::Reservations(request.id);
                    self.waiting.insert(operation, waiter);
                }
                Err(_) => service.reservations_stored(now, request.id, false),
            }
        }
        let is_due = self.pool.poll_timeout().is_some_and(|at| at <= now);
        if is_due || !self.pool.is_idle() {
            self.pool.poll(now);
        }
        while let Some((operation, result)) = self.pool.poll_operation() {
            match self.waiting.remove(&operation) {
                // Nobody waits any more when the caller hung up.
                Some(Waiter::Caller(caller)) => drop(caller.send(result)),
                Some(Waiter::Reservations(id)) => {
                    if let Err(error) = &result {
                        tracing::error!(%error, "reservations not stored: their command fails");
                    }
                    service.reservations_stored(now, id, result.is_ok());
                }
                None => {}
            }
        }
        while let Some(event) = self.pool.poll_event() {
            tell(event);
            if let PoolEvent::Mismatch(mismatch) = event {
                self.mismatch = Some((mismatch, SystemTime::now()));
            }
            if let PoolEvent::Used(_) = event {
                service.target().spare_changed(now);
            }
            let health = self.health().after(event);
            self.health
                .send_if_modified(|now| std::mem::replace(now, health) != health);
            // Volumes have nothing of their own that would have them looked at.
            service.look_at_devices();
        }
    }

    pub(crate) fn poll_timeout(&self, stores: &Stores) -> Option<Nanos> {
        if self.pool.has_news() || stores.has_next() {
            return Some(Nanos::ZERO);
        }
        self.pool.poll_timeout()
    }

    /// Ends the pool in order, when nobody uses its volumes any more. False if the drive failed.
    pub(crate) fn close(self, cx: &mut Reactor) -> bool {
        let patience = self.patience;
        match self.pool.close(&mut || patience.wait(cx)) {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(%error, "the pool was not closed in order: what was acknowledged is there when it is opened again");
                false
            }
        }
    }
}

fn tell(event: PoolEvent) {
    match event {
        PoolEvent::Vanished => tracing::error!("the pool's drive is gone, and its volumes with it"),
        PoolEvent::JournalFailed(error) => tracing::error!(
            %error,
            "the pool's journal cannot be written: what needs it fails until the data plane is \
             started again"
        ),
        PoolEvent::Mismatch(mismatch) => tracing::error!(
            ?mismatch,
            "a volume's data is not what was written: reading it fails"
        ),
        PoolEvent::ChecksumsLost => tracing::warn!(
            "checksums were lost: what they covered is read without a check until it is written"
        ),
        // The pool has told what it found.
        PoolEvent::ScrubDone => {}
        PoolEvent::Used(0) => tracing::info!("the pool has room again"),
        PoolEvent::Returned => tracing::warn!("the pool's drive is there again"),
        PoolEvent::Used(percent) => {
            tracing::warn!(percent, "more than so much of the pool is in use");
        }
    }
}

#[cfg(test)]
mod tests {
    use bowline_block::IoError;

    use super::*;

    #[test]
    fn a_pool_gets_worse_until_it_is_opened_again() {
        let after = |events: &[PoolEvent]| {
            let all = events.iter().copied();
            all.fold(PoolHealth::default(), PoolHealth::after)
        };
        let failed = PoolEvent::JournalFailed(IoError::MediaWrite);
        assert_eq!(after(&[PoolEvent::Used(95)]), PoolHealth::Active);
        assert_eq!(
            after(&[failed, PoolEvent::Used(0)]),
            PoolHealth::JournalFailed
        );
        assert_eq!(after(&[failed, PoolEvent::Vanished]), PoolHealth::DriveGone);
        assert_eq!(after(&[PoolEvent::Vanished, failed]), PoolHealth::DriveGone);
        let back = [PoolEvent::Vanished, PoolEvent::Returned, failed];
        assert_eq!(after(&back), PoolHealth::DriveBack);
    }
}
