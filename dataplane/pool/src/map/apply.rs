//! Records change the state.
//!
//! # Why replaying over a later state is right in the end
//! A checkpoint is written while records are applied, so what it says of one thing may be later
//! than what it says of another, and all of it later than the first record that is replayed over
//! it. Every record says how one thing *is*: a volume, a snapshot, an attribute, the version of a
//! logical extent with one `born`, whether a physical extent is clean or active. Take the last
//! record that is replayed about a thing: it makes the thing what it was after that record. A
//! thing without such a record did not change since the checkpoint began, so the checkpoint is
//! right about it.
//!
//! What remains are effects on other things. Numbers of volumes and snapshots are never used
//! twice, so what is gone stays gone, and a record for what is not there (any more) is ignored. A
//! physical extent has one owner: when an older record maps one that a later version has already,
//! the older one gets it. The later version got it by a record that is replayed still, and that
//! gives it back. In the same way an extent stops being clean when it is mapped or reserved, and a
//! later record says that it is clean again.

use super::State;
use super::chains::{Chains, Key};
use super::damage::Damage;
use super::versions::Link;
use super::volume::{Attribute, LOGICAL_MAX, Snapshot, Volume};
use crate::format::record::{NONE, Numbers, Record, SnapshotRecord, VolumeRecord};

/// The longest name, bytes.
const NAME_BYTES_MAX: usize = 255;

/// What a record may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// The state before it; everything else is damage.
    Strict,
    /// A later state: what a checkpoint says, and what is replayed over it up to its end.
    Replay,
}

use Tolerance::Strict;

impl State {
    /// Applies a record that is durable.
    ///
    /// # Errors
    /// When the record does not fit. It may have been applied in part then: the pool is damaged,
    /// or there is a fault in whoever made the record, so nothing of the state may be used.
    pub fn apply(&mut self, record: &Record<'_>, tolerance: Tolerance) -> Result<(), Damage> {
        match *record {
            Record::Volume(ref record) => self.apply_volume(record, tolerance),
            Record::VolumeGone { volume } => self.apply_volume_gone(volume, tolerance),
            Record::Snapshot(ref record) => self.apply_snapshot(record, tolerance),
            Record::SnapshotGone { volume, number } => {
                self.apply_snapshot_gone(volume, number, tolerance)
            }
            Record::Map {
                volume,
                born,
                logical,
                physical,
            } => self.apply_map(volume, born, logical, physical, tolerance),
            Record::MapPart {
                volume,
                born,
                logical,
                physical,
                bitmap,
            } => self.apply_map_part((volume, born, logical), physical, bitmap, tolerance),
            Record::Unmap {
                volume,
                born,
                logical,
                count,
            } => self.apply_unmap(volume, born, (logical, count), tolerance),
            Record::Clean { physical, count } => self.apply_clean(physical, count, tolerance),
            Record::Reserve { physical, count } => self.apply_reserve(physical, count, tolerance),
            Record::Activate { physical } => self.apply_activity(physical, true),
            Record::Retire { physical } => self.apply_activity(physical, false),
            Record::Attribute {
                volume,
                kind,
                bytes,
            } => self.apply_attribute(volume, kind, bytes, tolerance),
            Record::NextVolume { volume } => {
                self.next_volume = self.next_volume.max(volume);
                Ok(())
            }
        }
    }

    /// The journal is replayed: whatever no version has and is not clean is unclean, and nothing
    /// is reserved any more.
    ///
    /// # Errors
    /// When something is missing or beyond a limit that only now can be told.
    pub fn recovered(&mut self) -> Result<(), Damage> {
        let extents = self.chains.versions.extents();
        let versions = &self.chains.versions;
        self.allocator.recovered(extents, |physical| {
            versions.owner(Link::to(physical)).is_some()
        });
        let indices: Vec<_> = self.volumes.from(0).map(|(index, _)| index).collect();
        for index in indices {
            self.recovered_volume(index)?;
        }
        let left = self.limits.objects_max.checked_sub(self.volumes.len());
        if left.is_none_or(|left| left < self.snapshots) {
            let max = self.limits.objects_max;
            return Err(Damage::TooManyObjects { max });
        }
        let max = self.limits.attribute_bytes_max;
        if self.attribute_bytes > max {
            return Err(Damage::TooManyAttributes { max });
        }
        let max = self.chains.versions.holes_max();
        if self.chains.versions.holes_used() > max {
            return Err(Damage::TooManyHoles { max });
        }
        Ok(())
    }

