//! Data: what was written is read, wherever and however it travelled.

use std::sync::Arc;

use bowline_block::{ClassConfig, Deallocate, PoolConfig};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Status};
use bowline_nvmf::target::{Hosts, TargetConfig};
use bowline_reactor::{Config, IoBackend};
use bowline_tcp::host::HostOp;

use crate::common::device::{Gate, Gated, TestDevice};
use crate::common::initiator::{Disk, Options};
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{on_both_backends, pattern, until};
use crate::engine::disk;

on_both_backends!(
    written_data_reads_back_at_every_size_with_every_digest_setting,
    writes_leave_their_neighbours_alone,
    flush_and_fua_reach_the_device,
    write_zeroes_zeroes_with_and_without_deallocation,
    deallocated_blocks_read_as_zeroes,
    compare_tells_equal_from_different,
    more_large_writes_than_buffers_all_complete,
    more_large_compares_than_buffers_all_complete,
    transfers_of_exactly_mdts_pass,
    full_queues_of_commands_are_outstanding_at_once_and_all_complete,
    small_reads_overtake_a_slow_stream_of_large_ones,
);

const NSID: NamespaceId = NamespaceId(1);
const MDTS: usize = 1 << 20;

const ALL_DIGESTS: [Digests; 4] = [
    Digests {
        header: false,
        data: false,
    },
    Digests {
        header: true,
        data: false,
    },
    Digests {
        header: false,
        data: true,
    },
    Digests {
        header: true,
        data: true,
    },
];

fn written_data_reads_back_at_every_size_with_every_digest_setting(io: IoBackend) {
    let rig = Rig::new(io);
    for (round, digests) in (0_u64..).zip(ALL_DIGESTS) {
        let mut disk = Disk::with(
            rig.address,
            Options {
                io,
                digests,
                queues: 3,
                ..Options::default()
            },
        );
        // Up to 16 KiB in the capsule, from there on after an R2T.
        let sizes = [
            512, 1024, 4096, 8192, 16_384, 16_896, 65_536, 131_072, 524_288, MDTS,
        ];
        let mut lba = round * 7;
        let mut written = Vec::new();
        for (seed, len) in (round * 100..).zip(sizes) {
            let data = pattern(seed, len);
            disk.write(NSID, lba, &data);
            written.push((lba, data));
            lba += u64::try_from(len).expect("small") / u64::from(BLOCK) + 3;
        }
        // Once per queue.
        for _ in 0..3 {
            for (lba, data) in &written {
                assert!(
                    disk.read(NSID, *lba, data.len()) == *data,
                    "{} bytes, {digests:?}",
                    data.len()
                );
            }
        }
        disk.disconnect();
    }
    rig.await_connections(0);
    rig.await_free_pool();
}

fn writes_leave_their_neighbours_alone(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    let background = pattern(1, 128 << 10);
    disk.write(NSID, 0, &background);
    let mut expected = background;
    for (lba, blocks) in [(0, 1), (255, 1), (17, 40), (100, 128)] {
        let (start, len) = (lba * 512, blocks * 512);
        let data = pattern(u64::try_from(lba).expect("small") + 2, len);
        disk.write(NSID, u64::try_from(lba).expect("small"), &data);
        expected[start..start + len].copy_from_slice(&data);
        assert!(
            disk.read(NSID, 0, expected.len()) == expected,
            "{blocks} blocks at {lba}"
        );
    }
}

fn flush_and_fua_reach_the_device(io: IoBackend) {
    let gate = Arc::new(Gate::default());
    let of_device = Arc::clone(&gate);
    let rig = Rig::with_device_on(io, move |cx| {
        TestDevice::new(Gated {
            inner: disk(cx, DISK_BYTES, BLOCK),
            gate: of_device,
        })
    });
    let mut disk = Disk::connect(rig.address, io);
    disk.write(NSID, 0, &[1; 512]);
    assert_eq!((gate.flushes(), gate.fua_writes()), (0, 0));
    disk.flush(NSID);
    assert_eq!((gate.flushes(), gate.fua_writes()), (1, 0));
    for len in [512, 64 << 10] {
        let done = disk.run(HostOp::Write { fua: true }, NSID, 0, &vec![2; len]);
        assert_eq!(done.status, Status::SUCCESS);
    }
    assert_eq!((gate.flushes(), gate.fua_writes()), (1, 2));
}

