//! Drive requests through the ring.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

mod common;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bowline_block::{IoBuf, Segments};
use bowline_reactor::{
    Backend, DISK_OPS_MAX, DiskClientId, DiskDone, DiskOp, DiskOpKind, DiskQueue, IoBackend,
    LocalReactor, monotonic_now,
};
use common::{Echo, filled, local, run, uring_is_permitted};

/// A reactor on the ring, or nothing where that is not permitted.
fn ring() -> Option<(LocalReactor<Echo>, DiskQueue, DiskClientId)> {
    if !uring_is_permitted() {
        return None;
    }
    let local = local(IoBackend::Uring);
    let queue = local.reactor().disk();
    let client = queue.register();
    Some((local, queue, client))
}

fn file(bytes: &[u8]) -> Rc<OwnedFd> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Rc::new(file.into())
}

fn op(file: &Rc<OwnedFd>, kind: DiskOpKind, offset: u64, data: Segments, user: u64) -> DiskOp {
    DiskOp {
        file: Rc::clone(file),
        kind,
        offset,
        data,
        user,
    }
}

fn segments(bufs: impl IntoIterator<Item = IoBuf>) -> Segments {
    let mut segments = Segments::new();
    for buf in bufs {
        segments.push(buf).unwrap();
    }
    segments
}

fn bytes_of(segments: &Segments) -> Vec<u8> {
    segments
        .iter()
        .flat_map(|buf| buf.as_slice().to_vec())
        .collect()
}

/// Submits one request and waits for it.
fn complete(
    local: &mut LocalReactor<Echo>,
    queue: &DiskQueue,
    client: DiskClientId,
    op: DiskOp,
) -> DiskDone {
    let user = op.user;
    queue.try_submit(client, op).unwrap();
    let mut done = None;
    run(local, |_, _| {
        done = queue.poll(client);
        done.is_some()
    });
    let done = done.unwrap();
    assert_eq!(done.user, user);
    done
}

#[test]
fn what_is_written_is_read_back_in_one_segment_and_in_several() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let file = file(&[]);
    let pool = local.reactor().pool().clone();
    for (dsync, lens, offset) in [
        (false, &[5000][..], 0),
        (true, &[4096], 8192),
        (false, &[100, 4000, 1, 70_000], 100_000),
        (true, &[4096, 4096], 300_000),
    ] {
        let pieces: Vec<IoBuf> = lens
            .iter()
            .enumerate()
            .map(|(i, len)| filled(&pool, &vec![u8::try_from(i + 1).unwrap(); *len]))
            .collect();
        let total: usize = lens.iter().sum();
        let data = segments(pieces);
        let expected = bytes_of(&data);
        let write = op(&file, DiskOpKind::Write { dsync }, offset, data, offset + 1);
        let done = complete(&mut local, &queue, client, write);
        assert_eq!(usize::try_from(done.result), Ok(total));
        drop(done);
        let data = segments(lens.iter().map(|len| filled(&pool, &vec![0; *len])));
        let read = op(&file, DiskOpKind::Read, offset, data, offset + 2);
        let done = complete(&mut local, &queue, client, read);
        assert_eq!(usize::try_from(done.result), Ok(total));
        assert_eq!(bytes_of(&done.op.data), expected);
    }
}

#[test]
fn read_past_the_end_is_short() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let file = file(b"0123456789");
    let data = segments([filled(local.reactor().pool(), &[0xAA; 100])]);
    let read = op(&file, DiskOpKind::Read, 4, data, 1);
    let done = complete(&mut local, &queue, client, read);
    assert_eq!(done.result, 6);
    assert_eq!(&bytes_of(&done.op.data)[..8], b"456789\xAA\xAA");
}

