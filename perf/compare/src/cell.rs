//! What is measured: a workload, and how much of a core the target may have.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) const KIB: u32 = 1024;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    Read,
    Write,
    Deallocate,
}

impl Workload {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Deallocate => "deallocate",
        }
    }
}

/// What the namespace is like when a slice begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Small, and written from end to end once.
    #[default]
    Steady,
    /// Large, and never written to.
    Blank,
    /// Written from end to end just now.
    Written,
    /// Written from end to end; then a snapshot was taken.
    Snapshot,
    /// One block of every MiB is written, just now.
    Sparse,
    /// The same, of so many MiB that no cache of checksums has them all; for all of the cell.
    Cold,
}

pub(crate) const EXTENT_BYTES: u64 = 1 << 20;
/// Commands of a slice that uses up what it needs: about as many as a slice of so many
/// milliseconds has time for.
const COMMANDS: u64 = 16 << 10;
/// Of those that come one at a time.
const COMMANDS_IN_TURN: u64 = 4 << 10;
const SLICE_MS: u64 = 120;

impl State {
    /// Every slice changes what the next one needs: each has a target of its own.
    pub(crate) const fn is_used_up(self) -> bool {
        !matches!(self, Self::Steady | Self::Cold)
    }

    /// What of the drive there is memory for before anything is written to it.
    pub(crate) const fn ground(self) -> Option<Ground> {
        match self {
            Self::Blank => Some(Ground::Heads),
            Self::Snapshot => Some(Ground::Whole),
            // What is written to is there from being filled, or nothing is written.
            Self::Steady | Self::Written | Self::Sparse | Self::Cold => None,
        }
    }

    /// Size of the namespace. In steady state larger than caches, and small enough for any machine.
    pub(crate) const fn namespace_bytes(self) -> u64 {
        match self {
            Self::Steady => 64 << 20,
            Self::Written | Self::Snapshot => 256 << 20,
            Self::Sparse => 32 << 30,
            Self::Blank | Self::Cold => 128 << 30,
        }
    }

    /// Size of the drive that a pool is made on, of which only what is written takes memory.
    pub(crate) const fn drive_bytes(self) -> u64 {
        match self {
            Self::Steady => 1 << 30,
            Self::Written | Self::Snapshot => 768 << 20,
            Self::Sparse => 40 << 30,
            Self::Blank | Self::Cold => 160 << 30,
        }
    }

    /// What is written before anything is measured.
    pub(crate) const fn fill(self) -> Option<Fill> {
        let bytes = self.namespace_bytes();
        let whole = Fill {
            block_bytes: 128 * KIB,
            queue_depth: 8,
            pattern: Pattern::Sequential,
            commands: None,
        };
        match self {
            Self::Steady => Some(whole),
            Self::Blank => None,
            Self::Written | Self::Snapshot => Some(Fill {
                commands: Some(bytes / (128 << 10)),
                ..whole
            }),
            Self::Sparse | Self::Cold => Some(Fill {
                block_bytes: 4 * KIB,
                queue_depth: 32,
                pattern: Pattern::Every(256),
                commands: Some(bytes / EXTENT_BYTES),
            }),
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Steady | Self::Written | Self::Sparse => "",
            Self::Blank => "first-",
            Self::Snapshot => "snapshot-",
            Self::Cold => "cold-",
        }
    }
}

/// Which blocks of a file are there before they are written to, as all those of a drive are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// The first one of every extent.
    Heads,
    /// All.
    Whole,
}

/// A load that prepares a namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    pub(crate) block_bytes: u32,
    pub(crate) queue_depth: u32,
    pub(crate) pattern: Pattern,
    /// So many commands, else for a fixed time.
    pub(crate) commands: Option<u64>,
}

/// Where the next command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    Sequential,
    Random,
    /// The first block of each group of so many in scattered order, then the second of each: every
    /// block once before any is repeated.
    Every(u32),
}

/// One row of the table: I/O in random order over one connection, closed loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) workload: Workload,
    pub(crate) block_bytes: u32,
    pub(crate) queue_depth: u32,
    /// Header and data digests.
    pub(crate) digests: bool,
    /// The target is held to half a core, so that it is what limits, and its cost is compared.
    pub(crate) half_core: bool,
    #[serde(default)]
    pub(crate) state: State,
}

impl Cell {
    /// The name it is chosen and reported by, such as `read-4k-qd32-digests-half-core`.
    pub(crate) fn name(&self) -> String {
        let mut name = format!(
            "{}{}-{}k-qd{}",
            self.state.prefix(),
            self.workload.word(),
            self.block_bytes / KIB,
            self.queue_depth
        );
        if self.digests {
            name.push_str("-digests");
        }
        if self.half_core {
            name.push_str("-half-core");
        }
        name
    }

    /// With one command at a time latency is the result; with many, throughput.
    pub(crate) const fn is_latency(&self) -> bool {
        self.queue_depth == 1
    }

    /// In steady state any block. Of extents of a pool that are not yet there, or whose checksums
    /// are not in memory, one block each; of what is changed for the first time each block once.
    pub(crate) const fn pattern(&self) -> Pattern {
        match self.state {
            State::Steady => Pattern::Random,
            State::Blank | State::Cold => Pattern::Every(256),
            State::Written | State::Snapshot | State::Sparse => Pattern::Every(1),
        }
    }

