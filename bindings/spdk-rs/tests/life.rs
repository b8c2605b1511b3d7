//! The library from its start to its end, once in this process.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use bowline_spdk_rs::{Access, Application, Bdev, Config, Operation, Options, Range, Service};
use serde_json::json;

#[test]
fn from_start_to_stop() {
    let config = Config::new().malloc("M0", 2048, 512);
    let options = Options::without_huge_pages("bowline-spdk-rs-life", 512);
    let application = Application::start(&options, &config).unwrap();
    assert_eq!(application.bdevs().len(), 1);

    let error = Service::start(options, Config::new()).unwrap_err();
    assert!(error.to_string().contains("only once"), "{error}");

    pollers_run_while_they_are_wanted(&application);
    poller_may_end_itself(&application);
    messages_run_on_their_thread(&application);
    nothing_is_waited_for_in_a_callback(&application);
    wrong_configuration_fails(&application);
    io_on_the_application_thread(&application);
    flush_is_claimed_where_it_is_done(&application);

    let library = application.library();
    let memory = library.dma(4096, 4096).unwrap();
    let other = other_thread(&application);
    application.stop().unwrap();
    other.join().unwrap();
    assert!(
        memory.iter().all(|byte| *byte == 0),
        "it outlives the library"
    );
    let error = library.thread("late").unwrap_err();
    assert!(error.to_string().contains("being stopped"), "{error}");
}

fn pollers_run_while_they_are_wanted(application: &Application) {
    let thread = application.thread();
    let (often, seldom) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let count = |cell: &Rc<Cell<u32>>| {
        let cell = Rc::clone(cell);
        move || {
            cell.set(cell.get() + 1);
            false
        }
    };
    let hour = Duration::from_secs(3600);
    let first = thread.poller(None, count(&often)).unwrap();
    let second = thread.poller(Some(hour), count(&seldom)).unwrap();
    assert!(thread.has_active_pollers());
    assert_eq!(thread.next_poll(), Some(Duration::ZERO));
    for _ in 0..3 {
        thread.poll();
    }
    assert_eq!((often.get(), seldom.get()), (3, 0));
    drop(first);
    thread.poll();
    assert!(thread.next_poll().unwrap() <= hour);
    drop(second);
    thread.poll();
    assert_eq!((often.get(), seldom.get()), (3, 0));
}

fn poller_may_end_itself(application: &Application) {
    let itself = Rc::new(RefCell::new(None));
    let runs = Rc::new(Cell::new(0));
    let poller = {
        let (itself, runs) = (Rc::clone(&itself), Rc::clone(&runs));
        let poll = move || {
            runs.set(runs.get() + 1);
            drop(itself.take());
            true
        };
        application.thread().poller(None, poll).unwrap()
    };
    itself.replace(Some(poller));
    application.poll();
    application.poll();
    assert_eq!(runs.get(), 1);
}

fn messages_run_on_their_thread(application: &Application) {
    let handle = application.thread().handle();
    let (sender, receiver) = mpsc::channel();
    let here = std::thread::current().id();
    std::thread::spawn(move || {
        let say = move || sender.send(std::thread::current().id()).unwrap();
        handle.send(say).unwrap();
    })
    .join()
    .unwrap();
    receiver.try_recv().unwrap_err();
    let ran_on = loop {
        application.poll();
        if let Ok(id) = receiver.try_recv() {
            break id;
        }
    };
    assert_eq!(ran_on, here);

    let ended = std::thread::scope(|scope| {
        let library = application.library();
        let handle = scope.spawn(move || library.thread("short").unwrap().handle());
        handle.join().unwrap()
    });
    let error = ended.send(|| {}).unwrap_err();
    assert!(error.to_string().contains("has ended"), "{error}");
}

fn nothing_is_waited_for_in_a_callback(application: &Application) {
    let thread = application.thread().clone();
    let busy = Rc::new(Cell::new(None));
    let poller = {
        let busy = Rc::clone(&busy);
        let poll = move || {
            busy.set(Some(thread.poll()));
            false
        };
        application.thread().poller(None, poll).unwrap()
    };
    application.poll();
    assert_eq!(busy.get(), Some(false), "a poll within a poll does nothing");
    drop(poller);
    application.poll();
}

fn wrong_configuration_fails(application: &Application) {
    let config = Config::new().method("bdev", "no_such_method", &json!({}));
    let error = application.configure(&config).unwrap_err();
    assert!(
        error.to_string().contains("log names the method"),
        "{error}"
    );
}

fn io_on_the_application_thread(application: &Application) {
    let bdev = Bdev::open(application.thread(), "M0", Access::Write).unwrap();
    let mut queue = bdev.queue(1, 1).unwrap();
    let buffer = application.library().dma(512, 512).unwrap();
    let range = Range {
        block: 0,
        blocks: 1,
    };
    queue.submit(Operation::Read, range, buffer).unwrap();
    let finished = loop {
        if let Some(finished) = queue.pop() {
            break finished;
        }
        application.poll();
    };
    assert!(finished.status.is_success());
}

/// A flush of a drive ended well without the drive being asked, which is what SPDK does unless it is told
/// otherwise. What is behind a device in front of another may be a drive.
fn flush_is_claimed_where_it_is_done(application: &Application) {
    let configure = |method: &str, params| {
        let config = Config::new().method("bdev", method, &params);
        application.configure(&config).unwrap();
    };
    configure("bdev_error_create", json!({"base_name": "M0"}));
    configure("bdev_nvme_set_options", json!({"enable_flush": false}));
    let bdevs = application.bdevs();
    assert_eq!(bdevs.len(), 2);
    for info in bdevs {
        assert!(info.supports(Operation::Flush), "{}: too late", info.name);
    }
    configure("bdev_error_delete", json!({"name": "EE_M0"}));
}

/// A thread on another OS thread that ends some time after it was made.
fn other_thread(application: &Application) -> std::thread::JoinHandle<()> {
    let library = application.library();
    let (made, is_made) = mpsc::channel();
    let handle = std::thread::spawn(move || {
        let thread = library.thread("other").unwrap();
        let bdev = Bdev::open(&thread, "M0", Access::Write).unwrap();
        made.send(()).unwrap();
        for _ in 0..1000 {
            thread.poll();
        }
        drop((bdev, thread));
    });
    is_made.recv().unwrap();
    handle
}
