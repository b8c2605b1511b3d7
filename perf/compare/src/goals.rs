//! Goals: what figures are to reach, in a file of their own, and whether a document reaches them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::cell::Subject;
use crate::result::{CellResult, Document, Figure, FigureResult, FirstIo};
use crate::statistics::{Better, CLAIM_MIN_RATIO, EQUAL_MAX_RATIO, Verdict};
use crate::target::Contender;

/// What a subject may be compared with.
const ROLES: [&str; 8] = [
    "itself",
    "spdk-best",
    "spdk-default",
    "bare",
    "bowline-mem",
    "bowline-file",
    "bowline-block",
    "bowline-pool-verify",
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// Ratios of the subject to another.
    Iops,
    IopsPerCpuSecond,
    LatencyP50,
    LatencyP99,
    /// The subject's own figures.
    SystemCallsPerIo,
    IdleCores,
    FirstIoBeyondWarmNs,
    /// The same, less what bare sockets that sleep need after the same pause.
    FirstIoBeyondBareNs,
    MemoryBytes,
    /// Of a pool as a whole.
    SnapshotPauseP99Ns,
    VolumesPerSecond,
    ResidentBytes,
    RecoverySeconds,
    MapBytesPerTib,
}

/// What became of a goal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Met(f64),
    Missed(f64),
    /// It was measured, but what was found neither shows that it is met nor that it is missed.
    Undecided(String),
    /// Not part of the document.
    NotMeasured,
}

/// How many goals had which outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    met: usize,
    missed: usize,
    undecided: usize,
    not_measured: usize,
}

impl Tally {
    fn count(&mut self, outcome: &Outcome) {
        let place = match outcome {
            Outcome::Met(_) => &mut self.met,
            Outcome::Missed(_) => &mut self.missed,
            Outcome::Undecided(_) => &mut self.undecided,
            Outcome::NotMeasured => &mut self.not_measured,
        };
        *place += 1;
    }

    /// What cannot be decided is no failure; but where nothing is met nothing was shown.
    const fn is_passed(self) -> bool {
        self.met > 0 && self.missed == 0
    }
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

    /// Holds a document against the goals and prints each; true when one is met and none missed.
    pub(crate) fn check(&self, document: &Document) -> bool {
        let mut tally = Tally::default();
        for goal in &self.goal {
            let outcome = goal.judge(document);
            println!("{}", goal.line(&outcome));
            tally.count(&outcome);
        }
        println!(
            "goals: {} met, {} missed, {} undecided, {} not measured",
            tally.met, tally.missed, tally.undecided, tally.not_measured
        );
        tally.is_passed()
    }
}

impl Goal {
    fn judge(&self, document: &Document) -> Outcome {
        let subject = document.subject.as_str();
        match self.measure {
            Measure::IdleCores => {
                let mut idle = document.idle.iter();
                idle.find(|one| one.contender == subject)
                    .map_or(Outcome::NotMeasured, |one| {
                        self.unless(one.unclaimed.as_ref(), one.cores)
                    })
            }
            Measure::FirstIoBeyondWarmNs => self.worst(
                document
                    .first_io
                    .iter()
                    .filter(|one| one.contender == subject)
                    .map(|one| self.unless(one.unclaimed.as_ref(), one.beyond_warm_ns)),
            ),
            Measure::FirstIoBeyondBareNs => {
                let bare = Contender::BareSleeping.name();
                let of = |contender: String| {
                    let all = document.first_io.iter();
                    all.filter(move |one| one.contender == contender)
                };
                let both = of(subject.to_owned()).filter_map(|one| {
                    let same = |other: &&FirstIo| other.pause_seconds == one.pause_seconds;
                    Some((one, of(bare.clone()).find(same)?))
                });
                self.worst(both.map(|(one, bare)| {
                    let unclaimed = one.unclaimed.as_ref().or(bare.unclaimed.as_ref());
                    self.unless(unclaimed, one.beyond_warm_ns - bare.beyond_warm_ns)
                }))
            }
            Measure::MemoryBytes => self.rest(&document.memory, |one| {
                let bytes = one.resident_bytes.saturating_add(one.huge_page_bytes) as f64;
                (one.contender == subject).then_some(bytes)
            }),
            Measure::SnapshotPauseP99Ns
            | Measure::VolumesPerSecond
            | Measure::ResidentBytes
            | Measure::RecoverySeconds
            | Measure::MapBytesPerTib => {
                let mut figures = document.pool.iter();
                let found = figures.find(|it| {
                    it.subject == self.subject
                        && it.measure == self.measure
                        && it.contender == subject
                });
                found.map_or(Outcome::NotMeasured, |it| {
                    self.unless(it.unclaimed.as_ref(), it.value)
                })
            }
            _ => {
                let cells = document.cells.iter();
                let cells = cells.filter(|cell| cell.name == self.subject);
                self.worst(cells.map(|cell| self.in_cell(cell, subject)))
            }
        }
    }

