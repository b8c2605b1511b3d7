//! Peers that make the target hold memory for them and then do nothing.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;

use bowline_nvme::Sgl;
use bowline_nvme::pdu::Digests;
use bowline_nvmf::host::command;
use bowline_nvmf::target::TargetConfig;
use bowline_reactor::{IoBackend, PollMode};

use super::{NSID, deadlines, write_sqe};
use crate::common::initiator::{Bystander, Disk};
use crate::common::raw::Raw;
use crate::common::rig::Rig;
use crate::common::{on_both_backends, until};

on_both_backends!(
    peers_that_never_read_leave_enough_for_others,
    peers_that_never_send_leave_enough_for_others,
    peer_that_never_reads_is_closed_at_its_deadline,
    flood_of_commands_without_reading_is_not_buffered,
    more_commands_than_the_queue_holds_are_not_buffered,
);

/// Asks for far more than sockets hold, and reads nothing of it.
fn never_reading(address: SocketAddr) -> (Raw, Raw) {
    let (mut peer, admin) = Raw::io(address, Digests::NONE);
    let read = command::read(NSID, 0, 2047).with_sgl1(Sgl::transport(1 << 20));
    let all: Vec<u8> = (0..120)
        .flat_map(|_| peer.capsule_with(read, &[]))
        .collect();
    peer.send(&all);
    (peer, admin)
}

/// Announces far more data than the pool holds, and sends nothing of it.
fn never_sending(address: SocketAddr) -> (Raw, Raw) {
    let (mut peer, admin) = Raw::io(address, Digests::NONE);
    let write = command::write(NSID, 0, 2047, false).with_sgl1(Sgl::transport(1 << 20));
    let all: Vec<u8> = (0..120)
        .flat_map(|_| peer.capsule_with(write, &[]))
        .collect();
    peer.send(&all);
    (peer, admin)
}

fn peers_that_never_read_leave_enough_for_others(io: IoBackend) {
    leave_enough_for_others(io, never_reading);
}

fn peers_that_never_send_leave_enough_for_others(io: IoBackend) {
    leave_enough_for_others(io, never_sending);
}

fn leave_enough_for_others(io: IoBackend, hostile: fn(SocketAddr) -> (Raw, Raw)) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let peers = [(); 3].map(|()| hostile(rig.address));
    until("the peers hold buffers", || {
        rig.pool()
            .classes
            .iter()
            .any(|class| class.used > 0)
            .then_some(())
    });
    for _ in 0..20 {
        bystander.await_progress("peers pin buffers");
    }
    let mut disk = Disk::connect(rig.address, io);
    for _ in 0..4 {
        assert_eq!(disk.read(NSID, 0, 1 << 20).len(), 1 << 20);
    }
    drop((peers, disk));
    bystander.stop();
    rig.await_connections(0);
    rig.await_free_pool();
}

fn peer_that_never_reads_is_closed_at_its_deadline(io: IoBackend) {
    let config = TargetConfig {
        deadlines: deadlines(),
        ..TargetConfig::default()
    };
    let rig = Rig::with(io, PollMode::Adaptive, config);
    let (_peer, _admin) = never_reading(rig.address);
    // The admin queue stays: nothing is wrong with it.
    rig.await_connections(1);
    rig.await_free_pool();
}

fn flood_of_commands_without_reading_is_not_buffered(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let (mut peer, admin) = Raw::io(rig.address, Digests::NONE);
    peer.stream.set_nonblocking(true).expect("an open socket");
    let mut commands = 0;
    until("nobody takes any more commands", || {
        let read = command::read(NSID, 0, 2047).with_sgl1(Sgl::transport(1 << 20));
        let capsule = peer.capsule_with(read, &[]);
        commands += 1;
        let full = match peer.stream.write(&capsule) {
            Ok(sent) => sent < capsule.len(),
            Err(error) => {
                let expected = [
                    ErrorKind::WouldBlock,
                    ErrorKind::ConnectionReset,
                    ErrorKind::BrokenPipe,
                ];
                assert!(expected.contains(&error.kind()), "{error}");
                true
            }
        };
        (full || commands == 10_000).then_some(())
    });
    bystander.await_progress("a peer floods");
    drop((peer, admin));
    bystander.stop();
    rig.await_connections(0);
    rig.await_free_pool();
}

fn more_commands_than_the_queue_holds_are_not_buffered(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let (mut peer, admin) = Raw::io(rig.address, Digests::NONE);
    // Four times as many Writes as the queue has entries, each of which needs an R2T.
    for _ in 0..512 {
        let capsule =
            peer.capsule_with(write_sqe(64 << 10).with_sgl1(Sgl::transport(64 << 10)), &[]);
        peer.send(&capsule);
    }
    // What it gets are R2Ts for at most a queue of them, and the end if it is closed for this.
    let mut grants = 0;
    while grants < 16 {
        match peer.recv() {
            Some(pdu) if pdu.kind() == 0x09 => grants += 1,
            Some(pdu) => {
                assert_eq!(pdu.kind(), 0x03, "neither R2T nor TermReq: {pdu:?}");
                break;
            }
            None => break,
        }
    }
    bystander.await_progress("a queue overflows");
    drop((peer, admin));
    bystander.stop();
    rig.await_connections(0);
    rig.await_free_pool();
}
