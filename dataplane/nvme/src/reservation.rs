//! Reservations: who may read and write a shared namespace. [BASE-2.0 §7.2 to §7.5, §8.19]
//!
//! A command keeps the raw value of a field that can be wrong: the controller decides what to
//! answer. Only [`ReservationType`] is an enumeration, since everything else depends on it.

use crate::layout::layout;
use crate::opcode::io;
use crate::wire::{put_u64, u64_at};
use crate::{ControllerId, Sqe};

/// Reservation Type (RTYPE). [BASE-2.0 §8.19]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReservationType {
    /// Only the holder writes.
    WriteExclusive,
    /// Only the holder reads and writes.
    ExclusiveAccess,
    /// Only registrants write.
    WriteExclusiveRegistrantsOnly,
    /// Only registrants read and write.
    ExclusiveAccessRegistrantsOnly,
    /// Only registrants write, and each of them holds the reservation.
    WriteExclusiveAllRegistrants,
    /// Only registrants read and write, and each of them holds the reservation.
    ExclusiveAccessAllRegistrants,
}

impl ReservationType {
    /// All, by ascending value.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The value on the wire, 1 to 6; 0 stands for no reservation.
    pub const fn wire(self) -> u8 {
        match self {
            Self::WriteExclusive => 1,
            Self::ExclusiveAccess => 2,
            Self::WriteExclusiveRegistrantsOnly => 3,
            Self::ExclusiveAccessRegistrantsOnly => 4,
            Self::WriteExclusiveAllRegistrants => 5,
            Self::ExclusiveAccessAllRegistrants => 6,
        }
    }