#[test]
fn flush_and_fallocate_complete() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let file = file(&[1; 8192]);
    for data_only in [false, true] {
        let flush = op(
            &file,
            DiskOpKind::Fsync { data_only },
            0,
            Segments::new(),
            1,
        );
        assert_eq!(complete(&mut local, &queue, client, flush).result, 0);
    }
    let kind = DiskOpKind::Fallocate {
        mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        len: 4096,
    };
    let punch = op(&file, kind, 4096, Segments::new(), 2);
    let punched = complete(&mut local, &queue, client, punch).result;
    assert!(punched == 0 || punched == -libc::EOPNOTSUPP);
    if punched == 0 {
        let data = segments([filled(local.reactor().pool(), &[7; 8192])]);
        let read = op(&file, DiskOpKind::Read, 0, data, 3);
        let bytes = bytes_of(&complete(&mut local, &queue, client, read).op.data);
        assert!(bytes[..4096].iter().all(|byte| *byte == 1));
        assert!(bytes[4096..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn discard_of_a_regular_file_fails_without_harm() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let file = file(&[1; 4096]);
    let discard = op(
        &file,
        DiskOpKind::Discard { len: 4096 },
        0,
        Segments::new(),
        1,
    );
    assert!(complete(&mut local, &queue, client, discard).result < 0);
}

#[test]
fn errors_come_as_negated_errno_with_the_request() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let read_only: Rc<OwnedFd> = Rc::new(std::fs::File::open("/dev/zero").unwrap().into());
    let data = segments([filled(local.reactor().pool(), &[1; 512])]);
    let write = op(&read_only, DiskOpKind::Write { dsync: false }, 0, data, 1);
    let done = complete(&mut local, &queue, client, write);
    assert_eq!(done.result, -libc::EBADF);
    assert_eq!(done.op.data.len_bytes(), 512);
}

#[test]
fn read_into_a_shared_or_missing_buffer_is_refused() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let file = file(&[1; 4096]);
    let buf = filled(local.reactor().pool(), &[0; 4096]);
    let view = buf.clone();
    let read = op(&file, DiskOpKind::Read, 0, segments([buf]), 1);
    assert_eq!(
        complete(&mut local, &queue, client, read).result,
        -libc::EINVAL
    );
    assert!(view.iter().all(|byte| *byte == 0));
    for kind in [DiskOpKind::Read, DiskOpKind::Write { dsync: false }] {
        let empty = op(&file, kind, 0, Segments::new(), 2);
        assert_eq!(
            complete(&mut local, &queue, client, empty).result,
            -libc::EINVAL
        );
    }
}

#[test]
fn full_queue_hands_the_request_back() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let file = file(&[1; 4096]);
    let flush = |user| {
        op(
            &file,
            DiskOpKind::Fsync { data_only: true },
            0,
            Segments::new(),
            user,
        )
    };
    for user in 0..DISK_OPS_MAX as u64 {
        queue.try_submit(client, flush(user)).unwrap();
    }
    assert_eq!(
        queue.try_submit(client, flush(9999)).unwrap_err().user,
        9999
    );
    let mut seen = vec![false; DISK_OPS_MAX];
    let mut count = 0;
    run(&mut local, |_, _| {
        while let Some(done) = queue.poll(client) {
            assert_eq!(done.result, 0);
            assert!(!std::mem::replace(
                &mut seen[usize::try_from(done.user).unwrap()],
                true
            ));
            count += 1;
        }
        count == DISK_OPS_MAX
    });
    queue.try_submit(client, flush(1)).unwrap();
}

#[test]
fn client_refused_for_want_of_room_gets_a_turn_when_another_makes_room() {
    let Some((mut local, queue, greedy)) = ring() else {
        return;
    };
    let refused = queue.register();
    let file = file(&[1; 4096]);
    let kind = DiskOpKind::Fsync { data_only: true };
    let flush = || op(&file, kind, 0, Segments::new(), 0);
    for _ in 0..DISK_OPS_MAX {
        queue.try_submit(greedy, flush()).unwrap();
    }
    assert!(queue.try_submit(refused, flush()).is_err());
    let counters = local.reactor().counters();
    assert_eq!(counters.disk_dones, 0);
    run(&mut local, |_, cx| {
        cx.counters().disk_dones == DISK_OPS_MAX as u64
    });
    // All have completed, so nothing but room can cause a turn.
    assert!(!local.turn(monotonic_now()).more);
    assert!(queue.try_submit(refused, flush()).is_err());
    assert!(!local.turn(monotonic_now()).more, "full is no busy loop");
    assert!(queue.poll(greedy).is_some());
    assert!(local.turn(monotonic_now()).more, "there is room");
    assert!(!local.turn(monotonic_now()).more, "said once");
    queue.try_submit(refused, flush()).unwrap();
}

