//! Power cuts. A data plane in the guest serves a drive of which everything that it is told is
//! logged, and its host marks on the same drive what it begins and what is acknowledged. Then, on this
//! machine, the drive is made as power cuts at many moments would have left it, served again, and read.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::Executables;
use super::super::dataplane::{DataPlane, Serves, Setup};
use super::super::drive::{Attached, LoggedDrive};
use super::super::guest::{self, Guest};
use super::super::replay::{self, Cut, Region, Replay};
use super::super::write_log::WriteLog;
use super::{NQN, Run, meet};
use crate::process;
use crate::tally::Tally;

const ADDRESS: &str = "127.0.0.1";
/// In the guest, where nobody else listens.
const PORT: u16 = 4420;
/// What the load does, what its blocks hold, and when the power goes, follow from it.
const SEED: u64 = 20_261_123;

const WHOLE_COMMANDS: u32 = 1000;
const WHOLE_CUTS: usize = 40;
const POOL_COMMANDS: u32 = 1000;
const POOL_CUTS: usize = 120;

/// Snapshots that are taken while there is a load: of which volume, and their numbers.
const SNAPSHOTS: [(u8, u32); 4] = [(0, 1), (0, 2), (1, 1), (1, 2)];

/// Two that are written to together, and one that is made after that: alone it has acknowledged writes
/// that no flush has covered, which the flushes of another would cover.
const VOLUMES: [Volume; 3] = [
    Volume {
        number: 0,
        promise: ("always", "media"),
        uuid: "00000000-0000-4000-8000-000000000000",
    },
    Volume {
        number: 1,
        promise: ("flushed", "device"),
        uuid: "00000000-0000-4000-8000-000000000001",
    },
    Volume {
        number: 2,
        promise: ("flushed", "device"),
        uuid: "00000000-0000-4000-8000-000000000002",
    },
];

/// Boots the guest and runs every check. An error means that the rest could not be run at all.
pub(crate) fn run(run: &Run<'_>, executables: &Executables, tally: &mut Tally) -> Result<()> {
    let log = run.folder.join("writes");
    let drive = LoggedDrive::new(&run.folder.join("drive"), &log)?;
    let programs = [executables.bowline.as_path(), &executables.witness];
    let mut guest = run.boot(&programs, Attached::Logged(&drive))?;
    meet(&mut guest, ADDRESS, NQN, PORT)?;
    if let Err(error) = is_loaded(&mut guest) {
        let log = guest.run("tail -n 30 /run/plane.log");
        println!(
            "{}",
            log.map_or_else(|_| String::new(), |answer| answer.stdout)
        );
        return Err(error);
    }
    // The power goes for good.
    drop(guest);
    let log = WriteLog::open(&log)?;
    let [whole, whole_marks, pool, pool_marks] = LoggedDrive::PARTITIONS;
    let part = |data, marks| Part {
        run,
        executables,
        log: &log,
        data,
        marks,
    };
    let claim = "what was flushed to a whole drive is there after every power cut";
    tally.check(&format!("{}: {claim}", run.name), || {
        part(whole, whole_marks).is_cut(WHOLE_CUTS, Part::whole)
    });
    let claim = "a pool opens after every power cut, with what its volumes promised";
    tally.check(&format!("{}: {claim}", run.name), || {
        part(pool, pool_marks).is_cut(POOL_CUTS, Part::pool)
    });
    Ok(())
}

fn is_loaded(guest: &mut Guest) -> Result<()> {
    guest.expect("serves_a_drive")?;
    guest.expect(&format!(
        "is_written_to {SEED} /dev/vda2 {WHOLE_COMMANDS} --volume 0:flushed:{NQN}"
    ))?;
    guest.expect("is_quiet")?;
    guest.expect("serves_a_pool")?;
    for volume in &VOLUMES[..2] {
        guest.expect(&volume.is_made())?;
    }
    let load = format!("is_written_to {SEED} /dev/vda4 {POOL_COMMANDS}");
    let [first, second, late] = VOLUMES.map(|volume| format!("--volume {}", volume.argument()));
    let snapshots: String = SNAPSHOTS
        .iter()
        .map(|(volume, number)| {
            let take = format!("bowline snapshot create v{volume}/s{number}");
            format!(" --snapshot '{volume}:{number}:{take} >/dev/null'")
        })
        .collect();
    let marks = guest.expect(&format!("{load} {first} {second}{snapshots}"))?;
    guest.expect(&VOLUMES[2].is_made())?;
    guest.expect(&format!("{load} {late} --marks-from {marks}"))?;
    guest.expect("is_quiet").map(drop)
}

/// A volume of the pool.
#[derive(Clone, Copy)]
struct Volume {
    number: u8,
    /// As the witness has it, and as the data plane does.
    promise: (&'static str, &'static str),
    uuid: &'static str,
}

impl Volume {
    fn is_made(self) -> String {
        let Self { number, uuid, .. } = self;
        let (_, durability) = self.promise;
        format!(
            "bowline volume create v{number} --size 8MiB --uuid {uuid} --durability {durability}"
        )
    }

    fn argument(self) -> String {
        let Self { number, uuid, .. } = self;
        let (promise, _) = self.promise;
        format!("{number}:{promise}:nqn.2026-11.io.bowline:volume:{uuid}")
    }
}

/// One partition that was served, and its marks.
struct Part<'a> {
    run: &'a Run<'a>,
    executables: &'a Executables,
    log: &'a WriteLog,
    data: Region,
    marks: Region,
}

