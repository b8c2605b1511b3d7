//! A target in this process, on a device that misbehaves as a test wants.

#![allow(dead_code, reason = "every test binary uses the part that it needs")]

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc;

use bowline_block::{
    Completion, Completions, Device, DeviceEvent, Geometry, Io, IoError, MemDevice, Op, Segments,
};
use bowline_loadgen::job::{Job, Load};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::target::{Hosts, Persistence, SubsystemConfig, TargetConfig};
use bowline_reactor::{Config, Handle, IoBackend, spawn};
use bowline_tcp::target::{Call, NamespaceSpec, TargetMessage, TargetService};

const NQN: &str = "nqn.2026-11.io.bowline:test:disk";
const HOST: &str = "nqn.2026-11.io.bowline:test:host";

/// Bytes of a logical block.
pub(crate) const BLOCK_BYTES: u32 = 4096;
/// Blocks of the device.
pub(crate) const BLOCKS: u64 = 4096;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// This write is acknowledged and not done.
    LoseWrite(u64),
    /// This write goes to the block before.
    MisplaceWrite(u64),
    /// Of this write only the first half is done.
    TearWrite(u64),
    /// One bit of this write changes.
    FlipWrite(u64),
    /// The first read of what this write wrote gives what was there before.
    HideWrite(u64),
    /// This write fails, and is not done.
    FailWrite(u64),
    /// Nothing completes from `after` the first request on, `span` long.
    Stall {
        after: Nanos,
        span: Nanos,
    },
}

/// Memory with a fault.
pub(crate) struct FaultyDevice {
    geometry: Geometry,
    medium: Vec<u8>,
    fault: Fault,
    writes: u64,
    hidden: Option<(usize, Vec<u8>)>,
    done: VecDeque<Completion>,
    first_at: Option<Nanos>,
    now: Nanos,
}

impl FaultyDevice {
    fn new(fault: Fault) -> Self {
        let bytes = BLOCKS * u64::from(BLOCK_BYTES);
        let like = MemDevice::new(bytes, BLOCK_BYTES).expect("a small device");
        Self {
            geometry: like.geometry(),
            medium: vec![0; usize::try_from(bytes).expect("small")],
            fault,
            writes: 0,
            hidden: None,
            done: VecDeque::new(),
            first_at: None,
            now: Nanos::ZERO,
        }
    }

    fn write(&mut self, at: usize, mut bytes: Vec<u8>) -> Result<(), IoError> {
        let number = self.writes;
        self.writes += 1;
        let mut at = at;
        match self.fault {
            Fault::LoseWrite(bad) if bad == number => return Ok(()),
            Fault::FailWrite(bad) if bad == number => return Err(IoError::MediaWrite),
            Fault::MisplaceWrite(bad) if bad == number => at -= bytes.len(),
            Fault::TearWrite(bad) if bad == number => bytes.truncate(bytes.len() / 2),
            Fault::FlipWrite(bad) if bad == number => bytes[100] ^= 1,
            Fault::HideWrite(bad) if bad == number => {
                self.hidden = Some((at, self.medium[at..at + bytes.len()].to_vec()));
            }
            _ => {}
        }
        self.medium[at..at + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn read(&mut self, at: usize, data: &mut Segments) {
        let old = self.hidden.take_if(|(hidden, _)| *hidden == at);
        let len = data.len_bytes();
        let bytes = old.map_or_else(|| self.medium[at..at + len].to_vec(), |(_, old)| old);
        assert!(data.copy_from(&bytes), "the request owns its buffers");
    }

    /// The end of the stall, while it lasts.
    fn stalled_until(&self) -> Option<Nanos> {
        let Fault::Stall { after, span } = self.fault else {
            return None;
        };
        let begin = self.first_at?.after(after);
        let end = begin.after(span);
        (begin <= self.now && self.now < end).then_some(end)
    }
}

impl Device for FaultyDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn depth_max(&self) -> usize {
        1024
    }

    fn try_submit(&mut self, mut io: Io) -> Result<(), Io> {
        let at = usize::try_from(io.lba * u64::from(BLOCK_BYTES)).expect("small");
        let mut result = Ok(());
        match io.op {
            Op::Read => self.read(at, &mut io.data),
            Op::Write => {
                let bytes: Vec<u8> = io.data.pieces(0..usize::MAX).flatten().copied().collect();
                result = self.write(at, bytes);
            }
            _ => {}
        }
        self.done.push_back(io.complete(result));
        Ok(())
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.now = now;
        if !self.done.is_empty() {
            self.first_at.get_or_insert(now);
        }
        while self.stalled_until().is_none()
            && !out.is_full()
            && let Some(done) = self.done.pop_front()
        {
            out.push(done);
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        if self.done.is_empty() {
            return None;
        }
        Some(self.stalled_until().unwrap_or(Nanos::ZERO))
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        None
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        Ok(self.geometry)
    }
}

/// A target on a thread of its own, with one namespace.
pub(crate) struct Rig {
    handle: Option<Handle<TargetMessage<FaultyDevice>>>,
    pub(crate) address: SocketAddr,
}

impl Rig {
    pub(crate) fn new(io: IoBackend, fault: Fault) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let config = Config {
            io,
            ..Config::default()
        };
        let handle = spawn(config, move |cx, _| {
            let mut target = TargetService::new(TargetConfig::default());
            target.listen(cx, listener, 1)?;
            Ok(target)
        });
        let rig = Self {
            handle: Some(handle.expect("a reactor")),
            address,
        };
        rig.call(move |target, now| {
            let config = SubsystemConfig {
                hosts: Hosts::Any,
                ..SubsystemConfig::new(NQN, "BOWLINE-TEST")
            };
            target
                .target()
                .add_subsystem(now, config)
                .expect("a valid subsystem");
            let identity = *b"\xB0\x71\x13\0\0\0\x40\0\x80\0\0\0\0\0\0\x01";
            let spec = NamespaceSpec {
                nsid: None,
                uuid: identity,
                nguid: identity,
                ana_group: None,
                persistence: Persistence::Unsupported,
                shared: false,
            };
            target
                .add_namespace(now, NQN, spec, FaultyDevice::new(fault))
                .expect("a valid namespace");
        });
        rig
    }

    fn call(&self, call: impl FnOnce(&mut TargetService<FaultyDevice>, Nanos) + Send + 'static) {
        let (tell, told) = mpsc::sync_channel(1);
        let call: Call<FaultyDevice> = Box::new(move |target, _, now| {
            call(target, now);
            tell.send(()).expect("the test waits");
        });
        let handle = self.handle.as_ref().expect("running");
        assert!(
            handle
                .mailbox
                .send_blocking(TargetMessage::Call(call))
                .is_ok()
        );
        told.recv().expect("the reactor runs what it is sent");
    }

    /// A job for this target.
    pub(crate) fn job(&self, io: IoBackend, load: Load) -> Job {
        let name = |name| Nqn::new(name).expect("a valid name");
        Job {
            address: self.address,
            subsystem: name(NQN),
            host: name(HOST),
            host_id: [7; 16],
            namespace: NamespaceId(1),
            digests: Digests::NONE,
            io,
            load,
        }
    }

    pub(crate) fn subsystem(&self) -> &'static str {
        NQN
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let call: Call<FaultyDevice> = Box::new(|target, cx, now| target.begin_stop(cx, now));
            let _ = handle.mailbox.try_send(TargetMessage::Call(call));
            if !std::thread::panicking() {
                handle.join().expect("the reactor ends well");
            }
        }
    }
}
