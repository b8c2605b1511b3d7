//! What volumes do, on a drive that does not fail.

use bowline_block::{
    Completions, Device, DeviceEvent, ErrorRates, FaultPlan, IoError, Latency, Op, Segments,
};
use bowline_nvme::Nanos;
use uuid::Uuid;

use super::world::{EXTENT, World, io, options, plan, slow_writes, spec, values};
use crate::map::Reader;
use crate::{OpenError, Outcome, Pool, PoolError, PoolEvent, VolumeSpec};

const ZEROES: Op = Op::WriteZeroes { deallocate: true };

fn world() -> World {
    World::new(8 << 20, FaultPlan::default())
}

#[test]
fn what_was_written_is_read_and_the_rest_is_zero() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 30, &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(world.read(&mut volume, 28, 8), [0, 0, 1, 2, 3, 4, 5, 0]);
    assert_eq!(
        world.read(&mut volume, 0, 2048)[..31],
        [[0; 30].as_slice(), &[1]].concat()
    );
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn closed_and_opened_again_everything_is_there() {
    let mut world = World::new(8 << 20, plan(1));
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 30, &[1, 2, 3]).unwrap();
    let operation = world.pool.set_attribute(number, 1, vec![9; 100]);
    world.wait(operation).unwrap();
    drop(volume);
    for _ in 0..3 {
        world = world.reopen();
        let mut volume = world.pool.open_volume(number).unwrap();
        assert_eq!(world.read(&mut volume, 29, 5), [0, 1, 2, 3, 0]);
        assert_eq!(world.pool.attribute(number, 1), Some(vec![9; 100]));
        assert_eq!(world.pool.volumes()[0].name, "a");
    }
}

#[test]
fn drive_that_holds_something_is_not_formatted() {
    let world = world();
    let mut drive = world.drive.clone();
    drop(world);
    let mut time = || bowline_nvme::Nanos(0);
    let again = Pool::format(&mut drive, &options(), &mut time);
    assert!(matches!(again, Err(OpenError::IsAPool)));
    let mut options = options();
    options.is_forced = true;
    Pool::format(&mut drive, &options, &mut time).unwrap();
}

#[test]
fn snapshot_stays_as_it_was_and_clone_goes_on_from_there() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 100]).unwrap();
    let snapshot = world.snapshot(number);
    world.write(&mut volume, 10, &[2; 3]).unwrap();
    world.change(&mut volume, ZEROES, 64, 32).unwrap();
    let mut old = world.pool.open_snapshot(number, snapshot).unwrap();
    assert_eq!(
        world.read(&mut old, 0, 101),
        [[1; 100].as_slice(), &[0]].concat()
    );
    let now = world.read(&mut volume, 0, 101);
    assert_eq!(now[9..14], [1, 2, 2, 2, 1]);
    assert_eq!(now[63..97], [[1].as_slice(), &[0; 32], &[1]].concat());
    assert_eq!(world.write(&mut old, 0, &[3]), Err(IoError::ReadOnly));

    let clone = world.create(VolumeSpec {
        base: Some((number, snapshot)),
        ..spec(1 << 20)
    });
    let mut clone = world.pool.open_volume(clone).unwrap();
    world.write(&mut clone, 50, &[7]).unwrap();
    let seen = world.read(&mut clone, 0, 101);
    assert_eq!((seen[49], seen[50], seen[51], seen[100]), (1, 7, 1, 0));
    assert_eq!(world.read(&mut old, 50, 1), [1]);
    drop(clone);
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn deallocated_extents_are_free_for_others_and_read_as_zeroes() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    let blocks = usize::try_from(EXTENT / 512).unwrap();
    world.write(&mut volume, 0, &vec![5; 4 * blocks]).unwrap();
    assert_eq!(world.pool.volumes()[0].mapped_bytes, 4 * EXTENT);
    world
        .change(&mut volume, Op::Deallocate, 32, 3 * blocks - 40)
        .unwrap();
    let read = world.read(&mut volume, 0, 4 * blocks);
    let expected = |at: usize| {
        if (32..3 * blocks - 8).contains(&at) {
            0
        } else {
            5
        }
    };
    assert!(
        read.iter()
            .enumerate()
            .all(|(at, value)| *value == expected(at))
    );
    assert_eq!(world.pool.volumes()[0].mapped_bytes, 3 * EXTENT);
    world.change(&mut volume, ZEROES, 0, 4 * blocks).unwrap();
    assert_eq!(world.pool.volumes()[0].mapped_bytes, 0);
    world.settle();
    assert_eq!(world.pool.usage().clean_bytes, world.pool.usage().bytes);
}