    /// A figure of the subject among those of all.
    fn rest<T>(&self, all: &[T], value: impl Fn(&T) -> Option<f64>) -> Outcome {
        let found = all.iter().find_map(value);
        found.map_or(Outcome::NotMeasured, |value| self.value(value))
    }

    /// The worst over all clients, and over all that was measured of the same kind.
    fn worst(&self, outcomes: impl Iterator<Item = Outcome>) -> Outcome {
        let badness = |outcome: &Outcome| match outcome {
            Outcome::NotMeasured => (0, 0.0),
            Outcome::Met(value) => (1, self.better().badness(*value)),
            Outcome::Undecided(_) => (2, 0.0),
            Outcome::Missed(value) => (3, self.better().badness(*value)),
        };
        let worst = outcomes.max_by(|one, other| {
            let ((rank, value), (other_rank, other_value)) = (badness(one), badness(other));
            rank.cmp(&other_rank).then(value.total_cmp(&other_value))
        });
        worst.unwrap_or(Outcome::NotMeasured)
    }

    const fn better(&self) -> Better {
        if self.at_least.is_some() {
            Better::Higher
        } else {
            Better::Lower
        }
    }

    fn in_cell(&self, cell: &CellResult, subject: &str) -> Outcome {
        if let Some(why) = &cell.unpublished {
            return Outcome::Undecided(why.clone());
        }
        let Some(figure) = self.measure.figure() else {
            let mut contenders = cell.contenders.iter();
            let summary = contenders.find(|one| one.contender == subject);
            let calls = summary.and_then(|summary| summary.system_calls_per_io);
            return calls.map_or(Outcome::NotMeasured, |calls| self.value(calls));
        };
        // A contender that this client is not compared with, or that is not here.
        self.comparison(cell, subject, figure)
            .map_or(Outcome::NotMeasured, |found| self.ratio(found))
    }

    /// A figure that is exact enough to be held against the goal as it is.
    fn value(&self, value: f64) -> Outcome {
        if self.reached_by(value) {
            Outcome::Met(value)
        } else {
            Outcome::Missed(value)
        }
    }

    /// The same, unless the run claims nothing.
    fn unless(&self, unclaimed: Option<&String>, value: f64) -> Outcome {
        match unclaimed {
            Some(why) => Outcome::Undecided(format!("{value:.4}, {why}")),
            None => self.value(value),
        }
    }

