//! Controllers and connections: reset, shutdown, keep-alive, fencing, disconnect, stop.

use bowline_nvme::fabrics::{Connect, Disconnect};
use bowline_nvme::feature::{GetFeatures, SetFeatures, id as fid};
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::{Digests, Direction, Fes, TermReq, Violation};
use bowline_nvme::{NamespaceId, Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::{ConnId, IoOp, Path, TargetConfig};

use crate::glue::{BLOCK, CC_ENABLE, Glue, HOSTNQN, Reply, SUBNQN, geometry, io};

const RDY: u32 = 1;
const CFS: u32 = 2;
const SHST_BUSY: u32 = 1 << 2;
const SHST_COMPLETE: u32 = 2 << 2;
const SHN_NORMAL: u32 = 1 << 14;

#[test]
fn reset_closes_io_queues_and_clears_ready_last() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    glue.set_cc(admin, 0);
    assert!(!glue.is_open(queue));
    assert_eq!(glue.csts(admin), RDY, "a write is still at its device");
    glue.finish_held();
    assert_eq!(glue.csts(admin), 0);
    glue.set_cc(admin, CC_ENABLE);
    assert_eq!(glue.csts(admin), RDY);
    assert!(glue.is_open(admin));
}

#[test]
fn enable_during_a_reset_takes_effect_when_it_is_done() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send(queue, io(opcode::READ, 0, 1));
    glue.set_cc(admin, 0);
    glue.set_cc(admin, CC_ENABLE);
    let sequence = glue.command(admin, Sqe::new(admin::KEEP_ALIVE)).status;
    assert!(sequence.same_code(Status::COMMAND_SEQUENCE_ERROR));
    glue.finish_held();
    assert_eq!(glue.csts(admin), RDY);
    assert_eq!(
        glue.command(admin, Sqe::new(admin::KEEP_ALIVE)).status,
        Status::SUCCESS
    );
}

#[test]
fn reset_drops_event_requests_and_settings() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    let aer = Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0));
    let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 0x100).encode();
    for _ in 0..3 {
        assert_eq!(glue.command(admin, aec).status, Status::SUCCESS);
        for _ in 0..4 {
            glue.send(admin, aer);
        }
        assert!(glue.replies(admin).is_empty());
        glue.send(admin, aer);
        assert!(
            glue.reply(admin)
                .cqe()
                .status
                .same_code(Status::AER_LIMIT_EXCEEDED)
        );
        glue.set_cc(admin, 0);
        glue.set_cc(admin, CC_ENABLE);
        let config = glue.command(
            admin,
            GetFeatures::current(fid::ASYNC_EVENT_CONFIG).encode(),
        );
        assert_eq!(config.result, 0);
    }
}

#[test]
fn settings_that_cannot_work_are_a_fatal_status_and_not_a_failed_command() {
    for cc in [
        0x0000_0001,
        0x0045_0001,
        0x0046_0081,
        0x0046_0801,
        0x0046_0061,
        0x0146_0001,
    ] {
        let mut glue = Glue::new();
        let (admin, _) = glue.admin_with(Digests::NONE, 0);
        glue.set_cc(admin, cc);
        assert_eq!(glue.csts(admin), CFS, "{cc:#x}");
        glue.set_cc(admin, 0);
        assert_eq!(glue.csts(admin), 0);
        glue.set_cc(admin, CC_ENABLE);
        assert_eq!(glue.csts(admin), RDY);
    }
}

#[test]
fn shutdown_flushes_every_volatile_namespace_before_it_is_complete() {
    let mut glue = Glue::new();
    glue.add_namespace(2);
    glue.add_namespace(3);
    let durable = bowline_nvmf::target::NsGeometry {
        volatile_cache: false,
        ..geometry()
    };
    glue.target
        .update_namespace(glue.now, SUBNQN, 2, durable)
        .expect("valid");
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
    assert_eq!(glue.csts(admin), RDY | SHST_BUSY);
    glue.hold_io = false;
    glue.finish_held();
    assert_eq!(glue.csts(admin), RDY | SHST_COMPLETE);
    assert_eq!(glue.flushes, 2);
    assert_eq!(glue.reply(queue).cqe().status, Status::SUCCESS, "the write");
    let late = glue.read_data(queue, io(opcode::READ, 0, 1), BLOCK);
    assert!(late.is_err_and(|status| status.same_code(Status::COMMAND_SEQUENCE_ERROR)));
    // A reset starts over.
    glue.set_cc(admin, 0);
    assert_eq!(glue.csts(admin), 0);
}

