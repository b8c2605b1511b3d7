//! Copy and Verify: the target works on the medium by itself, and says truthfully what it found.
//! [NVM-1.0 §3.2.2], [NVM-1.0 §3.2.5]

use std::sync::Arc;

use bowline_block::{ErrorRates, Geometry};
use bowline_nvme::identify::cns;
use bowline_nvme::nvm::CopyRange;
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::{NamespaceId, Sqe, Status};
use bowline_nvmf::host::command;
use bowline_reactor::IoBackend;

use crate::common::device::{Shaped, TestDevice, Wear, Worn, memory};
use crate::common::initiator::{Bystander, Disk};
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{on_both_backends, pattern};
use crate::engine::{disk, own_devices};

on_both_backends!(
    copy_puts_its_sources_in_a_row_and_touches_nothing_else,
    copy_that_overlaps_is_refused_and_writes_nothing,
    copy_is_limited_as_identify_says,
    copy_beyond_the_end_or_without_its_list_is_refused,
    copy_to_a_read_only_namespace_is_refused_and_verify_is_not,
);
own_devices!(
    copy_tells_of_errors_of_either_side_and_stops_there,
    verify_reads_the_medium_and_tells_of_its_errors,
);

const NSID: NamespaceId = NamespaceId(1);
const BLOCKS: u64 = DISK_BYTES / BLOCK as u64;
const ALWAYS: u32 = 1_000_000;

const READS_FAIL: ErrorRates = ErrorRates {
    read_per_million: ALWAYS,
    write_per_million: 0,
    flush_per_million: 0,
    deallocate_per_million: 0,
};

const WRITES_FAIL: ErrorRates = ErrorRates {
    read_per_million: 0,
    write_per_million: ALWAYS,
    flush_per_million: 0,
    deallocate_per_million: 0,
};

/// Blocks that one step of a Copy or Verify is about.
const PART: u32 = (128 << 10) / BLOCK;

fn copy(disk: &mut Disk, nsid: NamespaceId, to: u64, sources: &[(u64, u32)]) -> Status {
    let list: Vec<u8> = sources
        .iter()
        .flat_map(|&(slba, blocks)| CopyRange { slba, blocks }.encode())
        .collect();
    let last = u8::try_from(sources.len() - 1).expect("few");
    let sqe = Sqe::new(opcode::COPY).with_nsid(nsid).with_copy(to, last);
    disk.run_raw(sqe, &list)
}

fn verify(disk: &mut Disk, nsid: NamespaceId, lba: u64, blocks: u32) -> Status {
    let nlb = u16::try_from(blocks - 1).expect("16 bits");
    let sqe = Sqe::new(opcode::VERIFY)
        .with_nsid(nsid)
        .with_slba(lba)
        .with_nlb(nlb);
    disk.run_raw(sqe, &[])
}

fn bytes(blocks: u32) -> usize {
    blocks as usize * BLOCK as usize
}

/// A target whose second namespace fails when the test wants, and whose first is in memory.
fn worn(io: IoBackend) -> (Rig, Arc<Wear>, NamespaceId) {
    let rig = Rig::new(io);
    let wear = Arc::new(Wear::default());
    let of_device = Arc::clone(&wear);
    let nsid = rig.add_namespace(NQN, move || {
        TestDevice::new(Worn::new(memory(DISK_BYTES, BLOCK), of_device))
    });
    (rig, wear, nsid)
}

