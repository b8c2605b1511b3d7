//! SIGKILL at random moments, while hosts write to volumes of a pool and an operator makes and deletes
//! volumes, snapshots and clones, some of them thick or with checksums: what was acknowledged is there when the data plane has been started again.
//!
//! `POOL_KILLS=200 cargo test -p bowline --test process kills -- --nocapture` for more of them;
//! `POOL_KILLS_SEED` for others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

use bowline_api::dataplane::v1 as api;
use bowline_api::dataplane::v1::pool_service_client::PoolServiceClient;
use bowline_witness::Random;
use bowline_witness::host::{Host, Load, Witness, lock};
use bowline_witness::ledger::{Ledger, Promise};
use bowline_witness::volume::{Event, Volume};
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::harness::{DataPlane, run};

const KILLS: u32 = 20;
const SEED: u64 = 1;
/// How often the offline tool looks at what a kill has left.
const CHECK_EVERY: u32 = 5;
const POOL_BYTES: u64 = 320 << 20;
const VOLUME_BYTES: i64 = 12 << 20;
const VOLUMES_MAX: usize = 6;
/// Of all volumes.
const SNAPSHOTS_MAX: usize = 4;
const DEPTH: usize = 12;
/// Commands of all hosts between two kills, at the most.
const COMMANDS_MAX: u32 = 1200;
/// What the operator does between two kills, at the most.
const CALLS_MAX: u32 = 4;

/// Whether a volume is there, as far as the operator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existence {
    Certain,
    /// It was about to be made or deleted when the data plane was killed.
    Open,
    Gone,
}

impl Existence {
    /// It is there or not; afterwards that is certain.
    fn is_found(&mut self, is_there: bool, what: &str) {
        match self {
            Self::Certain => assert!(is_there, "{what} is not there"),
            Self::Gone => assert!(!is_there, "{what} is there"),
            Self::Open if is_there => *self = Self::Certain,
            Self::Open => *self = Self::Gone,
        }
    }
}

/// A snapshot, known by its number to the witness, and by a name with it to the data plane.
struct Kept {
    number: u32,
    existence: Existence,
}

impl Kept {
    fn name(&self) -> String {
        format!("s{}", self.number)
    }
}

struct Disk {
    uuid: Uuid,
    promise: Promise,
    is_thick: bool,
    has_checksums: bool,
    /// The snapshot that it begins as: its name, and what it may hold.
    origin: Option<(String, Ledger)>,
    existence: Existence,
    kept: Vec<Kept>,
    /// From the moment at which its geometry is known.
    used: Option<(Arc<Mutex<Witness>>, Load)>,
}

impl Disk {
    fn nqn(&self) -> String {
        format!("nqn.2026-11.io.bowline:volume:{}", self.uuid)
    }

    /// Lets a host write to it until the data plane is gone.
    fn load(&mut self, address: SocketAddr, all_connected: &Barrier, progress: &Progress) {
        let nqn = self.nqn();
        let host = Host::connect(address, &nqn);
        all_connected.wait();
        let mut seen = 0;
        let loaded = host.and_then(|mut host| {
            let (witness, load) = self.used.as_mut().unwrap();
            host.load(witness, load, |count| {
                (seen..count).for_each(|_| progress.count());
                seen = count;
                false
            })
        });
        // Whatever went wrong, nobody waits for it.
        let _ = progress.killer.send(());
        loaded.unwrap_or_else(|error| panic!("{nqn}: {error:#}"));
    }

