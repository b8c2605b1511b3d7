//! A host on a reactor of the caller's own thread.

use std::io;
use std::net::SocketAddr;

use bowline_block::BufPool;
use bowline_nvme::Nanos;
use bowline_nvmf::host::{ControllerConfig, HostNamespace};
use bowline_reactor::{Config, Counters, LocalReactor, Progress, Reactor, monotonic_now};

use super::command::{HostCommand, HostCompletion, HostError, Rejected};
use super::path::{HostPath, PathEvent};
use super::service::{HostService, PathId};

/// Associations driven by their owner: submit, run, take completions.
///
/// Times are those of [`Initiator::now`]. Nothing happens between calls: an owner that is
/// connected runs at least every half Keep Alive time-out, or is disconnected by the controller
/// and reconnects.
pub struct Initiator {
    local: LocalReactor<HostService>,
    /// Tokens of the blocking calls' commands.
    pub(super) next_token: u64,
}

impl Initiator {
    /// A host without associations.
    ///
    /// # Errors
    /// The reactor's engine or buffers cannot be made.
    pub fn new(config: &Config) -> io::Result<Self> {
        let local = LocalReactor::new(config, |_, _| Ok(HostService::new()))?;
        Ok(Self {
            local,
            next_token: 0,
        })
    }

    /// The monotonic clock.
    #[must_use]
    pub fn now(&self) -> Nanos {
        monotonic_now()
    }

    /// The buffers to bring data in.
    #[must_use]
    pub fn pool(&self) -> &BufPool {
        self.local.reactor().pool()
    }

    /// The reactor, for its addresses, engine and counters.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        self.local.reactor()
    }

    /// What the reactor counted: system calls, turns, bytes.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.local.reactor().counters()
    }

    /// Adds an association and starts it; [`Initiator::wait_ready`] waits for it.
    pub fn connect(&mut self, addr: SocketAddr, config: ControllerConfig) -> PathId {
        let (service, reactor) = self.local.parts();
        service.connect(reactor, monotonic_now(), addr, config)
    }

    /// Removes an association; see [`HostService::remove`].
    ///
    /// # Panics
    /// As all methods that take its id, when it was removed before.
    pub fn remove(&mut self, id: PathId) {
        let (service, reactor) = self.local.parts();
        service.remove(reactor, id);
    }

    /// An association.
    #[must_use]
    pub fn path(&self, id: PathId) -> &HostPath {
        self.local.service().path(id)
    }

    /// A namespace of an association, as last seen.
    ///
    /// # Errors
    /// There is none with this identifier.
    pub fn namespace(
        &self,
        id: PathId,
        nsid: bowline_nvme::NamespaceId,
    ) -> Result<HostNamespace, HostError> {
        let namespaces = self.path(id).controller().namespaces();
        let found = namespaces.iter().find(|namespace| namespace.nsid == nsid);
        found.copied().ok_or(HostError::NoNamespace(nsid))
    }

    /// Accepts a command for any I/O queue with room, in turn. It is sent when the reactor runs.
    ///
    /// # Errors
    /// The command, unchanged, and why.
    #[expect(
        clippy::result_large_err,
        reason = "hands the command back without allocating"
    )]
    pub fn submit(&mut self, id: PathId, command: HostCommand) -> Result<(), Rejected> {
        let (service, reactor) = self.local.parts();
        service
            .path_mut(id)
            .submit(reactor, monotonic_now(), command)
    }

    /// Accepts a command for this queue; 0 is the admin queue, which takes raw commands only.
    ///
    /// # Errors
    /// The command, unchanged, and why.
    #[expect(
        clippy::result_large_err,
        reason = "hands the command back without allocating"
    )]
    pub fn submit_on(
        &mut self,
        id: PathId,
        queue: u16,
        command: HostCommand,
    ) -> Result<(), Rejected> {
        let (service, reactor) = self.local.parts();
        service
            .path_mut(id)
            .submit_on(reactor, monotonic_now(), queue, command)
    }

    /// The oldest completion not taken yet.
    pub fn poll(&mut self, id: PathId) -> Option<HostCompletion> {
        self.local.parts().0.path_mut(id).poll()
    }

    /// The oldest event not taken yet.
    pub fn poll_event(&mut self, id: PathId) -> Option<PathEvent> {
        self.local.parts().0.path_mut(id).poll_event()
    }

    /// Takes one turn of the reactor, without sleeping.
    pub fn turn(&mut self) -> Progress {
        self.local.turn(monotonic_now())
    }

    /// Runs until `done` holds (true) or the deadline has passed (false), sleeping as the
    /// reactor's policy says. `done` may submit.
    pub fn run_until(
        &mut self,
        deadline: Nanos,
        done: impl FnMut(&mut HostService, &mut Reactor) -> bool,
    ) -> bool {
        self.local.run_until_that(deadline, done)
    }

    /// Waits until the association is up.
    ///
    /// # Errors
    /// It ended for good, or was not up in time.
    pub fn wait_ready(&mut self, id: PathId, deadline: Nanos) -> Result<(), HostError> {
        self.run_until(deadline, |service, _| {
            let path = service.path(id);
            path.is_ready() || path.stopped().is_some()
        });
        let path = self.path(id);
        match path.stopped() {
            _ if path.is_ready() => Ok(()),
            Some(reason) => Err(HostError::Stopped(reason)),
            None => Err(HostError::TimedOut),
        }
    }

    /// Starts an association again that was disconnected or ended.
    pub fn reconnect(&mut self, id: PathId) {
        let (service, reactor) = self.local.parts();
        service.path_mut(id).connect(reactor, monotonic_now());
    }

    /// Ends an association orderly, and waits until it has ended and its connections are closed.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn disconnect(&mut self, id: PathId, deadline: Nanos) -> Result<(), HostError> {
        let (service, reactor) = self.local.parts();
        service.path_mut(id).disconnect(reactor, monotonic_now());
        let ended = self.run_until(deadline, |service, _| {
            let path = service.path(id);
            path.stopped().is_some() && path.is_closed()
        });
        if ended {
            Ok(())
        } else {
            Err(HostError::TimedOut)
        }
    }

    pub(super) fn parts(&mut self) -> (&mut HostService, &mut Reactor) {
        self.local.parts()
    }
}
