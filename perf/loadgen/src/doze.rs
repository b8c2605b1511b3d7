//! How long to sleep between two looks at the sockets, so that neither client nor target waits for
//! the other: on waking, most of what was outstanding is back, and the target still has the rest.
//! Pure arithmetic.
//!
//! Unlike a thread that parks, one that sleeps by the clock costs the target nothing: nobody has to
//! wake it. Unlike one that spins, it uses no processor time while the target works.

use bowline_nvme::Nanos;

const SPAN_FIRST: Nanos = Nanos::from_micros(10);
/// The kernel's own part of a sleep is several times that.
const SPAN_MIN: Nanos = Nanos::from_micros(1);
const SPAN_MAX: Nanos = Nanos::from_micros(200);
/// The span changes by one part of so many at a time.
const STEP_PARTS: u64 = 8;
/// And by this at least, so that short spans do not take for ever to grow.
const STEP_MIN: Nanos = Nanos(250);

/// Follows what each turn found.
#[derive(Debug)]
pub(crate) struct Doze {
    span: Nanos,
}

impl Doze {
    pub(crate) const fn new() -> Self {
        Self { span: SPAN_FIRST }
    }

    /// How long to sleep now.
    pub(crate) const fn span(&self) -> Nanos {
        self.span
    }

    /// After the last sleep, `back` of the `outstanding` commands had completed. Less than half: it
    /// was too short. Seven eighths or more: the target had little left to do.
    pub(crate) fn found(&mut self, back: u64, outstanding: u64) {
        if outstanding == 0 {
            return;
        }
        let step = Nanos(self.span.0 / STEP_PARTS).max(STEP_MIN);
        if back.saturating_mul(2) < outstanding {
            self.span = self.span.after(step).min(SPAN_MAX);
        } else if back.saturating_mul(8) >= outstanding.saturating_mul(7) {
            self.span = self.span.saturating_sub(step).max(SPAN_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that completes a command every `each` of the time that the client sleeps, which
    /// takes `extra` longer than it asked for.
    fn settle(each: u64, extra: u64, depth: u64) -> (Doze, u64) {
        let (mut doze, mut back) = (Doze::new(), 0);
        for _ in 0..2000 {
            back = ((doze.span().0 + extra) / each).min(depth);
            doze.found(back, depth);
        }
        (doze, back)
    }

    #[test]
    fn sleeps_until_most_of_the_queue_is_back_and_not_longer() {
        for each in [100, 500, 2000] {
            let (_, back) = settle(each, 0, 32);
            assert!((16..28).contains(&back), "{each} ns: {back}");
        }
    }

    #[test]
    fn target_that_is_faster_than_the_shortest_sleep_gets_the_shortest() {
        assert_eq!(settle(100, 20_000, 32).0.span(), SPAN_MIN);
    }

    #[test]
    fn target_that_stalls_gets_the_longest_and_a_quick_one_is_found_again() {
        let mut doze = settle(u64::MAX, 0, 32).0;
        assert_eq!(doze.span(), SPAN_MAX);
        let until = (1..).find(|_| {
            doze.found(32, 32);
            doze.span() < Nanos::from_micros(20)
        });
        assert!(until < Some(30));
    }

    #[test]
    fn nothing_outstanding_says_nothing() {
        let mut doze = Doze::new();
        doze.found(0, 0);
        assert_eq!(doze.span(), SPAN_FIRST);
    }
}