    /// Checks what could not be checked while replaying, and counts what could not be counted.
    fn recovered_volume(&mut self, index: u32) -> Result<(), Damage> {
        let Some(volume) = self.volumes.at(index) else {
            return Ok(());
        };
        self.check_base(volume.number, volume.base)?;
        if let Some(last) = volume.snapshots.last() {
            check_snapshot_number(volume, last.number)?;
        }
        let mut has_chains = false;
        let mut next = volume.tree.next(0);
        while let Some(logical) = next {
            let newest = volume.tree.newest(logical);
            check_born(volume, logical, self.chains.versions.born(newest))?;
            has_chains |= !self.chains.versions.older(newest).is_none() || newest.is_hole();
            next = volume.tree.next(logical + 1);
        }
        let taken = volume.snapshots_taken as usize;
        let lacks_some = volume.snapshots.len() < taken || volume.is_deleted;
        let has_deleted = volume.snapshots.iter().any(|snapshot| snapshot.is_deleted);
        let is_cut = volume.tree.next(volume.end).is_some();
        let is_suspect = has_deleted || volume.is_deleted || is_cut || (has_chains && lacks_some);
        if is_suspect {
            self.suspects.insert(volume.number);
        }
        Ok(())
    }

    fn apply_volume(
        &mut self,
        record: &VolumeRecord<'_>,
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        let (volume, bytes) = (record.volume, record.bytes);
        if volume == NONE {
            let next = self.next_volume;
            return Err(Damage::VolumeNumber { volume, next });
        }
        check_name(volume, record.name)?;
        if !matches!(record.block_bytes, 512 | 4096) {
            let bytes = record.block_bytes;
            return Err(Damage::Block { volume, bytes });
        }
        let is_whole = bytes.is_multiple_of(self.limits.chunk_bytes.into());
        if !is_whole || self.limits.logical_extents(bytes).is_none() {
            return Err(Damage::Size { volume, bytes });
        }
        if let Some((base, snapshot)) = record.base
            && base >= volume
        {
            return Err(Damage::Base {
                volume,
                base,
                snapshot,
            });
        }
        match self.volumes.index(volume) {
            Some(index) => self.change_volume(index, record, tolerance),
            None => self.make_volume(record, tolerance),
        }
    }

    fn make_volume(
        &mut self,
        record: &VolumeRecord<'_>,
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        let (volume, next) = (record.volume, self.next_volume);
        if tolerance == Strict {
            if volume < next {
                return Err(Damage::VolumeNumber { volume, next });
            }
            self.check_objects()?;
            self.check_base(volume, record.base)?;
        }
        self.next_volume = next.max(volume + 1);
        let end = self.end_of(record.bytes);
        let volume = Volume::new(record, end, self.made_in());
        self.promised += promise(&volume);
        self.volumes.insert(volume);
        Ok(())
    }

    fn change_volume(
        &mut self,
        index: u32,
        record: &VolumeRecord<'_>,
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        if tolerance == Strict
            && let Some(volume) = self.volumes.at(index)
        {
            self.check_change(volume, record)?;
        }
        let end = self.end_of(record.bytes);
        let Some(volume) = self.volumes.at_mut(index) else {
            return Ok(());
        };
        let promised = promise(volume);
        let base = volume.base;
        if record.is_deleted && !volume.is_deleted || end < volume.end {
            self.suspects.insert(record.volume);
        }
        volume.update(record);
        let chains = &self.chains;
        volume.resize(record.bytes, end, |newest| chains.newest_born(newest));
        self.promised = self.promised + promise(volume) - promised;
        if base != record.base {
            self.shortcuts.clear();
        }
        self.volumes.rebase(base, record.base);
        Ok(())
    }

