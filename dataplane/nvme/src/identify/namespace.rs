//! Identify Namespace. [NVM-1.0 §4.1.5.1], [BASE-2.0 §5.17.2.8]

use crate::layout::{Field, layout};

/// LBA Format: block and metadata size. [NVM-1.0 §4.1.5.1]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LbaFormat {
    /// Metadata Size in bytes per block.
    pub ms: u16,
    /// LBA Data Size as a power of two; 0 is no format. See [`LbaFormat::block_bytes`].
    pub lbads: u8,
    /// Relative Performance, bits 1:0; 0 is best.
    pub rp: u8,
}

impl LbaFormat {
    /// Bytes of a block, if the format exists and is one the specification allows: 512 B to
    /// 2 GiB.
    pub const fn block_bytes(&self) -> Option<u32> {
        match self.lbads {
            9..=31 => Some(1 << self.lbads),
            _ => None,
        }
    }
}

impl Field for LbaFormat {
    const BYTES: usize = 4;

    fn load(bytes: &[u8], at: usize) -> Self {
        Self {
            ms: u16::load(bytes, at),
            lbads: u8::load(bytes, at + 2),
            rp: u8::load(bytes, at + 3),
        }
    }

    fn store(&self, bytes: &mut [u8], at: usize) {
        self.ms.store(bytes, at);
        self.lbads.store(bytes, at + 2);
        self.rp.store(bytes, at + 3);
    }
}

layout! {
    /// Identify Namespace of the NVM Command Set, CNS 00h. [NVM-1.0 §4.1.5.1]
    pub struct IdentifyNamespace: 4096 bytes {
        /// Namespace Size in blocks.
        nsze: u64 = 0,
        /// Namespace Capacity in blocks; 0 is an inactive namespace.
        ncap: u64 = 8,
        /// Namespace Utilization in blocks.
        nuse: u64 = 16,
        /// Namespace Features: `NSFEAT_*`.
        nsfeat: u8 = 24,
        /// Number of LBA Formats, 0's based. See [`IdentifyNamespace::formats`].
        nlbaf: u8 = 25,
        /// Formatted LBA Size: the format in use, bits 3:0, and extended metadata, bit 4.
        flbas: u8 = 26,
        /// Metadata Capabilities.
        mc: u8 = 27,
        /// End-to-end Data Protection Capabilities.
        dpc: u8 = 28,
        /// End-to-end Data Protection Type Settings.
        dps: u8 = 29,
        /// Namespace Multi-path I/O and Sharing Capabilities: `NMIC_*`.
        nmic: u8 = 30,
        /// Reservation Capabilities.
        rescap: u8 = 31,
        /// Format Progress Indicator.
        fpi: u8 = 32,
        /// Deallocate Logical Block Features: `DLFEAT_*`.
        dlfeat: u8 = 33,
        /// Namespace Atomic Write Unit Normal in blocks, 0's based.
        nawun: u16 = 34,
        /// Namespace Atomic Write Unit Power Fail in blocks, 0's based.
        nawupf: u16 = 36,
        /// Namespace Atomic Compare & Write Unit in blocks, 0's based.
        nacwu: u16 = 38,
        /// Namespace Atomic Boundary Size Normal in blocks, 0's based; 0 is no boundary.
        nabsn: u16 = 40,
        /// Namespace Atomic Boundary Offset in blocks.
        nabo: u16 = 42,
        /// Namespace Atomic Boundary Size Power Fail in blocks, 0's based; 0 is no boundary.
        nabspf: u16 = 44,
        /// Namespace Optimal I/O Boundary in blocks; 0 is none.
        noiob: u16 = 46,
        /// NVM Capacity in bytes.
        nvmcap: u128 = 48,
        /// Namespace Preferred Write Granularity in blocks, 0's based.
        npwg: u16 = 64,
        /// Namespace Preferred Write Alignment in blocks, 0's based.
        npwa: u16 = 66,
        /// Namespace Preferred Deallocate Granularity in blocks, 0's based.
        npdg: u16 = 68,
        /// Namespace Preferred Deallocate Alignment in blocks, 0's based.
        npda: u16 = 70,
        /// Namespace Optimal Write Size in blocks, 0's based.
        nows: u16 = 72,
        /// Maximum Single Source Range Length of Copy in blocks.
        mssrl: u16 = 74,
        /// Maximum Copy Length in blocks.
        mcl: u32 = 76,
        /// Maximum Source Range Count of Copy, 0's based.
        msrc: u8 = 80,
        /// ANA Group Identifier.
        anagrpid: u32 = 92,
        /// Namespace Attributes: `NSATTR_*`.
        nsattr: u8 = 99,
        /// NVM Set Identifier.
        nvmsetid: u16 = 100,
        /// Endurance Group Identifier.
        endgid: u16 = 102,
        /// Namespace Globally Unique Identifier, big-endian; all zero is none.
        nguid: [u8; 16] = 104,
        /// IEEE Extended Unique Identifier, big-endian; all zero is none.
        eui64: [u8; 8] = 120,
        /// LBA Formats, of which NLBAF + 1 exist.
        lbaf: [LbaFormat; 16] = 128,
    }
}

