//! When to try a lost path again: exponential delays with jitter, from a seed.

use bowline_nvme::Nanos;

/// How a lost association is re-established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnect {
    /// Delay before the first attempt, before jitter. The delay doubles with every attempt.
    pub delay_min: Nanos,
    /// Upper bound of the delay, before jitter.
    pub delay_max: Nanos,
    /// Attempts in a row that may fail before the controller stops; `None` tries for ever.
    pub attempts_max: Option<u32>,
}

impl Default for Reconnect {
    /// 20 ms to 1 s, for ever: a killed data plane is back within tens of milliseconds, and a
    /// dead one costs a SYN a second.
    fn default() -> Self {
        Self {
            delay_min: Nanos::from_millis(20),
            delay_max: Nanos::from_secs(1),
            attempts_max: None,
        }
    }
}

/// The delays of one controller's attempts.
///
/// Jitter takes each delay from the upper half of its range, so that many hosts which lost the
/// same target at the same instant do not come back at the same instant.
#[derive(Debug)]
pub(super) struct Backoff {
    policy: Reconnect,
    attempt: u32,
    random: u64,
}

impl Backoff {
    pub(super) fn new(policy: Reconnect, seed: u64) -> Self {
        Self {
            policy,
            attempt: 0,
            random: seed,
        }
    }

    /// Forgets earlier failures: the association is up.
    pub(super) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Delay before the next attempt, or `None` when the attempts are used up.
    pub(super) fn next_delay(&mut self) -> Option<Nanos> {
        if self
            .policy
            .attempts_max
            .is_some_and(|max| self.attempt >= max)
        {
            return None;
        }
        // Past 32 doublings every delay is the maximum, whatever the minimum was.
        let factor = 1u64 << self.attempt.min(32);
        let full = self
            .policy
            .delay_min
            .0
            .saturating_mul(factor)
            .min(self.policy.delay_max.0);
        self.attempt = self.attempt.saturating_add(1);
        let half = full / 2;
        Some(Nanos(half + self.next_random() % (full - half + 1)))
    }

    /// SplitMix64: enough to spread hosts, and reproducible from the seed.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(attempts_max: Option<u32>) -> Reconnect {
        Reconnect {
            delay_min: Nanos::from_millis(10),
            delay_max: Nanos::from_millis(100),
            attempts_max,
        }
    }

    #[test]
    fn delays_double_within_jitter_up_to_the_maximum() {
        let mut backoff = Backoff::new(policy(None), 7);
        for full in [10, 20, 40, 80, 100, 100, 100] {
            let delay = backoff.next_delay().expect("no limit on attempts");
            assert!(
                delay <= Nanos::from_millis(full),
                "{delay:?} above {full} ms"
            );
            assert!(
                delay >= Nanos(Nanos::from_millis(full).0 / 2),
                "{delay:?} below half"
            );
        }
    }

    #[test]
    fn attempts_end_and_start_again_after_success() {
        let mut backoff = Backoff::new(policy(Some(2)), 7);
        assert!(backoff.next_delay().is_some());
        assert!(backoff.next_delay().is_some());
        assert_eq!(backoff.next_delay(), None);
        backoff.reset();
        assert!(backoff.next_delay().is_some());
    }

    #[test]
    fn hundred_attempts_do_not_overflow() {
        let mut backoff = Backoff::new(
            Reconnect {
                delay_min: Nanos::MAX,
                delay_max: Nanos(u64::MAX / 2),
                attempts_max: None,
            },
            0,
        );
        for _ in 0..100 {
            assert!(backoff.next_delay().is_some());
        }
    }

    #[test]
    fn equal_seeds_give_equal_delays_and_others_differ() {
        let delays = |seed| {
            let mut backoff = Backoff::new(policy(None), seed);
            (0..8).map(|_| backoff.next_delay()).collect::<Vec<_>>()
        };
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }
}
