//! The conformance table: every requirement names the tests that prove it, and those tests must be
//! there, must run and must pass. `lint` looks for them in the sources; after a run of all tests,
//! and again after the end-to-end checks, what passed is held against the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::e2e;
use crate::tally::Tally;
use crate::workspace::Workspace;

const TABLE: &str = "dataplane/nvmf/CONFORMANCE.md";
/// The revisions of `SPEC.md`, and the mark of a rule of our own: a bound, or what real hosts need.
const SECTIONS: &[&str] = &[
    "[BASE-2.0 §",
    "[NVM-1.0 §",
    "[TCP-1.0 §",
    "[FABRICS-1.1 §",
    "own",
];
/// What a name begins with if it is not a test but a check against a real host.
const E2E: &str = "e2e: ";

/// One requirement.
#[derive(Debug)]
struct Row {
    line: usize,
    /// Names of tests, and of end-to-end checks behind [`E2E`].
    proofs: Vec<String>,
}

/// Which tests a run of `cargo test` reported, by the last part of their path, and whether all of
/// that name passed.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(BTreeMap<String, bool>);

impl Outcomes {
    /// Reads a line such as `test connect::tests::second_connect_is_busy ... ok`.
    pub(crate) fn read(&mut self, line: &str) {
        let Some((path, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        else {
            return;
        };
        let path = path.trim_end_matches(" - should panic");
        let name = path.rsplit("::").next().unwrap_or(path);
        let passed = self.0.entry(name.to_owned()).or_insert(true);
        *passed &= outcome == "ok";
    }
}

/// Every row is well formed, and each test and check that it names is in the sources.
pub(crate) fn check_sources(workspace: &Workspace) -> Result<()> {
    let rows = rows(&table(workspace)?)?;
    let mut functions = BTreeSet::new();
    let mut claims = String::new();
    for path in workspace.files()? {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(workspace.root().join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        if path.starts_with("xtask") {
            claims.push_str(&text);
        }
        functions.extend(text.lines().filter_map(function).map(str::to_owned));
    }
    let is_there = |proof: &str| match proof.strip_prefix(E2E) {
        Some(claim) => claims.contains(&format!("\"{claim}\"")),
        None => functions.contains(proof),
    };
    report(&rows, "is not in the sources", is_there)
}

/// Each test that the table names ran and passed.
pub(crate) fn check_tests(workspace: &Workspace, ran: &Outcomes, tally: &mut Tally) {
    tally.check("conformance: tests", || {
        let passed = |proof: &str| proof.starts_with(E2E) || ran.0.get(proof) == Some(&true);
        report(&rows(&table(workspace)?)?, "did not run and pass", passed)
    });
}

/// Each end-to-end check that the table names passed on every kernel.
pub(crate) fn check_e2e(workspace: &Workspace, tally: &mut Tally) {
    let passed = |proof: &str| match proof.strip_prefix(E2E) {
        Some(claim) => e2e::names_of(claim).all(|name| tally.has_passed(&name)),
        None => true,
    };
    let result = table(workspace)
        .and_then(|text| report(&rows(&text)?, "did not pass on every kernel", passed));
    tally.check("conformance: end-to-end checks", || result);
}

fn report(rows: &[Row], what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
    let mut offences = Vec::new();
    for row in rows {
        for proof in row.proofs.iter().filter(|proof| !holds(proof)) {
            offences.push(format!("{TABLE}:{}: `{proof}` {what}", row.line));
        }
    }
    if offences.is_empty() {
        Ok(())
    } else {
        bail!("\n  {}", offences.join("\n  "))
    }
}

fn table(workspace: &Workspace) -> Result<String> {
    fs::read_to_string(workspace.root().join(TABLE)).with_context(|| format!("cannot read {TABLE}"))
}

/// The rows of all tables in the text: three cells, none of them empty.
fn rows(text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut requirements = BTreeSet::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let Some(cells) = line
            .strip_prefix('|')
            .and_then(|rest| rest.strip_suffix('|'))
        else {
            continue;
        };
        let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
        if cells == ["Requirement", "Section", "Tests"] || cells == ["---"; 3] {
            continue;
        }
        let row = row(line_number, &cells).with_context(|| format!("{TABLE}:{line_number}"))?;
        ensure!(
            requirements.insert(cells[0].to_owned()),
            "{TABLE}:{line_number}: the same requirement is there twice"
        );
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "{TABLE} has no row");
    Ok(rows)
}

fn row(line: usize, cells: &[&str]) -> Result<Row> {
    let [requirement, section, tests] = cells else {
        bail!("a row is: | requirement | section | tests |");
    };
    ensure!(!requirement.is_empty(), "no requirement");
    ensure!(
        SECTIONS.iter().any(|known| section.starts_with(known)),
        "`{section}` is no section of a known revision"
    );
    // What is between backticks are names; what is between names is only punctuation.
    let parts: Vec<&str> = tests.split('`').collect();
    ensure!(parts.len() % 2 == 1, "a backtick is missing");
    let between = parts.iter().step_by(2);
    ensure!(
        between
            .clone()
            .all(|text| text.trim_matches([',', ' ']).is_empty()),
        "the third cell has names in backticks, separated by commas"
    );
    let proofs: Vec<String> = parts
        .iter()
        .skip(1)
        .step_by(2)
        .map(|name| (*name).to_owned())
        .collect();
    ensure!(!proofs.is_empty(), "no test proves it");
    Ok(Row { line, proofs })
}

/// The name in a line that begins a function.
fn function(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("fn ")?;
    let (name, _) = rest.split_once('(')?;
    let is_start = before.is_empty() || before.ends_with(' ');
    (is_start && !name.contains(' ')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# Title\n\n| Requirement | Section | Tests |\n|---|---|---|\n";

    fn proofs(row: &str) -> Result<Vec<String>> {
        let rows = rows(&format!("{HEAD}{row}\n"))?;
        Ok(rows.into_iter().flat_map(|row| row.proofs).collect())
    }

    #[test]
    fn row_names_its_tests() {
        assert_eq!(
            proofs("| A. | [TCP-1.0 §3.3] | `one`, `e2e: two words` |").unwrap(),
            ["one", "e2e: two words"]
        );
        assert_eq!(proofs("| A. | own | `one` |").unwrap(), ["one"]);
    }

    #[test]
    fn row_without_test_or_section_is_refused() {
        for row in [
            "| A. | [TCP-1.0 §3.3] | |",
            "| A. | [TCP-1.0 §3.3] | later |",
            "| A. | [TCP-1.0 §3.3] | `one` and `two` |",
            "| A. | [TCP-1.0 §3.3] | `one |",
            "| A. | [TCP-2.0 §3.3] | `one` |",
            "| A. | | `one` |",
            "| | own | `one` |",
            "| A. | own |",
            "| A. | own | `one` |\n| A. | own | `two` |",
        ] {
            assert!(proofs(row).is_err(), "{row}");
        }
    }

    #[test]
    fn test_that_failed_or_did_not_run_is_reported_with_its_line() {
        let mut ran = Outcomes::default();
        ran.read("test connect::tests::one ... ok");
        ran.read("test uring::two ... ok");
        ran.read("test epoll::two ... FAILED");
        ran.read("test three ... ignored");
        ran.read("test four - should panic ... ok");
        ran.read("test result: ok. 12 passed");
        let passed = |proof: &str| ran.0.get(proof) == Some(&true);
        assert!(passed("one") && passed("four"));
        assert!(!passed("two") && !passed("three") && !passed("five"));
        let rows = rows(&format!("{HEAD}| A. | own | `one`, `five` |\n")).unwrap();
        let error = report(&rows, "did not run and pass", passed).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("\n  {TABLE}:5: `five` did not run and pass")
        );
    }

    #[test]
    fn functions_are_found_by_their_first_line() {
        assert_eq!(function("    fn claim() {"), Some("claim"));
        assert_eq!(
            function("pub(crate) fn claim(io: IoBackend) {"),
            Some("claim")
        );
        assert_eq!(function("// a fn in words (so)"), None);
    }
}
