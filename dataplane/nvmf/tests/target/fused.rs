//! Fused Compare and Write: every way in which a pair is broken, and what each half is told.
//! [BASE-2.0 §3.4.2]

use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{CommandId, Fuse, NamespaceId, Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::{ConnId, IoOp, NamespaceConfig, NsGeometry, TargetConfig};

use crate::glue::{
    BLOCK, CC_ENABLE, Glue, HOSTNQN, Reply, SUBNQN, geometry, h2c_data, io, namespace, pattern,
};

const MISSING: Status = Status::ABORTED_MISSING_FUSED;
const FAILED: Status = Status::ABORTED_FAILED_FUSED;
const OK: Status = Status::SUCCESS;

fn first(lba: u64, blocks: u32) -> Sqe {
    io(opcode::COMPARE, lba, blocks).with_fuse(Fuse::First)
}

fn second(lba: u64, blocks: u32) -> Sqe {
    io(opcode::WRITE, lba, blocks).with_fuse(Fuse::Second)
}

/// Statuses by command, in the order of the commands; the More bit is left out.
fn statuses(glue: &mut Glue, queue: ConnId) -> Vec<Status> {
    let mut cqes: Vec<_> = glue.replies(queue).iter().map(Reply::cqe).collect();
    cqes.sort_by_key(|cqe| cqe.cid);
    cqes.iter().map(|cqe| plain(cqe.status)).collect()
}

fn plain(status: Status) -> Status {
    let plain = Status::new(status.sct(), status.sc());
    if status.is_dnr() { plain.dnr() } else { plain }
}

/// Sends a half with its data in the capsule.
fn send(glue: &mut Glue, queue: ConnId, sqe: Sqe, byte: u8) -> CommandId {
    let len = sqe.sgl1().length as usize;
    glue.send_with_data(queue, sqe, &vec![byte; len])
}

#[test]
fn pair_compares_and_writes_as_one_command_of_two() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    send(&mut glue, queue, first(8, 2), 0);
    assert!(glue.replies(queue).is_empty(), "alone it does nothing");
    send(&mut glue, queue, second(8, 2), 7);
    assert_eq!(statuses(&mut glue, queue), [OK, OK]);
    let block = BLOCK as usize;
    assert_eq!(glue.disks[&1][8 * block..10 * block], [7; 1024]);
    send(&mut glue, queue, first(8, 2), 0);
    send(&mut glue, queue, second(8, 2), 9);
    let differs = Status::COMPARE_FAILURE.dnr();
    assert_eq!(statuses(&mut glue, queue), [differs, FAILED]);
    assert_eq!(glue.disks[&1][8 * block..10 * block], [7; 1024]);
    assert_eq!(glue.conn(queue).buffers_bound(), 0);
}

/// Each half ended, but only one had begun: the time was counted twice, or not at all beside others.
#[test]
fn time_of_a_pair_at_its_device_is_counted_once() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let busy = |glue: &Glue| glue.target.health(glue.now, SUBNQN).expect("there").busy;
    let minute = Nanos::from_secs(60);
    glue.hold_io = true;
    glue.send(queue, io(opcode::READ, 0, 1));
    let read = glue.held.pop_front().expect("at its device");
    send(&mut glue, queue, first(8, 2), 0);
    send(&mut glue, queue, second(8, 2), 7);
    glue.advance(minute);
    glue.finish_held();
    assert_eq!(busy(&glue), minute);
    glue.advance(minute);
    assert_eq!(busy(&glue), minute + minute, "the Read is still there");
    glue.held.push_back(read);
    glue.finish_held();
    glue.advance(minute);
    assert_eq!(busy(&glue), minute + minute);
}

