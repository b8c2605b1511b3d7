//! One queue pair against hand-made PDUs: every transition, and the wrong ones.

use bowline_nvme::fabrics::{Connect, ConnectData, ConnectResult};
use bowline_nvme::opcode::admin;
use bowline_nvme::pdu::{CapsuleCmd, Digests, Direction, Fes, H2CData, IcReq, TermReq, Violation};
use bowline_nvme::{NamespaceId, Sgl};

use super::*;
use crate::frame::{Event, FrameReader, Header};
use crate::host::command;

/// Cuts what a host sent into headers and payloads.
fn parse(bytes: &[u8], digests: Digests) -> Vec<(Header, Vec<u8>)> {
    let mut reader = FrameReader::new(Direction::HostToController);
    reader.set_digests(digests);
    let mut rest = bytes;
    let mut pdus: Vec<(Header, Vec<u8>)> = Vec::new();
    loop {
        let taken = reader.handle(rest);
        rest = &rest[taken..];
        match reader.poll_event() {
            Some(Event::Header(header)) => {
                let len = reader.payload_remaining();
                let (payload, later) = rest.split_at(len as usize);
                pdus.push((header, payload.to_vec()));
                rest = later;
                if len > 0 {
                    reader.advance_payload(len, Some(crc32c(payload)));
                }
            }
            Some(Event::DigestOk | Event::PayloadEnd) => {}
            Some(event) => panic!("a host sent {event:?}"),
            None if taken == 0 => return pdus,
            None => {}
        }
    }
}

fn check_violation(owner: &mut Owner, fes: Fes) {
    let reason = owner.closed();
    let Some(CloseReason::Violation(violation)) = reason else {
        panic!("ended by {reason:?}")
    };
    assert_eq!(violation.fes, fes);
    let bytes = owner.sent();
    let term = TermReq::decode(Direction::HostToController, &bytes).expect("an H2CTermReq");
    assert_eq!(term.violation(), violation);
    assert_eq!(owner.queue.rx(), Rx::Closed);
}

#[test]
fn icreq_and_connect_carry_what_was_configured() {
    for digests in DIGESTS_ALL {
        let config = HostQueueConfig {
            digests,
            ..queue_config()
        };
        let mut owner = Owner::new(config);
        let request = IcReq::decode(&owner.sent()).expect("an ICReq");
        assert_eq!(
            (request.digests(), request.hpda, request.maxr2t),
            (digests, 0, 0)
        );
        owner.receive(&ic_resp(digests).encode());
        let sent = parse(&owner.sent(), digests);
        let [(Header::CapsuleCmd(CapsuleCmd { sqe }), payload)] = sent.as_slice() else {
            panic!("not one capsule: {sent:?}");
        };
        let connect = Connect::decode(sqe);
        assert_eq!(
            (connect.qid, connect.sqsize, connect.kato_ms),
            (QueueId(1), 7, 0)
        );
        assert!(connect.disables_sq_flow_control());
        assert_eq!(sqe.sgl1(), Sgl::in_capsule(1024));
        let data: [u8; 1024] = payload.as_slice().try_into().expect("1024 bytes");
        let data = ConnectData::decode(&data).expect("valid names");
        assert_eq!(data.subnqn, identity().subnqn);
        assert_eq!(data.hostnqn, identity().hostnqn);
        assert_eq!((data.hostid, data.cntlid), ([7; 16], ControllerId(5)));
    }
}

#[test]
fn icresp_with_other_digests_ends_the_connection() {
    for asked in DIGESTS_ALL {
        for granted in DIGESTS_ALL.into_iter().filter(|granted| *granted != asked) {
            let mut owner = Owner::new(HostQueueConfig {
                digests: asked,
                ..queue_config()
            });
            owner.sent();
            owner.receive(&ic_resp(granted).encode());
            check_violation(&mut owner, Fes::UNSUPPORTED_PARAMETER);
        }
    }
}

