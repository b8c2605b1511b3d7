//! A device in memory.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use bowline_nvme::Nanos;

use crate::buf::{BUFFER_ALIGN, Medium, MediumView, memory_bytes};
use crate::device::{Completions, Device, DeviceEvent};
use crate::geometry::{Deallocate, Geometry};
use crate::io::{Completion, Io, IoError, Op};

#[cfg(test)]
mod tests;

/// Completions it keeps until they are polled, and so the requests it takes between two polls.
const DEPTH: usize = 1024;

/// From this size on a medium uses large pages...
const LARGE_PAGES_MIN_BYTES: u64 = 16 << 20;

/// ...up to this share of the machine's memory. A larger one is sparse more often than not, and
/// would take 2 MiB for every block written.
const LARGE_PAGES_MEMORY_SHARE: u64 = 8;

/// A device whose medium is memory, zero at first and taken from the system where it is written.
///
/// Every request is done when `try_submit` returns, so requests take effect in the order they were
/// submitted, and a completed write is as durable as it will ever be: there is no cache to flush.
pub struct MemDevice {
    medium: Medium,
    geometry: Geometry,
    // Grows to what one turn submits, never past DEPTH: thousands of idle devices cost nothing.
    done: VecDeque<Completion>,
}

impl MemDevice {
    /// A device of `size_bytes`, a multiple of `block_bytes`, which is 512 or 4096.
    ///
    /// # Errors
    /// When the sizes are not as said, or the address space cannot be had.
    pub fn new(size_bytes: u64, block_bytes: u32) -> io::Result<Self> {
        if block_bytes != 512 && block_bytes != 4096 {
            return Err(invalid("the block size is 512 or 4096 bytes"));
        }
        let blocks = size_bytes / u64::from(block_bytes);
        if blocks == 0 || !size_bytes.is_multiple_of(u64::from(block_bytes)) {
            return Err(invalid(
                "the size is a multiple of the block size, and not 0",
            ));
        }
        let len = usize::try_from(size_bytes).map_err(|_| invalid("the size is too large"))?;
        let page_blocks = u32::try_from(BUFFER_ALIGN).unwrap_or(4096) / block_bytes;
        let geometry = Geometry {
            block_bytes,
            blocks,
            volatile_cache: false,
            read_only: false,
            // A crash of the process loses everything; within its life, a request is atomic.
            atomic_write_blocks: page_blocks,
            optimal_io_blocks: page_blocks,
            deallocate: Deallocate::ReadsZero,
            deallocate_granularity_blocks: page_blocks,
            write_zeroes: true,
            thin: false,
        };
        let medium = Medium::new(len)?;
        let large_max_bytes = memory_bytes() / LARGE_PAGES_MEMORY_SHARE;
        if (LARGE_PAGES_MIN_BYTES..=large_max_bytes).contains(&size_bytes) {
            medium.prefer_large_pages();
        }
        Ok(Self {
            medium,
            geometry,
            done: VecDeque::new(),
        })
    }

    fn execute(&mut self, io: &mut Io) -> Result<(), IoError> {
        let range = self.geometry.check_io(io)?;
        let start = usize::try_from(range.offset).map_err(|_| IoError::OutOfRange)?;
        let end = usize::try_from(range.end()).map_err(|_| IoError::OutOfRange)?;
        match io.op {
            Op::Read => self.read(io, start),
            Op::Write => {
                self.write(io, start, 0..end - start);
                Ok(())
            }
            Op::Flush => Ok(()),
            Op::WriteZeroes { .. } | Op::Deallocate => {
                self.medium.zero(start..end);
                Ok(())
            }
            Op::CompareAndWrite => self.compare_and_write(io, start, end - start),
        }
    }

    /// Where `bytes` bytes from `lba` on are in the medium.
    fn place(&self, lba: u64, bytes: usize) -> Result<usize, IoError> {
        let bytes = u32::try_from(bytes).map_err(|_| IoError::Internal)?;
        if !bytes.is_multiple_of(self.geometry.block_bytes) {
            return Err(IoError::Internal);
        }
        let range = self
            .geometry
            .check(lba, bytes / self.geometry.block_bytes)?;
        usize::try_from(range.offset).map_err(|_| IoError::OutOfRange)
    }

    /// Fills the payload from the medium from `offset` on.
    fn read(&self, io: &mut Io, offset: usize) -> Result<(), IoError> {
        let mut at = offset;
        for buf in io.data.iter_mut() {
            let into = buf.as_mut().ok_or(IoError::Internal)?;
            self.medium.read(at, into);
            at += into.len();
        }
        Ok(())
    }

    /// Writes the bytes `part` of the payload to the medium from `offset` on.
    fn write(&mut self, io: &Io, offset: usize, part: Range<usize>) {
        let mut at = offset;
        for piece in io.data.pieces(part) {
            self.medium.write(at, piece);
            at += piece.len();
        }
    }

    fn compare_and_write(&mut self, io: &Io, start: usize, len: usize) -> Result<(), IoError> {
        let mut at = start;
        for piece in io.data.pieces(0..len) {
            if !self.medium.holds(at, piece) {
                return Err(IoError::CompareMismatch);
            }
            at += piece.len();
        }
        self.write(io, start, len..2 * len);
        Ok(())
    }
}

impl Device for MemDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn depth_max(&self) -> usize {
        DEPTH
    }

    fn try_submit(&mut self, mut io: Io) -> Result<(), Io> {
        if self.done.len() >= DEPTH {
            return Err(io);
        }
        let result = self.execute(&mut io);
        self.done.push_back(io.complete(result));
        Ok(())
    }

    fn is_immediate(&self) -> bool {
        true
    }

    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        let place = self.place(lba, into.len())?;
        self.medium.read(place, into);
        Ok(())
    }

    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        let place = self.place(lba, data.len())?;
        self.medium.write(place, data);
        Ok(())
    }

    fn is_write_sure(&self, lba: u64, bytes: usize) -> bool {
        self.place(lba, bytes).is_ok()
    }

    fn view_now(&self, lba: u64, bytes: usize) -> Result<MediumView, IoError> {
        let place = self.place(lba, bytes)?;
        Ok(self.medium.view(place, bytes))
    }

    fn poll(&mut self, _now: Nanos, out: &mut Completions) {
        while !out.is_full() {
            let Some(completion) = self.done.pop_front() else {
                break;
            };
            out.push(completion);
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        (!self.done.is_empty()).then_some(Nanos::ZERO)
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        None
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        Ok(self.geometry)
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}
