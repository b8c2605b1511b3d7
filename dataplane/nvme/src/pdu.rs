//! NVMe/TCP protocol data units. [TCP-1.0 §3.6.2]
//!
//! A PDU is `header [HDGST] [pad] [data] [DDGST]`. The types here encode and decode the header;
//! [`CommonHeader::layout`] says what follows it. Decoding is strict about everything that
//! decides where bytes belong and ignores reserved fields.

mod capsule;
mod data;
mod header;
mod initialize;

pub use capsule::{CapsuleCmd, CapsuleResp};
pub use data::{C2HData, H2CData, R2t};
pub use header::{
    CommonHeader, DIGEST_BYTES, Digests, Direction, FLAG_DDGST, FLAG_HDGST, FLAG_LAST,
    FLAG_SUCCESS, HeaderSpan, Layout, PDO_MAX, PduType, data_offset,
};
pub use initialize::{HPDA_MAX, IcReq, IcResp, MAXH2CDATA_MIN, TermReq};

/// Fatal Error Status of a TermReq. [TCP-1.0 §3.6.2.4, §3.6.2.5]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fes(pub u16);

impl Fes {
    /// A header field has a wrong value; FEI is its byte offset in the header.
    pub const INVALID_HEADER_FIELD: Self = Self(1);
    /// The PDU was not expected now.
    pub const SEQUENCE_ERROR: Self = Self(2);
    /// HDGST does not match the header.
    pub const HEADER_DIGEST: Self = Self(3);
    /// Data outside the range that was asked for.
    pub const DATA_OUT_OF_RANGE: Self = Self(4);
    /// More data, or more R2Ts, than the receiver's limit.
    pub const LIMIT_EXCEEDED: Self = Self(5);
    /// A parameter that the receiver does not support; FEI is its byte offset in the header.
    pub const UNSUPPORTED_PARAMETER: Self = Self(6);

    /// What the code means, in the words of the specification.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::INVALID_HEADER_FIELD => Some("invalid PDU header field"),
            Self::SEQUENCE_ERROR => Some("PDU sequence error"),
            Self::HEADER_DIGEST => Some("header digest error"),
            Self::DATA_OUT_OF_RANGE => Some("data transfer out of range"),
            Self::LIMIT_EXCEEDED => Some("data transfer or R2T limit exceeded"),
            Self::UNSUPPORTED_PARAMETER => Some("unsupported parameter"),
            _ => None,
        }
    }
}

/// Why a connection must end: what the TermReq will say. [TCP-1.0 §3.6.2.4, §3.6.2.5]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Fatal Error Status.
    pub fes: Fes,
    /// Fatal Error Information: for [`Fes::INVALID_HEADER_FIELD`] and
    /// [`Fes::UNSUPPORTED_PARAMETER`] the byte offset of the field, otherwise 0.
    pub fei: u32,
}

impl Violation {
    /// The header field at this byte offset is wrong.
    pub const fn field(offset: u32) -> Self {
        Self {
            fes: Fes::INVALID_HEADER_FIELD,
            fei: offset,
        }
    }

    /// The parameter at this byte offset of the header is not supported.
    pub const fn unsupported(offset: u32) -> Self {
        Self {
            fes: Fes::UNSUPPORTED_PARAMETER,
            fei: offset,
        }
    }

    /// A violation without further information.
    pub const fn new(fes: Fes) -> Self {
        Self { fes, fei: 0 }
    }
}

impl core::fmt::Display for Violation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{} (FES {}",
            self.fes.name().unwrap_or("unknown error"),
            self.fes.0
        )?;
        match self.fes {
            Fes::INVALID_HEADER_FIELD | Fes::UNSUPPORTED_PARAMETER => {
                write!(f, ", byte {})", self.fei)
            }
            _ => f.write_str(")"),
        }
    }
}

impl core::error::Error for Violation {}

#[cfg(test)]
mod tests;
