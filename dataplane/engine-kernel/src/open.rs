//! Opening a backing: lock it, find out what it is, fix the geometry.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bowline_block::Geometry;
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::error::OpenError;
use crate::probe::{self, Limits, SysfsQueue};
use crate::sys;

/// Requests a device holds at once unless told otherwise.
const DEPTH: usize = 256;

/// Threads of a device without `io_uring` unless told otherwise.
const THREADS: usize = 4;

/// How to open a backing.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// A block device or a regular file.
    pub path: PathBuf,
    /// Logical block size in bytes, 512 or 4096. `None`: a block device's own; for a file 4096, or
    /// 512 when it holds less than that. It does not depend on a file's size otherwise: hosts keep
    /// block numbers, and the file may grow.
    pub block_bytes: Option<u32>,
    /// Open for reading only, and refuse every modifying request.
    pub read_only: bool,
    /// Let others that also say so open it at the same time. Blocks stay whole and coherent;
    /// nothing else is agreed on between them.
    pub shared: bool,
    /// Requests held at once, 1 to 1024.
    pub depth: usize,
    /// Threads that execute requests where there is no `io_uring`, 1 to 64.
    pub threads: usize,
}

impl OpenOptions {
    /// The defaults for `path`: for reading and writing, alone, 256 requests, 4 threads.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            block_bytes: None,
            read_only: false,
            shared: false,
            depth: DEPTH,
            threads: THREADS,
        }
    }
}

/// What is behind a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingKind {
    /// A block device.
    BlockDevice,
    /// A regular file.
    File,
}

/// Why I/O goes through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffered {
    /// The file system refused to open the file with O_DIRECT.
    OpenRefused,
    /// The file system says that direct I/O does not work on this file.
    FileRefused,
}

/// What a backing turned out to be, for logs and the management API.
#[derive(Clone, Debug)]
pub struct BackingInfo {
    /// As given.
    pub path: PathBuf,
    /// What it is.
    pub kind: BackingKind,
    /// Why I/O goes through the page cache; `None` when it does not.
    pub buffered: Option<Buffered>,
    /// Bytes at the end that make no whole block and are not used.
    pub unused_bytes: u64,
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// Sector size in bytes of the medium, for a file of the device that its file system is on;
    /// `None` when the kernel does not tell.
    pub physical_block_bytes: Option<u32>,
}

impl BackingInfo {
    /// Whether a power cut may leave a logical block half written, old and new: it is larger than
    /// what the medium is known to write at once. Hosts count on whole blocks.
    #[must_use]
    pub fn may_tear(&self) -> bool {
        self.physical_block_bytes
            .is_some_and(|bytes| self.block_bytes > bytes)
    }
}

/// An open and locked backing, not yet attached to a reactor. May be sent to one.
#[derive(Debug)]
pub struct Backing {
    pub(crate) file: OwnedFd,
    pub(crate) geometry: Geometry,
    pub(crate) info: BackingInfo,
    // Of a block device that sysfs knows; to tell a dead device from a bad sector.
    pub(crate) sysfs: Option<SysfsQueue>,
    pub(crate) depth: usize,
    pub(crate) threads: usize,
}

