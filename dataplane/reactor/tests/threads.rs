//! Messages, wake-ups, timers, stopping, and what an idle reactor costs.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

mod common;

use std::io::{self, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use bowline_nvme::Nanos;
use bowline_reactor::{
    Backend, Config, Counters, Gather, Handle, IoBackend, ListenerId, LocalReactor, PollMode,
    Reactor, Service, SocketId, monotonic_now, spawn,
};
use common::{Call, Echo, client, config, deadline, listener, local, local_with, run};

on_both_engines!(
    parked_reactor_answers_messages,
    spinning_reactor_answers_messages,
    no_message_of_many_senders_is_lost,
    flood_of_messages_does_not_hold_up_sockets,
    command_is_received_before_messages_are_looked_at,
    full_mailbox_hands_the_message_back,
    mailbox_of_a_stopped_reactor_refuses,
    waker_causes_a_turn,
    timer_fires_on_time_and_only_once,
    idle_reactor_takes_no_turns,
    traffic_is_followed_by_parking,
    counters_reach_other_threads_before_sleep,
    failing_service_is_reported_by_spawn,
    panicking_service_is_reported_by_join,
    impossible_core_and_name_are_refused,
    thread_is_named_and_pinned,
);

fn start(config: Config) -> Handle<Call> {
    spawn::<Echo>(config, |_, _| Ok(Echo::default())).unwrap()
}

/// Runs something on the reactor's thread and returns its answer.
fn ask<T: Send + 'static>(
    handle: &Handle<Call>,
    question: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (answer, answered) = mpsc::channel();
    let call = Call::Run(Box::new(move |_, _| answer.send(question()).unwrap()));
    handle.mailbox.send_blocking(call).map_err(|_| ()).unwrap();
    answered.recv().unwrap()
}

fn finish(handle: Handle<Call>) {
    handle.stop();
    handle.join().unwrap();
}

fn parked_reactor_answers_messages(io: IoBackend) {
    let handle = start(config(io));
    for number in 0..500 {
        assert_eq!(ask(&handle, move || number), number);
    }
    assert!(handle.counters.snapshot().parks > 0);
    finish(handle);
}

fn spinning_reactor_answers_messages(io: IoBackend) {
    for poll in [PollMode::Adaptive, PollMode::Always] {
        let handle = start(Config { poll, ..config(io) });
        for number in 0..500 {
            assert_eq!(ask(&handle, move || number), number);
        }
        finish(handle);
    }
}

