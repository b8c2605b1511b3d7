//! Reads that are sent straight from a memory device, while others change what they read.

use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Sgl, Status};
use bowline_nvmf::host::command;
use bowline_reactor::IoBackend;

use crate::common::initiator::Disk;
use crate::common::raw::{Raw, crc};
use crate::common::rig::{DISK_BYTES, NQN, Rig};
use crate::common::{on_both_backends, verdict};

on_both_backends!(
    reads_of_a_slow_host_are_neither_torn_nor_older_than_writes_before_them,
    digests_are_of_the_bytes_that_are_sent,
    reads_in_flight_outlive_their_namespace,
);

const NSID: NamespaceId = NamespaceId(1);

/// What a memory device promises to read and write as one.
const ATOMIC_BYTES: usize = 4096;

/// Bytes of each Read, of which several are gathered, and how many a slow host has outstanding: more
/// than sockets hold.
const READ_BYTES: usize = 128 << 10;
const READS: usize = 100;

/// What an atomic unit holds, all of which was written at once.
fn version_of(unit: &[u8]) -> u8 {
    assert!(unit[1..] == unit[..unit.len() - 1], "a torn unit");
    unit[0]
}

/// Asks for the first bytes of the namespace, and reads nothing of the answer.
fn ask(host: &mut Raw, nsid: NamespaceId, count: usize) {
    let blocks = u16::try_from(READ_BYTES / 512 - 1).expect("a transfer");
    let read = command::read(nsid, 0, blocks);
    let length = u32::try_from(READ_BYTES).expect("a transfer");
    let all: Vec<u8> = (0..count)
        .flat_map(|_| host.capsule_with(read.with_sgl1(Sgl::transport(length)), &[]))
        .collect();
    host.send(&all);
}

/// Receives until `count` commands have ended; `data` sees each PDU's data, and its digest.
fn take(host: &mut Raw, count: usize, mut data: impl FnMut(&[u8], &[u8])) -> Vec<Status> {
    let mut ended = Vec::new();
    while ended.len() < count {
        let pdu = host.recv().expect("an answer");
        if pdu.kind() == 0x05 {
            ended.push(verdict(pdu.cqe().status));
            continue;
        }
        let c2h = pdu.c2h();
        let start = usize::from(pdu.bytes[3]);
        let end = start + c2h.datal as usize;
        data(&pdu.bytes[start..end], &pdu.bytes[end..]);
        if c2h.success {
            ended.push(Status::SUCCESS);
        }
    }
    ended
}

fn write_all(disk: &mut Disk, version: u8) {
    disk.write(NSID, 0, &vec![version; READ_BYTES]);
}

fn reads_of_a_slow_host_are_neither_torn_nor_older_than_writes_before_them(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    let (mut host, admin) = Raw::io(rig.address, Digests::NONE);
    for round in 0..4_u8 {
        let before = 1 + 20 * round;
        write_all(&mut disk, before);
        ask(&mut host, NSID, READS);
        // The device is changed while the reads wait for their host.
        for version in before + 1..before + 15 {
            write_all(&mut disk, version);
        }
        let statuses = take(&mut host, READS, |data, _| {
            for unit in data.chunks(ATOMIC_BYTES) {
                let version = version_of(unit);
                assert!((before..before + 15).contains(&version), "{version}");
            }
        });
        assert!(statuses.iter().all(|status| *status == Status::SUCCESS));
    }
    let partial = rig.counters().sends_partial;
    assert!(partial > 0, "every send was whole: nothing was tried");
    drop((host, admin));
    disk.disconnect();
    rig.await_nothing_left();
}

fn digests_are_of_the_bytes_that_are_sent(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    let digests = Digests {
        header: false,
        data: true,
    };
    let (mut host, admin) = Raw::io(rig.address, digests);
    write_all(&mut disk, 1);
    ask(&mut host, NSID, READS);
    for version in 2..10 {
        write_all(&mut disk, version);
    }
    let statuses = take(&mut host, READS, |data, digest| {
        assert_eq!(crc(data), digest, "digest of other bytes");
        data.chunks(ATOMIC_BYTES).for_each(|unit| {
            version_of(unit);
        });
    });
    assert!(statuses.iter().all(|status| *status == Status::SUCCESS));
    drop((host, admin));
    disk.disconnect();
    rig.await_nothing_left();
}

fn reads_in_flight_outlive_their_namespace(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::connect(rig.address, io);
    write_all(&mut disk, 7);
    let (mut host, admin) = Raw::io(rig.address, Digests::NONE);
    ask(&mut host, NSID, READS);
    rig.call(|target, _, now| target.remove_namespace(now, NQN, NSID))
        .expect("it is there");
    rig.add_memory(NQN, DISK_BYTES);
    let statuses = take(&mut host, READS, |data, _| {
        data.chunks(ATOMIC_BYTES)
            .for_each(|unit| assert_eq!(version_of(unit), 7));
    });
    let gone = Status::INVALID_NAMESPACE.dnr();
    let is_known = |status: &Status| [Status::SUCCESS, gone].contains(status);
    assert!(statuses.iter().all(is_known), "{statuses:?}");
    drop((host, admin));
    disk.disconnect();
    rig.await_nothing_left();
}
