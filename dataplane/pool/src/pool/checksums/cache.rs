//! Checksums in memory: of a bounded number of groups, each with what is known of its chunks and who changes them.

use std::collections::HashMap;

use uuid::Uuid;

use super::Waiting;
use crate::format::pages::{PAGE_BYTES, SlotMap, seal_page, set_slot, slot};

/// Set in a chunk's count of writers once there were two at a time: nobody knows which came last.
const IS_MIXED: u16 = 1 << 15;

/// What a group's checksums in memory are to those on the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// They are being read.
    Loading,
    /// They are the same.
    Clean,
    /// The record that says that those on the drive may be out of date is on its way.
    Activating,
    /// Those on the drive are not believed.
    Active,
    /// Active, and they are being written.
    Saving,
    /// The record that says that those on the drive are right is on its way.
    Retiring,
}

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Nothing,
    /// It is being written.
    Busy,
    Slot(u32),
}

/// The checksums of a group.
pub(super) struct Entry {
    pub(super) group: u32,
    pub(super) phase: Phase,
    slots: Box<[u32]>,
    /// How many writes each chunk has under way.
    writers: Box<[u16]>,
    /// Writes under way, of any chunk.
    pub(super) writes: u32,
    /// Reads under way that must know whether their chunks are written meanwhile.
    pub(super) watches: u32,
    /// Changed since they were last written.
    pub(super) is_touched: bool,
    /// Looked at since the clock's hand was here.
    is_used: bool,
    /// Those who go on when the phase is another.
    pub(super) waiting: Vec<Waiting>,
}

impl Entry {
    fn new(slots: usize) -> Self {
        Self {
            group: u32::MAX,
            phase: Phase::Clean,
            slots: vec![0; slots].into(),
            writers: vec![0; slots].into(),
            writes: 0,
            watches: 0,
            is_touched: false,
            is_used: false,
            waiting: Vec::new(),
        }
    }

    /// Whether it differs from what the drive says.
    pub(super) const fn is_dirty(&self) -> bool {
        !matches!(self.phase, Phase::Loading | Phase::Clean)
    }

    /// Whether chunks that are there may be written.
    pub(super) const fn is_writable(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Saving)
    }

    /// Whether nobody needs it to stay.
    pub(super) const fn is_idle(&self) -> bool {
        self.writes == 0 && self.watches == 0 && self.waiting.is_empty()
    }

    pub(super) fn known(&self, at: usize) -> Known {
        match (self.writers.get(at), self.slots.get(at)) {
            (Some(0), Some(0)) => Known::Nothing,
            (Some(0), Some(slot)) => Known::Slot(*slot),
            (Some(_), _) => Known::Busy,
            (None, _) => Known::Nothing,
        }
    }

    /// What is known of chunks that nobody writes.
    pub(super) fn set(&mut self, at: usize, slot: u32) {
        if let Some(place) = self.slots.get_mut(at) {
            *place = slot;
            self.is_touched = true;
        }
    }

    /// A write of a chunk begins.
    pub(super) fn begin(&mut self, at: usize) {
        self.is_touched = true;
        if let Some(writers) = self.writers.get_mut(at) {
            *writers = (*writers + 1) | if *writers > 0 { IS_MIXED } else { 0 };
        }
    }

    /// A write of a chunk has ended; `slot` is its checksum now, if that is known. `None`: it was not changed.
    pub(super) fn end(&mut self, at: usize, slot: Option<u32>) {
        let (Some(writers), Some(place)) = (self.writers.get_mut(at), self.slots.get_mut(at))
        else {
            return;
        };
        let is_mixed = *writers & IS_MIXED != 0;
        *writers -= 1;
        if *writers & !IS_MIXED == 0 {
            *writers = 0;
        }
        match slot {
            _ if is_mixed => *place = 0,
            Some(slot) => *place = slot,
            None => {}
        }
    }

    /// Takes over what the drive has; `is_known` says of which pages.
    pub(super) fn load(
        &mut self,
        map: &SlotMap,
        bytes: &[u8],
        mut is_known: impl FnMut(u32, &[u8; PAGE_BYTES]) -> bool,
    ) {
        let page_slots = map.page_slots();
        for (index, page) in (0..).zip(bytes.as_chunks::<PAGE_BYTES>().0) {
            if is_known(index, page) {
                let first = (index * page_slots) as usize;
                for (at, place) in (0..page_slots).zip(self.slots.iter_mut().skip(first)) {
                    *place = slot(page, at);
                }
            }
        }
    }

    /// Writes the group's pages to `out`.
    pub(super) fn save(&self, map: &SlotMap, pool: Uuid, out: &mut [u8]) {
        let page_slots = map.page_slots() as usize;
        let (first, _) = map.group_pages(self.group);
        let pages = out.as_chunks_mut::<PAGE_BYTES>().0;
        let slots = self.slots.chunks(page_slots);
        for ((index, page), slots) in (first..).zip(pages).zip(slots) {
            page.fill(0);
            for (at, slot) in (0..).zip(slots) {
                set_slot(page, at, *slot);
            }
            seal_page(page, pool, index);
        }
    }
}

