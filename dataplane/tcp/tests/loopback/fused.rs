//! Fused Compare and Write: two commands that are one, whoever else writes there.
//! [BASE-2.0 §3.4.2], [NVM-1.0 §2.1.6]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bowline_block::{ErrorRates, FaultDevice, FaultPlan, Geometry, Latency};
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Fuse, NamespaceId, Nanos, Sqe, Status};
use bowline_reactor::IoBackend;
use bowline_tcp::host::HostOp;

use crate::common::device::{Shaped, TestDevice, Wear, Worn, memory};
use crate::common::initiator::{Bystander, Disk, Options};
use crate::common::raw::Raw;
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{on_both_backends, pattern};
use crate::engine::{disk, own_devices};

on_both_backends!(
    pairs_write_what_compares_equal_at_every_size_and_digest_setting,
    orphan_halves_are_missing_their_other_and_hurt_nothing,
    pair_on_a_read_only_namespace_writes_nothing,
    peer_that_leaves_between_the_halves_leaves_nothing_behind,
);
own_devices!(
    failed_medium_fails_the_half_that_it_concerns,
    counters_that_connections_increment_lose_nothing_beside_plain_writes,
);

const NSID: NamespaceId = NamespaceId(1);
const OK: Status = Status::SUCCESS;
const MISSING: Status = Status::ABORTED_MISSING_FUSED;
const FAILED: Status = Status::ABORTED_FAILED_FUSED;
const DIFFERS: Status = Status::COMPARE_FAILURE.dnr();
const BLOCK_BYTES: usize = BLOCK as usize;

fn half(opcode: u8, fuse: Fuse, nsid: NamespaceId, lba: u64, bytes: usize) -> Sqe {
    let nlb = u16::try_from(bytes / BLOCK_BYTES - 1).expect("16 bits");
    Sqe::new(opcode)
        .with_nsid(nsid)
        .with_slba(lba)
        .with_nlb(nlb)
        .with_fuse(fuse)
}

fn first(nsid: NamespaceId, lba: u64, bytes: usize) -> Sqe {
    half(opcode::COMPARE, Fuse::First, nsid, lba, bytes)
}

fn second(nsid: NamespaceId, lba: u64, bytes: usize) -> Sqe {
    half(opcode::WRITE, Fuse::Second, nsid, lba, bytes)
}

/// Replaces `old` by `new`, if it is there.
fn pair(disk: &mut Disk, nsid: NamespaceId, lba: u64, old: &[u8], new: &[u8]) -> Vec<Status> {
    disk.run_all_raw(&[
        (first(nsid, lba, old.len()), old),
        (second(nsid, lba, new.len()), new),
    ])
}

fn pairs_write_what_compares_equal_at_every_size_and_digest_setting(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        let digests = Digests { header, data };
        let mut disk = Disk::with(
            rig.address,
            Options {
                io,
                digests,
                ..Options::default()
            },
        );
        // In the capsule, after an R2T, and the most that both halves together may have.
        for len in [512, 16 << 10, (16 << 10) + 512, 128 << 10, 512 << 10] {
            let (old, new) = (pattern(1, len), pattern(2, len));
            disk.write(NSID, 8, &old);
            assert_eq!(pair(&mut disk, NSID, 8, &old, &new), [OK, OK], "{len}");
            assert!(disk.read(NSID, 8, len) == new, "{len} bytes, {digests:?}");
            for at in [0, len / 2, len - 1] {
                let mut other = new.clone();
                other[at] ^= 1;
                let ends = pair(&mut disk, NSID, 8, &other, &old);
                assert_eq!(ends, [DIFFERS, FAILED], "{len} bytes, {at}");
            }
            assert!(disk.read(NSID, 8, len) == new, "{len} bytes, {digests:?}");
        }
        disk.disconnect();
    }
    bystander.await_progress("beside pairs");
    bystander.stop();
    rig.await_connections(0);
    rig.await_free_pool();
}

