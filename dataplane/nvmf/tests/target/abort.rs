//! Abort: what is given up, what is not, and that Abort says which. [BASE-2.0 §5.1]

use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::{Digests, H2CData};
use bowline_nvme::{CommandId, Cqe, Fuse, Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::ConnId;

use crate::glue::{Glue, Reply, h2c_data, io};

const ABORTED: Status = Status::ABORTED_BY_REQUEST;

fn abort(sqid: u16, cid: CommandId) -> Sqe {
    Sqe::new(admin::ABORT)
        .with_cdw(10, u32::from(cid.0) << 16 | u32::from(sqid))
        .with_sgl1(Sgl::transport(0))
}

/// Aborts a command and expects an answer at once: 0 if it was aborted.
fn abort_now(glue: &mut Glue, admin: ConnId, sqid: u16, cid: CommandId) -> u64 {
    let cqe = glue.command(admin, abort(sqid, cid));
    assert_eq!(cqe.status, Status::SUCCESS);
    cqe.result
}

/// The one completion of `cid`.
fn ended(glue: &mut Glue, queue: ConnId, cid: CommandId) -> Status {
    let Cqe {
        cid: found, status, ..
    } = glue.reply(queue).cqe();
    assert_eq!(found, cid);
    Status::new(status.sct(), status.sc())
}

#[test]
fn command_that_waits_for_a_buffer_is_aborted_at_once() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.no_buffers = true;
    let cid = glue.send(queue, io(opcode::WRITE, 0, 16));
    assert_eq!(glue.wanted.len(), 1);
    assert_eq!(abort_now(&mut glue, admin, 1, cid), 0);
    assert_eq!(ended(&mut glue, queue, cid), ABORTED);
    assert!(glue.wanted.is_empty());
    glue.no_buffers = false;
    let again = glue.write_by_r2t(queue, io(opcode::WRITE, 0, 2), &[5; 1024]);
    assert_eq!(again.status, Status::SUCCESS);
}

#[test]
fn data_asked_for_is_taken_and_dropped_before_the_abort_is_answered() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    let cid = glue.send(queue, io(opcode::WRITE, 0, 16));
    let Reply::R2t(r2t) = glue.reply(queue) else {
        panic!("expected an R2T")
    };
    let aborting = glue.send(admin, abort(1, cid));
    assert!(glue.replies(admin).is_empty() && glue.replies(queue).is_empty());
    // Its id is still taken, and a second Abort does nothing.
    assert_eq!(abort_now(&mut glue, admin, 1, cid), 1);
    for (datao, last) in [(0, false), (4096, true)] {
        let pdu = H2CData {
            datao,
            datal: 4096,
            last,
            ..h2c_data(&r2t)
        };
        let bytes = glue.h2c(queue, pdu, &[7; 4096]);
        glue.receive(queue, &bytes);
    }
    assert_eq!(ended(&mut glue, queue, cid), ABORTED);
    let answer = glue.reply(admin).cqe();
    assert_eq!((answer.cid, answer.result), (aborting, 0));
    assert!(glue.is_open(queue));
    assert!(glue.disks[&1].iter().all(|byte| *byte == 0));
    assert_eq!(glue.conn(queue).buffers_bound(), 0);
}

#[test]
fn abort_in_the_middle_of_a_data_pdu_drops_the_rest() {
    let digests = Digests {
        header: true,
        data: true,
    };
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(digests);
    let cid = glue.send(queue, io(opcode::WRITE, 0, 16));
    let Reply::R2t(r2t) = glue.reply(queue) else {
        panic!("expected an R2T")
    };
    let bytes = glue.h2c(queue, h2c_data(&r2t), &[7; 8192]);
    glue.receive(queue, &bytes[..4000]);
    glue.send(admin, abort(1, cid));
    glue.receive(queue, &bytes[4000..]);
    assert_eq!(ended(&mut glue, queue, cid), ABORTED);
    assert_eq!(glue.reply(admin).cqe().result, 0);
    assert!(glue.is_open(queue));
    let write = glue.write_by_r2t(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    assert_eq!(write.status, Status::SUCCESS);
}

#[test]
fn host_that_never_sends_the_data_loses_the_queue_and_learns_that_nothing_was_aborted() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    let cid = glue.send(queue, io(opcode::WRITE, 0, 16));
    glue.send(admin, abort(1, cid));
    glue.advance(Nanos::from_secs(3600));
    assert!(!glue.is_open(queue));
    assert_eq!(glue.reply(admin).cqe().result, 1);
}

