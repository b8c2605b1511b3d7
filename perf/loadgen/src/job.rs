//! What to do, checked as far as that is possible without a controller.

use std::net::SocketAddr;

use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_reactor::IoBackend;

use crate::arrivals::Spacing;
use crate::error::PerfError;
use crate::pattern::Pattern;
use crate::units::show_size;

/// Most commands outstanding on one queue: 4096 entries, of which one stays empty.
pub const QUEUE_DEPTH_MAX: u16 = 4095;
/// Most commands outstanding at once, and so buffers.
const OUTSTANDING_MAX: u64 = 1 << 20;
/// Most memory for the data of outstanding commands, in bytes.
const BUFFER_BYTES_MAX: u64 = 16 << 30;

/// Which commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Both, in random order.
    Mixed {
        /// Of a hundred commands, this many are reads.
        read_percent: u8,
    },
    /// Deallocations (Dataset Management), each of one range.
    Deallocate,
}

impl Workload {
    /// As the flag says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed { .. } => "mixed",
            Self::Deallocate => "deallocate",
        }
    }

    /// Of a hundred commands, this many are reads.
    #[must_use]
    pub const fn read_percent(self) -> u8 {
        match self {
            Self::Read => 100,
            Self::Write | Self::Deallocate => 0,
            Self::Mixed { read_percent } => read_percent,
        }
    }
}

/// When the next command starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As soon as an earlier one is back.
    Closed,
    /// At times of its own.
    Open {
        /// Commands per second, above 0.
        per_second: u64,
        /// How they are spaced.
        spacing: Spacing,
    },
}

/// What a thread that waits for answers does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// Looks for them all the time: one core at 100 %.
    Spin,
    /// Sleeps until the kernel wakes it.
    Park,
    /// Sleeps for short times by the clock, and nobody has to wake it: for larger batches.
    Doze,
}

impl Poll {
    /// As the flag says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Park => "park",
            Self::Doze => "doze",
        }
    }
}

/// Where the data of writes comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// One buffer for all: what is written is always the same, and read from the closest cache.
    Shared,
    /// A buffer for each command, filled anew for every write.
    Own,
}

impl Payload {
    /// As the report says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Own => "own",
        }
    }
}

/// The load.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Which commands.
    pub workload: Workload,
    /// Where.
    pub pattern: Pattern,
    /// When.
    pub pace: Pace,
    /// Bytes of one command.
    pub block_bytes: u32,
    /// Commands outstanding on each queue.
    pub queue_depth: u16,
    /// Associations, each with a controller of its own.
    pub connections: u16,
    /// I/O queues of each association.
    pub queues: u16,
    /// Time before counting begins.
    pub warm_up: Nanos,
    /// Time that is counted.
    pub duration: Nanos,
    /// Count exactly so many commands instead, however long they take. In a closed loop only.
    pub commands: Option<u64>,
    /// What waiting is like.
    pub poll: Poll,
    /// Core to run on.
    pub core: Option<usize>,
    /// Decides addresses, mix and arrivals.
    pub seed: u64,
    /// The part of the namespace that is used, from its start; all of it if not given.
    pub span_bytes: Option<u64>,
    /// Write blocks that describe themselves, and check every block that is read.
    pub verify: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            workload: Workload::Read,
            pattern: Pattern::Random,
            pace: Pace::Closed,
            block_bytes: 4096,
            queue_depth: 32,
            connections: 1,
            queues: 1,
            warm_up: Nanos::from_millis(50),
            duration: Nanos::from_secs(1),
            commands: None,
            poll: Poll::Spin,
            core: None,
            seed: 1,
            span_bytes: None,
            verify: false,
        }
    }
}

impl Load {
    /// Whether there are commands that read.
    pub(crate) fn reads(&self) -> bool {
        self.verify || matches!(self.workload, Workload::Read | Workload::Mixed { .. })
    }

