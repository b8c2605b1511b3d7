//! Time that this thread did not run must not be held against its peers.
//!
//! A process that was stopped, or starved by its machine, finds deadlines passed though it could
//! not have heard anybody. A timer that fires late is therefore put off once, by as much as it was
//! late, which lets what has arrived meanwhile be read first.

use bowline_nvme::Nanos;

/// Later than this is a stall of ours; a busy turn is much shorter.
const LATE_MIN: Nanos = Nanos::from_millis(100);

/// The longest time that is given back.
const GRACE_MAX: Nanos = Nanos::from_secs(30);

/// When deadlines may be acted upon.
#[derive(Debug, Default)]
pub(super) struct Grace {
    /// End of the grace that was given last.
    until: Nanos,
}

impl Grace {
    /// Whether the deadline `at` has passed and counts.
    pub(super) fn is_due(&mut self, at: Nanos, now: Nanos) -> bool {
        if now < self.act_at(at) {
            return false;
        }
        let late = now.saturating_sub(at);
        if late > LATE_MIN && self.until <= at {
            self.until = now.after(late.min(GRACE_MAX));
            return false;
        }
        true
    }

    /// When to look at the deadline `at` again.
    pub(super) fn act_at(&self, at: Nanos) -> Nanos {
        at.max(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Nanos = Nanos::from_secs(5);

    #[test]
    fn deadline_met_in_time_counts() {
        let mut grace = Grace::default();
        assert!(!grace.is_due(AT, Nanos::from_secs(4)));
        assert!(grace.is_due(AT, Nanos::from_millis(5050)));
    }

    #[test]
    fn deadline_seen_late_is_put_off_once_by_the_time_lost() {
        let mut grace = Grace::default();
        let seen = Nanos::from_secs(8);
        assert!(!grace.is_due(AT, seen));
        assert_eq!(grace.act_at(AT), Nanos::from_secs(11));
        assert!(!grace.is_due(AT, Nanos::from_secs(10)));
        assert!(
            grace.is_due(AT, Nanos::from_secs(20)),
            "a second stall changes nothing"
        );
    }

    #[test]
    fn later_deadline_gets_a_grace_of_its_own() {
        let mut grace = Grace::default();
        assert!(!grace.is_due(AT, Nanos::from_secs(6)));
        assert!(grace.is_due(AT, Nanos::from_secs(7)));
        assert!(!grace.is_due(Nanos::from_secs(10), Nanos::from_secs(12)));
    }
}
