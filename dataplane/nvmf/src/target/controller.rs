//! A controller: the association of one host with one subsystem, and its life cycle.
//!
//! ```text
//! Disabled ─EN=1─► Ready ─EN=0─► Resetting ─no command at a device─► Disabled
//!    │               │               │
//!    └───────────────┴───────────────┴─admin queue lost, Keep Alive expired,
//!                                      host no longer allowed─► Ended ─drained─► gone
//! ```
//!
//! RDY stays set in `Resetting`, and an `Ended` controller stays in the way of its host's next
//! Connect: in both cases a write still at its device could otherwise overtake a newer one.

use std::net::SocketAddr;

use bowline_nvme::fabrics::Cc;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::{Nanos, Sqe, Status};

use super::abort::PendingAbort;
use super::async_event::{AsyncEvents, Event};
use super::discovery::Snapshot;
use super::error_log::ErrorLog;
use super::feature::Features;
use super::health::Health;
use super::output::{IoCommand, IoOp, SlotId};
use super::reservation::Notices;
use super::slot::Stage;
use super::table::Key;
use super::timer::{Armed, TimerKey};
use super::{Target, connection::Pending, connection::State};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Io,
    Discovery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Disabled,
    Ready,
    Resetting,
    Ended,
}

/// Progress of a shutdown. A volatile cache is flushed by a Flush of our own on each namespace
/// that has one, after everything accepted before has left its device. [BASE-2.0 §3.6.2]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    None,
    Draining,
    /// The Flush of this namespace is on its way.
    Flushing {
        nsid: u32,
    },
    Complete,
}

/// An association that ended because its host let a deadline pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Host NQN.
    pub hostnqn: String,
    /// Subsystem NQN.
    pub subnqn: String,
    /// Controller id.
    pub cntlid: u16,
    /// The host's address.
    pub peer: Option<SocketAddr>,
    /// Which deadline it was.
    pub reason: ExpiryReason,
}

/// Why an association expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryReason {
    /// Neither a Keep Alive nor another command for so long.
    KeepAlive {
        /// The controller's Keep Alive Timeout.
        kato: Nanos,
    },
    /// A discovery controller that was to be short was left alone.
    Idle,
    /// Not enabled in time, or not again after a reset or a shutdown.
    NotEnabled,
}

/// Most expiries that wait to be asked about.
const EXPIRIES_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Controller {
    pub(super) cntlid: u16,
    pub(super) kind: Kind,
    /// Position in the target's table; `None` for discovery.
    pub(super) subsystem: Option<usize>,
    pub(super) subnqn: Nqn,
    pub(super) hostnqn: Nqn,
    pub(super) hostid: [u8; 16],
    /// The admin queue's connection.
    pub(super) admin: Key,
    /// Set aside on the admin queue for the flushes of a shutdown.
    pub(super) flush_slot: Option<SlotId>,
    /// I/O queues by id, those whose connection only drains included.
    pub(super) queues: Vec<(u16, Key)>,
    pub(super) cc: Cc,
    /// CSTS.CFS.
    pub(super) fatal: bool,
    pub(super) phase: Phase,
    pub(super) shutdown: Shutdown,
    /// Keep Alive Timeout; zero means none.
    pub(super) kato: Nanos,
    /// Before this the keep-alive timer was not running.
    alive_since: Nanos,
    /// Without EN until then, the association ends.
    pub(super) association_by: Option<Nanos>,
    pub(super) features: Features,
    pub(super) events: AsyncEvents,
    /// Aborts that wait for their commands to end.
    pub(super) aborts: Vec<PendingAbort>,
    pub(super) changed: ChangedList,
    pub(super) notices: Notices,
    pub(super) health: Health,
    pub(super) errors: ErrorLog,
    pub(super) discovery: Option<Snapshot>,
    /// What VWC says, for the whole association: hosts ask once. Without it a host never flushes,
    /// so its writes to a volatile namespace that came later must be durable by themselves.
    pub(super) volatile_cache: bool,
    /// The subsystem reports ANA.
    pub(super) ana: bool,
    /// Changes of the ANA log before the last controller reset, which this host does not count.
    pub(super) ana_changes_base: u64,
    pub(super) created: Nanos,
    pub(super) armed: Armed,
}

/// What Connect settles about a new controller.
pub(super) struct NewController {
    pub(super) cntlid: u16,
    pub(super) kind: Kind,
    pub(super) subsystem: Option<usize>,
    pub(super) subnqn: Nqn,
    pub(super) hostnqn: Nqn,
    pub(super) hostid: [u8; 16],
    pub(super) admin: Key,
    pub(super) kato: Nanos,
    pub(super) io_queues: u16,
    pub(super) volatile_cache: bool,
    /// Changes of the ANA log until now, if there is one.
    pub(super) ana_changes: Option<u64>,
}

