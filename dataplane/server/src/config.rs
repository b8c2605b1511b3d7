//! What a data plane is started with.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use bowline_engine_spdk::{
    BUILD as SPDK_BUILD, Build as SpdkBuild, Options as SpdkOptions, Source as SpdkSource,
};
pub use bowline_nvmf::target::AnaState;
pub use bowline_reactor::{IoBackend, PollMode};

/// Largest transfer of one command in bytes (MDTS), the default and the most.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Data a command capsule may carry in bytes, the default and the most.
pub const IN_CAPSULE_DATA_BYTES: u32 = 16 << 10;
/// Logical block size of memory in bytes, when nobody says.
pub const MEMORY_BLOCK_BYTES: u32 = 4096;
/// Commands of one I/O queue at a time, the default and the most.
pub const QUEUE_DEPTH: u16 = 128;

/// Connections of one reactor at a time, the default and the most.
pub const CONNECTIONS_MAX: u32 = 4096;
/// Queues of one host at one reactor at a time, the default and the most.
pub const QUEUES_PER_HOST_MAX: u32 = 2048;

/// Everything a data plane is started with. Nothing is read from the environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// What is served.
    pub backing: BackingConfig,
    /// What of it.
    pub serve: Serve,
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
    /// Serial number of the first subsystem, 1 to 20 characters; `None` derives it from the NQN.
    pub serial: Option<String>,
    /// First and last controller ID of the first subsystem; `None` takes all there are.
    pub cntlids: Option<(u16, u16)>,
    /// Controllers of the first subsystem at a time; `None` takes the default.
    pub controllers_max: Option<u16>,
    /// Namespaces of the first subsystem at most; `None` takes the default.
    pub namespaces_max: Option<u32>,
    /// State in which namespace 1 is reached at first; `None` reports no ANA to hosts.
    pub ana: Option<AnaState>,
    /// UUID of namespace 1; `None` derives it from NQN and NSID.
    pub uuid: Option<[u8; 16]>,
    /// NGUID of namespace 1; `None` derives it from NQN and NSID.
    pub nguid: Option<[u8; 16]>,
    /// NQN of the discovery subsystem besides the well-known one; `None` derives it from node and
    /// first listener.
    pub discovery_nqn: Option<String>,
    /// Other discovery subsystems that hosts are pointed to.
    pub referrals: Vec<Referral>,
    /// Who may connect to it. Nobody is allowed by default.
    pub hosts: Vec<String>,
    /// CPUs, one pinned reactor each; empty runs one reactor that is not pinned.
    pub cores: Vec<usize>,
    /// Kernel interface for I/O.
    pub io: IoBackend,
    /// Whether reactors spin.
    pub poll: PollMode,
    /// How SPDK is started, which a backing of SPDK needs.
    pub spdk: Option<SpdkOptions>,
    /// Paths that may back namespaces made over the management API.
    pub allow_paths: Vec<PathBuf>,
    /// Folder for what must outlive the process: reservations that persist, counters, identity.
    pub state: Option<PathBuf>,
    /// Limits towards hosts.
    pub limits: Limits,
}

/// What of a device is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// Its pool, if it has one; else all of it, as namespace 1 of the first subsystem.
    Found,
    /// All of it, whatever it holds.
    Whole,
    /// Its pool, which is written first if the device is empty.
    Pool {
        /// Also if the device holds something, unless that is or was a pool.
        force: bool,
    },
}

/// Another discovery subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referral {
    /// Where it is.
    pub address: SocketAddr,
    /// Its NQN; `None` is the well-known one.
    pub nqn: Option<String>,
    /// It is known to take persistent connections.
    pub persistent_connections: bool,
}

/// What backs a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackingConfig {
    /// A block device or a file.
    Path {
        /// Where it is.
        path: PathBuf,
        /// Other data planes that also say so may serve it at the same time.
        shared: bool,
    },
    /// Memory of the process.
    Memory {
        /// Size in bytes, a positive multiple of the block size.
        size_bytes: u64,
    },
    /// A drive that SPDK drives, or another block device of it.
    Spdk(SpdkSource),
}

impl BackingConfig {
    /// The path, unless it is memory.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path { path, .. } => Some(path),
            Self::Memory { .. } | Self::Spdk(_) => None,
        }
    }

    /// Whether somebody else may serve it too.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Path { shared: true, .. })
    }

    /// The same, by another path.
    pub(crate) fn at(&self, path: PathBuf) -> Self {
        match self {
            Self::Path { shared, .. } => Self::Path {
                path,
                shared: *shared,
            },
            Self::Memory { .. } | Self::Spdk(_) => self.clone(),
        }
    }
}

impl fmt::Display for BackingConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, .. } => path.display().fmt(f),
            Self::Memory { size_bytes } => write!(f, "{size_bytes} bytes of memory"),
            Self::Spdk(source) => source.fmt(f),
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
    /// Connections of one reactor at a time.
    pub connections_max: u32,
    /// Queues of one host at one reactor at a time.
    pub queues_per_host_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            in_capsule_data_bytes: IN_CAPSULE_DATA_BYTES,
            queue_depth: QUEUE_DEPTH,
            connections_max: CONNECTIONS_MAX,
            queues_per_host_max: QUEUES_PER_HOST_MAX,
        }
    }
}
