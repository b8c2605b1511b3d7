//! Which groups are active: their pages read, the records before they are changed, and their pages written again.

use bowline_block::{Completion, Device, IoError, Op, Segments};
use bowline_nvme::Nanos;

use super::Waiting;
use super::cache::Phase;
use crate::format::pages::{PAGE_BYTES, PageState, verify_page};
use crate::pool::PoolEvent;
use crate::pool::drive::{Access, Tag};
use crate::pool::engine::Engine;
use crate::pool::journal::{Change, Waiter};

/// Groups that are written and retired together: one flush for all.
const BATCH_MAX: usize = 16;

/// More groups than this of each 8 are not left active: there must be room for those that are only read.
const DIRTY_EIGHTHS_MAX: usize = 6;

/// A group that was not written to for so long is retired, so that a crash does not make it unknown.
const REST: Nanos = Nanos::from_secs(30);

/// How often that is looked at.
const LOOK_INTERVAL: Nanos = Nanos::from_secs(10);

/// What a page's access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Step {
    Load { entry: u32 },
    Save { entry: u32 },
    Flush,
}

/// Groups on their way to the drive.
pub(in crate::pool) struct Saving {
    entries: Vec<u32>,
    outstanding: usize,
}

/// What somebody wants to do with a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Know its slots, for a while.
    Slots,
    /// Write to chunks that the map does not show before a record that is still to be asked for: so the group's own
    /// record is before that one.
    New,
    /// Write to chunks that are there: the group's record must be durable.
    Overwrite,
}

impl<D: Device> Engine<D> {
    /// Whether the group is as needed now. If not, `waiting` goes on when it may be.
    pub(super) fn need(&mut self, group: u32, need: Need, waiting: Waiting) -> bool {
        let Some(at) = self.sums.cache.find(group).or_else(|| self.bring(group)) else {
            self.sums.roomless.push_back(waiting);
            return false;
        };
        let Some(entry) = self.sums.cache.entry(group) else {
            return false;
        };
        let is_ready = match (entry.phase, need) {
            (Phase::Loading, _) => false,
            (_, Need::Slots) | (Phase::Active | Phase::Saving, _) => true,
            (Phase::Activating, need) => need == Need::New,
            (Phase::Clean | Phase::Retiring, _) => false,
        };
        if is_ready {
            return true;
        }
        let is_clean = entry.phase == Phase::Clean;
        if is_clean {
            self.sums.cache.set_phase(at, Phase::Activating);
            self.journal
                .want(Change::Activate { group }, Waiter::Activated(group));
            if need == Need::New {
                return true;
            }
        }
        if let Some(entry) = self.sums.cache.get_mut(at) {
            entry.waiting.push(waiting);
        }
        false
    }

    /// Makes room for a group and reads what the drive has. `None`: there is no room now.
    pub(super) fn bring(&mut self, group: u32) -> Option<u32> {
        let extents = self.sums.map.group_extents(group);
        if extents
            .clone()
            .all(|physical| self.state.is_active(physical))
        {
            // Active since before the pool was opened: nothing is known.
            return self.sums.cache.insert(group, Phase::Active);
        }
        if !extents.clone().any(|physical| self.keeps_sums(physical)) {
            // What the page says is of no consequence.
            return self.sums.cache.insert(group, Phase::Clean);
        }
        let (first, count) = self.sums.map.group_pages(group);
        let bytes = count * u32::try_from(PAGE_BYTES).unwrap_or(4096);
        let buffer = self.sums.buffers.alloc(bytes as usize)?;
        let entry = self.sums.cache.insert(group, Phase::Loading)?;
        let access = self.page_access(Op::Read, first, bytes, buffer.into());
        self.drive.submit(access, Tag::Page(Step::Load { entry }));
        Some(entry)
    }

    fn page_access(&self, op: Op, first: u64, bytes: u32, data: Segments) -> Access {
        Access {
            op,
            offset: self.sums.offset + first * PAGE_BYTES as u64,
            len: u64::from(bytes),
            fua: false,
            data,
        }
    }

    /// The drive has read or written pages.
    pub(in crate::pool) fn page_answered(&mut self, step: Step, completion: Completion) {
        let Completion { result, data, .. } = completion;
        match step {
            Step::Load { entry } => self.loaded(entry, result, &data),
            Step::Save { entry } => self.saved(entry, result),
            Step::Flush => self.flushed(result),
        }
    }

