//! A data plane that serves a pool: volumes over the command line, used by our own initiator, and
//! found again after the process was killed.

use std::fs::File;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{DataPlane, bowline, finish, run};
use crate::host::{HOST, Host};

const DRIVE_BYTES: u64 = 256 << 20;

/// A drive in a file, in a folder that goes with it.
struct Drive {
    folder: TempDir,
}

impl Drive {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("drive")).unwrap();
        file.set_len(DRIVE_BYTES).unwrap();
        Self { folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("drive").display().to_string()
    }

    fn start(&self, arguments: &[&str]) -> DataPlane {
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
fn verb(plane: &DataPlane, line: &[&str]) -> String {
    let (code, stdout, stderr) = run(&[line, &["--rpc", &plane.rpc()]].concat());
    assert_eq!(code, 0, "{line:?}: {stderr}");
    stdout
}

/// Runs a verb that must fail; gives why it did.
fn refused(plane: &DataPlane, line: &[&str]) -> String {
    let (code, stdout, stderr) = run(&[line, &["--rpc", &plane.rpc()]].concat());
    assert_ne!(code, 0, "{line:?}: {stdout}");
    stderr
}

fn volumes(plane: &DataPlane) -> Vec<Value> {
    let text = verb(plane, &["volume", "list", "-o", "json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    list["items"].as_array().unwrap().clone()
}

fn nqn(volume: &Value) -> String {
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