/// A host that went while the Flush of its shutdown was at a device left its admin connection
/// behind: nobody looked again when the Flush came back. Each took a place among the connections.
#[test]
fn connection_lost_during_the_flush_of_a_shutdown_is_forgotten() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    glue.hold_io = true;
    glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
    glue.drop_socket(admin);
    assert_eq!(
        glue.target.connections().len(),
        1,
        "the Flush is at its device"
    );
    glue.finish_held();
    assert!(glue.target.connections().is_empty());
}

#[test]
fn failed_flush_makes_the_shutdown_a_fatal_one() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    glue.failures.push_back(Status::WRITE_FAULT);
    glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
    assert_eq!(glue.csts(admin), RDY | SHST_COMPLETE | CFS);
}

#[test]
fn association_outlives_a_shutdown_by_two_minutes() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
    glue.advance(Nanos::from_secs(119));
    assert!(glue.is_open(admin));
    glue.advance(Nanos::from_secs(2));
    assert!(!glue.is_open(admin));
    assert!(glue.target.subsystems()[0].controllers.is_empty());
}

#[test]
fn silent_host_loses_its_association() {
    let mut glue = Glue::new();
    let (admin, cntlid) = glue.enabled(Digests::NONE, 5000);
    let queue = glue.io_queue(Digests::NONE, cntlid, 1);
    for _ in 0..5 {
        glue.advance(Nanos::from_millis(4900));
        glue.command(admin, Sqe::new(admin::KEEP_ALIVE));
    }
    assert!(glue.is_open(admin) && glue.is_open(queue));
    // Any traffic counts, on any queue, and its completion too.
    glue.advance(Nanos::from_millis(4900));
    glue.hold_io = true;
    glue.send(queue, io(opcode::READ, 0, 1));
    glue.advance(Nanos::from_millis(4900));
    glue.hold_io = false;
    glue.finish_held();
    glue.advance(Nanos::from_millis(4900));
    assert!(glue.is_open(admin));
    glue.advance(Nanos::from_millis(200));
    assert!(!glue.is_open(admin) && !glue.is_open(queue));
    assert_eq!(glue.target.counters().keep_alive_expired, 1);
}

#[test]
fn keep_alive_timeout_is_rounded_up_and_cannot_be_switched_off() {
    let mut glue = Glue::new();
    let (admin, _) = glue.enabled(Digests::NONE, 1234);
    let get = GetFeatures::current(fid::KEEP_ALIVE_TIMER).encode();
    assert_eq!(glue.command(admin, get).result, 1300);
    let set = |ms| SetFeatures::new(fid::KEEP_ALIVE_TIMER, ms).encode();
    assert!(
        glue.command(admin, set(0))
            .status
            .same_code(Status::KATO_INVALID)
    );
    assert_eq!(glue.command(admin, set(60_000)).status, Status::SUCCESS);
    assert_eq!(glue.command(admin, get).result, 60_000);
    glue.advance(Nanos::from_secs(59));
    assert!(glue.is_open(admin));
    glue.advance(Nanos::from_secs(2));
    assert!(!glue.is_open(admin));
}

#[test]
fn next_association_waits_for_the_writes_of_the_last() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    glue.drop_socket(admin);
    assert!(!glue.is_open(queue), "the association has ended");

    let connect = Glue::connect_command(0, 31).encode();
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF).encode();
    let next = glue.initialized(Digests::NONE);
    glue.send_with_data(next, connect, &data);
    assert!(glue.replies(next).is_empty(), "held");
    glue.finish_held();
    assert_eq!(glue.reply(next).cqe().status, Status::SUCCESS);
    assert_eq!(glue.target.subsystems()[0].controllers.len(), 1);
}

