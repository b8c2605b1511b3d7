//! Serves NVMe subsystems on one reactor.
//!
//! A [`TargetService`] owns the reactor's [`Target`] (the protocol), its devices, and one link per
//! connection. Each turn it takes device completions, runs what the machine wants done, and sends
//! what was gathered: one send per connection and turn. A connection whose Connect names a
//! subsystem of another reactor moves there, socket and machine together; after that nothing of
//! it crosses reactors.

mod at_once;
mod budget;
mod exec;
mod grace;
mod link;
mod links;
mod manage;
mod reservation;
mod route;
mod rx;
mod tx;
mod upkeep;
mod work;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bowline_block::{Device, IoBuf, PoolMemory};
use bowline_nvme::Nanos;
use bowline_nvmf::target::{ConnId, ExpiryReason, Handoff, Path, Target, TargetConfig};
use bowline_reactor::{DetachError, Gather, ListenerId, Reactor, Service, SocketId};

use budget::Reserve;
use exec::{Executor, Finished, LateWrite};
use grace::Grace;
use link::{Closing, Link};
use links::Links;
use manage::Stop;
use tx::{Need, Waiting};
use upkeep::TIDY_AFTER;
use work::LogLimits;

pub use manage::{NamespaceSpec, RefreshError};
pub use reservation::{ReservationStore, StoreReservations};
pub use route::Route;
pub use work::{Usage, Work};

/// Commands that end while they start are run in rounds; a turn does at most this many before the
/// reactor looks at its sockets again.
const ROUNDS_PER_TURN: usize = 8;

/// Room made at start, so that lists of commands and connections do not grow while I/O runs; they
/// still may when more come at once.
const COMMANDS_EXPECTED: usize = 256;

/// How soon a full mailbox of another reactor is tried again.
const HANDOFF_RETRY: Nanos = Nanos(500_000);

/// Stalled connections that are tried again in a round although nothing of theirs has moved: the
/// pool may have something for them.
const STALLED_PER_ROUND: usize = 16;

/// A change of configuration, run on the reactor.
pub type Call<D> = Box<dyn FnOnce(&mut TargetService<D>, &mut Reactor, Nanos) + Send>;

/// What other threads send to a [`TargetService`].
pub enum TargetMessage<D: Device> {
    /// A connection whose subsystem lives here.
    Adopt(Box<Adoption>),
    /// Management.
    Call(Call<D>),
}

/// A connection on its way from the reactor that accepted it to the one that owns its subsystem.
pub struct Adoption {
    handoff: Handoff,
    stream: TcpStream,
    carry: Vec<u8>,
}

/// The NVMe/TCP target of one reactor. See the module's text.
pub struct TargetService<D: Device> {
    target: Target,
    executor: Executor<D>,
    links: Links,
    waiting: VecDeque<Waiting>,
    /// Buffers beside the pool, of each connection's own.
    reserve: Reserve,
    /// A buffer kept for commands that need a second one.
    spare: Option<IoBuf>,
    finished: Vec<Finished>,
    /// Writes that were answered and not made yet. None outside of [`receive`](Self::receive).
    late: Vec<LateWrite>,
    /// Connections to be flushed at the end of the turn.
    touched: Vec<ConnId>,
    /// Connections that could not leave their socket yet.
    staying: Vec<ConnId>,
    /// The last turn's share ended before there was nothing left to do.
    unfinished: bool,
    /// Subsystems that other reactors own.
    routes: HashMap<String, Route<D>>,
    /// Connections whose new reactor had no room for them yet.
    departures: VecDeque<(Route<D>, Box<Adoption>)>,
    /// When departures are tried again.
    departures_at: Nanos,
    /// When to look whether a peer reads, by place and generation of its connection.
    send_checks: BinaryHeap<Reverse<(Nanos, u32, u32)>>,
    /// Received in this turn, by all connections.
    turn_bytes: usize,
    /// When timers that have moved may be put off again.
    put_off_at: Nanos,
    /// When memory is given back; `None` while there is none to give.
    tidy_at: Option<Nanos>,
    work: Work,
    log_limits: LogLimits,
    grace: Grace,
    listeners: Vec<(ListenerId, u16)>,
    names: manage::Names,
    stop: Stop,
    flush_failures: Arc<AtomicUsize>,
    /// Where reservations are stored that outlive the process.
    reservation_store: Option<Box<dyn ReservationStore>>,
}

