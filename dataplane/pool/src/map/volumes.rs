//! All volumes, by number and by slot.

use std::collections::BTreeMap;

use super::volume::Volume;

/// Where a volume is in the tables: finds it without a search, for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub(super) index: u32,
    pub(super) number: u32,
}

impl Slot {
    /// The number of the volume.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.number
    }
}

/// The volumes.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    slots: Vec<Option<Box<Volume>>>,
    free: Vec<u32>,
    by_number: BTreeMap<u32, u32>,
    /// How many clones a snapshot has: of those that have any.
    clones: BTreeMap<(u32, u32), u32>,
}

impl Volumes {
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.by_number.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn index(&self, number: u32) -> Option<u32> {
        self.by_number.get(&number).copied()
    }

    pub(super) fn at(&self, index: u32) -> Option<&Volume> {
        self.slots.get(index as usize)?.as_deref()
    }

    pub(super) fn at_mut(&mut self, index: u32) -> Option<&mut Volume> {
        self.slots.get_mut(index as usize)?.as_deref_mut()
    }

    /// In the order of their numbers, from a number on.
    pub(super) fn from(&self, number: u32) -> impl Iterator<Item = (u32, &Volume)> {
        self.by_number
            .range(number..)
            .filter_map(|(_, index)| Some((*index, self.at(*index)?)))
    }

    /// Adds one; its slot.
    pub(super) fn insert(&mut self, volume: Volume) -> u32 {
        let (number, base) = (volume.number, volume.base);
        self.count_clone(base, true);
        let index = if let Some(index) = self.free.pop() {
            index
        } else {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        };
        self.slots[index as usize] = Some(Box::new(volume));
        self.by_number.insert(number, index);
        index
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, index: u32) -> Option<Box<Volume>> {
        let volume = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        self.by_number.remove(&volume.number);
        self.count_clone(volume.base, false);
        Some(volume)
    }

    /// A volume's base is another one from now on.
    pub(super) fn rebase(&mut self, from: Option<(u32, u32)>, to: Option<(u32, u32)>) {
        if from != to {
            self.count_clone(from, false);
            self.count_clone(to, true);
        }
    }

    /// How many clones a snapshot has.
    pub(super) fn clones(&self, volume: u32, snapshot: u32) -> u32 {
        self.clones.get(&(volume, snapshot)).copied().unwrap_or(0)
    }

    /// The first snapshot of a volume with a clone.
    pub(super) fn cloned_snapshot(&self, volume: u32) -> Option<u32> {
        let mut range = self.clones.range((volume, 0)..=(volume, u32::MAX));
        range.next().map(|((_, snapshot), _)| *snapshot)
    }

    /// Bytes of memory, with the volumes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let tables = 8 * self.slots.capacity()
            + 4 * self.free.capacity()
            + 12 * self.by_number.len()
            + 18 * self.clones.len();
        let volumes: u64 = self
            .slots
            .iter()
            .flatten()
            .map(|volume| volume.memory_bytes())
            .sum();
        tables as u64 + volumes
    }

    fn count_clone(&mut self, base: Option<(u32, u32)>, is_new: bool) {
        let Some(base) = base else { return };
        let count = self.clones.entry(base).or_default();
        if is_new {
            *count += 1;
        } else {
            *count = count.saturating_sub(1);
        }
        if *count == 0 {
            self.clones.remove(&base);
        }
    }
}
