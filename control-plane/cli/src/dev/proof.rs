//! The proof: write, verify, kill, restart, verify.

use std::net::SocketAddr;
use std::time::Instant;

use super::child::{DataPlane, Plan, Ready};
use super::disk::{Access, Disk, DiskError, Job, Moved};
use super::folder::Folder;
use super::ledger::{Ledger, Mismatch, Phase};
use super::report::Report;
use super::signals::Signals;
use super::{BLOCK_BYTES, NQN};
use crate::error::CliError;
use crate::size::Size;

/// Commands in flight.
const DEPTH: usize = 32;
/// Blocks of a verifying read: 256 KiB.
const VERIFY_BLOCKS: u32 = (256 << 10) / BLOCK_BYTES;
/// The drive is a multiple of this, so that every transfer size divides it.
const SIZE_UNIT: u64 = 1 << 20;
/// Durable writes wait for the medium, so there are few.
const FUA_COMMANDS: u64 = 64;

/// A round of writes.
struct Round {
    what: &'static str,
    /// Bytes of one command.
    transfer_bytes: u32,
    order: Order,
    fua: bool,
    /// At most this many commands.
    commands_max: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Sequential,
    Scattered,
}

/// The rounds before the process is killed; the first reaches every block.
const ROUNDS: [Round; 4] = [
    Round {
        what: "1 MiB, sequential",
        transfer_bytes: 1 << 20,
        order: Order::Sequential,
        fua: false,
        commands_max: u64::MAX,
    },
    Round {
        what: "4 KiB, scattered",
        transfer_bytes: 4 << 10,
        order: Order::Scattered,
        fua: false,
        commands_max: 4096,
    },
    Round {
        what: "16 KiB, scattered, durable (FUA)",
        transfer_bytes: 16 << 10,
        order: Order::Scattered,
        fua: true,
        commands_max: FUA_COMMANDS,
    },
    Round {
        what: "128 KiB, scattered",
        transfer_bytes: 128 << 10,
        order: Order::Scattered,
        fua: false,
        commands_max: 256,
    },
];

/// The round during which the process is killed: never flushed.
const LAST_ROUND: Round = Round {
    what: "32 KiB, scattered, not flushed",
    transfer_bytes: 32 << 10,
    order: Order::Scattered,
    fua: false,
    commands_max: 1024,
};

/// The round after it came back, with digests.
const DIGEST_ROUND: Round = Round {
    what: "64 KiB, scattered, with digests",
    transfer_bytes: 64 << 10,
    order: Order::Scattered,
    fua: false,
    commands_max: 128,
};

/// Where proofs happen.
pub(crate) struct Bench<'a> {
    pub(crate) folder: &'a Folder,
    pub(crate) report: &'a Report,
    pub(crate) signals: &'a Signals,
}