#[test]
fn volume_without_room_fails_alone_and_deleting_makes_room() {
    let mut world = World::new(4 << 20, FaultPlan::default());
    let size = world.pool.usage().bytes;
    let number = world.create(spec(2 * size));
    let mut volume = world.pool.open_volume(number).unwrap();
    let other = world.create(spec(1 << 20));
    let mut other = world.pool.open_volume(other).unwrap();
    world.write(&mut other, 0, &[1]).unwrap();
    let mut extent = 0;
    let error = loop {
        match world.write(&mut volume, extent * (EXTENT / 512), &[extent + 1; 8]) {
            Ok(()) => extent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error, extent), (IoError::NoSpace, size / EXTENT - 1));
    world.write(&mut other, 0, &[2]).unwrap();
    assert_eq!(world.read(&mut other, 0, 2), [2, 0]);
    assert_eq!(world.write(&mut other, 64, &[3]), Err(IoError::NoSpace));
    let operation = world.pool.delete_volume(number);
    world.wait(operation).unwrap();
    assert_eq!(volume.poll_event(), Some(DeviceEvent::Vanished));
    assert_eq!(world.write(&mut volume, 0, &[3]), Err(IoError::Vanished));
    world.write(&mut other, 64, &[3]).unwrap();
    assert_eq!(world.read(&mut other, 60, 8), [0, 0, 0, 0, 3, 0, 0, 0]);
}

#[test]
fn grown_volume_is_told_and_has_zeroes_at_its_end() {
    let mut world = world();
    let number = world.create(spec(20 << 10));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 39, &[1]).unwrap();
    assert_eq!(world.write(&mut volume, 40, &[1]), Err(IoError::OutOfRange));
    let operation = world.pool.resize_volume(number, 1 << 20, false);
    world.wait(operation).unwrap();
    assert_eq!(volume.poll_event(), Some(DeviceEvent::GeometryChanged));
    assert_eq!(volume.geometry().blocks, 2048);
    assert_eq!(world.read(&mut volume, 39, 3), [1, 0, 0]);
    let operation = world.pool.resize_volume(number, 4096, false);
    assert_eq!(world.wait(operation), Err(PoolError::WouldLose));
}

#[test]
fn overwrite_in_place_is_one_request_to_the_drive_and_nothing_else() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    world.settle();
    let data = world.payload(&[2; 4]);
    volume.try_submit(io(Op::Write, 8, 4, data)).unwrap();
    let engine = world.pool.engine.borrow();
    assert_eq!((engine.drive.in_flight(), engine.requests.len()), (1, 0));
    assert!(engine.journal.is_idle());
}

#[test]
fn what_only_a_deleted_snapshot_had_is_free_again() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 128]).unwrap();
    let snapshot = world.snapshot(number);
    // One chunk of the first extent, all but one chunk of the second, all of the third; the fourth stays.
    world.write(&mut volume, 8, &[2; 8]).unwrap();
    world.write(&mut volume, 32, &[3; 24]).unwrap();
    world.write(&mut volume, 64, &[4; 32]).unwrap();
    assert_eq!(world.pool.volumes()[0].physical_bytes, 7 * EXTENT);
    let operation = world.pool.delete_snapshot(number, snapshot);
    world.wait(operation).unwrap();
    world.settle();
    assert_eq!(world.pool.volumes()[0].physical_bytes, 4 * EXTENT);
    let usage = world.pool.usage();
    assert_eq!(usage.clean_bytes + 4 * EXTENT, usage.bytes);
    let expected = [
        [1; 8], [2; 8], [1; 8], [1; 8], [3; 8], [3; 8], [3; 8], [1; 8],
    ]
    .concat();
    assert_eq!(world.read(&mut volume, 0, 64), expected);
    assert_eq!(world.read(&mut volume, 64, 64), [[4; 32], [1; 32]].concat());
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn pool_whose_journal_fails_goes_on_in_place_and_refuses_the_rest() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 8]).unwrap();
    world.settle();
    let failing = ErrorRates {
        write_per_million: 1_000_000,
        ..ErrorRates::default()
    };
    world.drive.inner().set_errors(failing);
    let refused = world.pool.create_volume(spec(1 << 20));
    assert_eq!(world.wait(refused), Err(PoolError::Journal));
    world.drive.inner().set_errors(ErrorRates::default());
    assert_eq!(
        world.pool.poll_event(),
        Some(PoolEvent::JournalFailed(IoError::MediaWrite))
    );
    assert_eq!(world.pool.poll_event(), None);
    world.write(&mut volume, 4, &[2]).unwrap();
    assert_eq!(world.read(&mut volume, 0, 6), [1, 1, 1, 1, 2, 1]);
    assert_eq!(world.write(&mut volume, 64, &[3]), Err(IoError::MediaWrite));
    assert_eq!(
        world.change(&mut volume, ZEROES, 0, 32),
        Err(IoError::MediaWrite)
    );
    drop(volume);
    let mut world = world.crash();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 0, 6), [1, 1, 1, 1, 2, 1]);
    world.write(&mut volume, 64, &[3]).unwrap();
}

