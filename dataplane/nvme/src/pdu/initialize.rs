//! PDUs that begin and end a connection: ICReq, ICResp, TermReq. They never carry digests.

use super::header::{CommonHeader, Digests, Direction, PduType};
use super::{Fes, Violation};
use crate::wire::{put, put_u16, put_u32, u16_at, u32_at};

/// Largest HPDA or CPDA: 128-byte alignment. [TCP-1.0 §3.6.2.2]
pub const HPDA_MAX: u8 = 31;
/// Smallest MAXH2CDATA a controller may report, in bytes. [TCP-1.0 §3.6.2.3]
pub const MAXH2CDATA_MIN: u32 = 4096;

const IC_BYTES: usize = 128;

/// Initialize Connection Request. [TCP-1.0 §3.6.2.2]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IcReq {
    /// PDU Format Version; only 0 exists.
    pub pfv: u16,
    /// Host PDU Data Alignment in dwords, 0's based: C2HData begins at a multiple of
    /// `(hpda + 1) * 4` bytes.
    pub hpda: u8,
    /// The host wants header digests.
    pub header_digest: bool,
    /// The host wants data digests.
    pub data_digest: bool,
    /// Maximum outstanding R2Ts per command, 0's based. See [`IcReq::r2ts_per_command`].
    pub maxr2t: u32,
}

impl IcReq {
    /// Bytes of the PDU.
    pub const SIZE: usize = IC_BYTES;

    /// How many R2Ts one command may have outstanding, at least 1.
    pub const fn r2ts_per_command(&self) -> u32 {
        self.maxr2t.saturating_add(1)
    }

    /// Both digest wishes.
    pub const fn digests(&self) -> Digests {
        Digests {
            header: self.header_digest,
            data: self.data_digest,
        }
    }

    /// The whole PDU.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        encode_ic(
            PduType::IcReq,
            self.pfv,
            self.hpda,
            self.digests(),
            self.maxr2t,
        )
    }

    /// Reads the whole PDU.
    pub fn decode(bytes: &[u8]) -> Result<Self, Violation> {
        let body = decode_ic(PduType::IcReq, bytes)?;
        let digests = Digests::from_wire(body[11]);
        Ok(Self {
            pfv: u16_at(&body, 8),
            hpda: body[10],
            header_digest: digests.header,
            data_digest: digests.data,
            maxr2t: u32_at(&body, 12),
        })
    }
}

/// Initialize Connection Response. [TCP-1.0 §3.6.2.3]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IcResp {
    /// PDU Format Version; only 0 exists.
    pub pfv: u16,
    /// Controller PDU Data Alignment in dwords, 0's based: data in CapsuleCmd and H2CData begins
    /// at a multiple of `(cpda + 1) * 4` bytes.
    pub cpda: u8,
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// Largest data of one H2CData, in bytes.
    pub maxh2cdata: u32,
}

impl IcResp {
    /// Bytes of the PDU.
    pub const SIZE: usize = IC_BYTES;

    /// What was settled.
    pub const fn digests(&self) -> Digests {
        Digests {
            header: self.header_digest,
            data: self.data_digest,
        }
    }

    /// The whole PDU.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        encode_ic(
            PduType::IcResp,
            self.pfv,
            self.cpda,
            self.digests(),
            self.maxh2cdata,
        )
    }

    /// Reads the whole PDU.
    pub fn decode(bytes: &[u8]) -> Result<Self, Violation> {
        let body = decode_ic(PduType::IcResp, bytes)?;
        let digests = Digests::from_wire(body[11]);
        let maxh2cdata = u32_at(&body, 12);
        if maxh2cdata < MAXH2CDATA_MIN || !maxh2cdata.is_multiple_of(4) {
            return Err(Violation::field(12));
        }
        Ok(Self {
            pfv: u16_at(&body, 8),
            cpda: body[10],
            header_digest: digests.header,
            data_digest: digests.data,
            maxh2cdata,
        })
    }
}

