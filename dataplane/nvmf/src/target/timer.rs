//! Deadlines of many objects in one heap, armed lazily: work on the I/O path never touches it.
//!
//! An object has at most one live entry. A deadline that moves later leaves the entry alone; when
//! the entry fires, the object looks at its real deadline and arms again. Only a deadline that
//! moves earlier adds an entry, and the older one is recognised as stale by its time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bowline_nvme::Nanos;

/// The time an object is armed for.
#[derive(Debug, Default)]
pub(super) struct Armed(Option<Nanos>);

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimerKey {
    Connection(u32),
    Controller(u32),
    /// An ANA group of the subsystem must leave the state Change.
    AnaTransition(u32),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Nanos, TimerKey)>>,
}

impl Timers {
    /// Makes sure that `key` fires at `at` or before.
    pub(super) fn arm(&mut self, armed: &mut Armed, key: TimerKey, at: Nanos) {
        if armed.0.is_none_or(|earlier| at < earlier) {
            armed.0 = Some(at);
            self.heap.push(Reverse((at, key)));
        }
    }

    /// The next entry that is due; its object must pass [`Armed::fires`] before it is believed.
    pub(super) fn pop_due(&mut self, now: Nanos) -> Option<(Nanos, TimerKey)> {
        let Reverse((at, _)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    pub(super) fn next(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

impl Armed {
    /// Whether the entry of time `at` is the live one; disarms if so.
    pub(super) fn fires(&mut self, at: Nanos) -> bool {
        let live = self.0 == Some(at);
        if live {
            self.0 = None;
        }
        live
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_deadline_adds_no_entry_and_earlier_one_makes_the_old_stale() {
        let (mut timers, mut armed) = (Timers::default(), Armed::default());
        let key = TimerKey::Connection(7);
        timers.arm(&mut armed, key, Nanos(20));
        timers.arm(&mut armed, key, Nanos(30));
        assert_eq!(timers.heap.len(), 1);
        timers.arm(&mut armed, key, Nanos(10));
        assert_eq!(timers.next(), Some(Nanos(10)));
        assert_eq!(timers.pop_due(Nanos(9)), None);
        let (at, _) = timers.pop_due(Nanos(25)).expect("due");
        assert!(armed.fires(at));
        let (at, _) = timers.pop_due(Nanos(25)).expect("the stale one");
        assert!(!armed.fires(at));
        assert_eq!(timers.next(), None);
    }
}
