//! Submission and completion queue entries, and the SGL descriptor.

use core::fmt;

use crate::wire::{array_at, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::{CommandId, NamespaceId, QueueId, Status};

/// Submission Queue Entry, 64 bytes as on the wire. [BASE-2.0 §3.3.3.1]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sqe(pub [u8; 64]);

/// Fused operation, bits 1:0 of SQE byte 1. [BASE-2.0 §3.3.3.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fuse {
    /// A command by itself.
    Normal,
    /// First half of a fused operation.
    First,
    /// Second half of a fused operation.
    Second,
    /// The reserved value.
    Reserved,
}

/// PSDT 01b, SGL for data and a contiguous metadata buffer: what NVMe-oF uses.
const PSDT_SGL: u8 = 0x40;

const CONTROL_LR: u16 = 1 << 15;
const CONTROL_FUA: u16 = 1 << 14;
const CONTROL_DEAC: u16 = 1 << 9;
const DSM_DEALLOCATE: u32 = 1 << 2;

impl Sqe {
    /// Bytes of an entry.
    pub const SIZE: usize = 64;

    /// An entry with the given opcode and SGL transfer (PSDT 01b); all else is zero.
    pub const fn new(opcode: u8) -> Self {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = opcode;
        bytes[1] = PSDT_SGL;
        Self(bytes)
    }

    /// A Fabrics command of the given FCTYPE. [FABRICS-1.1 §3]
    pub const fn fabrics(fctype: u8) -> Self {
        let mut sqe = Self::new(crate::opcode::admin::FABRICS);
        sqe.0[4] = fctype;
        sqe
    }

