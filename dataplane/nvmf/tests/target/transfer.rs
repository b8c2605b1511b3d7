//! Data transfer: R2T, H2CData, in-capsule data, digests, and every way to get them wrong.
//! [TCP-1.0 §3.3]

use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::{Digests, Fes, H2CData, R2t};
use bowline_nvme::{CommandId, Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::{ConnId, TargetConfig};

use crate::glue::{BLOCK, Glue, Reply, h2c_data, io, pattern};

const DATA_DIGEST: Digests = Digests {
    header: true,
    data: true,
};

/// An I/O queue with a write of 8 KiB for which an R2T has come.
fn transferring(glue: &mut Glue, digests: Digests) -> (ConnId, R2t) {
    let (_, queue) = glue.queues(digests);
    glue.send(queue, io(opcode::WRITE, 0, 16));
    match glue.reply(queue) {
        Reply::R2t(r2t) => (queue, r2t),
        other => panic!("{other:?}"),
    }
}

fn assert_terminated(glue: &mut Glue, id: ConnId, fes: Fes, fei: u32, what: &str) {
    assert_eq!(
        glue.reply(id),
        Reply::Terminate { fes: fes.0, fei },
        "{what}"
    );
    // What follows is swallowed, and the socket is closed when the peer does not.
    glue.receive(id, &[0xFF; 300]);
    assert!(glue.is_open(id));
    glue.advance(Nanos::from_secs(11));
    assert!(!glue.is_open(id), "{what}");
    assert!(
        glue.disks[&1].iter().all(|&byte| byte == 0),
        "{what}: nothing was written"
    );
}

#[test]
fn h2c_data_that_does_not_fit_its_r2t_ends_the_connection() {
    type Edit = fn(&mut H2CData);
    let cases: [(&str, Fes, u32, Edit); 8] = [
        ("unknown tag", Fes::SEQUENCE_ERROR, 0, |pdu| pdu.ttag ^= 1),
        ("stale generation", Fes::SEQUENCE_ERROR, 0, |pdu| {
            pdu.ttag ^= 1 << 11
        }),
        ("tag beyond all slots", Fes::SEQUENCE_ERROR, 0, |pdu| {
            pdu.ttag = 0xFFFF
        }),
        ("another command", Fes::SEQUENCE_ERROR, 0, |pdu| {
            pdu.cccid.0 ^= 1
        }),
        ("offset", Fes::DATA_OUT_OF_RANGE, 0, |pdu| pdu.datao = 4),
        (
            "offset near the end of u32",
            Fes::DATA_OUT_OF_RANGE,
            0,
            |pdu| pdu.datao = u32::MAX - 3,
        ),
        ("too much", Fes::DATA_OUT_OF_RANGE, 0, |pdu| pdu.datal += 4),
        ("LAST missing", Fes::INVALID_HEADER_FIELD, 1, |pdu| {
            pdu.last = false
        }),
    ];
    for (what, fes, fei, edit) in cases {
        let mut glue = Glue::new();
        let (queue, r2t) = transferring(&mut glue, Digests::NONE);
        let mut pdu = h2c_data(&r2t);
        edit(&mut pdu);
        let data = vec![1; pdu.datal as usize];
        let bytes = glue.h2c(queue, pdu, &data);
        glue.receive(queue, &bytes);
        assert_terminated(&mut glue, queue, fes, fei, what);
    }
}

#[test]
fn gaps_and_repetitions_within_the_r2t_end_the_connection() {
    let range = |datao: u32, datal: u32| (datao, datal);
    for (first, second) in [
        (range(4, 8188), None),
        (range(0, 4096), Some(range(0, 4096))),
        (range(0, 4096), Some(range(4092, 4100))),
        (range(0, 4096), Some(range(4100, 4092))),
    ] {
        let mut glue = Glue::new();
        let (queue, r2t) = transferring(&mut glue, Digests::NONE);
        for (datao, datal) in [Some(first), second].into_iter().flatten() {
            let last = datao + datal == 8192;
            let pdu = H2CData {
                cccid: r2t.cccid,
                ttag: r2t.ttag,
                datao,
                datal,
                last,
            };
            let bytes = glue.h2c(queue, pdu, &vec![1; datal as usize]);
            glue.receive(queue, &bytes);
        }
        assert_terminated(
            &mut glue,
            queue,
            Fes::DATA_OUT_OF_RANGE,
            0,
            "not contiguous",
        );
    }
}

#[test]
fn pdu_longer_than_maxh2cdata_exceeds_the_limit() {
    let config = TargetConfig {
        maxh2cdata_bytes: 4096,
        ..TargetConfig::default()
    };
    let mut glue = Glue::with(config);
    let (queue, r2t) = transferring(&mut glue, Digests::NONE);
    let pdu = H2CData {
        datal: 8192,
        ..h2c_data(&r2t)
    };
    let bytes = glue.h2c(queue, pdu, &[1; 8192]);
    glue.receive(queue, &bytes);
    assert_terminated(&mut glue, queue, Fes::LIMIT_EXCEEDED, 0, "MAXH2CDATA");
}

#[test]
fn last_too_early_ends_the_connection() {
    let mut glue = Glue::new();
    let (queue, r2t) = transferring(&mut glue, Digests::NONE);
    let pdu = H2CData {
        datal: 4096,
        ..h2c_data(&r2t)
    };
    let bytes = glue.h2c(queue, pdu, &[1; 4096]);
    glue.receive(queue, &bytes);
    assert_terminated(
        &mut glue,
        queue,
        Fes::INVALID_HEADER_FIELD,
        1,
        "LAST too early",
    );
}

#[test]
fn data_for_a_command_without_r2t_is_in_no_transfer() {
    let mut glue = Glue::new();
    let (queue, r2t) = transferring(&mut glue, Digests::NONE);
    glue.hold_io = true;
    let bytes = glue.h2c(queue, h2c_data(&r2t), &[1; 8192]);
    glue.receive(queue, &bytes);
    // All data has come and the command is at its device: its tag asks for nothing more.
    glue.receive(queue, &bytes);
    let fes = Fes::INVALID_HEADER_FIELD.0;
    assert_eq!(glue.reply(queue), Reply::Terminate { fes, fei: 10 });
}

#[test]
fn large_write_is_asked_for_in_pieces_no_larger_than_maxh2cdata() {
    let config = TargetConfig {
        maxh2cdata_bytes: 8192,
        ..TargetConfig::default()
    };
    for digests in [Digests::NONE, DATA_DIGEST] {
        let mut glue = Glue::with(config.clone());
        let (_, queue) = glue.queues(digests);
        let data = pattern(5, 40 * BLOCK as usize);
        let cqe = glue.write_by_r2t(queue, io(opcode::WRITE, 3, 40), &data);
        assert_eq!(cqe.status, Status::SUCCESS);
        assert_eq!(glue.target.connections()[1].counters.r2ts, 3);
        let written = &glue.disks[&1][3 * BLOCK as usize..][..data.len()];
        assert!(written == data);
    }
}

#[test]
fn one_r2t_may_be_answered_by_many_pdus() {
    for digests in [Digests::NONE, DATA_DIGEST] {
        let mut glue = Glue::new();
        let (queue, r2t) = transferring(&mut glue, digests);
        let data = pattern(6, 8192);
        for (at, part) in data.chunks(1000).enumerate() {
            let datao = u32::try_from(at * 1000).expect("small");
            let datal = u32::try_from(part.len()).expect("small");
            let last = datao + datal == 8192;
            let pdu = H2CData {
                cccid: r2t.cccid,
                ttag: r2t.ttag,
                datao,
                datal,
                last,
            };
            let bytes = glue.h2c(queue, pdu, part);
            assert!(glue.replies(queue).is_empty());
            glue.receive(queue, &bytes);
        }
        assert_eq!(glue.reply(queue).cqe().status, Status::SUCCESS);
        assert!(glue.disks[&1][..8192] == data);
    }
}

#[test]
fn data_that_is_not_what_was_sent_is_never_written() {
    let config = TargetConfig {
        maxh2cdata_bytes: 4096,
        ..TargetConfig::default()
    };
    let mut glue = Glue::with(config);
    let (admin, queue) = glue.queues(DATA_DIGEST);
    glue.corrupt_crc = true;
    let in_capsule = glue.status_with_data(queue, io(opcode::WRITE, 0, 8), &[1; 4096]);
    assert_eq!(in_capsule.sc(), Status::TRANSIENT_TRANSPORT.sc());
    assert!(!in_capsule.is_dnr());
    // The first of two R2Ts fails; the second is not even asked for.
    let cqe = glue.write_by_r2t(queue, io(opcode::WRITE, 0, 16), &[1; 8192]);
    assert!(cqe.status.same_code(Status::TRANSIENT_TRANSPORT));
    glue.corrupt_crc = false;
    assert!(glue.disks[&1].iter().all(|&byte| byte == 0));
    // The connection is as good as ever.
    assert_eq!(
        glue.status_with_data(queue, io(opcode::WRITE, 0, 8), &[1; 4096]),
        Status::SUCCESS
    );
    let errors: u64 = glue
        .target
        .connections()
        .iter()
        .map(|it| it.counters.data_digest_errors)
        .sum();
    assert_eq!(errors, 2);
    assert!(glue.is_open(admin) && glue.is_open(queue));
}

#[test]
fn rest_of_damaged_data_is_consumed() {
    let mut glue = Glue::new();
    let (queue, r2t) = transferring(&mut glue, DATA_DIGEST);
    let part = |datao, last| H2CData {
        cccid: r2t.cccid,
        ttag: r2t.ttag,
        datao,
        datal: 4096,
        last,
    };
    glue.corrupt_crc = true;
    let first = glue.h2c(queue, part(0, false), &[1; 4096]);
    glue.receive(queue, &first);
    glue.corrupt_crc = false;
    assert!(glue.replies(queue).is_empty());
    let second = glue.h2c(queue, part(4096, true), &[1; 4096]);
    glue.receive(queue, &second);
    assert!(
        glue.reply(queue)
            .cqe()
            .status
            .same_code(Status::TRANSIENT_TRANSPORT)
    );
    assert!(glue.disks[&1].iter().all(|&byte| byte == 0));
}

#[test]
fn header_digest_mismatch_ends_the_connection() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests {
        header: true,
        data: false,
    });
    let mut bytes = glue.capsule(queue, io(opcode::READ, 0, 1), &[]);
    bytes[50] ^= 1;
    glue.receive(queue, &bytes);
    assert_terminated(&mut glue, queue, Fes::HEADER_DIGEST, 0, "header digest");
}

