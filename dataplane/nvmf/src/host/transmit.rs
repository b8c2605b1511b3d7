//! PDUs a host sends: headers, digests, padding.

use bowline_nvme::Sqe;
use bowline_nvme::pdu::{
    CapsuleCmd, Digests, Direction, H2CData, IcReq, PduType, TermReq, data_offset,
};

use super::slots::SlotId;
use crate::frame::crc32c;

/// The header of a PDU to send. The payload, if any, is the owner's.
#[derive(Debug)]
pub struct TxPdu {
    body: Body,
    digests: Digests,
    cpda: u8,
}

#[derive(Debug)]
enum Body {
    IcReq(IcReq),
    Capsule {
        command: CapsuleCmd,
        payload_bytes: u32,
    },
    Data(H2CData),
    /// Boxed: 128 bytes, at most one per connection, after which the connection ends.
    Terminate(Box<TermReq>),
}

/// The bytes that follow a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxPayload {
    /// None.
    None,
    /// A range of the data of a user's command.
    Slot {
        /// The command.
        slot: SlotId,
        /// First byte of its data.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// A range of the queue's [`control`](super::HostQueue::control) buffer, to be copied before
    /// the machine is called again.
    Control {
        /// First byte.
        offset: u32,
        /// Bytes.
        len: u32,
    },
}

impl TxPdu {
    pub(super) fn ic_req(request: IcReq) -> Self {
        Self {
            body: Body::IcReq(request),
            digests: Digests::NONE,
            cpda: 0,
        }
    }

    pub(super) fn capsule(sqe: Sqe, payload_bytes: u32, digests: Digests, cpda: u8) -> Self {
        Self {
            body: Body::Capsule {
                command: CapsuleCmd { sqe },
                payload_bytes,
            },
            digests,
            cpda,
        }
    }

    pub(super) fn data(data: H2CData, digests: Digests, cpda: u8) -> Self {
        Self {
            body: Body::Data(data),
            digests,
            cpda,
        }
    }

    pub(super) fn terminate(request: TermReq) -> Self {
        let body = Body::Terminate(Box::new(request));
        Self {
            body,
            digests: Digests::NONE,
            cpda: 0,
        }
    }

    /// Whether the owner must append the CRC32C of the payload, little-endian.
    #[must_use]
    pub fn data_digest(&self) -> bool {
        self.digests.data && self.payload_bytes() > 0
    }

    /// Appends everything that goes before the payload: header, header digest, padding.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match &self.body {
            Body::IcReq(request) => out.extend_from_slice(&request.encode()),
            Body::Capsule {
                command,
                payload_bytes,
            } => {
                let header = command.encode(self.digests, self.cpda, *payload_bytes);
                self.finish(PduType::CapsuleCmd, &header, out);
            }
            Body::Data(data) => {
                self.finish(PduType::H2CData, &data.encode(self.digests, self.cpda), out);
            }
            Body::Terminate(request) => {
                let (bytes, used) = request.encode(Direction::HostToController);
                out.extend_from_slice(&bytes[..used]);
            }
        }
    }

    fn finish(&self, pdu_type: PduType, header: &[u8], out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(header);
        if self.digests.header {
            out.extend_from_slice(&crc32c(header).to_le_bytes());
        }
        if self.payload_bytes() > 0 {
            let pdo = data_offset(pdu_type, self.digests, self.cpda);
            out.resize(begin + usize::from(pdo), 0);
        }
    }

    fn payload_bytes(&self) -> u32 {
        match &self.body {
            Body::Capsule { payload_bytes, .. } => *payload_bytes,
            Body::Data(data) => data.datal,
            Body::IcReq(_) | Body::Terminate(_) => 0,
        }
    }
}
