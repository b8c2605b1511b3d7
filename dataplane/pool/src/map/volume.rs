//! A volume: what it is, its snapshots and attributes, and its tree of extents.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::tree::Tree;
use super::versions::Link;
use crate::format::record::{Checksums, Durability, SnapshotRecord, VolumeRecord};

/// The largest number of logical extents of a volume: 64 TiB of 1 MiB. It bounds the table of the nodes of a volume.
pub const LOGICAL_MAX: u32 = 1 << 26;

/// A volume.
#[derive(Debug)]
pub struct Volume {
    /// Its number.
    pub number: u32,
    /// Its name among all.
    pub uuid: Uuid,
    /// Size.
    pub bytes: u64,
    /// Its logical extents are below this.
    pub(super) end: u32,
    /// Logical block.
    pub block_bytes: u32,
    /// Number of snapshots ever taken: the `born` of what is written now.
    pub snapshots_taken: u32,
    /// Volume and number of the snapshot it is a clone of.
    pub base: Option<(u32, u32)>,
    /// Every extent is allocated and stays so.
    pub is_thick: bool,
    /// Only its snapshots are still needed.
    pub is_deleted: bool,
    /// Not acknowledged yet.
    pub is_being_made: bool,
    /// How long a completed write may be lost.
    pub durability: Durability,
    /// What is done with checksums.
    pub checksums: Checksums,
    /// Seconds since 1970.
    pub created: u64,
    /// At most 255 bytes.
    pub name: Box<str>,
    /// In the order of their numbers.
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) attributes: BTreeMap<u32, Attribute>,
    pub(super) tree: Tree,
    pub(super) counts: Counts,
    /// How many of the newest versions that have a physical extent were born when.
    pub(super) newest_born: BTreeMap<u32, u32>,
    /// The number of the last snapshot that is there; 0: there is none.
    pub(super) last_snapshot: u32,
    /// The largest end that it or a snapshot of it has.
    pub(super) end_max: u32,
    /// The checkpoint during which it was made.
    pub(super) made_in: u64,
}

/// A snapshot.
#[derive(Debug)]
pub struct Snapshot {
    /// Its number.
    pub number: u32,
    /// Its name among all.
    pub uuid: Uuid,
    /// Size.
    pub bytes: u64,
    /// Its logical extents are below this.
    pub(super) end: u32,
    /// Only kept for the clones that need it.
    pub is_deleted: bool,
    /// Seconds since 1970.
    pub created: u64,
    /// At most 255 bytes.
    pub name: Box<str>,
    pub(super) made_in: u64,
}

#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) bytes: Box<[u8]>,
    pub(super) made_in: u64,
}

/// What a volume has of the pool. What was left beyond its end when it became smaller is in
/// `physical` only, and in `beyond`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Logical extents whose newest version has a physical extent: what is allocated, as the
    /// namespace sees it (NUSE).
    pub mapped: u32,
    /// Those of them that no snapshot needs: they may be written to in place.
    pub own: u32,
    /// Logical extents beyond its end whose newest version has a physical extent.
    pub beyond: u32,
    /// Physical extents, with those that only snapshots see.
    pub physical: u32,
    /// Holes.
    pub holes: u32,
}

impl Volume {
    pub(super) fn new(record: &VolumeRecord<'_>, end: u32, made_in: u64) -> Self {
        Self {
            number: record.volume,
            uuid: record.uuid,
            bytes: record.bytes,
            end,
            block_bytes: record.block_bytes,
            snapshots_taken: record.snapshots_taken,
            base: record.base,
            is_thick: record.is_thick,
            is_deleted: record.is_deleted,
            is_being_made: record.is_being_made,
            durability: record.durability,
            checksums: record.checksums,
            created: record.created,
            name: record.name.into(),
            snapshots: Vec::new(),
            attributes: BTreeMap::new(),
            tree: Tree::default(),
            counts: Counts::default(),
            newest_born: BTreeMap::new(),
            last_snapshot: 0,
            end_max: end,
            made_in,
        }
    }

    /// Takes over what a record says but for the size; the volume is the same.
    pub(super) fn update(&mut self, record: &VolumeRecord<'_>) {
        self.uuid = record.uuid;
        self.block_bytes = record.block_bytes;
        self.snapshots_taken = record.snapshots_taken;
        self.base = record.base;
        self.is_thick = record.is_thick;
        self.is_deleted = record.is_deleted;
        self.is_being_made = record.is_being_made;
        self.durability = record.durability;
        self.checksums = record.checksums;
        self.created = record.created;
        if *self.name != *record.name {
            self.name = record.name.into();
        }
    }

    /// Whether no snapshot needs a version born after so many, so that it may be changed.
    pub(super) const fn is_own(&self, born: u32) -> bool {
        born >= self.last_snapshot
    }