impl Backing {
    /// Opens and locks the path. The lock (O_EXCL and a range lock on block devices, `flock` on
    /// files) is held as long as the backing, or the device made from it, exists. May block.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(options: &OpenOptions) -> Result<Self, OpenError> {
        if let Some(block_bytes) = options
            .block_bytes
            .filter(|bytes| ![512, 4096].contains(bytes))
        {
            return Err(OpenError::BlockSize { block_bytes });
        }
        let path = &options.path;
        let metadata = fs::metadata(path).map_err(|error| open_error(options, error))?;
        let kind = backing_kind(path, &metadata)?;
        let (file, direct) = open_file(options, kind)?;
        lock(options, kind, &file)?;
        // Not every driver refuses to be opened for writing; all of them refuse the writes.
        if kind == BackingKind::BlockDevice
            && !options.read_only
            && sys::is_write_protected(file.as_fd()).unwrap_or(false)
        {
            return Err(OpenError::ReadOnly { path: path.clone() });
        }
        let failed = |source| OpenError::System {
            path: path.clone(),
            doing: "examine",
            source,
        };
        let sysfs = (kind == BackingKind::BlockDevice).then(|| {
            let device = metadata.rdev();
            SysfsQueue::new(rustix::fs::major(device), rustix::fs::minor(device))
        });
        if sysfs.as_ref().is_some_and(SysfsQueue::is_host_managed) {
            return Err(OpenError::Zoned { path: path.clone() });
        }
        let mut limits = match &sysfs {
            Some(sysfs) => probe::block_device(file.as_fd(), sysfs),
            None => probe::regular_file(file.as_fd(), direct, options.read_only),
        }
        .map_err(failed)?;
        let buffered = match (direct, limits.granularity_bytes) {
            (true, Some(_)) => None,
            (true, None) => Some(Buffered::FileRefused),
            (false, _) => Some(Buffered::OpenRefused),
        };
        if buffered == Some(Buffered::FileRefused) {
            clear_direct(&file).map_err(failed)?;
        }
        // What sits in the page cache is lost with the power, whatever the drive has.
        limits.volatile_cache |= buffered.is_some();
        let block_bytes = choose_block(options, kind, &limits)?;
        let info = BackingInfo {
            path: path.clone(),
            kind,
            buffered,
            unused_bytes: limits.bytes % u64::from(block_bytes),
            block_bytes,
            physical_block_bytes: limits.physical_block_bytes,
        };
        Ok(Self {
            file,
            geometry: geometry(&limits, block_bytes, options.read_only),
            info,
            sysfs: sysfs.filter(SysfsQueue::exists),
            depth: options.depth.clamp(1, 1024),
            threads: options.threads.clamp(1, 64),
        })
    }

    /// What it is, for the namespace.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What it is, for logs and the management API.
    #[must_use]
    pub const fn info(&self) -> &BackingInfo {
        &self.info
    }
}

fn backing_kind(path: &Path, metadata: &fs::Metadata) -> Result<BackingKind, OpenError> {
    let file_type = metadata.file_type();
    let found = if file_type.is_block_device() {
        return Ok(BackingKind::BlockDevice);
    } else if file_type.is_file() {
        return Ok(BackingKind::File);
    } else if file_type.is_dir() {
        "directory"
    } else if file_type.is_char_device() {
        "character device"
    } else if file_type.is_fifo() {
        "pipe"
    } else {
        "socket"
    };
    Err(OpenError::NotABacking {
        path: path.to_owned(),
        found,
    })
}

/// Opens with O_DIRECT, or without where that is refused; says which.
fn open_file(options: &OpenOptions, kind: BackingKind) -> Result<(OwnedFd, bool), OpenError> {
    let access = if options.read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    let flags = access | OFlags::CLOEXEC;
    let open = |flags| {
        rustix::fs::open(&options.path, flags, Mode::empty())
            .map_err(|errno| open_error(options, errno.into()))
    };
    let exclusive = match (kind, options.shared) {
        (BackingKind::BlockDevice, false) => OFlags::EXCL,
        (BackingKind::BlockDevice, true) => {
            // Whoever holds it for himself, a mounted file system for one, is found out so.
            drop(open(flags | OFlags::EXCL)?);
            OFlags::empty()
        }
        (BackingKind::File, _) => OFlags::empty(),
    };
    let flags = flags | exclusive;
    match rustix::fs::open(&options.path, flags | OFlags::DIRECT, Mode::empty()) {
        Ok(file) => Ok((file, true)),
        Err(rustix::io::Errno::INVAL) => Ok((open(flags)?, false)),
        Err(errno) => Err(open_error(options, errno.into())),
    }
}

fn open_error(options: &OpenOptions, source: io::Error) -> OpenError {
    let path = options.path.clone();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => OpenError::Missing { path },
        Some(libc::EBUSY) => OpenError::Busy { path, holder: None },
        Some(libc::EROFS) => OpenError::ReadOnly { path },
        Some(libc::EACCES | libc::EPERM) if !options.read_only && is_write_protected(&path) => {
            OpenError::ReadOnly { path }
        }
        Some(libc::EACCES | libc::EPERM) => {
            let access = if options.read_only {
                "reading"
            } else {
                "reading and writing"
            };
            OpenError::Permission { path, access }
        }
        Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => OpenError::NoDevice { path, source },
        _ => OpenError::System {
            path,
            doing: "open",
            source,
        },
    }
}

/// The kernel refuses to open a write-protected block device for writing with the same error as a
/// file of somebody else's.
fn is_write_protected(path: &Path) -> bool {
    let Ok(file) = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    sys::is_write_protected(file.as_fd()).unwrap_or(false)
}

