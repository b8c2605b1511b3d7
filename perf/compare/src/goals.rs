//! Goals: what figures are to reach, in a file of their own, and whether a document reaches them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::result::{CellResult, Document, Figure};

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

    /// Holds a document against the goals and prints each; true when none that was measured is
    /// missed or unknown.
    pub(crate) fn check(&self, document: &Document, subject: &str) -> bool {
        let mut reached = true;
        for goal in &self.goal {
            let outcome = goal.judge(document, subject);
            println!("{}", goal.line(outcome));
            reached &= matches!(outcome, Outcome::Met(_) | Outcome::NotMeasured);
        }
        reached
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
            let Some(value) = self.in_cell(cell, subject) else {
                // A contender that this client is not compared with, or that is not here.
                if cell.unpublished.is_some() {
                    return Some(None);
                }
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
        let against = self.against.as_deref()?;
        let comparison = cell
            .comparisons
            .iter()
            .find(|one| one.role == against && one.subject == subject)?;
        Some(comparison.figure(figure)?.estimate.ratio)
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
