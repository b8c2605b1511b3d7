//! Why a backing could not be opened: what happened, why, and what to do.

use std::io;
use std::path::PathBuf;

/// Why a backing could not be opened. Each message names the path, the cause and a remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing is there.
    #[error(
        "{path} does not exist; check the path, or create a file for it with `truncate -s SIZE`"
    )]
    Missing {
        /// As given.
        path: PathBuf,
    },
    /// Something else than a block device or a regular file is there.
    #[error("{path} is a {found}; give a block device or a regular file")]
    NotABacking {
        /// As given.
        path: PathBuf,
        /// What it is, in words.
        found: &'static str,
    },
    /// Somebody else uses it.
    #[error(
        "{path} is in use{}; stop that user or unmount the device, or give another path",
        holder.as_deref().map(|holder| format!(" by {holder}")).unwrap_or_default()
    )]
    Busy {
        /// As given.
        path: PathBuf,
        /// Who, where the kernel tells.
        holder: Option<String>,
    },
    /// This user may not open it.
    #[error(
        "no permission to open {path} for {access}; run as a user who may (a member of its group, \
         or root), or change its mode"
    )]
    Permission {
        /// As given.
        path: PathBuf,
        /// `reading` or `reading and writing`.
        access: &'static str,
    },
    /// It is write-protected and was to be opened for writing.
    #[error(
        "{path} is write-protected; ask for a read-only namespace, or lift the protection \
         (`blockdev --setrw`, `mount -o remount,rw`)"
    )]
    ReadOnly {
        /// As given.
        path: PathBuf,
    },
    /// The device exists, but nothing is behind it.
    #[error("no device answers behind {path} ({source}); check that it is attached and powered")]
    NoDevice {
        /// As given.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A device whose zones must be written in order.
    #[error("{path} is a zoned device that must be written in order; give a device without zones")]
    Zoned {
        /// As given.
        path: PathBuf,
    },
    /// It does not hold a single logical block.
    #[error(
        "{path} holds {bytes} bytes, less than one block of {block_bytes}; give a larger device, \
         or grow the file with `truncate -s SIZE`"
    )]
    TooSmall {
        /// As given.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The block size in bytes.
        block_bytes: u32,
    },
    /// The block size asked for is not one that is served.
    #[error("a block size of {block_bytes} bytes is not served; choose 512 or 4096")]
    BlockSize {
        /// As asked.
        block_bytes: u32,
    },
    /// The backing only takes larger pieces than the block size.
    #[error(
        "{path} takes direct I/O in pieces of {granularity_bytes} bytes only, not in blocks of \
         {block_bytes}; {}",
        if *granularity_bytes <= 4096 {
            "choose a block size of 4096"
        } else {
            "no block size fits: give another device"
        }
    )]
    Granularity {
        /// As given.
        path: PathBuf,
        /// As asked, or the largest that is served.
        block_bytes: u32,
        /// Smallest piece in bytes.
        granularity_bytes: u32,
    },
    /// A system call failed in a way that has no better name.
    #[error("cannot {doing} {path}: {source}")]
    System {
        /// As given.
        path: PathBuf,
        /// What was being done, in words that fit before the path.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}
