//! What a data plane is started with.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use bowline_reactor::{IoBackend, PollMode};

/// Largest transfer of one command in bytes (MDTS), the default and the most.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Data a command capsule may carry in bytes, the default and the most.
pub const IN_CAPSULE_DATA_BYTES: u32 = 16 << 10;
/// Logical block size of memory in bytes, when nobody says.
pub const MEMORY_BLOCK_BYTES: u32 = 4096;
/// Commands of one I/O queue at a time, the default and the most.
pub const QUEUE_DEPTH: u16 = 128;

/// Everything a data plane is started with. Nothing is read from the environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// What namespace 1 is backed by.
    pub backing: BackingConfig,
    /// Logical block size in bytes, 512 or 4096; `None` takes the backing's own.
    pub block_bytes: Option<u32>,
    /// Where NVMe/TCP connections are accepted; at least one. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// What discovery tells hosts; `None` tells each the address it came in on.
    pub advertise: Option<SocketAddr>,
    /// Where the management API listens. Port 0 takes a free one.
    pub rpc: SocketAddr,
    /// Where metrics are served. Port 0 takes a free one.
    pub metrics: SocketAddr,
    /// Name of the node.
    pub node: String,
    /// NQN of the first subsystem; `None` derives it from node and device.
    pub nqn: Option<String>,
    /// Who may connect to it. Nobody is allowed by default.
    pub hosts: Vec<String>,
    /// CPUs, one pinned reactor each; empty runs one reactor that is not pinned.
    pub cores: Vec<usize>,
    /// Kernel interface for I/O.
    pub io: IoBackend,
    /// Whether reactors spin.
    pub poll: PollMode,
    /// Paths that may back namespaces made over the management API.
    pub allow_paths: Vec<PathBuf>,
    /// Limits towards hosts.
    pub limits: Limits,
}

/// What backs a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackingConfig {
    /// A block device or a file.
    Path(PathBuf),
    /// Memory of the process.
    Memory {
        /// Size in bytes, a positive multiple of the block size.
        size_bytes: u64,
    },
}

impl BackingConfig {
    /// The path, unless it is memory.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Memory { .. } => None,
        }
    }
}

impl fmt::Display for BackingConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Memory { size_bytes } => write!(f, "{size_bytes} bytes of memory"),
        }
    }
}

/// Limits towards hosts; each may only be lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest transfer of one command in bytes: a power of two, 4 KiB to
    /// [`MAX_TRANSFER_BYTES`].
    pub max_transfer_bytes: u32,
    /// Data a command capsule may carry in bytes: a multiple of 16, up to
    /// [`IN_CAPSULE_DATA_BYTES`].
    pub in_capsule_data_bytes: u32,
    /// Commands of one I/O queue at a time: 16 to [`QUEUE_DEPTH`].
    pub queue_depth: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            in_capsule_data_bytes: IN_CAPSULE_DATA_BYTES,
            queue_depth: QUEUE_DEPTH,
        }
    }
}