#[test]
fn sgl_and_capsule_must_agree() {
    let in_capsule = |length, address| Sgl {
        address,
        length,
        kind: Sgl::KIND_IN_CAPSULE,
    };
    let cases = [
        (
            "offset",
            in_capsule(512, 4),
            512,
            Fes::UNSUPPORTED_PARAMETER,
            32,
        ),
        (
            "length",
            in_capsule(1024, 0),
            512,
            Fes::INVALID_HEADER_FIELD,
            40,
        ),
        (
            "missing",
            in_capsule(512, 0),
            0,
            Fes::INVALID_HEADER_FIELD,
            40,
        ),
        (
            "unwanted",
            Sgl::transport(512),
            512,
            Fes::INVALID_HEADER_FIELD,
            40,
        ),
        (
            "too long",
            in_capsule(16_896, 0),
            16_896,
            Fes::LIMIT_EXCEEDED,
            0,
        ),
        (
            "kind",
            Sgl {
                address: 0,
                length: 512,
                kind: 0x0F,
            },
            0,
            Fes::UNSUPPORTED_PARAMETER,
            47,
        ),
    ];
    for (what, sgl, len, fes, fei) in cases {
        let mut glue = Glue::new();
        let (_, queue) = glue.queues(Digests::NONE);
        let sqe = io(opcode::WRITE, 0, 1).with_sgl1(sgl);
        let bytes = glue.capsule(queue, sqe, &vec![1; len]);
        glue.receive(queue, &bytes);
        assert_terminated(&mut glue, queue, fes, fei, what);
    }
}

