//! A target on a reactor thread, and questions to it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use bowline_block::{Device as _, Geometry, PoolStats};
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::target::{Hosts, Persistence, SubsystemConfig, TargetConfig};
use bowline_reactor::{
    BackendInfo, Config, Counters, Handle, IoBackend, ListenerId, LocalReactor, Mailbox, PollMode,
    Reactor, Service, SocketId, spawn,
};
use bowline_tcp::target::{
    NamespaceSpec, ReservationStore, TargetMessage, TargetService, Usage, Work,
};

use super::device::TestDevice;
use super::{DEADLINE, until};

pub(crate) const NQN: &str = "nqn.2026-11.io.bowline:test:disk";
pub(crate) const HOST: &str = "nqn.2026-11.io.bowline:test:host";

/// Logical block size of the rig's own namespace, in bytes.
pub(crate) const BLOCK: u32 = 512;
/// Size of the rig's own namespace, in bytes. Memory is taken where it is written.
pub(crate) const DISK_BYTES: u64 = 64 << 20;

type Target = TargetService<TestDevice>;

/// A target on a thread of its own.
pub(crate) struct Rig {
    handle: Option<Handle<TargetMessage<TestDevice>>>,
    mailbox: Mailbox<TargetMessage<TestDevice>>,
    pub(crate) address: SocketAddr,
    flush_failures: Arc<AtomicUsize>,
}

impl Rig {
    /// A target with nothing to serve, listening on a port of the system's choice.
    pub(crate) fn empty(reactor: Config, config: TargetConfig) -> Self {
        Self::listening((Ipv4Addr::LOCALHOST, 0).into(), reactor, config)
    }

    /// A target like [`Rig::new`] where another one was before.
    pub(crate) fn at(address: SocketAddr, io: IoBackend) -> Self {
        let reactor = Config {
            io,
            ..Config::default()
        };
        let rig = Self::listening(address, reactor, TargetConfig::default());
        rig.add_subsystem(NQN, Hosts::Any);
        rig.add_disk(NQN, DISK_BYTES);
        rig
    }

    /// A target like [`Rig::new`] whose reservations `store` makes durable.
    pub(crate) fn storing(io: IoBackend, store: Box<dyn ReservationStore + Send>) -> Self {
        let reactor = Config {
            io,
            ..Config::default()
        };
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let config = TargetConfig::default();
        let rig = Self::shaped(address, reactor, config, |target| {
            target.with_reservation_store(store)
        });
        rig.add_subsystem(NQN, Hosts::Any);
        rig.add_disk(NQN, DISK_BYTES);
        rig
    }

    fn listening(address: SocketAddr, reactor: Config, config: TargetConfig) -> Self {
        Self::shaped(address, reactor, config, |target| target)
    }

    fn shaped(
        address: SocketAddr,
        reactor: Config,
        config: TargetConfig,
        shape: impl FnOnce(TargetService<TestDevice>) -> TargetService<TestDevice> + Send + 'static,
    ) -> Self {
        let reactor = Config {
            memory: crate::engine::memory(),
            ..reactor
        };
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("bound");
        let flush_failures = Arc::default();
        let counted = Arc::clone(&flush_failures);
        let handle = spawn(reactor, move |cx, _| {
            let target = TargetService::new(config)
                .with_memory(cx.memory())
                .with_flush_failures(counted);
            let mut target = shape(target);
            target.listen(cx, listener, 1)?;
            Ok(target)
        })
        .expect("a reactor");
        let mailbox = handle.mailbox.clone();
        Self {
            handle: Some(handle),
            mailbox,
            address,
            flush_failures,
        }
    }

    /// A target with one subsystem for every host, and one namespace on a disk of the engine.
    pub(crate) fn new(io: IoBackend) -> Self {
        Self::with(io, PollMode::Adaptive, TargetConfig::default())
    }

