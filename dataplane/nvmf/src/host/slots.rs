//! Command slots of one queue pair, and the command identifiers that name them on the wire.

use bowline_nvme::{CommandId, Nanos, Sqe};

/// Not a command: the error log uses it for "no particular command". [BASE-2.0 §5.16.1.2]
const CID_RESERVED: u16 = 0xFFFF;

/// Index of a command slot of one queue; the owner keys its data buffers by it.
///
/// Valid from a successful `submit` until that command's [`Completion`](super::Completion).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u16);

impl SlotId {
    /// The slot as an array index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Data of a command, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// Controller to host; `len` in bytes, a non-zero multiple of 4.
    ToHost {
        /// Bytes the owner's buffer can take and the command asks for.
        len: u32,
    },
    /// Host to controller; `len` in bytes, a non-zero multiple of 4.
    FromHost {
        /// Bytes in the owner's buffer.
        len: u32,
    },
}

impl Transfer {
    pub(super) fn len(self) -> u32 {
        match self {
            Self::None => 0,
            Self::ToHost { len } | Self::FromHost { len } => len,
        }
    }
}

/// Where a slot's command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    /// Accepted, its capsule not yet polled.
    Queued,
    /// Its capsule is on the wire or on its way.
    Sent,
    /// Finished; the completion waits to be polled.
    Done,
}

/// A range the controller asked for with R2T. [TCP-1.0 §3.3.2.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) ttag: u16,
    /// First byte of the command's data not covered.
    pub(super) end: u32,
}

/// One command. Reused for ever; nothing in it is allocated.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) sqe: Sqe,
    pub(super) token: u64,
    /// When the command was submitted; drives the command time-out.
    pub(super) since: Nanos,
    pub(super) transfer: Transfer,
    /// Bytes of data received or handed out for sending; offsets below are settled.
    pub(super) moved: u32,
    pub(super) grant: Option<Grant>,
    /// Counts reuses; part of the command identifier, so a stale one does not match.
    pub(super) generation: u16,
    pub(super) state: SlotState,
    /// The queue's own command; its data is the queue's control buffer.
    pub(super) internal: bool,
    /// No time-out: an Asynchronous Event Request completes when there is an event.
    pub(super) patient: bool,
    /// A data digest of this command did not match; its data is not to be trusted.
    pub(super) digest_failed: bool,
    /// A C2HData PDU with LAST_PDU was seen.
    pub(super) data_ended: bool,
}

const _: () = assert!(size_of::<Slot>() <= 192, "memory per command is bounded");

/// The slots of a queue.
///
/// A command identifier is the slot's index in its low bits and the slot's generation above, so
/// a completion for a command that has since been replaced names nothing.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    index_bits: u32,
}

impl Slots {
    /// `count` slots, 1..=4096; the bound leaves at least 4 generation bits.
    pub(super) fn new(count: u16) -> Self {
        let count = count.clamp(1, 4096);
        let slot = |_| Slot {
            sqe: Sqe([0; 64]),
            token: 0,
            since: Nanos::ZERO,
            transfer: Transfer::None,
            moved: 0,
            grant: None,
            generation: 0,
            state: SlotState::Free,
            internal: false,
            patient: false,
            digest_failed: false,
            data_ended: false,
        };
        Self {
            slots: (0..count).map(slot).collect(),
            free: (0..count).rev().collect(),
            index_bits: u16::BITS - (count - 1).leading_zeros(),
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a free slot under a fresh command identifier.
    pub(super) fn claim(&mut self) -> Option<(SlotId, CommandId)> {
        let index = self.free.pop()?;
        let mask = u16::MAX >> self.index_bits;
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1) & mask;
        if slot.generation << self.index_bits | index == CID_RESERVED {
            slot.generation = 0;
        }
        Some((
            SlotId(index),
            CommandId(slot.generation << self.index_bits | index),
        ))
    }

    pub(super) fn release(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.index()];
        debug_assert_ne!(slot.state, SlotState::Free, "a slot is released once");
        slot.state = SlotState::Free;
        // Never grows: there are as many places as slots.
        self.free.push(id.0);
    }

    pub(super) fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.index()]
    }

    pub(super) fn slot_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[id.index()]
    }

    /// The command on the wire that `cid` names, if there is one.
    pub(super) fn find_sent(&self, cid: CommandId) -> Option<SlotId> {
        let index = cid.0 & !(u16::MAX << self.index_bits);
        let slot = self.slots.get(usize::from(index))?;
        let current = slot.state == SlotState::Sent && slot.sqe.cid() == cid;
        current.then_some(SlotId(index))
    }

    /// Slots in use, in index order.
    pub(super) fn iter_used_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Slot)> {
        (0u16..)
            .zip(&mut self.slots)
            .filter(|(_, slot)| slot.state != SlotState::Free)
            .map(|(index, slot)| (SlotId(index), slot))
    }

    /// Slots in use, in index order.
    pub(super) fn iter_used(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        (0u16..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.state != SlotState::Free)
            .map(|(index, slot)| (SlotId(index), slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(slots: &mut Slots) -> (SlotId, CommandId) {
        let (id, cid) = slots.claim().expect("a slot is free");
        let slot = slots.slot_mut(id);
        slot.sqe = slot.sqe.with_cid(cid);
        slot.state = SlotState::Sent;
        (id, cid)
    }

    #[test]
    fn identifier_of_a_finished_command_finds_nothing_after_reuse() {
        let mut slots = Slots::new(1);
        let (id, first) = send(&mut slots);
        assert_eq!(slots.find_sent(first), Some(id));
        slots.release(id);
        assert_eq!(slots.find_sent(first), None);
        let (_, second) = send(&mut slots);
        assert_ne!(first, second);
        assert_eq!(slots.find_sent(first), None);
        assert_eq!(slots.find_sent(second), Some(id));
    }

    #[test]
    fn slots_run_out_and_come_back() {
        let mut slots = Slots::new(3);
        let ids: Vec<_> = (0..3).map(|_| send(&mut slots).0).collect();
        assert!(slots.claim().is_none());
        assert_eq!(slots.in_use(), 3);
        slots.release(ids[1]);
        assert_eq!(slots.claim().map(|(id, _)| id), Some(ids[1]));
    }

    #[test]
    fn every_identifier_maps_to_at_most_one_slot() {
        for count in [1, 2, 3, 31, 127, 128, 129, 4096] {
            let mut slots = Slots::new(count);
            let sent: Vec<_> = (0..count).map(|_| send(&mut slots)).collect();
            for (id, cid) in &sent {
                assert_eq!(slots.find_sent(*cid), Some(*id));
            }
            let known = (0..=u16::MAX).filter(|cid| slots.find_sent(CommandId(*cid)).is_some());
            assert_eq!(known.count(), usize::from(count));
        }
    }

    #[test]
    fn reserved_identifier_is_never_used() {
        let mut slots = Slots::new(1);
        for _ in 0..=u32::from(u16::MAX) {
            let (id, cid) = send(&mut slots);
            assert_ne!(cid.0, CID_RESERVED);
            slots.release(id);
        }
    }

    #[test]
    fn generations_wrap_without_leaving_the_identifier() {
        let mut slots = Slots::new(4096);
        for _ in 0..40 {
            let (id, cid) = send(&mut slots);
            assert_eq!(slots.find_sent(cid), Some(id));
            slots.release(id);
        }
    }
}