fn write_zeroes_zeroes_with_and_without_deallocation(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    for deallocate in [false, true] {
        let data = pattern(3, 64 << 10);
        disk.write(NSID, 0, &data);
        let status = disk.run_blocks(HostOp::WriteZeroes { deallocate }, NSID, 10, 50);
        assert_eq!(status, Status::SUCCESS);
        let mut expected = data;
        expected[10 * 512..60 * 512].fill(0);
        assert!(
            disk.read(NSID, 0, expected.len()) == expected,
            "deallocate: {deallocate}"
        );
    }
    // It transfers nothing, so MDTS does not limit it.
    let status = disk.run_blocks(HostOp::WriteZeroes { deallocate: false }, NSID, 0, 1 << 16);
    assert_eq!(status, Status::SUCCESS);
}

fn deallocated_blocks_read_as_zeroes(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    // An engine that promises nothing may leave anything there, but elsewhere it must not.
    let reads_zero = rig.geometry().deallocate == Deallocate::ReadsZero;
    assert_eq!(disk.namespace(NSID).deallocated_reads_zero, reads_zero);
    let data = pattern(4, 64 << 10);
    disk.write(NSID, 0, &data);
    assert_eq!(
        disk.run_blocks(HostOp::Deallocate, NSID, 16, 32),
        Status::SUCCESS
    );
    let released = 16 * 512..48 * 512;
    let mut expected = data;
    let mut found = disk.read(NSID, 0, expected.len());
    expected[released.clone()].fill(0);
    if !reads_zero {
        found[released].fill(0);
    }
    assert!(found == expected);
    // Far more than a transfer could hold.
    let blocks = u32::try_from(DISK_BYTES / 512).expect("a small disk");
    assert_eq!(
        disk.run_blocks(HostOp::Deallocate, NSID, 0, blocks),
        Status::SUCCESS
    );
    let mut found = disk.read(NSID, 0, expected.len()).into_iter();
    assert!(!reads_zero || found.all(|byte| byte == 0));
}

fn compare_tells_equal_from_different(io: IoBackend) {
    let rig = Rig::new(io);
    for digests in ALL_DIGESTS {
        let mut disk = Disk::with(
            rig.address,
            Options {
                io,
                digests,
                ..Options::default()
            },
        );
        for len in [512, 16_384, 65_536, MDTS] {
            let data = pattern(5, len);
            disk.write(NSID, 8, &data);
            assert_eq!(
                disk.run(HostOp::Compare, NSID, 8, &data).status,
                Status::SUCCESS
            );
            for at in [0, len / 2, len - 1] {
                let mut other = data.clone();
                other[at] ^= 1;
                let status = disk.run(HostOp::Compare, NSID, 8, &other).status;
                assert!(
                    status.same_code(Status::COMPARE_FAILURE),
                    "{len} bytes: {status}"
                );
            }
        }
    }
}

/// Writes once waited for buffers behind writes that waited for their end: none came.
fn more_large_writes_than_buffers_all_complete(io: IoBackend) {
    all_of_many_large_ones_complete(io, HostOp::Write { fua: false });
}

/// Compares once took all buffers for their hosts' data and waited for room for the devices'.
fn more_large_compares_than_buffers_all_complete(io: IoBackend) {
    all_of_many_large_ones_complete(io, HostOp::Compare);
}

