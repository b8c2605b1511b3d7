//! What an operation writes: whether it is possible now, and its records.

use bowline_block::Device;
use uuid::Uuid;

use super::engine::Engine;
use super::operation::{Bytes, Job, Plan};
use super::shape::CHUNK_BYTES;
use super::{Outcome, PoolError, Provisioning, VolumeSpec};
use crate::format::record::{NONE, Record, SnapshotRecord, VolumeRecord};
use crate::map::{LOGICAL_MAX, Slot, Volume};

impl<D: Device> Engine<D> {
    /// What an operation writes, if it is possible now.
    pub(super) fn plan(&self, job: &Job) -> Result<Plan, PoolError> {
        if self.journal.has_failed() {
            return Err(self.journal_error());
        }
        let mut bytes = Bytes::default();
        let mut pledged = 0;
        let outcome = match job {
            Job::Create(spec) => self.create(spec, &mut bytes, &mut pledged)?,
            Job::Delete { volume } => self.delete(*volume, &mut bytes)?,
            Job::Resize {
                volume,
                bytes: size,
                is_forced,
            } => self.resize((*volume, *size, *is_forced), &mut bytes, &mut pledged)?,
            Job::Snapshot {
                volume,
                uuid,
                name,
                created,
            } => self.snapshot((*volume, *uuid, *created), name, &mut bytes, &mut pledged)?,
            Job::DeleteSnapshot { volume, number } => {
                self.delete_snapshot(*volume, *number, &mut bytes)?
            }
            Job::Drop { volume, snapshots } => {
                self.drop_snapshots(*volume, snapshots, &mut bytes)?
            }
            Job::SetAttribute {
                volume,
                kind,
                bytes: value,
            } => self.attribute(*volume, *kind, value, &mut bytes)?,
        };
        if bytes.len() > self.journal.bytes_max() {
            return Err(PoolError::Invalid("too long for the journal of this pool"));
        }
        if pledged > 0 && pledged > self.room() {
            return Err(PoolError::NoSpace);
        }
        let change = bytes.into_change();
        Ok(Plan {
            change,
            outcome,
            pledged,
        })
    }

    /// Why nothing is recorded.
    pub(super) const fn journal_error(&self) -> PoolError {
        if self.has_vanished() {
            PoolError::Vanished
        } else {
            PoolError::Journal
        }
    }

