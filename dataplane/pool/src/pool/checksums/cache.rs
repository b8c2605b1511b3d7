//! Checksums in memory: of a bounded number of groups, each with what is known of its chunks and who changes them.
//!
//! Who has just come is on trial, first in, first out, with a share of the room; whoever is asked for again after others
//! have come stays, and goes only when nobody has asked for it for a while. So a scan, which asks for each group many times
//! but then never again, displaces nothing but itself. What left its trial too early is remembered for a while.

use std::collections::{HashMap, HashSet, VecDeque};

use bowline_nvme::Nanos;
use uuid::Uuid;

use super::Waiting;
use crate::format::pages::{PAGE_BYTES, SlotMap, seal_page, set_slot, slot};

/// Set in a chunk's count of writers once there were two at a time: nobody knows which came last.
const IS_MIXED: u16 = 1 << 15;

/// The share of the room that those on trial have at least: one in so many.
const TRIAL_SHARE: usize = 4;

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
    /// When a chunk was written last.
    written: Nanos,
    /// Which it was, of all that came, as long as it is on trial.
    trial: Option<u64>,
    /// Asked for since the clock's hand was here.
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
            written: Nanos::ZERO,
            trial: None,
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

    fn is_evictable(&self) -> bool {
        self.phase == Phase::Clean && self.is_idle()
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

    /// What was known of a chunk that only one writes.
    pub(super) fn sole_slot(&self, at: usize) -> Option<u32> {
        let is_sole = self.writers.get(at) == Some(&1);
        self.slots
            .get(at)
            .copied()
            .filter(|slot| is_sole && *slot != 0)
    }

    /// What is known of chunks that nobody writes.
    pub(super) fn set(&mut self, at: usize, slot: u32) {
        if let Some(place) = self.slots.get_mut(at) {
            *place = slot;
            self.is_touched = true;
        }
    }

    /// A write begins.
    pub(super) const fn begin_write(&mut self, now: Nanos) {
        self.writes += 1;
        self.written = now;
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
    /// How many have come.
    came: u64,
    /// Those on trial in the order in which they came, with places that somebody else has now.
    trials: VecDeque<(u32, u64)>,
    on_trial: usize,
    /// Groups that left while they were on trial, oldest first; as many as there is room for groups.
    left: VecDeque<u32>,
    left_set: HashSet<u32>,
    /// Entries that differ from what the drive says.
    pub(super) dirty: usize,
}

/// What one group takes in memory at most.
const fn entry_bytes(map: &SlotMap) -> usize {
    // Slots, writers, the entry, and its places in the tables, which have room to spare.
    map.group_slots() as usize * 6 + size_of::<Entry>() + 160
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
            came: 0,
            trials: VecDeque::new(),
            on_trial: 0,
            left: VecDeque::new(),
            left_set: HashSet::new(),
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

    /// Asks for a group.
    pub(super) fn entry(&mut self, group: u32) -> Option<&mut Entry> {
        let at = self.find(group)?;
        let others = self.came;
        let share = u64::try_from(self.trial_share()).unwrap_or(1);
        let entry = self.entries.get_mut(at as usize)?;
        match entry.trial {
            Some(came) if others - came > share => {
                entry.trial = None;
                entry.is_used = true;
                self.on_trial -= 1;
            }
            Some(_) => {}
            None => entry.is_used = true,
        }
        Some(entry)
    }

    const fn trial_share(&self) -> usize {
        self.capacity.div_ceil(TRIAL_SHARE)
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
        self.came += 1;
        let is_known = self.left_set.remove(&group);
        let came = self.came;
        let entry = self.get_mut(at)?;
        entry.group = group;
        entry.phase = Phase::Clean;
        entry.slots.fill(0);
        entry.is_touched = false;
        entry.is_used = false;
        entry.trial = None;
        if !is_known {
            entry.trial = Some(came);
            self.trials.push_back((at, came));
            self.on_trial += 1;
            self.forget_trials();
        }
        self.set_phase(at, phase);
        Some(at)
    }

    /// Drops the places of those that are not on trial any more, before there are too many.
    fn forget_trials(&mut self) {
        if self.trials.len() > 2 * self.capacity {
            let entries = &self.entries;
            let is_on_trial = |(at, came): &(u32, u64)| {
                let entry = entries.get(*at as usize);
                entry.is_some_and(|entry| entry.trial == Some(*came))
            };
            self.trials.retain(is_on_trial);
        }
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
        let at = self.oldest_on_trial().or_else(|| self.longest_unused())?;
        let entry = self.get_mut(at)?;
        let (group, was_on_trial) = (entry.group, entry.trial.take().is_some());
        self.places.remove(&group);
        if was_on_trial {
            self.on_trial -= 1;
            self.remember(group);
        }
        Some(at)
    }

    fn remember(&mut self, group: u32) {
        if self.left_set.insert(group) {
            self.left.push_back(group);
        }
        while self.left.len() > self.capacity
            && let Some(oldest) = self.left.pop_front()
        {
            self.left_set.remove(&oldest);
        }
    }

    /// If those on trial have more than their share.
    fn oldest_on_trial(&mut self) -> Option<u32> {
        if self.on_trial <= self.trial_share() && self.on_trial < self.entries.len() {
            return None;
        }
        for _ in 0..self.trials.len() {
            let (at, came) = self.trials.pop_front()?;
            let entry = self.entries.get(at as usize)?;
            if entry.trial != Some(came) {
                continue;
            }
            if entry.is_evictable() {
                return Some(at);
            }
            self.trials.push_back((at, came));
        }
        None
    }

    fn longest_unused(&mut self) -> Option<u32> {
        // Twice around: the first time what was asked for is passed over.
        for _ in 0..2 * self.entries.len() {
            let at = self.hand;
            self.hand = (at + 1) % self.entries.len();
            let entry = &mut self.entries[at];
            if entry.is_evictable() && !std::mem::take(&mut entry.is_used) {
                return u32::try_from(at).ok();
            }
        }
        None
    }

    /// Forgets a group.
    pub(super) fn remove(&mut self, at: u32) {
        self.set_phase(at, Phase::Clean);
        let Some(entry) = self.entries.get_mut(at as usize) else {
            return;
        };
        if self.places.remove(&entry.group).is_some() {
            self.on_trial -= usize::from(entry.trial.take().is_some());
            self.free.push(at);
        }
    }

    /// Entries that could be written and retired and were not written to since `before`, at most so many.
    pub(super) fn rested(&self, before: Nanos, count_max: usize) -> Vec<u32> {
        let is_rested = |entry: &Entry| {
            entry.phase == Phase::Active && entry.is_idle() && entry.written <= before
        };
        (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| is_rested(entry))
            .map(|(at, _)| at)
            .take(count_max)
            .collect()
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
            if entry.trial.is_some() || !std::mem::take(&mut entry.is_used) {
                return Some(index);
            }
            fallback = fallback.or(Some(index));
        }
        fallback
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: usize = 16;

    fn cache() -> Cache {
        let map = SlotMap::new(1 << 20, 3000);
        Cache::new(&map, GROUPS * entry_bytes(&map))
    }

    /// Asks for a group as a read does. Whether it was there.
    fn ask(cache: &mut Cache, group: u32) -> bool {
        if cache.entry(group).is_some() {
            return true;
        }
        cache.insert(group, Phase::Clean).unwrap();
        false
    }

    #[test]
    fn a_scan_does_not_displace_what_is_used_again_and_again() {
        let mut cache = cache();
        assert_eq!(cache.capacity, GROUPS);
        for _ in 0..3 {
            for group in 0..10 {
                ask(&mut cache, group);
            }
        }
        let mut misses = 0;
        for group in 100..900 {
            for _ in 0..50 {
                ask(&mut cache, group);
            }
            misses += usize::from(!ask(&mut cache, group % 10));
        }
        // Those that were still on trial when the scan began.
        assert!(misses <= 4, "{misses}");
        assert!(cache.entries.len() <= GROUPS && cache.left.len() <= GROUPS);
        assert!(cache.trials.len() <= 2 * GROUPS);
    }

    #[test]
    fn what_is_used_no_more_makes_room() {
        let mut cache = cache();
        for first in [0, 100, 200] {
            for _ in 0..20 {
                for group in first..first + 12 {
                    ask(&mut cache, group);
                }
            }
            assert!((first..first + 12).all(|group| ask(&mut cache, group)));
        }
    }

    #[test]
    fn a_group_that_somebody_needs_stays() {
        let mut cache = cache();
        let dirty = cache.insert(1000, Phase::Active).unwrap();
        let written = cache.insert(1001, Phase::Clean).unwrap();
        cache.get_mut(written).unwrap().writes = 1;
        for group in 0..500 {
            ask(&mut cache, group);
        }
        assert_eq!(cache.find(1000), Some(dirty));
        assert_eq!(cache.find(1001), Some(written));
        assert_eq!((cache.dirty, cache.idle_dirty()), (1, Some(dirty)));
        cache.remove(dirty);
        assert_eq!((cache.dirty, cache.find(1000)), (0, None));
        for group in 0..16 {
            if let Some(at) = cache
                .find(group)
                .or_else(|| cache.insert(group, Phase::Clean))
            {
                cache.set_phase(at, Phase::Active);
            }
        }
        assert_eq!(cache.insert(2000, Phase::Clean), None);
    }

    #[test]
    fn two_writes_of_a_chunk_at_a_time_leave_it_unknown() {
        let mut entry = Entry::new(4);
        entry.set(0, 7);
        entry.begin(0);
        assert_eq!(entry.known(0), Known::Busy);
        entry.end(0, None);
        assert_eq!(entry.known(0), Known::Slot(7), "nothing was changed");
        entry.begin(0);
        entry.begin(0);
        entry.end(0, Some(8));
        assert_eq!(entry.known(0), Known::Busy);
        entry.begin(0);
        entry.end(0, Some(9));
        entry.end(0, Some(10));
        assert_eq!(entry.known(0), Known::Nothing);
        entry.begin(0);
        entry.end(0, Some(11));
        assert_eq!(entry.known(0), Known::Slot(11));
    }
}
