//! The common header and what it promises about the rest of the PDU. [TCP-1.0 §3.6.2.1]

use super::{TermReq, Violation};
use crate::wire::{put_u32, u32_at};

/// Flag HDGSTF: HDGST follows the header.
pub const FLAG_HDGST: u8 = 1 << 0;
/// Flag DDGSTF: DDGST follows the data.
pub const FLAG_DDGST: u8 = 1 << 1;
/// Flag LAST_PDU of H2CData and C2HData: the last of its R2T or command.
pub const FLAG_LAST: u8 = 1 << 2;
/// Flag SUCCESS of C2HData: the command succeeded and no CapsuleResp follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Bytes of HDGST, and of DDGST.
pub const DIGEST_BYTES: u8 = 4;
/// Largest PDO accepted: the largest alignment that ICReq or ICResp can ask for.
pub const PDO_MAX: u8 = 128;

const TYPE: u32 = 0;
const FLAGS: u32 = 1;
const HLEN: u32 = 2;
const PDO: u32 = 3;
const PLEN: u32 = 4;

/// Which digests ICReq and ICResp settled on. [TCP-1.0 §3.6.2.3]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digests {
    /// HDGST on every capsule, data and R2T PDU.
    pub header: bool,
    /// DDGST on every PDU that carries data.
    pub data: bool,
}

impl Digests {
    /// Before and without negotiation.
    pub const NONE: Self = Self {
        header: false,
        data: false,
    };

    /// Bytes of HDGST: 4 or 0.
    pub const fn header_bytes(self) -> u8 {
        if self.header { DIGEST_BYTES } else { 0 }
    }

    /// Bytes of DDGST where there is data: 4 or 0.
    pub const fn data_bytes(self) -> u8 {
        if self.data { DIGEST_BYTES } else { 0 }
    }

    /// Flags of a PDU that can carry digests and has data or none.
    pub(super) const fn flags(self, has_data: bool) -> u8 {
        let header = if self.header { FLAG_HDGST } else { 0 };
        if self.data && has_data {
            header | FLAG_DDGST
        } else {
            header
        }
    }

    /// The DGST byte of ICReq and ICResp.
    pub(super) const fn wire(self) -> u8 {
        (self.header as u8) | (self.data as u8) << 1
    }

    /// From the DGST byte of ICReq and ICResp.
    pub(super) const fn from_wire(wire: u8) -> Self {
        Self {
            header: wire & 1 != 0,
            data: wire & 2 != 0,
        }
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Host to controller: H2C.
    HostToController,
    /// Controller to host: C2H.
    ControllerToHost,
}

/// PDU types. [TCP-1.0 §3.6.2.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request.
    IcReq = 0x00,
    /// Initialize Connection Response.
    IcResp = 0x01,
    /// Host to Controller Terminate Connection Request.
    H2CTermReq = 0x02,
    /// Controller to Host Terminate Connection Request.
    C2HTermReq = 0x03,
    /// Command Capsule.
    CapsuleCmd = 0x04,
    /// Response Capsule.
    CapsuleResp = 0x05,
    /// Host to Controller Data.
    H2CData = 0x06,
    /// Controller to Host Data.
    C2HData = 0x07,
    /// Ready to Transfer.
    R2t = 0x09,
}

impl PduType {
    /// The type of this number, if there is one.
    pub const fn from_wire(wire: u8) -> Option<Self> {
        Some(match wire {
            0x00 => Self::IcReq,
            0x01 => Self::IcResp,
            0x02 => Self::H2CTermReq,
            0x03 => Self::C2HTermReq,
            0x04 => Self::CapsuleCmd,
            0x05 => Self::CapsuleResp,
            0x06 => Self::H2CData,
            0x07 => Self::C2HData,
            0x09 => Self::R2t,
            _ => return None,
        })
    }

    /// The number on the wire.
    pub const fn wire(self) -> u8 {
        self as u8
    }

