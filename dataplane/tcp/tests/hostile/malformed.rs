//! Streams that cannot be understood, and commands that cannot be carried out.

use std::net::SocketAddr;

use bowline_nvme::pdu::{CapsuleCmd, Digests, Fes, H2CData, R2t};
use bowline_nvme::{CommandId, NamespaceId, Sgl, Sqe, Status};
use bowline_nvmf::host::command;
use bowline_reactor::IoBackend;

use super::{BOTH, NSID, changed_data, changed_write, granted, write_sqe};
use crate::common::initiator::Bystander;
use crate::common::raw::{End, Raw, ic_req};
use crate::common::rig::{DISK_BYTES, Rig};
use crate::common::{on_both_backends, pattern};

on_both_backends!(
    malformed_pdus_end_as_specified_and_disturb_nobody,
    unusable_commands_fail_alone_and_the_connection_goes_on,
    data_with_a_wrong_digest_is_never_written,
    truncated_pdus_end_with_the_connection,
    garbage_ends_the_connection,
);

/// How far a peer has come when it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing but a TCP connection.
    Connected,
    /// ICReq and ICResp.
    Initialized,
    /// An I/O queue.
    Queue,
    /// A Write of 64 KiB was answered with an R2T.
    Granted,
}

struct Case {
    name: &'static str,
    stage: Stage,
    /// What it sends.
    wire: fn(&mut Raw, R2t) -> Vec<u8>,
    end: End,
}

const fn case(
    name: &'static str,
    stage: Stage,
    end: End,
    wire: fn(&mut Raw, R2t) -> Vec<u8>,
) -> Case {
    Case {
        name,
        stage,
        wire,
        end,
    }
}

const fn field(offset: u32) -> End {
    End::Term(Fes::INVALID_HEADER_FIELD, offset)
}

const fn fes(fes: Fes) -> End {
    End::Term(fes, 0)
}

/// A PDU of the target's own types, with an honest length.
fn controller_pdu(kind: u8) -> Vec<u8> {
    let hlen: u8 = if kind == 1 { 128 } else { 24 };
    let mut bytes = vec![0; usize::from(hlen)];
    bytes[0] = kind;
    bytes[2] = hlen;
    bytes[4] = hlen;
    bytes
}

fn changed_ic_req(at: usize, value: u8) -> Vec<u8> {
    let mut bytes = ic_req(Digests::NONE).to_vec();
    bytes[at] = value;
    bytes
}

