//! Data transfer: H2CData, C2HData, R2T. [TCP-1.0 §3.6.2.8 to §3.6.2.10]

use super::Violation;
use super::capsule::header_of;
use super::header::{CommonHeader, Digests, FLAG_LAST, FLAG_SUCCESS, Layout, PduType};
use crate::CommandId;
use crate::wire::{put, put_u16, put_u32, u16_at, u32_at};

const SIZE: usize = 24;
const DATAL: u32 = 16;

/// Host to Controller Data: an answer to an R2T. [TCP-1.0 §3.6.2.8]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct H2CData {
    /// Command Capsule CID: the command this data belongs to.
    pub cccid: CommandId,
    /// Transfer Tag of the R2T that asked for it.
    pub ttag: u16,
    /// Data Offset: bytes from the begin of the command's data.
    pub datao: u32,
    /// Data Length in bytes, at least 1.
    pub datal: u32,
    /// The last PDU of its R2T.
    pub last: bool,
}

impl H2CData {
    /// Bytes of the header.
    pub const SIZE: usize = SIZE;

    /// The header, with data aligned to the controller's `cpda`.
    pub fn encode(&self, digests: Digests, cpda: u8) -> [u8; Self::SIZE] {
        let mut common = CommonHeader::outgoing(PduType::H2CData, digests, cpda, self.datal);
        common.flags |= if self.last { FLAG_LAST } else { 0 };
        encode(common, self.cccid, self.ttag, self.datao, self.datal)
    }

    /// Reads a header. DATAL agrees with PLEN afterwards; the range is the owner's to judge.
    pub fn decode(bytes: &[u8], digests: Digests) -> Result<Self, Violation> {
        let (layout, bytes) = header_of::<SIZE>(PduType::H2CData, bytes, digests)?;
        Self::decode_rest(&bytes, &layout)
    }

    /// The same for one whose common header has been judged: `layout` is what it says.
    pub fn decode_rest(bytes: &[u8; SIZE], layout: &Layout) -> Result<Self, Violation> {
        Ok(Self {
            cccid: CommandId(u16_at(bytes, 8)),
            ttag: u16_at(bytes, 10),
            datao: u32_at(bytes, 12),
            datal: datal(layout, bytes)?,
            last: bytes[1] & FLAG_LAST != 0,
        })
    }
}

/// Controller to Host Data. [TCP-1.0 §3.6.2.9]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct C2HData {
    /// Command Capsule CID: the command this data belongs to.
    pub cccid: CommandId,
    /// Data Offset: bytes from the begin of the command's data.
    pub datao: u32,
    /// Data Length in bytes, at least 1.
    pub datal: u32,
    /// The last PDU of the command's data.
    pub last: bool,
    /// The command succeeded and no CapsuleResp follows; only with `last`.
    pub success: bool,
}

impl C2HData {
    /// Bytes of the header.
    pub const SIZE: usize = SIZE;

    /// The header, with data aligned to the host's `hpda`.
    pub fn encode(&self, digests: Digests, hpda: u8) -> [u8; Self::SIZE] {
        let mut common = CommonHeader::outgoing(PduType::C2HData, digests, hpda, self.datal);
        common.flags |= if self.last { FLAG_LAST } else { 0 };
        common.flags |= if self.success { FLAG_SUCCESS } else { 0 };
        encode(common, self.cccid, 0, self.datao, self.datal)
    }

    /// Reads a header. DATAL agrees with PLEN afterwards; the range is the owner's to judge.
    pub fn decode(bytes: &[u8], digests: Digests) -> Result<Self, Violation> {
        let (layout, bytes) = header_of::<SIZE>(PduType::C2HData, bytes, digests)?;
        let (last, success) = (bytes[1] & FLAG_LAST != 0, bytes[1] & FLAG_SUCCESS != 0);
        if success && !last {
            return Err(Violation::field(1));
        }
        Ok(Self {
            cccid: CommandId(u16_at(&bytes, 8)),
            datao: u32_at(&bytes, 12),
            datal: datal(&layout, &bytes)?,
            last,
            success,
        })
    }
}

/// Ready to Transfer: the controller asks for data. [TCP-1.0 §3.6.2.10]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct R2t {
    /// Command Capsule CID: the command whose data is wanted.
    pub cccid: CommandId,
    /// Transfer Tag, to be repeated in H2CData.
    pub ttag: u16,
    /// Requested Data Offset: bytes from the begin of the command's data.
    pub r2to: u32,
    /// Requested Data Length in bytes, at least 1.
    pub r2tl: u32,
}

impl R2t {
    /// Bytes of the header.
    pub const SIZE: usize = SIZE;

    /// The header.
    pub fn encode(&self, digests: Digests) -> [u8; Self::SIZE] {
        let common = CommonHeader::outgoing(PduType::R2t, digests, 0, 0);
        encode(common, self.cccid, self.ttag, self.r2to, self.r2tl)
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8], digests: Digests) -> Result<Self, Violation> {
        let (_, bytes) = header_of::<SIZE>(PduType::R2t, bytes, digests)?;
        let r2tl = u32_at(&bytes, 16);
        if r2tl == 0 {
            return Err(Violation::field(DATAL));
        }
        Ok(Self {
            cccid: CommandId(u16_at(&bytes, 8)),
            ttag: u16_at(&bytes, 10),
            r2to: u32_at(&bytes, 12),
            r2tl,
        })
    }
}

/// All three have one shape: command, tag, offset, length.
fn encode(common: CommonHeader, cccid: CommandId, tag: u16, offset: u32, len: u32) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    put(&mut bytes, 0, &common.encode());
    put_u16(&mut bytes, 8, cccid.0);
    put_u16(&mut bytes, 10, tag);
    put_u32(&mut bytes, 12, offset);
    put_u32(&mut bytes, 16, len);
    bytes
}

/// DATAL, which must be exactly the data that PLEN says is there.
fn datal(layout: &Layout, bytes: &[u8; SIZE]) -> Result<u32, Violation> {
    let datal = u32_at(bytes, 16);
    if datal == layout.payload_bytes {
        Ok(datal)
    } else {
        Err(Violation::field(DATAL))
    }
}
