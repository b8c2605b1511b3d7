//! What is asked of the pool besides reading and writing: volumes and snapshots are made, changed and deleted.
//!
//! One after another, in the order they were asked for; each is one group of records, so a crash finds it done or not
//! begun.

use std::collections::VecDeque;

use bowline_block::{Device, DeviceEvent};
use uuid::Uuid;

use super::engine::Engine;
use super::journal::{Change, Waiter};
use super::{Operation, Outcome, PoolError, VolumeSpec};
use crate::format::codec::{RecordWriter, record_bytes};
use crate::format::record::{Record, SnapshotRecord, VolumeRecord};
use crate::map::{Reader, Slot, Volume};

/// Operations that wait at once.
const OPERATIONS_MAX: usize = 16_384;

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Job {
    Create(VolumeSpec),
    Delete {
        volume: u32,
    },
    Resize {
        volume: u32,
        bytes: u64,
    },
    Snapshot {
        volume: u32,
        uuid: Uuid,
        name: String,
        created: u64,
    },
    DeleteSnapshot {
        volume: u32,
        number: u32,
    },
    SetAttribute {
        volume: u32,
        kind: u32,
        bytes: Vec<u8>,
    },
}

impl Job {
    /// The volume whose writes must not change the map meanwhile.
    const fn frozen(&self) -> Option<u32> {
        match self {
            // Without a snapshot an older version may be written to in place, where a change has already begun to make a new
            // one.
            Self::Delete { volume }
            | Self::Snapshot { volume, .. }
            | Self::DeleteSnapshot { volume, .. } => Some(*volume),
            Self::Create(_) | Self::Resize { .. } | Self::SetAttribute { .. } => None,
        }
    }
}

struct Running {
    id: u64,
    job: Job,
    outcome: Outcome,
    is_recording: bool,
}

/// Operations, from being asked for to being told done.
#[derive(Default)]
pub(super) struct Operations {
    next_id: u64,
    queue: VecDeque<(u64, Job)>,
    running: Option<Running>,
    /// Durable, and waiting until all has ended that began before.
    graced: Vec<(u64, Outcome)>,
    done: VecDeque<(Operation, Result<Outcome, PoolError>)>,
    is_closing: bool,
}

impl Operations {
    pub(super) fn start(&mut self, job: Job) -> Result<Operation, PoolError> {
        if self.is_closing {
            return Err(PoolError::Closing);
        }
        if self.queue.len() + self.done.len() >= OPERATIONS_MAX {
            return Err(PoolError::Busy);
        }
        self.next_id += 1;
        self.queue.push_back((self.next_id, job));
        Ok(Operation(self.next_id))
    }

    pub(super) fn next_done(&mut self) -> Option<(Operation, Result<Outcome, PoolError>)> {
        self.done.pop_front()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_none() && self.graced.is_empty()
    }

    /// Nothing new begins from now on.
    pub(super) const fn close(&mut self) {
        self.is_closing = true;
    }

    pub(super) const fn is_closing(&self) -> bool {
        self.is_closing
    }

    fn end(&mut self, id: u64, result: Result<Outcome, PoolError>) {
        self.done.push_back((Operation(id), result));
    }
}

/// Records, one after another.
#[derive(Default)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn push(&mut self, record: &Record<'_>) -> Result<(), PoolError> {
        let len = record_bytes(record).ok_or(PoolError::Invalid("the name is too long"))?;
        let at = self.0.len();
        self.0.resize(at + len, 0);
        let mut writer = RecordWriter::new(&mut self.0[at..]);
        let written = writer.push(record);
        written.map_err(|_| PoolError::Invalid("the record is too long"))
    }

    pub(super) fn into_change(self) -> Change {
        Change::Encoded(self.0.into())
    }
}

impl<D: Device> Engine<D> {
    /// Goes on with operations. Returns whether anything was started.
    pub(super) fn run_operations(&mut self) -> bool {
        let mut is_started = false;
        while self.operations.running.is_none()
            && let Some((id, job)) = self.operations.queue.pop_front()
        {
            is_started = true;
            self.operations.running = Some(Running {
                id,
                job,
                outcome: Outcome::Done,
                is_recording: false,
            });
            self.go_on_operating();
        }
        if !is_started {
            self.go_on_operating();
        }
        is_started
    }