    /// Who sends PDUs of this type.
    pub const fn direction(self) -> Direction {
        match self {
            Self::IcReq | Self::H2CTermReq | Self::CapsuleCmd | Self::H2CData => {
                Direction::HostToController
            }
            Self::IcResp | Self::C2HTermReq | Self::CapsuleResp | Self::C2HData | Self::R2t => {
                Direction::ControllerToHost
            }
        }
    }

    /// Bytes of the header, without digest: HLEN.
    pub const fn hlen(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp => 128,
            Self::CapsuleCmd => 72,
            Self::H2CTermReq
            | Self::C2HTermReq
            | Self::CapsuleResp
            | Self::H2CData
            | Self::C2HData
            | Self::R2t => 24,
        }
    }

    /// Whether the type has HDGST where header digests were negotiated.
    pub const fn can_have_header_digest(self) -> bool {
        !matches!(
            self,
            Self::IcReq | Self::IcResp | Self::H2CTermReq | Self::C2HTermReq
        )
    }

    /// Whether the type carries data, followed by DDGST where data digests were negotiated.
    pub const fn can_have_data(self) -> bool {
        matches!(self, Self::CapsuleCmd | Self::H2CData | Self::C2HData)
    }

    /// Whether this is a TermReq: its body after the header is a copy of another header.
    pub const fn is_term_req(self) -> bool {
        matches!(self, Self::H2CTermReq | Self::C2HTermReq)
    }
}

/// The first 8 bytes of every PDU. [TCP-1.0 §3.6.2.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommonHeader {
    /// PDU-Type, perhaps unknown.
    pub pdu_type: u8,
    /// Type specific flags.
    pub flags: u8,
    /// Header Length: bytes of the header without digest.
    pub hlen: u8,
    /// PDU Data Offset: bytes from the PDU's begin to its data.
    pub pdo: u8,
    /// PDU Length: bytes of all, digests and padding too.
    pub plen: u32,
}

/// How far the header of one PDU reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeaderSpan {
    /// The type.
    pub pdu_type: PduType,
    /// Bytes of the header without digest. A TermReq is all header.
    pub header_bytes: u8,
    /// Bytes of HDGST behind it: 4 or 0.
    pub digest_bytes: u8,
}

impl HeaderSpan {
    /// Bytes of header and HDGST, at most 152.
    pub const fn bytes(&self) -> u8 {
        self.header_bytes + self.digest_bytes
    }
}

/// What one PDU consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Header and HDGST.
    pub span: HeaderSpan,
    /// Bytes of padding between header (and HDGST) and data.
    pub pad_bytes: u8,
    /// Bytes of data, 0 if there is none.
    pub payload_bytes: u32,
    /// Whether DDGST follows the data.
    pub data_digest: bool,
}

impl CommonHeader {
    /// Bytes of the common header.
    pub const SIZE: usize = 8;

