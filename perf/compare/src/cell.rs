//! What is measured: a workload, and how much of a core the target may have.

use serde::{Deserialize, Serialize};

pub(crate) const KIB: u32 = 1024;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    Read,
    Write,
}

impl Workload {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// One row of the table: random I/O over one connection, closed loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) workload: Workload,
    pub(crate) block_bytes: u32,
    pub(crate) queue_depth: u32,
    /// Header and data digests.
    pub(crate) digests: bool,
    /// The target is held to half a core, so that it is what limits, and its cost is compared.
    pub(crate) half_core: bool,
}

impl Cell {
    /// The name it is chosen and reported by, such as `read-4k-qd32-digests-half-core`.
    pub(crate) fn name(&self) -> String {
        let mut name = format!(
            "{}-{}k-qd{}",
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

    /// Every cell, unthrottled first.
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
            })
        });
        cells.collect()
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
}

impl Subject {
    pub(crate) fn all() -> Vec<Self> {
        let cells = Cell::all().into_iter().map(Self::Cell);
        cells
            .chain([Self::Idle, Self::FirstIo, Self::Memory])
            .collect()
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Cell(cell) => cell.name(),
            Self::Idle => "idle".to_owned(),
            Self::FirstIo => "first-io".to_owned(),
            Self::Memory => "memory".to_owned(),
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
    fn every_subject_is_found_by_its_name() {
        let all = Subject::all();
        assert_eq!(all.len(), 21);
        for subject in all {
            assert_eq!(Subject::parse(&subject.name()), Ok(subject));
        }
        assert!(
            Subject::parse("read-3k-qd1")
                .unwrap_err()
                .contains("read-4k-qd1")
        );
    }
}
