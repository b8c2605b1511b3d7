//! Devices that need not be waited for give the answers, and have the medium, of those that must be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bowline_block::{
    Completion, Completions, Device, DeviceEvent, Geometry, Io, IoError, MediumView, MemDevice,
};
use bowline_nvme::pdu::{Digests, H2CData, R2t};
use bowline_nvme::{NamespaceId, Nanos, Sgl, Status};
use bowline_nvmf::host::command;
use bowline_nvmf::target::{AnaConfig, Hosts, Persistence, SubsystemConfig, TargetConfig};
use bowline_reactor::{Config, IoBackend};
use bowline_tcp::target::NamespaceSpec;

use crate::common::device::{TestDevice, memory};
use crate::common::raw::Raw;
use crate::common::rig::{BLOCK, NQN, Rig};
use crate::common::{on_both_backends, verdict};

mod streams;

on_both_backends!(what_a_device_has_failed_is_told_once_and_not_run_again);

const NSID: NamespaceId = NamespaceId(1);
const DEVICE_BYTES: u64 = 4 << 20;
const DEVICE_BLOCKS: u64 = DEVICE_BYTES / BLOCK as u64;
/// Blocks that cannot be read or written any more.
const WORN: std::ops::Range<u64> = 7000..7100;

/// Memory with worn blocks, which may or may not be waited for.
struct Worn {
    inner: MemDevice,
    is_immediate: bool,
    failed: VecDeque<Completion>,
    /// Reads and Writes that reached worn blocks.
    attempts: Arc<AtomicU64>,
}

impl Worn {
    fn new(is_immediate: bool, attempts: Arc<AtomicU64>) -> Self {
        Self {
            inner: memory(DEVICE_BYTES, BLOCK),
            is_immediate,
            failed: VecDeque::new(),
            attempts,
        }
    }

    fn check(&self, lba: u64, blocks: u64, error: IoError) -> Result<(), IoError> {
        if lba < WORN.end && lba + blocks > WORN.start {
            self.attempts.fetch_add(1, Ordering::SeqCst);
            return Err(error);
        }
        Ok(())
    }
}

fn blocks(bytes: usize) -> u64 {
    bytes as u64 / u64::from(BLOCK)
}

impl Device for Worn {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn depth_max(&self) -> usize {
        self.inner.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        let error = if io.op.is_modifying() {
            IoError::MediaWrite
        } else {
            IoError::MediaRead
        };
        match self.check(io.lba, io.blocks.into(), error) {
            Ok(()) => self.inner.try_submit(io),
            Err(error) => {
                self.failed.push_back(io.complete(Err(error)));
                Ok(())
            }
        }
    }

    fn is_immediate(&self) -> bool {
        self.is_immediate
    }

    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        self.check(lba, blocks(into.len()), IoError::MediaRead)?;
        self.inner.read_now(lba, into)
    }

    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        self.check(lba, blocks(data.len()), IoError::MediaWrite)?;
        self.inner.write_now(lba, data)
    }

    fn is_write_sure(&self, lba: u64, bytes: usize) -> bool {
        let end = lba + blocks(bytes);
        (end <= WORN.start || lba >= WORN.end) && self.inner.is_write_sure(lba, bytes)
    }

    fn view_now(&self, lba: u64, bytes: usize) -> Result<MediumView, IoError> {
        self.check(lba, blocks(bytes), IoError::MediaRead)?;
        self.inner.view_now(lba, bytes)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        while !out.is_full()
            && let Some(failed) = self.failed.pop_front()
        {
            out.push(failed);
        }
        self.inner.poll(now, out);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        let own = (!self.failed.is_empty()).then_some(Nanos::ZERO);
        own.or_else(|| self.inner.poll_timeout())
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.inner.poll_event()
    }

    fn refresh(&mut self) -> std::io::Result<Geometry> {
        self.inner.refresh()
    }
}

/// A target whose one namespace is such a device.
fn rig(io: IoBackend, is_immediate: bool, attempts: &Arc<AtomicU64>) -> Rig {
    let config = Config {
        io,
        ..Config::default()
    };
    let rig = Rig::empty(config, TargetConfig::default());
    rig.call(|target, _, now| {
        let config = SubsystemConfig {
            hosts: Hosts::Any,
            ana: Some(AnaConfig::default()),
            ..SubsystemConfig::new(NQN, "BOWLINE-TEST")
        };
        target.target().add_subsystem(now, config).map(|_| ())
    })
    .expect("a valid subsystem");
    add_device(&rig, is_immediate, attempts);
    rig
}

/// Adds the namespace, where one may have been before.
fn add_device(rig: &Rig, is_immediate: bool, attempts: &Arc<AtomicU64>) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let mut identity = [0xA5; 16];
    identity[8..].copy_from_slice(&LAST.fetch_add(1, Ordering::SeqCst).to_be_bytes());
    let spec = NamespaceSpec {
        nsid: Some(NSID.0),
        uuid: identity,
        nguid: identity,
        ana_group: None,
        persistence: Persistence::Unsupported,
        shared: false,
    };
    let attempts = Arc::clone(attempts);
    rig.call(move |target, _, now| {
        let device = TestDevice::new(Worn::new(is_immediate, attempts));
        target.add_namespace(now, NQN, spec, device)
    })
    .expect("its place is free");
}

/// A device was asked again for what it had failed, and a second attempt that had succeeded would
/// have hidden the first. It was also refused nothing: others went on at once.
fn what_a_device_has_failed_is_told_once_and_not_run_again(io: IoBackend) {
    let attempts = Arc::default();
    let rig = rig(io, true, &attempts);
    let (mut host, _admin) = Raw::io(rig.address, Digests::NONE);
    let mut seen = 0;
    let mut check = |attempted: u64| {
        seen += attempted;
        assert_eq!(attempts.load(Ordering::SeqCst), seen);
    };
    let write = command::write(NSID, WORN.start, 0, false);
    let read = command::read(NSID, WORN.start, 0);
    let data = [7; BLOCK as usize];
    assert_eq!(
        verdict(host.command(write, Some(&data)).status),
        Status::WRITE_FAULT
    );
    check(1);
    let capsule = host.capsule_with(read.with_sgl1(Sgl::transport(BLOCK)), &[]);
    host.send(&capsule);
    assert_eq!(host.await_status(), Status::UNRECOVERED_READ);
    check(1);
    let capsule = host.capsule_with(write.with_sgl1(Sgl::transport(BLOCK)), &[]);
    host.send(&capsule);
    let r2t = host.recv().expect("an R2T").r2t();
    let pdu = host.h2c_data(all_of(&r2t), &data);
    host.send(&pdu);
    assert_eq!(host.await_status(), Status::WRITE_FAULT);
    check(1);
    // Several of which some are the same, and others between them.
    let good = command::write(NSID, 0, 0, false);
    let mut bytes = Vec::new();
    for sqe in [good, write, good, write, good] {
        bytes.extend(host.capsule(sqe, Some(&data)));
    }
    host.send(&bytes);
    let statuses: Vec<Status> = (0..5).map(|_| host.await_status()).collect();
    let failed = statuses.iter().filter(|it| **it == Status::WRITE_FAULT);
    assert_eq!(failed.count(), 2, "{statuses:?}");
    check(2);
    assert!(host.command(good, Some(&data)).status.is_success());
}

fn all_of(r2t: &R2t) -> H2CData {
    H2CData {
        cccid: r2t.cccid,
        ttag: r2t.ttag,
        datao: r2t.r2to,
        datal: r2t.r2tl,
        last: true,
    }
}