fn orphan_halves_are_missing_their_other_and_hurt_nothing(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let mut disk = Disk::connect(rig.address, io);
    let small: &[u8] = &[0; 512];
    for len in [512, 64 << 10] {
        let data = vec![7; len];
        let data = data.as_slice();
        let flush = (Sqe::new(opcode::FLUSH).with_nsid(NSID), &[][..]);
        let first = |lba| (first(NSID, lba, len), data);
        let second = |lba| (second(NSID, lba, len), data);
        let field = Status::INVALID_FIELD.dnr();
        let cases = [
            (vec![second(0), flush], vec![MISSING, OK]),
            (vec![first(0), flush], vec![MISSING, OK]),
            (vec![first(0), flush, second(0)], vec![MISSING, OK, MISSING]),
            (vec![first(0), second(8)], vec![field, field]),
        ];
        for (commands, expected) in cases {
            assert_eq!(disk.run_all_raw(&commands), expected, "{len} bytes");
        }
        assert!(disk.read(NSID, 0, 64 << 10).iter().all(|byte| *byte == 0));
        let ends = pair(&mut disk, NSID, 1 << 10, small, small);
        assert_eq!(ends, [OK, OK], "the queue goes on");
    }
    bystander.await_progress("beside orphans");
    bystander.stop();
    assert_eq!(disk.losses(), 0);
    drop(disk);
    rig.await_free_pool();
}

fn failed_medium_fails_the_half_that_it_concerns(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let wear = Arc::new(Wear::default());
    let of_device = Arc::clone(&wear);
    let nsid = rig.add_namespace(NQN, move || {
        TestDevice::new(Worn::new(memory(DISK_BYTES, BLOCK), of_device))
    });
    let mut disk = Disk::connect(rig.address, io);
    let (old, new) = ([0; 512], [1; 512]);
    let reads_fail = ErrorRates {
        read_per_million: 1_000_000,
        ..ErrorRates::default()
    };
    wear.set(0, reads_fail);
    let ends = pair(&mut disk, nsid, 0, &old, &new);
    assert_eq!(ends, [Status::UNRECOVERED_READ, FAILED]);
    let writes_fail = ErrorRates {
        write_per_million: 1_000_000,
        ..ErrorRates::default()
    };
    wear.set(0, writes_fail);
    let ends = pair(&mut disk, nsid, 0, &old, &new);
    assert_eq!(ends, [OK, Status::WRITE_FAULT]);
    wear.set(0, ErrorRates::default());
    assert_eq!(pair(&mut disk, nsid, 0, &old, &new), [OK, OK]);
    bystander.await_progress("beside failing pairs");
    bystander.stop();
}

fn pair_on_a_read_only_namespace_writes_nothing(io: IoBackend) {
    let rig = Rig::with_device_on(io, |cx| {
        let shape = |geometry: &mut Geometry| geometry.read_only = true;
        TestDevice::new(Shaped {
            inner: disk(cx, DISK_BYTES, BLOCK),
            shape,
        })
    });
    let mut disk = Disk::connect(rig.address, io);
    let ends = pair(&mut disk, NSID, 0, &[0; 512], &[1; 512]);
    assert_eq!(ends, [FAILED, Status::NAMESPACE_WRITE_PROTECTED.dnr()]);
    assert!(disk.read(NSID, 0, 512).iter().all(|byte| *byte == 0));
}

fn peer_that_leaves_between_the_halves_leaves_nothing_behind(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    for reset in [false, true] {
        // After the first half, within the second, and while its data is awaited.
        for stage in 0..3 {
            let (mut queue, admin) = Raw::io(rig.address, Digests::NONE);
            let capsule = queue.capsule(first(NSID, 0, 512), Some(&[0; 512]));
            queue.send(&capsule);
            let capsule = if stage == 2 {
                let sgl = bowline_nvme::Sgl::transport(512);
                queue.capsule_with(second(NSID, 0, 512).with_sgl1(sgl), &[])
            } else {
                queue.capsule(second(NSID, 0, 512), Some(&[9; 512]))
            };
            match stage {
                0 => {}
                1 => queue.send(&capsule[..200]),
                _ => {
                    queue.send(&capsule);
                    let _ = queue.recv().expect("an R2T").r2t();
                }
            }
            if reset {
                queue.reset();
            } else {
                drop(queue);
            }
            drop(admin);
        }
    }
    bystander.await_progress("beside peers that leave");
    bystander.stop();
    let mut disk = Disk::connect(rig.address, io);
    assert!(disk.read(NSID, 0, 512).iter().all(|byte| *byte == 0));
    assert_eq!(pair(&mut disk, NSID, 0, &[0; 512], &[1; 512]), [OK, OK]);
    disk.disconnect();
    rig.await_nothing_left();
}

