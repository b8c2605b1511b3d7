//! The pairs of a cell: who is measured when, and what is kept.
//!
//! The subject is measured next to each opponent in blocks of four slices, ABBA and BAAB in turn,
//! so that whatever drifts is for one as often as for the other. The first opponent is the
//! subject itself: what that shows is noise.

use anyhow::Result;

use crate::meter::Slice;
use crate::result::Figure;

/// With more slices rejected than accepted a cell has no figures; with so many more, measuring on
/// would only keep a busy machine busier.
const REJECTED_LEAD_MAX: usize = 24;

/// Who is measured in a place of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Subject,
    Opponent,
}

/// The order within the block of a round.
const fn block(round: usize) -> [Side; 4] {
    use Side::{Opponent, Subject};
    if round.is_multiple_of(2) {
        [Subject, Opponent, Opponent, Subject]
    } else {
        [Opponent, Subject, Subject, Opponent]
    }
}

/// Pairs of accepted slices, the subject's first.
#[derive(Debug, Default)]
pub(crate) struct Pairs(Vec<(Slice, Slice)>);

impl Pairs {
    /// The values of one figure.
    pub(crate) fn figure(&self, figure: Figure) -> Vec<(f64, f64)> {
        let pairs = self.0.iter();
        pairs
            .map(|(subject, opponent)| (figure.of(subject), figure.of(opponent)))
            .collect()
    }
}

/// Everything measured for a cell.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// By opponent.
    pub(crate) pairs: Vec<Pairs>,
    /// In order, the rejected ones too.
    pub(crate) slices: Vec<Slice>,
    pub(crate) accepted: usize,
}

/// Measures `rounds` blocks, of two pairs each, for each of `opponents`. `measure` takes one
/// slice of the opponent of this number, or of the subject.
pub(crate) fn run(
    opponents: usize,
    rounds: usize,
    mut measure: impl FnMut(usize, Side) -> Result<Slice>,
) -> Result<Record> {
    let mut record = Record {
        pairs: (0..opponents).map(|_| Pairs::default()).collect(),
        ..Record::default()
    };
    for round in 0..rounds {
        for opponent in 0..opponents {
            let sides = block(round);
            for pair in sides.chunks_exact(2) {
                let mut found = [None, None];
                for &side in pair {
                    let Some(slice) = record.accepted_slice(|| measure(opponent, side))? else {
                        return Ok(record);
                    };
                    found[usize::from(side == Side::Opponent)] = Some(slice);
                }
                if let [Some(subject), Some(other)] = found {
                    record.pairs[opponent].0.push((subject, other));
                }
            }
        }
    }
    Ok(record)
}

impl Record {
    /// Repeats a slice until the machine was ours; none when that was asked too often.
    fn accepted_slice(
        &mut self,
        mut measure: impl FnMut() -> Result<Slice>,
    ) -> Result<Option<Slice>> {
        while self.rejected() <= self.accepted + REJECTED_LEAD_MAX {
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

    /// Whether enough of the slices could be used: half of them.
    pub(crate) fn is_publishable(&self) -> bool {
        self.rejected() <= self.accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Latency;

    fn slice(name: &str, accepted: bool) -> Slice {
        Slice {
            contender: name.to_owned(),
            foreign_share: 0.0,
            accepted,
            iops: 1.0,
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

    fn named(opponent: usize, side: Side, accepted: bool) -> Slice {
        match side {
            Side::Subject => slice("A", accepted),
            Side::Opponent => slice(["B", "C"][opponent], accepted),
        }
    }

    #[test]
    fn blocks_mirror_each_other() {
        let record = run(2, 2, |opponent, side| Ok(named(opponent, side, true))).unwrap();
        let order: String = record
            .slices
            .iter()
            .map(|slice| slice.contender.as_str())
            .collect();
        assert_eq!(order, "ABBAACCABAABCAAC");
        assert!(record.is_publishable());
        for (pairs, other) in record.pairs.iter().zip(["B", "C"]) {
            assert_eq!(pairs.0.len(), 4);
            for (subject, opponent) in &pairs.0 {
                assert_eq!(subject.contender, "A");
                assert_eq!(opponent.contender, other);
            }
        }
    }

    #[test]
    fn rejected_slice_is_repeated_in_its_place() {
        let mut count = 0;
        let record = run(1, 1, |opponent, side| {
            count += 1;
            Ok(named(opponent, side, count != 2))
        })
        .unwrap();
        assert_eq!((record.slices.len(), record.accepted), (5, 4));
        assert_eq!(record.slices[2].contender, "B");
        assert!(record.is_publishable());
    }

    #[test]
    fn busy_machine_ends_the_cell_without_figures() {
        let mut count = 0;
        let record = run(1, 1000, |opponent, side| {
            count += 1;
            Ok(named(opponent, side, count % 3 == 0))
        })
        .unwrap();
        assert!(!record.is_publishable());
        assert_eq!(record.rejected(), record.accepted + REJECTED_LEAD_MAX + 1);
    }

    #[test]
    fn half_of_the_slices_suffice() {
        let mut count = 0;
        let record = run(1, 8, |opponent, side| {
            count += 1;
            Ok(named(opponent, side, count % 2 == 0))
        })
        .unwrap();
        assert_eq!((record.accepted, record.rejected()), (32, 32));
        assert!(record.is_publishable());
    }
}