impl Bench<'_> {
    /// Starts a data plane over the drive, at the addresses of its predecessor if any.
    pub(crate) fn start(
        &self,
        again: Option<Ready>,
        block_bytes: u32,
    ) -> Result<DataPlane, CliError> {
        let begun = Instant::now();
        let (drive, log) = (self.folder.drive(), self.folder.log());
        let plane = DataPlane::start(
            self.signals,
            &Plan {
                drive: &drive,
                nqn: NQN,
                block_bytes,
                log: &log,
                again,
            },
        )?;
        let took = begun.elapsed().as_millis();
        let text = format!(
            "pid {}, {}, ready in {took} ms",
            plane.pid(),
            plane.address()?
        );
        self.report.step("start", text);
        Ok(plane)
    }

    /// Verifies what an earlier run wrote and kept.
    pub(crate) fn verify_earlier(&self, mut ledger: Ledger) -> Result<(), CliError> {
        let mut plane = self.start(None, ledger.block_bytes)?;
        let address = plane.address()?;
        let verified = Disk::connect(address, false).and_then(|mut disk| {
            self.check_size(&disk, &ledger)?;
            self.verify(&mut disk, &mut ledger, "what an earlier run kept")
                .map_err(|error| {
                    error.hint(format!(
                        "the drive, its ledger and the log are kept in {0}; delete {0} to start \
                         anew",
                        self.folder.path().display()
                    ))
                })?;
            disk.disconnect()
        });
        plane.blame(verified)?;
        plane.stop()
    }

    /// Writes a new drive and proves it; gives the running data plane and the ledger.
    pub(crate) fn prove(&self, size: Size) -> Result<(DataPlane, Ledger), CliError> {
        let bytes = size.0 - size.0 % SIZE_UNIT;
        let (seed, _) = uuid::Uuid::new_v4().as_u64_pair();
        let mut ledger = Ledger::new(seed, BLOCK_BYTES, bytes / u64::from(BLOCK_BYTES));
        // The ledger first: a drive without one would not be recognised as ours.
        self.folder.store(&ledger, Phase::Writing)?;
        self.folder.make_drive(bytes)?;

        let mut plane = self.start(None, BLOCK_BYTES)?;
        let address = plane.address()?;
        let written = self.before_the_kill(address, &mut ledger);
        let mut disk = plane.blame(written)?;
        let mut plane = self.kill_and_restart(plane, &mut disk, &mut ledger)?;
        let verified = self.after_the_kill(disk, address, &mut ledger);
        plane.blame(verified)?;
        self.folder.store(&ledger, Phase::Acknowledged)?;
        Ok((plane, ledger))
    }

    fn before_the_kill(&self, address: SocketAddr, ledger: &mut Ledger) -> Result<Disk, CliError> {
        let mut disk = Disk::connect(address, false)?;
        self.check_size(&disk, ledger)?;
        for round in &ROUNDS {
            self.write(&mut disk, ledger, round)?;
        }
        let flushed = disk.flush()?;
        self.report
            .step("flush", format!("in {} ms", flushed.took.as_millis()));
        self.verify(&mut disk, ledger, "before the kill")?;
        Ok(disk)
    }

    fn after_the_kill(
        &self,
        mut disk: Disk,
        address: SocketAddr,
        ledger: &mut Ledger,
    ) -> Result<(), CliError> {
        self.verify(&mut disk, ledger, "after the kill")?;
        disk.disconnect()?;
        let mut disk = Disk::connect(address, true)?;
        self.write(&mut disk, ledger, &DIGEST_ROUND)?;
        disk.flush()?;
        self.verify(&mut disk, ledger, "with digests")?;
        disk.disconnect()
    }

    /// Kills the process while writes are in flight, and starts another in its place.
    fn kill_and_restart(
        &self,
        plane: DataPlane,
        disk: &mut Disk,
        ledger: &mut Ledger,
    ) -> Result<DataPlane, CliError> {
        let jobs = jobs(&LAST_ROUND, ledger);
        let half = jobs.len() as u64 / 2;
        let moved = disk
            .run(ledger, self.signals, DEPTH, Some(half), jobs)
            .map_err(|error| self.explain(error))?;
        self.show("write", LAST_ROUND.what, moved);
        let pid = plane.pid();
        let ready = plane.kill()?;
        let lost = disk.settle(ledger).map_err(|error| self.explain(error))?;
        self.report.step(
            "kill",
            format!("SIGKILL to pid {pid} with {lost} writes in flight"),
        );
        let plane = self.start(Some(ready), BLOCK_BYTES)?;
        let took = disk.reconnected()?;
        self.report.step(
            "reconnect",
            format!("in {} ms after that", took.as_millis()),
        );
        Ok(plane)
    }

    fn write(&self, disk: &mut Disk, ledger: &mut Ledger, round: &Round) -> Result<(), CliError> {
        let jobs = jobs(round, ledger);
        let moved = disk
            .run(ledger, self.signals, DEPTH, None, jobs)
            .map_err(|error| self.explain(error))?;
        self.show("write", round.what, moved);
        Ok(())
    }

    /// Reads everything and compares it with the ledger.
    fn verify(&self, disk: &mut Disk, ledger: &mut Ledger, what: &str) -> Result<(), CliError> {
        let blocks = ledger.blocks();
        let jobs = (0..blocks)
            .step_by(VERIFY_BLOCKS as usize)
            .map(move |lba| Job {
                access: Access::Verify,
                lba,
                blocks: u32::try_from(blocks - lba)
                    .unwrap_or(u32::MAX)
                    .min(VERIFY_BLOCKS),
            });
        let moved = disk
            .run(ledger, self.signals, DEPTH, None, jobs)
            .map_err(|error| self.explain(error))?;
        self.show("verify", what, moved);
        Ok(())
    }

    fn check_size(&self, disk: &Disk, ledger: &Ledger) -> Result<(), CliError> {
        let (blocks, block_bytes) = disk.geometry()?;
        if block_bytes == ledger.block_bytes && blocks >= ledger.blocks() {
            return Ok(());
        }
        Err(
            CliError::failed("the drive does not have the size it should have")
                .cause(format!(
                    "it has {blocks} blocks of {block_bytes} bytes; the ledger knows {} of {}",
                    ledger.blocks(),
                    ledger.block_bytes
                ))
                .hint(format!(
                    "the drive and the ledger are in {}",
                    self.folder.path().display()
                )),
        )
    }

    fn show(&self, step: &str, what: &str, moved: Moved) {
        self.report
            .moved(step, what, moved.commands, moved.bytes, moved.took);
        if moved.reconnects > 0 {
            let times = moved.reconnects;
            let text = format!("connections lost and taken up again meanwhile: {times}");
            self.report.note(&text);
        }
    }

    fn explain(&self, error: DiskError) -> CliError {
        match error {
            DiskError::Host(error) => error.hint(format!(
                "the data plane's log is {}",
                self.folder.log().display()
            )),
            DiskError::Mismatch(Mismatch {
                lba,
                expected,
                damage,
            }) => CliError::failed(format!(
                "block {lba} does not hold what was acknowledged: {damage}"
            ))
            .cause(format!(
                "write number {expected} of it was acknowledged; it begins at byte {} of the drive",
                lba * u64::from(BLOCK_BYTES)
            ))
            .hint(format!(
                "the drive, its ledger and the log are kept in {}",
                self.folder.path().display()
            )),
        }
    }
}

