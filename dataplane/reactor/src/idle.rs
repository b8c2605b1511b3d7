//! How a reactor with nothing to do waits: hot, warm, parked. Pure arithmetic over time.
//!
//! Waking a parked thread costs W. Spinning for at most about W before parking is never worse than
//! twice the best choice made with knowledge of the future. The policy spins longer when gaps
//! between bursts have lately been short, not at all when they have been long, and never more than
//! a share of a core in vain.
//!
//! Hot --budget spent--> Warm --limit passed--> Parked --event--> Hot or Parked, by recent gaps

use bowline_nvme::Nanos;

use crate::config::PollMode;

/// Gaps longer than this many wake costs are not worth spinning for.
const GAP_FACTOR: u64 = 4;

/// A gap counts for at most this many longest worthwhile gaps, so that one pause does not take
/// many bursts to forget.
const GAP_CLAMP_FACTOR: u64 = 8;

/// Weight of the latest gap is 1/8.
const EWMA_SHIFT: u32 = 3;

/// Spinning in vain may take this share of a core, in 1/4.
const DUTY_QUARTERS: u64 = 1;

/// Time over which the share is taken.
const DUTY_WINDOW: Nanos = Nanos::from_millis(100);

/// The most that spinning in vain may take at once.
const TOKENS_MAX: u64 = DUTY_WINDOW.0 * DUTY_QUARTERS / 4;

/// The warm wait. Its near end keeps the processor out of deep sleep.
const WARM_WAIT: Nanos = Nanos::from_micros(100);

/// How one idle period proceeds: spin for `spin`, then sleep for `warm` at most, then park.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) spin: Nanos,
    pub(crate) warm: Nanos,
    /// False: take a turn instead of sleeping.
    pub(crate) park: bool,
}

/// In [`PollMode::Always`], the time after which a turn is taken although nothing was seen.
const ALWAYS_SPIN: Nanos = Nanos::from_millis(1);

pub(crate) struct IdlePolicy {
    mode: PollMode,
    /// W. Being wrong by a factor costs that factor in spinning, or a wake-up, nothing else.
    wake_cost: Nanos,
    /// Moving average of the gaps between bursts.
    gap: u64,
    /// Moving average of their deviation.
    deviation: u64,
    /// Nanoseconds of vain spinning still allowed.
    tokens: u64,
    refilled_at: Nanos,
}

impl IdlePolicy {
    pub(crate) const fn new(mode: PollMode, wake_cost: Nanos) -> Self {
        // Nothing is known yet: park until bursts come close together.
        Self {
            mode,
            wake_cost,
            gap: wake_cost.0 * GAP_FACTOR * GAP_CLAMP_FACTOR,
            deviation: 0,
            tokens: TOKENS_MAX,
            refilled_at: Nanos::ZERO,
        }
    }

    /// A burst of work was seen `gap` after the reactor ran out of work; zero if it never did.
    /// `slept`: it had to be woken, so the burst began earlier than that.
    pub(crate) fn burst_after(&mut self, gap: Nanos, slept: bool) {
        let woken_for = if slept { self.wake_cost } else { Nanos::ZERO };
        let gap = gap.saturating_sub(woken_for).0;
        let gap = gap.min(self.gap_max() * GAP_CLAMP_FACTOR);
        let deviation = gap.abs_diff(self.gap);
        self.gap = smooth(self.gap, gap);
        self.deviation = smooth(self.deviation, deviation);
    }

    /// Whether the next idle period will begin by spinning.
    pub(crate) fn is_hot(&self) -> bool {
        match self.mode {
            PollMode::Always => true,
            PollMode::Never => false,
            PollMode::Adaptive => self.gap <= self.gap_max() && self.tokens > 0,
        }
    }

    /// Whether bursts have lately come within `span` of each other. Who never spins is to make few
    /// system calls, and hopes for it always.
    pub(crate) fn expects_within(&self, span: Nanos) -> bool {
        self.mode == PollMode::Never || self.gap <= span.0
    }

