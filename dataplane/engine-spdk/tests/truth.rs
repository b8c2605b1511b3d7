//! What devices are told to be, with SPDK as bowline starts it.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use bowline_engine_spdk::{Options, Source, Spdk, SpdkDevice};
use bowline_spdk_rs::Config;
#[cfg(feature = "spdk")]
use bowline_spdk_rs::Operation;
#[cfg(feature = "spdk")]
use serde_json::json;

#[test]
fn devices_are_what_hosts_are_told() {
    let spdk = Spdk::start(&Options {
        config: None,
        drives: Some(Vec::new()),
        huge_pages: false,
        memory_mib: Some(512),
    })
    .unwrap();
    a_raid_is_flushed_whatever_it_says(&spdk);
    device_that_has_become_another_is_not_opened(&spdk);
}

/// It says that it has no cache, and hosts would never have flushed the drives that it is made of.
#[cfg(feature = "spdk")]
fn a_raid_is_flushed_whatever_it_says(spdk: &Spdk) {
    let parts = Config::new()
        .malloc("R0", 2048, 512)
        .malloc("R1", 2048, 512);
    let params = json!({
        "name": "Raid", "raid_level": "raid0", "strip_size_kb": 64, "base_bdevs": ["R0", "R1"],
    });
    let config = parts.method("bdev", "bdev_raid_create", &params);
    let configured = spdk.service().call(move |it| it.configure(&config));
    configured.unwrap().unwrap();
    let devices = spdk.service().call(|it| it.bdevs()).unwrap();
    let raid = devices.iter().find(|it| it.name == "Raid").unwrap();
    assert!(!raid.write_cache && raid.supports(Operation::Flush));
    let found = spdk.find(&Source::Bdev("Raid".to_owned())).unwrap();
    assert!(found.geometry().volatile_cache);
}

/// The double has none.
#[cfg(not(feature = "spdk"))]
fn a_raid_is_flushed_whatever_it_says(_: &Spdk) {}

/// Blocks to be released or zeroed were counted in blocks of the device that was there before.
fn device_that_has_become_another_is_not_opened(spdk: &Spdk) {
    let configure = |config: Config| {
        let configured = spdk.service().call(move |it| it.configure(&config));
        configured.unwrap().unwrap();
    };
    configure(Config::new().malloc("Other", 2048, 4096));
    let backing = spdk.find(&Source::Bdev("Other".to_owned())).unwrap();
    SpdkDevice::open(backing.clone(), &spdk.memory(), || {}).unwrap();
    let removed = spdk.service().call(|it| it.remove("Other"));
    removed.unwrap().unwrap();
    configure(Config::new().malloc("Other", 4096, 512));
    let error = SpdkDevice::open(backing, &spdk.memory(), || {})
        .err()
        .unwrap();
    assert!(error.to_string().contains("another one"), "{error}");
}
