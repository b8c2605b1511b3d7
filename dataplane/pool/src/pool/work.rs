//! Extents whose map is about to change: who changes which chunks, and who waits for whom.
//!
//! Reads and writes in place never look here. A write in place may run beside a change of the same extent: both are
//! requests that were not answered yet, so either may come first; and where the extent is given up, nobody gets it
//! before the write has ended.
//! Only after a snapshot was taken, whoever reads a chunk to write it elsewhere waits until the writes in place have ended
//! that began before: they may be of another part of that chunk.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::ops::Range;

use bowline_block::{Device, IoError};

use super::engine::{Engine, Todo};
use super::piece::{Kind, Task};
use super::slab::Slab;
use super::view::Key;
use crate::map::HeadEntry;

/// Stands for the pool itself among the pieces that hold chunks.
const POOL: u32 = u32::MAX;

/// Whether the work's target is a clean extent that is being mapped as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fresh {
    No,
    /// Its record is on its way.
    Pending,
    Durable,
    /// Its record was refused.
    Failed,
}

/// Changes of the map of one logical extent of a volume.
pub(super) struct Work {
    pub(super) key: Key,
    /// A physical extent taken for it.
    pub(super) target: Option<u32>,
    pub(super) fresh: Fresh,
    /// Pieces that hold chunks, with the chunks.
    pub(super) active: Vec<(u32, Range<u32>)>,
    /// Pieces that wait for those.
    waiting: VecDeque<u32>,
    /// A change of chunks is in the journal's queue.
    pub(super) is_queued: bool,
    /// What is written takes the place of a hole. So that nothing older shows, all chunks are there then, zero where
    /// nobody has written.
    pub(super) covers: bool,
    /// The target is zero but for what pieces have written.
    pub(super) is_blank: bool,
    /// The target is one of [`Works::on_their_way`].
    is_on_its_way: bool,
}

/// All works, and where each extent's is.
pub(super) struct Works {
    list: Slab<Work>,
    places: HashMap<Key, u32>,
    /// Targets that the map does not show yet, of volumes to which no room was promised.
    on_their_way: u64,
    /// One that the pool itself has asked for, and holds until the collector takes it or gives it back.
    turn: Option<u32>,
}

impl Works {
    pub(super) fn new() -> Self {
        Self {
            list: Slab::new(),
            places: HashMap::new(),
            on_their_way: 0,
            turn: None,
        }
    }