/// Some hosts set no descriptor at all where no data moves, which ended their connections. Where
/// data moves only the command is refused.
#[test]
fn command_without_descriptor_is_executed_if_it_moves_no_data_and_refused_otherwise() {
    let none = Sgl::default();
    for digests in [Digests::NONE, DATA_DIGEST] {
        let mut glue = Glue::new();
        let (admin, queue) = glue.queues(digests);
        for (id, opcode, expected) in [
            (queue, opcode::FLUSH, Status::SUCCESS),
            (queue, opcode::WRITE_ZEROES, Status::SUCCESS),
            (queue, opcode::READ, Status::SGL_TYPE_INVALID),
            (queue, opcode::WRITE, Status::DATA_SGL_LENGTH_INVALID),
            (queue, opcode::COMPARE, Status::DATA_SGL_LENGTH_INVALID),
            (
                queue,
                opcode::DATASET_MANAGEMENT,
                Status::DATA_SGL_LENGTH_INVALID,
            ),
            (queue, opcode::COPY, Status::DATA_SGL_LENGTH_INVALID),
            (admin, admin::KEEP_ALIVE, Status::SUCCESS),
            (admin, admin::IDENTIFY, Status::DATA_SGL_LENGTH_INVALID),
            (admin, admin::GET_LOG_PAGE, Status::DATA_SGL_LENGTH_INVALID),
        ] {
            glue.send(id, io(opcode, 0, 1).with_sgl1(none));
            let status = glue.reply(id).cqe().status;
            assert!(status.same_code(expected), "{opcode:#x}: {status}");
        }
        // With data it is a descriptor like any other that does not belong there.
        let bytes = glue.capsule(queue, io(opcode::FLUSH, 0, 1).with_sgl1(none), &[1; 512]);
        glue.receive(queue, &bytes);
        let fes = Fes::UNSUPPORTED_PARAMETER;
        assert_terminated(&mut glue, queue, fes, 47, "data without descriptor");
    }
    for wrong in [
        Sgl { address: 8, ..none },
        Sgl {
            length: 512,
            ..none
        },
    ] {
        let mut glue = Glue::new();
        let (_, queue) = glue.queues(Digests::NONE);
        glue.send(queue, io(opcode::FLUSH, 0, 1).with_sgl1(wrong));
        let fes = Fes::UNSUPPORTED_PARAMETER;
        assert_terminated(&mut glue, queue, fes, 47, "an address or a length");
    }
}

