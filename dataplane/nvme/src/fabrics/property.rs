//! Controller properties and the commands that reach them. [BASE-2.0 §3.1.3],
//! [FABRICS-1.1 §3.5, §3.6]

use core::fmt;

use crate::opcode::fabrics;
use crate::wire::{put_u32, put_u64, u32_at, u64_at};
use crate::{Nanos, Sqe};

/// Offsets of the properties. [BASE-2.0 §3.1.3]
pub mod offset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version, 4 bytes.
    pub const VS: u32 = 0x08;
    /// Controller Configuration, 4 bytes.
    pub const CC: u32 = 0x14;
    /// Controller Status, 4 bytes.
    pub const CSTS: u32 = 0x1C;
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: u32 = 0x20;
    /// Controller Ready Timeouts, 4 bytes.
    pub const CRTO: u32 = 0x68;
}

/// Property Get. [FABRICS-1.1 §3.5]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PropertyGet {
    /// ATTRIB bits 2:0, the size: 0 is 4 bytes, 1 is 8 bytes.
    pub size: u8,
    /// OFST, one of [`offset`].
    pub offset: u32,
}

impl PropertyGet {
    /// Reads 4 bytes.
    pub const fn dword(offset: u32) -> Self {
        Self { size: 0, offset }
    }

    /// Reads 8 bytes.
    pub const fn qword(offset: u32) -> Self {
        Self { size: 1, offset }
    }

    /// The command, without CID. The value is the CQE's result.
    pub fn encode(&self) -> Sqe {
        let mut sqe = Sqe::fabrics(fabrics::PROPERTY_GET);
        sqe.0[40] = self.size & 7;
        put_u32(&mut sqe.0, 44, self.offset);
        sqe
    }

    /// Reads the command.
    pub const fn decode(sqe: &Sqe) -> Self {
        Self {
            size: sqe.0[40] & 7,
            offset: u32_at(&sqe.0, 44),
        }
    }
}

/// Property Set. [FABRICS-1.1 §3.6]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PropertySet {
    /// ATTRIB bits 2:0, the size: 0 is 4 bytes, 1 is 8 bytes.
    pub size: u8,
    /// OFST, one of [`offset`].
    pub offset: u32,
    /// The value; of a 4-byte property only the lower half counts.
    pub value: u64,
}

impl PropertySet {
    /// Writes 4 bytes.
    pub const fn dword(offset: u32, value: u32) -> Self {
        Self {
            size: 0,
            offset,
            value: value as u64,
        }
    }

