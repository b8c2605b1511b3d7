//! A library that cannot be stopped, once in this process.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use bowline_spdk_rs::{Access, Application, Bdev, Config, Options, Thread};

/// With the device that kept the library from being stopped, its application thread went, while the
/// subsystems ran that need it.
#[test]
fn application_thread_stays_when_something_was_open_at_the_stop() {
    let config = Config::new().malloc("Open", 2048, 512);
    let options = Options::without_huge_pages("bowline-spdk-rs-open", 512);
    let application = Application::start(&options, &config).unwrap();
    let bdev = Bdev::open(application.thread(), "Open", Access::Write).unwrap();
    let error = application.stop().unwrap_err();
    assert!(error.to_string().contains("still open"), "{error}");
    drop(bdev);
    let thread = Thread::current().expect("the subsystems still need it");
    assert_eq!(thread.name(), "application");
    thread.poll();
}