    fn loaded(&mut self, at: u32, result: Result<(), IoError>, data: &Segments) {
        let (map, pool) = (self.sums.map, self.superblock.uuid);
        let Some(entry) = self.sums.cache.get_mut(at) else {
            return;
        };
        let (first, count) = map.group_pages(entry.group);
        let mut lost = 0;
        if let (Ok(()), Some(bytes)) = (result, data.iter().next()) {
            entry.load(&map, bytes, |index, page| {
                let state = verify_page(page, pool, first + u64::from(index));
                lost += u64::from(state == PageState::Damaged);
                state == PageState::Valid
            });
        } else {
            lost = u64::from(count);
        }
        // A group is active as a whole. If one is in part all the same, the rest is still right.
        for physical in map.group_extents(entry.group) {
            if self.state.is_active(physical) {
                for chunk in 0..self.shape.chunk_count() {
                    entry.set(map.slot_in_group(physical, chunk) as usize, 0);
                }
            }
        }
        let group = entry.group;
        let waiting = std::mem::take(&mut entry.waiting);
        self.sums.counts.pages_read += u64::from(count);
        self.sums.cache.set_phase(at, Phase::Clean);
        if lost > 0 {
            self.pages_lost(
                group,
                lost,
                "page of checksums is damaged or cannot be read",
            );
        }
        self.resume_all(waiting);
    }

    /// Nothing is known of a group's chunks any more, though something was.
    fn pages_lost(&mut self, group: u32, count: u64, what: &str) {
        self.sums.counts.pages_lost += count;
        if !self.may_tell() {
            return;
        }
        let (page, _) = self.sums.map.group_pages(group);
        tracing::warn!(page, pool = %self.superblock.uuid,
            "a {what}: its chunks are not verified until they are written again");
        self.tell_event(PoolEvent::ChecksumsLost);
    }

    /// The record that a group is active is durable, or refused.
    pub(in crate::pool) fn activated(&mut self, group: u32, is_durable: bool) {
        let Some(at) = self.sums.cache.find(group) else {
            return;
        };
        let phase = if is_durable {
            Phase::Active
        } else {
            Phase::Clean
        };
        self.sums.cache.set_phase(at, phase);
        if let Some(entry) = self.sums.cache.get_mut(at) {
            let waiting = std::mem::take(&mut entry.waiting);
            self.resume_all(waiting);
        }
    }

    /// Writes groups and retires them, where there is need of room or the pool is being closed. Returns whether
    /// something was started.
    pub(in crate::pool) fn run_activity(&mut self) -> bool {
        if !self.sums.roomless.is_empty() {
            self.retry_roomless();
        }
        let cache = &self.sums.cache;
        let is_full = cache.dirty * 8 > cache.capacity * DIRTY_EIGHTHS_MAX;
        let is_closing = self.operations.is_closing();
        let is_wanted =
            cache.dirty > 0 && (is_full || is_closing || !self.sums.roomless.is_empty());
        if self.sums.saving.is_some() {
            return false;
        }
        if !is_wanted {
            return self.retire_rested();
        }
        if self.journal.has_failed() {
            return self.give_up_one();
        }
        let mut entries = Vec::new();
        while entries.len() < BATCH_MAX
            && let Some(entry) = self.sums.cache.idle_dirty()
            && self.save(entry)
        {
            entries.push(entry);
        }
        self.start_saving(entries)
    }

    fn start_saving(&mut self, entries: Vec<u32>) -> bool {
        let outstanding = entries.len();
        if outstanding > 0 {
            self.sums.saving = Some(Saving {
                entries,
                outstanding,
            });
        }
        outstanding > 0
    }

    /// When it is looked next for groups to retire.
    pub(in crate::pool) fn activity_timeout(&self) -> Option<Nanos> {
        let is_possible = self.sums.saving.is_none() && !self.journal.has_failed();
        (is_possible && self.sums.cache.dirty > 0).then_some(self.sums.next_look)
    }

