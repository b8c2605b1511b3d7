//! The data-plane process from the outside: flags, ready line, errors, metrics, stop.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::harness::{DataPlane, bowline, finish, run, terminate};

const MEMORY: [&str; 2] = ["--memory", "16MiB"];
const FREE_PORTS: [&str; 6] = [
    "--listen",
    "127.0.0.1:0",
    "--rpc",
    "127.0.0.1:0",
    "--metrics",
    "127.0.0.1:0",
];

#[test]
fn ready_line_names_what_listens() {
    let plane = DataPlane::start(&MEMORY);
    assert_eq!(plane.ready.listen.len(), 1);
    for address in [plane.ready.listen[0], plane.ready.rpc, plane.ready.metrics] {
        assert_ne!(address.port(), 0);
        TcpStream::connect(address).unwrap();
    }
    assert_ne!(plane.ready.pid, 0);
}

#[test]
fn several_listeners_are_named_in_order() {
    let plane = DataPlane::start(&[&MEMORY[..], &["--listen", "127.0.0.1:0"]].concat());
    assert_eq!(plane.ready.listen.len(), 2);
    assert_ne!(plane.ready.listen[0], plane.ready.listen[1]);
}

#[test]
fn sigterm_ends_with_success() {
    let plane = DataPlane::start(&MEMORY);
    assert_eq!(plane.stop().code(), Some(0));
}

#[test]
fn sigterm_during_the_start_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let drive = folder.path().join("drive");
    std::fs::File::create(&drive)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    let device = ["--device", drive.to_str().unwrap()];
    // The second one asks for the device again and again for a while, as its user may be ending.
    let _user = DataPlane::start(&device);
    let mut process = bowline(&["dataplane"])
        .args(FREE_PORTS)
        .args(device)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("configuration in effect") {
        assert_ne!(log.read_line(&mut said).unwrap(), 0, "ended after {said}");
    }
    terminate(&process);
    log.read_to_string(&mut said).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0), "{said}");
    assert!(
        said.contains("stopped before anything was served"),
        "{said}"
    );
}

#[test]
fn unread_log_does_not_stop_the_data_plane() {
    // Nobody reads the other end, and it is full.
    let (_unread, full) = rustix::pipe::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&full).unwrap();
    rustix::fs::fcntl_setfl(&full, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&full, &[b'x'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&full, flags).unwrap();
    let mut command = bowline(&["dataplane", "--log-level", "trace"]);
    command.args(FREE_PORTS).args(MEMORY).stderr(full);
    let plane = DataPlane::spawn(command);
    let (code, _, stderr) = run(&["subsystem", "list", "--rpc", &plane.rpc()]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(plane.stop().code(), Some(0));
}

#[test]
fn management_goes_on_after_descriptors_ran_out() {
    let (log, writer) = std::io::pipe().unwrap();
    let mut command = bowline(&["dataplane"]);
    command.args(FREE_PORTS).args(MEMORY).stderr(writer);
    let plane = DataPlane::spawn(command);
    let pid = i32::try_from(plane.ready.pid).ok().and_then(Pid::from_raw);
    let usual = getrlimit(Resource::Nofile);
    let limit = |current| {
        let maximum = usual.maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
    };
    let folder = format!("/proc/{}/fd", plane.ready.pid);
    let taken: BTreeSet<u64> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    limit((0..).find(|number| !taken.contains(number)));
    let _waiting = TcpStream::connect(plane.ready.rpc).unwrap();
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let _nobody_asks = sender.send(line);
        }
    });
    let patience = Duration::from_secs(60);
    while !lines
        .recv_timeout(patience)
        .expect("it says that it takes no connection")
        .contains("no connection taken")
    {}
    limit(usual.current);
    let (code, _, stderr) = run(&["subsystem", "list", "--rpc", &plane.rpc()]);
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn disks_of_one_name_have_different_default_identities() {
    let folder = tempfile::tempdir().unwrap();
    let mut identities = Vec::new();
    for name in ["x", "y"] {
        let drive = folder.path().join(name).join("disk.img");
        std::fs::create_dir(drive.parent().unwrap()).unwrap();
        std::fs::File::create(&drive)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        let plane = DataPlane::start(&["--node", "n", "--device", drive.to_str().unwrap()]);
        let rpc = plane.rpc();
        let (_, stdout, _) = run(&["namespace", "list", "-o", "json", "--rpc", &rpc]);
        let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let item = list["items"][0].clone();
        let nqn = item["subsystemNqn"].as_str().unwrap();
        assert!(
            nqn.starts_with("nqn.2026-11.io.bowline:n:disk.img-"),
            "{nqn}"
        );
        identities.push((item["subsystemNqn"].clone(), item["uuid"].clone()));
    }
    assert_ne!(identities[0].0, identities[1].0);
    assert_ne!(identities[0].1, identities[1].1);
}

#[test]
fn metrics_tell_backend_and_build() {
    let plane = DataPlane::start(&MEMORY);
    let text = plane.scrape();
    for expected in [
        "bowline_reactor_io_backend_info{",
        "bowline_reactor_turns_total{reactor=\"0\"} ",
        "bowline_build_info{version=\"",
        "bowline_target_io_bytes_total{subsystem=",
        "bowline_server_namespaces 1",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
}

#[test]
fn epoll_backend_is_named_in_the_metrics() {
    let plane = DataPlane::start(&[&MEMORY[..], &["--io", "epoll"]].concat());
    let text = plane.scrape();
    assert!(text.contains("backend=\"epoll\""), "{text}");
    assert_eq!(plane.stop().code(), Some(0));
}

#[test]
fn port_in_use_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, purpose) in [
        ("--listen", "NVMe/TCP"),
        ("--rpc", "the management API"),
        ("--metrics", "metrics"),
    ] {
        let mut line = vec!["dataplane", "--memory", "16MiB"];
        for other in ["--listen", "--rpc", "--metrics"] {
            line.extend([
                other,
                if other == flag {
                    &address
                } else {
                    "127.0.0.1:0"
                },
            ]);
        }
        let (code, stdout, stderr) = run(&line);
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        assert!(stderr.contains(&format!("error: cannot listen on {address} for {purpose}")));
        assert!(
            stderr.contains("cause: another process listens there already"),
            "{stderr}"
        );
        assert!(
            stderr.contains(&format!("another port with {flag}")),
            "{stderr}"
        );
    }
}

