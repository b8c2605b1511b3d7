//! What a device with nothing to do costs: how often its reactor has to wake for it. Alone in this
//! process, as all devices are told to look when one is opened.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bowline_block::{Completions, Device};
use bowline_engine_spdk::{Options, Source, Spdk, SpdkDevice};
use bowline_nvme::Nanos;
use bowline_spdk_rs::{Config, Thread};

#[test]
fn device_with_nothing_to_do_wakes_its_reactor_once_a_second() {
    let spdk = Spdk::start(&Options {
        config: None,
        drives: Some(Vec::new()),
        huge_pages: false,
        memory_mib: Some(512),
    })
    .unwrap();
    let config = Config::new().malloc("Idle", 2048, 512);
    let configured = spdk.service().call(move |it| it.configure(&config));
    configured.unwrap().unwrap();
    let backing = spdk.find(&Source::Bdev("Idle".to_owned())).unwrap();
    let wakes = Arc::new(AtomicU64::new(0));
    let wake = {
        let wakes = Arc::clone(&wakes);
        move || {
            wakes.fetch_add(1, Ordering::SeqCst);
        }
    };
    let mut device = SpdkDevice::open(backing, &spdk.memory(), wake).unwrap();

    let begin = Nanos::from_secs(100);
    let end = begin.after(Nanos::from_secs(60));
    let polls = polls(&mut device, begin, end);
    // Those at first are for what opening it may have begun.
    assert!((60..=75).contains(&polls), "{polls} in a minute");

    let before = wakes.load(Ordering::SeqCst);
    let handle = Thread::current().unwrap().handle();
    handle.send(|| {}).unwrap();
    assert_eq!(wakes.load(Ordering::SeqCst), before + 1);
    assert_eq!(device.poll_timeout(), Some(Nanos::ZERO), "it was woken");
}

/// A reactor that sleeps for as long as it may, on a clock of its own.
fn polls(device: &mut SpdkDevice, begin: Nanos, end: Nanos) -> u32 {
    let mut done = Completions::with_capacity(1);
    let mut now = begin;
    let mut polls = 0;
    while now < end {
        device.poll(now, &mut done);
        polls += 1;
        let next = device.poll_timeout().unwrap();
        now = now.max(next);
    }
    polls
}
