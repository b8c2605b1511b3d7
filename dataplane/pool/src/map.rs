//! The state of a pool in memory: which version of which extent is where, and what is free. Pure,
//! without I/O, on one thread.
//!
//! [`State::apply`] is the only way what is on the drive changes, in use as well as when a
//! journal is replayed: a record is applied once it is durable. What the engine does in between
//! (extents it took for data that is on its way, extents it cleans) is only in memory, and is
//! forgotten by a crash.
//!
//! # How an extent is found
//! A volume has a [`tree`] of nodes of 128 leaves of 128 numbers. Each is the newest version of a
//! logical extent, and the number of a version *is* that of its physical extent, so that the head
//! of a volume is translated with four dependent loads: node, leaf, number, version. Where few of a node's extents are there, it lists
//! them instead, and is searched. A version knows
//! the next older one. Chains of more than 16 versions have an index besides, so that a snapshot
//! among thousands is found by a binary search.
//!
//! What a clone of a clone has not is looked for in one base after the other; where it was found is kept,
//! so that it is looked up once ([`shortcuts`]).
//!
//! # Memory
//! For each physical extent 20 bytes of version, 32 of bitmap (1 MiB of 4 KiB chunks, only where
//! an extent is filled in part), 4.3 of leaf or 6.4 of list, and a byte for what is free; holes are at most one
//! for each eight extents. [`State::memory_bytes`] counts it.

mod allocator;
mod apply;
mod bit_set;
mod bitmaps;
mod chains;
mod check;
mod collect;
mod damage;
mod emit;
mod lookup;
mod shortcuts;
mod tree;
mod versions;
mod volume;
mod volumes;

use std::ops::Range;

use allocator::Allocator;
use apply::attribute_record_bytes;
use bit_set::BitSet;
use bitmaps::Bitmaps;
use chains::Chains;
use collect::Suspects;
use shortcuts::Shortcuts;
use versions::{Link, Versions};
use volumes::Volumes;

pub use allocator::ExtentCounts;
pub use apply::Tolerance;
pub use collect::{Collector, Garbage, Merge, Step};
pub use damage::Damage;
pub use emit::{Cursor, EMIT_ROOM_MIN, Emitted};
pub use lookup::{HeadEntry, Reader, Run};
pub use versions::EXTENTS_MAX;
pub use volume::{Counts, LOGICAL_MAX, Snapshot, Volume};
pub use volumes::Slot;

/// How large a pool is, and how much there may be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Physical extents, at most [`EXTENTS_MAX`].
    pub extents: u32,
    /// Bytes of an extent.
    pub extent_bytes: u32,
    /// Bytes of a chunk.
    pub chunk_bytes: u32,
    /// The largest number of volumes and snapshots together.
    pub objects_max: u32,
    /// The largest sum of the records of all attributes.
    pub attribute_bytes_max: u64,
}

impl Limits {
    /// Chunks of an extent.
    #[must_use]
    pub const fn chunks(&self) -> u32 {
        self.extent_bytes / self.chunk_bytes
    }

    /// The largest number of holes. Whoever deallocates more writes zeroes.
    #[must_use]
    pub const fn holes_max(&self) -> u32 {
        self.extents / 8 + 64
    }

    /// Extents that so many bytes of a volume need; `None`: more than a volume may have.
    #[must_use]
    pub fn logical_extents(&self, bytes: u64) -> Option<u32> {
        let extents = bytes.div_ceil(u64::from(self.extent_bytes));
        u32::try_from(extents)
            .ok()
            .filter(|extents| *extents <= LOGICAL_MAX)
    }
}

/// The state of a pool.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    volumes: Volumes,
    chains: Chains,
    allocator: Allocator,
    /// Extents whose checksums on the drive may be out of date.
    active: BitSet,
    /// Where the collector is to look.
    suspects: Suspects,
    /// Where extents of clones of clones were found.
    shortcuts: Shortcuts,
    next_volume: u32,
    snapshots: u32,
    attribute_bytes: u64,
    /// Extents that thick volumes still have a right to.
    promised: u64,
    /// Which checkpoint is written, or was the last one that was.
    checkpoint: u64,
    is_checkpointing: bool,
    /// Versions made since the checkpoint that is written began.
    touched: BitSet,
}