impl<D: Device> TargetService<D> {
    /// A target without subsystems.
    #[must_use]
    pub fn new(config: TargetConfig) -> Self {
        let target = Target::new(config);
        let reserve = Reserve::new(target.config(), &PoolMemory::default());
        Self {
            target,
            executor: Executor::new(),
            links: Links::default(),
            waiting: VecDeque::with_capacity(COMMANDS_EXPECTED),
            reserve,
            spare: None,
            finished: Vec::with_capacity(COMMANDS_EXPECTED),
            late: Vec::with_capacity(COMMANDS_EXPECTED),
            touched: Vec::with_capacity(COMMANDS_EXPECTED),
            staying: Vec::new(),
            unfinished: false,
            routes: HashMap::new(),
            departures: VecDeque::new(),
            departures_at: Nanos::ZERO,
            send_checks: BinaryHeap::new(),
            turn_bytes: 0,
            put_off_at: Nanos::ZERO,
            tidy_at: None,
            work: Work::default(),
            log_limits: LogLimits::default(),
            grace: Grace::default(),
            listeners: Vec::new(),
            names: manage::Names::default(),
            stop: Stop::default(),
            flush_failures: Arc::default(),
            reservation_store: None,
        }
    }

    /// Has what connections hold besides the reactor's pool in this memory: the reactor's, as both
    /// go to devices.
    #[must_use]
    pub fn with_memory(mut self, memory: &PoolMemory) -> Self {
        self.reserve = Reserve::new(self.target.config(), memory);
        self
    }

    fn open_link(&mut self, cx: &mut Reactor, now: Nanos, stream: TcpStream, path: Path) {
        let has_room = self.reserve.make_room(self.links.len() + 1);
        let opened = has_room.then(|| self.target.open(now, path)).flatten();
        let Some(conn) = opened else {
            // The host sees a closed connection and tries again.
            if let Some(left_out) = self.log_limits.connections.admit(now) {
                tracing::warn!(peer = %path.peer, left_out, "connection beyond a limit not served");
            }
            return;
        };
        match cx.attach(stream) {
            Ok(socket) => self.links.insert(Link::new(conn, socket, Vec::new())),
            Err(error) => {
                if let Some(left_out) = self.log_limits.connections.admit(now) {
                    tracing::warn!(peer = %path.peer, %error, left_out, "connection not served");
                }
                self.target.closed(now, conn);
            }
        }
    }

    fn adopt(&mut self, cx: &mut Reactor, now: Nanos, adoption: Adoption) {
        let Adoption {
            handoff,
            stream,
            carry,
        } = adoption;
        let has_room = self.reserve.make_room(self.links.len() + 1);
        let adopted = has_room.then(|| self.target.adopt(now, handoff)).flatten();
        let Some(conn) = adopted else {
            if let Some(left_out) = self.log_limits.connections.admit(now) {
                let peer = stream.peer_addr().ok().map(tracing::field::display);
                tracing::warn!(peer, left_out, "connection beyond a limit not served");
            }
            return;
        };
        match cx.attach(stream) {
            Ok(socket) => {
                self.links.insert(Link::new(conn, socket, carry));
                self.links.stall(conn);
                self.target.resume(now, conn);
            }
            Err(error) => {
                if let Some(left_out) = self.log_limits.connections.admit(now) {
                    tracing::warn!(%error, left_out, "connection lost while it changed reactors");
                }
                self.target.closed(now, conn);
            }
        }
    }

    /// Forgets a connection whose socket is of no more use.
    fn drop_link(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) {
        if let Some(link) = self.links.remove(conn) {
            cx.close(link.socket);
            self.link_gone(now, link);
        }
    }

    /// Tells the machine that a connection's socket is gone. Its end waits for every command
    /// handed out, also for those that were never started.
    fn link_gone(&mut self, now: Nanos, mut link: Link) {
        let conn = link.conn;
        self.target.closed(now, conn);
        self.executor.forget_failure(conn);
        // Its buffers come back to the pool: somebody may have waited for them.
        self.unfinished |= !self.waiting.is_empty() || self.links.stalled_count() > 0;
        self.end_deferred(now, conn, std::mem::take(link.deferred_mut()));
        if link.queued > 0 {
            let (its, others) = self.waiting.drain(..).partition(|it| it.conn == conn);
            self.waiting = others;
            self.end_deferred(now, conn, its);
        }
    }

    /// Ends commands that were handed out but never started, so that nobody waits for them.
    fn end_deferred(&mut self, now: Nanos, conn: ConnId, deferred: VecDeque<Waiting>) {
        for Waiting { slot, need, .. } in deferred {
            if let Need::Execute(command) = need {
                self.give_up(now, conn, slot, &command);
            }
        }
    }

