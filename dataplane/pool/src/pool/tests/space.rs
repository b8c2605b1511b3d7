//! Room: who is refused when there is none, who makes some, and who yields to whom meanwhile.

use bowline_block::{Completions, Device, IoError, Op};

use super::world::{EXTENT, Shared, World, io, slow, spec};
use crate::Volume;

const BLOCKS: u64 = EXTENT / 512;

/// Writes to all extents of a range; those that were refused.
fn fill(
    world: &mut World,
    volume: &mut Volume<Shared>,
    extents: std::ops::Range<u64>,
    value: u64,
) -> u64 {
    let mut refused = 0;
    for extent in extents {
        match world.write(volume, extent * BLOCKS, &[value; 8]) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error, IoError::NoSpace);
                refused += 1;
            }
        }
    }
    refused
}

#[test]
fn full_pool_takes_writes_again_as_soon_as_something_is_deleted() {
    let mut world = World::new(4 << 20, slow());
    let all = world.pool.usage().bytes / EXTENT;
    let number = world.create(spec(all * EXTENT));
    let other = world.create(spec(4 * EXTENT));
    let mut other = world.pool.open_volume(other).unwrap();
    assert_eq!(fill(&mut world, &mut other, 0..1, 1), 0);
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(fill(&mut world, &mut volume, 0..all, 2), 1);
    // In place there is always room.
    assert_eq!(fill(&mut world, &mut other, 0..2, 3), 1);
    // A snapshot, and nothing can be written that it needs.
    let snapshot = world.snapshot(number);
    assert_eq!(fill(&mut world, &mut volume, 0..2, 4), 2);
    let deleted = world.pool.delete_snapshot(number, snapshot);
    world.wait(deleted).unwrap();
    assert_eq!(fill(&mut world, &mut volume, 0..all - 1, 5), 0);
    // What is deallocated is free.
    let blocks = usize::try_from(2 * BLOCKS).unwrap();
    world
        .change(&mut volume, Op::Deallocate, 0, blocks)
        .unwrap();
    assert_eq!(fill(&mut world, &mut other, 0..4, 6), 1);
    // What is deleted is, too, however many want it at once.
    let deleted = world.pool.delete_volume(number);
    world.wait(deleted).unwrap();
    let third = world.create(spec(all * EXTENT));
    let mut third = world.pool.open_volume(third).unwrap();
    let mut out = Completions::with_capacity(16);
    let mut refused = 0;
    let extents: Vec<u64> = (0..all).collect();
    for some in extents.chunks(16) {
        for extent in some {
            let data = world.payload(&[7; 8]);
            let io = io(Op::Write, extent * BLOCKS, 8, data);
            third.try_submit(io).unwrap();
        }
        let mut ended = 0;
        for _ in 0..200_000 {
            world.poll();
            third.poll(*world.now.borrow(), &mut out);
            while let Some(completion) = out.pop() {
                ended += 1;
                refused += u64::from(completion.result == Err(IoError::NoSpace));
            }
            if ended == some.len() {
                break;
            }
        }
        assert_eq!(ended, some.len());
    }
    assert_eq!(refused, 3);
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

/// Reads one block after the other for so many polls.
fn read_on(world: &mut World, volume: &mut Volume<Shared>, polls: u64) {
    let mut out = Completions::with_capacity(1);
    let mut is_reading = false;
    for _ in 0..polls {
        if !is_reading {
            let data = world.payload(&[0]);
            volume.try_submit(io(Op::Read, 0, 1, data)).unwrap();
        }
        world.poll();
        volume.poll(*world.now.borrow(), &mut out);
        is_reading = out.pop().is_none();
    }
}

#[test]
fn collector_and_cleaner_yield_to_requests_unless_room_is_short() {
    for is_short in [false, true] {
        let mut world = World::new(8 << 20, slow());
        let all = world.pool.usage().bytes / EXTENT;
        let number = world.create(spec(all * EXTENT));
        let mut volume = world.pool.open_volume(number).unwrap();
        let kept = world.create(spec(EXTENT));
        let mut reader = world.pool.open_volume(kept).unwrap();
        world.write(&mut reader, 0, &[9]).unwrap();
        let count = if is_short { all - 21 } else { all / 2 };
        assert_eq!(fill(&mut world, &mut volume, 0..count, 1), 0);
        let snapshot = world.snapshot(number);
        // Each is to be merged.
        for extent in 0..20 {
            world.write(&mut volume, extent * BLOCKS, &[2]).unwrap();
        }
        world.settle();
        let deleted = world.pool.delete_snapshot(number, snapshot);
        world.wait(deleted).unwrap();
        let steps = |world: &World| {
            let engine = world.pool.engine.borrow();
            (engine.collecting.steps, engine.cleaner.begun)
        };
        let before = steps(&world);
        // Five milliseconds.
        read_on(&mut world, &mut reader, 50_000);
        let after = steps(&world);
        let (collected, cleaned) = (after.0 - before.0, after.1 - before.1);
        if is_short {
            assert!(world.pool.engine.borrow().is_collected());
        } else {
            assert!((1..=7).contains(&collected), "{collected} steps");
            assert_eq!(cleaned, 0, "clean extents are plenty");
            assert!(!world.pool.engine.borrow().is_collected());
            // Without requests it goes on.
            world.settle();
            assert!(world.pool.engine.borrow().is_collected());
            assert!(steps(&world).0 >= before.0 + 20);
            let usage = world.pool.usage();
            assert_eq!(usage.used_bytes + usage.clean_bytes, usage.bytes);
        }
    }
}
