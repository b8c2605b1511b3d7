//! The blocking calls, and what an owner sees, against our own target over loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use bowline_block::{MemDevice, Segments};
use bowline_nvme::nqn::{self, Nqn};
use bowline_nvme::pdu::{Digests, IcResp};
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};
use bowline_nvmf::host::{CloseReason, ControllerConfig, Reconnect, SubmitError};
use bowline_nvmf::target::{Hosts, Persistence, SubsystemConfig, TargetConfig};
use bowline_reactor::{Config, Handle, monotonic_now, spawn};

use super::*;
use crate::target::{NamespaceSpec, TargetMessage, TargetService};

const SUBNQN: &str = "nqn.2026-11.io.bowline:test:disk";
const HOSTNQN: &str = "nqn.2026-11.io.bowline:test:host";
const NSID: NamespaceId = NamespaceId(1);
const DISK_BYTES: u64 = 16 << 20;

/// A target with one namespace in memory, on a thread of its own.
struct Served {
    handle: Handle<TargetMessage<MemDevice>>,
    addr: SocketAddr,
}

impl Served {
    fn new(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).expect("a port");
        let addr = listener.local_addr().expect("bound");
        let handle = spawn(Config::default(), move |cx, _| {
            let mut service = TargetService::new(TargetConfig::default());
            let now = monotonic_now();
            service.listen(cx, listener, 1)?;
            let subsystem = SubsystemConfig {
                hosts: Hosts::Any,
                ..SubsystemConfig::new(SUBNQN, "SERIAL")
            };
            service
                .target()
                .add_subsystem(now, subsystem)
                .expect("valid");
            let spec = NamespaceSpec {
                nsid: None,
                uuid: [1; 16],
                nguid: [1; 16],
                ana_group: None,
                persistence: Persistence::Unsupported,
                shared: false,
            };
            let device = MemDevice::new(DISK_BYTES, 512)?;
            service
                .add_namespace(now, SUBNQN, spec, device)
                .expect("valid");
            Ok(service)
        })
        .expect("a reactor");
        Self { handle, addr }
    }

    fn on_any_port() -> Self {
        Self::new((Ipv4Addr::LOCALHOST, 0).into())
    }

    fn stop(self) -> SocketAddr {
        let call =
            |service: &mut TargetService<MemDevice>, cx: &mut bowline_reactor::Reactor, now| {
                service.begin_stop(cx, now);
            };
        let sent = self
            .handle
            .mailbox
            .send_blocking(TargetMessage::Call(Box::new(call)));
        assert!(sent.is_ok(), "the target runs");
        self.handle.join().expect("the target ends well");
        self.addr
    }
}

fn config() -> ControllerConfig {
    let name = |name| Nqn::new(name).expect("a valid name");
    ControllerConfig {
        io_queues: 2,
        ..ControllerConfig::new(name(HOSTNQN), [1; 16], name(SUBNQN))
    }
}

fn deadline() -> Nanos {
    monotonic_now().after(Nanos::from_secs(30))
}

fn connect(served: &Served, config: ControllerConfig) -> (Initiator, PathId) {
    let mut host = Initiator::new(&Config::default()).expect("a reactor");
    let path = host.connect(served.addr, config);
    host.wait_ready(path, deadline()).expect("connected");
    (host, path)
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at + at / 512) % 251).unwrap_or(0) ^ seed)
        .collect()
}

