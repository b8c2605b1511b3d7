//! What the protocol machine wants done: commands to devices, PDUs into the next gather.

use bowline_block::{Device, IoBuf};
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::target::{ConnId, IoCommand, IoOp, Output, Rx, SlotId, TxPdu};
use bowline_reactor::Reactor;

use super::TargetService;
use super::link::Closing;
use bowline_nvmf::frame::crc32c;

/// A command that waits for the pool to have a buffer again, in the order of arrival.
pub(super) struct Waiting {
    pub(super) conn: ConnId,
    pub(super) slot: SlotId,
    pub(super) need: Need,
}

impl Waiting {
    fn is_compare(&self) -> bool {
        let Need::Execute(command) = self.need else {
            return false;
        };
        matches!(command.op, IoOp::Compare { .. })
    }
}

#[derive(Clone, Copy)]
pub(super) enum Need {
    /// Room for `len` bytes the host will send after an R2T.
    Transfer { len: u32 },
    /// Room for `len` bytes of control data to the host.
    Fill { len: u32 },
    /// Room for what the device reads.
    Execute(IoCommand),
}

impl<D: Device> TargetService<D> {
    /// Does what the connection's machine wants, as far as there is room to send.
    pub(super) fn pump(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) {
        self.supply_deferred(cx, now, conn);
        loop {
            if let Some(link) = self.links.get(conn) {
                // Back-pressure: a host that does not read gets no more work done.
                // But one that is ending has only that left to say.
                let has_room = link.has_room() || self.target.rx(conn) == Rx::Closed;
                if !has_room || link.closing.is_some() || link.leaving_to.is_some() {
                    return;
                }
            }
            let Some(output) = self.target.poll_output(now, conn) else {
                break;
            };
            self.handle_output(cx, now, conn, output);
        }
        // What was released just now may be enough for the next.
        self.supply_deferred(cx, now, conn);
    }

    fn handle_output(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId, output: Output) {
        match output {
            Output::Execute { slot, command } => {
                self.supply(
                    cx,
                    now,
                    Waiting {
                        conn,
                        slot,
                        need: Need::Execute(command),
                    },
                );
            }
            Output::Send {
                pdu,
                payload,
                release,
            } => self.send(cx, conn, &pdu, payload, release),
            Output::NeedBuffer { slot, len } => {
                self.supply(
                    cx,
                    now,
                    Waiting {
                        conn,
                        slot,
                        need: Need::Transfer { len },
                    },
                );
            }
            Output::Fill { slot, len } => {
                self.supply(
                    cx,
                    now,
                    Waiting {
                        conn,
                        slot,
                        need: Need::Fill { len },
                    },
                );
            }
            Output::Inspect { slot, len } => {
                let buffer = self.links.get(conn).and_then(|link| link.buffer(slot));
                let data = buffer
                    .and_then(|buffer| buffer.get(..len as usize))
                    .unwrap_or(&[]);
                self.target.inspect(now, conn, slot, data);
            }
            Output::Release { slot } => {
                if let Some(link) = self.links.get_mut(conn) {
                    link.release(slot);
                }
            }
            Output::Route { subnqn } => match self.links.get_mut(conn) {
                Some(link) if self.routes.contains_key(&subnqn) => link.leaving_to = Some(subnqn),
                _ => self.target.resume(now, conn),
            },
            Output::Close { graceful } => {
                if let Some(link) = self.links.get_mut(conn) {
                    link.closing = Some(if graceful {
                        Closing::Graceful
                    } else {
                        Closing::Abort
                    });
                    // They keep the association from ending, and their host from coming back.
                    let deferred = std::mem::take(link.deferred_mut());
                    self.end_deferred(now, conn, deferred);
                }
            }
        }
    }

    /// Pool bytes that are needed now.
    fn need_bytes(&self, need: &Need) -> usize {
        match need {
            Need::Transfer { len } | Need::Fill { len } => *len as usize,
            Need::Execute(command) => self.executor.read_bytes(command),
        }
    }

    /// Gives a command its buffer and goes on with it, or lets it wait: behind its own
    /// connection's commands when that has its share of the pool, behind everybody's when the
    /// pool has nothing left.
    fn supply(&mut self, cx: &mut Reactor, now: Nanos, waiting: Waiting) {
        let bytes = self.need_bytes(&waiting.need);
        let share_bytes = self.share_bytes;
        // What needs nothing must not wait: it may be what gives the others' buffers back. A
        // Compare has its data already, and waiting would keep that from others.
        if bytes > 0
            && !waiting.is_compare()
            && let Some(link) = self.links.get_mut(waiting.conn)
            && (link.has_deferred() || link.exceeds_share(bytes, share_bytes))
        {
            link.defer(waiting);
            return;
        }
        self.supply_now(cx, now, waiting, bytes);
    }

    /// Goes on with commands that waited for their connection to hold less.
    fn supply_deferred(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) {
        let share_bytes = self.share_bytes;
        while let Some(link) = self.links.get_mut(conn)
            && let Some(first) = link.deferred_mut().pop_front()
        {
            let bytes = self.need_bytes(&first.need);
            let Some(link) = self.links.get_mut(conn) else {
                return;
            };
            if link.exceeds_share(bytes, share_bytes) {
                link.deferred_mut().push_front(first);
                return;
            }
            self.supply_now(cx, now, first, bytes);
        }
    }

