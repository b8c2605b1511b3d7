//! The collector at work, one step at a time: what no snapshot and no clone needs any more is given up, and a volume
//! that would have to be looked up in too many places is brought together.

use std::collections::BTreeSet;
use std::ops::Range;

use bowline_block::{Completion, Device, Op, Segments};
use bowline_nvme::Nanos;

use super::checksums::Copied;
use super::drive::Tag;
use super::engine::{BOUNCE_BYTES_MAX, Engine};
use super::journal::{Change, Waiter};
use super::operation::{Bytes, Job};
use super::shape::CHUNK_BYTES;
use super::view::{Key, Own};
use crate::format::record::{Numbers, Record};
use crate::map::{Collector, Garbage, Merge, Reader, Step};

/// Versions filled in part that a volume is looked up in at most, for long.
const DEPTH_MAX: u32 = 8;

/// From one step to the next while there are requests.
const PACE: Nanos = Nanos::from_millis(1);

/// What the collector waits for.
enum Doing {
    /// A record, which is about these extents.
    Commit(Vec<(u32, Key)>),
    Copy(Copying),
}

/// Chunks on their way into a version that lacks them. All chunks of the logical extent are held, so that nobody
/// changes its map meanwhile.
struct Copying {
    key: Key,
    work: u32,
    into: u32,
    /// Chunks still to be copied, last first, and where from; `None`: zeroes.
    runs: Vec<(Range<u32>, Option<u32>)>,
    /// Those that are copied now.
    current: Range<u32>,
    /// Their slots, once they are known, and the claim on where they go.
    slots: Option<Vec<u32>>,
    claim: Option<u32>,
    /// What is recorded in the end.
    records: Option<Change>,
    is_merge: bool,
}

/// The pool's collector.
#[derive(Default)]
pub(super) struct Collecting {
    collector: Collector,
    /// Extents whose chain has become too deep.
    deep: BTreeSet<Key>,
    doing: Option<Doing>,
    /// While there are requests and room is not short, the next step is not before this.
    not_before: Nanos,
    /// Steps since the pool was opened.
    pub(super) steps: u64,
}

impl Collecting {
    pub(super) const fn is_idle(&self) -> bool {
        self.doing.is_none()
    }
}

impl<D: Device> Engine<D> {
    /// Whether nothing is left that nobody needs, as far as that can be known.
    pub(super) fn is_collected(&self) -> bool {
        let collecting = &self.collecting;
        collecting.is_idle() && collecting.collector.is_between() && self.state.is_collected()
    }

    /// Does the next step. Returns whether there was one.
    pub(super) fn run_collector(&mut self) -> bool {
        if !self.can_collect() {
            return self.give_turn_back();
        }
        let is_yielding = self.is_used() && !self.is_pressed() && !self.has_turn();
        if is_yielding && self.now < self.collecting.not_before {
            return false;
        }
        self.collecting.not_before = self.now.after(PACE);
        let has_begun = self.collect();
        // What was asked for is taken by now, or is not needed.
        let has_given_back = self.give_turn_back();
        self.collecting.steps += u64::from(has_begun);
        has_begun || has_given_back
    }

    pub(super) fn can_collect(&self) -> bool {
        self.collecting.doing.is_none()
            && !self.journal.has_failed()
            && !self.operations.is_closing()
            && self.operations.resizing().is_none()
    }

    /// When the collector's next step is, if it yields.
    pub(super) fn collect_at(&self) -> Option<Nanos> {
        let has_some = !self.is_collected() || !self.collecting.deep.is_empty();
        (has_some && self.can_collect()).then_some(self.collecting.not_before)
    }

    /// Whether the last of what nobody needs has just been given up: whoever waits for room has to be told then that there is none.
    pub(super) fn has_been_collected(&mut self) -> bool {
        let is_collected = self.is_collected();
        let was_collecting = std::mem::replace(&mut self.was_collecting, !is_collected);
        let has_been = was_collecting && is_collected && !self.homeless.is_empty();
        if has_been {
            self.retry_homeless();
        }
        has_been
    }

