//! Physical extents that no version has.

use std::ops::Range;

use super::bit_set::BitSet;

/// What the extents are in that no version has. One that is in none of the sets and has no owner
/// was taken by the engine, which does something with it.
#[derive(Debug)]
pub(super) struct Allocator {
    /// All zero, and durably said to be.
    pub(super) clean: BitSet,
    /// Of unknown content.
    pub(super) unclean: BitSet,
    /// All zero, but not said to be any more: may be written to.
    pub(super) reserved: BitSet,
    /// Freed, and maybe read still.
    pub(super) quarantined: BitSet,
    /// Those of the quarantined that the engine was not told of yet.
    pub(super) untold: BitSet,
    /// Until the state is recovered only `clean` counts.
    is_recovering: bool,
}

/// Numbers of physical extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentCounts {
    /// All of the pool.
    pub all: u32,
    /// Of versions.
    pub used: u32,
    /// All zero, and durably said to be.
    pub clean: u32,
    /// Free, of unknown content.
    pub unclean: u32,
    /// All zero, and may be written to.
    pub reserved: u32,
    /// Freed, and maybe read still.
    pub quarantined: u32,
    /// Taken by the engine.
    pub taken: u32,
    /// Of those that are not used, how many thick volumes still have a right to.
    pub promised: u32,
}

impl ExtentCounts {
    /// How many thin volumes may still get.
    #[must_use]
    pub const fn available(&self) -> u32 {
        (self.all - self.used).saturating_sub(self.promised)
    }
}

impl Allocator {
    pub(super) fn new(extents: u32) -> Self {
        Self {
            clean: BitSet::new(extents),
            unclean: BitSet::new(extents),
            reserved: BitSet::new(extents),
            quarantined: BitSet::new(extents),
            untold: BitSet::new(extents),
            is_recovering: true,
        }
    }

    /// A version has it from now on; whether it was believed to be clean.
    pub(super) fn own(&mut self, physical: u32) -> bool {
        let was_clean = self.clean.remove(physical);
        if !self.is_recovering {
            self.unclean.remove(physical);
            self.reserved.remove(physical);
            self.quarantined.remove(physical);
            self.untold.remove(physical);
        }
        was_clean
    }

    /// No version has it any more.
    pub(super) fn free(&mut self, physical: u32) {
        if !self.is_recovering {
            self.quarantined.insert(physical);
            self.untold.insert(physical);
        }
    }

    /// It is clean.
    pub(super) fn set_clean(&mut self, physical: u32) {
        self.unclean.remove(physical);
        self.reserved.remove(physical);
        self.clean.insert(physical);
    }

    /// Something may be written to it.
    pub(super) fn reserve(&mut self, physical: u32) {
        if self.clean.remove(physical) && !self.is_recovering {
            self.reserved.insert(physical);
        }
    }

    /// The journal is replayed: what nobody has and is not clean is unclean.
    pub(super) fn recovered(&mut self, extents: u32, is_used: impl Fn(u32) -> bool) {
        self.is_recovering = false;
        for physical in 0..extents {
            if !is_used(physical) && !self.clean.contains(physical) {
                self.unclean.insert(physical);
            }
        }
    }

    /// Takes one out that is all zero and may be written to, at best the first from `near` on.
    pub(super) fn take_reserved(&mut self, near: u32) -> Option<u32> {
        let physical = self.reserved.nearest(near)?;
        self.reserved.remove(physical);
        Some(physical)
    }

    /// Takes unclean ones out that follow each other.
    pub(super) fn take_unclean(&mut self, near: u32, count_max: u32) -> Option<Range<u32>> {
        let first = self.unclean.nearest(near)?;
        let run = self.unclean.run(first, count_max);
        for physical in run.clone() {
            self.unclean.remove(physical);
        }
        Some(run)
    }

    /// Clean ones that follow each other; they stay what they are.
    pub(super) fn clean_run(&self, near: u32, count_max: u32) -> Option<Range<u32>> {
        let first = self.clean.nearest(near)?;
        Some(self.clean.run(first, count_max))
    }

    /// One that was freed since this was asked last.
    pub(super) fn next_freed(&mut self) -> Option<u32> {
        let physical = self.untold.next(0)?;
        self.untold.remove(physical);
        Some(physical)
    }

    /// Nobody reads it any more. One that got an owner meanwhile stays.
    pub(super) fn release(&mut self, physical: u32) {
        if !self.untold.contains(physical) && self.quarantined.remove(physical) {
            self.unclean.insert(physical);
        }
    }

    /// Whether it is in one of the sets.
    pub(super) fn has(&self, physical: u32) -> bool {
        [
            &self.clean,
            &self.unclean,
            &self.reserved,
            &self.quarantined,
        ]
        .iter()
        .any(|set| set.contains(physical))
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        [
            &self.clean,
            &self.unclean,
            &self.reserved,
            &self.quarantined,
            &self.untold,
        ]
        .iter()
        .map(|set| set.memory_bytes())
        .sum()
    }
}