    fn apply_volume_gone(&mut self, number: u32, tolerance: Tolerance) -> Result<(), Damage> {
        let Some(index) = self.index(number, tolerance)? else {
            return Ok(());
        };
        if tolerance == Strict
            && let Some(snapshot) = self.volumes.cloned_snapshot(number)
        {
            let (volume, number) = (number, snapshot);
            return Err(Damage::SnapshotNeeded { volume, number });
        }
        let Some(mut volume) = self.volumes.remove(index) else {
            return Ok(());
        };
        self.promised -= promise(&volume);
        let mut next = volume.tree.next(0);
        while let Some(logical) = next {
            let key = (index, logical);
            while let Some(link) = self.chains.pop(&mut volume.tree, key) {
                self.free(link);
            }
            next = volume.tree.next(logical + 1);
        }
        let snapshots = u32::try_from(volume.snapshots.len()).unwrap_or(u32::MAX);
        self.snapshots = self.snapshots.saturating_sub(snapshots);
        for attribute in volume.attributes.values() {
            self.attribute_bytes -= attribute_record_bytes(&attribute.bytes);
        }
        // Perhaps a deleted snapshot was only kept for this clone.
        self.suspects.extend(volume.base.map(|(base, _)| base));
        Ok(())
    }

    fn apply_snapshot(
        &mut self,
        record: &SnapshotRecord<'_>,
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        check_name(record.volume, record.name)?;
        let Some(index) = self.index(record.volume, tolerance)? else {
            return Ok(());
        };
        let (made_in, end) = (self.made_in(), self.end_of(record.bytes));
        let Some(volume) = self.volumes.at(index) else {
            return Ok(());
        };
        let place = volume.snapshot_place(record.number);
        if tolerance == Strict || record.number == 0 {
            check_snapshot_number(volume, record.number)?;
        }
        if tolerance == Strict && place.is_err() {
            self.check_objects()?;
        }
        let Some(volume) = self.volumes.at_mut(index) else {
            return Ok(());
        };
        let promised = promise(volume);
        match place {
            Ok(place) => {
                let made_in = volume.snapshots[place].made_in;
                volume.snapshots[place] = Snapshot::new(record, end, made_in);
            }
            Err(place) => {
                let snapshot = Snapshot::new(record, end, made_in);
                volume.snapshots.insert(place, snapshot);
                self.snapshots += 1;
            }
        }
        volume.measure();
        self.promised = self.promised + promise(volume) - promised;
        if record.is_deleted {
            self.suspects.insert(record.volume);
        }
        Ok(())
    }

    fn apply_snapshot_gone(
        &mut self,
        volume: u32,
        number: u32,
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        let Some(index) = self.index(volume, tolerance)? else {
            return Ok(());
        };
        if tolerance == Strict && self.volumes.clones(volume, number) > 0 {
            return Err(Damage::SnapshotNeeded { volume, number });
        }
        let Some(state) = self.volumes.at_mut(index) else {
            return Ok(());
        };
        match state.snapshot_place(number) {
            Ok(place) => {
                let promised = promise(state);
                state.snapshots.remove(place);
                state.measure();
                self.promised = self.promised + promise(state) - promised;
                self.suspects.insert(volume);
                self.snapshots -= 1;
                Ok(())
            }
            Err(_) if tolerance == Strict => Err(Damage::SnapshotUnknown { volume, number }),
            Err(_) => Ok(()),
        }
    }

    fn apply_map(
        &mut self,
        volume: u32,
        born: u32,
        first: u32,
        physical: Numbers<'_>,
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        let count = u32::try_from(physical.len()).unwrap_or(u32::MAX);
        let is_hole = physical.iter().all(|physical| physical == NONE);
        let index = self.target(volume, born, (first, count, is_hole), tolerance)?;
        for (logical, physical) in (first..).zip(physical.iter()) {
            if physical != NONE {
                self.check_physical(physical, 1)?;
            }
            match index {
                Some(index) if physical == NONE => {
                    self.place_hole((index, logical), born, tolerance)?;
                }
                Some(index) => self.place((index, logical), born, physical, None, tolerance)?,
                None => self.not_clean(physical),
            }
        }
        Ok(())
    }

