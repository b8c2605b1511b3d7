//! Power cuts. A data plane in the guest serves a drive of which everything that it is told is
//! logged, and its host marks on the same drive what it begins and what is acknowledged. Then, on this
//! machine, the drive is made as power cuts at many moments would have left it, served again, and read.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::super::Executables;
use super::super::dataplane::{DataPlane, Setup};
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
    let [whole, whole_marks, ..] = LoggedDrive::PARTITIONS;
    let part = Part {
        run,
        executables,
        log: &log,
        data: whole,
        marks: whole_marks,
    };
    tally.check(
        &format!(
            "{}: what was flushed to a whole drive is there after {WHOLE_CUTS} power cuts",
            run.name
        ),
        || part.is_cut(WHOLE_CUTS, |this, trial| this.whole(trial)),
    );
    Ok(())
}

fn is_loaded(guest: &mut Guest) -> Result<()> {
    guest.expect("serves_a_drive")?;
    guest.expect(&format!(
        "is_written_to {SEED} /dev/vda2 {WHOLE_COMMANDS} --volume 0:flushed:{NQN}"
    ))?;
    guest.expect("is_quiet").map(drop)
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
        let plane = self.serve(trial)?;
        self.verify(trial, &plane, &["--volume", &format!("0:flushed:{NQN}")])?;
        plane.kill()
    }

    fn serve(&self, trial: &Trial) -> Result<DataPlane> {
        let setup = Setup {
            executable: self.executables.bowline.clone(),
            device: trial.device.clone(),
            allow_path: trial.device.clone(),
            nqn: NQN.to_owned(),
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

/// Writes what is not zero.
fn sparse(path: &Path, image: &[u8]) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    let file = File::create(path)?;
    file.set_len(image.len() as u64)?;
    for (index, piece) in image.chunks(PIECE).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, (index * PIECE) as u64)?;
        }
    }
    Ok(())
}
