//! What a kernel error means for a request: the only such mapping of this engine.

use bowline_block::{IoError, Op};

/// The meaning of `errno` for a request that does `op`.
pub(crate) fn io_error(errno: i32, op: Op) -> IoError {
    let medium = if op == Op::Read {
        IoError::MediaRead
    } else {
        IoError::MediaWrite
    };
    match errno {
        // The block layer's codes for a failed medium, target or integrity check, and the general
        // one.
        libc::EIO | libc::ENODATA | libc::EREMOTEIO | libc::EILSEQ => medium,
        libc::ETIMEDOUT | libc::ENOLINK => IoError::TimedOut,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoError::NoSpace,
        libc::EROFS | libc::EPERM | libc::EACCES => IoError::ReadOnly,
        libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM | libc::ESHUTDOWN => IoError::Vanished,
        libc::EOPNOTSUPP | libc::ENOSYS => IoError::Unsupported,
        libc::ECANCELED | libc::EINTR | libc::EAGAIN => IoError::Aborted,
        _ => IoError::Internal,
    }
}

/// The meaning of `errno` for a sync. What was lost is reported by one sync only, whichever number
/// it chooses: the next would succeed without the data. So none is to be repeated, neither here nor
/// by the host, as if nothing had happened.
pub(crate) fn sync_error(errno: i32) -> IoError {
    if is_transient(errno) || errno == libc::ECANCELED {
        return IoError::MediaWrite;
    }
    io_error(errno, Op::Flush)
}

/// Whether the kernel says that it does not know how, so that another way may work.
pub(crate) const fn is_unsupported(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
}

/// Whether the same call may succeed when it is made again.
pub(crate) const fn is_transient(errno: i32) -> bool {
    matches!(errno, libc::EINTR | libc::EAGAIN | libc::ENOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_error_has_its_meaning() {
        let cases = [
            (libc::EIO, IoError::MediaRead, IoError::MediaWrite),
            (libc::ENODATA, IoError::MediaRead, IoError::MediaWrite),
            (libc::ENOSPC, IoError::NoSpace, IoError::NoSpace),
            (libc::EDQUOT, IoError::NoSpace, IoError::NoSpace),
            (libc::EROFS, IoError::ReadOnly, IoError::ReadOnly),
            (libc::ENODEV, IoError::Vanished, IoError::Vanished),
            (libc::ENXIO, IoError::Vanished, IoError::Vanished),
            (libc::ETIMEDOUT, IoError::TimedOut, IoError::TimedOut),
            (libc::EOPNOTSUPP, IoError::Unsupported, IoError::Unsupported),
            (libc::ECANCELED, IoError::Aborted, IoError::Aborted),
            (libc::EINVAL, IoError::Internal, IoError::Internal),
            (libc::EBADF, IoError::Internal, IoError::Internal),
        ];
        for (errno, reading, writing) in cases {
            assert_eq!(io_error(errno, Op::Read), reading, "errno {errno}");
            for op in [Op::Write, Op::Flush, Op::Deallocate] {
                assert_eq!(io_error(errno, op), writing, "errno {errno}");
            }
        }
    }

    #[test]
    fn no_error_of_a_sync_reads_as_a_request_that_may_be_repeated() {
        for errno in [libc::EINTR, libc::EAGAIN, libc::ENOMEM, libc::ECANCELED] {
            assert_eq!(sync_error(errno), IoError::MediaWrite, "errno {errno}");
        }
        assert_eq!(sync_error(libc::ENOSPC), IoError::NoSpace);
        assert_eq!(sync_error(libc::ENODEV), IoError::Vanished);
    }
}