/// A Connect before the ICResp is out is too early, but what is refused then overtook it.
#[test]
fn icresp_is_the_first_that_a_host_reads() {
    let mut glue = Glue::new();
    let id = glue.open();
    let mut bytes = bowline_nvme::pdu::IcReq::default().encode().to_vec();
    bytes.extend(glue.capsule(id, io(opcode::READ, 0, 1), &[]));
    glue.receive(id, &bytes);
    let replies = glue.replies(id);
    assert!(
        matches!(replies[..], [Reply::IcResp { .. }, Reply::Response(_)]),
        "{replies:?}"
    );
}

#[test]
fn whole_capsule_of_16_kib_is_written_without_r2t() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let data = pattern(1, 16 << 10);
    assert_eq!(
        glue.status_with_data(queue, io(opcode::WRITE, 0, 32), &data),
        Status::SUCCESS
    );
    assert!(glue.disks[&1][..data.len()] == data);
}

#[test]
fn without_in_capsule_data_all_writes_use_r2t() {
    let mut glue = Glue::with(TargetConfig {
        icd_bytes: 0,
        ..TargetConfig::default()
    });
    let (_, queue) = glue.queues(Digests::NONE);
    let cqe = glue.write_by_r2t(queue, io(opcode::WRITE, 0, 1), &[7; 512]);
    assert_eq!(cqe.status, Status::SUCCESS);
    let sqe = io(opcode::WRITE, 0, 1).with_sgl1(Sgl::in_capsule(512));
    let bytes = glue.capsule(queue, sqe, &[1; 512]);
    glue.receive(queue, &bytes);
    assert_eq!(
        glue.reply(queue),
        Reply::Terminate {
            fes: Fes::LIMIT_EXCEEDED.0,
            fei: 0
        }
    );
}

/// SPDK takes its event requests for ended before it shuts the controller down.
#[test]
fn event_request_whose_id_comes_again_makes_room_for_the_new_command() {
    let mut glue = Glue::new();
    let (admin, _) = glue.queues(Digests::NONE);
    let request = Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0));
    let ids = [0; 4].map(|_| glue.send(admin, request));
    let keep_alive = Sqe::new(admin::KEEP_ALIVE).with_sgl1(Sgl::transport(0));
    let bytes = glue.capsule(admin, keep_alive.with_cid(ids[2]), &[]);
    glue.receive(admin, &bytes);
    let cqe = glue.reply(admin).cqe();
    assert!(cqe.cid == ids[2] && cqe.status.is_success());
    // Its place among the requests is free, and no event goes to the one forgotten.
    let again = glue.send(admin, request);
    glue.add_namespace(2);
    assert!(glue.replies(admin).is_empty(), "events are not enabled");
    let beyond = glue.command(admin, request);
    assert!(beyond.status.same_code(Status::AER_LIMIT_EXCEEDED));
    assert!(!ids.contains(&again));
}