    fn supply_now(&mut self, cx: &mut Reactor, now: Nanos, waiting: Waiting, bytes: usize) {
        // First come, first served, or a large transfer would starve behind others. Smaller ones
        // have buffers of their own.
        let is_first = self
            .waiting
            .iter()
            .all(|other| bytes < self.need_bytes(&other.need));
        if !(is_first || waiting.is_compare()) || !self.try_supply(cx, now, &waiting) {
            self.waiting.push_back(waiting);
        }
    }

    /// Serves those who wait for buffers, oldest first. Who needs less than one that cannot be
    /// served is not held up by it.
    pub(super) fn supply_waiting(&mut self, cx: &mut Reactor, now: Nanos) {
        self.keep_spare(cx);
        let mut unserved_bytes = usize::MAX;
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else {
                return;
            };
            let bytes = self.need_bytes(&waiting.need);
            let may_try = bytes < unserved_bytes || waiting.is_compare();
            if !may_try || !self.try_supply(cx, now, &waiting) {
                unserved_bytes = unserved_bytes.min(bytes);
                self.waiting.push_back(waiting);
            }
        }
    }

    /// Keeps one of the largest buffers for Compare while there are connections. A Compare holds
    /// its host's data while it needs room for the device's, so that Compares alone could use the
    /// pool up and wait for each other.
    fn keep_spare(&mut self, cx: &Reactor) {
        if self.links.len() == 0 {
            self.spare = None;
        } else if self.spare.is_none() {
            let mdts_bytes = self.target.config().mdts_bytes as usize;
            self.spare = cx
                .pool()
                .alloc(mdts_bytes.min(cx.pool().bytes_max_request()));
        }
    }

    /// False when the pool has no buffer now.
    fn try_supply(&mut self, cx: &mut Reactor, now: Nanos, waiting: &Waiting) -> bool {
        let &Waiting { conn, slot, need } = waiting;
        let Some(link) = self.links.get_mut(conn) else {
            // The connection is gone, but its end waits for every command handed out.
            if let Need::Execute(_) = need {
                self.target
                    .complete(now, conn, slot, Status::ABORTED_SQ_DELETION);
            }
            return true;
        };
        match need {
            // A command that was given up meanwhile wants no buffer any more: it goes back at once.
            Need::Transfer { len } => {
                let Some(buffer) = cx.pool().alloc(len as usize) else {
                    return false;
                };
                if self.target.handle_buffer(now, conn, slot) {
                    link.charge(slot, len as usize);
                    link.bind(slot, buffer);
                }
            }
            Need::Fill { len } => {
                let Some(mut buffer) = cx.pool().alloc(len as usize) else {
                    return false;
                };
                let bytes = buffer.as_mut().unwrap_or_default();
                if self.target.fill(now, conn, slot, bytes) {
                    link.charge(slot, len as usize);
                    link.bind(slot, buffer);
                }
            }
            Need::Execute(command) => {
                let bytes = self.executor.read_bytes(&command);
                let scratch = match bytes {
                    0 => None,
                    _ => match cx
                        .pool()
                        .alloc(bytes)
                        .or_else(|| self.lend_spare(waiting, bytes))
                    {
                        Some(buffer) => Some(buffer),
                        None => return false,
                    },
                };
                let Some(link) = self.links.get_mut(conn) else {
                    return true;
                };
                link.charge(slot, bytes);
                let payload = link.take_buffer(slot);
                let done = self.executor.start(conn, slot, &command, payload, scratch);
                self.finished.extend(done);
            }
        }
        true
    }

    /// The spare buffer, for a Compare.
    fn lend_spare(&mut self, waiting: &Waiting, bytes: usize) -> Option<IoBuf> {
        let fits = |spare: &mut IoBuf| waiting.is_compare() && spare.len() >= bytes;
        let mut spare = self.spare.take_if(fits)?;
        spare.truncate(bytes);
        Some(spare)
    }

    fn send(
        &mut self,
        cx: &mut Reactor,
        conn: ConnId,
        pdu: &TxPdu,
        payload: Option<(SlotId, u32, u32)>,
        release: Option<SlotId>,
    ) {
        let Some(link) = self.links.get_mut(conn) else {
            return;
        };
        let body = payload.and_then(|(slot, offset, len)| {
            let range = offset as usize..offset as usize + len as usize;
            let buffer: &IoBuf = link.buffer(slot)?;
            (range.end <= buffer.len()).then(|| buffer.slice(range))
        });
        debug_assert_eq!(
            payload.is_some(),
            body.is_some(),
            "a payload lies in its buffer"
        );
        if let Some(slot) = release {
            link.release_with_gather(slot);
        }
        let gather = link.gather(cx);
        gather.push_with(|arena| pdu.encode_into(arena));
        if let Some(body) = body {
            let digest = pdu.data_digest().then(|| crc32c(&body));
            gather.push_buf(body);
            if let Some(digest) = digest {
                gather.push_bytes(&digest.to_le_bytes());
            }
        }
    }

    /// Tells the machine what the devices have done.
    pub(super) fn complete_finished(&mut self, now: Nanos) {
        while let Some(done) = self.finished.pop() {
            if let (Some(link), Some(buffer)) = (self.links.get_mut(done.conn), done.buffer) {
                link.bind(done.slot, buffer);
            }
            self.target.complete(now, done.conn, done.slot, done.status);
        }
    }
}