    fn collect(&mut self) -> bool {
        let deep = self.collecting.deep.first().copied();
        if let Some(key) = deep
            && self.start_fill(key)
        {
            return true;
        }
        match self.collecting.collector.step(&mut self.state) {
            Step::Idle => false,
            Step::Looked => true,
            Step::Commit(Garbage::Snapshots { volume, numbers }) => {
                // Without them older versions may be written to in place: so nobody changes the volume's map meanwhile.
                let snapshots = numbers;
                self.collecting.doing = Some(Doing::Commit(Vec::new()));
                self.operations.start_own(Job::Drop { volume, snapshots });
                true
            }
            Step::Commit(garbage) => {
                let Some((garbage, held)) = self.hold_garbage(garbage) else {
                    return false;
                };
                if let Garbage::Volume { volume } = garbage {
                    self.barriers.remove(&volume);
                }
                let mut bytes = Bytes::default();
                if garbage
                    .records()
                    .iter()
                    .any(|record| bytes.push(record).is_err())
                {
                    self.release_all(held);
                    self.collecting.collector.skip();
                    return true;
                }
                self.collecting.doing = Some(Doing::Commit(held));
                self.journal.want(bytes.into_change(), Waiter::Collector);
                true
            }
            Step::Merge(merge) => self.start_merge(&merge),
        }
    }

    /// Versions that are needless, as far as nobody works on their extents, which are held until they are gone: the record
    /// of a work may be on its way, and what it says would be taken away after it. And nobody may deallocate there and
    /// count on a hole that goes: what it has hidden would show. `None`: the work comes first, and then this is asked again.
    fn hold_garbage(&mut self, garbage: Garbage) -> Option<(Garbage, Vec<(u32, Key)>)> {
        let Garbage::Versions {
            volume,
            born,
            logical,
            count,
        } = garbage
        else {
            return Some((garbage, Vec::new()));
        };
        let slot = self.state.slot(volume)?;
        let keys = (logical..logical.saturating_add(count)).map(|logical| (slot, logical));
        let held: Vec<_> = keys.map_while(|key| Some((self.hold(key)?, key))).collect();
        let count = u32::try_from(held.len()).ok().filter(|count| *count > 0)?;
        let garbage = Garbage::Versions {
            volume,
            born,
            logical,
            count,
        };
        Some((garbage, held))
    }

    fn release_all(&mut self, held: Vec<(u32, Key)>) {
        for (work, key) in held {
            self.release(work, key);
        }
    }

    /// Two versions become one. Whoever works on the extent just now comes first: then the collector asks again.
    fn start_merge(&mut self, merge: &Merge) -> bool {
        let Some(slot) = self.state.slot(merge.volume) else {
            self.collecting.collector.skip();
            return true;
        };
        let mut bytes = Bytes::default();
        if merge
            .records()
            .iter()
            .any(|record| bytes.push(record).is_err())
        {
            self.collecting.collector.skip();
            return true;
        }
        let is_set = |chunk: u32| {
            let byte = merge.chunks.get((chunk / 8) as usize);
            byte.is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
        };
        let chunks = (0..self.shape.chunk_count()).filter(|chunk| is_set(*chunk));
        let runs = runs_of(chunks.map(|chunk| (chunk, Some(merge.from))));
        let is_started = self.start_copy(
            (slot, merge.logical),
            merge.into,
            runs,
            bytes.into_change(),
            true,
        );
        if is_started {
            // What is copied away must not be written to in place any more; what is being written there ends before the
            // copy begins.
            self.locked = merge.from;
        }
        is_started
    }

    /// The volume's own version gets all that is still looked up in older ones, so that they are not looked at again.
    fn start_fill(&mut self, key: Key) -> bool {
        let Own::Part(into) = self.own(key) else {
            return self.collecting.deep.remove(&key);
        };
        let born = self.state.born(key.0, key.1);
        let all = 0..self.shape.chunk_count();
        let mut runs = std::mem::take(&mut self.runs);
        let below = Reader::Snapshot(key.0, born);
        self.state.resolve(below, key.1, all, &mut runs);
        let chunks = runs.iter().flat_map(|run| {
            let physical = run.physical;
            run.chunks.clone().map(move |chunk| (chunk, physical))
        });
        let lacks = |chunk: u32| !self.state.has_chunks(into, chunk..chunk + 1);
        let copied = runs_of(chunks.filter(|(chunk, _)| lacks(*chunk)));
        self.runs = runs;
        let mut bytes = Bytes::default();
        let record = Record::Map {
            volume: key.0.number(),
            born,
            logical: key.1,
            physical: Numbers::Native(&[into]),
        };
        let is_started = bytes.push(&record).is_ok()
            && self.start_copy(key, into, copied, bytes.into_change(), false);
        if is_started {
            self.collecting.deep.remove(&key);
        }
        is_started
    }

