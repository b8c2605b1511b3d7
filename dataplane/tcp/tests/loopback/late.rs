//! Writes to memory are answered first and made at once after, and nobody can tell.

use std::sync::mpsc::{Receiver, channel};

use bowline_block::{Completions, Device, DeviceEvent, Geometry, Io, IoError, MemDevice};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos, Sgl};
use bowline_nvmf::host::command;
use bowline_nvmf::target::{Hosts, TargetConfig};
use bowline_reactor::{Config, IoBackend, PollMode};
use socket2::SockRef;

use crate::common::device::{TestDevice, memory};
use crate::common::raw::Raw;
use crate::common::rig::{BLOCK, NQN, Rig};
use crate::common::{DEADLINE, on_both_backends, pattern, until};

on_both_backends!(
    host_has_its_answer_before_the_write_is_made,
    answered_write_is_what_any_connection_reads,
    what_follows_a_write_in_one_piece_finds_it_made,
    reads_that_cannot_leave_do_not_see_half_of_a_late_write,
    writes_that_end_where_the_staging_area_does_are_made_before_it_is_used_again,
);

const NSID: NamespaceId = NamespaceId(1);
const BYTES: usize = BLOCK as usize;

/// Memory that is not written before the host says that it has its answer.
struct Awaiting {
    inner: MemDevice,
    answered: Receiver<()>,
}

impl Device for Awaiting {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn depth_max(&self) -> usize {
        self.inner.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        self.inner.try_submit(io)
    }

    fn is_immediate(&self) -> bool {
        true
    }

    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        self.inner.read_now(lba, into)
    }

    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        self.answered
            .recv_timeout(DEADLINE)
            .map_err(|_| IoError::Internal)?;
        self.inner.write_now(lba, data)
    }

    fn is_write_sure(&self, lba: u64, bytes: usize) -> bool {
        self.inner.is_write_sure(lba, bytes)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.inner.poll(now, out);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.inner.poll_timeout()
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.inner.poll_event()
    }

    fn refresh(&mut self) -> std::io::Result<Geometry> {
        self.inner.refresh()
    }
}

/// A target that sends directly, whatever has happened before.
fn rig(io: IoBackend, make: impl FnOnce() -> TestDevice + Send + 'static) -> Rig {
    let config = Config {
        io,
        poll: PollMode::Always,
        ..Config::default()
    };
    let rig = Rig::empty(config, TargetConfig::default());
    rig.add_subsystem(NQN, Hosts::Any);
    rig.add_namespace(NQN, make);
    rig
}

fn read(host: &mut Raw, lba: u64) -> Vec<u8> {
    let capsule = host.capsule_with(
        command::read(NSID, lba, 0).with_sgl1(Sgl::transport(BLOCK)),
        &[],
    );
    host.send(&capsule);
    take(host, 1)
}

/// Receives until `count` commands have succeeded, and gives what the Read among them has read.
fn take(host: &mut Raw, count: usize) -> Vec<u8> {
    let (mut read, mut ended) = (Vec::new(), 0);
    while ended < count {
        let pdu = host.recv().expect("an answer");
        if pdu.kind() == 0x05 {
            assert!(pdu.cqe().status.is_success(), "{}", pdu.cqe().status);
            ended += 1;
        } else {
            read.extend(&pdu.bytes[pdu.bytes.len() - BYTES..]);
            ended += usize::from(pdu.c2h().success);
        }
    }
    read
}

fn host_has_its_answer_before_the_write_is_made(io: IoBackend) {
    let (has_answer, answered) = channel();
    let rig = rig(io, move || {
        let inner = memory(1 << 20, BLOCK);
        TestDevice::new(Awaiting { inner, answered })
    });
    let (mut host, _admin) = Raw::io(rig.address, Digests::NONE);
    for number in 1..20 {
        let data = pattern(number, BYTES);
        let write = command::write(NSID, 7, 0, false);
        assert!(host.command(write, Some(&data)).status.is_success());
        has_answer.send(()).expect("the device waits");
        assert_eq!(read(&mut host, 7), data);
    }
}

fn answered_write_is_what_any_connection_reads(io: IoBackend) {
    let rig = rig(io, || TestDevice::memory(1 << 20, BLOCK));
    let (mut host, _admin) = Raw::io(rig.address, Digests::NONE);
    let (mut other, _its_admin) = Raw::io(rig.address, Digests::NONE);
    for number in 1..200 {
        let lba = number % 3;
        let data = pattern(number, BYTES);
        let write = command::write(NSID, lba, 0, false);
        assert!(host.command(write, Some(&data)).status.is_success());
        assert_eq!(read(&mut other, lba), data, "write {number}");
    }
}

