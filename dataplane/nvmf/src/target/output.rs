//! What passes between the target and the glue that owns sockets, buffers, and devices.

use bowline_nvme::pdu::{
    C2HData, CapsuleResp, Digests, Direction, IcResp, PduType, R2t, TermReq, data_offset,
};

use crate::frame::crc32c;

/// One transport connection. The generation keeps a stale id from naming a newer connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Position in the target's connection table.
    pub index: u32,
    /// Rises each time the position is reused.
    pub generation: u32,
}

/// One command slot of a connection; an index below [`Target::slots`](super::Target::slots).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u16);

/// The glue's own name of the device behind a namespace. Never the same twice in the life of a
/// target: it tells a namespace from another that has got its NSID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceHandle(pub u32);

/// What the connection wants from the byte stream next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rx {
    /// Header, padding, or digest bytes: pass what was received to `handle_bytes`.
    Bytes,
    /// Payload: land it in the slot's buffer, then call `handle_payload`.
    Payload {
        /// The command the payload belongs to.
        slot: SlotId,
        /// Where in the slot's buffer the next byte goes.
        offset: u32,
        /// Bytes of this PDU's payload still missing.
        len: u32,
        /// With a data digest, the slot offset where this PDU's payload began. The landing that
        /// completes the payload must pass the CRC32C of slot bytes `start..offset + len`.
        digest_from: Option<u32>,
        /// Size in bytes of the buffer to bind if the slot has none yet.
        transfer_len: u32,
    },
    /// Drop up to `len` bytes, then call `handle_payload` with how many were dropped. No CRC.
    Discard {
        /// Most bytes that may be dropped before asking again.
        len: u32,
    },
    /// Do not read. The connection turns dirty when it may go on.
    Hold,
    /// Nothing more is read.
    Closed,
}

/// What the target wants done, in this order.
#[derive(Debug)]
pub enum Output {
    /// Bind a buffer of `len` bytes to the slot, whenever there is one, then `handle_buffer`.
    NeedBuffer {
        /// The waiting command.
        slot: SlotId,
        /// Transfer length in bytes.
        len: u32,
    },
    /// Bind a buffer of `len` bytes and let `fill` write all of it.
    Fill {
        /// The command whose data goes to the host.
        slot: SlotId,
        /// Transfer length in bytes.
        len: u32,
    },
    /// All of a control transfer has landed: show it to `inspect`.
    Inspect {
        /// The command whose data came from the host.
        slot: SlotId,
        /// Transfer length in bytes.
        len: u32,
    },
    /// Run the command on its device; answer with `complete`.
    Execute {
        /// The command to run. Its buffer holds the data, or must be bound for a Read.
        slot: SlotId,
        /// What to do.
        command: IoCommand,
    },
    /// Send a PDU, then the payload range, then its digest if `pdu.data_digest()`.
    Send {
        /// The PDU's header.
        pdu: TxPdu,
        /// `(slot, offset, len)` in bytes of the slot's buffer that follow the header.
        payload: Option<(SlotId, u32, u32)>,
        /// The slot whose buffer the glue may drop once the bytes have left.
        release: Option<SlotId>,
    },
    /// Drop the slot's buffer, if it has one, and the wish for one: the command is given up.
    Release {
        /// The slot.
        slot: SlotId,
    },
    /// Take the command back: drop its wish for a buffer, or its Execute if nothing of it has
    /// reached its device. Answer with `withdrawn`, unless the command ends early by itself. Also
    /// for connections that are gone: others may wait for what they left.
    Withdraw {
        /// The slot.
        slot: SlotId,
    },
    /// Connect named this subsystem: `resume` here, or `take`, and `adopt` and `resume` on the
    /// reactor that owns it.
    Route {
        /// Subsystem NQN as the host sent it, which need not exist.
        subnqn: String,
    },
    /// Close the socket after what was sent before, then call `closed`.
    Close {
        /// True: FIN. False: RST.
        graceful: bool,
    },
}

/// A command for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoCommand {
    /// The device.
    pub namespace: NamespaceHandle,
    /// The operation.
    pub op: IoOp,
    /// Data transferred, in bytes; 0 when the operation carries none.
    pub bytes: u32,
}

impl IoCommand {
    /// The slot of the second half, if this is a fused pair.
    #[must_use]
    pub const fn second(&self) -> Option<SlotId> {
        match self.op {
            IoOp::CompareAndWrite { second, .. } => Some(second),
            _ => None,
        }
    }
}

