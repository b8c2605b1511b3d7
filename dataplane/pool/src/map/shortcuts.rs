//! Ways past the bases of clones of clones that have nothing of an extent.
//!
//! What a snapshot shows of a logical extent does not change. So a base that has no version of it that its clone sees has
//! none for ever, and where the clone found one, or the end, is where it looks from then on. Only merging and dropping
//! versions moves what is found, and only further on.

use std::cell::{Cell, OnceCell};

/// Ways that are kept, 20 bytes each; made with the first clone of a clone of a clone that is read.
const COUNT: u32 = 1 << 16;

/// Where the bases of a volume have a logical extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shortcut {
    /// The volume it is for. No volume has the number 0.
    number: u32,
    logical: u32,
    /// Volume and snapshot where to look.
    pub(super) base: (u32, u32),
    /// The end of the chunks that the bases on the way there had.
    pub(super) chunks_end: u32,
}

/// Those found last.
#[derive(Debug, Default)]
pub(super) struct Shortcuts {
    table: OnceCell<Box<[Cell<Shortcut>]>>,
    /// Bases looked at.
    #[cfg(test)]
    pub(super) steps: Cell<u64>,
}

impl Shortcuts {
    /// Where to look for an extent of a clone, if that was found before.
    pub(super) fn find(&self, number: u32, logical: u32) -> Option<Shortcut> {
        let table = self.table.get()?;
        let found = table.get(place(number, logical))?.get();
        (found.number == number && found.logical == logical).then_some(found)
    }

    /// Keeps where an extent of a clone was found, perhaps in the place of another.
    pub(super) fn keep(&self, number: u32, logical: u32, base: (u32, u32), chunks_end: u32) {
        let empty = || vec![Cell::new(Shortcut::default()); COUNT as usize].into();
        let table = self.table.get_or_init(empty);
        if let Some(entry) = table.get(place(number, logical)) {
            entry.set(Shortcut {
                number,
                logical,
                base,
                chunks_end,
            });
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.table.take();
    }

    /// A base is looked at.
    #[cfg(test)]
    pub(super) fn count_step(&self) {
        self.steps.set(self.steps.get() + 1);
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        let table = self.table.get();
        table.map_or(0, |table| size_of_val(&**table) as u64)
    }
}

/// Extents of one volume that follow each other have places that follow each other.
const fn place(number: u32, logical: u32) -> usize {
    (number.wrapping_mul(0x9E37_79B1).wrapping_add(logical) % COUNT) as usize
}