/// Of a Write, one to the same blocks, and a Read or a Compare behind them, whatever of that comes
/// first: they are received together, and run as if each had been made at once.
fn what_follows_a_write_in_one_piece_finds_it_made(io: IoBackend) {
    let rig = rig(io, || TestDevice::memory(1 << 20, BLOCK));
    let (mut host, _admin) = Raw::io(rig.address, Digests::NONE);
    for number in 1..50 {
        let (old, new) = (pattern(2 * number, BYTES), pattern(2 * number + 1, BYTES));
        let mut bytes = Vec::new();
        for data in [&old, &new] {
            bytes.extend(host.capsule(command::write(NSID, 5, 0, false), Some(data)));
        }
        let compare = host.capsule(command::compare(NSID, 5, 0), Some(&new));
        let read = command::read(NSID, 5, 0).with_sgl1(Sgl::transport(BLOCK));
        let read = host.capsule_with(read, &[]);
        let behind = match number % 3 {
            0 => vec![read],
            1 => vec![compare, read],
            _ => vec![read, compare],
        };
        bytes.extend(behind.concat());
        // All in one piece, and with a part of the last one missing at first.
        let cut = if number % 2 == 0 {
            bytes.len()
        } else {
            bytes.len() - 40
        };
        host.send(&bytes[..cut]);
        host.send(&bytes[cut..]);
        assert_eq!(take(&mut host, 2 + behind.len()), new, "round {number}");
    }
}

/// Reads of a host that takes nothing, and behind them, in one piece, Writes to the same blocks: the
/// send stops in the middle of what a Read has found, whose rest is then of the same moment.
fn reads_that_cannot_leave_do_not_see_half_of_a_late_write(io: IoBackend) {
    /// What a memory device reads and writes as one.
    const UNIT: usize = 4096;
    const READ_BYTES: u32 = 128 << 10;
    const READS: usize = 7;
    const WRITES: u64 = 16;
    const PIECES: u8 = 4;
    const ROUNDS: u8 = 16;
    let rig = rig(io, || TestDevice::memory(1 << 20, BLOCK));
    let (mut host, _admin) = Raw::io(rig.address, Digests::NONE);
    SockRef::from(&host.stream)
        .set_recv_buffer_size(16 << 10)
        .expect("an open socket");
    for round in 0..ROUNDS {
        for piece in 0..PIECES {
            let before = taken(&rig);
            let read = command::read(NSID, 0, 255).with_sgl1(Sgl::transport(READ_BYTES));
            let mut bytes: Vec<u8> = (0..READS)
                .flat_map(|_| host.capsule_with(read, &[]))
                .collect();
            let data = [1 + round * PIECES + piece; 2 * UNIT];
            for place in 0..WRITES {
                let write = command::write(NSID, 16 * place, 15, false);
                bytes.extend(host.capsule(write, Some(&data)));
            }
            host.send(&bytes);
            let commands = READS as u64 + WRITES;
            until("they are taken", || {
                (taken(&rig) == before + commands).then_some(())
            });
        }
        let (mut ended, mut seen) = (0, 0);
        while ended < usize::from(PIECES) * (READS + usize::try_from(WRITES).expect("few")) {
            let pdu = host.recv().expect("an answer");
            if pdu.kind() == 0x05 {
                assert!(pdu.cqe().status.is_success(), "{}", pdu.cqe().status);
                ended += 1;
                continue;
            }
            let c2h = pdu.c2h();
            let data = &pdu.bytes[usize::from(pdu.bytes[3])..];
            assert_eq!(data.len(), c2h.datal as usize);
            for unit in data.chunks(UNIT) {
                assert!(unit[1..] == unit[..UNIT - 1], "a torn unit");
                let known = round * PIECES..=(round + 1) * PIECES;
                assert!(known.contains(&unit[0]), "{} in round {round}", unit[0]);
            }
            seen += 1;
            ended += usize::from(c2h.success);
        }
        assert_eq!(seen, usize::from(PIECES) * READS);
    }
    let partial = rig.counters().sends_partial;
    assert!(partial > 0, "every send was whole: nothing was tried");
}

/// From a host of many small PDUs 16 KiB are received at a time: all that is there, with a Write at its
/// end, and then something else in the same place.
fn writes_that_end_where_the_staging_area_does_are_made_before_it_is_used_again(io: IoBackend) {
    const WINDOW_BYTES: usize = 16 << 10;
    const CAPSULE_BYTES: usize = 72;
    const WRITES: u64 = 23;
    const BEHIND: u64 = 20;
    const READS: usize = (WINDOW_BYTES - 23 * (CAPSULE_BYTES + BYTES)) / CAPSULE_BYTES;
    let rig = rig(io, || TestDevice::memory(1 << 20, BLOCK));
    let (mut host, _admin) = Raw::io(rig.address, Digests::NONE);
    for round in 0..20 {
        let data = |lba: u64| pattern(1000 * round + lba, BYTES);
        let nothing = command::read(NSID, 1000, 0).with_sgl1(Sgl::transport(BLOCK));
        let mut bytes: Vec<u8> = (0..READS)
            .flat_map(|_| host.capsule_with(nothing, &[]))
            .collect();
        let write = |host: &mut Raw, lba| {
            host.capsule(command::write(NSID, lba, 0, false), Some(&data(lba)))
        };
        bytes.extend((0..WRITES).flat_map(|lba| write(&mut host, lba)));
        assert_eq!(bytes.len(), WINDOW_BYTES);
        bytes.extend((0..BEHIND).flat_map(|it| write(&mut host, WRITES + it)));
        host.send(&bytes);
        take(
            &mut host,
            READS + usize::try_from(WRITES + BEHIND).expect("few"),
        );
        for lba in 0..WRITES + BEHIND {
            assert!(read(&mut host, lba) == data(lba), "block {lba}, {round}");
        }
    }
}

/// Commands of all connections that the target has taken.
fn taken(rig: &Rig) -> u64 {
    rig.call(|target, _, _| {
        let connections = target.target().connections();
        connections.iter().map(|it| it.counters.commands).sum()
    })
}
