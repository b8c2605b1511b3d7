//! Command slots: where a command lives from its capsule to its response.
//!
//! The table is allocated once, at Connect, with one slot per queue entry and a little slack. A
//! slot's index and generation are the transfer tag, so data for a command that is gone cannot
//! match. Free slots form an intrusive list.

use bowline_nvme::{CommandId, Nanos, Sqe, Status};

use super::fused::Half;
use super::output::{IoCommand, IoOp, NamespaceHandle, SlotId};

/// Slots beyond the queue's entries. Responses free their slot when they are polled, so an honest
/// host never needs them; they absorb hosts that count in another way.
pub(super) const SLACK: u16 = 4;

/// Bits of a transfer tag that hold the slot's index; the rest hold its generation.
const TAG_INDEX_BITS: u32 = 11;
const TAG_INDEX_MASK: u16 = (1 << TAG_INDEX_BITS) - 1;
const GENERATION_MASK: u8 = 0x1F;
const NONE: u16 = u16::MAX;

/// Where a command is.
///
/// ```text
/// Free ─► Receive ─────────┐ in-capsule data
///   ├───► Buffer ─► Transfer ─► (Buffer is asked for once, Transfer once per R2T)
///   │                      ├─► Inspect (control) ─► Respond
///   │                      ├─► Fused ─► Buffer, Transfer, or Queued
///   ├──────────────────────┴─► Queued ─► Executing ─► Respond ─► Free
///   ├───► Fill (control data to the host) ─► Respond
///   └───► Held (AER, Connect), Reservation ─► Respond
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    /// In-capsule data is landing.
    Receive,
    /// Waits for a buffer before its first R2T.
    Buffer,
    /// An R2T is queued or outstanding.
    Transfer,
    /// All control data has landed; the glue is to show it.
    Inspect,
    /// Half of a fused pair, with all the data it can get while it waits for the other half.
    Fused,
    /// Its Execute has not been polled: nothing has happened yet.
    Queued,
    /// At its device.
    Executing,
    /// The glue is to have its buffer filled.
    Fill,
    /// Waits for an event or another object.
    Held,
    /// A reservation command: waits for its turn, for its result to be durable, or for the
    /// commands of others to end. `result` numbers it.
    Reservation,
    /// Its response or data is queued to be sent.
    Respond,
    /// Set aside for a command of the controller's own, between two of them.
    Reserved,
}

#[derive(Debug)]
pub(super) struct Slot {
    /// When the stage began, or the transfer last moved.
    pub(super) since: Nanos,
    /// CQE dwords 0 and 1.
    pub(super) result: u64,
    pub(super) sqe: Sqe,
    /// Bytes of data the command moves.
    pub(super) transfer_len: u32,
    /// Bytes that have landed, which is also the next DATAO expected.
    pub(super) landed: u32,
    /// Where the outstanding R2T ends; equal to `landed` when none is.
    pub(super) r2t_end: u32,
    /// What of the data the slot's buffer is for: all of it, unless there was too little memory.
    pub(super) part_start: u32,
    pub(super) part_end: u32,
    /// When the buffer for data from the host was bound.
    pub(super) granted: Nanos,
    /// What to run once `Queued`. Until then only its namespace counts: the one the command was
    /// accepted for.
    pub(super) command: IoCommand,
    pub(super) status: Status,
    next_free: u16,
    generation: u8,
    pub(super) stage: Stage,
    /// Byte position within the SQE or the data that was at fault, for the error log.
    pub(super) error_at: u16,
    /// The response is sent by the SUCCESS flag of the data.
    pub(super) fused_response: bool,
    /// An Abort waits for the command's end.
    pub(super) aborting: bool,
    pub(super) half: Half,
    /// Not the host's command: it has no id and gets no response.
    pub(super) internal: bool,
    /// A Preempt and Abort waits until this has left its device.
    pub(super) awaited: bool,
}

