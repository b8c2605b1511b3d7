//! Pages of checksums.

use std::ops::Range;

use uuid::Uuid;

use super::layout::CHUNK_BYTES;
use super::wire::{Fields, Put};

/// Size of a page.
pub const PAGE_BYTES: usize = 4096;

/// Slots that a page has room for.
pub const PAGE_SLOTS: u32 = 1016;

/// Slots of each page of an extent that has more than one.
const SLOTS_OF_LARGE: u32 = 512;

const MAGIC: u32 = u32::from_le_bytes(*b"BWLX");
const CRC_FROM: usize = 8;
const HEAD_BYTES: usize = 32;

/// Which slot is for which chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotMap {
    extents: u32,
    chunks_per_extent: u32,
    /// Whole extents in a page; 0 where an extent has several pages.
    extents_per_page: u32,
}

/// Where the checksum of a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPlace {
    /// Index of the page.
    pub page: u64,
    /// Slot in it.
    pub slot: u32,
}

impl SlotMap {
    /// For `extents` of this size.
    #[must_use]
    pub const fn new(extent_bytes: u32, extents: u32) -> Self {
        let chunks_per_extent = extent_bytes / CHUNK_BYTES;
        // An extent without chunks has no pages either.
        let extents_per_page = match PAGE_SLOTS.checked_div(chunks_per_extent) {
            Some(extents) => extents,
            None => 0,
        };
        Self {
            extents,
            chunks_per_extent,
            extents_per_page,
        }
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u64 {
        match self.extents_per_page {
            0 => u64::from(self.extents) * u64::from(self.pages_per_extent()),
            per_page => u64::from(self.extents.div_ceil(per_page)),
        }
    }

    /// Where the checksum of a chunk of a physical extent is; `None` if there is no such chunk.
    #[must_use]
    pub fn place(&self, physical: u32, chunk: u32) -> Option<SlotPlace> {
        if physical >= self.extents || chunk >= self.chunks_per_extent {
            return None;
        }
        Some(match self.extents_per_page {
            0 => SlotPlace {
                page: u64::from(physical) * u64::from(self.pages_per_extent())
                    + u64::from(chunk / SLOTS_OF_LARGE),
                slot: chunk % SLOTS_OF_LARGE,
            },
            per_page => SlotPlace {
                page: u64::from(physical / per_page),
                slot: physical % per_page * self.chunks_per_extent + chunk,
            },
        })
    }

    /// The group of an extent. A group is the fewest extents that share no page with others: those of one page, or one
    /// extent with several. It is active as a whole.
    #[must_use]
    pub const fn group_of(&self, physical: u32) -> u32 {
        match self.extents_per_page {
            0 => physical,
            per_page => physical / per_page,
        }
    }

    /// The extents of a group.
    #[must_use]
    pub fn group_extents(&self, group: u32) -> Range<u32> {
        let count = self.extents_per_page.max(1);
        let first = group.saturating_mul(count).min(self.extents);
        first..first.saturating_add(count).min(self.extents)
    }

    /// The index of a group's first page, and how many there are.
    #[must_use]
    pub fn group_pages(&self, group: u32) -> (u64, u32) {
        match self.extents_per_page {
            0 => {
                let count = self.pages_per_extent();
                (u64::from(group) * u64::from(count), count)
            }
            _ => (u64::from(group), 1),
        }
    }

    /// The extents that have slots on a page.
    #[must_use]
    pub fn page_extents(&self, page: u64) -> Range<u32> {
        let group = match self.extents_per_page {
            0 => page / u64::from(self.pages_per_extent()),
            _ => page,
        };
        self.group_extents(u32::try_from(group).unwrap_or(u32::MAX))
    }

    /// Slots of a group.
    #[must_use]
    pub const fn group_slots(&self) -> u32 {
        match self.extents_per_page {
            0 => self.chunks_per_extent,
            per_page => per_page * self.chunks_per_extent,
        }
    }

    /// Slots of a group that are on each of its pages.
    #[must_use]
    pub const fn page_slots(&self) -> u32 {
        match self.extents_per_page {
            0 => SLOTS_OF_LARGE,
            per_page => per_page * self.chunks_per_extent,
        }
    }

    /// Which of its group's slots is that of a chunk.
    #[must_use]
    pub const fn slot_in_group(&self, physical: u32, chunk: u32) -> u32 {
        match self.extents_per_page {
            0 => chunk,
            per_page => physical % per_page * self.chunks_per_extent + chunk,
        }
    }

    const fn pages_per_extent(&self) -> u32 {
        self.chunks_per_extent / SLOTS_OF_LARGE
    }
}

/// What a slot says of a chunk with this CRC.
#[must_use]
pub const fn slot_of(crc: u32) -> u32 {
    if crc == 0 { 1 } else { crc }
}

/// What a slot says of these bytes, a chunk.
#[must_use]
pub fn slot_of_chunk(chunk: &[u8]) -> u32 {
    slot_of(crc_fast::crc32_iscsi(chunk))
}

/// What was found where a page should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Its slots are right.
    Valid,
    /// Never written, or by another pool: no slot is known.
    Absent,
    /// Ours, and damaged: no slot is known, and somebody should be told.
    Damaged,
}

/// Makes a page valid: writes its head over what is there. The slots are in place.
pub fn seal_page(page: &mut [u8; PAGE_BYTES], pool: Uuid, index: u64) {
    let mut head = Put::new(&mut page[..HEAD_BYTES]);
    head.u32(MAGIC);
    head.u32(0);
    head.bytes(pool.as_bytes());
    head.u64(index);
    let crc = crc_fast::crc32_iscsi(&page[CRC_FROM..]);
    Put::new(&mut page[4..8]).u32(crc);
}

/// What is at the place of page `index`.
#[must_use]
pub fn verify_page(page: &[u8; PAGE_BYTES], pool: Uuid, index: u64) -> PageState {
    let mut head = Fields::new(page);
    let (magic, crc) = (head.u32(), head.u32());
    let (is_ours, is_here) = (head.uuid() == Some(pool), head.u64() == Some(index));
    let is_whole = crc == Some(crc_fast::crc32_iscsi(&page[CRC_FROM..]));
    match (magic == Some(MAGIC), is_whole) {
        (true, true) if is_ours && is_here => PageState::Valid,
        // Another pool had this drive before.
        (true, true) if !is_ours => PageState::Absent,
        (true, _) => PageState::Damaged,
        (false, _) if is_ours && is_here => PageState::Damaged,
        (false, _) => PageState::Absent,
    }
}

/// The slot's value; 0 for one that is not there.
#[must_use]
pub fn slot(page: &[u8; PAGE_BYTES], slot: u32) -> u32 {
    slot_range(slot)
        .and_then(|range| Fields::new(&page[range]).u32())
        .unwrap_or(0)
}

/// Sets a slot; the page is not valid until it is sealed.
pub fn set_slot(page: &mut [u8; PAGE_BYTES], slot: u32, value: u32) {
    if let Some(range) = slot_range(slot) {
        Put::new(&mut page[range]).u32(value);
    }
}

fn slot_range(slot: u32) -> Option<Range<usize>> {
    let at = HEAD_BYTES + usize::try_from(slot).ok()?.checked_mul(4)?;
    (slot < PAGE_SLOTS).then_some(at..at + 4)
}

#[cfg(test)]
mod tests;
