//! `bowline dev --once` proves what it says, and notices when it is not so.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::harness::{bowline, run};

fn dev(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let base = [
        "dev",
        "--once",
        "--size",
        "8MiB",
        "--dir",
        dir.to_str().unwrap(),
    ];
    run(&[&base, arguments].concat())
}

#[test]
fn kept_acknowledgements_are_verified_and_then_everything_is_removed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("dev");
    let (code, stdout, stderr) = dev(&dir, &["--keep"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let last = stdout.lines().last().unwrap();
    assert!(
        last.starts_with("verified: 2048 blocks of 4096 bytes"),
        "{stdout}"
    );
    for expected in [
        "SIGKILL",
        "reconnect",
        "nvme connect -t tcp -a 127.0.0.1 -s ",
    ] {
        assert!(stdout.contains(expected), "{expected} is not in {stdout}");
    }
    assert!(dir.join("drive.img").exists());

    let (code, stdout, stderr) = dev(&dir, &[]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("what an earlier run kept"), "{stdout}");
    // The folder was there before this run, so it stays; what is ours does not.
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn byte_flipped_while_the_process_is_down_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, stderr) = dev(folder.path(), &["--keep"]);
    assert_eq!(code, 0, "{stderr}");

    let path = folder.path().join("drive.img");
    let drive = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let at = 5 * 1024 * 1024 + 1234;
    let mut byte = [0];
    drive.read_exact_at(&mut byte, at).unwrap();
    drive.write_all_at(&[byte[0] ^ 0x01], at).unwrap();
    drive.sync_all().unwrap();

    // 5 MiB and 1234 bytes lie in the first bytes of block 1280; words have eight bytes.
    let (code, stdout, stderr) = dev(folder.path(), &[]);
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(!stdout.contains("verified:"), "{stdout}");
    assert!(
        stderr.contains("error: block 1280 does not hold what was acknowledged"),
        "{stderr}"
    );
    assert!(
        stderr.contains("the eight bytes from byte 1232 are damaged"),
        "{stderr}"
    );
    assert!(path.exists(), "the evidence is kept");
}

#[test]
fn stays_up_until_it_is_interrupted() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("dev");
    let mut command = bowline(&["dev", "--size", "8MiB", "--dir", dir.to_str().unwrap()]);
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(process.stdout.take().unwrap());
    while !said.contains("stays up until Ctrl-C") {
        assert_ne!(
            stdout.read_line(&mut said).unwrap(),
            0,
            "ended after {said}"
        );
    }
    assert!(said.contains("verified: 2048 blocks"), "{said}");
    let port = said
        .split(" -s ")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    kill_process(Pid::from_child(&process), Signal::INT).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0));
    assert!(!dir.exists());
}

/// `bowline dev` that stays up, and the data plane it started.
fn stays_up(dir: &Path) -> (Child, Pid) {
    let mut command = bowline(&["dev", "--size", "8MiB", "--dir", dir.to_str().unwrap()]);
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(process.stdout.take().unwrap());
    while !said.contains("stays up until Ctrl-C") {
        assert_ne!(
            stdout.read_line(&mut said).unwrap(),
            0,
            "ended after {said}"
        );
    }
    // The last start is the one that runs.
    let pid = said.rsplit("pid ").find_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<i32>().ok()
    });
    (process, Pid::from_raw(pid.unwrap()).unwrap())
}

/// Whether a process ends in that time.
fn ends_within(end: &OwnedFd, seconds: i64, nanoseconds: i64) -> bool {
    let limit = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

#[test]
fn data_plane_ends_with_the_process_that_started_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, plane) = stays_up(folder.path());
    let end = pidfd_open(plane, PidfdFlags::empty()).unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(ends_within(&end, 60, 0));
}

#[test]
fn second_signal_ends_a_stop_that_hangs_and_the_data_plane_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, plane) = stays_up(folder.path());
    let plane_end = pidfd_open(plane, PidfdFlags::empty()).unwrap();
    let pid = Pid::from_child(&process);
    let end = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(plane, Signal::STOP).unwrap();
    // Two signals that come at once may be one, so it is asked until it has heard two.
    for _ in 0..600 {
        kill_process(pid, Signal::INT).unwrap();
        if ends_within(&end, 0, 100_000_000) {
            break;
        }
    }
    assert_eq!(process.wait().unwrap().code(), Some(1));
    assert!(ends_within(&plane_end, 60, 0));
}

#[test]
fn drive_that_hosts_used_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.json");
    assert_eq!(dev(folder.path(), &["--keep"]).0, 0);
    let text = std::fs::read_to_string(&ledger).unwrap();
    std::fs::write(&ledger, text.replace("acknowledged", "handed_over")).unwrap();
    let (code, _, stderr) = dev(folder.path(), &[]);
    assert_eq!(code, 1);
    assert!(stderr.contains("hosts may have data on it"), "{stderr}");
    assert!(folder.path().join("drive.img").exists());
}

#[test]
fn size_out_of_range_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let (code, _, stderr) = run(&["dev", "--once", "--size", "1MiB", "--dir", dir]);
    assert_eq!(code, 2);
    assert!(stderr.contains("8 MiB"), "{stderr}");
}
