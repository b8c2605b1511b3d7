//! Many peers that each keep a little of a small pool: everybody still gets on.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::io::Read as _;
use std::time::{Duration, Instant};

use bowline_block::{ClassConfig, IoBuf, PoolConfig};
use bowline_nvme::Nanos;
use bowline_nvme::Sgl;
use bowline_nvme::pdu::Digests;
use bowline_nvmf::host::command;
use bowline_nvmf::target::{Deadlines, Hosts, TargetConfig};
use bowline_reactor::{Config, IoBackend, PollMode};

use super::{NSID, changed_data, deadlines, granted, write_sqe};
use crate::common::device::{Shaped, TestDevice};
use crate::common::initiator::{Bystander, Disk};
use crate::common::raw::Raw;
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{DEADLINE, on_both_backends, pattern, until};
use crate::engine::disk;

on_both_backends!(
    peers_that_stop_within_a_capsule_leave_enough_for_others,
    transfers_move_in_parts_while_peers_hold_the_pool,
    command_that_ended_as_it_got_its_buffer_is_answered_at_once,
    peers_that_trickle_are_closed_though_they_never_pause,
    orderly_end_does_not_wait_for_a_peer_that_does_not_read,
);

/// Few buffers of each size: forty connections want more of any.
fn small_pool(io: IoBackend) -> Config {
    let class = |bytes, count| ClassConfig { bytes, count };
    let classes = vec![
        class(4 << 10, 16),
        class(16 << 10, 16),
        class(128 << 10, 4),
        class(1 << 20, 2),
    ];
    Config {
        io,
        pool: PoolConfig { classes },
        ..Config::default()
    }
}

fn rig_with_small_pool(io: IoBackend) -> Rig {
    let rig = Rig::empty(small_pool(io), TargetConfig::default());
    rig.add_subsystem(NQN, Hosts::Any);
    rig.add_disk(NQN, DISK_BYTES);
    rig
}

/// Forty queues of one host.
fn queues(rig: &Rig) -> (Raw, Vec<Raw>) {
    let (admin, cntlid) = Raw::admin(rig.address, Digests::NONE);
    let queues = (1..=40).map(|qid| {
        let mut queue = Raw::initialized(rig.address, Digests::NONE);
        assert!(queue.connect_queue(qid, cntlid, 127).status.is_success());
        queue
    });
    let queues = queues.collect();
    (admin, queues)
}

fn check_disk(rig: &Rig, io: IoBackend) {
    let mut disk = Disk::connect(rig.address, io);
    for (seed, len) in [(1, 4096), (2, 32 << 10), (3, 1 << 20), (4, 1 << 20)] {
        let data = pattern(seed, len);
        disk.write(NSID, 8192, &data);
        assert!(disk.read(NSID, 8192, len) == data, "{len} bytes");
    }
    disk.disconnect();
}

fn peers_that_stop_within_a_capsule_leave_enough_for_others(io: IoBackend) {
    let rig = rig_with_small_pool(io);
    let bystander = Bystander::start(rig.address);
    let (admin, mut peers) = queues(&rig);
    for peer in &mut peers {
        let data = [7; 16 << 10];
        let write = write_sqe(16 << 10).with_sgl1(Sgl::in_capsule(16 << 10));
        let capsule = peer.capsule_with(write, &data);
        peer.send(&capsule[..100]);
    }
    until("every peer has a buffer", || {
        let reserved = rig.usage().reserved;
        let used: usize = rig.pool().classes.iter().map(|class| class.used).sum();
        (used + reserved >= 40).then_some(())
    });
    for _ in 0..10 {
        bystander.await_progress("peers stop within a capsule");
    }
    check_disk(&rig, io);
    drop((admin, peers));
    bystander.stop();
    rig.await_nothing_left();
}

fn transfers_move_in_parts_while_peers_hold_the_pool(io: IoBackend) {
    let rig = rig_with_small_pool(io);
    let bystander = Bystander::start(rig.address);
    let (admin, mut peers) = queues(&rig);
    // Half of them announce data and send none, the others ask for data and read none.
    for (number, peer) in peers.iter_mut().enumerate() {
        let sqe = if number % 2 == 0 {
            command::write(NSID, 0, 2047, false)
        } else {
            command::read(NSID, 0, 2047)
        };
        let all: Vec<u8> = (0..100)
            .flat_map(|_| peer.capsule_with(sqe.with_sgl1(Sgl::transport(1 << 20)), &[]))
            .collect();
        peer.send(&all);
    }
    for _ in 0..10 {
        bystander.await_progress("peers hold the pool");
    }
    check_disk(&rig, io);
    assert!(rig.work().parts > 0, "nothing was cut: {:?}", rig.work());
    drop((admin, peers));
    bystander.stop();
    rig.await_nothing_left();
}

thread_local! {
    /// What a test holds of the pool of its reactor, whose thread's this is.
    static HELD: RefCell<Vec<IoBuf>> = const { RefCell::new(Vec::new()) };
}

