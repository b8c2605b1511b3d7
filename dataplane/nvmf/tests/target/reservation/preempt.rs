//! Preempting and aborting: what becomes of the commands of those who lose their rights.

use bowline_nvme::nvm::CopyRange;
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::reservation::{Acquire, ReservationType};
use bowline_nvme::{CommandId, Fuse, NamespaceId, Sqe, Status};

use super::hosts::{Host, KEY_A, KEY_B, acquire};
use crate::glue::{BLOCK, Glue, Reply, h2c_data, io, pattern};

fn preempt(action: u8) -> Acquire {
    Acquire {
        action,
        preempt_key: KEY_A,
        ..acquire(ReservationType::WriteExclusive, KEY_B)
    }
}

/// A holds Write Exclusive, B is registered.
fn held() -> (Glue, Host, Host) {
    let mut glue = Glue::new();
    let (a, b) = (glue.host(1), glue.host(2));
    glue.register_all(&[a, b]);
    let exclusive = acquire(ReservationType::WriteExclusive, KEY_A);
    assert_eq!(glue.acquire(a, exclusive), Status::SUCCESS);
    (glue, a, b)
}

fn send_acquire(glue: &mut Glue, host: Host, acquire: Acquire) -> CommandId {
    let sqe = acquire.encode().with_nsid(NamespaceId(1));
    glue.send_with_data(host.queue, sqe, &acquire.data())
}

fn status(glue: &mut Glue, host: Host) -> Status {
    glue.reply(host.queue).cqe().status
}

#[test]
fn preempted_host_loses_write_access_at_once() {
    let (mut glue, a, b) = held();
    let plain = preempt(Acquire::PREEMPT);
    assert_eq!(glue.target.counters().reservation_preemptions, 0);
    assert_eq!(glue.acquire(b, plain), Status::SUCCESS);
    // Nobody has that key any more.
    assert_ne!(glue.acquire(b, plain), Status::SUCCESS);
    assert_eq!(glue.target.counters().reservation_preemptions, 1);
    let block = pattern(3, BLOCK as usize);
    let refused = glue.status_with_data(a.queue, io(opcode::WRITE, 0, 1), &block);
    assert!(refused.same_code(Status::RESERVATION_CONFLICT));
    let (head, entries) = glue.report(a);
    assert_eq!((head.regctl, entries[0].hostid[0]), (1, 2));
}

#[test]
fn preempt_and_abort_completes_only_when_the_device_is_done_with_the_victims() {
    let (mut glue, a, b) = held();
    glue.hold_io = true;
    let write = io(opcode::WRITE, 0, 1);
    glue.send_with_data(a.queue, write, &pattern(5, BLOCK as usize));
    glue.send(b.queue, io(opcode::READ, 8, 1));
    assert_eq!(glue.held.len(), 2);
    let cid = send_acquire(&mut glue, b, preempt(Acquire::PREEMPT_AND_ABORT));
    assert!(
        glue.replies(b.queue).is_empty(),
        "A's write is at the device"
    );
    let other = glue.host(3);
    assert_eq!(glue.report(other).0.regctl, 1, "in force already");
    glue.finish_held();
    assert_eq!(
        status(&mut glue, a),
        Status::SUCCESS,
        "it was too late for it"
    );
    let replies = glue.replies(b.queue);
    let done = replies.iter().any(|reply| match reply {
        Reply::Response(cqe) => cqe.cid == cid && cqe.status.is_success(),
        _ => false,
    });
    assert!(done, "{replies:?}");
}

#[test]
fn plain_preempt_waits_for_nobody() {
    let (mut glue, a, b) = held();
    glue.hold_io = true;
    let write = io(opcode::WRITE, 0, 1);
    glue.send_with_data(a.queue, write, &pattern(5, BLOCK as usize));
    let plain = preempt(Acquire::PREEMPT);
    assert_eq!(glue.acquire(b, plain), Status::SUCCESS);
    glue.finish_held();
    assert_eq!(status(&mut glue, a), Status::SUCCESS);
}