/// Both IC PDUs have one shape: version, alignment, digests, one limit.
fn encode_ic(pdu_type: PduType, pfv: u16, pda: u8, digests: Digests, limit: u32) -> [u8; IC_BYTES] {
    let mut bytes = [0; IC_BYTES];
    put(
        &mut bytes,
        0,
        &CommonHeader::outgoing(pdu_type, Digests::NONE, 0, 0).encode(),
    );
    put_u16(&mut bytes, 8, pfv);
    bytes[10] = pda;
    bytes[11] = digests.wire();
    put_u32(&mut bytes, 12, limit);
    bytes
}

fn decode_ic(pdu_type: PduType, bytes: &[u8]) -> Result<[u8; IC_BYTES], Violation> {
    let body: [u8; IC_BYTES] = super::capsule::header_of(pdu_type, bytes, Digests::NONE)?.1;
    if u16_at(&body, 8) != 0 {
        return Err(Violation::field(8));
    }
    if body[10] > HPDA_MAX {
        return Err(Violation::field(10));
    }
    Ok(body)
}

/// Terminate Connection Request, either direction: a last word before closing.
/// [TCP-1.0 §3.6.2.4, §3.6.2.5]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TermReq {
    /// Fatal Error Status.
    pub fes: Fes,
    /// Fatal Error Information.
    pub fei: u32,
    /// The first bytes of the header that was wrong, zero behind [`TermReq::header_len`].
    pub header: [u8; 128],
    /// How many bytes of [`TermReq::header`] count, 0 to 128.
    pub header_len: u8,
}

impl TermReq {
    /// Bytes of a TermReq that quotes no header.
    pub const SIZE_MIN: usize = 24;
    /// Bytes of the longest TermReq.
    pub const SIZE_MAX: usize = 152;

    /// Reports `violation`, quoting at most 128 bytes of the header that committed it.
    pub fn new(violation: Violation, quoted: &[u8]) -> Self {
        let quoted = quoted.get(..128).unwrap_or(quoted);
        let mut header = [0; 128];
        put(&mut header, 0, quoted);
        let header_len = u8::try_from(quoted.len()).unwrap_or(128);
        Self {
            fes: violation.fes,
            fei: violation.fei,
            header,
            header_len,
        }
    }

    /// What went wrong.
    pub const fn violation(&self) -> Violation {
        Violation {
            fes: self.fes,
            fei: self.fei,
        }
    }

    /// The quoted header.
    pub fn quoted(&self) -> &[u8] {
        self.header
            .get(..usize::from(self.header_len))
            .unwrap_or(&self.header)
    }

    /// The PDU that `from` sends; only the first `usize` bytes of the array are it.
    pub fn encode(&self, from: Direction) -> ([u8; Self::SIZE_MAX], usize) {
        let pdu_type = match from {
            Direction::HostToController => PduType::H2CTermReq,
            Direction::ControllerToHost => PduType::C2HTermReq,
        };
        let quoted = self.quoted();
        let bytes_used = Self::SIZE_MIN + quoted.len();
        let mut bytes = [0; Self::SIZE_MAX];
        let mut header = CommonHeader::outgoing(pdu_type, Digests::NONE, 0, 0);
        header.plen += u32::from(self.header_len.min(128));
        put(&mut bytes, 0, &header.encode());
        put_u16(&mut bytes, 8, self.fes.0);
        put_u32(&mut bytes, 10, self.fei);
        put(&mut bytes, Self::SIZE_MIN, quoted);
        (bytes, bytes_used)
    }

    /// Reads the whole PDU that `from` sent.
    pub fn decode(from: Direction, bytes: &[u8]) -> Result<Self, Violation> {
        let too_short = Violation::field(4);
        let (common, _) = bytes.split_first_chunk::<8>().ok_or(too_short)?;
        let layout = CommonHeader::decode(common).layout(from, Digests::NONE)?;
        if !layout.span.pdu_type.is_term_req() {
            return Err(Violation::field(0));
        }
        let bytes = bytes
            .get(..usize::from(layout.span.header_bytes))
            .ok_or(too_short)?;
        let (head, quoted) = bytes.split_first_chunk::<24>().ok_or(too_short)?;
        let violation = Violation {
            fes: Fes(u16_at(head, 8)),
            fei: u32_at(head, 10),
        };
        Ok(Self::new(violation, quoted))
    }
}
