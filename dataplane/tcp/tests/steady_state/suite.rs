//! Nothing is allocated per I/O: not by the target, not by its reactor, not by the host. The
//! allocator of the whole process counts while both sides work, whichever engine the disk is of.

use std::alloc::System;

use bowline_block::{FaultDevice, FaultPlan};
use bowline_nvme::pdu::Digests;
use bowline_reactor::IoBackend;
use bowline_tcp::host::HostOp;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::common::device::{TestDevice, memory};
use crate::common::harness::{self, Test};
use crate::common::initiator::{Disk, Options};
use crate::common::is_permitted;
use crate::common::rig::{BLOCK, DISK_BYTES, Rig};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bursts before counting, in which tables grow to their size and memory is touched.
const WARM_UP: usize = 40;
/// Windows of `COUNTED` rounds; one of them must be free of heap traffic.
const WINDOWS: usize = 3;

const COUNTED: usize = 60;

pub(crate) fn run() {
    let mut tests: Vec<Test> = Vec::new();
    for io in [IoBackend::Uring, IoBackend::Epoll] {
        for (op, verb) in [
            (HostOp::Read, "reads"),
            (HostOp::Write { fua: false }, "writes"),
        ] {
            for (bytes, depth, size) in [(4096, 32, "4_kib"), (128 << 10, 16, "128_kib")] {
                for (header, data) in [(false, false), (true, true)] {
                    let digests = Digests { header, data };
                    let with = if header { "with" } else { "without" };
                    let name = format!("{io:?}::{size}_{verb}_{with}_digests_allocate_nothing")
                        .to_lowercase();
                    let test = move || {
                        if is_permitted(io) {
                            allocates_nothing(io, op, bytes, depth, digests);
                        }
                    };
                    tests.push((name, Box::new(test)));
                }
            }
        }
    }
    let name = "allocations_of_the_target_thread_are_seen".to_owned();
    tests.push((name, Box::new(allocations_of_the_target_are_seen)));
    harness::run(tests);
}

/// The control: a device that does allocate per request.
fn allocations_of_the_target_are_seen() {
    let rig = Rig::with_device(IoBackend::Epoll, || {
        let memory = memory(DISK_BYTES, BLOCK);
        TestDevice::new(FaultDevice::new(memory, FaultPlan::default()).expect("memory"))
    });
    let mut disk = Disk::connect(rig.address, IoBackend::Epoll);
    let mut burst = disk.prepare(HostOp::Read, 32, 4096);
    for _ in 0..WARM_UP {
        disk.burst(&mut burst);
    }
    let region = Region::new(ALLOCATOR);
    for _ in 0..COUNTED {
        disk.burst(&mut burst);
    }
    assert!(
        region.change().allocations > 0,
        "the allocator does not count"
    );
}

fn allocates_nothing(io: IoBackend, op: HostOp, bytes: usize, depth: usize, digests: Digests) {
    let rig = Rig::new(io);
    let mut disk = Disk::with(
        rig.address,
        Options {
            io,
            digests,
            ..Options::default()
        },
    );
    let mut all = disk.prepare(op, depth, bytes);
    let mut one = disk.prepare(op, 1, bytes);
    for _ in 0..WARM_UP {
        disk.burst(&mut all);
        disk.burst(&mut one);
    }
    // A table that meets its largest batch late grows once more; what a command costs, every
    // window shows.
    let mut found = (usize::MAX, usize::MAX, usize::MAX);
    for _ in 0..WINDOWS {
        let region = Region::new(ALLOCATOR);
        for _ in 0..COUNTED {
            disk.burst(&mut all);
            disk.burst(&mut one);
        }
        let change = region.change();
        found = found.min((
            change.allocations,
            change.reallocations,
            change.deallocations,
        ));
    }
    let ios = COUNTED * (depth + 1);
    assert_eq!(found, (0, 0, 0), "heap traffic in {ios} I/Os");
}