    /// The value of a 4-byte property.
    pub const fn value_dword(&self) -> u32 {
        let [a, b, c, d, ..] = self.value.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// The command, without CID.
    pub fn encode(&self) -> Sqe {
        let mut sqe = Sqe::fabrics(fabrics::PROPERTY_SET);
        sqe.0[40] = self.size & 7;
        put_u32(&mut sqe.0, 44, self.offset);
        put_u64(&mut sqe.0, 48, self.value);
        sqe
    }

    /// Reads the command.
    pub fn decode(sqe: &Sqe) -> Self {
        Self {
            size: sqe.0[40] & 7,
            offset: u32_at(&sqe.0, 44),
            value: u64_at(&sqe.0, 48),
        }
    }
}

/// Defines bit fields over an integer: a getter and a builder-style setter for each.
macro_rules! bitfields {
    ($name:ident($int:ty) {
        $($(#[$doc:meta])* $get:ident $set:ident : $field:tt = $low:literal, $width:literal;)*
    }) => {
        impl $name {
            $(bitfields!(@field $int, $(#[$doc])* $get $set $field $low $width);)*
        }
    };
    (@field $int:ty, $(#[$doc:meta])* $get:ident $set:ident bool $low:literal $width:literal) => {
        $(#[$doc])*
        pub const fn $get(self) -> bool {
            self.0 >> $low & 1 != 0
        }

        #[doc = concat!("Sets or clears [`Self::", stringify!($get), "`].")]
        #[must_use]
        pub const fn $set(self, value: bool) -> Self {
            Self(self.0 & !(1 << $low) | (value as $int) << $low)
        }
    };
    (@field $int:ty, $(#[$doc:meta])* $get:ident $set:ident $ty:tt $low:literal $width:literal) => {
        $(#[$doc])*
        pub const fn $get(self) -> $ty {
            // The mask keeps the value within the type.
            (self.0 >> $low & ((1 << $width) - 1)) as $ty
        }

        #[doc = concat!("Sets [`Self::", stringify!($get), "`].")]
        #[must_use]
        pub const fn $set(self, value: $ty) -> Self {
            let mask: $int = (1 << $width) - 1;
            Self(self.0 & !(mask << $low) | (value as $int & mask) << $low)
        }
    };
}

/// Controller Capabilities. [BASE-2.0 §3.1.3.1]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cap(pub u64);

bitfields! { Cap(u64) {
    /// Maximum Queue Entries Supported, 0's based. See [`Cap::queue_entries_max`].
    mqes with_mqes: u16 = 0, 16;
    /// Contiguous Queues Required; always set in Fabrics.
    cqr with_cqr: bool = 16, 1;
    /// Timeout for RDY to follow EN, in 500 ms. See [`Cap::ready_timeout`].
    to with_to: u8 = 24, 8;
    /// NVM Subsystem Reset Supported.
    nssrs with_nssrs: bool = 36, 1;
    /// Command Sets Supported: bit 0 NVM, bit 6 one or more by Identify, bit 7 admin only.
    css with_css: u8 = 37, 8;
    /// Memory Page Size Minimum, `4096 << mpsmin` bytes.
    mpsmin with_mpsmin: u8 = 48, 4;
    /// Memory Page Size Maximum, `4096 << mpsmax` bytes.
    mpsmax with_mpsmax: u8 = 52, 4;
    /// Controller Ready With Media Support: CRTO is implemented.
    crwms with_crwms: bool = 59, 1;
    /// Controller Ready Independent of Media Support.
    crims with_crims: bool = 60, 1;
}}

impl Cap {
    /// CSS: the NVM Command Set.
    pub const CSS_NVM: u8 = 1 << 0;
    /// CSS: the sets that Identify CNS 1Ch lists.
    pub const CSS_IO_COMMAND_SETS: u8 = 1 << 6;

    /// Entries of the longest queue, 1 to 65536.
    pub const fn queue_entries_max(self) -> u32 {
        self.mqes() as u32 + 1
    }

    /// How long RDY may take to follow EN.
    pub const fn ready_timeout(self) -> Nanos {
        Nanos::from_millis(self.to() as u64 * 500)
    }

    /// The smallest memory page, the unit of MDTS, in bytes.
    pub const fn page_bytes_min(self) -> u32 {
        4096 << self.mpsmin()
    }
}

/// Controller Configuration. [BASE-2.0 §3.1.3.5]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cc(pub u32);

bitfields! { Cc(u32) {
    /// Enable.
    en with_en: bool = 0, 1;
    /// I/O Command Set Selected: 0 NVM, 6 all supported, 7 admin only.
    css with_css: u8 = 4, 3;
    /// Memory Page Size, `4096 << mps` bytes.
    mps with_mps: u8 = 7, 4;
    /// Arbitration Mechanism Selected: 0 round robin.
    ams with_ams: u8 = 11, 3;
    /// Shutdown Notification as on the wire. See [`Cc::shutdown`].
    shn with_shn: u8 = 14, 2;
    /// I/O Submission Queue Entry Size as a power of two: 6.
    iosqes with_iosqes: u8 = 16, 4;
    /// I/O Completion Queue Entry Size as a power of two: 4.
    iocqes with_iocqes: u8 = 20, 4;
    /// Controller Ready Independent of Media Enable.
    crime with_crime: bool = 24, 1;
}}

/// Shutdown Notification, CC.SHN. [BASE-2.0 §3.1.3.5]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shn {
    /// No notification.
    None,
    /// Normal shutdown.
    Normal,
    /// Abrupt shutdown.
    Abrupt,
    /// The reserved value.
    Reserved,
}

impl Cc {
    /// CSS value: the NVM Command Set.
    pub const CSS_NVM: u8 = 0;
    /// CSS value: every set the controller supports.
    pub const CSS_ALL_SUPPORTED: u8 = 6;
    /// CSS value: no I/O command set.
    pub const CSS_ADMIN_ONLY: u8 = 7;

    /// What the host says about shutting down.
    pub const fn shutdown(self) -> Shn {
        match self.shn() {
            0 => Shn::None,
            1 => Shn::Normal,
            2 => Shn::Abrupt,
            _ => Shn::Reserved,
        }
    }
}

/// Controller Status. [BASE-2.0 §3.1.3.6]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Csts(pub u32);

bitfields! { Csts(u32) {
    /// Ready.
    rdy with_rdy: bool = 0, 1;
    /// Controller Fatal Status.
    cfs with_cfs: bool = 1, 1;
    /// Shutdown Status as on the wire. See [`Csts::shutdown`].
    shst with_shst: u8 = 2, 2;
    /// NVM Subsystem Reset Occurred.
    nssro with_nssro: bool = 4, 1;
    /// Processing Paused.
    pp with_pp: bool = 5, 1;
}}

/// Shutdown Status, CSTS.SHST. [BASE-2.0 §3.1.3.6]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shst {
    /// Normal operation.
    None,
    /// Shutdown is going on.
    InProgress,
    /// Shutdown is complete.
    Complete,
    /// The reserved value.
    Reserved,
}

impl Csts {
    /// How far a shutdown is.
    pub const fn shutdown(self) -> Shst {
        match self.shst() {
            0 => Shst::None,
            1 => Shst::InProgress,
            2 => Shst::Complete,
            _ => Shst::Reserved,
        }
    }

    /// Sets how far a shutdown is.
    #[must_use]
    pub const fn with_shutdown(self, shutdown: Shst) -> Self {
        self.with_shst(match shutdown {
            Shst::None => 0,
            Shst::InProgress => 1,
            Shst::Complete => 2,
            Shst::Reserved => 3,
        })
    }
}

/// Controller Ready Timeouts. [BASE-2.0 §3.1.3.17]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Crto(pub u32);

bitfields! { Crto(u32) {
    /// Controller Ready With Media Timeout, in 500 ms.
    crwmt with_crwmt: u16 = 0, 16;
    /// Controller Ready Independent of Media Timeout, in 500 ms.
    crimt with_crimt: u16 = 16, 16;
}}

/// Version (VS, and VER of Identify Controller). [BASE-2.0 §3.1.3.2]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl Version {
    /// NVMe 1.3.
    pub const V1_3: Self = Self::new(1, 3, 0);
    /// NVMe 1.4.
    pub const V1_4: Self = Self::new(1, 4, 0);
    /// NVMe 2.0.
    pub const V2_0: Self = Self::new(2, 0, 0);

    /// A version of these three numbers.
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self((major as u32) << 16 | (minor as u32) << 8 | tertiary as u32)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [tertiary, minor, low, high] = self.0.to_le_bytes();
        write!(f, "{}.{minor}.{tertiary}", u16::from_le_bytes([low, high]))
    }
}
