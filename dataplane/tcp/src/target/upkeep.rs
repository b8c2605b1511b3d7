//! What is looked after beside I/O, now and then: sends that peers do not take, timers that have
//! moved, memory that only traffic needs.

use std::cmp::Reverse;

use bowline_block::Device;
use bowline_nvme::Nanos;
use bowline_nvmf::target::ConnId;
use bowline_reactor::Reactor;

use super::TargetService;

/// How long after traffic memory is given back that only traffic needs.
pub(super) const TIDY_AFTER: Nanos = Nanos::from_secs(2);

/// How often timers that have moved are put off, at most: seldom against the turns of busy hosts,
/// and yet after nearly each of many Keep Alives that arrive together.
const PUT_OFF_INTERVAL: Nanos = Nanos::from_millis(1);

/// Sends whose checks are put off at a time.
const PUT_OFF_MAX: usize = 32;

impl<D: Device> TargetService<D> {
    /// Puts off what is not due any more when its time comes, for as many as have moved to the
    /// front: the reactor of hosts that send nothing but Keep Alive wakes for these only. Sixteen
    /// of them with Linux's time-out took 692 sleeps a minute for 384 Keep Alives without it.
    pub(super) fn put_off_timers(&mut self, now: Nanos) {
        if now < self.put_off_at {
            return;
        }
        self.put_off_at = now.after(PUT_OFF_INTERVAL);
        self.target.put_off_timers();
        let limit = self.target.config().deadlines.transfer;
        for _ in 0..PUT_OFF_MAX {
            let Some(&Reverse((at, index, generation))) = self.send_checks.peek() else {
                return;
            };
            let link = self.links.get_mut(ConnId { index, generation });
            let deadline = link.as_ref().and_then(|link| link.send_deadline(limit));
            match (link, deadline) {
                (_, Some(deadline)) if deadline <= at => return,
                (Some(link), None) => link.send_listed = false,
                _ => {}
            }
            self.send_checks.pop();
            if let Some(at) = deadline {
                self.send_checks.push(Reverse((at, index, generation)));
            }
        }
    }

    /// Closes connections whose peers have not read for too long: what waits for them keeps
    /// buffers from others.
    pub(super) fn close_unread(&mut self, cx: &mut Reactor, now: Nanos) {
        let limit = self.target.config().deadlines.transfer;
        while let Some(&Reverse((at, index, generation))) = self.send_checks.peek()
            && at <= now
        {
            self.send_checks.pop();
            let conn = ConnId { index, generation };
            let Some(link) = self.links.get_mut(conn) else {
                continue;
            };
            match link.send_deadline(limit) {
                None => link.send_listed = false,
                Some(at) if at > now => {
                    link.send_listed = true;
                    self.send_checks.push(Reverse((at, index, generation)));
                }
                Some(_) => {
                    let socket = link.socket;
                    tracing::debug!(peer = ?cx.peer_addr(socket).ok(), "peer does not read");
                    cx.abort(socket);
                    self.work.unread += 1;
                    if let Some(link) = self.links.remove(conn) {
                        self.link_gone(now, link);
                    }
                }
            }
        }
    }

    /// Makes sure that somebody looks whether the peer takes what is being sent.
    pub(super) fn watch_send(&mut self, now: Nanos, conn: ConnId) {
        let deadlines = &self.target.config().deadlines;
        let (linger, transfer) = (deadlines.linger, deadlines.transfer);
        let Some(link) = self.links.get_mut(conn) else {
            return;
        };
        if link.closing.is_some() && link.closing_by.is_none() {
            // Nothing is expected of it any more but to take its last words.
            let at = now.after(linger);
            link.closing_by = Some(at);
            let entry = (at, conn.index, conn.generation);
            self.send_checks.push(Reverse(entry));
        } else if !link.send_listed {
            link.send_listed = true;
            let entry = (now.after(transfer), conn.index, conn.generation);
            self.send_checks.push(Reverse(entry));
        }
    }

    /// Gives back what only traffic needs, until there is nothing more to give.
    pub(super) fn tidy(&mut self, cx: &mut Reactor, now: Nanos) {
        self.links.tidy();
        let is_tidy = cx.trim_gathers();
        self.tidy_at = (!is_tidy).then(|| now.after(TIDY_AFTER));
    }
}
