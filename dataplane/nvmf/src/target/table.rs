//! A table whose positions are reused and whose keys are not.

use super::output::ConnId;

/// Names an entry; stale once the entry has gone.
pub(super) type Key = ConnId;

#[derive(Debug)]
pub(super) struct Table<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    /// Boxed: the table stays small however many entries there once were.
    value: Option<Box<T>>,
}

impl<T> Table<T> {
    pub(super) const fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: Box<T>) -> Option<Key> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.entries.len()).ok()?;
                self.entries.push(Entry {
                    generation: 0,
                    value: None,
                });
                index
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        let key = Key {
            index,
            generation: entry.generation,
        };
        entry.value = Some(value);
        Some(key)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Box<T>> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        self.free.push(key.index);
        Some(value)
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.index as usize)?;
        entry
            .value
            .as_deref()
            .filter(|_| entry.generation == key.generation)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        let current = entry.generation == key.generation;
        entry.value.as_deref_mut().filter(|_| current)
    }

    /// The key of whatever is at `index` now.
    pub(super) fn key_at(&self, index: u32) -> Option<Key> {
        let entry = self.entries.get(index as usize)?;
        entry.value.as_ref().map(|_| Key {
            index,
            generation: entry.generation,
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0..).zip(&self.entries).filter_map(|(index, entry)| {
            let value = entry.value.as_deref()?;
            Some((
                Key {
                    index,
                    generation: entry.generation,
                },
                value,
            ))
        })
    }

    /// The keys at this moment, for loops that change the table.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_key_does_not_name_the_next_entry_at_its_position() {
        let mut table = Table::new();
        let first = table.insert(Box::new(1)).expect("room");
        assert_eq!(table.remove(first).map(|value| *value), Some(1));
        let second = table.insert(Box::new(2)).expect("room");
        assert_eq!(second.index, first.index);
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&2));
        assert_eq!(table.len(), 1);
    }
}
