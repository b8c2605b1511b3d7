//! The pool: one drive shared by many thin volumes, described by itself.
#![forbid(unsafe_code)]

/// The format on the drive.
pub mod format;
/// The state of a pool in memory.
pub mod map;
/// Looking at a pool that is not in use.
pub mod offline;
mod pool;

pub use pool::{
    ChecksumCounts, FormatOptions, Found, Mismatch, OpenError, OpenOptions, Operation, Outcome,
    Pool, PoolError, PoolEvent, Provisioning, Recovery, RecoveryPhase, ScrubOptions, ScrubReport,
    ScrubState, SnapshotInfo, Usage, Volume, VolumeInfo, VolumeSpec,
};
