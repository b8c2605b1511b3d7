extern crate std;

use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::{CommandId, Cqe, QueueId, Sqe, Status};

const ALL: [Digests; 4] = [
    Digests::NONE,
    Digests {
        header: true,
        data: false,
    },
    Digests {
        header: false,
        data: true,
    },
    Digests {
        header: true,
        data: true,
    },
];
const BOTH: Digests = ALL[3];
const H2C: Direction = Direction::HostToController;
const C2H: Direction = Direction::ControllerToHost;

fn layout(bytes: &[u8], from: Direction, digests: Digests) -> Result<Layout, Violation> {
    CommonHeader::decode(bytes.first_chunk().unwrap()).layout(from, digests)
}

fn field(offset: u32) -> Violation {
    Violation {
        fes: Fes(1),
        fei: offset,
    }
}

#[test]
fn icreq_has_the_known_bytes() {
    let icreq = IcReq {
        pfv: 0,
        hpda: 31,
        header_digest: true,
        data_digest: false,
        maxr2t: 0x0102_0304,
    };
    let mut golden = [0; 128];
    golden[..16].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 31, 1, 4, 3, 2, 1]);
    assert_eq!(icreq.encode(), golden);
    assert_eq!(IcReq::decode(&golden), Ok(icreq));
    assert_eq!(icreq.r2ts_per_command(), 0x0102_0305);
}

#[test]
fn icresp_has_the_known_bytes() {
    let icresp = IcResp {
        pfv: 0,
        cpda: 0,
        header_digest: true,
        data_digest: true,
        maxh2cdata: 1 << 20,
    };
    let mut golden = [0; 128];
    golden[..16].copy_from_slice(&[1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3, 0, 0, 16, 0]);
    assert_eq!(icresp.encode(), golden);
    assert_eq!(IcResp::decode(&golden), Ok(icresp));
}

#[test]
fn termreq_has_the_known_bytes() {
    let termreq = TermReq::new(Violation::field(0x0102), &[4, 0, 72, 0]);
    let (bytes, len) = termreq.encode(C2H);
    let mut golden = [0; 28];
    golden[..14].copy_from_slice(&[3, 0, 24, 0, 28, 0, 0, 0, 1, 0, 2, 1, 0, 0]);
    golden[24..].copy_from_slice(&[4, 0, 72, 0]);
    assert_eq!(bytes[..len], golden);
    assert_eq!(TermReq::decode(C2H, &golden), Ok(termreq));
    assert_eq!(TermReq::decode(H2C, &golden), Err(field(0)));
    assert_eq!(termreq.encode(H2C).0[0], 2);
}

#[test]
fn response_capsule_has_the_bytes_whose_digest_is_known() {
    let header = CapsuleResp {
        cqe: Cqe::default(),
    }
    .encode(ALL[1]);
    let mut golden = [0; 24];
    golden[..8].copy_from_slice(&[0x05, 0x01, 0x18, 0x00, 0x1c, 0x00, 0x00, 0x00]);
    assert_eq!(header, golden);
}

#[test]
fn command_capsule_without_data_has_neither_offset_nor_data_digest() {
    let capsule = CapsuleCmd { sqe: Sqe::new(0) };
    assert_eq!(capsule.encode(BOTH, 0, 0)[..8], [4, 1, 72, 0, 76, 0, 0, 0]);
    assert_eq!(
        capsule.encode(Digests::NONE, 0, 0)[..8],
        [4, 0, 72, 0, 72, 0, 0, 0]
    );
}

#[test]
fn command_capsule_with_data_counts_padding_and_both_digests() {
    let capsule = CapsuleCmd { sqe: Sqe::new(1) };
    assert_eq!(
        capsule.encode(BOTH, 0, 4096)[..8],
        [4, 3, 72, 76, 0x50, 0x10, 0, 0]
    );
    assert_eq!(
        capsule.encode(Digests::NONE, 31, 512)[..8],
        [4, 0, 72, 128, 0x80, 2, 0, 0]
    );
}