    /// As [`Rig::new`], with settings.
    pub(crate) fn with(io: IoBackend, poll: PollMode, config: TargetConfig) -> Self {
        let rig = Self::empty(
            Config {
                io,
                poll,
                ..Config::default()
            },
            config,
        );
        rig.add_subsystem(NQN, Hosts::Any);
        rig.add_disk(NQN, DISK_BYTES);
        rig
    }

    /// A target whose one namespace is the device that `make` makes.
    pub(crate) fn with_device(
        io: IoBackend,
        make: impl FnOnce() -> TestDevice + Send + 'static,
    ) -> Self {
        Self::with_device_on(io, |_| make())
    }

    /// A target whose one namespace is a device that belongs to its reactor.
    pub(crate) fn with_device_on(
        io: IoBackend,
        make: impl FnOnce(&mut Reactor) -> TestDevice + Send + 'static,
    ) -> Self {
        let rig = Self::empty(
            Config {
                io,
                ..Config::default()
            },
            TargetConfig::default(),
        );
        rig.add_subsystem(NQN, Hosts::Any);
        rig.add_namespace_on(NQN, make);
        rig
    }

    /// The engine that was chosen, and why.
    pub(crate) fn backend(&self) -> BackendInfo {
        self.call(|_, cx, _| cx.backend().clone())
    }

    /// Whether a reactor can be made with this backend.
    pub(crate) fn try_backend(io: IoBackend) -> std::io::Result<()> {
        let config = Config {
            io,
            ..Config::default()
        };
        LocalReactor::new(&config, |_, _| Ok(Nothing)).map(|_| ())
    }