    /// The type of a value on the wire.
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::WriteExclusive),
            2 => Some(Self::ExclusiveAccess),
            3 => Some(Self::WriteExclusiveRegistrantsOnly),
            4 => Some(Self::ExclusiveAccessRegistrantsOnly),
            5 => Some(Self::WriteExclusiveAllRegistrants),
            6 => Some(Self::ExclusiveAccessAllRegistrants),
            _ => None,
        }
    }

    /// Whether every registrant holds the reservation, and not one of them.
    pub const fn is_all_registrants(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Whether the holder alone has the rights that the reservation gives.
    pub const fn is_holder_only(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Whether reading, too, is for those who may write only.
    pub const fn excludes_readers(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// RESCAP of Identify Namespace. [BASE-2.0 §5.17.2.8]
pub mod rescap {
    /// Persist Through Power Loss.
    pub const PERSIST: u8 = 1 << 0;
    /// All six types.
    pub const ALL_TYPES: u8 = 0x7E;
    /// Ignore Existing Key has the meaning of revision 1.3 and later.
    pub const IGNORE_KEY_1_3: u8 = 1 << 7;
}

/// Value of the Reservation Notification Mask feature: a set bit masks the notification.
/// [BASE-2.0 §5.27.1.26]
pub mod mask {
    /// Registration Preempted.
    pub const REGISTRATION_PREEMPTED: u32 = 1 << 1;
    /// Reservation Released.
    pub const RESERVATION_RELEASED: u32 = 1 << 2;
    /// Reservation Preempted.
    pub const RESERVATION_PREEMPTED: u32 = 1 << 3;
    /// The bits that there are.
    pub const ALL: u32 = 0b1110;
}

const IEKEY: u32 = 1 << 3;

/// Reservation Register, opcode 0Dh. [BASE-2.0 §7.3]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Register {
    /// RREGA, 3 bits: one of this type's constants.
    pub action: u8,
    /// IEKEY: the current key is not looked at.
    pub ignore_key: bool,
    /// CPTPL, 2 bits: one of this type's constants.
    pub change_persistence: u8,
    /// CRKEY: the host's key until now.
    pub current_key: u64,
    /// NRKEY: the host's key from now on.
    pub new_key: u64,
}

impl Register {
    /// Bytes of the command's data.
    pub const DATA_BYTES: usize = 16;
    /// RREGA: register a key.
    pub const REGISTER: u8 = 0;
    /// RREGA: unregister.
    pub const UNREGISTER: u8 = 1;
    /// RREGA: replace the key.
    pub const REPLACE: u8 = 2;
    /// CPTPL: no change.
    pub const PERSISTENCE_KEEP: u8 = 0;
    /// CPTPL: reservations are released and registrants forgotten when power is lost.
    pub const PERSISTENCE_CLEAR: u8 = 2;
    /// CPTPL: reservations and registrants persist through power loss.
    pub const PERSISTENCE_SET: u8 = 3;

    /// The command, without CID, NSID and SGL.
    pub fn encode(&self) -> Sqe {
        let cdw10 = u32::from(self.action & 7)
            | if self.ignore_key { IEKEY } else { 0 }
            | u32::from(self.change_persistence & 3) << 30;
        Sqe::new(io::RESERVATION_REGISTER).with_cdw(10, cdw10)
    }

    /// The command's data.
    pub fn data(&self) -> [u8; Self::DATA_BYTES] {
        two_keys(self.current_key, self.new_key)
    }

    /// Reads command and data; `None` if the data is too short.
    pub fn decode(sqe: &Sqe, data: &[u8]) -> Option<Self> {
        let (cdw10, data) = (sqe.cdw(10), data.first_chunk::<{ Self::DATA_BYTES }>()?);
        Some(Self {
            action: low_bits(cdw10, 7),
            ignore_key: cdw10 & IEKEY != 0,
            change_persistence: low_bits(cdw10 >> 30, 3),
            current_key: u64_at(data, 0),
            new_key: u64_at(data, 8),
        })
    }
}

/// Reservation Acquire, opcode 11h. [BASE-2.0 §7.2]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Acquire {
    /// RACQA, 3 bits: one of this type's constants.
    pub action: u8,
    /// IEKEY: not valid here.
    pub ignore_key: bool,
    /// RTYPE: see [`ReservationType`].
    pub rtype: u8,
    /// CRKEY: the host's key.
    pub current_key: u64,
    /// PRKEY: the key of those to be preempted.
    pub preempt_key: u64,
}

impl Acquire {
    /// Bytes of the command's data.
    pub const DATA_BYTES: usize = 16;
    /// RACQA: acquire.
    pub const ACQUIRE: u8 = 0;
    /// RACQA: preempt.
    pub const PREEMPT: u8 = 1;
    /// RACQA: preempt and abort the commands of those preempted.
    pub const PREEMPT_AND_ABORT: u8 = 2;

    /// The command, without CID, NSID and SGL.
    pub fn encode(&self) -> Sqe {
        let action = self.action & 7 | if self.ignore_key { 1 << 3 } else { 0 };
        let cdw10 = u32::from_le_bytes([action, self.rtype, 0, 0]);
        Sqe::new(io::RESERVATION_ACQUIRE).with_cdw(10, cdw10)
    }

    /// The command's data.
    pub fn data(&self) -> [u8; Self::DATA_BYTES] {
        two_keys(self.current_key, self.preempt_key)
    }

    /// Reads command and data; `None` if the data is too short.
    pub fn decode(sqe: &Sqe, data: &[u8]) -> Option<Self> {
        let (cdw10, data) = (sqe.cdw(10), data.first_chunk::<{ Self::DATA_BYTES }>()?);
        Some(Self {
            action: low_bits(cdw10, 7),
            ignore_key: cdw10 & IEKEY != 0,
            rtype: low_bits(cdw10 >> 8, 0xFF),
            current_key: u64_at(data, 0),
            preempt_key: u64_at(data, 8),
        })
    }
}

/// Reservation Release, opcode 15h. [BASE-2.0 §7.4]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Release {
    /// RRELA, 3 bits: one of this type's constants.
    pub action: u8,
    /// IEKEY: not valid here.
    pub ignore_key: bool,
    /// RTYPE: see [`ReservationType`].
    pub rtype: u8,
    /// CRKEY: the host's key.
    pub current_key: u64,
}

impl Release {
    /// Bytes of the command's data; Linux sends 16.
    pub const DATA_BYTES: usize = 8;
    /// RRELA: release the reservation.
    pub const RELEASE: u8 = 0;
    /// RRELA: release the reservation and unregister everybody.
    pub const CLEAR: u8 = 1;

    /// The command, without CID, NSID and SGL.
    pub fn encode(&self) -> Sqe {
        let action = self.action & 7 | if self.ignore_key { 1 << 3 } else { 0 };
        let cdw10 = u32::from_le_bytes([action, self.rtype, 0, 0]);
        Sqe::new(io::RESERVATION_RELEASE).with_cdw(10, cdw10)
    }

    /// The command's data.
    pub const fn data(&self) -> [u8; Self::DATA_BYTES] {
        self.current_key.to_le_bytes()
    }