type Case = (&'static str, Vec<Sqe>, Vec<Status>);

const fn field() -> Status {
    Status::INVALID_FIELD.dnr()
}

fn elsewhere(sqe: Sqe) -> Sqe {
    sqe.with_nsid(NamespaceId(2))
}

/// Halves without each other, or without agreement about the blocks.
fn mismatches() -> Vec<Case> {
    let gone = Status::INVALID_NAMESPACE.dnr();
    vec![
        ("second alone", vec![second(8, 1)], vec![MISSING]),
        ("first, then another", vec![first(8, 1)], vec![MISSING]),
        (
            "two firsts, and a second for the latter",
            vec![first(8, 1), first(0, 1), second(0, 1)],
            vec![MISSING, OK, OK],
        ),
        (
            "second after a pair",
            vec![first(0, 1), second(0, 1), second(0, 1)],
            vec![OK, OK, MISSING],
        ),
        (
            "other blocks",
            vec![first(8, 1), second(9, 1)],
            vec![field(), field()],
        ),
        (
            "other length",
            vec![first(8, 1), second(8, 2)],
            vec![field(), field()],
        ),
        (
            "other namespace",
            vec![first(8, 1), elsewhere(second(8, 1))],
            vec![FAILED, gone],
        ),
        (
            "unknown namespace",
            vec![elsewhere(first(8, 1)), second(8, 1)],
            vec![gone, FAILED],
        ),
    ]
}

/// Halves that are refused by themselves.
fn refusals() -> Vec<Case> {
    let write = || io(opcode::WRITE, 8, 1);
    let compare = || io(opcode::COMPARE, 8, 1);
    let far = || first(1 << 40, 1);
    let out = Status::LBA_OUT_OF_RANGE.dnr();
    vec![
        (
            "first is a write",
            vec![write().with_fuse(Fuse::First), second(8, 1)],
            vec![field(), FAILED],
        ),
        (
            "second is a compare",
            vec![first(8, 1), compare().with_fuse(Fuse::Second)],
            vec![FAILED, field()],
        ),
        (
            "reserved value",
            vec![write().with_fuse(Fuse::Reserved)],
            vec![field()],
        ),
        (
            "reserved value after a first",
            vec![first(8, 1), write().with_fuse(Fuse::Reserved)],
            vec![MISSING, field()],
        ),
        (
            "first refused, and the failure is not inherited",
            vec![far(), second(8, 1), second(8, 1)],
            vec![out, FAILED, MISSING],
        ),
        (
            "first refused, then another",
            vec![far(), io(opcode::COMPARE, 8, 1)],
            vec![out, OK],
        ),
    ]
}

#[test]
fn broken_pairs_are_refused_and_write_nothing() {
    for (what, commands, expected) in mismatches().into_iter().chain(refusals()) {
        let mut glue = Glue::new();
        let (_, queue) = glue.queues(Digests::NONE);
        // The last command is one that works, and is not touched by those before.
        for sqe in commands {
            send(&mut glue, queue, sqe, 0);
        }
        glue.send(queue, io(opcode::FLUSH, 0, 1).with_sgl1(Sgl::transport(0)));
        let found = statuses(&mut glue, queue);
        assert_eq!(found, [expected, vec![OK]].concat(), "{what}");
        assert!(glue.disks[&1].iter().all(|byte| *byte == 0), "{what}");
        assert_eq!(glue.conn(queue).buffers_bound(), 0, "{what}");
    }
}

#[test]
fn halves_too_large_to_be_one_are_refused() {
    let config = TargetConfig {
        mdts_bytes: 64 << 10,
        ..TargetConfig::default()
    };
    for (blocks, status) in [
        (129, Status::INVALID_FIELD.dnr()),
        (65, Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr()),
    ] {
        let mut glue = Glue::with(config.clone());
        let (_, queue) = glue.queues(Digests::NONE);
        glue.send(queue, first(0, blocks));
        glue.send(queue, second(0, blocks));
        assert_eq!(statuses(&mut glue, queue), [status, FAILED]);
        glue.send(queue, first(0, 64));
        glue.send(queue, second(0, blocks));
        assert_eq!(statuses(&mut glue, queue), [FAILED, status]);
    }
}

#[test]
fn fused_admin_commands_are_refused() {
    let mut glue = Glue::new();
    let (admin, _) = glue.queues(Digests::NONE);
    for fuse in [Fuse::First, Fuse::Second, Fuse::Reserved] {
        let sqe = Sqe::new(admin::KEEP_ALIVE).with_fuse(fuse);
        let status = plain(glue.command(admin, sqe).status);
        assert_eq!(status, Status::INVALID_FIELD.dnr());
    }
    assert_eq!(glue.command(admin, Sqe::new(admin::KEEP_ALIVE)).status, OK);
}

/// Answers the R2T that has come, which is for `cid`.
fn answer(glue: &mut Glue, queue: ConnId, cid: CommandId, data: &[u8]) {
    let Reply::R2t(r2t) = glue.reply(queue) else {
        panic!("expected an R2T")
    };
    assert_eq!(r2t.cccid, cid);
    let bytes = glue.h2c(queue, h2c_data(&r2t), data);
    glue.receive(queue, &bytes);
}

#[test]
fn data_of_either_half_may_come_in_its_capsule_or_later() {
    let digests = Digests {
        header: true,
        data: true,
    };
    let (old, new) = (vec![0; 1024], pattern(3, 1024));
    for (late_first, late_second) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut glue = Glue::new();
        let (_, queue) = glue.queues(digests);
        let mut half = |sqe: Sqe, data: &[u8], late: bool| {
            if late {
                glue.send(queue, sqe)
            } else {
                glue.send_with_data(queue, sqe, data)
            }
        };
        let one = half(first(8, 2), &old, late_first);
        let other = half(second(8, 2), &new, late_second);
        if late_first {
            answer(&mut glue, queue, one, &old);
        }
        if late_second {
            answer(&mut glue, queue, other, &new);
        }
        assert_eq!(statuses(&mut glue, queue), [OK, OK]);
        assert_eq!(glue.disks[&1][8 * 512..10 * 512], new);
        assert_eq!(glue.conn(queue).buffers_bound(), 0);
    }
}

