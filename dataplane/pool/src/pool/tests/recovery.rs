//! What is read of a drive when its pool is opened, and what is told meanwhile.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use bowline_block::{Completions, Device, DeviceEvent, FaultPlan, Geometry, Io, Op};
use bowline_nvme::Nanos;

use super::world::{BLOCK, Shared, World, options, spec};
use crate::format::checkpoint::FRAME_BYTES_MAX;
use crate::format::foreign::FOREIGN_BYTES;
use crate::format::superblock::{SUPERBLOCK_BYTES, Superblock};
use crate::{Found, OpenOptions, Pool, Recovery, RecoveryPhase};

/// A drive that counts what is read of it.
struct Metered {
    drive: Shared,
    read: Rc<Cell<u64>>,
}

impl Device for Metered {
    fn geometry(&self) -> Geometry {
        self.drive.geometry()
    }
    fn depth_max(&self) -> usize {
        self.drive.depth_max()
    }
    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        let bytes = match io.op {
            Op::Read => u64::from(io.blocks) * BLOCK as u64,
            _ => 0,
        };
        self.drive.try_submit(io)?;
        self.read.set(self.read.get() + bytes);
        Ok(())
    }
    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.drive.poll(now, out);
    }
    fn poll_timeout(&self) -> Option<Nanos> {
        self.drive.poll_timeout()
    }
    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.drive.poll_event()
    }
    fn refresh(&mut self) -> io::Result<Geometry> {
        self.drive.refresh()
    }
}

const JOURNAL: u64 = 1 << 20;

/// A pool with such a journal, and one volume.
fn pool_with_a_journal(bytes: u64) -> (World, u32) {
    let mut format = options();
    format.layout.journal_bytes = Some(bytes);
    format.layout.attribute_bytes_max = Some(16 << 10);
    let (plan, open) = (FaultPlan::default(), OpenOptions::default());
    let mut world = World::with(6 * bytes + (16 << 20), plan, &format, open);
    let volume = world.create(spec(1 << 20));
    (world, volume)
}

/// What opening the pool reads of its drive; it is closed in order then, or not.
fn opened(world: World, is_closed: bool) -> (u64, Superblock, World) {
    let World {
        drive, pool, now, ..
    } = world;
    let mut wait = || {
        now.borrow_mut().0 += 100;
        *now.borrow()
    };
    match is_closed {
        true => drop(pool.close(&mut wait).unwrap()),
        false => drop(pool),
    }
    let read = Rc::new(Cell::new(0));
    let mut metered = Metered {
        drive: drive.clone(),
        read: Rc::clone(&read),
    };
    let Found::Pool(superblock) = Pool::find(&mut metered, &mut wait).unwrap() else {
        panic!("the pool is not found");
    };
    read.set(0);
    let pool = Pool::open(metered, &mut wait).unwrap();
    let count = read.get();
    drop(pool);
    (count, *superblock, World::open(drive, now))
}

#[test]
fn after_an_orderly_close_no_more_of_the_journal_is_read_than_is_there() {
    let (mut world, volume) = pool_with_a_journal(JOURNAL);
    let (mut checkpoints, mut first) = (0, 0);
    // The journal goes around three times.
    for round in 0..20_u8 {
        for _ in 0..38 {
            let set = world.pool.set_attribute(volume, 1, vec![round; 4000]);
            world.wait(set).unwrap();
        }
        let count;
        let superblock;
        (count, superblock, world) = opened(world, true);
        let end = superblock.closed_at.unwrap();
        let frames = superblock.checkpoint.map_or(0, |it| u64::from(it.frames));
        checkpoints = superblock.checkpoint.map_or(0, |it| it.number);
        first = superblock.replay_from;
        let groups = (end - first) * 512;
        let start = (FOREIGN_BYTES + SUPERBLOCK_BYTES) as u64;
        let most = start + frames * FRAME_BYTES_MAX as u64 + groups + BLOCK as u64;
        assert!(
            count <= most,
            "{count} bytes, {most} needed: {superblock:?}"
        );
        assert!(count >= start + groups, "{count} bytes: {superblock:?}");
        let kept = world.pool.attribute(volume, 1).unwrap();
        assert_eq!(kept, [round; 4000]);
    }
    assert!(
        checkpoints > 3 && first > 3 * JOURNAL / 512,
        "{checkpoints} {first}"
    );
    // Where the end is not known, all of it is.
    let (count, superblock, _) = opened(world, false);
    assert_eq!(superblock.closed_at, None);
    assert!(count >= JOURNAL, "{count} bytes");
}

/// What is told while the pool on a drive is opened, and when, if every poll of the drive takes so long.
fn told_when_opened(drive: Shared, step: Nanos) -> Vec<(Nanos, Recovery)> {
    let now = Cell::new(Nanos::ZERO);
    let mut told = Vec::new();
    let mut wait = || {
        now.set(now.get().after(step));
        now.get()
    };
    let mut watch = |it: Recovery| told.push((now.get(), it));
    let options = OpenOptions::default();
    drop(Pool::open_watched(drive, &options, &mut wait, &mut watch).unwrap());
    told
}

#[test]
fn how_far_opening_is_is_told_with_each_phase_and_once_a_second() {
    const LARGE: u64 = 8 << 20;
    let (mut world, volume) = pool_with_a_journal(LARGE);
    // More than half of it, so that there is a checkpoint.
    let mut round = 0_u8;
    while world.pool.written().1 == 0 {
        round = round.wrapping_add(1);
        let set = world.pool.set_attribute(volume, 1, vec![round; 4000]);
        world.wait(set).unwrap();
    }
    let World { drive, pool, .. } = world;
    drop(pool);
    let phases = [
        RecoveryPhase::Superblocks,
        RecoveryPhase::Checkpoint,
        RecoveryPhase::Journal,
        RecoveryPhase::Groups,
        RecoveryPhase::Bitmaps,
    ];
    let told = told_when_opened(drive.clone(), Nanos::from_micros(10));
    let each: Vec<RecoveryPhase> = told.iter().map(|(_, it)| it.phase).collect();
    assert_eq!(each, phases);
    assert!(told.iter().all(|(_, it)| it.done == 0), "{told:?}");
    let words = told.get(2).unwrap().1.to_string();
    assert_eq!(words, "journal, 0 of 16384 sectors");

    let told = told_when_opened(drive, Nanos::from_millis(200));
    assert!(
        told.is_sorted_by_key(|(_, it)| (it.phase, it.done)),
        "{told:?}"
    );
    let between: Vec<u64> = told
        .windows(2)
        .filter(|two| two[0].1.phase == two[1].1.phase)
        .map(|two| two[1].0.0 - two[0].0.0)
        .collect();
    assert!(!between.is_empty(), "{told:?}");
    assert!(between.iter().all(|it| *it >= 1_000_000_000), "{told:?}");
    assert!(told.iter().all(|(_, it)| it.done <= it.total), "{told:?}");
}
