//! Connections coming and going: accept, hand-over between reactors, polling, deadlines, stop.

use bowline_nvme::Nanos;

use super::Target;
use super::config::Path;
use super::connection::{Connection, State};
use super::output::{ConnId, Output, Rx};
use super::table::Key;
use super::timer::{Armed, TimerKey};

/// Timers put off at a time. The rest fires too early, and is put off then.
const PUT_OFF_MAX: usize = 32;

/// A connection on its way to the target that owns its subsystem, with the Connect it brings.
/// The glue moves the socket, and any bytes it has received but not handed in.
#[derive(Debug)]
pub struct Handoff(Box<Connection>);

impl Target {
    /// Takes a new connection; `None` if there are too many, in all or from this address.
    pub fn open(&mut self, now: Nanos, path: Path) -> Option<ConnId> {
        let from_peer = self.admission.unassociated(path.peer.ip());
        if from_peer >= self.config.unassociated_per_address_max || self.is_full() {
            self.counters.connections_refused += 1;
            return None;
        }
        let maxh2cdata = self.config.maxh2cdata_bytes;
        let icreq_by = now.after(self.config.deadlines.icreq);
        let connection = Connection::new(now, path, maxh2cdata, icreq_by);
        self.insert(Box::new(connection))
    }

    fn is_full(&self) -> bool {
        let count = u32::try_from(self.connections.len()).unwrap_or(u32::MAX);
        count >= self.config.connections_max
    }

    fn insert(&mut self, connection: Box<Connection>) -> Option<ConnId> {
        let peer = connection.path.peer.ip();
        let id = self.connections.insert(connection)?;
        self.admission.opened(peer);
        self.counters.connections_opened += 1;
        // So that no command ever makes the list grow.
        self.dirty
            .reserve(self.connections.len().saturating_sub(self.dirty.len()));
        self.arm_connection(id);
        Some(id)
    }

    /// Gives up a connection that was to be routed, for [`Target::adopt`] elsewhere.
    pub fn take(&mut self, id: ConnId) -> Option<Handoff> {
        let routing = |connection: &Connection| connection.state == State::Routing;
        self.connections
            .get(id)
            .filter(|connection| routing(connection))?;
        self.remove_connection(id).map(Handoff)
    }

    fn remove_connection(&mut self, id: Key) -> Option<Box<Connection>> {
        let mut connection = self.connections.remove(id)?;
        let key = TimerKey::Connection(id.index);
        self.timers.disarm(&mut connection.armed, key);
        let host = connection.queue.map(|queue| queue.host);
        self.admission.closed(connection.path.peer.ip(), host);
        Some(connection)
    }

    /// Takes over a connection from another target; [`Target::resume`] goes on with it.
    pub fn adopt(&mut self, now: Nanos, handoff: Handoff) -> Option<ConnId> {
        if self.is_full() {
            self.counters.connections_refused += 1;
            return None;
        }
        let mut connection = handoff.0;
        connection.armed = Armed::default();
        connection.dirty = false;
        connection.maxh2cdata = connection.maxh2cdata.min(self.config.maxh2cdata_bytes);
        connection.deadline = Some(now.after(self.config.deadlines.connect));
        self.insert(connection)
    }

    /// The owner has decided: Connect is answered here.
    pub fn resume(&mut self, now: Nanos, id: ConnId) {
        let routing = |connection: &Connection| connection.state == State::Routing;
        if self.connections.get(id).is_some_and(routing) {
            self.connect(now, id);
        }
    }

    /// What the connection wants from its stream next.
    #[must_use]
    pub fn rx(&self, id: ConnId) -> Rx {
        self.connections.get(id).map_or(Rx::Closed, Connection::rx)
    }

    /// How many slots the connection has; every `SlotId` is below. Grows once, at Connect.
    #[must_use]
    pub fn slots(&self, id: ConnId) -> u16 {
        self.connections
            .get(id)
            .map_or(0, |connection| connection.slots.capacity())
    }

    /// PDUs received on the connection so far.
    #[must_use]
    pub fn pdus(&self, id: ConnId) -> u64 {
        self.connections
            .get(id)
            .map_or(0, |connection| connection.counters.pdus)
    }

