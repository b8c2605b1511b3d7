//! Thick volumes, volumes that become smaller and larger, and many made at once.

use bowline_block::{Completions, Device, DeviceEvent, FaultPlan, IoError, Op};

use super::world::{EXTENT, World, io, plan, slow_writes, spec};
use crate::{Outcome, PoolError, Provisioning, VolumeSpec};

const ZEROES: Op = Op::WriteZeroes { deallocate: true };
const BLOCKS: u64 = EXTENT / 512;

fn world() -> World {
    World::new(4 << 20, FaultPlan::default())
}

fn thick(bytes: u64) -> VolumeSpec {
    VolumeSpec {
        provisioning: Provisioning::Thick,
        ..spec(bytes)
    }
}

/// Writes to every extent from the first on until there is no room; how many were written.
fn fill(world: &mut World, number: u32, value: u64) -> u64 {
    let mut volume = world.pool.open_volume(number).unwrap();
    let extents = volume.geometry().bytes() / EXTENT;
    for extent in 0..extents {
        match world.write(&mut volume, extent * BLOCKS, &[value; 8]) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error, IoError::NoSpace);
                return extent;
            }
        }
    }
    extents
}

#[test]
fn thick_volume_finds_room_whatever_thin_ones_take() {
    let mut world = world();
    let all = world.pool.usage().bytes / EXTENT;
    let kept = world.create(thick(20 * EXTENT));
    let usage = world.pool.usage();
    assert_eq!(usage.promised_bytes, 20 * EXTENT);
    assert_eq!(usage.available_bytes, (all - 20) * EXTENT);
    assert_eq!(world.pool.volumes()[0].mapped_bytes, 20 * EXTENT);
    assert!(!world.pool.open_volume(kept).unwrap().geometry().thin);
    let thin = world.create(spec(all * EXTENT));
    assert_eq!(fill(&mut world, thin, 1), all - 20);
    let mut world = world.reopen();
    assert_eq!(fill(&mut world, kept, 2), 20);
    let mut volume = world.pool.open_volume(thin).unwrap();
    let last = (all - 1) * BLOCKS;
    assert_eq!(world.write(&mut volume, last, &[1]), Err(IoError::NoSpace));
    let usage = world.pool.usage();
    assert_eq!((usage.promised_bytes, usage.available_bytes), (0, 0));
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

/// What is kept for thick volumes is asked for with every first write, so it is counted and not looked for.
#[test]
fn however_many_first_writes_are_on_their_way_none_takes_what_is_kept() {
    for seed in 0..4 {
        let mut world = World::new(4 << 20, plan(seed));
        let all = world.pool.usage().bytes / EXTENT;
        let number = world.create(thick(20 * EXTENT));
        let mut kept = world.pool.open_volume(number).unwrap();
        let thin = world.create(spec(2 * all * EXTENT));
        let mut volume = world.pool.open_volume(thin).unwrap();
        // Some extents are not clean.
        for extent in 0..8 {
            world.write(&mut volume, extent * BLOCKS, &[1; 8]).unwrap();
            world
                .change(&mut volume, ZEROES, extent * BLOCKS, 32)
                .unwrap();
        }
        let data = world.payload(&[2; 8]);
        for extent in 0..all + 10 {
            let lba = extent * BLOCKS;
            let write = || io(Op::Write, lba, 8, data.slice(0..4096));
            volume.try_submit(write()).unwrap();
            if extent < 10 {
                kept.try_submit(write()).unwrap();
            }
        }
        let mut ended = Vec::new();
        let mut out = Completions::with_capacity(64);
        let mut most = 0;
        while ended.len() < usize::try_from(all + 20).unwrap() {
            world.poll();
            let now = *world.now.borrow();
            volume.poll(now, &mut out);
            ended.extend(out.drain().map(|it| (true, it.result)));
            kept.poll(now, &mut out);
            ended.extend(out.drain().map(|it| (false, it.result)));
            let engine = world.pool.engine.borrow();
            let works = engine.works.iter().filter(|work| {
                let target = work.target;
                target.is_some()
                    && engine.own(work.key).physical() != target
                    && !engine.is_thick(work.key)
            });
            let on_their_way = u64::try_from(works.count()).unwrap();
            assert_eq!(engine.works.on_their_way(), on_their_way);
            most = most.max(on_their_way);
        }
        assert!(most > 8, "{most}");
        let written = |is_thin| ended.iter().filter(|it| **it == (is_thin, Ok(()))).count();
        assert_eq!(u64::try_from(written(true)).unwrap(), all - 20);
        assert_eq!(written(false), 10);
    }
}

#[test]
fn thick_volume_is_refused_where_its_extents_cannot_be_kept() {
    let mut world = world();
    let all = world.pool.usage().bytes;
    let refused = world.pool.create_volume(thick(all + EXTENT));
    assert_eq!(world.wait(refused), Err(PoolError::NoSpace));
    // Of two that are asked for at once only one can be.
    let first = world.pool.create_volume(thick(all - EXTENT));
    let second = world.pool.create_volume(thick(2 * EXTENT)).unwrap();
    world.poll();
    let refused = (second, Err(PoolError::NoSpace));
    assert_eq!(world.pool.poll_operation(), Some(refused));
    let Ok(Outcome::Volume(volume)) = world.wait(first) else {
        panic!("no volume");
    };
    let grown = world.pool.resize_volume(volume, all + EXTENT, false);
    assert_eq!(world.wait(grown), Err(PoolError::NoSpace));
    let grown = world.pool.resize_volume(volume, all, false);
    assert_eq!(world.wait(grown), Ok(Outcome::Done));
    assert_eq!(world.pool.usage().available_bytes, 0);
}

#[test]
fn snapshot_of_a_thick_volume_keeps_room_for_all_of_it_to_be_written_again() {
    let mut world = world();
    let all = world.pool.usage().bytes / EXTENT;
    let size = all / 2 + 1;
    let number = world.create(thick(size * EXTENT));
    assert_eq!(fill(&mut world, number, 1), size);
    let uuid = uuid::Uuid::nil();
    let refused = world.pool.create_snapshot(number, uuid, "s".into(), 1);
    assert_eq!(world.wait(refused), Err(PoolError::NoSpace));
    let smaller = world.pool.resize_volume(number, (all / 2) * EXTENT, true);
    world.wait(smaller).unwrap();
    world.settle();
    let snapshot = world.snapshot(number);
    let thin = world.create(spec(all * EXTENT));
    assert_eq!(fill(&mut world, thin, 9), all % 2);
    assert_eq!(fill(&mut world, number, 2), all / 2);
    let mut old = world.pool.open_snapshot(number, snapshot).unwrap();
    assert_eq!(world.read(&mut old, 0, 9)[7..], [1, 0]);
}

#[test]
fn deallocating_a_thick_volume_zeroes_and_keeps_its_extents() {
    let mut world = world();
    let number = world.create(thick(4 * EXTENT));
    fill(&mut world, number, 7);
    let mut volume = world.pool.open_volume(number).unwrap();
    for op in [Op::Deallocate, ZEROES] {
        world.write(&mut volume, 0, &[7; 8]).unwrap();
        let blocks = usize::try_from(4 * BLOCKS).unwrap();
        world.change(&mut volume, op, 0, blocks).unwrap();
        assert!(world.read(&mut volume, 0, blocks).iter().all(|it| *it == 0));
        assert_eq!(world.pool.usage().used_bytes, 4 * EXTENT);
    }
    assert_eq!(world.pool.volumes()[0].mapped_bytes, 4 * EXTENT);
}

#[test]
fn volume_made_smaller_and_larger_again_has_zeroes_and_its_snapshots_keep_theirs() {
    for with_crash in [false, true] {
        let mut world = World::new(4 << 20, plan(3));
        let number = world.create(spec(8 * EXTENT));
        let mut volume = world.pool.open_volume(number).unwrap();
        world.write(&mut volume, 0, &[1; 8 * 32]).unwrap();
        let snapshot = world.snapshot(number);
        // Of the third extent there is a version of its own, too.
        world.write(&mut volume, 2 * BLOCKS, &[2; 32]).unwrap();
        let size = 2 * EXTENT + 8192;
        let refused = world.pool.resize_volume(number, size, false);
        assert_eq!(world.wait(refused), Err(PoolError::WouldLose));
        let forced = world.pool.resize_volume(number, size, true);
        world.wait(forced).unwrap();
        assert_eq!(volume.poll_event(), Some(DeviceEvent::GeometryChanged));
        assert_eq!(volume.geometry().bytes(), size);
        assert_eq!(
            world.write(&mut volume, size / 512, &[3]),
            Err(IoError::OutOfRange)
        );
        drop(volume);
        assert_eq!(world.pool.volumes()[0].mapped_bytes, 3 * EXTENT);
        if with_crash {
            world = world.crash();
        }
        let small = world.snapshot(number);
        let clone = world.create(VolumeSpec {
            base: Some((number, small)),
            ..spec(8 * EXTENT)
        });
        let grown = world.pool.resize_volume(number, 8 * EXTENT, false);
        world.wait(grown).unwrap();
        let expected = [[1; 64].as_slice(), &[2; 16], &[0; 176]].concat();
        for reader in [number, clone] {
            let mut volume = world.pool.open_volume(reader).unwrap();
            assert_eq!(world.read(&mut volume, 0, 256), expected);
        }
        let mut old = world.pool.open_snapshot(number, snapshot).unwrap();
        assert_eq!(world.read(&mut old, 0, 256), [1; 256]);
        world.settle();
        assert_eq!(world.read(&mut old, 0, 256), [1; 256]);
        assert_eq!(world.pool.check(), Vec::<String>::new());
    }
}

#[test]
fn what_is_beyond_the_end_is_free_for_others() {
    let mut world = world();
    let all = world.pool.usage().bytes / EXTENT;
    let number = world.create(spec(all * EXTENT));
    assert_eq!(fill(&mut world, number, 1), all);
    let forced = world.pool.resize_volume(number, EXTENT, true);
    world.wait(forced).unwrap();
    // Nobody waits: who needs room is given it as it is found.
    let other = world.create(spec(all * EXTENT));
    assert_eq!(fill(&mut world, other, 2), all - 1);
    let grown = world.pool.resize_volume(number, 4 * EXTENT, false);
    world.wait(grown).unwrap();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 7, 64)[..2], [1, 0]);
    assert_eq!(world.read(&mut volume, BLOCKS, 64), [0; 64]);
    world.settle();
    assert_eq!(world.pool.usage().used_bytes, all * EXTENT);
}

