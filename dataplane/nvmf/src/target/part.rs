//! Commands that move their data in parts because their owner has no buffer for all of it.
//!
//! A Read or a Write larger than the device's atomic unit may be cut at logical blocks. A Write
//! asks for a buffer, has it filled, and runs that part; then it asks again. A Read runs a part,
//! sends it, and runs the next. Hosts see one command: several R2Ts, several C2HData, one
//! response. [TCP-1.0 §3.3.2]

use bowline_nvme::opcode::io;
use bowline_nvme::{Fuse, Nanos, Sqe};

use super::Target;
use super::connection::{Connection, Pending, State};
use super::output::{ConnId, IoCommand, IoOp, SlotId};
use super::slot::{Slot, Stage};

impl Target {
    /// The size in bytes of which every part of this command but the last must be a multiple;
    /// `None` if it cannot be cut.
    #[must_use]
    pub fn part_unit(&self, id: ConnId, slot: SlotId) -> Option<u32> {
        let connection = self.connections.get(id)?;
        let queue = connection.queue.filter(|queue| queue.qid != 0)?;
        let sqe = &connection.slots.get(slot)?.sqe;
        if !matches!(sqe.opcode(), io::READ | io::WRITE) || sqe.fuse() != Fuse::Normal {
            return None;
        }
        let controller = self.controllers.get(queue.controller)?;
        let subsystem = self.subsystems.get(controller.subsystem?)?.as_ref()?;
        let geometry = &subsystem.namespaces.get(sqe.nsid().0)?.geometry;
        // What was promised to be atomic stays in one piece, and a Read sees all of it or nothing,
        // as far as both are aligned to it. [NVM-1.0 §2.1.4]
        let atomic = geometry.atomic_write_blocks.max(1);
        let unit_blocks = if sqe.opcode() == io::READ { atomic } else { 1 };
        (sqe.blocks() > atomic).then(|| geometry.block_bytes.saturating_mul(unit_blocks))
    }

    /// A buffer for the next `len` bytes that [`Output::NeedBuffer`](super::Output::NeedBuffer)
    /// asked for is bound: ask the host for them. Less than was asked for only if
    /// [`part_unit`](Self::part_unit) allows it. `false`: the command has gone meanwhile, and
    /// nothing will release the buffer but the one who bound it.
    pub fn handle_part_buffer(&mut self, now: Nanos, id: ConnId, slot: SlotId, len: u32) -> bool {
        let transfer = self.config.deadlines.transfer;
        let Some(connection) = self.connections.get_mut(id) else {
            return false;
        };
        let Some(command) = connection.slots.at_stage(slot, Stage::Buffer) else {
            return false;
        };
        // Aborted while it waited: its data is not wanted any more.
        if !command.status.is_success() {
            let status = command.status;
            self.respond(now, id, slot, status, 0);
            self.touch(id);
            return false;
        }
        command.cut(len);
        command.granted = now;
        command.enter(now, Stage::Transfer);
        connection.push(Pending::R2t(slot));
        self.arm_connection_at(id, now.after(transfer));
        self.touch(id);
        true
    }

    /// Only the next `len` bytes of a Read that was handed out are read now, and completed; the
    /// rest is handed out when they have been polled. Returns what to run instead.
    pub fn cut_read(&mut self, id: ConnId, slot: SlotId, len: u32) -> Option<IoCommand> {
        let connection = self.connections.get_mut(id)?;
        let command = connection.slots.at_stage(slot, Stage::Executing)?;
        let IoOp::Read { lba, fua, .. } = command.command.op else {
            return None;
        };
        let unit = command.block_bytes()?;
        command.cut(len);
        let bytes = command.part_len();
        command.command.op = IoOp::Read {
            lba,
            blocks: bytes / unit,
            fua,
        };
        command.command.bytes = bytes;
        Some(command.command)
    }

    /// The device is done with a part that is not the last.
    pub(super) fn part_done(&mut self, now: Nanos, id: ConnId, slot: SlotId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let (state, queue) = (connection.state, connection.queue);
        let (Some(command), Some(queue)) = (connection.slots.get_mut(slot), queue) else {
            return;
        };
        let (sqe, handle) = (command.sqe, command.command.namespace);
        let is_read = matches!(command.command.op, IoOp::Read { .. });
        if state != State::Ready {
            // What has not begun is left to the host's retry.
            connection.abandon(slot);
        } else if is_read {
            // What is left needs the namespace again, and leave to use it. The data of a Write is
            // looked at when it comes.
            if let Err((status, _)) = self.gate().plan_again(queue.controller, &sqe, handle) {
                return self.respond(now, id, slot, status, 0);
            }
            let Some(connection) = self.connections.get_mut(id) else {
                return;
            };
            if let Some(command) = connection.slots.get_mut(slot) {
                command.enter(now, Stage::Respond);
                connection.push(Pending::Data(slot));
            }
        } else {
            command.next_part();
            command.enter(now, Stage::Buffer);
            connection.push(Pending::NeedBuffer(slot));
        }
    }
}

