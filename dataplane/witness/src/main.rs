//! `bowline-witness`: puts a load on volumes and marks what is acknowledged, or verifies volumes
//! against such marks.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use bowline_witness::host::{Host, Load, Witness, lock};
use bowline_witness::ledger::{Ledger, Promise};
use bowline_witness::marks::{self, Writer};
use bowline_witness::volume::{Event, Volume};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Puts a load on volumes, all at once.
    Load(LoadArguments),
    /// Reads volumes and snapshots, and compares them with what the marks say.
    Verify(VerifyArguments),
}

#[derive(Clone)]
struct VolumeArgument {
    /// In the marks.
    number: u8,
    promise: Promise,
    subsystem: String,
}

#[derive(Clone)]
struct SnapshotArgument {
    volume: u8,
    number: u32,
    /// A subsystem, or what takes the snapshot.
    what: String,
}

#[derive(clap::Args)]
struct Common {
    /// Of the data plane.
    #[arg(long)]
    address: SocketAddr,
    /// What blocks hold follows from it.
    #[arg(long)]
    seed: u64,
    /// Number, what it promises, and name of its subsystem.
    #[arg(long = "volume", value_name = "N:always|flushed:NQN", value_parser = volume)]
    volumes: Vec<VolumeArgument>,
}

#[derive(clap::Args)]
struct LoadArguments {
    #[command(flatten)]
    common: Common,
    /// Where the marks go: a block device or a file.
    #[arg(long)]
    marks: PathBuf,
    /// Sectors of marks that are there already.
    #[arg(long, default_value_t = 0)]
    marks_from: u32,
    /// Commands of each volume.
    #[arg(long)]
    commands: u64,
    /// Commands at a time.
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// A command of the shell that takes snapshot M of volume N in the middle of its load.
    #[arg(long = "snapshot", value_name = "N:M:COMMAND", value_parser = snapshot)]
    snapshots: Vec<SnapshotArgument>,
}

#[derive(clap::Args)]
struct VerifyArguments {
    #[command(flatten)]
    common: Common,
    /// File with the marks.
    #[arg(long)]
    marks: PathBuf,
    /// Snapshot M of volume N, and the name of its subsystem.
    #[arg(long = "snapshot", value_name = "N:M:NQN", value_parser = snapshot)]
    snapshots: Vec<SnapshotArgument>,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Action::Load(arguments) => load(&arguments),
        Action::Verify(arguments) => verify(&arguments),
    }
}

fn volume(text: &str) -> Result<VolumeArgument> {
    let (number, rest) = text.split_once(':').context("no number")?;
    let (promise, subsystem) = rest.split_once(':').context("no promise")?;
    Ok(VolumeArgument {
        number: number.parse()?,
        promise: match promise {
            "always" => Promise::Always,
            "flushed" => Promise::Flushed,
            _ => bail!("a volume promises `always` or `flushed`"),
        },
        subsystem: subsystem.to_owned(),
    })
}

fn snapshot(text: &str) -> Result<SnapshotArgument> {
    let (volume, rest) = text.split_once(':').context("no volume")?;
    let (number, what) = rest.split_once(':').context("no number")?;
    Ok(SnapshotArgument {
        volume: volume.parse()?,
        number: number.parse()?,
        what: what.to_owned(),
    })
}

impl Common {
    fn seed_of(&self, volume: u8) -> u64 {
        self.seed.wrapping_add(u64::from(volume) << 32)
    }

    /// Connects; the volume is empty, as far as is known.
    fn meet(&self, argument: &VolumeArgument) -> Result<(Host, Volume)> {
        let host = Host::connect(self.address, &argument.subsystem)?;
        let seed = self.seed_of(argument.number);
        let ledger = Ledger::new(seed, host.block_bytes, host.blocks, argument.promise);
        Ok((host, Volume::new(ledger)))
    }
}

