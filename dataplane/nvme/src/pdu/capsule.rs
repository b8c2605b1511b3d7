//! Command and response capsules. [TCP-1.0 §3.6.2.6, §3.6.2.7]

use super::Violation;
use super::header::{CommonHeader, Digests, Layout, PduType};
use crate::wire::{array_at, put};
use crate::{Cqe, Sqe};

/// Command Capsule: an SQE and perhaps in-capsule data. [TCP-1.0 §3.6.2.6]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CapsuleCmd {
    /// The command.
    pub sqe: Sqe,
}

impl CapsuleCmd {
    /// Bytes of the header.
    pub const SIZE: usize = 72;

    /// The header of a capsule with `payload_bytes` of data aligned to the controller's `cpda`.
    /// Without data PDO is 0 and DDGSTF is clear.
    pub fn encode(&self, digests: Digests, cpda: u8, payload_bytes: u32) -> [u8; Self::SIZE] {
        let common = CommonHeader::outgoing(PduType::CapsuleCmd, digests, cpda, payload_bytes);
        let mut bytes = [0; Self::SIZE];
        put(&mut bytes, 0, &common.encode());
        put(&mut bytes, 8, &self.sqe.0);
        bytes
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8], digests: Digests) -> Result<Self, Violation> {
        let (_, bytes) = header_of::<{ Self::SIZE }>(PduType::CapsuleCmd, bytes, digests)?;
        Ok(Self {
            sqe: Sqe(array_at(&bytes, 8)),
        })
    }
}

/// Response Capsule: a CQE, never data. [TCP-1.0 §3.6.2.7]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CapsuleResp {
    /// The completion.
    pub cqe: Cqe,
}

impl CapsuleResp {
    /// Bytes of the header.
    pub const SIZE: usize = 24;

    /// The header.
    pub fn encode(&self, digests: Digests) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let common = CommonHeader::outgoing(PduType::CapsuleResp, digests, 0, 0);
        put(&mut bytes, 0, &common.encode());
        put(&mut bytes, 8, &self.cqe.encode());
        bytes
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8], digests: Digests) -> Result<Self, Violation> {
        let (_, bytes) = header_of::<{ Self::SIZE }>(PduType::CapsuleResp, bytes, digests)?;
        Ok(Self {
            cqe: Cqe::decode(&array_at(&bytes, 8)),
        })
    }
}

/// The header of a PDU that must be of `pdu_type`, whose HLEN is `N`, with its layout. Too few
/// bytes count as a wrong PLEN.
pub(super) fn header_of<const N: usize>(
    pdu_type: PduType,
    bytes: &[u8],
    digests: Digests,
) -> Result<(Layout, [u8; N]), Violation> {
    let too_short = Violation::field(4);
    let (common, _) = bytes.split_first_chunk::<8>().ok_or(too_short)?;
    let layout = CommonHeader::decode(common).layout(pdu_type.direction(), digests)?;
    if layout.span.pdu_type != pdu_type {
        return Err(Violation::field(0));
    }
    let (header, _) = bytes.split_first_chunk::<N>().ok_or(too_short)?;
    Ok((layout, *header))
}