#[derive(Debug)]
pub(super) struct Slots {
    table: Vec<Slot>,
    free: u16,
    busy: u16,
    /// Busy commands per low byte of the command id: zero means surely no duplicate.
    by_cid: Box<[u16; 256]>,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        let mut slots = Self {
            table: Vec::new(),
            free: NONE,
            busy: 0,
            by_cid: Box::new([0; 256]),
        };
        slots.grow(count);
        slots
    }

    /// Extends the table to `count` slots; existing ones keep their index.
    pub(super) fn grow(&mut self, count: u16) {
        let count = count.min(TAG_INDEX_MASK + 1);
        let have = self.capacity();
        self.table
            .reserve_exact(usize::from(count.saturating_sub(have)));
        for index in have..count {
            let next = if index + 1 < count {
                index + 1
            } else {
                self.free
            };
            self.table.push(Slot::free(next));
        }
        if have < count {
            self.free = have;
        }
    }

    pub(super) fn capacity(&self) -> u16 {
        u16::try_from(self.table.len()).unwrap_or(NONE)
    }

    pub(super) fn busy(&self) -> u16 {
        self.busy
    }

    pub(super) fn has_free(&self) -> bool {
        self.free != NONE
    }

    pub(super) fn is_cid_busy(&self, cid: CommandId) -> bool {
        self.by_cid(cid).is_some()
    }

    /// The host's command of that identifier.
    pub(super) fn by_cid(&self, cid: CommandId) -> Option<SlotId> {
        if self.by_cid[usize::from(cid.0 & 0xFF)] == 0 {
            return None;
        }
        let mut commands = self.iter().filter(|(_, slot)| !slot.internal);
        commands
            .find(|(_, slot)| slot.sqe.cid() == cid)
            .map(|(id, _)| id)
    }

    /// A slot for the command, or `None` when all are busy.
    pub(super) fn claim(&mut self, now: Nanos, sqe: &Sqe) -> Option<SlotId> {
        let index = self.free;
        let slot = self.table.get_mut(usize::from(index))?;
        self.free = slot.next_free;
        let generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        *slot = Slot {
            generation,
            stage: Stage::Held,
            sqe: *sqe,
            since: now,
            ..Slot::free(NONE)
        };
        self.busy += 1;
        self.by_cid[usize::from(sqe.cid().0 & 0xFF)] += 1;
        Some(SlotId(index))
    }

    /// Sets a slot aside for the controller's own commands.
    pub(super) fn reserve(&mut self, now: Nanos) -> Option<SlotId> {
        let id = self.claim(now, &Sqe([0; 64]))?;
        self.by_cid[0] -= 1;
        let slot = self.get_mut(id)?;
        slot.internal = true;
        slot.stage = Stage::Reserved;
        Some(id)
    }

    pub(super) fn release(&mut self, id: SlotId) {
        let Some(slot) = self.table.get_mut(usize::from(id.0)) else {
            return;
        };
        if slot.stage == Stage::Free || slot.internal {
            return;
        }
        slot.stage = Stage::Free;
        slot.next_free = self.free;
        self.by_cid[usize::from(slot.sqe.cid().0 & 0xFF)] -= 1;
        self.busy -= 1;
        self.free = id.0;
    }

    pub(super) fn get(&self, id: SlotId) -> Option<&Slot> {
        self.table
            .get(usize::from(id.0))
            .filter(|slot| slot.stage != Stage::Free)
    }

    pub(super) fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.table
            .get_mut(usize::from(id.0))
            .filter(|slot| slot.stage != Stage::Free)
    }

    /// The slot, if it is at `stage`: how calls of the glue are matched to what was asked.
    pub(super) fn at_stage(&mut self, id: SlotId, stage: Stage) -> Option<&mut Slot> {
        self.table
            .get_mut(usize::from(id.0))
            .filter(|slot| slot.stage == stage)
    }

    /// The transfer tag of a slot: index in the low bits, generation above.
    pub(super) fn tag(&self, id: SlotId) -> u16 {
        let generation = self
            .table
            .get(usize::from(id.0))
            .map_or(0, |slot| slot.generation);
        id.0 | u16::from(generation) << TAG_INDEX_BITS
    }

    /// The live command a transfer tag names.
    pub(super) fn by_tag(&self, tag: u16) -> Option<SlotId> {
        let id = SlotId(tag & TAG_INDEX_MASK);
        self.get(id).filter(|_| self.tag(id) == tag).map(|_| id)
    }

    /// Starts the clocks of all transfers anew.
    pub(super) fn restart_transfers(&mut self, now: Nanos) {
        let transfers = self
            .table
            .iter_mut()
            .filter(|slot| matches!(slot.stage, Stage::Transfer | Stage::Fused));
        transfers.for_each(|slot| {
            slot.since = now;
            slot.granted = now;
        });
    }

    /// Gives up the commands at `stage`, which have no buffer, without a response.
    pub(super) fn release_at(&mut self, stage: Stage) {
        for index in 0..self.capacity() {
            if self
                .get(SlotId(index))
                .is_some_and(|slot| slot.stage == stage)
            {
                self.release(SlotId(index));
            }
        }
    }

    /// Busy slots, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        (0..)
            .map(SlotId)
            .zip(&self.table)
            .filter(|(_, slot)| slot.stage != Stage::Free)
    }
}