/// A bounded number of groups.
pub(super) struct Cache {
    entries: Vec<Entry>,
    places: HashMap<u32, u32>,
    free: Vec<u32>,
    /// How many there may be.
    pub(super) capacity: usize,
    slots: usize,
    hand: usize,
    /// Entries that differ from what the drive says.
    pub(super) dirty: usize,
}

/// What one group takes in memory at most.
const fn entry_bytes(map: &SlotMap) -> usize {
    // Slots, writers, and the entry with its place in the table.
    map.group_slots() as usize * 6 + size_of::<Entry>() + 64
}

impl Cache {
    pub(super) fn new(map: &SlotMap, bytes_max: usize) -> Self {
        Self {
            entries: Vec::new(),
            places: HashMap::new(),
            free: Vec::new(),
            capacity: (bytes_max / entry_bytes(map)).max(1),
            slots: map.group_slots() as usize,
            hand: 0,
            dirty: 0,
        }
    }

    pub(super) fn find(&self, group: u32) -> Option<u32> {
        self.places.get(&group).copied()
    }

    pub(super) fn get(&self, at: u32) -> Option<&Entry> {
        self.entries.get(at as usize)
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut Entry> {
        self.entries.get_mut(at as usize)
    }

    /// Looks at a group.
    pub(super) fn entry(&mut self, group: u32) -> Option<&mut Entry> {
        let at = self.find(group)?;
        let entry = self.get_mut(at)?;
        entry.is_used = true;
        Some(entry)
    }

    pub(super) fn set_phase(&mut self, at: u32, phase: Phase) {
        if let Some(entry) = self.entries.get_mut(at as usize) {
            let was_dirty = entry.is_dirty();
            entry.phase = phase;
            let is_dirty = entry.is_dirty();
            self.dirty = self.dirty + usize::from(is_dirty) - usize::from(was_dirty);
        }
    }

    /// A place for a group that has none, of which nothing is known; `None` if all others must stay.
    pub(super) fn insert(&mut self, group: u32, phase: Phase) -> Option<u32> {
        let at = self.room()?;
        self.places.insert(group, at);
        let entry = self.get_mut(at)?;
        entry.group = group;
        entry.phase = Phase::Clean;
        entry.slots.fill(0);
        entry.is_touched = false;
        entry.is_used = false;
        self.set_phase(at, phase);
        Some(at)
    }

    fn room(&mut self) -> Option<u32> {
        if let Some(at) = self.free.pop() {
            return Some(at);
        }
        if self.entries.len() < self.capacity {
            let at = u32::try_from(self.entries.len()).ok()?;
            self.entries.push(Entry::new(self.slots));
            return Some(at);
        }
        // Twice around: the first time what was looked at is passed over.
        for _ in 0..2 * self.entries.len() {
            let at = self.hand;
            self.hand = (at + 1) % self.entries.len();
            let entry = &mut self.entries[at];
            if entry.phase != Phase::Clean || !entry.is_idle() {
                continue;
            }
            if !std::mem::take(&mut entry.is_used) {
                let at = u32::try_from(at).ok()?;
                self.places.remove(&self.entries[at as usize].group);
                return Some(at);
            }
        }
        None
    }

    /// Forgets a group.
    pub(super) fn remove(&mut self, at: u32) {
        self.set_phase(at, Phase::Clean);
        if let Some(entry) = self.entries.get(at as usize)
            && self.places.remove(&entry.group).is_some()
        {
            self.free.push(at);
        }
    }

    /// An entry that could be written and retired, from the hand on.
    pub(super) fn idle_dirty(&mut self) -> Option<u32> {
        let count = self.entries.len();
        let mut fallback = None;
        for step in 0..count {
            let at = (self.hand + step) % count;
            let entry = &mut self.entries[at];
            if entry.phase != Phase::Active || !entry.is_idle() {
                continue;
            }
            let index = u32::try_from(at).ok()?;
            if !std::mem::take(&mut entry.is_used) {
                return Some(index);
            }
            fallback = fallback.or(Some(index));
        }
        fallback
    }
}
