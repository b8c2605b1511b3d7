//! Making a pool on a drive, opening it and closing it. Each waits for the drive: the caller is asked to have time pass,
//! which on a reactor is a turn of it.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_block::{
    BufPool, Completion, Completions, Deallocate, Device, Io, IoBuf, IoError, Op, Segments,
};
use bowline_nvme::Nanos;
use uuid::Uuid;

use super::Pool;
use super::checkpoint::Checkpointer;
use super::checksums::{Sums, page_buffers};
use super::drive::Drive;
use super::engine::{self, Engine};
use super::journal::{Change, Journal, Waiter};
use super::operation::Job;
use super::recovery::{self, Progress, Recovered, Recovery};
use crate::format::checkpoint::FrameError;
use crate::format::codec::RecordError;
use crate::format::foreign::{END_BYTES, FOREIGN_BYTES, Foreign, recognise, recognise_end};
use crate::format::journal::{Damage as JournalDamage, GroupWriter};
use crate::format::layout::{ALIGN_BYTES, Layout, LayoutError, LayoutOptions, SUPERBLOCK_OFFSETS};
use crate::format::record::Record;
use crate::format::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};
use crate::map::Damage;

/// Largest piece of one request that zeroes or discards a part of the drive, in bytes.
const ERASE_BYTES: u64 = 1 << 30;

/// What is read with one request.
const PIECE_BYTES: usize = 128 << 10;

/// Requests at once that read a range.
const READS_MAX: usize = 8;

/// What a new pool is to be.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Its name among all.
    pub uuid: Uuid,
    /// For people, at most 64 bytes.
    pub label: String,
    /// Seconds since 1970.
    pub made: u64,
    /// Sizes.
    pub layout: LayoutOptions,
    /// Whatever the drive holds may be destroyed.
    pub is_forced: bool,
}

/// How a pool is used while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Memory for checksums, at most, but at least for those of one page: it is taken as they are needed. What 32 MiB have room for covers about 20 GiB of
    /// data that is in use, in extents of 1 MiB.
    pub checksum_cache_bytes: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            checksum_cache_bytes: 32 << 20,
        }
    }
}

