//! Reads that are sent straight from a memory device, while others change what they read.

use std::collections::HashMap;

use bowline_block::{ClassConfig, PoolConfig};
use bowline_nvme::fabrics::Connect;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, QueueId, Sgl, Status};
use bowline_nvmf::host::command;
use bowline_nvmf::target::{Hosts, TargetConfig};
use bowline_reactor::{Config, IoBackend};
use socket2::SockRef;

use crate::common::initiator::Disk;
use crate::common::raw::{Raw, crc};
use crate::common::rig::{DISK_BYTES, HOST, NQN, Rig};
use crate::common::{on_both_backends, until, verdict};

on_both_backends!(
    reads_of_a_slow_host_are_neither_torn_nor_older_than_writes_before_them,
    digests_are_of_the_bytes_that_are_sent,
    reads_in_flight_outlive_their_namespace,
    commands_are_overtaken_only_by_what_was_outstanding_with_them,
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

/// Commands of all connections that the target has taken.
fn taken(rig: &Rig) -> u64 {
    rig.call(|target, _, _| {
        let connections = target.target().connections();
        connections.iter().map(|it| it.counters.commands).sum()
    })
}

/// An I/O queue whose socket takes little at a time, and its admin queue.
fn slow_host(rig: &Rig) -> (Raw, Raw) {
    let (host, admin) = Raw::io(rig.address, Digests::NONE);
    take_little(&host);
    (host, admin)
}

/// The same; each of its Reads is answered by its data alone.
fn slow_host_without_flow_control(rig: &Rig) -> (Raw, Raw) {
    let (admin, cntlid) = Raw::admin(rig.address, Digests::NONE);
    let mut host = Raw::initialized(rig.address, Digests::NONE);
    let connect = Connect {
        qid: QueueId(1),
        sqsize: 127,
        ..Connect::default()
    };
    let connect = connect.with_sq_flow_control_disabled(true).encode();
    let data = Raw::connect_data(cntlid, NQN, HOST);
    let cqe = host.command(connect, Some(&data));
    assert!(cqe.status.is_success(), "{}", cqe.status);
    take_little(&host);
    (host, admin)
}

fn take_little(host: &Raw) {
    SockRef::from(&host.stream)
        .set_recv_buffer_size(64 << 10)
        .expect("an open socket");
}

/// Asks for the first bytes of the namespace, and reads nothing of the answer.
fn ask(host: &mut Raw, count: usize) {
    let blocks = u16::try_from(READ_BYTES / 512 - 1).expect("a transfer");
    let read = command::read(NSID, 0, blocks);
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
    let (mut host, admin) = slow_host(&rig);
    for round in 0..4_u8 {
        let before = 1 + 20 * round;
        write_all(&mut disk, before);
        ask(&mut host, READS);
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
    ask(&mut host, READS);
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
    let (mut host, admin) = slow_host(&rig);
    let before = taken(&rig);
    ask(&mut host, READS);
    until("the Reads are taken", || {
        (taken(&rig) == before + READS as u64).then_some(())
    });
    // A device that works on its own may have answered nothing yet; those without room would be
    // refused before it has.
    until("the first answer", || host.stream.peek(&mut [0]).ok());
    let waiting = rig.call(|target, _, now| {
        let connections = target.target().connections();
        let removed = target.remove_namespace(now, NQN, NSID);
        removed.expect("it is there");
        connections.iter().map(|it| it.outstanding).max()
    });
    assert!(waiting > Some(1), "the sockets hold everything");
    rig.add_disk(NQN, DISK_BYTES);
    let statuses = take(&mut host, READS, |data, _| {
        data.chunks(ATOMIC_BYTES)
            .for_each(|unit| assert_eq!(version_of(unit), 7));
    });
    let gone = Status::INVALID_NAMESPACE.dnr();
    let is_known = |status: &Status| [Status::SUCCESS, gone].contains(status);
    assert!(statuses.iter().all(is_known), "{statuses:?}");
    // What had been read was on its way, with more behind it.
    assert_eq!(statuses[0], Status::SUCCESS, "nothing was in flight");
    drop((host, admin));
    disk.disconnect();
    rig.await_nothing_left();
}

/// Room that a send had left went to commands that had just arrived, not to those which had found
/// none. Some of these waited for as long as their host sent others. So that it cannot be otherwise
/// by chance, each new command is with the target before any more of an answer is taken.
fn commands_are_overtaken_only_by_what_was_outstanding_with_them(io: IoBackend) {
    /// What fills a gather.
    const GATHERED: usize = 8;
    const OUTSTANDING: usize = 12 * GATHERED;
    const ROUNDS: usize = 6;
    // Memory is not what they wait for.
    let class = |bytes, count| ClassConfig { bytes, count };
    let classes = vec![class(4096, 256), class(READ_BYTES, 1024)];
    let config = Config {
        io,
        pool: PoolConfig { classes },
        ..Config::default()
    };
    let rig = Rig::empty(config, TargetConfig::default());
    rig.add_subsystem(NQN, Hosts::Any);
    rig.add_disk(NQN, DISK_BYTES);
    let (mut host, admin) = slow_host_without_flow_control(&rig);
    let mut begun = HashMap::new();
    let read = |host: &mut Raw, ended: usize, begun: &mut HashMap<_, _>| {
        let before = taken(&rig);
        ask(host, 1);
        begun.insert(host.last_cid(), ended);
        until("the command is taken", || {
            (taken(&rig) > before).then_some(())
        });
    };
    for _ in 0..OUTSTANDING {
        read(&mut host, 0, &mut begun);
    }
    let mut most = 0;
    for ended in 0..ROUNDS * OUTSTANDING {
        let c2h = host.recv().expect("an answer").c2h();
        assert!(c2h.success, "its data answers a Read");
        let begun_at = begun.remove(&c2h.cccid).expect("outstanding");
        most = most.max(ended - begun_at);
        read(&mut host, ended + 1, &mut begun);
    }
    let oldest = begun.values().min().expect("some are outstanding");
    most = most.max(ROUNDS * OUTSTANDING - oldest);
    // Devices end what they have in an order of their own.
    assert!(most < 2 * OUTSTANDING, "overtaken by {most}");
    drop((host, admin));
    rig.await_nothing_left();
}
