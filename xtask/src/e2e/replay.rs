//! Drives as power cuts leave them, out of the log of what the drive was told.
//!
//! What lies before a flush is there. Of what came after the last flush each write may be there, or
//! in part, or not at all, in any combination; one with Force Unit Access is there. A sector is never
//! torn.

use anyhow::{Context, Result, ensure};

use super::write_log::{Change, Entry, WriteLog};

/// What a drive writes as one.
const SECTOR_BYTES: u64 = 512;

/// A part of the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

impl Region {
    /// So many bytes behind byte `at`.
    pub(crate) const fn after(at: u64, bytes: u64) -> Self {
        Self { at, bytes }
    }

    fn has(self, at: u64, bytes: u64) -> bool {
        at >= self.at && at + bytes <= self.at + self.bytes
    }
}

/// When the power goes, and what becomes of what no flush has covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Number of the log's entries before it.
    pub(crate) entries: usize,
    pub(crate) unflushed: Unflushed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unflushed {
    Lost,
    Kept,
    /// Some, and some in part, by this seed.
    Some(u64),
}

/// A region of the drive, cut after cut; each cut is later than the one before.
pub(crate) struct Replay<'a> {
    log: &'a WriteLog,
    region: Region,
    /// With everything that is certain, up to the entry `next`.
    certain: Vec<u8>,
    next: usize,
}

impl<'a> Replay<'a> {
    /// The drive was all zeroes before.
    pub(crate) fn new(log: &'a WriteLog, region: Region) -> Result<Self> {
        Ok(Self {
            log,
            region,
            certain: vec![0; usize::try_from(region.bytes)?],
            next: 0,
        })
    }

    /// The region after this cut.
    pub(crate) fn at(&mut self, cut: Cut) -> Result<Vec<u8>> {
        let before = self.log.entries.get(..cut.entries);
        let before = before.context("the cut is beyond the log's end")?;
        let last_flush = before.iter().rposition(|entry| entry.is_flush);
        let flushed = last_flush.map_or(0, |index| index + 1);
        ensure!(flushed >= self.next, "cuts go forwards");
        for entry in &before[self.next..flushed] {
            let all = |_| true;
            apply(self.log, self.region, &mut self.certain, entry.change, all)?;
        }
        self.next = flushed;
        let mut image = self.certain.clone();
        let mut random = Random(match cut.unflushed {
            Unflushed::Some(seed) => seed,
            Unflushed::Lost | Unflushed::Kept => 0,
        });
        for entry in &before[flushed..] {
            let fate = random.fate(entry, cut.unflushed);
            let is_there = |_| match fate {
                Fate::There => true,
                Fate::Lost => false,
                Fate::Torn => random.next().is_multiple_of(2),
            };
            apply(self.log, self.region, &mut image, entry.change, is_there)?;
        }
        Ok(image)
    }
}

/// The data of every write to a region that lies before entry `entries`, in order. For a region whose
/// writes say what a host knows, and not what the drive has.
pub(crate) fn written(log: &WriteLog, region: Region, entries: usize) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    for entry in log.entries.iter().take(entries) {
        if let Change::Write {
            at,
            bytes,
            data: place,
        } = entry.change
            && region.has(at, bytes)
        {
            data.extend(log.data(place, bytes)?);
        }
    }
    Ok(data)
}

/// About `count` cuts of the part of the log in which a region was written to, in order: by turns
/// before a flush with nothing or something of what it is to cover, somewhere between two, and right
/// behind one. The flushes are chosen by the seed if there are too many.
pub(crate) fn cuts(log: &WriteLog, region: Region, count: usize, seed: u64) -> Vec<Cut> {
    let is_in = |entry: &Entry| match entry.change {
        Change::Write { at, bytes, .. } => region.has(at, bytes),
        Change::None | Change::Discard { .. } => false,
    };
    let first = log.entries.iter().position(is_in).unwrap_or(0);
    let last = log.entries.iter().rposition(is_in).unwrap_or(0);
    let entries = log.entries.iter().enumerate();
    let flushes = entries.filter(|(index, entry)| entry.is_flush && (first..=last).contains(index));
    let flushes: Vec<usize> = flushes.map(|(index, _)| index).collect();
    let mut random = Random(seed);
    let wanted = count.div_ceil(4);
    let mut cuts = Vec::new();
    for (index, pair) in flushes.windows(2).enumerate() {
        let left = flushes.len() - 1 - index;
        let missing = wanted.saturating_sub(cuts.len() / 4);
        if random.below(left) >= missing {
            continue;
        }
        let (flush, next) = (pair[0], pair[1]);
        let between = flush + 1 + random.below(next - flush);
        let cut = |entries, unflushed| Cut { entries, unflushed };
        cuts.push(cut(between, Unflushed::Some(random.next())));
        cuts.push(cut(next, Unflushed::Lost));
        cuts.push(cut(next, Unflushed::Some(random.next())));
        cuts.push(cut(next + 1, Unflushed::Kept));
    }
    cuts
}

enum Fate {
    There,
    Lost,
    Torn,
}

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which is above 0.
    fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next()) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    fn fate(&mut self, entry: &Entry, unflushed: Unflushed) -> Fate {
        match unflushed {
            _ if entry.is_fua => Fate::There,
            Unflushed::Lost => Fate::Lost,
            Unflushed::Kept => Fate::There,
            Unflushed::Some(_) => match self.next() % 5 {
                0 | 1 => Fate::There,
                2 | 3 => Fate::Lost,
                _ => Fate::Torn,
            },
        }
    }
}