    /// Opcode.
    pub const fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Fused operation.
    pub const fn fuse(&self) -> Fuse {
        match self.0[1] & 0b11 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// PRP or SGL for Data Transfer, bits 7:6 of byte 1; NVMe-oF requires 01b or 10b.
    pub const fn psdt(&self) -> u8 {
        self.0[1] >> 6
    }

    /// Command Identifier.
    pub const fn cid(&self) -> CommandId {
        CommandId(u16_at(&self.0, 2))
    }

    /// Namespace Identifier.
    pub const fn nsid(&self) -> NamespaceId {
        NamespaceId(u32_at(&self.0, 4))
    }

    /// Fabrics Command Type, in place of the NSID. [FABRICS-1.1 §3]
    pub const fn fctype(&self) -> u8 {
        self.0[4]
    }

    /// SGL Entry 1, the data pointer.
    pub fn sgl1(&self) -> Sgl {
        Sgl::decode(&array_at(&self.0, 24))
    }

    /// Command dword `n`, 0 to 15.
    pub const fn cdw(&self, n: usize) -> u32 {
        debug_assert!(n < 16);
        u32_at(&self.0, (n & 15) * 4)
    }

    /// Starting LBA, cdw10 and cdw11. [NVM-1.0 §3.2.4]
    pub fn slba(&self) -> u64 {
        u64_at(&self.0, 40)
    }

    /// Number of Logical Blocks as on the wire: 0's based. See [`Sqe::blocks`].
    pub const fn nlb(&self) -> u16 {
        u16_at(&self.0, 48)
    }

    /// How many logical blocks the command covers, 1 to 65536.
    pub const fn blocks(&self) -> u32 {
        self.nlb() as u32 + 1
    }

    /// Upper half of cdw12: LR 15, FUA 14, PRINFO 13:10, STC or DEAC, DTYPE 7:4.
    pub const fn control(&self) -> u16 {
        u16_at(&self.0, 50)
    }

    /// Limited Retry.
    pub const fn lr(&self) -> bool {
        self.control() & CONTROL_LR != 0
    }

    /// Force Unit Access.
    pub const fn fua(&self) -> bool {
        self.control() & CONTROL_FUA != 0
    }

    /// Deallocate, in Write Zeroes. [NVM-1.0 §3.2.8]
    pub const fn deac(&self) -> bool {
        self.control() & CONTROL_DEAC != 0
    }

    /// Protection Information Field, bits 13:10 of [`Sqe::control`]. [NVM-1.0 §3]
    pub const fn prinfo(&self) -> u8 {
        self.control().to_le_bytes()[1] >> 2 & 0xF
    }

    /// Directive Type, bits 7:4 of [`Sqe::control`].
    pub const fn dtype(&self) -> u8 {
        self.control().to_le_bytes()[0] >> 4
    }

    /// Number of Ranges of Dataset Management, 0's based. See [`Sqe::ranges`]. [NVM-1.0 §3.2.3]
    pub const fn nr(&self) -> u8 {
        self.0[40]
    }

    /// How many ranges Dataset Management names, 1 to 256.
    pub const fn ranges(&self) -> u16 {
        self.nr() as u16 + 1
    }

    /// Attribute Deallocate of Dataset Management, cdw11 bit 2.
    pub const fn deallocate(&self) -> bool {
        self.cdw(11) & DSM_DEALLOCATE != 0
    }

    /// Number of source ranges of Copy, 1 to 256. [NVM-1.0 §3.2.2]
    pub const fn copy_ranges(&self) -> u16 {
        self.0[48] as u16 + 1
    }

    /// Descriptor Format of Copy, cdw12 bits 11:8.
    pub const fn copy_format(&self) -> u8 {
        self.0[49] & 0xF
    }

    /// Sets the fused operation.
    #[must_use]
    pub const fn with_fuse(mut self, fuse: Fuse) -> Self {
        let bits = match fuse {
            Fuse::Normal => 0,
            Fuse::First => 1,
            Fuse::Second => 2,
            Fuse::Reserved => 3,
        };
        self.0[1] = self.0[1] & !0b11 | bits;
        self
    }

    /// Sets the Command Identifier.
    #[must_use]
    pub fn with_cid(mut self, cid: CommandId) -> Self {
        put_u16(&mut self.0, 2, cid.0);
        self
    }

    /// Sets the Namespace Identifier.
    #[must_use]
    pub fn with_nsid(mut self, nsid: NamespaceId) -> Self {
        put_u32(&mut self.0, 4, nsid.0);
        self
    }

    /// Sets SGL Entry 1.
    #[must_use]
    pub fn with_sgl1(mut self, sgl: Sgl) -> Self {
        put(&mut self.0, 24, &sgl.encode());
        self
    }

    /// Sets command dword `n`, 0 to 15.
    #[must_use]
    pub fn with_cdw(mut self, n: usize, value: u32) -> Self {
        debug_assert!(n < 16);
        put_u32(&mut self.0, (n & 15) * 4, value);
        self
    }

    /// Sets Starting LBA.
    #[must_use]
    pub fn with_slba(mut self, slba: u64) -> Self {
        put_u64(&mut self.0, 40, slba);
        self
    }

    /// Sets Number of Logical Blocks, 0's based.
    #[must_use]
    pub fn with_nlb(mut self, nlb: u16) -> Self {
        put_u16(&mut self.0, 48, nlb);
        self
    }

    /// Sets or clears Force Unit Access.
    #[must_use]
    pub fn with_fua(self, fua: bool) -> Self {
        self.with_control(CONTROL_FUA, fua)
    }

    /// Sets or clears Limited Retry.
    #[must_use]
    pub fn with_lr(self, lr: bool) -> Self {
        self.with_control(CONTROL_LR, lr)
    }

    /// Sets or clears Deallocate of Write Zeroes.
    #[must_use]
    pub fn with_deac(self, deac: bool) -> Self {
        self.with_control(CONTROL_DEAC, deac)
    }

    /// Makes this a Dataset Management command over `nr` (0's based) ranges. [NVM-1.0 §3.2.3]
    #[must_use]
    pub fn with_ranges(self, nr: u8, deallocate: bool) -> Self {
        let attributes = if deallocate { DSM_DEALLOCATE } else { 0 };
        self.with_cdw(10, u32::from(nr)).with_cdw(11, attributes)
    }

    /// Makes this a Copy to `sdlba` of `nr` (0's based) ranges in descriptor format 0.
    #[must_use]
    pub fn with_copy(self, sdlba: u64, nr: u8) -> Self {
        self.with_slba(sdlba).with_cdw(12, u32::from(nr))
    }

    fn with_control(mut self, bit: u16, set: bool) -> Self {
        let control = self.control() & !bit | if set { bit } else { 0 };
        put_u16(&mut self.0, 50, control);
        self
    }
}

impl fmt::Debug for Sqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqe")
            .field("opcode", &self.opcode())
            .field("cid", &self.cid().0)
            .field("nsid", &self.nsid().0)
            .field("sgl1", &self.sgl1())
            .field("cdw10_15", &[10, 11, 12, 13, 14, 15].map(|n| self.cdw(n)))
            .finish_non_exhaustive()
    }
}

