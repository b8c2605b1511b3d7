//! Reservations of two hosts over real sockets, and a store that makes them durable on a thread.

use std::sync::{Arc, mpsc};
use std::thread;

use bowline_block::{ClassConfig, PoolConfig};
use bowline_nvme::nvm::CopyRange;
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::reservation::{Acquire, Register, ReservationType};
use bowline_nvme::{NamespaceId, Sqe, Status};
use bowline_nvmf::target::{Hosts, Persistence, ReservationState, TargetConfig};
use bowline_reactor::{Config, IoBackend};
use bowline_tcp::target::{NamespaceSpec, ReservationStore, StoreReservations, TargetMessage};

use crate::common::device::{Gate, Gated, TestDevice};
use crate::common::raw::Raw;
use crate::common::rig::{BLOCK, NQN, Rig};
use crate::common::{on_both_backends, until};
use crate::engine::disk;

on_both_backends!(
    reservation_fences_the_other_host_across_reconnects,
    copy_that_waits_for_memory_is_fenced_before_it_runs,
    commands_of_a_dead_host_do_not_wait_for_memory,
    registration_is_answered_when_the_store_has_it,
    store_that_fails_or_is_missing_fails_the_command,
);

const KEY: u64 = 0xA1;
const HOSTS: [&str; 2] = [
    "nqn.2026-11.io.bowline:host-a",
    "nqn.2026-11.io.bowline:host-b",
];

/// An I/O queue of one of the two hosts, and the admin queue it lives by.
fn host(rig: &Rig, which: u8) -> (Raw, Raw) {
    let name = HOSTS[usize::from(which)];
    Raw::io_of_host(rig.address, name, [which + 1; 16])
}

fn of_namespace(sqe: Sqe, nsid: NamespaceId) -> Sqe {
    sqe.with_nsid(nsid)
}

fn register(queue: &mut Raw, nsid: NamespaceId, change_persistence: u8) -> Status {
    let register = Register {
        change_persistence,
        new_key: KEY,
        ..Register::default()
    };
    let sqe = of_namespace(register.encode(), nsid);
    queue.command(sqe, Some(&register.data())).status
}

fn acquire(queue: &mut Raw, nsid: NamespaceId) -> Status {
    let acquire = Acquire {
        rtype: ReservationType::WriteExclusive.wire(),
        current_key: KEY,
        ..Acquire::default()
    };
    let sqe = of_namespace(acquire.encode(), nsid);
    queue.command(sqe, Some(&acquire.data())).status
}

fn write(queue: &mut Raw, nsid: NamespaceId) -> Status {
    let sqe = Sqe::new(opcode::WRITE).with_nsid(nsid);
    let block = vec![7; BLOCK as usize];
    queue.command(sqe, Some(&block)).status
}

fn reservation_fences_the_other_host_across_reconnects(io: IoBackend) {
    let rig = Rig::new(io);
    let nsid = NamespaceId(1);
    let (mut a, admin) = host(&rig, 0);
    let (mut b, _b_admin) = host(&rig, 1);
    assert_eq!(register(&mut a, nsid, 0), Status::SUCCESS);
    assert_eq!(acquire(&mut a, nsid), Status::SUCCESS);
    assert_eq!(write(&mut a, nsid), Status::SUCCESS);
    assert!(write(&mut b, nsid).same_code(Status::RESERVATION_CONFLICT));
    drop((a, admin));
    assert!(write(&mut b, nsid).same_code(Status::RESERVATION_CONFLICT));
    let (mut a, _admin) = host(&rig, 0);
    assert_eq!(write(&mut a, nsid), Status::SUCCESS);
    let (mut b, _admin) = host(&rig, 1);
    assert!(write(&mut b, nsid).same_code(Status::RESERVATION_CONFLICT));
}

/// A target with two large buffers, one of which is the spare, and a device behind a gate.
fn two_large_buffers(io: IoBackend) -> (Rig, NamespaceId, Arc<Gate>) {
    let class = |bytes, count| ClassConfig { bytes, count };
    let classes = vec![class(4 << 10, 64), class(128 << 10, 2)];
    let reactor = Config {
        io,
        pool: PoolConfig { classes },
        ..Config::default()
    };
    let config = TargetConfig {
        mdts_bytes: 128 << 10,
        ..TargetConfig::default()
    };
    let rig = Rig::empty(reactor, config);
    rig.add_subsystem(NQN, Hosts::Any);
    let gate = Arc::new(Gate::default());
    let of_device = Arc::clone(&gate);
    let nsid = rig.add_namespace_on(NQN, move |cx| {
        TestDevice::new(Gated {
            inner: disk(cx, 4 << 20, BLOCK),
            gate: of_device,
        })
    });
    (rig, nsid, gate)
}

/// Sends three Copies to a device that does not end anything: the third has no buffer. They come
/// together: behind what already runs the third would not even be received.
fn send_copies(rig: &Rig, queue: &mut Raw, nsid: NamespaceId, gate: &Gate) {
    gate.set_closed(true);
    let mut capsules = Vec::new();
    for to in [1024, 2048, 3072] {
        let copy = Sqe::new(opcode::COPY).with_nsid(nsid).with_copy(to, 0);
        let source = CopyRange {
            slba: 0,
            blocks: 256,
        };
        capsules.extend(queue.capsule(copy, Some(&source.encode())));
    }
    queue.send(&capsules);
    until("the third waits", || {
        (gate.submitted() == 2 && rig.usage().waiting == 1).then_some(())
    });
}

