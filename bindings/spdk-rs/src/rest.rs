//! How long an OS thread with nothing to do leaves its thread of the library alone.
//!
//! Messages of the library's own wake nobody. But they come in one another's wake: who closes a device
//! here sends to those who remove it there, who send back. Whatever may begin that *stirs* all threads:
//! their OS threads are woken, look, and then look again after as long as it has been quiet. What
//! takes t without rests takes at most about 2 t with them, and a thread at rest is looked at once in
//! [`REST_MAX`] only, for what begins in the library by itself: a drive that was pulled out.

use std::time::Duration;

use crate::thread::Thread;

/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(1);
/// The shortest.
const REST_MIN: Duration = Duration::from_millis(1);

/// When a [`Thread`] is to be polled again that had nothing to do.
#[derive(Debug, Default)]
pub struct Rest {
    /// What [`Thread::stirs`] was when it was last looked at.
    stirs: u64,
    /// When that changed, on the caller's clock.
    since: Duration,
}

impl Rest {
    /// How long the thread may be left alone after a poll at `now`, on any clock that does not go
    /// back, unless it [is stirred](Self::is_over). Its pollers are not looked at.
    pub fn after_poll(&mut self, thread: &Thread, now: Duration) -> Duration {
        self.after(thread.stirs(), now)
    }

    /// Whether the thread was stirred since, so that it is to be polled at once.
    #[must_use]
    pub fn is_over(&self, thread: &Thread) -> bool {
        self.stirs != thread.stirs()
    }

    fn after(&mut self, stirs: u64, now: Duration) -> Duration {
        if self.stirs != stirs {
            self.stirs = stirs;
            self.since = now;
        }
        now.saturating_sub(self.since).clamp(REST_MIN, REST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each costs some 70 microseconds when it is cold: there were ten in a second.
    #[test]
    fn quiet_minute_takes_one_poll_a_second() {
        let minute = Duration::from_secs(60);
        let mut rest = Rest::default();
        let mut now = minute;
        let mut polls = 0;
        while now < 2 * minute {
            now += rest.after(1, now);
            polls += 1;
        }
        assert!((60..=72).contains(&polls), "{polls}");
    }

    #[test]
    fn what_comes_after_a_stir_is_seen_within_as_long_again() {
        let mut rest = Rest::default();
        let stirred_at = Duration::from_secs(1000);
        rest.after(0, stirred_at);
        for comes_after_ms in [0, 1, 3, 30, 300] {
            let comes_after = Duration::from_millis(comes_after_ms);
            let mut now = stirred_at;
            let mut rest = Rest::default();
            while now < stirred_at + comes_after {
                now += rest.after(1, now);
            }
            let late = now - stirred_at - comes_after;
            assert!(
                late <= comes_after.max(REST_MIN),
                "{late:?} after {comes_after:?}"
            );
        }
    }
}