    /// Whether there are commands that write.
    pub(crate) fn writes(&self) -> bool {
        self.verify || self.workload != Workload::Read
    }

    /// Where the data of writes comes from, if there are any. Only what is verified has to differ.
    #[must_use]
    pub fn write_payload(&self) -> Option<Payload> {
        match (self.writes(), self.verify) {
            (false, _) => None,
            _ if self.workload == Workload::Deallocate => None,
            (true, true) => Some(Payload::Own),
            (true, false) => Some(Payload::Shared),
        }
    }

    /// Commands outstanding at once.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        u64::from(self.queue_depth) * u64::from(self.connections) * u64::from(self.queues)
    }

    fn check_verify(&self) -> Result<(), PerfError> {
        if self.verify && self.workload == Workload::Deallocate {
            return Err(PerfError::usage("--verify given with deallocations")
                .cause("what is deallocated holds nothing to verify")
                .hint("leave --verify out"));
        }
        Ok(())
    }

    /// Refuses what no controller could do.
    ///
    /// # Errors
    /// What is wrong, and what to do about it.
    pub fn check(&self) -> Result<(), PerfError> {
        let refuse = |what: String| Err(PerfError::usage(what));
        self.check_verify()?;
        if self.block_bytes == 0 || !self.block_bytes.is_multiple_of(512) {
            let what = format!(
                "block size of {} not possible",
                show_size(self.block_bytes.into())
            );
            return refuse(what).map_err(|error| {
                error
                    .cause("a command reads or writes whole logical blocks, of 512 bytes at least")
                    .hint("give a multiple of 512 bytes, such as --block-size 4KiB")
            });
        }
        if self.queue_depth == 0 || self.queue_depth > QUEUE_DEPTH_MAX {
            return refuse(format!("queue depth of {} not possible", self.queue_depth)).map_err(
                |error| {
                    error
                        .cause("a queue holds 1 to 4095 commands")
                        .hint("for more outstanding commands, add --queues or --connections")
                },
            );
        }
        if self.connections == 0 || self.queues == 0 {
            return refuse("neither --connections nor --queues can be 0".to_owned());
        }
        let (count, bytes) = (
            self.outstanding(),
            self.outstanding() * u64::from(self.block_bytes),
        );
        if count > OUTSTANDING_MAX || bytes > BUFFER_BYTES_MAX {
            let what = format!(
                "{count} outstanding commands of {} not possible",
                show_size(self.block_bytes.into())
            );
            return refuse(what).map_err(|error| {
                error
                    .cause("at most 1048576 commands and 16 GiB of their data fit in memory")
                    .hint("lower --queue-depth, --connections, --queues or --block-size")
            });
        }
        if self.duration == Nanos::ZERO {
            return refuse("--duration cannot be 0".to_owned());
        }
        if self.commands == Some(0) {
            return refuse("--commands cannot be 0".to_owned());
        }
        if self.commands.is_some() && self.pace != Pace::Closed {
            return refuse("a number of commands at a fixed rate not possible".to_owned()).map_err(
                |error| {
                    error
                        .cause("an open loop counts what was to start in a span of time")
                        .hint("give --duration with --rate, or leave --rate out")
                },
            );
        }
        if let Some(span) = self.span_bytes
            && span < u64::from(self.block_bytes)
        {
            return refuse(format!(
                "a span of {} does not hold one block",
                show_size(span)
            ))
            .map_err(|error| error.hint("give a --span of at least the --block-size"));
        }
        Ok(())
    }
}

/// The load, and where it goes.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where the subsystem is.
    pub address: SocketAddr,
    /// Its name.
    pub subsystem: Nqn,
    /// Our name.
    pub host: Nqn,
    /// Our identifier.
    pub host_id: [u8; 16],
    /// Which namespace.
    pub namespace: NamespaceId,
    /// Which checksums the connections carry.
    pub digests: Digests,
    /// Which engine moves bytes.
    pub io: IoBackend,
    /// The load.
    pub load: Load,
}
