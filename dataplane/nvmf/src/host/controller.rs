//! One association: admin queue, I/O queues, keep-alive, events, and coming back after a loss.

mod attention;
mod config;
mod event;
mod shutdown;
mod upkeep;

use std::collections::VecDeque;

use bowline_nvme::fabrics::Cc;
use bowline_nvme::feature::AsyncEventConfig;
use bowline_nvme::nqn;
use bowline_nvme::{ControllerId, Nanos, QueueId, Sqe};

use super::backoff::Backoff;
use super::bring_up::{BringUp, ControllerFacts, Next, Wishes};
use super::close_reason::CloseReason;
use super::command;
use super::namespace::HostNamespace;
use super::queue::{HostIdentity, HostQueue, HostQueueConfig, Output, QueueEvent, Rx};
use super::request::{Command, Completion, SubmitError};
use super::slots::{SlotId, Transfer};
use upkeep::{KeepAlive, Task};

pub use config::ControllerConfig;
pub use event::{HostEvent, HostState};

/// Slots of the admin queue kept for Keep Alive, an Asynchronous Event Request, and one command
/// of the controller's own.
const ADMIN_RESERVED: u16 = 3;
/// Asynchronous events a host is interested in: namespace attributes, ANA, discovery log.
/// [BASE-2.0 §5.27.1.8]
const EVENTS_WANTED: AsyncEventConfig = AsyncEventConfig::NAMESPACE_ATTRIBUTE
    .union(AsyncEventConfig::ANA_CHANGE)
    .union(AsyncEventConfig::DISCOVERY_CHANGE);

/// Tokens of the controller's own commands, which are told from the owner's by
/// [`Completion::internal`].
mod token {
    pub(super) const BRING_UP: u64 = 0;
    pub(super) const KEEP_ALIVE: u64 = 1;
    pub(super) const ASYNC_EVENT: u64 = 2;
    pub(super) const TASK: u64 = 3;
    pub(super) const SHUTDOWN: u64 = 4;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    /// The admin queue's connection, ICReq and Connect.
    Admin,
    BringUp,
    /// The I/O queues' connections, ICReqs and Connects.
    IoQueues,
    Ready,
    ShuttingDown {
        until: Nanos,
    },
    Waiting {
        until: Nanos,
    },
    Stopped,
}

/// A queue's transport, as far as the owner was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Closed,
    Opening { until: Nanos },
    Open,
}

#[derive(Debug)]
struct QueueEntry {
    transport: Transport,
    /// Stays after the end of the connection, until the next one replaces it: its last words
    /// may not have been sent yet.
    queue: Option<HostQueue>,
    /// It is listed: it may have events.
    listed: bool,
}

/// An association with a controller. See the [module](super) for how it is driven.
///
/// ```text
/// Idle --connect--> Admin -> BringUp -> IoQueues -> Ready --disconnect--> ShuttingDown -> Stopped
///   Admin .. Ready --loss--> Waiting --retry--> Admin
///   Admin .. Ready --loss, no retry--> Stopped --connect--> Admin
/// ```
#[derive(Debug)]
pub struct HostController {
    config: ControllerConfig,
    identity: HostIdentity,
    phase: Phase,
    queues: Vec<QueueEntry>,
    /// Queues that may have events, each once.
    listed: VecDeque<u16>,
    /// No queue's timer is earlier. It may be too early itself: that costs one look at all.
    queues_due: Option<Nanos>,
    events: VecDeque<HostEvent>,
    bring_up: Option<BringUp>,
    facts: Option<ControllerFacts>,
    /// CC as the controller was enabled with.
    cc: Cc,
    namespaces: Vec<HostNamespace>,
    backoff: Backoff,
    keep_alive: KeepAlive,
    /// When bring-up or shutdown reads CSTS again.
    pause_until: Option<Nanos>,
    task: Option<Task>,
    /// Namespaces changed while a task was running.
    rescan: bool,
}

