//! Goals: what figures are to reach, in a file of their own, and whether a document reaches them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::cell::Subject;
use crate::result::{CellResult, Document, Figure, FigureResult};
use crate::statistics::Verdict;

/// What a subject may be compared with.
const ROLES: [&str; 6] = [
    "itself",
    "spdk-best",
    "spdk-default",
    "bare",
    "bowline-file",
    "bowline-block",
];

/// A file of goals.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Goals {
    goal: Vec<Goal>,
}

/// One goal: exactly one of `at_least` and `at_most`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Goal {
    /// A cell, or `idle`, `first-io`, `memory`.
    subject: String,
    measure: Measure,
    /// Role of the other, for ratios.
    against: Option<String>,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

/// What a goal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Measure {
    /// Ratios of the subject to another.
    Iops,
    IopsPerCpuSecond,
    LatencyP50,
    LatencyP99,
    /// The subject's own figures.
    SystemCallsPerIo,
    IdleCores,
    FirstIoBeyondWarmNs,
    MemoryBytes,
}

/// What became of a goal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Met(f64),
    Missed(f64),
    /// It was measured, but there is no figure to hold against it.
    Unknown,
    /// Not part of the document.
    NotMeasured,
}

impl Goals {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let text = fs::read_to_string(path).with_context(context)?;
        Self::parse(&text).with_context(context)
    }

    fn parse(text: &str) -> Result<Self> {
        let goals: Self = toml::from_str(text)?;
        for goal in &goals.goal {
            // A goal for what does not exist would be one that nothing can miss.
            Subject::parse(&goal.subject)
                .map_err(|there| anyhow!("no subject {}; {there}", goal.subject))?;
            if let Some(role) = goal.against.as_deref()
                && !ROLES.contains(&role)
            {
                bail!("no role {role}; there are: {}", ROLES.join(", "));
            }
            if goal.at_least.is_some() == goal.at_most.is_some() {
                bail!("{}: one of at_least and at_most", goal.subject);
            }
            if goal.measure.figure().is_some() != goal.against.is_some() {
                bail!(
                    "{}: `against` is for ratios, and only for them",
                    goal.subject
                );
            }
        }
        Ok(goals)
    }

    /// Holds a document against the goals and prints each; true when one is met and none that was
    /// measured is missed or unknown.
    pub(crate) fn check(&self, document: &Document, subject: &str) -> bool {
        let (mut met, mut failed) = (0, 0);
        for goal in &self.goal {
            let outcome = goal.judge(document, subject);
            println!("{}", goal.line(outcome));
            match outcome {
                Outcome::Met(_) => met += 1,
                Outcome::Missed(_) | Outcome::Unknown => failed += 1,
                Outcome::NotMeasured => {}
            }
        }
        met > 0 && failed == 0
    }
}

impl Goal {
    fn judge(&self, document: &Document, subject: &str) -> Outcome {
        let value = match self.measure {
            Measure::IdleCores => rest(&document.idle, |one| {
                (one.contender == subject).then_some(one.cores)
            }),
            Measure::FirstIoBeyondWarmNs => rest(&document.first_io, |one| {
                (one.contender == subject).then_some(one.beyond_warm_ns)
            }),
            Measure::MemoryBytes => rest(&document.memory, |one| {
                let bytes = one.resident_bytes.saturating_add(one.huge_page_bytes) as f64;
                (one.contender == subject).then_some(bytes)
            }),
            _ => self.in_cells(document, subject),
        };
        match value {
            None => Outcome::NotMeasured,
            Some(None) => Outcome::Unknown,
            Some(Some(value)) if self.reached_by(value) => Outcome::Met(value),
            Some(Some(value)) => Outcome::Missed(value),
        }
    }

    /// The worst over all clients; none where the cell was not measured.
    fn in_cells(&self, document: &Document, subject: &str) -> Option<Option<f64>> {
        let mut found: Option<Option<f64>> = None;
        for cell in document
            .cells
            .iter()
            .filter(|cell| cell.name == self.subject)
        {
            if cell.unpublished.is_some() || self.is_claimless(cell, subject) {
                return Some(None);
            }
            let Some(value) = self.in_cell(cell, subject) else {
                // A contender that this client is not compared with, or that is not here.
                continue;
            };
            let worse = match (found.flatten(), self.at_least) {
                (None, _) => value,
                (Some(other), Some(_)) => value.min(other),
                (Some(other), None) => value.max(other),
            };
            found = Some(Some(worse));
        }
        found
    }

    fn in_cell(&self, cell: &CellResult, subject: &str) -> Option<f64> {
        let Some(figure) = self.measure.figure() else {
            let summary = cell
                .contenders
                .iter()
                .find(|one| one.contender == subject)?;
            return summary.system_calls_per_io;
        };
        Some(self.comparison(cell, subject, figure)?.estimate.ratio)
    }