    /// What to do now that there is nothing to do. `expects` means that a device works for us: its
    /// completion is a burst to come.
    pub(crate) fn plan(&mut self, now: Nanos, expects: bool) -> Plan {
        match self.mode {
            PollMode::Always => Plan {
                spin: ALWAYS_SPIN,
                warm: Nanos::ZERO,
                park: false,
            },
            PollMode::Never => Plan {
                spin: Nanos::ZERO,
                warm: Nanos::ZERO,
                park: true,
            },
            PollMode::Adaptive => {
                self.refill(now);
                let spin = Nanos(self.budget(expects).min(self.tokens));
                let warm = if spin > Nanos::ZERO {
                    WARM_WAIT
                } else {
                    Nanos::ZERO
                };
                Plan {
                    spin,
                    warm,
                    park: true,
                }
            }
        }
    }

    /// Spinning took `span` and found nothing.
    pub(crate) fn spun_in_vain(&mut self, span: Nanos) {
        self.tokens = self.tokens.saturating_sub(span.0);
    }

    fn budget(&self, expects: bool) -> u64 {
        let (wake_cost, gap_max) = (self.wake_cost.0, self.gap_max());
        if self.gap > gap_max {
            return if expects { wake_cost } else { 0 };
        }
        (self.gap + 2 * self.deviation).clamp(wake_cost, gap_max)
    }

    /// The longest gap worth spinning for, in nanoseconds.
    const fn gap_max(&self) -> u64 {
        self.wake_cost.0 * GAP_FACTOR
    }

    fn refill(&mut self, now: Nanos) {
        let span = now.saturating_sub(self.refilled_at).0.min(DUTY_WINDOW.0);
        self.tokens = (self.tokens + span * DUTY_QUARTERS / 4).min(TOKENS_MAX);
        self.refilled_at = now;
    }
}