fn all_of_many_large_ones_complete(io: IoBackend, op: HostOp) {
    let classes = vec![
        ClassConfig {
            bytes: 4096,
            count: 64,
        },
        ClassConfig {
            bytes: MDTS,
            count: 6,
        },
    ];
    let reactor = Config {
        io,
        pool: PoolConfig { classes },
        ..Config::default()
    };
    let rig = Rig::empty(reactor, TargetConfig::default());
    rig.add_subsystem(NQN, Hosts::Any);
    rig.add_disk(NQN, DISK_BYTES);
    let mut disks = [(); 6].map(|()| Disk::connect(rig.address, io));
    let data = pattern(7, MDTS);
    disks[0].write(NSID, 0, &data);
    for disk in &mut disks {
        for _ in 0..8 {
            assert!(disk.submit(op, NSID, 0, &data));
        }
        disk.turn();
    }
    until("all complete", || {
        for disk in &mut disks {
            disk.turn();
        }
        disks.iter().all(|disk| disk.in_flight() == 0).then_some(())
    });
    for disk in &mut disks {
        let done = disk.await_all();
        assert!(done.len() == 8 && done.iter().all(|done| done.status == Status::SUCCESS));
    }
    drop(disks);
    rig.await_connections(0);
    rig.await_free_pool();
}

fn transfers_of_exactly_mdts_pass(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    assert_eq!(
        disk.facts().transfer_bytes_max,
        u32::try_from(MDTS).expect("small")
    );
    let last = DISK_BYTES / u64::from(BLOCK) - u64::try_from(MDTS / 512).expect("small");
    let data = pattern(6, MDTS);
    disk.write(NSID, last, &data);
    assert!(disk.read(NSID, last, MDTS) == data);
}

fn full_queues_of_commands_are_outstanding_at_once_and_all_complete(io: IoBackend) {
    let gate = Arc::new(Gate::default());
    let of_device = Arc::clone(&gate);
    let rig = Rig::with_device_on(io, move |cx| {
        TestDevice::new(Gated {
            inner: disk(cx, DISK_BYTES, BLOCK),
            gate: of_device,
        })
    });
    let mut disk = Disk::with(
        rig.address,
        Options {
            io,
            queues: 2,
            ..Options::default()
        },
    );
    gate.set_closed(true);
    // One entry of each queue of 128 stays empty.
    let depth = 2 * 127;
    for index in 0..depth {
        let data = pattern(index, 4096);
        assert!(disk.submit(HostOp::Write { fua: false }, NSID, index * 8, &data));
    }
    let one_more = disk.submit(HostOp::Write { fua: false }, NSID, 0, &[0; 4096]);
    assert!(!one_more, "more commands than the queues have entries");
    disk.run_until("all are at the device", || gate.submitted() == depth);
    gate.set_closed(false);
    rig.call(|_, _, _| {});
    for done in disk.await_all() {
        assert_eq!(done.status, Status::SUCCESS);
    }
    for index in 0..depth {
        assert!(
            disk.read(NSID, index * 8, 4096) == pattern(index, 4096),
            "write {index}"
        );
    }
}

fn small_reads_overtake_a_slow_stream_of_large_ones(io: IoBackend) {
    let rig = Rig::new(io);
    let mut large = Disk::with(
        rig.address,
        Options {
            io,
            ..Options::default()
        },
    );
    let mut small = Disk::connect(rig.address, io);
    for index in 0..32 {
        assert!(large.submit_read(NSID, index * 2048, MDTS));
    }
    large.turn();
    // Nobody runs the host of the large reads, so its socket is full: others are served all the
    // same, and the large ones are whole in the end.
    for _ in 0..100 {
        assert_eq!(small.read(NSID, 0, 512).len(), 512);
    }
    assert!(
        large
            .await_all()
            .iter()
            .all(|done| done.status == Status::SUCCESS)
    );
    drop((large, small));
    until("buffers come back", || {
        rig.pool()
            .classes
            .iter()
            .all(|class| class.used == 0)
            .then_some(())
    });
}