    /// Where commands use up what they need: so many, from the first to the last, instead of a slice
    /// that may be longer than what there is lasts. Fewer where slices are short.
    pub(crate) fn commands(&self, slice: Duration) -> Option<u64> {
        let most = match (self.state.is_used_up(), self.queue_depth) {
            (false, _) => return None,
            (true, 1) => COMMANDS_IN_TURN,
            (true, _) => COMMANDS,
        };
        let ms = u64::try_from(slice.as_millis()).unwrap_or(u64::MAX);
        Some(most * ms.min(SLICE_MS) / SLICE_MS)
    }

    /// Those of a pool alone.
    fn of_pool() -> Vec<Self> {
        use Workload::{Deallocate, Read, Write};
        let shapes = [
            (State::Blank, Write, 4, 1),
            (State::Blank, Write, 4, 32),
            (State::Snapshot, Write, 4, 32),
            (State::Written, Deallocate, 4, 32),
            (State::Sparse, Deallocate, 1024, 32),
            (State::Cold, Read, 4, 32),
            (State::Cold, Write, 4, 32),
        ];
        let cells = shapes.map(|(state, workload, kib, queue_depth)| Self {
            workload,
            block_bytes: kib * KIB,
            queue_depth,
            digests: false,
            half_core: false,
            state,
        });
        cells.to_vec()
    }

    /// Every cell, unthrottled first, those of a pool alone last.
    pub(crate) fn all() -> Vec<Self> {
        use Workload::{Read, Write};
        let shapes = [
            (Read, 4, 1, false),
            (Write, 4, 1, false),
            (Read, 4, 32, false),
            (Write, 4, 32, false),
            (Write, 8, 1, false),
            (Read, 128, 32, false),
            (Write, 128, 32, false),
            (Read, 4, 32, true),
            (Write, 4, 32, true),
        ];
        let limits = [false, true];
        let cells = limits.iter().flat_map(|&half_core| {
            shapes.map(|(workload, kib, queue_depth, digests)| Self {
                workload,
                block_bytes: kib * KIB,
                queue_depth,
                digests,
                half_core,
                state: State::Steady,
            })
        });
        cells.chain(Self::of_pool()).collect()
    }
}

/// Something that one run can measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Cell(Cell),
    /// CPU of a target with connected hosts that only send keep-alives.
    Idle,
    /// Latency of the first I/O after a pause, beyond the warm latency.
    FirstIo,
    /// Resident memory before anybody connects.
    Memory,
    /// How long writes wait while snapshots are taken.
    SnapshotPause,
    /// How fast ten thousand volumes are made, and what they take.
    Volumes,
    /// How fast a pool with the largest map there may be is opened, and what the map takes.
    Recovery,
}

impl Subject {
    pub(crate) fn all() -> Vec<Self> {
        let cells = Cell::all().into_iter().map(Self::Cell);
        cells
            .chain([Self::Idle, Self::FirstIo, Self::Memory])
            .chain([Self::SnapshotPause, Self::Volumes, Self::Recovery])
            .collect()
    }

    /// There is nothing to measure unless a pool is served.
    pub(crate) fn needs_pool(&self) -> bool {
        match self {
            Self::Cell(cell) => cell.state != State::Steady,
            Self::Idle | Self::FirstIo | Self::Memory => false,
            Self::SnapshotPause | Self::Volumes | Self::Recovery => true,
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Cell(cell) => cell.name(),
            Self::Idle => "idle".to_owned(),
            Self::FirstIo => "first-io".to_owned(),
            Self::Memory => "memory".to_owned(),
            Self::SnapshotPause => "snapshot-pause".to_owned(),
            Self::Volumes => "volumes".to_owned(),
            Self::Recovery => "recovery".to_owned(),
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        let found = Self::all().into_iter().find(|one| one.name() == name);
        found.ok_or_else(|| {
            let names: Vec<String> = Self::all().iter().map(Self::name).collect();
            format!("there are: {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_slice_needs_more_than_there_is() {
        for cell in Cell::of_pool() {
            let Some(commands) = cell.commands(Duration::MAX) else {
                continue;
            };
            assert!(cell.commands(Duration::from_millis(30)) < Some(commands));
            let Pattern::Every(group) = cell.pattern() else {
                panic!("{} meets blocks twice", cell.name());
            };
            let group_bytes = u64::from(group) * u64::from(cell.block_bytes);
            let places = cell.state.namespace_bytes() / group_bytes;
            assert!(commands <= places, "{}: {places}", cell.name());
        }
    }

    #[test]
    fn every_subject_is_found_by_its_name() {
        let all = Subject::all();
        assert_eq!(all.len(), 31);
        for subject in all {
            assert_eq!(Subject::parse(&subject.name()), Ok(subject));
        }
        let of_pool = ["first-write-4k-qd1", "deallocate-1024k-qd32", "recovery"];
        assert!(
            of_pool
                .iter()
                .all(|it| Subject::parse(it).unwrap().needs_pool())
        );
        assert!(!Subject::parse("read-4k-qd1").unwrap().needs_pool());
        assert!(
            Subject::parse("read-3k-qd1")
                .unwrap_err()
                .contains("read-4k-qd1")
        );
    }
}
