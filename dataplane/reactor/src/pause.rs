//! Between turns: submit, spin, sleep.

use bowline_nvme::Nanos;

use crate::clock::monotonic_now;
use crate::driver::{Driver, Wait};
use crate::reactor::Reactor;

/// Looks at the ring between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 32;

/// A busy reactor publishes its counters this often.
const PUBLISH_INTERVAL: Nanos = Nanos::from_micros(200);

/// How spinning ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spin {
    Found,
    Due,
    InVain(Nanos),
}

impl Reactor {
    /// Submits what is queued and waits for the next turn's reason: an event, a message, or the
    /// time `until`. With `more`, or other work at hand, there is no waiting.
    pub(crate) fn settle(&mut self, until: Option<Nanos>, expects: bool, more: bool) {
        let has_slept = std::mem::take(&mut self.slept);
        let now = monotonic_now();
        if now.saturating_sub(self.published_at) >= PUBLISH_INTERVAL {
            self.publish(now);
        }
        if more || self.has_work() || until.is_some_and(|at| at <= now) {
            self.collect();
            return;
        }
        let goes_on = has_slept && self.idle_since.is_some();
        self.idle_since.get_or_insert(now);
        let mut plan = self.idle.plan(now, expects);
        if goes_on && !expects && plan.park {
            // A timer has interrupted a pause that was spun for in vain already.
            (plan.spin, plan.warm) = (Nanos::ZERO, Nanos::ZERO);
        }
        if plan.spin > Nanos::ZERO {
            self.counters.spins += 1;
            match self.spin(now, plan.spin, until) {
                Spin::Found => {
                    self.counters.spin_hits += 1;
                    return;
                }
                Spin::Due => return,
                Spin::InVain(span) => self.idle.spun_in_vain(span),
            }
        }
        if plan.warm > Nanos::ZERO && self.sleep(until, Some(plan.warm)) {
            return;
        }
        if plan.park {
            self.sleep(until, None);
        }
    }

    /// Submits what is queued and collects what is there, without waiting.
    pub(crate) fn collect(&mut self) {
        match &mut self.driver {
            Driver::Uring(ring) => {
                if ring.has_queued() || ring.needs_enter() {
                    ring.enter(Wait::No, &mut self.events, &mut self.counters);
                    self.guessed = false;
                } else {
                    ring.reap(&mut self.events, &mut self.counters);
                }
            }
            Driver::Epoll(epoll) => epoll.wait(Wait::No, &mut self.events, &mut self.counters),
        }
        self.empty_graveyard();
    }

    /// Submits what engines have asked of the drive, waits for an answer, for `patience` at the most, and
    /// hands it to them. The service gets no turn, and finds all other events when it does: so this is for
    /// what cannot begin before a drive has answered, or cannot end, when nothing is served. Returns the time.
    pub fn wait_for_drive(&mut self, patience: Nanos) -> Nanos {
        let wait = match self.disk.with(|table| table.take_turn_due()) {
            true => Wait::No,
            false => Wait::For(patience),
        };
        match &mut self.driver {
            Driver::Uring(ring) => ring.enter(wait, &mut self.events, &mut self.counters),
            // Threads have it. They wake the reactor.
            Driver::Epoll(epoll) => epoll.wait(wait, &mut self.events, &mut self.counters),
        }
        self.note_drive_events();
        monotonic_now()
    }

    /// Submits what is queued, if anything is.
    pub(crate) fn submit(&mut self) {
        if let Driver::Uring(ring) = &mut self.driver
            && ring.has_queued()
        {
            ring.enter(Wait::No, &mut self.events, &mut self.counters);
            self.guessed = false;
        }
        self.empty_graveyard();
    }

    /// Whether a turn has something to do that needs no new event.
    pub(crate) fn has_work(&mut self) -> bool {
        !(self.events.is_empty()
            && self.ready.is_empty()
            && self.ready_listeners.is_empty()
            && self.finished.is_empty()
            && self.connected.is_empty()
            && self.outbox.is_empty())
            || self.disk.with(|table| table.take_turn_due())
    }

    pub(crate) fn publish(&mut self, now: Nanos) {
        self.published_at = now;
        self.shared.publish(&self.counters);
    }

    /// Looks for events for at most `budget`, on the ring without system calls.
    fn spin(&mut self, start: Nanos, budget: Nanos, until: Option<Nanos>) -> Spin {
        self.submit();
        if !self.events.is_empty() {
            return Spin::Found;
        }
        let end = start.after(budget);
        loop {
            if self.look() || self.waker.is_signalled() {
                return Spin::Found;
            }
            let now = monotonic_now();
            if until.is_some_and(|at| at <= now) {
                return Spin::Due;
            }
            if now >= end {
                return Spin::InVain(now.saturating_sub(start));
            }
        }
    }