#[test]
fn next_association_waits_for_the_writes_of_a_queue_that_stays_to_say_why_it_ended() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    glue.receive(queue, &[0xFF; 24]);
    glue.drop_socket(admin);
    assert!(glue.is_open(queue), "it lingers");

    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    let next = glue.initialized(Digests::NONE);
    glue.send_with_data(next, Glue::connect_command(0, 31).encode(), &data.encode());
    assert!(glue.replies(next).is_empty(), "held");
    glue.finish_held();
    glue.hold_io = false;
    let cqe = glue.reply(next).cqe();
    assert_eq!(cqe.status, Status::SUCCESS);
    glue.set_cc(next, CC_ENABLE);
    let cntlid = u16::try_from(cqe.result & 0xFFFF).expect("16 bits");
    let next_queue = glue.io_queue(Digests::NONE, cntlid, 1);

    // The old queue goes by itself and takes nothing of the new association with it.
    glue.advance(Nanos::from_secs(11));
    assert!(!glue.is_open(queue) && glue.is_open(next_queue));
    assert_eq!(
        glue.read_data(next_queue, io(opcode::READ, 0, 1), 512),
        Ok(vec![1; 512])
    );
    assert_eq!(glue.target.subsystems()[0].controllers.len(), 1);
}

#[test]
fn held_connect_is_told_to_come_again_rather_than_left_waiting() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    glue.drop_socket(admin);
    let next = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    glue.send_with_data(next, Glue::connect_command(0, 31).encode(), &data.encode());
    glue.advance(Nanos::from_secs(11));
    assert_eq!(glue.reply(next).cqe().status, Status::CONTROLLER_BUSY);
    glue.advance(Nanos::from_secs(1));
    assert!(glue.is_open(next), "the time it was held is not its own");
    glue.finish_held();
    assert!(
        glue.connect(next, Glue::connect_command(0, 31), &data)
            .status
            .is_success()
    );
}

#[test]
fn loss_of_an_io_queue_leaves_the_controller() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.drop_socket(queue);
    assert_eq!(glue.csts(admin), RDY);
    assert!(
        glue.target.subsystems()[0].controllers[0]
            .io_queues
            .is_empty()
    );
}

#[test]
fn disconnect_ends_an_io_queue_and_is_not_for_the_admin_queue() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    let disconnect = Disconnect::default().encode();
    let refused = glue.command(admin, disconnect).status;
    assert!(refused.same_code(Status::INVALID_QUEUE_TYPE));
    let malformed = glue
        .command(queue, Disconnect { recfmt: 1 }.encode())
        .status;
    assert!(malformed.same_code(Status::CONNECT_INCOMPATIBLE_FORMAT));
    assert_eq!(glue.command(queue, disconnect).status, Status::SUCCESS);
    assert!(!glue.is_open(queue) && glue.is_open(admin));
}

#[test]
fn abort_tells_the_truth() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    let abort =
        |sqid: u32, cid: u16| Sqe::new(admin::ABORT).with_cdw(10, sqid | u32::from(cid) << 16);
    let aer = glue.send(
        admin,
        Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0)),
    );
    glue.send(admin, abort(0, aer.0).with_sgl1(Sgl::transport(0)));
    let replies = glue.replies(admin);
    assert_eq!(replies[0].cqe().cid, aer);
    assert!(
        replies[0]
            .cqe()
            .status
            .same_code(Status::ABORTED_BY_REQUEST)
    );
    assert_eq!(replies[1].cqe().result, 0, "aborted");
    glue.hold_io = true;
    let read = glue.send(queue, io(opcode::READ, 0, 1));
    let cqe = glue.command(admin, abort(1, read.0));
    assert_eq!(
        (cqe.status, cqe.result),
        (Status::SUCCESS, 1),
        "not aborted"
    );
    assert_eq!(glue.command(admin, abort(0, 999)).result, 1);
}

#[test]
fn host_no_longer_allowed_is_gone() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.target
        .allow_host(SUBNQN, "nqn.2026-11.io.bowline:other")
        .expect("valid");
    glue.target
        .disallow_host(glue.now, SUBNQN, HOSTNQN)
        .expect("known");
    glue.pump();
    assert!(!glue.is_open(admin) && !glue.is_open(queue));
    let id = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    assert!(cqe.status.same_code(Status::CONNECT_INVALID_HOST));
    glue.target.allow_any(SUBNQN).expect("known");
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    assert_eq!(cqe.status, Status::SUCCESS);
}

