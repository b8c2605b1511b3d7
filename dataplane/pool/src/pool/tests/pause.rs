//! How long a snapshot has writes wait, counted in writes of the drive.

use bowline_block::{Completions, Device, FaultPlan, Latency, Op};
use bowline_nvme::Nanos;

use super::world::{EXTENT, World, io, options, spec};
use crate::format::layout::LayoutOptions;
use crate::{FormatOptions, OpenOptions};

const BLOCKS: u64 = EXTENT / 512;

/// What a write of the drive takes; reads and the rest take nothing.
const WRITE: u64 = 20_000;

/// Beside writes under way, a snapshot perhaps is asked for; then comes one more write. How long that takes.
fn late_write(with_snapshot: bool, lba: u64) -> u64 {
    let mut world = World::new(
        8 << 20,
        FaultPlan {
            write_latency: Latency::Fixed(Nanos(WRITE)),
            ..FaultPlan::default()
        },
    );
    let number = world.create(spec(40 * EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    world.settle();
    let mut submit = |world: &World, lba: u64, token: u64| {
        let data = world.payload(&[token; 8]);
        let mut io = io(Op::Write, lba, 8, data);
        io.token = token;
        volume.try_submit(io).unwrap();
    };
    for extent in 10..18 {
        submit(&world, extent * BLOCKS, extent);
    }
    world.poll();
    if with_snapshot {
        let uuid = uuid::Uuid::nil();
        let name = "s".to_owned();
        world.pool.create_snapshot(number, uuid, name, 1).unwrap();
    }
    world.poll();
    submit(&world, lba, 1);
    let begin = *world.now.borrow();
    let mut out = Completions::with_capacity(1);
    for _ in 0..10_000 {
        world.poll();
        volume.poll(*world.now.borrow(), &mut out);
        if out.pop().is_some_and(|it| it.token == 1) {
            return world.now.borrow().0 - begin.0;
        }
    }
    panic!("the write does not end");
}

#[test]
fn overwrite_does_not_wait_for_a_snapshot() {
    let without = late_write(false, 0);
    assert_eq!(late_write(true, 0), without);
    assert!(without < WRITE + WRITE / 4, "{without} ns");
}

#[test]
fn first_write_waits_for_a_snapshot_as_long_as_one_group_takes() {
    let without = late_write(false, 20 * BLOCKS);
    let with = late_write(true, 20 * BLOCKS);
    assert!(
        with <= without + WRITE + WRITE / 4,
        "{with} ns instead of {without}"
    );
}

#[test]
fn snapshot_waits_for_one_copy_of_the_collector_and_not_for_the_extent() {
    let extent_bytes = 256 << 10;
    let format = FormatOptions {
        layout: LayoutOptions {
            extent_bytes,
            ..options().layout
        },
        ..options()
    };
    let plan = FaultPlan {
        write_latency: Latency::Fixed(Nanos(WRITE)),
        ..FaultPlan::default()
    };
    let mut world = World::with(16 << 20, plan, &format, OpenOptions::default());
    let number = world.create(spec(4 * u64::from(extent_bytes)));
    let mut volume = world.pool.open_volume(number).unwrap();
    let chunks = u64::from(extent_bytes) / 4096;
    for chunk in 0..chunks {
        world.write(&mut volume, chunk * 8, &[1; 8]).unwrap();
    }
    let snapshot = world.snapshot(number);
    for chunk in (0..chunks).step_by(2) {
        world.write(&mut volume, chunk * 8, &[2; 8]).unwrap();
    }
    world.settle();
    let deleted = world.pool.delete_snapshot(number, snapshot);
    world.wait(deleted).unwrap();
    let is_merging = |world: &World| world.pool.engine.borrow().locked != u32::MAX;
    while !is_merging(&world) {
        world.poll();
    }
    let begin = world.now.borrow().0;
    world.snapshot(number);
    let took = world.now.borrow().0 - begin;
    assert!(took <= 4 * WRITE, "{took} ns");
    // It is brought together afterwards all the same.
    world.settle();
    assert!(world.pool.engine.borrow().is_collected());
    for chunk in 0..chunks {
        let value = 2 - chunk % 2;
        assert_eq!(world.read(&mut volume, chunk * 8, 8), [value; 8]);
    }
    assert_eq!(world.pool.check(), Vec::<String>::new());
}