    fn comparison<'a>(
        &self,
        cell: &'a CellResult,
        subject: &str,
        figure: Figure,
    ) -> Option<&'a FigureResult> {
        let against = self.against.as_deref()?;
        let mut comparisons = cell.comparisons.iter();
        comparisons
            .find(|one| one.role == against && one.subject == subject)?
            .figure(figure)
    }

    /// The ratio was measured in a way that claims nothing: a goal is not met by a short look.
    fn is_claimless(&self, cell: &CellResult, subject: &str) -> bool {
        let figure = self.measure.figure();
        let found = figure.and_then(|figure| self.comparison(cell, subject, figure));
        found.is_some_and(|found| matches!(found.verdict, Verdict::TooFewPairs | Verdict::Ungated))
    }

    fn reached_by(&self, value: f64) -> bool {
        self.at_least.is_none_or(|least| value >= least)
            && self.at_most.is_none_or(|most| value <= most)
    }

    fn line(&self, outcome: Outcome) -> String {
        let bound = match (self.at_least, self.at_most) {
            (Some(least), _) => format!("at least {least}"),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => String::new(),
        };
        let against = self
            .against
            .as_ref()
            .map_or_else(String::new, |role| format!(" against {role}"));
        let (word, value) = match outcome {
            Outcome::Met(value) => ("met", format!(": {value:.4}")),
            Outcome::Missed(value) => ("MISSED", format!(": {value:.4}")),
            Outcome::Unknown => ("UNKNOWN", ": measured without a figure".to_owned()),
            Outcome::NotMeasured => ("not measured", String::new()),
        };
        format!(
            "goal {word}: {} {}{against}, {bound}{value}",
            self.subject,
            self.measure.word()
        )
    }
}

impl Measure {
    const fn figure(self) -> Option<Figure> {
        match self {
            Self::Iops => Some(Figure::Iops),
            Self::IopsPerCpuSecond => Some(Figure::IopsPerCpuSecond),
            Self::LatencyP50 => Some(Figure::LatencyP50),
            Self::LatencyP99 => Some(Figure::LatencyP99),
            Self::SystemCallsPerIo
            | Self::IdleCores
            | Self::FirstIoBeyondWarmNs
            | Self::MemoryBytes => None,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::IopsPerCpuSecond => "IOPS per CPU-second",
            Self::LatencyP50 => "p50 latency",
            Self::LatencyP99 => "p99 latency",
            Self::SystemCallsPerIo => "system calls per I/O",
            Self::IdleCores => "cores",
            Self::FirstIoBeyondWarmNs => "ns beyond warm",
            Self::MemoryBytes => "bytes",
        }
    }
}

/// A figure of the subject among those of all; none where nothing of the kind was measured.
fn rest<T>(all: &[T], value: impl Fn(&T) -> Option<f64>) -> Option<Option<f64>> {
    (!all.is_empty()).then(|| all.iter().find_map(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SUBJECT: &str = "bowline-mem";

    /// A document with one cell, in which the subject is `ratio` as fast as bare sockets.
    fn document(ratio: f64, verdict: &str) -> Document {
        let figure = json!({"figure": "iops", "noise": 1.0, "verdict": verdict,
            "estimate": {"ratio": ratio, "low": ratio, "high": ratio, "pairs": 16}});
        let comparison = json!({"subject": SUBJECT, "other": "bare", "role": "bare",
            "figures": [figure]});
        let cell = json!({"name": "read-4k-qd32", "client": "bowline-perf",
            "cell": {"workload": "read", "block_bytes": 4096, "queue_depth": 32, "digests": false,
                "half_core": false},
            "pairs": 16, "slice_seconds": 0.5, "warm_up_seconds": 0.05, "attempted": 64,
            "accepted": 64, "unpublished": null, "contenders": [], "comparisons": [comparison],
            "slices": []});
        let environment = json!({"kernel": "", "cpu": "", "cores": 2, "target_core": 0,
            "client_core": 1, "governor": null, "virtualised": true, "memory_bytes": 0,
            "network": {"congestion_control": "cubic", "own_namespace": true}, "profile": "",
            "revision": null});
        serde_json::from_value(json!({"schema_version": 1, "measured_at": 0,
            "environment": environment, "programs": [], "skipped": [], "cells": [cell],
            "idle": [], "first_io": [], "memory": []}))
        .unwrap()
    }

    fn goals(subject: &str, against: &str) -> Result<Goals> {
        Goals::parse(&format!(
            "[[goal]]\nsubject = \"{subject}\"\nmeasure = \"iops\"\n\
             against = \"{against}\"\nat_least = 0.8\n"
        ))
    }

    #[test]
    fn goal_is_met_missed_or_not_measured() {
        let goal = goals("read-4k-qd32", "bare").unwrap();
        assert!(goal.check(&document(0.81, "worse"), SUBJECT));
        assert!(!goal.check(&document(0.79, "worse"), SUBJECT));
        // A check in which nothing was measured has not been passed.
        let other = goals("write-4k-qd32", "bare").unwrap();
        assert!(!other.check(&document(0.81, "worse"), SUBJECT));
    }

    #[test]
    fn what_claims_nothing_meets_no_goal() {
        let goal = goals("read-4k-qd32", "bare").unwrap();
        for verdict in ["too-few-pairs", "ungated"] {
            assert!(!goal.check(&document(2.0, verdict), SUBJECT), "{verdict}");
        }
    }

    #[test]
    fn goals_for_what_does_not_exist_are_refused() {
        assert!(goals("read-4k-qd33", "bare").is_err());
        assert!(goals("read-4k-qd32", "spdk-fastest").is_err());
        assert!(goals("read-4k-qd32", "spdk-best").is_ok());
    }

    #[test]
    fn goals_of_the_repository_are_understood() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("goals.toml");
        assert!(!Goals::read(&path).unwrap().goal.is_empty());
    }
}
