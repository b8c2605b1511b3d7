//! What the protocol machine wants done: commands to devices, PDUs into the next gather.

use bowline_block::{Device, IoBuf};
use bowline_nvme::{Nanos, Status};
use bowline_nvmf::target::{ConnId, IoCommand, IoOp, Output, Rx, SlotId, TxPdu};
use bowline_reactor::{Gather, Reactor};

use super::TargetService;
use super::budget::{self, Charge, Wait};
use super::exec::{Found, Withdrawn};
use super::link::Closing;
use bowline_nvmf::frame::crc32c;

/// Of those who wait for the pool, at most this many are looked at in a round.
const WAITING_PER_ROUND: usize = 64;

/// A command that waits for a buffer, in the order of arrival.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    pub(super) conn: ConnId,
    pub(super) slot: SlotId,
    pub(super) need: Need,
}

impl Waiting {
    /// Whether the command holds a buffer already while it waits for another, and so keeps it
    /// from those it may be waiting for.
    fn holds_buffer(&self) -> bool {
        let Need::Execute(command) = self.need else {
            return false;
        };
        matches!(
            command.op,
            IoOp::Compare { .. } | IoOp::CompareAndWrite { .. } | IoOp::Copy { .. }
        )
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
            if let Some(link) = self.links.get_mut(conn) {
                // Back-pressure: a host that does not read gets no more work done.
                // But one that is ending has only that left to say.
                let has_room = link.has_room() || self.target.rx(conn) == Rx::Closed;
                if link.closing.is_some() || link.leaving_to.is_some() {
                    return;
                }
                link.behind = !has_room;
                if !has_room {
                    // Others may wait for what it has at its device.
                    while let Some(output) = self.target.poll_withdrawal(now, conn) {
                        self.handle_output(cx, now, conn, output);
                    }
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
        if self.executor.has_failure() {
            self.forget_failure(conn);
        }
    }

    fn handle_output(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId, output: Output) {
        match output {
            Output::Execute { slot, command } => {
                if let (IoOp::Read { .. }, Some(link)) = (command.op, self.links.get_mut(conn)) {
                    // What an earlier part was read into.
                    link.release_with_gather(slot);
                }
                let need = Need::Execute(command);
                self.supply(cx, now, Waiting { conn, slot, need });
                // What has ended at once is answered before the next begins, while its data is
                // in the caches.
                self.complete_finished(now);
            }
            Output::Send {
                pdu,
                payload,
                release,
            } => self.send(cx, conn, &pdu, payload, release),
            Output::NeedBuffer { slot, len } => {
                if let Some(link) = self.links.get_mut(conn) {
                    // What an earlier part was written from.
                    link.release(slot);
                }
                let need = Need::Transfer { len };
                self.supply(cx, now, Waiting { conn, slot, need });
            }
            Output::Fill { slot, len } => {
                let need = Need::Fill { len };
                self.supply(cx, now, Waiting { conn, slot, need });
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
            Output::Withdraw { slot } => self.withdraw(now, conn, slot),
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

    /// Takes a command back that waits for a buffer or for its device.
    fn withdraw(&mut self, now: Nanos, conn: ConnId, slot: SlotId) {
        let is_it = |it: &Waiting| {
            let second = match it.need {
                Need::Execute(command) => command.second(),
                Need::Transfer { .. } | Need::Fill { .. } => None,
            };
            it.conn == conn && (it.slot == slot || second == Some(slot))
        };
        // What a connection that is gone has left at its device can be taken back too.
        let mut link = self.links.get_mut(conn);
        let deferred = link.as_mut().map(|link| link.deferred_mut());
        let deferred = deferred.and_then(|it| Some((it.iter().position(is_it)?, it)));
        let mut done = false;
        if let Some((at, deferred)) = deferred {
            deferred.remove(at);
            done = true;
        } else if let Some(at) = self.waiting.iter().position(is_it) {
            self.waiting.remove(at);
            if let Some(link) = link {
                link.queued = link.queued.saturating_sub(1);
            }
            done = true;
        }
        if !done {
            match self.executor.withdraw(conn, slot) {
                Withdrawn::Done => done = true,
                Withdrawn::Asked => return,
                Withdrawn::No => {}
            }
        }
        self.target.withdrawn(now, conn, slot, done);
    }

    /// Pool bytes that are needed now.
    fn need_bytes(&self, need: &Need) -> usize {
        match need {
            Need::Transfer { len } | Need::Fill { len } => *len as usize,
            Need::Execute(command) => self.executor.read_bytes(command),
        }
    }

    /// Gives a command its buffer and goes on with it, or lets it wait: behind its own
    /// connection's commands while that holds something, behind everybody's when only the pool
    /// can help.
    fn supply(&mut self, cx: &mut Reactor, now: Nanos, waiting: Waiting) {
        let bytes = self.need_bytes(&waiting.need);
        // What needs nothing must not wait: it may be what gives the others' buffers back. What
        // holds a buffer already would keep it from others by waiting.
        if bytes > 0
            && !waiting.holds_buffer()
            && let Some(link) = self.links.get_mut(waiting.conn)
            && link.has_waiting()
        {
            link.defer(waiting);
            return;
        }
        if let Err(wait) = self.try_supply(cx, now, &waiting, self.ceiling_bytes()) {
            self.wait(waiting, wait, false);
        }
    }

    /// Goes on with commands that waited for their connection to hold less.
    fn supply_deferred(&mut self, cx: &mut Reactor, now: Nanos, conn: ConnId) {
        while let Some(link) = self.links.get_mut(conn)
            && link.queued == 0
            && let Some(first) = link.deferred_mut().pop_front()
        {
            if self.is_refused(now, &first) {
                continue;
            }
            let ceiling_bytes = self.ceiling_bytes();
            if let Err(wait) = self.try_supply(cx, now, &first, ceiling_bytes) {
                self.wait(first, wait, true);
                return;
            }
        }
    }

    fn wait(&mut self, waiting: Waiting, wait: Wait, is_first: bool) {
        let Some(link) = self.links.get_mut(waiting.conn) else {
            return;
        };
        match wait {
            Wait::Own if is_first => link.deferred_mut().push_front(waiting),
            Wait::Own => link.defer(waiting),
            Wait::Pool => {
                link.queued += 1;
                self.waiting.push_back(waiting);
            }
        }
    }

    /// Buffers from this size on are left to those who wait for one, or a large transfer would
    /// starve behind others.
    pub(super) fn ceiling_bytes(&self) -> usize {
        let first = self.waiting.iter().take(WAITING_PER_ROUND);
        let least = first.map(|other| self.need_bytes(&other.need)).min();
        least.map_or(usize::MAX, |bytes| bytes.saturating_sub(1))
    }

    /// Serves those who wait for buffers, oldest first. Who needs less than one that cannot be
    /// served is not held up by it.
    pub(super) fn supply_waiting(&mut self, cx: &mut Reactor, now: Nanos) {
        self.keep_spare(cx);
        let mut ceiling_bytes = usize::MAX;
        let mut at = 0;
        for _ in 0..WAITING_PER_ROUND {
            let Some(waiting) = self.waiting.get(at).copied() else {
                return;
            };
            let bytes = self.need_bytes(&waiting.need);
            let may_try = bytes <= ceiling_bytes || waiting.holds_buffer();
            if self.is_refused(now, &waiting)
                || (may_try && self.try_supply(cx, now, &waiting, ceiling_bytes).is_ok())
            {
                self.waiting.remove(at);
                if let Some(link) = self.links.get_mut(waiting.conn) {
                    link.queued = link.queued.saturating_sub(1);
                }
                // If it was given up meanwhile, nothing else moves those behind it.
                self.supply_deferred(cx, now, waiting.conn);
            } else {
                ceiling_bytes = ceiling_bytes.min(bytes.saturating_sub(1));
                at += 1;
            }
        }
    }

    /// Whether a command that has waited may not run any more. Then it is answered.
    fn is_refused(&mut self, now: Nanos, waiting: &Waiting) -> bool {
        let &Waiting { conn, slot, need } = waiting;
        matches!(need, Need::Execute(_)) && !self.target.may_still_run(now, conn, slot)
    }

    /// Keeps one of the largest buffers for Compare and Copy while there are connections. They
    /// hold what their host sent while they need room for the device's data, so that they alone
    /// could use the pool up and wait for each other.
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

    /// Gives the command its buffer and goes on with it, if there is one for it now.
    fn try_supply(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        waiting: &Waiting,
        ceiling_bytes: usize,
    ) -> Result<(), Wait> {
        let &Waiting { conn, slot, need } = waiting;
        if self.links.get(conn).is_none() {
            // The connection is gone, but its end waits for every command handed out.
            if let Need::Execute(command) = need {
                self.give_up(now, conn, slot, &command);
            }
            return Ok(());
        }
        let bytes = self.need_bytes(&need);
        let buffer = match bytes {
            0 => None,
            _ if waiting.holds_buffer() => Some(self.second_buffer(cx, waiting, bytes)?),
            _ => Some(self.buffer_for(cx, conn, slot, bytes, ceiling_bytes)?),
        };
        let charge = buffer.as_ref().map(Charge::of).unwrap_or_default();
        let Some(link) = self.links.get_mut(conn) else {
            return Ok(());
        };
        match (need, buffer) {
            // A command that was given up meanwhile wants no buffer any more: it goes back at once.
            (Need::Transfer { .. }, Some(buffer)) => {
                let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
                if self.target.handle_part_buffer(now, conn, slot, len) {
                    link.bind_charged(slot, buffer, charge);
                }
            }
            (Need::Fill { .. }, Some(mut buffer)) => {
                let data = buffer.as_mut().unwrap_or_default();
                if self.target.fill(now, conn, slot, data) {
                    link.bind_charged(slot, buffer, charge);
                }
            }
            (Need::Transfer { .. } | Need::Fill { .. }, None) => {}
            (Need::Execute(mut command), mut scratch) => {
                if let Some(buffer) = scratch.as_mut().filter(|buffer| buffer.len() < bytes) {
                    let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
                    if let Some(part) = self.target.cut_read(conn, slot, len) {
                        command = part;
                        buffer.truncate(part.bytes as usize);
                        self.work.parts += 1;
                    }
                }
                link.charge(slot, charge);
                let payload = link.take_buffer(slot);
                let finished = &mut self.finished;
                self.executor
                    .start(conn, slot, &command, payload, scratch, finished);
            }
        }
        Ok(())
    }

    /// A buffer for a command's data, or for a part of it.
    fn buffer_for(
        &self,
        cx: &Reactor,
        conn: ConnId,
        slot: SlotId,
        bytes: usize,
        ceiling_bytes: usize,
    ) -> Result<IoBuf, Wait> {
        let link = self.links.get(conn).ok_or(Wait::Pool)?;
        let request = link.request(bytes, ceiling_bytes);
        if let Some(buffer) = budget::shared(cx.pool(), &request) {
            return Ok(buffer);
        }
        let unit = self.target.part_unit(conn, slot);
        let unit = unit.and_then(|unit| usize::try_from(unit).ok());
        budget::for_standstill(cx.pool(), &self.reserve, &request, unit)
    }

    /// A buffer for a command that holds one already.
    fn second_buffer(
        &mut self,
        cx: &Reactor,
        waiting: &Waiting,
        bytes: usize,
    ) -> Result<IoBuf, Wait> {
        let buffer = cx.pool().alloc(bytes);
        let buffer = buffer.or_else(|| self.lend_spare(waiting, bytes));
        buffer.ok_or(Wait::Pool)
    }

    /// The spare buffer, for who holds another.
    fn lend_spare(&mut self, waiting: &Waiting, bytes: usize) -> Option<IoBuf> {
        let fits = |spare: &mut IoBuf| waiting.holds_buffer() && spare.len() >= bytes;
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
        let body = payload.and_then(|(slot, offset, len)| link.data(slot, offset, len));
        debug_assert_eq!(
            payload.is_some(),
            body.is_some(),
            "a payload lies in its buffer"
        );
        let gather = link.gather(cx);
        gather.push_with(|arena| pdu.encode_into(arena));
        if let Some(body) = body {
            push_data(gather, body, pdu.data_digest());
        }
        if let Some(slot) = release {
            link.release_with_gather(slot);
        }
    }

    /// Ends a command that was handed out but never started, so that nobody waits for it.
    pub(super) fn give_up(&mut self, now: Nanos, conn: ConnId, slot: SlotId, command: &IoCommand) {
        let status = Status::ABORTED_SQ_DELETION;
        self.target.complete(now, conn, slot, status);
        if let Some(second) = command.second() {
            self.target.complete(now, conn, second, status);
        }
    }

    /// Tells the machine what the devices have done.
    pub(super) fn complete_finished(&mut self, now: Nanos) {
        while let Some(done) = self.finished.pop() {
            if let Some(link) = self.links.get_mut(done.conn) {
                match done.data {
                    None => {}
                    Some(Found::Copied(buffer)) => link.bind(done.slot, buffer),
                    Some(Found::InPlace(viewed)) => link.bind_view(done.slot, viewed),
                }
            }
            self.target.complete(now, done.conn, done.slot, done.status);
        }
    }
}

/// Appends data, followed by its CRC32C if it has a digest: that must be of the bytes that are sent.
pub(super) fn push_data(gather: &mut Gather, data: Found, has_digest: bool) {
    match data {
        Found::InPlace(viewed) if !has_digest => gather.push_view(viewed),
        data => {
            let buffer = data.copied();
            let digest = has_digest.then(|| crc32c(&buffer));
            gather.push_buf(buffer);
            if let Some(digest) = digest {
                gather.push_bytes(&digest.to_le_bytes());
            }
        }
    }
}
