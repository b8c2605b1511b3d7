//! A start that fails, once in this process.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use bowline_spdk_rs::{Config, Options, Service, is_double};
use serde_json::json;

#[test]
fn options_that_cannot_be_used_end_the_start() {
    let options = Options::without_huge_pages("bowline-spdk-rs-failed", 512);
    // Before the subsystems begin; what the double takes then is not looked at.
    let config = if is_double() {
        Config::new().malloc("", 0, 0)
    } else {
        let params = json!({"bdev_io_pool_size": 1});
        Config::new().method("bdev", "bdev_set_options", &params)
    };
    let error = Service::start(options.clone(), config).unwrap_err();
    assert!(
        error.to_string().contains("subsystems were not started"),
        "{error}"
    );
    let error = Service::start(options, Config::new()).unwrap_err();
    assert!(error.to_string().contains("only once"), "{error}");
}
