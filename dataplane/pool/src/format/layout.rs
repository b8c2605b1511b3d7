//! Where things are on the drive.

use super::journal::Ring;
use super::pages::SlotMap;
use crate::map::{EXTENTS_MAX, Limits};

/// The unit of presence and of checksums.
pub const CHUNK_BYTES: u32 = 4096;

/// Smallest extent: for tests.
pub const EXTENT_BYTES_MIN: u32 = 16 << 10;

/// Largest extent.
pub const EXTENT_BYTES_MAX: u32 = 16 << 20;

/// Where the two copies of the superblock are.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 1 << 20];

/// Size of each copy, and what areas begin at a multiple of.
pub const ALIGN_BYTES: u64 = 4096;

/// Smallest journal: for tests.
pub const JOURNAL_BYTES_MIN: u64 = 64 << 10;

/// Largest journal.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 30;

/// More that the checkpoint has room for: what does not fill its frames at the end.
const CHECKPOINT_BYTES_SPARE: u64 = 128 << 10;

/// Smallest checkpoint area that is believed. A program that counts in another way still reads it.
const CHECKPOINT_BYTES_MIN: u64 = 64 << 10;

/// More attributes than any drive has room for.
const ATTRIBUTE_BYTES_MAX: u64 = 1 << 50;

/// What may be chosen when a pool is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutOptions {
    /// A power of two from 16 KiB to 16 MiB.
    pub extent_bytes: u32,
    /// Size of the journal; chosen by the drive's size if there is none.
    pub journal_bytes: Option<u64>,
    /// Volumes and snapshots that there is room for in any case; chosen by the drive's size if
    /// there is none.
    pub objects_max: Option<u32>,
    /// Bytes of attributes of all volumes that there is room for in any case; chosen by the
    /// drive's size if there is none.
    pub attribute_bytes_max: Option<u64>,
}

impl Default for LayoutOptions {
    fn default() -> Self {
        Self {
            extent_bytes: 1 << 20,
            journal_bytes: None,
            objects_max: None,
            attribute_bytes_max: None,
        }
    }
}

/// A part of the drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

impl Area {
    /// The byte after the last; `None` for what no drive has.
    #[must_use]
    pub const fn end(self) -> Option<u64> {
        self.offset.checked_add(self.bytes)
    }
}

/// Where things are on the drive. Made by [`Layout::plan`], or checked by [`Layout::check`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the drive that the pool uses.
    pub bytes: u64,
    /// The drive's logical block.
    pub block_bytes: u32,
    /// The unit of allocation.
    pub extent_bytes: u32,
    /// How many there are.
    pub extents: u32,
    /// The journal.
    pub journal: Area,
    /// The two checkpoint areas.
    pub checkpoints: [Area; 2],
    /// The pages of checksums.
    pub checksums: Area,
    /// The extents.
    pub data: Area,
    /// The largest number of volumes and snapshots together.
    pub objects_max: u32,
    /// The largest sum of the records of all attributes.
    pub attribute_bytes_max: u64,
}

/// Why there is no such pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// An extent is a power of two within limits.
    #[error("an extent of {0} bytes is not possible: choose a power of two from 16 KiB to 16 MiB")]
    Extent(u32),
    /// The drive's block is neither.
    #[error("a pool needs a drive with blocks of 512 or 4,096 bytes, and this one has {0}")]
    Block(u32),
    /// The journal has its limits.
    #[error("a journal of {0} bytes is not possible: choose 64 KiB to 1 GiB")]
    Journal(u64),
    /// Nothing is left for data.
    #[error(
        "the drive is too small for a pool: it has {bytes} bytes, and {needed} are the least; \
         choose a larger drive, a smaller extent or a smaller journal"
    )]
    TooSmall {
        /// Size of the drive.
        bytes: u64,
        /// What one extent would need.
        needed: u64,
    },
}

