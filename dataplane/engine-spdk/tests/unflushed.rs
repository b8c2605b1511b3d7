//! SPDK with a configuration that keeps flushes from drives, as its own tools save one.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::path::Path;

use bowline_engine_spdk::{Options, Source, Spdk};
use bowline_spdk_rs::Config;
use serde_json::json;

/// It was served, and hosts were told that what they had written and flushed was safe.
#[test]
fn cache_that_is_not_flushed_is_refused() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unflushed.json");
    let config = Config::new()
        .method(
            "bdev",
            "bdev_nvme_set_options",
            &json!({"enable_flush": false}),
        )
        .malloc("Base", 2048, 512)
        // What is behind such a device is not known: it may be a drive.
        .method("bdev", "bdev_error_create", &json!({"base_name": "Base"}));
    std::fs::write(&file, config.to_json()).unwrap();
    let spdk = Spdk::start(&Options {
        config: Some(file),
        drives: Some(Vec::new()),
        huge_pages: false,
        memory_mib: Some(512),
    })
    .unwrap();
    let find = |name: &str| spdk.find(&Source::Bdev(name.to_owned()));
    let error = find("EE_Base").unwrap_err();
    assert!(error.cause.contains("would not flush"), "{error}");
    assert!(find("Base").unwrap().geometry().volatile_cache);
}
