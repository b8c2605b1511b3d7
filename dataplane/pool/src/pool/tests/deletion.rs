//! Volumes and snapshots are deleted, whoever needs them still, and however large they are.

use bowline_block::{Completions, Device, DeviceEvent, IoError, Op};

use super::world::{EXTENT, World, io, plan, slow_writes, spec};
use crate::{PoolError, VolumeSpec};

const BLOCKS: u64 = EXTENT / 512;

fn clone_of(world: &mut World, volume: u32, snapshot: u32) -> u32 {
    world.create(VolumeSpec {
        base: Some((volume, snapshot)),
        ..spec(4 * EXTENT)
    })
}

fn delete_volume(world: &mut World, volume: u32) {
    let operation = world.pool.delete_volume(volume);
    world.wait(operation).unwrap();
}

fn delete_snapshot(world: &mut World, volume: u32, snapshot: u32) {
    let operation = world.pool.delete_snapshot(volume, snapshot);
    world.wait(operation).unwrap();
}

#[test]
fn volume_that_a_clone_needs_is_gone_for_all_but_the_clone_until_that_is_gone() {
    let mut world = World::new(4 << 20, plan(4));
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 64]).unwrap();
    let operation = world.pool.set_attribute(number, 1, vec![5; 40]);
    world.wait(operation).unwrap();
    let snapshot = world.snapshot(number);
    let needless = world.snapshot(number);
    let clone = clone_of(&mut world, number, snapshot);
    // Only the head sees these.
    world.write(&mut volume, 64, &[2; 64]).unwrap();
    assert_eq!(world.pool.usage().used_bytes, 4 * EXTENT);
    delete_volume(&mut world, number);
    assert_eq!(volume.poll_event(), Some(DeviceEvent::Vanished));
    drop(volume);
    for is_again in [false, true] {
        let open = world.pool.open_volume(number).map(drop);
        assert_eq!(open, Err(PoolError::NoSuchVolume));
        for snapshot in [snapshot, needless] {
            let open = world.pool.open_snapshot(number, snapshot).map(drop);
            assert_eq!(open, Err(PoolError::NoSuchVolume));
        }
        let cloned = world.pool.create_volume(VolumeSpec {
            base: Some((number, snapshot)),
            ..spec(EXTENT)
        });
        assert_eq!(world.wait(cloned), Err(PoolError::NoSuchVolume));
        let again = world.pool.delete_volume(number);
        assert_eq!(world.wait(again), Err(PoolError::NoSuchVolume));
        assert_eq!(world.pool.attribute(number, 1), None);
        let left: Vec<u32> = world.pool.volumes().iter().map(|it| it.volume).collect();
        assert_eq!(left, [clone]);
        let mut volume = world.pool.open_volume(clone).unwrap();
        assert_eq!(world.read(&mut volume, 60, 8), [1, 1, 1, 1, 0, 0, 0, 0]);
        drop(volume);
        if !is_again {
            world.settle();
            // What the clone needs is kept.
            assert_eq!(world.pool.usage().used_bytes, 2 * EXTENT);
            world = world.crash();
        }
    }
    // The name is free.
    let same = world.create(spec(4 * EXTENT));
    assert_ne!(same, number);
    delete_volume(&mut world, clone);
    world.settle();
    assert_eq!(world.pool.usage().used_bytes, 0);
    assert_eq!(world.pool.engine.borrow().state.volumes().count(), 1);
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn snapshot_that_a_clone_needs_is_gone_for_all_but_the_clone_until_that_is_gone() {
    let mut world = World::new(4 << 20, plan(6));
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 64]).unwrap();
    let snapshot = world.snapshot(number);
    let clone = clone_of(&mut world, number, snapshot);
    let inner = world.snapshot(clone);
    let second = clone_of(&mut world, clone, inner);
    world.write(&mut volume, 0, &[2; 64]).unwrap();
    drop(volume);
    delete_snapshot(&mut world, number, snapshot);
    assert_eq!(world.pool.volumes()[0].snapshots, []);
    let again = world.pool.delete_snapshot(number, snapshot);
    assert_eq!(world.wait(again), Err(PoolError::NoSuchSnapshot));
    delete_volume(&mut world, clone);
    world.settle();
    let mut world = world.reopen();
    assert_eq!(world.pool.usage().used_bytes, 4 * EXTENT);
    let mut volume = world.pool.open_volume(second).unwrap();
    assert_eq!(world.read(&mut volume, 0, 64), [1; 64]);
    delete_volume(&mut world, second);
    world.settle();
    // The clone in between went with the last that needed it, and with it the snapshot.
    assert_eq!(world.pool.usage().used_bytes, 2 * EXTENT);
    assert_eq!(world.pool.engine.borrow().state.volumes().count(), 1);
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 0, 64), [2; 64]);
}

