//! The one place where a device's error becomes a status on the wire.

use bowline_block::IoError;
use bowline_nvme::Status;

/// The status for a command whose device operation failed.
///
/// DNR ("do not retry") is set exactly where the same command can never succeed while the
/// namespace stays as it is. [BASE-2.0 §3.3.3.2.1]
pub fn io_status(error: IoError) -> Status {
    match error {
        IoError::OutOfRange => Status::LBA_OUT_OF_RANGE.dnr(),
        IoError::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED.dnr(),
        IoError::NoSpace => Status::CAPACITY_EXCEEDED.dnr(),
        IoError::Unsupported => Status::INVALID_OPCODE.dnr(),
        IoError::CompareMismatch => Status::COMPARE_FAILURE.dnr(),
        // Linux retries these a few times and then reports an I/O error: right for a sector
        // that may read at the second attempt, and for a device that may come back.
        IoError::MediaRead => Status::UNRECOVERED_READ,
        IoError::MediaWrite => Status::WRITE_FAULT,
        IoError::Vanished | IoError::TimedOut | IoError::Internal => Status::INTERNAL,
        IoError::Aborted => Status::ABORTED_BY_REQUEST,
    }
}
