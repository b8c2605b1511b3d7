//! What a status or a refusal of the library means for a request: the only such mapping of this
//! engine. Errors of devices that are not NVMe come as the nearest NVMe status.

use bowline_block::{IoError, Op};
use bowline_spdk_rs::Refusal;

/// The meaning of a status, its type and code, for a request that does `op`, of an NVMe drive or of
/// another device. Success is not asked.
pub(crate) fn io_error((code_type, code): (u8, u8), op: Op, is_drive: bool) -> IoError {
    let failed = if op == Op::Read {
        IoError::MediaRead
    } else {
        IoError::MediaWrite
    };
    let error = match code_type {
        // A drive names its medium where that is at fault. So does not the library for it, which has
        // nothing else to say of a drive that was pulled.
        GENERIC if is_drive && op != Op::Flush => generic(code, IoError::Internal),
        GENERIC => generic(code, failed),
        SPECIFIC => specific(code),
        MEDIA => media(code, failed),
        // Only the way to the medium failed: internal, at the controller, at the host.
        PATH => IoError::Aborted,
        // The maker's own, and types that are not defined: it failed, whatever it says.
        _ => failed,
    };
    // A flush tells once what was lost. No error of it may read as if it could be repeated.
    match error {
        IoError::Aborted | IoError::TimedOut if op == Op::Flush => IoError::MediaWrite,
        error => error,
    }
}

/// The meaning of a refusal of a request that is right by all that is known here.
pub(crate) fn refused(refusal: Refusal, is_inside: bool) -> IoError {
    match refusal {
        // The device has become smaller than its hosts know.
        Refusal::Invalid if !is_inside => IoError::OutOfRange,
        Refusal::ReadOnly => IoError::ReadOnly,
        Refusal::Unsupported => IoError::Unsupported,
        Refusal::Full | Refusal::Invalid | Refusal::Other(_) => IoError::Internal,
    }
}

// Status code types. [BASE-2.0 §3.3.3.2.1]
const GENERIC: u8 = 0;
const SPECIFIC: u8 = 1;
const MEDIA: u8 = 2;
const PATH: u8 = 3;

/// Generic command status. [BASE-2.0 §3.3.3.2.1.1, NVM-1.0 §4.1.1]
fn generic(code: u8, failed: IoError) -> IoError {
    match code {
        // Invalid opcode.
        0x01 => IoError::Unsupported,
        // Data transfer, internal: what devices that are not NVMe say of any failure.
        0x04 | 0x06 => failed,
        // Power loss, asked for, queue deleted, the other half of a pair; sanitized, not ready,
        // formatted; interrupted, transient: nothing is known of the medium.
        0x05 | 0x07..=0x0A | 0x1D | 0x21 | 0x22 | 0x82 | 0x84 => IoError::Aborted,
        // Namespace is write protected.
        0x20 => IoError::ReadOnly,
        // LBA out of range, capacity exceeded.
        0x80 => IoError::OutOfRange,
        0x81 => IoError::NoSpace,
        _ => IoError::Internal,
    }
}

/// Command specific status of the NVM command set. [NVM-1.0 §4.1.2]
fn specific(code: u8) -> IoError {
    match code {
        // Attempted write to a read-only range.
        0x82 => IoError::ReadOnly,
        // The command's size exceeds a limit of the drive.
        0x83 => IoError::Unsupported,
        _ => IoError::Internal,
    }
}

/// Media and data integrity errors. [NVM-1.0 §4.1.3]
fn media(code: u8, failed: IoError) -> IoError {
    match code {
        // Write fault.
        0x80 => IoError::MediaWrite,
        // Unrecovered read, guard, application tag, reference tag, deallocated block.
        0x81..=0x84 | 0x87 => IoError::MediaRead,
        0x85 => IoError::CompareMismatch,
        _ => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_meaning() {
        use IoError::{
            Aborted, CompareMismatch, Internal, MediaRead, MediaWrite, NoSpace, OutOfRange,
            ReadOnly, Unsupported,
        };
        // Type, code, of a read, of a write.
        let cases = [
            (0, 0x01, Unsupported, Unsupported),
            (0, 0x02, Internal, Internal),
            (0, 0x04, MediaRead, MediaWrite),
            (0, 0x06, MediaRead, MediaWrite),
            (0, 0x07, Aborted, Aborted),
            (0, 0x08, Aborted, Aborted),
            (0, 0x0B, Internal, Internal),
            (0, 0x20, ReadOnly, ReadOnly),
            (0, 0x80, OutOfRange, OutOfRange),
            (0, 0x81, NoSpace, NoSpace),
            (0, 0x82, Aborted, Aborted),
            (1, 0x81, Internal, Internal),
            (1, 0x82, ReadOnly, ReadOnly),
            (1, 0x83, Unsupported, Unsupported),
            (2, 0x80, MediaWrite, MediaWrite),
            (2, 0x81, MediaRead, MediaRead),
            (2, 0x82, MediaRead, MediaRead),
            (2, 0x85, CompareMismatch, CompareMismatch),
            (2, 0x86, MediaRead, MediaWrite),
            (3, 0x00, Aborted, Aborted),
            (3, 0x71, Aborted, Aborted),
            (5, 0x00, MediaRead, MediaWrite),
            (7, 0xC0, MediaRead, MediaWrite),
        ];
        for (code_type, code, reading, writing) in cases {
            let error = |op| io_error((code_type, code), op, false);
            assert_eq!(error(Op::Read), reading, "type {code_type} code {code:#x}");
            for op in [Op::Write, Op::Deallocate, Op::CompareAndWrite] {
                assert_eq!(error(op), writing, "type {code_type} code {code:#x}");
            }
        }
    }

    /// While the library still finds out that a drive was pulled, its requests end with the status of
    /// an internal error. Hosts were told of a medium that cannot be read.
    #[test]
    fn internal_error_of_a_drive_is_no_error_of_its_medium() {
        for code in [0x04, 0x06] {
            for op in [Op::Read, Op::Write, Op::Deallocate] {
                assert_eq!(io_error((0, code), op, true), IoError::Internal);
            }
            let flushed = io_error((0, code), Op::Flush, true);
            assert_eq!(flushed, IoError::MediaWrite, "it is not repeated");
        }
        assert_eq!(io_error((2, 0x81), Op::Read, true), IoError::MediaRead);
    }

    /// A host that repeats a flush would be told that all is well.
    #[test]
    fn no_error_of_a_flush_reads_as_a_request_that_may_be_repeated() {
        for code_type in 0..=7 {
            for code in 0..=0xFF {
                for is_drive in [false, true] {
                    let error = io_error((code_type, code), Op::Flush, is_drive);
                    assert!(
                        !matches!(error, IoError::Aborted | IoError::TimedOut),
                        "type {code_type} code {code:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn each_refusal_has_its_meaning() {
        assert_eq!(refused(Refusal::Invalid, false), IoError::OutOfRange);
        assert_eq!(refused(Refusal::Invalid, true), IoError::Internal);
        assert_eq!(refused(Refusal::ReadOnly, true), IoError::ReadOnly);
        assert_eq!(refused(Refusal::Unsupported, true), IoError::Unsupported);
        assert_eq!(refused(Refusal::Other(5), true), IoError::Internal);
    }
}
