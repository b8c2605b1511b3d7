//! Who waits for whom: nobody for themselves, and nobody for what does not come.

use bowline_block::{Completions, Device, FaultPlan, IoError, Op, Segments};

use super::world::{EXTENT, Shared, World, io, options, plan, slow, spec};
use crate::format::layout::LayoutOptions;
use crate::{FormatOptions, OpenOptions, Outcome, PoolError, Volume};

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

/// What it finds first is in an extent that somebody never stops changing.
#[test]
fn collector_has_its_turn_however_much_is_asked_of_the_extent_that_it_looks_at() {
    const CHUNKS: u64 = 16;
    let format = FormatOptions {
        layout: LayoutOptions {
            extent_bytes: 64 << 10,
            ..options().layout
        },
        ..options()
    };
    let mut world = World::with(8 << 20, plan(1), &format, OpenOptions::default());
    let extent = CHUNKS * 4096;
    let all = world.pool.usage().bytes / extent;
    let number = world.create(spec(extent));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 128]).unwrap();
    // The snapshot has the last chunk, and the volume the first: those in between come and go.
    world.change(&mut volume, Op::Deallocate, 0, 120).unwrap();
    let snapshot = world.snapshot(number);
    world.write(&mut volume, 0, &[2; 8]).unwrap();
    let other = world.create(spec(all * extent));
    let mut handle = world.pool.open_volume(other).unwrap();
    for at in 0..all - 4 {
        world.write(&mut handle, at * CHUNKS * 8, &[3; 8]).unwrap();
    }
    world.settle();
    let mut is_there = [false; 16];
    let mut ask = |world: &World, volume: &mut Volume<Shared>, chunk: u64| {
        let is_there = &mut is_there[usize::try_from(chunk).unwrap()];
        let mut io = match *is_there {
            true => io(Op::Deallocate, chunk * 8, 8, Segments::new()),
            false => io(Op::Write, chunk * 8, 8, world.payload(&[4; 8])),
        };
        *is_there = !*is_there;
        io.token = chunk;
        volume.try_submit(io).unwrap();
    };
    (1..CHUNKS - 1).for_each(|chunk| ask(&world, &mut volume, chunk));
    for _ in 0..100 {
        world.poll();
    }
    let gone = [
        world.pool.delete_snapshot(number, snapshot),
        world.pool.delete_volume(other),
    ];
    assert!(gone.iter().all(Result::is_ok));
    let mut out = Completions::with_capacity(16);
    for _ in 0..20_000 {
        world.poll();
        volume.poll(*world.now.borrow(), &mut out);
        for completion in out.drain() {
            assert_eq!(completion.result, Ok(()));
            ask(&world, &mut volume, completion.token);
        }
    }
    assert_eq!(world.pool.usage().used_bytes, extent);
    drop(volume);
    world.settle();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 0, 8), [2; 8]);
    assert_eq!(world.read(&mut volume, 120, 8), [1; 8]);
    assert_eq!(world.pool.check(), Vec::<String>::new());
}