/// A Read that waited for memory of the pool got it and was run at once by a device that need not
/// be waited for. Its answer stayed where it was until something else woke the reactor.
fn command_that_ended_as_it_got_its_buffer_is_answered_at_once(io: IoBackend) {
    // A reactor that looks around on its own would find the answer.
    let reactor = Config {
        poll: PollMode::Never,
        ..small_pool(io)
    };
    let rig = Rig::empty(reactor, TargetConfig::default());
    rig.add_subsystem(NQN, Hosts::Any);
    rig.add_namespace_on(NQN, |cx| {
        TestDevice::new(Shaped {
            inner: disk(cx, DISK_BYTES, BLOCK),
            // 128 KiB that may not be cut.
            shape: |geometry| geometry.atomic_write_blocks = 256,
        })
    });
    let (mut peer, _admin) = Raw::io(rig.address, Digests::NONE);
    rig.call(|_, cx, _| {
        let all = std::iter::from_fn(|| cx.pool().alloc(1));
        HELD.with_borrow_mut(|held| held.extend(all));
    });
    let read = command::read(NSID, 0, 255).with_sgl1(Sgl::transport(128 << 10));
    let capsule = peer.capsule_with(read, &[]);
    peer.send(&capsule);
    until("the Read waits", || {
        (rig.usage().waiting == 1).then_some(())
    });
    rig.call(|_, _, _| HELD.with_borrow_mut(Vec::clear));
    let data = peer.recv().expect("data").c2h();
    assert_eq!(
        (data.cccid, data.datao, data.datal),
        (peer.last_cid(), 0, 128 << 10)
    );
}

/// Sends a byte whenever a tenth of a second has passed, until the connection ends.
fn trickle(peer: &mut Raw, bytes: &[u8]) {
    let pause = Some(Duration::from_millis(100));
    peer.stream.set_read_timeout(pause).expect("an open socket");
    let start = Instant::now();
    for byte in bytes {
        peer.send(&[*byte]);
        match peer.stream.read(&mut [0; 256]) {
            Ok(0) => return,
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset) => return,
            Ok(_) => {}
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ),
                "{error}"
            ),
        }
        assert!(start.elapsed() < DEADLINE, "it was let go on");
    }
    panic!("it was let finish");
}

fn peers_that_trickle_are_closed_though_they_never_pause(io: IoBackend) {
    let config = TargetConfig {
        // What may take long is short.
        maxh2cdata_bytes: 64 << 10,
        deadlines: deadlines(),
        ..TargetConfig::default()
    };
    let rig = Rig::with(io, PollMode::Adaptive, config);
    let bystander = Bystander::start(rig.address);
    let (mut peer, _admin) = Raw::io(rig.address, Digests::NONE);
    let write = write_sqe(4096).with_sgl1(Sgl::in_capsule(4096));
    let capsule = peer.capsule_with(write, &[7; 4096]);
    trickle(&mut peer, &capsule);
    let (mut peer, _admin) = Raw::io(rig.address, Digests::NONE);
    let r2t = granted(&mut peer, 64 << 10);
    let data = changed_data(&mut peer, r2t, |_, _| {});
    peer.send(&data[..24]);
    trickle(&mut peer, &data[24..]);
    bystander.await_progress("somebody trickles");
    drop((peer, _admin));
    bystander.stop();
}

fn orderly_end_does_not_wait_for_a_peer_that_does_not_read(io: IoBackend) {
    let config = TargetConfig {
        deadlines: Deadlines {
            // Only the other one can end this test in time.
            transfer: Nanos::from_secs(3600),
            linger: Nanos::from_millis(200),
            ..Deadlines::default()
        },
        ..TargetConfig::default()
    };
    let rig = Rig::with(io, PollMode::Adaptive, config);
    let (mut admin, cntlid) = Raw::admin(rig.address, Digests::NONE);
    let mut queue = Raw::initialized(rig.address, Digests::NONE);
    assert!(queue.connect_queue(1, cntlid, 127).status.is_success());
    let read = command::read(NSID, 0, 2047).with_sgl1(Sgl::transport(1 << 20));
    let all: Vec<u8> = (0..100)
        .flat_map(|_| queue.capsule_with(read, &[]))
        .collect();
    queue.send(&all);
    let mut last = (0, Instant::now());
    until("nothing more leaves", || {
        let sent = rig.counters().send_bytes;
        if sent != last.0 {
            last = (sent, Instant::now());
        }
        (sent > 1 << 20 && last.1.elapsed() > Duration::from_millis(200)).then_some(())
    });
    // A reset ends the queue in an orderly way.
    admin.disable();
    let bystander = Bystander::start(rig.address);
    rig.await_connections(1 + 2);
    assert_eq!(rig.work().unread, 1);
    bystander.await_progress("a queue was ended");
    drop((admin, queue));
    bystander.stop();
    rig.await_nothing_left();
}
