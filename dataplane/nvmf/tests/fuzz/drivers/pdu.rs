//! PDUs: what decodes encodes to the same, and a stream means the same however it is split.

use bowline_nvme::pdu::{
    C2HData, CapsuleCmd, CapsuleResp, CommonHeader, Digests, Direction, H2CData, IcReq, IcResp,
    PduType, R2t, TermReq,
};
use bowline_nvmf::frame::{Event, FrameReader, Header, crc32c};

use super::input::Input;

const H2C: Direction = Direction::HostToController;
const C2H: Direction = Direction::ControllerToHost;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let from = if mode & 1 == 0 { H2C } else { C2H };
    let digests = Digests {
        header: mode & 2 != 0,
        data: mode & 4 != 0,
    };
    let step = usize::from(mode >> 4) * 7 + 1;
    let stream = if mode & 8 == 0 {
        input.rest().to_vec()
    } else {
        well_formed(&mut input, from, digests)
    };
    let whole = read(from, digests, &stream, stream.len().max(1));
    assert_eq!(
        read(from, digests, &stream, step),
        whole,
        "pieces of {step}"
    );
    assert_eq!(read(from, digests, &stream, 1), whole, "single bytes");
    for seen in &whole {
        if let Seen::Header(header) = seen {
            round_trip(*header, from, digests);
        }
    }
}

/// PDUs with lengths, offsets and header digests that are right, and everything else free.
fn well_formed(input: &mut Input<'_>, from: Direction, digests: Digests) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() {
        let begin = stream.len();
        let free = input.u8();
        let Some(pdu_type) = PduType::from_wire(free & 15).filter(|it| it.direction() == from)
        else {
            stream.extend(input.bytes(usize::from(free >> 4)));
            continue;
        };
        let hlen = usize::from(pdu_type.hlen());
        let has_digest = digests.header && pdu_type.can_have_header_digest();
        let payload = if pdu_type.can_have_data() {
            let len = usize::from(input.u8());
            input.bytes(len)
        } else {
            &[]
        };
        let around = hlen + if has_digest { 4 } else { 0 };
        let mut plen = around;
        let mut flags = free >> 4 & 0b1100 | u8::from(has_digest);
        let mut pdo = 0;
        if !payload.is_empty() {
            pdo = (around + usize::from(input.u8() & 0b1_1100)).min(128);
            flags |= u8::from(digests.data) << 1;
            plen = pdo + payload.len() + if digests.data { 4 } else { 0 };
        }
        let common = CommonHeader {
            pdu_type: pdu_type.wire(),
            flags,
            hlen: pdu_type.hlen(),
            pdo: u8::try_from(pdo).expect("at most 128"),
            plen: u32::try_from(plen).expect("short"),
        };
        stream.extend(common.encode());
        let body = input.bytes(hlen - 8);
        stream.extend(body);
        stream.resize(begin + hlen, 0);
        if has_digest {
            let crc = crc32c(&stream[begin..]);
            stream.extend(crc.to_le_bytes());
        }
        if !payload.is_empty() {
            stream.resize(begin + pdo, 0);
            stream.extend(payload);
            if digests.data {
                stream.extend(crc32c(payload).to_le_bytes());
            }
        }
    }
    stream
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Header(Header),
    Other(Event),
    Payload(Vec<u8>),
}

/// Reads a stream in pieces, as an owner does.
fn read(from: Direction, digests: Digests, stream: &[u8], step: usize) -> Vec<Seen> {
    let mut reader = FrameReader::new(from);
    // A stream that does not begin with an IC PDU is still worth reading with digests.
    reader.set_digests(digests);
    let (mut seen, mut payload) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < stream.len() {
        let piece = &stream[at..stream.len().min(at + step)];
        let due = reader.payload_remaining() as usize;
        let used = if due > 0 {
            let landed = piece.len().min(due);
            payload.extend_from_slice(&piece[..landed]);
            let count = u32::try_from(landed).expect("within due");
            reader.advance_payload(count, Some(crc32c(&payload)));
            if landed == due {
                seen.push(Seen::Payload(std::mem::take(&mut payload)));
            }
            landed
        } else {
            reader.handle(piece)
        };
        let events = seen.len();
        while let Some(event) = reader.poll_event() {
            assert!(reader.header_bytes().len() <= TermReq::SIZE_MAX);
            seen.push(match event {
                Event::Header(header) => Seen::Header(header),
                other => Seen::Other(other),
            });
        }
        assert!(used > 0 || seen.len() > events, "the reader is stuck");
        at += used;
    }
    seen
}

/// Decoding what a header encodes to gives the header again.
fn round_trip(header: Header, from: Direction, digests: Digests) {
    let again = match header {
        Header::IcReq(pdu) => IcReq::decode(&pdu.encode()).map(Header::IcReq),
        Header::IcResp(pdu) => IcResp::decode(&pdu.encode()).map(Header::IcResp),
        Header::TermReq(pdu) => {
            let (bytes, len) = pdu.encode(from);
            TermReq::decode(from, &bytes[..len]).map(Header::TermReq)
        }
        Header::CapsuleCmd(pdu) => {
            CapsuleCmd::decode(&pdu.encode(digests, 0, 0), digests).map(Header::CapsuleCmd)
        }
        Header::CapsuleResp(pdu) => {
            CapsuleResp::decode(&pdu.encode(digests), digests).map(Header::CapsuleResp)
        }
        Header::H2CData(pdu) => {
            H2CData::decode(&pdu.encode(digests, 0), digests).map(Header::H2CData)
        }
        Header::C2HData(pdu) => {
            C2HData::decode(&pdu.encode(digests, 0), digests).map(Header::C2HData)
        }
        Header::R2t(pdu) => R2t::decode(&pdu.encode(digests), digests).map(Header::R2t),
    };
    assert_eq!(again, Ok(header), "encoded and decoded again");
}
