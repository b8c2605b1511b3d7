//! What an overwrite costs: no memory is asked for.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::alloc::System;

use bowline_block::{BufPool, Completions, Device, Io, MemDevice, Op, PoolConfig};
use bowline_nvme::Nanos;
use bowline_pool::format::layout::LayoutOptions;
use bowline_pool::format::record::{Checksums, Durability};
use bowline_pool::{FormatOptions, Pool, Provisioning, Volume, VolumeSpec};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCKS: u64 = 4096;

fn volume(checksums: Checksums) -> (Pool<MemDevice>, Volume<MemDevice>) {
    let mut time = || Nanos(0);
    let mut drive = MemDevice::new(64 << 20, 4096).unwrap();
    let options = FormatOptions {
        uuid: Uuid::from_u128(1),
        label: String::new(),
        made: 0,
        layout: LayoutOptions::default(),
        is_forced: false,
    };
    Pool::format(&mut drive, &options, &mut time).unwrap();
    let mut pool = Pool::open(drive, &mut time).unwrap();
    let spec = VolumeSpec {
        uuid: Uuid::from_u128(2),
        name: String::new(),
        bytes: BLOCKS * 4096,
        block_bytes: None,
        provisioning: Provisioning::Thin,
        durability: Durability::Media,
        checksums,
        base: None,
        created: 0,
    };
    pool.create_volume(spec).unwrap();
    while pool.poll_operation().is_none() {
        pool.poll(Nanos(0));
    }
    let volume = pool.open_volume(1).unwrap();
    (pool, volume)
}

fn run(volume: &mut Volume<MemDevice>, buffers: &BufPool, op: Op, out: &mut Completions) {
    for lba in 0..BLOCKS {
        let io = Io {
            op,
            lba: lba * 7919 % BLOCKS,
            blocks: 1,
            fua: false,
            data: buffers.alloc(4096).unwrap().into(),
            token: lba,
        };
        volume.try_submit(io).unwrap();
        while out.is_empty() {
            volume.poll(Nanos(0), out);
        }
        out.pop().unwrap().result.unwrap();
    }
}

#[test]
fn reading_and_overwriting_ask_for_no_memory() {
    // With checksums too, once those that are in use are in memory.
    for checksums in [Checksums::Off, Checksums::Scrub, Checksums::Verify] {
        let (pool, volume) = volume(checksums);
        read_and_overwrite(pool, volume);
    }
}

fn read_and_overwrite(pool: Pool<MemDevice>, mut volume: Volume<MemDevice>) {
    let buffers = BufPool::new(PoolConfig::with_budget(1 << 20)).unwrap();
    let mut out = Completions::with_capacity(4);
    run(&mut volume, &buffers, Op::Write, &mut out);
    run(&mut volume, &buffers, Op::Read, &mut out);
    let region = Region::new(ALLOCATOR);
    run(&mut volume, &buffers, Op::Write, &mut out);
    run(&mut volume, &buffers, Op::Read, &mut out);
    assert_eq!(region.change().allocations, 0);
    drop(pool);
}