/// A Copy that had no buffer yet ran whenever it got one, though its host had been preempted
/// meanwhile.
fn copy_that_waits_for_memory_is_fenced_before_it_runs(io: IoBackend) {
    let (rig, nsid, gate) = two_large_buffers(io);
    let (mut a, _a_admin) = host(&rig, 0);
    let (mut b, _b_admin) = host(&rig, 1);
    for queue in [&mut a, &mut b] {
        assert_eq!(register(queue, nsid, 0), Status::SUCCESS);
    }
    assert_eq!(acquire(&mut a, nsid), Status::SUCCESS);
    send_copies(&rig, &mut a, nsid, &gate);
    let preempt = Acquire {
        action: Acquire::PREEMPT,
        rtype: ReservationType::WriteExclusive.wire(),
        current_key: KEY,
        preempt_key: KEY,
        ..Acquire::default()
    };
    let sqe = of_namespace(preempt.encode(), nsid);
    let status = b.command(sqe, Some(&preempt.data())).status;
    assert_eq!(status, Status::SUCCESS);
    let status = a.await_status();
    assert!(status.same_code(Status::RESERVATION_CONFLICT), "{status:?}");
    gate.set_closed(false);
    rig.call(|_, _, _| {});
    // They were at the device.
    for _ in 0..2 {
        assert_eq!(a.await_status(), Status::SUCCESS);
    }
    assert_eq!(gate.submitted(), 4);
}

/// What a dead host's commands waited for had to be there before they were given up, so that its
/// next Connect waited for the commands of others.
fn commands_of_a_dead_host_do_not_wait_for_memory(io: IoBackend) {
    let (rig, nsid, gate) = two_large_buffers(io);
    let (mut b, _b_admin) = host(&rig, 1);
    send_copies(&rig, &mut b, nsid, &gate);
    let (mut a, a_admin) = host(&rig, 0);
    let verify = Sqe::new(opcode::VERIFY).with_nsid(nsid).with_nlb(255);
    let capsule = a.capsule(verify, None);
    a.send(&capsule);
    until("it waits too", || (rig.usage().waiting == 2).then_some(()));
    drop((a, a_admin));
    let (_a, _a_admin) = host(&rig, 0);
    assert_eq!((gate.submitted(), rig.usage().waiting), (2, 1));
    gate.set_closed(false);
    rig.call(|_, _, _| {});
    for _ in 0..3 {
        assert_eq!(b.await_status(), Status::SUCCESS);
    }
}

/// Passes requests to whoever holds the other end.
struct Forward(mpsc::Sender<StoreReservations>);

impl ReservationStore for Forward {
    fn try_begin(&mut self, request: StoreReservations) -> bool {
        self.0.send(request).is_ok()
    }
}

fn add_durable(rig: &Rig, state: Option<ReservationState>) -> NamespaceId {
    let spec = NamespaceSpec {
        nsid: None,
        uuid: [0xD1; 16],
        nguid: [0xD2; 16],
        ana_group: None,
        persistence: Persistence::Stored(state),
        shared: false,
    };
    rig.call(move |target, cx, now| {
        let device = disk(cx, 4 << 20, BLOCK);
        target.add_namespace(now, NQN, spec, device)
    })
    .expect("valid")
}

/// A target whose store is a thread, as with its real owner; what was stored comes out in the end.
fn storing(io: IoBackend, durable: bool) -> (Rig, thread::JoinHandle<Vec<StoreReservations>>) {
    let (sender, requests) = mpsc::channel::<StoreReservations>();
    let rig = Rig::storing(io, Box::new(Forward(sender)));
    let mailbox = rig.mailbox();
    let store = thread::spawn(move || {
        let mut stored = Vec::new();
        for request in requests {
            let id = request.id;
            stored.push(request);
            let answer = TargetMessage::Call(Box::new(move |target, _, now| {
                target.reservations_stored(now, id, durable);
            }));
            // The reactor may be at its end.
            let _ = mailbox.send_blocking(answer);
        }
        stored
    });
    (rig, store)
}

fn registration_is_answered_when_the_store_has_it(io: IoBackend) {
    let (rig, store) = storing(io, true);
    let nsid = add_durable(&rig, None);
    let (mut a, _admin) = host(&rig, 0);
    let set = Register::PERSISTENCE_SET;
    assert_eq!(register(&mut a, nsid, set), Status::SUCCESS);
    assert_eq!(acquire(&mut a, nsid), Status::SUCCESS);
    rig.begin_stop();
    rig.join();
    let stored = store.join().expect("the store's thread");
    assert_eq!(stored.len(), 2, "{stored:?}");
    assert_eq!((stored[1].nqn.as_str(), stored[1].nsid), (NQN, nsid));
    let state = stored[1].state.clone().expect("to be remembered");
    // Another process takes it up.
    let rig = Rig::new(io);
    let nsid = add_durable(&rig, Some(state));
    let (mut b, _admin) = host(&rig, 1);
    assert!(write(&mut b, nsid).same_code(Status::RESERVATION_CONFLICT));
    let (mut a, _admin) = host(&rig, 0);
    assert_eq!(write(&mut a, nsid), Status::SUCCESS);
}

fn store_that_fails_or_is_missing_fails_the_command(io: IoBackend) {
    let rig = Rig::new(io);
    let nsid = add_durable(&rig, None);
    let (mut a, _admin) = host(&rig, 0);
    let set = Register::PERSISTENCE_SET;
    assert!(register(&mut a, nsid, set).same_code(Status::INTERNAL));
    rig.begin_stop();
    rig.join();
    let (rig, store) = storing(io, false);
    let nsid = add_durable(&rig, None);
    let (mut a, _admin) = host(&rig, 0);
    assert!(register(&mut a, nsid, set).same_code(Status::INTERNAL));
    assert_eq!(register(&mut a, nsid, 0), Status::SUCCESS, "without it");
    rig.begin_stop();
    rig.join();
    assert_eq!(store.join().expect("the store's thread").len(), 1);
}
