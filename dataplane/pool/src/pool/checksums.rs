//! Checksums of the volumes that have them: kept by every write, compared by reads.
//!
//! The slots of a group of extents are in memory as long as somebody needs them ([`cache`]). A group is *active* from the
//! moment when its slots on the drive may be out of date until they were written again ([`activity`]); after a crash
//! nothing is known of active groups. Whoever writes claims the chunks first ([`write`](mod@write)); whoever reads
//! compares at the end and, where something is different, looks again before it says so ([`read`]).
//!
//! Slots mean something only for extents that a volume with checksums has. What they were before is forgotten when such
//! a volume gets an extent.

use std::collections::VecDeque;
use std::io;

use bowline_block::{BufPool, ClassConfig, Device, PoolConfig};
use bowline_nvme::Nanos;

use super::engine::Engine;
use super::slab::Slab;
use crate::format::layout::Layout;
use crate::format::pages::{PAGE_BYTES, SlotMap, slot_of_chunk};
use crate::format::record::Checksums;
use crate::map::Slot;

mod activity;
mod cache;
mod read;
mod scrub;
mod write;

use cache::Cache;

pub(super) use activity::Step;
pub use read::Mismatch;
pub use scrub::{ScrubOptions, ScrubReport, ScrubState};
pub(super) use write::{Copied, Home};

/// Memory for pages that are read or written just now, taken from the system where it is touched.
const PAGE_BUFFER_BYTES: usize = 1 << 20;

/// Who goes on when checksums are there, or when there is room for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    Piece(u32),
    /// What was read waits to be compared.
    Check(u32),
    /// The collector.
    Copy,
    Scrub,
}

/// What has become of checksums since the pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChecksumCounts {
    /// Chunks that were read and are what was written.
    pub verified: u64,
    /// Chunks that were read and whose checksum is not known.
    pub unverified: u64,
    /// Chunks that were read and are not what was written.
    pub mismatches: u64,
    /// Pages of checksums that were damaged or could not be read or written.
    pub pages_lost: u64,
    /// Pages that were read.
    pub pages_read: u64,
    /// Pages that were written.
    pub pages_written: u64,
}

/// Buffers for as many pages of groups as are on their way at once.
pub(super) fn page_buffers(layout: &Layout) -> io::Result<BufPool> {
    let (_, pages) = layout.slots().group_pages(0);
    let bytes = PAGE_BYTES * pages as usize;
    let count = PAGE_BUFFER_BYTES / bytes;
    BufPool::new(PoolConfig {
        classes: vec![ClassConfig { bytes, count }],
    })
}

/// Checksums of a pool.
pub(super) struct Sums {
    map: SlotMap,
    /// Where the pages are.
    offset: u64,
    cache: Cache,
    /// For pages alone: who has read something keeps it until it was compared, and may need a page for that.
    buffers: BufPool,
    checks: Slab<read::Check>,
    claims: Slab<write::Claim>,
    /// Those who need a group for which there is no room.
    roomless: VecDeque<Waiting>,
    saving: Option<activity::Saving>,
    /// When it is looked next for groups that nobody writes to any more.
    next_look: Nanos,
    scrub: Option<scrub::Scrub>,
    /// The slot of a chunk that is zero.
    zero: u32,
    pub(super) counts: ChecksumCounts,
    /// Mismatches and lost pages told since `told_from`.
    told: u32,
    told_from: Nanos,
}

impl Sums {
    pub(super) fn new(layout: &Layout, cache_bytes: usize, buffers: BufPool) -> Self {
        let map = layout.slots();
        Self {
            map,
            offset: layout.checksums.offset,
            cache: Cache::new(&map, cache_bytes),
            buffers,
            checks: Slab::new(),
            claims: Slab::new(),
            roomless: VecDeque::new(),
            saving: None,
            next_look: Nanos::ZERO,
            scrub: None,
            zero: slot_of_chunk(&[0; 4096]),
            counts: ChecksumCounts::default(),
            told: 0,
            told_from: Nanos::ZERO,
        }
    }

    /// The extents of a group.
    pub(super) fn extents(&self, group: u32) -> std::ops::Range<u32> {
        self.map.group_extents(group)
    }

    /// Nothing is under way. When the pool is being closed, everything is on the drive besides.
    pub(super) fn is_idle(&self, is_closing: bool) -> bool {
        self.saving.is_none()
            && self.roomless.is_empty()
            && self.claims.len() == 0
            && self.checks.len() == 0
            && !(is_closing && self.cache.dirty > 0)
    }
}

impl<D: Device> Engine<D> {
    /// What is done with a volume's checksums.
    pub(super) fn checksums_of(&self, slot: Slot) -> Checksums {
        let volume = self.state.volume(slot);
        volume.map_or(Checksums::Off, |volume| volume.checksums)
    }

    /// Whether the volume's writes keep checksums.
    pub(super) fn has_sums(&self, slot: Slot) -> bool {
        self.checksums_of(slot) != Checksums::Off
    }

    /// Whether the slots of an extent mean something: the volume that it belongs to keeps them.
    pub(super) fn keeps_sums(&self, physical: u32) -> bool {
        let owner = self.state.owner(physical);
        let slot = owner.and_then(|(volume, ..)| self.state.slot(volume));
        slot.is_some_and(|slot| self.has_sums(slot))
    }

    /// Goes on with what has waited.
    fn resume(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Piece(piece) => self.resume_piece(piece),
            Waiting::Check(check) => self.resume_check(check),
            Waiting::Copy => self.copy_graced(),
            Waiting::Scrub => self.resume_scrub(),
        }
    }

    fn resume_all(&mut self, waiting: Vec<Waiting>) {
        for waiting in waiting {
            self.resume(waiting);
        }
    }

    /// Tries again what had no room.
    pub(super) fn retry_roomless(&mut self) {
        for _ in 0..self.sums.roomless.len() {
            let Some(waiting) = self.sums.roomless.pop_front() else {
                return;
            };
            self.resume(waiting);
        }
    }
}
