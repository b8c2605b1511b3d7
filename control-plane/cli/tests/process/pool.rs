//! `bowline pool` over images of version 1, as they are and damaged.

use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::harness::run;

const IMAGES: [&str; 2] = [
    include_str!("../../../../dataplane/pool/golden/v1-512.txt"),
    include_str!("../../../../dataplane/pool/golden/v1-4096.txt"),
];

/// Where the journal of the images begins.
const JOURNAL: u64 = (1 << 20) + 4096;

fn image(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    for line in text.lines() {
        let (at, value) = line.split_once(' ').unwrap();
        if at == "bytes" {
            file.as_file().set_len(value.parse().unwrap()).unwrap();
            continue;
        }
        let bytes: Vec<u8> = (0..value.len() / 2)
            .map(|index| u8::from_str_radix(&value[2 * index..2 * index + 2], 16).unwrap())
            .collect();
        file.seek(SeekFrom::Start(u64::from_str_radix(at, 16).unwrap()))
            .unwrap();
        file.write_all(&bytes).unwrap();
    }
    file
}

fn damage(file: &mut NamedTempFile, at: u64) {
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[0x55; 16]).unwrap();
}

fn pool(verb: &str, file: &NamedTempFile, more: &[&str]) -> (i32, String, String) {
    let path: PathBuf = file.path().into();
    let mut arguments = vec!["pool", verb, path.to_str().unwrap()];
    arguments.extend(more);
    run(&arguments)
}

#[test]
fn a_pool_is_shown_to_people_and_programs() {
    for text in IMAGES {
        let file = image(text);
        let (code, out, err) = pool("inspect", &file, &[]);
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(
            out.contains("6f1c91a8-53d4-4a7e-8f6a-0a4c2b7e11d0 \"tiny\""),
            "{out}"
        );
        assert!(out.contains("2 \"scratch\""), "{out}");
        assert!(out.ends_with("nothing wrong was found\n"), "{out}");
        let (code, out, _) = pool("check", &file, &["-o", "json"]);
        assert_eq!(code, 0);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["label"], "tiny");
        assert_eq!(report["formatVersion"], 1);
        assert_eq!(report["volumes"][0]["snapshots"][1]["name"], "tuesday");
        assert_eq!(report["volumes"][1]["base"]["volume"], 1);
        assert_eq!(report["findings"], Value::Array(Vec::new()));
    }
}

#[test]
fn a_damaged_journal_is_found_and_not_repaired() {
    let mut file = image(IMAGES[0]);
    damage(&mut file, JOURNAL + 512);
    let before = std::fs::read(file.path()).unwrap();
    let (code, out, err) = pool("check", &file, &[]);
    assert_eq!(code, 1);
    assert!(
        out.contains("damage       journal: the journal is damaged at sector 129"),
        "{out}"
    );
    assert!(err.contains("is damaged\nhint:  copy the drive"), "{err}");
    // To look is not to judge.
    assert_eq!(pool("inspect", &file, &[]).0, 0);
    let (code, _, err) = pool("repair", &file, &["--yes"]);
    assert_eq!(code, 1);
    assert!(
        err.contains("nothing was changed, since the pool is damaged"),
        "{err}"
    );
    assert!(std::fs::read(file.path()).unwrap() == before);
}

#[test]
fn a_damaged_superblock_is_repaired_when_that_is_asked_for() {
    for at in [0, 1 << 20] {
        let mut file = image(IMAGES[1]);
        let good = std::fs::read(file.path()).unwrap();
        damage(&mut file, at);
        assert_eq!(pool("check", &file, &[]).0, 0);
        let (code, out, _) = pool("repair", &file, &[]);
        assert_eq!((code, out.contains("say --yes")), (0, true), "{out}");
        assert!(std::fs::read(file.path()).unwrap() != good);
        assert_eq!(pool("repair", &file, &["--yes"]).0, 0);
        assert!(std::fs::read(file.path()).unwrap() == good);
        assert_eq!(pool("repair", &file, &["--yes"]).1, "nothing to repair\n");
    }
}

#[test]
fn what_is_in_use_is_only_shown() {
    let file = image(IMAGES[0]);
    flock(file.as_file(), FlockOperation::LockExclusive).unwrap();
    let (code, out, _) = pool("inspect", &file, &[]);
    assert_eq!(code, 0);
    assert!(
        out.contains("in use: what follows may be changing"),
        "{out}"
    );
    for arguments in [("check", &[][..]), ("repair", &["--yes"])] {
        let (code, _, err) = pool(arguments.0, &file, arguments.1);
        assert_eq!(code, 1);
        assert!(err.contains("cause: it is in use"), "{err}");
    }
}

#[test]
fn what_is_no_pool_is_refused_with_a_hint() {
    let mut file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    let (code, _, err) = pool("inspect", &file, &[]);
    assert_eq!(code, 1);
    assert!(
        err.contains("cause: the drive is not a pool: it is blank"),
        "{err}"
    );
    file.write_all(b"XFSB").unwrap();
    let (_, _, err) = pool("check", &file, &[]);
    assert!(err.contains("it holds an XFS file system"), "{err}");
    let (code, _, err) = run(&["pool", "inspect", "/dev/null"]);
    assert_eq!(code, 1);
    assert!(err.contains("hint:  name a block device"), "{err}");
    assert_eq!(run(&["pool", "inspect", "/nowhere"]).0, 1);
}

#[test]
fn a_scrub_that_would_never_end_is_refused() {
    // Nobody is asked: there is no data plane.
    let (code, _, err) = run(&["pool", "scrub", "--rate", "0", "--rpc", "127.0.0.1:1"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("would never end"), "{err}");
}