#[test]
fn damaged_data_of_a_half_fails_both() {
    let digests = Digests {
        header: false,
        data: true,
    };
    let damaged = Status::TRANSIENT_TRANSPORT;
    for late in [false, true] {
        for bad in [0, 1] {
            let mut glue = Glue::new();
            let (_, queue) = glue.queues(digests);
            for (at, sqe) in [first(8, 1), second(8, 1)].into_iter().enumerate() {
                glue.corrupt_crc = at == bad;
                if late {
                    glue.send(queue, sqe);
                } else {
                    send(&mut glue, queue, sqe, 0);
                }
            }
            for at in 0..if late { 2 } else { 0 } {
                glue.corrupt_crc = at == bad;
                let replies = glue.replies(queue);
                let Some(Reply::R2t(r2t)) = replies.first() else {
                    break;
                };
                let bytes = glue.h2c(queue, h2c_data(r2t), &[5; 512]);
                glue.receive(queue, &bytes);
                if bad == 0 {
                    break;
                }
            }
            let expected = if bad == 0 {
                [damaged, FAILED]
            } else {
                [FAILED, damaged]
            };
            assert_eq!(statuses(&mut glue, queue), expected, "{late} {bad}");
            assert!(glue.disks[&1].iter().all(|byte| *byte == 0));
            assert_eq!(glue.conn(queue).buffers_bound(), 0);
        }
    }
}

#[test]
fn command_id_in_use_breaks_the_pair() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let cid = send(&mut glue, queue, first(8, 1), 0);
    let data = vec![1; 512];
    let sqe = second(8, 1).with_cid(cid).with_sgl1(Sgl::in_capsule(512));
    let bytes = glue.capsule(queue, sqe, &data);
    glue.receive(queue, &bytes);
    let mut found: Vec<_> = glue
        .replies(queue)
        .iter()
        .map(|reply| plain(reply.cqe().status))
        .collect();
    found.sort_by_key(|status| status.bits());
    assert_eq!(found, [FAILED, Status::CID_CONFLICT.dnr()]);
}

#[test]
fn first_half_whose_second_never_comes_is_given_up_and_the_queue_lives() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    send(&mut glue, queue, first(8, 1), 0);
    glue.advance(Nanos::from_secs(3600));
    assert_eq!(statuses(&mut glue, queue), [MISSING]);
    assert!(glue.is_open(queue));
    assert_eq!(glue.conn(queue).buffers_bound(), 0);
    send(&mut glue, queue, second(8, 1), 1);
    assert_eq!(statuses(&mut glue, queue), [FAILED], "its first has failed");
}

#[test]
fn both_halves_are_checked_again_before_anything_runs() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    send(&mut glue, queue, first(8, 1), 0);
    let cid = glue.send(queue, second(8, 1));
    let now = glue.now;
    glue.target
        .remove_namespace(now, crate::glue::SUBNQN, 1)
        .expect("there");
    glue.pump();
    answer(&mut glue, queue, cid, &[1; 512]);
    let gone = Status::INVALID_NAMESPACE.dnr();
    assert_eq!(statuses(&mut glue, queue), [gone, FAILED]);
    assert!(glue.disks[&1].iter().all(|byte| *byte == 0));
}

