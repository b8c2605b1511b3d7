//! The harness for real, but short: that it measures, what it writes, and what it leaves behind.
//! Never how fast anything is.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a machine that does many other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// The executables that are compared, of the build that this test belongs to.
fn executables() -> (PathBuf, PathBuf) {
    let folder = Path::new(env!("CARGO_BIN_EXE_bowline-compare"))
        .parent()
        .unwrap();
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--locked"])
        .args(["--package", "bowline", "--package", "bowline-loadgen"])
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success());
    (folder.join("bowline"), folder.join("bowline-perf"))
}

fn compare(output: &TempDir) -> Command {
    let (bowline, perf) = executables();
    let cores = std::thread::available_parallelism().unwrap().get();
    let client_core = if cores > 1 { "1" } else { "0" };
    let mut command = Command::new(env!("CARGO_BIN_EXE_bowline-compare"));
    command
        .arg("run")
        .arg("--bowline")
        .arg(bowline)
        .arg("--perf")
        .arg(perf)
        .arg("--output")
        .arg(output.path())
        .args(["--ungated", "--without=spdk", "--without=bowline-file"])
        .args(["--without=bowline-block", "--client-core", client_core]);
    command
}

#[test]
fn short_run_writes_a_document_a_table_and_a_chart() {
    let output = TempDir::new().unwrap();
    let run = compare(&output)
        .args(["--pairs=2", "--slice-ms=30", "--name=short", "read-4k-qd32"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{words}");

    let text = fs::read_to_string(output.path().join("short.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["schema_version"], 1);
    let cell = &document["cells"][0];
    assert_eq!(cell["name"], "read-4k-qd32");
    assert_eq!(cell["unpublished"], Value::Null);
    // Two pairs with itself and two with bare sockets.
    assert_eq!(cell["slices"].as_array().unwrap().len(), 8);
    let names: Vec<&str> = cell["contenders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["contender"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["bowline-mem", "bare"]);
    for contender in cell["contenders"].as_array().unwrap() {
        assert!(contender["iops"].as_f64().unwrap() > 0.0);
        assert!(contender["latency_p50_ns"].as_f64().unwrap() > 0.0);
        assert!(contender["memory_bytes"].as_u64().unwrap() > 0);
    }
    let bare = &cell["comparisons"][1];
    assert_eq!(bare["role"], "bare");
    for figure in bare["figures"].as_array().unwrap() {
        assert_eq!(figure["estimate"]["pairs"], 2);
        assert_eq!(figure["verdict"], "ungated");
    }

    let table = fs::read_to_string(output.path().join("short.md")).unwrap();
    assert!(table.contains("| read-4k-qd32 | bowline-perf | bowline-mem : bare |"));
    let chart = fs::read_to_string(output.path().join("short.svg")).unwrap();
    assert!(chart.starts_with("<svg ") && chart.ends_with("</svg>\n"));

    // The document is read back, and added to.
    let again = compare(&output)
        .args(["--name=short", "--append", "memory"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success(), "{words}");
    let text = fs::read_to_string(output.path().join("short.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["cells"].as_array().unwrap().len(), 1);
    assert_eq!(document["memory"][0]["contender"], "bowline-mem");
}

#[test]
fn idle_hosts_stay_connected() {
    let output = TempDir::new().unwrap();
    let run = compare(&output)
        .args(["--quick", "--name=idle", "idle"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{words}");
    let text = fs::read_to_string(output.path().join("idle.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["idle"][0]["hosts"], 16);
}

/// Whether the process was told to end or was killed, nothing that it started lives on.
#[test]
fn nothing_outlives_the_harness() {
    for signal in [Signal::TERM, Signal::KILL] {
        let output = TempDir::new().unwrap();
        let mut harness = compare(&output)
            .args(["--pairs=100", "--slice-ms=60000", "read-4k-qd1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(harness.stderr.take().unwrap()).lines();
        while !words.next().unwrap().unwrap().contains("measuring") {}
        let mut children = Vec::new();
        let started = until(|| {
            children = children_of(&harness);
            // A target and a client.
            children.len() >= 2
        });
        assert!(started, "{children:?}");
        kill_process(Pid::from_child(&harness), signal).unwrap();
        assert!(!harness.wait().unwrap().success());
        assert!(until(|| !children.iter().any(|pid| lives(*pid))));
    }
}

/// Asks again and again, as there is nothing that would tell.
fn until(mut done: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if done() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

fn children_of(parent: &Child) -> Vec<u32> {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| status(*pid, "PPid").is_some_and(|found| found == parent.id().to_string()))
        .collect()
}

fn lives(pid: u32) -> bool {
    status(pid, "State").is_some_and(|state| !state.starts_with('Z'))
}

fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}