    /// Reads all of it: it holds what it may, and that is what it must hold from now on.
    fn settle(&mut self, address: SocketAddr) -> u64 {
        let mut host = Host::connect(address, &self.nqn()).unwrap();
        let (seed, _) = self.uuid.as_u64_pair();
        let (witness, _) = self.used.get_or_insert_with(|| {
            let (blocks, block_bytes) = (host.blocks, host.block_bytes);
            assert_eq!(i64::from(blocks) * i64::from(block_bytes), VOLUME_BYTES);
            let ledger = match &self.origin {
                None => Ledger::new(seed, block_bytes, blocks, self.promise),
                Some((_, origin)) => origin.begun_as(seed, self.promise),
            };
            let witness = Witness::new(Volume::new(ledger), None);
            (Arc::new(Mutex::new(witness)), Load::new(seed, DEPTH))
        });
        let mut witness = lock(witness);
        witness.volume.cut();
        let mut stamps = 0;
        let read = host.read_back(|lba, data| {
            stamps += u64::from(witness.volume.ledger.settle(lba, data)?);
            Ok(())
        });
        drop(witness);
        read.unwrap_or_else(|error| panic!("{}: {error:#}", self.nqn()));
        stamps
    }

    /// The same for its snapshots: those that are there, by name.
    fn settle_snapshots(
        &mut self,
        address: SocketAddr,
        mut exported: BTreeMap<String, String>,
    ) -> u64 {
        let (witness, _) = self.used.as_ref().unwrap();
        let mut witness = lock(witness);
        let snapshots = &mut witness.volume.snapshots;
        let mut stamps = 0;
        for kept in &mut self.kept {
            let what = format!("snapshot {} of {}", kept.number, self.uuid);
            let subsystem = exported.remove(&kept.name());
            kept.existence.is_found(subsystem.is_some(), &what);
            let Some(subsystem) = subsystem else {
                snapshots.remove(&kept.number);
                continue;
            };
            let snapshot = snapshots.get_mut(&kept.number).unwrap();
            snapshot.is_taken = true;
            let mut host = Host::connect(address, &subsystem).unwrap();
            let read = host.read_back(|lba, data| {
                stamps += u64::from(snapshot.ledger.settle(lba, data)?);
                Ok(())
            });
            read.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        }
        assert!(exported.is_empty(), "nobody took {exported:?}");
        self.kept
            .retain(|kept| kept.existence == Existence::Certain);
        stamps
    }
}

/// What happens at which number of commands.
struct Progress {
    done: AtomicU64,
    calls: Mutex<Vec<u64>>,
    operator: mpsc::Sender<()>,
    kill_at: u64,
    killer: mpsc::Sender<()>,
}

impl Progress {
    fn count(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let mut calls = self.calls.lock().unwrap();
        while calls.last().is_some_and(|at| *at <= done) {
            calls.pop();
            // Nobody listens once the data plane is gone.
            let _ = self.operator.send(());
        }
        if done == self.kill_at {
            let _ = self.killer.send(());
        }
    }
}

/// What the operator does while hosts write.
enum Wish {
    Make(Disk),
    /// Of a volume that no host uses.
    Delete(Disk),
    Keep(Uuid, Arc<Mutex<Witness>>, Kept),
    Drop(Uuid, Kept),
}

