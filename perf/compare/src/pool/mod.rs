//! Figures of a pool as a whole: what snapshots, many volumes and a restart cost.

mod full_map;
mod manage;
mod pause;

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result};

use self::manage::Manager;
use crate::cell::{State, Subject};
use crate::gate::FOREIGN_MAX;
use crate::goals::Measure;
use crate::neighbours::{Neighbours, Ours};
use crate::process::Process;
use crate::result::PoolFigure;
use crate::run::Bench;
use crate::statistics::median;
use crate::target::{Contender, Target, serve_pool};

/// Volumes of the figure of many, besides the one that every pool here has.
const VOLUMES: u32 = 10_000;
/// Calls at once that make them.
const CALLERS: usize = 16;
/// The drive whose map is full.
const FULL_BYTES: u64 = 1 << 40;
/// One of the target, one of the client.
const CORES: f64 = 2.0;
/// How often it is opened.
const OPENINGS: usize = 5;
const MIB: f64 = (1 << 20) as f64;

impl Bench {
    /// A figure of a pool as a whole. It decides nothing when others were busy meanwhile.
    pub(crate) fn pool(&self, subject: Subject) -> Result<Vec<PoolFigure>> {
        let ours = Ours {
            starter: std::process::id(),
            kernel: true,
        };
        let neighbours = Neighbours::now(ours)?;
        let begun = Instant::now();
        let mut figures = match subject {
            Subject::SnapshotPause => self.snapshot_pause()?,
            Subject::Volumes => self.volumes()?,
            Subject::Recovery => self.recovery()?,
            Subject::Cell(_) | Subject::Idle | Subject::FirstIo | Subject::Memory => Vec::new(),
        };
        let others = Neighbours::now(ours)?.used_since(&neighbours);
        let share = others.as_secs_f64() / (CORES * begun.elapsed().as_secs_f64());
        for figure in &mut figures {
            if self.meter.gated && share > FOREIGN_MAX {
                let why = format!("other processes took {:.0} % of two cores", share * 100.0);
                figure.unclaimed.get_or_insert(why);
            }
        }
        Ok(figures)
    }

    /// Makes ten thousand volumes over gRPC, each exported, and starts the data plane again.
    fn volumes(&self) -> Result<Vec<PoolFigure>> {
        let target = self.pool_target()?;
        let manager = Manager::connect(target.rpc.context("no management")?)?;
        let before = target.process.memory()?.total_bytes();
        let begun = Instant::now();
        manager.create_volumes(VOLUMES, CALLERS)?;
        let took = begun.elapsed().as_secs_f64();
        manager.expect_volumes(VOLUMES + 1)?;
        let after = target.process.memory()?.total_bytes();
        drop(manager);
        let (_folder, drive) = target.leave_drive().context("no drive")?;
        let (process, again) = serve_pool(&self.kit, &drive)?;
        let restarted = process.memory()?.total_bytes();
        let rate = f64::from(VOLUMES) / took;
        Ok(vec![
            self.pool_figure(
                ("volumes", Measure::VolumesPerSecond, rate),
                format!("{VOLUMES} thin volumes, {CALLERS} callers at once, each exported, {took:.1} s"),
            ),
            self.pool_figure(
                ("volumes", Measure::ResidentBytes, after.max(restarted) as f64),
                format!(
                    "{:.0} MiB with one volume, {:.0} MiB with {} of them, {:.0} MiB after a restart of {:.2} s",
                    before as f64 / MIB,
                    after as f64 / MIB,
                    VOLUMES + 1,
                    restarted as f64 / MIB,
                    again.as_secs_f64()
                ),
            ),
        ])
    }

    /// Opens a pool of 1 TiB whose map is as large as it may get, with a journal that is half full.
    fn recovery(&self) -> Result<Vec<PoolFigure>> {
        let folder = tempfile::tempdir_in(&self.kit.scratch).context("scratch folder")?;
        let drive = folder.path().join("full");
        let file = File::create_new(&drive).context("a drive")?;
        let full = full_map::write(&file, FULL_BYTES)?;
        drop(file);
        let mut seconds = Vec::new();
        let mut resident = 0;
        for _ in 0..OPENINGS {
            // Each is killed, so that the next one finds no pool that was closed.
            let (process, took) = serve_pool(&self.kit, &drive)?;
            seconds.push(took.as_secs_f64());
            resident = resident.max(process.memory()?.total_bytes());
        }
        let small = self.small_pool()?.memory()?.total_bytes();
        let middle = median(&seconds).context("nothing was measured")?;
        let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = seconds.iter().copied().fold(0.0, f64::max);
        let map =
            resident.saturating_sub(small) as f64 * FULL_BYTES as f64 / full.data_bytes as f64;
        Ok(vec![
            self.pool_figure(
                ("recovery", Measure::RecoverySeconds, middle),
                format!(
                    "{OPENINGS} openings after a kill, {least:.2} to {most:.2} s; a checkpoint of {:.0} MiB, {} records in {:.0} MiB of journal, in the page cache",
                    full.checkpoint_bytes as f64 / MIB,
                    full.journal_records,
                    full.journal_bytes as f64 / MIB
                ),
            ),
            self.pool_figure(
                ("recovery", Measure::MapBytesPerTib, map),
                format!(
                    "{:.0} MiB resident, {:.0} MiB with a pool of 1 GiB; all {} extents filled in part and scattered, with a snapshot and {} holes",
                    resident as f64 / MIB,
                    small as f64 / MIB,
                    full.extents,
                    full.holes
                ),
            ),
        ])
    }

    /// A pool with room for whatever is done to it.
    fn pool_target(&self) -> Result<Target> {
        let contender = Contender::Bowline(self.subject);
        Target::start(&self.kit, contender, State::Blank, false)
    }

    /// What a data plane takes whose map takes nothing, opened as the full one.
    fn small_pool(&self) -> Result<Process> {
        let contender = Contender::Bowline(self.subject);
        let target = Target::start(&self.kit, contender, State::Steady, false)?;
        let (_folder, drive) = target.leave_drive().context("no drive")?;
        Ok(serve_pool(&self.kit, &drive)?.0)
    }

    fn pool_figure(&self, it: (&str, Measure, f64), detail: String) -> PoolFigure {
        let (subject, measure, value) = it;
        PoolFigure {
            contender: Contender::Bowline(self.subject).name(),
            subject: subject.to_owned(),
            measure,
            value,
            detail,
            unclaimed: self.settings.unclaimed.map(str::to_owned),
        }
    }
}
