//! One turn: what happened is handed to the service, what the service wants is sent.

use std::io;
use std::os::fd::AsRawFd;

use bowline_nvme::Nanos;
use crossbeam_channel::Receiver;

use crate::driver::{Driver, Event, HANGUP_BITS, READ_INTEREST, WRITE_INTEREST};
use crate::gather::Gather;
use crate::reactor::Reactor;
use crate::service::Service;
use crate::slab::{Key, Kind, Token};
use crate::socket::{ListenerId, Output, SocketId};
use crate::uring::SEND_WAIT;

/// Messages handled per turn.
const MESSAGES_PER_TURN: usize = 64;

/// Connections accepted per turn.
const ACCEPTS_PER_TURN: usize = 16;

/// Sockets shown to the service per turn.
const READABLE_PER_TURN: usize = 256;

/// Rounds of sending per turn: sends that complete at once make room for more output.
const SEND_ROUNDS: usize = 2;

/// How long accepting pauses when no descriptor or memory is left.
const ACCEPT_PAUSE: Nanos = Nanos::from_millis(100);

/// How often a pause is told: peers that hold on to connections can make it last.
const PAUSE_TOLD_INTERVAL: Nanos = Nanos::from_secs(10);

/// After a pause this long the next event is not expected soon, whatever came before it.
const PAUSE_MIN: Nanos = Nanos::from_millis(2);

/// From so much data on that is still in a medium, a call of its own costs less than the copy that
/// the ring would need.
const VIEWED_BYTES_MIN: usize = 64 << 10;

/// Ring sends up to this many bytes are expected to fit the socket's buffer at once.
const PROMPT_BYTES_MAX: usize = 32 << 10;

impl Reactor {
    /// Handles collected events and runs the service once. Returns whether messages are left.
    pub(crate) fn step<S: Service>(
        &mut self,
        service: &mut S,
        inbox: &Receiver<S::Message>,
        now: Nanos,
    ) -> bool {
        self.now = now;
        self.counters.turns += 1;
        self.burst = false;
        self.received_from = None;
        self.received_from_many = false;
        // Lowered before looking, at the stop flag as at the mailbox, so that what is sent from
        // now on raises it again.
        self.waker.take_signal();
        self.note_events();
        if self.waker.take_stop() {
            service.stopping(self, now);
        }
        while let Some((id, result)) = self.connected.pop_front() {
            self.burst = true;
            service.connected(self, now, id, result);
        }
        // Sockets first: what wakes a reactor after a pause is most likely a command, and whatever
        // is looked at before it is fetched from far away while its host waits.
        self.deliver_finished(service);
        self.deliver_readable(service);
        // Of what was sent early.
        self.deliver_finished(service);
        let more_messages = self.deliver_messages(service, inbox);
        self.accept_connections(service);
        service.turn(self, now);
        for _ in 0..SEND_ROUNDS {
            self.flush();
            if self.finished.is_empty() {
                break;
            }
            self.deliver_finished(service);
            service.turn(self, now);
        }
        // What the last round wants sent.
        self.flush();
        self.note_burst();
        more_messages
    }

    fn note_burst(&mut self) {
        if !self.burst {
            return;
        }
        let gap = self
            .idle_since
            .take()
            .map_or(Nanos::ZERO, |at| self.now.saturating_sub(at));
        self.idle.burst_after(gap, self.slept);
        if self.received_from.is_some() {
            self.hot_socket = if self.received_from_many {
                None
            } else {
                self.received_from
            };
        }
    }

