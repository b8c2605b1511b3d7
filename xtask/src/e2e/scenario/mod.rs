//! What a host must be able to do with a data plane, in the order in which a host does it. Every
//! check is counted by its claim, and the guest's kernel log must have stayed clean during it.

mod discovery;
mod paths;
mod persistence;
mod reservations;

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::Executables;
use super::capture;
use super::dataplane::{self, DataPlane, Setup};
use super::guest::Guest;
use super::image;
use super::kernel::Kernel;
use super::kernel_log::Phase;
use crate::tally::Tally;

/// The data plane's own name for its discovery.
const DISCOVERY_NQN: &str = "nqn.2026-11.io.bowline:e2e:discovery";
const NQN: &str = "nqn.2026-11.io.bowline:e2e:disk";
const DISK_BYTES: u64 = 256 << 20;
const SECOND_BYTES: u64 = 32 << 20;
const SECOND_GROWN_BYTES: u64 = 48 << 20;
const SECTOR_BYTES: u64 = 512;
/// Controller resets and kills of the data plane under load.
const RESETS: u32 = 3;
const KILLS: usize = 2;
/// How often to look whether the host reconnected; each look takes 0.3 s at least.
const RECONNECT_LOOKS: u32 = 400;

/// Boots the guest and runs every check. An error means that the rest could not be run at all.
pub(crate) fn run(
    name: &str,
    executables: &Executables,
    kernel: &Kernel,
    folder: &Path,
    deadline: Instant,
    tally: &mut Tally,
) -> Result<()> {
    let setup = setup(&executables.bowline, folder)?;
    let initramfs = folder.join("initramfs");
    image::write(&initramfs, kernel, &executables.perf)?;
    let started = Instant::now();
    let guest = Guest::boot(kernel, &initramfs, folder, deadline);
    let guest = guest.inspect_err(|_| {
        println!("{}", dataplane::log_tail(&folder.join("console.log"), 30));
    })?;
    println!(
        "{name}: {} up in {:.1} s",
        kernel.version,
        started.elapsed().as_secs_f64()
    );
    let plane = DataPlane::start(&setup, 0);
    let plane = plane.inspect_err(|_| println!("{}", dataplane::log_tail(&setup.log, 30)))?;
    let mut scenario = Scenario {
        name,
        folder,
        setup,
        guest,
        port: plane.port,
        plane: Some(plane),
        log_seen: 0,
        tally,
        abandoned: false,
    };
    let port = scenario.port;
    scenario.meet(NQN, port)?;
    scenario.log_seen = scenario.guest.kernel_log()?.len();
    scenario.connecting();
    scenario.asking();
    scenario.data();
    scenario.fio_jobs();
    scenario.namespaces();
    scenario.disturbances();
    scenario.digests();
    scenario.captures();
    scenario.discovery();
    scenario.paths();
    scenario.reservations();
    scenario.persistence();
    scenario.ending();
    ensure!(
        !scenario.abandoned,
        "the guest broke; the remaining checks were not run"
    );
    Ok(())
}

fn setup(executable: &Path, folder: &Path) -> Result<Setup> {
    let backing = folder.join("backing");
    fs::create_dir_all(&backing).context("cannot make the folder of backing files")?;
    let device = backing.join("disk");
    sized(&device, DISK_BYTES)?;
    Ok(Setup {
        executable: executable.to_owned(),
        device,
        allow_path: backing,
        nqn: NQN.to_owned(),
        host_nqns: vec![
            image::HOST_NQN.to_owned(),
            image::SECOND_HOST_NQN.to_owned(),
        ],
        log: folder.join("dataplane.log"),
        state: None,
        flags: &["--discovery-nqn", DISCOVERY_NQN],
    })
}

fn sized(path: &Path, bytes: u64) -> Result<()> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.context("cannot make a backing file")?;
    file.set_len(bytes).context("cannot size a backing file")
}