/// Every way to break the stream. [TCP-1.0 §3.5.1, §3.6]
const CASES: &[Case] = &[
    case("unknown type", Stage::Connected, field(0), |_, _| {
        controller_pdu(8)
    }),
    case(
        "a type that does not exist at all",
        Stage::Connected,
        field(0),
        |_, _| controller_pdu(0xFF),
    ),
    case("ICResp from a host", Stage::Connected, field(0), |_, _| {
        controller_pdu(1)
    }),
    case(
        "C2HTermReq from a host",
        Stage::Connected,
        field(0),
        |_, _| controller_pdu(3),
    ),
    case(
        "CapsuleResp from a host",
        Stage::Initialized,
        field(0),
        |_, _| controller_pdu(5),
    ),
    case(
        "C2HData from a host",
        Stage::Initialized,
        field(0),
        |_, _| controller_pdu(7),
    ),
    case("R2T from a host", Stage::Initialized, field(0), |_, _| {
        controller_pdu(9)
    }),
    case("ICReq with a flag", Stage::Connected, field(1), |_, _| {
        changed_ic_req(1, 1)
    }),
    case(
        "ICReq with a wrong HLEN",
        Stage::Connected,
        field(2),
        |_, _| changed_ic_req(2, 127),
    ),
    case(
        "ICReq that is too short",
        Stage::Connected,
        field(4),
        |_, _| changed_ic_req(4, 127),
    ),
    case(
        "ICReq with something behind it",
        Stage::Connected,
        field(4),
        |_, _| changed_ic_req(4, 132),
    ),
    case("ICReq of 4 GiB", Stage::Connected, field(4), |_, _| {
        changed_ic_req(7, 0xFF)
    }),
    case(
        "ICReq of another format",
        Stage::Connected,
        field(8),
        |_, _| changed_ic_req(8, 1),
    ),
    case(
        "ICReq with an alignment of 33 dwords",
        Stage::Connected,
        field(10),
        |_, _| changed_ic_req(10, 32),
    ),
    case(
        "command before ICReq",
        Stage::Connected,
        fes(Fes::SEQUENCE_ERROR),
        |raw, _| raw.capsule(command::keep_alive(), None),
    ),
    case(
        "data before ICReq",
        Stage::Connected,
        fes(Fes::SEQUENCE_ERROR),
        |raw, _| changed_data(raw, any_r2t(), |_, data| data.truncate(512)),
    ),
    case(
        "second ICReq",
        Stage::Initialized,
        fes(Fes::SEQUENCE_ERROR),
        |raw, _| ic_req(raw.digests).to_vec(),
    ),
    case("H2CTermReq", Stage::Initialized, End::Closed, |_, _| {
        controller_pdu(2)
    }),
    case(
        "H2CTermReq on a queue",
        Stage::Queue,
        End::Closed,
        |_, _| controller_pdu(2),
    ),
    case(
        "H2CTermReq that is too long",
        Stage::Initialized,
        field(4),
        |_, _| {
            let mut bytes = controller_pdu(2);
            bytes[4] = 153;
            bytes.resize(153, 0);
            bytes
        },
    ),
    case(
        "data before Connect",
        Stage::Initialized,
        fes(Fes::SEQUENCE_ERROR),
        |raw, _| changed_data(raw, any_r2t(), |_, data| data.truncate(512)),
    ),
    case(
        "Connect with too much data",
        Stage::Initialized,
        fes(Fes::LIMIT_EXCEEDED),
        |raw, _| {
            let connect = bowline_nvme::fabrics::Connect {
                sqsize: 31,
                ..Default::default()
            };
            raw.capsule(connect.encode(), Some(&vec![0; 16_388]))
        },
    ),
    case(
        "capsule with a wrong HLEN",
        Stage::Queue,
        field(2),
        |raw, _| changed_write(raw, |header| header[2] = 64),
    ),
    case(
        "capsule shorter than its header",
        Stage::Queue,
        field(4),
        |raw, _| {
            changed_write(raw, |header| {
                header[4..8].copy_from_slice(&71_u32.to_le_bytes())
            })
        },
    ),
    case(
        "capsule whose data begins in its header",
        Stage::Queue,
        field(3),
        |raw, _| changed_write(raw, |header| header[3] = 68),
    ),
    case(
        "capsule whose data is not aligned",
        Stage::Queue,
        field(3),
        |raw, _| changed_write(raw, |header| header[3] = 78),
    ),
    case(
        "capsule whose data begins far behind",
        Stage::Queue,
        field(3),
        |raw, _| changed_write(raw, |header| header[3] = 132),
    ),
    case(
        "capsule that lies about its header digest",
        Stage::Queue,
        field(1),
        |raw, _| changed_write(raw, |header| header[1] ^= 1),
    ),
    case(
        "capsule that lies about its data digest",
        Stage::Queue,
        field(1),
        |raw, _| changed_write(raw, |header| header[1] ^= 2),
    ),
    case(
        "data beyond the capsule's size",
        Stage::Queue,
        fes(Fes::LIMIT_EXCEEDED),
        |raw, _| raw.capsule(write_sqe(32 << 10), Some(&vec![0; 32 << 10])),
    ),
    case("capsule of 4 GiB", Stage::Queue, field(40), |raw, _| {
        changed_write(raw, |header| header[7] = 0xFF)
    }),
    case(
        "less data than the SGL says",
        Stage::Queue,
        field(40),
        |raw, _| raw.capsule_with(write_sqe(1024).with_sgl1(Sgl::in_capsule(1024)), &[0; 512]),
    ),
    case(
        "data though the SGL says none",
        Stage::Queue,
        field(40),
        |raw, _| {
            raw.capsule_with(
                command::flush(NSID).with_sgl1(Sgl::in_capsule(0)),
                &[0; 512],
            )
        },
    ),
    case(
        "SGL of a type that TCP does not have",
        Stage::Queue,
        End::Term(Fes::UNSUPPORTED_PARAMETER, 47),
        |raw, _| {
            let sgl = Sgl {
                address: 0,
                length: 512,
                kind: 0x40,
            };
            raw.capsule_with(write_sqe(512).with_sgl1(sgl), &[])
        },
    ),
    case(
        "in-capsule data at an offset",
        Stage::Queue,
        End::Term(Fes::UNSUPPORTED_PARAMETER, 32),
        |raw, _| {
            let sgl = Sgl {
                address: 4,
                ..Sgl::in_capsule(512)
            };
            raw.capsule_with(write_sqe(512).with_sgl1(sgl), &[0; 512])
        },
    ),
    case(
        "data nobody asked for",
        Stage::Queue,
        fes(Fes::SEQUENCE_ERROR),
        |raw, _| changed_data(raw, any_r2t(), |_, data| data.truncate(512)),
    ),
    case(
        "data with another tag",
        Stage::Granted,
        fes(Fes::SEQUENCE_ERROR),
        |raw, r2t| changed_data(raw, r2t, |header, _| header.ttag ^= 0x8000),
    ),
    case(
        "data with the highest tag",
        Stage::Granted,
        fes(Fes::SEQUENCE_ERROR),
        |raw, r2t| changed_data(raw, r2t, |header, _| header.ttag = 0xFFFF),
    ),
    case(
        "data for another command",
        Stage::Granted,
        fes(Fes::SEQUENCE_ERROR),
        |raw, r2t| changed_data(raw, r2t, |header, _| header.cccid.0 ^= 1),
    ),
    case(
        "data at another offset",
        Stage::Granted,
        fes(Fes::DATA_OUT_OF_RANGE),
        |raw, r2t| {
            changed_data(raw, r2t, |header, data| {
                header.datao += 512;
                data.truncate(512);
            })
        },
    ),
    case(
        "data at the end of the number space",
        Stage::Granted,
        fes(Fes::DATA_OUT_OF_RANGE),
        {
            |raw, r2t| {
                changed_data(raw, r2t, |header, data| {
                    header.datao = u32::MAX - 3;
                    data.truncate(512);
                })
            }
        },
    ),
    case(
        "more data than asked for",
        Stage::Granted,
        fes(Fes::DATA_OUT_OF_RANGE),
        |raw, r2t| changed_data(raw, r2t, |_, data| data.extend_from_slice(&[0; 512])),
    ),
    case("data without data", Stage::Granted, field(4), |raw, r2t| {
        changed_data(raw, r2t, |_, data| data.clear())
    }),
    case(
        "DATAL other than what follows",
        Stage::Granted,
        field(16),
        |raw, r2t| {
            let R2t {
                cccid, ttag, r2to, ..
            } = r2t;
            let header = H2CData {
                cccid,
                ttag,
                datao: r2to,
                datal: 512,
                last: false,
            };
            let mut header = header.encode(raw.digests, 0);
            header[16..20].copy_from_slice(&508_u32.to_le_bytes());
            raw.assemble(&header, &[0; 512])
        },
    ),
    case(
        "last data that is not marked as last",
        Stage::Granted,
        field(1),
        |raw, r2t| changed_data(raw, r2t, |header, _| header.last = false),
    ),
    case(
        "data marked as last that is not",
        Stage::Granted,
        field(1),
        |raw, r2t| changed_data(raw, r2t, |_, data| data.truncate(512)),
    ),
];

