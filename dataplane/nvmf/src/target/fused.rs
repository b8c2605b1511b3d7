//! Fused Compare and Write: two commands, adjacent on one queue, that are one operation.
//! [BASE-2.0 §3.4.2], [NVM-1.0 §2.1.6]
//!
//! ```text
//! First accepted ─► waits ─next capsule is its Second─► both fetch their data ─► checked again,
//!    │                │                                        │                 one operation
//!    └─ refused       └─ anything else: 0/0A, missing          └─ either fails: the other 0/09
//! ```
//!
//! Both halves share one buffer, bound to the first: what is to be compared, then what is to be
//! written. Only when both are there is anything asked of the host or of memory, so no pair holds
//! memory while it waits for more.

use bowline_nvme::opcode::{self, io};
use bowline_nvme::{Fuse, Nanos, Sqe, Status};

use super::Target;
use super::command::Plan;
use super::connection::{Connection, Landing, Pending};
use super::io::{IoPlan, Refusal};
use super::output::{ConnId, IoCommand, IoOp, SlotId};
use super::slot::{Slot, Stage};
use super::table::Key;

/// What the command before, on the same queue, means for the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing.
    #[default]
    Alone,
    /// It was a first half, and waits for its second.
    First(SlotId),
    /// It was a first half that has failed.
    Failed,
}

/// What a command is of a fused pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Half {
    #[default]
    None,
    First {
        second: Option<SlotId>,
    },
    Second {
        first: SlotId,
    },
}

impl Half {
    /// The other half, if it is there.
    pub(super) fn other(self) -> Option<SlotId> {
        match self {
            Self::None => None,
            Self::First { second } => second,
            Self::Second { first } => Some(first),
        }
    }
}

/// Whether a command may have this place in a pair. Compare and Write is the only pair there is.
pub(super) fn is_possible(qid: Option<u16>, sqe: &Sqe) -> bool {
    let is_io = qid.is_some_and(|qid| qid != 0);
    match sqe.fuse() {
        Fuse::Normal => true,
        Fuse::First => is_io && sqe.opcode() == io::COMPARE,
        Fuse::Second => is_io && sqe.opcode() == io::WRITE,
        Fuse::Reserved => false,
    }
}

/// Whether two commands are about the same blocks. [NVM-1.0 §2.1.6]
fn same_blocks(first: &Sqe, second: &Sqe) -> bool {
    (first.nsid(), first.slba(), first.nlb()) == (second.nsid(), second.slba(), second.nlb())
}

impl Target {
    /// A capsule that is half of a pair, or follows a first half.
    pub(super) fn fused_capsule(
        &mut self,
        now: Nanos,
        id: ConnId,
        slot: SlotId,
        before: Before,
        plan: Plan,
        payload: u32,
    ) {
        let Some(command) = self.connections.get(id).and_then(|it| it.slots.get(slot)) else {
            return;
        };
        // Reserved in Fabrics commands, and refused on the admin queue.
        let is_fabrics = command.sqe.opcode() == opcode::admin::FABRICS;
        let fuse = if is_fabrics || self.is_admin_queue(id) {
            Fuse::Normal
        } else {
            command.sqe.fuse()
        };
        if let (Before::First(first), true) = (before, fuse != Fuse::Second) {
            self.fail_pair(now, id, first, Status::ABORTED_MISSING_FUSED);
        }
        match (fuse, before, plan) {
            (Fuse::First, _, Plan::FromHost(len)) => {
                self.start_half(now, id, slot, Half::First { second: None }, len, payload);
                self.set_before(id, Before::First(slot));
                let deadline = now.after(self.config.deadlines.transfer);
                self.arm_connection_at(id, deadline);
            }
            (Fuse::First, _, plan) => {
                self.start(now, id, slot, plan, payload);
                self.set_before(id, Before::Failed);
            }
            (Fuse::Second, Before::Alone, _) => {
                self.respond(now, id, slot, Status::ABORTED_MISSING_FUSED, 0);
            }
            (Fuse::Second, Before::Failed, _) => {
                self.respond(now, id, slot, Status::ABORTED_FAILED_FUSED, 0);
            }
            (Fuse::Second, Before::First(first), Plan::FromHost(len)) => {
                self.join(now, id, (first, slot), len, payload);
            }
            (Fuse::Second, Before::First(first), plan) => {
                self.fail_pair(now, id, first, Status::ABORTED_FAILED_FUSED);
                self.start(now, id, slot, plan, payload);
            }
            (Fuse::Normal | Fuse::Reserved, _, plan) => self.start(now, id, slot, plan, payload),
        }
    }

