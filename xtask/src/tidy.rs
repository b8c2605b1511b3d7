//! House rules that no compiler knows. Each is small; a rule outside this file is only a wish.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Above this many lines that are not tests a file holds more than one subject.
const FILE_LINES_MAX: usize = 1200;

/// Text that ties the tree to one machine or promises work instead of doing it. Written in halves,
/// because this file is searched too.
const BANNED: &[(&str, &str, &str)] = &[
    ("/wo", "rk/", "path of one machine"),
    ("/ro", "ot/", "path of one machine"),
    ("/home", "/", "path of one machine"),
    ("/tmp", "/bl", "path of one machine"),
    ("TO", "DO", "placeholder: do it, or open an issue"),
    ("FIX", "ME", "placeholder: do it, or open an issue"),
    ("unimple", "mented!", "placeholder"),
];

/// Every tidy rule; the error names each offence with its place.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut offences = Vec::new();
    for path in workspace.files()? {
        let Ok(text) = fs::read_to_string(workspace.root().join(&path)) else {
            continue; // not text: images, golden bytes
        };
        offences.extend(banned_text(&path, &text));
        if path.extension().is_some_and(|extension| extension == "rs") && !is_test_file(&path) {
            offences.extend(too_long(&path, &text));
        }
    }
    offences.extend(unmapped_crates(workspace)?);
    if offences.is_empty() {
        Ok(())
    } else {
        bail!("\n  {}", offences.join("\n  "))
    }
}

fn banned_text(path: &Path, text: &str) -> Vec<String> {
    let mut offences = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for (head, tail, why) in BANNED {
            if line.contains(&format!("{head}{tail}")) {
                offences.push(format!("{}:{}: {why}", path.display(), index + 1));
            }
        }
    }
    offences
}

fn too_long(path: &Path, text: &str) -> Option<String> {
    let lines = lines_before_tests(text);
    (lines > FILE_LINES_MAX).then(|| {
        format!(
            "{}: {lines} lines without tests, at most {FILE_LINES_MAX}",
            path.display()
        )
    })
}

/// Tests are the last module of a file, so the first `#[cfg(test)]` at the margin ends the subject.
fn lines_before_tests(text: &str) -> usize {
    text.lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .count()
}

fn is_test_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// The architecture documents are a map; a crate that is not on it is lost.
fn unmapped_crates(workspace: &Workspace) -> Result<Vec<String>> {
    let mut offences = Vec::new();
    for (plane, chapter) in [
        ("dataplane", "dataplane/ARCHITECTURE.md"),
        ("control-plane", "control-plane/ARCHITECTURE.md"),
    ] {
        let path = workspace.root().join(chapter);
        let map = fs::read_to_string(&path).with_context(|| format!("{chapter} is missing"))?;
        for folder in crate_folders(workspace, plane)? {
            if !map.contains(&format!("`{folder}`")) {
                offences.push(format!("{chapter} does not mention `{folder}`"));
            }
        }
    }
    Ok(offences)
}

fn crate_folders(workspace: &Workspace, plane: &str) -> Result<Vec<String>> {
    let base: PathBuf = workspace.root().join(plane);
    let members = workspace.members()?;
    let folders = members
        .iter()
        .filter_map(|member| member.folder.strip_prefix(&base).ok());
    Ok(folders
        .map(|folder| folder.to_string_lossy().into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_path_is_an_offence() {
        let text = format!("fine\nlet path = \"{}{}main\";\n", "/wo", "rk/");
        assert_eq!(
            banned_text(Path::new("a.rs"), &text),
            ["a.rs:2: path of one machine"]
        );
    }

    #[test]
    fn tests_do_not_count_as_length() {
        let subject = "fn a() {}\n".repeat(FILE_LINES_MAX);
        assert!(
            too_long(
                Path::new("a.rs"),
                &format!("{subject}#[cfg(test)]\nmod tests;")
            )
            .is_none()
        );
        assert!(too_long(Path::new("a.rs"), &format!("{subject}fn b() {{}}\n")).is_some());
    }

    #[test]
    fn test_files_are_known_by_name_or_folder() {
        assert!(is_test_file(Path::new("dataplane/nvmf/tests/loopback.rs")));
        assert!(is_test_file(Path::new(
            "dataplane/nvmf/src/target/tests.rs"
        )));
        assert!(!is_test_file(Path::new("dataplane/nvmf/src/target.rs")));
    }
}
