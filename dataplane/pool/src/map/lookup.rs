//! Where what is read is, and where what is written goes.

use std::ops::Range;

use super::bitmaps::{is_set, run_end};
use super::versions::Link;
use super::volumes::Slot;
use super::{State, Volume};

/// Bases looked at one after another before the way past them is kept.
const STEPS_MAX: u32 = 2;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The volume as it is now.
    Head(Slot),
    /// A snapshot of it, by its number.
    Snapshot(Slot, u32),
}

/// What the newest version of a logical extent is.
///
/// `is_own`: no snapshot needs it, so it may be changed. Else a write makes a new version.
/// [`State::born`] is what a record of either says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadEntry {
    /// There is none: zeroes are read, or what the base of a clone shows.
    Nothing {
        /// Whether the volume is a clone.
        has_base: bool,
    },
    /// Zeroes are read.
    Hole {
        /// Whether it may be changed.
        is_own: bool,
    },
    /// All chunks are there.
    Whole {
        /// The physical extent.
        physical: u32,
        /// Whether it may be written to.
        is_own: bool,
    },
    /// Some chunks are there.
    Part {
        /// The physical extent.
        physical: u32,
        /// Whether it may be written to.
        is_own: bool,
    },
}

/// Chunks of a logical extent that are together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The chunks; they have the same place in the physical extent.
    pub chunks: Range<u32>,
    /// The physical extent; `None`: zeroes.
    pub physical: Option<u32>,
}

impl State {
    /// What the head of a volume has for a logical extent: three dependent loads.
    #[must_use]
    pub fn head(&self, slot: Slot, logical: u32) -> HeadEntry {
        let Some(volume) = self.volume(slot) else {
            return HeadEntry::Nothing { has_base: false };
        };
        let newest = volume.tree.newest(logical);
        if newest.is_none() {
            let has_base = volume.base.is_some();
            return HeadEntry::Nothing { has_base };
        }
        let versions = &self.chains.versions;
        let born = versions.born(newest);
        let is_own = volume.is_own(born);
        match newest.physical() {
            None => HeadEntry::Hole { is_own },
            Some(physical) if !self.chains.is_part(newest) => HeadEntry::Whole { physical, is_own },
            Some(physical) => HeadEntry::Part { physical, is_own },
        }
    }

    /// The `born` that a record of what the head has, or is to have, for a logical extent says: that
    /// of its newest version if no snapshot needs it, else the number of snapshots taken.
    #[must_use]
    pub fn born(&self, slot: Slot, logical: u32) -> u32 {
        let Some(volume) = self.volume(slot) else {
            return 0;
        };
        let newest = volume.tree.newest(logical);
        if newest.is_none() {
            return volume.snapshots_taken;
        }
        let born = self.chains.versions.born(newest);
        if volume.is_own(born) {
            born
        } else {
            volume.snapshots_taken
        }
    }

    /// Whether a version has all of these chunks, which are at least one.
    #[must_use]
    pub fn has_chunks(&self, physical: u32, chunks: Range<u32>) -> bool {
        self.chains
            .has_all(Link::to(physical), chunks.start, chunks.end)
    }