/// An R2T that was never sent.
fn any_r2t() -> R2t {
    R2t {
        cccid: CommandId(1),
        ttag: 1,
        r2to: 0,
        r2tl: 4096,
    }
}

/// A peer at a stage, what it keeps open meanwhile, and the R2T it has.
fn peer_at(address: SocketAddr, stage: Stage, digests: Digests) -> (Raw, Option<Raw>, R2t) {
    match stage {
        Stage::Connected => (Raw::connect(address), None, any_r2t()),
        Stage::Initialized => (Raw::initialized(address, digests), None, any_r2t()),
        Stage::Queue => {
            let (raw, admin) = Raw::io(address, digests);
            (raw, Some(admin), any_r2t())
        }
        Stage::Granted => {
            let (mut raw, admin) = Raw::io(address, digests);
            let r2t = granted(&mut raw, 64 << 10);
            (raw, Some(admin), r2t)
        }
    }
}

fn malformed_pdus_end_as_specified_and_disturb_nobody(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    for digests in [Digests::NONE, BOTH] {
        for Case {
            name,
            stage,
            wire,
            end,
        } in CASES
        {
            // A header digest of a PDU that has none would hide what the case is about.
            if digests.header && *stage == Stage::Connected {
                continue;
            }
            for split in [false, true] {
                let (mut peer, keep, r2t) = peer_at(rig.address, *stage, digests);
                let bytes = wire(&mut peer, r2t);
                peer.note = name;
                if split {
                    let (head, tail) = bytes.split_at(bytes.len().min(160));
                    head.chunks(1).for_each(|byte| peer.send(byte));
                    peer.send(tail);
                } else {
                    peer.send(&bytes);
                }
                let found = peer.await_end();
                assert_eq!(found, *end, "{name}, {digests:?}, split: {split}");
                drop(keep);
            }
            bystander.await_progress(name);
        }
    }
    bystander.stop();
    rig.await_connections(0);
    rig.await_free_pool();
}