    fn apply_map_part(
        &mut self,
        (volume, born, logical): (u32, u32, u32),
        physical: u32,
        bitmap: &[u8],
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        let index = self.target(volume, born, (logical, 1, false), tolerance)?;
        self.check_physical(physical, 1)?;
        if !self.chains.bitmaps.fits(bitmap) {
            return Err(Damage::Bitmap { volume, logical });
        }
        match index {
            Some(index) => self.place((index, logical), born, physical, Some(bitmap), tolerance),
            None => {
                self.not_clean(physical);
                Ok(())
            }
        }
    }

    fn apply_unmap(
        &mut self,
        volume: u32,
        born: u32,
        (first, count): (u32, u32),
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        let Some(index) = self.index(volume, tolerance)? else {
            return Ok(());
        };
        let end = first
            .checked_add(count)
            .ok_or_else(|| beyond(volume, first, count))?;
        let mut from = first;
        while let Some(logical) = self
            .volumes
            .at(index)
            .and_then(|volume| volume.tree.next(from))
            .filter(|logical| *logical < end)
        {
            self.unlink((index, logical), born);
            from = logical + 1;
        }
        Ok(())
    }

    fn apply_clean(&mut self, first: u32, count: u32, tolerance: Tolerance) -> Result<(), Damage> {
        self.check_physical(first, count)?;
        for physical in first..first + count {
            if let Some(key) = self.chains.versions.owner(Link::to(physical)) {
                // While replaying: a later record frees and cleans it again.
                if tolerance == Strict {
                    return Err(self.owned(physical, key));
                }
            } else if self.allocator.quarantined.contains(physical) {
                return Err(Damage::Quarantined { physical });
            } else {
                self.allocator.set_clean(physical);
            }
        }
        Ok(())
    }

    fn apply_reserve(
        &mut self,
        first: u32,
        count: u32,
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        self.check_physical(first, count)?;
        for physical in first..first + count {
            if tolerance == Strict
                && let Some(key) = self.chains.versions.owner(Link::to(physical))
            {
                return Err(self.owned(physical, key));
            }
            self.allocator.reserve(physical);
        }
        Ok(())
    }

    fn apply_activity(&mut self, physical: Numbers<'_>, is_active: bool) -> Result<(), Damage> {
        for physical in physical.iter() {
            self.check_physical(physical, 1)?;
            if is_active {
                self.active.insert(physical);
            } else {
                self.active.remove(physical);
            }
        }
        Ok(())
    }

    fn apply_attribute(
        &mut self,
        volume: u32,
        kind: u32,
        bytes: &[u8],
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        let Some(index) = self.index(volume, tolerance)? else {
            return Ok(());
        };
        let made_in = self.made_in();
        let Some(volume) = self.volumes.at_mut(index) else {
            return Ok(());
        };
        let was = volume.attributes.get(&kind);
        let was = was.map_or(0, |was| attribute_record_bytes(&was.bytes));
        let is = if bytes.is_empty() {
            0
        } else {
            attribute_record_bytes(bytes)
        };
        let sum = self.attribute_bytes - was + is;
        let max = self.limits.attribute_bytes_max;
        if tolerance == Strict && sum > max && is > was {
            return Err(Damage::TooManyAttributes { max });
        }
        if bytes.is_empty() {
            volume.attributes.remove(&kind);
        } else {
            let bytes = bytes.into();
            volume.attributes.insert(kind, Attribute { bytes, made_in });
        }
        self.attribute_bytes = sum;
        Ok(())
    }

