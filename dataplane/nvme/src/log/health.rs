//! Error Information, SMART and Firmware Slot logs. [BASE-2.0 §5.16.1.2 to §5.16.1.4]

use crate::layout::layout;
use crate::{CommandId, NamespaceId, QueueId, Status};

layout! {
    /// One entry of the Error Information log, LID 01h; the newest comes first.
    /// [BASE-2.0 §5.16.1.2]
    pub struct ErrorLogEntry: 64 bytes {
        /// Error Count: number of this error over the controller's life; 0 is no entry.
        error_count: u64 = 0,
        /// Submission Queue ID.
        sqid: u16 = 8,
        /// Command ID.
        cid: u16 = 10,
        /// Status Field as in the CQE, phase tag in bit 0. See [`ErrorLogEntry::status`].
        status_field: u16 = 12,
        /// Parameter Error Location: byte 7:0 and bit 10:8 in the command; FFFFh is none.
        parameter_error_location: u16 = 14,
        /// LBA of the first failed block.
        lba: u64 = 16,
        /// Namespace.
        nsid: NamespaceId = 24,
        /// Vendor Specific Information Available: a log page, or 0.
        vendor_log: u8 = 28,
        /// Transport Type: as in the discovery log; 3 is TCP.
        trtype: u8 = 29,
        /// Command Specific Information.
        command_specific: u64 = 32,
        /// Transport Type Specific Information.
        transport_specific: u16 = 40,
    }
}

impl ErrorLogEntry {
    /// Parameter Error Location: none.
    pub const NO_LOCATION: u16 = 0xFFFF;

    /// How the command ended.
    pub const fn status(&self) -> Status {
        Status::from_wire(self.status_field)
    }

    /// An entry for a command that ended with `status`.
    pub fn new(error_count: u64, sqid: QueueId, cid: CommandId, status: Status) -> Self {
        Self {
            error_count,
            sqid: sqid.0,
            cid: cid.0,
            status_field: status.wire(),
            parameter_error_location: Self::NO_LOCATION,
            ..Self::default()
        }
    }
}

layout! {
    /// SMART / Health Information, LID 02h. [BASE-2.0 §5.16.1.3]
    pub struct SmartLog: 512 bytes {
        /// Critical Warning: `WARNING_*`.
        critical_warning: u8 = 0,
        /// Composite Temperature in kelvin.
        composite_temperature: u16 = 1,
        /// Available Spare in percent.
        available_spare: u8 = 3,
        /// Available Spare Threshold in percent.
        available_spare_threshold: u8 = 4,
        /// Percentage Used, may exceed 100.
        percentage_used: u8 = 5,
        /// Endurance Group Critical Warning Summary.
        endurance_group_warning: u8 = 6,
        /// Data Units Read, in 1000 × 512 bytes, rounded up.
        data_units_read: u128 = 32,
        /// Data Units Written, in 1000 × 512 bytes, rounded up.
        data_units_written: u128 = 48,
        /// Host Read Commands.
        host_read_commands: u128 = 64,
        /// Host Write Commands.
        host_write_commands: u128 = 80,
        /// Controller Busy Time in minutes.
        controller_busy_minutes: u128 = 96,
        /// Power Cycles.
        power_cycles: u128 = 112,
        /// Power On Hours.
        power_on_hours: u128 = 128,
        /// Unsafe Shutdowns.
        unsafe_shutdowns: u128 = 144,
        /// Media and Data Integrity Errors.
        media_errors: u128 = 160,
        /// Number of Error Information Log Entries over the controller's life.
        error_log_entries: u128 = 176,
        /// Warning Composite Temperature Time in minutes.
        warning_temperature_minutes: u32 = 192,
        /// Critical Composite Temperature Time in minutes.
        critical_temperature_minutes: u32 = 196,
        /// Temperature Sensors 1 to 8 in kelvin; 0 is none.
        temperature_sensors: [u16; 8] = 200,
    }
}

impl SmartLog {
    /// Critical Warning: spare below the threshold.
    pub const WARNING_SPARE: u8 = 1 << 0;
    /// Critical Warning: temperature.
    pub const WARNING_TEMPERATURE: u8 = 1 << 1;
    /// Critical Warning: reliability degraded.
    pub const WARNING_RELIABILITY: u8 = 1 << 2;
    /// Critical Warning: all media is read only.
    pub const WARNING_READ_ONLY: u8 = 1 << 3;

    /// Data units for `bytes`: thousands of 512 bytes, rounded up.
    pub const fn data_units(bytes: u128) -> u128 {
        bytes.div_ceil(512_000)
    }
}

layout! {
    /// Firmware Slot Information, LID 03h. [BASE-2.0 §5.16.1.4]
    pub struct FirmwareSlotLog: 512 bytes {
        /// Active Firmware Info: active slot in bits 2:0, slot after next reset in bits 6:4.
        afi: u8 = 0,
        /// Firmware Revision of slots 1 to 7, ASCII; zeroes are an empty slot.
        frs: [[u8; 8]; 7] = 8,
    }
}