    /// The header's bytes.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [self.pdu_type, self.flags, self.hlen, self.pdo, 0, 0, 0, 0];
        put_u32(&mut bytes, 4, self.plen);
        bytes
    }

    /// Reads a header; any bytes are one. [`CommonHeader::layout`] judges it.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            pdu_type: bytes[0],
            flags: bytes[1],
            hlen: bytes[2],
            pdo: bytes[3],
            plen: u32_at(bytes, 4),
        }
    }

    /// How many bytes to collect before this PDU's header can be decoded. Checks only what this
    /// depends on, so that a corrupted header can still be found out by its digest.
    ///
    /// `from` is who sends: a type that the other side sends is as wrong as an unknown one.
    pub fn span(&self, from: Direction, digests: Digests) -> Result<HeaderSpan, Violation> {
        let pdu_type = match PduType::from_wire(self.pdu_type) {
            Some(known) if known.direction() == from => known,
            _ => return Err(Violation::field(TYPE)),
        };
        if self.hlen != pdu_type.hlen() {
            return Err(Violation::field(HLEN));
        }
        // A flag that disagrees leaves it open whether the next bytes are a digest.
        let has_digest = digests.header && pdu_type.can_have_header_digest();
        if (self.flags & FLAG_HDGST != 0) != has_digest {
            return Err(Violation::field(FLAGS));
        }
        let mut span = HeaderSpan {
            pdu_type,
            header_bytes: self.hlen,
            digest_bytes: if has_digest { DIGEST_BYTES } else { 0 },
        };
        if pdu_type.is_term_req() {
            let plen = u8::try_from(self.plen).map_err(|_| Violation::field(PLEN))?;
            span.header_bytes = plen;
            if plen < self.hlen || usize::from(plen) > TermReq::SIZE_MAX {
                return Err(Violation::field(PLEN));
            }
        }
        if self.plen < u32::from(span.bytes()) {
            return Err(Violation::field(PLEN));
        }
        Ok(span)
    }

    /// Judges the common header and says what the PDU consists of.
    pub fn layout(&self, from: Direction, digests: Digests) -> Result<Layout, Violation> {
        let span = self.span(from, digests)?;
        let pdu_type = span.pdu_type;
        if self.plen == u32::from(span.bytes()) {
            let can_be_bare = pdu_type == PduType::CapsuleCmd || !pdu_type.can_have_data();
            let bare = Layout {
                span,
                pad_bytes: 0,
                payload_bytes: 0,
                data_digest: false,
            };
            return if can_be_bare {
                Ok(bare)
            } else {
                Err(Violation::field(PLEN))
            };
        }
        if !pdu_type.can_have_data() {
            return Err(Violation::field(PLEN));
        }
        if self.pdo < span.bytes() || !self.pdo.is_multiple_of(4) || self.pdo > PDO_MAX {
            return Err(Violation::field(PDO));
        }
        // As with HDGSTF: are the last bytes data?
        if (self.flags & FLAG_DDGST != 0) != digests.data {
            return Err(Violation::field(FLAGS));
        }
        let around = u32::from(self.pdo) + u32::from(digests.data_bytes());
        if self.plen <= around {
            return Err(Violation::field(PLEN));
        }
        Ok(Layout {
            span,
            pad_bytes: self.pdo - span.bytes(),
            payload_bytes: self.plen - around,
            data_digest: digests.data,
        })
    }

    /// The header of a PDU of `pdu_type` with `payload_bytes` of data aligned to `pda` (HPDA or
    /// CPDA, 0's based dwords). Without data PDO is 0.
    pub(super) fn outgoing(
        pdu_type: PduType,
        digests: Digests,
        pda: u8,
        payload_bytes: u32,
    ) -> Self {
        let hlen = pdu_type.hlen();
        let has_data = payload_bytes > 0;
        let (pdo, plen) = if has_data {
            let pdo = data_offset(pdu_type, digests, pda);
            let around = u32::from(pdo) + u32::from(digests.data_bytes());
            (pdo, around.saturating_add(payload_bytes))
        } else {
            (0, u32::from(hlen) + u32::from(digests.header_bytes()))
        };
        Self {
            pdu_type: pdu_type.wire(),
            flags: digests.flags(has_data),
            hlen,
            pdo,
            plen,
        }
    }
}

/// PDO of an outgoing PDU with data: the first multiple of `(pda + 1) * 4` bytes behind header
/// and HDGST. `pda` is the receiver's HPDA or CPDA, 0 to 31. [TCP-1.0 §3.6.2.2]
pub const fn data_offset(pdu_type: PduType, digests: Digests, pda: u8) -> u8 {
    let bytes = pdu_type.hlen() + digests.header_bytes();
    // Nearly every receiver asks for dwords, of which every header consists anyway.
    match pda & 31 {
        0 => bytes,
        pda => bytes.next_multiple_of((pda + 1) * 4),
    }
}
