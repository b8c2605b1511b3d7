//! The versions: one for each physical extent, and the holes.

use crate::format::record::NONE;

/// Physical extents are below, holes from here on.
const HOLES: u32 = 1 << 31;

/// The largest number of extents of a pool.
pub const EXTENTS_MAX: u32 = HOLES;

/// Words of a version. Arrays of numbers, and not a type with names, because a zeroed one costs
/// no memory before it is used.
const BORN: usize = 0;
const OLDER: usize = 1;
const BITMAP: usize = 2;
const OWNER: usize = 3;
const LOGICAL: usize = 4;
type Words = [u32; 5];

/// Where a version is: the number of its physical extent, or of a hole. So the extent is known
/// without looking further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link(u32);

impl Link {
    /// No version.
    pub(super) const NONE: Self = Self(NONE);

    pub(super) const fn to(physical: u32) -> Self {
        Self(physical)
    }

    pub(super) const fn is_none(self) -> bool {
        self.0 == NONE
    }

    pub(super) const fn is_hole(self) -> bool {
        self.0 >= HOLES && self.0 != NONE
    }

    /// Its physical extent.
    pub(super) const fn physical(self) -> Option<u32> {
        if self.0 < HOLES { Some(self.0) } else { None }
    }
}

/// All versions.
#[derive(Debug)]
pub(super) struct Versions {
    extents: Vec<Words>,
    owned: u32,
    /// Room for all is taken with the first, so that they are never moved.
    holes: Vec<Words>,
    holes_max: u32,
    holes_used: u32,
    /// The hole freed last; its `older` is the one freed before it.
    hole_free: Link,
}

impl Versions {
    pub(super) fn new(extents: u32, holes_max: u32) -> Self {
        Self {
            extents: vec![[0; 5]; extents as usize],
            owned: 0,
            holes: Vec::new(),
            holes_max,
            holes_used: 0,
            hole_free: Link::NONE,
        }
    }

    /// The number of physical extents.
    pub(super) fn extents(&self) -> u32 {
        u32::try_from(self.extents.len()).unwrap_or(EXTENTS_MAX)
    }

    /// How many physical extents are versions.
    pub(super) const fn owned(&self) -> u32 {
        self.owned
    }

    pub(super) const fn holes_used(&self) -> u32 {
        self.holes_used
    }

    pub(super) const fn holes_max(&self) -> u32 {
        self.holes_max
    }

    /// Numbers that tell every version from every other are below this.
    pub(super) fn ordinals(&self) -> u32 {
        self.extents().saturating_add(self.holes_max)
    }

    /// A number of this version among all.
    pub(super) fn ordinal(&self, link: Link) -> u32 {
        link.physical()
            .unwrap_or_else(|| self.extents().saturating_add(link.0 - HOLES))
    }

    pub(super) fn born(&self, link: Link) -> u32 {
        self.words(link)[BORN]
    }

    pub(super) fn older(&self, link: Link) -> Link {
        Link(self.words(link)[OLDER])
    }

    /// Its bitmap, or that it needs none.
    pub(super) fn bitmap(&self, link: Link) -> u32 {
        self.words(link)[BITMAP]
    }

    /// The slot of its volume and its logical extent.
    pub(super) fn owner(&self, link: Link) -> Option<(u32, u32)> {
        let words = self.words(link);
        Some((words[OWNER].checked_sub(1)?, words[LOGICAL]))
    }

    pub(super) fn set_older(&mut self, link: Link, older: Link) {
        self.words_mut(link)[OLDER] = older.0;
    }

    pub(super) fn set_bitmap(&mut self, link: Link, bitmap: u32) {
        self.words_mut(link)[BITMAP] = bitmap;
    }

    /// Makes it a version of `logical` of the volume in `slot`.
    pub(super) fn own(&mut self, link: Link, (slot, logical): (u32, u32), born: u32, older: Link) {
        let words = self.words_mut(link);
        let was_free = words[OWNER] == 0;
        words[BORN] = born;
        words[OLDER] = older.0;
        words[OWNER] = slot + 1;
        words[LOGICAL] = logical;
        if was_free && link.physical().is_some() {
            self.owned += 1;
        }
    }

    /// It is no version any more.
    pub(super) fn disown(&mut self, link: Link) {
        let was_owned = self.words(link)[OWNER] != 0;
        *self.words_mut(link) = [0; 5];
        if was_owned && link.physical().is_some() {
            self.owned -= 1;
        }
    }

    /// A hole that no extent has yet. The caller has looked whether there is room; where there
    /// was none while the journal is replayed, there will be at its end.
    pub(super) fn new_hole(&mut self) -> Link {
        self.holes_used += 1;
        let free = self.hole_free;
        if !free.is_none() {
            self.hole_free = self.older(free);
            return free;
        }
        if self.holes.capacity() == 0 {
            self.holes.reserve_exact(self.holes_max as usize);
        }
        let index = u32::try_from(self.holes.len()).unwrap_or(HOLES);
        self.holes.push([0; 5]);
        Link(HOLES + index)
    }

    /// Frees a hole.
    pub(super) fn free_hole(&mut self, hole: Link) {
        self.disown(hole);
        self.set_older(hole, self.hole_free);
        self.hole_free = hole;
        self.holes_used -= 1;
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        let words = self.extents.capacity() + self.holes.capacity();
        (words * size_of::<Words>()) as u64
    }

    fn words(&self, link: Link) -> &Words {
        if link.0 < HOLES {
            &self.extents[link.0 as usize]
        } else {
            &self.holes[(link.0 - HOLES) as usize]
        }
    }

    fn words_mut(&mut self, link: Link) -> &mut Words {
        if link.0 < HOLES {
            &mut self.extents[link.0 as usize]
        } else {
            &mut self.holes[(link.0 - HOLES) as usize]
        }
    }
}