#[test]
fn removed_subsystem_takes_its_controllers_along_and_waits_for_their_commands() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    glue.target
        .remove_subsystem(glue.now, SUBNQN)
        .expect("known");
    glue.pump();
    assert!(!glue.is_open(admin) && !glue.is_open(queue));
    assert!(glue.target.subsystems().is_empty());
    assert!(glue.target.remove_subsystem(glue.now, SUBNQN).is_err());
    glue.finish_held();
    assert!(glue.target.connections().is_empty());
}

#[test]
fn stop_answers_what_runs_and_closes_with_fin() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    let waiting = glue.open();
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    glue.send(queue, io(opcode::WRITE, 8, 64));
    assert!(matches!(glue.reply(queue), Reply::R2t(_)));
    glue.target.stop(glue.now);
    glue.pump();
    assert_eq!(glue.conn(waiting).closed, Some(true));
    assert_eq!(glue.conn(admin).closed, Some(true));
    assert!(glue.is_open(queue) && !glue.target.is_stopped());
    // Input is swallowed: nothing new begins.
    glue.send(queue, io(opcode::READ, 0, 1));
    glue.hold_io = false;
    glue.finish_held();
    assert_eq!(glue.reply(queue).cqe().status, Status::SUCCESS);
    assert_eq!(glue.conn(queue).closed, Some(true));
    assert!(glue.target.is_stopped());
}

#[test]
fn connect_during_stop_is_busy_and_may_be_retried() {
    let mut glue = Glue::new();
    glue.target.stop(glue.now);
    let id = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    assert_eq!(cqe.status, Status::CONTROLLER_BUSY);
    assert_eq!(glue.conn(id).closed, Some(true));
}

#[test]
fn stop_does_not_wait_for_ever() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send(queue, io(opcode::READ, 0, 1));
    glue.target.stop(glue.now);
    glue.pump();
    assert!(glue.is_open(queue));
    glue.advance(Nanos::from_secs(21));
    assert!(!glue.is_open(queue));
    glue.finish_held();
    assert!(glue.target.is_stopped());
}

#[test]
fn hosts_that_say_nothing_are_not_waited_for() {
    let mut glue = Glue::new();
    let silent = glue.open();
    let half = glue.initialized(Digests::NONE);
    glue.advance(Nanos::from_secs(9));
    assert!(glue.is_open(silent) && glue.is_open(half));
    glue.advance(Nanos::from_secs(2));
    assert!(!glue.is_open(silent) && !glue.is_open(half));
}

#[test]
fn connections_are_limited_in_all_and_per_address() {
    let config = TargetConfig {
        connections_max: 5,
        unassociated_per_address_max: 3,
        ..TargetConfig::default()
    };
    let mut glue = Glue::with(config);
    glue.admin();
    for _ in 0..3 {
        glue.open();
    }
    assert!(glue.target.open(glue.now, Path::default()).is_none());
    let mut elsewhere = Path::default();
    elsewhere
        .peer
        .set_ip("10.0.0.1".parse().expect("an address"));
    assert!(glue.target.open(glue.now, elsewhere).is_some());
    assert!(glue.target.open(glue.now, elsewhere).is_none());
    assert_eq!(glue.target.counters().connections_refused, 2);
}

#[test]
fn hosts_term_req_is_not_answered() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests {
        header: true,
        data: true,
    });
    let term = TermReq::new(Violation::new(Fes::SEQUENCE_ERROR), &[1; 24]);
    let (bytes, len) = term.encode(Direction::HostToController);
    glue.receive(queue, &bytes[..len]);
    assert!(!glue.is_open(queue) && glue.is_open(admin));
    assert!(glue.replies(queue).is_empty());
}