    /// An extent's chunks were recorded: perhaps it is now found in too many places.
    pub(super) fn watch_depth(&mut self, key: Key) {
        if self.state.depth(Reader::Head(key.0), key.1) > DEPTH_MAX {
            self.collecting.deep.insert(key);
        }
    }

    fn start_copy(
        &mut self,
        key: Key,
        into: u32,
        runs: Vec<(Range<u32>, Option<u32>)>,
        records: Change,
        is_merge: bool,
    ) -> bool {
        let Some(work) = self.hold(key) else {
            return false;
        };
        self.collecting.doing = Some(Doing::Copy(Copying {
            key,
            work,
            into,
            runs,
            current: 0..0,
            slots: None,
            claim: None,
            records: Some(records),
            is_merge,
        }));
        self.cleaner.wait_for_grace(0);
        true
    }

    /// Everything has ended that began before: what is copied does not change any more.
    pub(super) fn copy_graced(&mut self) {
        self.copy_next();
    }

    /// Copies the next run of chunks, or records that all are copied.
    fn copy_next(&mut self) {
        let has_failed = self.journal.has_failed();
        let is_pressed = self.is_pressed();
        let Some(Doing::Copy(copying)) = &mut self.collecting.doing else {
            return;
        };
        if has_failed {
            return self.end_copy(false);
        }
        let barrier = self.barriers.get(&copying.key.0.number());
        let is_waited_for = barrier.is_some_and(|it| it.is_frozen);
        if is_waited_for && !is_pressed && !copying.runs.is_empty() {
            return self.give_way();
        }
        let Some((mut chunks, from)) = copying.runs.pop() else {
            if let Some(records) = copying.records.take() {
                self.journal.want(records, Waiter::Collector);
            }
            return;
        };
        let limit = chunks.start + BOUNCE_BYTES_MAX / CHUNK_BYTES;
        if chunks.end > limit {
            copying.runs.push((limit..chunks.end, from));
            chunks.end = limit;
        }
        copying.current = chunks.clone();
        let into = copying.into;
        let (start, len) = place(&chunks);
        let data = match from {
            Some(_) => self.bounce(len).map(|(buffer, _)| Segments::from(buffer)),
            None => Some(Segments::new()),
        };
        let Some(data) = data else {
            // Buffers are short: it goes on when some have come back.
            if let Some(Doing::Copy(copying)) = &mut self.collecting.doing {
                copying.runs.push((chunks, from));
            }
            return self.copy_when_there_is_room();
        };
        if !self.prepare_slots(from, &chunks) {
            return;
        }
        let Some(from) = from else {
            let zeroes = Op::WriteZeroes { deallocate: false };
            return self.copy_to(zeroes, into, &chunks, data);
        };
        let access = self.shape.access(Op::Read, from, start, len, false, data);
        self.drive.submit(access, Tag::Copy { is_read: true });
    }

    /// Learns the slots of the chunks that are next and claims their new places. False if the copy goes on later, or not.
    fn prepare_slots(&mut self, from: Option<u32>, chunks: &Range<u32>) -> bool {
        let Some(Doing::Copy(copying)) = &mut self.collecting.doing else {
            return false;
        };
        let (key, into) = (copying.key, copying.into);
        let slots = match copying.slots.take() {
            Some(slots) => Some(slots),
            None => self.slots_to_copy(key, from, chunks),
        };
        let claimed = match slots {
            Some(_) => self.claim_copy(key, into, chunks),
            None => Copied::Later,
        };
        let Some(Doing::Copy(copying)) = &mut self.collecting.doing else {
            return false;
        };
        copying.slots = slots;
        match claimed {
            Copied::Claimed(claim) => {
                copying.claim = claim;
                true
            }
            Copied::Later => {
                copying.runs.push((chunks.clone(), from));
                false
            }
            Copied::Refused => {
                self.end_copy(false);
                false
            }
        }
    }

