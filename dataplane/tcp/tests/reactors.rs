//! Two reactors, a subsystem on each: wherever a connection comes in, it ends up with the owner.

mod common;
#[path = "common/engine.rs"]
mod engine;

use std::net::SocketAddr;

use bowline_nvme::fabrics::{PropertyGet, offset};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Status};
use bowline_nvmf::target::{Hosts, TargetConfig};
use bowline_reactor::{Config, IoBackend};

use common::initiator::{Disk, Options};
use common::raw::Raw;
use common::rig::{DISK_BYTES, Rig};
use common::{on_both_backends, pattern};

on_both_backends!(
    connections_on_either_listener_reach_the_owner,
    many_connections_move_at_once_under_load,
    large_writes_follow_their_connection,
    bytes_sent_behind_connect_move_with_it,
    subsystem_that_no_reactor_owns_is_refused_where_it_was_asked_for,
);

const NQNS: [&str; 2] = [
    "nqn.2026-11.io.bowline:test:left",
    "nqn.2026-11.io.bowline:test:right",
];
const NSID: NamespaceId = NamespaceId(1);

/// Each owns one of the subsystems, and knows where the other is.
fn two_reactors(io: IoBackend) -> [Rig; 2] {
    let rigs = NQNS.map(|nqn| {
        let reactor = Config {
            io,
            ..Config::default()
        };
        let rig = Rig::empty(reactor, TargetConfig::default());
        rig.add_subsystem(nqn, Hosts::Any);
        rig.add_disk(nqn, DISK_BYTES);
        rig
    });
    for (here, there) in [(0, 1), (1, 0)] {
        let mailbox = rigs[there].mailbox();
        rigs[here].call(move |target, _, _| target.set_route(NQNS[there].to_owned(), mailbox));
    }
    rigs
}

fn connect(address: SocketAddr, io: IoBackend, subnqn: &'static str, digests: Digests) -> Disk {
    Disk::with(
        address,
        Options {
            io,
            queues: 2,
            digests,
            subnqn,
            ..Options::default()
        },
    )
}

fn connections_on_either_listener_reach_the_owner(io: IoBackend) {
    let rigs = two_reactors(io);
    for digests in [
        Digests::NONE,
        Digests {
            header: true,
            data: true,
        },
    ] {
        for (owner, subnqn) in NQNS.into_iter().enumerate() {
            let mut disks = [0, 1].map(|door| connect(rigs[door].address, io, subnqn, digests));
            // An admin queue and two I/O queues through each door.
            assert_eq!(rigs[owner].connections(), 6, "{subnqn}, {digests:?}");
            assert_eq!(rigs[1 - owner].connections(), 0, "{subnqn}, {digests:?}");
            for (door, seed) in [(0, 1), (1, 2)] {
                for (lba, len) in [(0, 512), (100, 16_384), (1000, 128 << 10), (4000, 1 << 20)] {
                    let data = pattern(seed + lba, len);
                    disks[door].write(NSID, lba, &data);
                    let read = disks[1 - door].read(NSID, lba, len);
                    assert!(read == data, "{len} bytes through door {door}, {digests:?}");
                }
            }
            disks.iter_mut().for_each(Disk::disconnect);
            rigs[owner].await_connections(0);
        }
    }
    rigs.iter().for_each(Rig::await_free_pool);
}

fn many_connections_move_at_once_under_load(io: IoBackend) {
    let rigs = two_reactors(io);
    let addresses = [0, 1].map(|door| rigs[door].address);
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            std::thread::spawn(move || {
                let door = usize::try_from(thread % 2).expect("small");
                for round in 0..8 {
                    let subnqn = NQNS[usize::try_from((thread / 2 + round) % 2).expect("small")];
                    let mut disk = connect(addresses[door], io, subnqn, Digests::NONE);
                    let lba = thread * 1000;
                    let data = pattern(thread * 100 + round, 32 << 10);
                    disk.write(NSID, lba, &data);
                    assert!(disk.read(NSID, lba, data.len()) == data);
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().expect("every round succeeds"));
    for rig in &rigs {
        rig.await_connections(0);
        rig.await_free_pool();
    }
}

fn large_writes_follow_their_connection(io: IoBackend) {
    let rigs = two_reactors(io);
    let mut disk = connect(
        rigs[0].address,
        io,
        NQNS[1],
        Digests {
            header: true,
            data: true,
        },
    );
    let before = rigs[0].counters();
    for index in 0..16 {
        let data = pattern(index, 1 << 20);
        disk.write(NSID, index * 2048, &data);
        assert!(disk.read(NSID, index * 2048, data.len()) == data);
    }
    // After the move no byte of it touches the first reactor any more.
    let after = rigs[0].counters();
    assert_eq!(after.recv_bytes, before.recv_bytes);
    assert_eq!(after.send_bytes, before.send_bytes);
}

fn bytes_sent_behind_connect_move_with_it(io: IoBackend) {
    let rigs = two_reactors(io);
    for part in [1, 8, 40, 71] {
        let mut raw = Raw::initialized(rigs[0].address, Digests::NONE);
        // Connect, and the beginning of a command that does not wait for its answer.
        let connect = raw.connect_capsule_to(NQNS[1]);
        let connect_cid = raw.last_cid();
        let property = PropertyGet::qword(offset::CAP).encode();
        let early = raw.capsule(property, None);
        raw.send(&[&connect, &early[..part]].concat());
        let first = raw.recv().expect("an answer").cqe();
        assert_eq!((first.cid, first.status), (connect_cid, Status::SUCCESS));
        raw.send(&early[part..]);
        let second = raw.recv().expect("an answer").cqe();
        assert_eq!(
            (second.cid, second.status),
            (raw.last_cid(), Status::SUCCESS)
        );
        assert!(second.result > 0, "CAP is never 0");
        assert_eq!(
            (rigs[0].connections(), rigs[1].connections()),
            (0, 1),
            "{part} bytes"
        );
        drop(raw);
        rigs[1].await_connections(0);
    }
}

fn subsystem_that_no_reactor_owns_is_refused_where_it_was_asked_for(io: IoBackend) {
    let rigs = two_reactors(io);
    let removed = rigs[1].call(|target, _, now| target.remove_subsystem(now, NQNS[1]));
    removed.expect("it is there");
    for door in [0, 1] {
        // The first reactor still sends them over; the second says no.
        let options = Options {
            io,
            subnqn: NQNS[1],
            ..Options::default()
        };
        assert!(Disk::try_with(rigs[door].address, options).is_err());
    }
    rigs[0].call(|target, _, _| target.clear_route(NQNS[1]));
    let options = Options {
        io,
        subnqn: NQNS[1],
        ..Options::default()
    };
    assert!(Disk::try_with(rigs[0].address, options).is_err());
    let mut other = connect(rigs[1].address, io, NQNS[0], Digests::NONE);
    other.flush(NSID);
}