/// Where the counter is; the block behind it belongs to the writer of plain writes.
const COUNTER: u64 = 100;
const INCREMENTS: u64 = 20;

fn number(block: &[u8]) -> u64 {
    u64::from_le_bytes(block[..8].try_into().expect("eight bytes"))
}

fn block_of(number: u64) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

/// Increments the counter, by pairs over both blocks that leave the other one as it was. Returns
/// the numbers that it replaced.
fn increment(address: SocketAddr, io: IoBackend, nsid: NamespaceId) -> Vec<u64> {
    let mut disk = Disk::connect(address, io);
    let mut replaced = Vec::new();
    while (replaced.len() as u64) < INCREMENTS {
        let old = disk.read(nsid, COUNTER, 2 * BLOCK_BYTES);
        let count = number(&old);
        let mut new = old.clone();
        new[..BLOCK_BYTES].copy_from_slice(&block_of(count + 1));
        let ends = pair(&mut disk, nsid, COUNTER, &old, &new);
        if ends == [OK, OK] {
            replaced.push(count);
        } else {
            assert_eq!(ends, [DIFFERS, FAILED]);
        }
    }
    replaced
}

/// Writes the block behind the counter again and again, and nobody else may change it.
fn overwrite(address: SocketAddr, io: IoBackend, nsid: NamespaceId, stop: &AtomicBool) -> u64 {
    let mut disk = Disk::connect(address, io);
    let mut tag = 0;
    while !stop.load(Ordering::SeqCst) {
        tag += 1;
        let op = HostOp::Write { fua: tag % 2 == 0 };
        let done = disk.run(op, nsid, COUNTER + 1, &block_of(tag));
        assert_eq!(done.status, OK);
        let found = number(&disk.read(nsid, COUNTER + 1, BLOCK_BYTES));
        assert_eq!(found, tag, "a pair has undone a write that was answered");
    }
    tag
}

fn counters_that_connections_increment_lose_nothing_beside_plain_writes(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let nsid = rig.add_namespace(NQN, || {
        // Slow enough, and in an order of its own, for every pair to meet others halfway.
        let latency = Latency::Uniform {
            min: Nanos::ZERO,
            max: Nanos::from_millis(1),
        };
        let plan = FaultPlan {
            seed: 5,
            read_latency: latency,
            write_latency: latency,
            ..FaultPlan::default()
        };
        TestDevice::new(FaultDevice::new(memory(DISK_BYTES, BLOCK), plan).expect("memory"))
    });
    let (address, stop) = (rig.address, AtomicBool::new(false));
    let mut replaced = thread::scope(|scope| {
        let hosts: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| increment(address, io, nsid)))
            .collect();
        let writer = scope.spawn(|| overwrite(address, io, nsid, &stop));
        let ends: Vec<_> = hosts
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::SeqCst);
        assert!(writer.join().expect("its writes stay") > 0);
        let each = ends.into_iter().map(|end| end.expect("a host"));
        each.flatten().collect::<Vec<_>>()
    });
    replaced.sort_unstable();
    let each_once: Vec<_> = (0..4 * INCREMENTS).collect();
    assert_eq!(replaced, each_once, "no number was replaced twice");
    let mut disk = Disk::connect(address, io);
    let count = number(&disk.read(nsid, COUNTER, BLOCK_BYTES));
    assert_eq!(count, 4 * INCREMENTS);
    bystander.await_progress("beside counters");
    bystander.stop();
}
