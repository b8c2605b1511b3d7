//! Whatever a peer sends: no panic, bounded output, and other connections go on.

use bowline_nvme::opcode::io as opcode;
use bowline_nvme::pdu::{Digests, Fes};
use bowline_nvme::{Nanos, Sqe};
use bowline_nvmf::target::ConnId;
use proptest::prelude::*;

use crate::glue::{BLOCK, Glue, Reply, io};

fn terminated(glue: &mut Glue, id: ConnId, bytes: &[u8]) -> (u16, u32) {
    glue.receive(id, bytes);
    match glue.replies(id).pop() {
        Some(Reply::Terminate { fes, fei }) => (fes, fei),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pdus_out_of_order_are_sequence_errors() {
    let icreq = bowline_nvme::pdu::IcReq::default().encode();
    let mut glue = Glue::new();
    let early = glue.open();
    let capsule = glue.capsule(early, Sqe::new(0x18), &[]);
    assert_eq!(
        terminated(&mut glue, early, &capsule),
        (Fes::SEQUENCE_ERROR.0, 0)
    );
    let twice = glue.initialized(Digests::NONE);
    assert_eq!(
        terminated(&mut glue, twice, &icreq),
        (Fes::SEQUENCE_ERROR.0, 0)
    );
    let (_, queue) = glue.queues(Digests::NONE);
    assert_eq!(
        terminated(&mut glue, queue, &icreq),
        (Fes::SEQUENCE_ERROR.0, 0)
    );
}

#[test]
fn violation_on_an_admin_queue_is_told_before_its_association_ends() {
    let icreq = bowline_nvme::pdu::IcReq::default().encode();
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    assert_eq!(
        terminated(&mut glue, admin, &icreq),
        (Fes::SEQUENCE_ERROR.0, 0)
    );
    assert!(!glue.is_open(queue), "the association is over");
    // Its reason has been read, and it does not stay for more than that.
    glue.advance(Nanos::from_secs(60));
    assert!(!glue.is_open(admin));
    assert_eq!(glue.target.connection_count(), 0);
}

#[test]
fn malformed_initialization_names_the_field() {
    let icreq = bowline_nvme::pdu::IcReq::default().encode();
    for (at, value, fei) in [
        (0, 0x42, 0),
        (2, 24, 2),
        (4, 127, 4),
        (8, 1, 8),
        (10, 32, 10),
    ] {
        let mut glue = Glue::new();
        let id = glue.open();
        let mut bytes = icreq;
        bytes[at] = value;
        let found = terminated(&mut glue, id, &bytes);
        assert_eq!(found, (Fes::INVALID_HEADER_FIELD.0, fei), "byte {at}");
    }
}

#[test]
fn gigantic_plen_is_refused_before_any_memory_is_spent() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let sqe = io(opcode::WRITE, 0, 1).with_sgl1(bowline_nvme::Sgl::in_capsule(u32::MAX - 72));
    let mut bytes = glue.capsule(queue, sqe, &[1; 4]);
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        terminated(&mut glue, queue, &bytes),
        (Fes::LIMIT_EXCEEDED.0, 0)
    );
}

#[test]
fn terminated_connection_gives_its_buffers_back_at_once() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    for _ in 0..20 {
        glue.send(queue, io(opcode::WRITE, 0, 256));
    }
    assert_eq!(glue.replies(queue).len(), 20);
    assert_eq!(glue.conn(queue).buffers_bound(), 20);
    glue.receive(queue, &[0xFF; 24]);
    assert_eq!(glue.conn(queue).buffers_bound(), 0);
}

#[test]
fn silent_wait_for_buffers_is_bounded_by_the_queue() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.no_buffers = true;
    for _ in 0..128 {
        glue.send(queue, io(opcode::WRITE, 0, 1));
    }
    assert_eq!(glue.wanted.len(), 128);
    assert!(glue.replies(queue).is_empty());
    // Nobody is blamed for the wait, and nothing goes on behind the glue's back.
    glue.advance(Nanos::from_secs(60));
    assert!(glue.is_open(queue));
}

