//! Descriptors run out, and reactors are dropped at the worst moment. A program of its own: the
//! limit is the whole process's.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

mod common;

use std::io::Read;

use bowline_reactor::{IoBackend, monotonic_now};
use common::{client, listener, local, ping_pong, run};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn limit_descriptors(current: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

fn accepting_resumes(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    local.parts().1.listen(listener).unwrap();
    let waiting = client(address);
    let usual = getrlimit(Resource::Nofile).current;
    // Every number below the first free one is taken.
    let free = rustix::io::dup(&waiting).unwrap();
    let first_free = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&free)).unwrap();
    drop(free);
    limit_descriptors(Some(first_free));
    run(&mut local, |_, cx| cx.counters().accept_pauses > 0);
    assert_eq!(local.service().accepted, 0);
    let turns = local.reactor().counters().turns;
    limit_descriptors(usual);
    // Nothing else happens: the end of the pause itself brings the reactor back.
    run(&mut local, |echo, _| echo.accepted == 1);
    assert!(
        local.reactor().counters().turns - turns < 20,
        "a pause is no busy loop"
    );
    let traffic = std::thread::spawn(move || ping_pong(waiting, 3, 10_000, 500));
    run(&mut local, |echo, _| echo.closed == 1);
    traffic.join().unwrap();
}

fn drop_while_sending(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let mut peer = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let id = echo.adopt(cx, stream);
    let (mut sent, mut stuck) = (0, 0);
    while stuck < 50 {
        let cx = local.parts().1;
        if cx.is_sending(id) {
            stuck += 1;
        } else {
            let mut gather = cx.gather();
            gather.push_buf(common::filled(cx.pool(), &vec![7; 1 << 20]));
            cx.send(id, gather);
            (sent, stuck) = (sent + 1, 0);
        }
        local.turn(monotonic_now());
    }
    drop(local);
    let mut bytes = Vec::new();
    // What had left arrives, then the connection ends one way or the other.
    let _ = peer.read_to_end(&mut bytes);
    assert!(bytes.len() <= sent << 20 && bytes.iter().all(|byte| *byte == 7));
}

/// A completion collected by the last turn was forgotten: the drop waited for it in vain, and then
/// leaked the gather it belongs to.
fn drop_with_completions_collected(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let _peer = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let id = echo.adopt(cx, stream);
    let pool = cx.pool().clone();
    local.turn(monotonic_now());
    let cx = local.parts().1;
    let mut gather = cx.gather();
    gather.push_buf(common::filled(cx.pool(), &[7; 4096]));
    cx.send(id, gather);
    local.turn(monotonic_now());
    drop(local);
    assert!(pool.stats().classes.iter().all(|class| class.used == 0));
}

#[test]
fn shortage_and_sudden_end_do_no_harm_on_either_engine() {
    let mut engines = vec![IoBackend::Epoll];
    if common::uring_is_permitted() {
        engines.push(IoBackend::Uring);
    }
    for io in engines {
        accepting_resumes(io);
        drop_while_sending(io);
        drop_with_completions_collected(io);
    }
}