/// Why a pool was not made, opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The drive holds something.
    #[error("the drive {0}; it is not overwritten unless that is asked for")]
    NotBlank(Foreign),
    /// The drive is a pool, or was one.
    #[error("the drive is a pool already; it is not overwritten unless that is asked for")]
    IsAPool,
    /// There is no such pool.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Not a pool that can be opened.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The drive cannot be written to.
    #[error("the drive is read-only")]
    ReadOnly,
    /// The journal is damaged.
    #[error(transparent)]
    Journal(#[from] JournalDamage),
    /// The checkpoint is damaged.
    #[error(transparent)]
    Checkpoint(#[from] FrameError),
    /// What the journal or the checkpoint says is not a record.
    #[error("a record is damaged: {0}")]
    Record(#[from] RecordError),
    /// Records contradict each other.
    #[error("the map is damaged: {0}")]
    Map(#[from] Damage),
    /// The drive has failed.
    #[error("the drive failed: {0}")]
    Drive(#[from] IoError),
    /// There is no memory for buffers.
    #[error("no memory for buffers: {0}")]
    Memory(#[from] std::io::Error),
}

/// A drive whose answers are waited for.
pub(super) struct Waiting<'a, D> {
    pub(super) device: &'a mut D,
    wait: &'a mut dyn FnMut() -> Nanos,
    now: Nanos,
    block_bytes: u32,
    out: Completions,
    buffers: &'a BufPool,
}

impl<'a, D: Device> Waiting<'a, D> {
    pub(super) fn new(
        device: &'a mut D,
        buffers: &'a BufPool,
        wait: &'a mut dyn FnMut() -> Nanos,
    ) -> Self {
        Self {
            block_bytes: device.geometry().block_bytes,
            device,
            wait,
            now: Nanos::ZERO,
            out: Completions::with_capacity(READS_MAX),
            buffers,
        }
    }

    /// When the drive was polled last.
    pub(super) const fn now(&self) -> Nanos {
        self.now
    }

    /// Has some time pass; gives the time after it.
    pub(super) fn turn(&mut self) -> Nanos {
        self.now = (self.wait)();
        self.now
    }

    /// Polls the drive after some time.
    fn poll(&mut self) {
        let now = self.turn();
        self.device.poll(now, &mut self.out);
    }

    fn run(&mut self, op: Op, offset: u64, len: u64, data: Segments) -> Result<Segments, IoError> {
        let block_bytes = u64::from(self.block_bytes);
        let mut io = Io {
            op,
            lba: offset / block_bytes,
            blocks: u32::try_from(len / block_bytes).map_err(|_| IoError::OutOfRange)?,
            fua: op.is_modifying(),
            data,
            token: 0,
        };
        while let Err(refused) = self.device.try_submit(io) {
            io = refused;
            self.poll();
        }
        loop {
            self.poll();
            if let Some(completion) = self.out.pop() {
                return completion.result.map(|()| completion.data);
            }
        }
    }

    fn buffer(&self, len: usize) -> Result<IoBuf, IoError> {
        self.buffers.alloc(len).ok_or(IoError::Internal)
    }

    /// Reads a range of the drive, with several requests at once.
    pub(super) fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), IoError> {
        let mut pieces: Vec<&mut [u8]> = out.chunks_mut(PIECE_BYTES).collect();
        let (mut next, mut running) = (0, 0);
        let mut result = Ok(());
        while running > 0 || next < pieces.len() && result.is_ok() {
            while running < READS_MAX
                && result.is_ok()
                && let Some(piece) = pieces.get(next)
            {
                let at = offset + u64::try_from(next * PIECE_BYTES).unwrap_or(u64::MAX);
                if !self.submit_read(at, piece.len(), next) {
                    break;
                }
                next += 1;
                running += 1;
            }
            if running == 0 {
                // Nobody has buffers that could come back.
                return Err(IoError::Internal);
            }
            self.poll();
            while let Some(Completion {
                token,
                result: ended,
                data,
            }) = self.out.pop()
            {
                running -= 1;
                let place = usize::try_from(token).unwrap_or(usize::MAX);
                if let (Some(piece), Some(bytes)) = (pieces.get_mut(place), data.iter().next()) {
                    piece.copy_from_slice(bytes);
                }
                result = result.and(ended);
            }
        }
        result
    }

    /// Reads a range. What of it cannot be read is FFh.
    pub(super) fn read_in_part(&mut self, offset: u64, out: &mut [u8]) -> Result<(), IoError> {
        match self.read(offset, out) {
            Err(IoError::MediaRead) => {}
            result => return result,
        }
        let block = usize::try_from(self.block_bytes).unwrap_or(PIECE_BYTES);
        let smaller = match out.len() {
            len if len > PIECE_BYTES => PIECE_BYTES,
            len if len > block => block,
            _ => {
                out.fill(0xff);
                return Ok(());
            }
        };
        let mut at = offset;
        for piece in out.chunks_mut(smaller) {
            self.read_in_part(at, piece)?;
            at += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Whether there was a buffer, and the drive had room.
    fn submit_read(&mut self, offset: u64, bytes: usize, token: usize) -> bool {
        let Ok(buffer) = self.buffer(bytes) else {
            return false;
        };
        let block_bytes = u64::from(self.block_bytes);
        let blocks = u64::try_from(bytes).unwrap_or(u64::MAX) / block_bytes;
        let io = Io {
            op: Op::Read,
            lba: offset / block_bytes,
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            fua: false,
            data: buffer.into(),
            token: u64::try_from(token).unwrap_or(u64::MAX),
        };
        self.device.try_submit(io).is_ok()
    }

    /// Writes at most [`PIECE_BYTES`] bytes, which are stable afterwards.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let mut data = Segments::from(self.buffer(bytes.len())?);
        if !data.copy_from(bytes) {
            return Err(IoError::Internal);
        }
        let len = u64::try_from(bytes.len()).unwrap_or(0);
        self.run(Op::Write, offset, len, data).map(drop)
    }

    fn erase(&mut self, op: Op, offset: u64, len: u64) -> Result<(), IoError> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let len = (end - at).min(ERASE_BYTES);
            self.run(op, at, len, Segments::new())?;
            at += len;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), IoError> {
        self.run(Op::Flush, 0, 0, Segments::new()).map(drop)
    }

    /// Writes both copies, `first` first. Each is in one sector, so that at any time one of them is whole.
    fn write_superblock(&mut self, superblock: &Superblock, first: usize) -> Result<(), IoError> {
        let bytes = superblock.encode();
        let [a, b] = SUPERBLOCK_OFFSETS;
        for offset in if first == 0 { [a, b] } else { [b, a] } {
            self.write(offset, &bytes)?;
        }
        self.flush()
    }

    /// What a drive holds that is no pool, of which this is the start.
    pub(super) fn recognise(&mut self, start: &[u8]) -> Result<Foreign, IoError> {
        let bytes = self.device.geometry().bytes();
        for offset in SUPERBLOCK_OFFSETS {
            let mut copy = [0; SUPERBLOCK_BYTES];
            if bytes >= offset + ALIGN_BYTES {
                // What cannot be read now may be a superblock all the same.
                self.read(offset, &mut copy)?;
            }
        }
        let foreign = recognise(start);
        if foreign != Foreign::Blank {
            return Ok(foreign);
        }
        let mut end = vec![0; usize::try_from(bytes).map_or(END_BYTES, |all| all.min(END_BYTES))];
        let begin = bytes - u64::try_from(end.len()).unwrap_or(bytes);
        self.read(begin, &mut end)?;
        Ok(recognise_end(&end, bytes))
    }

    /// That nobody misses what the drive holds.
    fn check_blank(&mut self) -> Result<(), OpenError> {
        let (start, second) = self.read_superblocks()?;
        let chosen = Superblock::choose(&start, &second);
        if !matches!(chosen, Err(SuperblockError::NotAPool(_))) {
            return Err(OpenError::IsAPool);
        }
        match self.recognise(&start)? {
            Foreign::Blank => Ok(()),
            foreign => Err(OpenError::NotBlank(foreign)),
        }
    }

    /// The start of the drive, and the second copy of the superblock. One that cannot be read is FFh.
    pub(super) fn read_superblocks(&mut self) -> Result<(Vec<u8>, Vec<u8>), IoError> {
        let bytes = self.device.geometry().bytes();
        let start_bytes =
            usize::try_from(bytes).map_or(FOREIGN_BYTES, |all| all.min(FOREIGN_BYTES));
        let mut start = vec![0; start_bytes];
        let mut second = vec![0; SUPERBLOCK_BYTES];
        let first_error = self.read(0, &mut start).err();
        let end = SUPERBLOCK_OFFSETS[1] + u64::try_from(SUPERBLOCK_BYTES).unwrap_or(0);
        let second_error = match bytes >= end {
            true => self.read(SUPERBLOCK_OFFSETS[1], &mut second).err(),
            false => None,
        };
        // A copy that cannot be read is damaged: that is what there are two for.
        match (first_error, second_error) {
            (Some(error), Some(_)) => return Err(error),
            (Some(_), None) => start.fill(0xff),
            (None, Some(_)) => second.fill(0xff),
            (None, None) => {}
        }
        Ok((start, second))
    }
}

impl<D: Device> Pool<D> {
    /// Makes an empty pool on a drive. What the drive held is lost.
    ///
    /// `wait` is called until the drive has answered; it returns the time.
    ///
    /// # Errors
    /// When the drive holds something and this was not to be overwritten, is too small, or fails. After a failure, and
    /// after a crash before the end, the drive is not a pool, or the pool is empty.
    pub fn format(
        device: &mut D,
        options: &FormatOptions,
        wait: &mut dyn FnMut() -> Nanos,
    ) -> Result<(), OpenError> {
        let geometry = device.geometry();
        if geometry.read_only {
            return Err(OpenError::ReadOnly);
        }
        let layout = Layout::plan(geometry.bytes(), geometry.block_bytes, &options.layout)?;
        let buffers = engine::buffers()?;
        let mut drive = Waiting::new(device, &buffers, wait);
        if !options.is_forced {
            drive.check_blank()?;
        }
        // First nobody may take it for what it was: a crash leaves no mixture of two pools.
        for offset in SUPERBLOCK_OFFSETS {
            drive.write(offset, &[0; SUPERBLOCK_BYTES])?;
        }
        drive.flush()?;
        let zeroes = Op::WriteZeroes { deallocate: false };
        drive.erase(zeroes, layout.journal.offset, layout.journal.bytes)?;
        let reads_zero = geometry.deallocate == Deallocate::ReadsZero;
        let is_clean = reads_zero
            && drive
                .erase(Op::Deallocate, layout.data.offset, layout.data.bytes)
                .is_ok();
        drive.flush()?;
        let first = layout.ring().first();
        if is_clean {
            let mut writer = GroupWriter::new(layout.ring(), options.uuid, 1);
            let all = Record::Clean {
                physical: 0,
                count: layout.extents,
            };
            let mut group = vec![0; 4096];
            let sealed = writer
                .push(&all)
                .and_then(|()| writer.seal(first, &mut group));
            let sealed = sealed.map_err(|_| IoError::Internal)?;
            group.truncate(sealed.bytes);
            drive.write(layout.journal.offset + sealed.offset, &group)?;
        }
        let superblock = Superblock {
            sequence: 1,
            uuid: options.uuid,
            compatible: 0,
            read_only_compatible: 0,
            incompatible: 0,
            generation: 1,
            layout,
            checkpoint: None,
            replay_from: first,
            strict_from: first,
            closed_at: None,
            made: options.made,
            label: options.label.clone(),
        };
        drive.write_superblock(&superblock, 0)?;
        Ok(())
    }

    /// Opens the pool on a drive: all that was durable is there again. Nothing is written before all of it was read and
    /// understood.
    ///
    /// `wait` is called until the drive has answered; it returns the time.
    ///
    /// # Errors
    /// When the drive is not a pool, is damaged, or fails.
    pub fn open(device: D, wait: &mut dyn FnMut() -> Nanos) -> Result<Self, OpenError> {
        Self::open_with(device, &OpenOptions::default(), wait)
    }

    /// Opens the pool on a drive, as [`open`](Self::open).
    ///
    /// # Errors
    /// When the drive is not a pool, is damaged, or fails.
    pub fn open_with(
        device: D,
        options: &OpenOptions,
        wait: &mut dyn FnMut() -> Nanos,
    ) -> Result<Self, OpenError> {
        Self::open_watched(device, options, wait, &mut |_| {})
    }

    /// Opens the pool on a drive, as [`open`](Self::open). `watch` is told how far it is: at the start of each phase, and
    /// else once a second at the most.
    ///
    /// # Errors
    /// When the drive is not a pool, is damaged, or fails.
    pub fn open_watched(
        mut device: D,
        options: &OpenOptions,
        wait: &mut dyn FnMut() -> Nanos,
        watch: &mut dyn FnMut(Recovery),
    ) -> Result<Self, OpenError> {
        let geometry = device.geometry();
        if geometry.read_only {
            return Err(OpenError::ReadOnly);
        }
        let buffers = engine::buffers()?;
        let mut drive = Waiting::new(&mut device, &buffers, wait);
        let mut progress = Progress::begin(watch);
        let (start, second) = drive.read_superblocks()?;
        let chosen = Superblock::choose(&start, &second)?;
        let mut superblock = chosen.superblock;
        superblock.check_drive(geometry.bytes(), geometry.block_bytes)?;
        superblock.check_writable()?;
        progress.found(superblock.uuid);
        let Recovered { state, next, last } =
            recovery::replay(&mut drive, &superblock, &mut progress)?;
        if let Some((offset, group)) = last {
            drive.write(offset, &group)?;
        }
        // Before anything is written to the journal: sectors of this opening are told from those of the one before, which
        // a crash may have left behind the end. The copy that does not count is written first.
        superblock.sequence += 1;
        superblock.generation += 1;
        superblock.closed_at = None;
        let first = chosen.to_mend.map_or(0, |(copy, _)| copy);
        drive.write_superblock(&superblock, first)?;
        let layout = superblock.layout;
        let writer = GroupWriter::new(layout.ring(), superblock.uuid, superblock.generation);
        let group = buffers.alloc(128 << 10).ok_or(IoError::Internal)?;
        let frame = buffers.alloc(64 << 10).ok_or(IoError::Internal)?;
        let places = (superblock.replay_from, next);
        let journal = Journal::new(layout.ring(), layout.journal.offset, writer, places, group);
        tracing::info!(pool = %superblock.uuid, generation = superblock.generation,
            volumes = state.volumes().count(), "pool opened");
        let checkpointer = Checkpointer::new(frame, superblock.generation);
        let drive = Drive::new(device);
        let pages = page_buffers(&superblock.layout)?;
        let sums = Sums::new(&superblock.layout, options.checksum_cache_bytes, pages);
        let mut engine = Engine::new(
            drive,
            buffers,
            superblock,
            state,
            journal,
            checkpointer,
            sums,
        );
        engine.remove_unmade();
        Ok(Self {
            engine: Rc::new(RefCell::new(engine)),
        })
    }

    /// Closes the pool: nothing begins any more, what is under way ends, and the drive says that nothing is missing. Handles
    /// that are left see the drive vanish. Returns the drive if there are none.
    ///
    /// # Errors
    /// When the drive fails. What was durable is durable all the same.
    pub fn close(self, wait: &mut dyn FnMut() -> Nanos) -> Result<Option<D>, OpenError> {
        let Self { engine: shared } = self;
        let mut engine = shared.borrow_mut();
        engine.close(wait)?;
        drop(engine);
        let engine = Rc::try_unwrap(shared).ok();
        Ok(engine.map(|engine| engine.into_inner().drive.into_device()))
    }
}

impl<D: Device> Engine<D> {
    /// Volumes that were never acknowledged go.
    fn remove_unmade(&mut self) {
        let unmade = |volume: &crate::map::Volume| volume.is_being_made.then_some(volume.number);
        let unmade: Vec<u32> = self
            .state
            .volumes()
            .filter_map(|(_, it)| unmade(it))
            .collect();
        for volume in unmade {
            tracing::warn!(volume, "a volume was not made completely, and is removed");
            self.operations.start_own(Job::Delete { volume });
        }
    }

    fn close(&mut self, wait: &mut dyn FnMut() -> Nanos) -> Result<(), OpenError> {
        self.operations.close();
        self.retry_homeless();
        for port in self.ports.iter_mut() {
            port.vanish();
        }
        self.finish(wait)?;
        // What was reserved and never taken is zero still.
        while let Some(physical) = self.state.take_reserved(0) {
            self.journal
                .want(Change::Clean { physical, count: 1 }, Waiter::Closing);
        }
        // A group in doubt is no end of the journal: who opens the pool would go on without it, and whoever comes
        // after a crash of that one could find it all the same.
        self.finish(wait)?;
        self.superblock.sequence += 1;
        self.superblock.replay_from = self.journal.replay_from;
        self.superblock.closed_at = Some(self.journal.applied());
        let superblock = self.superblock.clone();
        let mut drive = Waiting::new(self.drive.device_mut(), &self.buffers, wait);
        // What is written in place and not stable yet, too.
        drive.flush()?;
        drive.write_superblock(&superblock, 0)?;
        let groups = self.journal.groups;
        tracing::info!(pool = %superblock.uuid, groups, "pool closed");
        Ok(())
    }

    /// Drives everything until nothing is under way. An error if something could not be recorded.
    fn finish(&mut self, wait: &mut dyn FnMut() -> Nanos) -> Result<(), IoError> {
        while !self.is_idle() {
            self.poll(wait());
        }
        match (self.journal.has_failed(), self.has_vanished()) {
            (false, _) => Ok(()),
            (true, true) => Err(IoError::Vanished),
            (true, false) => Err(IoError::MediaWrite),
        }
    }
}