#[test]
fn vanished_drive_is_told_by_every_handle_and_ends_every_request() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 8]).unwrap();
    world.drive.inner().vanish();
    for (lba, op) in [(0, Op::Read), (64, Op::Write), (0, ZEROES)] {
        let data = if op == ZEROES {
            Segments::new()
        } else {
            world.payload(&[0; 32])
        };
        assert_eq!(
            world.run(&mut volume, io(op, lba, 32, data)).map(drop),
            Err(IoError::Vanished)
        );
    }
    assert_eq!(volume.poll_event(), Some(DeviceEvent::Vanished));
    let events: Vec<_> = std::iter::from_fn(|| world.pool.poll_event()).collect();
    assert!(events.contains(&PoolEvent::Vanished));
}

#[test]
fn filling_pool_is_told_at_each_mark_once() {
    let mut world = World::new(4 << 20, FaultPlan::default());
    let size = world.pool.usage().bytes;
    let number = world.create(spec(size));
    let mut volume = world.pool.open_volume(number).unwrap();
    let room = volume.allocation().unwrap();
    let mut events = Vec::new();
    for extent in 0..size / EXTENT {
        world
            .write(&mut volume, extent * (EXTENT / 512), &[1; 8])
            .unwrap();
        events.extend(std::iter::from_fn(|| world.pool.poll_event()));
        // Hosts that are told at the mark find that less is left.
        let is_low = room().spare_percent < 10;
        assert_eq!(is_low, events.contains(&PoolEvent::Used(90)), "{extent}");
    }
    assert_eq!(
        events,
        [
            PoolEvent::Used(80),
            PoolEvent::Used(90),
            PoolEvent::Used(95)
        ]
    );
}

#[test]
fn second_request_to_an_extent_being_mapped_does_not_wait_for_the_first() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.settle();
    for lba in [0, 8, 16] {
        let data = world.payload(&[9; 8]);
        volume.try_submit(io(Op::Write, lba, 8, data)).unwrap();
    }
    assert_eq!(world.pool.engine.borrow().drive.in_flight(), 3);
    world.settle();
    assert_eq!(world.pool.volumes()[0].physical_bytes, EXTENT);
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(
        world.read(&mut volume, 0, 32),
        [[9; 24].as_slice(), &[0; 8]].concat()
    );
}

#[test]
fn volume_written_between_many_snapshots_is_found_in_a_few_places() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[100; 24]).unwrap();
    let mut expected = [[100; 24].as_slice(), &[0; 8]].concat();
    for round in 0..20 {
        world.snapshot(number);
        let lba = 8 * (round % 3);
        world.write(&mut volume, lba, &[round; 2]).unwrap();
        expected[usize::try_from(lba).unwrap()..][..2].fill(round);
        world.settle();
        let engine = world.pool.engine.borrow();
        let slot = engine.state.slot(number).unwrap();
        assert!(engine.state.depth(Reader::Head(slot), 0) <= 8);
        drop(engine);
        assert_eq!(world.read(&mut volume, 0, 32), expected);
    }
    let mut old = world.pool.open_snapshot(number, 3).unwrap();
    let read = world.read(&mut old, 0, 32);
    assert_eq!((read[0], read[8], read[16], read[24]), (0, 1, 100, 0));
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn requests_that_wait_for_a_reserve_end_when_the_pool_is_closed() {
    let mut world = world();
    let number = world.create(spec(1 << 20));
    let world = world.reopen();
    let mut volume = world.pool.open_volume(number).unwrap();
    let data = world.payload(&[5; 4]);
    volume.try_submit(io(Op::Write, 0, 4, data)).unwrap();
    drop(volume);
    let mut world = world.reopen();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 0, 5), [5, 5, 5, 5, 0]);
}

/// A drive that reads slowly, and does everything else at once.
fn slow_reads() -> FaultPlan {
    FaultPlan {
        read_latency: Latency::Fixed(Nanos(50_000)),
        ..FaultPlan::default()
    }
}

#[test]
fn extent_that_is_still_being_read_is_given_to_nobody() {
    let mut world = World::new(4 << 20, slow_reads());
    let size = world.pool.usage().bytes;
    let number = world.create(spec(size));
    let mut volume = world.pool.open_volume(number).unwrap();
    let mut other = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    let data = world.payload(&[0; 32]);
    volume.try_submit(io(Op::Read, 0, 32, data)).unwrap();
    world.change(&mut other, ZEROES, 0, 32).unwrap();
    // All others are taken, and this one is not free as long as it is read.
    for extent in 1..size / EXTENT {
        world
            .write(&mut other, extent * (EXTENT / 512), &[2; 32])
            .unwrap();
    }
    let mut out = Completions::with_capacity(1);
    volume.poll(*world.now.borrow(), &mut out);
    assert!(out.is_empty(), "the read should still be under way");
    world.write(&mut other, 0, &[3; 32]).unwrap();
    volume.poll(*world.now.borrow(), &mut out);
    assert_eq!(values(&out.pop().unwrap().data), [1; 32]);
    assert_eq!(world.read(&mut other, 0, 32), [3; 32]);
}

