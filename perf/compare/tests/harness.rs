//! The harness for real, but short: that it measures, what it writes, and what it leaves behind.
//! Never how fast anything is.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a machine that does many other things.
const PATIENCE_S: i64 = 60;

/// The executables that are compared, of the build that this test belongs to.
fn executables() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> (PathBuf, PathBuf) {
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

fn compare(output: &TempDir, perf: &Path) -> Command {
    let (bowline, _) = executables();
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
    let run = compare(&output, &executables().1)
        .args(["--pairs=2", "--slice-ms=30", "--name=short", "read-4k-qd32"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{words}");

    let text = fs::read_to_string(output.path().join("short.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["schema_version"], 2);
    let cell = &document["cells"][0];
    assert_eq!(cell["name"], "read-4k-qd32");
    assert_eq!(cell["unpublished"], Value::Null);
    // Two cycles of the subject, its twin and bare sockets, the second backwards.
    let order: Vec<&str> = cell["slices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["contender"].as_str().unwrap())
        .collect();
    let there = ["bowline-mem", "bare", "bowline-mem-2"];
    assert_eq!(order[..3], there);
    assert!(order[3..].iter().rev().eq(there.iter()));
    let names: Vec<&str> = cell["contenders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["contender"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["bowline-mem", "bowline-mem-2", "bare"]);
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

    // What was measured in another way is not added to it.
    let other = compare(&output, &executables().1)
        .args(["--slice-ms=31", "--name=short", "--append", "memory"])
        .output()
        .unwrap();
    assert!(!other.status.success());
    let words = String::from_utf8_lossy(&other.stderr);
    assert!(words.contains("different settings"), "{words}");
    assert_eq!(
        fs::read_to_string(output.path().join("short.json")).unwrap(),
        text
    );

    // The document is read back, and added to.
    let again = compare(&output, &executables().1)
        .args(["--slice-ms=30", "--name=short", "--append", "memory"])
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
fn slices_that_use_up_what_they_need_have_targets_of_their_own() {
    let output = TempDir::new().unwrap();
    // A file system on a disk takes long to find room for many blocks that are not together.
    let memory = Path::new("/dev/shm");
    let scratch = match memory.is_dir() {
        true => TempDir::new_in(memory).unwrap(),
        false => TempDir::new().unwrap(),
    };
    let run = compare(&output, &executables().1)
        .args([
            "--engine=pool",
            "--pairs=2",
            "--slice-ms=30",
            "--name=first",
        ])
        .args(["--scratch".as_ref(), scratch.path().as_os_str()])
        .arg("first-write-4k-qd1")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{words}");
    let text = fs::read_to_string(output.path().join("first.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let cell = &document["cells"][0];
    assert_eq!(cell["cell"]["state"], "blank");
    assert_eq!(cell["slices"].as_array().unwrap().len(), 6);
    let contenders = cell["contenders"].as_array().unwrap();
    let names: Vec<&str> = contenders
        .iter()
        .map(|one| one["contender"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["bowline-pool", "bowline-pool-2", "bowline-pool-verify"]
    );
    for contender in contenders {
        assert!(contender["iops"].as_f64().unwrap() > 0.0);
        assert!(contender["memory_bytes"].as_u64().unwrap() > 0);
    }

    // There is nothing to measure of what is not served.
    let other = compare(&output, &executables().1)
        .args(["--name=first", "recovery"])
        .output()
        .unwrap();
    assert!(!other.status.success());
    let words = String::from_utf8_lossy(&other.stderr);
    assert!(words.contains("recovery needs --engine pool"), "{words}");
}

#[test]
fn idle_hosts_stay_connected() {
    let output = TempDir::new().unwrap();
    let run = compare(&output, &executables().1)
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
        let (client, begun) = endless_client(&output);
        let mut harness = compare(&output, &client)
            .args(["--pairs=100", "read-4k-qd1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(happens(&begun), "no client");
        let children = children_of(&harness);
        // At least a target and a client.
        assert!(children.len() >= 2, "{children:?}");
        kill_process(Pid::from_child(&harness), signal).unwrap();
        assert!(!harness.wait().unwrap().success());
        for child in &children {
            assert!(happens(child), "{child:?} lives");
        }
    }
}

/// A client that says through a pipe that it runs, and then does not end.
fn endless_client(folder: &TempDir) -> (PathBuf, OwnedFd) {
    let pipe = folder.path().join("begun");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let script = folder.path().join("client");
    let text = format!(
        "#!/bin/sh\necho begun > {}\nexec sleep 600\n",
        pipe.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    // Not blocking: nobody writes yet.
    let begun = open(&pipe, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    (script, begun)
}

/// Waits for words in a pipe, or for the end of a process, whoever's child it is by now.
fn happens(event: &OwnedFd) -> bool {
    let limit = Timespec {
        tv_sec: PATIENCE_S,
        tv_nsec: 0,
    };
    let mut events = [PollFd::new(event, PollFlags::IN)];
    poll(&mut events, Some(&limit)).unwrap() == 1
}

fn children_of(parent: &Child) -> Vec<OwnedFd> {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent_of(*pid).is_some_and(|found| found == parent.id()))
        .filter_map(|pid| {
            let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        })
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}
