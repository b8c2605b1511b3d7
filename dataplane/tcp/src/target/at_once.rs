//! Commands for devices that need not be waited for: done as they come out of the socket.
//!
//! A plain Read or Write that has arrived whole is run while its bytes are at hand, and its answer
//! goes into the gather: no slot, no queue. A Write's data is copied once, from the staging area to
//! the medium; a Read's stays there until the turn's send. As long as there is room to send, that
//! is, nothing older of the connection waits for such room, and, for a Read, no command of any
//! connection waits for a buffer; the usual way knows how to wait. It also knows how to fail: what a
//! device has failed is told there, and not run again.

use bowline_block::{BufPool, Device};
use bowline_nvme::Nanos;
use bowline_nvmf::target::{Accepted, Answer, ConnId, IoOp};
use bowline_reactor::Reactor;

use super::TargetService;
use super::budget::{self, Charge};
use super::exec::{Executor, Found, LateWrite};
use super::link::Link;
use super::tx::push_data;

impl<D: Device> TargetService<D> {
    /// Runs the commands that follow one another from `begin` on, up to one that has to go the usual
    /// way. Returns how many bytes they were. Writes that `may_be_late` are only answered; see
    /// [`catch_up`](Self::catch_up).
    pub(super) fn run_at_once(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        conn: ConnId,
        input: &[u8],
        begin: usize,
        may_be_late: bool,
    ) -> usize {
        if !self.executor.runs_now() {
            return 0;
        }
        let has_waiting = !self.waiting.is_empty();
        let queue = self.target.at_once(now, conn);
        let (Some(mut queue), Some(link)) = (queue, self.links.get_mut(conn)) else {
            return 0;
        };
        if link.behind {
            // Room that a send has left is for older commands first, or they would never see it.
            return 0;
        }
        let mut at = begin;
        while link.has_room()
            && let Some(accepted) = queue.accept(&input[at..])
        {
            let late = may_be_late.then(|| postpone(&self.executor, &accepted, input));
            let read = if let Some(late) = late.flatten() {
                self.late.push(late);
                None
            } else {
                make_all(&mut self.executor, &mut self.late, input);
                match run(&mut self.executor, cx.pool(), link, &accepted, has_waiting) {
                    Some(read) => read,
                    None => break,
                }
            };
            answer(cx, link, &queue.succeeded(&accepted), read);
            if let Some(slot) = accepted.slot() {
                link.release(slot);
            }
            at += accepted.bytes();
        }
        let taken = at - begin;
        // What was released just now may be enough for those who wait.
        let may_go_on = taken > 0 && link.has_waiting() && !self.executor.has_failure();
        if may_go_on {
            self.catch_up(input);
            self.pump(cx, now, conn);
        }
        if taken > 0 && self.touched.last() != Some(&conn) {
            self.touched.push(conn);
        }
        taken
    }

    /// Sends what a connection has gathered before anything else of the turn is done, if it is all
    /// that there is to send: its peer goes on meanwhile.
    pub(super) fn answer_early(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) {
        let is_all = self.touched == [conn] && !self.target.is_dirty() && self.finished.is_empty();
        if is_all && cx.may_send_early() {
            self.touched.clear();
            self.settle(cx, now, conn);
            cx.send_early();
        }
    }

    /// Makes the Writes that were answered and not made yet. It comes before whatever else might
    /// see the difference: before another command, and before their data in `received` is
    /// overwritten.
    pub(super) fn catch_up(&mut self, received: &[u8]) {
        make_all(&mut self.executor, &mut self.late, received);
    }

    /// All that was received of a connection has been started: a failure that is still to be told
    /// was of a command that has ended in another way.
    #[cold]
    pub(super) fn forget_failure(&mut self, conn: ConnId) {
        let is_idle = |link: &Link| !link.has_waiting() && !link.is_carrying();
        if self.links.get(conn).is_some_and(is_idle) {
            self.executor.forget_failure(conn);
        }
    }
}

fn make_all<D: Device>(executor: &mut Executor<D>, late: &mut Vec<LateWrite>, received: &[u8]) {
    for write in late.drain(..) {
        executor.make(write, received);
    }
}

/// A Write that may be answered first, with what was `received`, in which its data is.
fn postpone<D: Device>(
    executor: &Executor<D>,
    accepted: &Accepted<'_>,
    received: &[u8],
) -> Option<LateWrite> {
    let command = accepted.command();
    if !matches!(command.op, IoOp::Write { .. }) {
        return None;
    }
    let data = accepted.data()?;
    let begin = data.as_ptr().addr() - received.as_ptr().addr();
    executor.write_late(command, begin..begin + data.len())
}

/// Runs a command and returns what it has read, if anything. `None`: not now, or not here, and
/// nothing has happened but that the device may have failed it.
fn run<D: Device>(
    executor: &mut Executor<D>,
    pool: &BufPool,
    link: &Link,
    accepted: &Accepted<'_>,
    has_waiting: bool,
) -> Option<Option<Found>> {
    let command = accepted.command();
    if !matches!(command.op, IoOp::Read { .. }) {
        return executor
            .write_now(link.conn, command, || accepted.data())
            .map(|()| None);
    }
    if has_waiting || link.has_waiting() {
        return None;
    }
    let alloc = |bytes| budget::shared(pool, &link.request(bytes, usize::MAX));
    executor.read_now(link.conn, command, alloc).map(Some)
}

/// Puts an answer into the gather, with the data that was read.
fn answer(cx: &mut Reactor, link: &mut Link, answer: &Answer, read: Option<Found>) {
    let gather = link.gather(cx);
    gather.push_with(|arena| answer.encode_before_data(arena));
    let charge = read.map(|found| {
        let charge = Charge::of_found(&found);
        push_data(gather, found, answer.data_digest());
        charge
    });
    gather.push_with(|arena| answer.encode_end(arena));
    link.charge_gathered(charge.unwrap_or_default());
}
