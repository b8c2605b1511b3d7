//! Reservations that persist, made with the requests that Linux offers for every block device: what
//! cluster software uses. They must still be in force after the data plane was killed.

use anyhow::{Context, Result};

use super::super::dataplane::{DataPlane, Serves, Setup};
use super::super::image;
use super::super::kernel_log::Phase;
use super::Scenario;
use super::machine::{Machine, SECOND_BYTES, sized};

const NQN: &str = "nqn.2026-11.io.bowline:e2e:persistent";
/// How many hosts come back after a kill.
const HOSTS: usize = 2;

impl Scenario<'_, Machine> {
    /// Needs the kernel without multipath, as the checks of reservations leave it.
    pub(super) fn persistence(&mut self) {
        let mut started = None;
        self.check(
            "two hosts use a disk whose reservations persist",
            Phase::Shared,
            |this| {
                let (_, plane) = started.insert(this.start_with_state()?);
                let port = plane.port;
                this.meet(NQN, port)?;
                this.guest.expect("connects_as_two_hosts").map(drop)
            },
        );
        let Some((setup, plane)) = started else {
            return;
        };
        let mut plane = Some(plane);
        for (claim, command) in [
            (
                "kernel's registrations persist",
                "registers_through_the_kernel",
            ),
            (
                "kernel reserves and releases with every type",
                "reserves_with_every_type",
            ),
            (
                "kernel's reservation keeps the other host out",
                "reserves_through_the_kernel",
            ),
        ] {
            self.guest_check(claim, Phase::Shared, command);
        }
        self.check("both hosts come back after kill -9", Phase::Loss, |this| {
            let old = plane.take().context("no data plane to kill")?;
            let port = old.port;
            old.kill()?;
            plane = Some(DataPlane::start(&setup, port)?);
            this.reconnects(HOSTS)
        });
        for (claim, command) in [
            ("kernel's reservation outlives kill -9", "is_still_reserved"),
            (
                "kernel preempts, releases and clears",
                "preempts_through_the_kernel",
            ),
            (
                "disconnect after persistent reservations",
                "disconnects_both_hosts",
            ),
        ] {
            self.guest_check(claim, Phase::Shared, command);
        }
        self.check(
            "data plane with a state folder stops cleanly",
            Phase::Quiet,
            |_| plane.take().context("no data plane to stop")?.stop(),
        );
    }

    fn start_with_state(&self) -> Result<(Setup, DataPlane)> {
        let device = self.subject.setup.allow_path.join("persistent");
        sized(&device, SECOND_BYTES)?;
        let state = self.subject.folder.join("state");
        std::fs::create_dir_all(&state).context("cannot make the state folder")?;
        let setup = Setup {
            executable: self.subject.setup.executable.clone(),
            device,
            allow_path: self.subject.setup.allow_path.clone(),
            serves: Serves::Whole(NQN.to_owned()),
            host_nqns: vec![
                image::HOST_NQN.to_owned(),
                image::SECOND_HOST_NQN.to_owned(),
            ],
            log: self.subject.setup.log.clone(),
            state: Some(state),
            spdk: None,
            flags: &[],
        };
        let plane = DataPlane::start(&setup, 0)?;
        Ok((setup, plane))
    }
}
