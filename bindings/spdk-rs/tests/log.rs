//! The library's log, in this process's own.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use bowline_spdk_rs::{Config, LogLevel, Options, Service, log_to_tracing};
use serde_json::json;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_the_library_logs_is_an_event() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .init();
    log_to_tracing(LogLevel::Error);
    let options = Options::without_huge_pages("bowline-spdk-rs-log", 512);
    let wrong = Config::new().method("bdev", "no_such_method", &json!({}));
    let error = Service::start(options, wrong).unwrap_err();
    assert!(
        error.to_string().contains("log names the method"),
        "{error}"
    );
    let bytes = lines.0.lock().unwrap().clone();
    let text = String::from_utf8(bytes).unwrap();
    let line = text.lines().find(|line| line.contains("no_such_method"));
    let line = line.unwrap_or_else(|| panic!("not in the log: {text}"));
    assert!(line.contains("ERROR spdk:"), "{line}");
}