#[test]
fn write_that_leaves_a_snapshot_is_not_lost_when_the_last_clone_goes_meanwhile() {
    let mut world = World::new(4 << 20, slow_writes());
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    let snapshot = world.snapshot(number);
    let clone = clone_of(&mut world, number, snapshot);
    delete_snapshot(&mut world, number, snapshot);
    world.settle();
    delete_volume(&mut world, clone);
    // While the collector finds out that the snapshot is not needed, writes go to extents of their own, one after another.
    let mut lba = 0;
    let mut out = Completions::with_capacity(64);
    while world.pool.engine.borrow().state.volumes().count() > 1
        || !world.pool.engine.borrow().is_collected()
    {
        let data = world.payload(&[10 + lba]);
        volume.try_submit(io(Op::Write, lba % 32, 1, data)).unwrap();
        for _ in 0..7 {
            world.poll();
        }
        volume.poll(*world.now.borrow(), &mut out);
        while out.pop().is_some() {}
        lba += 1;
    }
    world.settle();
    let last = |block: u64| (0..lba).rev().find(|it| it % 32 == block);
    let expected: Vec<u64> = (0..32)
        .map(|block| last(block).map_or(1, |lba| 10 + lba))
        .collect();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 0, 32), expected);
    assert_eq!(world.pool.usage().used_bytes, EXTENT);
}

#[test]
fn what_a_deleted_volume_has_is_told_and_given_back_after_a_crash() {
    let mut world = World::new(8 << 20, slow_writes());
    let number = world.create(spec(300 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    for extent in 0..300 {
        world.write(&mut volume, extent * BLOCKS, &[1]).unwrap();
    }
    for _ in 0..4 {
        world.snapshot(number);
    }
    drop(volume);
    delete_volume(&mut world, number);
    let usage = world.pool.usage();
    assert_eq!(usage.reclaiming_bytes, 300 * EXTENT);
    assert!(usage.is_reclaiming);
    let mut world = world.crash();
    assert_eq!(world.pool.volumes(), []);
    assert_eq!(world.pool.usage().reclaiming_bytes, 300 * EXTENT);
    world.settle();
    let usage = world.pool.usage();
    assert_eq!((usage.used_bytes, usage.reclaiming_bytes), (0, 0));
    assert!(!usage.is_reclaiming);
    assert_eq!(world.pool.engine.borrow().state.volumes().count(), 0);
}

#[test]
fn deleted_volume_is_given_back_although_requests_of_it_are_under_way() {
    let mut world = World::new(4 << 20, slow_writes());
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    for (lba, value) in [(0, 1), (3, 2), (40, 3), (70, 4)] {
        let data = world.payload(&[value; 6]);
        volume.try_submit(io(Op::Write, lba, 6, data)).unwrap();
    }
    let operation = world.pool.delete_volume(number);
    let data = world.payload(&[9; 6]);
    volume.try_submit(io(Op::Write, 100, 6, data)).unwrap();
    world.wait(operation).unwrap();
    let mut out = Completions::with_capacity(8);
    volume.poll(*world.now.borrow(), &mut out);
    assert_eq!(out.len(), 5);
    let ended = [Ok(()), Err(IoError::Vanished)];
    assert!(out.drain().all(|it| ended.contains(&it.result)));
    let late = world.change(&mut volume, Op::Deallocate, 0, 8);
    assert_eq!(late, Err(IoError::Vanished));
    drop(volume);
    world.settle();
    assert_eq!(world.pool.usage().used_bytes, 0);
    let counts = world.pool.engine.borrow().state.extents();
    assert_eq!(counts.taken, 0);
}