impl Controller {
    pub(super) fn new(now: Nanos, new: NewController) -> Self {
        Self {
            cntlid: new.cntlid,
            kind: new.kind,
            subsystem: new.subsystem,
            subnqn: new.subnqn,
            hostnqn: new.hostnqn,
            hostid: new.hostid,
            admin: new.admin,
            flush_slot: None,
            queues: Vec::new(),
            cc: Cc::default(),
            fatal: false,
            phase: Phase::Disabled,
            shutdown: Shutdown::None,
            kato: new.kato,
            alive_since: now,
            association_by: None,
            features: Features::new(new.io_queues),
            events: AsyncEvents::new(),
            aborts: Vec::new(),
            changed: ChangedList::default(),
            notices: Notices::default(),
            health: Health::default(),
            errors: ErrorLog::default(),
            discovery: None,
            volatile_cache: new.volatile_cache,
            ana: new.ana_changes.is_some(),
            ana_changes_base: new.ana_changes.unwrap_or(0),
            created: now,
            armed: Armed::default(),
        }
    }

    /// Whether the host may send commands other than Fabrics ones.
    pub(super) fn is_enabled(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether I/O commands are executed.
    pub(super) fn runs_io(&self) -> bool {
        self.phase == Phase::Ready && self.shutdown == Shutdown::None
    }

    /// Whether a reset or a shutdown may go on that waits for the last command to leave its device.
    pub(super) fn is_drained(&self) -> bool {
        !self.health.is_busy() && !self.runs_io()
    }

    /// The keep-alive timer runs while the controller is ready and not shutting down.
    /// [BASE-2.0 §3.9.1]
    fn keep_alive(&self, discovery: Nanos) -> Option<Nanos> {
        if !self.runs_io() {
            return None;
        }
        match (self.kato, self.kind) {
            (Nanos::ZERO, Kind::Discovery) => Some(discovery),
            (Nanos::ZERO, Kind::Io) => None,
            (kato, _) => Some(kato),
        }
    }

    fn is_same_host(&self, hostnqn: &Nqn, hostid: &[u8; 16]) -> bool {
        let same_name = self.hostnqn == *hostnqn && *hostnqn != Nqn::ANONYMOUS;
        same_name || self.hostid == *hostid
    }

    /// Whether this dead association keeps the host's next one waiting.
    pub(super) fn fences(&self, subnqn: &Nqn, hostnqn: &Nqn, hostid: &[u8; 16]) -> bool {
        self.phase == Phase::Ended
            && self.kind == Kind::Io
            && self.subnqn == *subnqn
            && self.is_same_host(hostnqn, hostid)
    }
}

/// The Changed Namespace List: what changed since the log was last read. [BASE-2.0 §5.16.1.5]
#[derive(Debug, Default)]
pub(super) struct ChangedList {
    /// Ascending.
    pub(super) nsids: Vec<u32>,
}

impl ChangedList {
    /// One more than the log can name: then it says "too many".
    const COUNT_MAX: usize = 1025;

    pub(super) fn add(&mut self, nsid: u32) {
        if let Err(at) = self.nsids.binary_search(&nsid)
            && self.nsids.len() < Self::COUNT_MAX
        {
            self.nsids.insert(at, nsid);
        }
    }

    pub(super) fn clear(&mut self) {
        self.nsids.clear();
    }
}

impl Target {
    /// EN was set. [BASE-2.0 §3.5.1]
    pub(super) fn enable(&mut self, now: Nanos, key: Key) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        match controller.phase {
            Phase::Disabled if controller.settings_are_valid() => {
                controller.phase = Phase::Ready;
                controller.alive_since = now;
                controller.association_by = None;
            }
            Phase::Disabled => controller.fatal = true,
            // While a reset drains, EN counts when it is done.
            Phase::Resetting | Phase::Ready | Phase::Ended => {}
        }
        self.arm_controller(key);
    }

    /// EN was cleared: I/O queues and event requests go, the admin queue stays. [BASE-2.0 §3.7.2]
    pub(super) fn reset(&mut self, now: Nanos, key: Key) {
        let association = self.config.deadlines.association;
        let io_queues = self.config.io_queues_max;
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        if controller.phase == Phase::Ready {
            controller.phase = Phase::Resetting;
        }
        controller.fatal = false;
        controller.shutdown = Shutdown::None;
        controller.features = Features::new(io_queues);
        controller.notices = Notices::default();
        controller.association_by = Some(now.after(association));
        let subsystem = controller
            .subsystem
            .and_then(|at| self.subsystems.get(at)?.as_ref());
        if let Some(ana) = subsystem.and_then(|subsystem| subsystem.ana.as_ref()) {
            controller.ana_changes_base = ana.changes;
        }
        if let Some(admin) = self.connections.get_mut(controller.admin) {
            let aborts = controller.aborts.drain(..).map(|it| it.abort);
            for slot in controller.events.reset().chain(aborts) {
                admin.slots.release(slot);
            }
            admin.slots.release_at(Stage::Reservation);
            let unsent = controller
                .flush_slot
                .and_then(|id| admin.slots.at_stage(id, Stage::Queued));
            if let Some(slot) = unsent {
                slot.stage = Stage::Reserved;
            }
        }
        let queues: Vec<Key> = controller.queues.iter().map(|&(_, queue)| queue).collect();
        for queue in queues {
            self.close_connection(now, queue, true);
        }
        self.advance(now, key);
        self.arm_controller(key);
    }