    /// Runs `call` on the reactor and waits for what it returns.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Target, &mut Reactor, Nanos) -> R + Send + 'static,
    ) -> R {
        let (tell, told) = mpsc::sync_channel(1);
        let call = Box::new(move |target: &mut Target, cx: &mut Reactor, now| {
            // Nobody listens any more only if the test has failed already.
            let _ = tell.send(call(target, cx, now));
        });
        let sent = self.mailbox.send_blocking(TargetMessage::Call(call));
        assert!(sent.is_ok(), "the reactor has ended");
        told.recv_timeout(DEADLINE)
            .expect("the reactor runs what it is sent")
    }

    pub(crate) fn mailbox(&self) -> Mailbox<TargetMessage<TestDevice>> {
        self.mailbox.clone()
    }

    pub(crate) fn add_subsystem(&self, nqn: &'static str, hosts: Hosts) {
        self.call(move |target, _, now| {
            let config = SubsystemConfig {
                hosts,
                ..SubsystemConfig::new(nqn, "BOWLINE-TEST")
            };
            target.target().add_subsystem(now, config).map(|_| ())
        })
        .expect("a valid subsystem");
    }

    pub(crate) fn add_namespace(
        &self,
        nqn: &'static str,
        make: impl FnOnce() -> TestDevice + Send + 'static,
    ) -> NamespaceId {
        self.add_namespace_on(nqn, |_| make())
    }

    /// Adds a namespace whose device belongs to the target's reactor.
    pub(crate) fn add_namespace_on(
        &self,
        nqn: &'static str,
        make: impl FnOnce(&mut Reactor) -> TestDevice + Send + 'static,
    ) -> NamespaceId {
        static LAST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let unique = LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let mut identity = *b"\xB0\x71\x13\0\0\0\x40\0\x80\0\0\0\0\0\0\0";
        identity[8..].copy_from_slice(&unique.to_be_bytes());
        let spec = NamespaceSpec {
            nsid: None,
            uuid: identity,
            nguid: identity,
            ana_group: None,
            persistence: Persistence::Unsupported,
            shared: false,
        };
        self.call(move |target, cx, now| target.add_namespace(now, nqn, spec, make(cx)))
            .expect("a valid namespace")
    }

    /// Adds a disk of the engine.
    pub(crate) fn add_disk(&self, nqn: &'static str, bytes: u64) -> NamespaceId {
        self.add_namespace_on(nqn, move |cx| crate::engine::disk(cx, bytes, BLOCK))
    }

    /// What disks of the engine say of themselves.
    pub(crate) fn geometry(&self) -> Geometry {
        self.call(|_, cx, _| crate::engine::disk(cx, 1 << 20, BLOCK).geometry())
    }

    /// The reactor's counters, exact.
    pub(crate) fn counters(&self) -> Counters {
        self.call(|_, cx, _| cx.counters())
    }

    pub(crate) fn pool(&self) -> PoolStats {
        self.call(|_, cx, _| cx.pool().stats())
    }

    pub(crate) fn connections(&self) -> usize {
        self.call(|target, _, _| target.connections())
    }

    /// Waits until this many connections are left.
    pub(crate) fn await_connections(&self, count: usize) {
        until("connections end", || {
            (self.connections() == count).then_some(())
        });
    }

    /// Waits until every buffer is back in the pool, but for the one that the target keeps for
    /// Compare while there are connections.
    pub(crate) fn await_free_pool(&self) {
        until("buffers come back", || {
            let (used, connections) = self.call(|target, cx, _| {
                let used: usize = cx
                    .pool()
                    .stats()
                    .classes
                    .iter()
                    .map(|class| class.used)
                    .sum();
                (used, target.connections())
            });
            (used <= usize::from(connections > 0)).then_some(())
        });
    }

    /// What turns have cost so far.
    pub(crate) fn work(&self) -> Work {
        self.call(|target, _, _| target.work())
    }

    /// What is kept for connections now.
    pub(crate) fn usage(&self) -> Usage {
        self.call(|target, _, _| target.usage())
    }

    /// Waits until nothing is left of any connection: no buffer, slot, link, or controller.
    pub(crate) fn await_nothing_left(&self) {
        self.await_connections(0);
        until("nothing is left", || {
            let (usage, used) = self.call(|target, cx, _| {
                let classes = cx.pool().stats().classes;
                let used: usize = classes.iter().map(|class| class.used).sum();
                (target.usage(), used + cx.sockets())
            });
            (usage == Usage::default() && used == 0).then_some(())
        });
        let controllers = self.call(|target, _, _| {
            let subsystems = target.target().subsystems();
            let controllers = subsystems.iter().map(|it| it.controllers.len());
            controllers.sum::<usize>() + target.target().connections().len()
        });
        assert_eq!(controllers, 0);
    }

    /// Asks the target to stop, without waiting.
    pub(crate) fn begin_stop(&self) {
        self.call(|target, cx, now| target.begin_stop(cx, now));
    }

    /// Waits for the end of a reactor that is stopping, and gives the number of devices that it
    /// could not flush.
    pub(crate) fn join(mut self) -> usize {
        let handle = self.handle.take().expect("joined once");
        handle.join().expect("the reactor ends well");
        self.flush_failures.load(Ordering::SeqCst)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            // Ends the thread as the process would, without draining.
            let call: bowline_tcp::target::Call<TestDevice> =
                Box::new(|target, cx, now| target.begin_stop(cx, now));
            let _ = self.mailbox.try_send(TargetMessage::Call(call));
            if !std::thread::panicking() {
                handle.join().expect("the reactor ends well");
            }
        }
    }
}

/// A service that does nothing, to try out a backend.
pub(crate) struct Nothing;

impl Service for Nothing {
    type Message = ();

    fn message(&mut self, _: &mut Reactor, _: Nanos, (): ()) {}

    fn accepted(
        &mut self,
        _: &mut Reactor,
        _: Nanos,
        _: ListenerId,
        _: std::net::TcpStream,
        _: SocketAddr,
    ) {
    }

    fn readable(&mut self, _: &mut Reactor, _: Nanos, _: SocketId) {}

    fn sent(
        &mut self,
        _: &mut Reactor,
        _: Nanos,
        _: SocketId,
        _: bowline_reactor::Gather,
        _: std::io::Result<()>,
    ) {
    }

    fn turn(&mut self, _: &mut Reactor, _: Nanos) {}

    fn poll_timeout(&self) -> Option<Nanos> {
        None
    }

    fn is_stopped(&self) -> bool {
        true
    }
}
