//! A table with generation-tagged keys, so that a stale key finds nothing.

/// Bits of a generation; it shares the ring's 64-bit user data with a kind and an index.
const GENERATION_BITS: u32 = 24;

const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// Names one entry for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) index: u32,
    /// 24 bits.
    pub(crate) generation: u32,
}

/// What an event or a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody waits for it.
    Ignore,
    /// The eventfd of the mailbox and the wakers.
    Wake,
    /// A listener is readable.
    Accept,
    /// A socket is readable, or connected.
    Socket,
    /// A gather was sent.
    Send,
    /// A drive request completed.
    Disk,
}

/// Kind and key in 64 bits: kind 63:56, generation 55:32, index 31:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
}

impl Token {
    pub(crate) const IGNORE: Self = Self {
        kind: Kind::Ignore,
        key: Key {
            index: 0,
            generation: 0,
        },
    };
    pub(crate) const WAKE: Self = Self {
        kind: Kind::Wake,
        key: Key {
            index: 0,
            generation: 0,
        },
    };

    pub(crate) const fn new(kind: Kind, key: Key) -> Self {
        Self { kind, key }
    }

    pub(crate) const fn encode(self) -> u64 {
        let kind: u64 = match self.kind {
            Kind::Ignore => 0,
            Kind::Wake => 1,
            Kind::Accept => 2,
            Kind::Socket => 3,
            Kind::Send => 4,
            Kind::Disk => 5,
        };
        let generation = (self.key.generation & GENERATION_MASK) as u64;
        kind << 56 | generation << 32 | self.key.index as u64
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "splits a word into its fields"
    )]
    pub(crate) const fn decode(word: u64) -> Self {
        let kind = match word >> 56 {
            1 => Kind::Wake,
            2 => Kind::Accept,
            3 => Kind::Socket,
            4 => Kind::Send,
            5 => Kind::Disk,
            _ => Kind::Ignore,
        };
        let generation = (word >> 32) as u32 & GENERATION_MASK;
        Self {
            kind,
            key: Key {
                index: word as u32,
                generation,
            },
        }
    }
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by [`Key`]. Entries are reused, generations tell their tenants apart.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Stores `value`. Callers are bounded by descriptors, far below 2^32.
    pub(crate) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.value = Some(value);
            return Key {
                index,
                generation: entry.generation,
            };
        }
        let index = u32::try_from(self.entries.len()).expect("fewer than 2^32 entries");
        self.entries.push(Entry {
            generation: 0,
            value: Some(value),
        });
        Key {
            index,
            generation: 0,
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation == key.generation {
            entry.value.as_ref()
        } else {
            None
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation == key.generation {
            entry.value.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        self.free.push(key.index);
        Some(value)
    }

    /// Live entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Keys of all live entries.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let live = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.value.is_some());
        live.filter_map(|(index, entry)| {
            Some(Key {
                index: u32::try_from(index).ok()?,
                generation: entry.generation,
            })
        })
        .collect()
    }

    /// All live entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| entry.value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_key_finds_nothing_after_reuse() {
        let mut slab = Slab::new();
        let old = slab.insert('a');
        assert_eq!(slab.remove(old), Some('a'));
        let new = slab.insert('b');
        assert_eq!(new.index, old.index);
        assert_eq!(slab.get(old), None);
        assert_eq!(slab.get_mut(old), None);
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.get(new), Some(&'b'));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn generation_wraps_within_its_bits() {
        let mut slab = Slab::new();
        let key = slab.insert(());
        slab.entries[0].generation = GENERATION_MASK;
        assert_eq!(
            slab.remove(Key {
                index: key.index,
                generation: GENERATION_MASK
            }),
            Some(())
        );
        assert_eq!(slab.insert(()).generation, 0);
    }

    #[test]
    fn token_round_trips_through_user_data() {
        let kinds = [
            Kind::Ignore,
            Kind::Wake,
            Kind::Accept,
            Kind::Socket,
            Kind::Send,
            Kind::Disk,
        ];
        for kind in kinds {
            for key in [
                Key {
                    index: 0,
                    generation: 0,
                },
                Key {
                    index: u32::MAX,
                    generation: GENERATION_MASK,
                },
                Key {
                    index: 7,
                    generation: 0x00AB_CDEF,
                },
            ] {
                let token = Token::new(kind, key);
                assert_eq!(Token::decode(token.encode()), token);
            }
        }
    }

    #[test]
    fn unknown_kind_is_ignored() {
        assert_eq!(Token::decode(u64::MAX).kind, Kind::Ignore);
    }
}