#[test]
fn clients_only_see_their_own_completions() {
    let Some((mut local, queue, first)) = ring() else {
        return;
    };
    let second = queue.register();
    let file = file(&[1; 4096]);
    let flush = |user| {
        op(
            &file,
            DiskOpKind::Fsync { data_only: true },
            0,
            Segments::new(),
            user,
        )
    };
    queue.try_submit(first, flush(1)).unwrap();
    queue.try_submit(second, flush(2)).unwrap();
    let mut done = (None, None);
    run(&mut local, |_, _| {
        done.0 = done.0.take().or_else(|| queue.poll(first));
        done.1 = done.1.take().or_else(|| queue.poll(second));
        done.0.is_some() && done.1.is_some()
    });
    assert_eq!((done.0.unwrap().user, done.1.unwrap().user), (1, 2));
}

#[test]
fn request_of_an_unregistered_client_completes_unseen() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let pool = local.reactor().pool().clone();
    let file = file(&[1; 4096]);
    let read = op(
        &file,
        DiskOpKind::Read,
        0,
        segments([filled(&pool, &[0; 4096])]),
        1,
    );
    queue.try_submit(client, read).unwrap();
    queue.unregister(client);
    run(&mut local, |_, cx| common::buffers_used(cx) == 0);
    assert!(queue.poll(client).is_none());
    let flush = op(
        &file,
        DiskOpKind::Fsync { data_only: true },
        0,
        Segments::new(),
        2,
    );
    assert!(queue.try_submit(client, flush).is_err());
    assert_eq!(Rc::strong_count(&file), 1, "the request let go of its file");
}

#[test]
fn dropped_reactor_takes_back_what_the_kernel_holds() {
    let Some((mut local, queue, client)) = ring() else {
        return;
    };
    let pool = local.reactor().pool().clone();
    // Nothing ever comes out of this pipe, so the read stays with the kernel.
    let (reader, writer) = std::io::pipe().unwrap();
    let reader: Rc<OwnedFd> = Rc::new(reader.into());
    let read = op(
        &reader,
        DiskOpKind::Read,
        0,
        segments([filled(&pool, &[0; 4096])]),
        1,
    );
    queue.try_submit(client, read).unwrap();
    local.turn(monotonic_now());
    assert!(queue.poll(client).is_none());
    drop(local);
    let done = queue.poll(client).expect("cancelled, not forgotten");
    assert_eq!(done.result, -libc::ECANCELED);
    drop(done);
    assert_eq!(
        pool.stats()
            .classes
            .iter()
            .map(|class| class.used)
            .sum::<usize>(),
        0
    );
    let flush = op(
        &reader,
        DiskOpKind::Fsync { data_only: true },
        0,
        Segments::new(),
        2,
    );
    assert!(queue.try_submit(client, flush).is_err());
    drop(writer);
}

#[test]
fn epoll_has_no_drive_queue() {
    let local = local(IoBackend::Epoll);
    let queue = local.reactor().disk();
    assert_eq!(queue.kind(), Backend::Epoll);
    let client = queue.register();
    let file = file(&[1; 4096]);
    let flush = op(
        &file,
        DiskOpKind::Fsync { data_only: true },
        0,
        Segments::new(),
        7,
    );
    assert_eq!(queue.try_submit(client, flush).unwrap_err().user, 7);
}
