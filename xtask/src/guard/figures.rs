//! The file of figures, and what differs from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// What a figure may rise or fall before it is told.
const TOLERANCE: f64 = 0.05;
/// What counts as nothing: differences below are not told, whatever they are of.
const NOTHING: f64 = 0.02;

const HEAD: &str = "\
# What a command costs where no clock is involved, per command. Written by
# `cargo xtask perf guard --renew`, held by `cargo xtask perf guard` and with that by
# `cargo xtask test`: a figure that rises by more than 5 % fails. perf/guard/README.md explains them.
";

/// What the figures were made with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct MadeWith {
    pub(super) profile: String,
    pub(super) rustc: String,
    pub(super) architecture: String,
}

/// The parts of what one scenario costs, by name.
pub(super) type Parts = BTreeMap<String, f64>;

/// Scenarios of one kind, by name.
pub(super) type Group = BTreeMap<String, Parts>;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Figures {
    pub(super) made_with: MadeWith,
    /// By kind.
    pub(super) figures: BTreeMap<String, Group>,
}

impl Figures {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the figures in {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is no file of figures", path.display()))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.text()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// One line per scenario, so that a change is read in a diff.
    fn text(&self) -> String {
        let MadeWith {
            profile,
            rustc,
            architecture,
        } = &self.made_with;
        let mut text = format!(
            "{HEAD}\n[made_with]\nprofile = \"{profile}\"\nrustc = \"{rustc}\"\n\
             architecture = \"{architecture}\"\n"
        );
        for (kind, group) in &self.figures {
            // Writing to a string does not fail.
            let _ = write!(text, "\n[figures.{kind}]\n");
            for (scenario, parts) in group {
                let parts: Vec<String> = parts
                    .iter()
                    .map(|(part, figure)| format!("{part} = {figure:.3}"))
                    .collect();
                let _ = writeln!(text, "{scenario} = {{ {} }}", parts.join(", "));
            }
        }
        text
    }
}

/// The most that a figure may be now.
fn limit(then: f64) -> f64 {
    then * (1.0 + TOLERANCE) + NOTHING
}

fn has_risen(then: f64, now: f64) -> bool {
    now > limit(then)
}

/// A figure before and after, and the change as people say it.
fn change(then: f64, now: f64) -> String {
    let change = format!("{then:.3} -> {now:.3}");
    if then < NOTHING {
        return change;
    }
    format!("{change} ({:+.1} %)", (now / then - 1.0) * 100.0)
}

/// Whether nothing has risen.
pub(super) fn are_kept(filed: &Parts, found: &Parts) -> bool {
    let mut parts = found.iter();
    parts.all(|(part, now)| filed.get(part).is_some_and(|then| !has_risen(*then, *now)))
}

/// What became of a group since its figures were written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Reasons to fail.
    pub(super) worse: Vec<String>,
    /// Figures that have fallen, to be renewed.
    pub(super) better: Vec<String>,
}

impl Changes {
    /// Holds what was found against what is on file.
    pub(super) fn between(filed: &Group, found: &Group) -> Self {
        let mut changes = Self::default();
        for (scenario, parts) in found {
            let Some(before) = filed.get(scenario) else {
                changes.worse.push(format!("{scenario} has no figure"));
                continue;
            };
            for (part, &now) in parts {
                let Some(&then) = before.get(part) else {
                    changes.worse.push(format!("{scenario} has no {part}"));
                    continue;
                };
                let line = format!("{scenario}: {part} {}", change(then, now));
                if has_risen(then, now) {
                    let line = format!("{line}, at most {:.3}", limit(then));
                    changes.worse.push(line);
                } else if now < then * (1.0 - TOLERANCE) - NOTHING {
                    changes.better.push(line);
                }
            }
        }
        let gone = filed.keys().filter(|name| !found.contains_key(*name));
        let told = gone.map(|name| format!("{name} is on file and does not exist"));
        changes.worse.extend(told);
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(figures: &[(&str, f64)]) -> Group {
        let parts = |figure: f64| Parts::from([("target".to_owned(), figure)]);
        let named = figures
            .iter()
            .map(|(name, figure)| ((*name).to_owned(), parts(*figure)));
        named.collect()
    }

    #[test]
    fn more_than_five_per_cent_is_told_in_both_directions() {
        let filed = group(&[("a", 100.0), ("b", 100.0), ("c", 100.0), ("d", 100.0)]);
        let found = group(&[("a", 106.0), ("b", 104.0), ("c", 96.0), ("d", 94.0)]);
        let changes = Changes::between(&filed, &found);
        assert_eq!(
            changes.worse,
            ["a: target 100.000 -> 106.000 (+6.0 %), at most 105.020"]
        );
        assert_eq!(changes.better, ["d: target 100.000 -> 94.000 (-6.0 %)"]);
    }

    #[test]
    fn five_per_cent_are_let_pass_and_the_next_instruction_is_not() {
        // 2048 commands of 2500 instructions each.
        let filed = group(&[("a", 2500.0)]);
        let found = |sum: u32| group(&[("a", f64::from(sum) / 2048.0)]);
        let (allowed, all) = (5_376_000, 5_376_041);
        for sum in [allowed, all - 1] {
            let changes = Changes::between(&filed, &found(sum));
            assert_eq!(changes, Changes::default(), "{sum}");
        }
        let changes = Changes::between(&filed, &found(all));
        assert_eq!(changes.worse.len(), 1, "{changes:?}");
    }

    #[test]
    fn one_call_more_per_command_is_told_whatever_it_was_before() {
        for before in [0.0, 0.094, 2.005, 4.0] {
            let filed = group(&[("a", before)]);
            let changes = Changes::between(&filed, &group(&[("a", before + 1.0)]));
            assert_eq!(changes.worse.len(), 1, "{before}: {changes:?}");
        }
    }

    #[test]
    fn figure_of_zero_stays_zero() {
        let filed = group(&[("a", 0.0), ("b", 0.0)]);
        let found = group(&[("a", 0.01), ("b", 0.03)]);
        let changes = Changes::between(&filed, &found);
        assert_eq!(changes.worse, ["b: target 0.000 -> 0.030, at most 0.020"]);
        assert!(changes.better.is_empty());
    }

    #[test]
    fn scenarios_that_only_one_side_knows_are_failures() {
        let changes = Changes::between(&group(&[("old", 1.0)]), &group(&[("new", 1.0)]));
        assert_eq!(
            changes.worse,
            ["new has no figure", "old is on file and does not exist"]
        );
    }

    #[test]
    fn file_is_read_as_it_was_written() {
        let figures = Figures {
            made_with: MadeWith {
                profile: "release".to_owned(),
                rustc: "1.95.0".to_owned(),
                architecture: "x86_64".to_owned(),
            },
            figures: BTreeMap::from([("instructions_epoll".to_owned(), group(&[("a", 1.5)]))]),
        };
        let read: Figures = toml::from_str(&figures.text()).unwrap();
        assert_eq!(read.made_with, figures.made_with);
        assert_eq!(read.figures, figures.figures);
    }
}
