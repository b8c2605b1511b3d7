//! Which part of the namespace the next command is for.

use std::fmt;
use std::str::FromStr;

use crate::random::Random;

/// Exponent of `zipf` when none is given, as in fio.
const ZIPF_EXPONENT: f64 = 1.1;

/// How addresses are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pattern {
    /// One after the other, from the start again after the end.
    Sequential,
    /// Any, each equally often.
    Random,
    /// Few very often: the k-th most popular one in proportion to `1 / k^exponent`.
    Zipf {
        /// Above 0, at most 10.
        exponent: f64,
    },
    /// The first unit of each group of so many, in scattered order, none twice; then the second of
    /// each, and so on: every unit once before any is repeated.
    Every {
        /// Units of a group, above 0.
        units: u64,
    },
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "sequential" => Ok(Self::Sequential),
            None if text == "random" => Ok(Self::Random),
            None if text == "zipf" => Ok(Self::Zipf {
                exponent: ZIPF_EXPONENT,
            }),
            Some(("zipf", exponent)) => match exponent.parse() {
                Ok(exponent) if exponent > 0.0 && exponent <= 10.0 => Ok(Self::Zipf { exponent }),
                _ => Err(format!(
                    "{exponent:?} is no exponent; write a number above 0 and up to 10, such as zipf:1.1"
                )),
            },
            Some(("every", units)) => match units.parse() {
                Ok(units) if units > 0 => Ok(Self::Every { units }),
                _ => Err(format!(
                    "{units:?} is no number of blocks; write one above 0, such as every:256"
                )),
            },
            _ => Err(format!(
                "{text:?} is no pattern; choose sequential, random, zipf, zipf:EXPONENT or \
                 every:BLOCKS"
            )),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequential => f.write_str("sequential"),
            Self::Random => f.write_str("random"),
            Self::Zipf { exponent } => write!(f, "zipf:{exponent}"),
            Self::Every { units } => write!(f, "every:{units}"),
        }
    }
}

/// Numbers of units, each of one command's size.
#[derive(Debug, Clone)]
pub struct Addresses {
    kind: Kind,
    units: u64,
    random: Random,
}

#[derive(Debug, Clone)]
enum Kind {
    Sequential { next: u64 },
    Random,
    Zipf { zipf: Zipf, stride: u64 },
    Every(Every),
}

/// How far it is.
#[derive(Debug, Clone)]
struct Every {
    /// Units of a group; the last group may have fewer.
    group: u64,
    groups: u64,
    stride: u64,
    /// Of the next group.
    rank: u64,
    /// Groups that have their turn in this round yet.
    left: u64,
    /// Where in its group a unit is, in this round.
    place: u64,
}

impl Every {
    fn next(&mut self, units: u64) -> u64 {
        loop {
            let unit = scatter(self.rank, self.stride, self.groups) * self.group + self.place;
            self.rank = (self.rank + 1) % self.groups;
            self.left -= 1;
            if self.left == 0 {
                self.left = self.groups;
                self.place = (self.place + 1) % self.group;
            }
            if unit < units {
                return unit;
            }
        }
    }
}

impl Addresses {
    /// Over `units` units, at least 1.
    #[must_use]
    pub fn new(pattern: Pattern, units: u64, seed: u64) -> Self {
        let units = units.max(1);
        let mut random = Random::new(seed);
        let kind = match pattern {
            Pattern::Sequential => Kind::Sequential { next: 0 },
            Pattern::Random => Kind::Random,
            Pattern::Zipf { exponent } => Kind::Zipf {
                zipf: Zipf::new(units, exponent),
                stride: stride(units),
            },
            Pattern::Every { units: group } => {
                let group = group.clamp(1, units);
                let groups = units.div_ceil(group);
                Kind::Every(Every {
                    group,
                    groups,
                    stride: stride(groups),
                    rank: random.below(groups),
                    left: groups,
                    place: 0,
                })
            }
        };
        Self {
            kind,
            units,
            random,
        }
    }