#[test]
fn keep_alive_of_connect_counts_only_once_ready() {
    let mut glue = Glue::new();
    let id = glue.initialized(Digests::NONE);
    let command = Connect {
        kato_ms: 1000,
        ..Glue::connect_command(0, 31)
    };
    glue.connect(id, command, &Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF));
    glue.advance(Nanos::from_secs(30));
    assert!(glue.is_open(id));
    glue.set_cc(id, CC_ENABLE);
    glue.advance(Nanos::from_millis(900));
    assert!(glue.is_open(id));
    glue.advance(Nanos::from_millis(200));
    assert!(!glue.is_open(id));
}

/// A shutdown asked for while a reset drained was never begun. CSTS.SHST stayed "in progress",
/// and the host waited until it gave up.
#[test]
fn shutdown_during_a_reset_completes_when_the_reset_has() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
    glue.set_cc(admin, 0);
    glue.set_cc(admin, SHN_NORMAL);
    assert_eq!(glue.csts(admin), RDY | SHST_BUSY);
    glue.hold_io = false;
    glue.finish_held();
    assert_eq!(glue.csts(admin), SHST_COMPLETE);
    assert_eq!(glue.flushes, 1);
}

/// Commands whose Execute waited to be polled were not counted as accepted. The Flush of a
/// shutdown could pass them, and the shutdown was complete with their data still volatile.
#[test]
fn nothing_accepted_reaches_its_device_beside_the_flush_of_a_shutdown() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    accept_write_zeroes(&mut glue, queue);
    glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
    let status = glue.reply(queue).cqe().status;
    assert!(status.same_code(Status::COMMAND_SEQUENCE_ERROR));
    assert_eq!(glue.held.len(), 1);
    assert_eq!(glue.held[0].2.op, IoOp::Flush);
    glue.hold_io = false;
    glue.finish_held();
    assert_eq!(glue.csts(admin), RDY | SHST_COMPLETE);
}

/// The same was true of commands whose ranges had come and had not been looked at.
#[test]
fn ranges_looked_at_after_a_shutdown_began_are_not_run() {
    for sqe in [
        Sqe::new(opcode::COPY).with_copy(100, 0),
        Sqe::new(opcode::DATASET_MANAGEMENT).with_ranges(0, true),
    ] {
        let mut glue = Glue::new();
        let (admin, queue) = glue.queues(Digests::NONE);
        glue.hold_io = true;
        let sqe = sqe
            .with_nsid(NamespaceId(1))
            .with_cid(glue.next_cid(queue))
            .with_sgl1(Sgl::in_capsule(32));
        // Read as either list it names some blocks.
        let bytes = glue.capsule(queue, sqe, &[0, 0, 0, 0, 1, 0, 0, 0].repeat(4));
        glue.receive_only(queue, &bytes);
        glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
        let status = glue.reply(queue).cqe().status;
        assert!(
            status.same_code(Status::COMMAND_SEQUENCE_ERROR),
            "{status:?}"
        );
        assert_eq!(glue.held.len(), 1);
        assert_eq!(glue.held[0].2.op, IoOp::Flush);
    }
}

/// The end of an association passed over queues that drained after Disconnect. What they had
/// accepted could reach its device after the writes of the next association.
#[test]
fn queue_that_drains_executes_nothing_after_its_association_has_ended() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    accept_write_zeroes(&mut glue, queue);
    let cid = glue.next_cid(queue);
    let disconnect = Disconnect::default().encode().with_cid(cid);
    let bytes = glue.capsule(queue, disconnect.with_sgl1(Sgl::transport(0)), &[]);
    assert_eq!(
        glue.target.handle_bytes(glue.now, queue, &bytes),
        bytes.len()
    );
    glue.drop_socket(admin);
    assert!(glue.held.is_empty());
    assert!(!glue.is_open(queue));
    assert!(glue.target.subsystems()[0].controllers.is_empty());
}

/// A Write Zeroes arrives, and its Execute is not polled yet.
fn accept_write_zeroes(glue: &mut Glue, queue: ConnId) {
    let cid = glue.next_cid(queue);
    let zeroes = io(opcode::WRITE_ZEROES, 0, 1).with_cid(cid);
    let bytes = glue.capsule(queue, zeroes.with_sgl1(Sgl::transport(0)), &[]);
    let used = glue.target.handle_bytes(glue.now, queue, &bytes);
    assert_eq!(used, bytes.len());
}