#[test]
fn command_id_in_use_fails_the_second_command_only() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    let sqe = io(opcode::READ, 0, 1).with_cid(CommandId(0x1005));
    let bytes = glue.capsule(queue, sqe, &[]);
    glue.receive(queue, &bytes);
    glue.receive(queue, &bytes);
    let cqe = glue.reply(queue).cqe();
    assert!(cqe.status.same_code(Status::CID_CONFLICT));
    glue.hold_io = false;
    glue.finish_held();
    assert!(matches!(
        glue.reply(queue),
        Reply::Data { success: true, .. }
    ));
}

#[test]
fn more_commands_than_the_queue_holds_end_the_connection() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    for _ in 0..132 {
        glue.send(queue, io(opcode::READ, 0, 1));
    }
    assert!(glue.replies(queue).is_empty());
    glue.send(queue, io(opcode::READ, 0, 1));
    assert!(matches!(glue.reply(queue), Reply::Terminate { .. }));
    assert_eq!(glue.held.len(), 132);
    glue.finish_held();
    assert!(glue.replies(queue).is_empty(), "the dead are not answered");
}

#[test]
fn stuck_transfers_and_half_pdus_end_the_connection() {
    let mut glue = Glue::new();
    let (queue, _) = transferring(&mut glue, Digests::NONE);
    glue.advance(Nanos::from_secs(29));
    assert!(glue.is_open(queue));
    glue.advance(Nanos::from_secs(2));
    assert!(!glue.is_open(queue));

    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let bytes = glue.capsule(queue, io(opcode::READ, 0, 1), &[]);
    glue.receive(queue, &bytes[..71]);
    glue.advance(Nanos::from_secs(31));
    assert!(!glue.is_open(queue));
}

#[test]
fn slow_transfer_has_its_time() {
    let mut glue = Glue::new();
    let (queue, r2t) = transferring(&mut glue, Digests::NONE);
    let bytes = glue.h2c(queue, h2c_data(&r2t), &[3; 8192]);
    for part in bytes.chunks(1000) {
        glue.receive(queue, part);
        glue.advance(Nanos::from_secs(3));
    }
    assert_eq!(glue.reply(queue).cqe().status, Status::SUCCESS);
    glue.advance(Nanos::from_secs(1000));
    assert!(glue.is_open(queue), "an idle connection has no deadline");
}

#[test]
fn compare_finds_equality_and_difference() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let equal = glue.status_with_data(queue, io(opcode::COMPARE, 0, 1), &[0; 512]);
    assert_eq!(equal, Status::SUCCESS);
    let different = glue.write_by_r2t(queue, io(opcode::COMPARE, 0, 1), &[1; 512]);
    assert!(different.status.same_code(Status::COMPARE_FAILURE));
}

/// A buffer bound for a command that had just gone was taken in silence. Nobody released it, and
/// the owner's memory was gone until the connection closed.
#[test]
fn buffer_nobody_waits_for_is_not_taken() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.no_buffers = true;
    glue.send(queue, io(opcode::WRITE, 0, 64));
    let (id, slot) = glue.wanted[0];
    let mut data = [0; 4096];
    assert!(!glue.target.fill(glue.now, id, slot, &mut data));
    assert!(glue.target.handle_buffer(glue.now, id, slot));
    assert!(!glue.target.handle_buffer(glue.now, id, slot));
    glue.drop_socket(queue);
    assert!(!glue.target.handle_buffer(glue.now, id, slot));
    assert!(!glue.target.fill(glue.now, id, slot, &mut data));
    assert!(!glue.target.fill(glue.now, admin, slot, &mut data));
}

/// The time a peer has for its data ran on while the owner had no buffer to take it with. Honest
/// hosts lost their connections when the target was short of memory.
#[test]
fn peer_is_not_blamed_for_an_owner_that_stalls() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.send(queue, io(opcode::WRITE, 0, 64));
    assert!(matches!(glue.reply(queue), Reply::R2t(_)));
    // The beginning of a PDU, too.
    glue.receive(queue, &[6, 4, 24]);
    let transfer = glue.target.config().deadlines.transfer;
    let nearly = transfer - Nanos::from_secs(1);
    for _ in 0..4 {
        glue.advance(nearly);
        assert!(glue.is_open(queue));
        glue.target.stalled(glue.now, queue);
    }
    glue.advance(nearly);
    assert!(glue.is_open(queue));
    glue.advance(Nanos::from_secs(2));
    assert!(!glue.is_open(queue));
}