/// The partition after a cut, and what its host knew then.
struct Trial {
    device: PathBuf,
    marks: PathBuf,
}

impl Part<'_> {
    fn is_cut(&self, count: usize, check: impl Fn(&Self, &Trial) -> Result<()>) -> Result<()> {
        let folder = self.run.folder.join("cuts");
        std::fs::create_dir_all(&folder).context("cannot make a folder")?;
        let trial = Trial {
            device: folder.join("drive"),
            marks: folder.join("marks"),
        };
        let cuts = replay::cuts(self.log, self.marks, count, SEED);
        ensure!(
            cuts.len() >= count,
            "the log has flushes for {} cuts, and not for {count}",
            cuts.len()
        );
        let mut replay = Replay::new(self.log, self.data)?;
        for Cut { entries, unflushed } in cuts {
            let image = replay.at(Cut { entries, unflushed })?;
            sparse(&trial.device, &image).context("cannot write the drive")?;
            let marks = replay::written(self.log, self.marks, entries)?;
            std::fs::write(&trial.marks, marks).context("cannot write the marks")?;
            check(self, &trial).with_context(|| {
                format!(
                    "cut before request {entries} of {}, {unflushed:?}",
                    self.log.entries.len()
                )
            })?;
        }
        Ok(())
    }

    fn whole(&self, trial: &Trial) -> Result<()> {
        let plane = self.serve(trial, Serves::Whole(NQN.to_owned()))?;
        self.verify(trial, &plane, &["--volume", &format!("0:flushed:{NQN}")])?;
        plane.kill()
    }

    fn pool(&self, trial: &Trial) -> Result<()> {
        let mut check = Command::new(&self.executables.bowline);
        process::capture(check.args(["pool", "check"]).arg(&trial.device))?;
        let plane = self.serve(trial, Serves::Pool)?;
        let listed = plane.manage(&["volume", "list", "-o", "json"])?;
        // One that is not there though it was marked is missed by whoever reads the marks.
        let volumes = VOLUMES.iter().filter(|volume| listed.contains(volume.uuid));
        let volumes: Vec<_> = volumes.map(|volume| volume.argument()).collect();
        let snapshots = exported(&plane)?;
        let volumes = volumes.iter().flat_map(|one| ["--volume", one.as_str()]);
        let snapshots = snapshots
            .iter()
            .flat_map(|one| ["--snapshot", one.as_str()]);
        let arguments: Vec<_> = volumes.chain(snapshots).collect();
        self.verify(trial, &plane, &arguments)?;
        plane.kill()
    }

    fn serve(&self, trial: &Trial, serves: Serves) -> Result<DataPlane> {
        let setup = Setup {
            executable: self.executables.bowline.clone(),
            device: trial.device.clone(),
            allow_path: trial.device.clone(),
            serves,
            host_nqns: vec!["any".to_owned()],
            log: self.run.folder.join("dataplane.log"),
            state: None,
            spdk: None,
            flags: &[],
        };
        DataPlane::start(&setup, 0)
            .inspect_err(|_| println!("{}", guest::file_tail(&setup.log, 10)))
    }

    fn verify(&self, trial: &Trial, plane: &DataPlane, arguments: &[&str]) -> Result<()> {
        let address = format!("{}:{}", Ipv4Addr::LOCALHOST, plane.port);
        let mut command = Command::new(&self.executables.witness);
        command.args([
            "verify",
            "--address",
            &address,
            "--seed",
            &SEED.to_string(),
            "--marks",
        ]);
        command.arg(&trial.marks).args(arguments);
        process::capture(&mut command).map(drop)
    }
}

/// The snapshots that are there, each exported, as the witness wants to have them.
fn exported(plane: &DataPlane) -> Result<Vec<String>> {
    let listed = plane.manage(&["snapshot", "list", "-o", "json"])?;
    let mut arguments = Vec::new();
    for (volume, number) in SNAPSHOTS {
        // It is told by its name; whatever is missed is missed by whoever reads the marks.
        let name = format!("v{volume}/s{number}");
        if is_listed(&listed, volume, number)? {
            let said = plane.manage(&["snapshot", "export", &name])?;
            let nqn = said
                .split_whitespace()
                .find(|word| word.starts_with("nqn."));
            let nqn = nqn
                .context("no subsystem of a snapshot")?
                .trim_end_matches(';');
            arguments.push(format!("{volume}:{number}:{nqn}"));
        }
    }
    Ok(arguments)
}

fn is_listed(listed: &str, volume: u8, number: u32) -> Result<bool> {
    let listed: Value = serde_json::from_str(listed).context("the list is not JSON")?;
    let rows = listed["items"].as_array().context("no list of snapshots")?;
    let (volume, name) = (format!("v{volume}"), format!("s{number}"));
    Ok(rows
        .iter()
        .any(|row| row["volume"] == volume && row["name"] == name))
}

/// Writes what is not zero.
fn sparse(path: &Path, image: &[u8]) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    // Compared as a whole, which is fast without the optimiser too.
    let zeroes = vec![0; PIECE];
    let file = File::create(path)?;
    file.set_len(image.len() as u64)?;
    for (index, piece) in image.chunks(PIECE).enumerate() {
        if *piece != zeroes[..piece.len()] {
            file.write_all_at(piece, (index * PIECE) as u64)?;
        }
    }
    Ok(())
}