    /// A few looks for events. True: collected some, or the hot socket is worth a try.
    fn look(&mut self) -> bool {
        let Driver::Uring(ring) = &mut self.driver else {
            self.collect();
            return !self.events.is_empty();
        };
        for _ in 0..LOOKS_PER_CLOCK {
            if ring.has_events() {
                // A completion waits to be posted. If only one socket was busy lately it is most
                // likely its poll: receiving at once spares the time of entering the kernel
                // first, 5 % of a command alone. Entering follows after this turn. (ADR 0013)
                if ring.has_only_deferred()
                    && !self.guessed
                    && let Some(hot) = self.hot_socket
                    && self.sockets.get(hot.0).is_some()
                    && self.disk.with(|table| table.in_kernel()) == 0
                {
                    self.guessed = true;
                    self.rearm(hot);
                } else {
                    self.collect();
                }
                return true;
            }
            if self.waker.is_signalled() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Sleeps until something happens, `until`, or for `limit`. False: only the limit passed.
    fn sleep(&mut self, until: Option<Nanos>, limit: Option<Nanos>) -> bool {
        if !self.waker.park() {
            // A flood of messages must not hold up what is queued.
            self.collect();
            return true;
        }
        let now = monotonic_now();
        match limit {
            Some(_) => self.counters.warm_waits += 1,
            None => self.counters.parks += 1,
        }
        self.publish(now);
        let span = until.map(|at| at.saturating_sub(now));
        let wait = match (span, limit) {
            (None, None) => Wait::Forever,
            (Some(span), None) | (None, Some(span)) => Wait::For(span),
            (Some(span), Some(limit)) => Wait::For(span.min(limit)),
        };
        match &mut self.driver {
            Driver::Uring(ring) => {
                ring.enter(wait, &mut self.events, &mut self.counters);
                self.guessed = false;
            }
            Driver::Epoll(epoll) => epoll.wait(wait, &mut self.events, &mut self.counters),
        }
        self.waker.unpark();
        self.slept = true;
        self.empty_graveyard();
        if !self.events.is_empty() {
            self.counters.wakeups += 1;
            return true;
        }
        // A ring that waited for sends gave up early: have it judged anew.
        limit.is_none() || span.is_some_and(|span| limit.is_some_and(|limit| span <= limit))
    }

    /// Closes descriptors that no waiting submission can name any more.
    fn empty_graveyard(&mut self) {
        if let Driver::Uring(ring) = &mut self.driver
            && !self.graveyard.is_empty()
            && !ring.has_unsubmitted()
        {
            self.graveyard.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use crate::config::{Config, IoBackend};
    use crate::gather::Gather;
    use crate::service::Service;
    use crate::socket::{ListenerId, SocketId};
    use crate::spawn::LocalReactor;

    /// Wants a turn every `period`, so many times, in which it finds nothing to do.
    struct Ticking {
        period: Nanos,
        due: Nanos,
        ticks: u32,
    }

    impl Service for Ticking {
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
        fn turn(&mut self, _: &mut Reactor, now: Nanos) {
            if self.due <= now {
                self.due = now.after(self.period);
                self.ticks -= 1;
            }
        }
        fn poll_timeout(&self) -> Option<Nanos> {
            Some(self.due)
        }
        fn is_stopped(&self) -> bool {
            self.ticks == 0
        }
    }

    /// How often a reactor with traffic spins in a pause of such turns.
    fn spins(io: IoBackend, period: Nanos, ticks: u32) -> u64 {
        let config = Config {
            io,
            ..Config::default()
        };
        let ticking = Ticking {
            period,
            due: monotonic_now(),
            ticks,
        };
        let mut local = LocalReactor::new(&config, |_, _| Ok(ticking)).unwrap();
        let (_, reactor) = local.parts();
        (0..100).for_each(|_| reactor.idle.burst_after(Nanos::from_micros(1), false));
        assert!(reactor.idle.is_hot());
        assert!(local.run_until(monotonic_now().after(Nanos::from_secs(60))));
        local.reactor().counters().spins
    }

    /// Each of them began to spin anew, for which an idle device that is polled now and then paid.
    #[test]
    fn timers_of_a_pause_do_not_make_it_spin_again() {
        for io in [IoBackend::Epoll, IoBackend::Auto] {
            let spins = spins(io, Nanos::from_millis(1), 20);
            assert!(spins <= 1, "{spins}");
        }
    }

    /// What ends a spin need not be what is waited for: the end of a send is not. A host's next
    /// command found the reactor asleep then.
    #[test]
    fn spin_that_was_interrupted_goes_on() {
        for io in [IoBackend::Epoll, IoBackend::Auto] {
            let spins = spins(io, Nanos::from_micros(3), 1000);
            assert!(spins > 1, "{spins}");
        }
    }
}
