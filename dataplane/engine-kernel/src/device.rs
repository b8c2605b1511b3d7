//! The device: a table of requests on their way, between the reactor and the backend.

use std::collections::VecDeque;
use std::io;

use bowline_block::{
    BufPool, ClassConfig, Completion, Completions, Deallocate, Device, DeviceEvent, DeviceEvents,
    Geometry, Io, IoBuf, IoError, Op, PoolConfig,
};
use bowline_nvme::Nanos;
use bowline_reactor::DiskQueue;

use crate::backend::{Answer, Backend};
use crate::open::{Backing, BackingInfo, BackingKind};
use crate::probe::{self, SysfsQueue};
use crate::slot::{Abilities, Lent, Next, Slot};

/// Size of the buffer of zeroes, and of the largest compare-and-write, in bytes.
const SCRATCH_BYTES: usize = 128 << 10;

/// A Linux block device or regular file as a [`Device`].
///
/// Segments of reads and writes go to the kernel as they are. Direct I/O wants each of them to
/// begin at a multiple of the medium's sector in memory and to be a multiple of the block long,
/// which pool buffers cut at blocks are; others end in [`IoError::Internal`].
///
/// Drop it when nothing is in flight: with threads, dropping waits for what they are executing;
/// with the ring, the reactor keeps file, lock and buffers until the kernel is done, and dropping
/// waits only for discards of a kernel before Linux 6.12, which has to be told of them by a thread.
///
/// Compare-and-write (up to 128 KiB, else [`IoError::Unsupported`]) reads, compares and writes:
/// atomic with regard to every request of this handle, because modifying requests of an
/// overlapping range wait for one another, and so for every host, since one reactor owns the
/// handle and the lock keeps other processes out.
pub struct KernelDevice {
    backend: Backend,
    geometry: Geometry,
    info: BackingInfo,
    sysfs: Option<SysfsQueue>,
    abilities: Abilities,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    // Slots whose next command waits: for a conflicting request, or for room in the backend.
    waiting: VecDeque<u32>,
    is_backend_full: bool,
    // The last poll ended for want of room, so that the backend may have more.
    has_more: bool,
    // Compare-and-writes in the table.
    compares: usize,
    done: VecDeque<Completion>,
    sequence: u64,
    // Time of the last poll.
    now: Nanos,
    events: DeviceEvents,
    zeroes: IoBuf,
    scratch: Option<IoBuf>,
    // One buffer of zeroes, one of scratch.
    pool: BufPool,
}

impl KernelDevice {
    /// Attaches an open backing to a reactor, through the reactor's drive queue.
    ///
    /// # Errors
    /// When threads or memory for its few buffers cannot be had.
    pub fn new(backing: Backing, disk: DiskQueue) -> io::Result<Self> {
        let Backing {
            file,
            geometry,
            info,
            sysfs,
            depth,
            threads,
        } = backing;
        let classes = vec![ClassConfig {
            bytes: SCRATCH_BYTES,
            count: 2,
        }];
        let pool = BufPool::new(PoolConfig { classes })?;
        let zeroes = pool.alloc(SCRATCH_BYTES);
        let zeroes = zeroes.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let slots = u32::try_from(depth).unwrap_or(u32::MAX);
        Ok(Self {
            backend: Backend::new(file, disk, threads, depth)?,
            geometry,
            sysfs,
            abilities: Abilities {
                kind: info.kind,
                deallocate: geometry.deallocate,
                punch: true,
                zero_range: true,
                block_bytes: geometry.block_bytes,
            },
            info,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            waiting: VecDeque::with_capacity(depth),
            is_backend_full: false,
            has_more: false,
            compares: 0,
            done: VecDeque::with_capacity(depth),
            sequence: 0,
            now: Nanos::ZERO,
            events: DeviceEvents::default(),
            zeroes,
            scratch: None,
            pool,
        })
    }

    /// What the backing is.
    #[must_use]
    pub const fn info(&self) -> &BackingInfo {
        &self.info
    }

    /// Requests accepted and not yet completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[cfg(test)]
    pub(crate) fn backend(&mut self) -> &mut Backend {
        &mut self.backend
    }

    /// What can be said about a request without asking the kernel.
    fn verdict(&self, io: &Io) -> Result<Verdict, IoError> {
        if self.events.has_vanished() {
            return Err(IoError::Vanished);
        }
        let range = self.geometry.check_io(io)?;
        match io.op {
            Op::Flush => return Ok(Verdict::Execute(range)),
            Op::Deallocate if self.abilities.deallocate == Deallocate::None => {
                return Err(IoError::Unsupported);
            }
            Op::CompareAndWrite if range.len > SCRATCH_BYTES as u64 => {
                return Err(IoError::Unsupported);
            }
            Op::Read if !io.data.is_unique() => return Err(IoError::Internal),
            _ => {}
        }
        Ok(if range.len == 0 {
            Verdict::Nothing
        } else {
            Verdict::Execute(range)
        })
    }

    /// Submits the slot's next command, or lets it wait.
    fn start(&mut self, index: u32) {
        if !self.try_start(index) {
            self.waiting.push_back(index);
        }
    }