    /// A ratio with its interval. It meets the goal with the median, and with the interval but for
    /// what is never claimed. Where the noise is large, all of the interval has to be beyond the goal
    /// by more than that.
    fn ratio(&self, found: &FigureResult) -> Outcome {
        if matches!(found.verdict, Verdict::TooFewPairs | Verdict::Ungated) {
            return Outcome::Undecided(found.verdict.word().to_owned());
        }
        // As of a figure that is to be large.
        let it = &found.estimate;
        let (ratio, low, high, goal) = match (self.at_least, self.at_most) {
            (Some(least), _) => (it.ratio, it.low, it.high, least),
            (None, Some(most)) => (1.0 / it.ratio, 1.0 / it.high, 1.0 / it.low, 1.0 / most),
            (None, None) => return Outcome::NotMeasured,
        };
        let slack = found.noise.max(CLAIM_MIN_RATIO);
        let is_fine = slack <= EQUAL_MAX_RATIO;
        if low >= goal * slack || (is_fine && ratio >= goal && low >= goal / CLAIM_MIN_RATIO) {
            Outcome::Met(it.ratio)
        } else if high <= goal / slack || (is_fine && ratio < goal && high < goal) {
            Outcome::Missed(it.ratio)
        } else {
            Outcome::Undecided(format!(
                "{:.3} with an interval of [{:.3}, {:.3}] and a noise of {:.1} %",
                it.ratio,
                it.low,
                it.high,
                (found.noise - 1.0) * 100.0
            ))
        }
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

    fn reached_by(&self, value: f64) -> bool {
        self.at_least.is_none_or(|least| value >= least)
            && self.at_most.is_none_or(|most| value <= most)
    }

    fn line(&self, outcome: &Outcome) -> String {
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
            Outcome::Undecided(why) => ("undecided", format!(": {why}")),
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
            | Self::FirstIoBeyondBareNs
            | Self::MemoryBytes
            | Self::SnapshotPauseP99Ns
            | Self::VolumesPerSecond
            | Self::ResidentBytes
            | Self::RecoverySeconds
            | Self::MapBytesPerTib => None,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::IopsPerCpuSecond => "IOPS per CPU-second",
            Self::LatencyP50 => "p50 latency",
            Self::LatencyP99 => "p99 latency",
            Self::SystemCallsPerIo => "system calls per I/O",
            Self::IdleCores => "cores",
            Self::FirstIoBeyondWarmNs => "ns beyond warm",
            Self::FirstIoBeyondBareNs => "ns beyond warm and beyond bare sockets",
            Self::MemoryBytes => "bytes",
            Self::SnapshotPauseP99Ns => "ns that a write waits for a snapshot, 99th percentile",
            Self::VolumesPerSecond => "volumes made per second",
            Self::ResidentBytes => "bytes resident with all of them",
            Self::RecoverySeconds => "seconds from start to ready, median",
            Self::MapBytesPerTib => "bytes of the map of each TiB",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::result::SCHEMA_VERSION;

    const SUBJECT: &str = "bowline-mem";

    /// A document with one cell, in which the subject is `ratio` as fast as bare sockets.
    fn document(ratio: [f64; 3], noise: f64, verdict: &str) -> Document {
        let [low, ratio, high] = ratio;
        let figure = json!({"figure": "iops", "noise": noise, "verdict": verdict,
            "estimate": {"ratio": ratio, "low": low, "high": high, "pairs": 16}});
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
        serde_json::from_value(json!({"schema_version": SCHEMA_VERSION, "measured_at": 0,
            "environment": environment, "programs": [], "skipped": [], "cells": [cell],
            "idle": [], "first_io": [], "memory": []}))
        .unwrap()
    }

    fn goals(subject: &str, against: &str, bound: &str) -> Result<Goals> {
        Goals::parse(&format!(
            "[[goal]]\nsubject = \"{subject}\"\nmeasure = \"iops\"\n\
             against = \"{against}\"\n{bound}\n"
        ))
    }

    /// What becomes of the goal of 0.8, asked for as at least and, with all inverted, as at most.
    fn becomes(interval: [f64; 3], noise: f64) -> &'static str {
        let word = |bound: &str, interval: [f64; 3]| {
            let goals = goals("read-4k-qd32", "bare", bound).unwrap();
            let document = document(interval, noise, "undecided");
            match goals.goal[0].judge(&document) {
                Outcome::Met(_) => "met",
                Outcome::Missed(_) => "missed",
                Outcome::Undecided(_) => "undecided",
                Outcome::NotMeasured => "not measured",
            }
        };
        let [low, ratio, high] = interval;
        let found = word("at_least = 0.8", interval);
        let inverted = [1.0 / high, 1.0 / ratio, 1.0 / low];
        assert_eq!(
            word("at_most = 1.25", inverted),
            found,
            "{interval:?} {noise}"
        );
        found
    }

    #[test]
    fn goal_is_met_where_the_interval_reaches_it_but_for_what_is_never_claimed() {
        assert_eq!(becomes([0.90, 0.95, 1.00], 1.0), "met");
        assert_eq!(becomes([0.78, 0.81, 0.90], 1.0), "met");
        assert_eq!(becomes([0.74, 0.81, 0.90], 1.09), "undecided");
        assert_eq!(becomes([0.74, 0.81, 0.90], 1.05), "undecided");
    }

    #[test]
    fn goal_is_missed_where_the_interval_ends_below_it() {
        assert_eq!(becomes([0.70, 0.75, 0.79], 1.0), "missed");
        assert_eq!(becomes([0.70, 0.79, 0.81], 1.05), "undecided");
    }

    #[test]
    fn coarse_scale_decides_only_what_is_beyond_its_noise() {
        assert_eq!(becomes([0.85, 0.90, 0.95], 1.2), "undecided");
        assert_eq!(becomes([0.97, 1.00, 1.05], 1.2), "met");
        assert_eq!(becomes([0.70, 0.72, 0.75], 1.2), "undecided");
        assert_eq!(becomes([0.60, 0.62, 0.66], 1.2), "missed");
    }

    #[test]
    fn check_fails_when_a_goal_is_missed_or_none_is_met() {
        let check = |subject: &str, interval| {
            let goals = goals(subject, "bare", "at_least = 0.8").unwrap();
            goals.check(&document(interval, 1.0, "worse"))
        };
        assert!(check("read-4k-qd32", [0.9, 0.91, 0.92]));
        assert!(!check("read-4k-qd32", [0.7, 0.71, 0.72]));
        assert!(!check("read-4k-qd32", [0.7, 0.81, 0.92]));
        // A check in which nothing was measured has not been passed.
        assert!(!check("write-4k-qd32", [0.9, 0.91, 0.92]));
    }

    #[test]
    fn what_claims_nothing_meets_no_goal() {
        let goals = goals("read-4k-qd32", "bare", "at_least = 0.8").unwrap();
        for verdict in ["too-few-pairs", "ungated"] {
            assert!(!goals.check(&document([2.0; 3], 1.0, verdict)), "{verdict}");
        }
    }

    #[test]
    fn figures_without_pairs_of_a_run_that_claims_nothing_decide_nothing() {
        let check = |subject: &str, measure: &str, unclaimed: serde_json::Value| {
            let goals = Goals::parse(&format!(
                "[[goal]]\nsubject = \"{subject}\"\nmeasure = \"{measure}\"\nat_most = 1.0\n"
            ));
            let of = |contender: &str| {
                json!({"contender": contender, "warm_ns": 1.0, "after_idle_ns": 1.5,
                    "pause_seconds": 0.1, "beyond_warm_ns": 0.5, "unclaimed": unclaimed})
            };
            let mut document = document([1.0; 3], 1.0, "equal");
            let all = [SUBJECT.to_owned(), Contender::BareSleeping.name()];
            let all = all.iter().map(|it| serde_json::from_value(of(it)).unwrap());
            document.first_io = all.collect();
            let idle = json!({"contender": SUBJECT, "hosts": 16, "seconds": 5.0, "cores": 0.5,
                "unclaimed": unclaimed});
            document.idle = vec![serde_json::from_value(idle).unwrap()];
            goals.unwrap().goal[0].judge(&document)
        };
        for (subject, measure) in [
            ("idle", "idle_cores"),
            ("first-io", "first_io_beyond_warm_ns"),
            ("first-io", "first_io_beyond_bare_ns"),
        ] {
            assert!(matches!(
                check(subject, measure, json!(null)),
                Outcome::Met(_)
            ));
            let outcome = check(subject, measure, json!("ungated"));
            assert!(matches!(outcome, Outcome::Undecided(_)), "{outcome:?}");
        }
    }

    #[test]
    fn goals_for_what_does_not_exist_are_refused() {
        let bound = "at_least = 1.0";
        assert!(goals("read-4k-qd33", "bare", bound).is_err());
        assert!(goals("read-4k-qd32", "spdk-fastest", bound).is_err());
        assert!(goals("read-4k-qd32", "spdk-best", bound).is_ok());
    }

    #[test]
    fn goals_of_the_repository_are_understood() {
        for name in ["goals.toml", "pool-goals.toml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
            assert!(!Goals::read(&path).unwrap().goal.is_empty());
        }
    }
}
