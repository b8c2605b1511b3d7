//! A volume of a pool as the disk of a file system, through kills of its data plane.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::dataplane::{DataPlane, Serves, Setup};
use super::super::image;
use super::super::kernel_log::Phase;
use super::Scenario;
use super::machine::{Machine, sized};
use crate::process;

const POOL_BYTES: u64 = 384 << 20;
const VOLUME_BYTES: u64 = 128 << 20;
const GROWN_BYTES: u64 = 256 << 20;
/// Written when it has grown: more than it had room for.
const BEYOND_BYTES: u64 = 100 << 20;
const UUID: &str = "00000000-0000-4000-8000-00000000e2e0";
const NQN: &str = "nqn.2026-11.io.bowline:volume:00000000-0000-4000-8000-00000000e2e0";
const KILLS: usize = 3;

impl Scenario<'_, Machine> {
    pub(super) fn volumes(&mut self) {
        let mut started = None;
        self.check("ext4 on a volume of a pool", Phase::Quiet, |this| {
            let (_, plane) = started.insert(this.start_pool()?);
            let size = VOLUME_BYTES.to_string();
            let host = image::HOST_NQN;
            plane.manage(&[
                "volume", "create", "data", "--size", &size, "--uuid", UUID, "--host", host,
            ])?;
            let port = plane.port;
            this.meet(NQN, port)?;
            this.guest.expect("connects")?;
            this.guest.expect("mounts_a_new_file_system").map(drop)
        });
        let Some((setup, plane)) = started else {
            return;
        };
        let mut plane = Some(plane);
        self.check(
            "kills under a load on files lose nothing, and fsck finds nothing",
            Phase::Loss,
            |this| this.kills_under_files(&setup, &mut plane),
        );
        self.check("fstrim gives space back", Phase::Quiet, |this| {
            let plane = plane.as_ref().context("no data plane")?;
            let full: u64 = this.guest.expect("takes_space")?.parse()?;
            let used = used_bytes(plane)?;
            ensure!(
                used >= full,
                "{used} bytes of the pool for {full} of the volume"
            );
            this.guest.expect(&format!("trims {full}"))?;
            let trimmed = used_bytes(plane)?;
            ensure!(
                trimmed + (40 << 20) <= used,
                "{used} bytes of the pool, then {trimmed}"
            );
            Ok(())
        });
        self.check(
            "snapshot is mounted as it was taken",
            Phase::Quiet,
            |this| this.reads_a_snapshot(plane.as_ref().context("no data plane")?),
        );
        self.check("volume grows under its file system", Phase::Quiet, |this| {
            let plane = plane.as_ref().context("no data plane")?;
            plane.manage(&[
                "volume",
                "resize",
                "data",
                "--size",
                &GROWN_BYTES.to_string(),
            ])?;
            this.guest
                .expect(&format!("grows {GROWN_BYTES} {BEYOND_BYTES}"))?;
            this.guest.expect("is_checked").map(drop)
        });
        self.guest_check("disconnect from a volume", Phase::Quiet, "leaves");
        self.check(
            "pool is whole when its data plane has stopped",
            Phase::Quiet,
            |_| {
                plane.take().context("no data plane to stop")?.stop()?;
                pool_is_whole(&setup)
            },
        );
    }

    fn kills_under_files(&mut self, setup: &Setup, plane: &mut Option<DataPlane>) -> Result<()> {
        self.guest.expect("files_start")?;
        for kill in 1..=KILLS {
            let old = plane.take().context("no data plane to kill")?;
            let port = old.port;
            old.kill()?;
            *plane = Some(DataPlane::start(setup, port)?);
            self.host_comes_back(kill)?;
            self.guest.expect("load_goes_on")?;
        }
        self.load_ends()?;
        self.guest.expect("is_checked").map(drop)
    }

    /// While the file system is frozen for a moment, then exported while it goes on.
    fn reads_a_snapshot(&mut self, plane: &DataPlane) -> Result<()> {
        self.guest.expect("is_about_to_be_kept")?;
        let kept = plane.manage(&["snapshot", "create", "data/kept"]);
        self.guest.expect("goes_on_changed")?;
        kept?;
        let said = plane.manage(&["snapshot", "export", "data/kept", "--host", image::HOST_NQN])?;
        let nqn = said
            .split_whitespace()
            .find(|word| word.starts_with("nqn."));
        let nqn = nqn
            .context("no subsystem of the snapshot")?
            .trim_end_matches(';');
        self.guest
            .expect(&format!("NQN={nqn} reads_what_was_kept"))?;
        plane
            .manage(&["snapshot", "delete", "data/kept", "--yes"])
            .map(drop)
    }

    fn start_pool(&self) -> Result<(Setup, DataPlane)> {
        let device = self.subject.setup.allow_path.join("pool");
        sized(&device, POOL_BYTES)?;
        let setup = Setup {
            executable: self.subject.setup.executable.clone(),
            device,
            allow_path: self.subject.setup.allow_path.clone(),
            serves: Serves::Pool,
            host_nqns: Vec::new(),
            log: self.subject.setup.log.clone(),
            state: None,
            spdk: None,
            flags: &[],
        };
        let plane = DataPlane::start(&setup, 0)?;
        Ok((setup, plane))
    }
}

/// What volumes have of the pool.
fn used_bytes(plane: &DataPlane) -> Result<u64> {
    let shown = plane.manage(&["pool", "show", "-o", "json"])?;
    let shown: Value = serde_json::from_str(&shown).context("what is shown is not JSON")?;
    let used = shown["items"][0]["usedBytes"].as_u64();
    used.context("no used bytes of the pool")
}

fn pool_is_whole(setup: &Setup) -> Result<()> {
    let mut check = Command::new(&setup.executable);
    let found = process::capture(check.args(["pool", "check"]).arg(&setup.device))?;
    ensure!(found.contains("nothing wrong was found"), "{found}");
    Ok(())
}
