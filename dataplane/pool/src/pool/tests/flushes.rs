//! A flush that fails: whoever it was of is told, whoever asked for it.

use bowline_block::{
    CachePlan, Completions, Device, ErrorRates, FaultPlan, IoError, Latency, Op, Segments,
};
use bowline_nvme::Nanos;

use super::world::{EXTENT, Shared, World, io, spec};
use crate::format::record::{Checksums, Durability};
use crate::{Volume, VolumeSpec};

const LOST: Result<(), IoError> = Err(IoError::MediaWrite);

/// A drive with a cache, whose flushes take a while.
fn world() -> World {
    let plan = FaultPlan {
        flush_latency: Latency::Fixed(Nanos(1_000)),
        cache: Some(CachePlan {
            bytes_max: 8 << 20,
            lost_per_million: 0,
            torn_per_million: 0,
        }),
        ..FaultPlan::default()
    };
    World::new(6 << 20, plan)
}

impl World {
    /// A volume that relies on flushes, and has been written to.
    fn relying(&mut self, checksums: Checksums) -> (u32, Volume<Shared>) {
        let number = self.create(VolumeSpec {
            durability: Durability::Device,
            checksums,
            ..spec(8 * EXTENT)
        });
        let mut volume = self.pool.open_volume(number).unwrap();
        self.write(&mut volume, 0, &[1; 32]).unwrap();
        (number, volume)
    }

    fn have_flushes_fail(&self, do_fail: bool) {
        self.drive.inner().set_errors(ErrorRates {
            flush_per_million: if do_fail { 1_000_000 } else { 0 },
            ..ErrorRates::default()
        });
    }

    fn flush(&mut self, volume: &mut Volume<Shared>) -> Result<(), IoError> {
        self.change(volume, Op::Flush, 0, 0)
    }

    /// So many flushes have failed.
    fn failures(&self) -> u64 {
        self.pool.engine.borrow().flushes.failures
    }
}

#[test]
fn failed_flush_of_one_volume_is_told_to_each_that_relies_on_flushes_once() {
    let mut world = world();
    let (_, mut one) = world.relying(Checksums::Off);
    let (_, mut other) = world.relying(Checksums::Off);
    let media = world.create(spec(EXTENT));
    let mut media = world.pool.open_volume(media).unwrap();
    world.have_flushes_fail(true);
    assert_eq!(world.flush(&mut one), LOST);
    world.have_flushes_fail(false);
    assert_eq!(world.flush(&mut one), Ok(()));
    assert_eq!(world.flush(&mut media), Ok(()));
    assert_eq!(world.flush(&mut other), LOST);
    assert_eq!(world.flush(&mut other), Ok(()));
    assert_eq!(world.flush(&mut one), Ok(()));
}

#[test]
fn flush_that_was_under_way_when_another_failed_fails_too() {
    let mut world = world();
    let (_, mut one) = world.relying(Checksums::Off);
    let (_, mut other) = world.relying(Checksums::Off);
    world.have_flushes_fail(true);
    let flush = || io(Op::Flush, 0, 0, Segments::new());
    one.try_submit(flush()).unwrap();
    world.have_flushes_fail(false);
    one.try_submit(flush()).unwrap();
    other.try_submit(flush()).unwrap();
    let mut out = Completions::with_capacity(4);
    for _ in 0..100 {
        world.poll();
        one.poll(*world.now.borrow(), &mut out);
        other.poll(*world.now.borrow(), &mut out);
    }
    let results: Vec<_> = out.drain().map(|it| it.result).collect();
    assert_eq!(results, [LOST; 3]);
    assert_eq!(world.flush(&mut one), Ok(()));
    assert_eq!(world.flush(&mut other), Ok(()));
}

#[test]
fn failed_flush_of_a_checkpoint_is_told_to_volumes() {
    let mut world = world();
    let (number, mut volume) = world.relying(Checksums::Off);
    world.have_flushes_fail(true);
    while world.failures() == 0 {
        let set = world.pool.set_attribute(number, 1, vec![1; 8]);
        world.wait(set).unwrap();
    }
    world.have_flushes_fail(false);
    world.settle();
    assert_eq!(world.flush(&mut volume), LOST);
    assert_eq!(world.flush(&mut volume), Ok(()));
}

#[test]
fn failed_flush_of_checksums_is_told_to_volumes() {
    let mut world = world();
    let (number, mut volume) = world.relying(Checksums::Verify);
    world.have_flushes_fail(true);
    // What nobody writes to for a minute is retired.
    world.now.borrow_mut().0 += 60_000_000_000;
    for _ in 0..100 {
        world.poll();
    }
    world.have_flushes_fail(false);
    assert!(world.failures() > 0);
    // Whatever the handle.
    let mut again = world.pool.open_volume(number).unwrap();
    assert_eq!(world.flush(&mut again), LOST);
    assert_eq!(world.flush(&mut volume), Ok(()));
    assert_eq!(world.read(&mut volume, 0, 32), [1; 32]);
}