#[test]
fn write_beyond_the_new_end_that_is_under_way_ends_and_leaves_nothing() {
    let mut world = World::new(4 << 20, slow_writes());
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    let data = world.payload(&[5; 8]);
    volume
        .try_submit(io(Op::Write, 3 * BLOCKS, 8, data))
        .unwrap();
    let forced = world.pool.resize_volume(number, EXTENT, true).unwrap();
    world.poll();
    // This one comes when the volume is being made smaller already.
    let data = world.payload(&[6; 8]);
    volume
        .try_submit(io(Op::Write, 2 * BLOCKS, 8, data))
        .unwrap();
    world.wait(Ok(forced)).unwrap();
    world.settle();
    let grown = world.pool.resize_volume(number, 4 * EXTENT, false);
    world.wait(grown).unwrap();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, BLOCKS, 96), [0; 96]);
    world.settle();
    assert_eq!(world.pool.usage().used_bytes, 0);
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn volumes_made_at_once_share_groups() {
    let mut world = world();
    world.settle();
    let before = world.pool.engine.borrow().journal.groups;
    let operations: Vec<_> = (0..20)
        .map(|_| world.pool.create_volume(spec(EXTENT)).unwrap())
        .collect();
    for (number, operation) in (1..).zip(operations) {
        let is_told = |world: &mut World| loop {
            if let Some(done) = world.pool.poll_operation() {
                return done;
            }
            world.poll();
        };
        let done = is_told(&mut world);
        assert_eq!(done, (operation, Ok(Outcome::Volume(number))));
    }
    let groups = world.pool.engine.borrow().journal.groups - before;
    assert!(groups <= 2, "{groups} groups");
}