#[test]
fn icresp_fields_are_checked() {
    let good = ic_resp(Digests::NONE);
    for bad in [
        IcResp { pfv: 1, ..good },
        IcResp { cpda: 32, ..good },
        IcResp {
            maxh2cdata: 4092,
            ..good
        },
        IcResp {
            maxh2cdata: 8190,
            ..good
        },
    ] {
        let mut owner = Owner::new(queue_config());
        owner.sent();
        owner.receive(&bad.encode());
        check_violation(&mut owner, Fes::INVALID_HEADER_FIELD);
    }
}

#[test]
fn pdus_out_of_sequence_end_the_connection() {
    let cid = CommandId(0x10);
    let early = response(cid, Status::SUCCESS, 0, Digests::NONE);
    let mut owner = Owner::new(queue_config());
    owner.sent();
    owner.receive(&early);
    check_violation(&mut owner, Fes::SEQUENCE_ERROR);

    let mut owner = Owner::new(queue_config());
    owner.receive(&ic_resp(Digests::NONE).encode());
    check_violation(&mut owner, Fes::SEQUENCE_ERROR);

    let mut owner = Owner::connected(queue_config());
    owner.receive(&ic_resp(Digests::NONE).encode());
    check_violation(&mut owner, Fes::SEQUENCE_ERROR);
}

#[test]
fn rejected_connect_reports_status_and_field() {
    let mut owner = Owner::new(queue_config());
    owner.sent();
    owner.receive(&ic_resp(Digests::NONE).encode());
    owner.sent();
    let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
    let cid = owner.only_outstanding();
    owner.receive(&response(cid, status, 0x1_0100, Digests::NONE));
    let reason = owner.closed().expect("the queue ended");
    assert_eq!(
        reason.to_string(),
        "Connect rejected: 1/82 connect invalid parameters (do not retry), byte 256 of the data"
    );
}

#[test]
fn connect_that_demands_authentication_ends_the_connection() {
    let mut owner = Owner::new(queue_config());
    owner.sent();
    owner.receive(&ic_resp(Digests::NONE).encode());
    owner.sent();
    let result = ConnectResult {
        cntlid: ControllerId(5),
        authentication_required: true,
        secure_channel_required: false,
    };
    let cid = owner.only_outstanding();
    owner.receive(&response(
        cid,
        Status::SUCCESS,
        result.encode(),
        Digests::NONE,
    ));
    assert_eq!(owner.closed(), Some(CloseReason::AuthenticationRequired));
}

#[test]
fn read_lands_at_every_split_with_every_digest_setting() {
    let data = pattern(40);
    for digests in DIGESTS_ALL {
        for success in [false, true] {
            let mut owner = Owner::connected(HostQueueConfig {
                digests,
                ..queue_config()
            });
            let slot = owner.read(40, 1);
            owner.sent();
            let cccid = owner.cid(slot);
            let part = |datao, datal, last| C2HData {
                cccid,
                datao,
                datal,
                last,
                success: last && success,
            };
            let mut wire = c2h_data(part(0, 16, false), &data[..16], digests);
            wire.extend(c2h_data(part(16, 24, true), &data[16..], digests));
            if !success {
                wire.extend(response(cccid, Status::SUCCESS, 0, digests));
            }
            for split in 0..=wire.len() {
                let mut owner = Owner::connected(HostQueueConfig {
                    digests,
                    ..queue_config()
                });
                let slot = owner.read(40, 1);
                owner.sent();
                assert_eq!(owner.cid(slot), cccid);
                owner.receive(&wire[..split]);
                owner.receive(&wire[split..]);
                let done = owner.completions();
                assert_eq!(done.len(), 1, "split at {split}");
                assert_eq!((done[0].token, done[0].status), (1, Status::SUCCESS));
                assert_eq!(owner.buffers[&slot], data, "split at {split}");
            }
            for byte in &wire {
                owner.receive(std::slice::from_ref(byte));
            }
            assert_eq!(owner.completions().len(), 1, "byte by byte");
            assert_eq!(owner.buffers[&slot], data);
        }
    }
}

