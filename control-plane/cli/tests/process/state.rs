//! What outlives the process in the folder given with --state.

use bowline_nvme::NamespaceId;
use bowline_nvme::log::{GetLogPage, SmartLog};
use bowline_nvme::reservation::Register;

use crate::harness::{DataPlane, bowline, finish, run};
use crate::host::{Host, PERSIST, soon};

const NQN: &str = "nqn.2026-11.io.bowline:test:kept";

fn start(state: &str, arguments: &[&str]) -> DataPlane {
    let line = [
        "--memory", "16MiB", "--nqn", NQN, "--host", "any", "--state", state,
    ];
    DataPlane::start(&[&line[..], arguments].concat())
}

/// Why a data plane with these flags does not start.
fn refused(state: &str, arguments: &[&str]) -> String {
    let mut command = bowline(&["dataplane", "--memory", "16MiB", "--nqn", NQN]);
    for flag in ["--listen", "--rpc", "--metrics"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    let output = command.args(["--state", state]).args(arguments).output();
    let (code, _, stderr) = finish(output.unwrap());
    assert_ne!(code, 0, "{stderr}");
    stderr
}

fn smart(host: &mut Host) -> SmartLog {
    const LID: u8 = 2;
    let sqe = GetLogPage::range(LID, 0, 512).encode();
    let sqe = sqe.with_nsid(NamespaceId::BROADCAST);
    let deadline = soon(&host.initiator);
    let page = host.initiator.admin_read(host.path, sqe, 512, deadline);
    SmartLog::decode(page.unwrap().first_chunk().unwrap())
}

/// What `bowline reservation list` shows, as (host identifier, after a restart).
fn registrants(plane: &DataPlane) -> Vec<(String, bool)> {
    let rpc = plane.rpc();
    let (code, stdout, stderr) = run(&["reservation", "list", "-o", "json", "--rpc", &rpc]);
    assert_eq!(code, 0, "{stderr}");
    let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let rows = list["items"].as_array().unwrap().iter();
    rows.map(|row| {
        let persists = row["persistThroughPowerLoss"].as_bool().unwrap();
        (row["hostId"].as_str().unwrap().to_owned(), persists)
    })
    .collect()
}

fn host_id(number: u8) -> String {
    uuid::Uuid::from_bytes([number; 16]).to_string()
}

#[test]
fn acknowledged_registrations_survive_a_kill_at_any_step() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let state = state.to_str().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..4_u8 {
        let plane = start(state, &[]);
        let found = registrants(&plane);
        for id in &acknowledged {
            assert!(
                found.contains(&(id.clone(), true)),
                "{id} is lost: {found:?}"
            );
        }
        let number = 1 + round * 2;
        let mut host = Host::connect_as(&plane, 0, NQN, [number; 16]).unwrap();
        host.reserve(PERSIST.encode(), &PERSIST.data()).unwrap();
        acknowledged.push(host_id(number));
        // The next one is under way, at a step that differs from run to run.
        let mut next = Host::connect_as(&plane, 0, NQN, [number + 1; 16]).unwrap();
        next.begin_reserve(PERSIST.encode(), &PERSIST.data());
        for _ in 0..round {
            next.initiator.turn();
        }
        plane.kill();
    }
    let plane = start(state, &[]);
    assert!(registrants(&plane).len() >= acknowledged.len());
    // A restart in order keeps them too; a removed namespace takes them with it.
    let before = registrants(&plane);
    assert_eq!(plane.stop().code(), Some(0));
    let plane = start(state, &[]);
    assert_eq!(registrants(&plane), before);
    let (code, _, stderr) = run(&[
        "namespace",
        "remove",
        NQN,
        "1",
        "--yes",
        "--rpc",
        &plane.rpc(),
    ]);
    assert_eq!(code, 0, "{stderr}");
    drop(plane);
    assert_eq!(registrants(&start(state, &[])), []);
}

#[test]
fn registration_that_cannot_be_stored_fails_and_does_not_happen() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let away = folder.path().join("away");
    let plane = start(state.to_str().unwrap(), &[]);
    let mut host = Host::connect(&plane, 0, NQN).unwrap();
    std::fs::rename(&state, &away).unwrap();
    let deadline = host
        .initiator
        .now()
        .after(bowline_nvme::Nanos::from_secs(1));
    host.reserve_by(PERSIST.encode(), &PERSIST.data(), deadline)
        .unwrap_err();
    assert_eq!(registrants(&plane), []);
    std::fs::rename(&away, &state).unwrap();
    host.reserve(PERSIST.encode(), &PERSIST.data()).unwrap();
    assert_eq!(registrants(&plane), [(host_id(7), true)]);
}

