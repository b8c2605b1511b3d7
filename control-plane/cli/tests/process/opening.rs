//! How a pool is opened, as the log tells it.

use std::fs::{self, File};

use crate::harness::{DataPlane, bowline};
use crate::volumes::Drive;

#[test]
fn how_a_pool_is_opened_is_in_the_log_phase_by_phase() {
    let drive = Drive::new();
    assert_eq!(drive.start(&["--format"]).stop().code(), Some(0));
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let ports = ["--listen", "--rpc", "--metrics"].map(|flag| [flag, "127.0.0.1:0"]);
    let path = drive.path();
    let mut command = bowline(&[&["dataplane", "--device", &path], ports.as_flattened()].concat());
    command.stderr(File::create(&log).unwrap());
    assert_eq!(DataPlane::spawn(command).stop().code(), Some(0));
    let log = fs::read_to_string(log).unwrap();
    let told = log.lines().filter(|it| it.contains("pool is being opened"));
    let told: Vec<&str> = told.collect();
    let phases = ["superblocks", "journal", "groups of the journal", "bitmaps"];
    assert_eq!(told.len(), phases.len(), "{log}");
    for (line, phase) in told.iter().zip(phases) {
        assert!(line.contains(&format!("{phase:?}")), "{line}");
        assert!(line.contains("done=0") && line.contains("total="), "{line}");
    }
}