impl Wish {
    /// Does it; an error when the data plane is gone.
    async fn call(&mut self, client: &mut PoolServiceClient<Channel>) -> Result<(), tonic::Status> {
        match self {
            Self::Make(disk) => {
                disk.existence = Existence::Open;
                client.create_volume(request(disk)).await?;
                disk.existence = Existence::Certain;
            }
            Self::Delete(disk) => {
                disk.existence = Existence::Open;
                let request = api::DeleteVolumeRequest {
                    name: format!("volumes/{}", disk.uuid),
                    ..Default::default()
                };
                client.delete_volume(request).await?;
                disk.existence = Existence::Gone;
            }
            Self::Keep(volume, witness, kept) => {
                kept.existence = Existence::Open;
                let begins = [Event::SnapshotBegins(kept.number)];
                lock(witness).note(&begins).unwrap();
                let request = api::CreateSnapshotRequest {
                    parent: format!("volumes/{volume}"),
                    snapshot: Some(api::Snapshot {
                        display_name: kept.name(),
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                client.create_snapshot(request).await?;
                let ends = [Event::SnapshotEnds(kept.number)];
                lock(witness).note(&ends).unwrap();
                kept.existence = Existence::Certain;
            }
            Self::Drop(volume, kept) => {
                kept.existence = Existence::Open;
                let request = api::DeleteSnapshotRequest {
                    name: format!("volumes/{volume}/snapshots/{}", kept.name()),
                    force: true,
                    ..Default::default()
                };
                client.delete_snapshot(request).await?;
                kept.existence = Existence::Gone;
            }
        }
        Ok(())
    }
}

fn request(disk: &Disk) -> api::CreateVolumeRequest {
    let durability = match disk.promise {
        Promise::Always => api::Durability::Media,
        Promise::Flushed => api::Durability::Device,
    };
    api::CreateVolumeRequest {
        volume: Some(api::Volume {
            uuid: disk.uuid.to_string(),
            size_bytes: VOLUME_BYTES,
            durability: durability.into(),
            provisioning: match disk.is_thick {
                true => api::Provisioning::Thick.into(),
                false => api::Provisioning::Thin.into(),
            },
            checksums: match disk.has_checksums {
                true => api::ChecksumMode::Verify.into(),
                false => api::ChecksumMode::Off.into(),
            },
            source_snapshot: disk
                .origin
                .as_ref()
                .map_or_else(String::new, |(name, _)| name.clone()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn makes(wishes: &[Wish]) -> usize {
    let makes = wishes.iter().filter(|wish| matches!(wish, Wish::Make(_)));
    makes.count()
}

/// Names of the snapshots that a volume has, all of which are exported, with their subsystems.
async fn exported(
    volume: Uuid,
    client: &mut PoolServiceClient<Channel>,
) -> BTreeMap<String, String> {
    let request = api::ListSnapshotsRequest {
        parent: format!("volumes/{volume}"),
        ..Default::default()
    };
    let listed = client.list_snapshots(request).await.unwrap().into_inner();
    let mut subsystems = BTreeMap::new();
    for snapshot in listed.snapshots {
        let request = api::ExportSnapshotRequest {
            name: snapshot.name,
            ..Default::default()
        };
        let snapshot = client.export_snapshot(request).await.unwrap().into_inner();
        subsystems.insert(snapshot.display_name, snapshot.subsystem_nqn);
    }
    subsystems
}

struct Pool {
    file: PathBuf,
    random: Random,
    runtime: Runtime,
    disks: Vec<Disk>,
    next_snapshot: u32,
    commands: u64,
    stamps: u64,
    /// Clones that were found, and held what they began as.
    clones: u64,
}

impl Pool {
    /// With two volumes.
    fn new(file: &Path, seed: u64) -> Self {
        let size = File::create(file).and_then(|file| file.set_len(POOL_BYTES));
        size.unwrap();
        let mut pool = Self {
            file: file.to_owned(),
            random: Random::new(seed),
            runtime: Builder::new_current_thread().enable_all().build().unwrap(),
            disks: Vec::new(),
            next_snapshot: 1,
            commands: 0,
            stamps: 0,
            clones: 0,
        };
        let plane = pool.start(&["--format"]);
        let mut client = pool.client(&plane);
        for promise in [Promise::Always, Promise::Flushed] {
            let mut wish = Wish::Make(Disk {
                promise,
                ..pool.new_disk()
            });
            pool.runtime.block_on(wish.call(&mut client)).unwrap();
            pool.take_back(wish);
        }
        plane.kill();
        pool
    }

    /// The kernel lets a drive go when the last request of who was killed has ended, which may take
    /// long where writing is slow.
    fn is_let_go(&self) {
        let file = File::open(&self.file).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
    }

    fn start(&self, more: &[&str]) -> DataPlane {
        self.is_let_go();
        let device = ["--host", "any", "--device", self.file.to_str().unwrap()];
        DataPlane::start(&[&device, more].concat())
    }

    fn client(&self, plane: &DataPlane) -> PoolServiceClient<Channel> {
        let address = format!("http://{}", plane.ready.rpc);
        let client = self.runtime.block_on(PoolServiceClient::connect(address));
        client.unwrap()
    }

    fn new_disk(&mut self) -> Disk {
        let [high, low] = [self.random.bits(), self.random.bits()];
        Disk {
            uuid: Uuid::from_u64_pair(high, low),
            promise: match self.random.chance(50) {
                true => Promise::Always,
                false => Promise::Flushed,
            },
            is_thick: self.random.chance(25),
            has_checksums: self.random.chance(40),
            origin: None,
            existence: Existence::Gone,
            kept: Vec::new(),
            used: None,
        }
    }

    /// What is there is what was made and not deleted, and holds what it may.
    fn verify(&mut self, plane: &DataPlane) {
        let mut client = self.client(plane);
        let request = api::ListVolumesRequest::default();
        let listed = self.runtime.block_on(client.list_volumes(request)).unwrap();
        let listed = listed.into_inner().volumes;
        let uuids = listed.iter().map(|volume| volume.uuid.parse().unwrap());
        let mut uuids: BTreeSet<Uuid> = uuids.collect();
        for disk in &mut self.disks {
            let nqn = disk.nqn();
            disk.existence.is_found(uuids.remove(&disk.uuid), &nqn);
        }
        assert!(uuids.is_empty(), "nobody made {uuids:?}");
        self.disks
            .retain(|disk| disk.existence == Existence::Certain);
        let address = plane.ready.listen[0];
        for disk in &mut self.disks {
            self.clones += u64::from(disk.used.is_none() && disk.origin.is_some());
            self.stamps += disk.settle(address);
            let exported = self.runtime.block_on(exported(disk.uuid, &mut client));
            self.stamps += disk.settle_snapshots(address, exported);
        }
    }

    fn take_back(&mut self, wish: Wish) {
        match wish {
            Wish::Make(disk) | Wish::Delete(disk) => self.disks.push(disk),
            Wish::Keep(volume, _, kept) | Wish::Drop(volume, kept) => {
                let disk = self.disks.iter_mut().find(|disk| disk.uuid == volume);
                disk.unwrap().kept.push(kept);
            }
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(u32::try_from(bound).unwrap()) as usize
    }

    /// A volume to be made, which begins as a snapshot if there is one that stays.
    fn new_clone(&mut self) -> Disk {
        let mut disk = self.new_disk();
        let snapshots = self.disks.iter().flat_map(|disk| {
            let witness = disk.used.as_ref().map(|(witness, _)| lock(witness));
            let each = disk.kept.iter().filter_map(move |kept| {
                let ledger = witness.as_ref()?.volume.snapshots.get(&kept.number)?;
                let name = format!("volumes/{}/snapshots/{}", disk.uuid, kept.name());
                Some((name, ledger.ledger.clone()))
            });
            each.collect::<Vec<_>>()
        });
        let mut snapshots: Vec<_> = snapshots.collect();
        if !snapshots.is_empty() {
            let index = self.random.below(u32::try_from(snapshots.len()).unwrap());
            disk.origin = Some(snapshots.swap_remove(index as usize));
        }
        disk
    }

    /// At most one volume is deleted, which no host uses meanwhile.
    fn wishes(&mut self) -> Vec<Wish> {
        let mut wishes = Vec::new();
        if self.disks.len() > 2 && self.random.chance(60) {
            let index = self.below(self.disks.len());
            let disk = self.disks.remove(index);
            wishes.push(Wish::Delete(disk));
        }
        let mut snapshots: usize = self.disks.iter().map(|disk| disk.kept.len()).sum();
        for index in 0..self.disks.len() {
            let disk = &mut self.disks[index];
            if !disk.kept.is_empty() && self.random.chance(40) {
                wishes.push(Wish::Drop(disk.uuid, disk.kept.remove(0)));
            }
            if snapshots < SNAPSHOTS_MAX && self.random.chance(50) {
                let Some((witness, _)) = &disk.used else {
                    continue;
                };
                let kept = Kept {
                    number: self.next_snapshot,
                    existence: Existence::Gone,
                };
                wishes.push(Wish::Keep(disk.uuid, Arc::clone(witness), kept));
                self.next_snapshot += 1;
                snapshots += 1;
            }
        }
        // Of what is not about to be deleted.
        for _ in 0..self.random.below(CALLS_MAX + 1) {
            if self.disks.len() + makes(&wishes) < VOLUMES_MAX {
                let disk = match self.random.chance(50) {
                    true => self.new_clone(),
                    false => self.new_disk(),
                };
                wishes.push(Wish::Make(disk));
            }
        }
        for index in (1..wishes.len()).rev() {
            let other = self.below(index + 1);
            wishes.swap(index, other);
        }
        wishes
    }

    /// From a start to a kill.
    fn round(&mut self) {
        let plane = self.start(&[]);
        self.verify(&plane);
        let kill_at = 1 + self.random.below(COMMANDS_MAX);
        let mut wishes = self.wishes();
        let calls = wishes.iter();
        let mut calls: Vec<u64> = calls
            .map(|_| u64::from(self.random.below(kill_at)) + 1)
            .collect();
        calls.sort_unstable_by(|a, b| b.cmp(a));
        let (operator, calls_due) = mpsc::channel();
        let (killer, kill_due) = mpsc::channel();
        let progress = Progress {
            done: AtomicU64::new(0),
            calls: Mutex::new(calls),
            operator,
            kill_at: u64::from(kill_at),
            killer,
        };
        let mut client = self.client(&plane);
        let address = plane.ready.listen[0];
        let all_connected = Barrier::new(self.disks.len());
        let is_killed = AtomicBool::new(false);
        thread::scope(|scope| {
            for disk in &mut self.disks {
                let (progress, all_connected) = (&progress, &all_connected);
                scope.spawn(move || disk.load(address, all_connected, progress));
            }
            let (wishes, runtime, is_killed) = (&mut wishes, &self.runtime, &is_killed);
            scope.spawn(move || {
                for wish in wishes {
                    if calls_due.recv().is_err() {
                        return;
                    }
                    if let Err(error) = runtime.block_on(wish.call(&mut client)) {
                        assert!(is_killed.load(Ordering::Acquire), "{error:?}");
                        return;
                    }
                }
            });
            kill_due.recv().unwrap();
            is_killed.store(true, Ordering::Release);
            plane.kill();
            // Nothing else is to come, for the operator who waits for it.
            let _ = progress.operator.send(());
        });
        self.commands += progress.done.into_inner();
        // Volumes first, as the others are of one.
        let (volumes, snapshots): (Vec<_>, Vec<_>) = wishes
            .into_iter()
            .partition(|wish| matches!(wish, Wish::Make(_) | Wish::Delete(_)));
        volumes
            .into_iter()
            .chain(snapshots)
            .for_each(|wish| self.take_back(wish));
    }

    /// What a kill may leave, between the writes of the two superblocks for one, is only noticed.
    fn check(&self) {
        self.is_let_go();
        let (code, out, err) = run(&["pool", "check", self.file.to_str().unwrap()]);
        assert_eq!(code, 0, "{out}{err}");
        let is_wrong = |line: &str| line.starts_with("loss ") || line.starts_with("damage ");
        assert!(!out.lines().any(is_wrong), "{out}");
    }
}

#[test]
fn what_was_acknowledged_outlives_kill_9() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let kills = number("POOL_KILLS").map_or(KILLS, |kills: u64| u32::try_from(kills).unwrap());
    let seed = number("POOL_KILLS_SEED").unwrap_or(SEED);
    println!("{kills} kills, seed {seed}");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut pool = Pool::new(&folder.path().join("pool"), seed);
    for kill in 1..=kills {
        pool.round();
        if kill % CHECK_EVERY == 0 {
            pool.check();
        }
        let snapshots: usize = pool.disks.iter().map(|disk| disk.kept.len()).sum();
        println!(
            "kill {kill}: {} commands, {} volumes, {snapshots} snapshots",
            pool.commands,
            pool.disks.len()
        );
    }
    let plane = pool.start(&[]);
    pool.verify(&plane);
    assert!(plane.stop().success());
    pool.check();
    println!(
        "{} commands, {} blocks read back, {} clones",
        pool.commands, pool.stamps, pool.clones
    );
    assert!(pool.clones > 0 || kills < KILLS);
    assert!(pool.commands > u64::from(kills) && pool.stamps > u64::from(kills));
}