#[test]
fn without_a_folder_no_reservation_is_promised_to_persist() {
    let plane = DataPlane::start(&["--memory", "16MiB", "--nqn", NQN, "--host", "any"]);
    let mut host = Host::connect(&plane, 0, NQN).unwrap();
    host.reserve(PERSIST.encode(), &PERSIST.data()).unwrap_err();
    let passing = Register {
        change_persistence: Register::PERSISTENCE_KEEP,
        ..PERSIST
    };
    host.reserve(passing.encode(), &passing.data()).unwrap();
    assert_eq!(registrants(&plane), [(host_id(7), false)]);
}

#[test]
fn counters_of_the_drive_go_on_and_tell_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let state = state.to_str().unwrap();
    let mut expected = Vec::new();
    // Each is power cycles, unsafe shutdowns, and write commands.
    for (kill, cycles, unsafe_shutdowns, writes) in
        [(false, 1, 0, 0), (true, 2, 0, 1), (false, 3, 1, 1)]
    {
        let plane = start(state, &[]);
        let mut host = Host::connect(&plane, 0, NQN).unwrap();
        let log = smart(&mut host);
        expected.push((cycles, unsafe_shutdowns, writes));
        let found = (
            log.power_cycles,
            log.unsafe_shutdowns,
            log.host_write_commands,
        );
        assert_eq!(expected.last(), Some(&found));
        host.write(&[1; 4096]).unwrap();
        if kill {
            plane.kill();
        } else {
            assert_eq!(plane.stop().code(), Some(0));
        }
    }
}

#[test]
fn subsystem_made_again_over_the_api_leaves_the_counters_alone() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let state = state.to_str().unwrap();
    assert_eq!(start(state, &[]).stop().code(), Some(0));
    let plane = start(state, &[]);
    let rpc = plane.rpc();
    for verb in [&["delete", NQN, "--yes"][..], &["create", NQN]] {
        let line = [&["subsystem"], verb, &["--rpc", &rpc]].concat();
        let (code, _, stderr) = run(&line);
        assert_eq!(code, 0, "{stderr}");
    }
    assert_eq!(plane.stop().code(), Some(0));
    let plane = start(state, &[]);
    let mut host = Host::connect(&plane, 0, NQN).unwrap();
    assert_eq!(smart(&mut host).power_cycles, 3);
}

#[test]
fn disk_keeps_the_identity_of_its_first_start() {
    const UUID: &str = "5b3e1c1a-3f0e-4b7e-8f52-0d8c5a3f0b11";
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let state = state.to_str().unwrap();
    let identity = |plane: &DataPlane| {
        let rpc = plane.rpc();
        let item = |noun| {
            let (_, stdout, _) = run(&[noun, "list", "-o", "json", "--rpc", &rpc]);
            let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
            list["items"][0].clone()
        };
        let serial = item("subsystem")["serialNumber"].clone();
        (serial, item("namespace")["uuid"].clone())
    };
    let first = start(state, &["--serial", "FIRST 1", "--uuid", UUID]);
    let expected = (serde_json::json!("FIRST 1"), serde_json::json!(UUID));
    assert_eq!(identity(&first), expected);
    assert!(refused(state, &[]).contains("another data plane uses it"));
    drop(first);
    assert_eq!(identity(&start(state, &[])), expected);
    let stderr = refused(state, &["--serial", "SECOND"]);
    assert!(
        stderr.contains("is not what the disk had until now"),
        "{stderr}"
    );
    assert!(stderr.contains("FIRST 1"), "{stderr}");
}

#[test]
fn damaged_and_foreign_state_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    drop(start(state.to_str().unwrap(), &[]));
    let files = std::fs::read_dir(&state).unwrap();
    let subsystem = files
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("subsystem-"))
        .unwrap();
    let mut bytes = std::fs::read(&subsystem).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&subsystem, &bytes).unwrap();
    let stderr = refused(state.to_str().unwrap(), &[]);
    assert!(stderr.contains("its checksum is wrong"), "{stderr}");
    assert!(stderr.contains("hint:  put back a copy"), "{stderr}");
    assert_eq!(std::fs::read(&subsystem).unwrap(), bytes);

    let foreign = folder.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis"), "all of it").unwrap();
    let stderr = refused(foreign.to_str().unwrap(), &[]);
    assert!(stderr.contains("thesis"), "{stderr}");
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
}