    /// Waits until nobody changes the volume's map, then writes the records.
    fn go_on_operating(&mut self) {
        let Some(running) = self.operations.running.take_if(|it| !it.is_recording) else {
            return;
        };
        if let Some(volume) = running.job.frozen()
            && self.state.slot(volume).is_some()
            && !self.freeze(volume)
        {
            self.operations.running = Some(running);
            return;
        }
        let Running { id, job, .. } = running;
        match self.records_of(&job) {
            Ok((change, outcome)) => {
                self.journal.want(change, Waiter::Operation);
                self.operations.running = Some(Running {
                    id,
                    job,
                    outcome,
                    is_recording: true,
                });
            }
            Err(error) => {
                self.thaw_after(&job);
                self.operations.end(id, Err(error));
            }
        }
    }

    fn thaw_after(&mut self, job: &Job) {
        if let Some(volume) = job.frozen() {
            self.thaw(volume);
        }
    }

    /// The records of the operation that runs are durable and applied, or refused.
    pub(super) fn operation_recorded(&mut self, is_durable: bool) {
        let Some(Running {
            id, job, outcome, ..
        }) = self.operations.running.take()
        else {
            return;
        };
        if !is_durable {
            self.thaw_after(&job);
            self.operations.end(id, Err(PoolError::Journal));
            return;
        }
        match &job {
            Job::Delete { volume } => self.vanish_handles(*volume, None),
            Job::DeleteSnapshot { volume, number } => self.vanish_handles(*volume, Some(*number)),
            Job::Resize { volume, bytes } => self.resize_handles(*volume, *bytes),
            Job::Create(_) | Job::Snapshot { .. } | Job::SetAttribute { .. } => {}
        }
        self.thaw_after(&job);
        if let Job::Delete { volume } = &job {
            // Whoever waited finds no volume, and nobody is going to wait again.
            self.barriers.remove(volume);
        }
        if job.frozen().is_some() {
            // Writes that began before go on in place; only after them does a snapshot stay as it is.
            self.operations.graced.push((id, outcome));
            self.cleaner.wait_for_grace(id);
        } else {
            self.operations.end(id, Ok(outcome));
        }
    }

    pub(super) fn operation_graced(&mut self, id: u64) {
        let graced = &mut self.operations.graced;
        if let Some(at) = graced.iter().position(|(graced, _)| *graced == id) {
            let (_, outcome) = graced.swap_remove(at);
            self.operations.end(id, Ok(outcome));
        }
    }

    /// Handles of a volume and all its snapshots, or of one snapshot, lead nowhere from now on.
    fn vanish_handles(&mut self, volume: u32, number: Option<u32>) {
        for port in self
            .ports
            .iter_mut()
            .filter(|port| port.slot().number() == volume)
        {
            if number
                .is_none_or(|number| matches!(port.reader, Reader::Snapshot(_, it) if it == number))
            {
                port.vanish();
            }
        }
    }

    fn resize_handles(&mut self, volume: u32, bytes: u64) {
        for port in self
            .ports
            .iter_mut()
            .filter(|port| port.slot().number() == volume)
        {
            if matches!(port.reader, Reader::Head(_)) {
                port.geometry.blocks = bytes / u64::from(port.geometry.block_bytes);
                port.tell(DeviceEvent::GeometryChanged);
            }
        }
    }

    /// What an operation writes, if it is possible now.
    fn records_of(&self, job: &Job) -> Result<(Change, Outcome), PoolError> {
        if self.journal.has_failed() {
            return Err(PoolError::Journal);
        }
        let mut bytes = Bytes::default();
        let outcome = match job {
            Job::Create(spec) => self.create(spec, &mut bytes)?,
            Job::Delete { volume } => self.delete(*volume, &mut bytes)?,
            Job::Resize {
                volume,
                bytes: size,
            } => {
                let record = self.live_volume(*volume)?.record();
                if *size < record.bytes {
                    return Err(PoolError::Invalid("a volume does not get smaller"));
                }
                self.check_size(*size, record.block_bytes)?;
                bytes.push(&Record::Volume(VolumeRecord {
                    bytes: *size,
                    ..record
                }))?;
                Outcome::Done
            }
            Job::Snapshot {
                volume,
                uuid,
                name,
                created,
            } => self.snapshot((*volume, *uuid, *created), name, &mut bytes)?,
            Job::DeleteSnapshot { volume, number } => {
                self.delete_snapshot(*volume, *number, &mut bytes)?
            }
            Job::SetAttribute {
                volume,
                kind,
                bytes: value,
            } => {
                let number = self.live_volume(*volume)?.number;
                let has_none = value.is_empty();
                let room = self.state.attribute_bytes_left();
                if !has_none
                    && u64::try_from(value.len())
                        .unwrap_or(u64::MAX)
                        .saturating_add(32)
                        > room
                {
                    return Err(PoolError::Full);
                }
                let record = Record::Attribute {
                    volume: number,
                    kind: *kind,
                    bytes: value,
                };
                bytes.push(&record)?;
                Outcome::Done
            }
        };
        if bytes.0.len() > self.journal.bytes_max() {
            return Err(PoolError::Invalid("too long for the journal of this pool"));
        }
        Ok((bytes.into_change(), outcome))
    }