#[test]
fn command_handed_out_is_aborted_only_if_it_has_not_begun() {
    for unstarted in [true, false] {
        let mut glue = Glue::new();
        let (admin, queue) = glue.queues(Digests::NONE);
        (glue.hold_io, glue.unstarted) = (true, unstarted);
        let cid = glue.send(queue, io(opcode::READ, 0, 1));
        assert_eq!(abort_now(&mut glue, admin, 1, cid), u64::from(!unstarted));
        if unstarted {
            assert_eq!(ended(&mut glue, queue, cid), ABORTED);
            assert!(glue.held.is_empty());
        } else {
            assert!(glue.replies(queue).is_empty());
        }
        glue.finish_held();
        assert_eq!(glue.replies(queue).is_empty(), unstarted, "one completion");
        assert_eq!(abort_now(&mut glue, admin, 1, cid), 1, "it has ended");
    }
}

#[test]
fn command_at_its_device_whose_queue_is_lost_is_not_aborted() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    (glue.hold_io, glue.unstarted) = (true, true);
    let cid = glue.send(queue, io(opcode::READ, 0, 1));
    glue.drop_socket(queue);
    assert_eq!(abort_now(&mut glue, admin, 1, cid), 1);
    glue.finish_held();
    assert!(glue.is_open(admin) && glue.replies(admin).is_empty());
}

#[test]
fn half_of_a_pair_takes_the_other_with_it() {
    let failed = Status::ABORTED_FAILED_FUSED;
    for half in [0, 1] {
        for held in [false, true] {
            let mut glue = Glue::new();
            let (admin, queue) = glue.queues(Digests::NONE);
            (glue.hold_io, glue.unstarted) = (true, true);
            let first = io(opcode::COMPARE, 8, 1).with_fuse(Fuse::First);
            let second = io(opcode::WRITE, 8, 1).with_fuse(Fuse::Second);
            let one = glue.send_with_data(queue, first, &[0; 512]);
            let other = if held {
                glue.send_with_data(queue, second, &[1; 512])
            } else {
                glue.send(queue, second)
            };
            let r2t = glue.replies(queue).into_iter().next();
            let cid = [one, other][half];
            glue.send(admin, abort(1, cid));
            if let Some(Reply::R2t(r2t)) = r2t {
                let bytes = glue.h2c(queue, h2c_data(&r2t), &[1; 512]);
                glue.receive(queue, &bytes);
            }
            assert_eq!(glue.reply(admin).cqe().result, 0);
            let mut found: Vec<_> = glue.replies(queue).iter().map(Reply::cqe).collect();
            found.sort_by_key(|cqe| cqe.cid);
            let found: Vec<_> = found
                .iter()
                .map(|cqe| Status::new(cqe.status.sct(), cqe.status.sc()))
                .collect();
            let mut expected = [failed, failed];
            expected[half] = ABORTED;
            assert_eq!(found, expected, "{half} {held}");
            glue.finish_held();
            assert!(glue.replies(queue).is_empty(), "one completion each");
            assert!(glue.disks[&1].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn more_aborts_than_acl_allows_are_refused() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    let cids: Vec<_> = (0..5)
        .map(|_| glue.send(queue, io(opcode::WRITE, 0, 16)))
        .collect();
    let r2ts = glue.replies(queue);
    for cid in &cids[..4] {
        glue.send(admin, abort(1, *cid));
    }
    assert!(glue.replies(admin).is_empty());
    let status = glue.command(admin, abort(1, cids[4])).status;
    assert!(status.same_code(Status::ABORT_LIMIT_EXCEEDED));
    let Reply::R2t(r2t) = &r2ts[0] else {
        panic!("{r2ts:?}")
    };
    let bytes = glue.h2c(queue, h2c_data(r2t), &[7; 8192]);
    glue.receive(queue, &bytes);
    assert_eq!(glue.reply(admin).cqe().result, 0);
    assert_eq!(ended(&mut glue, queue, cids[0]), ABORTED);
    // A reset ends the rest without a word.
    glue.send(admin, abort(1, cids[4]));
    glue.set_cc(admin, 0);
    glue.set_cc(admin, crate::glue::CC_ENABLE);
    assert_eq!(abort_now(&mut glue, admin, 1, cids[1]), 1);
}

#[test]
fn abort_of_event_requests_and_of_what_is_not_there() {
    let mut glue = Glue::new();
    let (admin, _) = glue.queues(Digests::NONE);
    let event = glue.send(
        admin,
        Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0)),
    );
    assert_eq!(abort_now(&mut glue, admin, 1, event), 1, "another queue");
    assert_eq!(abort_now(&mut glue, admin, 7, event), 1, "no queue");
    glue.send(admin, abort(0, event));
    let replies = glue.replies(admin);
    let cqes: Vec<_> = replies.iter().map(Reply::cqe).collect();
    assert_eq!(cqes.len(), 2);
    assert!(cqes[0].cid == event && cqes[0].status.same_code(ABORTED));
    assert_eq!(cqes[1].result, 0);
    // Itself.
    let own = CommandId(cqes[1].cid.0 + 1);
    assert_eq!(abort_now(&mut glue, admin, 0, own), 1);
}