    /// Reads command and data; `None` if the data is too short.
    pub fn decode(sqe: &Sqe, data: &[u8]) -> Option<Self> {
        let (cdw10, data) = (sqe.cdw(10), data.first_chunk::<{ Self::DATA_BYTES }>()?);
        Some(Self {
            action: low_bits(cdw10, 7),
            ignore_key: cdw10 & IEKEY != 0,
            rtype: low_bits(cdw10 >> 8, 0xFF),
            current_key: u64::from_le_bytes(*data),
        })
    }
}

/// Reservation Report, opcode 0Eh. [BASE-2.0 §7.5]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Report {
    /// NUMD, dwords wanted, 0's based. See [`Report::bytes`].
    pub numd: u32,
    /// EDS: the extended data structure, with 128-bit host identifiers.
    pub extended: bool,
}

impl Report {
    /// An extended report of `bytes` (a multiple of 4, at least 4).
    pub const fn extended(bytes: u32) -> Self {
        Self {
            numd: (bytes / 4).saturating_sub(1),
            extended: true,
        }
    }

    /// Bytes wanted, 4 to 16 GiB.
    pub const fn bytes(&self) -> u64 {
        (self.numd as u64 + 1) * 4
    }

    /// The command, without CID, NSID and SGL.
    pub fn encode(&self) -> Sqe {
        Sqe::new(io::RESERVATION_REPORT)
            .with_cdw(10, self.numd)
            .with_cdw(11, u32::from(self.extended))
    }

    /// Reads the command.
    pub const fn decode(sqe: &Sqe) -> Self {
        Self {
            numd: sqe.cdw(10),
            extended: sqe.cdw(11) & 1 != 0,
        }
    }
}

layout! {
    /// Head of the Reservation Status data structure, followed by [`RegisteredController`]s.
    /// [BASE-2.0 §7.5]
    pub struct ReservationStatus: 24 bytes {
        /// Generation: rises with each register, preempt and clear, and wraps.
        generation: u32 = 0,
        /// RTYPE: 0 is no reservation.
        rtype: u8 = 4,
        /// Number of Registered Controllers, also of those that the transfer had no room for.
        regctl: u16 = 5,
        /// Persist Through Power Loss State.
        ptpls: u8 = 9,
    }
}

layout! {
    /// Head of the extended structure, followed by [`RegisteredControllerExtended`]s.
    /// [BASE-2.0 §7.5]
    pub struct ReservationStatusExtended: 64 bytes {
        /// Generation: rises with each register, preempt and clear, and wraps.
        generation: u32 = 0,
        /// RTYPE: 0 is no reservation.
        rtype: u8 = 4,
        /// Number of Registered Controllers, also of those that the transfer had no room for.
        regctl: u16 = 5,
        /// Persist Through Power Loss State.
        ptpls: u8 = 9,
    }
}

layout! {
    /// Registered Controller data structure. [BASE-2.0 §7.5]
    pub struct RegisteredController: 24 bytes {
        /// Controller; FFFFh in the dynamic controller model.
        cntlid: ControllerId = 0,
        /// Reservation Status: bit 0, the host holds the reservation.
        rcsts: u8 = 2,
        /// Host identifier of 64 bits.
        hostid: u64 = 8,
        /// Reservation key.
        rkey: u64 = 16,
    }
}

layout! {
    /// Registered Controller Extended data structure. [BASE-2.0 §7.5]
    pub struct RegisteredControllerExtended: 64 bytes {
        /// Controller; FFFFh in the dynamic controller model.
        cntlid: ControllerId = 0,
        /// Reservation Status: bit 0, the host holds the reservation.
        rcsts: u8 = 2,
        /// Reservation key.
        rkey: u64 = 8,
        /// Host identifier of 128 bits.
        hostid: [u8; 16] = 16,
    }
}

impl RegisteredControllerExtended {
    /// RCSTS: the host holds the reservation.
    pub const HOLDER: u8 = 1;
}

fn two_keys(first: u64, second: u64) -> [u8; 16] {
    let mut data = [0; 16];
    put_u64(&mut data, 0, first);
    put_u64(&mut data, 8, second);
    data
}

