//! Devices and their requests, over SPDK or over the double.

#![cfg(any(feature = "spdk", feature = "double"))]
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

mod common;

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

use bowline_spdk_rs::{
    Access, Bdev, BdevEvent, Config, DmaBuffer, Operation, Payload, Refusal, Slices, Thread,
};
use serde_json::json;

use common::{BLOCK, at, buffer, configure, malloc, open, service};

#[test]
fn what_was_written_is_read() {
    malloc("Data");
    let mut open = open::<DmaBuffer>("Data");
    let written = buffer(&[vec![7; BLOCK], vec![8; BLOCK]].concat());
    assert!(open.run(Operation::Write, at(3, 2), written).0.is_success());
    let (status, _) = open.run(Operation::Flush, at(0, 2048), buffer(&[0]));
    assert!(status.is_success());
    let (status, found) = open.run(Operation::Read, at(2, 4), buffer(&[1; 4 * BLOCK]));
    assert!(status.is_success());
    let expected = [
        vec![0; BLOCK],
        vec![7; BLOCK],
        vec![8; BLOCK],
        vec![0; BLOCK],
    ];
    assert_eq!(found[..], expected.concat());
}

#[test]
fn unmapped_and_zeroed_blocks_read_as_zeroes() {
    malloc("Zeroes");
    let mut open = open::<DmaBuffer>("Zeroes");
    let written = buffer(&[9; 4 * BLOCK]);
    let (status, written) = open.run(Operation::Write, at(0, 4), written);
    assert!(status.is_success());
    let (status, written) = open.run(Operation::Unmap, at(0, 1), written);
    assert!(status.is_success());
    let (status, written) = open.run(Operation::WriteZeroes, at(2, 1), written);
    assert!(status.is_success());
    let (status, found) = open.run(Operation::Read, at(0, 4), written);
    assert!(status.is_success());
    let expected = [
        vec![0; BLOCK],
        vec![9; BLOCK],
        vec![0; BLOCK],
        vec![9; BLOCK],
    ];
    assert_eq!(found[..], expected.concat());
}

#[test]
fn compare_and_write_writes_only_what_was_expected() {
    malloc("Pair");
    let mut open = open::<DmaBuffer>("Pair");
    let pair = buffer(&[vec![0; BLOCK], vec![5; BLOCK]].concat());
    let (status, pair) = open.run(Operation::CompareAndWrite, at(1, 1), pair);
    assert!(status.is_success(), "{status}");
    let (status, _) = open.run(Operation::CompareAndWrite, at(1, 1), pair);
    assert_eq!(
        (status.code_type(), status.code()),
        (2, 0x85),
        "compare failure"
    );
    let (status, _) = open.run(Operation::Compare, at(1, 1), buffer(&[5; BLOCK]));
    assert!(status.is_success(), "{status}");
    let (status, _) = open.run(Operation::Compare, at(1, 1), buffer(&[6; BLOCK]));
    assert_eq!(
        (status.code_type(), status.code()),
        (2, 0x85),
        "compare failure"
    );
}

/// Several pieces, as many as there are.
struct Pieces(Vec<DmaBuffer>);

// SAFETY: the buffers own their bytes, at addresses that do not change.
unsafe impl Payload for Pieces {
    fn pieces(&mut self, _fill: bool, into: &mut Slices<'_>) {
        for piece in &self.0 {
            into.push(piece.base(), piece.len());
        }
    }
}

#[test]
fn payload_may_be_in_pieces() {
    malloc("Pieces");
    let mut open = open::<Pieces>("Pieces");
    let pieces = |byte: u8| {
        let lengths = [100, 412, 500, 12];
        Pieces(
            lengths
                .iter()
                .map(|bytes| buffer(&vec![byte; *bytes]))
                .collect(),
        )
    };
    assert!(
        open.run(Operation::Write, at(0, 2), pieces(3))
            .0
            .is_success()
    );
    let (status, found) = open.run(Operation::Read, at(0, 2), pieces(0));
    assert!(status.is_success());
    assert!(
        found
            .0
            .iter()
            .all(|piece| piece.iter().all(|byte| *byte == 3))
    );

    // What is compared ends inside a piece.
    let pair = Pieces(vec![
        buffer(&[3; 300]),
        buffer(&[3; 424]),
        buffer(&[4; 300]),
    ]);
    let (status, _) = open.run(Operation::CompareAndWrite, at(0, 1), pair);
    assert!(status.is_success(), "{status}");
    let (_, found) = open.run(Operation::Read, at(0, 1), Pieces(vec![buffer(&[0; BLOCK])]));
    assert_eq!(found.0[0][..], [vec![3; 212], vec![4; 300]].concat());

    let many = Pieces((0..5).map(|_| buffer(&[0; BLOCK])).collect());
    let rejected = open
        .queue
        .submit(Operation::Write, at(0, 5), many)
        .unwrap_err();
    assert_eq!(rejected.reason, Refusal::Invalid, "four pieces at most");
    assert_eq!(rejected.payload.0.len(), 5, "it comes back");
}

