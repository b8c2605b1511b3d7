//! Two hosts and one disk: reservations as nvme-cli makes them, and the conflicts that writes and
//! reads of the other host meet. One kernel plays both hosts; without multipath each has a block
//! device of its own.

use super::super::kernel_log::Phase;
use super::machine::Machine;
use super::{NQN, Scenario};

impl Scenario<'_, Machine> {
    pub(super) fn reservations(&mut self) {
        let port = self.subject.port;
        self.check("two hosts use one disk", Phase::Shared, |this| {
            this.meet(NQN, port)?;
            this.guest.expect("gives_multipath_up")?;
            this.guest.expect("connects_as_two_hosts").map(drop)
        });
        for (claim, command) in [
            (
                "reservation report counts who registered",
                "registers_both_hosts",
            ),
            (
                "Write Exclusive keeps the other host from writing",
                "reserves_writing",
            ),
            (
                "reservation outlives a reset of its holder",
                "keeps_its_reservation_over_a_reset",
            ),
            (
                "released reservation keeps nobody out",
                "releases_its_reservation",
            ),
            (
                "Registrants Only admits who is registered",
                "admits_registrants",
            ),
            (
                "preempted host loses its access and is told",
                "preempts_the_other_host",
            ),
            ("clear forgets every registrant", "clears_all_reservations"),
            ("disconnect of both hosts", "disconnects_both_hosts"),
        ] {
            self.guest_check(claim, Phase::Shared, command);
        }
    }
}