fn lock(options: &OpenOptions, kind: BackingKind, file: &OwnedFd) -> Result<(), OpenError> {
    let path = &options.path;
    let operation = match options.shared {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    let failed = |source| OpenError::System {
        path: path.clone(),
        doing: "lock",
        source,
    };
    match (rustix::fs::flock(file, operation), kind) {
        (Ok(()), BackingKind::File) => Ok(()),
        (Err(rustix::io::Errno::WOULDBLOCK), BackingKind::File) => Err(OpenError::Busy {
            path: path.clone(),
            holder: lock_holder(file),
        }),
        (Err(errno), BackingKind::File) => Err(failed(errno.into())),
        // On a block device this one only asks the device manager to keep its hands off, and it
        // may be probing the device just now. O_EXCL is the lock against everybody, and the range
        // lock tells those who share from those who do not.
        (_, BackingKind::BlockDevice) => {
            let locked = sys::try_lock(file.as_fd(), !options.shared && !options.read_only);
            locked.map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => OpenError::Busy {
                    path: path.clone(),
                    holder: None,
                },
                _ => failed(error),
            })
        }
    }
}

/// Who holds the lock on the file, from the kernel's list of locks.
fn lock_holder(file: &OwnedFd) -> Option<String> {
    let inode = rustix::fs::fstat(file).ok()?.st_ino;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF": the device's number may differ from what
    // stat says (some file systems have several), so the inode alone decides.
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else {
            return None;
        };
        (place.rsplit(':').next()?.parse() == Ok(inode)).then(|| pid.to_owned())
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => Some(format!("process {pid}")),
        name => Some(format!("process {pid} ({name})")),
    }
}

fn clear_direct(file: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?)
}

fn choose_block(
    options: &OpenOptions,
    kind: BackingKind,
    limits: &Limits,
) -> Result<u32, OpenError> {
    // Through the page cache any piece will do.
    let granularity_bytes = limits.granularity_bytes.unwrap_or(1);
    let natural = match kind {
        BackingKind::BlockDevice if granularity_bytes <= 512 => 512,
        BackingKind::File if limits.bytes < 4096 && granularity_bytes <= 512 => 512,
        BackingKind::BlockDevice | BackingKind::File => 4096,
    };
    let block_bytes = options.block_bytes.unwrap_or(natural);
    let path = options.path.clone();
    if !block_bytes.is_multiple_of(granularity_bytes) {
        return Err(OpenError::Granularity {
            path,
            block_bytes,
            granularity_bytes,
        });
    }
    if limits.bytes < u64::from(block_bytes) {
        return Err(OpenError::TooSmall {
            path,
            bytes: limits.bytes,
            block_bytes,
        });
    }
    Ok(block_bytes)
}

fn geometry(limits: &Limits, block_bytes: u32, read_only: bool) -> Geometry {
    Geometry {
        block_bytes,
        blocks: limits.bytes / u64::from(block_bytes),
        volatile_cache: limits.volatile_cache,
        read_only,
        // A larger unit would have to hold at every offset, which a sector size does not promise,
        // and for writes the block layer is free to split.
        atomic_write_blocks: 1,
        optimal_io_blocks: limits
            .optimal_io_bytes
            .max(limits.physical_block_bytes.unwrap_or(0))
            / block_bytes,
        deallocate: limits.deallocate,
        deallocate_granularity_blocks: limits.deallocate_granularity_bytes / block_bytes,
        write_zeroes: limits.write_zeroes,
        thin: limits.thin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_has_its_error() {
        let options = |read_only| OpenOptions {
            read_only,
            ..OpenOptions::new("/nowhere")
        };
        let refused =
            |errno, read_only| open_error(&options(read_only), io::Error::from_raw_os_error(errno));
        let access = |error| match error {
            OpenError::Permission { access, .. } => access,
            other => panic!("{other}"),
        };
        assert_eq!(access(refused(libc::EACCES, false)), "reading and writing");
        assert_eq!(access(refused(libc::EPERM, true)), "reading");
        assert!(matches!(
            refused(libc::ENOENT, false),
            OpenError::Missing { .. }
        ));
        assert!(matches!(
            refused(libc::EBUSY, false),
            OpenError::Busy { .. }
        ));
        assert!(matches!(
            refused(libc::EROFS, false),
            OpenError::ReadOnly { .. }
        ));
        assert!(matches!(
            refused(libc::ENXIO, false),
            OpenError::NoDevice { .. }
        ));
        assert!(matches!(
            refused(libc::EMFILE, false),
            OpenError::System { doing: "open", .. }
        ));
    }
}
