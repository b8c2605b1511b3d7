//! A data plane on this machine, which the guest reaches through the emulator's network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::Executables;
use super::super::capture;
use super::super::dataplane::{DataPlane, Serves, Setup};
use super::super::drive::Attached;
use super::super::guest::{self, Guest};
use super::super::image;
use super::super::kernel_log::Phase;
use super::{DISK_BYTES, KILLS, NQN, Run, SECTOR_BYTES, Scenario, Subject};
use crate::tally::Tally;

/// The data plane's own name for its discovery.
pub(super) const DISCOVERY_NQN: &str = "nqn.2026-11.io.bowline:e2e:discovery";
pub(super) const SECOND_BYTES: u64 = 32 << 20;
const SECOND_GROWN_BYTES: u64 = 48 << 20;
/// SPDK's name of its memory.
const SPDK_MEMORY: &str = "Malloc0";

/// What the data plane serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A file, through the kernel.
    File,
    /// Memory of SPDK, which goes with the process.
    SpdkMemory,
}

/// Boots the guest and runs every check. An error means that the rest could not be run at all.
pub(crate) fn run(
    run: &Run<'_>,
    executables: &Executables,
    disk: Disk,
    tally: &mut Tally,
) -> Result<()> {
    let setup = setup(&executables.bowline, disk, run.folder)?;
    let guest = run.boot(&[&executables.perf], Attached::Nothing)?;
    let mut machine = Machine {
        folder: run.folder.to_owned(),
        setup,
        plane: None,
        port: 0,
    };
    if let Err(error) = machine.start() {
        println!("{}", guest::file_tail(&machine.setup.log, 30));
        return Err(error);
    }
    let port = machine.port;
    let mut scenario = Scenario::new(run.name, guest, machine, tally)?;
    scenario.meet(NQN, port)?;
    scenario.connecting();
    scenario.asking();
    scenario.data();
    scenario.fio_jobs();
    scenario.namespaces();
    scenario.resets();
    if disk == Disk::File {
        scenario.losses();
    }
    scenario.digests();
    scenario.captures();
    scenario.discovery();
    if disk == Disk::File {
        scenario.paths();
    }
    if disk == Disk::File {
        scenario.volumes();
    }
    scenario.reservations();
    if disk == Disk::File {
        scenario.persistence();
    }
    scenario.ending();
    ensure!(
        !scenario.abandoned,
        "the guest broke; the remaining checks were not run"
    );
    Ok(())
}

fn setup(executable: &Path, disk: Disk, folder: &Path) -> Result<Setup> {
    let backing = folder.join("backing");
    fs::create_dir_all(&backing).context("cannot make the folder of backing files")?;
    let (device, spdk) = match disk {
        Disk::File => {
            let device = backing.join("disk");
            sized(&device, DISK_BYTES)?;
            (device, None)
        }
        Disk::SpdkMemory => {
            let config = folder.join("spdk.json");
            fs::write(&config, spdk_memory().to_string())
                .context("cannot write the configuration of SPDK")?;
            (PathBuf::from(format!("bdev:{SPDK_MEMORY}")), Some(config))
        }
    };
    Ok(Setup {
        executable: executable.to_owned(),
        device,
        allow_path: backing,
        serves: Serves::Whole(NQN.to_owned()),
        host_nqns: vec![
            image::HOST_NQN.to_owned(),
            image::SECOND_HOST_NQN.to_owned(),
        ],
        log: folder.join("dataplane.log"),
        state: None,
        spdk,
        flags: &["--discovery-nqn", DISCOVERY_NQN],
    })
}

/// A block device in memory, in the words of SPDK's configuration.
fn spdk_memory() -> Value {
    let memory = json!({
        "name": SPDK_MEMORY,
        "num_blocks": DISK_BYTES / SECTOR_BYTES,
        "block_size": SECTOR_BYTES,
    });
    let methods = json!([{ "method": "bdev_malloc_create", "params": memory }]);
    json!({ "subsystems": [{ "subsystem": "bdev", "config": methods }] })
}

pub(super) fn sized(path: &Path, bytes: u64) -> Result<()> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.context("cannot make a backing file")?;
    file.set_len(bytes).context("cannot size a backing file")
}

pub(super) struct Machine {
    /// Where the run keeps its files.
    pub(super) folder: PathBuf,
    pub(super) setup: Setup,
    /// None only while it is dead on purpose.
    plane: Option<DataPlane>,
    /// Where the guest expects it, whichever process that is.
    pub(super) port: u16,
}

impl Machine {
    /// Starts the data plane where the guest expects it.
    fn start(&mut self) -> Result<()> {
        let plane = DataPlane::start(&self.setup, self.port)?;
        self.port = plane.port;
        self.plane = Some(plane);
        Ok(())
    }

    pub(super) fn plane(&self) -> Result<&DataPlane> {
        self.plane.as_ref().context("the data plane is not running")
    }
}

impl Subject for Machine {
    const ADDRESS: &'static str = "10.0.2.2";

    fn log_tail(&self, _: &mut Guest) -> String {
        guest::file_tail(&self.setup.log, 20)
    }

    fn revive(&mut self, _: &mut Guest) {
        if self.plane.as_mut().is_none_or(DataPlane::has_ended) {
            self.plane = None; // ends the old one before the new one wants its port
            // If it does not start, the next check says so.
            let _ = self.start();
        }
    }
}

impl Scenario<'_, Machine> {
    fn namespaces(&mut self) {
        let path = self.subject.setup.allow_path.join("second");
        let appears = format!("namespace_appears 2 {SECOND_BYTES}");
        let grows = format!("namespace_grows 2 {SECOND_GROWN_BYTES}");
        self.check("namespace added live is seen", Phase::Quiet, |this| {
            sized(&path, SECOND_BYTES)?;
            this.add_namespace(&path)?;
            this.guest.expect(&appears).map(drop)
        });
        self.check("namespace resized live is seen", Phase::Quiet, |this| {
            sized(&path, SECOND_GROWN_BYTES)?;
            this.subject
                .plane()?
                .manage(&["namespace", "resize", NQN, "2"])?;
            this.guest.expect(&grows).map(drop)
        });
        self.check("namespace removed live is seen", Phase::Quiet, |this| {
            this.subject
                .plane()?
                .manage(&["namespace", "remove", NQN, "2", "--yes"])?;
            this.guest.expect("namespace_disappears 2").map(drop)
        });
    }

    /// Needs a disk that outlives its data plane.
    fn losses(&mut self) {
        self.check(
            "kill -9 of the data plane under load loses nothing",
            Phase::Loss,
            |this| {
                this.guest.expect("load_starts")?;
                for kill in 1..=KILLS {
                    let plane = this.subject.plane.take();
                    plane.context("no data plane to kill")?.kill()?;
                    this.subject.start()?;
                    this.host_comes_back(kill)?;
                    this.guest.expect("load_goes_on")?;
                }
                this.load_ends()
            },
        );
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
                let file = this.subject.folder.join(format!("digests-{digests}.pcap"));
                this.guest.capture(&file, &format!("is_watched{options}"))?;
                capture::read(&file, this.subject.port)?.check(digests)
            });
        }
    }

    fn ending(&mut self) {
        self.check(
            "SIGTERM stops the data plane cleanly",
            Phase::Quiet,
            |this| {
                this.subject
                    .plane
                    .take()
                    .context("no data plane to stop")?
                    .stop()
            },
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
        self.subject.plane()?.manage(&arguments).map(drop)
    }
}
