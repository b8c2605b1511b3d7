//! A library whose ends are told as early as they can be: the double can do that from the start on.

#![cfg(all(feature = "double", not(feature = "spdk")))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use bowline_spdk_rs::{Access, Bdev, Config, Options, Service};
use serde_json::json;

#[test]
fn library_lives_with_ends_that_are_told_at_once() {
    let options = Options::without_huge_pages("bowline-spdk-rs-start", 512);
    let config = Config::new()
        .method("bdev", "double_options", &json!({"callbacks": "now"}))
        .malloc("M0", 2048, 512);
    let service = Service::start(options, config).unwrap();
    let removed = service.call(|application| {
        let bdev = Bdev::open(application.thread(), "M0", Access::Write)?;
        drop(bdev);
        application.remove("M0")?;
        application.configure(&Config::new().malloc("M1", 2048, 512))
    });
    removed.unwrap().unwrap();
    service.stop().unwrap();
}
