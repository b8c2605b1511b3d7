//! What a run leaves: one JSON document, from which tables and charts are made.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::environment::Environment;
use crate::goals::Measure;
use crate::meter::Slice;
use crate::statistics::{Better, Estimate, Verdict, judge};

/// Version of the document; readers refuse others.
pub(crate) const SCHEMA_VERSION: u32 = 2;

/// A run, or several with the same environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) schema_version: u32,
    /// Seconds since 1970, when the last part was measured.
    pub(crate) measured_at: u64,
    pub(crate) environment: Environment,
    /// The contender that the others are compared with.
    #[serde(default = "first_subject")]
    pub(crate) subject: String,
    /// Programs by role, with what they say their version is.
    pub(crate) programs: Vec<Program>,
    /// What could not be measured, and why.
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) cells: Vec<CellResult>,
    pub(crate) idle: Vec<Idle>,
    pub(crate) first_io: Vec<FirstIo>,
    pub(crate) memory: Vec<MemoryAtRest>,
    #[serde(default)]
    pub(crate) pool: Vec<PoolFigure>,
}

/// The only one while documents did not name theirs.
fn first_subject() -> String {
    "bowline-mem".to_owned()
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) role: String,
    pub(crate) version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// One cell, as one client saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellResult {
    pub(crate) name: String,
    pub(crate) cell: Cell,
    pub(crate) client: String,
    pub(crate) pairs: usize,
    pub(crate) slice_seconds: f64,
    /// So many commands instead of the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slice_commands: Option<u64>,
    pub(crate) warm_up_seconds: f64,
    pub(crate) attempted: usize,
    pub(crate) accepted: usize,
    /// Why there are no figures: the machine was not ours.
    pub(crate) unpublished: Option<String>,
    pub(crate) contenders: Vec<Summary>,
    pub(crate) comparisons: Vec<Comparison>,
    /// Every slice, in the order in which they were measured, the rejected ones too.
    pub(crate) slices: Vec<Slice>,
}

/// A contender in a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) contender: String,
    pub(crate) slices: usize,
    pub(crate) iops: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) latency_p50_ns: f64,
    pub(crate) latency_p99_ns: Option<f64>,
    pub(crate) latency_p99_9_ns: Option<f64>,
    pub(crate) cpu_seconds_per_million_io: f64,
    pub(crate) iops_per_cpu_second: f64,
    /// Share of the CPU time it was allowed that it used.
    pub(crate) busy_share: f64,
    /// It had time left, so the client, or the latency of one command, was the limit.
    pub(crate) client_bound: bool,
    pub(crate) system_calls_per_io: Option<f64>,
    pub(crate) memory_bytes: u64,
    /// IOPS as a share of the bare sockets'.
    pub(crate) share_of_limit: Option<f64>,
    /// base64 of all its slices' latencies, an `HdrHistogram` in its second format.
    pub(crate) histogram: Option<String>,
}

/// The subject against another, in every figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) subject: String,
    pub(crate) other: String,
    /// What the other stands for: `spdk-best`, `spdk-default`, `bare`, or its name.
    pub(crate) role: String,
    pub(crate) figures: Vec<FigureResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FigureResult {
    pub(crate) figure: Figure,
    pub(crate) estimate: Estimate,
    /// Ratio that the subject shows against itself; nothing below it is claimed.
    pub(crate) noise: f64,
    pub(crate) verdict: Verdict,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    Iops,
    IopsPerCpuSecond,
    LatencyP50,
    LatencyP99,
}

impl Figure {
    pub(crate) const ALL: [Self; 4] = [
        Self::Iops,
        Self::IopsPerCpuSecond,
        Self::LatencyP50,
        Self::LatencyP99,
    ];

    /// The figure that a cell is about.
    pub(crate) const fn main(cell: &Cell) -> Self {
        if cell.is_latency() {
            Self::LatencyP50
        } else {
            Self::Iops
        }
    }

    pub(crate) const fn better(self) -> Better {
        match self {
            Self::Iops | Self::IopsPerCpuSecond => Better::Higher,
            Self::LatencyP50 | Self::LatencyP99 => Better::Lower,
        }
    }