#[test]
fn blocking_calls_do_what_they_say() {
    let served = Served::on_any_port();
    for (header, data) in [(false, false), (true, true)] {
        let config = ControllerConfig {
            digests: Digests { header, data },
            ..config()
        };
        let (mut host, path) = connect(&served, config);
        // Longer than one command can be, and not a multiple of it.
        let data = pattern(1, (3 << 20) + 512);
        host.write_at(path, NSID, 512, &data, false, deadline())
            .expect("written");
        host.flush(path, NSID, deadline()).expect("flushed");
        let mut read = vec![0; data.len()];
        host.read_at(path, NSID, 512, &mut read, deadline())
            .expect("read");
        assert!(read == data);
        host.compare_at(path, NSID, 512, &data, deadline())
            .expect("the same");
        let differs = host.compare_at(path, NSID, 1024, &data, deadline());
        let Err(HostError::Failed(status)) = differs else {
            panic!("{differs:?}")
        };
        assert!(status.same_code(Status::COMPARE_FAILURE));

        host.write_zeroes_at(path, NSID, 512, 1 << 20, true, deadline())
            .expect("zeroed");
        host.deallocate_at(path, NSID, 2 << 20, 1 << 20, deadline())
            .expect("deallocated");
        host.read_at(path, NSID, 512, &mut read, deadline())
            .expect("read");
        assert!(read[..1 << 20].iter().all(|byte| *byte == 0));
        assert!(read[1 << 20..(2 << 20) - 512] == data[1 << 20..(2 << 20) - 512]);
        host.write_at(path, NSID, 0, &data[..512], true, deadline())
            .expect("with FUA");
        host.disconnect(path, deadline()).expect("an orderly end");
        assert_eq!(host.reactor().sockets(), 0);
    }
    served.stop();
}

#[test]
fn ranges_outside_the_namespace_are_refused_before_anything_is_sent() {
    let served = Served::on_any_port();
    let (mut host, path) = connect(&served, config());
    for (offset, len) in [(1, 512), (0, 513), (DISK_BYTES, 512), (u64::MAX - 511, 512)] {
        let refused = host.write_at(path, NSID, offset, &vec![0; len], false, deadline());
        assert_eq!(refused, Err(HostError::Range), "{len} at {offset}");
    }
    let nowhere = host.flush(path, NamespaceId(9), deadline());
    let Err(HostError::Failed(status)) = nowhere else {
        panic!("{nowhere:?}")
    };
    assert!(status.same_code(Status::INVALID_NAMESPACE));
    let read = host.read_at(path, NamespaceId(9), 0, &mut [0; 512], deadline());
    assert_eq!(read, Err(HostError::NoNamespace(NamespaceId(9))));
    served.stop();
}

#[test]
fn blocking_write_outlasts_a_restart_of_the_target() {
    let served = Served::on_any_port();
    let (mut host, path) = connect(&served, config());
    host.write_at(path, NSID, 0, &pattern(1, 4096), false, deadline())
        .expect("written");
    let addr = served.stop();
    let restarted = std::thread::spawn(move || Served::new(addr));
    let data = pattern(2, 4096);
    host.write_at(path, NSID, 0, &data, false, deadline())
        .expect("written after the restart");
    let mut read = vec![0; 4096];
    host.read_at(path, NSID, 0, &mut read, deadline())
        .expect("read");
    assert!(read == data);
    let events: Vec<_> = std::iter::from_fn(|| host.poll_event(path)).collect();
    let connects = events
        .iter()
        .filter(|event| **event == PathEvent::Connected)
        .count();
    assert_eq!(connects, 2, "{events:?}");
    restarted.join().expect("restarted").stop();
}

#[test]
fn blocking_call_without_a_target_ends_at_its_deadline() {
    let served = Served::on_any_port();
    let (mut host, path) = connect(&served, config());
    served.stop();
    let soon = host.now().after(Nanos::from_millis(100));
    let result = host.flush(path, NSID, soon);
    assert_eq!(result, Err(HostError::TimedOut));
    assert!(host.now() >= soon);
}

#[test]
fn commands_of_the_owner_and_blocking_calls_mix() {
    let served = Served::on_any_port();
    let (mut host, path) = connect(&served, config());
    let mut buf = host.pool().alloc(4096).expect("a buffer");
    buf.truncate(4096);
    let read = HostCommand {
        op: HostOp::Read,
        nsid: NSID,
        lba: 0,
        blocks: 8,
        data: Segments::from(buf),
        token: 77,
    };
    host.submit(path, read).expect("taken");
    host.flush(path, NSID, deadline()).expect("flushed");
    host.run_until(deadline(), |service, _| service.path(path).in_flight() == 0);
    let done = host.poll(path).expect("the owner's completion was kept");
    assert_eq!(
        (done.token, done.status, done.data.len_bytes()),
        (77, Status::SUCCESS, 4096)
    );
    assert!(host.poll(path).is_none());
    served.stop();
}

