//! Sequences, and where they are in the ring.

use std::ops::Range;

/// A sector of the journal.
pub const SECTOR_BYTES: usize = 512;

/// The most sectors of a group, where the ring is not small.
const GROUP_SECTORS_MAX: u64 = 256;

/// The ring: how many sectors it has, and where groups may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    sectors: u64,
    block_sectors: u64,
}

impl Ring {
    /// Of a journal of `bytes` on a drive with such blocks.
    #[must_use]
    pub fn new(bytes: u64, block_bytes: u32) -> Self {
        let sectors = bytes >> 9;
        Self {
            sectors: sectors.max(4),
            block_sectors: u64::from(block_bytes >> 9).max(1),
        }
    }

    /// How many sectors it has.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        self.sectors
    }

    /// Sectors of a block; a group is a multiple of it.
    #[must_use]
    pub const fn block_sectors(self) -> u64 {
        self.block_sectors
    }

    /// The sequence of the first sector that is ever written: the start of the ring.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.sectors
    }

    /// The most sectors of a group: a quarter of the ring, so that the journal is never full of a
    /// single one.
    #[must_use]
    pub const fn group_sectors_max(self) -> u64 {
        let quarter = self.sectors / 4;
        let most = if quarter < GROUP_SECTORS_MAX {
            quarter
        } else {
            GROUP_SECTORS_MAX
        };
        let whole = most / self.block_sectors * self.block_sectors;
        if whole == 0 {
            self.block_sectors
        } else {
            whole
        }
    }

    /// Where in the ring `count` sectors are, the one with `sequence` first: one piece, or the start of the ring and its end.
    #[must_use]
    pub fn places(self, sequence: u64, count: u64) -> [Range<u64>; 2] {
        let start = self.position(sequence);
        let end = start + count.min(self.sectors);
        [
            0..end.saturating_sub(self.sectors),
            start..end.min(self.sectors),
        ]
    }

    /// Where in the ring a sector is, counted in sectors.
    #[must_use]
    pub const fn position(self, sequence: u64) -> u64 {
        sequence % self.sectors
    }

    /// Where in the journal's area a sector is, in bytes.
    #[must_use]
    pub const fn offset(self, sequence: u64) -> u64 {
        self.position(sequence) * 512
    }

    /// The sequence of the first sector of the next group, if sectors before `sequence` are taken:
    /// at a multiple of the block, and at the start of the ring where the longest group would not
    /// fit before its end any more. So a group is one piece on the drive.
    #[must_use]
    pub fn next_start(self, sequence: u64) -> u64 {
        let aligned = sequence
            .checked_next_multiple_of(self.block_sectors)
            .unwrap_or(u64::MAX);
        if self.position(aligned) + self.group_sectors_max() <= self.sectors {
            return aligned;
        }
        aligned
            .checked_next_multiple_of(self.sectors)
            .unwrap_or(u64::MAX)
    }

    /// Whether a group of `sectors` from `start` on leaves what is to be replayed as it is.
    #[must_use]
    pub const fn has_room(self, replay_from: u64, start: u64, sectors: u64) -> bool {
        start.saturating_add(sectors) <= replay_from.saturating_add(self.sectors)
    }

    /// How many sectors are taken, if the next group begins at `next`.
    #[must_use]
    pub const fn used(self, replay_from: u64, next: u64) -> u64 {
        next.saturating_sub(replay_from)
    }
}
