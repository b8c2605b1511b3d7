//! `bowline dataplane --engine spdk`, over SPDK or over its double.

use std::path::Path;

use tempfile::TempDir;

use crate::harness::{DataPlane, run};
use crate::host::Host;
use crate::volumes::{nqn, verb, volumes};

const NQN: &str = "nqn.2026-11.io.bowline:test:spdk";

/// A folder with a configuration, and with the file that its device is over.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let disk = disk.to_str().unwrap();
    let config = serde_json::json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_aio_create",
         "params": {"name": "File", "filename": disk, "block_size": 4096}},
        {"method": "bdev_malloc_create",
         "params": {"name": "Second", "num_blocks": 32768, "block_size": 512}},
    ]}]});
    std::fs::write(folder.path().join("spdk.json"), config.to_string()).unwrap();
    folder
}

fn flags(folder: &Path) -> Vec<String> {
    let config = folder.join("spdk.json");
    let flags = ["--engine", "spdk", "--spdk-config"].map(str::to_owned);
    let more = [
        "--no-huge",
        "--spdk-memory",
        "768MiB",
        "--nqn",
        NQN,
        "--host",
        "any",
    ];
    let mut flags = flags.to_vec();
    flags.push(config.to_str().unwrap().to_owned());
    flags.extend(more.map(str::to_owned));
    flags
}

fn start(folder: &Path, device: &str) -> DataPlane {
    let flags = flags(folder);
    let mut line: Vec<&str> = flags.iter().map(String::as_str).collect();
    line.extend(["--device", device]);
    DataPlane::start(&line)
}

/// How a start ends that is refused: exit code and stderr.
fn refused(arguments: &[&str]) -> (i32, String) {
    let ports = ["--listen", "--rpc", "--metrics"].map(|flag| [flag, "127.0.0.1:0"]);
    let line = [&["dataplane"][..], &ports.concat(), arguments].concat();
    let (code, stdout, stderr) = run(&line);
    assert_eq!(stdout, "", "{arguments:?} is served");
    (code, stderr)
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..4_u32 << 20)
        .map(|at| {
            let [low, high, ..] = at.to_le_bytes();
            seed.wrapping_add(high).wrapping_mul(low | 1)
        })
        .collect()
}

fn namespaces(plane: &DataPlane) -> Vec<(String, i64)> {
    let (code, stdout, stderr) = run(&["namespace", "list", "-o", "json", "--rpc", &plane.rpc()]);
    assert_eq!(code, 0, "{stderr}");
    let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let rows = list["items"].as_array().unwrap().iter();
    rows.map(|row| {
        let backing = row["backing"].as_str().unwrap().to_owned();
        (backing, row["blockSizeBytes"].as_i64().unwrap())
    })
    .collect()
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let folder = folder();
    let mut expected = vec![0; 4 << 20];
    for round in 0..3 {
        let plane = start(folder.path(), "bdev:File");
        let mut host = Host::connect(&plane, 0, NQN).unwrap();
        let mut found = vec![0xEE; 4 << 20];
        host.read(&mut found).unwrap();
        assert!(found == expected, "lost in round {round}");
        expected = pattern(round);
        host.write(&expected).unwrap();
        plane.kill();
    }
    let plane = start(folder.path(), "bdev:File");
    let mut host = Host::connect(&plane, 0, NQN).unwrap();
    let mut found = vec![0; 4 << 20];
    host.read(&mut found).unwrap();
    assert!(found == expected);
    drop(host);
    assert_eq!(plane.stop().code(), Some(0));
}

#[test]
fn volumes_of_a_pool_survive_a_kill() {
    let folder = folder();
    let start = |more: &[&str]| {
        let flags = flags(folder.path());
        let line = flags.iter().map(String::as_str);
        // Volumes have names of their own.
        let mut line: Vec<&str> = line.filter(|flag| !["--nqn", NQN].contains(flag)).collect();
        line.extend(["--device", "bdev:File"]);
        DataPlane::start(&[&line, more].concat())
    };
    let plane = start(&["--format"]);
    let create = ["volume", "create", "db", "--size", "8MiB", "--host", "any"];
    verb(&plane, &create);
    let mut host = Host::connect(&plane, 0, &nqn(&volumes(&plane)[0])).unwrap();
    let first = pattern(1);
    host.write(&first).unwrap();
    verb(&plane, &["snapshot", "create", "db/monday"]);
    let second = pattern(2);
    host.write(&second).unwrap();
    plane.kill();

    let plane = start(&[]);
    verb(
        &plane,
        &[
            "volume",
            "create",
            "old",
            "--from",
            "db/monday",
            "--host",
            "any",
        ],
    );
    let all = volumes(&plane);
    for (volume, expected) in all.iter().zip([&second, &first]) {
        let mut host = Host::connect(&plane, 0, &nqn(volume)).unwrap();
        let mut found = vec![0; expected.len()];
        host.read(&mut found).unwrap();
        assert!(&found == expected, "{}", nqn(volume));
    }
    assert_eq!(all.len(), 2);
    assert_eq!(plane.stop().code(), Some(0));
}