#[test]
fn data_pdus_have_the_known_bytes() {
    let h2c = H2CData {
        cccid: CommandId(0x1002),
        ttag: 7,
        datao: 512,
        datal: 1024,
        last: true,
    };
    let golden = [
        6, 5, 24, 28, 28, 4, 0, 0, 2, 16, 7, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(h2c.encode(ALL[1], 0), golden);
    assert_eq!(H2CData::decode(&golden, ALL[1]), Ok(h2c));

    let c2h = C2HData {
        cccid: CommandId(0x1002),
        datao: 512,
        datal: 1024,
        last: true,
        success: true,
    };
    let golden = [
        7, 14, 24, 24, 28, 4, 0, 0, 2, 16, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(c2h.encode(ALL[2], 0), golden);
    assert_eq!(C2HData::decode(&golden, ALL[2]), Ok(c2h));

    let r2t = R2t {
        cccid: CommandId(0x1002),
        ttag: 7,
        r2to: 512,
        r2tl: 1024,
    };
    let golden = [
        9, 0, 24, 0, 24, 0, 0, 0, 2, 16, 7, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(r2t.encode(ALL[2]), golden);
    assert_eq!(R2t::decode(&golden, ALL[2]), Ok(r2t));
}

#[test]
fn data_offset_obeys_the_receivers_alignment() {
    for (pda, digests, offset) in [(0, ALL[0], 24), (0, ALL[1], 28), (5, ALL[0], 24)] {
        assert_eq!(data_offset(PduType::C2HData, digests, pda), offset);
    }
    assert_eq!(data_offset(PduType::C2HData, ALL[1], 5), 48);
    assert_eq!(data_offset(PduType::C2HData, ALL[1], 31), 128);
    for pda in 0..=31 {
        for digests in ALL {
            let offset = data_offset(PduType::C2HData, digests, pda);
            assert!(offset.is_multiple_of((pda + 1) * 4) && offset <= PDO_MAX);
        }
    }
}

#[test]
fn unknown_type_and_wrong_direction_are_invalid_at_byte_0() {
    for pdu_type in 0..=u8::MAX {
        let header = CommonHeader {
            pdu_type,
            flags: 0,
            hlen: 24,
            pdo: 0,
            plen: 24,
        };
        let known = PduType::from_wire(pdu_type);
        for from in [H2C, C2H] {
            let refused = header.span(from, Digests::NONE) == Err(field(0));
            assert_eq!(refused, known.is_none_or(|known| known.direction() != from));
        }
        assert_eq!(known.map(PduType::wire).unwrap_or(pdu_type), pdu_type);
    }
}

#[test]
fn header_length_is_exact() {
    for hlen in 0..=u8::MAX {
        let header = CommonHeader {
            pdu_type: 4,
            flags: 0,
            hlen,
            pdo: 0,
            plen: 72,
        };
        let expected = if hlen == 72 { None } else { Some(field(2)) };
        assert_eq!(header.layout(H2C, Digests::NONE).err(), expected);
    }
}

#[test]
fn digest_flags_must_agree_with_what_was_negotiated() {
    let capsule = CapsuleCmd { sqe: Sqe::new(1) };
    for sent in ALL {
        for negotiated in ALL {
            let bytes = capsule.encode(sent, 0, 512);
            let result = CapsuleCmd::decode(&bytes, negotiated);
            match sent == negotiated {
                true => assert_eq!(result, Ok(capsule)),
                false => assert_eq!(result, Err(field(1))),
            }
        }
    }
    let mut icreq = IcReq::default().encode();
    icreq[1] = FLAG_HDGST;
    assert_eq!(IcReq::decode(&icreq), Err(field(1)));
}

#[test]
fn data_digest_flag_without_data_is_ignored() {
    let mut bytes = CapsuleCmd { sqe: Sqe::new(0) }.encode(BOTH, 0, 0);
    bytes[1] |= FLAG_DDGST;
    let layout = layout(&bytes, H2C, BOTH).unwrap();
    assert_eq!((layout.payload_bytes, layout.data_digest), (0, false));
}

#[test]
fn data_offset_is_judged_only_where_there_is_data() {
    let mut header = CommonHeader {
        pdu_type: 4,
        flags: 0,
        hlen: 72,
        pdo: 0,
        plen: 72,
    };
    for pdo in 0..=u8::MAX {
        header.pdo = pdo;
        assert!(header.layout(H2C, Digests::NONE).is_ok());
    }
    header.plen = 4096;
    for pdo in 0..=u8::MAX {
        header.pdo = pdo;
        let valid = (72..=128).contains(&pdo) && pdo % 4 == 0;
        let expected = if valid { None } else { Some(field(3)) };
        assert_eq!(header.layout(H2C, Digests::NONE).err(), expected, "{pdo}");
    }
}

#[test]
fn data_offset_inside_the_header_digest_is_refused() {
    let mut bytes = CapsuleCmd { sqe: Sqe::new(1) }.encode(BOTH, 0, 512);
    bytes[3] = 72;
    assert_eq!(layout(&bytes, H2C, BOTH), Err(field(3)));
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn pdu_length_has_a_lower_bound() {
    let cases = [
        (
            CommonHeader {
                pdu_type: 4,
                flags: 0,
                hlen: 72,
                pdo: 72,
                plen: 71,
            },
            H2C,
            ALL[0],
        ),
        (
            CommonHeader {
                pdu_type: 4,
                flags: 1,
                hlen: 72,
                pdo: 0,
                plen: 72,
            },
            H2C,
            ALL[1],
        ),
        // Data PDUs must have data, and more than its digest.
        (
            CommonHeader {
                pdu_type: 6,
                flags: 0,
                hlen: 24,
                pdo: 24,
                plen: 24,
            },
            H2C,
            ALL[0],
        ),
        (
            CommonHeader {
                pdu_type: 6,
                flags: 2,
                hlen: 24,
                pdo: 24,
                plen: 28,
            },
            H2C,
            ALL[2],
        ),
        (
            CommonHeader {
                pdu_type: 4,
                flags: 0,
                hlen: 72,
                pdo: 76,
                plen: 76,
            },
            H2C,
            ALL[0],
        ),
        // These carry no data at all.
        (
            CommonHeader {
                pdu_type: 5,
                flags: 0,
                hlen: 24,
                pdo: 24,
                plen: 28,
            },
            C2H,
            ALL[0],
        ),
        (
            CommonHeader {
                pdu_type: 9,
                flags: 0,
                hlen: 24,
                pdo: 24,
                plen: 28,
            },
            C2H,
            ALL[0],
        ),
        (
            CommonHeader {
                pdu_type: 0,
                flags: 0,
                hlen: 128,
                pdo: 0,
                plen: 129,
            },
            H2C,
            ALL[0],
        ),
        (
            CommonHeader {
                pdu_type: 1,
                flags: 0,
                hlen: 128,
                pdo: 0,
                plen: 127,
            },
            C2H,
            ALL[0],
        ),
    ];
    for (header, from, digests) in cases {
        assert_eq!(header.layout(from, digests), Err(field(4)), "{header:?}");
    }
}

#[test]
fn termreq_quotes_at_most_128_bytes() {
    for plen in 0..=400 {
        let header = CommonHeader {
            pdu_type: 2,
            flags: 0,
            hlen: 24,
            pdo: 0,
            plen,
        };
        let result = header
            .layout(H2C, BOTH)
            .map(|layout| u32::from(layout.span.bytes()));
        let valid = (24..=152).contains(&plen);
        assert_eq!(result, if valid { Ok(plen) } else { Err(field(4)) });
    }
    let quoted = [7; 200];
    assert_eq!(
        TermReq::new(Violation::new(Fes::SEQUENCE_ERROR), &quoted)
            .quoted()
            .len(),
        128
    );
}

#[test]
fn ic_fields_are_bounded() {
    let icreq = IcReq::default();
    assert_eq!(
        IcReq::decode(&IcReq { pfv: 1, ..icreq }.encode()),
        Err(field(8))
    );
    assert_eq!(
        IcReq::decode(&IcReq { hpda: 32, ..icreq }.encode()),
        Err(field(10))
    );
    let icresp = IcResp {
        maxh2cdata: 4096,
        ..IcResp::default()
    };
    assert!(IcResp::decode(&icresp.encode()).is_ok());
    assert_eq!(
        IcResp::decode(&IcResp { cpda: 32, ..icresp }.encode()),
        Err(field(10))
    );
    assert_eq!(
        IcResp::decode(
            &IcResp {
                maxh2cdata: 4095,
                ..icresp
            }
            .encode()
        ),
        Err(field(12))
    );
    assert_eq!(
        IcResp::decode(
            &IcResp {
                maxh2cdata: 4098,
                ..icresp
            }
            .encode()
        ),
        Err(field(12))
    );
}

#[test]
fn data_length_must_agree_with_pdu_length() {
    let data = H2CData {
        cccid: CommandId(1),
        ttag: 1,
        datao: 0,
        datal: 512,
        last: true,
    };
    let mut bytes = data.encode(BOTH, 0);
    bytes[16] = 1;
    assert_eq!(H2CData::decode(&bytes, BOTH), Err(field(16)));
}

#[test]
fn success_without_last_is_refused() {
    let data = C2HData {
        cccid: CommandId(1),
        datao: 0,
        datal: 512,
        last: false,
        success: true,
    };
    assert_eq!(C2HData::decode(&data.encode(BOTH, 0), BOTH), Err(field(1)));
}

#[test]
fn empty_r2t_is_refused() {
    let r2t = R2t {
        cccid: CommandId(1),
        ttag: 1,
        r2to: 0,
        r2tl: 0,
    };
    assert_eq!(R2t::decode(&r2t.encode(BOTH), BOTH), Err(field(16)));
}

#[test]
fn violation_says_what_and_where() {
    use std::string::ToString;
    assert_eq!(
        field(3).to_string(),
        "invalid PDU header field (FES 1, byte 3)"
    );
    assert_eq!(
        Violation::new(Fes::HEADER_DIGEST).to_string(),
        "header digest error (FES 3)"
    );
    assert_eq!(
        Violation::new(Fes(77)).to_string(),
        "unknown error (FES 77)"
    );
}

fn digests() -> impl Strategy<Value = Digests> {
    prop::sample::select(ALL.to_vec())
}

/// Whatever a decoder accepts, encoding gives a PDU it accepts as the same.
fn check_any_bytes(bytes: &[u8], digests: Digests) {
    if let Ok(icreq) = IcReq::decode(bytes) {
        assert_eq!(IcReq::decode(&icreq.encode()), Ok(icreq));
    }
    if let Ok(icresp) = IcResp::decode(bytes) {
        assert_eq!(IcResp::decode(&icresp.encode()), Ok(icresp));
    }
    for from in [H2C, C2H] {
        if let Ok(termreq) = TermReq::decode(from, bytes) {
            let (again, len) = termreq.encode(from);
            assert_eq!(TermReq::decode(from, &again[..len]), Ok(termreq));
        }
        if let Some(common) = bytes.first_chunk::<8>().map(CommonHeader::decode)
            && let Ok(layout) = common.layout(from, digests)
        {
            assert!(usize::from(layout.span.bytes()) <= TermReq::SIZE_MAX);
            let digest = if layout.data_digest { 4 } else { 0 };
            let parts = u64::from(layout.span.bytes())
                + u64::from(layout.pad_bytes)
                + u64::from(layout.payload_bytes)
                + digest;
            assert_eq!(parts, u64::from(common.plen));
        }
    }
    if let Ok(capsule) = CapsuleCmd::decode(bytes, digests) {
        let again = capsule.encode(digests, 0, 0);
        assert_eq!(CapsuleCmd::decode(&again, digests), Ok(capsule));
    }
    if let Ok(capsule) = CapsuleResp::decode(bytes, digests) {
        // The phase tag is dropped.
        assert_eq!(
            CapsuleResp::decode(&capsule.encode(digests), digests),
            Ok(capsule)
        );
    }
    if let Ok(data) = H2CData::decode(bytes, digests) {
        assert_eq!(H2CData::decode(&data.encode(digests, 0), digests), Ok(data));
    }
    if let Ok(data) = C2HData::decode(bytes, digests) {
        assert_eq!(C2HData::decode(&data.encode(digests, 0), digests), Ok(data));
    }
    if let Ok(r2t) = R2t::decode(bytes, digests) {
        assert_eq!(R2t::decode(&r2t.encode(digests), digests), Ok(r2t));
    }
}

proptest! {
    #[test]
    fn every_pdu_round_trips(
        digests in digests(),
        sqe in any::<[u8; 32]>(),
        result in any::<u64>(),
        (cid, tag, status) in any::<(u16, u16, u16)>(),
        offset in any::<u32>(),
        len in 1..=u32::MAX - 256,
        (last, success) in any::<(bool, bool)>(),
        pda in 0..=31u8,
    ) {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&sqe);
        bytes[32..].copy_from_slice(&sqe);
        let capsule = CapsuleCmd { sqe: Sqe(bytes) };
        // Our own CPDA is 0: a capsule's PDO then never exceeds the bound.
        prop_assert_eq!(
            CapsuleCmd::decode(&capsule.encode(digests, 0, len), digests),
            Ok(capsule)
        );
        let cqe = Cqe {
            result,
            sqhd: tag,
            sqid: QueueId(0),
            cid: CommandId(cid),
            status: Status::from_wire(status),
        };
        let response = CapsuleResp { cqe };
        prop_assert_eq!(CapsuleResp::decode(&response.encode(digests), digests), Ok(response));
        let cccid = CommandId(cid);
        let h2c = H2CData { cccid, ttag: tag, datao: offset, datal: len, last };
        prop_assert_eq!(H2CData::decode(&h2c.encode(digests, pda), digests), Ok(h2c));
        let c2h = C2HData { cccid, datao: offset, datal: len, last, success: success && last };
        prop_assert_eq!(C2HData::decode(&c2h.encode(digests, pda), digests), Ok(c2h));
        let r2t = R2t { cccid, ttag: tag, r2to: offset, r2tl: len };
        prop_assert_eq!(R2t::decode(&r2t.encode(digests), digests), Ok(r2t));
    }

    #[test]
    fn termreq_round_trips(
        (fes, fei) in any::<(u16, u32)>(),
        quoted in prop::collection::vec(any::<u8>(), 0..=128),
    ) {
        let termreq = TermReq::new(Violation { fes: Fes(fes), fei }, &quoted);
        let (bytes, len) = termreq.encode(H2C);
        prop_assert_eq!(TermReq::decode(H2C, &bytes[..len]), Ok(termreq));
        prop_assert_eq!(termreq.quoted(), &quoted[..]);
        prop_assert_eq!(len, 24 + quoted.len());
    }

    #[test]
    fn decoders_survive_any_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        digests in digests(),
    ) {
        check_any_bytes(&bytes, digests);
    }

    #[test]
    fn decoders_survive_a_flipped_byte(
        which in 0..6usize, at in 0..128usize, value in any::<u8>(), digests in digests(),
    ) {
        let cccid = CommandId(1);
        let mut bytes: Vec<u8> = match which {
            0 => IcReq::default().encode().to_vec(),
            1 => IcResp { maxh2cdata: 4096, ..IcResp::default() }.encode().to_vec(),
            2 => CapsuleCmd { sqe: Sqe::new(1) }.encode(digests, 0, 512).to_vec(),
            3 => R2t { cccid, ttag: 1, r2to: 0, r2tl: 8 }.encode(digests).to_vec(),
            4 => H2CData { cccid, ttag: 1, datao: 0, datal: 8, last: true }
                .encode(digests, 0)
                .to_vec(),
            _ => vec![2, 0, 24, 0, 24, 0, 0, 0],
        };
        let len = bytes.len();
        bytes[at % len] = value;
        check_any_bytes(&bytes, digests);
    }
}
