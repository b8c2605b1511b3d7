//! A group that is said not to be written, and may be on the drive all the same: whatever the pool acknowledges from then on
//! is right in both cases.

use std::collections::BTreeSet;

use bowline_block::{FaultPlan, IoError, Op};
use uuid::Uuid;

use super::world::{EXTENT, Failing, Shared, World, options, spec};
use crate::format::layout::Area;
use crate::format::record::Checksums;
use crate::{Found, OpenError, OpenOptions, Outcome, Pool, PoolError, Volume, VolumeSpec};

const BLOCKS: u64 = EXTENT / 512;
const ZEROES: Op = Op::WriteZeroes { deallocate: true };

/// Extents that the lives are about.
const EXTENTS: u64 = 6;

impl World {
    /// The group after so many has its write fail; perhaps it is done all the same.
    fn doubt(&self, after: u32, is_done: bool) {
        let journal = self.pool.engine.borrow().superblock.layout.journal;
        self.drive.late().failing = Some(failing(journal, after, is_done));
    }

    fn has_failed(&self) -> bool {
        self.pool.engine.borrow().journal.has_failed()
    }
}

/// The write to the journal after so many others.
fn failing(journal: Area, after: u32, is_done: bool) -> Failing {
    let end = journal.offset + journal.bytes;
    Failing {
        blocks: journal.offset / 512..end / 512,
        after,
        is_done,
    }
}

/// A volume of which a few extents are written.
fn world(checksums: Checksums) -> (World, u32, Volume<Shared>) {
    let mut world = World::new(6 << 20, FaultPlan::default());
    let number = world.create(VolumeSpec {
        checksums,
        ..spec(40 * EXTENT)
    });
    let mut volume = world.pool.open_volume(number).unwrap();
    for extent in 0..4 {
        world.write(&mut volume, extent * BLOCKS, &[1; 32]).unwrap();
    }
    world.settle();
    (world, number, volume)
}

#[test]
fn what_may_be_deallocated_is_not_written_to() {
    for checksums in [Checksums::Off, Checksums::Verify] {
        let (mut world, number, mut volume) = world(checksums);
        world.doubt(0, true);
        let refused = Err(IoError::MediaWrite);
        assert_eq!(world.change(&mut volume, ZEROES, 0, 32), refused);
        assert_eq!(world.write(&mut volume, 8, &[2; 8]), refused);
        let mut other = world.pool.open_volume(number).unwrap();
        assert_eq!(world.write(&mut other, 8, &[2; 8]), refused);
        assert_eq!(world.read(&mut volume, 0, 32), [1; 32]);
        assert_eq!(world.write(&mut volume, BLOCKS + 8, &[3; 8]), Ok(()));
        drop((volume, other));
        let mut world = world.crash();
        let mut volume = world.pool.open_volume(number).unwrap();
        assert_eq!(world.read(&mut volume, 0, 32), [0; 32]);
        assert_eq!(world.read(&mut volume, BLOCKS + 8, 8), [3; 8]);
    }
}

#[test]
fn what_may_have_been_written_is_not_said_to_be_zero() {
    let (mut world, number, mut volume) = world(Checksums::Off);
    world.doubt(0, true);
    let refused = Err(IoError::MediaWrite);
    let lba = 20 * BLOCKS;
    assert_eq!(world.write(&mut volume, lba, &[2; 32]), refused);
    assert_eq!(world.change(&mut volume, ZEROES, lba, 32), refused);
    assert_eq!(world.change(&mut volume, ZEROES, lba + 40, 8), Ok(()));
    drop(volume);
    let mut world = world.crash();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, lba, 32), [2; 32]);
}

#[test]
fn volume_of_which_there_may_be_a_snapshot_is_not_written_to() {
    let (mut world, number, mut volume) = world(Checksums::Off);
    let other = world.create(spec(EXTENT));
    let mut beside = world.pool.open_volume(other).unwrap();
    world.write(&mut beside, 0, &[1; 32]).unwrap();
    world.doubt(0, true);
    let snapshot = world
        .pool
        .create_snapshot(number, Uuid::from_u128(3), "s".into(), 1);
    assert_eq!(world.wait(snapshot), Err(PoolError::Journal));
    let refused = Err(IoError::MediaWrite);
    assert_eq!(world.write(&mut volume, 0, &[2; 8]), refused);
    assert_eq!(world.write(&mut beside, 0, &[2; 8]), Ok(()));
    drop((volume, beside));
    let mut world = world.crash();
    let mut snapshot = world.pool.open_snapshot(number, 1).unwrap();
    assert_eq!(world.read(&mut snapshot, 0, 32), [1; 32]);
    let mut beside = world.pool.open_volume(other).unwrap();
    assert_eq!(world.read(&mut beside, 0, 8), [2; 8]);
}