impl IdentifyNamespace {
    /// NSFEAT: thin provisioning, so NUSE and NCAP may be below NSZE.
    pub const NSFEAT_THIN: u8 = 1 << 0;
    /// NSFEAT: NAWUN, NAWUPF and NACWU are defined.
    pub const NSFEAT_ATOMIC: u8 = 1 << 1;
    /// NSFEAT: NPWG, NPWA, NPDG, NPDA and NOWS are defined.
    pub const NSFEAT_OPTIMAL: u8 = 1 << 4;
    /// NMIC: several controllers may share the namespace.
    pub const NMIC_SHARED: u8 = 1 << 0;
    /// DLFEAT bits 2:0: deallocated blocks read as zeroes.
    pub const DLFEAT_READS_ZEROES: u8 = 1;
    /// DLFEAT: Write Zeroes honours DEAC.
    pub const DLFEAT_WRITE_ZEROES_DEAC: u8 = 1 << 3;
    /// NSATTR: currently write protected.
    pub const NSATTR_WRITE_PROTECTED: u8 = 1 << 0;

    /// How many LBA formats there are, 1 to 16 as this structure knows them.
    pub fn formats(&self) -> &[LbaFormat] {
        self.lbaf
            .get(..=usize::from(self.nlbaf))
            .unwrap_or(&self.lbaf)
    }

    /// The format in use; `None` if FLBAS names none of the first 16.
    pub fn format(&self) -> Option<LbaFormat> {
        // Bits 6:5 are the upper bits of the index where more than 16 formats exist.
        if self.nlbaf > 15 && self.flbas >> 5 & 0b11 != 0 {
            return None;
        }
        self.formats().get(usize::from(self.flbas & 0xF)).copied()
    }
}

layout! {
    /// I/O Command Set Independent Identify Namespace, CNS 08h. [BASE-2.0 §5.17.2.8]
    pub struct IndependentNamespace: 4096 bytes {
        /// Common Namespace Features.
        nsfeat: u8 = 0,
        /// Namespace Multi-path I/O and Sharing Capabilities: as in [`IdentifyNamespace`].
        nmic: u8 = 1,
        /// Reservation Capabilities.
        rescap: u8 = 2,
        /// Format Progress Indicator.
        fpi: u8 = 3,
        /// ANA Group Identifier.
        anagrpid: u32 = 4,
        /// Namespace Attributes: as in [`IdentifyNamespace`].
        nsattr: u8 = 8,
        /// NVM Set Identifier.
        nvmsetid: u16 = 10,
        /// Endurance Group Identifier.
        endgid: u16 = 12,
        /// Namespace Status: `NSTAT_*`.
        nstat: u8 = 14,
    }
}

impl IndependentNamespace {
    /// NSTAT: Namespace Ready.
    pub const NSTAT_READY: u8 = 1 << 0;
}