fn unusable_commands_fail_alone_and_the_connection_goes_on(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let none = Sgl::transport(0);
    let cases: &[(&str, Sqe, Status)] = &[
        (
            "opcode",
            Sqe::new(0x7D).with_nsid(NSID).with_sgl1(none),
            Status::INVALID_OPCODE,
        ),
        (
            "namespace",
            command::flush(NamespaceId(9)).with_sgl1(none),
            Status::INVALID_NAMESPACE,
        ),
        (
            "length",
            command::read(NSID, 0, 7).with_sgl1(Sgl::transport(512)),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            "4 GiB",
            command::write(NSID, 0, 0, false).with_sgl1(Sgl::transport(0xFFFF_FE00)),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            "range",
            command::read(NSID, DISK_BYTES / 512, 0).with_sgl1(Sgl::transport(512)),
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            "range that wraps",
            command::write(NSID, u64::MAX, 1, false).with_sgl1(Sgl::transport(1024)),
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            "more than MDTS",
            command::read(NSID, 0, 4095).with_sgl1(Sgl::transport(2 << 20)),
            Status::INVALID_FIELD,
        ),
    ];
    for digests in [Digests::NONE, BOTH] {
        let (mut peer, _admin) = Raw::io(rig.address, digests);
        for (name, sqe, status) in cases {
            let capsule = peer.capsule_with(*sqe, &[]);
            peer.send(&capsule);
            let found = peer.await_status();
            assert_eq!(found, status.dnr(), "{name}, {digests:?}");
        }
        // Two commands of one identifier: the second is refused, the first goes on.
        let r2t = granted(&mut peer, 64 << 10);
        let first = peer.last_cid();
        let again = command::flush(NSID).with_cid(first).with_sgl1(none);
        let header = CapsuleCmd { sqe: again }.encode(digests, 0, 0);
        let capsule = peer.assemble(&header, &[]);
        peer.send(&capsule);
        assert!(
            peer.await_status().same_code(Status::CID_CONFLICT),
            "{digests:?}"
        );
        let data = changed_data(&mut peer, r2t, |_, _| {});
        peer.send(&data);
        assert_eq!(peer.await_status(), Status::SUCCESS, "{digests:?}");
    }
    bystander.await_progress("after all cases");
    bystander.stop();
    rig.await_connections(0);
    rig.await_free_pool();
}

fn data_with_a_wrong_digest_is_never_written(io: IoBackend) {
    let rig = Rig::new(io);
    let (mut peer, _admin) = Raw::io(rig.address, BOTH);
    // In the capsule.
    let mut bytes = changed_write(&mut peer, |_| {});
    *bytes.last_mut().expect("a digest") ^= 1;
    peer.send(&bytes);
    assert!(peer.await_status().same_code(Status::TRANSIENT_TRANSPORT));
    // After an R2T.
    let r2t = granted(&mut peer, 64 << 10);
    let mut bytes = changed_data(&mut peer, r2t, |_, _| {});
    *bytes.last_mut().expect("a digest") ^= 1;
    peer.send(&bytes);
    assert!(peer.await_status().same_code(Status::TRANSIENT_TRANSPORT));
    // The connection goes on, and nothing was written.
    let read = command::read(NSID, 0, 127).with_sgl1(Sgl::transport(64 << 10));
    let capsule = peer.capsule_with(read, &[]);
    peer.send(&capsule);
    let data = peer.recv().expect("data");
    assert_eq!(data.kind(), 0x07);
    let payload = &data.bytes[28..28 + (64 << 10)];
    assert!(
        payload.iter().all(|byte| *byte == 0),
        "refused data reached the device"
    );
}

fn truncated_pdus_end_with_the_connection(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    for stage in [Stage::Connected, Stage::Queue, Stage::Granted] {
        for digests in [Digests::NONE, BOTH] {
            for part in [1, 7, 8, 23, 60, 71, 73, 75, 100, 140, 4000, 65_000] {
                let (mut peer, _keep, r2t) = peer_at(rig.address, stage, digests);
                let bytes = match stage {
                    Stage::Connected => ic_req(digests).to_vec(),
                    Stage::Granted => changed_data(&mut peer, r2t, |_, _| {}),
                    _ => changed_write(&mut peer, |_| {}),
                };
                let part = part.min(bytes.len() - 1);
                peer.send(&bytes[..part]);
                peer.finish();
                assert_eq!(
                    peer.await_end(),
                    End::Closed,
                    "{stage:?} {digests:?} {part}"
                );
            }
        }
        bystander.await_progress("truncation");
    }
    bystander.stop();
    rig.await_connections(0);
    rig.await_free_pool();
}

fn garbage_ends_the_connection(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    for seed in 1..=64 {
        let stage = [
            Stage::Connected,
            Stage::Initialized,
            Stage::Queue,
            Stage::Granted,
        ][usize::try_from(seed % 4).expect("small")];
        let (mut peer, _keep, _) = peer_at(rig.address, stage, Digests::NONE);
        peer.send(&pattern(seed, 8192));
        peer.finish();
        // Whichever it is, it ends; the seed is in the message should it not.
        let end = peer.await_end();
        assert!(
            matches!(end, End::Term(..) | End::Closed),
            "seed {seed}: {end:?}"
        );
    }
    bystander.await_progress("garbage");
    bystander.stop();
    rig.await_connections(0);
    rig.await_free_pool();
}
