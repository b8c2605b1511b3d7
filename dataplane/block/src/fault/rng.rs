//! A small seeded generator: the same seed gives the same faults on every machine and version.

use bowline_nvme::Nanos;

/// SplitMix64.
pub(super) struct Rng {
    state: u64,
}

impl Rng {
    pub(super) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// True `per_million` times in a million; always consumes one number, whatever the rate.
    pub(super) fn hits(&mut self, per_million: u32) -> bool {
        self.below(1_000_000) < u64::from(per_million)
    }

    /// Evenly from `min` to `max`, both included.
    pub(super) fn between(&mut self, min: Nanos, max: Nanos) -> Nanos {
        let span = max.0.saturating_sub(min.0).saturating_add(1);
        Nanos(min.0.saturating_add(self.below(span)))
    }

    fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: without the modulo's bias towards small numbers.
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