/// One thing a peer may do to a connection.
#[derive(Clone, Debug)]
enum Step {
    Garbage(Vec<u8>),
    /// A capsule with any SQE and some data.
    Capsule(Vec<u8>, Vec<u8>),
    /// Edits of a valid command.
    Edited {
        opcode: u8,
        edits: Vec<(usize, u8)>,
    },
    H2c {
        cid: u16,
        tag: u16,
        offset: u32,
        len: u8,
        last: bool,
    },
    Wait(u8),
    Hold(bool),
    Finish,
    Break,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = |n| proptest::collection::vec(any::<u8>(), 0..n);
    prop_oneof![
        1 => bytes(200).prop_map(Step::Garbage),
        4 => (proptest::collection::vec(any::<u8>(), 64), bytes(64))
            .prop_map(|(sqe, data)| Step::Capsule(sqe, data)),
        12 => (any::<u8>(), proptest::collection::vec((0usize..64, any::<u8>()), 0..4))
            .prop_map(|(opcode, edits)| Step::Edited { opcode, edits }),
        4 => (0u16..9, 0u16..0x1010, 0u32..8192, any::<u8>(), any::<bool>())
            .prop_map(|(cid, tag, offset, len, last)| Step::H2c { cid, tag, offset, len, last }),
        2 => any::<u8>().prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Hold),
        1 => Just(Step::Finish),
        1 => Just(Step::Break),
    ]
}

fn apply(glue: &mut Glue, id: ConnId, step: &Step) {
    match step {
        Step::Garbage(bytes) => glue.receive(id, bytes),
        Step::Capsule(sqe, data) => {
            let mut bytes = [0; 64];
            bytes.copy_from_slice(sqe);
            let capsule = glue.capsule(id, Sqe(bytes), data);
            glue.receive(id, &capsule);
        }
        Step::Edited { opcode, edits } => {
            let cid = glue.next_cid(id);
            let mut sqe = io(opcode % 0x20, 0, 8).with_cid(cid);
            for &(at, value) in edits {
                sqe.0[at] = value;
            }
            let capsule = glue.capsule(id, sqe, &[]);
            glue.receive(id, &capsule);
        }
        Step::H2c {
            cid,
            tag,
            offset,
            len,
            last,
        } => {
            let pdu = bowline_nvme::pdu::H2CData {
                cccid: bowline_nvme::CommandId(*cid),
                ttag: *tag,
                datao: *offset,
                datal: u32::from(*len) + 1,
                last: *last,
            };
            let data = vec![0xAB; usize::from(*len) + 1];
            let bytes = glue.h2c(id, pdu, &data);
            glue.receive(id, &bytes);
        }
        Step::Wait(secs) => glue.advance(Nanos::from_secs(u64::from(*secs))),
        Step::Hold(hold) => glue.hold_io = *hold,
        Step::Finish => glue.finish_held(),
        Step::Break => glue.drop_socket(id),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_stream_of_bytes_does_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        chunk in 1usize..200,
    ) {
        let mut glue = Glue::new();
        glue.chunk = chunk;
        let id = glue.open();
        glue.receive(id, &bytes);
        glue.advance(Nanos::from_secs(30));
        prop_assert!(!glue.is_open(id));
        prop_assert!(glue.conn(id).sent.len() <= 128 + 152);
    }

    #[test]
    fn no_sequence_of_pdus_does_harm(
        steps in proptest::collection::vec((0usize..3, step()), 0..60),
        digests in (any::<bool>(), any::<bool>()),
        chunk in 1usize..300,
    ) {
        let digests = Digests { header: digests.0, data: digests.1 };
        let mut glue = Glue::new();
        let (bystander, spared) = glue.queues(Digests::NONE);
        let (admin, queue) = glue.queues(digests);
        let fresh = glue.initialized(digests);
        glue.chunk = chunk;
        let ids = [admin, queue, fresh];
        for (who, step) in &steps {
            if glue.is_open(ids[*who]) {
                apply(&mut glue, ids[*who], step);
            }
            let open = ids.into_iter().filter(|&id| glue.is_open(id)).collect::<Vec<_>>();
            for id in open {
                prop_assert!(glue.conn(id).buffers_bound() <= 132);
            }
        }
        glue.hold_io = false;
        glue.finish_held();
        glue.chunk = usize::MAX;
        prop_assert!(glue.is_open(bystander));
        prop_assert!(glue.read_data(spared, io(opcode::READ, 0, 1), BLOCK).is_ok());
        ids.into_iter().for_each(|id| if glue.is_open(id) { glue.drop_socket(id) });
        prop_assert_eq!(glue.target.subsystems()[0].controllers.len(), 1);
        prop_assert_eq!(glue.target.connections().len(), 2);
    }
}