#[test]
fn volume_that_may_be_smaller_or_deleted_is_not_written_to() {
    for is_deleted in [false, true] {
        let (mut world, number, mut volume) = world(Checksums::Off);
        world.doubt(0, true);
        let operation = match is_deleted {
            true => world.pool.delete_volume(number),
            false => world.pool.resize_volume(number, EXTENT, true),
        };
        assert_eq!(world.wait(operation), Err(PoolError::Journal));
        let refused = Err(IoError::MediaWrite);
        assert_eq!(world.write(&mut volume, 3 * BLOCKS, &[2; 8]), refused);
        assert_eq!(world.read(&mut volume, 3 * BLOCKS, 8), [1; 8]);
    }
}

/// What is recorded last is what was reserved and never taken.
#[test]
fn pool_is_not_said_to_be_closed_before_a_group_that_may_be_there() {
    for is_done in [false, true] {
        let (world, number, volume) = world(Checksums::Off);
        drop(volume);
        world.doubt(0, is_done);
        let World {
            mut drive,
            pool,
            now,
            ..
        } = world;
        let mut wait = || *now.borrow();
        let closed = pool.close(&mut wait).map(drop);
        let refused = matches!(closed, Err(OpenError::Drive(IoError::MediaWrite)));
        assert!(refused, "{closed:?}");
        let Found::Pool(superblock) = Pool::find(&mut drive, &mut wait).unwrap() else {
            panic!("the pool is gone");
        };
        assert_eq!(superblock.closed_at, None);
        let mut world = World::open(drive, now);
        let mut volume = world.pool.open_volume(number).unwrap();
        assert_eq!(world.read(&mut volume, 0, 32), [1; 32]);
    }
}

/// It may be in a cache that has failed to make it stable, and is not going to try again.
#[test]
fn group_that_was_written_last_is_written_again_before_the_journal_goes_on() {
    let (world, number, volume) = world(Checksums::Off);
    drop(volume);
    world.doubt(0, false);
    let World {
        drive, pool, now, ..
    } = world;
    drop(pool);
    let opened = Pool::open(drive.clone(), &mut || *now.borrow());
    assert!(matches!(opened, Err(OpenError::Drive(IoError::MediaWrite))));
    let world = World::open(drive, now);
    let mut world = world.crash();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 0, 32), [1; 32]);
    drop(volume);
    // A pool that was closed says that all of it is stable.
    world.settle();
    let layout = world.pool.engine.borrow().superblock.layout;
    let World {
        drive, pool, now, ..
    } = world;
    pool.close(&mut || *now.borrow()).unwrap();
    drive.late().failing = Some(failing(layout.journal, 0, false));
    let world = World::open(drive, now);
    assert!(world.drive.late().failing.is_some());
}

/// A crash would believe the slots on the drive, and take what was written since for damage.
#[test]
fn nothing_is_written_to_chunks_whose_checksums_may_count_again() {
    for is_done in [false, true] {
        // Room for one group.
        let cache = OpenOptions {
            checksum_cache_bytes: 1,
        };
        let mut world = World::with(16 << 20, FaultPlan::default(), &options(), cache);
        let number = world.create(VolumeSpec {
            checksums: Checksums::Verify,
            ..spec(600 * EXTENT)
        });
        let mut volume = world.pool.open_volume(number).unwrap();
        for extent in 0..400 {
            let lba = extent * BLOCKS;
            world.write(&mut volume, lba, &[1; 32]).unwrap();
        }
        world.settle();
        // The group of the last extent becomes active, which is recorded. It is retired at once, and that fails.
        let last = 399 * BLOCKS;
        world.doubt(1, is_done);
        world.write(&mut volume, last, &[1; 32]).unwrap();
        world.settle();
        assert!(world.has_failed());
        for _ in 0..2 {
            let refused = world.write(&mut volume, last, &[2; 32]);
            assert_eq!(refused, Err(IoError::MediaWrite));
            assert_eq!(world.read(&mut volume, last, 32), [1; 32]);
            assert_eq!(world.read(&mut volume, 0, 8), [1; 8]);
        }
        drop(volume);
        let mut world = world.crash();
        let mut volume = world.pool.open_volume(number).unwrap();
        assert_eq!(world.read(&mut volume, last, 32), [1; 32]);
    }
}

/// What a volume or snapshot may hold: where more than one, an error left it open.
type Model = Vec<BTreeSet<u64>>;

/// A life in which everything may fail, and is tried all the same.
struct Life {
    world: World,
    number: u32,
    model: Model,
    /// What snapshots hold if they are there.
    snapshots: Vec<Model>,
    next: u64,
}