impl HostController {
    /// An association that waits for [`HostController::connect`].
    #[must_use]
    pub fn new(config: ControllerConfig) -> Self {
        let identity = HostIdentity {
            hostnqn: config.hostnqn,
            hostid: config.hostid,
            subnqn: config.subnqn,
        };
        let count = usize::from(config.io_queues) + 1;
        let queues = (0..count)
            .map(|_| QueueEntry {
                transport: Transport::Closed,
                queue: None,
                listed: false,
            })
            .collect();
        let backoff = Backoff::new(config.reconnect.unwrap_or_default(), config.seed);
        Self {
            config,
            identity,
            phase: Phase::Idle,
            queues,
            listed: VecDeque::with_capacity(count),
            queues_due: None,
            events: VecDeque::with_capacity(count + 8),
            bring_up: None,
            facts: None,
            cc: Cc::default(),
            namespaces: Vec::new(),
            backoff,
            keep_alive: KeepAlive::default(),
            pause_until: None,
            task: None,
            rescan: false,
        }
    }

    /// Where the association is.
    #[must_use]
    pub fn state(&self) -> HostState {
        match self.phase {
            Phase::Idle => HostState::Idle,
            Phase::Admin | Phase::BringUp | Phase::IoQueues => HostState::Connecting,
            Phase::Ready => HostState::Ready,
            Phase::ShuttingDown { .. } => HostState::ShuttingDown,
            Phase::Waiting { until } => HostState::Waiting { until },
            Phase::Stopped => HostState::Stopped,
        }
    }

    /// The parameters.
    #[must_use]
    pub fn config(&self) -> &ControllerConfig {
        &self.config
    }

    /// What the controller said about itself when it was last connected.
    #[must_use]
    pub fn facts(&self) -> Option<&ControllerFacts> {
        self.facts.as_ref()
    }

    /// The namespaces, in ascending order of NSID, as last seen.
    #[must_use]
    pub fn namespaces(&self) -> &[HostNamespace] {
        &self.namespaces
    }

    /// How many queues there can be, the admin queue included.
    #[must_use]
    pub fn queue_count_max(&self) -> usize {
        self.queues.len()
    }

    /// Commands of the owner's that this queue can hold; 0 while it is not connected.
    #[must_use]
    pub fn depth_max(&self, queue: u16) -> usize {
        self.queue(queue)
            .filter(|queue| queue.is_ready())
            .map_or(0, HostQueue::depth_max)
    }

    /// Commands outstanding on a queue, the controller's own included.
    #[must_use]
    pub fn outstanding(&self, queue: u16) -> usize {
        self.queue(queue).map_or(0, HostQueue::outstanding)
    }

    /// Starts, or starts again after the end. Nothing happens if it is under way.
    pub fn connect(&mut self, now: Nanos) {
        if matches!(self.phase, Phase::Idle | Phase::Stopped) {
            self.backoff.reset();
            self.open_admin(now);
        }
    }

    /// Ends the association: orderly if it is up, at once otherwise. Commands still outstanding
    /// when it ends are completed as lost.
    pub fn disconnect(&mut self, now: Nanos) {
        match self.phase {
            Phase::Idle | Phase::Stopped | Phase::ShuttingDown { .. } => {}
            Phase::IoQueues | Phase::Ready => self.shut_down(now),
            Phase::Admin | Phase::BringUp | Phase::Waiting { .. } => {
                self.lose(now, CloseReason::Requested);
            }
        }
    }

    /// The connection for this queue is open.
    pub fn opened(&mut self, now: Nanos, queue: u16) {
        let Some(entry) = self.queues.get_mut(usize::from(queue)) else {
            return;
        };
        if !matches!(entry.transport, Transport::Opening { .. }) {
            return;
        }
        entry.transport = Transport::Open;
        let config = self.queue_config(queue);
        let fresh = HostQueue::new(now, &self.identity, config);
        let due = fresh.poll_timeout();
        self.queues[usize::from(queue)].queue = Some(fresh);
        self.note_due(due);
    }

    /// The connection for this queue is gone, or could not be opened.
    pub fn closed(&mut self, now: Nanos, queue: u16) {
        let Some(entry) = self.queues.get_mut(usize::from(queue)) else {
            return;
        };
        if entry.transport != Transport::Closed {
            entry.transport = Transport::Closed;
            self.lose(now, CloseReason::PathLost);
        }
    }

