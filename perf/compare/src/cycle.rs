//! The cycles of a cell: who is measured when, and what is kept.
//!
//! In a cycle every contender has one slice, so that one slice of the subject serves all its
//! comparisons. Each second cycle runs backwards, so that whatever drifts is for one as often as
//! for the other, and the order changes every two cycles, so that none is the neighbour of one
//! more often than of another, or always the first after a pause.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::meter::Slice;
use crate::result::Figure;

/// With more slices rejected than accepted a cell has no figures; with so many more, measuring on
/// would only keep a busy machine busier.
const REJECTED_LEAD_MAX: usize = 48;

/// How long a cell may go on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Cycles after which it has enough.
    pub(crate) cycles: usize,
    /// Time after which no further slice begins.
    pub(crate) limit: Duration,
}

/// Who is measured in this place of a cycle: from both ends to the middle, shifted by one every two
/// cycles. Over twice as many cycles as there are contenders each follows each of the others equally
/// often (Williams' design).
const fn turn(cycle: usize, place: usize, contenders: usize) -> usize {
    let place = if cycle.is_multiple_of(2) {
        place
    } else {
        contenders - 1 - place
    };
    let from_ends = if place.is_multiple_of(2) {
        place / 2
    } else {
        contenders - place.div_ceil(2)
    };
    (from_ends + cycle / 2) % contenders
}

/// Everything measured for a cell.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Whole cycles of accepted slices, each in the order of the contenders.
    cycles: Vec<Vec<Slice>>,
    /// In order, the rejected ones and those of an unfinished cycle too.
    pub(crate) slices: Vec<Slice>,
    pub(crate) accepted: usize,
}

/// Measures as many cycles as the extent allows. `measure` takes one slice of a contender.
pub(crate) fn run(
    contenders: usize,
    extent: Extent,
    mut measure: impl FnMut(usize) -> Result<Slice>,
) -> Result<Record> {
    let mut record = Record::default();
    let begun = Instant::now();
    for cycle in 0..extent.cycles {
        let mut found: Vec<(usize, Slice)> = Vec::with_capacity(contenders);
        for place in 0..contenders {
            let contender = turn(cycle, place, contenders);
            let wanted = || begun.elapsed() < extent.limit;
            match record.accepted_slice(wanted, || measure(contender))? {
                Some(slice) => found.push((contender, slice)),
                None => return Ok(record),
            }
        }
        found.sort_by_key(|(contender, _)| *contender);
        let slices = found.into_iter().map(|(_, slice)| slice);
        record.cycles.push(slices.collect());
    }
    Ok(record)
}

impl Record {
    /// Repeats a slice until the machine was ours; none when that was asked too often, or when
    /// time is over.
    fn accepted_slice(
        &mut self,
        wanted: impl Fn() -> bool,
        mut measure: impl FnMut() -> Result<Slice>,
    ) -> Result<Option<Slice>> {
        while wanted() && self.rejected() <= self.accepted + REJECTED_LEAD_MAX {
            let slice = measure()?;
            self.slices.push(slice.clone());
            if slice.accepted {
                self.accepted += 1;
                return Ok(Some(slice));
            }
        }
        Ok(None)
    }

    fn rejected(&self) -> usize {
        self.slices.len() - self.accepted
    }

    /// Cycles that came to their end.
    pub(crate) fn cycles(&self) -> usize {
        self.cycles.len()
    }

    /// The values of one figure in the pairs of two contenders.
    pub(crate) fn pairs(&self, figure: Figure, first: usize, second: usize) -> Vec<(f64, f64)> {
        let cycles = self.cycles.iter();
        cycles
            .filter_map(|slices| Some((slices.get(first)?, slices.get(second)?)))
            .map(|(first, second)| (figure.of(first), figure.of(second)))
            .collect()
    }

    /// The values of one figure of one contender.
    pub(crate) fn values(&self, figure: Figure, contender: usize) -> Vec<f64> {
        let cycles = self.cycles.iter();
        let slices = cycles.filter_map(|slices| slices.get(contender));
        slices.map(|slice| figure.of(slice)).collect()
    }

