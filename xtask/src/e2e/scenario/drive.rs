//! A data plane in the guest itself, over an NVMe drive that it drives from user space. The guest's
//! kernel is its host, over loopback.

use anyhow::{Result, ensure};

use super::super::Executables;
use super::super::drive::{Access, Attached, Drive, SERIAL};
use super::super::guest::{self, Guest};
use super::super::kernel_log::Phase;
use super::{DISK_BYTES, KILLS, NQN, Run, Scenario, Subject, meet};
use crate::tally::Tally;

/// In the guest, where nobody else listens.
const PORT: u16 = 4420;
/// Of 2 MiB, for a data plane with one reactor.
const HUGE_PAGES: u32 = 384;

/// How a shell tells of a program that SIGILL ended.
const STATUS_ILLEGAL_INSTRUCTION: &str = "132";
const ILLEGAL_INSTRUCTION: &str = "SPDK, or the DPDK under it, was built for a CPU with instructions \
    that the emulated one does not have: the data plane in the guest ended with SIGILL. Build them \
    for x86-64-v3 (SPDK: ./configure --target-arch=x86-64-v3) and set PKG_CONFIG_PATH to that build";

/// Boots the guest and runs every check. An error means that the rest could not be run at all.
pub(crate) fn run(
    run: &Run<'_>,
    executables: &Executables,
    access: Access,
    tally: &mut Tally,
) -> Result<()> {
    let drive = Drive::new(&run.folder.join("drive"), DISK_BYTES, access)?;
    let mut guest = run.boot(&[&executables.bowline], Attached::Drive(&drive))?;
    meet(&mut guest, InGuest::ADDRESS, NQN, PORT)?;
    guest.expect(&format!("prepares_for_drives {HUGE_PAGES}"))?;
    guest.expect(&format!("is_handed_over {}", access.driver()))?;
    if let Err(error) = guest.expect("plane_starts") {
        if ended_with(&mut guest) == STATUS_ILLEGAL_INSTRUCTION {
            tally.unavailable(run.name, &ILLEGAL_INSTRUCTION);
            return Ok(());
        }
        println!("{}", InGuest.log_tail(&mut guest));
        return Err(error);
    }
    let mut scenario = Scenario::new(run.name, guest, InGuest, tally)?;
    scenario.connecting();
    scenario.asking();
    scenario.data();
    scenario.flushes();
    scenario.resets();
    scenario.losses();
    scenario.return_of_the_drive(access);
    scenario.restart_without_the_drive(access);
    scenario.ending();
    ensure!(
        !scenario.abandoned,
        "the guest broke; the remaining checks were not run"
    );
    Ok(())
}

fn ended_with(guest: &mut Guest) -> String {
    let status = guest.run("cat /run/plane.status");
    status.map_or_else(|_| String::new(), |answer| answer.stdout.trim().to_owned())
}

/// The data plane in the guest.
struct InGuest;

impl Subject for InGuest {
    const ADDRESS: &'static str = "127.0.0.1";

    fn log_tail(&self, guest: &mut Guest) -> String {
        let log = guest.run("tail -n 30 /run/plane.log");
        let log = log.map_or_else(|_| String::new(), |answer| answer.stdout);
        match ended_with(guest).as_str() {
            "" => guest::tail(&log, 30),
            STATUS_ILLEGAL_INSTRUCTION => {
                format!("{}    {ILLEGAL_INSTRUCTION}\n", guest::tail(&log, 30))
            }
            status => format!("{}    ended with status {status}\n", guest::tail(&log, 30)),
        }
    }

    fn revive(&mut self, guest: &mut Guest) {
        // If it does not start, the next check says so.
        let _ = guest.run("plane_runs");
    }
}

impl Scenario<'_, InGuest> {
    fn losses(&mut self) {
        self.check(
            "kill -9 of the data plane under load loses nothing",
            Phase::Restart,
            |this| {
                this.guest.expect("keeps_a_sum")?;
                this.guest.expect("load_starts")?;
                for kill in 1..=KILLS {
                    this.guest.expect("plane_ends KILL 137")?;
                    this.guest.expect("plane_starts")?;
                    this.host_comes_back(kill)?;
                    this.guest.expect("load_goes_on")?;
                }
                this.load_ends()?;
                this.guest.expect("is_as_it_was").map(drop)
            },
        );
    }

    fn flushes(&mut self) {
        self.check("a host's Flush reaches the drive", Phase::Quiet, |this| {
            this.guest.expect("fill \"$(disk 1)\" 0 4")?;
            let before = this.guest.drive_flushes()?;
            this.guest
                .expect("nvme flush \"$(disk 1)\" --namespace-id=1")?;
            let after = this.guest.drive_flushes()?;
            ensure!(after > before, "{before} before it, and after it too");
            Ok(())
        });
    }

    /// With a new data plane it would be less of a feat.
    fn return_of_the_drive(&mut self, access: Access) {
        let hand_over = format!("is_handed_over {}", access.driver());
        self.check(
            "I/O to a drive that was pulled fails, and its controller stays",
            Phase::Pulled,
            |this| {
                this.guest.expect("keeps_a_sum")?;
                this.guest.expect("load_starts")?;
                this.guest.unplug_drive()?;
                this.guest.expect("load_fails").map(drop)
            },
        );
        self.check(
            "another drive in its place is not served",
            Phase::Restart,
            |this| {
                this.guest.plug_drive("another")?;
                this.guest.expect(&hand_over)?;
                this.guest.expect("refuses_the_drive")?;
                this.guest.unplug_drive()
            },
        );
        self.check(
            "drive that is back in its place is served by the same process",
            Phase::Restart,
            |this| {
                this.guest.plug_drive(SERIAL)?;
                this.guest.expect(&hand_over)?;
                this.guest.expect("has_its_drive_back")?;
                this.guest.expect("is_as_it_was").map(drop)
            },
        );
        self.check("drive that was pulled verifies", Phase::Quiet, |this| {
            this.guest.expect("load_starts")?;
            this.load_ends()
        });
    }

    fn restart_without_the_drive(&mut self, access: Access) {
        let hand_over = format!("is_handed_over {}", access.driver());
        self.check(
            "data plane without its drive says that it is not flushed, and its successor serves it",
            Phase::Restart,
            |this| {
                this.guest.expect("keeps_a_sum")?;
                this.guest.unplug_drive()?;
                this.guest.expect("stops_without_its_drive")?;
                this.guest.plug_drive(SERIAL)?;
                this.guest.expect(&hand_over)?;
                this.guest.expect("plane_starts")?;
                this.host_comes_back(1)?;
                this.guest.expect("is_as_it_was").map(drop)
            },
        );
    }

    fn ending(&mut self) {
        self.guest_check("disconnect removes the disk", Phase::Quiet, "disconnects");
        self.guest_check(
            "SIGTERM stops the data plane cleanly",
            Phase::Quiet,
            "plane_ends TERM 0",
        );
    }
}