#[test]
fn only_associations_that_something_happened_to_are_active() {
    let served = Served::on_any_port();
    let (mut host, quiet) = connect(&served, config());
    let busy = host.connect(served.addr, config());
    host.wait_ready(busy, deadline()).expect("connected");
    let settled = host.run_until(deadline(), |service, _| service.active(0).is_none());
    assert!(settled, "what nobody has to do with becomes inactive");

    let mut buf = host.pool().alloc(4096).expect("a buffer");
    buf.truncate(4096);
    let read = HostCommand {
        op: HostOp::Read,
        nsid: NSID,
        lba: 0,
        blocks: 8,
        data: Segments::from(buf),
        token: 1,
    };
    host.submit(busy, read).expect("taken");
    let mut seen = Vec::new();
    host.run_until(deadline(), |service, _| {
        let ids = (0..).map_while(|number| service.active(number));
        seen.extend(ids);
        service.path(busy).in_flight() == 0
    });
    assert!(seen.contains(&busy) && !seen.contains(&quiet), "{seen:?}");

    host.turn();
    let untaken = host.run_until(deadline(), |service, _| service.active(0) == Some(busy));
    assert!(untaken, "a completion that nobody took is not forgotten");
    host.poll(busy).expect("completed");
    let settled = host.run_until(deadline(), |service, _| service.active(0).is_none());
    assert!(settled);
    served.stop();
}

#[test]
fn data_in_several_segments_arrives_in_order() {
    let served = Served::on_any_port();
    for digests in [
        Digests::NONE,
        Digests {
            header: true,
            data: true,
        },
    ] {
        let (mut host, path) = connect(
            &served,
            ControllerConfig {
                digests,
                ..config()
            },
        );
        let data = pattern(3, 61_440);
        let split = |host: &Initiator, source: Option<&[u8]>| {
            let mut segments = Segments::new();
            let mut at = 0;
            for len in [4096, 512, 40_448, 16_384] {
                let mut buf = host.pool().alloc(len).expect("a buffer");
                buf.truncate(len);
                if let (Some(source), Some(bytes)) = (source, buf.as_mut()) {
                    bytes.copy_from_slice(&source[at..at + len]);
                }
                at += len;
                segments.push(buf).expect("four");
            }
            segments
        };
        let buffers = [
            (HostOp::Write { fua: false }, split(&host, Some(&data))),
            (HostOp::Read, split(&host, None)),
        ];
        for (op, buffers) in buffers {
            let command = HostCommand {
                op,
                nsid: NSID,
                lba: 64,
                blocks: 120,
                data: buffers,
                token: 1,
            };
            host.submit(path, command).expect("taken");
            host.run_until(deadline(), |service, _| service.path(path).in_flight() == 0);
            let done = host.poll(path).expect("completed");
            assert_eq!(done.status, Status::SUCCESS);
            let bytes: Vec<u8> = done.data.pieces(0..61_440).flatten().copied().collect();
            assert!(bytes == data);
        }
        host.disconnect(path, deadline()).expect("an orderly end");
    }
    served.stop();
}

#[test]
fn commands_that_make_no_sense_come_back_unchanged() {
    let served = Served::on_any_port();
    let (mut host, path) = connect(&served, config());
    let buffer = |host: &Initiator, len: usize| {
        let mut buf = host.pool().alloc(4096).expect("a buffer");
        buf.truncate(len);
        Segments::from(buf)
    };
    let none = Segments::new;
    let shared = buffer(&host, 4096);
    let copy = shared.clone();
    let raw = HostOp::Raw {
        sqe: Sqe::new(0x18),
        direction: Direction::None,
    };
    let shape = RejectReason::Shape;
    let length = RejectReason::Queue(SubmitError::Length);
    let not_ready = RejectReason::Queue(SubmitError::NotReady);
    let cases = [
        (1, HostOp::Read, 8, none(), shape),
        (1, HostOp::Read, 0, buffer(&host, 512), shape),
        (1, HostOp::Read, 65_537, buffer(&host, 512), shape),
        (1, HostOp::Flush, 0, buffer(&host, 512), shape),
        (1, HostOp::Deallocate, 1, buffer(&host, 512), shape),
        (0, HostOp::Flush, 0, none(), shape),
        (1, HostOp::Read, 8, shared, RejectReason::SharedBuffer),
        (1, HostOp::Read, 1, buffer(&host, 511), length),
        (9, raw, 0, none(), not_ready),
    ];
    for (queue, op, blocks, data, reason) in cases {
        let bytes = data.len_bytes();
        let command = HostCommand {
            op,
            nsid: NSID,
            lba: 0,
            blocks,
            data,
            token: 5,
        };
        let rejected = host.submit_on(path, queue, command).expect_err("refused");
        assert_eq!(rejected.reason, reason);
        assert_eq!(
            (rejected.command.token, rejected.command.data.len_bytes()),
            (5, bytes)
        );
    }
    drop(copy);
    assert_eq!(host.path(path).in_flight(), 0);
    served.stop();
}

