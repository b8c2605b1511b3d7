//! Free extents: from "may still be read" to "may hold anything" to "all zero" to "about to be written to".

use std::ops::Range;

use bowline_block::{Device, IoError, Op, Segments};
use bowline_nvme::Nanos;

use super::drive::{Access, Tag};
use super::engine::Engine;
use super::journal::{Change, Waiter};
use super::view::Key;

/// Reserved at a time, ahead of need: a first write then waits for nothing.
const RESERVE_COUNT: u32 = 64;

/// More are reserved when fewer than this are left.
const RESERVE_LOW: u32 = 32;

/// Cleaned with one request.
const CLEAN_BYTES: u32 = 1 << 20;

/// Requests of the cleaner at once, when nobody else uses the drive.
const CLEANING_MAX: u32 = 4;

/// Below this share of clean extents the cleaner works beside requests; else it waits until there are none.
const CLEAN_LOW_SHARE: u32 = 8;

/// Below this share of extents that are available, room is short.
const PRESSED_SHARE: u32 = 16;

/// How long the cleaner waits after the drive has failed.
const CLEAN_RETRY: Nanos = Nanos::from_secs(10);

/// What the cleaner is doing.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    cleaning: u32,
    /// A record that reserves extents is on its way.
    is_reserving: bool,
    /// Extents were freed.
    has_freed: bool,
    /// Requests begun since the pool was opened.
    pub(super) begun: u64,
    /// What was freed before the grace that is running.
    freed: Vec<Range<u32>>,
    /// Operations that wait for it.
    waiting: Vec<u64>,
    is_in_grace: bool,
    /// Operations that wait for the next.
    next_waiting: Vec<u64>,
    /// Where the next extent is looked for.
    near: u32,
    /// An extent could not be cleaned: the drive is not asked again before this time.
    not_before: Nanos,
}

impl Cleaner {
    /// Records were applied, so there may be free extents nobody knows of.
    pub(super) const fn look_for_freed(&mut self) {
        self.has_freed = true;
    }

    /// Tells an operation when everything has ended that began before now.
    pub(super) fn wait_for_grace(&mut self, operation: u64) {
        self.next_waiting.push(operation);
    }

    pub(super) const fn is_idle(&self) -> bool {
        !self.is_reserving && self.cleaning == 0 && !self.is_in_grace
    }
}

impl<D: Device> Engine<D> {
    /// Frees what nobody can be reading any more. An extent is freed when the record that freed it is durable, so a
    /// crash finds it free as well; requests that began before then may use it until they end.
    pub(super) fn run_grace(&mut self) {
        loop {
            if self.cleaner.is_in_grace {
                if !self.drive.is_over() {
                    return;
                }
                self.cleaner.is_in_grace = false;
                for physical in std::mem::take(&mut self.cleaner.freed)
                    .into_iter()
                    .flatten()
                {
                    self.state.release(physical);
                }
                for waiter in std::mem::take(&mut self.cleaner.waiting) {
                    match waiter {
                        // The collector; operations count from 1 on.
                        0 => self.copy_graced(),
                        operation => self.operation_graced(operation),
                    }
                }
                self.retry_homeless();
            }
            let has_freed = std::mem::take(&mut self.cleaner.has_freed);
            while has_freed && let Some(physical) = self.state.next_freed() {
                match self.cleaner.freed.last_mut() {
                    Some(run) if run.end == physical => run.end += 1,
                    _ => self.cleaner.freed.push(physical..physical + 1),
                }
            }
            self.cleaner.waiting.append(&mut self.cleaner.next_waiting);
            if self.cleaner.freed.is_empty() && self.cleaner.waiting.is_empty() {
                return;
            }
            // No grace is running, so another can begin.
            self.cleaner.is_in_grace = self.drive.start_grace();
            if !self.cleaner.is_in_grace {
                return;
            }
        }
    }

    /// Whether there are clean extents, but none that may be written to yet.
    pub(super) fn wants_reserve(&self) -> bool {
        let counts = self.state.extents();
        counts.reserved == 0
            && (counts.clean > 0 || self.cleaner.is_reserving)
            && !self.journal.has_failed()
    }

    /// Reserves ahead of need.
    pub(super) fn want_reserve(&mut self) {
        // While the pool is closed, only for those that wait already.
        let is_wanted = !self.operations.is_closing() || !self.homeless.is_empty();
        if self.cleaner.is_reserving || self.journal.has_failed() || !is_wanted {
            return;
        }
        let counts = self.state.extents();
        if counts.reserved >= RESERVE_LOW || counts.clean == 0 {
            return;
        }
        if let Some(run) = self.state.clean_run(self.cleaner.near, RESERVE_COUNT) {
            self.cleaner.is_reserving = true;
            let change = Change::Reserve {
                physical: run.start,
                count: run.end - run.start,
            };
            self.journal.want(change, Waiter::Reserve);
        }
    }

    pub(super) fn reserved(&mut self) {
        self.cleaner.is_reserving = false;
        self.retry_homeless();
    }