    fn note_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            let key = event.token.key;
            match event.token.kind {
                Kind::Ignore => {}
                Kind::Wake => self.note_wake(event),
                Kind::Accept => self.note_acceptable(event),
                Kind::Socket => self.note_socket(event),
                Kind::Send => self.note_send(key, event.result),
                Kind::Disk => self.note_drive(key, event.result),
            }
        }
        self.events = events;
    }

    fn note_drive(&mut self, key: Key, result: i32) {
        if self.disk.with(|table| table.complete(key, result)) {
            self.burst = true;
            self.counters.disk_dones += 1;
        } else {
            self.counters.stale_events += 1;
        }
    }

    /// Takes the drive's answers out of the events; the others stay for the next turn.
    pub(crate) fn note_drive_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.extract_if(.., |event| event.token.kind == Kind::Disk) {
            self.note_drive(event.token.key, event.result);
        }
        self.events = events;
    }

    /// The eventfd is never read: every write is an edge of its own.
    fn note_wake(&mut self, event: Event) {
        if let Driver::Uring(ring) = &mut self.driver
            && !event.more
        {
            ring.watch(
                self.waker.eventfd().as_raw_fd(),
                Token::WAKE,
                READ_INTEREST,
                true,
            );
        }
    }

    fn note_acceptable(&mut self, event: Event) {
        let key = event.token.key;
        let Some(entry) = self.listeners.get_mut(key) else {
            self.counters.stale_events += 1;
            return;
        };
        if !entry.ready && entry.paused_until.is_none() {
            entry.ready = true;
            self.ready_listeners.push_back(ListenerId(key));
        }
        if let Driver::Uring(ring) = &mut self.driver
            && !event.more
        {
            ring.watch(entry.listener.as_raw_fd(), event.token, READ_INTEREST, true);
        }
    }

    fn note_socket(&mut self, event: Event) {
        let key = event.token.key;
        let Some(socket) = self.sockets.get_mut(key) else {
            self.counters.stale_events += 1;
            return;
        };
        if socket.connecting {
            self.finish_connect(key, event.result);
            return;
        }
        // A negative result is a poll that could not be armed: receiving tells why.
        let bits = u32::try_from(event.result).unwrap_or(HANGUP_BITS);
        socket.hangup |= bits & HANGUP_BITS != 0;
        let writable = bits & (WRITE_INTEREST | HANGUP_BITS) != 0;
        if bits & (READ_INTEREST | HANGUP_BITS) != 0 {
            self.rearm(SocketId(key));
        }
        if writable {
            self.continue_blocked(key);
        }
        if !event.more {
            self.rewatch(key);
        }
    }

    fn finish_connect(&mut self, key: Key, polled: i32) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        self.counters.socket_calls += 1;
        let result = match socket.stream.take_error() {
            Ok(None) if polled < 0 => Err(io::Error::from_raw_os_error(-polled)),
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        socket.connecting = false;
        let watched = match &self.driver {
            Driver::Uring(_) => {
                // The poll for the connection was of one shot.
                self.rewatch(key);
                Ok(())
            }
            Driver::Epoll(epoll) => {
                let token = Token::new(Kind::Socket, key);
                epoll.change(&socket.stream, token, READ_INTEREST, &mut self.counters)
            }
        };
        let result = result.and(watched);
        match result {
            // What was sent too early leaves now.
            Ok(()) => self.continue_blocked(key),
            Err(_) => self.close(SocketId(key)),
        }
        self.connected.push_back((SocketId(key), result));
    }

    /// A ring send completed.
    fn note_send(&mut self, key: Key, result: i32) {
        let Driver::Uring(ring) = &mut self.driver else {
            return;
        };
        let Some(done) = ring.finish_send(key) else {
            self.counters.stale_events += 1;
            return;
        };
        // A socket closed meanwhile lets its gather go here.
        let Some(socket) = self.sockets.get_mut(done.socket) else {
            return;
        };
        socket.note_sent(done.slow);
        let mut gather = done.gather;
        let id = SocketId(done.socket);
        match usize::try_from(result) {
            Ok(sent) if sent > 0 => {
                self.counters.send_bytes += sent as u64;
                gather.advance(sent);
                if gather.unsent() > 0 {
                    self.counters.sends_partial += 1;
                    socket.output = Output::Queued(gather);
                    self.outbox.push_back(id);
                } else {
                    self.finish(id, gather, Ok(()));
                }
            }
            Ok(_) => self.finish(id, gather, Err(io::ErrorKind::WriteZero.into())),
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => {
                socket.output = Output::Queued(gather);
                self.outbox.push_back(id);
            }
            Err(_) => self.finish(id, gather, Err(io::Error::from_raw_os_error(-result))),
        }
    }

    fn finish(&mut self, id: SocketId, gather: Gather, result: io::Result<()>) {
        let Some(socket) = self.sockets.get_mut(id.0) else {
            return;
        };
        self.counters.gathers += u64::from(result.is_ok());
        socket.output = Output::Finished(gather, result);
        self.finished.push_back(id);
    }

    fn deliver_messages<S: Service>(
        &mut self,
        service: &mut S,
        inbox: &Receiver<S::Message>,
    ) -> bool {
        let now = self.now;
        for _ in 0..MESSAGES_PER_TURN {
            let Ok(message) = inbox.try_recv() else {
                return false;
            };
            self.burst = true;
            self.counters.messages += 1;
            service.message(self, now, message);
        }
        !inbox.is_empty()
    }

    fn accept_connections<S: Service>(&mut self, service: &mut S) {
        let now = self.now;
        for key in self.listeners_due(now) {
            self.ready_listeners.push_back(ListenerId(key));
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(id) = self.ready_listeners.pop_front() else {
                return;
            };
            let Some(entry) = self.listeners.get_mut(id.0) else {
                continue;
            };
            self.counters.accept_calls += 1;
            match entry.listener.accept() {
                Ok((stream, peer)) => {
                    // Round robin between listeners; this one may have more.
                    self.ready_listeners.push_back(id);
                    self.counters.accepts += 1;
                    self.burst = true;
                    service.accepted(self, now, id, stream, peer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => entry.ready = false,
                // The connection died in the backlog; the next one is not affected.
                Err(error) if is_of_the_connection(&error) => self.ready_listeners.push_back(id),
                Err(error) => {
                    // Most likely no descriptor or memory is left. No edge will come for what
                    // waits in the backlog: try again later.
                    entry.ready = false;
                    entry.paused_until = Some(now.after(ACCEPT_PAUSE));
                    self.counters.accept_pauses += 1;
                    if self.pause_told_again_at <= now {
                        self.pause_told_again_at = now.after(PAUSE_TOLD_INTERVAL);
                        tracing::warn!(%error, "accepting pauses");
                    }
                }
            }
        }
    }

    /// Listeners whose pause is over, marked ready.
    fn listeners_due(&mut self, now: Nanos) -> Vec<Key> {
        if self.accept_deadline().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let keys = self.listeners.keys();
        keys.into_iter()
            .filter(|key| {
                let Some(entry) = self.listeners.get_mut(*key) else {
                    return false;
                };
                let due = entry.paused_until.is_some_and(|at| at <= now);
                if due {
                    entry.paused_until = None;
                    entry.ready = true;
                }
                due
            })
            .collect()
    }

    /// When a paused listener is to be tried again.
    pub(crate) fn accept_deadline(&self) -> Option<Nanos> {
        self.listeners
            .iter()
            .filter_map(|entry| entry.paused_until)
            .min()
    }

    fn deliver_finished<S: Service>(&mut self, service: &mut S) {
        let now = self.now;
        // What finishes during the calls waits for the next round.
        for _ in 0..self.finished.len() {
            let Some(id) = self.finished.pop_front() else {
                return;
            };
            let Some(socket) = self.sockets.get_mut(id.0) else {
                continue;
            };
            match std::mem::replace(&mut socket.output, Output::None) {
                Output::Finished(gather, result) => {
                    service.sent(self, now, id, gather, result);
                }
                other => socket.output = other,
            }
        }
    }

    fn deliver_readable<S: Service>(&mut self, service: &mut S) {
        let now = self.now;
        // What is rearmed during the calls waits for the next turn.
        for _ in 0..self.ready.len().min(READABLE_PER_TURN) {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            let Some(socket) = self.sockets.get_mut(id.0) else {
                continue;
            };
            socket.ready = false;
            service.readable(self, now, id);
        }
    }

    /// Sends what the service queued: directly where that is best, else with the next ring call.
    pub(crate) fn flush(&mut self) {
        let direct = match &self.driver {
            Driver::Epoll(_) => true,
            Driver::Uring(_) => self.outbox.len() == 1 && self.sends_directly(),
        };
        while let Some(id) = self.outbox.pop_front() {
            let Some(socket) = self.sockets.get_mut(id.0) else {
                continue;
            };
            match std::mem::replace(&mut socket.output, Output::None) {
                Output::Queued(gather) if direct || gather.viewed_bytes() >= VIEWED_BYTES_MIN => {
                    self.send_now(id, gather);
                }
                Output::Queued(gather) => self.send_by_ring(id, gather),
                other => socket.output = other,
            }
        }
    }

    /// Whether what is sent on one socket leaves by a call of its own.
    fn sends_directly(&self) -> bool {
        match &self.driver {
            Driver::Epoll(_) => true,
            // While spinning, a direct call answers 3 % sooner than a submission. Before sleeping, the
            // submission costs no call of its own; but if nothing else happens while its
            // completion is waited for, that ends the sleep once more.
            Driver::Uring(_) => self.idle.is_hot() || !self.expects_events(),
        }
    }

    /// Whether what is sent now may leave at once by [`send_early`](Self::send_early): it would be
    /// all that this turn sends, as nothing else was sent yet or is to be shown to the service.
    #[must_use]
    pub fn may_send_early(&self) -> bool {
        // What was sent early is among the finished until the service knows.
        let is_first = self.outbox.is_empty() && self.finished.is_empty();
        self.ready.is_empty() && is_first && self.sends_directly()
    }

    /// Sends what was queued without waiting for the turn's end, for a service that has nothing to
    /// add to it, but other things to do that the peer need not wait for.
    pub fn send_early(&mut self) {
        self.flush();
    }

    /// Whether something is likely to happen while a send's completion is waited for: bursts have
    /// lately come that close to each other, and this one did not follow a long pause.
    fn expects_events(&self) -> bool {
        let pause = self.idle_since.map(|at| self.now.saturating_sub(at));
        self.idle.expects_within(SEND_WAIT) && pause.is_none_or(|span| span < PAUSE_MIN)
    }

    fn send_by_ring(&mut self, id: SocketId, mut gather: Gather) {
        // The kernel may read it later.
        gather.fix();
        let Driver::Uring(ring) = &mut self.driver else {
            return;
        };
        let Some(socket) = self.sockets.get_mut(id.0) else {
            return;
        };
        let prompt = !socket.is_slow() && gather.unsent() <= PROMPT_BYTES_MAX;
        self.counters.sends_ring += 1;
        let send = ring.send(socket.stream.as_raw_fd(), id.0, gather, prompt);
        socket.output = Output::Ring(send);
    }

    fn send_now(&mut self, id: SocketId, mut gather: Gather) {
        loop {
            let Some(socket) = self.sockets.get_mut(id.0) else {
                return;
            };
            self.counters.sends_direct += 1;
            match gather.send_direct(&socket.stream) {
                Ok(sent) => {
                    self.counters.send_bytes += sent as u64;
                    gather.advance(sent);
                    if gather.unsent() == 0 {
                        return self.finish(id, gather, Ok(()));
                    }
                    self.counters.sends_partial += 1;
                    return self.block(id, gather);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.block(id, gather);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.finish(id, gather, Err(error)),
            }
        }
    }

    /// The socket's buffer is full: the rest leaves when there is room.
    fn block(&mut self, id: SocketId, mut gather: Gather) {
        // A part may have left: the rest is to be of the same moment.
        gather.fix();
        if matches!(self.driver, Driver::Uring(_)) {
            if let Some(socket) = self.sockets.get_mut(id.0) {
                socket.note_sent(true);
            }
            return self.send_by_ring(id, gather);
        }
        let watched = self.watch_writable(id, true);
        match watched {
            Ok(()) => {
                if let Some(socket) = self.sockets.get_mut(id.0) {
                    socket.output = Output::Blocked(gather);
                }
            }
            Err(error) => self.finish(id, gather, Err(error)),
        }
    }

    fn watch_writable(&mut self, id: SocketId, wanted: bool) -> io::Result<()> {
        let Driver::Epoll(epoll) = &self.driver else {
            return Ok(());
        };
        let Some(socket) = self.sockets.get(id.0) else {
            return Ok(());
        };
        let interest = if wanted {
            READ_INTEREST | WRITE_INTEREST
        } else {
            READ_INTEREST
        };
        epoll.change(
            &socket.stream,
            Token::new(Kind::Socket, id.0),
            interest,
            &mut self.counters,
        )
    }

    fn continue_blocked(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        let id = SocketId(key);
        match std::mem::replace(&mut socket.output, Output::None) {
            Output::Blocked(gather) => {
                // Watching for room ends first: if there is too little, it begins again, and
                // reports room that came meanwhile.
                match self.watch_writable(id, false) {
                    Ok(()) => self.send_now(id, gather),
                    Err(error) => self.finish(id, gather, Err(error)),
                }
            }
            other => socket.output = other,
        }
    }
}

/// Whether `accept` failed because of the connection it was to return, not of the listener.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
        )
    )
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};

    use bowline_block::{ClassConfig, PoolConfig, PoolMemory};

    use super::*;
    use crate::clock::monotonic_now;
    use crate::config::{Config, IoBackend, PollMode};
    use crate::socket::SocketId;
    use crate::spawn::LocalReactor;

    /// Is asked to stop again while it handles the first request, as by another thread.
    #[derive(Default)]
    struct AskedTwice {
        asked: usize,
    }

    impl Service for AskedTwice {
        type Message = ();
        fn message(&mut self, _: &mut Reactor, _: Nanos, (): ()) {}
        fn accepted(
            &mut self,
            _: &mut Reactor,
            _: Nanos,
            _: ListenerId,
            _: TcpStream,
            _: SocketAddr,
        ) {
        }
        fn readable(&mut self, _: &mut Reactor, _: Nanos, _: SocketId) {}
        fn sent(&mut self, _: &mut Reactor, _: Nanos, _: SocketId, _: Gather, _: io::Result<()>) {}
        fn turn(&mut self, _: &mut Reactor, _: Nanos) {}
        fn poll_timeout(&self) -> Option<Nanos> {
            None
        }
        fn stopping(&mut self, cx: &mut Reactor, _: Nanos) {
            self.asked += 1;
            if self.asked == 1 {
                cx.waker().request_stop();
            }
        }
        fn is_stopped(&self) -> bool {
            self.asked == 2
        }
    }

    #[test]
    fn stop_requested_after_the_stop_flag_was_read_is_not_forgotten() {
        for io in [IoBackend::Epoll, IoBackend::Auto] {
            let config = Config {
                io,
                poll: PollMode::Never,
                core: None,
                name: "test".to_owned(),
                mailbox_depth: 4,
                pool: PoolConfig {
                    classes: vec![ClassConfig {
                        bytes: 4096,
                        count: 1,
                    }],
                },
                memory: PoolMemory::default(),
            };
            let made = LocalReactor::new(&config, |_, _| Ok(AskedTwice::default()));
            let mut local = made.unwrap();
            local.stop();
            let deadline = monotonic_now().after(Nanos::from_secs(10));
            assert!(local.run_until(deadline) && monotonic_now() < deadline);
        }
    }
}
