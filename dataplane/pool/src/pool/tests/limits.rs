//! Where something runs out or is very large: buffers, numbers, room of the map, and ranges that would take all the time.

use bowline_block::{
    BufPool, ClassConfig, Completions, Device, FaultPlan, Io, IoBuf, Op, PoolConfig, Segments,
};

use super::world::{BLOCK, EXTENT, Shared, World, io, options, plan, spec, values};
use crate::format::layout::LayoutOptions;
use crate::format::record::{Checksums, Record, VolumeRecord};
use crate::pool::journal::Waiter;
use crate::pool::operation::Bytes;
use crate::{FormatOptions, OpenOptions, Outcome, PoolError, Volume, VolumeSpec};

const BLOCKS: u64 = EXTENT / 512;

fn world() -> World {
    World::new(4 << 20, FaultPlan::default())
}

/// Waits for so many answers, which are right, and returns what was read.
fn answers(world: &mut World, volume: &mut Volume<Shared>, count: usize) -> Vec<(u64, Segments)> {
    let mut out = Completions::with_capacity(64);
    let mut answers = Vec::new();
    for _ in 0..50_000 {
        world.poll();
        volume.poll(*world.now.borrow(), &mut out);
        for completion in out.drain() {
            assert_eq!(completion.result, Ok(()), "{}", completion.token);
            answers.push((completion.token, completion.data));
        }
        if answers.len() == count {
            return answers;
        }
    }
    panic!("{} of {count} requests have ended", answers.len());
}

/// All that the pool has for what it reads and copies.
fn take_buffers(world: &World) -> Vec<IoBuf> {
    let engine = world.pool.engine.borrow();
    std::iter::from_fn(|| engine.buffers.alloc(4096)).collect()
}

/// Each holds a buffer until it was compared, and what it is compared with needs one as well.
#[test]
fn however_many_reads_wait_for_their_checksums_all_of_them_end() {
    const LARGE: u64 = 1 << 20;
    const READS: usize = 300;
    let format = FormatOptions {
        layout: LayoutOptions {
            extent_bytes: 1 << 20,
            ..options().layout
        },
        ..options()
    };
    let options = OpenOptions {
        checksum_cache_bytes: 0,
    };
    let mut world = World::with(80 << 20, plan(1), &format, options);
    let extents = 60;
    let number = world.create(VolumeSpec {
        checksums: Checksums::Verify,
        ..spec(extents * LARGE)
    });
    let mut volume = world.pool.open_volume(number).unwrap();
    for extent in 0..extents {
        let lba = extent * LARGE / 512;
        world.write(&mut volume, lba, &[extent; 8]).unwrap();
    }
    let snapshot = world.snapshot(number);
    drop(volume);
    let mut world = world.reopen();
    let mut old = world.pool.open_snapshot(number, snapshot).unwrap();
    // Others have all buffers but a few.
    let mut taken = take_buffers(&world);
    taken.truncate(taken.len() - 16);
    let classes = vec![ClassConfig {
        bytes: 4096,
        count: READS,
    }];
    let buffers = BufPool::new(PoolConfig { classes }).unwrap();
    for read in 0..READS {
        let token = u64::try_from(read).unwrap();
        let lba = token % extents * LARGE / 512;
        let data = buffers.alloc(8 * BLOCK).unwrap().into();
        let io = Io {
            token,
            ..io(Op::Read, lba, 8, data)
        };
        old.try_submit(io).unwrap();
    }
    for (token, data) in answers(&mut world, &mut old, READS) {
        assert_eq!(values(&data), [token % extents; 8]);
    }
    assert_eq!(world.pool.checksum_counts().unverified, 0);
}

#[test]
fn what_is_to_be_brought_together_while_buffers_are_short_is_so_afterwards() {
    let mut world = world();
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    let snapshot = world.snapshot(number);
    world.write(&mut volume, 0, &[2; 8]).unwrap();
    let taken = take_buffers(&world);
    let deleted = world.pool.delete_snapshot(number, snapshot);
    world.wait(deleted).unwrap();
    for _ in 0..1000 {
        world.poll();
    }
    assert_eq!(world.pool.usage().used_bytes, 2 * EXTENT);
    drop(taken);
    world.settle();
    assert_eq!(world.pool.usage().used_bytes, EXTENT);
    assert_eq!(world.read(&mut volume, 0, 9), [2, 2, 2, 2, 2, 2, 2, 2, 1]);
}

