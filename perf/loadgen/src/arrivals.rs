//! When the next command is to start, in an open loop: whether or not earlier ones are back.

use std::time::Duration;

use bowline_nvme::Nanos;

use crate::random::Random;

/// How arrivals are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly.
    Constant,
    /// As of many who do not know of each other: exponentially distributed gaps.
    Poisson,
}

impl Spacing {
    /// As the flag says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Poisson => "poisson",
        }
    }
}

/// Intended start times, without end.
#[derive(Debug, Clone)]
pub struct Arrivals {
    spacing: Spacing,
    start: Nanos,
    /// Seconds between arrivals, on average.
    gap: f64,
    /// Arrivals so far.
    count: u64,
    /// Seconds from the start to the last arrival.
    at: f64,
    random: Random,
    next: Nanos,
}

impl Arrivals {
    /// `per_second`, above 0, from `start` on.
    #[must_use]
    pub fn new(spacing: Spacing, per_second: u64, start: Nanos, seed: u64) -> Self {
        let mut arrivals = Self {
            spacing,
            start,
            gap: 1.0 / per_second.max(1) as f64,
            count: 0,
            at: 0.0,
            random: Random::new(seed),
            next: start,
        };
        if spacing == Spacing::Poisson {
            arrivals.advance();
            arrivals.count = 0;
        }
        arrivals
    }

    /// The next arrival.
    #[must_use]
    pub const fn next_at(&self) -> Nanos {
        self.next
    }

    /// Arrivals that were taken.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Takes the next arrival.
    pub fn advance(&mut self) {
        self.count += 1;
        self.at = match self.spacing {
            // From the start each time, so that rounding does not add up.
            Spacing::Constant => self.count as f64 * self.gap,
            Spacing::Poisson => self.at - self.random.unit().ln() * self.gap,
        };
        let since = Duration::try_from_secs_f64(self.at).unwrap_or(Duration::MAX);
        let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        self.next = self.start.saturating_add(Nanos(since));
    }

    /// Takes every arrival up to `now`.
    pub fn advance_to(&mut self, now: Nanos) {
        while self.next <= now {
            self.advance();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(spacing: Spacing, per_second: u64, seed: u64, count: usize) -> Vec<u64> {
        let mut arrivals = Arrivals::new(spacing, per_second, Nanos(1000), seed);
        (0..count)
            .map(|_| {
                let at = arrivals.next_at().0;
                arrivals.advance();
                at
            })
            .collect()
    }

    #[test]
    fn constant_arrivals_do_not_drift() {
        let times = take(Spacing::Constant, 3, 0, 3_000_001);
        assert_eq!(times[..4], [1000, 333_334_333, 666_667_667, 1_000_001_000]);
        assert!(times[3_000_000].abs_diff(1_000_000_000_000_000 + 1000) <= 1);
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_deviation_of_an_exponential() {
        let times = take(Spacing::Poisson, 10_000, 1, 200_001);
        assert_eq!(times, take(Spacing::Poisson, 10_000, 1, 200_001));
        assert_ne!(times, take(Spacing::Poisson, 10_000, 2, 200_001));
        let gaps: Vec<f64> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as f64)
            .collect();
        let count = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / count;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count;
        assert!((mean / 100_000.0 - 1.0).abs() < 0.01, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{variance}");
        // Memoryless: half of the gaps are below ln 2 of the mean.
        let short = gaps
            .iter()
            .filter(|gap| **gap < mean * 2.0_f64.ln())
            .count();
        assert!((short as f64 / count - 0.5).abs() < 0.01);
    }

    #[test]
    fn cursor_counts_what_is_due() {
        let mut arrivals = Arrivals::new(Spacing::Constant, 1000, Nanos(0), 0);
        arrivals.advance_to(Nanos(10_000_000));
        assert_eq!(
            (arrivals.count(), arrivals.next_at()),
            (11, Nanos(11_000_000))
        );
    }
}
