//! From pairs of slices to a claim, or to none. Pure: numbers in, a verdict out.
//!
//! A pair is one slice of each contender, measured next to each other. What is compared is the
//! logarithm of the ratio within a pair, because a machine that is slow for a second is slow for
//! both; the statistic is the median of these over all pairs, because a machine that hiccups
//! spoils few of them.

use serde::{Deserialize, Serialize};

/// Smaller differences are not claimed, however sure they look: what differs by less is alignment
/// of code, order of start, weather.
pub(crate) const CLAIM_MIN_RATIO: f64 = 1.03;
/// Where the noise is larger nothing is called equal either: a coarse scale weighs all alike.
pub(crate) const EQUAL_MAX_RATIO: f64 = 1.10;
/// Fewer pairs are for looking, not for claiming: a bootstrap of a handful of pairs knows nothing
/// of what it has not seen.
pub(crate) const CLAIM_MIN_PAIRS: usize = 16;
/// Resamples of a bootstrap.
const RESAMPLES: usize = 4000;
/// One fixed seed: the same slices give the same interval, wherever they are looked at again.
const SEED: u64 = 0x6f6d_7061_7265_0001;

/// The middle of the values, or the mean of the two in the middle; none of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// The value below which `per_mille` thousandths of the sorted values lie (nearest rank).
pub(crate) fn quantile(sorted: &[f64], per_mille: usize) -> Option<f64> {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// How one contender compares with another in one figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Estimate {
    /// Median over the pairs of first / second.
    pub(crate) ratio: f64,
    /// 95 % of bootstrapped medians lie between `low` and `high`.
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) pairs: usize,
}

/// Estimates the ratio first / second from pairs; none without a pair of positive values.
pub(crate) fn estimate(pairs: &[(f64, f64)]) -> Option<Estimate> {
    let logs = log_ratios(pairs);
    let medians = bootstrap(&logs);
    Some(Estimate {
        ratio: median(&logs)?.exp(),
        low: quantile(&medians, 25)?.exp(),
        high: quantile(&medians, 975)?.exp(),
        pairs: logs.len(),
    })
}

/// What the statistic shows where there is nothing to see: of pairs of one contender with itself,
/// the ratio (at least 1) that 97.5 % of bootstrapped medians stay within.
pub(crate) fn noise(pairs: &[(f64, f64)]) -> Option<f64> {
    let logs = log_ratios(pairs);
    let mut sizes: Vec<f64> = bootstrap(&logs).into_iter().map(f64::abs).collect();
    sizes.sort_by(f64::total_cmp);
    let seen = median(&logs)?.abs();
    Some(quantile(&sizes, 975)?.max(seen).exp())
}

fn log_ratios(pairs: &[(f64, f64)]) -> Vec<f64> {
    let usable = |&&(first, second): &&(f64, f64)| {
        first > 0.0 && second > 0.0 && first.is_finite() && second.is_finite()
    };
    let logs = pairs.iter().filter(usable);
    logs.map(|(first, second)| (first / second).ln()).collect()
}

/// Medians of resamples with replacement, sorted. In which order the values came is no matter.
fn bootstrap(values: &[f64]) -> Vec<f64> {
    if values.is_empty() {
        return Vec::new();
    }
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let mut random = SplitMix(SEED);
    let mut resample = vec![0.0; values.len()];
    let mut medians = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for slot in &mut resample {
            *slot = values[random.below(values.len())];
        }
        resample.sort_by(f64::total_cmp);
        medians.extend(median_of_sorted(&resample));
    }
    medians.sort_by(f64::total_cmp);
    medians
}

/// A small generator: what is drawn decides nothing that somebody could want to predict.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A position below `count`, which is not 0.
    fn below(&mut self, count: usize) -> usize {
        let product = u128::from(self.next()) * count as u128;
        // The product's upper half is below `count`.
        usize::try_from(product >> 64).unwrap_or(0)
    }
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

impl Better {
    /// Smaller of whatever is better; not a number for nobody.
    pub(crate) const fn badness(self, value: f64) -> f64 {
        match self {
            Self::Higher => -value,
            Self::Lower => value,
        }
    }
}

/// What may be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// The first is better, by more than the noise, and the interval excludes 1.
    Better,
    /// The first is worse, likewise.
    Worse,
    /// The whole interval lies within what is never claimed, and that is at most 10 %.
    Equal,
    /// The pairs do not decide it.
    Undecided,
    /// Measured with fewer pairs than a claim needs.
    TooFewPairs,
    /// Measured whatever others did to the machine.
    Ungated,
}

impl Verdict {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Equal => "equal",
            Self::Undecided => "undecided",
            Self::TooFewPairs => "no claim: too few pairs",
            Self::Ungated => "no claim: ungated",
        }
    }
}

