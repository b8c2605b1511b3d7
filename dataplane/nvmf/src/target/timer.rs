//! Deadlines of many objects in one order, armed lazily: work on the I/O path hardly touches it.
//!
//! An object has at most one entry, which goes with it: a host may move its deadline as often as it
//! likes. One that moves later leaves the entry alone; when the entry fires, the object looks at its
//! real deadline and arms again. Who is about to sleep until the next entry has it put off first.

use std::collections::BTreeSet;

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
    entries: BTreeSet<(Nanos, TimerKey)>,
}

impl Timers {
    /// Makes sure that `key` fires at `at` or before.
    pub(super) fn arm(&mut self, armed: &mut Armed, key: TimerKey, at: Nanos) {
        if armed.0.is_none_or(|earlier| at < earlier) {
            self.disarm(armed, key);
            armed.0 = Some(at);
            self.entries.insert((at, key));
        }
    }

    /// The object is going.
    pub(super) fn disarm(&mut self, armed: &mut Armed, key: TimerKey) {
        if let Some(at) = armed.0.take() {
            self.entries.remove(&(at, key));
        }
    }

    /// The next entry that is due; its object must pass [`Armed::fires`] before it is believed.
    pub(super) fn pop_due(&mut self, now: Nanos) -> Option<(Nanos, TimerKey)> {
        let due = self.entries.first().is_some_and(|&(at, _)| at <= now);
        due.then(|| self.entries.pop_first()).flatten()
    }

    pub(super) fn next(&self) -> Option<Nanos> {
        self.first().map(|(at, _)| at)
    }

    /// The next entry, due or not.
    pub(super) fn first(&self) -> Option<(Nanos, TimerKey)> {
        self.entries.first().copied()
    }

    /// Moves the entry of `key` to its object's deadline, which is no longer that of the entry.
    pub(super) fn put_off(&mut self, armed: &mut Armed, key: TimerKey, deadline: Option<Nanos>) {
        self.disarm(armed, key);
        if let Some(at) = deadline {
            self.arm(armed, key, at);
        }
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn object_has_one_entry_however_often_its_deadline_moves() {
        let (mut timers, mut armed) = (Timers::default(), Armed::default());
        let key = TimerKey::Connection(7);
        timers.arm(&mut armed, key, Nanos(20));
        timers.arm(&mut armed, key, Nanos(30));
        assert_eq!(timers.next(), Some(Nanos(20)), "later is early enough");
        for at in (10..20).rev() {
            timers.arm(&mut armed, key, Nanos(at));
        }
        assert_eq!(timers.entries.len(), 1);
        assert_eq!(timers.pop_due(Nanos(9)), None);
        assert_eq!(timers.pop_due(Nanos(25)), Some((Nanos(10), key)));
        assert!(armed.fires(Nanos(10)) && !armed.fires(Nanos(10)));
        assert_eq!(timers.next(), None);
        timers.arm(&mut armed, key, Nanos(40));
        timers.disarm(&mut armed, key);
        assert_eq!(timers.next(), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arm(usize, u64),
        Disarm(usize),
        /// Time goes on by so much.
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..KEYS.len(), 0_u64..20).prop_map(|(key, after)| Step::Arm(key, after)),
            1 => (0..KEYS.len()).prop_map(Step::Disarm),
            2 => (0_u64..8).prop_map(Step::Pass),
        ]
    }

    /// In the order of those that fire at one time.
    const KEYS: [TimerKey; 6] = [
        TimerKey::Connection(0),
        TimerKey::Connection(1),
        TimerKey::Controller(0),
        TimerKey::Controller(1),
        TimerKey::AnaTransition(0),
        TimerKey::AnaTransition(1),
    ];

    proptest! {
        /// The model is the earliest time wanted of each object since it last fired or went.
        #[test]
        fn any_object_fires_once_at_its_earliest_time_and_never_once_it_is_gone(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut timers = Timers::default();
            let mut armed: [Armed; KEYS.len()] = Default::default();
            let mut wanted: [Option<u64>; KEYS.len()] = Default::default();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Arm(key, after) => {
                        let at = now + after;
                        timers.arm(&mut armed[key], KEYS[key], Nanos(at));
                        wanted[key] = Some(wanted[key].map_or(at, |earlier| earlier.min(at)));
                    }
                    Step::Disarm(key) => {
                        timers.disarm(&mut armed[key], KEYS[key]);
                        wanted[key] = None;
                    }
                    Step::Pass(time) => {
                        now += time;
                        let due = |at: &Option<u64>| at.is_some_and(|at| at <= now);
                        let mut expected: Vec<(u64, usize)> = (0..KEYS.len())
                            .filter_map(|key| wanted[key].filter(|_| due(&wanted[key])).zip(Some(key)))
                            .collect();
                        expected.sort_unstable();
                        for (at, key) in expected {
                            let popped = timers.pop_due(Nanos(now));
                            prop_assert_eq!(popped, Some((Nanos(at), KEYS[key])));
                            prop_assert!(armed[key].fires(Nanos(at)));
                            wanted[key] = None;
                        }
                        prop_assert_eq!(timers.pop_due(Nanos(now)), None);
                    }
                }
                let earliest = wanted.iter().flatten().min().copied();
                prop_assert_eq!(timers.next(), earliest.map(Nanos));
                prop_assert_eq!(timers.entries.len(), wanted.iter().flatten().count());
            }
        }
    }
}
