//! A set of small numbers, with the next member at or after any number in a few steps.

use std::ops::Range;

const WORD_BITS: u32 = u64::BITS;

/// One bit a number, and above it one bit a word that is not empty, twice.
#[derive(Debug)]
pub(super) struct BitSet {
    /// Every member is below.
    end: u32,
    count: u32,
    /// The members, and above them which words of the level below are not empty.
    levels: [Vec<u64>; 3],
}

impl BitSet {
    /// An empty set of numbers below `end`.
    pub(super) fn new(end: u32) -> Self {
        let words = |bits: usize| bits.div_ceil(WORD_BITS as usize);
        let members = words(end as usize);
        let summary = words(members);
        Self {
            end,
            count: 0,
            levels: [vec![0; members], vec![0; summary], vec![0; words(summary)]],
        }
    }

    /// The number of members.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// Whether `number` is a member.
    pub(super) fn contains(&self, number: u32) -> bool {
        self.levels[0]
            .get((number / WORD_BITS) as usize)
            .is_some_and(|word| word & bit(number) != 0)
    }

    /// Adds `number`, which is below the end; whether it was not there.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        let is_new = !self.contains(number);
        if is_new {
            self.count += 1;
            let mut index = number;
            for level in &mut self.levels {
                level[(index / WORD_BITS) as usize] |= bit(index);
                index /= WORD_BITS;
            }
        }
        is_new
    }

    /// Takes `number` out; whether it was there.
    pub(super) fn remove(&mut self, number: u32) -> bool {
        let was_there = self.contains(number);
        if was_there {
            self.count -= 1;
            let mut index = number;
            for level in &mut self.levels {
                let word = &mut level[(index / WORD_BITS) as usize];
                *word &= !bit(index);
                if *word != 0 {
                    break;
                }
                index /= WORD_BITS;
            }
        }
        was_there
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        self.count = 0;
        for level in &mut self.levels {
            level.fill(0);
        }
    }

    /// The first member from `from` on.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        self.next_in(0, from)
    }

    /// The first member from `near` on or, if there is none, the first of all.
    pub(super) fn nearest(&self, near: u32) -> Option<u32> {
        self.next(near).or_else(|| self.next(0))
    }

    /// Members one after another from `first` on, which is one; at most `count_max`.
    pub(super) fn run(&self, first: u32, count_max: u32) -> Range<u32> {
        let limit = first.saturating_add(count_max).min(self.end);
        let mut end = first;
        while end < limit {
            let word = self.levels[0][(end / WORD_BITS) as usize];
            let ones = (word >> (end % WORD_BITS)).trailing_ones();
            end += ones;
            if ones == 0 || !end.is_multiple_of(WORD_BITS) {
                break;
            }
        }
        first..end.min(limit)
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.levels
            .iter()
            .map(|level| 8 * level.capacity() as u64)
            .sum()
    }

    /// The first bit that is set in `level` from `from` on.
    fn next_in(&self, level: usize, from: u32) -> Option<u32> {
        let words = self.levels.get(level)?;
        let index = from / WORD_BITS;
        let here = words.get(index as usize)? & (u64::MAX << (from % WORD_BITS));
        if here != 0 {
            return Some(index * WORD_BITS + here.trailing_zeros());
        }
        let index = if level + 1 < self.levels.len() {
            self.next_in(level + 1, index + 1)?
        } else {
            let later = words.get(index as usize + 1..)?;
            let skipped = later.iter().position(|word| *word != 0)?;
            index + 1 + u32::try_from(skipped).ok()?
        };
        let word = words[index as usize];
        Some(index * WORD_BITS + word.trailing_zeros())
    }
}

const fn bit(number: u32) -> u64 {
    1 << (number % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_with_an_order(
            end in 1u32..20_000,
            changes in prop::collection::vec((any::<bool>(), any::<u32>()), 0..300),
            asked in prop::collection::vec(any::<u32>(), 0..50),
        ) {
            let mut set = BitSet::new(end);
            let mut model = BTreeSet::new();
            for (adds, number) in changes {
                // Half of them close together, so that there are runs.
                let number = if number & 1 == 0 { number % end } else { number % end.min(100) };
                if adds {
                    prop_assert_eq!(set.insert(number), model.insert(number));
                } else {
                    prop_assert_eq!(set.remove(number), model.remove(&number));
                }
                prop_assert_eq!(set.count() as usize, model.len());
            }
            for from in asked {
                let from = from % (end + 70);
                prop_assert_eq!(set.contains(from), model.contains(&from));
                let next = model.range(from..).next().copied();
                prop_assert_eq!(set.next(from), next);
                prop_assert_eq!(set.nearest(from), next.or(model.first().copied()));
                if let Some(first) = next {
                    let count = (first..).take_while(|n| model.contains(n)).count();
                    let run = set.run(first, 40);
                    prop_assert_eq!(run.end - run.start, u32::try_from(count.min(40)).unwrap());
                }
            }
            set.clear();
            prop_assert_eq!(set.next(0), None);
        }
    }

    #[test]
    fn a_run_crosses_words_and_ends_with_the_set() {
        let mut set = BitSet::new(130);
        (60..130).for_each(|number| assert!(set.insert(number)));
        assert_eq!(set.run(60, u32::MAX), 60..130);
        assert_eq!(set.run(64, 64), 64..128);
    }
}
