//! A data plane that serves a pool: volumes over the command line, used by our own initiator, and
//! found again after the process was killed.

use std::fs::File;
use std::path::Path;

use bowline_nvme::Status;
use bowline_nvme::reservation::Register;
use bowline_tcp::host::HostError;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{DataPlane, bowline, finish, run};
use crate::host::{HOST, Host, PERSIST};

const DRIVE_BYTES: u64 = 256 << 20;

/// A drive in a file, in a folder that goes with it.
pub(crate) struct Drive {
    folder: TempDir,
}

impl Drive {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("drive")).unwrap();
        file.set_len(DRIVE_BYTES).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> String {
        self.folder.path().join("drive").display().to_string()
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> DataPlane {
        DataPlane::start(&[&["--device", &self.path()], arguments].concat())
    }

    /// Why a data plane does not start on it.
    fn refused(&self, arguments: &[&str]) -> String {
        let mut command = bowline(&["dataplane", "--device", &self.path()]);
        for flag in ["--listen", "--rpc", "--metrics"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        let (code, _, stderr) = finish(command.args(arguments).output().unwrap());
        assert_ne!(code, 0, "{stderr}");
        stderr
    }
}

/// Runs a verb that must succeed; gives what it printed.
pub(crate) fn verb(plane: &DataPlane, line: &[&str]) -> String {
    let (code, stdout, stderr) = run(&[line, &["--rpc", &plane.rpc()]].concat());
    assert_eq!(code, 0, "{line:?}: {stderr}");
    stdout
}

/// Runs a verb that must fail; gives why it did.
pub(crate) fn refused(plane: &DataPlane, line: &[&str]) -> String {
    let (code, stdout, stderr) = run(&[line, &["--rpc", &plane.rpc()]].concat());
    assert_ne!(code, 0, "{line:?}: {stdout}");
    stderr
}

pub(crate) fn volumes(plane: &DataPlane) -> Vec<Value> {
    let text = verb(plane, &["volume", "list", "-o", "json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    list["items"].as_array().unwrap().clone()
}

pub(crate) fn nqn(volume: &Value) -> String {
    volume["subsystemNqn"].as_str().unwrap().to_owned()
}

#[test]
fn volumes_are_the_same_after_the_process_was_killed() {
    let drive = Drive::new();
    let plane = drive.start(&["--format"]);
    verb(
        &plane,
        &["volume", "create", "db", "--size", "64MiB", "--host", HOST],
    );
    verb(&plane, &["volume", "create", "log", "--size", "8MiB"]);
    let before = volumes(&plane);
    let mut host = Host::connect(&plane, 0, &nqn(&before[0])).unwrap();
    host.write(&[0x5a; 8192]).unwrap();
    plane.kill();

    let plane = drive.start(&["--format"]);
    let mut after = volumes(&plane);
    // What was written is allocated meanwhile.
    assert!(after[0]["allocatedBytes"].as_i64().unwrap() > 0);
    for key in ["allocatedBytes", "poolBytes"] {
        after[0][key] = before[0][key].clone();
    }
    assert_eq!(after, before);
    let mut host = Host::connect(&plane, 0, &nqn(&after[0])).unwrap();
    let mut back = [0; 12288];
    host.read(&mut back).unwrap();
    assert_eq!(
        (&back[..8192], &back[8192..]),
        (&[0x5a; 8192][..], &[0; 4096][..])
    );
    // Nobody was allowed to use the other one.
    Host::connect(&plane, 0, &nqn(&after[1])).err().unwrap();
    assert_eq!(plane.stop().code(), Some(0));

    // Without the flag too, for whomever the flags at start allow.
    let plane = drive.start(&["--host", "any"]);
    let found = volumes(&plane);
    Host::connect(&plane, 0, &nqn(&found[1])).unwrap();
    assert!(Path::new(&drive.path()).exists());
}

#[test]
fn deleted_volume_is_gone_and_one_in_use_is_not_deleted() {
    let drive = Drive::new();
    let plane = drive.start(&["--format", "--host", "any"]);
    verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
    let volume = volumes(&plane).remove(0);
    let mut host = Host::connect(&plane, 0, &nqn(&volume)).unwrap();
    host.write(&[1; 4096]).unwrap();
    let why = refused(&plane, &["volume", "delete", "db", "--yes"]);
    assert!(why.contains("1 associations of hosts use it"), "{why}");
    let why = refused(&plane, &["volume", "delete", "db"]);
    assert!(why.contains("add --yes"), "{why}");
    verb(&plane, &["volume", "delete", "db", "--yes", "--force"]);
    assert!(host.is_ended());
    Host::connect(&plane, 0, &nqn(&volume)).err().unwrap();
    assert!(volumes(&plane).is_empty());
    plane.kill();
    let plane = drive.start(&[]);
    assert!(volumes(&plane).is_empty());
    let pool = verb(&plane, &["pool", "show", "-o", "json"]);
    let pool: Value = serde_json::from_str(&pool).unwrap();
    assert_eq!(pool["items"][0]["usedBytes"], 0);
    assert_eq!(pool["items"][0]["state"], "active");
}

#[test]
fn what_a_drive_holds_is_not_overwritten_by_a_start() {
    let drive = Drive::new();
    let path = drive.path();
    let write = |at: u64, bytes: &[u8]| {
        let file = File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    };
    write(0, b"XFSB");
    let why = drive.refused(&["--format"]);
    assert!(why.contains("holds an XFS file system"), "{why}");
    assert!(why.contains("--format --force destroys"), "{why}");
    // As a whole it is served as ever.
    assert_eq!(drive.start(&[]).stop().code(), Some(0));

    // Nor is what is at its end alone.
    write(0, &[0; 4]);
    write(DRIVE_BYTES - 512, b"EFI PART");
    let why = drive.refused(&["--format"]);
    assert!(why.contains("holds the backup of a GUID"), "{why}");

    let plane = drive.start(&["--format", "--force"]);
    verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
    // Two processes on one drive.
    let why = drive.refused(&["--format", "--force"]);
    assert!(why.contains("cannot be served"), "{why}");
    assert_eq!(plane.stop().code(), Some(0));
    // The same command line again: the pool is there, and stays.
    let plane = drive.start(&["--format", "--force"]);
    assert_eq!(volumes(&plane).len(), 1);
    assert_eq!(plane.stop().code(), Some(0));

    // What was a pool, and cannot be opened any more.
    for at in [12, (1 << 20) + 12] {
        write(at, &99_u32.to_le_bytes());
    }
    for flags in [&["--format", "--force"][..], &["--format"], &[]] {
        let why = drive.refused(flags);
        assert!(why.contains("cause: "), "{why}");
    }
    let plane = drive.start(&["--raw"]);
    let why = refused(&plane, &["volume", "list"]);
    assert!(why.contains("this data plane has no pool"), "{why}");
    drop(plane);
    let why = run(&["pool", "erase", &path]).2;
    assert!(why.contains("add --yes"), "{why}");
    assert_eq!(run(&["pool", "erase", &path, "--yes"]).0, 0);
    // A second time there is nothing to erase.
    assert_eq!(run(&["pool", "erase", &path, "--yes"]).0, 1);
    assert!(volumes(&drive.start(&["--format"])).is_empty());
}

#[test]
fn what_was_made_over_a_pool_is_not_mended_away() {
    let drive = Drive::new();
    assert_eq!(drive.start(&["--format"]).stop().code(), Some(0));
    // The second superblock is left.
    let mut made = vec![0; 64 << 10];
    made[..4].copy_from_slice(b"XFSB");
    let write = File::options().write(true).open(drive.path()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&write, &made, 0).unwrap();
    for flags in [&[][..], &["--format"], &["--format", "--force"]] {
        let why = drive.refused(flags);
        assert!(why.contains("an XFS file system, made over pool"), "{why}");
    }
    let path = drive.path();
    assert_eq!(run(&["pool", "erase", &path, "--yes"]).0, 0);
    let start = std::fs::read(&path).unwrap();
    assert!(start[..made.len()] == made);
    let why = drive.refused(&["--format"]);
    assert!(why.contains("holds an XFS file system"), "{why}");
}

#[test]
fn a_pool_is_neither_written_nor_opened_on_a_shared_device() {
    let drive = Drive::new();
    let before = std::fs::read(drive.path()).unwrap();
    let why = drive.refused(&["--format", "--shared-device"]);
    assert!(why.contains("a pool belongs to one data plane"), "{why}");
    assert!(before == std::fs::read(drive.path()).unwrap());
    // One that was not closed in order: opening it would write.
    drive.start(&["--format"]).kill();
    let before = std::fs::read(drive.path()).unwrap();
    let why = drive.refused(&["--shared-device"]);
    assert!(why.contains("leave --shared-device out"), "{why}");
    assert!(before == std::fs::read(drive.path()).unwrap());
}

#[test]
fn a_pipe_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe").display().to_string();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let (code, _, stderr) = run(&["dataplane", "--device", &path]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("cannot be served"), "{stderr}");
}

#[test]
fn creation_that_is_repeated_after_a_crash_gives_the_volume_its_hosts() {
    const UUID: &str = "5b3f9c58-6a43-4d0f-8f43-3d8a2c1f7e11";
    let drive = Drive::new();
    let plane = drive.start(&["--format"]);
    let create = ["volume", "create", "db", "--size", "8MiB", "--uuid", UUID];
    // As a crash between the volume and its hosts leaves it.
    verb(&plane, &create);
    plane.kill();
    let plane = drive.start(&["--format"]);
    verb(&plane, &[&create[..], &["--host", HOST]].concat());
    assert_eq!(volumes(&plane)[0]["hostNqns"], serde_json::json!([HOST]));
    // Who was allowed meanwhile stays, and nobody is added.
    verb(&plane, &[&create[..], &["--host", "any"]].concat());
    assert_eq!(volumes(&plane)[0]["hostNqns"], serde_json::json!([HOST]));
    plane.kill();
    let plane = drive.start(&["--format"]);
    assert_eq!(volumes(&plane)[0]["hostNqns"], serde_json::json!([HOST]));
}

#[test]
fn a_pool_is_served_where_io_uring_is_not() {
    let drive = Drive::new();
    for _ in 0..2 {
        let plane = drive.start(&["--format", "--host", "any", "--io", "epoll"]);
        if volumes(&plane).is_empty() {
            verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
        }
        let mut host = Host::connect(&plane, 0, &nqn(&volumes(&plane)[0])).unwrap();
        host.write(&[1; 4096]).unwrap();
        assert_eq!(plane.stop().code(), Some(0));
    }
}

#[test]
fn memory_has_a_pool_too() {
    let plane = DataPlane::start(&["--memory", "256MiB", "--format", "--host", "any"]);
    verb(&plane, &["volume", "create", "db", "--size", "1GiB"]);
    let volume = volumes(&plane).remove(0);
    let mut host = Host::connect(&plane, 0, &nqn(&volume)).unwrap();
    host.write(&[7; 8192]).unwrap();
    let line = verb(&plane, &["volume", "connect", "db"]);
    let port = plane.ready.listen[0].port();
    let expected = format!(
        "nvme connect -t tcp -a 127.0.0.1 -s {port} -n {}\n",
        nqn(&volume)
    );
    assert_eq!(line, expected);
    verb(&plane, &["volume", "resize", "db", "--size", "2GiB"]);
    assert_eq!(volumes(&plane)[0]["sizeBytes"], 2_i64 << 30);
    assert_eq!(plane.stop().code(), Some(0));
}

#[test]
fn hosts_and_reservations_of_a_volume_are_on_the_drive() {
    let drive = Drive::new();
    let plane = drive.start(&["--format"]);
    verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
    let subsystem = nqn(&volumes(&plane)[0]);
    let allowed = verb(&plane, &["host", "allow", &subsystem, HOST]);
    assert!(!allowed.contains("forgotten"), "{allowed}");
    verb(
        &plane,
        &[
            "host",
            "allow",
            &subsystem,
            "nqn.2014-08.org.nvmexpress:uuid:1",
        ],
    );
    let denied = verb(
        &plane,
        &[
            "host",
            "deny",
            &subsystem,
            "nqn.2014-08.org.nvmexpress:uuid:1",
        ],
    );
    assert!(!denied.contains("until the next restart"), "{denied}");
    let mut host = Host::connect(&plane, 0, &subsystem).unwrap();
    host.reserve(PERSIST.encode(), &PERSIST.data()).unwrap();
    plane.kill();

    let plane = drive.start(&[]);
    assert_eq!(volumes(&plane)[0]["hostNqns"], serde_json::json!([HOST]));
    let list = verb(&plane, &["reservation", "list", "-o", "json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["items"][0]["subsystemNqn"], subsystem.as_str());
    assert_eq!(list["items"][0]["persistThroughPowerLoss"], true);
    // It is this host's, which takes it back.
    let mut host = Host::connect(&plane, 0, &subsystem).unwrap();
    let back = Register {
        action: Register::UNREGISTER,
        current_key: PERSIST.new_key,
        new_key: 0,
        ..PERSIST
    };
    host.reserve(back.encode(), &back.data()).unwrap();
    plane.kill();
    let plane = drive.start(&[]);
    let list = verb(&plane, &["reservation", "list", "-o", "json"]);
    assert_eq!(list.trim(), "{\n  \"items\": []\n}");
}

#[test]
fn a_snapshot_stays_as_it_was_and_volumes_are_made_of_it() {
    let drive = Drive::new();
    let plane = drive.start(&["--format", "--host", "any"]);
    verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
    let mut host = Host::connect(&plane, 0, &nqn(&volumes(&plane)[0])).unwrap();
    host.write(&[1; 8192]).unwrap();
    verb(&plane, &["snapshot", "create", "db/monday"]);
    let why = refused(&plane, &["snapshot", "create", "db/monday"]);
    assert!(why.contains("exists already"), "{why}");
    host.write(&[2; 4096]).unwrap();
    verb(&plane, &["volume", "create", "copy", "--from", "db/monday"]);
    let why = refused(&plane, &["volume", "create", "no", "--from", "db/tuesday"]);
    assert!(
        why.contains("volumes/db/snapshots/tuesday does not exist"),
        "{why}"
    );
    verb(&plane, &["snapshot", "export", "db/monday"]);
    let line = verb(&plane, &["snapshot", "connect", "db/monday"]);
    let exported = line.trim().rsplit(' ').next().unwrap().to_owned();
    let reads = |plane: &DataPlane, nqn: &str| {
        let mut host = Host::connect(plane, 0, nqn).unwrap();
        let mut back = [0; 8192];
        host.read(&mut back).unwrap();
        (back[0], back[4096])
    };
    assert_eq!(reads(&plane, &exported), (1, 1));
    let mut reader = Host::connect(&plane, 0, &exported).unwrap();
    reader.write(&[3; 4096]).unwrap_err();
    let copy = nqn(&volumes(&plane)[0]);
    assert_eq!(reads(&plane, &copy), (1, 1));
    let why = refused(&plane, &["snapshot", "delete", "db/monday", "--yes"]);
    assert!(why.contains("associations of hosts use it"), "{why}");
    plane.kill();

    // The snapshot is there again; that it was exported is forgotten.
    let plane = drive.start(&["--host", "any"]);
    let why = refused(&plane, &["snapshot", "connect", "db/monday"]);
    assert!(why.contains("is not exported"), "{why}");
    assert_eq!(
        volumes(&plane)[0]["sourceSnapshot"].as_str().unwrap().len(),
        91
    );
    // The volume and the snapshot go; what was made of them stays.
    verb(&plane, &["snapshot", "delete", "db/monday", "--yes"]);
    verb(&plane, &["volume", "delete", "db", "--yes"]);
    assert_eq!(reads(&plane, &copy), (1, 1));
    let list = verb(&plane, &["snapshot", "list"]);
    assert_eq!(list, "VOLUME   SNAPSHOT   SIZE   EXPORTED\n");
    assert_eq!(plane.stop().code(), Some(0));
    let plane = drive.start(&["--host", "any"]);
    assert_eq!(reads(&plane, &copy), (1, 1));
}

#[test]
fn a_full_pool_fails_writes_of_the_volume_that_needs_room() {
    let drive = Drive::new();
    let plane = drive.start(&["--format", "--host", "any"]);
    verb(&plane, &["volume", "create", "a", "--size", "1GiB"]);
    verb(&plane, &["volume", "create", "b", "--size", "1GiB"]);
    verb(
        &plane,
        &["volume", "create", "c", "--size", "32MiB", "--thick"],
    );
    let subsystems: Vec<String> = volumes(&plane).iter().map(nqn).collect();
    // Each only while it is used: a host that does not run is given up.
    let connect = |index: usize| Host::connect(&plane, 0, &subsystems[index]).unwrap();
    connect(1).write(&[2; 4096]).unwrap();
    let mut a = connect(0);
    // A block of each extent of 1 MiB.
    let block = [1; 4096];
    let full = (0..1024).find_map(|index| a.write_at(index << 20, &block).err());
    assert!(
        matches!(full, Some(HostError::Failed(status)) if status.same_code(Status::CAPACITY_EXCEEDED)),
        "{full:?}"
    );
    // What has room already is written to, and what was kept for it.
    connect(1).write(&[3; 4096]).unwrap();
    connect(2).write_at(16 << 20, &block).unwrap();
    let why = refused(
        &plane,
        &["volume", "create", "d", "--size", "32MiB", "--thick"],
    );
    assert!(why.contains("not enough space left"), "{why}");
    // Room that is given back is there again.
    verb(&plane, &["volume", "delete", "a", "--yes", "--force"]);
    let mut b = connect(1);
    let written = (0..100_000).any(|_| b.write_at(8 << 20, &block).is_ok());
    assert!(written);
}

#[test]
fn damage_is_found_by_a_read_and_by_a_scrub() {
    let drive = Drive::new();
    let plane = drive.start(&["--format", "--host", "any"]);
    let create = [
        "volume",
        "create",
        "db",
        "--size",
        "64MiB",
        "--checksums",
        "verify",
    ];
    verb(&plane, &create);
    let subsystem = nqn(&volumes(&plane)[0]);
    let mut host = Host::connect(&plane, 0, &subsystem).unwrap();
    let data: Vec<u8> = (0..8192_u32).map(|at| (at % 251) as u8).collect();
    host.write(&data).unwrap();
    assert_eq!(plane.stop().code(), Some(0));
    // What the volume holds is once on the drive.
    let mut bytes = std::fs::read(drive.path()).unwrap();
    let at = (0..bytes.len() - 4096).step_by(4096);
    let at = at
        .into_iter()
        .find(|&at| bytes[at..at + 4096] == data[..4096]);
    bytes[at.unwrap() + 9] ^= 1;
    std::fs::write(drive.path(), &bytes).unwrap();

    let plane = drive.start(&["--host", "any"]);
    verb(&plane, &["pool", "scrub"]);
    let pool = loop {
        let pool = verb(&plane, &["pool", "show", "-o", "json"]);
        let pool: Value = serde_json::from_str(&pool).unwrap();
        if pool["items"][0]["scrubState"]
            .as_str()
            .unwrap()
            .starts_with("done")
        {
            break pool["items"][0].clone();
        }
    };
    assert_eq!(pool["scrub"]["mismatchChunkCount"], 1);
    // The rest of its extent is zero, and known to be.
    assert_eq!(pool["scrub"]["verifiedChunkCount"], 255);
    let mut host = Host::connect(&plane, 0, &subsystem).unwrap();
    let read = host.read(&mut [0; 4096]);
    assert!(
        matches!(read, Err(HostError::Failed(status)) if status.same_code(Status::UNRECOVERED_READ)),
        "{read:?}"
    );
    let scraped = plane.scrape();
    for line in [
        "bowline_pool_volumes 1\n",
        "bowline_pool_scrub_chunks{result=\"mismatch\"} 1\n",
        "bowline_pool_capacity_bytes ",
        "bowline_pool_journal_groups_total ",
        "bowline_pool_volume_allocated_bytes{volume=",
    ] {
        assert!(scraped.contains(line), "{line}: {scraped}");
    }
    verb(&plane, &["pool", "scrub", "--stop"]);
}

#[test]
fn a_volume_gets_smaller_only_when_forced() {
    let drive = Drive::new();
    let plane = drive.start(&["--format", "--host", "any"]);
    verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
    let subsystem = nqn(&volumes(&plane)[0]);
    let mut host = Host::connect(&plane, 0, &subsystem).unwrap();
    host.write(&[5; 4096]).unwrap();
    let why = refused(&plane, &["volume", "resize", "db", "--size", "32MiB"]);
    assert!(why.contains("would be lost"), "{why}");
    verb(
        &plane,
        &["volume", "resize", "db", "--size", "32MiB", "--force"],
    );
    assert!(host.is_ended());
    let mut host = Host::connect(&plane, 0, &subsystem).unwrap();
    let mut back = [0; 4096];
    host.read(&mut back).unwrap();
    assert_eq!(back, [5; 4096]);
    host.write_at(40 << 20, &[1; 4096]).unwrap_err();
    let namespaces = verb(&plane, &["namespace", "list", "-o", "json"]);
    let namespaces: Value = serde_json::from_str(&namespaces).unwrap();
    assert_eq!(namespaces["items"][0]["sizeBytes"], 32 << 20);
}

#[test]
fn a_volume_that_got_smaller_is_reached_as_before_and_by_nobody_else() {
    const OTHER: &str = "nqn.2014-08.org.nvmexpress:uuid:1";
    let plane = DataPlane::start(&["--memory", "256MiB", "--format", "--host", HOST]);
    verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
    let subsystem = nqn(&volumes(&plane)[0]);
    verb(&plane, &["host", "allow", &subsystem, OTHER]);
    let denied = verb(&plane, &["host", "deny", &subsystem, HOST]);
    assert!(denied.contains("until the next restart"), "{denied}");
    verb(&plane, &["ana", "set", &subsystem, "inaccessible"]);
    Host::connect(&plane, 0, &subsystem).err().unwrap();

    let shrink = ["volume", "resize", "db", "--size", "32MiB", "--force"];
    verb(&plane, &shrink);
    Host::connect(&plane, 0, &subsystem).err().unwrap();
    assert_eq!(volumes(&plane)[0]["hostNqns"], serde_json::json!([OTHER]));
    assert_eq!(volumes(&plane)[0]["sizeBytes"], 32 << 20);
    let groups = verb(&plane, &["ana", "list", "-o", "json"]);
    let groups: Value = serde_json::from_str(&groups).unwrap();
    assert_eq!(groups["items"][0]["state"], "inaccessible");
}

#[test]
fn subsystem_of_a_volume_is_changed_by_way_of_the_volume_alone() {
    let plane = DataPlane::start(&["--memory", "256MiB", "--format"]);
    verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
    let subsystem = nqn(&volumes(&plane)[0]);
    for line in [
        &["subsystem", "delete", &subsystem][..],
        &["namespace", "add", &subsystem, "--memory", "1MiB"],
        &["namespace", "remove", &subsystem, "1"],
        &["namespace", "resize", &subsystem, "1"],
    ] {
        let why = refused(&plane, line);
        assert!(why.contains("it exports volumes/"), "{line:?}: {why}");
    }
    // Beside it there may be subsystems of other things.
    const OTHER: &str = "nqn.2026-11.io.bowline:test:other";
    verb(&plane, &["subsystem", "create", OTHER]);
    verb(&plane, &["namespace", "add", OTHER, "--memory", "1MiB"]);
    assert_eq!(plane.stop().code(), Some(0));
}

#[test]
fn a_drive_with_a_pool_is_no_namespace_unless_that_is_said() {
    const NQN: &str = "nqn.2026-11.io.bowline:test:raw";
    let drive = Drive::new();
    assert_eq!(drive.start(&["--format"]).stop().code(), Some(0));
    let before = std::fs::read(drive.path()).unwrap();
    let folder = drive.folder.path().display().to_string();
    let flags = ["--memory", "16MiB", "--nqn", NQN, "--allow-path", &folder];
    let plane = DataPlane::start(&flags);
    let path = drive.path();
    let add = ["namespace", "add", NQN, "--path", &path];
    let why = refused(&plane, &add);
    assert!(why.contains("it is pool "), "{why}");
    assert!(why.contains("--raw"), "{why}");
    // Whatever is left of one.
    let file = File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &before[4096..8192], 0).unwrap();
    let why = refused(&plane, &add);
    assert!(why.contains("it is pool "), "{why}");
    verb(&plane, &[&add[..], &["--raw"]].concat());
}

/// A data plane in which writing beyond a limit of the size of files is an error, and not the end.
fn start_without_sigxfsz(arguments: &[&str]) -> DataPlane {
    let ports = ["--listen", "--rpc", "--metrics"].map(|flag| [flag, "127.0.0.1:0"]);
    let direct = bowline(&[&["dataplane"], ports.as_flattened(), arguments].concat());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
    command.arg(direct.get_program()).args(direct.get_args());
    command.stderr(std::process::Stdio::null());
    DataPlane::spawn(command)
}

#[tokio::test]
async fn a_pool_that_refuses_changes_is_not_ready_and_lives() {
    let drive = Drive::new();
    let path = drive.path();
    let plane = start_without_sigxfsz(&["--device", &path, "--format"]);
    verb(&plane, &["volume", "create", "db", "--size", "64MiB"]);
    let channel = Channel::from_shared(format!("http://{}", plane.ready.rpc)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let request = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let watched = health.watch(request("readiness")).await.unwrap();
    let mut watched = watched.into_inner();
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);

    let pid = Pid::from_raw(i32::try_from(plane.ready.pid).unwrap());
    let nothing = Rlimit {
        current: Some(0),
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, nothing).unwrap();
    let why = refused(&plane, &["volume", "create", "log", "--size", "8MiB"]);
    assert!(why.contains("journal"), "{why}");
    let next = watched.message().await.unwrap().unwrap();
    assert_eq!(next.status(), ServingStatus::NotServing);
    // A restart may make it worse: what is served now would not be.
    let lives = health.check(request("")).await.unwrap().into_inner();
    assert_eq!(lives.status(), ServingStatus::Serving);
    let pool = verb(&plane, &["pool", "show", "-o", "json"]);
    let pool: Value = serde_json::from_str(&pool).unwrap();
    assert_eq!(pool["items"][0]["state"], "journal failed");
    let scraped = plane.scrape();
    assert!(scraped.contains("state=\"journal-failed\"} 1"), "{scraped}");
}