    /// What to do with the next bytes received on this queue.
    #[must_use]
    pub fn rx(&self, queue: u16) -> Rx {
        self.queue(queue).map_or(Rx::Closed, HostQueue::rx)
    }

    /// Received bytes, as [`HostQueue::handle_bytes`].
    pub fn handle_bytes(&mut self, now: Nanos, queue: u16, input: &[u8]) -> usize {
        self.with_queue(queue, |queue| queue.handle_bytes(now, input))
            .unwrap_or(input.len())
    }

    /// Landed data, as [`HostQueue::handle_payload`].
    pub fn handle_payload(&mut self, now: Nanos, queue: u16, landed: u32, crc: Option<u32>) {
        self.with_queue(queue, |queue| queue.handle_payload(now, landed, crc));
    }

    /// Whether there is something to send on this queue.
    #[must_use]
    pub fn has_output(&self, queue: u16) -> bool {
        self.queue(queue).is_some_and(HostQueue::has_output)
    }

    /// The next thing to send on this queue.
    pub fn poll_output(&mut self, queue: u16) -> Option<Output> {
        let entry = self.queues.get_mut(usize::from(queue))?;
        entry.queue.as_mut()?.poll_output()
    }

    /// The bytes that [`TxPayload::Control`](super::TxPayload) names.
    #[must_use]
    pub fn control(&self, queue: u16) -> &[u8] {
        self.queue(queue)
            .map_or(&[], |queue| queue.control().as_slice())
    }

    /// Accepts a command of the owner's.
    ///
    /// # Errors
    /// [`SubmitError`]; the command was not taken.
    pub fn submit(
        &mut self,
        now: Nanos,
        queue: u16,
        command: Command,
    ) -> Result<SlotId, SubmitError> {
        if self.phase != Phase::Ready {
            return Err(SubmitError::NotReady);
        }
        let maximum = self
            .facts
            .map_or(u32::MAX, |facts| facts.transfer_bytes_max);
        if command.transfer.len() > maximum {
            return Err(SubmitError::Length);
        }
        self.with_queue(queue, |queue| queue.submit(now, command))
            .ok_or(SubmitError::NotReady)?
    }

    /// The next thing that happened. Call until `None` after every other call.
    pub fn poll_event(&mut self, now: Nanos) -> Option<HostEvent> {
        while let Some((queue, event)) = self.next_queue_event() {
            match event {
                QueueEvent::Complete(completion) if !completion.internal => {
                    return Some(HostEvent::Complete { queue, completion });
                }
                QueueEvent::Complete(completion) => self.on_internal(now, &completion),
                QueueEvent::Ready { cntlid } if queue == 0 => self.admin_connected(now, cntlid),
                QueueEvent::Ready { .. } => self.io_connected(now),
                QueueEvent::Closed(reason) => self.lose(now, reason),
            }
        }
        self.events.pop_front()
    }

