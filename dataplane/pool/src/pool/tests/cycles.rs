//! Volumes live and die a thousand times, over restarts and power cuts; in the end there is what somebody reads, and
//! nothing else.

use std::collections::{BTreeMap, BTreeSet};

use bowline_block::Op;

use super::random::Random;
use super::world::{EXTENT, World, plan, spec};
use crate::{Outcome, PoolError, VolumeSpec};

const BLOCKS: u64 = EXTENT / 512;
const EXTENTS_MAX: u64 = 10;

/// What each block holds.
type Contents = Vec<u64>;

#[derive(Clone, Default)]
struct Disk {
    contents: Contents,
    snapshots: BTreeMap<u32, Contents>,
    taken: u32,
    /// By extent and snapshots taken: whether the last that happened to it was that it was written, and not given up.
    changes: BTreeMap<(u64, u32), bool>,
    is_deleted: bool,
}

struct Run {
    world: World,
    random: Random,
    disks: BTreeMap<u32, Disk>,
    next_value: u64,
}

fn blocks(extents: u64) -> usize {
    usize::try_from(extents * BLOCKS).unwrap()
}

fn extents(contents: &Contents) -> u64 {
    u64::try_from(contents.len()).unwrap() / BLOCKS
}

impl Run {
    fn live(&mut self) -> Option<u32> {
        let live = self.disks.iter().filter(|(_, disk)| !disk.is_deleted);
        let numbers: Vec<u32> = live.map(|(number, _)| *number).collect();
        let count = u64::try_from(numbers.len()).unwrap();
        let at = usize::try_from(self.random.below(count.max(1))).unwrap();
        numbers.get(at).copied()
    }

    fn snapshot_of(&mut self, number: u32) -> Option<u32> {
        let count = u64::try_from(self.disks[&number].snapshots.len()).unwrap();
        let at = usize::try_from(self.random.below(count.max(1))).unwrap();
        self.disks[&number].snapshots.keys().nth(at).copied()
    }

    fn create(&mut self, base: Option<(u32, u32)>) {
        let size = 1 + self.random.below(EXTENTS_MAX);
        let mut contents = Contents::new();
        if let Some((volume, snapshot)) = base {
            contents = self.disks[&volume].snapshots[&snapshot].clone();
        }
        contents.resize(contents.len().max(blocks(size)), 0);
        let spec = VolumeSpec {
            base,
            ..spec(extents(&contents) * EXTENT)
        };
        let operation = self.world.pool.create_volume(spec);
        match self.world.wait(operation) {
            Ok(Outcome::Volume(number)) => {
                let disk = Disk {
                    contents,
                    ..Disk::default()
                };
                self.disks.insert(number, disk);
            }
            other => assert_eq!(other, Err(PoolError::Full)),
        }
    }

    fn write(&mut self, number: u32) {
        let disk = self.disks.get_mut(&number).unwrap();
        let end = u64::try_from(disk.contents.len()).unwrap();
        let lba = self.random.below(end);
        let count = (1 + self.random.below(2 * BLOCKS)).min(end - lba);
        let values: Vec<u64> = (self.next_value..)
            .take(usize::try_from(count).unwrap())
            .collect();
        self.next_value += count;
        let first = usize::try_from(lba).unwrap();
        disk.contents[first..first + values.len()].copy_from_slice(&values);
        for extent in lba / BLOCKS..=(lba + count - 1) / BLOCKS {
            disk.changes.insert((extent, disk.taken), true);
        }
        let mut volume = self.world.pool.open_volume(number).unwrap();
        self.world.write(&mut volume, lba, &values).unwrap();
    }

    fn discard(&mut self, number: u32) {
        let disk = self.disks.get_mut(&number).unwrap();
        let end = extents(&disk.contents);
        let first = self.random.below(end);
        let count = (1 + self.random.below(3)).min(end - first);
        disk.contents[blocks(first)..blocks(first + count)].fill(0);
        for extent in first..first + count {
            disk.changes.insert((extent, disk.taken), false);
        }
        let mut volume = self.world.pool.open_volume(number).unwrap();
        let op = Op::WriteZeroes { deallocate: true };
        self.world
            .change(&mut volume, op, first * BLOCKS, blocks(count))
            .unwrap();
    }

    fn resize(&mut self, number: u32) {
        let disk = self.disks.get_mut(&number).unwrap();
        let size = 1 + self.random.below(EXTENTS_MAX);
        for extent in size..extents(&disk.contents) {
            disk.changes.insert((extent, disk.taken), false);
        }
        disk.contents.resize(blocks(size), 0);
        let operation = self.world.pool.resize_volume(number, size * EXTENT, true);
        self.world.wait(operation).unwrap();
    }

