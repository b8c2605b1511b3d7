//! The target of the product, whole, on the caller's thread: reactors, service, protocol machine
//! and devices in memory. It runs when it is told to, and time is what it is told.

use std::alloc::System;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;

use anyhow::{Context, Result};
use bowline_block::{MemDevice, PoolConfig};
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::target::{Hosts, Persistence, SubsystemConfig, TargetConfig};
use bowline_reactor::{Config, IoBackend, LocalReactor, PollMode, monotonic_now};
use bowline_tcp::target::{NamespaceSpec, TargetService};
use socket2::{Domain, SockRef, Socket, Type};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use crate::host::{Pump, Wait};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The subsystems that are served, one by each reactor.
pub(crate) const NQNS: [&str; 2] = [
    "nqn.2026-11.io.bowline:guard",
    "nqn.2026-11.io.bowline:guard:second",
];
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

/// What turns did.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) turns: u64,
    /// On the data path, by the reactors' own counters.
    pub(crate) system_calls: u64,
    /// Pieces of memory taken from the heap or made larger.
    pub(crate) allocations: u64,
}

/// The target and its clock.
pub(crate) struct Machine {
    members: Vec<Member>,
    now: Nanos,
    counted: bool,
    counts: Counts,
}

/// A reactor and the address that it listens on.
struct Member {
    local: Local,
    address: SocketAddr,
}

impl Machine {
    /// So many reactors, each with a subsystem of one namespace of this size. They know of each
    /// other.
    pub(crate) fn new(
        io: IoBackend,
        reactors: u32,
        connections_max: u32,
        bytes: u64,
    ) -> Result<Self> {
        let mut machine = Self {
            members: Vec::new(),
            now: monotonic_now(),
            counted: false,
            counts: Counts::default(),
        };
        for (at, nqn) in (0..usize::try_from(reactors)?).zip(NQNS) {
            machine.members.push(Member::new(io, connections_max)?);
            let now = machine.now;
            let subsystem = SubsystemConfig {
                hosts: Hosts::Any,
                namespaces_max: NAMESPACES_MAX,
                ..SubsystemConfig::new(nqn, "BOWLINE-GUARD")
            };
            let (service, _) = machine.members[at].local.parts();
            let added = service.target().add_subsystem(now, subsystem);
            added.context("the subsystem was refused")?;
            machine.add_namespace(at, 0, bytes)?;
        }
        let mailboxes: Vec<_> = machine
            .members
            .iter()
            .map(|it| it.local.mailbox())
            .collect();
        for (here, member) in machine.members.iter_mut().enumerate() {
            let others = mailboxes.iter().zip(NQNS).enumerate();
            for (_, (mailbox, nqn)) in others.filter(|(there, _)| *there != here) {
                let (service, _) = member.local.parts();
                service.set_route(nqn.to_owned(), mailbox.clone());
            }
        }
        Ok(machine)
    }

    /// Adds a small namespace to the first subsystem for each number; the first is there already.
    pub(crate) fn add_namespaces(&mut self, mut numbers: Range<u32>) -> Result<()> {
        numbers.try_for_each(|number| self.add_namespace(0, number, SPARE_BYTES))
    }

    fn add_namespace(&mut self, reactor: usize, number: u32, bytes: u64) -> Result<()> {
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
        let (service, _) = self.members[reactor].local.parts();
        let nqn = NQNS[reactor];
        if self.counted {
            let before = allocations();
            counted_attach(service, now, nqn, spec, device)?;
            self.counts.allocations += allocations() - before;
        } else {
            attach(service, now, nqn, spec, device)?;
        }
        Ok(())
    }

    /// A new connection to the last reactor, not yet accepted: whose subsystem is elsewhere, it
    /// moves there.
    pub(crate) fn dial(&self) -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        fix_buffers(&SockRef::from(&socket))?;
        let last = self.members.last().context("no reactor")?;
        socket.connect(&last.address.into())?;
        Ok(TcpStream::from(socket))
    }

    /// From now on what is done counts.
    pub(crate) fn count(&mut self) {
        self.counted = true;
        self.counts = Counts::default();
    }

    /// What was done since counting began, or since the start.
    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }
}

impl Member {
    fn new(io: IoBackend, connections_max: u32) -> Result<Self> {
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
        });
        let local = local.context("no reactor")?;
        Ok(Self { local, address })
    }
}

impl Pump for Machine {
    fn pump(&mut self, _: &TcpStream, _: Wait) -> Result<()> {
        self.now = self.now.after(TURN);
        self.counts.turns += 1;
        for Member { local, .. } in &mut self.members {
            let (calls, pieces) = (local.reactor().counters().syscalls(), allocations());
            if self.counted {
                counted_turn(local, self.now);
            } else {
                local.turn(self.now);
            }
            self.counts.system_calls += local.reactor().counters().syscalls() - calls;
            self.counts.allocations += allocations() - pieces;
        }
        Ok(())
    }
}

/// Of the process so far.
pub(crate) fn allocations() -> u64 {
    let stats = ALLOCATOR.stats();
    u64::try_from(stats.allocations.saturating_add(stats.reallocations)).unwrap_or(u64::MAX)
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
    nqn: &str,
    spec: NamespaceSpec,
    device: MemDevice,
) -> Result<NamespaceId> {
    attach(service, now, nqn, spec, device)
}

fn attach(
    service: &mut TargetService<MemDevice>,
    now: Nanos,
    nqn: &str,
    spec: NamespaceSpec,
    device: MemDevice,
) -> Result<NamespaceId> {
    let added = service.add_namespace(now, nqn, spec, device);
    added.context("the namespace was refused")
}

fn fix_buffers(socket: &SockRef<'_>) -> Result<()> {
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    Ok(())
}