    /// SHN was set. [BASE-2.0 §3.6.2]
    pub(super) fn shut_down(&mut self, now: Nanos, key: Key) {
        let association = self.config.deadlines.association;
        if let Some(controller) = self.controllers.get_mut(key) {
            controller.shutdown = Shutdown::Draining;
            controller.association_by = Some(now.after(association));
        }
        // No Flush of ours covers what reaches its device only after it.
        self.fail_queued(now, key, Status::COMMAND_SEQUENCE_ERROR, |_| true);
        self.advance(now, key);
        self.arm_controller(key);
    }

    /// The association is over: every queue closes, and what is at a device is waited for.
    pub(super) fn end(&mut self, now: Nanos, key: Key) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        if controller.phase == Phase::Ended {
            return;
        }
        controller.phase = Phase::Ended;
        self.ended.push(key);
        let mut queues: Vec<Key> = controller.queues.iter().map(|&(_, queue)| queue).collect();
        queues.push(controller.admin);
        for queue in queues {
            let finishes = match self.connections.get(queue).map(|queue| queue.state) {
                // Nothing of it will reach a device, and its host is to read why it ends.
                Some(State::Linger) => true,
                // A stopping target lets its queues finish by themselves. Otherwise nothing of a
                // queue that drains may reach its device after the next association has begun.
                Some(State::Drain) => self.stopping.is_some(),
                _ => false,
            };
            if !finishes {
                self.close_connection(now, queue, true);
            }
        }
        self.advance(now, key);
    }

    /// Takes the step that waited for the last command to leave its device, if it has.
    pub(super) fn advance(&mut self, now: Nanos, key: Key) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        if controller.health.is_busy() {
            return;
        }
        let shutdown = controller.shutdown;
        match controller.phase {
            Phase::Ended => return self.forget_controller(now, key),
            Phase::Resetting => {
                controller.phase = Phase::Disabled;
                if controller.cc.en() {
                    self.enable(now, key);
                }
            }
            Phase::Disabled | Phase::Ready => {}
        }
        // The shutdown may have been asked for during the reset.
        if shutdown == Shutdown::Draining {
            self.flush_after(now, key, 0);
        }
    }

    /// Flushes the next namespace that has a volatile cache and can be reached; shutdown is complete
    /// after the last.
    pub(super) fn flush_after(&mut self, now: Nanos, key: Key, nsid: u32) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        let namespaces = controller
            .subsystem
            .and_then(|at| self.subsystems.get(at)?.as_ref())
            .map(|subsystem| &subsystem.namespaces);
        let mut next = namespaces.and_then(|namespaces| namespaces.after(nsid));
        while let Some(namespace) = next.filter(|namespace| !namespace.needs_flush()) {
            next = namespaces.and_then(|namespaces| namespaces.after(namespace.nsid));
        }
        let (Some(namespace), Some(id)) = (next, controller.flush_slot) else {
            controller.shutdown = Shutdown::Complete;
            return;
        };
        let Some(admin) = self.connections.get_mut(controller.admin) else {
            return;
        };
        if let Some(slot) = admin.slots.at_stage(id, Stage::Reserved) {
            controller.shutdown = Shutdown::Flushing {
                nsid: namespace.nsid,
            };
            slot.sqe = Sqe([0; 64]);
            slot.command = IoCommand {
                namespace: namespace.handle,
                op: IoOp::Flush,
                bytes: 0,
            };
            slot.enter(now, Stage::Queued);
            admin.push(Pending::Execute(id));
        }
        let admin = controller.admin;
        self.touch(admin);
    }

    /// A flush of ours has finished. One that failed leaves a shutdown that is done but not
    /// safe, which only CSTS.CFS can say.
    pub(super) fn flushed(&mut self, now: Nanos, key: Key, status: Status) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        let Shutdown::Flushing { nsid } = controller.shutdown else {
            return;
        };
        // Nobody is left to be told that the shutdown is complete, and nothing of an association
        // that is over may begin at a device.
        if controller.phase == Phase::Ended {
            return;
        }
        if !status.is_success() {
            controller.fatal = true;
        }
        self.flush_after(now, key, nsid);
    }

    /// The last trace of an ended association goes; whoever waited for that is looked at again.
    fn forget_controller(&mut self, now: Nanos, key: Key) {
        let Some(mut controller) = self.controllers.remove(key) else {
            return;
        };
        let timer = TimerKey::Controller(key.index);
        self.timers.disarm(&mut controller.armed, timer);
        self.by_cntlid
            .remove(&(controller.subsystem, controller.cntlid));
        self.ended.retain(|&other| other != key);
        if let Some(at) = controller.subsystem
            && let Some(place) = self.subsystems.get_mut(at)
            && let Some(subsystem) = place
        {
            subsystem.controllers.retain(|&other| other != key);
            if subsystem.removed && subsystem.controllers.is_empty() {
                *place = None;
            }
        }
        self.retry_held(now);
    }

    /// Reports an event to one controller, now or when the host asks.
    pub(super) fn raise(&mut self, now: Nanos, key: Key, event: Event) {
        if let Some(controller) = self.controllers.get_mut(key) {
            controller.events.raise(event);
        }
        self.deliver_events(now, key);
    }

    pub(super) fn deliver_events(&mut self, now: Nanos, key: Key) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        let Some(admin) = self.connections.get_mut(controller.admin) else {
            return;
        };
        while let Some((slot, result)) = controller.events.deliver() {
            admin.respond(now, slot, Status::SUCCESS, u64::from(result));
        }
        let admin = controller.admin;
        self.touch(admin);
    }

    /// When the host must have been heard of again. [BASE-2.0 §3.9]
    fn keep_alive_by(&self, controller: &Controller) -> Option<Nanos> {
        let timeout = controller.keep_alive(self.config.deadlines.discovery)?;
        let queues = controller.queues.iter().map(|&(_, key)| key);
        let heard = queues
            .chain([controller.admin])
            .filter_map(|key| self.connections.get(key))
            .map(|connection| connection.last_command)
            .fold(controller.alive_since, Nanos::max);
        Some(heard.after(timeout))
    }

    pub(super) fn controller_deadline(&self, controller: &Controller) -> Option<Nanos> {
        let keep_alive = self.keep_alive_by(controller);
        [keep_alive, controller.association_by]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn arm_controller(&mut self, key: Key) {
        let Some(controller) = self.controllers.get(key) else {
            return;
        };
        let deadline = self.controller_deadline(controller);
        if let (Some(at), Some(controller)) = (deadline, self.controllers.get_mut(key)) {
            self.timers
                .arm(&mut controller.armed, TimerKey::Controller(key.index), at);
        }
    }

    /// A controller's timer fired: Keep Alive expired, the host did not come back after a reset,
    /// or there was traffic and the timer starts again. [BASE-2.0 §3.9]
    pub(super) fn controller_timeout(&mut self, now: Nanos, index: u32, at: Nanos) {
        let Some(key) = self.controllers.key_at(index) else {
            return;
        };
        if !self
            .controllers
            .get_mut(key)
            .is_some_and(|controller| controller.armed.fires(at))
        {
            return;
        }
        let Some(controller) = self.controllers.get(key) else {
            return;
        };
        if controller.phase == Phase::Ended {
            return;
        }
        let passed = |deadline: Option<Nanos>| deadline.is_some_and(|deadline| deadline <= now);
        if !passed(self.controller_deadline(controller)) {
            return self.arm_controller(key);
        }
        let keep_alive = passed(self.keep_alive_by(controller));
        self.expire(now, key, keep_alive);
    }

    /// Gives up an association, and leaves a word about it for the owner.
    fn expire(&mut self, now: Nanos, key: Key, keep_alive: bool) {
        let Some(controller) = self.controllers.get_mut(key) else {
            return;
        };
        controller.fatal = true;
        let admin = self.connections.get(controller.admin);
        let reason = match (keep_alive, controller.kato) {
            (false, _) => ExpiryReason::NotEnabled,
            (true, Nanos::ZERO) => ExpiryReason::Idle,
            (true, kato) => ExpiryReason::KeepAlive { kato },
        };
        if keep_alive {
            self.counters.keep_alive_expired += 1;
        } else {
            self.counters.timed_out += 1;
        }
        if self.expiries.len() < EXPIRIES_MAX {
            self.expiries.push_back(Expiry {
                hostnqn: controller.hostnqn.as_str().to_owned(),
                subnqn: controller.subnqn.as_str().to_owned(),
                cntlid: controller.cntlid,
                peer: admin.map(|admin| admin.path.peer),
                reason,
            });
        }
        self.end(now, key);
    }

    /// The next association that ended because its host let a deadline pass; those that nobody
    /// asks about are only counted beyond a limit.
    pub fn poll_expiry(&mut self) -> Option<Expiry> {
        self.expiries.pop_front()
    }
}