/// One step of the moving average. The difference is rounded away from the old value's side, so
/// that the average reaches its goal instead of stopping short of it.
fn smooth(average: u64, sample: u64) -> u64 {
    if sample >= average {
        average + ((sample - average) >> EWMA_SHIFT)
    } else {
        average - (average - sample).div_ceil(1 << EWMA_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wake_cost::{WAKE_COST_MAX, WAKE_COST_USUAL as WAKE_COST};

    const GAP_MAX: u64 = WAKE_COST.0 * GAP_FACTOR;

    fn new(mode: PollMode) -> IdlePolicy {
        IdlePolicy::new(mode, WAKE_COST)
    }

    fn after_gaps(mode: PollMode, gap: Nanos, count: usize) -> IdlePolicy {
        let mut policy = new(mode);
        for _ in 0..count {
            policy.burst_after(gap, false);
        }
        policy
    }

    #[test]
    fn first_idle_period_parks() {
        let plan = new(PollMode::Adaptive).plan(Nanos::from_secs(1), false);
        assert_eq!(
            plan,
            Plan {
                spin: Nanos::ZERO,
                warm: Nanos::ZERO,
                park: true
            }
        );
    }

    #[test]
    fn short_gaps_lead_to_spinning_then_warm_then_park() {
        let mut policy = after_gaps(PollMode::Adaptive, Nanos::from_micros(5), 40);
        let plan = policy.plan(Nanos::from_secs(1), false);
        assert!(plan.spin >= WAKE_COST && plan.spin <= Nanos(GAP_MAX));
        assert_eq!(plan.warm, WARM_WAIT);
        assert!(plan.park && policy.is_hot());
    }

    #[test]
    fn long_gaps_lead_to_parking_at_once() {
        let mut policy = after_gaps(PollMode::Adaptive, Nanos::from_millis(5), 40);
        assert_eq!(policy.plan(Nanos::from_secs(1), false).spin, Nanos::ZERO);
        assert!(!policy.is_hot());
    }

    #[test]
    fn time_that_waking_took_is_no_part_of_the_gap() {
        let gap = Nanos(GAP_MAX).after(Nanos(WAKE_COST.0 / 2));
        let hot_after = |slept| {
            let mut policy = new(PollMode::Adaptive);
            (0..200).for_each(|_| policy.burst_after(gap, slept));
            policy.is_hot()
        };
        assert!(hot_after(true) && !hot_after(false));
    }

    #[test]
    fn events_are_expected_once_bursts_come_close_together() {
        let span = Nanos::from_micros(200);
        assert!(new(PollMode::Never).expects_within(span));
        assert!(!new(PollMode::Adaptive).expects_within(span));
        let mut policy = after_gaps(PollMode::Adaptive, Nanos::from_micros(50), 40);
        assert!(policy.expects_within(span));
        (0..8).for_each(|_| policy.burst_after(Nanos::from_secs(1), true));
        assert!(!policy.expects_within(span));
    }

    #[test]
    fn expected_completion_is_worth_one_wake_cost() {
        let mut policy = after_gaps(PollMode::Adaptive, Nanos::from_millis(5), 40);
        assert_eq!(policy.plan(Nanos::from_secs(1), true).spin, WAKE_COST);
    }

    #[test]
    fn one_long_pause_is_forgotten_within_few_bursts() {
        let mut policy = after_gaps(PollMode::Adaptive, Nanos::from_micros(5), 40);
        policy.burst_after(Nanos::from_secs(60), true);
        let bursts = (1..).find(|_| {
            policy.burst_after(Nanos::from_micros(5), false);
            policy.is_hot()
        });
        assert!(bursts <= Some(4));
    }

    #[test]
    fn never_and_always_do_as_they_say_whatever_the_gaps() {
        for gap in [Nanos::from_micros(1), Nanos::from_secs(1)] {
            let never = after_gaps(PollMode::Never, gap, 40).plan(Nanos::ZERO, true);
            assert_eq!(
                never,
                Plan {
                    spin: Nanos::ZERO,
                    warm: Nanos::ZERO,
                    park: true
                }
            );
            let always = after_gaps(PollMode::Always, gap, 40).plan(Nanos::ZERO, false);
            assert!(!always.park && always.spin > Nanos::ZERO);
        }
    }

    proptest! {
        #[test]
        fn spinning_in_vain_stays_within_its_share(
            gaps in prop::collection::vec(0_u64..200_000, 1..400),
        ) {
            let mut policy = after_gaps(PollMode::Adaptive, Nanos::from_micros(1), 40);
            let start = Nanos::from_secs(1);
            // The bucket begins full; from here on only the refill counts.
            policy.plan(start, false);
            let (mut now, mut vain) = (start, 0);
            for gap in gaps {
                let plan = policy.plan(now, false);
                prop_assert!(plan.spin.0 <= GAP_MAX);
                policy.spun_in_vain(plan.spin);
                vain += plan.spin.0;
                now = now.after(Nanos(plan.spin.0 + gap));
                policy.burst_after(Nanos(gap % 10_000), false);
            }
            let elapsed = (now.saturating_sub(start)).0;
            prop_assert!(vain <= TOKENS_MAX + elapsed * DUTY_QUARTERS / 4);
        }

        #[test]
        fn budget_is_bounded_for_any_history(
            gaps in prop::collection::vec(any::<u64>(), 0..100),
            now in any::<u64>(),
            expects in any::<bool>(),
            wake_cost in 0..=WAKE_COST_MAX.0,
        ) {
            let mut policy = IdlePolicy::new(PollMode::Adaptive, Nanos(wake_cost));
            for gap in gaps {
                policy.burst_after(Nanos(gap), gap % 2 == 0);
            }
            let plan = policy.plan(Nanos(now), expects);
            prop_assert!(plan.spin.0 <= (wake_cost * GAP_FACTOR).min(TOKENS_MAX));
        }
    }
}