    /// When [`HostController::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Nanos> {
        let phase = match self.phase {
            Phase::Waiting { until } | Phase::ShuttingDown { until } => Some(until),
            _ => None,
        };
        let timers = [
            phase,
            self.pause_until,
            self.keep_alive.due_at,
            self.queues_due,
        ];
        timers.into_iter().flatten().min()
    }

    /// Acts on whatever is due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        if self.queues_due.is_some_and(|at| at <= now) {
            self.on_queues_due(now);
        }
        if self.keep_alive.due_at.is_some_and(|at| at <= now) {
            self.on_keep_alive(now);
        }
        if self.pause_until.is_some_and(|at| at <= now) {
            self.pause_until = None;
            match self.phase {
                Phase::BringUp => self.drive_bring_up(now),
                Phase::ShuttingDown { .. } => self.read_csts(now),
                _ => {}
            }
        }
        match self.phase {
            Phase::Waiting { until } if until <= now => self.open_admin(now),
            Phase::ShuttingDown { until } if until <= now => {
                self.lose(now, CloseReason::Requested);
            }
            _ => {}
        }
    }

    fn on_queues_due(&mut self, now: Nanos) {
        let mut open_overdue = false;
        for index in 0..self.queues.len() {
            let entry = &mut self.queues[index];
            match (entry.transport, &mut entry.queue) {
                (Transport::Opening { until }, _) => open_overdue |= until <= now,
                (Transport::Open, Some(queue)) => {
                    queue.handle_timeout(now);
                    self.list(number(index));
                }
                _ => {}
            }
        }
        self.renew_due();
        if open_overdue {
            self.lose(now, CloseReason::OpenTimeout);
        }
    }

    fn queue(&self, queue: u16) -> Option<&HostQueue> {
        self.queues.get(usize::from(queue))?.queue.as_ref()
    }

    fn queue_config(&self, queue: u16) -> HostQueueConfig {
        let config = &self.config;
        let facts = self.facts.as_ref().filter(|_| queue > 0);
        let keep_alive_ms = u32::try_from(config.keep_alive.as_millis()).unwrap_or(u32::MAX);
        HostQueueConfig {
            qid: QueueId(queue),
            cntlid: facts.map_or(ControllerId::DYNAMIC, |facts| facts.cntlid),
            entries: match facts {
                Some(facts) => config.io_queue_entries.min(facts.queue_entries_max),
                None => config.admin_queue_entries.max(8),
            },
            reserved: if queue == 0 { ADMIN_RESERVED } else { 0 },
            digests: config.digests,
            keep_alive_ms,
            sq_flow_control: config.sq_flow_control,
            in_capsule_bytes: facts.map_or(0, |facts| facts.in_capsule_bytes),
            setup_timeout: config.setup_timeout,
            command_timeout: if queue == 0 {
                Some(config.admin_timeout)
            } else {
                config.io_timeout
            },
        }
    }

    fn open_admin(&mut self, now: Nanos) {
        self.phase = Phase::Admin;
        self.open(now, 0);
    }

    fn open(&mut self, now: Nanos, queue: u16) {
        let until = now.after(self.config.open_timeout);
        if let Some(entry) = self.queues.get_mut(usize::from(queue)) {
            entry.transport = Transport::Opening { until };
            self.events.push_back(HostEvent::Open { queue });
            self.note_due(Some(until));
        }
    }

    fn admin_connected(&mut self, now: Nanos, cntlid: ControllerId) {
        let wishes = Wishes {
            io_queues: self.config.io_queues,
            events: if self.config.async_events {
                EVENTS_WANTED
            } else {
                AsyncEventConfig(0)
            },
            namespaces_max: self.config.namespaces_max,
            discovery: self.identity.subnqn.as_str() == nqn::DISCOVERY,
        };
        self.bring_up = Some(BringUp::new(cntlid, wishes));
        self.phase = Phase::BringUp;
        self.drive_bring_up(now);
    }

    fn drive_bring_up(&mut self, now: Nanos) {
        let Some(bring_up) = &mut self.bring_up else {
            return;
        };
        match bring_up.next(now) {
            Next::Command(sqe, transfer) => self.run(now, sqe, transfer, token::BRING_UP),
            Next::Wait(until) => self.pause_until = Some(until),
            Next::Finished => self.brought_up(now),
        }
    }

    fn brought_up(&mut self, now: Nanos) {
        let Some(bring_up) = self.bring_up.take() else {
            return;
        };
        let facts = *bring_up.facts();
        let events = bring_up.events_enabled();
        self.facts = Some(facts);
        self.cc = bring_up.configuration(true);
        self.namespaces = bring_up.into_namespaces();
        let timeout = if facts.keep_alive {
            self.config.keep_alive
        } else {
            Nanos::ZERO
        };
        let due_at = (timeout > Nanos::ZERO).then(|| now.after(Nanos(timeout.0 / 2)));
        self.keep_alive = KeepAlive {
            timeout,
            due_at,
            sent_at: None,
        };
        if events {
            self.run(
                now,
                command::async_event_request(),
                Transfer::None,
                token::ASYNC_EVENT,
            );
        }
        self.phase = Phase::IoQueues;
        for queue in 1..=facts.io_queues {
            self.open(now, queue);
        }
        self.io_connected(now);
    }

    /// Checks whether every queue is up.
    fn io_connected(&mut self, now: Nanos) {
        let Some(facts) = self.facts else { return };
        let wanted = 0..=usize::from(facts.io_queues);
        let up = |index: usize| {
            let queue = self
                .queues
                .get(index)
                .and_then(|entry| entry.queue.as_ref());
            queue.is_some_and(HostQueue::is_ready)
        };
        if self.phase == Phase::IoQueues && wanted.into_iter().all(up) {
            self.phase = Phase::Ready;
            self.backoff.reset();
            self.events.push_back(HostEvent::Connected);
            self.start_task(now);
        }
    }

    /// Submits a command of the controller's own on the admin queue.
    fn run(&mut self, now: Nanos, sqe: Sqe, transfer: Transfer, token: u64) {
        let command = Command {
            sqe,
            transfer,
            token,
        };
        let submitted = self.with_queue(0, |admin| admin.submit_internal(now, command));
        // Slots are reserved for these, so the only way to fail is a queue that just ended; its
        // end is on its way as an event.
        if matches!(submitted, Some(Err(_))) {
            self.lose(now, CloseReason::PathLost);
        }
    }

    fn on_internal(&mut self, now: Nanos, completion: &Completion) {
        // A lost connection announces itself.
        if completion.path_lost {
            return;
        }
        match completion.token {
            token::BRING_UP => self.on_bring_up(now, completion),
            token::KEEP_ALIVE => self.keep_alive.answered(now),
            token::ASYNC_EVENT => self.on_async_event(now, completion),
            token::TASK => self.on_task(now, completion),
            token::SHUTDOWN => self.on_shutdown(now, completion),
            _ => {}
        }
    }

    fn on_bring_up(&mut self, now: Nanos, completion: &Completion) {
        let admin = self.queues.first().and_then(|entry| entry.queue.as_ref());
        let (Some(bring_up), Some(admin)) = (&mut self.bring_up, admin) else {
            return;
        };
        match bring_up.handle(now, completion.status, completion.result, admin.control()) {
            Ok(()) => self.drive_bring_up(now),
            Err(reason) => self.lose(now, reason),
        }
    }

    /// Ends the association, and plans the next attempt if there is to be one.
    fn lose(&mut self, now: Nanos, reason: CloseReason) {
        let reason = match self.phase {
            Phase::Idle | Phase::Stopped => return,
            // Already lost: the queues' own ends arrive one by one.
            Phase::Waiting { .. } if reason != CloseReason::Requested => return,
            Phase::ShuttingDown { .. } => CloseReason::Requested,
            _ => reason,
        };
        for index in 0..self.queues.len() {
            let entry = &mut self.queues[index];
            if let Some(queue) = &mut entry.queue {
                queue.close(reason);
            }
            if entry.transport != Transport::Closed {
                entry.transport = Transport::Closed;
                let queue = number(index);
                self.events.push_back(HostEvent::Close { queue });
            }
            self.list(number(index));
        }
        self.renew_due();
        self.keep_alive = KeepAlive::default();
        self.pause_until = None;
        self.bring_up = None;
        self.task = None;
        self.rescan = false;
        let again = self.config.reconnect.is_some() && !is_final(reason);
        match again.then(|| self.backoff.next_delay()).flatten() {
            Some(delay) => {
                let retry_at = now.after(delay);
                self.phase = Phase::Waiting { until: retry_at };
                self.events
                    .push_back(HostEvent::Disconnected { reason, retry_at });
            }
            None => {
                self.phase = Phase::Stopped;
                self.events.push_back(HostEvent::Stopped { reason });
            }
        }
    }
}

/// Whether trying again is pointless. A status with Do Not Retry is the controller's word for
/// it, as for Linux since 6.12.
fn is_final(reason: CloseReason) -> bool {
    match reason {
        CloseReason::Requested | CloseReason::AuthenticationRequired => true,
        CloseReason::ConnectRejected { status, .. } => status.is_dnr(),
        _ => false,
    }
}

/// A queue's number; there are 65536 at most.
fn number(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
