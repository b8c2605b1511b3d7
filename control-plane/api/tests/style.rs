//! The protos keep the rules of the house: every message, field, call and value is
//! explained, quantities carry units, enums begin with an unspecified zero.

#![expect(clippy::unwrap_used, reason = "tests, their helpers included")]

use std::fs;
use std::path::Path;

/// Calls `check` with each line that declares something, and the line before it.
fn declarations(mut check: impl FnMut(&str, &str, &str)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/bowline/dataplane/v1");
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut before = "";
        for line in text.lines().map(str::trim) {
            check(&file, before, line);
            before = line;
        }
        files += 1;
    }
    assert_eq!(files, 3);
}

fn is_field(line: &str) -> bool {
    !line.starts_with("//")
        && line.contains(" = ")
        && line.ends_with(';')
        && !line.starts_with("syntax")
}

#[test]
fn everything_is_explained() {
    declarations(|file, before, line| {
        let declares = is_field(line)
            || ["message ", "enum ", "rpc "]
                .iter()
                .any(|word| line.starts_with(word));
        assert!(
            !declares || before.starts_with("//"),
            "{file}: no comment before {line:?}"
        );
    });
}

#[test]
fn integers_carry_their_unit_or_what_they_count() {
    const SUFFIXES: [&str; 8] = [
        "_bytes",
        "_bytes_per_second",
        "_count",
        "_ms",
        "_index",
        "_size",
        "nsid",
        "id",
    ];
    declarations(|file, _, line| {
        let line = line.strip_prefix("optional ").unwrap_or(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["int32" | "int64", name, "=", ..] = words[..] {
            let named = SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
            // Positions of things: a reactor's own, and the CPU's number.
            assert!(
                named || name == "index" || name == "cpu",
                "{file}: {name} has no unit"
            );
        }
        assert!(!line.starts_with("uint"), "{file}: {line:?} is not signed");
    });
}

#[test]
fn first_value_of_an_enum_is_unspecified() {
    declarations(|file, _, line| {
        let is_zero = is_field(line) && line.ends_with(" = 0;");
        assert!(
            !is_zero || line.contains("_UNSPECIFIED"),
            "{file}: {line:?}"
        );
    });
}