    /// Writes the bitmap of a version: one bit a chunk, all set where it is whole. `out` has as
    /// many bytes as a record's bitmap.
    pub fn copy_bitmap(&self, physical: u32, out: &mut [u8]) {
        let chunks = self.limits.chunks();
        if let Some(words) = self.chains.chunks(Link::to(physical)) {
            for (bytes, word) in out.chunks_mut(8).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
            }
        } else {
            out.fill(0xFF);
            if let Some(last) = out.last_mut()
                && !chunks.is_multiple_of(8)
            {
                *last = (1 << (chunks % 8)) - 1;
            }
        }
    }

    /// Where the chunks of a logical extent are, as `reader` sees them: runs in order, without
    /// a gap, in `runs`, which is cleared first.
    pub fn resolve(&self, reader: Reader, logical: u32, chunks: Range<u32>, runs: &mut Vec<Run>) {
        runs.clear();
        let mut at = chunks.start;
        while at < chunks.end {
            let (physical, end) = self.provider(reader, logical, at..chunks.end);
            match runs.last_mut() {
                Some(last) if last.physical == physical => last.chunks.end = end,
                _ => runs.push(Run {
                    chunks: at..end,
                    physical,
                }),
            }
            at = end;
        }
    }

    /// How many versions that are filled in part a reader may have to look at before it comes to
    /// one that is whole, or to none. A volume that would look at too many copies instead.
    #[must_use]
    pub fn depth(&self, reader: Reader, logical: u32) -> u32 {
        let mut depth = 0;
        let mut step = self.first(reader, logical);
        while let Some((volume, link)) = step {
            if link.is_none() {
                let base = self.base(volume, logical);
                step = base.map(|(base, link, _)| (base, link));
            } else if link.is_hole() || !self.chains.is_part(link) {
                break;
            } else {
                depth += 1;
                step = Some((volume, self.chains.versions.older(link)));
            }
        }
        depth
    }

    /// How many bases a volume has one after another: 0 if it is no clone.
    #[must_use]
    pub fn base_depth(&self, slot: Slot) -> u32 {
        let base = |volume: &Volume| {
            let (base, _) = volume.base?;
            self.volume(self.slot(base)?)
        };
        let bases = std::iter::successors(self.volume(slot).and_then(base), |&volume| base(volume));
        u32::try_from(bases.count()).unwrap_or(u32::MAX)
    }

    /// Whether something would be read if the head had no own version of a logical extent: then
    /// deallocating leaves a hole.
    #[must_use]
    pub fn shows_older(&self, slot: Slot, logical: u32) -> bool {
        let Some(mut step) = self.first(Reader::Head(slot), logical) else {
            return false;
        };
        let versions = &self.chains.versions;
        let (volume, newest) = step;
        if !newest.is_none() && volume.is_own(versions.born(newest)) {
            step.1 = versions.older(newest);
        }
        self.is_backed(step.0, step.1, logical)
    }

    /// The first logical extent of a range where the head shows what is not a hole.
    #[must_use]
    pub fn next_shown(&self, slot: Slot, range: Range<u32>) -> Option<u32> {
        let mut from = range.start;
        loop {
            let volume = self.volume(slot)?;
            let next = self.next_version(volume, from);
            let next = next.filter(|next| *next < range.end)?;
            let (volume, newest) = self.first(Reader::Head(slot), next)?;
            if self.is_backed(volume, newest, next) {
                return Some(next);
            }
            from = next + 1;
        }
    }

    /// The first logical extent from `from` on of which a volume or a base, as far as its snapshot reaches, has a version.
    fn next_version(&self, volume: &Volume, from: u32) -> Option<u32> {
        let mut next = volume.tree.next(from);
        let (mut volume, mut reach) = (volume, u32::MAX);
        while let Some((number, snapshot)) = volume.base {
            volume = self.volumes.at(self.volumes.index(number)?)?;
            reach = reach.min(volume.snapshot(snapshot)?.end);
            if from >= reach {
                break;
            }
            let found = volume.tree.next(from).filter(|found| *found < reach);
            next = next.into_iter().chain(found).min();
        }
        next
    }

    /// Whether something is read from this version on, or in the bases if there is none.
    pub(super) fn is_backed(&self, volume: &Volume, link: Link, logical: u32) -> bool {
        let mut step = (volume, link);
        while step.1.is_none() {
            match self.base(step.0, logical) {
                Some((base, link, _)) => step = (base, link),
                None => return false,
            }
        }
        !step.1.is_hole()
    }

    /// Who has the first of these chunks, and up to where it is the same.
    fn provider(&self, reader: Reader, logical: u32, chunks: Range<u32>) -> (Option<u32>, u32) {
        let mut end = chunks.end;
        let mut step = self.first(reader, logical);
        while let Some((volume, link)) = step {
            if link.is_none() {
                let Some((base, link, chunks_end)) = self.base(volume, logical) else {
                    break;
                };
                if chunks.start >= chunks_end {
                    break;
                }
                end = end.min(chunks_end);
                step = Some((base, link));
                continue;
            }
            let Some(words) = self.chains.chunks(link).filter(|_| !link.is_hole()) else {
                return (link.physical(), end);
            };
            end = run_end(words, chunks.start, end);
            if is_set(words, chunks.start) {
                return (link.physical(), end);
            }
            step = Some((volume, self.chains.versions.older(link)));
        }
        (None, end)
    }

    /// The newest version that a reader sees, and its volume.
    fn first(&self, reader: Reader, logical: u32) -> Option<(&Volume, Link)> {
        match reader {
            Reader::Head(slot) => {
                let volume = self.volume(slot)?;
                Some((volume, volume.tree.newest(logical)))
            }
            Reader::Snapshot(slot, number) => {
                let volume = self.volume(slot)?;
                Some((volume, self.before(volume, slot.index, number, logical)))
            }
        }
    }

    /// The newest version that a clone sees in its bases, its volume, and the end of the chunks that
    /// all bases up to there have of this extent: where a clone is larger than its base, there are
    /// zeroes.
    fn base(&self, volume: &Volume, logical: u32) -> Option<(&Volume, Link, u32)> {
        let (mut number, mut snapshot) = volume.base?;
        let mut chunks_end = u32::MAX;
        let mut steps = 0;
        if let Some(found) = self.shortcuts.find(volume.number, logical) {
            (number, snapshot) = found.base;
            chunks_end = found.chunks_end;
        }
        loop {
            #[cfg(test)]
            self.shortcuts.count_step();
            steps += 1;
            let index = self.volumes.index(number)?;
            let base = self.volumes.at(index)?;
            let bytes = base.snapshot(snapshot)?.bytes;
            chunks_end = chunks_end.min(self.chunks_within(bytes, logical)?);
            let link = self.before(base, index, snapshot, logical);
            let next = base.base.filter(|_| link.is_none());
            let Some(next) = next else {
                if steps > STEPS_MAX {
                    let base = (number, snapshot);
                    self.shortcuts
                        .keep(volume.number, logical, base, chunks_end);
                }
                return (!link.is_none()).then_some((base, link, chunks_end));
            };
            (number, snapshot) = next;
        }
    }

    /// The chunks of a logical extent that so many bytes have, if any.
    fn chunks_within(&self, bytes: u64, logical: u32) -> Option<u32> {
        let start = u64::from(logical) * u64::from(self.limits.extent_bytes);
        let within = bytes.checked_sub(start).filter(|within| *within > 0)?;
        let chunks = within.div_ceil(self.limits.chunk_bytes.into());
        Some(u32::try_from(chunks).unwrap_or(u32::MAX))
    }

    /// The newest version born before a snapshot.
    fn before(&self, volume: &Volume, index: u32, snapshot: u32, logical: u32) -> Link {
        let Some(born) = snapshot.checked_sub(1) else {
            return Link::NONE;
        };
        let newest = volume.tree.newest(logical);
        self.chains.seek(newest, (index, logical), born).1
    }
}
