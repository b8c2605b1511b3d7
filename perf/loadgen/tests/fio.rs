//! The runner with a real fio on a plain file.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const FILE_BYTES: u64 = 16 << 20;

/// A file where O_DIRECT works, which it does not in every machine's temporary folder.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// None where there is no fio; the test then says so and ends.
    fn new() -> Option<Self> {
        if Command::new("fio").arg("--version").output().is_err() {
            eprintln!("skipped: fio is not installed");
            return None;
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Self { folder };
        File::create(disk.path())
            .unwrap()
            .set_len(FILE_BYTES)
            .unwrap();
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("a:disk")
    }

    fn fio(&self, arguments: &[&str]) -> Output {
        run(&self.path(), arguments)
    }
}

fn run(device: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bowline-perf"));
    command
        .arg("fio")
        .arg("--device")
        .arg(device)
        .args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every job's operations by the name of its row.
fn operations(report: &Value) -> Vec<(String, Vec<String>)> {
    let jobs = report["jobs"].as_array().unwrap().iter();
    let names = |job: &Value| {
        let operations = job["operations"].as_array().unwrap().iter();
        let names = operations.map(|operation| operation["operation"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    jobs.map(|job| (job["name"].as_str().unwrap().to_owned(), names(job)))
        .collect()
}

#[test]
fn every_job_that_may_run_without_a_name_gives_its_row() {
    let Some(disk) = Disk::new() else { return };
    let flags = [
        "--destroy",
        "--runtime",
        "50ms",
        "--size",
        "8MiB",
        "--engine",
        "libaio",
    ];
    let output = disk.fio(&[flags.as_slice(), &["-o", "json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let read = ["read"].map(str::to_owned).to_vec();
    let write = ["write"].map(str::to_owned).to_vec();
    let both = [read.clone(), write.clone()].concat();
    let flushed = ["write", "flush"].map(str::to_owned).to_vec();
    let expected = [
        ("latency-read", &read),
        ("iops-read", &read),
        ("iops-read-max", &read),
        ("bandwidth-read", &read),
        ("open-loop", &read),
        ("latency-write", &write),
        ("in-capsule/write-8k", &write),
        ("in-capsule/write-16k", &write),
        ("in-capsule/write-32k", &write),
        ("sync-write", &flushed),
        ("iops-write", &write),
        ("iops-write-max", &write),
        ("bandwidth-write", &write),
        ("mixed", &both),
        ("oltp", &both),
        ("verify", &both),
    ];
    let expected = expected.map(|(name, operations)| (name.to_owned(), operations.clone()));
    assert_eq!(operations(&report), expected);
    for job in report["jobs"].as_array().unwrap() {
        assert_eq!(job["errors"], 0, "{job}");
    }
    let verify = &report["jobs"][15]["operations"];
    assert_eq!(
        verify[0]["commands"], verify[1]["commands"],
        "all that was written is read"
    );
    assert_eq!(report["device"]["bytes"], FILE_BYTES);
}

#[test]
fn precondition_writes_everything_twice_and_says_whether_it_is_steady() {
    let Some(disk) = Disk::new() else { return };
    let flags = [
        "--destroy",
        "--only",
        "precondition",
        "--runtime",
        "50ms",
        "-o",
        "json",
    ];
    let output = disk.fio(&[flags.as_slice(), &["--engine", "libaio"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let fill = &report["jobs"][0]["operations"][0];
    assert_eq!(fill["commands"], 2 * FILE_BYTES / (128 << 10));
    assert_eq!(report["jobs"][1]["steady_state"], false);
}

#[test]
fn nothing_is_written_without_leave() {
    let Some(disk) = Disk::new() else { return };
    let before = std::fs::read(disk.path()).unwrap();
    let refused = disk.fio(&["--only", "latency-write", "--runtime", "50ms"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(
        said.contains("would write to") && said.contains("--destroy"),
        "{said}"
    );

    let flags = ["--runtime", "50ms", "--engine", "libaio"];
    let reads = disk.fio(&flags);
    assert_eq!(reads.status.code(), Some(0), "{}", text(&reads.stderr));
    let said = text(&reads.stderr);
    assert!(
        said.contains("left out, because they write: latency-write"),
        "{said}"
    );
    let rows = text(&reads.stdout);
    assert!(rows.contains("\nlatency-read           read"), "{rows}");
    assert!(!rows.contains("write"), "{rows}");
    assert_eq!(std::fs::read(disk.path()).unwrap(), before);
}

/// What the folder's job is taken for does not matter: fio itself is told to read only.
#[test]
fn job_that_hides_its_writes_is_stopped_by_fio() {
    let Some(disk) = Disk::new() else { return };
    let jobs = tempfile::tempdir().unwrap();
    // The last of them counts for fio, the name without an alias for the runner.
    let hidden = "[global]\nfilename=${BOWLINE_DEVICE}\n[hidden]\nreadwrite=write\nrw=read\nreadwrite=write\n";
    std::fs::write(jobs.path().join("hidden.fio"), hidden).unwrap();
    let folder = jobs.path().to_str().unwrap();
    let output = disk.fio(&["--jobs", folder]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let said = text(&output.stderr);
    assert!(said.contains("read-only"), "{said}");
}

#[test]
fn failed_job_is_a_row_with_what_fio_says_and_the_next_one_runs() {
    let Some(disk) = Disk::new() else { return };
    let jobs = tempfile::tempdir().unwrap();
    let shared = "filename=${BOWLINE_DEVICE}\nioengine=null\nsize=1m\n";
    let write = |name: &str, text: &str| {
        std::fs::write(jobs.path().join(name), text).unwrap();
    };
    write("shared.fio", shared);
    write("a.fio", "[global]\ninclude shared.fio\n[a]\nbs=nonsense\n");
    write(
        "b.fio",
        "# B.\n[global]\ninclude shared.fio\n[b]\nrw=read\n",
    );
    let folder = jobs.path().to_str().unwrap();
    let output = disk.fio(&["--jobs", folder]);
    assert_eq!(output.status.code(), Some(1));
    let (rows, said) = (text(&output.stdout), text(&output.stderr));
    assert!(rows.contains("\na                      -"), "{rows}");
    assert!(
        rows.contains("error: ") && rows.contains("nonsense"),
        "{rows}"
    );
    assert!(rows.contains("\nb                      read"), "{rows}");
    assert!(said.contains("failed: a\n"), "{said}");
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let Some(disk) = Disk::new() else { return };
    let code = |arguments: &[&str]| disk.fio(arguments).status.code();
    assert_eq!(code(&["--only", "nothing"]), Some(2));
    assert_eq!(code(&["--size", "1GiB"]), Some(2));
    assert_eq!(code(&["--jobs", "nowhere"]), Some(2));
    assert_eq!(run(Path::new("/dev/none"), &[]).status.code(), Some(1));
    let list = disk.fio(&["--list"]);
    assert!(text(&list.stdout).contains("\nverify (writes)\n  Random writes"));
}