const fn low_bits(value: u32, mask: u8) -> u8 {
    value.to_le_bytes()[0] & mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::assert_layout;

    const KEYS: [u8; 16] = *b"\x08\x07\x06\x05\x04\x03\x02\x01\x18\x17\x16\x15\x14\x13\x12\x11";

    #[test]
    fn register_has_the_known_bytes() {
        let register = Register {
            action: Register::REPLACE,
            ignore_key: true,
            change_persistence: Register::PERSISTENCE_SET,
            current_key: 0x0102_0304_0506_0708,
            new_key: 0x1112_1314_1516_1718,
        };
        let sqe = register.encode();
        assert_eq!((sqe.opcode(), sqe.cdw(10)), (0x0D, 0xC000_000A));
        assert_eq!(register.data(), KEYS);
        assert_eq!(Register::decode(&sqe, &KEYS), Some(register));
        assert_eq!(Register::decode(&sqe, &KEYS[..15]), None);
    }

    #[test]
    fn acquire_has_the_known_bytes() {
        let acquire = Acquire {
            action: Acquire::PREEMPT_AND_ABORT,
            ignore_key: false,
            rtype: ReservationType::ExclusiveAccessAllRegistrants.wire(),
            current_key: 0x0102_0304_0506_0708,
            preempt_key: 0x1112_1314_1516_1718,
        };
        let sqe = acquire.encode();
        assert_eq!((sqe.opcode(), sqe.cdw(10)), (0x11, 0x0000_0602));
        assert_eq!(acquire.data(), KEYS);
        assert_eq!(Acquire::decode(&sqe, &KEYS), Some(acquire));
        let ignoring = Sqe::new(0x11).with_cdw(10, 0xFFFF_FFFF);
        let found = Acquire::decode(&ignoring, &KEYS).expect("long enough");
        assert!(found.ignore_key);
        assert_eq!((found.action, found.rtype), (7, 0xFF));
    }

    #[test]
    fn release_has_the_known_bytes_and_needs_eight() {
        let release = Release {
            action: Release::CLEAR,
            ignore_key: true,
            rtype: 3,
            current_key: 0x0102_0304_0506_0708,
        };
        let sqe = release.encode();
        assert_eq!((sqe.opcode(), sqe.cdw(10)), (0x15, 0x0000_0309));
        assert_eq!(release.data(), KEYS[..8]);
        assert_eq!(Release::decode(&sqe, &KEYS), Some(release));
        assert_eq!(Release::decode(&sqe, &KEYS[..7]), None);
    }

    #[test]
    fn report_counts_dwords_from_zero() {
        let report = Report::extended(4096);
        let sqe = report.encode();
        assert_eq!(
            (sqe.opcode(), sqe.cdw(10), sqe.cdw(11)),
            (0x0E, 0x0000_03FF, 1)
        );
        assert_eq!((Report::decode(&sqe), report.bytes()), (report, 4096));
        let most = Report::decode(&sqe.with_cdw(10, u32::MAX));
        assert_eq!(most.bytes(), 16 << 30);
    }

    #[test]
    fn status_structures_have_the_known_bytes() {
        assert_layout!(ReservationStatus);
        assert_layout!(ReservationStatusExtended);
        assert_layout!(RegisteredController);
        assert_layout!(RegisteredControllerExtended);
        let head = ReservationStatusExtended {
            generation: 0x0403_0201,
            rtype: 5,
            regctl: 0x0201,
            ptpls: 1,
        };
        assert_eq!(
            head.to_bytes()[..12],
            *b"\x01\x02\x03\x04\x05\x01\x02\0\0\x01\0\0"
        );
        let entry = RegisteredControllerExtended {
            cntlid: ControllerId::DYNAMIC,
            rcsts: RegisteredControllerExtended::HOLDER,
            rkey: 0x0102_0304_0506_0708,
            hostid: *b"0123456789abcdef",
        };
        let bytes = entry.to_bytes();
        assert_eq!(
            bytes[..32],
            *b"\xFF\xFF\x01\0\0\0\0\0\x08\x07\x06\x05\x04\x03\x02\x010123456789abcdef"
        );
        let short = RegisteredController {
            cntlid: ControllerId(2),
            rcsts: 1,
            hostid: 0x11,
            rkey: 0x22,
        };
        assert_eq!(
            short.to_bytes(),
            *b"\x02\0\x01\0\0\0\0\0\x11\0\0\0\0\0\0\0\x22\0\0\0\0\0\0\0"
        );
    }

    #[test]
    fn types_have_the_values_one_to_six() {
        for (value, rtype) in (1..).zip(ReservationType::ALL) {
            assert_eq!(rtype.wire(), value);
            assert_eq!(ReservationType::from_wire(value), Some(rtype));
            assert_eq!(rtype.is_all_registrants(), value >= 5);
            assert_eq!(rtype.is_holder_only(), value <= 2);
            assert_eq!(rtype.excludes_readers(), value % 2 == 0);
        }
        assert_eq!(ReservationType::from_wire(0), None);
        assert_eq!(ReservationType::from_wire(7), None);
    }
}