impl Life {
    fn new(checksums: Checksums, after: u32, is_done: bool) -> Self {
        let mut world = World::new(6 << 20, FaultPlan::default());
        let number = world.create(VolumeSpec {
            checksums,
            ..spec(EXTENTS * EXTENT)
        });
        world.settle();
        world.doubt(after, is_done);
        let blocks = usize::try_from(EXTENTS * BLOCKS).unwrap();
        Self {
            world,
            number,
            model: vec![BTreeSet::from([0]); blocks],
            snapshots: Vec::new(),
            next: 1,
        }
    }

    fn change(&mut self, op: Op, lba: u64, blocks: usize) {
        let mut volume = self.world.pool.open_volume(self.number).unwrap();
        let (result, value) = if op == Op::Write {
            self.next += 1;
            let values = vec![self.next; blocks];
            (self.world.write(&mut volume, lba, &values), self.next)
        } else {
            (self.world.change(&mut volume, op, lba, blocks), 0)
        };
        let first = usize::try_from(lba).unwrap();
        for possible in &mut self.model[first..first + blocks] {
            if result.is_ok() {
                possible.clear();
            }
            possible.insert(value);
        }
    }

    fn snapshot(&mut self) {
        let uuid = Uuid::from_u128(3);
        let operation = self
            .world
            .pool
            .create_snapshot(self.number, uuid, "s".into(), 1);
        let result = self.world.wait(operation);
        self.snapshots.push(self.model.clone());
        if let Ok(outcome) = result {
            let number = u32::try_from(self.snapshots.len()).unwrap();
            assert_eq!(outcome, Outcome::Snapshot(number));
        }
    }

    /// Everything that is in place is written again, and everything that is not there is deallocated.
    fn write_everywhere(&mut self) {
        for chunk in 0..EXTENTS * BLOCKS / 8 {
            self.change(Op::Write, chunk * 8 + 2, 4);
        }
        for extent in 0..EXTENTS {
            self.change(ZEROES, extent * BLOCKS, 32);
            self.change(Op::Write, extent * BLOCKS + 8, 8);
        }
    }

    fn live(&mut self) {
        let writes: [(u64, usize); 6] = [(0, 32), (32, 32), (70, 8), (104, 8), (130, 30), (161, 7)];
        for (lba, blocks) in writes {
            self.change(Op::Write, lba, blocks);
        }
        self.snapshot();
        for (lba, blocks) in [(8, 8), (34, 8), (72, 16), (96, 32)] {
            self.change(Op::Write, lba, blocks);
        }
        self.change(ZEROES, 0, 8);
        self.change(ZEROES, 128, 32);
        self.snapshot();
        self.change(Op::Write, 20, 10);
        self.change(Op::Write, 136, 8);
        for number in [1, 2] {
            let operation = self.world.pool.delete_snapshot(self.number, number);
            let _ = self.world.wait(operation);
            // What is left of it is brought together.
            self.world.settle();
            self.change(Op::Write, 10, 4);
        }
        self.change(ZEROES, 64, 32);
        self.change(Op::Write, 66, 8);
        self.world.settle();
    }

    fn check(self) {
        let Self {
            world,
            number,
            model,
            snapshots,
            ..
        } = self;
        // The life may have ended before that group.
        world.drive.late().failing = None;
        let mut world = world.crash();
        assert_eq!(world.pool.check(), Vec::<String>::new());
        let mut volume = world.pool.open_volume(number).unwrap();
        expect(&mut world, &mut volume, &model, "the volume");
        for (number_of, model) in (1..).zip(&snapshots) {
            if let Ok(mut snapshot) = world.pool.open_snapshot(number, number_of) {
                let name = format!("snapshot {number_of}");
                expect(&mut world, &mut snapshot, model, &name);
            }
        }
    }
}

fn expect(world: &mut World, volume: &mut Volume<Shared>, model: &Model, name: &str) {
    let found = world.read(volume, 0, model.len());
    for (lba, (value, possible)) in found.iter().zip(model).enumerate() {
        assert!(
            possible.contains(value),
            "block {lba} of {name}: {value}, not {possible:?}"
        );
    }
}

#[test]
fn what_is_acknowledged_after_any_group_was_in_doubt_is_there_whether_it_was_written_or_not() {
    for checksums in [Checksums::Off, Checksums::Verify] {
        for is_done in [true, false] {
            for after in 0.. {
                println!("{checksums:?}, group {after}, is_done {is_done}");
                let mut life = Life::new(checksums, after, is_done);
                life.live();
                let has_failed = life.world.has_failed();
                if has_failed {
                    life.write_everywhere();
                }
                life.check();
                if !has_failed {
                    assert!(after > 15, "{after}");
                    break;
                }
            }
        }
    }
}