impl Slot {
    fn free(next_free: u16) -> Self {
        Self {
            since: Nanos::ZERO,
            result: 0,
            sqe: Sqe([0; 64]),
            transfer_len: 0,
            landed: 0,
            r2t_end: 0,
            part_start: 0,
            part_end: 0,
            granted: Nanos::ZERO,
            command: IoCommand {
                namespace: NamespaceHandle(0),
                op: IoOp::Flush,
                bytes: 0,
            },
            status: Status::SUCCESS,
            next_free,
            generation: 0,
            stage: Stage::Free,
            error_at: NO_ERROR_POSITION,
            fused_response: false,
            aborting: false,
            half: Half::None,
            internal: false,
            awaited: false,
        }
    }

    /// How the command ends that was taken back, or ended early, with `status`.
    pub(super) fn ended_early(&self, status: Status) -> Status {
        if self.awaited && !self.aborting && status.same_code(Status::ABORTED_BY_REQUEST) {
            Status::ABORTED_PREEMPT
        } else {
            status
        }
    }

    /// Moves on; the clock of the stage starts anew.
    pub(super) fn enter(&mut self, now: Nanos, stage: Stage) {
        self.stage = stage;
        self.since = now;
    }
}

/// Parameter Error Location of an error that is not about one field. [BASE-2.0 §5.16.1.2]
pub(super) const NO_ERROR_POSITION: u16 = 0xFFFF;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sqe(cid: u16) -> Sqe {
        Sqe::new(2).with_cid(CommandId(cid))
    }

    #[test]
    fn slot_fits_in_three_cache_lines() {
        assert!(size_of::<Slot>() <= 192, "{}", size_of::<Slot>());
    }

    #[test]
    fn tag_of_a_released_slot_matches_nothing_even_after_reuse() {
        let mut slots = Slots::new(2);
        let first = slots.claim(Nanos::ZERO, &sqe(1)).expect("free");
        let tag = slots.tag(first);
        assert_eq!(slots.by_tag(tag), Some(first));
        slots.release(first);
        assert_eq!(slots.by_tag(tag), None);
        let again = slots.claim(Nanos::ZERO, &sqe(1)).expect("free");
        assert_eq!(again, first);
        assert_eq!(slots.by_tag(tag), None);
        assert_eq!(slots.by_tag(0xFFFF), None);
        assert_eq!(slots.by_tag(TAG_INDEX_MASK), None);
    }

    #[test]
    fn growth_keeps_busy_slots_and_every_slot_is_claimed_once() {
        let mut slots = Slots::new(1);
        let held = slots.claim(Nanos::ZERO, &sqe(9)).expect("free");
        assert!(slots.claim(Nanos::ZERO, &sqe(8)).is_none());
        slots.grow(8);
        let mut seen = vec![held];
        while let Some(id) = slots.claim(Nanos::ZERO, &sqe(1)) {
            assert!(!seen.contains(&id));
            seen.push(id);
        }
        assert_eq!(seen.len(), 8);
        assert!(
            slots
                .get(held)
                .is_some_and(|slot| slot.sqe.cid() == CommandId(9))
        );
    }

    #[test]
    fn duplicate_command_id_is_found_among_ids_that_share_a_low_byte() {
        let mut slots = Slots::new(4);
        slots.claim(Nanos::ZERO, &sqe(0x1005)).expect("free");
        let other = slots.claim(Nanos::ZERO, &sqe(0x2005)).expect("free");
        assert!(slots.is_cid_busy(CommandId(0x1005)));
        assert!(!slots.is_cid_busy(CommandId(0x3005)));
        slots.release(other);
        assert!(!slots.is_cid_busy(CommandId(0x2005)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Claim(u16),
        /// Of the live commands, by position.
        Release(usize),
        Grow(u16),
        Reserve,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few low bytes, so that identifiers often share one.
        let cid = (0_u16..3, 0_u16..4).prop_map(|(high, low)| high << 8 | low);
        prop_oneof![
            40 => cid.prop_map(Step::Claim),
            40 => (0_usize..16).prop_map(Step::Release),
            1 => (0_u16..10).prop_map(Step::Grow),
            1 => Just(Step::Reserve),
        ]
    }

    /// The tags that a slot may be named by, live or not.
    fn tags(capacity: u16) -> impl Iterator<Item = u16> {
        (0..=capacity).flat_map(|index| {
            (0..=u16::from(GENERATION_MASK)).map(move |it| index | it << TAG_INDEX_BITS)
        })
    }

    proptest! {
        /// The model is the list of live commands, with the tags of those that are gone by slot.
        #[test]
        fn any_order_of_claims_and_releases_keeps_commands_apart(
            count in 1_u16..4,
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let mut slots = Slots::new(count);
            // Identifier (none for the controller's own), slot and tag.
            let mut live: Vec<(Option<u16>, SlotId, u16)> = Vec::new();
            let mut gone: Vec<Vec<u16>> = vec![Vec::new(); 16];
            let mut capacity = usize::from(count);
            for step in steps {
                let claimed = match step {
                    Step::Claim(cid) if slots.is_cid_busy(CommandId(cid)) => continue,
                    Step::Claim(cid) => Some((Some(cid), slots.claim(Nanos::ZERO, &sqe(cid)))),
                    Step::Reserve => Some((None, slots.reserve(Nanos::ZERO))),
                    Step::Grow(count) => {
                        slots.grow(count);
                        capacity = capacity.max(usize::from(count));
                        None
                    }
                    Step::Release(_) if live.is_empty() => continue,
                    Step::Release(at) => {
                        let at = at % live.len();
                        let (cid, id, tag) = live[at];
                        slots.release(id);
                        if cid.is_some() {
                            live.swap_remove(at);
                            gone[usize::from(id.0)].push(tag);
                            slots.release(id);
                        }
                        None
                    }
                };
                if let Some((cid, id)) = claimed {
                    prop_assert_eq!(id.is_some(), live.len() < capacity, "one while one is free");
                    live.extend(id.map(|id| (cid, id, slots.tag(id))));
                }
                let mut ids: Vec<u16> = live.iter().map(|(_, id, _)| id.0).collect();
                ids.sort_unstable();
                let found: Vec<u16> = slots.iter().map(|(id, _)| id.0).collect();
                prop_assert_eq!(found, ids, "each has a slot of its own");
                prop_assert_eq!(usize::from(slots.busy()), live.len());
                prop_assert_eq!(usize::from(slots.capacity()), capacity);
                for tag in tags(slots.capacity()) {
                    let named = live.iter().find(|it| it.2 == tag).map(|it| it.1);
                    prop_assert_eq!(slots.by_tag(tag), named);
                }
                for (_, id, tag) in &live {
                    let recent = gone[usize::from(id.0)].iter().rev();
                    let mut recent = recent.take(usize::from(GENERATION_MASK));
                    prop_assert!(recent.all(|old| old != tag), "no tag comes again so soon");
                }
                for cid in (0..3).flat_map(|high| (0..4).map(move |low| high << 8 | low)) {
                    let named = live.iter().find(|it| it.0 == Some(cid)).map(|it| it.1);
                    prop_assert_eq!(slots.by_cid(CommandId(cid)), named);
                }
            }
        }
    }
}