    /// Sends what the connection has gathered, and ends or moves it when that was the last.
    fn settle(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) {
        let Some(link) = self.links.get_mut(conn) else {
            return;
        };
        // A connection that ends in anger does not wait for a peer that may never read.
        if link.closing != Some(Closing::Abort) {
            link.flush(cx, now);
            if link.has_spare_memory() || cx.has_spare_gathers() {
                self.tidy_at.get_or_insert(now.after(TIDY_AFTER));
            }
            if !link.is_flushed(cx) {
                self.watch_send(now, conn);
                return;
            }
        }
        if let Some(closing) = link.closing {
            let socket = link.socket;
            match closing {
                Closing::Graceful => cx.close(socket),
                Closing::Abort => cx.abort(socket),
            }
            if let Some(link) = self.links.remove(conn) {
                self.link_gone(now, link);
            }
        } else if let Some(subnqn) = link.leaving_to.take() {
            self.depart(cx, now, conn, &subnqn);
        }
    }

    /// Starts a connection's move to the reactor that owns its subsystem.
    fn depart(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId, subnqn: &str) {
        let Some(route) = self.routes.get(subnqn).cloned() else {
            // The subsystem went away meanwhile: the answer is given here.
            self.target.resume(now, conn);
            return;
        };
        let Some(link) = self.links.get_mut(conn) else {
            return;
        };
        match cx.detach(link.socket) {
            Ok(stream) => {
                let Some(mut link) = self.links.remove(conn) else {
                    return;
                };
                let Some(handoff) = self.target.take(conn) else {
                    // It ended meanwhile.
                    self.target.closed(now, conn);
                    return;
                };
                let carry = link.take_carry();
                self.departures.push_back((
                    route,
                    Box::new(Adoption {
                        handoff,
                        stream,
                        carry,
                    }),
                ));
                self.send_departures(now);
            }
            // The kernel still has requests on the socket: again next turn.
            Err(DetachError::Busy | DetachError::StillSending) => {
                link.leaving_to = Some(subnqn.to_owned());
                self.staying.push(conn);
            }
            Err(DetachError::NotOpen) => self.drop_link(cx, now, conn),
        }
    }

    /// Hosts that try again and again must not fill the log.
    fn tell_refused(&mut self, now: Nanos) {
        while let Some(it) = self.target.poll_refusal() {
            let Some(left_out) = self.log_limits.refusals.admit(now) else {
                continue;
            };
            let reason = it.reason();
            tracing::warn!(
                host = %it.hostnqn, subsystem = %it.subnqn, qid = it.qid, peer = %it.peer, reason,
                left_out, "Connect refused"
            );
        }
    }

    fn tell_expired(&mut self, now: Nanos) {
        while let Some(it) = self.target.poll_expiry() {
            let Some(left_out) = self.log_limits.expiries.admit(now) else {
                continue;
            };
            let peer = it.peer.map(tracing::field::display);
            let (host, subsystem, cntlid) = (it.hostnqn, it.subnqn, it.cntlid);
            match it.reason {
                ExpiryReason::KeepAlive { kato } => {
                    let kato_ms = kato.as_millis();
                    tracing::warn!(
                        %host, %subsystem, cntlid, peer, kato_ms, left_out,
                        "host silent for its keep-alive timeout, association ended"
                    );
                }
                ExpiryReason::Idle => {
                    tracing::info!(%host, cntlid, peer, left_out, "idle discovery controller ended");
                }
                ExpiryReason::NotEnabled => tracing::info!(
                    %host, %subsystem, cntlid, peer, left_out,
                    "controller not enabled in time, association ended"
                ),
            }
        }
    }

    fn send_departures(&mut self, now: Nanos) {
        while let Some((route, adoption)) = self.departures.pop_front() {
            match route.try_send(TargetMessage::Adopt(adoption)) {
                Ok(()) | Err(TargetMessage::Call(_)) => {}
                Err(TargetMessage::Adopt(adoption)) => {
                    self.departures.push_front((route, adoption));
                    self.departures_at = now.after(HANDOFF_RETRY);
                    return;
                }
            }
        }
    }

    /// What turns have cost so far.
    #[must_use]
    pub fn work(&self) -> Work {
        self.work
    }

