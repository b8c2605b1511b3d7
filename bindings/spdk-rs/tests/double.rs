//! What only the double can be asked for.

#![cfg(all(feature = "double", not(feature = "spdk")))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

mod common;

use bowline_spdk_rs::{
    Access, Bdev, BdevEvent, Config, DmaBuffer, NvmeController, Operation, Refusal,
    bound_for_user_space,
};
use serde_json::json;

use common::{BLOCK, at, buffer, configure, malloc, open, service};

#[test]
fn refused_request_comes_back_and_the_next_is_taken() {
    malloc("Refuses");
    let mut open = open::<DmaBuffer>("Refuses");
    let params = json!({"name": "Refuses", "num": 2});
    configure(Config::new().method("bdev", "double_refuse", &params));
    for _ in 0..2 {
        let block = buffer(&[1; BLOCK]);
        let rejected = open
            .queue
            .submit(Operation::Write, at(0, 1), block)
            .unwrap_err();
        assert_eq!(rejected.reason, Refusal::Full);
    }
    let (status, _) = open.run(Operation::Write, at(0, 1), buffer(&[1; BLOCK]));
    assert!(status.is_success());
}

#[test]
fn medium_errors_have_their_own_status() {
    malloc("Worn");
    let params = json!({"base_name": "Worn"});
    configure(Config::new().method("bdev", "bdev_error_create", &params));
    let mut open = open::<DmaBuffer>("EE_Worn");
    let params = json!({"name": "EE_Worn", "io_type": "read", "error_type": "nvme_failure",
                        "nvme_sct": 2, "nvme_sc": 0x81, "num": 1});
    configure(Config::new().method("bdev", "bdev_error_inject_error", &params));
    let (status, _) = open.run(Operation::Read, at(0, 1), buffer(&[0; BLOCK]));
    assert_eq!((status.code_type(), status.code()), (2, 0x81));
}

#[test]
fn drive_that_vanishes_fails_what_it_is_asked_and_keeps_its_data() {
    let attach = || {
        let controller = NvmeController::pcie("Nvme", "0000:01:00.0").unwrap();
        let attached = service().call(move |application| application.attach(&controller));
        assert_eq!(attached.unwrap().unwrap(), ["Nvmen1"]);
        open::<DmaBuffer>("Nvmen1")
    };
    let mut drive = attach();
    let (status, _) = drive.run(Operation::Write, at(7, 1), buffer(&[7; BLOCK]));
    assert!(status.is_success());
    configure(Config::new().method("bdev", "double_vanish", &json!({"name": "Nvmen1"})));
    while drive.bdev.poll_event() != Some(BdevEvent::Removed) {
        drive.thread.poll();
    }
    let (status, _) = drive.run(Operation::Read, at(7, 1), buffer(&[0; BLOCK]));
    assert_eq!((status.code_type(), status.code()), (0, 0x06));
    drop(drive);

    let mut drive = attach();
    let (status, block) = drive.run(Operation::Read, at(7, 1), buffer(&[0; BLOCK]));
    assert!(status.is_success());
    assert_eq!(block[..], [7; BLOCK]);
    drop(drive);
    let detached = service().call(|application| application.detach("Nvme"));
    detached.unwrap().unwrap();
}

#[test]
fn drive_is_known_by_what_it_says_of_itself_wherever_it_is() {
    let address = "0000:02:00.0";
    let drive = |method: &'static str, serial: &str| {
        let params = json!({"traddr": address, "serial": serial});
        configure(Config::new().method("bdev", method, &params));
    };
    let attach = || {
        let controller = NvmeController::pcie("Known", address).unwrap();
        let attached = service().call(move |application| application.attach(&controller));
        attached.unwrap()
    };
    let identity = || {
        let identity = service().call(|application| application.nvme_identity("Knownn1"));
        identity.unwrap().unwrap().unwrap()
    };
    attach().unwrap();
    let (before, there) = (identity(), bound_for_user_space(address));
    drive("double_pull", "");
    assert_eq!(bound_for_user_space(address), None);
    attach().unwrap_err();
    drive("double_plug", "");
    assert_ne!(bound_for_user_space(address), there, "it was away");
    attach().unwrap();
    assert_eq!(identity(), before);
    drive("double_pull", "");
    drive("double_plug", "S2");
    attach().unwrap();
    assert_ne!(identity(), before);
    assert!(identity().to_string().contains("\"S2\""), "{}", identity());

    malloc("Plain");
    let plain = service().call(|application| application.nvme_identity("Plain"));
    assert_eq!(plain.unwrap().unwrap(), None);
    let none = service().call(|application| application.nvme_identity("None"));
    assert_eq!(none.unwrap().unwrap_err().errno(), Some(19));
}

#[test]
fn ends_that_are_told_at_once_are_waited_for_as_well() {
    let told = |how: &str| {
        let params = json!({"callbacks": how});
        configure(Config::new().method("bdev", "double_options", &params));
    };
    told("now");
    malloc("Early");
    let removed = service().call(|application| {
        // Closing it on the application thread ends the removal within the call that closes it.
        let bdev = Bdev::open(application.thread(), "Early", Access::Write)?;
        drop(bdev);
        application.remove("Early")
    });
    removed.unwrap().unwrap();
    told("later");
}