    /// Extents of so many bytes of a volume.
    pub(super) fn extents_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.shape.extent_bytes()))
    }

    fn check_size(&self, bytes: u64, block_bytes: u32) -> Result<(), PoolError> {
        let unit = u64::from(block_bytes.max(CHUNK_BYTES));
        if bytes == 0 || !bytes.is_multiple_of(unit) {
            return Err(PoolError::Invalid(
                "a size is a multiple of 4,096 bytes, and not 0",
            ));
        }
        if self.extents_of(bytes) > u64::from(LOGICAL_MAX) {
            return Err(PoolError::Invalid(
                "the size is more than a volume of this pool can have",
            ));
        }
        Ok(())
    }

    /// The volume, if it may have this size. Whether there is room is another question.
    pub(super) fn check_resize(
        &self,
        volume: u32,
        size: u64,
        is_forced: bool,
    ) -> Result<&Volume, PoolError> {
        let found = self.live_volume(volume)?;
        if size < found.bytes && !is_forced {
            return Err(PoolError::WouldLose);
        }
        self.check_size(size, found.block_bytes)?;
        Ok(found)
    }

    fn resize(
        &self,
        (volume, size, is_forced): (u32, u64, bool),
        bytes: &mut Bytes,
        pledged: &mut u64,
    ) -> Result<Outcome, PoolError> {
        let found = self.check_resize(volume, size, is_forced)?;
        let record = found.record();
        if found.is_thick {
            let (is, was) = (self.extents_of(size), self.extents_of(record.bytes));
            *pledged = is.saturating_sub(was);
        }
        bytes.push(&Record::Volume(VolumeRecord {
            bytes: size,
            ..record
        }))?;
        Ok(Outcome::Done)
    }

    fn attribute(
        &self,
        volume: u32,
        kind: u32,
        value: &[u8],
        bytes: &mut Bytes,
    ) -> Result<Outcome, PoolError> {
        let found = self.live_volume(volume)?;
        if !self.state.has_room_for_attribute(found, kind, value) {
            return Err(PoolError::Full);
        }
        let volume = found.number;
        bytes.push(&Record::Attribute {
            volume,
            kind,
            bytes: value,
        })?;
        Ok(Outcome::Done)
    }

    fn create(
        &self,
        spec: &VolumeSpec,
        bytes: &mut Bytes,
        pledged: &mut u64,
    ) -> Result<Outcome, PoolError> {
        let drive = self.drive.geometry();
        let block_bytes = spec.block_bytes.unwrap_or(drive.block_bytes);
        let is_block = matches!(block_bytes, 512 | 4096);
        if !is_block || block_bytes > drive.block_bytes * drive.atomic_write_blocks.max(1) {
            return Err(PoolError::Invalid(
                "a block is 512 or 4,096 bytes, and what the drive writes as one",
            ));
        }
        if block_bytes < drive.block_bytes {
            return Err(PoolError::Invalid(
                "a block is not smaller than the drive's",
            ));
        }
        let mut size = spec.bytes;
        if let Some((base, number)) = spec.base {
            let (_, base) = self.find_volume(base)?;
            let snapshot = base.snapshot(number).filter(|it| !it.is_deleted);
            let snapshot = snapshot.ok_or(PoolError::NoSuchSnapshot)?;
            size = size.max(snapshot.bytes);
        }
        self.check_size(size, block_bytes)?;
        // Those before it in the same group have their numbers already.
        let creating = self.operations.creating();
        if self.state.objects_left() <= creating {
            return Err(PoolError::Full);
        }
        let volume = self.state.next_volume().checked_add(creating);
        let volume = volume.filter(|it| *it < NONE).ok_or(PoolError::Full)?;
        let is_thick = spec.provisioning == Provisioning::Thick;
        if is_thick {
            *pledged = self.extents_of(size);
        }
        let record = VolumeRecord {
            volume,
            uuid: spec.uuid,
            bytes: size,
            block_bytes,
            snapshots_taken: 0,
            base: spec.base,
            is_thick,
            is_deleted: false,
            is_being_made: false,
            durability: spec.durability,
            checksums: spec.checksums,
            created: spec.created,
            name: &spec.name,
        };
        bytes.push(&Record::Volume(record))?;
        Ok(Outcome::Volume(volume))
    }

    fn delete(&self, volume: u32, bytes: &mut Bytes) -> Result<Outcome, PoolError> {
        let record = self.live_volume(volume)?.record();
        bytes.push(&Record::Volume(VolumeRecord {
            is_deleted: true,
            ..record
        }))?;
        Ok(Outcome::Done)
    }

    fn snapshot(
        &self,
        (volume, uuid, created): (u32, Uuid, u64),
        name: &str,
        bytes: &mut Bytes,
        pledged: &mut u64,
    ) -> Result<Outcome, PoolError> {
        let found = self.live_volume(volume)?;
        let record = found.record();
        if found.is_thick {
            // All of it may be written again, and then needs extents of its own.
            *pledged = found.counts().own.into();
        }
        if self.state.objects_left() == 0 {
            return Err(PoolError::Full);
        }
        let number = record.snapshots_taken.checked_add(1);
        let number = number.filter(|it| *it < NONE).ok_or(PoolError::Full)?;
        bytes.push(&Record::Volume(VolumeRecord {
            snapshots_taken: number,
            ..record
        }))?;
        bytes.push(&Record::Snapshot(SnapshotRecord {
            volume,
            number,
            uuid,
            bytes: record.bytes,
            is_deleted: false,
            created,
            name,
        }))?;
        Ok(Outcome::Snapshot(number))
    }

    fn delete_snapshot(
        &self,
        volume: u32,
        number: u32,
        bytes: &mut Bytes,
    ) -> Result<Outcome, PoolError> {
        let found = self.live_volume(volume)?;
        let snapshot = found.snapshot(number).filter(|it| !it.is_deleted);
        let record = snapshot.ok_or(PoolError::NoSuchSnapshot)?.record(volume);
        if self.state.clones(volume, number) == 0 {
            bytes.push(&Record::SnapshotGone { volume, number })?;
        } else {
            bytes.push(&Record::Snapshot(SnapshotRecord {
                is_deleted: true,
                ..record
            }))?;
        }
        Ok(Outcome::Done)
    }

    /// What the collector gives up: snapshots that are deleted, and have no clone any more.
    fn drop_snapshots(
        &self,
        volume: u32,
        numbers: &[u32],
        bytes: &mut Bytes,
    ) -> Result<Outcome, PoolError> {
        for &number in numbers {
            if self.state.clones(volume, number) == 0 {
                bytes.push(&Record::SnapshotGone { volume, number })?;
            }
        }
        Ok(Outcome::Done)
    }

    /// A volume that is not deleted.
    pub(super) fn find_volume(&self, number: u32) -> Result<(Slot, &Volume), PoolError> {
        let slot = self.state.slot(number).ok_or(PoolError::NoSuchVolume)?;
        let volume = self.state.volume(slot).filter(|it| !it.is_deleted);
        Ok((slot, volume.ok_or(PoolError::NoSuchVolume)?))
    }

    pub(super) fn live_volume(&self, number: u32) -> Result<&Volume, PoolError> {
        Ok(self.find_volume(number)?.1)
    }
}
