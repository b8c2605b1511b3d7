//! Very many peers, and peers that take what is not theirs.

use bowline_nvme::pdu::{Digests, Fes};
use bowline_nvme::{ControllerId, Status};
use bowline_nvmf::host::command;
use bowline_nvmf::target::TargetConfig;
use bowline_reactor::{IoBackend, PollMode};

use super::{NSID, changed_data, granted};
use crate::common::initiator::Bystander;
use crate::common::on_both_backends;
use crate::common::raw::{End, Raw, ic_req};
use crate::common::rig::{HOST, NQN, Rig};

on_both_backends!(
    thousand_connections_at_once_are_served_beside_a_bystander,
    ten_thousand_connections_that_come_and_go_leave_nothing,
    queues_of_foreign_controllers_are_not_to_be_had,
    host_with_its_share_of_queues_is_told_to_come_again,
    transfer_tags_of_before_a_reset_name_nothing,
);

fn crowd() -> TargetConfig {
    TargetConfig {
        unassociated_per_address_max: 2000,
        ..TargetConfig::default()
    }
}

fn thousand_connections_at_once_are_served_beside_a_bystander(io: IoBackend) {
    let rig = Rig::with(io, PollMode::Adaptive, crowd());
    let bystander = Bystander::start(rig.address);
    let mut peers: Vec<Raw> = (0..1000).map(|_| Raw::connect(rig.address)).collect();
    for peer in &mut peers {
        peer.send(&ic_req(Digests::NONE));
    }
    for peer in &mut peers {
        assert_eq!(peer.recv().expect("ICResp").kind(), 0x01);
    }
    bystander.await_progress("a thousand connections wait");
    // Half of them go without a word, the others with a reset, all at once.
    for (number, peer) in peers.into_iter().enumerate() {
        if number % 2 == 0 {
            peer.reset();
        }
    }
    bystander.await_progress("a thousand connections end");
    rig.await_connections(2);
    bystander.stop();
    rig.await_nothing_left();
}

fn ten_thousand_connections_that_come_and_go_leave_nothing(io: IoBackend) {
    let rig = Rig::with(io, PollMode::Adaptive, crowd());
    let bystander = Bystander::start(rig.address);
    for _ in 0..10_000 {
        // A reset leaves no port behind that waits.
        Raw::connect(rig.address).reset();
    }
    bystander.await_progress("ten thousand connections came and went");
    rig.await_connections(2);
    bystander.stop();
    rig.await_nothing_left();
}

fn queues_of_foreign_controllers_are_not_to_be_had(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let (mut victim, cntlid) = Raw::admin(rig.address, Digests::NONE);
    let stranger = "nqn.2026-11.io.bowline:test:stranger";
    let mut peer = Raw::initialized(rig.address, Digests::NONE);
    for qid in 1..=64 {
        let cqe = peer.connect_as(qid, cntlid, 127, NQN, stranger);
        assert!(cqe.status.same_code(Status::CONNECT_INVALID_PARAMETERS));
        let foreign = ControllerId(cntlid.0.wrapping_add(qid));
        let cqe = peer.connect_as(qid, foreign, 127, NQN, HOST);
        assert!(cqe.status.same_code(Status::CONNECT_INVALID_PARAMETERS));
    }
    // The controller is still its host's alone.
    let mut own = Raw::initialized(rig.address, Digests::NONE);
    assert!(own.connect_queue(1, cntlid, 127).status.is_success());
    assert!(own.command(command::flush(NSID), None).status.is_success());
    assert!(
        victim
            .command(command::keep_alive(), None)
            .status
            .is_success()
    );
    bystander.await_progress("somebody tries queues of others");
    drop((victim, peer, own));
    bystander.stop();
    rig.await_nothing_left();
}

fn host_with_its_share_of_queues_is_told_to_come_again(io: IoBackend) {
    let config = TargetConfig {
        queues_per_host_max: 4,
        ..TargetConfig::default()
    };
    let rig = Rig::with(io, PollMode::Adaptive, config);
    let stranger = "nqn.2026-11.io.bowline:test:stranger";
    let connect = |peer: &mut Raw| peer.connect_as(0, ControllerId::DYNAMIC, 31, NQN, stranger);
    let mut peers: Vec<Raw> = (0..4)
        .map(|_| Raw::initialized(rig.address, Digests::NONE))
        .collect();
    for peer in &mut peers {
        assert!(connect(peer).status.is_success());
    }
    let mut one_more = Raw::initialized(rig.address, Digests::NONE);
    assert_eq!(connect(&mut one_more).status, Status::CONTROLLER_BUSY);
    // Others are served.
    let bystander = Bystander::start(rig.address);
    bystander.await_progress("another host has its share");
    peers.pop();
    rig.await_connections(3 + 1 + 2);
    assert!(connect(&mut one_more).status.is_success());
    drop((peers, one_more));
    bystander.stop();
    rig.await_nothing_left();
}

fn transfer_tags_of_before_a_reset_name_nothing(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let (mut admin, cntlid) = Raw::admin(rig.address, Digests::NONE);
    let queue = |rig: &Rig| {
        let mut queue = Raw::initialized(rig.address, Digests::NONE);
        assert!(queue.connect_queue(1, cntlid, 127).status.is_success());
        queue
    };
    let mut old = queue(&rig);
    let r2t = granted(&mut old, 64 << 10);
    admin.disable();
    assert_eq!(old.await_end(), End::Closed);
    admin.enable();
    let mut new = queue(&rig);
    let bytes = changed_data(&mut new, r2t, |_, _| {});
    new.send(&bytes);
    assert_eq!(new.await_end(), End::Term(Fes::SEQUENCE_ERROR, 0));
    bystander.await_progress("stale tags");
    drop((admin, old, new));
    bystander.stop();
    rig.await_nothing_left();
}