#[test]
fn busy_device_says_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let drive = folder.path().join("drive");
    std::fs::File::create(&drive)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    let device = ["--device", drive.to_str().unwrap()];
    let first = DataPlane::start(&device);
    let (code, _, stderr) = start_failing(&device);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("cannot be served"), "{stderr}");
    assert!(
        stderr.contains(&format!("in use by process {}", first.ready.pid)),
        "{stderr}"
    );
    assert!(stderr.contains("hint:"), "{stderr}");
    // Free again once its user has ended.
    assert_eq!(first.stop().code(), Some(0));
    drop(DataPlane::start(&device));
}

#[test]
fn device_that_cannot_be_served_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    for (path, expected) in [
        (folder.path().join("absent"), "does not exist"),
        (folder.path().to_owned(), "is a directory"),
        (empty, "less than one block"),
    ] {
        let (code, _, stderr) = start_failing(&["--device", path.to_str().unwrap()]);
        assert_eq!(code, 1, "{stderr}");
        assert!(
            stderr.contains(expected) && stderr.contains("hint:"),
            "{stderr}"
        );
    }
}

#[test]
fn cpu_that_is_not_there_is_explained() {
    let (code, _, stderr) = start_failing(&["--memory", "16MiB", "--cores", "1000"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("error: reactor 0 not started"), "{stderr}");
    assert!(
        stderr.contains("1000") && stderr.contains("--cores"),
        "{stderr}"
    );
}

#[test]
fn memory_that_is_not_there_is_explained() {
    let (code, _, stderr) = start_failing(&["--memory", "4000TiB"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("of memory is not served"), "{stderr}");
    assert!(stderr.contains("hint:  check the size"), "{stderr}");
}

#[test]
fn wrong_usage_exits_with_2() {
    for line in [
        &["dataplane"][..],
        &["dataplane", "--memory", "16MiB", "--device", "/dev/null"],
        &["dataplane", "--memory", "16MiB", "--engine", "spdk"],
        &[
            "dataplane",
            "--memory",
            "16MiB",
            "--controller",
            "http://127.0.0.1:1",
        ],
        &["dataplane", "--memory", "16MiB", "--bogus"],
        &["subsystem"],
        &["bogus"],
    ] {
        let (code, stdout, stderr) = run(line);
        assert_eq!((code, stdout.as_str()), (2, ""), "{line:?}: {stderr}");
        assert!(!stderr.is_empty(), "{line:?}");
    }
}

#[test]
fn environment_stands_for_flags_and_the_command_line_wins() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    let mut command = bowline(&["dataplane", "--memory", "16MiB"]);
    command
        .env("BOWLINE_DEVICE", absent)
        .env("BOWLINE_NODE", "from-environment");
    command.env("BOWLINE_LISTEN", "127.0.0.1:0,127.0.0.1:0");
    command
        .env("BOWLINE_RPC", "127.0.0.1:0")
        .env("BOWLINE_METRICS", "127.0.0.1:0");
    let plane = DataPlane::spawn(command);
    assert_eq!(plane.ready.listen.len(), 2);
    let (code, stdout, _) = run(&["subsystem", "list", "--rpc", &plane.rpc()]);
    assert_eq!(code, 0);
    assert!(
        stdout.contains("nqn.2026-11.io.bowline:from-environment:memory-"),
        "{stdout}"
    );
}

#[test]
fn check_config_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bowline.toml");
    std::fs::write(&file, "memory = \"16MiB\"\nhost = [\"any\"]\n").unwrap();
    let file = file.to_str().unwrap();
    let (code, stdout, stderr) = run(&["dataplane", "--config", file, "--check-config"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", ""));
    std::fs::write(file, "memory = \"16MiB\"\nhosts = [\"any\"]\n").unwrap();
    let (code, _, stderr) = run(&["dataplane", "--config", file, "--check-config"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("hosts"), "{stderr}");
}

#[test]
fn json_log_is_one_object_a_line() {
    let line = ["dataplane", "--memory", "16MiB", "--log-format", "json"];
    let mut command = bowline(&line);
    for flag in ["--listen", "--rpc", "--metrics"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    command.stderr(std::fs::File::create(&log).unwrap());
    assert!(DataPlane::spawn(command).stop().success());
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let said = |message: &str| lines.iter().any(|line| line["message"] == message);
    assert!(said("data plane ready") && said("stopped"), "{text}");
}

#[test]
fn version_and_help_are_there() {
    let (code, stdout, _) = run(&["--version"]);
    assert_eq!(
        (code, stdout.trim()),
        (0, concat!("bowline ", env!("CARGO_PKG_VERSION")))
    );
    let (code, stdout, _) = run(&["dataplane", "--help"]);
    assert_eq!(code, 0);
    for flag in [
        "--device",
        "--memory",
        "--listen",
        "--host",
        "--rpc",
        "nvme connect",
    ] {
        assert!(stdout.contains(flag), "{flag} is not in the help");
    }
}

fn start_failing(arguments: &[&str]) -> (i32, String, String) {
    let mut command = bowline(&["dataplane"]);
    finish(command.args(FREE_PORTS).args(arguments).output().unwrap())
}
