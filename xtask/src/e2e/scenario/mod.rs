//! What a host must be able to do with a data plane, in the order in which a host does it. Every
//! check is counted by its claim, and the guest's kernel log must have stayed clean during it.

mod discovery;
pub(crate) mod drive;
mod host;
pub(crate) mod machine;
mod paths;
mod persistence;
pub(crate) mod power;
mod reservations;
mod volumes;

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use super::drive::Attached;
use super::guest::{self, Guest};
use super::image;
use super::kernel::Kernel;
use super::kernel_log::Phase;
use crate::tally::Tally;

const NQN: &str = "nqn.2026-11.io.bowline:e2e:disk";
const DISK_BYTES: u64 = 256 << 20;
const SECTOR_BYTES: u64 = 512;
/// Controller resets and kills of the data plane under load.
const RESETS: u32 = 3;
const KILLS: usize = 2;
/// How often to look whether the host reconnected; each look takes 0.3 s at least.
const RECONNECT_LOOKS: u32 = 400;

/// One run of a scenario: its name, what it runs on, and where it keeps its files.
pub(crate) struct Run<'a> {
    pub(crate) name: &'a str,
    pub(crate) kernel: &'a Kernel,
    pub(crate) folder: &'a Path,
    pub(crate) deadline: Instant,
}

impl Run<'_> {
    /// A guest with `programs` of ours among its programs, and perhaps with a drive.
    fn boot(&self, programs: &[&Path], drive: Attached<'_>) -> Result<Guest> {
        let initramfs = self.folder.join("initramfs");
        image::write(&initramfs, self.kernel, programs)?;
        let started = Instant::now();
        let guest = Guest::boot(self.kernel, &initramfs, drive, self.folder, self.deadline);
        let guest = guest.inspect_err(|_| {
            println!("{}", guest::file_tail(&self.folder.join("console.log"), 30));
        })?;
        println!(
            "{}: {} up in {:.1} s",
            self.name,
            self.kernel.version,
            started.elapsed().as_secs_f64()
        );
        Ok(guest)
    }
}

/// The data plane that a scenario looks at, and where it runs.
trait Subject {
    /// Where the guest finds it.
    const ADDRESS: &'static str;

    /// The end of what it said, for people.
    fn log_tail(&self, guest: &mut Guest) -> String;

    /// After a failure: it runs again, if it does not.
    fn revive(&mut self, guest: &mut Guest);
}

fn meet(guest: &mut Guest, address: &str, nqn: &str, port: u16) -> Result<()> {
    let command = format!("echo 'ADDRESS={address} PORT={port} NQN={nqn}' >/run/peer");
    guest.expect(&command).map(drop)
}

struct Scenario<'a, S> {
    name: &'a str,
    guest: Guest,
    subject: S,
    /// Bytes of the kernel's log that earlier checks have judged.
    log_seen: usize,
    tally: &'a mut Tally,
    /// The guest broke or does not answer any more: nothing else can be checked.
    abandoned: bool,
}

impl<'a, S: Subject> Scenario<'a, S> {
    fn new(name: &'a str, mut guest: Guest, subject: S, tally: &'a mut Tally) -> Result<Self> {
        let log_seen = guest.kernel_log()?.len();
        Ok(Self {
            name,
            guest,
            subject,
            log_seen,
            tally,
            abandoned: false,
        })
    }

    /// Tells the guest where its peer is.
    fn meet(&mut self, nqn: &str, port: u16) -> Result<()> {
        meet(&mut self.guest, S::ADDRESS, nqn, port)
    }

    /// Ends the load after one more whole pass.
    fn load_ends(&mut self) -> Result<()> {
        self.guest.expect("load_passes")?;
        self.guest.expect("load_ends").map(drop)
    }

    /// Waits until the host has reconnected for the `count`th time in this check. It says "live" for
    /// a while after the data plane died, so its state alone proves nothing, and a second kill while
    /// it connects would cost it the minute after which it gives a Connect up.
    fn host_comes_back(&mut self, count: usize) -> Result<()> {
        self.reconnects(count)?;
        self.guest.expect("is_back").map(drop)
    }

    fn reconnects(&mut self, count: usize) -> Result<()> {
        for _ in 0..RECONNECT_LOOKS {
            if self.guest.kernel_log()?.reconnects(self.log_seen) >= count {
                return Ok(());
            }
            self.guest.expect("sleep 0.2")?;
        }
        bail!("the host did not reconnect")
    }

    /// A check that is one command in the guest.
    fn guest_check(&mut self, claim: &str, phase: Phase, command: &str) {
        self.check(claim, phase, |this| this.guest.expect(command).map(drop));
    }

    fn check(&mut self, claim: &str, phase: Phase, body: impl FnOnce(&mut Self) -> Result<()>) {
        if self.abandoned {
            return;
        }
        let (started, seen) = (Instant::now(), self.log_seen);
        let result = body(self);
        let log = self.judge_log(phase);
        let name = format!("{}: {claim}", self.name);
        match result.and(log) {
            Ok(()) => {
                self.tally.passed(&name, started.elapsed());
            }
            Err(error) => {
                self.tally.failed(&name, &format!("{error:#}"));
                println!("  guest's kernel:\n{}", self.guest.console_tail(seen, 30));
                println!("  data plane:\n{}", self.subject.log_tail(&mut self.guest));
                self.recover();
            }
        }
    }

    /// Every line of the kernel's log since the last check is expected in this phase.
    fn judge_log(&mut self, phase: Phase) -> Result<()> {
        let log = self.guest.kernel_log()?;
        let offences = log.offences(self.log_seen, phase);
        let text = offences.join("\n    | ");
        let clean = offences.is_empty();
        self.log_seen = log.len();
        self.abandoned = log.is_broken();
        if clean {
            Ok(())
        } else {
            bail!("unexpected in the kernel's log:\n    | {text}")
        }
    }

    /// After a failure: the next checks start with a live data plane and a guest that answers.
    fn recover(&mut self) {
        self.subject.revive(&mut self.guest);
        self.abandoned |= self.guest.run("load_is_over").is_err();
    }
}
