//! What must not be lost where requests, operations and the collector meet in one extent.

use bowline_block::{Completions, Device, ErrorRates, FaultPlan, IoError, Latency, Op, Segments};
use bowline_nvme::Nanos;
use uuid::Uuid;

use super::world::{EXTENT, Shared, World, io, options, slow_writes, spec};
use crate::format::record::Checksums;
use crate::{OpenOptions, Volume, VolumeSpec};

const BLOCKS: u64 = EXTENT / 512;
const ZEROES: Op = Op::WriteZeroes { deallocate: true };

/// Requests take long, so that much is under way at once.
fn slow(seed: u64) -> FaultPlan {
    let latency = Latency::Uniform {
        min: Nanos(100),
        max: Nanos(3_000),
    };
    FaultPlan {
        seed,
        read_latency: latency,
        write_latency: latency,
        ..FaultPlan::default()
    }
}

/// Waits for so many answers.
fn answers(
    world: &mut World,
    volume: &mut Volume<Shared>,
    count: usize,
) -> Vec<(u64, Result<(), IoError>)> {
    let mut out = Completions::with_capacity(16);
    let mut answers = Vec::new();
    for _ in 0..100_000 {
        world.poll();
        volume.poll(*world.now.borrow(), &mut out);
        answers.extend(out.drain().map(|it| (it.token, it.result)));
        if answers.len() >= count {
            return answers;
        }
    }
    panic!("requests do not end");
}

fn submit(world: &World, volume: &mut Volume<Shared>, token: u64, lba: u64, values: &[u64]) {
    let data = world.payload(values);
    let mut io = io(Op::Write, lba, values.len(), data);
    io.token = token;
    volume.try_submit(io).unwrap();
}

#[test]
fn write_in_place_is_not_lost_when_a_snapshot_and_a_write_beside_it_come_meanwhile() {
    for seed in 0..60 {
        let mut world = World::new(4 << 20, slow(seed));
        let number = world.create(spec(4 * EXTENT));
        let mut volume = world.pool.open_volume(number).unwrap();
        world.write(&mut volume, 0, &[1; 32]).unwrap();
        world.settle();
        submit(&world, &mut volume, 1, 8, &[2]);
        let uuid = Uuid::from_u128(3);
        let _ = world.pool.create_snapshot(number, uuid, "s".into(), 1);
        for _ in 0..seed {
            world.poll();
        }
        submit(&world, &mut volume, 2, 9, &[3]);
        for (token, result) in answers(&mut world, &mut volume, 2) {
            assert_eq!(result, Ok(()), "{token}");
        }
        assert_eq!(world.read(&mut volume, 7, 4), [1, 2, 3, 1], "seed {seed}");
    }
}

#[test]
fn only_one_of_two_that_compare_the_same_block_wins_when_a_snapshot_comes_between() {
    for seed in 0..60 {
        let mut world = World::new(4 << 20, slow(seed));
        let number = world.create(spec(4 * EXTENT));
        let mut volume = world.pool.open_volume(number).unwrap();
        world.write(&mut volume, 0, &[1; 32]).unwrap();
        world.settle();
        let compare = |world: &World, volume: &mut Volume<Shared>, new: u64| {
            let data = world.payload(&[[1; 8], [new; 8]].concat());
            let mut io = io(Op::CompareAndWrite, 8, 8, data);
            io.token = new;
            volume.try_submit(io).unwrap();
        };
        compare(&world, &mut volume, 2);
        let uuid = Uuid::from_u128(3);
        let _ = world.pool.create_snapshot(number, uuid, "s".into(), 1);
        for _ in 0..seed {
            world.poll();
        }
        compare(&world, &mut volume, 3);
        let answers = answers(&mut world, &mut volume, 2);
        let winners: Vec<u64> = answers
            .iter()
            .filter(|it| it.1.is_ok())
            .map(|it| it.0)
            .collect();
        assert_eq!(winners.len(), 1, "seed {seed}");
        assert_eq!(world.read(&mut volume, 8, 1), winners, "seed {seed}");
    }
}

