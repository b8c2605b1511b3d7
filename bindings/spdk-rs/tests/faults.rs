//! Devices that fail, are slow or go, over SPDK or over the double.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

mod common;

use std::time::{Duration, Instant};

use bowline_spdk_rs::{BdevEvent, Config, DmaBuffer, Operation};
use serde_json::json;

use common::{BLOCK, Open, at, buffer, configure, malloc, open, service};

fn inject(name: &str, operation: &str, error: &str) {
    let params = json!({"name": name, "io_type": operation, "error_type": error, "num": 1});
    configure(Config::new().method("bdev", "bdev_error_inject_error", &params));
}

/// A device for errors, in front of one in memory.
fn faulty(name: &str) -> Open<DmaBuffer> {
    malloc(name);
    let params = json!({"base_name": name});
    configure(Config::new().method("bdev", "bdev_error_create", &params));
    open(&format!("EE_{name}"))
}

#[test]
fn one_request_fails_and_the_next_does_not() {
    let mut open = faulty("Once");
    inject("EE_Once", "read", "failure");
    let (status, block) = open.run(Operation::Write, at(0, 1), buffer(&[1; BLOCK]));
    assert!(status.is_success(), "only reads fail");
    let (status, block) = open.run(Operation::Read, at(0, 1), block);
    assert_eq!((status.code_type(), status.code()), (0, 0x06), "{status}");
    let (status, block) = open.run(Operation::Read, at(0, 1), block);
    assert!(status.is_success());
    assert_eq!(block[..], [1; BLOCK]);
}

#[test]
fn reset_ends_what_would_not_end() {
    let mut open = faulty("Stuck");
    inject("EE_Stuck", "write", "pending");
    let stuck = buffer(&[1; BLOCK]);
    open.queue
        .submit(Operation::Write, at(0, 1), stuck)
        .unwrap();
    for _ in 0..1000 {
        open.thread.poll();
    }
    assert!(open.queue.pop().is_none());
    open.queue
        .submit(Operation::Reset, at(0, 0), buffer(&[0]))
        .unwrap();
    let (mut aborted, mut reset) = (None, None);
    while aborted.is_none() || reset.is_none() {
        let finished = open.finish();
        if finished.payload.len() == BLOCK {
            aborted = Some(finished.status);
        } else {
            reset = Some(finished.status);
        }
    }
    let aborted = aborted.unwrap();
    // Before 24.05 SPDK says only that it failed.
    let status = (aborted.code_type(), aborted.code());
    assert!(matches!(status, (0, 0x06 | 0x07)), "{aborted}");
    assert!(reset.unwrap().is_success());
    let (_, found) = open.run(Operation::Read, at(0, 1), buffer(&[9; BLOCK]));
    assert_eq!(found[..], [0; BLOCK], "it was never written");
}

#[test]
fn resumed_requests_take_effect() {
    let mut open = faulty("Paused");
    inject("EE_Paused", "write", "pending");
    open.queue
        .submit(Operation::Write, at(0, 1), buffer(&[3; BLOCK]))
        .unwrap();
    open.thread.poll();
    let params = json!({"name": "EE_Paused"});
    let resume = Config::new().method("bdev", "bdev_error_resume_pending", &params);
    let resumed = service().call(move |application| application.configure(&resume));
    match resumed.unwrap() {
        Ok(()) => {}
        // The method came after 24.01.
        Err(error) => {
            assert_eq!(error.errno(), Some(2), "{error}");
            let reset = buffer(&[0]);
            open.queue
                .submit(Operation::Reset, at(0, 0), reset)
                .unwrap();
            open.finish();
            open.finish();
            return;
        }
    }
    assert!(open.finish().status.is_success());
    let (_, found) = open.run(Operation::Read, at(0, 1), buffer(&[9; BLOCK]));
    assert_eq!(found[..], [3; BLOCK]);
}

#[test]
fn slow_device_answers_late() {
    const READ: Duration = Duration::from_millis(20);
    malloc("Base");
    let micros = u64::try_from(READ.as_micros()).unwrap();
    let params = json!({
        "base_bdev_name": "Base", "name": "Slow", "avg_read_latency": micros,
        "p99_read_latency": micros, "avg_write_latency": 0, "p99_write_latency": 0,
    });
    configure(Config::new().method("bdev", "bdev_delay_create", &params));
    let mut open = open::<DmaBuffer>("Slow");
    let begun = Instant::now();
    let (status, block) = open.run(Operation::Read, at(0, 1), buffer(&[1; BLOCK]));
    assert!(status.is_success());
    assert!(begun.elapsed() >= READ);
    assert_eq!(block[..], [0; BLOCK]);
}

#[test]
fn removal_reaches_who_is_in_front() {
    let open = faulty("Below");
    let remove = std::thread::spawn(|| {
        configure(Config::new().method("bdev", "bdev_malloc_delete", &json!({"name": "Below"})));
    });
    let event = loop {
        match open.bdev.poll_event() {
            Some(event) => break event,
            None => open.thread.poll(),
        };
    };
    assert_eq!(event, BdevEvent::Removed);
    assert!(!remove.is_finished());
    open.close_for(remove);
}

#[test]
fn device_that_goes_takes_requests_until_it_is_closed() {
    malloc("Going");
    let mut open = open::<DmaBuffer>("Going");
    let remove = std::thread::spawn(|| {
        configure(Config::new().method("bdev", "bdev_malloc_delete", &json!({"name": "Going"})));
    });
    while open.bdev.poll_event().is_none() {
        open.thread.poll();
    }
    let (status, _) = open.run(Operation::Write, at(0, 1), buffer(&[1; BLOCK]));
    assert!(status.is_success(), "memory is still there: {status}");
    open.close_for(remove);
}
