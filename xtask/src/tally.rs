//! What passed, failed and was skipped, over all runners of one call.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::{Duration, Instant};

/// Totals of one `cargo xtask` call. Names and reasons are printed when they are counted.
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Names of single checks that passed.
    passed_names: BTreeSet<String>,
    /// Names of what failed, repeated at the end so that nobody has to scroll.
    failures: Vec<String>,
    /// On CI a machine without the tools is a broken machine, not a reason to skip.
    ci: bool,
}

impl Tally {
    /// Reads `CI` from the environment.
    pub(crate) fn new() -> Self {
        Self::with_ci(std::env::var("CI").is_ok_and(|value| value == "true"))
    }

    fn with_ci(ci: bool) -> Self {
        Self {
            passed: 0,
            failed: 0,
            skipped: 0,
            passed_names: BTreeSet::new(),
            failures: Vec::new(),
            ci,
        }
    }

    /// Counts one check that passed and took this long.
    pub(crate) fn passed(&mut self, name: &str, took: Duration) {
        println!("ok      {name} ({})", seconds(took));
        self.passed += 1;
        self.passed_names.insert(name.to_owned());
    }

    /// Whether a check of this name has passed and none has failed.
    pub(crate) fn has_passed(&self, name: &str) -> bool {
        self.passed_names.contains(name) && !self.failures.iter().any(|failed| failed == name)
    }

    pub(crate) fn failed(&mut self, name: &str, why: &dyn Display) {
        println!("FAILED  {name}: {why}");
        self.failed += 1;
        self.failures.push(name.to_owned());
    }

    /// Something that cannot be had on any machine of this kind; never a failure.
    pub(crate) fn skipped(&mut self, name: &str, why: &dyn Display) {
        println!("skipped {name}: {why}");
        self.skipped += 1;
    }

    /// Something that this machine lacks: a loud skip for a developer, a failure on CI.
    pub(crate) fn unavailable(&mut self, name: &str, why: &dyn Display) {
        if self.ci {
            self.failed(
                name,
                &format!("not available, and CI may not skip it: {why}"),
            );
        } else {
            self.skipped(name, why);
        }
    }

    /// Counts one check and prints how long it took.
    pub(crate) fn check(&mut self, name: &str, body: impl FnOnce() -> anyhow::Result<()>) -> bool {
        let started = Instant::now();
        match body() {
            Ok(()) => {
                self.passed(name, started.elapsed());
                true
            }
            Err(error) => {
                self.failed(name, &format!("{error:#}"));
                false
            }
        }
    }

    /// Adds the totals of another runner.
    pub(crate) fn add(&mut self, name: &str, passed: u64, failed: u64, skipped: u64) {
        println!("total   {name}: {passed} passed, {failed} failed, {skipped} skipped");
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
        if failed > 0 {
            self.failures.push(name.to_owned());
        }
    }

    pub(crate) fn is_green(&self) -> bool {
        self.failed == 0
    }

    /// The failures by name, if any, then the totals line.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for name in &self.failures {
            text.push_str(&format!("FAILED  {name}\n"));
        }
        text + &format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// A duration as people say it.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_line_is_the_last_line() {
        let mut tally = Tally::with_ci(false);
        tally.passed("a", Duration::ZERO);
        tally.failed("b", &"broken");
        tally.unavailable("c", &"no tool");
        tally.add("d", 3, 0, 1);
        assert_eq!(
            tally.summary().lines().last(),
            Some("4 passed, 1 failed, 2 skipped")
        );
        assert!(!tally.is_green());
        assert!(tally.has_passed("a") && !tally.has_passed("b") && !tally.has_passed("d"));
    }

    #[test]
    fn missing_tool_is_a_failure_on_ci() {
        let mut tally = Tally::with_ci(true);
        tally.unavailable("guest", &"no emulator");
        assert!(!tally.is_green());
        tally.skipped("advisories", &"no database");
        assert_eq!(
            tally.summary().lines().last(),
            Some("0 passed, 1 failed, 1 skipped")
        );
    }
}