#[test]
fn what_a_hole_hides_stays_hidden_when_a_part_of_it_is_written() {
    for is_compared in [false, true] {
        let mut world = World::new(4 << 20, FaultPlan::default());
        let size = world.pool.usage().bytes;
        let number = world.create(spec(size));
        let mut volume = world.pool.open_volume(number).unwrap();
        world.write(&mut volume, 0, &[1; 32]).unwrap();
        world.snapshot(number);
        world.change(&mut volume, ZEROES, 0, 32).unwrap();
        assert_eq!(world.read(&mut volume, 0, 32), [0; 32]);
        if is_compared {
            let data = world.payload(&[[0; 8], [2; 8]].concat());
            world
                .run(&mut volume, io(Op::CompareAndWrite, 8, 8, data))
                .unwrap();
        } else {
            // Only an extent that is not clean is left.
            let mut extent = 1;
            while world.write(&mut volume, extent * BLOCKS, &[7; 32]).is_ok() {
                extent += 1;
            }
            world.change(&mut volume, ZEROES, BLOCKS, 32).unwrap();
            world.write(&mut volume, 8, &[2; 8]).unwrap();
        }
        let expected = [[0; 8], [2; 8], [0; 8], [0; 8]].concat();
        assert_eq!(world.read(&mut volume, 0, 32), expected, "{is_compared}");
        world.settle();
        assert_eq!(world.pool.check(), Vec::<String>::new());
        drop(volume);
        let mut world = world.reopen();
        let mut volume = world.pool.open_volume(number).unwrap();
        assert_eq!(world.read(&mut volume, 0, 32), expected, "{is_compared}");
    }
}

#[test]
fn what_is_written_where_a_hole_is_being_collected_stays() {
    for seed in 0..100 {
        let mut world = World::new(4 << 20, slow(seed));
        let number = world.create(spec(8 * EXTENT));
        let mut volume = world.pool.open_volume(number).unwrap();
        world.write(&mut volume, 0, &[1; 32]).unwrap();
        world.write(&mut volume, 2 * BLOCKS, &[1; 32]).unwrap();
        let snapshot = world.snapshot(number);
        world.change(&mut volume, ZEROES, 0, 32).unwrap();
        world.change(&mut volume, ZEROES, 2 * BLOCKS, 32).unwrap();
        world.settle();
        let _ = world.pool.delete_snapshot(number, snapshot);
        for _ in 0..seed {
            world.poll();
        }
        for extent in 0..3 {
            submit(&world, &mut volume, extent, extent * BLOCKS, &[2 + extent]);
        }
        for (token, result) in answers(&mut world, &mut volume, 3) {
            assert_eq!(result, Ok(()), "{token}");
        }
        world.settle();
        for extent in 0..3 {
            let read = world.read(&mut volume, extent * BLOCKS, 2);
            assert_eq!(read, [2 + extent, 0], "extent {extent}, seed {seed}");
        }
        assert_eq!(world.pool.check(), Vec::<String>::new());
    }
}

#[test]
fn more_holes_at_once_than_there_is_room_for_are_zeroes_instead() {
    let mut world = World::new(8 << 20, slow(1));
    let extents = world.pool.usage().bytes / EXTENT;
    let room = extents / 8 + 64;
    let base = world.create(spec(extents * EXTENT));
    let mut volume = world.pool.open_volume(base).unwrap();
    for extent in 0..100 {
        world.write(&mut volume, extent * BLOCKS, &[1; 32]).unwrap();
    }
    let snapshot = world.snapshot(base);
    let clones = [0, 1].map(|_| {
        world.create(VolumeSpec {
            base: Some((base, snapshot)),
            ..spec(extents * EXTENT)
        })
    });
    assert!(room > 100 && room < 200, "{room}");
    for clone in clones {
        let mut volume = world.pool.open_volume(clone).unwrap();
        for extent in 0..100 {
            let blocks = usize::try_from(BLOCKS).unwrap();
            let mut io = io(ZEROES, extent * BLOCKS, blocks, Segments::new());
            io.token = extent;
            volume.try_submit(io).unwrap();
            world.poll();
        }
        for (token, result) in answers(&mut world, &mut volume, 100) {
            assert_eq!(result, Ok(()), "{token}");
        }
        assert_eq!(world.read(&mut volume, 99 * BLOCKS, 1), [0]);
    }
    assert_eq!(world.pool.check(), Vec::<String>::new());
}

#[test]
fn snapshot_does_not_change_when_a_part_of_a_chunk_was_about_to_be_written() {
    let format = options();
    for seed in 0..60 {
        let mut world = World::with(4 << 20, slow(seed), &format, OpenOptions::default());
        let number = world.create(VolumeSpec {
            // Reads take what is there, and do not wait until it agrees with its checksum.
            checksums: Checksums::Scrub,
            ..spec(4 * EXTENT)
        });
        let mut volume = world.pool.open_volume(number).unwrap();
        world.write(&mut volume, 0, &[1; 32]).unwrap();
        world.write(&mut volume, 0, &[1; 32]).unwrap();
        submit(&world, &mut volume, 1, 8, &[2]);
        for _ in 0..seed {
            world.poll();
        }
        let snapshot = world.snapshot(number);
        let mut old = world.pool.open_snapshot(number, snapshot).unwrap();
        let before = world.read(&mut old, 7, 3);
        answers(&mut world, &mut volume, 1);
        assert_eq!(world.read(&mut old, 7, 3), before, "seed {seed}");
        assert_eq!(world.read(&mut volume, 7, 3), [1, 2, 1], "seed {seed}");
        assert_eq!(world.pool.checksum_counts().mismatches, 0);
    }
}