    fn try_start(&mut self, index: u32) -> bool {
        if self.compares > 0 && self.must_wait(index) {
            return false;
        }
        let Some(Some(slot)) = self.slots.get_mut(index as usize) else {
            return true;
        };
        let mut lent = Lent {
            zeroes: &self.zeroes,
            scratch: &mut self.scratch,
            pool: &self.pool,
        };
        let command = slot.command(&mut lent);
        match self.backend.submit(index, command) {
            Ok(()) => true,
            Err(command) => {
                slot.take_back(command, &mut lent);
                self.is_backend_full = true;
                false
            }
        }
    }

    /// Whether an earlier request conflicts with this one. Earlier, so that nobody waits in a
    /// circle and no compare-and-write waits for ever.
    fn must_wait(&self, index: u32) -> bool {
        let Some(Some(slot)) = self.slots.get(index as usize) else {
            return false;
        };
        let earlier = |other: &&Slot| other.sequence < slot.sequence;
        self.slots
            .iter()
            .flatten()
            .filter(earlier)
            .any(|other| slot.conflicts_with(other))
    }

    /// Gives every waiting slot a chance, in order.
    fn start_waiting(&mut self) {
        self.is_backend_full = false;
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else {
                break;
            };
            if self.is_backend_full {
                self.waiting.push_back(index);
            } else {
                self.start(index);
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        let index = answer.slot;
        let Some(Some(slot)) = self.slots.get_mut(index as usize) else {
            return;
        };
        let mut lent = Lent {
            zeroes: &self.zeroes,
            scratch: &mut self.scratch,
            pool: &self.pool,
        };
        match slot.answer(answer.result, answer.data, &mut lent, &mut self.abilities) {
            Next::Continue => self.start(index),
            Next::Finish(result) => self.finish(index, result),
        }
    }

    fn finish(&mut self, index: u32, mut result: Result<(), IoError>) {
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        self.free.push(index);
        if slot.op() == Op::CompareAndWrite {
            self.compares -= 1;
            self.scratch = None;
        }
        if let Err(error) = &mut result {
            *error = self.judge(slot.op(), *error);
        }
        self.done.push_back(slot.complete(result));
    }

    /// Looks at what an error says about the device as a whole.
    fn judge(&mut self, op: Op, error: IoError) -> IoError {
        match error {
            IoError::Vanished => self.events.vanish(),
            IoError::MediaRead | IoError::MediaWrite | IoError::TimedOut => {
                // A drive that was pulled out fails its requests before anybody says why.
                if self.events.has_vanished() || self.is_gone() {
                    self.events.vanish();
                    return IoError::Vanished;
                }
                self.events.warn(self.now);
            }
            IoError::Unsupported if op == Op::Deallocate => {
                // Was claimed from what the kernel told; it turned out to be wrong.
                self.abilities.deallocate = Deallocate::None;
                self.geometry.deallocate = Deallocate::None;
                self.events.change_geometry();
            }
            _ => {}
        }
        error
    }

    /// Whether the kernel has forgotten the block device, or emptied it.
    fn is_gone(&self) -> bool {
        let is_forgotten = self.sysfs.as_ref().is_some_and(|sysfs| !sysfs.exists());
        let size = || probe::bytes_now(self.backend.file(), true);
        is_forgotten || self.info.kind == BackingKind::BlockDevice && !matches!(size(), Ok(1..))
    }

    fn hand_out(&mut self, out: &mut Completions) {
        while !out.is_full() {
            let Some(completion) = self.done.pop_front() else {
                break;
            };
            out.push(completion);
        }
    }
}

enum Verdict {
    Nothing,
    Execute(bowline_block::ByteRange),
}

impl Device for KernelDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn depth_max(&self) -> usize {
        self.slots.len()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        // A completion takes the place of its slot until it is handed out: nothing grows.
        if self.done.len() >= self.free.len() {
            return Err(io);
        }
        let range = match self.verdict(&io) {
            Ok(Verdict::Execute(range)) => range,
            Ok(Verdict::Nothing) => {
                self.done.push_back(io.complete(Ok(())));
                return Ok(());
            }
            Err(error) => {
                self.done.push_back(io.complete(Err(error)));
                return Ok(());
            }
        };
        let Some(index) = self.free.pop() else {
            return Err(io);
        };
        self.compares += usize::from(io.op == Op::CompareAndWrite);
        self.sequence += 1;
        self.slots[index as usize] = Some(Slot::new(io, range, self.sequence, &self.abilities));
        self.start(index);
        Ok(())
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.now = now;
        self.hand_out(out);
        while !out.is_full() {
            let Some(answer) = self.backend.poll() else {
                break;
            };
            self.answered(answer);
            self.hand_out(out);
        }
        self.has_more = out.is_full();
        if !self.waiting.is_empty() {
            self.start_waiting();
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        (!self.done.is_empty() || self.has_more).then_some(Nanos::ZERO)
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.events.pop()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        let is_block_device = self.info.kind == BackingKind::BlockDevice;
        let bytes = probe::bytes_now(self.backend.file(), is_block_device)?;
        let block_bytes = u64::from(self.geometry.block_bytes);
        if is_block_device && bytes == 0 {
            self.events.vanish();
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the device is gone",
            ));
        }
        let blocks = bytes / block_bytes;
        if blocks >= self.geometry.blocks {
            self.info.unused_bytes = bytes % block_bytes;
            if blocks > self.geometry.blocks {
                self.geometry.blocks = blocks;
                self.events.change_geometry();
            }
        }
        Ok(Geometry {
            blocks,
            ..self.geometry
        })
    }
}
