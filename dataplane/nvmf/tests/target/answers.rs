//! What a controller answers with, byte for byte and PDU by PDU: where data begins, when SUCCESS
//! stands for the response, what ends a Read that fails halfway. [TCP-1.0 §3.6.2.9]

use bowline_nvme::identify::{Identify, cns};
use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{CommandId, NamespaceId, Sgl, Status};
use bowline_nvmf::frame::crc32c;
use bowline_nvmf::target::ConnId;

use crate::glue::{BLOCK, Glue, HOSTNQN, Reply, SUBNQN, h2c_data, io, pattern};

const BLOCKS: u32 = 32;
const BYTES: u32 = BLOCKS * BLOCK;
/// A quarter of what the tests read.
const PART: u32 = BYTES / 4;

fn io_queue(glue: &mut Glue, flow_control: bool) -> ConnId {
    let (_, cntlid) = glue.admin();
    let queue = glue.initialized(Digests::NONE);
    let command = Glue::connect_command(1, 127).with_sq_flow_control_disabled(!flow_control);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, cntlid);
    let cqe = glue.connect(queue, command, &data);
    assert_eq!(cqe.status, Status::SUCCESS);
    assert_eq!(cqe.sqhd, if flow_control { 1 } else { 0xFFFF });
    queue
}

#[test]
fn success_stands_for_the_response_only_without_sq_flow_control_and_with_the_last_data() {
    for flow_control in [false, true] {
        for (part_bytes, parts) in [(None, 1), (Some(PART), 4)] {
            let mut glue = Glue::new();
            glue.part_bytes = part_bytes;
            let queue = io_queue(&mut glue, flow_control);
            let cid = glue.send(queue, io(opcode::READ, 0, BLOCKS));
            let mut replies = glue.replies(queue);
            let what = format!("flow control {flow_control}, {parts} parts");
            if flow_control {
                let cqe = replies.pop().expect("a response").cqe();
                assert_eq!((cqe.cid, cqe.status), (cid, Status::SUCCESS), "{what}");
            }
            assert_eq!(replies.len(), parts, "{what}");
            for (at, reply) in replies.into_iter().enumerate() {
                let Reply::Data { last, success, .. } = reply else {
                    panic!("{what}: {reply:?}")
                };
                assert_eq!(last, at + 1 == parts, "{what}");
                assert_eq!(success, last && !flow_control, "{what}");
            }
        }
    }
}

#[test]
fn read_that_fails_after_some_of_its_data_ends_in_a_response_with_its_status() {
    for flow_control in [false, true] {
        for good in 0..4 {
            let mut glue = Glue::new();
            glue.part_bytes = Some(PART);
            let queue = io_queue(&mut glue, flow_control);
            glue.failures = vec![Status::SUCCESS; good].into();
            glue.failures.push_back(Status::UNRECOVERED_READ);
            let cid = glue.send(queue, io(opcode::READ, 0, BLOCKS));
            let mut replies = glue.replies(queue);
            let cqe = replies.pop().expect("a response").cqe();
            assert_eq!(cqe.cid, cid);
            assert!(cqe.status.same_code(Status::UNRECOVERED_READ), "{good}");
            assert_eq!(replies.len(), good);
            for (at, reply) in (0..).zip(replies) {
                let Reply::Data {
                    offset,
                    bytes,
                    last,
                    success,
                    ..
                } = reply
                else {
                    panic!("{reply:?}")
                };
                assert_eq!((offset, bytes.len()), (at * PART, PART as usize));
                assert!(!last && !success, "{good} parts: the Read has failed");
            }
            assert_eq!(glue.conn(queue).buffers_bound(), 0);
            // Its identifier and the queue are as good as ever.
            let sqe = io(opcode::READ, 0, 1).with_cid(cid);
            let bytes = glue.capsule(queue, sqe, &[]);
            glue.receive(queue, &bytes);
            let replies = glue.replies(queue);
            assert!(matches!(replies[0], Reply::Data { last: true, .. }));
        }
    }
}