    fn snapshot(&mut self, number: u32) {
        let operation = self
            .world
            .pool
            .create_snapshot(number, uuid::Uuid::nil(), "s".into(), 1);
        match self.world.wait(operation) {
            Ok(Outcome::Snapshot(snapshot)) => {
                let disk = self.disks.get_mut(&number).unwrap();
                disk.taken = snapshot;
                disk.snapshots.insert(snapshot, disk.contents.clone());
            }
            other => assert_eq!(other, Err(PoolError::Full)),
        }
    }

    fn cycle(&mut self) {
        let Some(number) = self.live() else {
            return self.create(None);
        };
        let snapshot = self.snapshot_of(number);
        match (self.random.below(16), snapshot) {
            (0, _) => self.create(None),
            (1..=5, _) => self.write(number),
            (6..=7, _) => self.discard(number),
            (8..=9, _) => self.snapshot(number),
            (10, Some(snapshot)) => self.create(Some((number, snapshot))),
            (11..=12, Some(snapshot)) => {
                let operation = self.world.pool.delete_snapshot(number, snapshot);
                self.world.wait(operation).unwrap();
                let disk = self.disks.get_mut(&number).unwrap();
                disk.snapshots.remove(&snapshot);
            }
            (13, _) => {
                let operation = self.world.pool.delete_volume(number);
                self.world.wait(operation).unwrap();
                let disk = self.disks.get_mut(&number).unwrap();
                disk.is_deleted = true;
                disk.snapshots.clear();
            }
            (14, _) => self.resize(number),
            _ => {}
        }
    }

    fn verify(&mut self) {
        assert_eq!(self.world.pool.check(), Vec::<String>::new());
        for (number, disk) in self.disks.iter().filter(|(_, disk)| !disk.is_deleted) {
            let mut volume = self.world.pool.open_volume(*number).unwrap();
            let found = self.world.read(&mut volume, 0, disk.contents.len());
            assert_eq!(found, disk.contents, "volume {number}");
            for (snapshot, contents) in &disk.snapshots {
                let mut old = self.world.pool.open_snapshot(*number, *snapshot).unwrap();
                let found = self.world.read(&mut old, 0, contents.len());
                assert_eq!(found, *contents, "snapshot {snapshot} of volume {number}");
            }
        }
    }

    /// What is allocated is, of each extent, what readers of different times see and was not given up.
    fn verify_space(&mut self) {
        self.world.settle();
        let engine = self.world.pool.engine.borrow();
        let mut wanted = BTreeSet::new();
        for (_, volume) in engine.state.volumes() {
            let disk = &self.disks[&volume.number];
            let snapshots = volume.snapshots().iter();
            let mut readers: Vec<_> = snapshots.map(|it| (it.number, it.bytes)).collect();
            if !volume.is_deleted {
                readers.push((u32::MAX, volume.bytes));
            }
            for (number, bytes) in readers {
                for extent in 0..bytes / EXTENT {
                    let seen = disk.changes.range((extent, 0)..(extent, number));
                    if let Some((&(_, born), true)) = seen.last() {
                        wanted.insert((volume.number, extent, born));
                    }
                }
            }
        }
        assert_eq!(engine.state.extents().used as usize, wanted.len());
        assert_eq!(engine.state.extents().taken, 0);
        drop(engine);
        let usage = self.world.pool.usage();
        assert_eq!(usage.used_bytes + usage.available_bytes, usage.bytes);
        assert_eq!(usage.reclaiming_bytes, 0);
    }
}

#[test]
fn thousand_cycles_leave_what_is_read_and_nothing_else() {
    let mut it = Run {
        world: World::new(12 << 20, plan(11)),
        random: Random(11),
        disks: BTreeMap::new(),
        next_value: 1,
    };
    for cycle in 1..=1000 {
        it.cycle();
        if cycle % 50 == 0 {
            it.verify();
            it.verify_space();
            it.verify();
        }
        if cycle % 70 == 0 {
            it.world = it.world.reopen();
        } else if cycle % 110 == 0 {
            it.world = it.world.crash();
        }
    }
    for number in it.disks.keys().copied().collect::<Vec<_>>() {
        if !it.disks[&number].is_deleted {
            let operation = it.world.pool.delete_volume(number);
            it.world.wait(operation).unwrap();
        }
    }
    it.world.settle();
    assert_eq!(it.world.pool.usage().used_bytes, 0);
    assert_eq!(it.world.pool.engine.borrow().state.volumes().count(), 0);
    it.world.reopen();
}
