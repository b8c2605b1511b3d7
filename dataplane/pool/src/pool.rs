//! The engine: a drive shared by many volumes.
//!
//! A [`Pool`] and the [`Volume`]s opened from it live on one thread and are driven by being polled; none of them ever
//! waits. Formatting, opening and closing do: they are given what to do until the drive has answered.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_block::{Device, IoError};
use bowline_nvme::Nanos;
use uuid::Uuid;

use crate::format::record::{Checksums, Durability};
use crate::map::Reader;

mod checkpoint;
mod checksums;
mod clean;
mod collect;
mod doubt;
mod drive;
mod engine;
mod find;
mod flush;
mod growth;
mod jobs;
mod journal;
mod open;
mod operation;
mod piece;
mod port;
mod recovery;
mod request;
mod shape;
mod slab;
#[cfg(test)]
mod tests;
mod view;
mod volume;
mod work;

use engine::Engine;
use operation::Job;
use port::Port;

pub use checksums::{ChecksumCounts, Mismatch, ScrubOptions, ScrubReport, ScrubState};
pub use find::Found;
pub use open::{FormatOptions, OpenError, OpenOptions};
pub use recovery::{Recovery, RecoveryPhase};
pub use volume::Volume;

/// A pool that is open for writing. Handles of its volumes keep the drive as long as they are there.
pub struct Pool<D: Device> {
    engine: Rc<RefCell<Engine<D>>>,
}

/// An operation that was started; [`Pool::poll_operation`] tells how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation(u64);

/// What an operation has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing new.
    Done,
    /// The volume with this number.
    Volume(u32),
    /// The snapshot with this number.
    Snapshot(u32),
}

/// Whether a volume's extents are kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// It gets an extent when it is written to for the first time, and gives it back when it is deallocated. Writes fail when
    /// the pool has no room.
    Thin,
    /// As many extents as it has are kept for it, so that its writes never fail for want of room. A snapshot of it keeps
    /// what it has now, so for the volume as many again are kept, and without room for them there is no snapshot.
    Thick,
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name among all.
    pub uuid: Uuid,
    /// At most 255 bytes.
    pub name: String,
    /// Size, a multiple of 4,096; for a clone at least the snapshot's is taken.
    pub bytes: u64,
    /// Logical block: by default the drive's.
    pub block_bytes: Option<u32>,
    /// Whether its extents are kept for it.
    pub provisioning: Provisioning,
    /// How long a completed write may be lost.
    pub durability: Durability,
    /// What is done with checksums, for good.
    pub checksums: Checksums,
    /// Volume and number of the snapshot that it begins as.
    pub base: Option<(u32, u32)>,
    /// Seconds since 1970.
    pub created: u64,
}

/// What a volume is, for who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its number.
    pub volume: u32,
    /// Its name among all.
    pub uuid: Uuid,
    /// At most 255 bytes.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// Logical block.
    pub block_bytes: u32,
    /// Whether its extents are kept for it.
    pub provisioning: Provisioning,
    /// How long a completed write may be lost.
    pub durability: Durability,
    /// What is done with checksums.
    pub checksums: Checksums,
    /// Volume and number of the snapshot that it began as.
    pub base: Option<(u32, u32)>,
    /// Seconds since 1970.
    pub created: u64,
    /// What a host may see as allocated (NUSE), in whole extents; of a thick volume, all of it.
    pub mapped_bytes: u64,
    /// What it takes of the pool, with its snapshots.
    pub physical_bytes: u64,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotInfo>,
}

/// What a snapshot is, for who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its number in the volume.
    pub number: u32,
    /// Its name among all.
    pub uuid: Uuid,
    /// At most 255 bytes.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created: u64,
}

/// How full a pool is, in bytes of whole extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Room for data.
    pub bytes: u64,
    /// What volumes and snapshots have.
    pub used_bytes: u64,
    /// Free and zero, so that writing there for the first time costs least.
    pub clean_bytes: u64,
    /// Not used yet, and kept for thick volumes.
    pub promised_bytes: u64,
    /// What thin volumes may still get, and what there is for new thick ones.
    pub available_bytes: u64,
    /// Part of what is used: it belongs to nobody any more, and is given back bit by bit. What only deleted snapshots
    /// had is not known beforehand, and so not in it.
    pub reclaiming_bytes: u64,
    /// Whether the pool still looks for what nobody needs any more.
    pub is_reclaiming: bool,
}