    /// Makes `physical` the version of a logical extent with this `born`.
    fn place(
        &mut self,
        key: Key,
        born: u32,
        physical: u32,
        bitmap: Option<&[u8]>,
        tolerance: Tolerance,
    ) -> Result<(), Damage> {
        let link = Link::to(physical);
        let owner = self.chains.versions.owner(link);
        if owner != Some(key) || self.chains.versions.born(link) != born {
            if let Some(owner) = owner {
                // A version may become another one of the same extent: so are versions merged.
                if tolerance == Strict && owner != key {
                    return Err(self.owned(physical, owner));
                }
                let born = self.chains.versions.born(link);
                self.take_out(owner, born);
                self.chains.dispose(link);
            }
            let newest = self
                .volumes
                .at(key.0)
                .map(|volume| volume.tree.newest(key.1));
            if newest.is_some_and(|newest| !newest.is_none()) {
                self.unlink(key, born);
            }
            self.put_in(key, born, link);
        }
        if self.allocator.own(physical) && tolerance == Strict {
            return Err(Damage::NotReserved { physical });
        }
        self.chains.set_bitmap(link, bitmap);
        self.touch(link);
        Ok(())
    }

    fn place_hole(&mut self, key: Key, born: u32, tolerance: Tolerance) -> Result<(), Damage> {
        let Some(volume) = self.volumes.at(key.0) else {
            return Ok(());
        };
        let there = self.chains.find(volume.tree.newest(key.1), key, born);
        if there.is_some_and(Link::is_hole) {
            return Ok(());
        }
        if tolerance == Strict && self.holes_left() == 0 {
            let max = self.chains.versions.holes_max();
            return Err(Damage::TooManyHoles { max });
        }
        self.unlink(key, born);
        let hole = self.chains.versions.new_hole();
        self.put_in(key, born, hole);
        self.touch(hole);
        Ok(())
    }

    /// Takes a version away, and frees what it has.
    fn unlink(&mut self, key: Key, born: u32) {
        if let Some(link) = self.take_out(key, born) {
            self.free(link);
        }
    }

    fn free(&mut self, link: Link) {
        self.chains.dispose(link);
        if let Some(physical) = link.physical() {
            self.allocator.free(physical);
        }
    }

    fn put_in(&mut self, key: Key, born: u32, link: Link) {
        self.change(key, |chains, volume| {
            chains.insert(&mut volume.tree, key, born, link);
            if link.is_hole() {
                volume.counts.holes += 1;
            } else {
                volume.counts.physical += 1;
            }
        });
    }

    fn take_out(&mut self, key: Key, born: u32) -> Option<Link> {
        self.change(key, |chains, volume| {
            let link = chains.remove(&mut volume.tree, key, born)?;
            if link.is_hole() {
                volume.counts.holes -= 1;
            } else {
                volume.counts.physical -= 1;
            }
            Some(link)
        })
        .flatten()
    }

    /// Changes a chain, and with it what is counted of its newest version.
    fn change<T>(
        &mut self,
        (index, logical): Key,
        with: impl FnOnce(&mut Chains, &mut Volume) -> T,
    ) -> Option<T> {
        let volume = self.volumes.at_mut(index)?;
        let promised = promise(volume);
        let before = self.chains.newest_born(volume.tree.newest(logical));
        let result = with(&mut self.chains, volume);
        let after = self.chains.newest_born(volume.tree.newest(logical));
        volume.count_newest(logical, before, after);
        self.promised = self.promised + promise(volume) - promised;
        Some(result)
    }

    /// The slot of a volume; `None` while replaying, if it is not there (any more).
    fn index(&self, volume: u32, tolerance: Tolerance) -> Result<Option<u32>, Damage> {
        match self.volumes.index(volume) {
            None if tolerance == Strict => Err(Damage::VolumeUnknown { volume }),
            index => Ok(index),
        }
    }

    /// The slot of a volume that gets versions. Holes may lie beyond its end: so is hidden what would show
    /// when it becomes larger.
    fn target(
        &self,
        volume: u32,
        born: u32,
        (first, count, is_hole): (u32, u32, bool),
        tolerance: Tolerance,
    ) -> Result<Option<u32>, Damage> {
        let index = self.index(volume, tolerance)?;
        let mut end = LOGICAL_MAX;
        if let Some(volume) = index.and_then(|index| self.volumes.at(index))
            && tolerance == Strict
        {
            check_born(volume, first, born)?;
            if !is_hole {
                end = volume.end_max;
            }
        }
        match first.checked_add(count) {
            Some(last) if last <= end => Ok(index),
            _ => Err(beyond(volume, first, count)),
        }
    }