/// Judges an estimate against the noise of the same figure (a ratio, at least 1).
pub(crate) fn judge(estimate: &Estimate, noise: f64, better: Better) -> Verdict {
    if estimate.pairs < CLAIM_MIN_PAIRS {
        return Verdict::TooFewPairs;
    }
    let floor = noise.max(CLAIM_MIN_RATIO);
    let beyond = |ratio: f64| ratio > floor || ratio < 1.0 / floor;
    let (rises, falls) = (estimate.low > 1.0, estimate.high < 1.0);
    if beyond(estimate.ratio) && (rises || falls) {
        return if rises == (better == Better::Higher) {
            Verdict::Better
        } else {
            Verdict::Worse
        };
    }
    if beyond(estimate.low) || beyond(estimate.high) || floor > EQUAL_MAX_RATIO {
        Verdict::Undecided
    } else {
        Verdict::Equal
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pairs of a machine whose speed wanders by `spread`, where the first is `ratio` as fast.
    fn pairs(seed: u64, count: usize, ratio: f64, spread: f64) -> Vec<(f64, f64)> {
        let mut random = SplitMix(seed);
        let mut wander = || {
            let share = random.below(1 << 20) as f64 / f64::from(1 << 20);
            (spread * (2.0 * share - 1.0)).exp()
        };
        (0..count)
            .map(|_| (1e5 * ratio * wander(), 1e5 * wander()))
            .collect()
    }

    fn is_claim(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Better | Verdict::Worse)
    }

    #[test]
    fn median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn clear_difference_is_claimed_in_the_direction_of_the_figure() {
        let found = estimate(&pairs(1, 32, 1.3, 0.05)).unwrap();
        let noise = noise(&pairs(2, 32, 1.0, 0.05)).unwrap();
        assert!(found.low < 1.3 && 1.3 < found.high, "{found:?}");
        assert_eq!(judge(&found, noise, Better::Higher), Verdict::Better);
        assert_eq!(judge(&found, noise, Better::Lower), Verdict::Worse);
    }

    #[test]
    fn nothing_is_claimed_below_three_per_cent_however_sure() {
        let found = estimate(&pairs(1, 64, 1.02, 0.0001)).unwrap();
        assert!(found.low > 1.0);
        assert_eq!(judge(&found, 1.0, Better::Higher), Verdict::Equal);
    }

    #[test]
    fn nothing_is_claimed_below_the_noise() {
        let found = estimate(&pairs(1, 32, 1.10, 0.01)).unwrap();
        assert!(is_claim(judge(&found, 1.02, Better::Higher)));
        assert!(!is_claim(judge(&found, 1.12, Better::Higher)));
    }

    #[test]
    fn nothing_is_claimed_where_the_interval_includes_one() {
        let wide = Estimate {
            ratio: 1.2,
            low: 0.99,
            high: 1.5,
            pairs: 16,
        };
        assert_eq!(judge(&wide, 1.0, Better::Higher), Verdict::Undecided);
    }

    #[test]
    fn nothing_is_equal_on_a_coarse_scale() {
        let narrow = Estimate {
            ratio: 0.98,
            low: 0.95,
            high: 1.0,
            pairs: 16,
        };
        assert_eq!(judge(&narrow, 1.06, Better::Lower), Verdict::Equal);
        assert_eq!(judge(&narrow, 1.5, Better::Lower), Verdict::Undecided);
    }

    #[test]
    fn few_pairs_claim_nothing() {
        let found = estimate(&pairs(1, CLAIM_MIN_PAIRS - 1, 3.0, 0.01)).unwrap();
        assert_eq!(judge(&found, 1.0, Better::Higher), Verdict::TooFewPairs);
    }

    #[test]
    fn useless_values_are_left_out() {
        let found = estimate(&[(0.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (1.0, 0.0)]).unwrap();
        assert_eq!((found.pairs, found.ratio), (1, 2.0));
        assert_eq!(estimate(&[(1.0, 0.0)]), None);
        assert_eq!(noise(&[]), None);
    }

    proptest! {
        // Each case is thousands of resamples.
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// The same pairs are their own noise.
        #[test]
        fn a_contender_never_beats_itself(
            seed: u64,
            count in 1_usize..64,
            ratio in 0.5_f64..2.0,
            spread in 0.0_f64..0.5,
        ) {
            let same = pairs(seed, count, ratio, spread);
            let found = estimate(&same).unwrap();
            let noise = noise(&same).unwrap();
            for better in [Better::Higher, Better::Lower] {
                prop_assert!(!is_claim(judge(&found, noise, better)));
            }
        }

        #[test]
        fn order_of_pairs_is_no_matter(seed: u64, count in 1_usize..40, turn in 0_usize..40) {
            let forward = pairs(seed, count, 1.2, 0.1);
            let mut turned = forward.clone();
            turned.reverse();
            turned.rotate_left(turn % count);
            prop_assert_eq!(estimate(&forward), estimate(&turned));
            prop_assert_eq!(noise(&forward), noise(&turned));
        }

        #[test]
        fn swapping_the_contenders_inverts_the_ratio(seed: u64, count in 1_usize..40) {
            let forward = pairs(seed, count, 1.2, 0.3);
            let swapped: Vec<_> = forward.iter().map(|(first, second)| (*second, *first)).collect();
            let (one, other) = (estimate(&forward).unwrap(), estimate(&swapped).unwrap());
            prop_assert!((one.ratio * other.ratio - 1.0).abs() < 1e-9);
            prop_assert!(one.low <= one.ratio && one.ratio <= one.high);
        }

        /// Two contenders that are the same, measured apart: a false claim needs both a median
        /// beyond 3 % and beyond the noise of equally many pairs.
        #[test]
        fn steady_twins_are_not_told_apart(seed: u64) {
            let found = estimate(&pairs(seed, 32, 1.0, 0.02)).unwrap();
            let noise = noise(&pairs(!seed, 32, 1.0, 0.02)).unwrap();
            prop_assert!(!is_claim(judge(&found, noise, Better::Higher)));
        }
    }
}