    /// Retires groups that nobody writes to any more.
    fn retire_rested(&mut self) -> bool {
        if self.activity_timeout().is_none_or(|at| self.now < at) {
            return false;
        }
        let before = Nanos(self.now.0.saturating_sub(REST.0));
        let mut entries = self.sums.cache.rested(before, BATCH_MAX);
        entries.retain(|entry| self.save(*entry));
        if entries.len() < BATCH_MAX {
            self.sums.next_look = self.now.after(LOOK_INTERVAL);
        }
        self.start_saving(entries)
    }

    /// Without a journal nothing is retired. What is forgotten is not known any more, which is the truth.
    fn give_up_one(&mut self) -> bool {
        let Some(at) = self.sums.cache.idle_dirty() else {
            return false;
        };
        let group = self.sums.cache.get(at).map_or(0, |entry| entry.group);
        self.sums.cache.remove(at);
        self.pages_lost(group, 1, "page of checksums cannot be retired");
        true
    }

    fn save(&mut self, at: u32) -> bool {
        let (map, pool) = (self.sums.map, self.superblock.uuid);
        let Some(group) = self.sums.cache.get(at).map(|entry| entry.group) else {
            return false;
        };
        let (first, count) = map.group_pages(group);
        let bytes = count * u32::try_from(PAGE_BYTES).unwrap_or(4096);
        let Some(mut buffer) = self.sums.buffers.alloc(bytes as usize) else {
            return false;
        };
        let (Some(entry), Some(out)) = (self.sums.cache.get_mut(at), buffer.as_mut()) else {
            return false;
        };
        entry.save(&map, pool, out);
        entry.is_touched = false;
        self.sums.cache.set_phase(at, Phase::Saving);
        self.sums.counts.pages_written += u64::from(count);
        let access = self.page_access(Op::Write, first, bytes, buffer.into());
        let tag = Tag::Page(Step::Save { entry: at });
        self.drive.submit(access, tag);
        true
    }

    fn saved(&mut self, at: u32, result: Result<(), IoError>) {
        if result.is_err() {
            self.not_saved(at);
        }
        let Some(saving) = &mut self.sums.saving else {
            return;
        };
        saving.outstanding -= 1;
        if saving.outstanding > 0 {
            return;
        }
        if !self.drive.is_volatile() {
            return self.flushed(Ok(()));
        }
        let access = Access {
            op: Op::Flush,
            ..self.page_access(Op::Flush, 0, 0, Segments::new())
        };
        self.drive.submit(access, Tag::Page(Step::Flush));
    }

    /// A group could not be written: it is forgotten unless somebody needs it.
    fn not_saved(&mut self, at: u32) {
        let Some(entry) = self.sums.cache.get(at) else {
            return;
        };
        let (group, is_idle) = (entry.group, entry.is_idle());
        if is_idle {
            self.sums.cache.remove(at);
        } else {
            self.sums.cache.set_phase(at, Phase::Active);
        }
        self.pages_lost(group, 1, "page of checksums could not be written");
    }

    /// What was written is stable, and so is the data that it is about.
    fn flushed(&mut self, result: Result<(), IoError>) {
        if let Err(error) = result {
            self.flush_failed(error);
        }
        let Some(saving) = self.sums.saving.take() else {
            return;
        };
        for at in saving.entries {
            let Some(entry) = self.sums.cache.get(at) else {
                continue;
            };
            if entry.phase != Phase::Saving {
                continue;
            }
            let group = entry.group;
            if result.is_err() {
                self.not_saved(at);
            } else if entry.is_touched {
                self.sums.cache.set_phase(at, Phase::Active);
            } else {
                self.sums.cache.set_phase(at, Phase::Retiring);
                self.journal
                    .want(Change::Retire { group }, Waiter::Retired(group));
            }
        }
    }

    /// The record that the slots on the drive are right is durable, or refused. Then it may be on the drive all the same:
    /// what it makes count again is not written to any more.
    pub(in crate::pool) fn retired(&mut self, group: u32, is_durable: bool) {
        let Some(at) = self.sums.cache.find(group) else {
            return;
        };
        let Some(entry) = self.sums.cache.get_mut(at) else {
            return;
        };
        let waiting = std::mem::take(&mut entry.waiting);
        let phase = if is_durable {
            Phase::Clean
        } else {
            Phase::Active
        };
        self.sums.cache.set_phase(at, phase);
        // First those that wait for room: else whoever has some keeps it.
        self.retry_roomless();
        self.resume_all(waiting);
    }
}