/// The second half was for the namespace that had got the NSID meanwhile. Its blocks were larger,
/// so that its data did not fit behind that of the first.
#[test]
fn namespace_replaced_between_the_halves_fails_both() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    send(&mut glue, queue, first(8, 1), 0);
    let now = glue.now;
    glue.target.remove_namespace(now, SUBNQN, 1).expect("there");
    let larger = NamespaceConfig {
        nsid: Some(1),
        geometry: NsGeometry {
            block_bytes: 4096,
            blocks: 1024,
            used_blocks: 1024,
            ..geometry()
        },
        ..namespace(2)
    };
    glue.target
        .add_namespace(now, SUBNQN, larger)
        .expect("valid");
    glue.pump();
    let sqe = second(8, 1).with_sgl1(Sgl::in_capsule(4096));
    send(&mut glue, queue, sqe, 1);
    let gone = Status::INVALID_NAMESPACE.dnr();
    assert_eq!(statuses(&mut glue, queue), [gone, FAILED]);
    assert_eq!(glue.conn(queue).buffers_bound(), 0);
}

#[test]
fn disconnect_after_a_first_half_answers_it_as_missing() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    send(&mut glue, queue, first(8, 1), 0);
    glue.drop_socket(queue);
    // Nothing is left of it: the association ends at once and the host may return.
    assert!(!glue.is_open(queue));
    let (_, queue) = glue.queues(Digests::NONE);
    send(&mut glue, queue, second(8, 1), 0);
    assert_eq!(statuses(&mut glue, queue), [MISSING]);
}

#[test]
fn reset_after_a_first_half_forgets_it() {
    let mut glue = Glue::new();
    let (admin, cntlid) = glue.admin();
    let queue = glue.io_queue(Digests::NONE, cntlid, 1);
    send(&mut glue, queue, first(8, 1), 0);
    glue.set_cc(admin, 0);
    assert!(!glue.is_open(queue), "a reset ends the queue");
    glue.set_cc(admin, CC_ENABLE);
    let queue = glue.io_queue(Digests::NONE, cntlid, 1);
    send(&mut glue, queue, second(8, 1), 7);
    assert_eq!(statuses(&mut glue, queue), [MISSING]);
    send(&mut glue, queue, first(8, 1), 0);
    send(&mut glue, queue, second(8, 1), 7);
    assert_eq!(statuses(&mut glue, queue), [OK, OK]);
    assert_eq!(glue.conn(queue).buffers_bound(), 0);
}

#[test]
fn smallest_queue_has_room_for_a_pair_again_and_again() {
    let mut glue = Glue::new();
    let (_, cntlid) = glue.admin();
    let queue = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, cntlid);
    let connected = glue.connect(queue, Glue::connect_command(1, 1), &data);
    assert_eq!(connected.status, OK);
    for round in 0..20 {
        let (old, new) = ([round; 512], [round + 1; 512]);
        glue.send_with_data(queue, first(8, 1), &old);
        if round % 2 == 0 {
            glue.send_with_data(queue, second(8, 1), &new);
        } else {
            let cid = glue.send(queue, second(8, 1));
            answer(&mut glue, queue, cid, &new);
        }
        assert_eq!(statuses(&mut glue, queue), [OK, OK], "round {round}");
    }
    assert!(glue.is_open(queue));
    assert_eq!(glue.disks[&1][8 * 512..9 * 512], [20; 512]);
}

#[test]
fn pair_reaches_its_device_as_one_operation() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    send(&mut glue, queue, first(8, 1).with_fua(true), 0);
    send(&mut glue, queue, second(8, 1), 1);
    assert_eq!(glue.held.len(), 1);
    let IoOp::CompareAndWrite {
        lba,
        blocks,
        read_fua,
        fua,
        ..
    } = glue.held[0].2.op
    else {
        panic!("{:?}", glue.held)
    };
    assert_eq!((lba, blocks, read_fua, fua), (8, 1, true, false));
    glue.finish_held();
    assert_eq!(statuses(&mut glue, queue), [OK, OK]);
}

#[test]
fn copy_and_verify_run_end_to_end() {
    use bowline_nvme::nvm::CopyRange;
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let data = pattern(9, 1024);
    let write = io(opcode::WRITE, 4, 2);
    assert_eq!(glue.status_with_data(queue, write, &data), OK);
    let list = CopyRange { slba: 4, blocks: 2 }.encode();
    let copy = Sqe::new(opcode::COPY)
        .with_nsid(NamespaceId(1))
        .with_copy(100, 0);
    assert_eq!(glue.status_with_data(queue, copy, &list), OK);
    assert_eq!(glue.disks[&1][100 * 512..102 * 512], data);
    let cqe = glue.write_by_r2t(queue, copy.with_slba(200), &list);
    assert_eq!(cqe.status, OK);
    assert_eq!(glue.disks[&1][200 * 512..202 * 512], data);
    assert_eq!(glue.command(queue, io(opcode::VERIFY, 0, 9)).status, OK);
}