    fn check_size(&self, bytes: u64, block_bytes: u32) -> Result<(), PoolError> {
        let unit = u64::from(block_bytes.max(super::shape::CHUNK_BYTES));
        if bytes == 0 || !bytes.is_multiple_of(unit) {
            return Err(PoolError::Invalid(
                "a size is a multiple of 4,096 bytes, and not 0",
            ));
        }
        if bytes.div_ceil(u64::from(self.shape.extent_bytes())) > u64::from(crate::map::LOGICAL_MAX)
        {
            return Err(PoolError::Invalid(
                "the size is more than a volume of this pool can have",
            ));
        }
        Ok(())
    }

    fn create(&self, spec: &VolumeSpec, bytes: &mut Bytes) -> Result<Outcome, PoolError> {
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
            let (_, base) = self.any_volume(base)?;
            let snapshot = base.snapshot(number).filter(|it| !it.is_deleted);
            let snapshot = snapshot.ok_or(PoolError::NoSuchSnapshot)?;
            size = size.max(snapshot.bytes);
        }
        self.check_size(size, block_bytes)?;
        if self.state.objects_left() == 0 {
            return Err(PoolError::Full);
        }
        let volume = self.state.next_volume();
        let record = VolumeRecord {
            volume,
            uuid: spec.uuid,
            bytes: size,
            block_bytes,
            snapshots_taken: 0,
            base: spec.base,
            is_thick: false,
            is_deleted: false,
            is_being_made: false,
            durability: spec.durability,
            checksums: crate::format::record::Checksums::Off,
            created: spec.created,
            name: &spec.name,
        };
        bytes.push(&Record::Volume(record))?;
        Ok(Outcome::Volume(volume))
    }

    fn delete(&self, volume: u32, bytes: &mut Bytes) -> Result<Outcome, PoolError> {
        let volume = self.live_volume(volume)?;
        let number = volume.number;
        let is_cloned = |number| self.state.clones(volume.number, number) > 0;
        if volume.snapshots().iter().any(|it| is_cloned(it.number)) {
            return Err(PoolError::InUse);
        }
        bytes.push(&Record::VolumeGone { volume: number })?;
        Ok(Outcome::Done)
    }

    fn snapshot(
        &self,
        (volume, uuid, created): (u32, Uuid, u64),
        name: &str,
        bytes: &mut Bytes,
    ) -> Result<Outcome, PoolError> {
        let record = self.live_volume(volume)?.record();
        if self.state.objects_left() == 0 {
            return Err(PoolError::Full);
        }
        let number = record.snapshots_taken + 1;
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
        found.snapshot(number).ok_or(PoolError::NoSuchSnapshot)?;
        if self.state.clones(volume, number) > 0 {
            return Err(PoolError::InUse);
        }
        bytes.push(&Record::SnapshotGone { volume, number })?;
        Ok(Outcome::Done)
    }

    /// A volume, even if only its snapshots are still there.
    pub(super) fn any_volume(&self, number: u32) -> Result<(Slot, &Volume), PoolError> {
        let slot = self.state.slot(number).ok_or(PoolError::NoSuchVolume)?;
        let volume = self.state.volume(slot).ok_or(PoolError::NoSuchVolume)?;
        Ok((slot, volume))
    }

    fn live_volume(&self, number: u32) -> Result<&Volume, PoolError> {
        let (_, volume) = self.any_volume(number)?;
        if volume.is_deleted {
            return Err(PoolError::NoSuchVolume);
        }
        Ok(volume)
    }
}
