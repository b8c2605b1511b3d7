//! Peers that send much, of everything that costs more to handle than to send.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};

use bowline_nvme::fabrics::{PropertyGet, offset};
use bowline_nvme::opcode::admin as opcode;
use bowline_nvme::pdu::{Digests, H2CData};
use bowline_nvme::{CommandId, NamespaceId, Sgl, Sqe, Status};
use bowline_nvmf::host::command;
use bowline_reactor::IoBackend;

use super::{NSID, granted, write_sqe};
use crate::common::initiator::{Bystander, Disk};
use crate::common::raw::{Raw, length};
use crate::common::rig::Rig;
use crate::common::{on_both_backends, pattern};

on_both_backends!(
    admin_floods_disturb_nobody,
    tiny_pieces_of_data_disturb_nobody_and_arrive,
    flood_of_reads_in_tiny_capsules_disturbs_nobody,
    repeated_command_ids_fail_alone,
    replayed_and_overlapping_data_end_only_their_connection,
);

/// PDUs that one connection is given in one turn at most: the limit, and one window of the
/// smallest that are understood.
const TURN_PDUS_MAX: u64 = 1024 + (16 << 10) / 24;
/// Bytes likewise: the limit, what was received with the last of them, and one large payload.
const TURN_BYTES_MAX: u64 = (1 << 20) + (256 << 10) + (1 << 20);

/// Most commands of an admin queue at a time.
const BATCH: usize = 30;

fn assert_turns_were_short(rig: &Rig) {
    let work = rig.work();
    assert!(work.turn_pdus_max <= TURN_PDUS_MAX, "{work:?}");
    assert!(work.turn_bytes_max <= TURN_BYTES_MAX, "{work:?}");
    assert!(work.carry_bytes_max <= 16 << 10, "{work:?}");
}

/// Get Log Page of the whole error log and what lies behind it. [BASE-2.0 §5.16]
fn log_page(bytes: u32) -> Sqe {
    let numd = bytes / 4 - 1;
    Sqe::new(opcode::GET_LOG_PAGE)
        .with_nsid(NamespaceId::BROADCAST)
        .with_cdw(10, (numd & 0xFFFF) << 16 | 0x01)
        .with_cdw(11, numd >> 16)
        .with_sgl1(Sgl::transport(bytes))
}

/// What is cheap to ask for, and how much of an answer belongs to it.
fn cheap_questions() -> Vec<(&'static str, Sqe)> {
    let none = |sqe: Sqe| sqe.with_sgl1(Sgl::transport(0));
    vec![
        (
            "properties",
            none(PropertyGet::dword(offset::CSTS).encode()),
        ),
        ("keep alive", none(command::keep_alive())),
        (
            "abort",
            none(Sqe::new(opcode::ABORT).with_cdw(10, 0x4242_0001)),
        ),
        ("events", none(command::async_event_request())),
        ("unknown opcode", none(Sqe::new(0x7E))),
        (
            "namespace that is not there",
            command::identify(0, NamespaceId(77)).with_sgl1(Sgl::transport(4096)),
        ),
        (
            "identify",
            command::identify(1, NamespaceId::NONE).with_sgl1(Sgl::transport(4096)),
        ),
        ("log pages of 1 MiB", log_page(1 << 20)),
    ]
}

fn admin_floods_disturb_nobody(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    for (what, sqe) in cheap_questions() {
        let (mut peer, _) = Raw::admin(rig.address, Digests::NONE);
        peer.note = what;
        let rounds = if sqe.sgl1().length > 4096 { 4 } else { 100 };
        for round in 0..rounds {
            let batch: Vec<u8> = (0..BATCH)
                .flat_map(|_| peer.capsule_with(sqe, &[]))
                .collect();
            peer.send(&batch);
            // Four event requests stay; the rest is refused.
            let kept = if what != "events" {
                0
            } else if round == 0 {
                4
            } else {
                0
            };
            let mut answers = 0;
            while answers < BATCH - kept {
                let pdu = peer.recv().expect("an answer");
                // Data that stands for its response says so.
                let is_answer = pdu.kind() == 0x05 || pdu.bytes[1] & 0x08 != 0;
                answers += usize::from(is_answer);
            }
        }
        bystander.await_progress(what);
    }
    bystander.stop();
    assert_turns_were_short(&rig);
    rig.await_nothing_left();
}

