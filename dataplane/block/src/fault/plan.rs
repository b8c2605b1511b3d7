//! What is to go wrong.

use bowline_nvme::Nanos;

/// How long a request takes before the device below sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Latency {
    /// No time.
    #[default]
    None,
    /// Always the same.
    Fixed(Nanos),
    /// Evenly distributed, both ends included.
    Uniform {
        /// The shortest.
        min: Nanos,
        /// The longest.
        max: Nanos,
    },
    /// Mostly short, rarely long: a drive that collects its garbage.
    Tail {
        /// What most requests take.
        usual: Nanos,
        /// What the others take.
        rare: Nanos,
        /// How many take `rare`, of a million.
        rare_per_million: u32,
    },
}

/// How many requests of each kind fail, of a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorRates {
    /// Reads, with [`IoError::MediaRead`](crate::IoError::MediaRead).
    pub read_per_million: u32,
    /// Writes, compare-and-writes and write-zeroes, with [`IoError::MediaWrite`](crate::IoError::MediaWrite); nothing is
    /// written.
    pub write_per_million: u32,
    /// Flushes, with [`IoError::MediaWrite`](crate::IoError::MediaWrite); nothing becomes durable.
    pub flush_per_million: u32,
    /// Deallocations, with [`IoError::MediaWrite`](crate::IoError::MediaWrite); nothing is deallocated.
    pub deallocate_per_million: u32,
}

/// A volatile write cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// Unflushed bytes it holds at most; beyond that the oldest completed writes become durable.
    pub bytes_max: usize,
    /// How many unflushed writes a crash loses as a whole, of a million.
    pub lost_per_million: u32,
    /// How many of the others it tears, of a million: about half of the logical blocks are
    /// written, any half. A write no longer than the atomic write unit is never torn.
    pub torn_per_million: u32,
}

/// What is to go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Every choice follows from it.
    pub seed: u64,
    /// Latency of reads.
    pub read_latency: Latency,
    /// Latency of flushes.
    pub flush_latency: Latency,
    /// Latency of everything else.
    pub write_latency: Latency,
    /// Failures.
    pub errors: ErrorRates,
    /// The volatile cache that [`FaultDevice::crash`](super::FaultDevice::crash) loses; without one a crash loses only what
    /// was not completed.
    pub cache: Option<CachePlan>,
}

/// What a crash did to the unflushed writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashReport {
    /// Writes that survived.
    pub kept: u64,
    /// Writes of which nothing survived.
    pub lost: u64,
    /// Writes of which a part survived.
    pub torn: u64,
}