#[test]
fn victims_waiting_for_data_or_buffers_end_aborted_and_never_reach_the_device() {
    let (mut glue, a, b) = held();
    let data = pattern(7, 8192);
    let transferring = glue.send(a.queue, io(opcode::WRITE, 0, 16));
    let Reply::R2t(r2t) = glue.reply(a.queue) else {
        panic!("no R2T")
    };
    glue.no_buffers = true;
    let waiting = glue.send(a.queue, io(opcode::WRITE, 64, 16));
    assert_eq!(glue.wanted.len(), 1);
    // A host that does not go on with its transfer does not hold up its own fencing.
    let abort = preempt(Acquire::PREEMPT_AND_ABORT);
    assert_eq!(glue.acquire(b, abort), Status::SUCCESS);
    let cqe = glue.reply(a.queue).cqe();
    assert_eq!(cqe.cid, waiting);
    assert!(cqe.status.same_code(Status::ABORTED_PREEMPT));
    assert!(glue.wanted.is_empty(), "the buffer is not wanted any more");
    let bytes = glue.h2c(a.queue, h2c_data(&r2t), &data);
    glue.receive(a.queue, &bytes);
    let cqe = glue.reply(a.queue).cqe();
    assert_eq!(
        (cqe.cid, cqe.status.sc(), cqe.status.sct()),
        (transferring, 0x1B, 0)
    );
    assert!(glue.disks[&1].iter().all(|&byte| byte == 0));
}

/// A command that had been handed out but waited for memory ran after its host had lost the right
/// to it. The owner asks before it runs one that waited.
#[test]
fn command_that_waited_for_memory_is_judged_again_before_it_runs() {
    let (mut glue, a, b) = held();
    glue.hold_io = true;
    glue.unstarted = true;
    let copy = Sqe::new(opcode::COPY)
        .with_nsid(NamespaceId(1))
        .with_copy(100, 0);
    let list = CopyRange { slba: 4, blocks: 2 }.encode();
    glue.send_with_data(a.queue, copy, &list);
    for (opcode, fuse) in [
        (opcode::COMPARE, Fuse::First),
        (opcode::WRITE, Fuse::Second),
    ] {
        glue.send_with_data(a.queue, io(opcode, 0, 1).with_fuse(fuse), &[0; 512]);
    }
    glue.send(a.queue, io(opcode::READ, 0, 1));
    let held: Vec<_> = glue.held.iter().map(|&(id, slot, _)| (id, slot)).collect();
    assert_eq!(held.len(), 3);
    let now = glue.now;
    for &(id, slot) in &held {
        assert!(glue.target.may_still_run(now, id, slot), "nothing changed");
    }
    let plain = preempt(Acquire::PREEMPT);
    assert_eq!(glue.acquire(b, plain), Status::SUCCESS);
    let may = held
        .iter()
        .map(|&(id, slot)| glue.target.may_still_run(now, id, slot));
    let may: Vec<bool> = may.collect();
    assert_eq!(may, [false, false, true], "reading is still allowed");
    glue.held.drain(..2);
    glue.pump();
    let found: Vec<_> = glue
        .replies(a.queue)
        .iter()
        .map(|reply| reply.cqe().status)
        .collect();
    for (status, expected) in found.iter().zip([
        Status::RESERVATION_CONFLICT,
        Status::ABORTED_FAILED_FUSED,
        Status::RESERVATION_CONFLICT,
    ]) {
        assert!(status.same_code(expected), "{found:?}");
    }
    assert_eq!(found.len(), 3);
    glue.finish_held();
    assert_eq!(glue.target.subsystems()[0].controllers[0].executing, 0);
}

#[test]
fn victims_that_have_been_handed_out_but_not_begun_are_taken_back() {
    let (mut glue, a, b) = held();
    (glue.hold_io, glue.unstarted) = (true, true);
    let read = glue.send(a.queue, io(opcode::READ, 0, 8));
    let write = io(opcode::WRITE, 0, 1);
    let write = glue.send_with_data(a.queue, write, &pattern(5, BLOCK as usize));
    assert_eq!(glue.held.len(), 2);
    let abort = preempt(Acquire::PREEMPT_AND_ABORT);
    assert_eq!(glue.acquire(b, abort), Status::SUCCESS);
    assert!(glue.held.is_empty());
    let ends = glue.replies(a.queue);
    let ends: Vec<_> = ends.iter().map(Reply::cqe).collect();
    assert_eq!([ends[0].cid, ends[1].cid], [read, write]);
    for cqe in ends {
        assert!(cqe.status.same_code(Status::ABORTED_PREEMPT), "{cqe:?}");
    }
    assert!(glue.disks[&1].iter().all(|&byte| byte == 0));
    assert_eq!(glue.target.subsystems()[0].controllers[0].executing, 0);
}