fn tiny_pieces_of_data_disturb_nobody_and_arrive(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let (mut peer, admin) = Raw::io(rig.address, Digests::NONE);
    let data = pattern(77, 128 << 10);
    let r2t = granted(&mut peer, length(&data));
    let mut wire = Vec::new();
    for (at, piece) in (0..).step_by(8).zip(data.chunks(8)) {
        let header = H2CData {
            cccid: r2t.cccid,
            ttag: r2t.ttag,
            datao: at,
            datal: 8,
            last: at as usize + 8 == data.len(),
        };
        wire.extend(peer.h2c_data(header, piece));
    }
    peer.send(&wire);
    assert_eq!(peer.await_status(), Status::SUCCESS);
    bystander.await_progress("data comes in tiny pieces");
    let mut disk = Disk::connect(rig.address, io);
    assert!(
        disk.read(NSID, 0, data.len()) == data,
        "the pieces are in order"
    );
    let work = rig.work();
    assert!(work.turns_cut > 0, "16384 PDUs in one turn: {work:?}");
    drop((peer, admin, disk));
    bystander.stop();
    assert_turns_were_short(&rig);
    rig.await_nothing_left();
}

fn flood_of_reads_in_tiny_capsules_disturbs_nobody(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let (mut peer, admin) = Raw::io(rig.address, Digests::NONE);
    let read = command::read(NSID, 0, 0).with_sgl1(Sgl::transport(512));
    for _ in 0..100 {
        let batch: Vec<u8> = (0..120)
            .flat_map(|_| peer.capsule_with(read, &[]))
            .collect();
        peer.send(&batch);
        let mut left = 120 * (24 + 512 + 24);
        let mut sink = vec![0; 64 << 10];
        // As many bytes as data and responses are, whichever form they take.
        while left > 0 {
            match peer.stream.read(&mut sink) {
                Ok(0) => panic!("closed"),
                Ok(bytes) => left -= bytes.min(left),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    bystander.await_progress("reads flood");
    drop((peer, admin));
    bystander.stop();
    assert_turns_were_short(&rig);
    rig.await_nothing_left();
}

fn repeated_command_ids_fail_alone(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    let (mut peer, admin) = Raw::io(rig.address, Digests::NONE);
    for _ in 0..50 {
        // One waits for its data, so the other sixty come while it is there.
        let first = write_sqe(64 << 10).with_sgl1(Sgl::transport(64 << 10));
        let mut wire = peer.capsule_with(first, &[]);
        let cid = peer.last_cid();
        let again = again(&mut peer, cid);
        (0..60).for_each(|_| wire.extend(&again));
        peer.send(&wire);
        let mut seen: HashMap<u8, usize> = HashMap::new();
        let mut r2t = None;
        for _ in 0..61 {
            let pdu = peer.recv().expect("an answer each");
            *seen.entry(pdu.kind()).or_default() += 1;
            match pdu.kind() {
                0x09 => r2t = Some(pdu.r2t()),
                _ => assert!(pdu.cqe().status.same_code(Status::CID_CONFLICT)),
            }
        }
        assert_eq!((seen[&0x09], seen[&0x05]), (1, 60));
        let r2t = r2t.expect("the first was taken");
        let bytes = super::changed_data(&mut peer, r2t, |_, _| {});
        peer.send(&bytes);
        assert_eq!(peer.await_status(), Status::SUCCESS);
    }
    bystander.await_progress("command ids repeat");
    drop((peer, admin));
    bystander.stop();
    assert_turns_were_short(&rig);
    rig.await_nothing_left();
}

/// A Flush with a command id that is in use.
fn again(peer: &mut Raw, cid: CommandId) -> Vec<u8> {
    let mut bytes = peer.capsule_with(command::flush(NSID).with_sgl1(Sgl::transport(0)), &[]);
    bytes[10..12].copy_from_slice(&cid.0.to_le_bytes());
    bytes
}

fn replayed_and_overlapping_data_end_only_their_connection(io: IoBackend) {
    let rig = Rig::new(io);
    let bystander = Bystander::start(rig.address);
    type Second = fn(&mut H2CData);
    let cases: [(&'static str, Second); 3] = [
        ("replayed", |header| header.datao = 0),
        ("overlapping", |header| header.datao -= 512),
        ("with a gap", |header| header.datao += 512),
    ];
    for (what, change) in cases {
        let (mut peer, _admin) = Raw::io(rig.address, Digests::NONE);
        peer.note = what;
        let r2t = granted(&mut peer, 64 << 10);
        let part = |datao: u32| H2CData {
            cccid: r2t.cccid,
            ttag: r2t.ttag,
            datao,
            datal: 4096,
            last: false,
        };
        let mut second = part(4096);
        change(&mut second);
        let wire = [
            peer.h2c_data(part(0), &[1; 4096]),
            peer.h2c_data(second, &[2; 4096]),
        ];
        peer.send(&wire.concat());
        assert!(
            matches!(peer.await_end(), crate::common::raw::End::Term(..)),
            "{what}"
        );
        bystander.await_progress(what);
    }
    bystander.stop();
    rig.await_nothing_left();
}