    pub(super) fn get(&self, index: u32) -> Option<&Work> {
        self.list.get(index)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Work> {
        self.list.get_mut(index)
    }

    fn find_or_insert(&mut self, key: Key) -> u32 {
        let list = &mut self.list;
        *self.places.entry(key).or_insert_with(|| {
            list.insert(Work {
                key,
                target: None,
                fresh: Fresh::No,
                active: Vec::new(),
                waiting: VecDeque::new(),
                is_queued: false,
                covers: false,
                is_blank: false,
                is_on_its_way: false,
            })
        })
    }

    fn remove(&mut self, index: u32) -> Option<Work> {
        self.arrived(index);
        let work = self.list.remove(index)?;
        self.places.remove(&work.key);
        Some(work)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Work> {
        self.places.values().filter_map(|index| self.get(*index))
    }

    /// How many extents are on their way to volumes to which no room was promised.
    pub(super) const fn on_their_way(&self) -> u64 {
        self.on_their_way
    }

    /// The map shows the work's target, or never will.
    fn arrived(&mut self, index: u32) {
        if let Some(work) = self.list.get_mut(index)
            && std::mem::take(&mut work.is_on_its_way)
        {
            self.on_their_way -= 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

/// What a volume's changes have to know of one another.
#[derive(Default)]
pub(super) struct Barrier {
    /// Pieces that hold chunks.
    pub(super) active: u32,
    /// Somebody waits until there are none, so nobody may begin.
    pub(super) is_frozen: bool,
    /// Snapshots that are taken while writes in place that began before have not ended. Whoever reads a chunk to write
    /// it elsewhere would miss what those write beside it.
    unsettled: u32,
    /// Pieces that wait for the end of that.
    blocked: Vec<u32>,
}

impl<D: Device> Engine<D> {
    /// Lets a piece hold its chunks and returns the work of its extent, or has it wait.
    pub(super) fn enter(&mut self, index: u32, task: &Task) -> Option<u32> {
        if self.journal.has_failed() {
            self.end_piece(index, Err(IoError::MediaWrite));
            return None;
        }
        let barrier = self.barriers.entry(task.key.0.number()).or_default();
        if barrier.is_frozen || barrier.unsettled > 0 && task.reads_old() {
            barrier.blocked.push(index);
            return None;
        }
        let (slot, logical) = task.key;
        let covers = self.state.head(slot, logical) == HeadEntry::Hole { is_own: true };
        let at = self.works.find_or_insert(task.key);
        let chunks = match task.kind {
            // Zeroes may take the whole extent away, so they are alone with it; and so is what covers a hole.
            Kind::Write | Kind::Compare | Kind::Read if !covers => task.chunks.clone(),
            _ => 0..self.shape.chunk_count(),
        };
        let work = self.works.get_mut(at)?;
        let overlaps = |held: &Range<u32>| held.start < chunks.end && chunks.start < held.end;
        let is_held = work.active.iter().any(|(_, held)| overlaps(held));
        // Writes to an extent that is zero and being mapped as a whole need not wait for one another: nothing of a
        // chunk has to be filled up.
        let joins = work.fresh == Fresh::Pending && task.kind == Kind::Write;
        let is_unknown = work.fresh == Fresh::Pending && task.kind == Kind::Compare;
        if !work.waiting.is_empty() || is_held && !joins || is_unknown {
            work.waiting.push_back(index);
            return None;
        }
        work.active.push((index, chunks));
        work.covers = covers;
        barrier.active += 1;
        if let Some(piece) = self.pieces.get_mut(index) {
            piece.work = Some(at);
        }
        Some(at)
    }

    pub(super) fn set_target(&mut self, work: u32, physical: u32, fresh: Fresh) {
        let Some(key) = self.works.get(work).map(|work| work.key) else {
            return;
        };
        let has_promise = self.is_thick(key);
        self.works.arrived(work);
        if let Some(work) = self.works.get_mut(work) {
            work.target = Some(physical);
            work.fresh = fresh;
            work.is_on_its_way = !has_promise;
            self.works.on_their_way += u64::from(!has_promise);
        }
    }

    /// The record of a work's target was applied, if the target was in it.
    pub(super) fn look_for_target(&mut self, work: u32) {
        let target = self.works.get(work).map(|work| (work.key, work.target));
        if let Some((key, Some(target))) = target
            && self.own(key).physical() == Some(target)
        {
            self.works.arrived(work);
        }
    }

    /// A piece gives its chunks back. Whoever waits tries again.
    pub(super) fn leave(&mut self, at: u32, piece: u32, volume: u32) {
        if let Some(barrier) = self.barriers.get_mut(&volume) {
            barrier.active -= 1;
        }
        let Some(work) = self.works.get_mut(at) else {
            return;
        };
        work.active.retain(|(index, _)| *index != piece);
        // Those before the pool, if it has asked for the extent; the others wait for it.
        let asked = work.waiting.iter().position(|it| *it == POOL);
        let first = asked.unwrap_or(work.waiting.len());
        self.todo
            .extend(work.waiting.drain(..first).map(Todo::Piece));
        // A record that is on its way ends the work itself.
        if work.active.is_empty() && !work.is_queued && work.fresh != Fresh::Pending {
            let (key, mut waiting) = (work.key, std::mem::take(&mut work.waiting));
            self.end_work(at);
            if waiting.pop_front().is_some() && self.works.turn.is_none() {
                self.works.turn = self.hold(key);
            }
            self.wait_again(key, waiting);
        }
    }

    /// Those who came after the pool wait until it had its turn.
    fn wait_again(&mut self, key: Key, pieces: VecDeque<u32>) {
        let work = self.works.places.get(&key).copied();
        match work.and_then(|at| self.works.get_mut(at)) {
            Some(work) => work.waiting = pieces,
            None => self.todo.extend(pieces.into_iter().map(Todo::Piece)),
        }
    }

    /// The pool does not need the extent that it has asked for, or not any more. Whether it has had one.
    pub(super) fn give_turn_back(&mut self) -> bool {
        let turn = self.works.turn.take();
        if let Some(at) = turn
            && let Some(key) = self.works.get(at).map(|work| work.key)
        {
            self.release(at, key);
        }
        turn.is_some()
    }

    /// Whether the pool has an extent that it has asked for.
    pub(super) const fn has_turn(&self) -> bool {
        self.works.turn.is_some()
    }

    /// Has the pool come next on an extent that others work on: they might never leave it otherwise.
    fn ask_for(&mut self, key: Key) {
        if let Some(at) = self.works.places.get(&key).copied()
            && let Some(work) = self.works.get_mut(at)
            && !work.waiting.contains(&POOL)
        {
            work.waiting.push_back(POOL);
        }
    }

    /// Nobody works on the extent any more.
    pub(super) fn end_work(&mut self, at: u32) {
        let Some(work) = self.works.remove(at) else {
            return;
        };
        self.todo.extend(work.waiting.into_iter().map(Todo::Piece));
        // All that was to be written to it has failed, and so no record names it. After a record that failed it is not
        // known whether it is on the drive: then nothing is allocated any more either.
        if let Some(target) = work.target
            && self.own(work.key).physical() != Some(target)
            && !self.journal.has_failed()
        {
            self.state.give_back(target..target + 1, false);
        }
    }

    /// Holds all chunks of an extent for the pool itself, if nobody else has any; else it comes next.
    pub(super) fn hold(&mut self, key: Key) -> Option<u32> {
        let barrier = self.barriers.entry(key.0.number()).or_default();
        if barrier.is_frozen {
            return None;
        }
        if let Some(at) = self.works.places.get(&key) {
            let turn = self.works.turn.take_if(|turn| turn == at);
            if turn.is_none() {
                self.ask_for(key);
            }
            return turn;
        }
        let at = self.works.find_or_insert(key);
        let all = 0..self.shape.chunk_count();
        self.works.get_mut(at)?.active.push((POOL, all));
        barrier.active += 1;
        Some(at)
    }

    /// The pool itself is done with an extent.
    pub(super) fn release(&mut self, work: u32, key: Key) {
        self.leave(work, POOL, key.0.number());
    }

    /// Has the volume's changes wait from now on. True when none is under way any more.
    pub(super) fn freeze(&mut self, volume: u32) -> bool {
        let barrier = self.barriers.entry(volume).or_default();
        barrier.is_frozen = true;
        barrier.active == 0
    }

    pub(super) fn thaw(&mut self, volume: u32) {
        if let Some(barrier) = self.barriers.get_mut(&volume) {
            barrier.is_frozen = false;
        }
        self.unblock(volume);
    }

    /// A snapshot of the volume is taken; writes in place that began before may still be under way.
    pub(super) fn unsettle(&mut self, volume: u32) {
        self.barriers.entry(volume).or_default().unsettled += 1;
    }

    /// Those writes have ended.
    pub(super) fn settle_snapshot(&mut self, volume: u32) {
        if let Some(barrier) = self.barriers.get_mut(&volume) {
            barrier.unsettled = barrier.unsettled.saturating_sub(1);
        }
        self.unblock(volume);
    }

    /// Has those try again that wait for the volume; who has to wait still, does.
    fn unblock(&mut self, volume: u32) {
        if let Some(barrier) = self.barriers.get_mut(&volume) {
            let blocked = std::mem::take(&mut barrier.blocked);
            self.todo.extend(blocked.into_iter().map(Todo::Piece));
        }
    }
}