/// Something about the pool as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolEvent {
    /// The drive is gone.
    Vanished,
    /// Nothing can be recorded any more: writes in place and reads go on, everything else is refused until the pool is
    /// opened again.
    JournalFailed(IoError),
    /// More than so many percent of the room for data are used now or kept for thick volumes: 80, 90 or 95; or 0 when it is
    /// less again. Told when it changes.
    Used(u8),
    /// The drive that was gone is there again. Nobody can tell whether it has kept all that it has acknowledged, and what
    /// was under way when it went may have been done or not: so everything stays refused until the pool is opened again,
    /// which looks at all that the drive has. Drop this one first, its handles too; closing it fails and writes nothing.
    Returned,
    /// A volume's data is not what was written. Told a few times in ten seconds; [`Pool::checksum_counts`] has all.
    Mismatch(Mismatch),
    /// Checksums that were known are not known any more: their page is damaged, or could not be read or written. The
    /// chunks are read without being compared until they are written again.
    ChecksumsLost,
    /// A scrub has seen everything.
    ScrubDone,
}

/// Why an operation did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// There is no such volume.
    #[error("there is no such volume")]
    NoSuchVolume,
    /// There is no such snapshot.
    #[error("there is no such snapshot")]
    NoSuchSnapshot,
    /// There is no room for another volume, snapshot or attribute, or for what hides snapshots from a growing volume.
    #[error("the pool's map has no room for more")]
    Full,
    /// There are not as many extents as would have to be kept for a thick volume, or as a larger one needs for zeroes.
    #[error("the pool has not enough space left")]
    NoSpace,
    /// A volume would get smaller, and that was not forced.
    #[error("a volume gets smaller only when forced, since what is beyond its new end is lost")]
    WouldLose,
    /// The drive has failed.
    #[error("the drive failed: {0}")]
    Drive(IoError),
    /// What is asked for is not possible.
    #[error("{0}")]
    Invalid(&'static str),
    /// More operations wait than is sensible.
    #[error("too many operations wait already")]
    Busy,
    /// The pool is being closed.
    #[error("the pool is being closed")]
    Closing,
    /// The journal cannot be written.
    #[error("the pool's journal cannot be written")]
    Journal,
    /// The drive is gone, or was gone since the pool was opened.
    #[error("the pool's drive is gone")]
    Vanished,
}

impl<D: Device> Pool<D> {
    /// Drives everything, as polling any of its volumes does.
    pub fn poll(&mut self, now: Nanos) {
        self.engine.borrow_mut().poll(now);
    }

