//! System calls that take raw numbers or memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use bowline_block::IoBuf;
use bowline_reactor::DiskOpKind;
use rustix::fs::FallocateFlags;

// From linux/fs.h; libc does not name them for every architecture.
const BLKROGET: libc::c_ulong = 0x125E;
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKIOOPT: libc::c_ulong = 0x1279;
const BLKPBSZGET: libc::c_ulong = 0x127B;
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Size of a block device in bytes.
pub(crate) fn device_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: BLKGETSIZE64 stores one u64 at the address.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(bytes)
    }
}

/// Logical sector size of a block device in bytes.
pub(crate) fn logical_block_bytes(fd: BorrowedFd<'_>) -> io::Result<u32> {
    ioctl_u32(fd, BLKSSZGET)
}

/// Physical sector size of a block device in bytes.
pub(crate) fn physical_block_bytes(fd: BorrowedFd<'_>) -> io::Result<u32> {
    ioctl_u32(fd, BLKPBSZGET)
}

/// Preferred request size of a block device in bytes, 0 when it has none.
pub(crate) fn optimal_io_bytes(fd: BorrowedFd<'_>) -> io::Result<u32> {
    ioctl_u32(fd, BLKIOOPT)
}

/// Whether a block device is write-protected.
pub(crate) fn is_write_protected(fd: BorrowedFd<'_>) -> io::Result<bool> {
    ioctl_u32(fd, BLKROGET).map(|flag| flag != 0)
}

/// Takes a lock on a file that belongs to this opening of it and ends with it, alone or with
/// others that do not ask to be alone. Other kinds of locks do not see it.
pub(crate) fn try_lock(fd: BorrowedFd<'_>, alone: bool) -> io::Result<()> {
    let kind = if alone { libc::F_WRLCK } else { libc::F_RDLCK };
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or_default();
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    lock.l_len = 1;
    // SAFETY: F_OFD_SETLK reads one structure from the address.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn ioctl_u32(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<u32> {
    let mut value = 0_u32;
    // SAFETY: the requests above that come here store one 32-bit integer at the address.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut value) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Reads into `buf` and waits: bytes read, or a negated errno.
pub(crate) fn read(fd: BorrowedFd<'_>, buf: &mut IoBuf, offset: u64) -> i32 {
    let iov = libc::iovec {
        iov_len: buf.len(),
        iov_base: buf.as_mut_ptr().cast(),
    };
    // SAFETY: `buf` is the only view of its buffer and borrowed exclusively during the call.
    unsafe { execute(fd, DiskOpKind::Read, offset, &[iov]) }
}

/// Executes one request and waits for it: bytes moved or 0, or a negated errno, as a ring says it.
///
/// # Safety
/// Each piece of `iov` must describe memory that stays valid during the call, to be read from for
/// a write, and written to, with nobody else looking at it, for a read.
pub(crate) unsafe fn execute(
    fd: BorrowedFd<'_>,
    kind: DiskOpKind,
    offset: u64,
    iov: &[libc::iovec],
) -> i32 {
    let (Ok(position), Ok(pieces)) = (i64::try_from(offset), i32::try_from(iov.len())) else {
        return -libc::EINVAL;
    };
    let raw = fd.as_raw_fd();
    match kind {
        DiskOpKind::Read => {
            // SAFETY: the caller vouches for the memory.
            negated(unsafe { libc::preadv2(raw, iov.as_ptr(), pieces, position, 0) })
        }
        DiskOpKind::Write { dsync } => {
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            // SAFETY: the caller vouches for the memory.
            negated(unsafe { libc::pwritev2(raw, iov.as_ptr(), pieces, position, flags) })
        }
        DiskOpKind::Fsync { data_only: true } => plain(rustix::fs::fdatasync(fd)),
        DiskOpKind::Fsync { data_only: false } => plain(rustix::fs::fsync(fd)),
        DiskOpKind::Fallocate { mode, len } => {
            let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
            plain(rustix::fs::fallocate(fd, mode, offset, len))
        }
        DiskOpKind::Discard { len } => {
            let range = [offset, len];
            // SAFETY: BLKDISCARD reads two u64 from the address.
            let result = unsafe { libc::ioctl(raw, BLKDISCARD as _, range.as_ptr()) };
            negated(if result < 0 { -1 } else { 0 })
        }
    }
}

fn negated(result: isize) -> i32 {
    if result < 0 {
        return -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
    }
    // The kernel moves at most 2 GiB - 4 KiB per call.
    i32::try_from(result).unwrap_or(i32::MAX)
}

fn plain(result: rustix::io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(errno) => -errno.raw_os_error(),
    }
}