impl State {
    /// An empty pool. Replay what its drive says, then call [`recovered`](Self::recovered).
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let extents = limits.extents.min(EXTENTS_MAX);
        let versions = Versions::new(extents, limits.holes_max());
        let touched = BitSet::new(versions.ordinals());
        Self {
            limits,
            volumes: Volumes::default(),
            chains: Chains::new(versions, Bitmaps::new(limits.chunks().max(1))),
            allocator: Allocator::new(extents),
            active: BitSet::new(extents),
            suspects: Suspects::new(),
            shortcuts: Shortcuts::default(),
            next_volume: 1,
            snapshots: 0,
            attribute_bytes: 0,
            promised: 0,
            checkpoint: 0,
            is_checkpointing: false,
            touched,
        }
    }

    /// What it was made for.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The slot of a volume.
    #[must_use]
    pub fn slot(&self, number: u32) -> Option<Slot> {
        let index = self.volumes.index(number)?;
        Some(Slot { index, number })
    }

    /// A volume; `None` if it is gone.
    #[must_use]
    pub fn volume(&self, slot: Slot) -> Option<&Volume> {
        self.volumes
            .at(slot.index)
            .filter(|volume| volume.number == slot.number)
    }

    /// All volumes in the order of their numbers, with those that are deleted or being made.
    pub fn volumes(&self) -> impl Iterator<Item = (Slot, &Volume)> {
        self.volumes.from(0).map(|(index, volume)| {
            let number = volume.number;
            (Slot { index, number }, volume)
        })
    }

    /// The number that the next volume is to have.
    #[must_use]
    pub const fn next_volume(&self) -> u32 {
        self.next_volume
    }

    /// How many clones a snapshot has.
    #[must_use]
    pub fn clones(&self, volume: u32, snapshot: u32) -> u32 {
        self.volumes.clones(volume, snapshot)
    }

    /// How many volumes and snapshots may still be made.
    #[must_use]
    pub fn objects_left(&self) -> u32 {
        let objects = self.volumes.len().saturating_add(self.snapshots);
        self.limits.objects_max.saturating_sub(objects)
    }

    /// How many holes may still be made.
    #[must_use]
    pub const fn holes_left(&self) -> u32 {
        let versions = &self.chains.versions;
        versions.holes_max().saturating_sub(versions.holes_used())
    }

    /// Whether an attribute of a volume can become these bytes. What takes no more room than before always can.
    #[must_use]
    pub fn has_room_for_attribute(&self, volume: &Volume, kind: u32, bytes: &[u8]) -> bool {
        let was = volume.attribute(kind).map_or(0, attribute_record_bytes);
        let more = attribute_record_bytes(bytes).saturating_sub(was);
        let left = self.limits.attribute_bytes_max;
        let left = left.saturating_sub(self.attribute_bytes);
        bytes.is_empty() || more <= left
    }

    /// Whether the checksums of a physical extent on the drive may be out of date.
    #[must_use]
    pub fn is_active(&self, physical: u32) -> bool {
        self.active.contains(physical)
    }

    /// The extents whose checksums on the drive may be out of date.
    pub fn active(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.active.next(0), |last| self.active.next(last + 1))
    }

    /// Whose a physical extent is: volume, logical extent and `born`.
    #[must_use]
    pub fn owner(&self, physical: u32) -> Option<(u32, u32, u32)> {
        if physical >= self.chains.versions.extents() {
            return None;
        }
        let link = Link::to(physical);
        let (slot, logical) = self.chains.versions.owner(link)?;
        let volume = self.volumes.at(slot)?;
        Some((volume.number, logical, self.chains.versions.born(link)))
    }

    /// How many physical extents are what.
    #[must_use]
    pub fn extents(&self) -> ExtentCounts {
        let all = self.chains.versions.extents();
        let used = self.chains.versions.owned();
        let clean = self.allocator.clean.count();
        let unclean = self.allocator.unclean.count();
        let reserved = self.allocator.reserved.count();
        let quarantined = self.allocator.quarantined.count();
        ExtentCounts {
            all,
            used,
            clean,
            unclean,
            reserved,
            quarantined,
            taken: all.saturating_sub(used + clean + unclean + reserved + quarantined),
            promised: u32::try_from(self.promised).unwrap_or(u32::MAX),
        }
    }

    /// That no volume has smaller blocks than the drive, which it could not be written in.
    ///
    /// # Errors
    /// When one has.
    pub fn check_blocks(&self, drive_block_bytes: u32) -> Result<(), Damage> {
        let is_smaller = |it: &&Volume| it.block_bytes < drive_block_bytes;
        match self.volumes().map(|(_, it)| it).find(is_smaller) {
            Some(found) => Err(Damage::Block {
                volume: found.number,
                bytes: found.block_bytes,
            }),
            None => Ok(()),
        }
    }

    /// Has the collector look at a volume, if it is there.
    pub fn suspect(&mut self, volume: u32) {
        if self.volumes.index(volume).is_some() {
            self.suspects.insert(volume);
        }
    }

    /// Whether there is nothing that a collector would look at.
    #[must_use]
    pub fn is_collected(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Physical extents of versions that nobody needs, as far as that is known without looking.
    #[must_use]
    pub fn reclaimable(&self) -> u32 {
        let volumes = self.volumes.from(0).map(|(_, volume)| volume);
        volumes
            .map(|volume| match volume.is_deleted {
                true if self.volumes.cloned_snapshot(volume.number).is_none() => {
                    volume.counts.physical
                }
                false if volume.snapshots.is_empty() => volume.counts.beyond,
                _ => 0,
            })
            .sum()
    }

    /// Clean extents one after another, at best from `near` on: to be reserved by a record. They
    /// stay clean until it is applied, so ask again only then.
    #[must_use]
    pub fn clean_run(&self, near: u32, count_max: u32) -> Option<Range<u32>> {
        self.allocator.clean_run(near, count_max)
    }

    /// Takes a reserved extent, all zero, at best the first from `near` on. It belongs to the
    /// engine until a record maps it, or it is given back.
    pub fn take_reserved(&mut self, near: u32) -> Option<u32> {
        self.allocator.take_reserved(near)
    }

    /// Takes unclean extents one after another: to be written, or to be cleaned. They belong to
    /// the engine until a record maps them or says that they are clean, or they are given back.
    pub fn take_unclean(&mut self, near: u32, count_max: u32) -> Option<Range<u32>> {
        self.allocator.take_unclean(near, count_max)
    }

    /// Gives back what was taken and not mapped. Only what was never written to is still zero.
    pub fn give_back(&mut self, extents: Range<u32>, is_zero: bool) {
        for physical in extents {
            let is_ours = physical < self.chains.versions.extents()
                && self.chains.versions.owner(Link::to(physical)).is_none()
                && !self.allocator.has(physical);
            if is_ours && is_zero {
                self.allocator.reserved.insert(physical);
            } else if is_ours {
                self.allocator.unclean.insert(physical);
            }
        }
    }

    /// An extent that was freed since this was asked last: wait until nobody reads it, then
    /// [`release`](Self::release) it.
    pub fn next_freed(&mut self) -> Option<u32> {
        self.allocator.next_freed()
    }

    /// Nobody reads a freed extent any more: it is unclean now.
    pub fn release(&mut self, physical: u32) {
        self.allocator.release(physical);
    }

    /// Bytes of memory of all of it.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        size_of::<Self>() as u64
            + self.volumes.memory_bytes()
            + self.chains.memory_bytes()
            + self.allocator.memory_bytes()
            + self.active.memory_bytes()
            + self.touched.memory_bytes()
            + self.shortcuts.memory_bytes()
    }
}

#[cfg(test)]
mod tests;
