//! Compare and write, in place and elsewhere.

use bowline_block::{Completions, Device, FaultPlan, IoError, Latency, Op};
use bowline_nvme::Nanos;

use super::world::{EXTENT, Shared, World, io, plan, spec};
use crate::format::record::Checksums;
use crate::{Volume, VolumeSpec};

const BLOCKS: u64 = EXTENT / 512;

/// Compares one block with a value and writes another.
fn compare(
    world: &mut World,
    volume: &mut Volume<Shared>,
    lba: u64,
    (expected, new): (u64, u64),
) -> Result<(), IoError> {
    let data = world.payload(&[expected, new]);
    let io = io(Op::CompareAndWrite, lba, 1, data);
    world.run(volume, io).map(drop)
}

#[test]
fn compare_and_write_is_possible_wherever_a_block_is() {
    for checksums in [Checksums::Off, Checksums::Verify] {
        let mut world = World::new(4 << 20, plan(9));
        let number = world.create(VolumeSpec {
            checksums,
            ..spec(8 * EXTENT)
        });
        let mut volume = world.pool.open_volume(number).unwrap();
        let mismatch = Err(IoError::CompareMismatch);
        // Nothing there, the rest of a chunk there, in place.
        for (lba, expected) in [(5, 0), (6, 0), (5, 50)] {
            let refused = compare(&mut world, &mut volume, lba, (7, 8));
            assert_eq!(refused, mismatch, "block {lba}");
            compare(&mut world, &mut volume, lba, (expected, lba * 10)).unwrap();
        }
        assert_eq!(world.read(&mut volume, 4, 4), [0, 50, 60, 0]);
        // In a snapshot.
        let snapshot = world.snapshot(number);
        assert_eq!(compare(&mut world, &mut volume, 5, (0, 1)), mismatch);
        assert_eq!(world.pool.usage().used_bytes, EXTENT);
        compare(&mut world, &mut volume, 5, (50, 51)).unwrap();
        compare(&mut world, &mut volume, 5, (51, 52)).unwrap();
        let mut old = world.pool.open_snapshot(number, snapshot).unwrap();
        assert_eq!(world.read(&mut old, 4, 4), [0, 50, 60, 0]);
        assert_eq!(world.read(&mut volume, 4, 4), [0, 52, 60, 0]);
        // In the base of a clone.
        let clone = world.create(VolumeSpec {
            base: Some((number, snapshot)),
            checksums,
            ..spec(8 * EXTENT)
        });
        let mut clone = world.pool.open_volume(clone).unwrap();
        assert_eq!(compare(&mut world, &mut clone, 5, (52, 1)), mismatch);
        compare(&mut world, &mut clone, 5, (50, 53)).unwrap();
        assert_eq!(world.read(&mut clone, 4, 4), [0, 53, 60, 0]);
        drop((volume, old, clone));
        let mut world = world.crash();
        let mut volume = world.pool.open_volume(number).unwrap();
        assert_eq!(world.read(&mut volume, 4, 4), [0, 52, 60, 0]);
        assert_eq!(world.pool.check(), Vec::<String>::new());
    }
}

#[test]
fn whole_chunk_is_compared_where_it_is_not_yet() {
    let mut world = World::new(4 << 20, FaultPlan::default());
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[3; 32]).unwrap();
    world.snapshot(number);
    for (expected, result) in [(2, Err(IoError::CompareMismatch)), (3, Ok(()))] {
        let data = world.payload(&[[expected; 8], [4; 8]].concat());
        let compared = world.run(&mut volume, io(Op::CompareAndWrite, 8, 8, data));
        assert_eq!(compared.map(drop), result);
    }
    assert_eq!(world.read(&mut volume, 7, 10)[..2], [3, 4]);
    // Over several chunks only in place, and over several extents never.
    let both = [[4; 8], [3; 8], [5; 8], [5; 8]].concat();
    let data = world.payload(&both);
    let wide = world.run(&mut volume, io(Op::CompareAndWrite, 8, 16, data));
    assert_eq!(wide.map(drop), Err(IoError::Unsupported));
    world.write(&mut volume, 0, &[6; 64]).unwrap();
    let data = world.payload(&[[6; 16], [7; 16]].concat());
    let wide = world.run(&mut volume, io(Op::CompareAndWrite, 8, 16, data));
    assert_eq!(wide.map(drop), Ok(()));
    let data = world.payload(&[[6; 8], [7; 8]].concat());
    let wide = world.run(&mut volume, io(Op::CompareAndWrite, BLOCKS - 4, 8, data));
    assert_eq!(wide.map(drop), Err(IoError::Unsupported));
}

/// A snapshot is taken, and what is beside the block in its chunk and its extent is written.
fn disturb(world: &mut World, volume: &mut Volume<Shared>, number: u32) {
    let uuid = uuid::Uuid::nil();
    let _ = world.pool.create_snapshot(number, uuid, "s".to_owned(), 0);
    for lba in [8, 10, 16] {
        let data = world.payload(&[1]);
        let mut io = io(Op::Write, lba, 1, data);
        io.token = 100;
        volume.try_submit(io).unwrap();
    }
}

/// Many add one to the same block at the same time, each as often as it takes; nothing is lost, whatever happens to the
/// extent meanwhile.
#[test]
fn counter_that_many_add_to_counts_all() {
    const ADDERS: u64 = 4;
    const EACH: u64 = 12;
    let latency = Latency::Uniform {
        min: Nanos(100),
        max: Nanos(4_000),
    };
    let mut world = World::new(
        4 << 20,
        FaultPlan {
            seed: 3,
            read_latency: latency,
            write_latency: latency,
            ..FaultPlan::default()
        },
    );
    let number = world.create(spec(4 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    // What each believes, and how often it has yet to add.
    let mut adders: Vec<(u64, u64)> = vec![(0, EACH); usize::try_from(ADDERS).unwrap()];
    let submit = |world: &World, volume: &mut Volume<Shared>, at: usize, believed: u64| {
        let data = world.payload(&[believed, believed + 1]);
        let mut io = io(Op::CompareAndWrite, 9, 1, data);
        io.token = u64::try_from(at).unwrap();
        volume.try_submit(io).unwrap();
    };
    for at in 0..adders.len() {
        submit(&world, &mut volume, at, 0);
    }
    let (mut added, mut ended) = (0, 0);
    let mut out = Completions::with_capacity(16);
    let mut polls = 0;
    while added < ADDERS * EACH {
        polls += 1;
        assert!(polls < 200_000, "{added} added");
        world.poll();
        volume.poll(*world.now.borrow(), &mut out);
        while let Some(completion) = out.pop() {
            if completion.token >= 100 {
                continue;
            }
            ended += 1;
            let at = usize::try_from(completion.token).unwrap();
            let (believed, left) = &mut adders[at];
            match completion.result {
                Ok(()) => {
                    added += 1;
                    *believed += 1;
                    *left -= 1;
                }
                Err(error) => {
                    assert_eq!(error, IoError::CompareMismatch);
                    *believed = added;
                }
            }
            let (believed, left) = adders[at];
            if left > 0 {
                submit(&world, &mut volume, at, believed);
            }
            if ended % 5 == 0 {
                disturb(&mut world, &mut volume, number);
            }
        }
    }
    world.settle();
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 9, 1), [ADDERS * EACH]);
    assert_eq!(world.pool.check(), Vec::<String>::new());
}
