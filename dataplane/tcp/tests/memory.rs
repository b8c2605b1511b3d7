//! What a connection keeps on the heap while no command runs, counted by the allocator of the whole
//! process. Data lies in the pool and in the buffers of each connection's own, which are bounded
//! by themselves.

mod common;
#[path = "common/engine.rs"]
mod engine;

use std::alloc::System;
use std::io::Read;
use std::sync::Arc;

use bowline_block::{ClassConfig, PoolConfig};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos, Sgl};
use bowline_nvmf::host::command;
use bowline_nvmf::target::{Deadlines, Hosts, TargetConfig};
use bowline_reactor::{Config, IoBackend};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use common::device::{Gate, Gated, TestDevice, memory};
use common::harness::{self, Test};
use common::raw::{Raw, ic_req};
use common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use common::{is_permitted, until};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What a connection may keep.
const BYTES_MAX: usize = 64 << 10;

const NSID: NamespaceId = NamespaceId(1);

type Case = fn(IoBackend);

/// Tests and their names.
macro_rules! named {
    ($($case:ident),+ $(,)?) => { [$((stringify!($case), $case as Case)),+] };
}

fn main() {
    let mut tests: Vec<Test> = Vec::new();
    let cases = named!(
        connection_before_connect_keeps_at_most_64_kib,
        connection_that_sent_too_much_before_connect_keeps_at_most_64_kib,
        idle_admin_queue_keeps_at_most_64_kib,
        idle_queue_of_128_entries_keeps_at_most_64_kib,
        queue_of_128_entries_after_traffic_keeps_at_most_64_kib,
        queue_that_is_not_read_from_keeps_at_most_64_kib,
    );
    for io in [IoBackend::Uring, IoBackend::Epoll] {
        for (name, case) in cases {
            let name = format!("{io:?}::{name}").to_lowercase();
            let test = move || {
                if is_permitted(io) {
                    case(io);
                }
            };
            tests.push((name, Box::new(test)));
        }
    }
    harness::run(tests);
}

/// Bytes on the heap that are there since `region` began.
fn live_bytes(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}

fn check(what: &str, live: usize, count: usize) {
    let each = live / count;
    println!("{what}: {each} bytes each of {count}");
    assert!(each <= BYTES_MAX, "{what}: {each} bytes");
}

fn rig(io: IoBackend) -> Rig {
    let config = TargetConfig {
        deadlines: Deadlines {
            queue_id: Nanos::from_secs(3600),
            connect: Nanos::from_secs(3600),
            ..Deadlines::default()
        },
        ..TargetConfig::default()
    };
    Rig::with(io, bowline_reactor::PollMode::Adaptive, config)
}

fn connection_before_connect_keeps_at_most_64_kib(io: IoBackend) {
    let rig = rig(io);
    let mut peers = Vec::with_capacity(200);
    let region = Region::new(ALLOCATOR);
    for number in 0..200 {
        let mut peer = Raw::connect(rig.address);
        peer.send(&ic_req(Digests::NONE)[..if number % 2 == 0 { 100 } else { 128 }]);
        peers.push(peer);
    }
    rig.await_connections(200);
    check("before Connect", live_bytes(&region), peers.len());
}

/// Their Connect waits, and so does all that they send behind it.
fn connection_that_sent_too_much_before_connect_keeps_at_most_64_kib(io: IoBackend) {
    let rig = rig(io);
    let (mut admin, cntlid) = Raw::admin(rig.address, Digests::NONE);
    let mut first = Raw::initialized(rig.address, Digests::NONE);
    assert!(first.connect_queue(1, cntlid, 127).status.is_success());
    let mut peers = Vec::with_capacity(50);
    let mut wire = Vec::with_capacity(512 << 10);
    let region = Region::new(ALLOCATOR);
    for number in 1..=50 {
        let mut peer = Raw::initialized(rig.address, Digests::NONE);
        let connect = peer.connect_capsule(1, cntlid, 127);
        peer.send(&connect);
        until("its Connect waits", || {
            (connects(&rig) == 2 + number).then_some(())
        });
        wire.clear();
        let flush = peer.capsule(command::flush(NSID), None);
        while wire.len() < 256 << 10 {
            wire.extend_from_slice(&flush);
        }
        // As much as the socket takes.
        peer.stream.set_nonblocking(true).expect("an open socket");
        let _ = std::io::Write::write(&mut peer.stream, &wire);
        peers.push(peer);
    }
    until("all of them wait", || {
        (rig.usage().stalled == 50).then_some(())
    });
    check("too much before Connect", live_bytes(&region), peers.len());
    assert!(rig.work().carry_bytes_max <= 16 << 10);
    assert!(
        admin
            .command(command::keep_alive(), None)
            .status
            .is_success()
    );
}