    /// It has another size from now on; `newest` tells when the newest version of a logical
    /// extent was born, if it has a physical extent.
    pub(super) fn resize(&mut self, bytes: u64, end: u32, newest: impl Fn(Link) -> Option<u32>) {
        let (was, is) = (self.end, end);
        let (first, last) = (was.min(is), was.max(is));
        let mut next = self.tree.next(first);
        while let Some(logical) = next.filter(|logical| *logical < last) {
            let born = newest(self.tree.newest(logical));
            self.end = was;
            self.count_newest(logical, born, None);
            self.end = is;
            self.count_newest(logical, None, born);
            next = self.tree.next(logical + 1);
        }
        self.bytes = bytes;
        self.end = is;
        self.measure();
    }

    /// The newest version of a logical extent is another one from now on: when they were born that
    /// have physical extents.
    pub(super) fn count_newest(&mut self, logical: u32, before: Option<u32>, after: Option<u32>) {
        if logical >= self.end {
            self.counts.beyond -= u32::from(before.is_some());
            self.counts.beyond += u32::from(after.is_some());
            return;
        }
        if before == after {
            return;
        }
        if let Some(born) = before
            && let Some(count) = self.newest_born.get_mut(&born)
        {
            *count -= 1;
            if *count == 0 {
                self.newest_born.remove(&born);
            }
            self.counts.mapped -= 1;
            self.counts.own -= u32::from(self.is_own(born));
        }
        if let Some(born) = after {
            *self.newest_born.entry(born).or_default() += 1;
            self.counts.mapped += 1;
            self.counts.own += u32::from(self.is_own(born));
        }
    }

    /// Whether an extent is beyond its end, or it is deleted: then only snapshots read it.
    pub(super) const fn is_over(&self, logical: u32) -> bool {
        self.is_deleted || logical >= self.end
    }

    /// Its size or its snapshots changed.
    pub(super) fn measure(&mut self) {
        self.last_snapshot = self.snapshots.last().map_or(0, |last| last.number);
        let own = self.newest_born.range(self.last_snapshot..);
        self.counts.own = own.map(|(_, count)| count).sum();
        let snapshots = self.snapshots.iter().map(|snapshot| snapshot.end);
        self.end_max = snapshots.fold(self.end, u32::max);
    }

    /// The record that says what it is now. Change what is to change, commit and apply it.
    #[must_use]
    pub fn record(&self) -> VolumeRecord<'_> {
        VolumeRecord {
            volume: self.number,
            uuid: self.uuid,
            bytes: self.bytes,
            block_bytes: self.block_bytes,
            snapshots_taken: self.snapshots_taken,
            base: self.base,
            is_thick: self.is_thick,
            is_deleted: self.is_deleted,
            is_being_made: self.is_being_made,
            durability: self.durability,
            checksums: self.checksums,
            created: self.created,
            name: &self.name,
        }
    }

    /// What it has of the pool.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Its snapshots in the order of their numbers, with those that are deleted and kept for
    /// clones.
    #[must_use]
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// One snapshot.
    #[must_use]
    pub fn snapshot(&self, number: u32) -> Option<&Snapshot> {
        let place = self.snapshot_place(number).ok()?;
        self.snapshots.get(place)
    }

    pub(super) fn snapshot_place(&self, number: u32) -> Result<usize, usize> {
        self.snapshots
            .binary_search_by_key(&number, |snapshot| snapshot.number)
    }

    /// The bytes of an attribute.
    #[must_use]
    pub fn attribute(&self, kind: u32) -> Option<&[u8]> {
        self.attributes
            .get(&kind)
            .map(|attribute| &*attribute.bytes)
    }

    /// Whether there is a snapshot with `after < number <= to` that has a logical extent: it reads
    /// what was born after `after` snapshots and replaced after `to`.
    pub(super) fn has_reader_between(&self, after: u32, to: u32, logical: u32) -> bool {
        let place = self
            .snapshots
            .partition_point(|snapshot| snapshot.number <= after);
        self.snapshots[place..]
            .iter()
            .take_while(|snapshot| snapshot.number <= to)
            .any(|snapshot| logical < snapshot.end)
    }

    /// Bytes of memory, with its own.
    pub(super) fn memory_bytes(&self) -> u64 {
        let snapshots = self.snapshots.capacity() * size_of::<Snapshot>();
        let names: usize = self
            .snapshots
            .iter()
            .map(|snapshot| snapshot.name.len())
            .sum();
        let attributes: usize = self
            .attributes
            .values()
            .map(|attribute| size_of::<Attribute>() + attribute.bytes.len())
            .sum();
        let counts = 12 * self.newest_born.len();
        let own = size_of::<Self>() + self.name.len() + snapshots + names + attributes + counts;
        own as u64 + self.tree.memory_bytes()
    }
}

impl Snapshot {
    pub(super) fn new(record: &SnapshotRecord<'_>, end: u32, made_in: u64) -> Self {
        Self {
            number: record.number,
            uuid: record.uuid,
            bytes: record.bytes,
            end,
            is_deleted: record.is_deleted,
            created: record.created,
            name: record.name.into(),
            made_in,
        }
    }

    /// The record that says what it is now.
    #[must_use]
    pub fn record(&self, volume: u32) -> SnapshotRecord<'_> {
        SnapshotRecord {
            volume,
            number: self.number,
            uuid: self.uuid,
            bytes: self.bytes,
            is_deleted: self.is_deleted,
            created: self.created,
            name: &self.name,
        }
    }
}