/// Operations of a device. LBA ranges have been checked against the namespace's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Read into the slot's buffer.
    Read {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, one-based.
        blocks: u32,
        /// What is read must be on stable media first, and stay so until it has been read.
        fua: bool,
    },
    /// Write the slot's buffer.
    Write {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, one-based.
        blocks: u32,
        /// Force unit access.
        fua: bool,
    },
    /// Compare the medium with the slot's buffer.
    Compare {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, one-based.
        blocks: u32,
        /// As in `Read`.
        fua: bool,
    },
    /// A fused pair: compare the medium with the first half of the slot's buffer and, if it is the
    /// same, write the second half. Nothing else changes the blocks in between. Answered by
    /// `complete` for either slot.
    CompareAndWrite {
        /// The slot of the second command, the Write; it has no buffer of its own.
        second: SlotId,
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, one-based.
        blocks: u32,
        /// `fua` of the Compare.
        read_fua: bool,
        /// `fua` of the Write.
        fua: bool,
    },
    /// Read and drop the data.
    Verify {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, one-based.
        blocks: u32,
        /// As in `Read`.
        fua: bool,
    },
    /// Copy: the first `ranges` Copy range descriptors of 32 bytes in the slot's buffer, each
    /// already checked, one after the other to `lba`. No source overlaps the destination.
    Copy {
        /// First logical block of the destination.
        lba: u64,
        /// Number of logical blocks of all ranges, one-based.
        blocks: u32,
        /// Number of ranges, one-based.
        ranges: u16,
        /// Force unit access, of the writes.
        fua: bool,
    },
    /// Make every write completed before durable.
    Flush,
    /// Write zeroes.
    WriteZeroes {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks, one-based.
        blocks: u32,
        /// The host allows deallocating.
        deallocate: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Deallocate: the first `ranges` DSM range descriptors of 16 bytes in the slot's buffer,
    /// each already checked.
    Deallocate {
        /// Number of ranges, one-based, at most 256.
        ranges: u16,
    },
}

/// The header of a PDU to send; the payload, if any, is the glue's.
#[derive(Debug)]
pub struct TxPdu {
    pub(super) body: TxBody,
    pub(super) digests: Digests,
    /// HPDA: C2HData starts its payload at a multiple of `(hpda + 1) * 4` bytes.
    pub(super) hpda: u8,
}

#[derive(Debug)]
pub(super) enum TxBody {
    IcResp(IcResp),
    Response(CapsuleResp),
    Data(C2HData),
    R2t(R2t),
    /// Boxed: 128 bytes, at most one per connection, after which the connection ends.
    Terminate(Box<TermReq>),
}

impl TxPdu {
    /// Appends the header, its digest, and the padding before the payload: at most 160 bytes.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match &self.body {
            TxBody::IcResp(pdu) => out.extend_from_slice(&pdu.encode()),
            TxBody::Terminate(pdu) => {
                let (bytes, len) = pdu.encode(Direction::ControllerToHost);
                out.extend_from_slice(&bytes[..len]);
            }
            TxBody::Response(pdu) => encode_response(out, pdu, self.digests),
            TxBody::R2t(pdu) => encode_header(out, &pdu.encode(self.digests), self.digests),
            TxBody::Data(pdu) => encode_data(out, pdu, self.digests, self.hpda),
        }
    }

    /// Whether the glue must append the CRC32C of the payload, little-endian.
    #[must_use]
    pub fn data_digest(&self) -> bool {
        self.digests.data && matches!(self.body, TxBody::Data(_))
    }
}

pub(super) fn encode_response(out: &mut Vec<u8>, pdu: &CapsuleResp, digests: Digests) {
    encode_header(out, &pdu.encode(digests), digests);
}

/// With the padding before the data.
pub(super) fn encode_data(out: &mut Vec<u8>, pdu: &C2HData, digests: Digests, hpda: u8) {
    let start = out.len();
    encode_header(out, &pdu.encode(digests, hpda), digests);
    if hpda > 0 {
        let pdo = data_offset(PduType::C2HData, digests, hpda);
        out.resize(start + usize::from(pdo), 0);
    }
}

fn encode_header(out: &mut Vec<u8>, header: &[u8; 24], digests: Digests) {
    out.extend_from_slice(header);
    if digests.header {
        out.extend_from_slice(&crc32c(header).to_le_bytes());
    }
}
