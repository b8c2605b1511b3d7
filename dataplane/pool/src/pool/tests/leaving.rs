//! A drive that goes while the pool works, and comes back.

use bowline_block::{Completions, Device, IoError, Op, Segments};

use super::world::{EXTENT, World, io, slow, spec};
use crate::{OpenError, PoolError, PoolEvent};

const BLOCKS: u64 = EXTENT / 512;

#[test]
fn everything_under_way_ends_when_the_drive_goes_and_nothing_else_begins() {
    let mut world = World::new(4 << 20, slow());
    let number = world.create(spec(100 * EXTENT));
    let other = world.create(spec(100 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 320]).unwrap();
    let snapshot = world.snapshot(number);
    world.write(&mut volume, 0, &[2; 3]).unwrap();
    let deleted = world.pool.delete_snapshot(number, snapshot).unwrap();
    world.wait(Ok(deleted)).unwrap();
    // In place, elsewhere, within a chunk, to what is not there, zeroes, and two operations.
    let mut count = 0;
    for (op, lba) in [
        (Op::Write, 64),
        (Op::Write, 2),
        (Op::Write, 20 * BLOCKS),
        (Op::Write, 20 * BLOCKS + 3),
        (Op::Read, 1),
        (Op::Deallocate, BLOCKS),
        (Op::CompareAndWrite, 30 * BLOCKS),
    ] {
        let data = match op {
            Op::Deallocate => Segments::new(),
            Op::CompareAndWrite => world.payload(&[0; 4]),
            _ => world.payload(&[3; 2]),
        };
        volume.try_submit(io(op, lba, 2, data)).unwrap();
        count += 1;
    }
    let created = world.pool.create_volume(spec(EXTENT)).unwrap();
    let gone = world.pool.delete_volume(other).unwrap();
    for _ in 0..20 {
        world.poll();
    }
    world.drive.inner().vanish();
    let mut out = Completions::with_capacity(16);
    for _ in 0..1_000 {
        volume.poll(*world.now.borrow(), &mut out);
        world.poll();
    }
    assert_eq!(out.len(), count);
    assert!(out.drain().all(|it| it.result == Err(IoError::Vanished)));
    for operation in [created, gone] {
        let (ended, result) = world.pool.poll_operation().unwrap();
        assert_eq!((ended, result), (operation, Err(PoolError::Vanished)));
    }
    let engine = world.pool.engine.borrow();
    assert!(engine.is_idle(), "something is still under way");
    assert_eq!(engine.timeout(), None);
    drop(engine);
    let events: Vec<_> = std::iter::from_fn(|| world.pool.poll_event()).collect();
    assert_eq!(events, [PoolEvent::Vanished]);
    let refused = world.pool.create_volume(spec(EXTENT));
    assert_eq!(world.wait(refused), Err(PoolError::Vanished));
}

#[test]
fn drive_that_is_back_is_believed_only_when_the_pool_is_opened_again() {
    let mut world = World::new(4 << 20, slow());
    let number = world.create(spec(8 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 8]).unwrap();
    world.settle();
    world.drive.inner().vanish();
    world.poll();
    world.drive.inner().come_back();
    world.poll();
    let events: Vec<_> = std::iter::from_fn(|| world.pool.poll_event()).collect();
    assert_eq!(events, [PoolEvent::Vanished, PoolEvent::Returned]);
    let again = world.write(&mut volume, 0, &[2; 8]);
    assert_eq!(again, Err(IoError::Vanished));
    let refused = world.pool.create_volume(spec(EXTENT));
    assert_eq!(world.wait(refused), Err(PoolError::Vanished));
    let mut late = world.pool.open_volume(number).unwrap();
    let data = world.payload(&[0; 8]);
    let read = world.run(&mut late, io(Op::Read, 0, 8, data));
    assert_eq!(read.map(drop), Err(IoError::Vanished));
    drop((volume, late));
    let World {
        drive, pool, now, ..
    } = world;
    let closed = pool.close(&mut || *now.borrow()).map(drop);
    assert!(matches!(closed, Err(OpenError::Drive(IoError::Vanished))));
    let mut world = World::open(drive, now);
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 0, 8), [1; 8]);
    world.write(&mut volume, 0, &[2; 8]).unwrap();
}