#[test]
fn refused_connection_stops_when_no_retry_is_wanted() {
    let served = Served::on_any_port();
    let addr = served.stop();
    let mut host = Initiator::new(&Config::default()).expect("a reactor");
    let path = host.connect(
        addr,
        ControllerConfig {
            reconnect: None,
            ..config()
        },
    );
    let refused = host.wait_ready(path, deadline());
    assert_eq!(refused, Err(HostError::Stopped(CloseReason::PathLost)));
}

#[test]
fn discovery_of_a_subsystem_that_is_not_there_is_empty_and_ends() {
    let served = Served::on_any_port();
    let mut host = Initiator::new(&Config::default()).expect("a reactor");
    let subnqn = Nqn::new(nqn::DISCOVERY).expect("valid");
    let config = ControllerConfig { subnqn, ..config() };
    let entries = host
        .discover(served.addr, config, deadline())
        .expect("a log");
    let named = |entry: &bowline_nvme::log::DiscoveryEntry| {
        Nqn::decode(&entry.subnqn).is_ok_and(|name| name.as_str() == SUBNQN)
    };
    assert!(!entries.iter().any(named), "nothing was put into the log");
    assert_eq!(host.reactor().sockets(), 0);
    served.stop();
}

#[test]
fn peers_that_talk_nonsense_are_left_and_tried_again() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let addr = listener.local_addr().expect("bound");
    const PEERS: usize = 30;
    let peers = std::thread::spawn(move || {
        let mut random = 1u64;
        for peer in 0..PEERS {
            let (mut stream, _) = listener.accept().expect("the host comes again");
            let mut icreq = [0; 128];
            stream.read_exact(&mut icreq).expect("an ICReq");
            let mut bytes = Vec::new();
            if peer % 2 == 0 {
                // Well begun, to get at what comes after ICResp.
                let response = IcResp {
                    maxh2cdata: 8192,
                    ..IcResp::default()
                };
                bytes.extend_from_slice(&response.encode());
            }
            for _ in 0..200 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                bytes.push(random.to_be_bytes()[0]);
            }
            // The host may have closed already.
            let _ = stream.write_all(&bytes);
        }
    });
    let mut host = Initiator::new(&Config::default()).expect("a reactor");
    let soon = Reconnect {
        delay_min: Nanos::from_millis(1),
        delay_max: Nanos::from_millis(2),
        attempts_max: None,
    };
    let path = host.connect(
        addr,
        ControllerConfig {
            reconnect: Some(soon),
            ..config()
        },
    );
    let mut losses = 0;
    host.run_until(deadline(), |service, cx| {
        let path = service.path_mut(path);
        let lost = |event: &PathEvent| matches!(event, PathEvent::Disconnected { .. });
        losses += std::iter::from_fn(|| path.poll_event())
            .filter(lost)
            .count();
        assert!(cx.sockets() <= 2, "connections pile up");
        losses >= PEERS
    });
    assert!(losses >= PEERS, "only {losses}");
    peers.join().expect("every peer was visited");
    host.remove(path);
    assert_eq!(host.reactor().sockets(), 0);
    // Takes what the kernel has given back meanwhile, so that the reactor's end does not wait.
    host.turn();
}