    /// What is kept for connections now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            connections: self.links.len(),
            machine_connections: self.target.connection_count(),
            waiting: self.waiting.len(),
            stalled: self.links.stalled_count(),
            executing: self.executor.in_flight(),
            reserved: self.reserve.used(),
        }
    }

    fn receive_stalled(&mut self, cx: &mut Reactor, now: Nanos) {
        for _ in 0..self.links.stalled_count().min(STALLED_PER_ROUND) {
            if let Some(conn) = self.links.next_stalled() {
                self.receive(cx, now, conn);
            }
        }
    }

    /// Something of the connection has moved: it may be what it waited for.
    fn receive_if_stalled(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) {
        if self.links.get(conn).is_some_and(|link| link.stalled) {
            self.receive(cx, now, conn);
        }
    }

    /// Runs the machines until nothing moves any more, or the turn's share is used up.
    fn run_machines(&mut self, cx: &mut Reactor, now: Nanos) {
        for _ in 0..ROUNDS_PER_TURN {
            // What moved in the last round may have made room for those who wait for it.
            self.receive_stalled(cx, now);
            self.executor.poll(now, &mut self.finished);
            let mut moved = !self.finished.is_empty();
            self.complete_finished(now);
            self.supply_waiting(cx, now);
            // A device that need not be waited for has ended what has just got its buffer, and
            // nothing would wake us for it.
            moved |= !self.finished.is_empty();
            self.complete_finished(now);
            while let Some(conn) = self.target.poll_dirty() {
                moved = true;
                self.pump(cx, now, conn);
                self.touched.push(conn);
                self.receive_if_stalled(cx, now, conn);
            }
            moved |= self.store_reservations(now);
            if !moved {
                self.unfinished = false;
                return;
            }
        }
        self.unfinished = true;
    }
}

impl<D: Device + 'static> Service for TargetService<D> {
    type Message = TargetMessage<D>;

    fn message(&mut self, cx: &mut Reactor, now: Nanos, message: TargetMessage<D>) {
        match message {
            TargetMessage::Adopt(adoption) => self.adopt(cx, now, *adoption),
            TargetMessage::Call(call) => call(self, cx, now),
        }
    }

    fn accepted(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        listener: ListenerId,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        let port = self.listeners.iter().find(|(id, _)| *id == listener);
        let (Some(&(_, listener)), Ok(local)) = (port, stream.local_addr()) else {
            return;
        };
        self.open_link(
            cx,
            now,
            stream,
            Path {
                local,
                peer,
                listener,
            },
        );
    }

    fn readable(&mut self, cx: &mut Reactor, now: Nanos, socket: SocketId) {
        if let Some(conn) = self.links.conn(socket)
            && !self.put_off(cx, socket)
        {
            self.receive(cx, now, conn);
        }
    }

    fn sent(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        gather: Gather,
        result: std::io::Result<()>,
    ) {
        // Its views of the command buffers go back to the pool now.
        drop(gather);
        let Some(conn) = self.links.conn(socket) else {
            return;
        };
        if result.is_err() {
            self.drop_link(cx, now, conn);
            return;
        }
        if let Some(link) = self.links.get_mut(conn) {
            link.sent();
        }
        self.pump(cx, now, conn);
        self.touched.push(conn);
        self.receive_if_stalled(cx, now, conn);
    }

    fn turn(&mut self, cx: &mut Reactor, now: Nanos) {
        if let Some(at) = self.target.poll_timeout()
            && self.grace.is_due(at, now)
        {
            // Who waits for our buffers is not late.
            for conn in self.links.stalled() {
                self.target.stalled(now, conn);
            }
            self.target.handle_timeout(now);
            self.tell_expired(now);
        }
        self.turn_bytes = 0;
        self.close_unread(cx, now);
        self.put_off_timers(now);
        if self.tidy_at.is_some_and(|at| at <= now) {
            self.tidy(cx, now);
        }
        self.handle_device_events(now);
        self.send_departures(now);
        self.run_machines(cx, now);
        self.tell_refused(now);
        self.touched.append(&mut self.staying);
        while let Some(conn) = self.touched.pop() {
            self.settle(cx, now, conn);
        }
        // Answered in the next turn only.
        self.finished.iter_mut().for_each(Finished::fix);
        self.advance_stop();
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        let handoff = (!self.departures.is_empty()).then_some(self.departures_at);
        let unfinished = (self.unfinished || !self.staying.is_empty()).then_some(Nanos::ZERO);
        let machine = self.target.poll_timeout().map(|at| self.grace.act_at(at));
        let devices = self.executor.poll_timeout();
        let sends = self.send_checks.peek().map(|Reverse((at, ..))| *at);
        let own = [sends, self.tidy_at];
        [machine, devices, handoff, unfinished]
            .into_iter()
            .chain(own)
            .flatten()
            .min()
    }

    fn expects_completion(&self) -> bool {
        self.executor.in_flight() > 0
    }

    fn stopping(&mut self, cx: &mut Reactor, now: Nanos) {
        self.begin_stop(cx, now);
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_done()
    }
}
