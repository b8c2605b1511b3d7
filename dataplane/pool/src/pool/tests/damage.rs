//! Ways in which a drive holds something else than what was written to it last.

use std::ops::Range;

use super::medium::Medium;
use super::random::Random;

/// How often another place is looked for.
const TRIES: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// One bit is another.
    Bit,
    /// The end is older than the beginning, or zero.
    Torn,
    Zeroed,
    /// The last write was lost: what was there before still is.
    Stale,
    /// It has what some other place has.
    Copied,
    /// Two places have what belongs into the other.
    Swapped,
    /// The last write went to another place.
    Misdirected,
}

pub(super) const FAULTS: [Fault; 7] = [
    Fault::Bit,
    Fault::Torn,
    Fault::Zeroed,
    Fault::Stale,
    Fault::Copied,
    Fault::Swapped,
    Fault::Misdirected,
];

/// What is to be put where.
pub(super) type Patch = Vec<(u64, Vec<u8>)>;

/// A drive that nobody uses, and what it held earlier.
pub(super) struct Drive {
    pub(super) now: Medium,
    /// The latest last.
    pub(super) before: Vec<Medium>,
}

impl Drive {
    /// What a fault does to these places; `other` is one that is as long as the first. None: it changes nothing.
    pub(super) fn damage(
        &self,
        fault: Fault,
        ranges: &[Range<u64>],
        other: Option<&Range<u64>>,
        random: &mut Random,
    ) -> Option<Patch> {
        let now: Vec<_> = ranges.iter().map(|it| self.now.bytes_at(it)).collect();
        let at = |contents: Vec<Vec<u8>>| -> Patch {
            let starts = ranges.iter().map(|range| range.start);
            starts.zip(contents).collect()
        };
        let patch = match fault {
            Fault::Bit => at(now.into_iter().map(|it| flipped(it, random)).collect()),
            Fault::Torn => {
                let older = self.older(ranges, &now, random);
                let older = older.unwrap_or_else(|| zeroes(&now));
                let both = now.into_iter().zip(older);
                at(both.map(|(now, older)| torn(now, &older, random)).collect())
            }
            Fault::Zeroed => at(zeroes(&now)),
            Fault::Stale => at(self.older(ranges, &now, random)?),
            Fault::Copied => at(vec![self.elsewhere(ranges.first()?, &now, random)?]),
            Fault::Swapped => {
                let other = other?;
                let [first] = <[_; 1]>::try_from(now).ok()?;
                let found = self.now.bytes_at(other);
                [at(vec![found]), vec![(other.start, first)]].concat()
            }
            Fault::Misdirected => {
                let (other, older) = (other?, self.older(ranges, &now, random)?);
                let [first] = <[_; 1]>::try_from(now).ok()?;
                [at(older), vec![(other.start, first)]].concat()
            }
        };
        let is_change = |(at, bytes): &(u64, Vec<u8>)| {
            let end = at + bytes.len() as u64;
            self.now.bytes_at(&(*at..end)) != *bytes
        };
        (patch.len() >= ranges.len() && patch.iter().all(is_change)).then_some(patch)
    }

    /// The drive with a patch.
    pub(super) fn patched(&self, patch: &Patch) -> Medium {
        let mut medium = self.now.clone();
        for (at, bytes) in patch {
            medium.write(*at, bytes);
        }
        medium
    }

    /// What these places held before, all of them at the same time: often the last that was different.
    fn older(
        &self,
        ranges: &[Range<u64>],
        now: &[Vec<u8>],
        random: &mut Random,
    ) -> Option<Vec<Vec<u8>>> {
        let of = |medium: &Medium| -> Vec<Vec<u8>> {
            ranges.iter().map(|it| medium.bytes_at(it)).collect()
        };
        if random.once_in(2) {
            let any = of(&self.before[random.index(self.before.len())]);
            if any != now {
                return Some(any);
            }
        }
        let mut all = self.before.iter().rev().map(of);
        all.find(|it| it != now)
    }

    /// What another place has that is as long.
    fn elsewhere(
        &self,
        range: &Range<u64>,
        now: &[Vec<u8>],
        random: &mut Random,
    ) -> Option<Vec<u8>> {
        let len = range.end - range.start;
        let step = len.min(4096);
        let mut all = (0..TRIES).map(|_| {
            let start = random.below((self.now.bytes() - len) / step) * step;
            self.now.bytes_at(&(start..start + len))
        });
        all.find(|it| *it != now[0] && it.iter().any(|byte| *byte != 0))
    }
}

fn flipped(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    let at = random.index(bytes.len());
    bytes[at] ^= 1 << random.below(8);
    bytes
}

fn torn(mut bytes: Vec<u8>, older: &[u8], random: &mut Random) -> Vec<u8> {
    // Behind the magic: else all of it is older.
    let cut = 8 * (2 + random.index(bytes.len() / 8 - 2));
    bytes[cut..].copy_from_slice(&older[cut..]);
    bytes
}

fn zeroes(now: &[Vec<u8>]) -> Vec<Vec<u8>> {
    now.iter().map(|it| vec![0; it.len()]).collect()
}
