//! The Status field of a completion. [BASE-2.0 §3.3.3.2.1]

use core::fmt;

/// Bits 31:17 of CQE dword 3, without the phase tag: SC 7:0, SCT 10:8, CRD 12:11, More 13,
/// Do Not Retry 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;

impl Status {
    /// A status of the given type (3 bits) and code, without Do Not Retry.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct as u16 & 7) << 8) | sc as u16)
    }

    /// The same status with Do Not Retry set.
    #[must_use]
    pub const fn dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// The same status with More set: the Error Information log has an entry for it.
    #[must_use]
    pub const fn more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// The same status asking for Command Retry Delay Time `index` (1 to 3; 0 asks for none) of
    /// Identify Controller.
    #[must_use]
    pub const fn retry_delay(self, index: u8) -> Self {
        Self((self.0 & !(0b11 << 11)) | ((index as u16 & 0b11) << 11))
    }

    /// Status Code Type.
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Status Code.
    pub const fn sc(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Command Retry Delay, an index into CRDT1 to CRDT3; 0 is none.
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }

    /// Whether retrying on the same path is pointless.
    pub const fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// Whether the Error Information log has more.
    pub const fn is_more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.0 & 0x7FF == 0
    }

    /// Whether this is a Path Related Status: another path may succeed.
    pub const fn is_path_error(self) -> bool {
        self.sct() == 3
    }

    /// Whether type and code agree; retry advice and More are ignored.
    pub const fn same_code(self, other: Self) -> bool {
        self.0 & 0x7FF == other.0 & 0x7FF
    }

    /// The status as the last two bytes of a CQE, phase tag 0 (reserved in Fabrics).
    pub const fn wire(self) -> u16 {
        self.0 << 1
    }

    /// The status in the last two bytes of a CQE; the phase tag is dropped.
    pub const fn from_wire(wire: u16) -> Self {
        Self(wire >> 1)
    }

    /// The status in its 15-bit form, as in the Error Information log's Status Field above bit 0.
    pub const fn bits(self) -> u16 {
        self.0
    }
}