    /// The current chunks were copied, or not.
    fn settle_slots(&mut self, is_copied: bool) {
        let Some(Doing::Copy(copying)) = &mut self.collecting.doing else {
            return;
        };
        let slots = copying.slots.take();
        if let Some(claim) = copying.claim.take() {
            self.settle_copy(claim, slots.as_deref().filter(|_| is_copied));
        }
    }

    /// Nobody reads these chunks there. They are stable before a record says that they are there.
    fn copy_to(&mut self, op: Op, into: u32, chunks: &Range<u32>, data: Segments) {
        let fua = self.drive.is_volatile();
        let (start, len) = place(chunks);
        let access = self.shape.access(op, into, start, len, fua, data);
        self.drive.submit(access, Tag::Copy { is_read: false });
    }

    pub(super) fn copy_answered(&mut self, is_read: bool, completion: Completion) {
        let Completion { result, data, .. } = completion;
        let Some(Doing::Copy(copying)) = &self.collecting.doing else {
            return;
        };
        let (into, chunks) = (copying.into, copying.current.clone());
        match (result, is_read) {
            (Ok(()), true) => self.copy_to(Op::Write, into, &chunks, data),
            (Ok(()), false) => {
                self.settle_slots(true);
                self.copy_next();
            }
            // It cannot be read, or not be written: the versions stay as they are.
            (Err(_), _) => self.end_copy(false),
        }
    }

    /// The collector's records are durable and applied, or refused.
    pub(super) fn collected(&mut self, is_durable: bool) {
        match self.collecting.doing.take() {
            Some(Doing::Commit(held)) => self.release_all(held),
            doing => {
                self.collecting.doing = doing;
                self.end_copy(is_durable);
            }
        }
    }

    /// A snapshot, and every write that waits for it, waits for no more than what is being copied just now. Nothing of
    /// the copy is recorded, so it counts for nothing; the collector begins it again afterwards. Not where room is short,
    /// so that snapshots one after another do not keep others from getting some.
    fn give_way(&mut self) {
        self.settle_slots(false);
        self.locked = u32::MAX;
        let Some(Doing::Copy(copying)) = self.collecting.doing.take() else {
            return;
        };
        if !copying.is_merge {
            self.collecting.deep.insert(copying.key);
        }
        self.release(copying.work, copying.key);
    }

    fn end_copy(&mut self, is_done: bool) {
        self.settle_slots(false);
        self.locked = u32::MAX;
        let Some(Doing::Copy(copying)) = self.collecting.doing.take() else {
            return;
        };
        self.release(copying.work, copying.key);
        if copying.is_merge && !is_done {
            self.collecting.collector.skip();
        }
    }
}

/// Where chunks are in an extent, in bytes, and how many.
const fn place(chunks: &Range<u32>) -> (u32, u32) {
    let len = (chunks.end - chunks.start) * CHUNK_BYTES;
    (chunks.start * CHUNK_BYTES, len)
}

/// Chunks that are one after another and from the same place, together; the last first.
fn runs_of(chunks: impl Iterator<Item = (u32, Option<u32>)>) -> Vec<(Range<u32>, Option<u32>)> {
    let mut runs: Vec<(Range<u32>, Option<u32>)> = Vec::new();
    for (chunk, from) in chunks {
        match runs.last_mut() {
            Some((run, same)) if run.end == chunk && *same == from => run.end += 1,
            _ => runs.push((chunk..chunk + 1, from)),
        }
    }
    runs.reverse();
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_of_one_place_and_without_gaps() {
        let chunks = [
            (1, None),
            (2, None),
            (3, Some(7)),
            (4, Some(7)),
            (6, Some(7)),
        ];
        let runs = runs_of(chunks.into_iter());
        assert_eq!(runs, [(6..7, Some(7)), (3..5, Some(7)), (1..3, None)]);
    }
}
