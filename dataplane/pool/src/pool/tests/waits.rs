//! Who waits for whom: nobody for themselves, and nobody for what does not come.

use bowline_block::{Completions, Device, FaultPlan, IoError, Op};

use super::world::{EXTENT, World, io, slow, spec};
use crate::{Outcome, PoolError};

const BLOCKS: u64 = EXTENT / 512;

#[test]
fn resize_ends_whatever_the_collector_has_begun() {
    let mut world = World::new(8 << 20, slow());
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    let mut extents = 4;
    for polls in 0..120 {
        world.write(&mut volume, 0, &[polls]).unwrap();
        let snapshot = world.snapshot(number);
        world.write(&mut volume, 0, &[polls]).unwrap();
        let deleted = world.pool.delete_snapshot(number, snapshot);
        world.wait(deleted).unwrap();
        for _ in 0..polls {
            world.poll();
        }
        // The collector wants the snapshot's record while the attribute's is on its way, and the resize is behind that.
        world.pool.set_attribute(number, 1, vec![1; 8]).unwrap();
        extents += 1;
        let resized = world.pool.resize_volume(number, extents * EXTENT, false);
        assert_eq!(world.wait(resized), Ok(Outcome::Done), "{polls} polls");
    }
}

#[test]
fn growth_without_room_for_zeroes_says_so() {
    let mut world = World::new(4 << 20, FaultPlan::default());
    let all = world.pool.usage().bytes / EXTENT;
    let number = world.create(spec(EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    world.snapshot(number);
    let smaller = world.pool.resize_volume(number, EXTENT / 2, true);
    assert_eq!(world.wait(smaller), Ok(Outcome::Done));
    let other = world.create(spec(all * EXTENT));
    let mut other = world.pool.open_volume(other).unwrap();
    for extent in 0..all - 1 {
        world.write(&mut other, extent * BLOCKS, &[2; 8]).unwrap();
    }
    // The snapshot has what is beyond the end, so zeroes need another extent.
    let larger = world.pool.resize_volume(number, EXTENT, false);
    assert_eq!(world.wait(larger), Err(PoolError::NoSpace));
    let blocks = usize::try_from(BLOCKS).unwrap();
    world.change(&mut other, Op::Deallocate, 0, blocks).unwrap();
    let larger = world.pool.resize_volume(number, EXTENT, false);
    assert_eq!(world.wait(larger), Ok(Outcome::Done));
    let mut volume = world.pool.open_volume(number).unwrap();
    let read = world.read(&mut volume, 0, 32);
    assert_eq!(read, [[1; 16], [0; 16]].concat());
}

/// However the collector and the cleaner are at work just now.
#[test]
fn write_without_room_is_told_so_whatever_is_under_way() {
    for polls in 0..60 {
        let mut world = World::new(4 << 20, slow());
        let all = world.pool.usage().bytes / EXTENT;
        let number = world.create(spec(all * EXTENT));
        let mut volume = world.pool.open_volume(number).unwrap();
        for extent in 0..all - 2 {
            world.write(&mut volume, extent * BLOCKS, &[2; 8]).unwrap();
        }
        let snapshot = world.snapshot(number);
        for extent in 0..2 {
            world.write(&mut volume, extent * BLOCKS, &[3]).unwrap();
        }
        world.pool.delete_snapshot(number, snapshot).unwrap();
        for _ in 0..polls * 4 {
            world.poll();
        }
        // The snapshot gives two extents back, and four are wanted.
        let third = world.create(spec(4 * EXTENT));
        let mut third = world.pool.open_volume(third).unwrap();
        for extent in 0..4 {
            let data = world.payload(&[7; 8]);
            let io = io(Op::Write, extent * BLOCKS, 8, data);
            third.try_submit(io).unwrap();
        }
        let mut out = Completions::with_capacity(4);
        let mut results = Vec::new();
        for _ in 0..100_000 {
            world.poll();
            third.poll(*world.now.borrow(), &mut out);
            results.extend(out.drain().map(|it| it.result));
            if results.len() == 4 {
                break;
            }
        }
        let refused = results.iter().filter(|it| **it == Err(IoError::NoSpace));
        assert_eq!((refused.count(), results.len()), (2, 4), "{polls} polls");
    }
}