fn no_message_of_many_senders_is_lost(io: IoBackend) {
    const SENDERS: usize = 4;
    const MESSAGES: usize = 3000;
    let handle = start(Config {
        mailbox_depth: 8,
        ..config(io)
    });
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let mailbox = handle.mailbox.clone();
            thread::spawn(move || {
                for _ in 0..MESSAGES {
                    let call = Call::Run(Box::new(|echo, _| echo.received += 1));
                    mailbox.send_blocking(call).map_err(|_| ()).unwrap();
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    let (answer, answered) = mpsc::channel();
    let call = Call::Run(Box::new(move |echo, _| answer.send(echo.received).unwrap()));
    handle.mailbox.send_blocking(call).map_err(|_| ()).unwrap();
    assert_eq!(answered.recv().unwrap(), SENDERS * MESSAGES);
    finish(handle);
}

fn flood_of_messages_does_not_hold_up_sockets(io: IoBackend) {
    let handle = start(config(io));
    let (listener, address) = listener();
    let over = Arc::new(AtomicBool::new(false));
    let flood = thread::spawn({
        let (mailbox, over) = (handle.mailbox.clone(), Arc::clone(&over));
        move || {
            while !over.load(Ordering::Relaxed) {
                // A full mailbox is part of the flood.
                let _ = mailbox.try_send(Call::Run(Box::new(|echo, _| echo.received += 1)));
            }
        }
    });
    let traffic = thread::spawn(move || common::ping_pong(client(address), 3, 200_000, 2000));
    let stream = listener.accept().unwrap().0;
    handle
        .mailbox
        .send_blocking(Call::Attach(stream))
        .map_err(|_| ())
        .unwrap();
    traffic.join().unwrap();
    over.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    finish(handle);
}

/// Writes down what it is shown.
#[derive(Default)]
struct Order(Vec<&'static str>);

impl Service for Order {
    type Message = ();

    fn message(&mut self, _: &mut Reactor, _: Nanos, (): ()) {
        self.0.push("message");
    }

    fn accepted(
        &mut self,
        cx: &mut Reactor,
        _: Nanos,
        _: ListenerId,
        stream: TcpStream,
        _: SocketAddr,
    ) {
        cx.attach(stream).unwrap();
        self.0.push("accepted");
    }

    fn readable(&mut self, cx: &mut Reactor, _: Nanos, id: SocketId) {
        cx.recv(id, &mut [IoSliceMut::new(&mut [0; 8])]);
        self.0.push("readable");
    }

    fn sent(&mut self, _: &mut Reactor, _: Nanos, _: SocketId, _: Gather, _: io::Result<()>) {}
    fn turn(&mut self, _: &mut Reactor, _: Nanos) {}

    fn poll_timeout(&self) -> Option<Nanos> {
        None
    }

    fn is_stopped(&self) -> bool {
        false
    }
}

/// Whatever is looked at before it is fetched from far away, after a pause, while its host waits.
fn command_is_received_before_messages_are_looked_at(io: IoBackend) {
    let (listener, address) = listener();
    let mut local = LocalReactor::new(&config(io), |cx, _| {
        cx.listen(listener).map(|_| Order::default())
    })
    .unwrap();
    let mut host = client(address);
    let mailbox = local.mailbox();
    let mut is_prepared = false;
    // Both are there before the reactor looks for what has happened.
    local.run_until_that(deadline(), |service, _| {
        if service.0 == ["accepted"] && !is_prepared {
            is_prepared = true;
            host.write_all(b"command").unwrap();
            mailbox.try_send(()).unwrap();
        }
        service.0.len() == 3
    });
    assert_eq!(local.service().0, ["accepted", "readable", "message"]);
}

fn full_mailbox_hands_the_message_back(io: IoBackend) {
    let mut local = local_with(&Config {
        mailbox_depth: 4,
        ..config(io)
    });
    let mailbox = local.mailbox();
    let call = || Call::Run(Box::new(|echo, _| echo.received += 1));
    for _ in 0..4 {
        assert!(mailbox.try_send(call()).is_ok());
    }
    assert!(matches!(mailbox.try_send(call()), Err(Call::Run(_))));
    run(&mut local, |echo, _| echo.received == 4);
    assert!(mailbox.try_send(call()).is_ok());
    run(&mut local, |echo, _| echo.received == 5);
}

fn mailbox_of_a_stopped_reactor_refuses(io: IoBackend) {
    let handle = start(config(io));
    let mailbox = handle.mailbox.clone();
    finish(handle);
    let call = || Call::Run(Box::new(|_, _| {}));
    assert!(mailbox.try_send(call()).is_err());
    assert!(mailbox.send_blocking(call()).is_err());
    mailbox.waker().wake();
}

fn waker_causes_a_turn(io: IoBackend) {
    let mut local = local(io);
    local.turn(monotonic_now());
    for _ in 0..200 {
        let waker = local.reactor().disk().waker();
        let done = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                done.store(true, Ordering::Release);
                waker.wake();
            }
        });
        run(&mut local, |_, _| done.load(Ordering::Acquire));
        worker.join().unwrap();
    }
}

fn timer_fires_on_time_and_only_once(io: IoBackend) {
    let mut local = local(io);
    local.turn(monotonic_now());
    let before = local.service().turns;
    let due = monotonic_now().after(Nanos::from_micros(20_300));
    local.parts().0.timer = Some(due);
    run(&mut local, |echo, _| echo.fired_at.is_some());
    assert!(local.service().fired_at.unwrap() >= due);
    // The first looks and finds nothing due; epoll may be told to wait anew in between.
    assert!(local.service().turns - before <= 4);
}

fn idle_reactor_takes_no_turns(io: IoBackend) {
    for poll in [PollMode::Adaptive, PollMode::Never] {
        let mut local = local_with(&Config { poll, ..config(io) });
        let (listener, address) = listener();
        local.parts().1.listen(listener).unwrap();
        let clients: Vec<_> = (0..16).map(|_| client(address)).collect();
        run(&mut local, |echo, _| echo.accepted == clients.len());
        local.run_until(monotonic_now().after(Nanos::from_millis(20)));
        let before = local.reactor().counters();
        local.run_until(monotonic_now().after(Nanos::from_millis(200)));
        let after = local.reactor().counters();
        // One turn begins the run and one ends it, whatever its length.
        assert!(
            after.turns - before.turns <= 3,
            "{poll:?}: {}",
            after.turns - before.turns
        );
        assert!(after.syscalls() - before.syscalls() <= 3);
    }
}

fn traffic_is_followed_by_parking(io: IoBackend) {
    let mut local = local_with(&Config {
        poll: PollMode::Adaptive,
        ..config(io)
    });
    let (listener, address) = listener();
    local.parts().1.listen(listener).unwrap();
    let traffic = thread::spawn(move || {
        let mut stream = client(address);
        for _ in 0..500 {
            stream.write_all(&[1; 72]).unwrap();
            stream.read_exact(&mut [0; 72]).unwrap();
        }
        stream
    });
    run(&mut local, |echo, _| echo.received == 500 * 72);
    let stream = traffic.join().unwrap();
    local.run_until(monotonic_now().after(Nanos::from_millis(20)));
    let before = local.reactor().counters();
    local.run_until(monotonic_now().after(Nanos::from_millis(100)));
    let after = local.reactor().counters();
    assert!(after.turns - before.turns <= 4);
    assert!(after.spins - before.spins <= 2);
    assert!(after.parks > before.parks);
    drop(stream);
}

fn counters_reach_other_threads_before_sleep(io: IoBackend) {
    let handle = start(config(io));
    ask(&handle, || ());
    let until = deadline();
    loop {
        let counters: Counters = handle.counters.snapshot();
        if counters.messages == 1 && counters.parks > 0 {
            assert_eq!(
                counters.iter().find(|(name, _)| *name == "messages"),
                Some(("messages", 1))
            );
            break;
        }
        assert!(monotonic_now() < until);
        thread::yield_now();
    }
    finish(handle);
}

fn failing_service_is_reported_by_spawn(io: IoBackend) {
    let made = spawn::<Echo>(config(io), |_, _| Err(std::io::Error::other("no device")));
    assert_eq!(made.unwrap_err().to_string(), "no device");
}

fn panicking_service_is_reported_by_join(io: IoBackend) {
    let handle = start(config(io));
    let call = Call::Run(Box::new(|_, _| {
        panic!("a bug in the service (expected by a test)")
    }));
    handle.mailbox.send_blocking(call).map_err(|_| ()).unwrap();
    assert!(handle.join().is_err());
}

fn impossible_core_and_name_are_refused(io: IoBackend) {
    for core in [1023, usize::MAX] {
        let made = spawn::<Echo>(
            Config {
                core: Some(core),
                ..config(io)
            },
            |_, _| Ok(Echo::default()),
        );
        assert!(
            made.unwrap_err()
                .to_string()
                .contains(&format!("core {core}"))
        );
    }
    let name = "a\0b".to_owned();
    let made = spawn::<Echo>(Config { name, ..config(io) }, |_, _| Ok(Echo::default()));
    assert_eq!(made.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

fn thread_is_named_and_pinned(io: IoBackend) {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..1024).find(|core| allowed.is_set(*core)).unwrap();
    let name = "pinned".to_owned();
    let handle = start(Config {
        core: Some(core),
        name,
        ..config(io)
    });
    let expected = match io {
        IoBackend::Epoll => Backend::Epoll,
        IoBackend::Auto | IoBackend::Uring => Backend::Uring,
    };
    assert_eq!(handle.info.backend, expected);
    assert!(handle.info.to_string().starts_with(expected.name()));
    let (seen, cores) = ask(&handle, || {
        let cores = rustix::thread::sched_getaffinity(None).unwrap();
        (thread::current().name().map(str::to_owned), cores)
    });
    assert_eq!(seen.as_deref(), Some("pinned"));
    assert!(cores.count() == 1 && cores.is_set(core));
    finish(handle);
}

#[test]
fn sleeping_ring_needs_two_calls_for_a_request_and_its_answer() {
    if !common::uring_is_permitted() {
        return;
    }
    const REQUESTS: u64 = 1000;
    let mut local = local(IoBackend::Uring);
    let (listener, address) = listener();
    local.parts().1.listen(listener).unwrap();
    let mut peer = client(address);
    run(&mut local, |echo, _| echo.accepted == 1);
    let before = local.reactor().counters();
    let traffic = thread::spawn(move || {
        let (mut late, mut begun) = (0, monotonic_now());
        for _ in 0..REQUESTS {
            peer.write_all(&[1; 72]).unwrap();
            // The wait for a send along with the next request ends early.
            late += u64::from(monotonic_now().saturating_sub(begun) > Nanos::from_micros(200));
            begun = monotonic_now();
            peer.read_exact(&mut [0; 72]).unwrap();
        }
        late
    });
    run(&mut local, |echo, _| echo.closed == 1);
    let late = traffic.join().unwrap();
    let calls = local.reactor().counters().syscalls() - before.syscalls();
    // Two each, one more where the peer was late; some for the beginning and the end.
    assert!(
        calls <= REQUESTS * 2 + late + 20,
        "{calls} calls, {late} late, {:?}",
        local.reactor().counters()
    );
}