fn copy_puts_its_sources_in_a_row_and_touches_nothing_else(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let mut disk = Disk::connect(rig.address, io);
    let blocks = 4096_u32;
    let mut model = pattern(1, bytes(blocks));
    for (lba, data) in (0..).step_by(2048).zip(model.chunks(1 << 20)) {
        disk.write(NSID, lba, data);
    }
    let cases: [(u64, &[(u64, u32)]); 5] = [
        (10, &[(11, 1)]),
        (1000, &[(0, PART), (3000, 1), (500, PART - 1), (0, 3)]),
        (2048, &[(100, 3 * PART + 1)]),
        // The same block again and again.
        (4000, &[(7, 1); 96]),
        // Just up to the destination, and from its end on.
        (2000, &[(1990, 10), (2020, 10)]),
    ];
    for (to, sources) in cases {
        assert_eq!(copy(&mut disk, NSID, to, sources), Status::SUCCESS);
        let mut at = usize::try_from(to).expect("small") * BLOCK as usize;
        for &(slba, count) in sources {
            let from = usize::try_from(slba).expect("small") * BLOCK as usize;
            model.copy_within(from..from + bytes(count), at);
            at += bytes(count);
        }
        for (lba, expected) in (0..).step_by(2048).zip(model.chunks(1 << 20)) {
            let found = disk.read(NSID, lba, expected.len());
            assert!(found == expected, "blocks from {lba} after a copy to {to}");
        }
    }
    bystander.await_progress("beside copies");
    bystander.stop();
    drop(disk);
    rig.await_free_pool();
}

fn copy_that_overlaps_is_refused_and_writes_nothing(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    let data = pattern(2, 64 << 10);
    disk.write(NSID, 0, &data);
    let overlaps: [(u64, &[(u64, u32)]); 4] = [
        (20, &[(20, 1)]),
        (20, &[(16, 8)]),
        (20, &[(27, 8)]),
        // Of the second source with what the first has moved the destination's end to.
        (20, &[(0, 8), (27, 1)]),
    ];
    for (to, sources) in overlaps {
        let status = copy(&mut disk, NSID, to, sources);
        assert_eq!(status, Status::OVERLAPPING_RANGE.dnr(), "{sources:?}");
        assert!(disk.read(NSID, 0, data.len()) == data, "{sources:?}");
    }
}

fn copy_is_limited_as_identify_says(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    let identify = disk
        .admin(command::identify(cns::NAMESPACE, NSID), 4096)
        .data;
    // MSSRL, MCL, MSRC. [NVM-1.0 §4.1.5.1]
    let mssrl = u32::from(u16::from_le_bytes([identify[74], identify[75]]));
    let mcl = u32::from_le_bytes([identify[76], identify[77], identify[78], identify[79]]);
    let msrc = usize::from(identify[80]) + 1;
    assert!(mssrl >= PART && mcl >= mssrl && msrc > 1);
    let data = pattern(3, 512);
    disk.write(NSID, u64::from(mssrl) - 1, &data);
    let to = BLOCKS - u64::from(mcl);
    let too_long = Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr();
    assert_eq!(copy(&mut disk, NSID, to, &[(0, mssrl + 1)]), too_long);
    let whole = vec![(0, mssrl); usize::try_from(mcl / mssrl).expect("few")];
    let over = [whole.as_slice(), &[(0, 1)]].concat();
    assert_eq!(copy(&mut disk, NSID, to, &over), too_long);
    let many = vec![(0, 1); msrc + 1];
    assert_eq!(copy(&mut disk, NSID, to, &many), too_long);
    let at = to + u64::from(mssrl) - 1;
    assert!(disk.read(NSID, at, 512).iter().all(|byte| *byte == 0));
    assert_eq!(copy(&mut disk, NSID, to, &whole), Status::SUCCESS);
    assert!(disk.read(NSID, at, 512) == data);
    let last = u64::from(mssrl) - 1;
    let most = vec![(last, 1); msrc];
    assert_eq!(copy(&mut disk, NSID, to, &most), Status::SUCCESS);
    assert!(disk.read(NSID, to + 127, 512) == data);
}

fn copy_beyond_the_end_or_without_its_list_is_refused(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    disk.write(NSID, 0, &[5; 4096]);
    let out = Status::LBA_OUT_OF_RANGE.dnr();
    for (to, source) in [
        (BLOCKS - 1, (0, 2)),
        (u64::MAX, (0, 1)),
        (100, (BLOCKS - 1, 2)),
        (100, (u64::MAX, 1)),
    ] {
        // A good source before the bad one is not copied either.
        let status = copy(&mut disk, NSID, to, &[(0, 1), source]);
        assert_eq!(status, out, "{source:?} to {to}");
    }
    assert!(disk.read(NSID, 100, 512).iter().all(|byte| *byte == 0));
    let sqe = Sqe::new(opcode::COPY).with_nsid(NSID).with_copy(100, 1);
    let short = CopyRange { slba: 0, blocks: 1 }.encode();
    let status = disk.run_raw(sqe, &short);
    assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID.dnr());
    let status = disk.run_raw(sqe.with_cdw(12, 0x0100), &short);
    assert_eq!(status, Status::INVALID_FIELD.dnr(), "another format");
}