/// The commands of a round: every range at most once, so that none overlap.
fn jobs(round: &Round, ledger: &Ledger) -> Vec<Job> {
    let blocks = round.transfer_bytes / ledger.block_bytes;
    let places = ledger.blocks() / u64::from(blocks);
    // A step coprime to the number of places reaches each of them once.
    let step = match round.order {
        Order::Sequential => 1,
        Order::Scattered => coprime_step(places),
    };
    (0..places.min(round.commands_max))
        .map(|index| Job {
            access: Access::Write { fua: round.fua },
            lba: index * step % places * u64::from(blocks),
            blocks,
        })
        .collect()
}

/// About 0.62 of the number of places: neighbours in time are far apart in place.
fn coprime_step(places: u64) -> u64 {
    let start = places / 100 * 62 + 1;
    (start..start + places)
        .find(|step| gcd(*step, places) == 1)
        .unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn rounds_never_overlap_and_stay_within_the_drive() {
        for mib in [8, 64, 100, 1021] {
            let ledger = Ledger::new(1, BLOCK_BYTES, (mib << 20) / u64::from(BLOCK_BYTES));
            for round in ROUNDS.iter().chain([&LAST_ROUND, &DIGEST_ROUND]) {
                let jobs = jobs(round, &ledger);
                let places: HashSet<u64> = jobs.iter().map(|job| job.lba).collect();
                assert_eq!(places.len(), jobs.len(), "{} on {mib} MiB", round.what);
                let within = |job: &Job| job.lba + u64::from(job.blocks) <= ledger.blocks();
                assert!(jobs.iter().all(within), "{} on {mib} MiB", round.what);
            }
        }
    }

    #[test]
    fn first_round_reaches_every_block() {
        let ledger = Ledger::new(1, BLOCK_BYTES, (64 << 20) / u64::from(BLOCK_BYTES));
        let blocks: u64 = jobs(&ROUNDS[0], &ledger)
            .iter()
            .map(|job| u64::from(job.blocks))
            .sum();
        assert_eq!(blocks, ledger.blocks());
    }
}
