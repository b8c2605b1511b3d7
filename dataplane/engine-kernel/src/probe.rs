//! What a backing is and can do, asked from the kernel.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use bowline_block::{BUFFER_ALIGN, BufPool, ClassConfig, Deallocate, PoolConfig};
use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};

use crate::sys;

/// What the kernel says about a backing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// Smallest piece direct I/O moves, in bytes; `None` where direct I/O does not work.
    pub(crate) granularity_bytes: Option<u32>,
    /// Sector size of the medium in bytes, where it is known.
    pub(crate) physical_block_bytes: Option<u32>,
    /// Preferred request size in bytes, 0 when there is none.
    pub(crate) optimal_io_bytes: u32,
    /// Whether completed writes may be lost without a flush.
    pub(crate) volatile_cache: bool,
    /// Whether it deallocates, and what is read afterwards.
    pub(crate) deallocate: Deallocate,
    /// Effective pieces of deallocation in bytes.
    pub(crate) deallocate_granularity_bytes: u32,
    /// Whether zeroes can be written without sending them.
    pub(crate) write_zeroes: bool,
    /// Whether blocks are backed only once written.
    pub(crate) thin: bool,
}

/// Asks about a block device.
pub(crate) fn block_device(fd: BorrowedFd<'_>, sysfs: &SysfsQueue) -> io::Result<Limits> {
    let logical_block_bytes = sys::logical_block_bytes(fd)?;
    let discard_bytes_max = sysfs.number("discard_max_bytes").unwrap_or(0);
    let deallocate = if discard_bytes_max > 0 {
        Deallocate::Undefined
    } else {
        Deallocate::None
    };
    let granularity = sysfs.number("discard_granularity").unwrap_or(0);
    Ok(Limits {
        bytes: sys::device_bytes(fd)?,
        granularity_bytes: Some(logical_block_bytes),
        physical_block_bytes: sys::physical_block_bytes(fd).ok(),
        optimal_io_bytes: sys::optimal_io_bytes(fd).unwrap_or(0),
        // Unless the device says that it has no cache, it has one: a needless flush is cheap, a
        // missing one loses data.
        volatile_cache: sysfs.text("write_cache").as_deref() != Some("write through"),
        deallocate,
        deallocate_granularity_bytes: u32::try_from(granularity).unwrap_or(0),
        write_zeroes: sysfs.number("write_zeroes_max_bytes").unwrap_or(0) > 0,
        thin: false,
    })
}

/// Asks about a regular file, opened with O_DIRECT when `direct`.
pub(crate) fn regular_file(
    fd: BorrowedFd<'_>,
    direct: bool,
    read_only: bool,
) -> io::Result<Limits> {
    let dio_alignment = StatxFlags::from_bits_retain(STATX_DIOALIGN);
    let stat = rustix::fs::statx(
        fd,
        "",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS | dio_alignment,
    )?;
    let granularity_bytes = match (direct, stat.stx_mask & STATX_DIOALIGN != 0) {
        (false, _) => None,
        (true, true) => Some(stat.stx_dio_offset_align).filter(|bytes| *bytes > 0),
        (true, false) => try_direct_reads(fd),
    };
    let punches = !read_only && can_punch(fd, stat.stx_size);
    Ok(Limits {
        bytes: stat.stx_size,
        granularity_bytes,
        // Unknown where files are on no device, or on several.
        physical_block_bytes: SysfsQueue::new(stat.stx_dev_major, stat.stx_dev_minor)
            .number("physical_block_size")
            .and_then(|bytes| u32::try_from(bytes).ok()),
        optimal_io_bytes: stat.stx_blksize,
        // Direct writes still leave the file system's own metadata and the drive's cache behind.
        volatile_cache: true,
        deallocate: if punches {
            Deallocate::ReadsZero
        } else {
            Deallocate::None
        },
        deallocate_granularity_bytes: if punches { stat.stx_blksize } else { 0 },
        write_zeroes: punches,
        // A hole, there now or punched later, has to find its space when it is written.
        thin: punches || stat.stx_blocks.saturating_mul(512) < stat.stx_size,
    })
}

/// `STATX_DIOALIGN`, since Linux 6.1.
const STATX_DIOALIGN: u32 = 0x2000;

/// The smallest piece that a direct read accepts: for file systems that do not tell.
fn try_direct_reads(fd: BorrowedFd<'_>) -> Option<u32> {
    let classes = vec![ClassConfig {
        bytes: BUFFER_ALIGN,
        count: 1,
    }];
    let pool = BufPool::new(PoolConfig { classes }).ok()?;
    [512_u32, 4096].into_iter().find(|bytes| {
        let Some(mut buf) = pool.alloc(usize::try_from(*bytes).unwrap_or(BUFFER_ALIGN)) else {
            return false;
        };
        sys::read(fd, &mut buf, u64::from(*bytes)) >= 0
    })
}

/// Whether the file system can release parts of a file: tried beyond its end, where nothing is.
fn can_punch(fd: BorrowedFd<'_>, file_bytes: u64) -> bool {
    const PIECE: u64 = 1 << 20;
    let Some(beyond) = file_bytes.checked_next_multiple_of(PIECE) else {
        return false;
    };
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(fd, flags, beyond, PIECE).is_ok()
}

/// The size of an open backing in bytes, now.
pub(crate) fn bytes_now(fd: impl AsFd, is_block_device: bool) -> io::Result<u64> {
    if is_block_device {
        return sys::device_bytes(fd.as_fd());
    }
    let stat = rustix::fs::fstat(fd)?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// The kernel's folder about a block device.
#[derive(Clone, Debug)]
pub(crate) struct SysfsQueue {
    device: PathBuf,
    // A partition has no queue of its own but its disk's.
    queue: PathBuf,
}

impl SysfsQueue {
    pub(crate) fn new(major: u32, minor: u32) -> Self {
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let queue = if device.join("partition").exists() {
            // Through the canonical path: the entry is a symbolic link.
            let disk = fs::canonicalize(&device)
                .ok()
                .and_then(|path| Some(path.parent()?.into()));
            disk.unwrap_or_else(|| device.clone())
        } else {
            device.clone()
        };
        Self {
            device,
            queue: queue.join("queue"),
        }
    }

    /// Whether the kernel knows the device: where sysfs is not mounted it knows none.
    pub(crate) fn exists(&self) -> bool {
        self.device.exists()
    }

    /// Whether the device refuses writes out of order.
    pub(crate) fn is_host_managed(&self) -> bool {
        self.text("zoned").as_deref() == Some("host-managed")
    }

    fn text(&self, name: &str) -> Option<String> {
        Some(
            fs::read_to_string(self.queue.join(name))
                .ok()?
                .trim()
                .to_owned(),
        )
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}
