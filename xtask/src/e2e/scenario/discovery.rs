//! A discovery controller that stays: it tells the host of changes, under the well-known name and
//! under its own.

use super::super::image;
use super::super::kernel_log::Phase;
use super::machine::{DISCOVERY_NQN, Machine};
use super::{NQN, Scenario};

/// Comes and goes while a host listens.
const PASSING_NQN: &str = "nqn.2026-11.io.bowline:e2e:passing";

impl Scenario<'_, Machine> {
    pub(super) fn discovery(&mut self) {
        let port = self.subject.port;
        self.check(
            "persistent discovery tells of a new subsystem",
            Phase::Quiet,
            |this| {
                this.meet(NQN, port)?;
                this.guest.expect("stays_with_discovery")?;
                let plane = this.subject.plane()?;
                plane.manage(&["subsystem", "create", PASSING_NQN])?;
                plane.manage(&["host", "allow", PASSING_NQN, image::HOST_NQN])?;
                let lists = format!("hears_of_change {PASSING_NQN} 1");
                this.guest.expect(&lists).map(drop)
            },
        );
        self.check(
            "persistent discovery tells of a deleted subsystem",
            Phase::Quiet,
            |this| {
                this.subject
                    .plane()?
                    .manage(&["subsystem", "delete", PASSING_NQN])?;
                let lists = format!("hears_of_change {PASSING_NQN} 0");
                this.guest.expect(&lists)?;
                this.guest.expect("leaves_discovery").map(drop)
            },
        );
        let unique = format!("discovers_by_name {DISCOVERY_NQN}");
        self.guest_check(
            "discovery answers to a name of its own",
            Phase::Quiet,
            &unique,
        );
    }
}
