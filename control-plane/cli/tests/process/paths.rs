//! One disk through two data planes: the same identity, other controller IDs.

use std::path::Path;

use bowline_tcp::host::HostError;

use crate::harness::{DataPlane, bowline, finish, run};
use crate::host::{HOST, Host, soon};

const NQN: &str = "nqn.2026-11.io.bowline:test:both";
const UUID: &str = "5b3e1c1a-3f0e-4b7e-8f52-0d8c5a3f0b11";

fn drive(folder: &Path) -> String {
    let path = folder.join("drive");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(16 << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

/// One of the data planes that serve a drive together.
fn path(drive: &str, cntlids: &str, more: &[&str]) -> DataPlane {
    let line = [
        "--device",
        drive,
        "--shared-device",
        "--nqn",
        NQN,
        "--serial",
        "BOTH-1",
        "--uuid",
        UUID,
        "--cntlid-range",
        cntlids,
        "--host",
        HOST,
    ];
    DataPlane::start(&[&line[..], more].concat())
}

/// What a verb lists.
fn list(plane: &DataPlane, noun: &str) -> Vec<serde_json::Value> {
    let (code, stdout, stderr) = run(&[noun, "list", "-o", "json", "--rpc", &plane.rpc()]);
    assert_eq!(code, 0, "{stderr}");
    let list: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    list["items"].as_array().unwrap().clone()
}

#[test]
fn two_data_planes_are_two_paths_to_one_disk() {
    let folder = tempfile::tempdir().unwrap();
    let drive = drive(folder.path());
    let first = path(&drive, "1-100", &[]);
    let second = path(&drive, "101-200", &[]);
    let mut hosts = [
        Host::connect(&first, 0, NQN).unwrap(),
        Host::connect(&second, 0, NQN).unwrap(),
    ];
    for (writer, reader, byte) in [(0, 1, 0x11), (1, 0, 0x22)] {
        hosts[writer].write(&[byte; 8192]).unwrap();
        let mut back = [0; 8192];
        hosts[reader].read(&mut back).unwrap();
        assert_eq!(back, [byte; 8192]);
    }
    for (plane, cntlids) in [(&first, 1..=100), (&second, 101..=200)] {
        let namespaces = list(plane, "namespace");
        assert_eq!(namespaces[0]["uuid"], UUID);
        assert_eq!(namespaces[0]["shared"], true);
        assert_eq!(list(plane, "subsystem")[0]["serialNumber"], "BOTH-1");
        for connection in list(plane, "connection") {
            let cntlid = connection["cntlid"].as_i64().unwrap();
            assert!(cntlids.contains(&cntlid), "{cntlid}");
        }
    }
    assert_eq!(
        list(&first, "namespace")[0]["nguid"],
        list(&second, "namespace")[0]["nguid"]
    );
}

#[test]
fn shared_disk_cannot_be_reserved() {
    use bowline_nvme::identify::IdentifyController;
    let folder = tempfile::tempdir().unwrap();
    let plane = path(&drive(folder.path()), "1-100", &[]);
    let mut host = Host::connect(&plane, 0, NQN).unwrap();
    let register = bowline_nvme::reservation::Register {
        new_key: 1,
        ..Default::default()
    };
    let refused = host.reserve(register.encode(), &register.data());
    let text = format!("{refused:?}");
    assert!(
        matches!(refused, Err(HostError::Failed(status))
        if status.same_code(bowline_nvme::Status::INVALID_OPCODE)),
        "{text}"
    );
    // Nor does the controller say that anything can be.
    let sqe = bowline_nvme::Sqe::new(0x06).with_cdw(10, 1);
    let deadline = soon(&host.initiator);
    let page = host.initiator.admin_read(host.path, sqe, 4096, deadline);
    let identified = IdentifyController::decode(page.unwrap().first_chunk().unwrap());
    assert_eq!(identified.oncs & IdentifyController::ONCS_RESERVATIONS, 0);
}

#[test]
fn paths_are_switched_by_ana_states() {
    let folder = tempfile::tempdir().unwrap();
    let drive = drive(folder.path());
    let first = path(&drive, "1-100", &["--ana"]);
    let second = path(&drive, "101-200", &["--ana", "--ana-state", "inaccessible"]);
    let mut old = Host::connect(&first, 0, NQN).unwrap();
    let mut new = Host::connect(&second, 0, NQN).unwrap();
    old.write(&[1; 4096]).unwrap();
    assert!(new.write_refused(&[2; 4096]));

    let set = |plane: &DataPlane, state| {
        let (code, stdout, stderr) = run(&["ana", "set", NQN, state, "--rpc", &plane.rpc()]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains(state), "{stdout}");
    };
    set(&first, "inaccessible");
    set(&second, "optimized");
    assert!(old.write_refused(&[3; 4096]));
    let mut back = [0; 4096];
    new.read(&mut back).unwrap();
    assert_eq!(back, [1; 4096]);
    new.write(&[4; 4096]).unwrap();

    let groups = list(&second, "ana");
    assert_eq!(groups[0]["state"], "optimized");
    assert_eq!(groups[0]["nsids"], serde_json::json!([1]));
    let changes = groups[0]["changeCount"].as_i64().unwrap();
    set(&second, "non-optimized");
    assert_eq!(list(&second, "ana")[0]["changeCount"], changes + 1);
    let scraped = second.scrape();
    let state = format!(
        "bowline_target_ana_state{{subsystem=\"{NQN}\",group=\"1\",\
         state=\"ANA_STATE_NON_OPTIMIZED\"}} 1"
    );
    assert!(scraped.contains(&state), "{scraped}");
}

#[test]
fn namespaces_move_between_groups_where_there_is_ana() {
    let plane = DataPlane::start(&["--memory", "16MiB", "--nqn", NQN, "--ana"]);
    let rpc = plane.rpc();
    let verb = |line: &[&str]| run(&[line, &["--rpc", &rpc]].concat());
    assert_eq!(verb(&["ana", "move", NQN, "1", "32"]).0, 0);
    assert_eq!(list(&plane, "namespace")[0]["anaGroupId"], 32);
    let (code, _, stderr) = verb(&["ana", "move", NQN, "1", "33"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("no such ANA group"), "{stderr}");

    const PLAIN: &str = "nqn.2026-11.io.bowline:test:plain";
    assert_eq!(verb(&["subsystem", "create", PLAIN]).0, 0);
    let (code, _, stderr) = verb(&["ana", "set", PLAIN, "inaccessible"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("does not report ANA"), "{stderr}");
    assert!(
        stderr.contains("hint:  make the subsystem with ANA"),
        "{stderr}"
    );
}

#[test]
fn device_is_shared_only_if_every_data_plane_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let drive = drive(folder.path());
    let alone = ["--device", &drive];
    for (first, second, hint) in [
        (&["--shared-device"][..], &[][..], "stop that user"),
        (
            &[],
            &["--shared-device"],
            "start the other data plane with --shared-device too",
        ),
    ] {
        let plane = DataPlane::start(&[&alone[..], first].concat());
        let mut command = bowline(&["dataplane"]);
        for flag in ["--listen", "--rpc", "--metrics"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        let output = command.args(alone).args(second).output().unwrap();
        let (code, _, stderr) = finish(output);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("in use by process"), "{stderr}");
        assert!(stderr.contains(hint), "{stderr}");
        drop(plane);
    }
}