macro_rules! statuses {
    ($($name:ident = $sct:literal, $sc:literal, $text:literal;)*) => {
        impl Status {
            $(
                #[doc = concat!("Status ", stringify!($sct), "/", stringify!($sc), ": ", $text, ".")]
                pub const $name: Self = Self::new($sct, $sc);
            )*

            /// What the code means, in the words of the specification. Codes 1/80 to 1/83 depend
            /// on the command; the Fabrics meaning is given. 1/87 is one of I/O commands alone.
            pub const fn name(self) -> Option<&'static str> {
                match (self.sct(), self.sc()) {
                    $(($sct, $sc) => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = 0, 0x00, "successful completion";
    INVALID_OPCODE = 0, 0x01, "invalid command opcode";
    INVALID_FIELD = 0, 0x02, "invalid field in command";
    CID_CONFLICT = 0, 0x03, "command ID conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "data transfer error";
    ABORTED_POWER_LOSS = 0, 0x05, "aborted due to power loss notification";
    INTERNAL = 0, 0x06, "internal error";
    ABORTED_BY_REQUEST = 0, 0x07, "command abort requested";
    ABORTED_SQ_DELETION = 0, 0x08, "aborted due to SQ deletion";
    ABORTED_FAILED_FUSED = 0, 0x09, "aborted due to failed fused command";
    ABORTED_MISSING_FUSED = 0, 0x0A, "aborted due to missing fused command";
    INVALID_NAMESPACE = 0, 0x0B, "invalid namespace or format";
    COMMAND_SEQUENCE_ERROR = 0, 0x0C, "command sequence error";
    INVALID_SGL_SEGMENT = 0, 0x0D, "invalid SGL segment descriptor";
    INVALID_SGL_COUNT = 0, 0x0E, "invalid number of SGL descriptors";
    DATA_SGL_LENGTH_INVALID = 0, 0x0F, "data SGL length invalid";
    METADATA_SGL_LENGTH_INVALID = 0, 0x10, "metadata SGL length invalid";
    SGL_TYPE_INVALID = 0, 0x11, "SGL descriptor type invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14, "atomic write unit exceeded";
    OPERATION_DENIED = 0, 0x15, "operation denied";
    SGL_OFFSET_INVALID = 0, 0x16, "SGL offset invalid";
    HOST_ID_INCONSISTENT = 0, 0x18, "host identifier inconsistent format";
    KEEP_ALIVE_EXPIRED = 0, 0x19, "keep alive timer expired";
    KATO_INVALID = 0, 0x1A, "keep alive timeout invalid";
    ABORTED_PREEMPT = 0, 0x1B, "command aborted due to preempt and abort";
    SANITIZE_FAILED = 0, 0x1C, "sanitize failed";
    SANITIZE_IN_PROGRESS = 0, 0x1D, "sanitize in progress";
    SGL_DATA_BLOCK_GRANULARITY_INVALID = 0, 0x1E, "SGL data block granularity invalid";
    NAMESPACE_WRITE_PROTECTED = 0, 0x20, "namespace is write protected";
    COMMAND_INTERRUPTED = 0, 0x21, "command interrupted";
    TRANSIENT_TRANSPORT = 0, 0x22, "transient transport error";
    ADMIN_MEDIA_NOT_READY = 0, 0x24, "admin command media not ready";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA out of range";
    CAPACITY_EXCEEDED = 0, 0x81, "capacity exceeded";
    NAMESPACE_NOT_READY = 0, 0x82, "namespace not ready";
    RESERVATION_CONFLICT = 0, 0x83, "reservation conflict";
    FORMAT_IN_PROGRESS = 0, 0x84, "format in progress";
    INVALID_QUEUE_ID = 1, 0x01, "invalid queue identifier";
    INVALID_QUEUE_SIZE = 1, 0x02, "invalid queue size";
    ABORT_LIMIT_EXCEEDED = 1, 0x03, "abort command limit exceeded";
    AER_LIMIT_EXCEEDED = 1, 0x05, "asynchronous event request limit exceeded";
    INVALID_FIRMWARE_SLOT = 1, 0x06, "invalid firmware slot";
    INVALID_FIRMWARE_IMAGE = 1, 0x07, "invalid firmware image";
    INVALID_LOG_PAGE = 1, 0x09, "invalid log page";
    INVALID_FORMAT = 1, 0x0A, "invalid format";
    FEATURE_NOT_SAVEABLE = 1, 0x0D, "feature identifier not saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0E, "feature not changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1, 0x0F, "feature not namespace specific";
    NAMESPACE_NOT_ATTACHED = 1, 0x1A, "namespace not attached";
    INVALID_CONTROLLER_ID = 1, 0x1F, "invalid controller identifier";
    ANA_GROUP_ID_INVALID = 1, 0x24, "ANA group identifier invalid";
    COMMAND_SET_NOT_SUPPORTED = 1, 0x29, "I/O command set not supported";
    COMMAND_SET_NOT_ENABLED = 1, 0x2A, "I/O command set not enabled";
    COMMAND_SET_COMBINATION_REJECTED = 1, 0x2B, "I/O command set combination rejected";
    INVALID_COMMAND_SET = 1, 0x2C, "invalid I/O command set";
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80, "connect incompatible format";
    CONTROLLER_BUSY = 1, 0x81, "connect controller busy";
    CONNECT_INVALID_PARAMETERS = 1, 0x82, "connect invalid parameters";
    RESTART_DISCOVERY = 1, 0x83, "connect restart discovery";
    CONNECT_INVALID_HOST = 1, 0x84, "connect invalid host";
    INVALID_QUEUE_TYPE = 1, 0x85, "invalid queue type";
    OVERLAPPING_RANGE = 1, 0x87, "overlapping I/O range";
    DISCOVERY_RESTART = 1, 0x90, "discover restart";
    AUTH_REQUIRED = 1, 0x91, "authentication required";
    WRITE_FAULT = 2, 0x80, "write fault";
    UNRECOVERED_READ = 2, 0x81, "unrecovered read error";
    GUARD_CHECK = 2, 0x82, "end-to-end guard check error";
    APPLICATION_TAG_CHECK = 2, 0x83, "end-to-end application tag check error";
    REFERENCE_TAG_CHECK = 2, 0x84, "end-to-end reference tag check error";
    COMPARE_FAILURE = 2, 0x85, "compare failure";
    ACCESS_DENIED = 2, 0x86, "access denied";
    DEALLOCATED_BLOCK = 2, 0x87, "deallocated or unwritten logical block";
    PATH_INTERNAL = 3, 0x00, "internal path error";
    ANA_PERSISTENT_LOSS = 3, 0x01, "asymmetric access persistent loss";
    ANA_INACCESSIBLE = 3, 0x02, "asymmetric access inaccessible";
    ANA_TRANSITION = 3, 0x03, "asymmetric access transition";
    CONTROLLER_PATHING = 3, 0x60, "controller pathing error";
    HOST_PATHING = 3, 0x70, "host pathing error";
    ABORTED_BY_HOST = 3, 0x71, "command aborted by host";
}

impl Status {
    /// Status 1/80 of an I/O command: conflicting attributes. [NVM-1.0 §3]
    pub const CONFLICTING_ATTRIBUTES: Self = Self::new(1, 0x80);
    /// Status 1/81 of an I/O command: invalid protection information. [NVM-1.0 §3]
    pub const INVALID_PROTECTION_INFORMATION: Self = Self::new(1, 0x81);
    /// Status 1/82 of an I/O command: attempted write to read only range. [NVM-1.0 §3]
    pub const READ_ONLY_RANGE: Self = Self::new(1, 0x82);
    /// Status 1/83 of an I/O command: command size limit exceeded. [NVM-1.0 §3]
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Self = Self::new(1, 0x83);
}

impl Default for Status {
    fn default() -> Self {
        Self::SUCCESS
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:x}/{:02x} {}",
            self.sct(),
            self.sc(),
            self.name().unwrap_or("unknown")
        )?;
        if self.is_dnr() {
            f.write_str(" (do not retry)")
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn display_names_code_and_retry_advice() {
        let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
        assert_eq!(
            status.to_string(),
            "1/82 connect invalid parameters (do not retry)"
        );
        let overlap = Status::OVERLAPPING_RANGE.to_string();
        assert_eq!(overlap, "1/87 overlapping I/O range");
        assert_eq!(Status::new(7, 0xFE).to_string(), "7/fe unknown");
    }

    #[test]
    fn wire_form_puts_code_above_phase_bit() {
        assert_eq!(Status::SUCCESS.wire(), 0);
        assert_eq!(Status::INVALID_FIELD.wire(), 0x0004);
        assert_eq!(Status::INVALID_FIELD.dnr().wire(), 0x8004);
        assert_eq!(Status::CONNECT_INVALID_HOST.dnr().wire(), 0x8308);
        assert_eq!(Status::COMMAND_INTERRUPTED.retry_delay(2).wire(), 0x2042);
        assert_eq!(Status::INTERNAL.more().wire(), 0x400C);
    }

    #[test]
    fn every_wire_value_round_trips() {
        for wire in 0..=u16::MAX {
            let status = Status::from_wire(wire);
            assert_eq!(status.wire(), wire & !1);
            let rebuilt = Status::new(status.sct(), status.sc()).retry_delay(status.crd());
            let rebuilt = if status.is_dnr() {
                rebuilt.dnr()
            } else {
                rebuilt
            };
            let rebuilt = if status.is_more() {
                rebuilt.more()
            } else {
                rebuilt
            };
            assert_eq!(rebuilt, status);
        }
    }

    #[test]
    fn same_code_ignores_retry_advice() {
        assert!(
            Status::INVALID_FIELD
                .dnr()
                .more()
                .same_code(Status::INVALID_FIELD)
        );
        assert!(!Status::INVALID_FIELD.same_code(Status::INVALID_OPCODE));
        assert!(Status::SUCCESS.more().is_success());
        assert!(Status::ANA_TRANSITION.is_path_error());
    }
}