    /// Whether enough of the slices could be used: half of them.
    pub(crate) fn is_publishable(&self) -> bool {
        self.rejected() <= self.accepted && !self.cycles.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Latency;

    const NAMES: [&str; 3] = ["A", "B", "C"];
    const ENDLESS: Duration = Duration::from_secs(3600);

    fn slice(contender: usize, accepted: bool) -> Slice {
        Slice {
            contender: NAMES[contender].to_owned(),
            foreign_share: 0.0,
            accepted,
            iops: contender as f64 + 1.0,
            bytes_per_second: 1.0,
            latency_ns: Latency {
                p50: 1.0,
                p99: None,
                p99_9: None,
            },
            target_cores: 1.0,
            client_cpu_seconds: 1.0,
            commands: None,
            histogram: None,
        }
    }

    fn cycles(count: usize) -> Extent {
        Extent {
            cycles: count,
            limit: ENDLESS,
        }
    }

    #[test]
    fn everybody_follows_everybody_equally_often() {
        for contenders in 2..9 {
            let mut follows = vec![vec![0; contenders]; contenders];
            for cycle in 0..2 * contenders {
                let order: Vec<usize> = (0..contenders)
                    .map(|place| turn(cycle, place, contenders))
                    .collect();
                for pair in order.windows(2) {
                    follows[pair[0]][pair[1]] += 1;
                }
            }
            for (one, row) in follows.iter().enumerate() {
                for (other, count) in row.iter().enumerate() {
                    let wanted = if one == other { 0 } else { 2 };
                    assert_eq!(*count, wanted, "{one} before {other} of {contenders}");
                }
            }
        }
    }

    #[test]
    fn cycles_mirror_each_other_and_begin_with_everybody_in_turn() {
        let record = run(3, cycles(6), |contender| Ok(slice(contender, true))).unwrap();
        let order: String = record
            .slices
            .iter()
            .map(|one| one.contender.as_str())
            .collect();
        assert_eq!(order, "ACBBCABACCABCBAABC");
        assert!(record.is_publishable());
    }

    #[test]
    fn one_slice_of_the_subject_serves_all_pairs_of_its_cycle() {
        let record = run(3, cycles(4), |contender| Ok(slice(contender, true))).unwrap();
        assert_eq!((record.slices.len(), record.cycles()), (12, 4));
        assert_eq!(record.pairs(Figure::Iops, 0, 1), [(1.0, 2.0); 4]);
        assert_eq!(record.pairs(Figure::Iops, 0, 2), [(1.0, 3.0); 4]);
        assert_eq!(record.values(Figure::Iops, 1), [2.0; 4]);
    }

    #[test]
    fn rejected_slice_is_repeated_in_its_place() {
        let mut count = 0;
        let record = run(2, cycles(1), |contender| {
            count += 1;
            Ok(slice(contender, count != 2))
        })
        .unwrap();
        let order: String = record
            .slices
            .iter()
            .map(|one| one.contender.as_str())
            .collect();
        assert_eq!(order, "ABB");
        assert_eq!((record.accepted, record.cycles()), (2, 1));
        assert!(record.is_publishable());
    }

    #[test]
    fn busy_machine_ends_the_cell_without_figures() {
        let mut count = 0;
        let record = run(2, cycles(1000), |contender| {
            count += 1;
            Ok(slice(contender, count % 3 == 0))
        })
        .unwrap();
        assert!(!record.is_publishable());
        assert_eq!(record.rejected(), record.accepted + REJECTED_LEAD_MAX + 1);
    }

    #[test]
    fn half_of_the_slices_suffice() {
        let mut count = 0;
        let record = run(2, cycles(8), |contender| {
            count += 1;
            Ok(slice(contender, count % 2 == 0))
        })
        .unwrap();
        assert_eq!((record.accepted, record.rejected()), (16, 16));
        assert!(record.is_publishable());
    }

    #[test]
    fn cell_whose_time_is_over_keeps_its_whole_cycles() {
        let begun = Instant::now();
        let extent = Extent {
            cycles: usize::MAX,
            limit: Duration::from_millis(20),
        };
        let record = run(2, extent, |contender| Ok(slice(contender, true))).unwrap();
        assert!(begun.elapsed() >= extent.limit);
        assert!(record.is_publishable());
        assert_eq!(record.slices.len() / 2, record.cycles());
        let none = Extent {
            cycles: 1,
            limit: Duration::ZERO,
        };
        let record = run(2, none, |contender| Ok(slice(contender, true))).unwrap();
        assert!(!record.is_publishable());
    }
}