#[test]
fn snapshot_is_taken_when_the_writes_it_may_have_have_ended() {
    let mut world = World::new(4 << 20, slow_writes());
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    world.settle();
    let name = "s".to_owned();
    let operation = world.pool.create_snapshot(number, Uuid::nil(), name, 1);
    // The records of the snapshot are on their way; these are written in place beside them.
    for _ in 0..30 {
        world.poll();
    }
    let data = world.payload(&[2; 32]);
    volume.try_submit(io(Op::Write, 0, 32, data)).unwrap();
    let Ok(Outcome::Snapshot(snapshot)) = world.wait(operation) else {
        panic!("no snapshot");
    };
    let mut old = world.pool.open_snapshot(number, snapshot).unwrap();
    let before = world.read(&mut old, 0, 32);
    world.settle();
    assert_eq!(world.read(&mut old, 0, 32), before);
}

#[test]
fn volumes_and_clones_of_one_pool_do_not_mix() {
    let mut world = World::new(8 << 20, plan(5));
    let numbers: Vec<u32> = (0..8).map(|_| world.create(spec(128 << 10))).collect();
    let mut volumes: Vec<_> = numbers
        .iter()
        .map(|number| world.pool.open_volume(*number).unwrap())
        .collect();
    for round in 0..4 {
        for (at, volume) in (1..).zip(&mut volumes) {
            world
                .write(volume, 60 * round, &[10 * at + round; 60])
                .unwrap();
        }
    }
    let snapshot = world.snapshot(numbers[2]);
    let clone = world.create(VolumeSpec {
        base: Some((numbers[2], snapshot)),
        ..spec(4096)
    });
    for number in [0, 4, 6] {
        let operation = world.pool.delete_volume(numbers[number]);
        world.wait(operation).unwrap();
    }
    drop(volumes);
    let mut world = world.crash();
    for (at, number) in (1..).zip(&numbers) {
        let expected: Vec<u64> = (0..240).map(|block| 10 * at + block / 60).collect();
        match world.pool.open_volume(*number) {
            Ok(mut volume) => assert_eq!(world.read(&mut volume, 0, 240), expected),
            Err(error) => assert!(error == PoolError::NoSuchVolume && [1, 5, 7].contains(&at)),
        }
    }
    let mut clone = world.pool.open_volume(clone).unwrap();
    assert_eq!(
        clone.geometry().blocks,
        256,
        "at least as large as what it was made of"
    );
    assert_eq!(world.read(&mut clone, 59, 2), [30, 31]);
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn what_is_written_while_versions_are_merged_is_there_afterwards() {
    let mut world = World::new(4 << 20, slow_writes());
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    let snapshot = world.snapshot(number);
    world.write(&mut volume, 8, &[2; 8]).unwrap();
    world.settle();
    let operation = world.pool.delete_snapshot(number, snapshot);
    world.wait(operation).unwrap();
    // The one chunk that is new is on its way to the older version.
    let is_locked = (0..100_000).any(|_| {
        world.poll();
        world.pool.engine.borrow().locked != u32::MAX
    });
    assert!(is_locked, "nothing is copied");
    for _ in 0..20 {
        world.poll();
    }
    world.write(&mut volume, 10, &[3]).unwrap();
    world.settle();
    let expected = [[1; 8], [2, 2, 3, 2, 2, 2, 2, 2], [1; 8], [1; 8]].concat();
    assert_eq!(world.read(&mut volume, 0, 32), expected);
    assert_eq!(world.pool.volumes()[0].physical_bytes, EXTENT);
}

#[test]
fn write_that_leaves_a_snapshot_is_not_lost_when_the_snapshot_goes_meanwhile() {
    let mut world = World::new(4 << 20, slow_writes());
    let number = world.create(spec(1 << 20));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    let snapshot = world.snapshot(number);
    world.settle();
    // It is on its way to an extent of its own; without the snapshot the old one could be written to.
    let data = world.payload(&[2; 8]);
    volume.try_submit(io(Op::Write, 8, 8, data)).unwrap();
    let operation = world.pool.delete_snapshot(number, snapshot);
    world.wait(operation).unwrap();
    world.settle();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(
        world.read(&mut volume, 0, 24),
        [[1; 8], [2; 8], [1; 8]].concat()
    );
    assert_eq!(world.pool.volumes()[0].physical_bytes, EXTENT);
}
