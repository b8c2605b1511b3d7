//! How a pool is read when it is opened.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_block::{
    BufPool, Completions, Device, ErrorRates, FaultPlan, IoError, Latency, Op, PoolConfig,
};
use bowline_nvme::Nanos;
use uuid::Uuid;

use super::world::{EXTENT, Shared, World, io, options, spec};
use crate::format::layout::SUPERBLOCK_OFFSETS;
use crate::format::record::{Checksums, Durability, Record, VolumeRecord};
use crate::map::Damage;
use crate::pool::journal::Waiter;
use crate::pool::open::Waiting;
use crate::pool::operation::Bytes;
use crate::{Found, OpenError, Pool};

/// What a read of the drive takes.
const READ: u64 = 20_000;

#[test]
fn long_range_is_read_with_several_requests_at_once() {
    let plan = FaultPlan {
        read_latency: Latency::Fixed(Nanos(READ)),
        ..FaultPlan::default()
    };
    let mut drive = Shared::new(4 << 20, 512, plan);
    let buffers = BufPool::new(PoolConfig::with_budget(4 << 20)).unwrap();
    let mut now = 0;
    let mut wait = || {
        now += 100;
        Nanos(now)
    };
    // Sixteen pieces, eight at once, and a short one.
    let mut out = vec![7; (2 << 20) + 512];
    let mut waiting = Waiting::new(&mut drive, &buffers, &mut wait);
    waiting.read(512, &mut out).unwrap();
    assert!(out.iter().all(|byte| *byte == 0));
    assert!(now <= 3 * READ + READ / 2, "{now} ns");
    drive.inner().set_errors(ErrorRates {
        read_per_million: 300_000,
        ..ErrorRates::default()
    });
    let mut wait = || {
        now += 100;
        Nanos(now)
    };
    let mut waiting = Waiting::new(&mut drive, &buffers, &mut wait);
    assert_eq!(waiting.read(512, &mut out), Err(IoError::MediaRead));
    // Nothing of it is left that the next could take for its own.
    drive.inner().set_errors(ErrorRates::default());
    let mut wait = || {
        now += 100;
        Nanos(now)
    };
    let mut waiting = Waiting::new(&mut drive, &buffers, &mut wait);
    out.fill(7);
    waiting.read(0, &mut out[..4096]).unwrap();
    assert!(out[..4096].iter().all(|byte| *byte == 0));
}

#[test]
fn unreadable_sector_of_the_journal_matters_only_where_it_is_needed() {
    let mut world = World::new(4 << 20, FaultPlan::default());
    let number = world.create(spec(EXTENT));
    let mut volume = world.pool.open_volume(number).unwrap();
    world.write(&mut volume, 0, &[1; 32]).unwrap();
    drop(volume);
    let layout = world.pool.engine.borrow().superblock.layout;
    let (first, sectors) = (layout.journal.offset / 512, layout.ring().sectors());
    let World {
        drive, pool, now, ..
    } = world;
    drop(pool);
    drive.late().unreadable = first..first + 1;
    let opened = Pool::open(drive.clone(), &mut || *now.borrow());
    assert!(matches!(opened, Err(OpenError::Journal(_))));
    drive.late().unreadable = first + sectors - 1..first + sectors;
    let mut world = World::open(drive, now);
    let mut volume = world.pool.open_volume(number).unwrap();
    assert_eq!(world.read(&mut volume, 0, 32), [1; 32]);
}

/// What is smaller than a block of the drive would be written to another place.
#[test]
fn pool_with_a_volume_of_smaller_blocks_than_the_drive_is_not_opened() {
    let mut drive = Shared::new(4 << 20, 4096, FaultPlan::default());
    let now = Rc::new(RefCell::new(Nanos(0)));
    Pool::format(&mut drive, &options(), &mut || *now.borrow()).unwrap();
    let mut world = World::open(drive, now);
    let mut bytes = Bytes::default();
    let record = VolumeRecord {
        volume: 1,
        uuid: Uuid::from_u128(1),
        bytes: 1 << 20,
        block_bytes: 512,
        snapshots_taken: 0,
        base: None,
        is_thick: false,
        is_deleted: false,
        is_being_made: false,
        durability: Durability::Media,
        checksums: Checksums::Off,
        created: 1,
        name: "a",
    };
    bytes.push(&Record::Volume(record)).unwrap();
    let change = bytes.into_change();
    let engine = &world.pool.engine;
    engine.borrow_mut().journal.want(change, Waiter::Closing);
    world.settle();
    let World {
        drive, pool, now, ..
    } = world;
    drop(pool);
    let opened = Pool::open(drive, &mut || *now.borrow());
    let expected = Damage::Block {
        volume: 1,
        bytes: 512,
    };
    assert!(matches!(opened, Err(OpenError::Map(found)) if found == expected));
}

#[test]
fn drive_of_which_a_superblock_cannot_be_read_is_not_formatted() {
    let mut world = World::new(4 << 20, FaultPlan::default());
    let data = world.payload(&[0; 8]);
    world.drive.try_submit(io(Op::Write, 0, 8, data)).unwrap();
    let mut out = Completions::with_capacity(4);
    while out.is_empty() {
        world.drive.poll(Nanos(0), &mut out);
    }
    let second = SUPERBLOCK_OFFSETS[1] / 512;
    world.drive.late().unreadable = second..second + 1;
    let mut wait = || Nanos(0);
    let formatted = Pool::format(&mut world.drive, &options(), &mut wait);
    let is_refused =
        |it: Result<(), OpenError>| matches!(it, Err(OpenError::Drive(IoError::MediaRead)));
    assert!(is_refused(formatted));
    let recognised = Pool::recognise(&mut world.drive, &mut wait);
    assert!(is_refused(recognised.map(drop)));
    // It is what it was.
    world.drive.late().unreadable = 0..0;
    let found = Pool::find(&mut world.drive, &mut wait);
    assert!(matches!(found, Ok(Found::Pool(_))));
}