/// A host that takes nothing from its socket gets nothing done; that must not keep the one waiting
/// who fences it.
#[test]
fn victims_are_taken_back_from_a_host_that_does_not_read() {
    let (mut glue, a, b) = held();
    (glue.hold_io, glue.unstarted) = (true, true);
    glue.send(a.queue, io(opcode::READ, 0, 8));
    glue.deaf = Some(a.queue);
    let abort = preempt(Acquire::PREEMPT_AND_ABORT);
    assert_eq!(glue.acquire(b, abort), Status::SUCCESS);
    assert!(glue.held.is_empty() && glue.replies(a.queue).is_empty());
}

/// The part that was under way was sent, and then nothing ever: neither more data nor a response.
#[test]
fn read_between_two_parts_ends_with_the_preemption() {
    for (action, end) in [
        (Acquire::PREEMPT, Status::RESERVATION_CONFLICT),
        (Acquire::PREEMPT_AND_ABORT, Status::ABORTED_PREEMPT),
    ] {
        let (mut glue, a, b) = held();
        glue.part_bytes = Some(4 * BLOCK);
        glue.hold_io = true;
        let cid = glue.send(a.queue, io(opcode::READ, 0, 8));
        glue.deaf = Some(a.queue);
        glue.finish_held();
        let exclusive = Acquire {
            rtype: ReservationType::ExclusiveAccess.wire(),
            ..preempt(action)
        };
        assert_eq!(glue.acquire(b, exclusive), Status::SUCCESS);
        glue.deaf = None;
        glue.resume(a.queue);
        assert!(glue.held.is_empty(), "the rest must not be read");
        let replies = glue.replies(a.queue);
        let [Reply::Data { last: false, .. }, Reply::Response(cqe)] = &replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(cqe.cid, cid);
        assert!(cqe.status.same_code(end), "{cqe:?}");
    }
}

#[test]
fn abort_waits_for_a_victim_whose_connection_is_gone() {
    let (mut glue, a, b) = held();
    glue.hold_io = true;
    let write = io(opcode::WRITE, 0, 1);
    glue.send_with_data(a.queue, write, &pattern(5, BLOCK as usize));
    glue.drop_socket(a.queue);
    glue.drop_socket(a.admin);
    send_acquire(&mut glue, b, preempt(Acquire::PREEMPT_AND_ABORT));
    assert!(glue.replies(b.queue).is_empty());
    glue.finish_held();
    assert_eq!(status(&mut glue, b), Status::SUCCESS);
}

#[test]
fn preemptor_that_is_gone_leaves_the_namespace_to_the_next() {
    let (mut glue, a, b) = held();
    glue.hold_io = true;
    let write = io(opcode::WRITE, 0, 1);
    glue.send_with_data(a.queue, write, &pattern(5, BLOCK as usize));
    send_acquire(&mut glue, b, preempt(Acquire::PREEMPT_AND_ABORT));
    glue.drop_socket(b.queue);
    let c = glue.host(3);
    let register = super::hosts::key(c);
    let sqe = register.encode().with_nsid(NamespaceId(1));
    glue.send_with_data(c.queue, sqe, &register.data());
    assert!(glue.replies(c.queue).is_empty(), "one at a time");
    glue.finish_held();
    assert_eq!(status(&mut glue, c), Status::SUCCESS);
    assert_eq!(glue.report(c).0.regctl, 2);
}

#[test]
fn abort_leaves_other_namespaces_and_hosts_alone() {
    let (mut glue, a, b) = held();
    glue.add_namespace(2);
    let data = pattern(7, 8192);
    let elsewhere = io(opcode::WRITE, 0, 16).with_nsid(NamespaceId(2));
    glue.send(a.queue, elsewhere);
    let Reply::R2t(r2t) = glue.reply(a.queue) else {
        panic!("no R2T")
    };
    let abort = preempt(Acquire::PREEMPT_AND_ABORT);
    assert_eq!(glue.acquire(b, abort), Status::SUCCESS);
    let bytes = glue.h2c(a.queue, h2c_data(&r2t), &data);
    glue.receive(a.queue, &bytes);
    assert_eq!(status(&mut glue, a), Status::SUCCESS);
    assert_eq!(glue.disks[&2][..8192], data);
}
