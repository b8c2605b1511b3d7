//! Peers that take their time, and how many of them there may be.

use bowline_nvme::Status;
use bowline_nvme::pdu::{Digests, Fes};
use bowline_nvmf::host::command;
use bowline_nvmf::target::TargetConfig;
use bowline_reactor::{IoBackend, PollMode};

use super::{NSID, changed_data, deadlines, granted};
use crate::common::on_both_backends;
use crate::common::raw::{End, Raw, ic_req};
use crate::common::rig::Rig;

on_both_backends!(
    silent_peers_are_closed_at_their_deadlines,
    peer_that_ignores_its_term_req_is_closed_at_its_deadline,
    stalled_transfer_is_closed_at_its_deadline,
    two_hundred_connections_at_once_are_served,
    connections_from_one_address_are_limited_until_they_connect,
);

fn silent_peers_are_closed_at_their_deadlines(io: IoBackend) {
    let config = TargetConfig {
        deadlines: deadlines(),
        ..TargetConfig::default()
    };
    let rig = Rig::with(io, PollMode::Adaptive, config);
    let mut mute = Raw::connect(rig.address);
    let mut half = Raw::connect(rig.address);
    half.send(&ic_req(Digests::NONE)[..64]);
    let mut unconnected = Raw::initialized(rig.address, Digests::NONE);
    for peer in [&mut mute, &mut half, &mut unconnected] {
        assert_eq!(peer.await_end(), End::Closed);
    }
    rig.await_connections(0);
}

fn peer_that_ignores_its_term_req_is_closed_at_its_deadline(io: IoBackend) {
    let config = TargetConfig {
        deadlines: deadlines(),
        ..TargetConfig::default()
    };
    let rig = Rig::with(io, PollMode::Adaptive, config);
    let mut peer = Raw::initialized(rig.address, Digests::NONE);
    peer.send(&ic_req(Digests::NONE));
    assert_eq!(
        peer.recv().expect("a TermReq").term().fes,
        Fes::SEQUENCE_ERROR
    );
    // It goes on as if nothing had happened; nobody listens.
    peer.send(&ic_req(Digests::NONE));
    assert!(peer.recv().is_none());
    rig.await_connections(0);
}

fn stalled_transfer_is_closed_at_its_deadline(io: IoBackend) {
    let config = TargetConfig {
        deadlines: deadlines(),
        ..TargetConfig::default()
    };
    let rig = Rig::with(io, PollMode::Adaptive, config);
    let (mut idle, _idle_admin) = Raw::io(rig.address, Digests::NONE);
    let (mut unanswered, _admin) = Raw::io(rig.address, Digests::NONE);
    granted(&mut unanswered, 1 << 20);
    let (mut stopped, _admin) = Raw::io(rig.address, Digests::NONE);
    let r2t = granted(&mut stopped, 1 << 20);
    let bytes = changed_data(&mut stopped, r2t, |_, _| {});
    stopped.send(&bytes[..1000]);
    assert_eq!(unanswered.await_end(), End::Closed);
    assert_eq!(stopped.await_end(), End::Closed);
    rig.await_free_pool();
    // One that owes nothing may be silent for as long as it likes: it has no keep-alive.
    let flush = idle.command(command::flush(NSID), None);
    assert_eq!(flush.status, Status::SUCCESS);
}

fn two_hundred_connections_at_once_are_served(io: IoBackend) {
    let rig = Rig::new(io);
    let mut peers: Vec<Raw> = (0..200).map(|_| Raw::connect(rig.address)).collect();
    for peer in &mut peers {
        peer.send(&ic_req(Digests::NONE));
    }
    for peer in &mut peers {
        assert_eq!(peer.recv().expect("ICResp").kind(), 0x01);
    }
    assert_eq!(rig.connections(), 200);
    let (mut io_queue, _admin) = Raw::io(rig.address, Digests::NONE);
    assert_eq!(
        io_queue.command(command::flush(NSID), None).status,
        Status::SUCCESS
    );
    drop(peers);
    rig.await_connections(2);
}

fn connections_from_one_address_are_limited_until_they_connect(io: IoBackend) {
    let config = TargetConfig {
        unassociated_per_address_max: 8,
        ..TargetConfig::default()
    };
    let rig = Rig::with(io, PollMode::Adaptive, config);
    let first = Raw::io(rig.address, Digests::NONE);
    let mut waiting: Vec<Raw> = (0..8)
        .map(|_| Raw::initialized(rig.address, Digests::NONE))
        .collect();
    let mut one_more = Raw::connect(rig.address);
    assert_eq!(one_more.await_end(), End::Closed);
    // Room is made by those who connect or go.
    waiting.pop();
    rig.await_connections(2 + 7);
    drop(Raw::initialized(rig.address, Digests::NONE));
    drop(first);
}