fn load(arguments: &LoadArguments) -> Result<()> {
    let writer = Writer::open(&arguments.marks, arguments.marks_from)
        .with_context(|| format!("cannot write to {}", arguments.marks.display()))?;
    let writer = Arc::new(Mutex::new(writer));
    let loads: Vec<_> = thread::scope(|scope| {
        let volumes = arguments.common.volumes.iter();
        let threads: Vec<_> = volumes
            .map(|volume| {
                let writer = Arc::clone(&writer);
                scope.spawn(move || load_one(arguments, volume, writer))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    for result in loads {
        result.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    let sectors = writer.lock().map_or(0, |writer| writer.sectors());
    println!("{sectors}");
    Ok(())
}

fn load_one(
    arguments: &LoadArguments,
    argument: &VolumeArgument,
    writer: Arc<Mutex<Writer>>,
) -> Result<()> {
    let (mut host, volume) = arguments.common.meet(argument)?;
    let witness = Mutex::new(Witness::new(volume, Some((argument.number, writer))));
    let seed = arguments.common.seed_of(argument.number);
    let mut load = Load::new(seed, arguments.depth);
    let snapshots = arguments.snapshots.iter();
    let snapshots: Vec<_> = snapshots
        .filter(|snapshot| snapshot.volume == argument.number)
        .collect();
    let parts = snapshots.len() as u64 + 1;
    let is_waited_for = AtomicBool::new(!snapshots.is_empty());
    let (reached, places) = mpsc::channel();
    thread::scope(|scope| {
        let (witness, is_waited_for) = (&witness, &is_waited_for);
        let taker = scope.spawn(move || {
            let result = take(witness, &snapshots, &places);
            is_waited_for.store(false, Ordering::Release);
            result
        });
        let mut told = 0;
        let loaded = host.load(witness, &mut load, |count| {
            while told + 1 < parts && count >= (told + 1) * arguments.commands / parts {
                told += 1;
                // If nobody listens, it has failed, and says so itself.
                let _ = reached.send(());
            }
            count >= arguments.commands && !is_waited_for.load(Ordering::Acquire)
        });
        drop(reached);
        let taken = taker
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        taken.and(loaded).map(drop)
    })
}

/// Takes a snapshot each time that the load has come to its place, while it goes on.
fn take(
    witness: &Mutex<Witness>,
    snapshots: &[&SnapshotArgument],
    places: &mpsc::Receiver<()>,
) -> Result<()> {
    for snapshot in snapshots {
        if places.recv().is_err() {
            bail!("the load ended before snapshot {}", snapshot.number);
        }
        lock(witness).note(&[Event::SnapshotBegins(snapshot.number)])?;
        let mut command = Command::new("bash");
        let ended = command.args(["-euc", &snapshot.what]).status();
        let status = ended.context("cannot run a shell")?;
        ensure!(status.success(), "`{}`: {status}", snapshot.what);
        lock(witness).note(&[Event::SnapshotEnds(snapshot.number)])?;
    }
    Ok(())
}

fn verify(arguments: &VerifyArguments) -> Result<()> {
    let mut events: BTreeMap<u8, Vec<Event>> = BTreeMap::new();
    for (volume, event) in read(&arguments.marks)? {
        events.entry(volume).or_default().push(event);
    }
    let (mut blocks, mut stamps) = (0_u64, 0_u64);
    let mut count = |data: &[u8], block_bytes: u32, found: u32| {
        blocks += data.len() as u64 / u64::from(block_bytes);
        stamps += u64::from(found);
    };
    for argument in &arguments.common.volumes {
        let name = &argument.subsystem;
        let (mut host, mut volume) = arguments.common.meet(argument)?;
        let events = events.remove(&argument.number).unwrap_or_default();
        events.into_iter().for_each(|event| volume.apply(event));
        let block_bytes = host.block_bytes;
        host.read_back(|lba, data| {
            let found = volume.ledger.check(lba, data);
            count(data, block_bytes, found.with_context(|| name.clone())?);
            Ok(())
        })?;
        for (number, snapshot) in &volume.snapshots {
            let is_it =
                |one: &&SnapshotArgument| (one.volume, one.number) == (argument.number, *number);
            let Some(there) = arguments.snapshots.iter().find(is_it) else {
                ensure!(
                    !snapshot.is_taken,
                    "snapshot {number} of {name} is not there"
                );
                continue;
            };
            let mut host = Host::connect(arguments.common.address, &there.what)?;
            host.read_back(|lba, data| {
                let found = snapshot.ledger.check(lba, data);
                let found = found.with_context(|| format!("snapshot {number} of {name}"))?;
                count(data, block_bytes, found);
                Ok(())
            })?;
        }
    }
    if let Some(volume) = events.keys().next() {
        bail!("volume {volume} is not there");
    }
    println!("{blocks} {stamps}");
    Ok(())
}

fn read(path: &Path) -> Result<Vec<marks::Mark>> {
    let sectors = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    marks::read(&sectors).map_err(anyhow::Error::msg)
}