#[test]
fn devices_are_shown_and_added_by_their_names() {
    let folder = folder();
    let plane = start(folder.path(), "bdev:File");
    let rpc = plane.rpc();
    assert_eq!(namespaces(&plane), [("bdev:File".to_owned(), 4096)]);
    let add = |name| run(&["namespace", "add", NQN, "--bdev", name, "--rpc", &rpc]);
    let (code, _, stderr) = add("Second");
    assert_eq!(code, 0, "{stderr}");
    let both = [
        ("bdev:File".to_owned(), 4096),
        ("bdev:Second".to_owned(), 512),
    ];
    assert_eq!(namespaces(&plane), both);
    for (name, why) in [("Second", "not"), ("Third", "no block device named Third")] {
        let (code, _, stderr) = add(name);
        assert_eq!(code, 1, "{name}: {stderr}");
        assert!(stderr.contains(why), "{stderr}");
    }
    let remove = ["namespace", "remove", NQN, "2", "--yes", "--rpc", &rpc];
    let (code, _, stderr) = run(&remove);
    assert_eq!(code, 0, "{stderr}");
    // It was closed, and nobody else has it.
    let (code, _, stderr) = add("Second");
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(plane.stop().code(), Some(0));
}

#[test]
fn what_cannot_be_served_says_why() {
    let folder = folder();
    let flags = flags(folder.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let wrong = folder.path().join("wrong.json");
    std::fs::write(&wrong, "{}").unwrap();
    let wrong = wrong.to_str().unwrap();
    let with = |more: &[&'static str]| [&flags[..], more].concat();
    for (code, line, why) in [
        (1, with(&["--device", "bdev:Missing"]), "there are: "),
        (
            1,
            with(&["--device", "bdev:File", "--block-size", "512"]),
            "4096 bytes long",
        ),
        (2, with(&["--device", "0000:01:00.0"]), "huge pages"),
        (2, with(&["--device", "/dev/null"]), "no device of SPDK"),
        (2, with(&["--device", "bdev:"]), "no device of SPDK"),
        (2, with(&["--memory", "16MiB"]), "no --device"),
        (
            2,
            with(&["--device", "bdev:File", "--shared-device"]),
            "cannot be shared",
        ),
        (
            2,
            vec!["--engine", "spdk", "--device", "bdev:File"],
            "--spdk-config",
        ),
        (
            2,
            vec![
                "--engine",
                "spdk",
                "--device",
                "0000:01:00.0",
                "--spdk-memory",
                "1000",
            ],
            "1MiB",
        ),
        (
            1,
            vec![
                "--engine",
                "spdk",
                "--no-huge",
                "--device",
                "bdev:File",
                "--spdk-config",
                wrong,
            ],
            "no list \"subsystems\"",
        ),
    ] {
        let (ended, stderr) = refused(&line);
        assert_eq!(ended, code, "{line:?}: {stderr}");
        assert!(stderr.contains(why), "{line:?}: {stderr}");
    }
}

/// What only the double can be asked for.
#[cfg(not(feature = "spdk"))]
mod double {
    use std::process::Stdio;

    use super::*;
    use crate::harness::{bowline, finish};

    #[test]
    fn double_says_that_it_is_one() {
        let folder = folder();
        let flags = flags(folder.path());
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = bowline(&[
            "dataplane",
            "--listen",
            "127.0.0.1:0",
            "--rpc",
            "127.0.0.1:0",
        ]);
        command.args(["--metrics", "127.0.0.1:0", "--device", "bdev:File"]);
        let plane = DataPlane::spawn({
            command.args(flags).stderr(Stdio::from(log));
            command
        });
        assert_eq!(plane.stop().code(), Some(0));
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(
            log.contains("WARN") && log.contains("DOUBLE of SPDK"),
            "{log}"
        );
    }

    #[test]
    fn drive_is_served_by_its_address() {
        let plane = DataPlane::start(&[
            "--engine", "spdk", "--device", "01:00.0", "--nqn", NQN, "--host", "any",
        ]);
        let expected = [("bdev:0000:01:00.0n1".to_owned(), 512)];
        assert_eq!(namespaces(&plane), expected);
        let mut host = Host::connect(&plane, 0, NQN).unwrap();
        host.write(&pattern(5)).unwrap();
        let mut found = vec![0; 4 << 20];
        host.read(&mut found).unwrap();
        assert!(found == pattern(5));
        let line = ["namespace", "resize", NQN, "1", "--rpc", &plane.rpc()];
        let (code, _, stderr) = finish(bowline(&line).output().unwrap());
        assert_eq!(code, 0, "{stderr}");
    }
}