/// Makes the change to those of its sectors in the region that `is_there` says.
fn apply(
    log: &WriteLog,
    region: Region,
    image: &mut [u8],
    change: Change,
    mut is_there: impl FnMut(u64) -> bool,
) -> Result<()> {
    let (at, bytes, data) = match change {
        Change::None => return Ok(()),
        Change::Write { at, bytes, data } => (at, bytes, Some(log.data(data, bytes)?)),
        // As the emulator's medium has it.
        Change::Discard { at, bytes } => (at, bytes, None),
    };
    for offset in (0..bytes).step_by(usize::try_from(SECTOR_BYTES)?) {
        let place = (at + offset).checked_sub(region.at);
        let Some(place) = place.filter(|place| *place < region.bytes) else {
            continue;
        };
        if is_there(place) {
            let range = |from: u64| -> Result<std::ops::Range<usize>> {
                let from = usize::try_from(from)?;
                Ok(from..from + usize::try_from(SECTOR_BYTES)?)
            };
            let sector = &mut image[range(place)?];
            match &data {
                Some(data) => sector.copy_from_slice(&data[range(offset)?]),
                None => sector.fill(0),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::write_log::tests::{DISCARDS, FLUSHES, PLAIN, Request, WITH_FUA, log_of};
    use super::*;

    /// Sectors 2 to 5 of the drive.
    const REGION: Region = Region {
        at: 1024,
        bytes: 2048,
    };

    fn sectors(requests: &[Request], cuts: &[Cut]) -> Vec<[u8; 4]> {
        let file = log_of(requests);
        let log = WriteLog::open(file.path()).unwrap();
        let mut replay = Replay::new(&log, REGION).unwrap();
        let image = |cut: &Cut| replay.at(*cut).unwrap();
        let images: Vec<_> = cuts.iter().map(image).collect();
        let first_bytes = |image: &Vec<u8>| {
            let sectors: Vec<_> = image.chunks(512).collect();
            for sector in &sectors {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "torn");
            }
            std::array::from_fn(|index| sectors[index][0])
        };
        images.iter().map(first_bytes).collect()
    }

    fn cut(entries: usize, unflushed: Unflushed) -> Cut {
        Cut { entries, unflushed }
    }

    #[test]
    fn what_was_flushed_is_there_and_the_rest_as_the_cut_says() {
        let requests = [
            (PLAIN, 0, 4, Some(1)),
            (FLUSHES, 0, 0, None),
            (PLAIN, 3, 2, Some(2)),
            (WITH_FUA, 5, 9, Some(3)),
            (DISCARDS, 2, 1, None),
            (FLUSHES, 0, 0, None),
        ];
        use Unflushed::{Kept, Lost};
        let cuts = [
            cut(1, Lost),
            cut(1, Kept),
            cut(2, Lost),
            cut(5, Lost),
            cut(5, Kept),
            cut(6, Lost),
        ];
        assert_eq!(
            sectors(&requests, &cuts),
            [
                [0, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 0, 3],
                [0, 2, 2, 3],
                [0, 2, 2, 3],
            ]
        );
    }

    #[test]
    fn a_seed_loses_some_writes_and_tears_others() {
        let requests = [(PLAIN, 2, 1, Some(1)), (PLAIN, 3, 3, Some(2))];
        let cuts: Vec<_> = (0..1000)
            .map(|seed| cut(2, Unflushed::Some(seed)))
            .collect();
        let mut found = sectors(&requests, &cuts);
        found.sort_unstable();
        found.dedup();
        // Each sector is there or not: all sixteen.
        assert_eq!(found.len(), 16);
    }

    #[test]
    fn writes_to_a_region_are_given_in_order_whether_flushed_or_not() {
        let file = log_of(&[
            (PLAIN, 2, 1, Some(1)),
            (PLAIN, 9, 1, Some(2)),
            (FLUSHES, 0, 0, None),
            (PLAIN, 3, 1, Some(3)),
        ]);
        let log = WriteLog::open(file.path()).unwrap();
        let bytes = |entries| written(&log, REGION, entries).unwrap();
        assert_eq!(bytes(3), [1; 512]);
        assert_eq!(bytes(4), [[1; 512], [3; 512]].concat());
    }

    #[test]
    fn cuts_go_forwards_around_flushes_and_are_as_many_as_asked_for() {
        let mut requests = vec![(PLAIN, 0, 1, Some(1)), (FLUSHES, 0, 0, None)];
        for _ in 0..100 {
            requests.extend([
                (PLAIN, 2, 1, Some(1)),
                (PLAIN, 9, 1, Some(1)),
                (FLUSHES, 0, 0, None),
            ]);
        }
        let file = log_of(&requests);
        let log = WriteLog::open(file.path()).unwrap();
        for (count, expected) in [(40, 40), (1000, 4 * 98)] {
            let cuts = cuts(&log, REGION, count, 7);
            assert_eq!(cuts.len(), expected);
            assert!(cuts.is_sorted_by_key(|cut| cut.entries));
            assert!(cuts[0].entries > 2, "before the region was written to");
            for cut in cuts {
                let is_right = match cut.unflushed {
                    Unflushed::Lost => log.entries[cut.entries].is_flush,
                    Unflushed::Kept => log.entries[cut.entries - 1].is_flush,
                    Unflushed::Some(_) => true,
                };
                assert!(is_right, "{cut:?}");
            }
        }
    }
}