    /// When to poll although nothing happened, as [`Device::poll_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Nanos> {
        self.engine.borrow().timeout()
    }

    /// Whether nothing is under way: then polling it is of no use before its timeout.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.engine.borrow().is_idle()
    }

    /// Whether there is an operation or an event to be fetched.
    #[must_use]
    pub fn has_news(&self) -> bool {
        let engine = self.engine.borrow();
        engine.operations.has_done() || !engine.events.is_empty()
    }

    /// An operation that has ended, and how.
    pub fn poll_operation(&mut self) -> Option<(Operation, Result<Outcome, PoolError>)> {
        self.engine.borrow_mut().operations.next_done()
    }

    /// What happened to the pool since the last call, oldest first.
    pub fn poll_event(&mut self) -> Option<PoolEvent> {
        self.engine.borrow_mut().events.pop_front()
    }

    /// A handle of a volume.
    ///
    /// # Errors
    /// When there is no such volume.
    pub fn open_volume(&self, volume: u32) -> Result<Volume<D>, PoolError> {
        self.open_reader(volume, None)
    }

    /// A handle of a snapshot: it cannot be written to.
    ///
    /// # Errors
    /// When there is no such snapshot.
    pub fn open_snapshot(&self, volume: u32, number: u32) -> Result<Volume<D>, PoolError> {
        self.open_reader(volume, Some(number))
    }

    fn open_reader(&self, volume: u32, number: Option<u32>) -> Result<Volume<D>, PoolError> {
        let mut engine = self.engine.borrow_mut();
        let (slot, found) = engine.find_volume(volume)?;
        let checksums = found.checksums;
        let is_media = found.durability == Durability::Media;
        let is_thin = !found.is_thick;
        let (block_bytes, mut bytes) = (found.block_bytes, found.bytes);
        let mut reader = Reader::Head(slot);
        if let Some(number) = number {
            let snapshot = found.snapshot(number).filter(|it| !it.is_deleted);
            bytes = snapshot.ok_or(PoolError::NoSuchSnapshot)?.bytes;
            reader = Reader::Snapshot(slot, number);
        }
        let mut geometry = engine.volume_geometry(bytes, block_bytes, (is_media, is_thin));
        geometry.read_only |= number.is_some();
        let port = engine.open_port(Port::new(reader, geometry, is_media, checksums));
        drop(engine);
        Ok(Volume::new(Rc::clone(&self.engine), port))
    }

    /// Makes a volume, or a clone.
    ///
    /// # Errors
    /// When too many operations wait. Everything else is told when the operation ends.
    pub fn create_volume(&mut self, spec: VolumeSpec) -> Result<Operation, PoolError> {
        self.start(Job::Create(spec))
    }

    /// Deletes a volume and its snapshots. Nobody sees them any more; what they have is given back bit by bit afterwards,
    /// and what clones need when they do not need it any more.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume).
    pub fn delete_volume(&mut self, volume: u32) -> Result<Operation, PoolError> {
        self.start(Job::Delete { volume })
    }

    /// Makes a volume larger, or smaller if that is forced: what is beyond its new end is lost then, but for its snapshots.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume).
    pub fn resize_volume(
        &mut self,
        volume: u32,
        bytes: u64,
        is_forced: bool,
    ) -> Result<Operation, PoolError> {
        self.start(Job::Resize {
            volume,
            bytes,
            is_forced,
        })
    }

    /// Takes a snapshot of a volume: of all writes that were completed before, and of any of those under way.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume).
    pub fn create_snapshot(
        &mut self,
        volume: u32,
        uuid: Uuid,
        name: String,
        created: u64,
    ) -> Result<Operation, PoolError> {
        self.start(Job::Snapshot {
            volume,
            uuid,
            name,
            created,
        })
    }

    /// Deletes a snapshot. Nobody sees it any more; what only it has is given back bit by bit afterwards, and what clones
    /// need when they do not need it any more.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume).
    pub fn delete_snapshot(&mut self, volume: u32, number: u32) -> Result<Operation, PoolError> {
        self.start(Job::DeleteSnapshot { volume, number })
    }

    /// Sets an attribute of a volume, or without bytes takes it away.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume).
    pub fn set_attribute(
        &mut self,
        volume: u32,
        kind: u32,
        bytes: Vec<u8>,
    ) -> Result<Operation, PoolError> {
        self.start(Job::SetAttribute {
            volume,
            kind,
            bytes,
        })
    }

    fn start(&mut self, job: Job) -> Result<Operation, PoolError> {
        self.engine.borrow_mut().operations.start(job)
    }

    /// An attribute of a volume.
    #[must_use]
    pub fn attribute(&self, volume: u32, kind: u32) -> Option<Vec<u8>> {
        let engine = self.engine.borrow();
        let (_, volume) = engine.find_volume(volume).ok()?;
        volume.attribute(kind).map(Into::into)
    }

    /// All volumes that were not deleted, in the order of their numbers.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        self.engine.borrow().volume_infos()
    }

    /// One volume.
    #[must_use]
    pub fn volume(&self, volume: u32) -> Option<VolumeInfo> {
        self.engine.borrow().volume_info(volume)
    }

    /// What a volume has allocated, in bytes of whole extents: as hosts see it (NUSE), and of the pool with its
    /// snapshots.
    #[must_use]
    pub fn allocated(&self, volume: u32) -> Option<(u64, u64)> {
        self.engine.borrow().allocated(volume)
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.engine.borrow().usage()
    }

    /// What has become of checksums since it was opened.
    #[must_use]
    pub fn checksum_counts(&self) -> ChecksumCounts {
        self.engine.borrow().sums.counts
    }

    /// Begins to read everything that volumes have and to compare it with its checksums, beside what hosts do.
    ///
    /// # Errors
    /// When a scrub has not ended yet, or the pool is being closed.
    pub fn start_scrub(&mut self, options: ScrubOptions) -> Result<(), PoolError> {
        self.engine.borrow_mut().start_scrub(options)
    }

    /// Has the scrub pause.
    pub fn pause_scrub(&mut self) {
        self.engine.borrow_mut().set_scrub_state(ScrubState::Paused);
    }

    /// Has a scrub that pauses go on.
    pub fn resume_scrub(&mut self) {
        let mut engine = self.engine.borrow_mut();
        engine.set_scrub_state(ScrubState::Running);
    }

    /// Ends the scrub before it has seen everything.
    pub fn stop_scrub(&mut self) {
        let mut engine = self.engine.borrow_mut();
        engine.set_scrub_state(ScrubState::Stopped);
    }

    /// How many bytes in a second it reads at most from now on.
    pub fn set_scrub_rate(&mut self, bytes_per_second: Option<u64>) {
        self.engine.borrow_mut().set_scrub_rate(bytes_per_second);
    }

    /// How far the last scrub is, or what it has found.
    #[must_use]
    pub fn scrub_report(&self) -> Option<ScrubReport> {
        self.engine.borrow().scrub_report()
    }

    /// Groups of the journal and checkpoints written since the pool was opened.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        let engine = self.engine.borrow();
        (engine.journal.groups, engine.checkpointer.written)
    }

    /// The pool's name among all.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.engine.borrow().superblock.uuid
    }

    /// What is wrong with the map, explained: nothing, unless there is a fault in this program or in the machine.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        self.engine.borrow().state.check()
    }
}