#[test]
fn data_begins_where_hpda_asks_behind_zeroes_that_no_digest_covers() {
    for hpda in [0, 1, 2, 5, 7, 15, 31] {
        for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut glue = Glue::new();
            glue.hpda = hpda;
            let (_, queue) = glue.queues(Digests { header, data });
            let block = pattern(3, BLOCK as usize);
            let written = glue.status_with_data(queue, io(opcode::WRITE, 0, 1), &block);
            assert_eq!(written, Status::SUCCESS);
            let before = glue.conn(queue).sent.len();
            glue.send(queue, io(opcode::READ, 0, 1));
            let pdu = glue.conn(queue).sent[before..].to_vec();

            let behind_header = 24 + 4 * usize::from(header);
            let pdo = behind_header.next_multiple_of((usize::from(hpda) + 1) * 4);
            let flags = 0x0C | u8::from(header) | u8::from(data) << 1;
            let what = format!("HPDA {hpda}, digests {header} {data}");
            assert_eq!(usize::from(pdu[3]), pdo, "{what}");
            assert_eq!(pdu[..3], [0x07, flags, 24], "{what}");
            let plen = u32::from_le_bytes(*pdu[4..].first_chunk().expect("8 bytes"));
            assert_eq!(plen as usize, pdu.len(), "{what}");
            if header {
                assert_eq!(pdu[24..28], crc32c(&pdu[..24]).to_le_bytes(), "{what}");
            }
            assert!(pdu[behind_header..pdo].iter().all(|it| *it == 0), "{what}");
            let (payload, digest) = pdu[pdo..].split_at(block.len());
            assert!(payload == block, "{what}");
            let expected = crc32c(&block).to_le_bytes();
            assert_eq!(digest, if data { &expected[..] } else { &[] }, "{what}");
            assert!(matches!(glue.reply(queue), Reply::Data { .. }), "{what}");
        }
    }
}

/// Only what a retry cannot change is refused for good.
#[test]
fn do_not_retry_is_said_of_what_stays_wrong_and_of_nothing_else() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let none = Sgl::transport(0);
    let absent = NamespaceId(9);
    for (what, sqe, code) in [
        (
            "unknown opcode",
            io(0x7E, 0, 1).with_sgl1(none),
            Status::INVALID_OPCODE,
        ),
        (
            "absent namespace",
            io(opcode::READ, 0, 1).with_nsid(absent),
            Status::INVALID_NAMESPACE,
        ),
        (
            "beyond the end",
            io(opcode::READ, u64::MAX, 1),
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            "SGL too short",
            io(opcode::READ, 0, 2).with_sgl1(Sgl::transport(BLOCK)),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
    ] {
        glue.send(queue, sqe);
        let status = glue.reply(queue).cqe().status;
        assert!(
            status.same_code(code) && status.is_dnr(),
            "{what}: {status}"
        );
    }
    // What a device ends a command with is passed on as it is.
    for status in [
        Status::CAPACITY_EXCEEDED,
        Status::INTERNAL,
        Status::PATH_INTERNAL,
        Status::NAMESPACE_NOT_READY,
    ] {
        glue.failures = [status].into();
        glue.send(queue, io(opcode::READ, 0, 1));
        let found = glue.reply(queue).cqe().status;
        assert!(found.same_code(status) && !found.is_dnr(), "{found}");
    }
}

#[test]
fn small_write_whose_data_is_not_in_its_capsule_is_asked_for() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let block = pattern(8, BLOCK as usize);
    let cid = glue.send(queue, io(opcode::WRITE, 3, 1));
    let Reply::R2t(r2t) = glue.reply(queue) else {
        panic!("no R2T")
    };
    assert_eq!((r2t.cccid, r2t.r2to, r2t.r2tl), (cid, 0, BLOCK));
    let bytes = glue.h2c(queue, h2c_data(&r2t), &block);
    glue.receive(queue, &bytes);
    assert_eq!(glue.reply(queue).cqe().status, Status::SUCCESS);
    assert!(glue.disks[&1][3 * BLOCK as usize..][..block.len()] == block);
}

/// Linux keeps a generation in the upper bits of its identifiers.
#[test]
fn command_identifiers_are_any_16_bits() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    let ids = [0, 31, 0x1005, 0x2005, 0xF005, 0x8000, 0xFFFE].map(CommandId);
    for cid in ids {
        let bytes = glue.capsule(queue, io(opcode::READ, 0, 1).with_cid(cid), &[]);
        glue.receive(queue, &bytes);
    }
    glue.finish_held();
    let answered = glue.replies(queue).into_iter().map(|reply| match reply {
        Reply::Data { cid, success, .. } => {
            assert!(success);
            cid
        }
        other => panic!("{other:?}"),
    });
    assert!(answered.eq(ids));
}

/// Linux looks at its namespaces at once, with a queue full of Identify.
#[test]
fn full_admin_queue_of_identifies_is_answered() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    let identify = Identify::new(cns::NAMESPACE)
        .encode()
        .with_nsid(NamespaceId(1))
        .with_sgl1(Sgl::transport(4096));
    let mut capsules = Vec::new();
    let ids: Vec<CommandId> = (0..31).map(|_| glue.next_cid(admin)).collect();
    for &cid in &ids {
        capsules.extend(glue.capsule(admin, identify.with_cid(cid), &[]));
    }
    glue.receive(admin, &capsules);
    let mut answered = Vec::new();
    for reply in glue.replies(admin) {
        let Reply::Data { cid, last, .. } = reply else {
            panic!("{reply:?}")
        };
        assert!(last);
        answered.push(cid);
    }
    answered.sort();
    assert_eq!(answered, ids);
}
