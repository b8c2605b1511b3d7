//! Where things are: extents and chunks as bytes of the drive.

use std::ops::Range;

use bowline_block::{Op, Segments};

use super::drive::Access;

/// The unit of presence.
pub(super) const CHUNK_BYTES: u32 = 4096;

/// The sizes that everything is computed with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    extent_bytes: u32,
    extent_shift: u32,
    data_offset: u64,
}

impl Shape {
    pub(super) const fn new(extent_bytes: u32, data_offset: u64) -> Self {
        Self {
            extent_bytes,
            extent_shift: extent_bytes.trailing_zeros(),
            data_offset,
        }
    }

    pub(super) const fn extent_bytes(&self) -> u32 {
        self.extent_bytes
    }

    /// Chunks of an extent.
    pub(super) const fn chunk_count(&self) -> u32 {
        self.extent_bytes / CHUNK_BYTES
    }

    /// The logical extent of an offset in a volume, and the bytes from its start.
    pub(super) fn split(&self, offset: u64) -> (u32, u32) {
        let logical = offset >> self.extent_shift;
        let start = offset & u64::from(self.extent_bytes - 1);
        // Volumes have less than 2^32 extents, which creating and growing them makes sure of.
        (
            u32::try_from(logical).unwrap_or(u32::MAX),
            u32::try_from(start).unwrap_or(0),
        )
    }

    /// How many of `len` bytes from `start` on are in the extent.
    pub(super) fn within(&self, start: u32, len: u64) -> u32 {
        let rest = self.extent_bytes - start;
        u32::try_from(len).map_or(rest, |len| len.min(rest))
    }

    /// Where a range of a logical extent ends in its volume.
    pub(super) const fn end(&self, logical: u32, start: u32, len: u32) -> u64 {
        ((logical as u64) << self.extent_shift) + start as u64 + len as u64
    }

    /// The chunks that a range of an extent touches.
    pub(super) const fn chunks(&self, start: u32, len: u32) -> Range<u32> {
        start / CHUNK_BYTES..(start + len).div_ceil(CHUNK_BYTES)
    }

    /// Where a place of a physical extent is on the drive.
    pub(super) const fn place(&self, physical: u32, start: u32) -> u64 {
        self.data_offset + ((physical as u64) << self.extent_shift) + start as u64
    }

    /// An access to a part of a physical extent.
    pub(super) fn access(
        &self,
        op: Op,
        physical: u32,
        start: u32,
        len: u32,
        fua: bool,
        data: Segments,
    ) -> Access {
        Access {
            op,
            offset: self.place(physical, start),
            len: u64::from(len),
            fua,
            data,
        }
    }
}
