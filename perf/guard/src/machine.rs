//! The target of the product, whole, on the caller's thread: reactor, service, protocol machine
//! and devices in memory. It runs when it is told to, and time is what it is told.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;

use anyhow::{Context, Result};
use bowline_block::{MemDevice, PoolConfig};
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::target::{Hosts, Persistence, SubsystemConfig, TargetConfig};
use bowline_reactor::{Config, IoBackend, LocalReactor, PollMode, monotonic_now};
use bowline_tcp::target::{NamespaceSpec, TargetService};
use socket2::{Domain, SockRef, Socket, Type};

use crate::host::{Pump, Wait};

/// The subsystem that is served.
pub(crate) const NQN: &str = "nqn.2026-11.io.bowline:guard";
/// Logical block size, in bytes.
pub(crate) const BLOCK_BYTES: u32 = 512;

/// Between two turns.
const TURN: Nanos = Nanos(10_000);
/// Socket buffers are of a fixed size, so that the kernel's tuning, which goes by time, does not
/// decide how many pieces a burst arrives in. As much as any user may ask for by default.
const SOCKET_BYTES: usize = 212_992;
const POOL_BYTES: usize = 64 << 20;
/// More than any scenario adds.
const NAMESPACES_MAX: u32 = 16 << 10;
const BACKLOG: i32 = 64;
/// Namespaces beside the first need no room for data.
const SPARE_BYTES: u64 = 4096;

type Local = LocalReactor<TargetService<MemDevice>>;

/// The target and its clock.
pub(crate) struct Machine {
    local: Local,
    now: Nanos,
    address: SocketAddr,
    counted: bool,
    turns: u64,
}

impl Machine {
    /// A target with one namespace of this size.
    pub(crate) fn new(io: IoBackend, connections_max: u32, bytes: u64) -> Result<Self> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        fix_buffers(&SockRef::from(&listener))?;
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        listener.bind(&any.into())?;
        listener.listen(BACKLOG)?;
        let listener = TcpListener::from(listener);
        let address = listener.local_addr()?;
        let reactor = Config {
            io,
            poll: PollMode::Never,
            pool: PoolConfig::with_budget(POOL_BYTES),
            ..Config::default()
        };
        let config = TargetConfig {
            connections_max,
            unassociated_per_address_max: connections_max,
            queues_per_host_max: connections_max,
            ..TargetConfig::default()
        };
        let local = LocalReactor::new(&reactor, move |cx, _| {
            let mut service = TargetService::new(config);
            service.listen(cx, listener, 1)?;
            Ok(service)
        })
        .context("no reactor")?;
        let mut machine = Self {
            local,
            now: monotonic_now(),
            address,
            counted: false,
            turns: 0,
        };
        let subsystem = SubsystemConfig {
            hosts: Hosts::Any,
            namespaces_max: NAMESPACES_MAX,
            ..SubsystemConfig::new(NQN, "BOWLINE-GUARD")
        };
        let (service, _) = machine.local.parts();
        let added = service.target().add_subsystem(machine.now, subsystem);
        added.context("the subsystem was refused")?;
        machine.add_namespace(0, bytes)?;
        Ok(machine)
    }

    /// Adds a small namespace for each number; the first is there already.
    pub(crate) fn add_namespaces(&mut self, mut numbers: Range<u32>) -> Result<()> {
        numbers.try_for_each(|number| self.add_namespace(number, SPARE_BYTES))
    }

    fn add_namespace(&mut self, number: u32, bytes: u64) -> Result<()> {
        let mut identity = *b"\xB0\x71\x13\0\0\0\x40\0\x80\0\0\0\0\0\0\0";
        identity[12..].copy_from_slice(&number.wrapping_add(1).to_be_bytes());
        let spec = NamespaceSpec {
            nsid: None,
            uuid: identity,
            nguid: identity,
            ana_group: None,
            persistence: Persistence::Unsupported,
            shared: false,
        };
        let device = MemDevice::new(bytes, BLOCK_BYTES)?;
        let now = self.now;
        let (service, _) = self.local.parts();
        let added = if self.counted {
            counted_attach(service, now, spec, device)
        } else {
            attach(service, now, spec, device)
        };
        added.map(drop)
    }

    /// A new connection, not yet accepted.
    pub(crate) fn dial(&self) -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        fix_buffers(&SockRef::from(&socket))?;
        socket.connect(&self.address.into())?;
        Ok(TcpStream::from(socket))
    }

    /// From now on turns are counted.
    pub(crate) const fn count(&mut self) {
        self.counted = true;
        self.turns = 0;
    }

    /// Turns taken since counting began, or since the start.
    pub(crate) const fn turns(&self) -> u64 {
        self.turns
    }
}

impl Pump for Machine {
    fn pump(&mut self, _: &TcpStream, _: Wait) -> Result<()> {
        self.now = self.now.after(TURN);
        self.turns += 1;
        if self.counted {
            counted_turn(&mut self.local, self.now);
        } else {
            self.local.turn(self.now);
        }
        Ok(())
    }
}

/// The one place whose instructions are counted: the counter is told its name, and starts and
/// stops with it.
#[inline(never)]
fn counted_turn(local: &mut Local, now: Nanos) {
    local.turn(now);
}

/// As [`counted_turn`], for adding a namespace.
#[inline(never)]
fn counted_attach(
    service: &mut TargetService<MemDevice>,
    now: Nanos,
    spec: NamespaceSpec,
    device: MemDevice,
) -> Result<NamespaceId> {
    attach(service, now, spec, device)
}

fn attach(
    service: &mut TargetService<MemDevice>,
    now: Nanos,
    spec: NamespaceSpec,
    device: MemDevice,
) -> Result<NamespaceId> {
    let added = service.add_namespace(now, NQN, spec, device);
    added.context("the namespace was refused")
}

fn fix_buffers(socket: &SockRef<'_>) -> Result<()> {
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    Ok(())
}