/// SGL descriptor, 16 bytes: where a command's data is. [BASE-2.0 §4.1.2]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sgl {
    /// Address, or offset into the capsule.
    pub address: u64,
    /// Bytes of data.
    pub length: u32,
    /// SGL identifier: type in bits 7:4, subtype in bits 3:0.
    pub kind: u8,
}

impl Sgl {
    /// Bytes of a descriptor.
    pub const SIZE: usize = 16;
    /// Data Block by offset: the data is in the capsule. [TCP-1.0 §3.3]
    pub const KIND_IN_CAPSULE: u8 = 0x01;
    /// Transport Data Block: data moves by data PDUs. [TCP-1.0 §3.3]
    pub const KIND_TRANSPORT: u8 = 0x5A;

    /// Data of `length` bytes in the capsule, at its beginning.
    pub const fn in_capsule(length: u32) -> Self {
        Self {
            address: 0,
            length,
            kind: Self::KIND_IN_CAPSULE,
        }
    }

    /// Data of `length` bytes by data PDUs.
    pub const fn transport(length: u32) -> Self {
        Self {
            address: 0,
            length,
            kind: Self::KIND_TRANSPORT,
        }
    }

    /// The descriptor's bytes.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_u64(&mut bytes, 0, self.address);
        put_u32(&mut bytes, 8, self.length);
        bytes[15] = self.kind;
        bytes
    }

    /// Reads a descriptor; any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            address: u64_at(bytes, 0),
            length: u32_at(bytes, 8),
            kind: bytes[15],
        }
    }
}

/// Completion Queue Entry. [BASE-2.0 §3.3.3.2], [FABRICS-1.1 §2.2]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cqe {
    /// Dwords 0 and 1: command specific.
    pub result: u64,
    /// SQ Head Pointer; reserved where SQ flow control is disabled.
    pub sqhd: u16,
    /// SQ Identifier; reserved in Fabrics.
    pub sqid: QueueId,
    /// The command this completes.
    pub cid: CommandId,
    /// How it ended.
    pub status: Status,
}

impl Cqe {
    /// Bytes of an entry.
    pub const SIZE: usize = 16;