#[test]
fn requests_that_make_no_sense_come_back() {
    malloc("Sense");
    let mut writer = open::<DmaBuffer>("Sense");
    let mut check = |operation, range, bytes, reason| {
        let payload = buffer(&vec![0; bytes]);
        let rejected = writer.queue.submit(operation, range, payload).unwrap_err();
        assert_eq!(rejected.reason, reason, "{operation:?} of {range:?}");
        assert_eq!(rejected.payload.len(), bytes);
        assert_eq!(writer.queue.running(), 0);
    };
    check(Operation::Read, at(2048, 1), BLOCK, Refusal::Invalid);
    check(Operation::Read, at(u64::MAX, 1), BLOCK, Refusal::Invalid);
    check(Operation::Write, at(0, u64::MAX), BLOCK, Refusal::Invalid);
    check(Operation::Write, at(0, 2), BLOCK, Refusal::Invalid);
    check(Operation::Read, at(0, 1), 2 * BLOCK, Refusal::Invalid);
    check(
        Operation::CompareAndWrite,
        at(0, 1),
        BLOCK,
        Refusal::Invalid,
    );
    check(
        Operation::CompareAndWrite,
        at(0, u64::MAX),
        BLOCK,
        Refusal::Invalid,
    );
    for operation in [Operation::Unmap, Operation::WriteZeroes] {
        check(operation, at(2000, 49), 1, Refusal::Invalid);
        check(operation, at(0, 0), 1, Refusal::Invalid);
    }

    let reader = Bdev::open(&writer.thread, "Sense", Access::Read).unwrap();
    let mut queue = reader.queue::<DmaBuffer>(1, 1).unwrap();
    let rejected = queue
        .submit(Operation::Write, at(0, 1), buffer(&[0; BLOCK]))
        .unwrap_err();
    assert_eq!(rejected.reason, Refusal::ReadOnly);
}

#[test]
fn queue_takes_as_many_as_it_has_slots() {
    malloc("Full");
    let mut open = open::<Numbered>("Full");
    for number in 0..8 {
        open.queue
            .submit(Operation::Flush, at(0, 2048), Numbered(number))
            .unwrap();
    }
    assert_eq!(open.queue.running(), 8);
    let rejected = open
        .queue
        .submit(Operation::Flush, at(0, 2048), Numbered(8))
        .unwrap_err();
    assert_eq!((rejected.reason, rejected.payload.0), (Refusal::Full, 8));
    while open.queue.running() > 0 {
        open.thread.poll();
    }
    let rejected = open
        .queue
        .submit(Operation::Flush, at(0, 2048), Numbered(8))
        .unwrap_err();
    assert_eq!(rejected.reason, Refusal::Full, "they were not taken out");
    let mut numbers: Vec<u32> = (0..8)
        .map(|_| open.queue.pop().unwrap().payload.0)
        .collect();
    assert!(open.queue.pop().is_none());
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(
        open.run(Operation::Reset, at(0, 0), Numbered(9))
            .0
            .is_success()
    );
}

#[derive(Debug)]
struct Numbered(u32);