#[test]
fn small_write_goes_in_the_capsule() {
    for digests in DIGESTS_ALL {
        let mut owner = Owner::connected(HostQueueConfig {
            digests,
            ..queue_config()
        });
        let data = pattern(4096);
        let slot = owner.write(&data, 9);
        let sent = parse(&owner.sent(), digests);
        let [(Header::CapsuleCmd(capsule), payload)] = sent.as_slice() else {
            panic!("not one capsule: {sent:?}");
        };
        assert_eq!(capsule.sqe.sgl1(), Sgl::in_capsule(4096));
        assert_eq!(payload, &data);
        let cid = owner.cid(slot);
        owner.receive(&response(cid, Status::SUCCESS, 0, digests));
        assert_eq!(owner.completions()[0].token, 9);
    }
}

#[test]
fn large_write_answers_each_r2t_in_pdus_of_maxh2cdata() {
    for digests in DIGESTS_ALL {
        let mut owner = Owner::connected(HostQueueConfig {
            digests,
            ..queue_config()
        });
        let data = pattern(24 << 10);
        let slot = owner.write(&data, 9);
        let sent = parse(&owner.sent(), digests);
        assert!(matches!(&sent[0], (Header::CapsuleCmd(capsule), payload)
            if capsule.sqe.sgl1() == Sgl::transport(24 << 10) && payload.is_empty()));
        let cccid = owner.cid(slot);
        let mut received = Vec::new();
        for (ttag, r2to, r2tl, pdus) in [(77, 0, 20 << 10, 3), (78, 20 << 10, 4 << 10, 1)] {
            owner.receive(&r2t(cccid, ttag, r2to, r2tl, digests));
            let sent = parse(&owner.sent(), digests);
            assert_eq!(sent.len(), pdus);
            for (index, (header, payload)) in sent.iter().enumerate() {
                let Header::H2CData(H2CData {
                    cccid: to,
                    ttag: tag,
                    datao,
                    datal,
                    last,
                }) = header
                else {
                    panic!("not H2CData: {header:?}");
                };
                assert_eq!((*to, *tag, *last), (cccid, ttag, index + 1 == pdus));
                assert_eq!(*datao as usize, received.len());
                assert_eq!(*datal as usize, payload.len());
                assert!(*datal <= 8192);
                received.extend_from_slice(payload);
            }
        }
        assert_eq!(received, data);
        owner.receive(&response(cccid, Status::SUCCESS, 0, digests));
        assert_eq!(owner.completions()[0].status, Status::SUCCESS);
    }
}

#[test]
fn controller_alignment_pads_in_capsule_data() {
    let mut owner = Owner::new(queue_config());
    owner.sent();
    owner.receive(
        &IcResp {
            cpda: 31,
            ..ic_resp(Digests::NONE)
        }
        .encode(),
    );
    let sent = owner.sent();
    assert_eq!(sent.len(), 128 + 1024);
    let parsed = parse(&sent, Digests::NONE);
    assert_eq!(parsed[0].1.len(), 1024);
}

#[test]
fn wrong_data_digest_fails_the_read_and_keeps_the_connection() {
    let digests = Digests {
        header: true,
        data: true,
    };
    let mut owner = Owner::connected(HostQueueConfig {
        digests,
        ..queue_config()
    });
    let slot = owner.read(16, 1);
    let other = owner.read(16, 2);
    owner.sent();
    for (slot, damage) in [(slot, 1), (other, 0)] {
        let data = C2HData {
            cccid: owner.cid(slot),
            datao: 0,
            datal: 16,
            last: true,
            success: true,
        };
        let mut wire = c2h_data(data, &[3; 16], digests);
        let payload_at = wire.len() - 20;
        wire[payload_at] ^= damage;
        owner.receive(&wire);
    }
    let done = owner.completions();
    assert_eq!(
        (done[0].token, done[0].status),
        (1, Status::TRANSIENT_TRANSPORT)
    );
    assert_eq!((done[1].token, done[1].status), (2, Status::SUCCESS));
}