#[test]
fn who_waits_for_what_the_collector_finds_is_told_when_it_finds_nothing() {
    let mut world = World::new(4 << 20, slow(1));
    let size = world.pool.usage().bytes;
    let number = world.create(spec(size));
    let mut volume = world.pool.open_volume(number).unwrap();
    let other = world.create(spec(size));
    let mut other = world.pool.open_volume(other).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    let snapshot = world.snapshot(number);
    // The collector brings both versions together, but the drive does not let it.
    world.write(&mut volume, 8, &[2; 8]).unwrap();
    let mut extent = 1;
    while world.write(&mut volume, extent * BLOCKS, &[7; 32]).is_ok() {
        extent += 1;
    }
    world.settle();
    world.drive.inner().set_errors(ErrorRates {
        read_per_million: 1_000_000,
        ..ErrorRates::default()
    });
    let _ = world.pool.delete_snapshot(number, snapshot);
    while world.pool.engine.borrow().is_collected() {
        world.poll();
    }
    submit(&world, &mut other, 1, 0, &[3]);
    assert_eq!(
        answers(&mut world, &mut other, 1),
        [(1, Err(IoError::NoSpace))]
    );
}

#[test]
fn what_is_written_beyond_the_old_end_stays_when_all_before_it_is_deallocated_meanwhile() {
    for polls in (0..200).step_by(4) {
        let mut world = World::new(4 << 20, slow_writes());
        let number = world.create(spec(EXTENT));
        let mut volume = world.pool.open_volume(number).unwrap();
        world.write(&mut volume, 0, &[1; 32]).unwrap();
        // What the snapshot has is zeroed before the volume is larger again, and so can be written in place.
        world.snapshot(number);
        let smaller = world.pool.resize_volume(number, EXTENT / 2, true);
        world.wait(smaller).unwrap();
        world.settle();
        world.pool.resize_volume(number, EXTENT, false).unwrap();
        for _ in 0..polls {
            world.poll();
        }
        let mut all = io(ZEROES, 0, 16, Segments::new());
        all.token = 1;
        volume.try_submit(all).unwrap();
        while volume.geometry().bytes() < EXTENT {
            world.poll();
        }
        submit(&world, &mut volume, 2, 24, &[2; 8]);
        for (token, result) in answers(&mut world, &mut volume, 2) {
            assert_eq!(result, Ok(()), "{token}");
        }
        let expected = [[0; 24].as_slice(), &[2; 8]].concat();
        assert_eq!(world.read(&mut volume, 0, 32), expected, "{polls} polls");
        world.settle();
        assert_eq!(world.pool.check(), Vec::<String>::new());
    }
}

#[test]
fn what_a_hole_has_hidden_stays_so_when_both_are_given_up_at_once() {
    for blocks in [32, 8] {
        for polls in (0..260).step_by(4) {
            let mut world = World::new(4 << 20, slow_writes());
            let number = world.create(spec(EXTENT));
            let mut volume = world.pool.open_volume(number).unwrap();
            world.write(&mut volume, 0, &[1; 32]).unwrap();
            let kept = world.snapshot(number);
            world.change(&mut volume, ZEROES, 0, 32).unwrap();
            let snapshot = world.snapshot(number);
            world.write(&mut volume, 0, &[2; 32]).unwrap();
            world.settle();
            // Without this snapshot nobody reads the hole.
            world.pool.delete_snapshot(number, snapshot).unwrap();
            for _ in 0..polls {
                world.poll();
            }
            world.change(&mut volume, ZEROES, 0, blocks).unwrap();
            let expected = [vec![0; blocks], vec![2; 32 - blocks]].concat();
            assert_eq!(world.read(&mut volume, 0, 32), expected, "{polls} polls");
            world.settle();
            assert_eq!(world.read(&mut volume, 0, 32), expected, "{polls} polls");
            let mut old = world.pool.open_snapshot(number, kept).unwrap();
            assert_eq!(world.read(&mut old, 0, 32), [1; 32]);
        }
    }
}