    fn is_admin_queue(&self, id: ConnId) -> bool {
        let queue = self.connections.get(id).and_then(|it| it.queue);
        queue.is_none_or(|queue| queue.qid == 0)
    }

    fn set_before(&mut self, id: ConnId, before: Before) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.before = before;
        }
    }

    /// Takes what came with a half. What did not is asked for when the other half is there.
    fn start_half(
        &mut self,
        now: Nanos,
        id: ConnId,
        slot: SlotId,
        half: Half,
        len: u32,
        payload: u32,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.get_mut(slot) else {
            return;
        };
        command.half = half;
        command.set_transfer(len);
        if payload > 0 {
            command.enter(now, Stage::Receive);
            command.r2t_end = payload;
            connection.landing = Landing {
                slot: Some(slot),
                ..Landing::default()
            };
        } else {
            command.enter(now, Stage::Fused);
        }
    }

    /// The second half of a pair has come.
    fn join(
        &mut self,
        now: Nanos,
        id: ConnId,
        (first, second): (SlotId, SlotId),
        len: u32,
        payload: u32,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let halves = [first, second].map(|slot| connection.slots.get(slot));
        let [Some(one), Some(other)] = halves else {
            return;
        };
        if !same_blocks(&one.sqe, &other.sqe) {
            // Neither is at fault more than the other.
            let status = Status::INVALID_FIELD.dnr();
            self.fail_pair(now, id, first, status);
            return self.respond(now, id, second, status, 0);
        }
        // The NSID may be another namespace's by now, and its blocks may have another size, for
        // which the pair's buffer has no room.
        if one.command.namespace != other.command.namespace || one.transfer_len != len {
            self.fail_pair(now, id, first, Status::INVALID_NAMESPACE.dnr());
            return self.respond(now, id, second, Status::ABORTED_FAILED_FUSED, 0);
        }
        if let Some(command) = connection.slots.get_mut(first) {
            command.half = Half::First {
                second: Some(second),
            };
        }
        self.start_half(now, id, second, Half::Second { first }, len, payload);
        self.advance_pair(now, id, first);
    }

    /// All data of a half has landed and its digest was right.
    pub(super) fn half_complete(&mut self, now: Nanos, id: ConnId, slot: SlotId) {
        let command = self
            .connections
            .get_mut(id)
            .and_then(|it| it.slots.get_mut(slot));
        let Some(command) = command else { return };
        command.enter(now, Stage::Fused);
        match command.half {
            Half::First { second: Some(_) } => self.advance_pair(now, id, slot),
            Half::Second { first } => self.advance_pair(now, id, first),
            Half::First { second: None } | Half::None => {}
        }
    }

    /// Asks for what is missing of a pair, one half after the other, or runs it.
    fn advance_pair(&mut self, now: Nanos, id: ConnId, first: SlotId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.at_stage(first, Stage::Fused) else {
            return;
        };
        let Some(second) = command.half.other() else {
            return;
        };
        let first_landed = command.has_landed();
        let Some(command) = connection.slots.at_stage(second, Stage::Fused) else {
            return;
        };
        match (first_landed, command.has_landed()) {
            (true, true) => {}
            (false, false) => {
                if let Some(command) = connection.slots.get_mut(first) {
                    command.enter(now, Stage::Buffer);
                }
                return connection.push(Pending::NeedBuffer(first));
            }
            // What came in a capsule has brought the buffer for both.
            (true, false) => return self.ask_for_half(now, id, second),
            (false, true) => return self.ask_for_half(now, id, first),
        }
        let key = connection.queue.map(|queue| queue.controller);
        let Some(key) = key else { return };
        match self.pair_again(id, key, first, second) {
            Ok((compare, write)) => self.run_pair(now, id, (first, compare), (second, write)),
            Err((slot, (status, at))) => {
                if let Some(command) = self.slot_mut(id, slot) {
                    command.error_at = at;
                }
                self.fail_pair(now, id, slot, status);
            }
        }
    }

    fn ask_for_half(&mut self, now: Nanos, id: ConnId, slot: SlotId) {
        let deadline = now.after(self.config.deadlines.transfer);
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if let Some(command) = connection.slots.get_mut(slot) {
            command.granted = now;
            command.enter(now, Stage::Transfer);
            connection.push(Pending::R2t(slot));
        }
        self.arm_connection_at(id, deadline);
    }

    /// Checks both halves again before anything runs: the namespace may have gone while their
    /// data came, or become another's to write.
    fn pair_again(
        &self,
        id: ConnId,
        key: Key,
        first: SlotId,
        second: SlotId,
    ) -> Result<(IoCommand, IoCommand), (SlotId, Refusal)> {
        let internal = |slot| (slot, (Status::INTERNAL, 0));
        let again = |slot| {
            let command = self.connections.get(id).and_then(|it| it.slots.get(slot));
            let command = command.ok_or(internal(slot))?;
            match self
                .gate()
                .plan_again(key, &command.sqe, command.command.namespace)
            {
                Ok(IoPlan::FromHost(io)) => Ok(io),
                Ok(_) => Err(internal(slot)),
                Err(refusal) => Err((slot, refusal)),
            }
        };
        Ok((again(first)?, again(second)?))
    }

    fn run_pair(
        &mut self,
        now: Nanos,
        id: ConnId,
        (first, compare): (SlotId, IoCommand),
        (second, write): (SlotId, IoCommand),
    ) {
        let (
            IoOp::Compare {
                lba,
                blocks,
                fua: read_fua,
            },
            IoOp::Write { fua, .. },
        ) = (compare.op, write.op)
        else {
            return self.fail_pair(now, id, first, Status::INTERNAL);
        };
        let op = IoOp::CompareAndWrite {
            second,
            lba,
            blocks,
            read_fua,
            fua,
        };
        for (slot, command) in [(second, write), (first, IoCommand { op, ..compare })] {
            if let Some(half) = self.slot_mut(id, slot) {
                half.command = command;
                half.enter(now, Stage::Queued);
            }
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.push(Pending::Execute(first));
        }
    }

    /// One half has failed with `status`, and with it the other.
    pub(super) fn fail_pair(&mut self, now: Nanos, id: ConnId, slot: SlotId, status: Status) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(command) = connection.slots.get_mut(slot) else {
            return;
        };
        let half = std::mem::take(&mut command.half);
        if connection.before == Before::First(slot) {
            connection.before = Before::Failed;
        }
        let other = half.other();
        if let Some(other) = other.and_then(|other| connection.slots.get_mut(other)) {
            other.half = Half::None;
        }
        let failed = Status::ABORTED_FAILED_FUSED;
        match (half, other) {
            (Half::Second { .. }, Some(first)) => {
                self.revoke(now, id, first, failed);
                self.revoke(now, id, slot, status);
            }
            (_, other) => {
                self.revoke(now, id, slot, status);
                if let Some(other) = other {
                    self.revoke(now, id, other, failed);
                }
            }
        }
    }

    /// A first half has waited long enough for its second.
    pub(super) fn expire_first_half(&mut self, now: Nanos, id: ConnId) {
        let transfer = self.config.deadlines.transfer;
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        if let Before::First(first) = connection.before
            && connection
                .first_half_by(transfer)
                .is_some_and(|at| at <= now)
        {
            self.fail_pair(now, id, first, Status::ABORTED_MISSING_FUSED);
            self.touch(id);
        }
    }

    fn slot_mut(&mut self, id: ConnId, slot: SlotId) -> Option<&mut Slot> {
        self.connections.get_mut(id)?.slot_mut(slot)
    }
}

impl Connection {
    /// When a first half whose second has not come is given up.
    pub(super) fn first_half_by(&self, transfer: Nanos) -> Option<Nanos> {
        let Before::First(first) = self.before else {
            return None;
        };
        let command = self.slots.get(first)?;
        (command.stage == Stage::Fused).then(|| command.since.after(transfer))
    }
}

impl Slot {
    /// Whether all of the command's data is there.
    fn has_landed(&self) -> bool {
        self.landed >= self.transfer_len
    }

    /// Size of the slot's buffer: that of a first half is the pair's.
    pub(super) fn buffer_len(&self) -> u32 {
        match self.half {
            Half::First { .. } => self.part_len().saturating_mul(2),
            Half::None | Half::Second { .. } => self.part_len(),
        }
    }
}