    /// Its value in a slice; 0 where the client does not tell.
    pub(crate) fn of(self, slice: &Slice) -> f64 {
        match self {
            Self::Iops => slice.iops,
            Self::IopsPerCpuSecond => slice.iops_per_cpu_second(),
            Self::LatencyP50 => slice.latency_ns.p50,
            Self::LatencyP99 => slice.latency_ns.p99.unwrap_or(0.0),
        }
    }
}

impl Comparison {
    pub(crate) fn figure(&self, figure: Figure) -> Option<&FigureResult> {
        self.figures.iter().find(|found| found.figure == figure)
    }
}

/// CPU of a target whose hosts only send keep-alives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Idle {
    pub(crate) contender: String,
    pub(crate) hosts: u32,
    pub(crate) seconds: f64,
    /// CPU seconds per second.
    pub(crate) cores: f64,
    /// Why it decides no goal, if it does not.
    #[serde(default)]
    pub(crate) unclaimed: Option<String>,
}

/// The first I/O after a pause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FirstIo {
    pub(crate) contender: String,
    /// Median latency without pauses, one command at a time.
    pub(crate) warm_ns: f64,
    /// Median latency of commands that come after a pause.
    pub(crate) after_idle_ns: f64,
    pub(crate) pause_seconds: f64,
    /// Median of the differences, alternation by alternation.
    pub(crate) beyond_warm_ns: f64,
    /// Why it decides no goal, if it does not.
    #[serde(default)]
    pub(crate) unclaimed: Option<String>,
}

/// Memory before anybody has connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryAtRest {
    pub(crate) contender: String,
    pub(crate) resident_bytes: u64,
    pub(crate) huge_page_bytes: u64,
}

/// A figure of a pool as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PoolFigure {
    pub(crate) contender: String,
    pub(crate) subject: String,
    pub(crate) measure: Measure,
    pub(crate) value: f64,
    /// What else was seen, for people.
    pub(crate) detail: String,
    /// Why it decides no goal, if it does not.
    pub(crate) unclaimed: Option<String>,
}

impl Document {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let text = fs::read_to_string(path).with_context(context)?;
        let document: Self = serde_json::from_str(&text).with_context(context)?;
        if document.schema_version != SCHEMA_VERSION {
            bail!(
                "{}: schema version {}, not {SCHEMA_VERSION}",
                path.display(),
                document.schema_version
            );
        }
        Ok(document)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let mut text = serde_json::to_string_pretty(self).with_context(context)?;
        text.push('\n');
        write_whole(path, &text)
    }

    /// Adds what another run measured; what both measured is taken from the other.
    pub(crate) fn merge(&mut self, newer: Self) -> Result<()> {
        if self.environment.settings != newer.environment.settings {
            bail!(
                "the results were measured with different settings (--poll, --slice-ms, --ungated)"
            );
        }
        if self.environment != newer.environment {
            bail!("the results are of different machines or builds");
        }
        if self.subject != newer.subject {
            bail!("the results are of different engines of bowline");
        }
        if self.programs != newer.programs {
            bail!("the results are of different versions of the programs");
        }
        self.measured_at = self.measured_at.max(newer.measured_at);
        // What could be measured after all is skipped no more.
        let measured = newer.measured();
        self.skipped
            .retain(|one| !measured.contains(&one.what.as_str()));
        replace(&mut self.skipped, newer.skipped, |one| one.what.clone());
        replace(&mut self.cells, newer.cells, |one| {
            (one.name.clone(), one.client.clone())
        });
        replace(&mut self.idle, newer.idle, |one| one.contender.clone());
        replace(&mut self.first_io, newer.first_io, |one| {
            (one.contender.clone(), one.pause_seconds.to_bits())
        });
        replace(&mut self.memory, newer.memory, |one| one.contender.clone());
        replace(&mut self.pool, newer.pool, |one| {
            (one.contender.clone(), one.subject.clone(), one.measure)
        });
        self.sort();
        Ok(())
    }

    /// Cells, rows and contenders of which there are figures.
    fn measured(&self) -> Vec<&str> {
        let cells = self.cells.iter().filter(|cell| cell.unpublished.is_none());
        let mut all: Vec<&str> = cells.clone().map(|cell| cell.name.as_str()).collect();
        let contenders = cells.flat_map(|cell| &cell.contenders);
        all.extend(contenders.map(|one| one.contender.as_str()));
        all.extend(self.idle.iter().map(|one| one.contender.as_str()));
        all.extend(self.memory.iter().map(|one| one.contender.as_str()));
        for one in &self.first_io {
            all.extend(["first-io", one.contender.as_str()]);
        }
        all.extend(self.pool.iter().map(|one| one.subject.as_str()));
        all
    }

    /// Judges every comparison again, by the rules of today.
    pub(crate) fn judge(&mut self) {
        let comparisons = self.cells.iter_mut().flat_map(|cell| &mut cell.comparisons);
        for found in comparisons.flat_map(|comparison| &mut comparison.figures) {
            if found.verdict != Verdict::Ungated {
                found.verdict = judge(&found.estimate, found.noise, found.figure.better());
            }
        }
    }

    /// Cells in the order of the list of cells, whatever they were measured in.
    pub(crate) fn sort(&mut self) {
        let all = Cell::all();
        self.cells.sort_by_key(|one| {
            let place = all.iter().position(|cell| *cell == one.cell);
            (place, one.client != "bowline-perf", one.client.clone())
        });
    }
}