impl Connection {
    /// A part of a Read was polled: the rest is to be read.
    pub(super) fn read_on(&mut self, now: Nanos, id: SlotId) {
        let Some(command) = self.slots.at_stage(id, Stage::Respond) else {
            return;
        };
        if !command.next_part() {
            return;
        }
        command.enter(now, Stage::Queued);
        self.push(Pending::Execute(id));
    }
}

impl Slot {
    /// The command moves `len` bytes, in one part unless it is cut.
    pub(super) fn set_transfer(&mut self, len: u32) {
        self.transfer_len = len;
        self.part_start = 0;
        self.part_end = len;
    }

    pub(super) fn part_len(&self) -> u32 {
        self.part_end - self.part_start
    }

    /// Whether data follows that is not of this part.
    pub(super) fn has_more_parts(&self) -> bool {
        self.part_end < self.transfer_len
    }

    /// A part of a Read is queued to be sent, and the next is to be run after it.
    pub(super) fn is_between_parts(&self) -> bool {
        self.stage == Stage::Respond
            && self.status.is_success()
            && self.has_more_parts()
            && self.sqe.opcode() == io::READ
    }

    /// What the device was given, about all parts.
    pub(super) fn whole(&self) -> IoCommand {
        let mut whole = self.command;
        if self.is_cut() {
            whole.bytes = self.transfer_len;
        }
        whole
    }

    pub(super) fn is_cut(&self) -> bool {
        self.part_start > 0 || self.has_more_parts()
    }

    /// Ends the part after `len` bytes, at a whole number of logical blocks but at least one.
    fn cut(&mut self, len: u32) {
        if len >= self.part_len() {
            return;
        }
        if let Some(unit) = self.block_bytes() {
            self.part_end = self.part_start + (len / unit * unit).max(unit);
        }
    }

    /// Goes on behind the part; what is to run is what is left.
    fn next_part(&mut self) -> bool {
        let Some(unit) = self.block_bytes() else {
            return false;
        };
        self.part_start = self.part_end;
        self.part_end = self.transfer_len;
        self.command = self.part_of(self.command, unit);
        true
    }

    fn block_bytes(&self) -> Option<u32> {
        block_bytes(&self.sqe, self.transfer_len)
    }

    /// `command`, about the current part only.
    pub(super) fn for_part(&self, command: IoCommand) -> IoCommand {
        match self.block_bytes() {
            Some(unit) if self.is_cut() => self.part_of(command, unit),
            _ => command,
        }
    }

    fn part_of(&self, command: IoCommand, unit: u32) -> IoCommand {
        let start = self.sqe.slba() + u64::from(self.part_start / unit);
        let count = self.part_len() / unit;
        let op = match command.op {
            IoOp::Read { fua, .. } => IoOp::Read {
                lba: start,
                blocks: count,
                fua,
            },
            IoOp::Write { fua, .. } => IoOp::Write {
                lba: start,
                blocks: count,
                fua,
            },
            op => op,
        };
        IoCommand {
            op,
            bytes: self.part_len(),
            ..command
        }
    }
}

/// The logical block size that a command's lengths imply.
fn block_bytes(sqe: &Sqe, transfer_len: u32) -> Option<u32> {
    transfer_len
        .checked_div(sqe.blocks())
        .filter(|&unit| unit > 0)
}

#[cfg(test)]
mod tests {
    use super::super::slot::Slots;
    use super::*;
    use bowline_nvme::NamespaceId;

    #[test]
    fn parts_cover_a_command_once_in_order_and_at_blocks() {
        let mut slots = Slots::new(1);
        let sqe = Sqe::new(io::WRITE)
            .with_nsid(NamespaceId(1))
            .with_slba(100)
            .with_nlb(31);
        let id = slots.claim(Nanos::ZERO, &sqe).expect("free");
        let slot = slots.get_mut(id).expect("claimed");
        slot.set_transfer(16 << 10);
        let whole = IoCommand {
            op: IoOp::Write {
                lba: 100,
                blocks: 32,
                fua: true,
            },
            bytes: 16 << 10,
            ..slot.command
        };
        assert!(!slot.is_cut());
        assert_eq!(slot.for_part(whole), whole);
        let mut found = Vec::new();
        // Too little for a block counts as one; what is too much ends the command.
        for len in [5000, 1, 4096, u32::MAX] {
            slot.cut(len);
            let part = slot.for_part(whole);
            let IoOp::Write { lba, blocks, fua } = part.op else {
                panic!("{part:?}")
            };
            assert!(fua && part.bytes == blocks * 512);
            found.push((lba, blocks));
            if !slot.has_more_parts() {
                break;
            }
            assert!(slot.next_part());
        }
        assert_eq!(found, [(100, 9), (109, 1), (110, 8), (118, 14)]);
    }
}
