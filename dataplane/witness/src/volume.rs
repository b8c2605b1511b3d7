//! A volume and its snapshots: the ledger of each, from one stream of events.

use std::collections::BTreeMap;

use crate::ledger::{Ledger, Operation};

/// What happens to a volume, in the order in which its host knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// About to be submitted.
    Begin(Operation),
    /// Acknowledged: the operation's number.
    End(u32),
    /// A snapshot with this number is about to be asked for.
    SnapshotBegins(u32),
    /// It was taken.
    SnapshotEnds(u32),
}

/// A snapshot: it has what was acknowledged before it was asked for, and nothing that was begun
/// after it was taken.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What its blocks may hold.
    pub ledger: Ledger,
    /// Acknowledged; otherwise it may be there or not.
    pub is_taken: bool,
}

/// The newest state and those kept.
#[derive(Debug, Clone)]
pub struct Volume {
    /// What the volume's blocks may hold.
    pub ledger: Ledger,
    /// By their numbers.
    pub snapshots: BTreeMap<u32, Snapshot>,
}

impl Volume {
    /// Without snapshots.
    #[must_use]
    pub fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            snapshots: BTreeMap::new(),
        }
    }

    /// Takes note of an event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Begin(operation) => {
                self.ledger.begin(operation);
                for snapshot in self.snapshots.values_mut().filter(|one| !one.is_taken) {
                    snapshot.ledger.begin(operation);
                }
            }
            Event::End(number) => self.ledger.end(number),
            Event::SnapshotBegins(number) => {
                let snapshot = Snapshot {
                    ledger: self.ledger.clone(),
                    is_taken: false,
                };
                self.snapshots.insert(number, snapshot);
            }
            Event::SnapshotEnds(number) => {
                if let Some(snapshot) = self.snapshots.get_mut(&number) {
                    snapshot.is_taken = true;
                }
            }
        }
    }

    /// Whoever acknowledges is gone.
    pub fn cut(&mut self) {
        self.ledger.cut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Kind, Promise};

    fn write(volume: &mut Volume, number: u32, ends: bool) -> Vec<u8> {
        let operation = Operation {
            number,
            kind: Kind::Write,
            lba: 0,
            blocks: 1,
        };
        let mut data = vec![0; 512];
        volume.ledger.fill(operation, &mut data);
        volume.apply(Event::Begin(operation));
        if ends {
            volume.apply(Event::End(number));
        }
        data
    }

    #[test]
    fn snapshot_has_what_was_acknowledged_before_it_and_nothing_begun_after_it() {
        let mut volume = Volume::new(Ledger::new(1, 512, 4, Promise::Always));
        let before = write(&mut volume, 1, true);
        let last = write(&mut volume, 2, true);
        volume.apply(Event::SnapshotBegins(1));
        // Both were acknowledged meanwhile, so either may be in it.
        let meanwhile = [write(&mut volume, 3, true), write(&mut volume, 4, true)];
        volume.apply(Event::SnapshotEnds(1));
        let after = write(&mut volume, 5, false);
        let snapshot = &volume.snapshots[&1].ledger;
        assert!(snapshot.check(0, &before).is_err());
        assert!(snapshot.check(0, &after).is_err());
        for data in [&last, &meanwhile[0], &meanwhile[1]] {
            assert_eq!(snapshot.check(0, data), Ok(1));
        }
        assert!(volume.ledger.check(0, &last).is_err());
        assert_eq!(volume.ledger.check(0, &after), Ok(1));
    }
}
