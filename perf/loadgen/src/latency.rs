//! Latencies, and what may be said of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bowline_nvme::Nanos;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use serde::Serialize;

/// Longest latency that is told from longer ones.
const LATENCY_MAX: Nanos = Nanos::from_secs(3600);
/// Significant decimal digits.
const DIGITS: u8 = 3;
/// A percentile says something about the samples beyond it only if there are some.
const BEYOND_MIN: u64 = 100;

/// Latencies in nanoseconds, to three digits.
#[derive(Debug, Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
    /// Exact, unlike the histogram's.
    sum: u128,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            histogram: Histogram::new_with_bounds(1, LATENCY_MAX.0, DIGITS)
                .unwrap_or_else(|error| unreachable!("constant bounds are valid: {error:?}")),
            sum: 0,
        }
    }
}

/// What is known of latencies; a percentile with fewer than a hundred samples beyond it is not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Samples.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: Option<f64>,
    /// Least.
    pub min: Option<u64>,
    /// Half are at most this.
    pub p50: Option<u64>,
    /// Nine of ten are at most this.
    pub p90: Option<u64>,
    /// 99 %.
    pub p99: Option<u64>,
    /// 99.9 %.
    pub p99_9: Option<u64>,
    /// 99.99 %.
    pub p99_99: Option<u64>,
    /// 99.999 %.
    pub p99_999: Option<u64>,
    /// Most.
    pub max: Option<u64>,
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, latency: Nanos) {
        self.histogram.saturating_record(latency.0.max(1));
        self.sum += u128::from(latency.0);
    }

    /// Adds `count` of the same length.
    pub fn record_many(&mut self, latency: Nanos, count: u64) {
        self.histogram.saturating_record_n(latency.0.max(1), count);
        self.sum += u128::from(latency.0) * u128::from(count);
    }

    /// Adds all of another.
    pub fn add(&mut self, other: &Self) {
        // Same bounds, so nothing is out of range.
        let added = self.histogram.add(&other.histogram);
        debug_assert!(added.is_ok());
        self.sum += other.sum;
    }

    /// Samples so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// What may be said.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let count = self.count();
        let some = count > 0;
        // `beyond_one_in`: one of so many samples lies beyond.
        let percentile = |quantile: f64, beyond_one_in: u64| {
            (count / beyond_one_in >= BEYOND_MIN)
                .then(|| self.histogram.value_at_quantile(quantile))
        };
        Summary {
            count,
            mean: some.then(|| self.sum as f64 / count as f64),
            min: some.then(|| self.histogram.min()),
            p50: percentile(0.5, 2),
            p90: percentile(0.9, 10),
            p99: percentile(0.99, 100),
            p99_9: percentile(0.999, 1_000),
            p99_99: percentile(0.9999, 10_000),
            p99_999: percentile(0.99999, 100_000),
            max: some.then(|| self.histogram.max()),
        }
    }

    /// The whole histogram, in the interchange format V2 of HdrHistogram, as base64.
    #[must_use]
    pub fn encoded(&self) -> String {
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        let written = V2Serializer::new().serialize(&self.histogram, &mut bytes);
        debug_assert!(written.is_ok());
        STANDARD.encode(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;

    use super::*;

    fn of(count: u64) -> Latencies {
        let mut latencies = Latencies::default();
        for value in 1..=count {
            latencies.record(Nanos(value * 1000));
        }
        latencies
    }

    #[test]
    fn percentile_needs_a_hundred_samples_beyond_it() {
        let known = |count| {
            let summary = of(count).summary();
            [
                summary.p50,
                summary.p90,
                summary.p99,
                summary.p99_9,
                summary.p99_99,
                summary.p99_999,
            ]
            .map(|value| value.is_some())
        };
        assert_eq!(known(199), [false; 6]);
        assert_eq!(known(200), [true, false, false, false, false, false]);
        assert_eq!(known(9_999), [true, true, false, false, false, false]);
        assert_eq!(known(10_000), [true, true, true, false, false, false]);
        assert_eq!(known(1_000_000), [true, true, true, true, true, false]);
    }

    #[test]
    fn summary_is_right_to_three_digits() {
        let summary = of(100_000).summary();
        let near = |value: Option<u64>, expected: u64| {
            value.is_some_and(|value| value.abs_diff(expected) * 1000 <= expected)
        };
        assert!(near(summary.p50, 50_000_000) && near(summary.p99_9, 99_900_000));
        assert!(near(summary.max, 100_000_000) && near(summary.min, 1000));
        assert_eq!(summary.mean, Some(50_000_500.0));
        let nothing = Latencies::default().summary();
        assert_eq!((nothing.count, nothing.mean, nothing.max), (0, None, None));
    }

    #[test]
    fn latencies_out_of_range_are_kept_at_the_ends() {
        let mut latencies = Latencies::default();
        latencies.record(Nanos::ZERO);
        latencies.record(Nanos::MAX);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.summary().max >= Some(LATENCY_MAX.0));
    }

    #[test]
    fn encoded_histogram_is_read_back_whole() {
        let latencies = of(1000);
        let bytes = STANDARD.decode(latencies.encoded()).unwrap();
        let read: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .unwrap();
        assert_eq!(read, latencies.histogram);
    }

    #[test]
    fn added_latencies_count_together() {
        let mut all = of(100);
        all.add(&of(300));
        assert_eq!(all.count(), 400);
        let mean = (100.0 * 50_500.0 + 300.0 * 150_500.0) / 400.0;
        assert_eq!(all.summary().mean, Some(mean));
    }
}