impl Layout {
    /// The layout of a new pool that uses a drive of this size, with as many extents as fit.
    pub fn plan(
        bytes: u64,
        block_bytes: u32,
        options: &LayoutOptions,
    ) -> Result<Self, LayoutError> {
        let bytes = bytes / ALIGN_BYTES * ALIGN_BYTES;
        let extent_bytes = options.extent_bytes;
        if !is_extent(extent_bytes) {
            return Err(LayoutError::Extent(extent_bytes));
        }
        if !is_block(block_bytes) {
            return Err(LayoutError::Block(block_bytes));
        }
        let journal = options
            .journal_bytes
            .unwrap_or((bytes >> 10).clamp(1 << 20, 64 << 20));
        if !(JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&journal) {
            return Err(LayoutError::Journal(journal));
        }
        let journal = journal / ALIGN_BYTES * ALIGN_BYTES;
        // At most 65,536 unless told otherwise.
        let by_size = u32::try_from((bytes >> 20).clamp(1 << 10, 1 << 16)).unwrap_or(1 << 16);
        let objects_max = options.objects_max.unwrap_or(by_size);
        let room_for = Self {
            bytes,
            block_bytes,
            extent_bytes,
            objects_max,
            attribute_bytes_max: options
                .attribute_bytes_max
                .unwrap_or(u64::from(objects_max) * 256 + (64 << 10))
                .min(ATTRIBUTE_BYTES_MAX),
            journal: Area {
                offset: 0,
                bytes: journal,
            },
            ..Self::default()
        };
        let with = |extents| room_for.with_extents(extents);
        let ends_at = |extents| with(extents).data.end().unwrap_or(u64::MAX);
        if ends_at(1) > bytes {
            return Err(LayoutError::TooSmall {
                bytes,
                needed: ends_at(1),
            });
        }
        // The most that fit: what comes before the data only grows with their number.
        let at_most = bytes / u64::from(extent_bytes);
        let (mut fits, mut too_many) = (
            1,
            u32::try_from(at_most).map_or(EXTENTS_MAX, |most| most.min(EXTENTS_MAX)),
        );
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if ends_at(middle) <= bytes {
                fits = middle
            } else {
                too_many = middle
            }
        }
        Ok(with(fits))
    }

    /// The same with so many extents, and areas one after another. Cannot overflow: 2^32 extents of
    /// 16 MiB are 2^56 bytes, and no drive has an area of saturated size.
    fn with_extents(self, extents: u32) -> Self {
        let extent_bytes = self.extent_bytes;
        let pages = SlotMap::new(extent_bytes, extents).pages();
        let checkpoint = Self { extents, ..self }.checkpoint_bytes();
        let mut end = SUPERBLOCK_OFFSETS[1] + ALIGN_BYTES;
        let mut area = |bytes: u64, align: u64| {
            let offset = end.next_multiple_of(align);
            end = offset.saturating_add(bytes);
            Area { offset, bytes }
        };
        Self {
            extents,
            journal: area(self.journal.bytes, ALIGN_BYTES),
            checkpoints: [area(checkpoint, ALIGN_BYTES), area(checkpoint, ALIGN_BYTES)],
            checksums: area(pages * ALIGN_BYTES, ALIGN_BYTES),
            data: area(
                u64::from(extents) * u64::from(extent_bytes),
                data_align(extent_bytes),
            ),
            ..self
        }
    }

    /// What is wrong with a layout that was read: nobody computes with it before this is asked.
    pub fn check(&self) -> Result<(), &'static str> {
        if !is_block(self.block_bytes) {
            return Err("size of a block");
        }
        if !is_extent(self.extent_bytes) {
            return Err("size of an extent");
        }
        if self.extents == 0 || self.extents > EXTENTS_MAX {
            return Err("number of extents");
        }
        let journal = JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX;
        let pages = SlotMap::new(self.extent_bytes, self.extents).pages();
        let data = u64::from(self.extents) * u64::from(self.extent_bytes);
        if !journal.contains(&self.journal.bytes) {
            return Err("size of the journal");
        }
        let [first, second] = self.checkpoints;
        if first.bytes < CHECKPOINT_BYTES_MIN || second.bytes != first.bytes {
            return Err("size of the checkpoints");
        }
        if self.attribute_bytes_max > ATTRIBUTE_BYTES_MAX {
            return Err("size of the attributes");
        }
        if self.checksums.bytes < pages * ALIGN_BYTES {
            return Err("size of the checksums");
        }
        if self.data.bytes != data
            || !self
                .data
                .offset
                .is_multiple_of(data_align(self.extent_bytes))
        {
            return Err("data area");
        }
        let mut begin = SUPERBLOCK_OFFSETS[1] + ALIGN_BYTES;
        for area in [self.journal, first, second, self.checksums, self.data] {
            let is_aligned =
                area.offset.is_multiple_of(ALIGN_BYTES) && area.bytes.is_multiple_of(ALIGN_BYTES);
            match area.end() {
                Some(end) if is_aligned && area.offset >= begin && end <= self.bytes => begin = end,
                _ => return Err("place of an area"),
            }
        }
        Ok(())
    }

    /// The journal's sectors.
    #[must_use]
    pub fn ring(&self) -> Ring {
        Ring::new(self.journal.bytes, self.block_bytes)
    }

    /// Where the checksums of chunks are.
    #[must_use]
    pub fn slots(&self) -> SlotMap {
        SlotMap::new(self.extent_bytes, self.extents)
    }

    /// Chunks of an extent.
    #[must_use]
    pub const fn chunks_per_extent(&self) -> u32 {
        self.extent_bytes / CHUNK_BYTES
    }

    /// Bytes of the bitmap of a partly filled extent.
    #[must_use]
    pub const fn bitmap_bytes(&self) -> usize {
        bitmap_bytes(self.extent_bytes)
    }

    /// Where a physical extent is; `None` if there is no such extent.
    #[must_use]
    pub fn extent_offset(&self, physical: u32) -> Option<u64> {
        (physical < self.extents)
            .then(|| self.data.offset + u64::from(physical) * u64::from(self.extent_bytes))
    }

    /// How much there may be in the pool, so that a checkpoint of it fits into its area.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            extents: self.extents,
            extent_bytes: self.extent_bytes,
            chunk_bytes: CHUNK_BYTES,
            objects_max: self.objects_max,
            attribute_bytes_max: self.attribute_bytes_max,
        }
    }

    /// Size of a checkpoint area: the worst state, in which attributes count twice, since a long
    /// one may leave half a frame empty; what happens to it while it is written (each record in
    /// the journal may make the checkpoint longer by twice its own length, since it may part a run
    /// of extents); and an eighth for frames that are not filled: no other record is longer than
    /// 4,200 bytes.
    fn checkpoint_bytes(&self) -> u64 {
        let state = self
            .limits()
            .checkpoint_bytes_max()
            .saturating_add(self.attribute_bytes_max);
        (state.div_ceil(8).saturating_mul(9))
            .saturating_add(2 * self.journal.bytes + CHECKPOINT_BYTES_SPARE)
            .checked_next_multiple_of(ALIGN_BYTES)
            .unwrap_or(u64::MAX / ALIGN_BYTES * ALIGN_BYTES)
    }
}

const fn is_block(bytes: u32) -> bool {
    bytes == 512 || bytes == 4096
}

fn is_extent(bytes: u32) -> bool {
    bytes.is_power_of_two() && (EXTENT_BYTES_MIN..=EXTENT_BYTES_MAX).contains(&bytes)
}

fn data_align(extent_bytes: u32) -> u64 {
    u64::from(extent_bytes.min(1 << 20))
}

/// One bit a chunk.
const fn bitmap_bytes(extent_bytes: u32) -> usize {
    // At most 512: the cast cannot truncate.
    (extent_bytes / CHUNK_BYTES).div_ceil(8) as usize
}

#[cfg(test)]
mod tests;