struct Scenario<'a> {
    name: &'a str,
    /// Where the run keeps its files.
    folder: &'a Path,
    setup: Setup,
    guest: Guest,
    /// None only while it is dead on purpose.
    plane: Option<DataPlane>,
    /// Where the guest expects it, whichever process that is.
    port: u16,
    /// Bytes of the kernel's log that earlier checks have judged.
    log_seen: usize,
    tally: &'a mut Tally,
    /// The guest broke or does not answer any more: nothing else can be checked.
    abandoned: bool,
}

impl Scenario<'_> {
    /// Tells the guest where its peer is.
    fn meet(&mut self, nqn: &str, port: u16) -> Result<()> {
        let command = format!("echo 'ADDRESS=10.0.2.2 PORT={port} NQN={nqn}' >/run/peer");
        self.guest.expect(&command).map(drop)
    }

    fn connecting(&mut self) {
        self.guest_check("discovery lists the subsystem", Phase::Quiet, "discovers");
        self.guest_check(
            "host that is not allowed is refused",
            Phase::Refusal,
            "is_refused",
        );
        let several = "connects --nr-io-queues=2 --nr-write-queues=1 --nr-poll-queues=1";
        self.guest_check("connect with write and poll queues", Phase::Quiet, several);
        self.guest_check("all four queues serve", Phase::Quiet, "has_queues 4");
    }

    fn asking(&mut self) {
        let list = format!("nvme_list {DISK_BYTES}");
        let id_ns = format!("nvme_id_ns {}", DISK_BYTES / SECTOR_BYTES);
        for (claim, command) in [
            ("nvme list shows the disk", list.as_str()),
            ("nvme list-subsys shows a live path", "nvme_list_subsys"),
            ("nvme id-ctrl is what we promise", "nvme_id_ctrl"),
            ("nvme id-ns is what we promise", id_ns.as_str()),
            ("nvme smart-log", "nvme_smart_log"),
            ("nvme error-log", "nvme_error_log"),
            ("nvme effects-log", "nvme_effects_log"),
            ("nvme get-feature", "nvme_get_feature"),
            ("nvme show-regs", "nvme_show_regs"),
            ("nvme fw-log, supported and changed logs", "nvme_other_logs"),
            ("unknown commands are refused", "refuses_unknown_commands"),
        ] {
            self.guest_check(claim, Phase::Quiet, command);
        }
    }

    fn data(&mut self) {
        let verifies = format!("verifies_blocks {}", DISK_BYTES / SECTOR_BYTES);
        for (claim, command) in [
            (
                "fio verifies random I/O of 512 B to 1 MiB",
                "verifies_all_sizes",
            ),
            ("discard zeroes its range only", "discards"),
            ("write zeroes zeroes its range only", "writes_zeroes"),
            (
                "write zeroes and deallocate of single blocks",
                "zeroes_single_blocks",
            ),
            ("compare tells equal from different", "compares"),
            ("verify reads the medium", verifies.as_str()),
            ("copy puts ranges one behind the other", "copies"),
            ("flush and FUA", "flushes"),
            ("ext4 keeps files and passes fsck", "keeps_a_file_system"),
        ] {
            self.guest_check(claim, Phase::Quiet, command);
        }
    }

    /// The files of `perf/fio` as users have them, only shorter. What they measure is not judged: an
    /// emulated host says nothing of speed.
    fn fio_jobs(&mut self) {
        for (claim, command) in [
            (
                "fio jobs do not write to what is in use",
                "spares_its_file_system",
            ),
            (
                "every fio job gives its rows without an error",
                "runs_every_fio_job",
            ),
        ] {
            self.guest_check(claim, Phase::Quiet, command);
        }
    }

    fn namespaces(&mut self) {
        let path = self.setup.allow_path.join("second");
        let appears = format!("namespace_appears 2 {SECOND_BYTES}");
        let grows = format!("namespace_grows 2 {SECOND_GROWN_BYTES}");
        self.check("namespace added live is seen", Phase::Quiet, |this| {
            sized(&path, SECOND_BYTES)?;
            this.add_namespace(&path)?;
            this.guest.expect(&appears).map(drop)
        });
        self.check("namespace resized live is seen", Phase::Quiet, |this| {
            sized(&path, SECOND_GROWN_BYTES)?;
            this.plane()?.manage(&["namespace", "resize", NQN, "2"])?;
            this.guest.expect(&grows).map(drop)
        });
        self.check("namespace removed live is seen", Phase::Quiet, |this| {
            this.plane()?
                .manage(&["namespace", "remove", NQN, "2", "--yes"])?;
            this.guest.expect("namespace_disappears 2").map(drop)
        });
    }

    fn disturbances(&mut self) {
        self.check(
            "controller resets under load lose nothing",
            Phase::Reset,
            |this| {
                this.guest.expect("load_starts")?;
                for _ in 0..RESETS {
                    this.guest.expect("resets")?;
                    this.guest.expect("load_goes_on")?;
                }
                this.load_ends()
            },
        );
        self.check(
            "kill -9 of the data plane under load loses nothing",
            Phase::Loss,
            |this| {
                this.guest.expect("load_starts")?;
                for kill in 1..=KILLS {
                    let plane = this.plane.take().context("no data plane to kill")?;
                    plane.kill()?;
                    this.plane = Some(DataPlane::start(&this.setup, this.port)?);
                    this.host_comes_back(kill)?;
                    this.guest.expect("load_goes_on")?;
                }
                this.load_ends()
            },
        );
    }

    fn digests(&mut self) {
        self.guest_check("disconnect removes the disk", Phase::Quiet, "disconnects");
        let connect = "connects --hdr-digest --data-digest";
        self.guest_check(
            "connect with header and data digests",
            Phase::Quiet,
            connect,
        );
        let verify = "verifies_all_sizes";
        self.guest_check("fio verifies random I/O with digests", Phase::Quiet, verify);
        self.check(
            "controller reset with digests under load",
            Phase::Reset,
            |this| {
                this.guest.expect("load_starts")?;
                this.guest.expect("resets")?;
                this.load_ends()
            },
        );
        self.guest_check("disconnect after digests", Phase::Quiet, "disconnects");
    }

    /// Short associations of their own, so that the captures stay small.
    fn captures(&mut self) {
        for (claim, options, digests) in [
            ("tshark finds nothing wrong", "", false),
            (
                "tshark finds nothing wrong with digests",
                " --hdr-digest --data-digest",
                true,
            ),
        ] {
            self.check(claim, Phase::Quiet, |this| {
                let file = this.folder.join(format!("digests-{digests}.pcap"));
                this.guest.capture(&file, &format!("is_watched{options}"))?;
                capture::read(&file, this.port)?.check(digests)
            });
        }
    }

    fn ending(&mut self) {
        self.check(
            "SIGTERM stops the data plane cleanly",
            Phase::Quiet,
            |this| this.plane.take().context("no data plane to stop")?.stop(),
        );
    }

    fn add_namespace(&self, path: &Path) -> Result<()> {
        let path = path
            .to_str()
            .context("the backing file's path is not text")?;
        let arguments = [
            "namespace",
            "add",
            NQN,
            "--nsid",
            "2",
            "--path",
            path,
            "--block-size",
            "512",
        ];
        self.plane()?.manage(&arguments).map(drop)
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

    fn plane(&self) -> Result<&DataPlane> {
        self.plane.as_ref().context("the data plane is not running")
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
                println!(
                    "  data plane:\n{}",
                    dataplane::log_tail(&self.setup.log, 20)
                );
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
        if self.plane.as_mut().is_none_or(DataPlane::has_ended) {
            self.plane = None; // ends the old one before the new one wants its port
            self.plane = DataPlane::start(&self.setup, self.port).ok();
        }
        self.abandoned |= self.guest.run("load_is_over").is_err();
    }
}
