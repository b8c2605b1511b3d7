//! Peers that go, at every moment and in every way.

use std::sync::Arc;

use bowline_nvme::Sgl;
use bowline_nvme::pdu::Digests;
use bowline_nvmf::host::command;
use bowline_reactor::IoBackend;

use super::{NSID, changed_data, changed_write, granted, write_sqe};
use crate::common::device::{Gate, Gated, TestDevice};
use crate::common::initiator::Bystander;
use crate::common::raw::{Raw, ic_req};
use crate::common::rig::{BLOCK, DISK_BYTES, NQN, Rig};
use crate::common::{on_both_backends, until};
use crate::engine::disk;

on_both_backends!(
    every_kind_of_end_in_every_state_leaves_nothing,
    commands_at_a_device_that_does_not_answer_are_waited_for,
);

/// How a peer goes.
#[derive(Clone, Copy, Debug)]
enum Going {
    /// FIN, and the socket is closed.
    Close,
    /// FIN only: it still listens.
    HalfClose,
    Reset,
}

/// Brings a peer to a state; what is returned with it is kept until the peer has gone.
type Bring = fn(&Rig) -> (Raw, Option<Raw>);

fn queue(rig: &Rig) -> (Raw, Option<Raw>) {
    let (peer, admin) = Raw::io(rig.address, Digests::NONE);
    (peer, Some(admin))
}

const STATES: &[(&str, Bring)] = &[
    ("connected", |rig| (Raw::connect(rig.address), None)),
    ("within ICReq", |rig| {
        let mut peer = Raw::connect(rig.address);
        peer.send(&ic_req(Digests::NONE)[..50]);
        (peer, None)
    }),
    ("initialized", |rig| {
        (Raw::initialized(rig.address, Digests::NONE), None)
    }),
    ("within Connect", |rig| {
        let mut peer = Raw::initialized(rig.address, Digests::NONE);
        let capsule = peer.connect_capsule_to(NQN);
        peer.send(&capsule[..500]);
        (peer, None)
    }),
    ("right behind Connect", |rig| {
        let mut peer = Raw::initialized(rig.address, Digests::NONE);
        let capsule = peer.connect_capsule_to(NQN);
        peer.send(&capsule);
        (peer, None)
    }),
    ("admin queue", |rig| {
        (Raw::admin(rig.address, Digests::NONE).0, None)
    }),
    ("admin queue with event requests", |rig| {
        let (mut peer, _) = Raw::admin(rig.address, Digests::NONE);
        let all: Vec<u8> = (0..4)
            .flat_map(|_| peer.capsule(command::async_event_request(), None))
            .collect();
        peer.send(&all);
        (peer, None)
    }),
    ("I/O queue", queue),
    ("within a header", |rig| {
        let (mut peer, admin) = queue(rig);
        let bytes = changed_write(&mut peer, |_| {});
        peer.send(&bytes[..30]);
        (peer, admin)
    }),
    ("within a capsule's data", |rig| {
        let (mut peer, admin) = queue(rig);
        let bytes = changed_write(&mut peer, |_| {});
        peer.send(&bytes[..200]);
        (peer, admin)
    }),
    ("with a transfer granted", |rig| {
        let (mut peer, admin) = queue(rig);
        granted(&mut peer, 64 << 10);
        (peer, admin)
    }),
    ("within a transfer", |rig| {
        let (mut peer, admin) = queue(rig);
        let r2t = granted(&mut peer, 64 << 10);
        let bytes = changed_data(&mut peer, r2t, |_, _| {});
        peer.send(&bytes[..40_000]);
        (peer, admin)
    }),
    ("with answers unread", |rig| {
        let (mut peer, admin) = queue(rig);
        let read = command::read(NSID, 0, 2047).with_sgl1(Sgl::transport(1 << 20));
        let all: Vec<u8> = (0..50).flat_map(|_| peer.capsule_with(read, &[])).collect();
        peer.send(&all);
        (peer, admin)
    }),
    ("behind its own TermReq", |rig| {
        let (mut peer, admin) = queue(rig);
        let mut bytes = vec![0; 24];
        (bytes[0], bytes[2], bytes[4]) = (2, 24, 24);
        peer.send(&bytes);
        (peer, admin)
    }),
    ("behind ours", |rig| {
        let (mut peer, admin) = queue(rig);
        peer.send(&ic_req(Digests::NONE));
        assert_eq!(peer.recv().expect("a TermReq").kind(), 0x03);
        peer.send(&[0; 5000]);
        (peer, admin)
    }),
];

fn every_kind_of_end_in_every_state_leaves_nothing(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    for &(state, bring) in STATES {
        for going in [Going::Close, Going::HalfClose, Going::Reset] {
            let (mut peer, kept) = bring(&rig);
            peer.note = state;
            let half = match going {
                Going::Close => {
                    drop(peer);
                    None
                }
                Going::HalfClose => {
                    peer.finish();
                    Some(peer)
                }
                Going::Reset => {
                    peer.reset();
                    None
                }
            };
            // What is left is the bystander, and the admin queue that a queue lives by.
            until(&format!("{state}, {going:?}"), || {
                (rig.connections() == 2 + usize::from(kept.is_some())).then_some(())
            });
            drop((half, kept));
            rig.await_connections(2);
        }
        bystander.await_progress(state);
    }
    bystander.stop();
    rig.await_nothing_left();
}

fn commands_at_a_device_that_does_not_answer_are_waited_for(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let gate = Arc::new(Gate::default());
    let shared = Arc::clone(&gate);
    let slow = rig.add_namespace_on(NQN, move |cx| {
        TestDevice::new(Gated {
            inner: disk(cx, DISK_BYTES, BLOCK),
            gate: shared,
        })
    });
    gate.set_closed(true);
    for round in 1..=20 {
        let (mut peer, admin) = Raw::io(rig.address, Digests::NONE);
        let write = write_sqe(4096)
            .with_nsid(slow)
            .with_sgl1(Sgl::in_capsule(4096));
        let all: Vec<u8> = (0..10)
            .flat_map(|_| peer.capsule_with(write, &[1; 4096]))
            .collect();
        peer.send(&all);
        until("they reach the device", || {
            (gate.submitted() == 10 * round).then_some(())
        });
        peer.reset();
        admin.reset();
        rig.await_connections(2);
        // The device has not answered: the kernel may still read what it was given.
        assert!(rig.usage().executing >= 10);
        // Its host must wait for that, so it is let go on.
        gate.set_closed(false);
        rig.call(|_, _, _| ());
        until("the old commands end", || {
            (rig.usage().executing == 0).then_some(())
        });
        gate.set_closed(true);
    }
    bystander.await_progress("a device hangs");
    gate.set_closed(false);
    bystander.stop();
    rig.await_nothing_left();
}