fn copy_to_a_read_only_namespace_is_refused_and_verify_is_not(io: IoBackend) {
    let rig = Rig::with_device_on(io, |cx| {
        let shape = |geometry: &mut Geometry| geometry.read_only = true;
        TestDevice::new(Shaped {
            inner: disk(cx, DISK_BYTES, BLOCK),
            shape,
        })
    });
    let mut disk = Disk::connect(rig.address, io);
    let status = copy(&mut disk, NSID, 100, &[(0, 8)]);
    assert_eq!(status, Status::NAMESPACE_WRITE_PROTECTED.dnr());
    assert_eq!(verify(&mut disk, NSID, 0, 8), Status::SUCCESS);
}

fn copy_tells_of_errors_of_either_side_and_stops_there(io: IoBackend) {
    let (rig, wear, nsid) = worn(io);
    let bystander = Bystander::start(rig.address);
    let mut disk = Disk::connect(rig.address, io);
    let part = bytes(PART);
    let source = pattern(4, 3 * part);
    disk.write(nsid, 0, &source);
    // A part is a read and a write: how many parts are done before the error.
    for (spared, errors, expected, done) in [
        (0, READS_FAIL, Status::UNRECOVERED_READ, 0),
        (2, READS_FAIL, Status::UNRECOVERED_READ, 1),
        (1, WRITES_FAIL, Status::WRITE_FAULT, 0),
        (5, WRITES_FAIL, Status::WRITE_FAULT, 2),
    ] {
        let to = 8192;
        let old = pattern(5, 3 * part);
        disk.write(nsid, to, &old);
        wear.set(spared, errors);
        let status = copy(&mut disk, nsid, to, &[(0, 3 * PART)]);
        assert_eq!(status, expected, "after {spared}");
        wear.set(0, ErrorRates::default());
        let found = disk.read(nsid, to, 3 * part);
        assert!(found[..done * part] == source[..done * part]);
        assert!(found[done * part..] == old[done * part..], "it went on");
        assert_eq!(copy(&mut disk, nsid, to, &[(0, 3 * PART)]), Status::SUCCESS);
        assert!(disk.read(nsid, to, 3 * part) == source);
    }
    bystander.await_progress("beside failing copies");
    bystander.stop();
    drop(disk);
    rig.await_free_pool();
}

fn verify_reads_the_medium_and_tells_of_its_errors(io: IoBackend) {
    let (rig, wear, nsid) = worn(io);
    let bystander = Bystander::start(rig.address);
    let mut disk = Disk::connect(rig.address, io);
    let blocks = 2 * PART + 3;
    assert_eq!(verify(&mut disk, nsid, 5, blocks), Status::SUCCESS);
    // An error in any of its three parts is found, and no further one is looked for.
    for spared in 0..3 {
        wear.set(spared, READS_FAIL);
        let status = verify(&mut disk, nsid, 5, blocks);
        assert_eq!(status, Status::UNRECOVERED_READ, "after {spared}");
    }
    wear.set(3, READS_FAIL);
    assert_eq!(verify(&mut disk, nsid, 5, blocks), Status::SUCCESS);
    wear.set(0, WRITES_FAIL);
    assert_eq!(verify(&mut disk, nsid, 5, blocks), Status::SUCCESS);
    let out = Status::LBA_OUT_OF_RANGE.dnr();
    assert_eq!(verify(&mut disk, nsid, BLOCKS - 1, 2), out);
    bystander.await_progress("beside failing verifies");
    bystander.stop();
    drop(disk);
    rig.await_free_pool();
}