    /// Whether [`poll_dirty`](Self::poll_dirty) may have a connection to name.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether the connection is a queue that takes commands.
    #[must_use]
    pub fn is_ready(&self, id: ConnId) -> bool {
        let ready = |connection: &Connection| connection.state == State::Ready;
        self.connections.get(id).is_some_and(ready)
    }

    /// Connections and controllers there are, those that only wait for their last command included.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.connections.len() + self.controllers.len()
    }

    /// The next connection to poll for outputs, and to ask `rx` again.
    pub fn poll_dirty(&mut self) -> Option<ConnId> {
        loop {
            let id = self.dirty.pop_front()?;
            if let Some(connection) = self.connections.get_mut(id) {
                connection.dirty = false;
                return Some(id);
            }
        }
    }

    /// The next thing to do for a connection. Poll until `None`, now or later.
    pub fn poll_output(&mut self, now: Nanos, id: ConnId) -> Option<Output> {
        let connection = self.connections.get_mut(id)?;
        let was_idle = connection.executing == 0;
        let output = connection.poll(now);
        if was_idle
            && connection.executing > 0
            && let Some(queue) = connection.queue
        {
            self.started(now, queue.controller);
        }
        output
    }

    /// A queue has its first command at a device.
    fn started(&mut self, now: Nanos, key: Key) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        controller.health.started(now);
        let subsystem = controller
            .subsystem
            .and_then(|at| self.subsystems.get_mut(at)?.as_mut());
        if let Some(subsystem) = subsystem {
            subsystem.health.run.started(now);
        }
    }

    /// The next [`Output::Withdraw`] of a connection, before its other outputs: for one to whom
    /// nothing can be sent now, so that whoever waits for its commands does not wait for its host.
    pub fn poll_withdrawal(&mut self, now: Nanos, id: ConnId) -> Option<Output> {
        self.connections.get_mut(id)?.poll_withdrawal(now)
    }

    /// The socket is gone.
    pub fn closed(&mut self, now: Nanos, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.gone();
        self.detach(now, id);
        self.reap(now, id);
    }

    /// Ends a connection. What is at its device stays until it is complete.
    pub(super) fn close_connection(&mut self, now: Nanos, id: Key, graceful: bool) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.close(graceful);
        self.detach(now, id);
        self.touch(id);
    }

    /// An admin queue takes its association with it; an I/O queue does not. [FABRICS-1.1 §2.3]
    pub(super) fn detach(&mut self, now: Nanos, id: Key) {
        let queue = self
            .connections
            .get(id)
            .and_then(|connection| connection.queue);
        let Some(queue) = queue else { return };
        self.aborts_ended(now, id, queue.controller);
        if queue.qid == 0 {
            self.end(now, queue.controller);
        }
    }

    /// Forgets a connection whose socket is gone and whose last command has left its device.
    pub(super) fn reap(&mut self, now: Nanos, id: Key) {
        let done =
            |connection: &Connection| connection.state == State::Gone && connection.executing == 0;
        if !self.connections.get(id).is_some_and(done) {
            return;
        }
        let queue = self
            .remove_connection(id)
            .and_then(|connection| connection.queue);
        if let Some(queue) = queue.filter(|queue| queue.qid != 0)
            && let Some(controller) = self.controllers.get_mut(queue.controller)
        {
            controller.queues.retain(|&(_, other)| other != id);
            self.retry_held(now);
        }
    }

    pub(super) fn arm_connection(&mut self, id: Key) {
        let transfer = self.config.deadlines.transfer;
        if let Some(connection) = self.connections.get_mut(id)
            && let Some(at) = connection.next_deadline(transfer)
        {
            let key = TimerKey::Connection(id.index);
            self.timers.arm(&mut connection.armed, key, at);
        }
    }

    /// Makes sure the connection is looked at by `at`; on the path of commands, where looking for
    /// the exact deadline would cost more than looking too early.
    pub(super) fn arm_connection_at(&mut self, id: Key, at: Nanos) {
        if let Some(connection) = self.connections.get_mut(id) {
            let key = TimerKey::Connection(id.index);
            self.timers.arm(&mut connection.armed, key, at);
        }
    }

    /// When [`Target::handle_timeout`] must be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Nanos> {
        let stop = self.stopping.filter(|_| self.connections.len() > 0);
        match (self.timers.next(), stop) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Acts on every deadline that has passed.
    pub fn handle_timeout(&mut self, now: Nanos) {
        while let Some((at, key)) = self.timers.pop_due(now) {
            match key {
                TimerKey::Connection(index) => self.connection_timeout(now, index, at),
                TimerKey::Controller(index) => self.controller_timeout(now, index, at),
                TimerKey::AnaTransition(index) => self.ana_timeout(now, index, at),
            }
        }
        if self.stopping.is_some_and(|at| at <= now) {
            self.stopping = Some(Nanos::MAX);
            for id in self.connections.keys() {
                self.close_connection(now, id, true);
            }
        }
    }

    /// Puts off the next timers if their deadlines have moved since they were armed, as every Keep
    /// Alive moves one: without this a target with nothing else to do would wake for each.
    pub fn put_off_timers(&mut self) {
        for _ in 0..PUT_OFF_MAX {
            let Some((at, key)) = self.timers.first() else {
                return;
            };
            let deadline = self.deadline_of(key);
            if deadline.is_some_and(|deadline| deadline <= at) {
                return;
            }
            let armed = match key {
                TimerKey::Connection(index) => {
                    let id = self.connections.key_at(index);
                    id.and_then(|id| self.connections.get_mut(id))
                        .map(|it| &mut it.armed)
                }
                TimerKey::Controller(index) => {
                    let key = self.controllers.key_at(index);
                    key.and_then(|key| self.controllers.get_mut(key))
                        .map(|it| &mut it.armed)
                }
                // Does not move.
                TimerKey::AnaTransition(_) => return,
            };
            let Some(armed) = armed else {
                return;
            };
            self.timers.put_off(armed, key, deadline);
        }
    }

    /// What a timer is about.
    fn deadline_of(&self, key: TimerKey) -> Option<Nanos> {
        match key {
            TimerKey::Connection(index) => {
                let id = self.connections.key_at(index)?;
                let transfer = self.config.deadlines.transfer;
                self.connections.get(id)?.next_deadline(transfer)
            }
            TimerKey::Controller(index) => {
                let controller = self.controllers.get(self.controllers.key_at(index)?)?;
                self.controller_deadline(controller)
            }
            TimerKey::AnaTransition(_) => None,
        }
    }

    fn connection_timeout(&mut self, now: Nanos, index: u32, at: Nanos) {
        let transfer = self.config.deadlines.transfer;
        let Some(id) = self.connections.key_at(index) else {
            return;
        };
        let fires = |it: &mut Connection| it.armed.fires(at);
        if !self.connections.get_mut(id).is_some_and(fires) {
            return;
        }
        self.expire_first_half(now, id);
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let expired = connection
            .next_deadline(transfer)
            .is_some_and(|next| next <= now);
        match connection.state {
            _ if !expired => self.arm_connection(id),
            // The answer it was to get at the latest.
            State::HeldConnect => self.connect(now, id),
            State::Drain | State::Closing | State::Gone => {}
            State::AwaitIcReq
            | State::AwaitConnect
            | State::Routing
            | State::Ready
            | State::Linger => {
                self.counters.timed_out += 1;
                self.close_connection(now, id, false);
            }
        }
    }

    /// Stops gracefully: commands at devices finish and are answered, what has not begun is left
    /// to the host's retry, then every connection closes with FIN. Connect is refused as busy,
    /// without DNR. Done when [`Target::is_stopped`].
    pub fn stop(&mut self, now: Nanos) {
        self.stopping = Some(now.after(self.config.deadlines.stop));
        for id in self.connections.keys() {
            let Some(connection) = self.connections.get_mut(id) else {
                continue;
            };
            match connection.state {
                State::AwaitIcReq => self.close_connection(now, id, true),
                State::AwaitConnect | State::Ready => connection.drain(),
                State::HeldConnect | State::Routing => self.connect(now, id),
                State::Linger | State::Drain | State::Closing | State::Gone => {}
            }
            self.touch(id);
        }
    }

    /// Whether `stop` was called and no connection is left.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopping.is_some() && self.connections.len() == 0
    }
}