    /// The entry's bytes, phase tag 0.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_u64(&mut bytes, 0, self.result);
        put_u16(&mut bytes, 8, self.sqhd);
        put_u16(&mut bytes, 10, self.sqid.0);
        put_u16(&mut bytes, 12, self.cid.0);
        put_u16(&mut bytes, 14, self.status.wire());
        bytes
    }

    /// Reads an entry; any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            result: u64_at(bytes, 0),
            sqhd: u16_at(bytes, 8),
            sqid: QueueId(u16_at(bytes, 10)),
            cid: CommandId(u16_at(bytes, 12)),
            status: Status::from_wire(u16_at(bytes, 14)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opcode::io;

    /// A Linux write of 8 blocks at LBA 0x1234_5678_9A with FUA, CID with generation bits.
    const WRITE: [u8; 64] = {
        let mut bytes = [0; 64];
        bytes[0] = 0x01;
        bytes[1] = 0x40;
        bytes[2] = 0x1F;
        bytes[3] = 0x30;
        bytes[4] = 1;
        bytes[33] = 0x10;
        bytes[39] = 0x01;
        bytes[40] = 0x9A;
        bytes[41] = 0x78;
        bytes[42] = 0x56;
        bytes[43] = 0x34;
        bytes[44] = 0x12;
        bytes[48] = 7;
        bytes[51] = 0x40;
        bytes
    };

    #[test]
    fn write_command_has_the_known_bytes() {
        let sqe = Sqe::new(io::WRITE)
            .with_cid(CommandId(0x301F))
            .with_nsid(NamespaceId(1))
            .with_sgl1(Sgl::in_capsule(4096))
            .with_slba(0x12_3456_789A)
            .with_nlb(7)
            .with_fua(true);
        assert_eq!(sqe, Sqe(WRITE));
    }

    #[test]
    fn write_command_reads_back() {
        let sqe = Sqe(WRITE);
        assert_eq!(
            (sqe.opcode(), sqe.fuse(), sqe.psdt()),
            (io::WRITE, Fuse::Normal, 1)
        );
        assert_eq!((sqe.cid(), sqe.nsid()), (CommandId(0x301F), NamespaceId(1)));
        assert_eq!(sqe.sgl1(), Sgl::in_capsule(4096));
        assert_eq!(
            (sqe.slba(), sqe.nlb(), sqe.blocks()),
            (0x12_3456_789A, 7, 8)
        );
        assert!(sqe.fua() && !sqe.lr() && !sqe.deac());
        assert_eq!((sqe.prinfo(), sqe.dtype()), (0, 0));
    }

    #[test]
    fn control_bits_are_independent() {
        let sqe = Sqe::new(io::WRITE_ZEROES)
            .with_deac(true)
            .with_lr(true)
            .with_fua(true);
        assert_eq!(sqe.cdw(12), 0xC200_0000);
        assert_eq!(sqe.with_fua(false).cdw(12), 0x8200_0000);
        assert_eq!(sqe.with_nlb(0xFFFF).blocks(), 65_536);
        assert_eq!(sqe.with_cdw(12, 0x3C00_0000).prinfo(), 0xF);
        assert_eq!(sqe.with_cdw(12, 0x00F0_0000).dtype(), 0xF);
    }

    #[test]
    fn dataset_management_counts_ranges_from_zero() {
        let sqe = Sqe::new(io::DATASET_MANAGEMENT).with_ranges(255, true);
        assert_eq!((sqe.nr(), sqe.ranges(), sqe.cdw(11)), (255, 256, 4));
        assert!(sqe.deallocate());
        assert!(!sqe.with_ranges(0, false).deallocate());
    }

    #[test]
    fn copy_counts_ranges_from_zero_and_shares_its_control_bits() {
        let sqe = Sqe::new(io::COPY).with_copy(7, 255).with_fua(true);
        assert_eq!(
            (sqe.slba(), sqe.copy_ranges(), sqe.copy_format()),
            (7, 256, 0)
        );
        assert_eq!(sqe.cdw(12), 0x4000_00FF);
        assert_eq!(sqe.with_cdw(12, 0x0000_0F00).copy_format(), 0xF);
    }

    #[test]
    fn fuse_keeps_the_transfer_bits() {
        for fuse in [Fuse::First, Fuse::Second, Fuse::Reserved, Fuse::Normal] {
            let sqe = Sqe::new(io::COMPARE).with_fuse(fuse);
            assert_eq!((sqe.fuse(), sqe.psdt()), (fuse, 1));
        }
    }

    #[test]
    fn transport_descriptor_has_the_known_bytes() {
        let bytes = Sgl::transport(0x1_2345).encode();
        assert_eq!(bytes, *b"\0\0\0\0\0\0\0\0\x45\x23\x01\0\0\0\0\x5A");
        assert_eq!(Sgl::decode(&bytes), Sgl::transport(0x1_2345));
    }

    #[test]
    fn completion_has_the_known_bytes() {
        let cqe = Cqe {
            result: 0x0001_0100,
            sqhd: 3,
            sqid: QueueId(0),
            cid: CommandId(0x1002),
            status: Status::CONNECT_INVALID_PARAMETERS.dnr(),
        };
        let bytes = cqe.encode();
        assert_eq!(bytes, *b"\x00\x01\x01\0\0\0\0\0\x03\0\0\0\x02\x10\x04\x83");
        assert_eq!(Cqe::decode(&bytes), cqe);
    }
}