#[test]
fn wrong_header_digest_ends_the_connection() {
    let digests = Digests {
        header: true,
        data: false,
    };
    let mut owner = Owner::connected(HostQueueConfig {
        digests,
        ..queue_config()
    });
    let slot = owner.read(16, 1);
    owner.sent();
    let mut wire = response(owner.cid(slot), Status::SUCCESS, 0, digests);
    wire[9] ^= 1;
    owner.receive(&wire);
    check_violation(&mut owner, Fes::HEADER_DIGEST);
}

#[test]
fn successful_read_without_all_data_is_a_transfer_error() {
    let mut owner = Owner::connected(queue_config());
    let slot = owner.read(16, 1);
    owner.sent();
    let cid = owner.cid(slot);
    let data = C2HData {
        cccid: cid,
        datao: 0,
        datal: 8,
        last: true,
        success: false,
    };
    owner.receive(&c2h_data(data, &[0; 8], Digests::NONE));
    owner.receive(&response(cid, Status::SUCCESS, 0, Digests::NONE));
    assert_eq!(owner.completions()[0].status, Status::DATA_TRANSFER_ERROR);
}

#[test]
fn failed_read_may_end_after_part_of_its_data() {
    let mut owner = Owner::connected(queue_config());
    let slot = owner.read(16, 1);
    owner.sent();
    let cid = owner.cid(slot);
    let data = C2HData {
        cccid: cid,
        datao: 0,
        datal: 8,
        last: false,
        success: false,
    };
    owner.receive(&c2h_data(data, &[0; 8], Digests::NONE));
    owner.receive(&response(cid, Status::UNRECOVERED_READ, 0, Digests::NONE));
    assert_eq!(owner.completions()[0].status, Status::UNRECOVERED_READ);
}

/// One outstanding read of 64 bytes and one write of 8192, and one PDU that must end it all.
fn check_hostile(name: &str, fes: Fes, wire: impl Fn(CommandId, CommandId) -> Vec<u8>) {
    let mut owner = Owner::connected(queue_config());
    let read = owner.read(64, 1);
    let write = owner.write(&pattern(8192), 2);
    owner.sent();
    let bytes = wire(owner.cid(read), owner.cid(write));
    owner.receive(&bytes);
    let events = owner.take_events();
    let lost = events.iter().filter(|event| {
        matches!(event, QueueEvent::Complete(completion)
            if completion.path_lost && completion.status == Status::HOST_PATHING)
    });
    assert_eq!(lost.count(), 2, "{name}: {events:?}");
    owner.events = events;
    check_violation(&mut owner, fes);
}