/// Connects whose data has arrived.
fn connects(rig: &Rig) -> usize {
    rig.call(|target, _, _| {
        let connections = target.target().connections();
        let arrived = connections
            .iter()
            .filter(|it| it.counters.payload_rx_bytes > 0);
        arrived.count()
    })
}

fn idle_admin_queue_keeps_at_most_64_kib(io: IoBackend) {
    let rig = rig(io);
    let mut peers = Vec::with_capacity(100);
    let region = Region::new(ALLOCATOR);
    for _ in 0..100 {
        peers.push(Raw::admin(rig.address, Digests::NONE).0);
    }
    check(
        "idle admin queue and controller",
        live_bytes(&region),
        peers.len(),
    );
}

/// Queues of a few controllers.
fn io_queues(rig: &Rig, count: usize, peers: &mut Vec<Raw>) {
    for _ in 0..count / 50 {
        let (admin, cntlid) = Raw::admin(rig.address, Digests::NONE);
        for qid in 1..=50 {
            let mut peer = Raw::initialized(rig.address, Digests::NONE);
            assert!(peer.connect_queue(qid, cntlid, 127).status.is_success());
            peers.push(peer);
        }
        peers.push(admin);
    }
}

fn idle_queue_of_128_entries_keeps_at_most_64_kib(io: IoBackend) {
    let rig = rig(io);
    let mut peers = Vec::with_capacity(400);
    let region = Region::new(ALLOCATOR);
    io_queues(&rig, 200, &mut peers);
    let live = live_bytes(&region);
    check("idle I/O queue", live, peers.len());
    assert!(live / peers.len() > 1000, "the allocator does not count");
}

fn queue_of_128_entries_after_traffic_keeps_at_most_64_kib(io: IoBackend) {
    let rig = rig(io);
    let mut peers = Vec::with_capacity(400);
    let region = Region::new(ALLOCATOR);
    io_queues(&rig, 200, &mut peers);
    let read = command::read(NSID, 0, 7).with_sgl1(Sgl::transport(4096));
    let mut sink = vec![0; 64 << 10];
    let queues: Vec<usize> = (0..peers.len()).filter(|at| at % 51 != 50).collect();
    for &at in &queues {
        let batch: Vec<u8> = (0..120)
            .flat_map(|_| peers[at].capsule_with(read, &[]))
            .collect();
        peers[at].send(&batch);
    }
    for at in queues {
        let mut left: usize = 120 * (24 + 4096 + 24);
        while left > 0 {
            match peers[at].stream.read(&mut sink).expect("data") {
                0 => panic!("closed"),
                bytes => left = left.saturating_sub(bytes),
            }
        }
    }
    // What only traffic needs is given back by and by.
    until("memory is given back", || {
        rig.connections();
        (live_bytes(&region) / peers.len() <= BYTES_MAX).then_some(())
    });
    check("after traffic", live_bytes(&region), peers.len());
}

/// A small pool is in use and the device does not answer, so that nothing more is received.
fn queue_that_is_not_read_from_keeps_at_most_64_kib(io: IoBackend) {
    let class = |bytes, count| ClassConfig { bytes, count };
    let reactor = Config {
        io,
        pool: PoolConfig {
            classes: vec![class(4 << 10, 4), class(16 << 10, 4), class(1 << 20, 2)],
        },
        ..Config::default()
    };
    let rig = Rig::empty(reactor, TargetConfig::default());
    rig.add_subsystem(NQN, Hosts::Any);
    let gate = Arc::new(Gate::default());
    gate.set_closed(true);
    let shared = Arc::clone(&gate);
    rig.add_namespace(NQN, move || {
        TestDevice::new(Gated {
            inner: memory(DISK_BYTES, BLOCK),
            gate: shared,
        })
    });
    let mut peers = Vec::with_capacity(60);
    let write = command::write(NSID, 0, 31, false).with_sgl1(Sgl::in_capsule(16 << 10));
    let data = vec![7; 16 << 10];
    let region = Region::new(ALLOCATOR);
    io_queues(&rig, 50, &mut peers);
    for peer in peers.iter_mut().take(50) {
        let batch: Vec<u8> = (0..20)
            .flat_map(|_| peer.capsule_with(write, &data))
            .collect();
        peer.send(&batch);
    }
    until("nothing is received any more", || {
        (rig.usage().stalled == 50).then_some(())
    });
    check("not read from", live_bytes(&region), peers.len());
    assert!(rig.work().carry_bytes_max <= 16 << 10);
    assert_eq!(rig.usage().reserved, 50, "each has its own buffer in use");
    gate.set_closed(false);
    for peer in peers.iter_mut().take(50) {
        for _ in 0..20 {
            assert!(peer.await_status().is_success());
        }
    }
    assert_eq!(rig.usage().reserved, 0);
}
