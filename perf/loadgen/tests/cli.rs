//! The executable: what it prints, and what it ends with.

mod common;

use std::process::{Command, Output};

use bowline_reactor::IoBackend;

use common::{Fault, Rig};

fn perf(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bowline-perf"));
    command.args(args).output().expect("it runs")
}

/// Runs, and checks the exit code and that the error says all of this.
fn refused(code: i32, args: &[&str], said: &[&str]) {
    let output = perf(args);
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    for part in said {
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
    assert!(output.stdout.is_empty(), "results only on stdout");
}

const TARGET: [&str; 5] = [
    "run",
    "--address",
    "127.0.0.1:1",
    "--subsystem",
    "nqn.2026-11.io.bowline:x",
];

#[test]
fn bad_flags_end_with_2_and_say_what_why_and_what_to_do() {
    let with = |flags: &[&'static str]| [&TARGET, flags].concat();
    refused(
        2,
        &with(&["--block-size", "100"]),
        &["error: block size of 100 B", "cause:", "hint:"],
    );
    refused(
        2,
        &with(&["--queue-depth", "0"]),
        &["queue depth of 0", "1 to 4095", "--queues"],
    );
    refused(
        2,
        &with(&["--queue-depth", "5000"]),
        &["queue depth of 5000"],
    );
    refused(2, &with(&["--connections", "0"]), &["--connections"]);
    refused(
        2,
        &with(&["--read-percent", "30"]),
        &["without a mixed workload", "--workload mixed"],
    );
    refused(2, &with(&["--arrivals", "poisson"]), &["--rate"]);
    refused(2, &with(&["--pattern", "gauss"]), &["gauss", "zipf"]);
    refused(2, &with(&["--duration", "5"]), &["50ms"]);
    refused(2, &with(&["--duration", "0"]), &["--duration"]);
    refused(2, &with(&["--commands", "0"]), &["--commands"]);
    refused(
        2,
        &with(&["--commands", "5", "--duration", "1s"]),
        &["--commands", "--duration"],
    );
    refused(
        2,
        &with(&["--commands", "5", "--rate", "5"]),
        &["--commands", "--rate"],
    );
    refused(2, &with(&["--poll", "sleep"]), &["spin", "park", "doze"]);
    refused(2, &with(&["--span", "1KiB"]), &["span of 1 KiB"]);
    refused(2, &with(&["--core", "100000"]), &["core 100000"]);
    refused(
        2,
        &with(&["--block-size", "1GiB", "--queue-depth", "4000"]),
        &["fit in memory"],
    );
    refused(
        2,
        &[
            "run",
            "--address",
            "nowhere",
            "--subsystem",
            "nqn.2026-11.io.bowline:x",
        ],
        &["is no address", "127.0.0.1:4420"],
    );
    refused(
        2,
        &[
            "run",
            "--address",
            "127.0.0.1:1",
            "--subsystem",
            &"x".repeat(300),
        ],
        &["no name for --subsystem"],
    );
    refused(2, &["ceiling", "--verify"], &["keeps no data"]);
}

#[test]
fn target_that_is_not_there_or_cannot_do_it_ends_with_1() {
    refused(
        1,
        &TARGET,
        &["not connected", "connection lost or refused", "hint:"],
    );
    let rig = Rig::new(IoBackend::Auto, Fault::None);
    let address = rig.address.to_string();
    let with = |flags: &[&'static str]| {
        let mut args = vec![
            "run",
            "--address",
            address.as_str(),
            "--subsystem",
            rig.subsystem(),
        ];
        args.extend(flags);
        refused(1, &args, &["error:", "cause:", "hint:"]);
    };
    with(&["--namespace", "2"]);
    with(&["--block-size", "512"]);
    with(&["--block-size", "16MiB", "--queue-depth", "1"]);
    with(&["--queue-depth", "4000"]);
    with(&["--span", "1GiB"]);
}

#[test]
fn json_has_the_fields_that_programs_count_on() {
    let rig = Rig::new(IoBackend::Auto, Fault::None);
    let address = rig.address.to_string();
    let flags = [
        "--poll",
        "park",
        "--warm-up",
        "5ms",
        "--duration",
        "50ms",
        "-o",
        "json",
    ];
    let mut args = vec!["run", "--address", &address, "--subsystem", rig.subsystem()];
    args.extend(flags);
    let output = perf(&args);
    assert_eq!(output.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["schema_version"], 1);
    for field in [
        "iops",
        "bytes_per_second",
        "client_cpu_seconds",
        "commands",
        "duration_seconds",
    ] {
        assert!(
            json[field].as_f64().is_some_and(|value| value > 0.0),
            "{field}"
        );
    }
    assert_eq!(json["errors"], 0);
    for field in [
        "p50", "p90", "p99", "p99_9", "p99_99", "p99_999", "max", "mean", "count",
    ] {
        assert!(json["latency_ns"].get(field).is_some(), "{field}");
    }
    assert!(json["latency_ns"]["p99_999"].is_null(), "too few samples");
    assert!(
        json["histogram"]
            .as_str()
            .is_some_and(|text| text.starts_with("HIST"))
    );
    assert_eq!(json["poll"], "park");
}

#[test]
fn command_that_fails_its_verification_ends_with_1_and_a_table() {
    let rig = Rig::new(IoBackend::Auto, Fault::LoseWrite(3));
    let address = rig.address.to_string();
    let flags = [
        "--verify",
        "--span",
        "64KiB",
        "--poll",
        "park",
        "--warm-up",
        "0",
        "--duration",
        "10ms",
    ];
    let mut args = vec![
        "run",
        "--address",
        &address,
        "--subsystem",
        rig.subsystem(),
        "--queue-depth",
        "4",
    ];
    args.extend(flags);
    let output = perf(&args);
    assert_eq!(output.status.code(), Some(1));
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(stdout.contains("lost: nothing of this run"), "{stdout}");
    assert!(stderr.contains("do not hold what they should"), "{stderr}");
}