#[test]
fn data_pdus_that_fit_no_command_end_the_connection() {
    let none = Digests::NONE;
    let data = |cccid, datao, datal, last, success| C2HData {
        cccid,
        datao,
        datal,
        last,
        success,
    };
    let send = move |data: C2HData| c2h_data(data, &vec![0; data.datal as usize], none);
    check_hostile("unknown command", Fes::INVALID_HEADER_FIELD, |read, _| {
        send(data(CommandId(read.0 ^ 0x100), 0, 8, true, false))
    });
    check_hostile("data for a write", Fes::INVALID_HEADER_FIELD, |_, write| {
        send(data(write, 0, 8, true, false))
    });
    check_hostile("gap", Fes::DATA_OUT_OF_RANGE, |read, _| {
        send(data(read, 8, 8, true, false))
    });
    check_hostile("beyond the end", Fes::DATA_OUT_OF_RANGE, |read, _| {
        send(data(read, 0, 68, true, false))
    });
    check_hostile("repeated", Fes::DATA_OUT_OF_RANGE, |read, _| {
        [
            send(data(read, 0, 32, false, false)),
            send(data(read, 0, 32, true, false)),
        ]
        .concat()
    });
    check_hostile("after the last", Fes::SEQUENCE_ERROR, |read, _| {
        [
            send(data(read, 0, 32, true, false)),
            send(data(read, 32, 32, true, false)),
        ]
        .concat()
    });
    check_hostile("offset overflow", Fes::DATA_OUT_OF_RANGE, |read, _| {
        let first = send(data(read, 0, 8, false, false));
        let mut second = data(read, 8, 8, true, false).encode(none, 0).to_vec();
        second[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        [first, second].concat()
    });
    check_hostile("huge length", Fes::DATA_OUT_OF_RANGE, |read, _| {
        data(read, 0, u32::MAX - 64, true, false)
            .encode(none, 0)
            .to_vec()
    });
    check_hostile(
        "success without last",
        Fes::INVALID_HEADER_FIELD,
        |read, _| data(read, 0, 64, false, true).encode(none, 0).to_vec(),
    );
}

#[test]
fn r2ts_that_fit_no_command_end_the_connection() {
    let none = Digests::NONE;
    check_hostile("unknown command", Fes::INVALID_HEADER_FIELD, |_, write| {
        r2t(CommandId(write.0 ^ 0x100), 1, 0, 8192, none)
    });
    check_hostile("for a read", Fes::INVALID_HEADER_FIELD, |read, _| {
        r2t(read, 1, 0, 64, none)
    });
    check_hostile("empty", Fes::INVALID_HEADER_FIELD, |_, write| {
        r2t(write, 1, 0, 0, none)
    });
    check_hostile("gap", Fes::DATA_OUT_OF_RANGE, |_, write| {
        r2t(write, 1, 4, 8, none)
    });
    check_hostile("too long", Fes::DATA_OUT_OF_RANGE, |_, write| {
        r2t(write, 1, 0, 8196, none)
    });
    check_hostile("overflow", Fes::DATA_OUT_OF_RANGE, |_, write| {
        r2t(write, 1, u32::MAX, u32::MAX, none)
    });
    check_hostile("second at once", Fes::LIMIT_EXCEEDED, |_, write| {
        [
            r2t(write, 1, 0, 4096, none),
            r2t(write, 2, 4096, 4096, none),
        ]
        .concat()
    });
}

#[test]
fn responses_that_fit_no_command_end_the_connection() {
    let none = Digests::NONE;
    check_hostile("unknown command", Fes::INVALID_HEADER_FIELD, |read, _| {
        response(CommandId(read.0 ^ 0x100), Status::SUCCESS, 0, none)
    });
    check_hostile(
        "write done without its data",
        Fes::SEQUENCE_ERROR,
        |_, write| response(write, Status::SUCCESS, 0, none),
    );
    let stale = |owner: &mut Owner| {
        let slot = owner.read(8, 3);
        owner.sent();
        let cid = owner.cid(slot);
        owner.receive(&response(cid, Status::INTERNAL, 0, none));
        assert_eq!(owner.completions().len(), 1);
        cid
    };
    let mut owner = Owner::connected(queue_config());
    let cid = stale(&mut owner);
    owner.read(8, 4);
    owner.sent();
    owner.receive(&response(cid, Status::INTERNAL, 0, none));
    assert_eq!(
        owner.completions().len(),
        1,
        "the newer command was completed as lost"
    );
    assert!(owner.queue.rx() == Rx::Closed);
}

#[test]
fn refused_write_drops_the_rest_of_its_data() {
    let mut owner = Owner::connected(queue_config());
    let slot = owner.write(&pattern(8192), 2);
    owner.sent();
    let cid = owner.cid(slot);
    owner.receive(&r2t(cid, 5, 0, 8192, Digests::NONE));
    owner.receive(&response(cid, Status::INTERNAL, 0, Digests::NONE));
    assert_eq!(owner.completions()[0].status, Status::INTERNAL);
    assert!(owner.sent().is_empty());
    let next = owner.read(8, 3);
    owner.sent();
    let cid = owner.cid(next);
    owner.receive(&response(cid, Status::INTERNAL, 0, Digests::NONE));
    assert_eq!(owner.completions()[0].token, 3);
}

#[test]
fn flow_control_checks_sqhd_and_forbids_success() {
    let config = HostQueueConfig {
        sq_flow_control: true,
        ..queue_config()
    };
    let mut owner = Owner::connected(config);
    let slot = owner.read(8, 1);
    owner.sent();
    let cqe = Cqe {
        cid: owner.cid(slot),
        sqhd: 8,
        ..Cqe::default()
    };
    owner.receive(&bowline_nvme::pdu::CapsuleResp { cqe }.encode(Digests::NONE));
    check_violation(&mut owner, Fes::INVALID_HEADER_FIELD);

    let mut owner = Owner::connected(config);
    let slot = owner.read(8, 1);
    owner.sent();
    let data = C2HData {
        cccid: owner.cid(slot),
        datao: 0,
        datal: 8,
        last: true,
        success: true,
    };
    owner.receive(&c2h_data(data, &[0; 8], Digests::NONE));
    check_violation(&mut owner, Fes::INVALID_HEADER_FIELD);
}

#[test]
fn c2h_term_req_is_reported_and_not_answered() {
    let mut owner = Owner::connected(queue_config());
    owner.read(8, 1);
    owner.sent();
    let violation = Violation {
        fes: Fes::INVALID_HEADER_FIELD,
        fei: 4,
    };
    let (bytes, used) = TermReq::new(violation, &[1; 24]).encode(Direction::ControllerToHost);
    owner.receive(&bytes[..used]);
    let reason = CloseReason::Terminated {
        fes: violation.fes,
        fei: 4,
    };
    let events = owner.take_events();
    assert_eq!(events.last(), Some(&QueueEvent::Closed(reason)));
    assert!(owner.sent().is_empty());
}

#[test]
fn queue_takes_one_command_fewer_than_entries() {
    let mut owner = Owner::connected(queue_config());
    for token in 0..7 {
        owner.read(8, token);
    }
    let sqe = command::flush(NamespaceId(1));
    assert_eq!(owner.submit(sqe, Transfer::None, 7), Err(SubmitError::Full));
    owner.queue.closed();
    assert_eq!(
        owner.submit(sqe, Transfer::None, 7),
        Err(SubmitError::NotReady)
    );
    let done = owner.completions();
    assert_eq!(done.len(), 7);
    assert!(done.iter().all(|completion| completion.path_lost));
}

#[test]
fn odd_lengths_are_refused() {
    let mut owner = Owner::connected(queue_config());
    for len in [0, 1, 2, 3, 511] {
        let sqe = command::read(NamespaceId(1), 0, 0);
        let refused = owner.submit(sqe, Transfer::ToHost { len }, 0);
        assert_eq!(refused, Err(SubmitError::Length), "{len}");
    }
}

#[test]
fn setup_and_commands_time_out() {
    let mut owner = Owner::new(queue_config());
    owner.sent();
    let at = owner.queue.poll_timeout().expect("a set-up deadline");
    assert_eq!(at, owner.now.after(Nanos::from_secs(3)));
    owner.queue.handle_timeout(at);
    assert_eq!(owner.closed(), Some(CloseReason::SetupTimeout));

    let mut owner = Owner::connected(queue_config());
    assert_eq!(
        owner.queue.poll_timeout(),
        None,
        "an idle queue has no timer"
    );
    owner.read(8, 1);
    let limit = owner.now.after(Nanos::from_secs(10));
    while owner.queue.is_ready() {
        let at = owner.queue.poll_timeout().expect("a command is watched");
        assert!(at <= limit, "noticed at {at}");
        owner.queue.handle_timeout(at);
    }
    let events = owner.take_events();
    assert_eq!(
        events.last(),
        Some(&QueueEvent::Closed(CloseReason::CommandTimeout))
    );
}

#[test]
fn asynchronous_event_request_never_times_out() {
    let config = HostQueueConfig {
        qid: QueueId(0),
        ..queue_config()
    };
    let mut owner = Owner::connected(config);
    let sqe = command::async_event_request();
    assert_eq!(sqe.opcode(), admin::ASYNC_EVENT_REQUEST);
    owner.submit(sqe, Transfer::None, 1).expect("room");
    assert_eq!(owner.queue.poll_timeout(), None);
}