#[test]
fn large_range_that_has_nothing_leaves_others_their_turn() {
    const EXTENTS: u64 = 100_000;
    let mut world = world();
    let large = world.create(spec(EXTENTS * EXTENT));
    let mut large = world.pool.open_volume(large).unwrap();
    let last = (EXTENTS - 1) * BLOCKS;
    world.write(&mut large, last, &[1; 32]).unwrap();
    let other = world.create(spec(EXTENT));
    let mut other = world.pool.open_volume(other).unwrap();
    let blocks = usize::try_from(EXTENTS * BLOCKS).unwrap();
    let all = || io(Op::Deallocate, 0, blocks, Segments::new());
    large.try_submit(all()).unwrap();
    for value in 0..20 {
        world.write(&mut other, 0, &[value; 8]).unwrap();
        let now = world.now.borrow();
        let mut out = Completions::with_capacity(1);
        large.poll(*now, &mut out);
        assert!(out.is_empty(), "others wait until all of it is done");
    }
    assert_eq!(world.read(&mut large, last, 1), [1]);
    assert_eq!(answers(&mut world, &mut large, 1).len(), 1);
    assert_eq!(world.read(&mut large, last, 1), [0]);
    // Pieces that end at once do not pile up.
    let capacity = world.pool.engine.borrow().todo.capacity();
    assert!(capacity < 1000, "{capacity}");
    world.settle();
    assert_eq!(world.pool.usage().used_bytes, EXTENT);
}

#[test]
fn volumes_and_snapshots_are_refused_when_their_numbers_run_out() {
    let mut world = world();
    let number = world.create(spec(EXTENT));
    let mut bytes = Bytes::default();
    let next = Record::NextVolume {
        volume: u32::MAX - 2,
    };
    bytes.push(&next).unwrap();
    {
        let engine = world.pool.engine.borrow();
        let volume = engine.live_volume(number).unwrap();
        let record = VolumeRecord {
            snapshots_taken: u32::MAX - 2,
            ..volume.record()
        };
        bytes.push(&Record::Volume(record)).unwrap();
    }
    let change = bytes.into_change();
    let engine = &world.pool.engine;
    engine.borrow_mut().journal.want(change, Waiter::Closing);
    world.settle();
    let created = [0; 3].map(|_| world.pool.create_volume(spec(EXTENT)).unwrap());
    let mut ended = Vec::new();
    while ended.len() < created.len() {
        world.poll();
        ended.extend(std::iter::from_fn(|| world.pool.poll_operation()));
    }
    for (created, result) in created.into_iter().zip([
        Ok(Outcome::Volume(u32::MAX - 2)),
        Ok(Outcome::Volume(u32::MAX - 1)),
        Err(PoolError::Full),
    ]) {
        assert!(ended.contains(&(created, result)), "{ended:?}");
    }
    assert_eq!(world.snapshot(number), u32::MAX - 1);
    let uuid = uuid::Uuid::nil();
    let refused = world.pool.create_snapshot(number, uuid, "s".into(), 1);
    assert_eq!(world.wait(refused), Err(PoolError::Full));
    assert_eq!(world.pool.check(), Vec::<String>::new());
    let world = world.reopen();
    assert_eq!(world.pool.volumes().len(), 3);
}

#[test]
fn attribute_can_become_another_of_its_length_however_little_room_is_left() {
    let mut world = world();
    let number = world.create(spec(EXTENT));
    let mut set = |kind, value, len| {
        let operation = world.pool.set_attribute(number, kind, vec![value; len]);
        world.wait(operation)
    };
    // Of each record 16 bytes are not the attribute's.
    assert_eq!(set(1, 1, 4000), Ok(Outcome::Done));
    assert_eq!(set(2, 1, 48), Ok(Outcome::Done));
    assert_eq!(set(1, 2, 4000), Ok(Outcome::Done));
    assert_eq!(set(1, 3, 4020), Err(PoolError::Full));
    assert_eq!(set(3, 1, 4), Err(PoolError::Full));
    assert_eq!(set(1, 3, 4016), Ok(Outcome::Done));
    assert_eq!(set(2, 2, 48), Ok(Outcome::Done));
    assert_eq!(set(1, 4, 8), Ok(Outcome::Done));
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn growth_that_is_refused_leaves_nothing_in_the_map() {
    let mut world = world();
    let all = world.pool.usage().bytes / EXTENT;
    let number = world.create(spec(8 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 8 * 32]).unwrap();
    world.snapshot(number);
    let size = 2 * EXTENT + 4096;
    let smaller = world.pool.resize_volume(number, size, true);
    assert_eq!(world.wait(smaller), Ok(Outcome::Done));
    let holes = world.pool.engine.borrow().state.holes_left();
    let groups = world.pool.written().0;
    // That is no size, so nothing is prepared for it.
    let larger = world.pool.resize_volume(number, 8 * EXTENT + 512, false);
    assert!(matches!(world.wait(larger), Err(PoolError::Invalid(_))));
    assert_eq!(world.pool.written().0, groups);
    let other = world.create(spec(all * EXTENT));
    let mut other = world.pool.open_volume(other).unwrap();
    for extent in 0..all - 8 {
        world.write(&mut other, extent * BLOCKS, &[2; 8]).unwrap();
    }
    let larger = world.pool.resize_volume(number, 8 * EXTENT, false);
    assert_eq!(world.wait(larger), Err(PoolError::NoSpace));
    world.settle();
    assert_eq!(world.pool.engine.borrow().state.holes_left(), holes);
    assert_eq!(world.pool.check(), Vec::<String>::new());
}