/// Writes a file so that whoever reads it finds all of it, the old one or the new.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

fn replace<T, K: PartialEq>(old: &mut Vec<T>, newer: Vec<T>, key: impl Fn(&T) -> K) {
    old.retain(|one| !newer.iter().any(|other| key(other) == key(one)));
    old.extend(newer);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(poll: Option<&str>) -> Document {
        let settings = poll.map(|poll| json!({"poll": poll, "slice_ms": 120, "gated": true}));
        let environment = json!({"kernel": "", "cpu": "", "cores": 2, "target_core": 0,
            "client_core": 1, "governor": null, "virtualised": true, "memory_bytes": 0,
            "network": {"congestion_control": "cubic", "own_namespace": true}, "profile": "",
            "revision": null, "settings": settings});
        serde_json::from_value(json!({"schema_version": SCHEMA_VERSION, "measured_at": 0,
            "environment": environment, "programs": [], "skipped": [], "cells": [], "idle": [],
            "first_io": [], "memory": []}))
        .unwrap()
    }

    fn skipped(what: &str) -> Skipped {
        Skipped {
            what: what.to_owned(),
            why: "it was not there".to_owned(),
        }
    }

    fn idle(contender: &str) -> Idle {
        Idle {
            contender: contender.to_owned(),
            hosts: 16,
            seconds: 60.0,
            cores: 0.0,
            unclaimed: None,
        }
    }

    #[test]
    fn results_of_other_settings_are_not_put_together() {
        let merge = |poll, newer| document(poll).merge(document(newer)).is_ok();
        assert!(merge(Some("adaptive"), Some("adaptive")));
        assert!(!merge(Some("adaptive"), Some("never")));
        // Nobody knows what an older document was measured with.
        assert!(!merge(None, Some("adaptive")));
        assert!(merge(None, None));
    }

    #[test]
    fn what_was_measured_later_is_skipped_no_more() {
        let mut old = document(None);
        old.skipped = vec![
            skipped("spdk-interrupt"),
            skipped("first-io"),
            skipped("spdk"),
        ];
        let mut newer = document(None);
        newer.idle = vec![idle("spdk-interrupt")];
        newer.skipped = vec![skipped("bowline-block")];
        old.merge(newer).unwrap();
        let left: Vec<&str> = old.skipped.iter().map(|it| it.what.as_str()).collect();
        assert_eq!(left, ["first-io", "spdk", "bowline-block"]);
    }

    #[test]
    fn file_that_is_written_replaces_the_old_one_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        write_whole(&path, "the old one, which is longer").unwrap();
        let reader = fs::File::open(&path).unwrap();
        write_whole(&path, "the new one").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "the new one");
        assert_eq!(
            std::io::read_to_string(reader).unwrap(),
            "the old one, which is longer"
        );
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing else is left"
        );
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "everybody may read it");
    }
}
