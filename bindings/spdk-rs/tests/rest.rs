//! What a library with nothing to do costs, alone in this process.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bowline_spdk_rs::{Access, Bdev, Config, Options, Service};

/// How often the OS thread of a service has slept.
fn sleeps() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let folders: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
    let own = folders.iter().find(|folder| {
        let name = fs::read_to_string(folder.join("comm"));
        name.is_ok_and(|name| name.trim() == "spdk")
    });
    let status = fs::read_to_string(own.unwrap().join("status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn library_with_nothing_to_do_sleeps_and_is_woken_for_what_comes() {
    let options = Options::without_huge_pages("bowline-spdk-rs-rest", 512);
    let service = Service::start(options, Config::new().malloc("M0", 2048, 512)).unwrap();

    sleeping_takes_one_wake_up_a_second();
    message_wakes_who_sleeps(&service);
    opening_and_closing_wake_who_sleeps(&service);
}

fn sleeping_takes_one_wake_up_a_second() {
    // Until the start has died away.
    let until = Instant::now() + Duration::from_secs(3);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
    let begun = Instant::now();
    let before = sleeps();
    let until = begun + Duration::from_secs(4);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
    let slept = sleeps() - before;
    // Ten in a second it were.
    let most = begun.elapsed().as_secs() + 3;
    assert!((1..=most).contains(&slept), "{slept} of {most}");
}

fn message_wakes_who_sleeps(service: &Service) {
    let handle = service
        .call(|application| application.thread().handle())
        .unwrap();
    let (say, said) = mpsc::channel();
    let (woken, wakes) = mpsc::channel();
    let thread = service.library().thread("sleeper").unwrap();
    thread.set_waker(move || woken.send(()).unwrap());
    let own = thread.handle();
    // There, and back.
    handle
        .send(move || own.send(move || say.send(()).unwrap()).unwrap())
        .unwrap();
    wakes.recv().unwrap();
    while said.try_recv().is_err() {
        thread.poll();
    }
}

fn opening_and_closing_wake_who_sleeps(service: &Service) {
    let thread = service.library().thread("opener").unwrap();
    let other = service.call(|application| application.thread().stirs());
    let other = other.unwrap();
    let bdev = Bdev::open(&thread, "M0", Access::Write).unwrap();
    drop(bdev);
    let now = service.call(|application| application.thread().stirs());
    assert_eq!(now.unwrap(), other + 2);
    assert_eq!(thread.stirs(), 2);
}