    fn touch(&mut self, link: Link) {
        let ordinal = self.chains.versions.ordinal(link);
        if self.is_checkpointing && ordinal < self.chains.versions.ordinals() {
            self.touched.insert(ordinal);
        }
    }

    /// While replaying: a volume that is gone had it, so it was written to.
    fn not_clean(&mut self, physical: u32) {
        self.allocator.clean.remove(physical);
    }

    /// The end of the logical extents of so many bytes.
    fn end_of(&self, bytes: u64) -> u32 {
        self.limits.logical_extents(bytes).unwrap_or(LOGICAL_MAX)
    }

    fn made_in(&self) -> u64 {
        if self.is_checkpointing {
            self.checkpoint
        } else {
            0
        }
    }

    fn owned(&self, physical: u32, (index, logical): Key) -> Damage {
        let volume = self.volumes.at(index).map_or(NONE, |volume| volume.number);
        Damage::Owned {
            physical,
            volume,
            logical,
        }
    }

    /// What a volume may not become.
    fn check_change(&self, volume: &Volume, record: &VolumeRecord<'_>) -> Result<(), Damage> {
        let number = volume.number;
        let (was, is) = (volume.snapshots_taken, record.snapshots_taken);
        if is < was {
            return Err(Damage::SnapshotsTaken {
                volume: number,
                was,
                is,
            });
        }
        if let Some((base, snapshot)) = record.base
            && record.base != volume.base
        {
            return Err(Damage::Base {
                volume: number,
                base,
                snapshot,
            });
        }
        Ok(())
    }

    fn check_objects(&self) -> Result<(), Damage> {
        let max = self.limits.objects_max;
        if self.objects_left() == 0 {
            return Err(Damage::TooManyObjects { max });
        }
        Ok(())
    }

    fn check_base(&self, volume: u32, base: Option<(u32, u32)>) -> Result<(), Damage> {
        let Some((base, snapshot)) = base else {
            return Ok(());
        };
        let found = self
            .slot(base)
            .and_then(|slot| self.volume(slot)?.snapshot(snapshot));
        found.map(|_| ()).ok_or(Damage::Base {
            volume,
            base,
            snapshot,
        })
    }

    fn check_physical(&self, first: u32, count: u32) -> Result<(), Damage> {
        match first.checked_add(count) {
            Some(end) if end <= self.chains.versions.extents() => Ok(()),
            _ => Err(Damage::PhysicalRange { first, count }),
        }
    }
}

fn check_name(volume: u32, name: &str) -> Result<(), Damage> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Damage::Name { volume });
    }
    Ok(())
}

fn check_snapshot_number(volume: &Volume, number: u32) -> Result<(), Damage> {
    let taken = volume.snapshots_taken;
    if number == 0 || number > taken {
        let volume = volume.number;
        return Err(Damage::SnapshotNumber {
            volume,
            number,
            taken,
        });
    }
    Ok(())
}

fn check_born(volume: &Volume, logical: u32, born: u32) -> Result<(), Damage> {
    if born > volume.snapshots_taken {
        let volume = volume.number;
        return Err(Damage::Born {
            volume,
            logical,
            born,
        });
    }
    Ok(())
}

fn beyond(volume: u32, first: u32, count: u32) -> Damage {
    Damage::LogicalRange {
        volume,
        first,
        last: u64::from(first) + u64::from(count.saturating_sub(1)),
    }
}

/// Extents that a volume has a right to and has not.
pub(super) fn promise(volume: &Volume) -> u64 {
    if !volume.is_thick || volume.is_deleted {
        return 0;
    }
    u64::from(volume.end.saturating_sub(volume.counts.own))
}

/// Bytes of the record of an attribute.
pub(super) fn attribute_record_bytes(bytes: &[u8]) -> u64 {
    16 + (bytes.len() as u64).next_multiple_of(4)
}
