//! What a checkpoint has left that was cut short.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_block::{BufPool, CachePlan, Completions, Device, FaultPlan, Latency, Op, Segments};
use bowline_nvme::Nanos;

use super::world::{BLOCK, EXTENT, Shared, World, io, spec};
use crate::pool::open::Waiting;
use crate::{OpenError, Pool};

/// A drive behind the pool's back.
struct Behind<'a> {
    drive: Shared,
    buffers: &'a BufPool,
    now: &'a Rc<RefCell<Nanos>>,
}

fn behind(world: &World) -> Behind<'_> {
    Behind {
        drive: world.drive.clone(),
        buffers: &world.buffers,
        now: &world.now,
    }
}

fn tick(now: &Rc<RefCell<Nanos>>) -> Nanos {
    let mut now = now.borrow_mut();
    now.0 += 100;
    *now
}

impl Behind<'_> {
    fn read(&mut self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        let mut wait = || tick(self.now);
        let mut waiting = Waiting::new(&mut self.drive, self.buffers, &mut wait);
        waiting.read(offset, &mut out).unwrap();
        out
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut data = Segments::from(self.buffers.alloc(bytes.len()).unwrap());
        assert!(data.copy_from(bytes));
        let lba = offset / BLOCK as u64;
        let mut io = io(Op::Write, lba, bytes.len() / BLOCK, data);
        io.fua = true;
        self.drive.try_submit(io).unwrap();
        let mut out = Completions::with_capacity(1);
        while out.is_empty() {
            self.drive.poll(tick(self.now), &mut out);
        }
        out.pop().unwrap().result.unwrap();
    }
}

#[test]
fn frame_that_a_checkpoint_has_left_when_it_was_cut_short_is_not_taken_for_one_of_the_next() {
    let latency = Latency::Fixed(Nanos(5_000));
    let plan = FaultPlan {
        read_latency: latency,
        write_latency: latency,
        flush_latency: latency,
        cache: Some(CachePlan {
            bytes_max: 8 << 20,
            lost_per_million: 0,
            torn_per_million: 0,
        }),
        ..FaultPlan::default()
    };
    let mut world = World::new(4 << 20, plan);
    let volume = world.create(spec(EXTENT));
    let area = world.pool.engine.borrow().superblock.layout.checkpoints[0];
    let mut value = 0;
    while world.pool.engine.borrow().checkpointer.is_idle() {
        // The frame does not show the last of them, whose record is on its way when it is made.
        value += 1;
        let set = world.pool.set_attribute(volume, 1, vec![value; 8]);
        world.wait(set).unwrap();
    }
    let mut world = world.crash();
    assert_eq!(world.pool.attribute(volume, 1), Some(vec![value; 8]));
    let bytes = usize::try_from(area.bytes).unwrap().min(64 << 10);
    let older = behind(&world).read(area.offset, bytes);
    world.settle();
    assert_eq!(world.pool.written().1, 1);
    assert_ne!(behind(&world).read(area.offset, bytes), older);
    let World {
        drive,
        pool,
        buffers,
        now,
        ..
    } = world;
    pool.close(&mut || tick(&now)).unwrap();
    // The drive has lost the second.
    let mut behind = Behind {
        drive: drive.clone(),
        buffers: &buffers,
        now: &now,
    };
    behind.write(area.offset, &older);
    let opened = Pool::open(drive, &mut || tick(&now));
    assert!(matches!(opened, Err(OpenError::Checkpoint(_))));
}