    /// The next unit, below the number of units.
    pub fn next_unit(&mut self) -> u64 {
        match &mut self.kind {
            Kind::Sequential { next } => {
                let unit = *next;
                *next = if unit + 1 < self.units { unit + 1 } else { 0 };
                unit
            }
            Kind::Random => self.random.below(self.units),
            Kind::Zipf { zipf, stride } => {
                let rank = zipf.next(&mut self.random);
                scatter(rank, *stride, self.units)
            }
            Kind::Every(every) => every.next(self.units),
        }
    }
}

/// Spreads ranks over the units, so that popular ones are no neighbours: a bijection, for the
/// stride has no factor in common with the number of units.
fn scatter(rank: u64, stride: u64, units: u64) -> u64 {
    let wide = u128::from(rank) * u128::from(stride) % u128::from(units);
    u64::try_from(wide).unwrap_or(0)
}

/// About 0.618 of the units, the ratio that leaves the most even gaps.
fn stride(units: u64) -> u64 {
    let start = u64::try_from(u128::from(units) * 618_034 / 1_000_000).unwrap_or(1);
    // Reached after few steps: 1 is coprime to everything.
    (1..=start.max(1))
        .rev()
        .find(|stride| gcd(*stride, units) == 1)
        .unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Ranks 0.. in proportion to `1 / (rank + 1)^exponent`, in constant time and without tables, by
/// rejection-inversion (Hörmann and Derflinger, 1996).
#[derive(Debug, Clone)]
struct Zipf {
    count: f64,
    exponent: f64,
    /// Integrals of the density's hat at both ends.
    low: f64,
    high: f64,
    /// Within this distance below the candidate, no rejection test is needed.
    sure: f64,
}

impl Zipf {
    fn new(units: u64, exponent: f64) -> Self {
        let count = units as f64;
        let mut zipf = Self {
            count,
            exponent,
            low: 0.0,
            high: 0.0,
            sure: 0.0,
        };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(count + 0.5);
        zipf.sure = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    fn next(&self, random: &mut Random) -> u64 {
        loop {
            let at = self.high + random.unit() * (self.low - self.high);
            let x = self.inverse(at);
            let candidate = x.round().clamp(1.0, self.count);
            let accepted = candidate - x <= self.sure
                || at >= self.integral(candidate + 0.5) - self.density(candidate);
            if accepted {
                return floor(candidate) - 1;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// Integral of the density, up to a constant; well behaved around exponent 1.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let part = (1.0 - self.exponent) * log;
        log * if part.abs() > 1e-8 {
            part.exp_m1() / part
        } else {
            1.0 + part / 2.0
        }
    }

    fn inverse(&self, y: f64) -> f64 {
        let part = ((1.0 - self.exponent) * y).max(-1.0);
        let factor = if part.abs() > 1e-8 {
            part.ln_1p() / part
        } else {
            1.0 - part / 2.0
        };
        (y * factor).exp()
    }
}

/// Ranks are whole numbers from 1 to the number of units.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 1..=units before"
)]
fn floor(rank: f64) -> u64 {
    rank as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pattern: Pattern, units: u64, seed: u64, count: usize) -> Vec<u64> {
        let mut addresses = Addresses::new(pattern, units, seed);
        (0..count).map(|_| addresses.next_unit()).collect()
    }

    #[test]
    fn same_seed_gives_the_same_addresses() {
        for pattern in [Pattern::Random, Pattern::Zipf { exponent: 1.1 }] {
            assert_eq!(take(pattern, 1000, 3, 100), take(pattern, 1000, 3, 100));
            assert_ne!(take(pattern, 1000, 3, 100), take(pattern, 1000, 4, 100));
        }
    }

    #[test]
    fn sequential_visits_each_unit_once_per_round() {
        assert_eq!(take(Pattern::Sequential, 3, 0, 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(take(Pattern::Sequential, 1, 0, 3), [0, 0, 0]);
    }

    #[test]
    fn random_reaches_every_unit_about_equally_often() {
        let mut counts = [0_u32; 64];
        for unit in take(Pattern::Random, 64, 5, 64_000) {
            counts[usize::try_from(unit).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| count.abs_diff(1000) < 200),
            "{counts:?}"
        );
    }

    /// Compares frequencies with the definition, at exponents below, at and above 1.
    #[test]
    fn zipf_frequencies_follow_the_power_of_the_rank() {
        let (units, draws) = (1000_u64, 400_000_u32);
        for exponent in [0.6, 1.0, 1.1, 2.5] {
            let zipf = Zipf::new(units, exponent);
            let mut random = Random::new(11);
            let mut counts = vec![0_u32; usize::try_from(units).unwrap()];
            for _ in 0..draws {
                counts[usize::try_from(zipf.next(&mut random)).unwrap()] += 1;
            }
            let weight = |rank: usize| (rank as f64 + 1.0).powf(-exponent);
            let total: f64 = (0..counts.len()).map(weight).sum();
            for rank in [0, 1, 2, 4, 9, 49] {
                let expected = weight(rank) / total * f64::from(draws);
                let tolerance = 5.0 * expected.sqrt() + 1.0;
                let found = f64::from(counts[rank]);
                assert!(
                    (found - expected).abs() < tolerance,
                    "exponent {exponent}, rank {rank}: {found} instead of {expected}"
                );
            }
            let tail: u32 = counts[500..].iter().sum();
            let expected: f64 =
                (500..counts.len()).map(weight).sum::<f64>() / total * f64::from(draws);
            assert!((f64::from(tail) - expected).abs() < 5.0 * expected.sqrt() + 1.0);
        }
    }

    #[test]
    fn popular_units_are_scattered_and_none_is_left_out() {
        for units in [1, 2, 3, 10, 64, 997, 4096] {
            let stride = stride(units);
            let mut seen: Vec<_> = (0..units)
                .map(|rank| scatter(rank, stride, units))
                .collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..units), "{units} units");
        }
        assert!(scatter(1, stride(4096), 4096) > 1000);
        assert!(
            take(Pattern::Zipf { exponent: 1.1 }, 7, 1, 500)
                .iter()
                .all(|unit| *unit < 7)
        );
    }

    #[test]
    fn every_group_has_its_turn_before_any_has_a_second_one() {
        let rounds = |units: u64, group: u64, seed: u64, count: usize| {
            let all = take(Pattern::Every { units: group }, units, seed, count * 4);
            let rounds = all.chunks(count).map(|round| {
                let mut sorted = round.to_vec();
                sorted.sort_unstable();
                sorted
            });
            rounds.collect::<Vec<_>>()
        };
        for seed in 0..4 {
            let firsts = [[0, 8, 16, 24], [1, 9, 17, 25], [2, 10, 18, 26]];
            assert_eq!(rounds(32, 8, seed, 4)[..3], firsts);
            let all: Vec<u64> = (0..100).collect();
            assert_eq!(rounds(100, 1, seed, 100), vec![all; 4]);
            // The last group has one unit.
            assert_eq!(rounds(5, 2, seed, 5)[0], [0, 1, 2, 3, 4]);
        }
        assert_eq!(rounds(1, 9, 0, 1), [[0]; 4]);
        let pattern = Pattern::Every { units: 8 };
        assert_ne!(take(pattern, 8000, 1, 9), take(pattern, 8000, 2, 9));
    }

    #[test]
    fn patterns_are_read_as_they_are_printed() {
        for text in ["sequential", "random", "zipf:0.5", "zipf:1.1", "every:256"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        assert_eq!("zipf".parse::<Pattern>().unwrap().to_string(), "zipf:1.1");
        for text in [
            "", "zipf:0", "zipf:-1", "zipf:nan", "zipf:11", "zipf:", "every:0", "every:", "gauss",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
