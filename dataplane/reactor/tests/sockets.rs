//! Sockets behave the same on both engines.
#![allow(clippy::unwrap_used, reason = "a test ends where its assumption fails")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::mpsc;
use std::thread;

use bowline_reactor::{DetachError, IoBackend, PollMode, Reactor, spawn};
use common::{
    Call, Echo, buffers_used, client, config, deadline, filled, listener, local, local_with,
    ping_pong, run,
};

on_both_engines!(
    echo_returns_every_byte_whatever_the_pieces,
    echo_returns_every_byte_when_spinning,
    many_sockets_are_all_served,
    peer_that_does_not_read_holds_up_nobody_else,
    closing_while_sending_gives_the_buffers_back,
    abort_while_sending_resets_the_peer,
    abort_of_a_quiet_socket_resets_the_peer,
    close_sends_fin,
    close_sends_fin_though_data_has_just_arrived,
    data_and_fin_together_are_both_seen,
    broken_peer_fails_the_send,
    refused_connection_is_reported_and_closed,
    connected_socket_works_both_ways,
    gather_queued_before_the_connection_is_made_arrives,
    unlisten_leaves_the_backlog_in_the_listener,
    detach_refuses_while_sending,
    socket_moves_between_reactors_without_losing_a_byte,
    stale_ids_are_harmless,
    empty_gather_is_sent_at_once,
    turn_never_blocks_and_serves,
    full_gather_arrives_whole,
    early_is_only_what_is_sent_first,
);

fn echo_through(io: IoBackend, poll: PollMode) {
    let mut local = local_with(&bowline_reactor::Config { poll, ..config(io) });
    let (listener, address) = listener();
    local.parts().1.listen(listener).unwrap();
    let clients: Vec<_> = [
        (1, 4_000_000, 1 << 20),
        (2, 300_000, 700),
        (3, 2_000_000, 40_000),
    ]
    .into_iter()
    .map(|(seed, total, piece_max)| {
        thread::spawn(move || ping_pong(client(address), seed, total, piece_max))
    })
    .collect();
    run(&mut local, |echo, _| echo.closed == 3);
    for client in clients {
        client.join().unwrap();
    }
    let counters = local.reactor().counters();
    assert_eq!(counters.recv_bytes, 6_300_000);
    assert_eq!(counters.send_bytes, 6_300_000);
    assert_eq!(counters.accepts, 3);
    assert_eq!(buffers_used(local.reactor()), 0);
}

fn echo_returns_every_byte_whatever_the_pieces(io: IoBackend) {
    echo_through(io, PollMode::Never);
}

fn echo_returns_every_byte_when_spinning(io: IoBackend) {
    echo_through(io, PollMode::Adaptive);
    echo_through(io, PollMode::Always);
}

fn many_sockets_are_all_served(io: IoBackend) {
    const SOCKETS: usize = 300;
    let mut local = local(io);
    let (listener, address) = listener();
    local.parts().1.listen(listener).unwrap();
    let driver = thread::spawn(move || {
        let mut clients: Vec<_> = (0..SOCKETS).map(|_| client(address)).collect();
        for round in 0..4_u8 {
            for stream in &mut clients {
                stream.write_all(&[round; 100]).unwrap();
            }
            for stream in &mut clients {
                let mut answer = [0; 100];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [round; 100]);
            }
        }
    });
    run(&mut local, |echo, _| echo.closed == SOCKETS);
    driver.join().unwrap();
    assert_eq!(local.reactor().sockets(), 0);
}

/// Queues 1 MiB of payload on a socket.
fn send_a_mebibyte(cx: &mut Reactor, id: bowline_reactor::SocketId) {
    let mut gather = cx.gather();
    gather.push_buf(filled(cx.pool(), &vec![7; 1 << 20]));
    cx.send(id, gather);
}