// SAFETY: it has no memory.
unsafe impl Payload for Numbered {
    fn pieces(&mut self, _fill: bool, _into: &mut Slices<'_>) {}
}

/// Says when it is dropped.
#[derive(Debug)]
struct Watched {
    data: DmaBuffer,
    dropped: Rc<Cell<bool>>,
}

// SAFETY: the buffer owns its bytes, at one address.
unsafe impl Payload for Watched {
    fn pieces(&mut self, _fill: bool, into: &mut Slices<'_>) {
        into.push(self.data.base(), self.data.len());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.dropped.set(true);
    }
}

#[test]
fn what_is_on_its_way_keeps_payload_and_device() {
    malloc("Kept");
    let mut open = open::<Watched>("Kept");
    let dropped = Rc::new(Cell::new(false));
    let payload = Watched {
        data: buffer(&[1; BLOCK]),
        dropped: Rc::clone(&dropped),
    };
    open.queue
        .submit(Operation::Write, at(0, 1), payload)
        .unwrap();
    drop(open.queue);
    drop(open.bdev);
    assert!(!dropped.get());
    Bdev::open(&open.thread, "Kept", Access::Write).unwrap_err();
    while !dropped.get() {
        open.thread.poll();
    }
    Bdev::open(&open.thread, "Kept", Access::Write).unwrap();
}

#[test]
fn removal_waits_for_who_has_the_device() {
    malloc("Gone");
    let open = open::<()>("Gone");
    let remove = std::thread::spawn(|| {
        configure(Config::new().method("bdev", "bdev_malloc_delete", &json!({"name": "Gone"})));
    });
    loop {
        match open.bdev.poll_event() {
            Some(event) => break assert_eq!(event, BdevEvent::Removed),
            None => open.thread.poll(),
        };
    }
    assert!(!remove.is_finished());
    let thread = open.close_for(remove);
    let error = Bdev::open(&thread, "Gone", Access::Read).unwrap_err();
    assert_eq!(error.errno(), Some(19), "{error}");
}

#[test]
fn resize_is_told() {
    configure(Config::new().null("Size", 2048, 512));
    let open = open::<()>("Size");
    let params = json!({"name": "Size", "new_size": 2});
    configure(Config::new().method("bdev", "bdev_null_resize", &params));
    loop {
        match open.bdev.poll_event() {
            Some(event) => break assert_eq!(event, BdevEvent::Resized),
            None => open.thread.poll(),
        };
    }
    assert_eq!(open.bdev.info().blocks, 4096);
}

#[test]
fn devices_are_listed_with_what_they_can_do() {
    malloc("Listed");
    let all = service().call(bowline_spdk_rs::Application::bdevs).unwrap();
    let info = all.iter().find(|info| info.name == "Listed").unwrap();
    assert_eq!((info.block_bytes, info.blocks), (512, 2048));
    assert_eq!(info.module, "malloc");
    assert!(info.supports(Operation::Unmap));
}

#[test]
fn second_writer_is_refused() {
    malloc("Mine");
    let open = open::<()>("Mine");
    let error = Bdev::open(&open.thread, "Mine", Access::Write).unwrap_err();
    assert!(
        error.to_string().contains("somebody else writes to it"),
        "{error}"
    );
    Bdev::open(&open.thread, "Mine", Access::Read).unwrap();
}

#[test]
fn os_thread_has_one_thread_of_the_library() {
    let library = service().library();
    let thread = library.thread("first").unwrap();
    let error = library.thread("second").unwrap_err();
    assert!(error.to_string().contains("already has one"), "{error}");
    assert_eq!(Thread::current().unwrap().name(), "first");
    drop(thread);
    assert!(Thread::current().is_none());
    library.thread("second").unwrap();
}

#[test]
fn dma_memory_is_zeroed_aligned_and_goes_to_other_threads() {
    let library = service().library();
    let mut buffer = library.dma(1 << 20, 1 << 16).unwrap();
    assert_eq!(buffer.base().addr().get() % (1 << 16), 0);
    assert!(buffer.iter().all(|byte| *byte == 0));
    buffer[0] = 1;
    let base: NonNull<u8> = buffer.base();
    assert_eq!(base.addr(), buffer.base().addr());
    std::thread::spawn(move || drop(buffer)).join().unwrap();
    library.dma(0, 4096).unwrap_err();
    library.dma(4096, 3).unwrap_err();
    library.dma(1 << 40, 4096).unwrap_err();
}

#[test]
fn file_is_a_device_and_keeps_what_was_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    configure(Config::new().aio("File", &path, 512));
    let mut open = open::<DmaBuffer>("File");
    assert_eq!(open.bdev.info().blocks, 2048);
    let (status, _) = open.run(Operation::Write, at(1, 1), buffer(&[6; BLOCK]));
    assert!(status.is_success());
    drop(open);
    let removed = service().call(|application| application.remove("File"));
    removed.unwrap().unwrap();
    let content = std::fs::read(&path).unwrap();
    assert_eq!(
        content[..2 * BLOCK],
        [vec![0; BLOCK], vec![6; BLOCK]].concat()
    );
}

#[test]
fn what_is_not_there_cannot_be_removed() {
    let error = service().call(|application| application.remove("Nothing"));
    let error = error.unwrap().unwrap_err().to_string();
    assert!(error.contains("there is none of this name"), "{error}");
    let error = service().call(|application| application.detach("nobody"));
    let error = error.unwrap().unwrap_err().to_string();
    assert!(
        error.contains("controller nobody was not detached"),
        "{error}"
    );
}

#[test]
fn service_does_not_wait_for_itself() {
    let inside = service().call(|_| service().call(|_| ()).unwrap_err().to_string());
    assert!(inside.unwrap().contains("its own OS thread"));
}

#[test]
fn thread_may_end_in_messages_and_begin_again() {
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let library = service().library();
        let thread = library.thread("ending").unwrap();
        let late = move || {
            let second = service().library().thread("second");
            said.send(second.map(|_| ()).unwrap_err().to_string())
                .unwrap();
        };
        thread.handle().send(late).unwrap();
        drop(thread);
        library.thread("again").unwrap();
    })
    .join()
    .unwrap();
    let error = heard.recv().unwrap();
    assert!(error.contains("already has one"), "{error}");
}