    /// An extent for data that is written before its record, and whether it is all zero.
    pub(super) fn take_any(&mut self) -> Option<(u32, bool)> {
        let near = self.cleaner.near;
        let unclean = self.state.take_unclean(near, 1).map(|run| run.start);
        let unclean = unclean.map(|physical| (physical, false));
        unclean.or_else(|| self.take_zero().map(|physical| (physical, true)))
    }

    /// It is not used after all, for now.
    pub(super) fn give_home_back(&mut self, physical: u32, is_zero: bool) {
        self.state.give_back(physical..physical + 1, is_zero);
        if is_zero {
            self.cleaner.near = physical;
        }
    }

    /// An extent that is zero: next to the one before, so that what is written together stays together.
    pub(super) fn take_zero(&mut self) -> Option<u32> {
        let physical = self.state.take_reserved(self.cleaner.near)?;
        self.cleaner.near = physical + 1;
        Some(physical)
    }

    /// Whether there will be an extent without anybody giving one up.
    pub(super) fn may_get_space(&self, key: Key) -> bool {
        let counts = self.state.extents();
        let is_coming = counts.quarantined > 0
            || counts.clean > 0
            || self.cleaner.is_reserving
            || self.cleaner.cleaning > 0;
        // While the pool is closed, nothing is collected; nor before the volume has its new size.
        let is_held_up =
            self.operations.is_closing() || self.operations.resizing() == Some(key.0.number());
        let is_found = !self.is_collected() && !is_held_up;
        !self.journal.has_failed() && (is_coming && self.may_take(key) || is_found)
    }

    /// Whether the volume may get another extent, if there is one. A thick one has a right to it; others may not take
    /// what is kept for thick ones.
    pub(super) fn may_take(&self, key: Key) -> bool {
        if self.is_thick(key) {
            return true;
        }
        let kept = u64::from(self.state.extents().promised) + self.operations.pledged();
        kept == 0 || self.room() > 0
    }

    /// Extents that are not used, not promised, and not on their way to volumes without a promise.
    pub(super) fn room(&self) -> u64 {
        let taken = self.works.on_their_way() + self.operations.pledged();
        u64::from(self.state.extents().available()).saturating_sub(taken)
    }

    /// Whether room is short, so that whoever makes some does not yield to requests.
    pub(super) fn is_pressed(&self) -> bool {
        let counts = self.state.extents();
        !self.homeless.is_empty() || counts.available() < counts.all / PRESSED_SHARE
    }

    /// When chores that wait for a point in time go on.
    pub(super) fn chores_timeout(&self) -> Option<Nanos> {
        if self.journal.has_failed() || self.operations.is_closing() {
            return None;
        }
        let clean_at = self.cleaner.not_before.max(self.busy_until);
        let is_dirty = self.state.extents().unclean > 0 && self.cleaner.cleaning == 0;
        let clean_at = (is_dirty && self.now < clean_at).then_some(clean_at);
        let collect_at = self.collect_at();
        [clean_at, collect_at].into_iter().flatten().min()
    }

    /// Zeroes what is free, so that first writes need not wait for their data.
    pub(super) fn run_cleaner(&mut self) -> bool {
        if self.journal.has_failed()
            || self.operations.is_closing()
            || self.now < self.cleaner.not_before
        {
            return false;
        }
        let counts = self.state.extents();
        let is_busy = self.is_used();
        let is_low = counts.clean + counts.reserved < counts.all / CLEAN_LOW_SHARE;
        let limit = match (is_busy, is_low) {
            (false, _) => CLEANING_MAX,
            (true, true) => 1,
            (true, false) => 0,
        };
        let extent_bytes = self.shape.extent_bytes();
        let mut is_started = false;
        while self.cleaner.cleaning < limit
            && let Some(run) = self
                .state
                .take_unclean(0, (CLEAN_BYTES / extent_bytes).max(1))
        {
            is_started = true;
            self.cleaner.cleaning += 1;
            self.cleaner.begun += 1;
            let (physical, count) = (run.start, run.end - run.start);
            let access = Access {
                op: Op::WriteZeroes { deallocate: true },
                offset: self.shape.place(physical, 0),
                len: u64::from(count) * u64::from(extent_bytes),
                // Zero for good before anybody is told so.
                fua: self.drive.is_volatile(),
                data: Segments::new(),
            };
            self.drive.submit(access, Tag::Clean { physical, count });
        }
        is_started
    }

    pub(super) fn cleaned(&mut self, physical: u32, count: u32, result: Result<(), IoError>) {
        match result {
            Ok(()) => self
                .journal
                .want(Change::Clean { physical, count }, Waiter::Clean),
            Err(error) => {
                // They stay free, for writes that do not count on zeroes.
                self.cleaner.cleaning -= 1;
                self.cleaner.not_before = self.now.after(CLEAN_RETRY);
                tracing::warn!(physical, count, %error, "free extents could not be zeroed");
                self.state.give_back(physical..physical + count, false);
            }
        }
    }

    pub(super) fn clean_recorded(&mut self) {
        self.cleaner.cleaning -= 1;
    }
}
