//! Hosts whose volume goes, or gets smaller, while their commands are at the drive: what they write then
//! is in no other volume, and not where the volume is made larger again.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

use bowline_witness::host::{Host, Load, Witness, lock};
use bowline_witness::ledger::{Ledger, Promise};
use bowline_witness::volume::Volume;
use uuid::Uuid;

use crate::harness::{DataPlane, run};
use crate::volumes::verb;

/// Room for three volumes: each is in what others had that were deleted.
const POOL_BYTES: u64 = 64 << 20;
const VOLUME_BYTES: u32 = 16 << 20;
const SMALLER_BYTES: u32 = 4 << 20;
const ROUNDS: u64 = 6;
const COMMANDS: u64 = 200;
/// Of those that follow, so many are done before the host is cut off.
const MORE: u64 = 40;
/// A host that gets as far was not cut off.
const TOO_MANY: u64 = 1_000_000;
const DEPTH: usize = 24;
/// Of the host that stays: the others have the machine.
const DEPTH_BESIDE: usize = 2;

/// A volume, and what its only host knows of it.
struct Disk<'a> {
    plane: &'a DataPlane,
    name: String,
    subsystem: String,
    host: Host,
    witness: Mutex<Witness>,
    load: Load,
}

impl<'a> Disk<'a> {
    fn new(plane: &'a DataPlane, seed: u64, depth: usize) -> Self {
        let name = format!("v{seed}");
        let uuid = Uuid::from_u64_pair(1, seed).to_string();
        let size = VOLUME_BYTES.to_string();
        let create = ["volume", "create", &name, "--size", &size, "--uuid", &uuid];
        verb(plane, &create);
        let subsystem = format!("nqn.2026-11.io.bowline:volume:{uuid}");
        let host = Host::connect(plane.ready.listen[0], &subsystem).unwrap();
        let ledger = Ledger::new(seed, host.block_bytes, host.blocks, Promise::Always);
        Self {
            plane,
            name,
            subsystem,
            host,
            witness: Mutex::new(Witness::new(Volume::new(ledger), None)),
            load: Load::new(seed, depth),
        }
    }

    /// Lets the host write until that is enough or it is cut off.
    fn load(&mut self, is_enough: impl FnMut(u64) -> bool) {
        let loaded = self.host.load(&self.witness, &mut self.load, is_enough);
        loaded.unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
    }

    /// It holds what it may, and from a byte on nothing.
    fn is_right(&mut self, nothing_from: u32) {
        let nothing_from = nothing_from / self.host.block_bytes;
        let ledger = &mut lock(&self.witness).volume.ledger;
        let read = self.host.read_back(|lba, data| {
            if lba < nothing_from {
                ledger.settle(lba, data)?;
            } else {
                assert!(data.iter().all(|byte| *byte == 0), "{lba} is beyond");
            }
            Ok(())
        });
        read.unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
    }

    /// Does something that cuts the host off in the middle of its commands.
    fn cut_off(&mut self, line: &[&str]) {
        let (plane, (due, is_due)) = (self.plane, mpsc::channel());
        thread::scope(|scope| {
            scope.spawn(move || {
                is_due.recv().unwrap();
                verb(plane, line);
            });
            self.load(|count| {
                if count >= MORE {
                    // Told more often than is listened to.
                    let _ = due.send(());
                }
                count >= TOO_MANY
            });
        });
        lock(&self.witness).volume.cut();
    }

    fn gets_smaller_and_larger(&mut self) {
        let name = self.name.clone();
        let to = |bytes: u32| bytes.to_string();
        let (smaller, before) = (to(SMALLER_BYTES), to(VOLUME_BYTES));
        let resize = ["volume", "resize", &name, "--size"];
        self.cut_off(&[&resize[..], &[&smaller, "--force"]].concat());
        verb(self.plane, &[&resize[..], &[&before]].concat());
        self.host = Host::connect(self.plane.ready.listen[0], &self.subsystem).unwrap();
        self.is_right(SMALLER_BYTES);
    }
}

/// Also when something went wrong the other host comes to its end.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn what_is_written_while_a_host_is_cut_off_is_nowhere_else() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("pool");
    let size = File::create(&path).and_then(|file| file.set_len(POOL_BYTES));
    size.unwrap();
    let path = path.to_str().unwrap();
    let plane = DataPlane::start(&["--device", path, "--format", "--host", "any"]);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stays = Disk::new(&plane, 0, DEPTH_BESIDE);
            stays.load(|_| is_over.load(Ordering::Acquire));
            stays.is_right(VOLUME_BYTES);
        });
        let _over = Over(&is_over);
        for round in 1..=ROUNDS {
            let mut disk = Disk::new(&plane, round, DEPTH);
            disk.load(|count| count >= COMMANDS);
            disk.is_right(VOLUME_BYTES);
            let name = disk.name.clone();
            let delete = ["volume", "delete", &name, "--yes", "--force"];
            if round.is_multiple_of(2) {
                disk.cut_off(&delete);
            } else {
                disk.gets_smaller_and_larger();
                verb(&plane, &delete);
            }
        }
    });
    assert!(plane.stop().success());
    let (code, out, err) = run(&["pool", "check", path]);
    assert_eq!(code, 0, "{out}{err}");
}
