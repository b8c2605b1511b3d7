//! What the subsystem of the start flags goes through, kept from one start to the next.

use bowline_api::Failure;
use bowline_nvmf::target::HealthTotals;

use super::{Keeper, SubsystemRecord};
use crate::fleet::Fleet;

/// The record of a running subsystem, and where it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    keeper: Keeper,
    record: SubsystemRecord,
    /// The reactor that serves it.
    reactor: usize,
}

impl SubsystemRecord {
    /// What the protocol machine is to count on from: a run that nobody ended was cut off.
    pub(crate) fn health_before(&self) -> HealthTotals {
        let cut_off = u64::from(self.running);
        HealthTotals {
            unsafe_shutdowns: self.health.unsafe_shutdowns.saturating_add(cut_off),
            ..self.health
        }
    }

    /// What must be known should this run, which begins, be cut off before anything else is
    /// written.
    pub(crate) fn begun(mut self) -> Self {
        self.health = self.health_before();
        self.health.power_cycles = self.health.power_cycles.saturating_add(1);
        self.running = true;
        self
    }
}

impl Health {
    pub(crate) fn new(keeper: Keeper, record: SubsystemRecord, reactor: usize) -> Self {
        Self {
            keeper,
            record,
            reactor,
        }
    }

    pub(crate) fn nqn(&self) -> &str {
        &self.record.nqn
    }

    /// Takes the counters over from the reactor.
    pub(crate) async fn read(&mut self, fleet: &Fleet) -> Result<(), Failure> {
        let nqn = self.record.nqn.clone();
        let totals = fleet.call(self.reactor, move |service, _, now| {
            service.target().health(now, &nqn)
        });
        // Deleted over the API it has no new counters, and those it had stay.
        if let Ok(totals) = totals.await? {
            self.record.health = totals;
        }
        Ok(())
    }

    /// Writes the counters as they were last read.
    pub(crate) async fn save(&self) -> Result<(), Failure> {
        self.keeper.write_subsystem(self.record.clone()).await
    }

    /// Writes that the run came to a regular end.
    pub(crate) async fn end(mut self) -> Result<(), Failure> {
        self.record.running = false;
        self.save().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_that_was_cut_off_is_counted_once_by_the_next() {
        let first = SubsystemRecord::default().begun();
        assert_eq!(first.health.power_cycles, 1);
        assert_eq!(first.health_before().unsafe_shutdowns, 1);
        let second = first.begun();
        assert_eq!(second.health.power_cycles, 2);
        assert_eq!(second.health.unsafe_shutdowns, 1);
        let ended = SubsystemRecord {
            running: false,
            ..second
        };
        assert_eq!(ended.health_before(), ended.health);
    }
}