fn peer_that_does_not_read_holds_up_nobody_else(io: IoBackend) {
    const GATHERS: usize = 16;
    let mut local = local(io);
    let (listener, address) = listener();
    local.parts().1.listen(listener).unwrap();
    let mut lazy = client(address);
    local.parts().0.hold = true;
    run(&mut local, |echo, _| echo.held.len() == 1);
    let id = local.service().held[0];
    local.parts().0.hold = false;

    // Small gathers first, then large ones, until the socket takes no more.
    let (done, finished) = mpsc::channel();
    let waker = local.mailbox().waker();
    let busy = thread::spawn(move || {
        ping_pong(client(address), 9, 500_000, 5000);
        done.send(()).unwrap();
        waker.wake();
    });
    let (mut queued, mut read_all) = (0, None);
    run(&mut local, |echo, cx| {
        if queued < GATHERS && !cx.is_sending(id) {
            queued += 1;
            if queued % 2 == 0 {
                send_a_mebibyte(cx, id);
            } else {
                let mut gather = cx.gather();
                gather.push_bytes(&[7; 1 << 10]);
                cx.send(id, gather);
            }
        }
        if read_all.is_none() && finished.try_recv().is_ok() {
            // The other socket was served to its end while this one was stuck.
            assert!(queued < GATHERS && cx.is_sending(id));
            let mut lazy = lazy.try_clone().unwrap();
            read_all = Some(thread::spawn(move || {
                let mut bytes = vec![0; GATHERS / 2 * ((1 << 20) + (1 << 10))];
                lazy.read_exact(&mut bytes).unwrap();
                assert!(bytes.iter().all(|byte| *byte == 7));
            }));
        }
        queued == GATHERS && !cx.is_sending(id) && echo.closed == 1
    });
    read_all.unwrap().join().unwrap();
    busy.join().unwrap();
    lazy.shutdown(Shutdown::Both).unwrap();
    assert_eq!(lazy.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(buffers_used(local.reactor()), 0);
}

/// A reactor with one socket whose output is stuck, the socket, and its peer.
fn stuck(
    io: IoBackend,
) -> (
    bowline_reactor::LocalReactor<Echo>,
    bowline_reactor::SocketId,
    std::net::TcpStream,
) {
    let mut local = local(io);
    let (listener, address) = listener();
    let (echo, cx) = local.parts();
    echo.hold = true;
    cx.listen(listener).unwrap();
    let peer = client(address);
    run(&mut local, |echo, _| echo.held.len() == 1);
    let id = local.service().held[0];
    let mut stuck_for = 0;
    run(&mut local, |echo, cx| {
        // A turn of its own is needed to see the state; nothing else asks for one.
        echo.timer = Some(bowline_nvme::Nanos::ZERO);
        if cx.is_sending(id) {
            stuck_for += 1;
        } else {
            stuck_for = 0;
            send_a_mebibyte(cx, id);
        }
        stuck_for > 50
    });
    local.parts().0.timer = None;
    (local, id, peer)
}

fn closing_while_sending_gives_the_buffers_back(io: IoBackend) {
    let (mut local, id, mut peer) = stuck(io);
    let sent = local.service().sent;
    local.parts().1.close(id);
    assert!(!local.reactor().is_open(id));
    run(&mut local, |_, cx| buffers_used(cx) == 0);
    assert_eq!(
        local.service().sent,
        sent,
        "sent() is not called after close()"
    );
    // What had left arrives, then the end.
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
    assert!(rest.len() >= sent << 20 && rest.iter().all(|byte| *byte == 7));
}

fn expect_reset(peer: &mut std::net::TcpStream) {
    let mut bytes = [0; 4096];
    let error = loop {
        match peer.read(&mut bytes) {
            Ok(0) => panic!("an end instead of a reset"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn abort_while_sending_resets_the_peer(io: IoBackend) {
    let (mut local, id, mut peer) = stuck(io);
    local.parts().1.abort(id);
    run(&mut local, |_, cx| buffers_used(cx) == 0);
    expect_reset(&mut peer);
}

fn abort_of_a_quiet_socket_resets_the_peer(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let mut peer = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let id = echo.adopt(cx, stream);
    cx.abort(id);
    local.turn(bowline_reactor::monotonic_now());
    expect_reset(&mut peer);
}

fn close_sends_fin(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let mut peer = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let id = echo.adopt(cx, stream);
    // Watched by the kernel before it is closed.
    local.turn(bowline_reactor::monotonic_now());
    local.parts().1.close(id);
    local.turn(bowline_reactor::monotonic_now());
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
}

fn data_and_fin_together_are_both_seen(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    for first_attach in [true, false] {
        let mut peer = client(address);
        let stream = listener.accept().unwrap().0;
        let closed = local.service().closed;
        if first_attach {
            let (echo, cx) = local.parts();
            echo.adopt(cx, stream.try_clone().unwrap());
            local.turn(bowline_reactor::monotonic_now());
        }
        peer.write_all(b"last words").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        if !first_attach {
            let (echo, cx) = local.parts();
            echo.adopt(cx, stream);
        }
        run(&mut local, |echo, _| echo.closed == closed + 1);
        let mut answer = [0; 10];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"last words");
    }
}

fn broken_peer_fails_the_send(io: IoBackend) {
    let (mut local, id, peer) = stuck(io);
    drop(peer); // With unread data: a reset.
    run(&mut local, |echo, cx| {
        echo.send_errors == 1 && !cx.is_open(id)
    });
    assert_eq!(buffers_used(local.reactor()), 0);
}

fn refused_connection_is_reported_and_closed(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    drop(listener);
    let id = local.parts().1.connect(address).unwrap();
    run(&mut local, |echo, _| echo.connected.len() == 1);
    let (reported, result) = &local.service().connected[0];
    assert_eq!(*reported, id);
    assert_eq!(
        result.as_ref().unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert!(!local.reactor().is_open(id));
}

fn connected_socket_works_both_ways(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let id = local.parts().1.connect(address).unwrap();
    let peer = thread::spawn(move || ping_pong(listener.accept().unwrap().0, 4, 200_000, 9000));
    run(&mut local, |echo, cx| {
        if echo.connected.len() == 1 && cx.is_open(id) {
            assert_eq!(cx.peer_addr(id).unwrap(), address);
        }
        echo.closed == 1
    });
    assert!(local.service().connected[0].1.is_ok());
    peer.join().unwrap();
}

fn gather_queued_before_the_connection_is_made_arrives(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let cx = local.parts().1;
    let id = cx.connect(address).unwrap();
    let mut gather = cx.gather();
    gather.push_bytes(b"first");
    cx.send(id, gather);
    run(&mut local, |echo, _| {
        echo.sent == 1 && echo.connected.len() == 1
    });
    let mut bytes = [0; 5];
    listener.accept().unwrap().0.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"first");
}

fn unlisten_leaves_the_backlog_in_the_listener(io: IoBackend) {
    let mut local = local(io);
    let (socket, address) = listener();
    let id = local.parts().1.listen(socket).unwrap();
    assert_eq!(local.reactor().listener_addr(id).unwrap(), address);
    let first = client(address);
    run(&mut local, |echo, _| echo.accepted == 1);
    let back: TcpListener = local.parts().1.unlisten(id).unwrap();
    assert!(local.parts().1.unlisten(id).is_none());
    let late = client(address);
    for _ in 0..10 {
        local.turn(bowline_reactor::monotonic_now());
    }
    assert_eq!(local.service().accepted, 1);
    let taken = back.accept().unwrap().1;
    assert_eq!(taken, late.local_addr().unwrap());
    drop(first);
    run(&mut local, |echo, _| echo.closed == 1);
}

fn detach_refuses_while_sending(io: IoBackend) {
    let (mut local, id, mut peer) = stuck(io);
    assert_eq!(
        local.parts().1.detach(id).unwrap_err(),
        DetachError::StillSending
    );
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        bytes.len()
    });
    run(&mut local, |_, cx| !cx.is_sending(id));
    let sent = usize::try_from(local.reactor().counters().send_bytes).unwrap();
    drop(local.parts().1.detach(id).unwrap());
    assert_eq!(
        local.parts().1.detach(id).unwrap_err(),
        DetachError::NotOpen
    );
    local.turn(bowline_reactor::monotonic_now());
    assert_eq!(reader.join().unwrap(), sent);
}

fn socket_moves_between_reactors_without_losing_a_byte(io: IoBackend) {
    let make = |name: &str| {
        let config = bowline_reactor::Config {
            name: name.to_owned(),
            ..config(io)
        };
        spawn::<Echo>(config, |_, _| Ok(Echo::default())).unwrap()
    };
    let reactors = [make("left"), make("right")];
    let (listener, address) = listener();
    let traffic = thread::spawn(move || ping_pong(client(address), 11, 3_000_000, 3000));
    let stream = listener.accept().unwrap().0;
    reactors[0]
        .mailbox
        .send_blocking(Call::Attach(stream))
        .map_err(|_| ())
        .unwrap();

    for hop in 0..40 {
        let (gives, takes) = (&reactors[hop % 2], &reactors[(hop + 1) % 2]);
        let taker = takes.mailbox.clone();
        // Tried again until the socket is between two gathers.
        loop {
            let (answer, moved) = mpsc::channel();
            let taker = taker.clone();
            let call = Call::Run(Box::new(move |echo: &mut Echo, cx: &mut Reactor| {
                let id = *echo.open.keys().next().expect("the socket is here");
                let detached = cx.detach(id);
                let is_moved = detached.is_ok();
                if let Ok(stream) = detached {
                    echo.open.remove(&id);
                    taker
                        .try_send(Call::Attach(stream))
                        .map_err(|_| ())
                        .unwrap();
                }
                answer.send(is_moved).unwrap();
            }));
            gives.mailbox.send_blocking(call).map_err(|_| ()).unwrap();
            if moved.recv().unwrap() {
                break;
            }
        }
    }
    traffic.join().unwrap();
    for reactor in reactors {
        reactor.stop();
        reactor.join().unwrap();
    }
}

fn stale_ids_are_harmless(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let peer = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let id = echo.adopt(cx, stream);
    cx.close(id);
    cx.close(id);
    cx.abort(id);
    cx.rearm(id);
    assert!(!cx.is_sending(id) && !cx.is_open(id));
    assert!(cx.peer_addr(id).is_err() && cx.local_addr(id).is_err());
    assert!(matches!(
        cx.recv(id, &mut []),
        bowline_reactor::Recv::Closed
    ));
    let mut gather = cx.gather();
    gather.push_bytes(b"nobody gets this");
    cx.send(id, gather);
    // The place is used again; the old name does not reach the new socket.
    let second = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let new = echo.adopt(cx, stream);
    assert_eq!(new.index(), id.index());
    assert_ne!(new, id);
    cx.close(id);
    assert!(cx.is_open(new));
    let traffic = thread::spawn(move || ping_pong(second, 5, 100_000, 9000));
    let closed = local.service().closed;
    run(&mut local, |echo, _| echo.closed == closed + 1);
    traffic.join().unwrap();
    drop(peer);
}

fn empty_gather_is_sent_at_once(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let _peer = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let id = echo.adopt(cx, stream);
    let gather = cx.gather();
    cx.send(id, gather);
    assert!(cx.is_sending(id));
    run(&mut local, |echo, cx| echo.sent == 1 && !cx.is_sending(id));
}

fn turn_never_blocks_and_serves(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    local.parts().1.listen(listener).unwrap();
    let now = bowline_reactor::monotonic_now();
    local.turn(now);
    let progress = local.turn(now);
    assert!(!progress.worked && !progress.more && progress.next.is_none());
    let traffic = thread::spawn(move || ping_pong(client(address), 6, 200_000, 9000));
    while local.service().closed == 0 {
        let now = bowline_reactor::monotonic_now();
        assert!(now < deadline());
        local.turn(now);
        thread::yield_now();
    }
    traffic.join().unwrap();
}

/// A poll whose event is on its way to the ring cannot be removed: it stayed and kept the closed
/// socket open, so that the peer saw no end.
fn close_sends_fin_though_data_has_just_arrived(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let mut peer = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let id = echo.adopt(cx, stream);
    // From here on the socket is watched.
    local.turn(bowline_reactor::monotonic_now());
    peer.write_all(&[1; 8]).unwrap();
    local.parts().1.close(id);
    local.turn(bowline_reactor::monotonic_now());
    let end = peer.read(&mut [0; 1]);
    // Bytes that nobody fetched make it a reset.
    assert!(matches!(&end, Ok(0) | Err(_)), "{end:?}");
    if let Err(error) = end {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

fn full_gather_arrives_whole(io: IoBackend) {
    let mut local = local(io);
    let (listener, address) = listener();
    let mut peer = client(address);
    let stream = listener.accept().unwrap().0;
    let (echo, cx) = local.parts();
    let id = echo.adopt(cx, stream);
    let mut gather = cx.gather();
    let (mut expected, mut pieces) = (Vec::new(), 0_u32);
    while !gather.is_full() {
        pieces += 1;
        gather.push_bytes(&pieces.to_le_bytes());
        expected.extend_from_slice(&pieces.to_le_bytes());
        let payload = vec![u8::try_from(pieces % 251).unwrap(); 3000];
        gather.push_buf(filled(cx.pool(), &payload));
        expected.extend_from_slice(&payload);
    }
    let bytes = gather.bytes();
    assert_eq!(bytes, expected.len());
    cx.send(id, gather);
    let reader = thread::spawn(move || {
        let mut received = vec![0; bytes];
        peer.read_exact(&mut received).unwrap();
        received
    });
    run(&mut local, |echo, _| echo.sent == 1);
    assert!(reader.join().unwrap() == expected);
}

/// What was sent early was forgotten as soon as it had left: of several sends of a turn each left by
/// a call of its own.
fn early_is_only_what_is_sent_first(io: IoBackend) {
    let poll = PollMode::Always;
    let mut local = local_with(&bowline_reactor::Config { poll, ..config(io) });
    let (listener, address) = listener();
    let (echo, cx) = local.parts();
    let mut peers: Vec<_> = (0..2).map(|_| client(address)).collect();
    let mut adopt = || echo.adopt(cx, listener.accept().unwrap().0);
    let ids = [adopt(), adopt()];
    run(&mut local, |_, cx| cx.may_send_early());
    let (_, cx) = local.parts();
    let mut gather = cx.gather();
    gather.push_bytes(&[7; 9]);
    cx.send(ids[0], gather);
    assert!(!cx.may_send_early(), "something is to be sent");
    cx.send_early();
    peers[0].read_exact(&mut [0; 9]).unwrap();
    assert!(!cx.may_send_early(), "something was sent");
    run(&mut local, |echo, cx| echo.sent == 1 && cx.may_send_early());
}
