//! What cannot be done is refused with the right status, and nothing else happens.

use bowline_block::{ErrorRates, FaultDevice, FaultPlan, Latency};
use bowline_nvme::{NamespaceId, Nanos, Sgl, Status};
use bowline_nvmf::host::command;
use bowline_reactor::IoBackend;
use bowline_tcp::host::HostOp;

use crate::common::device::{Shaped, TestDevice, memory};
use crate::common::initiator::Disk;
use crate::common::on_both_backends;
use crate::common::raw::Raw;
use crate::common::rig::{BLOCK, DISK_BYTES, Rig};
use crate::engine::{disk, own_devices};

on_both_backends!(
    ranges_beyond_the_end_are_refused_for_good,
    transfers_beyond_mdts_are_refused,
    absent_namespaces_are_refused_for_good,
    read_only_namespace_refuses_what_modifies,
);
own_devices!(
    media_errors_become_media_statuses,
    slow_device_delays_and_loses_nothing,
);

const NSID: NamespaceId = NamespaceId(1);
const BLOCKS: u64 = DISK_BYTES / BLOCK as u64;

fn ranges_beyond_the_end_are_refused_for_good(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    disk.write(NSID, BLOCKS - 1, &[9; 512]);
    for lba in [BLOCKS, BLOCKS - 1, u64::MAX, u64::MAX - 1] {
        let expected = Status::LBA_OUT_OF_RANGE.dnr();
        for op in [HostOp::Write { fua: false }, HostOp::Compare] {
            assert_eq!(
                disk.run(op, NSID, lba, &[1; 1024]).status,
                expected,
                "{op:?} at {lba}"
            );
        }
        assert_eq!(
            disk.try_read(NSID, lba, 1024),
            Err(expected),
            "Read at {lba}"
        );
        for op in [HostOp::WriteZeroes { deallocate: true }, HostOp::Deallocate] {
            assert_eq!(
                disk.run_blocks(op, NSID, lba, 2),
                expected,
                "{op:?} at {lba}"
            );
        }
    }
    assert_eq!(
        disk.read(NSID, BLOCKS - 1, 512),
        [9; 512],
        "the last block is untouched"
    );
}

fn transfers_beyond_mdts_are_refused(io: IoBackend) {
    let rig = Rig::new(io);
    // Our host does not send such a thing.
    let (mut raw, _admin) = Raw::io(rig.address, Default::default());
    let bytes = (1 << 20) + 512;
    for sqe in [
        command::read(NSID, 0, 2048),
        command::write(NSID, 0, 2048, false),
    ] {
        let capsule = raw.capsule_with(sqe.with_sgl1(Sgl::transport(bytes)), &[]);
        raw.send(&capsule);
        assert_eq!(
            raw.await_status(),
            Status::INVALID_FIELD.dnr(),
            "opcode {}",
            sqe.opcode()
        );
    }
}

fn absent_namespaces_are_refused_for_good(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    let expected = Status::INVALID_NAMESPACE.dnr();
    for nsid in [NamespaceId(2), NamespaceId(u32::MAX - 1), NamespaceId::NONE] {
        assert_eq!(disk.try_read(nsid, 0, 512), Err(expected), "{nsid}");
        let write = disk.run(HostOp::Write { fua: false }, nsid, 0, &[1; 512]);
        assert_eq!(write.status, expected, "{nsid}");
    }
}

fn read_only_namespace_refuses_what_modifies(io: IoBackend) {
    let rig = Rig::with_device_on(io, |cx| {
        let shape = |geometry: &mut bowline_block::Geometry| geometry.read_only = true;
        TestDevice::new(Shaped {
            inner: disk(cx, DISK_BYTES, BLOCK),
            shape,
        })
    });
    let mut disk = Disk::connect(rig.address, io);
    assert!(disk.namespace(NSID).read_only);
    let expected = Status::NAMESPACE_WRITE_PROTECTED.dnr();
    // In the capsule and after what would be an R2T.
    for len in [512, 64 << 10] {
        let write = disk.run(HostOp::Write { fua: false }, NSID, 0, &vec![1; len]);
        assert_eq!(write.status, expected, "{len} bytes");
    }
    for op in [
        HostOp::WriteZeroes { deallocate: false },
        HostOp::Deallocate,
    ] {
        assert_eq!(disk.run_blocks(op, NSID, 0, 8), expected, "{op:?}");
    }
    assert!(disk.read(NSID, 0, 64 << 10).iter().all(|byte| *byte == 0));
    disk.flush(NSID);
}

fn media_errors_become_media_statuses(io: IoBackend) {
    const ALWAYS: u32 = 1_000_000;
    let failing = |errors| {
        Rig::with_device(io, move || {
            let plan = FaultPlan {
                errors,
                ..FaultPlan::default()
            };
            TestDevice::new(FaultDevice::new(memory(DISK_BYTES, BLOCK), plan).expect("memory"))
        })
    };
    let reads = failing(ErrorRates {
        read_per_million: ALWAYS,
        ..ErrorRates::default()
    });
    let mut disk = Disk::connect(reads.address, io);
    for len in [512, 1 << 20] {
        disk.write(NSID, 0, &vec![3; len]);
        assert_eq!(disk.try_read(NSID, 0, len), Err(Status::UNRECOVERED_READ));
        let compare = disk.run(HostOp::Compare, NSID, 0, &vec![3; len]);
        assert_eq!(compare.status, Status::UNRECOVERED_READ);
    }
    let writes = failing(ErrorRates {
        write_per_million: ALWAYS,
        flush_per_million: ALWAYS,
        deallocate_per_million: ALWAYS,
        ..ErrorRates::default()
    });
    let mut disk = Disk::connect(writes.address, io);
    for len in [512, 1 << 20] {
        let write = disk.run(HostOp::Write { fua: false }, NSID, 0, &vec![3; len]);
        assert_eq!(write.status, Status::WRITE_FAULT);
        assert!(disk.read(NSID, 0, len).iter().all(|byte| *byte == 0));
    }
    for op in [
        HostOp::Flush,
        HostOp::WriteZeroes { deallocate: true },
        HostOp::Deallocate,
    ] {
        assert_eq!(
            disk.run_blocks(op, NSID, 0, 8),
            Status::WRITE_FAULT,
            "{op:?}"
        );
    }
    drop(disk);
    reads.await_free_pool();
    writes.await_free_pool();
}

fn slow_device_delays_and_loses_nothing(io: IoBackend) {
    let rig = Rig::with_device(io, || {
        let latency = Latency::Uniform {
            min: Nanos::ZERO,
            max: Nanos::from_millis(3),
        };
        let plan = FaultPlan {
            seed: 11,
            read_latency: latency,
            write_latency: latency,
            flush_latency: latency,
            ..FaultPlan::default()
        };
        TestDevice::new(FaultDevice::new(memory(DISK_BYTES, BLOCK), plan).expect("memory"))
    });
    let mut disk = Disk::connect(rig.address, io);
    for round in 0..8 {
        for index in 0..32 {
            let data = crate::common::pattern(round * 32 + index, 4096);
            assert!(disk.submit(HostOp::Write { fua: false }, NSID, index * 8, &data));
        }
        assert!(
            disk.await_all()
                .iter()
                .all(|done| done.status == Status::SUCCESS)
        );
        disk.flush(NSID);
        for index in 0..32 {
            let expected = crate::common::pattern(round * 32 + index, 4096);
            assert!(
                disk.read(NSID, index * 8, 4096) == expected,
                "round {round}, write {index}"
            );
        }
    }
}
