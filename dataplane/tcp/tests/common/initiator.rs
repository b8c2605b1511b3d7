//! Our own host, as a test wants it: one call, one result.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use bowline_block::{ClassConfig, PoolConfig, Segments};
use bowline_nvme::log::DiscoveryEntry;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};
use bowline_nvmf::host::{
    CloseReason, ControllerConfig, ControllerFacts, HostNamespace, Reconnect,
};
use bowline_reactor::{Config, Counters, IoBackend, PollMode, monotonic_now};
use bowline_tcp::host::{Direction, HostCommand, HostError, HostOp, Initiator, PathEvent, PathId};

use super::rig::{BLOCK, HOST, NQN};
use super::{DEADLINE, pattern, until, verdict};

/// How to connect.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) io: IoBackend,
    pub(crate) poll: PollMode,
    pub(crate) queues: u16,
    pub(crate) digests: Digests,
    pub(crate) keep_alive: Nanos,
    pub(crate) reconnect: Option<Reconnect>,
    pub(crate) subnqn: &'static str,
    pub(crate) hostnqn: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            io: IoBackend::Auto,
            poll: PollMode::Adaptive,
            queues: 1,
            digests: Digests::NONE,
            // A test that does something else for a while is no dead host.
            keep_alive: Nanos::from_secs(60),
            reconnect: None,
            subnqn: NQN,
            hostnqn: HOST,
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) token: u64,
    pub(crate) status: Status,
    pub(crate) result: u64,
    pub(crate) path_lost: bool,
    pub(crate) data: Vec<u8>,
}

/// An association on a reactor of the calling thread.
pub(crate) struct Disk {
    initiator: Initiator,
    path: PathId,
    losses: usize,
    next_token: u64,
}

fn deadline() -> Nanos {
    let span = u64::try_from(DEADLINE.as_nanos()).expect("seconds");
    monotonic_now().after(Nanos(span))
}

impl Disk {
    /// One I/O queue, no digests.
    pub(crate) fn connect(address: SocketAddr, io: IoBackend) -> Self {
        Self::with(
            address,
            Options {
                io,
                ..Options::default()
            },
        )
    }

    pub(crate) fn with(address: SocketAddr, options: Options) -> Self {
        match Self::try_with(address, options) {
            Ok(disk) => disk,
            Err(reason) => panic!("not connected: {reason}"),
        }
    }

    pub(crate) fn try_with(address: SocketAddr, options: Options) -> Result<Self, CloseReason> {
        let class = |bytes, count| ClassConfig { bytes, count };
        let classes = vec![
            class(4096, 512),
            class(16 << 10, 64),
            class(128 << 10, 64),
            class(1 << 20, 40),
        ];
        let reactor = Config {
            io: options.io,
            poll: options.poll,
            pool: PoolConfig { classes },
            ..Config::default()
        };
        let mut initiator = Initiator::new(&reactor).expect("a reactor");
        let name = |name| Nqn::new(name).expect("a valid name");
        let config = ControllerConfig {
            io_queues: options.queues,
            digests: options.digests,
            keep_alive: options.keep_alive,
            reconnect: options.reconnect,
            setup_timeout: Nanos::from_secs(20),
            open_timeout: Nanos::from_secs(20),
            ..ControllerConfig::new(name(options.hostnqn), [1; 16], name(options.subnqn))
        };
        let path = initiator.connect(address, config);
        match initiator.wait_ready(path, deadline()) {
            Ok(()) => Ok(Self {
                initiator,
                path,
                losses: 0,
                next_token: 0,
            }),
            Err(HostError::Stopped(reason)) => Err(reason),
            Err(error) => panic!("neither connected nor refused: {error}"),
        }
    }

    pub(crate) fn facts(&self) -> &ControllerFacts {
        self.initiator
            .path(self.path)
            .controller()
            .facts()
            .expect("connected")
    }

    pub(crate) fn namespaces(&self) -> &[HostNamespace] {
        self.initiator.path(self.path).controller().namespaces()
    }

    pub(crate) fn namespace(&self, nsid: NamespaceId) -> HostNamespace {
        self.initiator
            .namespace(self.path, nsid)
            .expect("it is there")
    }

    pub(crate) fn counters(&self) -> Counters {
        self.initiator.counters()
    }

    /// Writes, and insists on success.
    pub(crate) fn write(&mut self, nsid: NamespaceId, lba: u64, data: &[u8]) {
        let done = self.run(HostOp::Write { fua: false }, nsid, lba, data);
        assert_eq!(
            done.status,
            Status::SUCCESS,
            "{} bytes at block {lba}",
            data.len()
        );
    }

    /// Reads, and insists on success.
    pub(crate) fn read(&mut self, nsid: NamespaceId, lba: u64, len: usize) -> Vec<u8> {
        match self.try_read(nsid, lba, len) {
            Ok(data) => data,
            Err(status) => panic!("{len} bytes at block {lba}: {status}"),
        }
    }

    pub(crate) fn try_read(
        &mut self,
        nsid: NamespaceId,
        lba: u64,
        len: usize,
    ) -> Result<Vec<u8>, Status> {
        assert!(self.submit_read(nsid, lba, len), "the queue is full");
        let done = self.await_one();
        if done.status.is_success() {
            Ok(done.data)
        } else {
            Err(done.status)
        }
    }

    pub(crate) fn flush(&mut self, nsid: NamespaceId) {
        assert_eq!(self.run_blocks(HostOp::Flush, nsid, 0, 0), Status::SUCCESS);
    }

    pub(crate) fn flush_on(&mut self, queue: u16, nsid: NamespaceId) -> Status {
        let command = self.command(HostOp::Flush, nsid, 0, 0, Segments::new());
        self.initiator
            .submit_on(self.path, queue, command)
            .expect("an idle queue");
        self.await_one().status
    }

    /// Runs a command with data to the controller.
    pub(crate) fn run(&mut self, op: HostOp, nsid: NamespaceId, lba: u64, data: &[u8]) -> Done {
        assert!(self.submit(op, nsid, lba, data), "the queue is full");
        self.await_one()
    }

    /// Runs a command without data.
    pub(crate) fn run_blocks(
        &mut self,
        op: HostOp,
        nsid: NamespaceId,
        lba: u64,
        blocks: u32,
    ) -> Status {
        let command = self.command(op, nsid, lba, blocks, Segments::new());
        self.initiator
            .submit(self.path, command)
            .expect("an idle queue");
        self.await_one().status
    }

    /// Runs an admin command that transfers `len` bytes to the host.
    pub(crate) fn admin(&mut self, sqe: Sqe, len: usize) -> Done {
        let data = self.buffer(len).expect("a free buffer");
        let op = HostOp::Raw {
            sqe,
            direction: Direction::ToHost,
        };
        let command = self.command(op, NamespaceId::NONE, 0, 0, data);
        self.initiator
            .submit_on(self.path, 0, command)
            .expect("an idle queue");
        self.await_one()
    }

    /// Whether a queue took an entry as it is, with data to the controller if there is any.
    pub(crate) fn submit_raw(&mut self, queue: u16, sqe: Sqe, data: &[u8]) -> bool {
        let mut segments = Segments::new();
        let mut direction = Direction::None;
        if !data.is_empty() {
            direction = Direction::FromHost;
            let Some(buffer) = self.buffer(data.len()) else {
                return false;
            };
            segments = buffer;
            assert!(segments.copy_from(data), "a fresh buffer is unique");
        }
        let op = HostOp::Raw { sqe, direction };
        let command = self.command(op, NamespaceId::NONE, 0, 0, segments);
        self.initiator.submit_on(self.path, queue, command).is_ok()
    }

    /// Runs an I/O command that is an entry as it is, on the first queue.
    pub(crate) fn run_raw(&mut self, sqe: Sqe, data: &[u8]) -> Status {
        assert!(self.submit_raw(1, sqe, data), "the queue is full");
        self.await_one().status
    }

    /// Runs entries as they are, one right behind the other on the first queue, and tells how
    /// each ended.
    pub(crate) fn run_all_raw(&mut self, commands: &[(Sqe, &[u8])]) -> Vec<Status> {
        for (sqe, data) in commands {
            assert!(self.submit_raw(1, *sqe, data), "the queue is full");
        }
        let mut done = self.await_all();
        done.sort_by_key(|done| done.token);
        done.iter().map(|done| done.status).collect()
    }

    pub(crate) fn discover(&mut self) -> Vec<DiscoveryEntry> {
        self.initiator
            .read_discovery_log(self.path, deadline())
            .expect("a discovery log")
    }

    /// Whether a command with data to the controller was taken.
    pub(crate) fn submit(&mut self, op: HostOp, nsid: NamespaceId, lba: u64, data: &[u8]) -> bool {
        let Some(mut buffer) = self.buffer(data.len()) else {
            return false;
        };
        assert!(buffer.copy_from(data), "a fresh buffer is unique");
        let blocks = self.blocks(nsid, data.len());
        let command = self.command(op, nsid, lba, blocks, buffer);
        self.initiator.submit(self.path, command).is_ok()
    }

    /// Whether a read was taken.
    pub(crate) fn submit_read(&mut self, nsid: NamespaceId, lba: u64, len: usize) -> bool {
        let Some(buffer) = self.buffer(len) else {
            return false;
        };
        let blocks = self.blocks(nsid, len);
        let command = self.command(HostOp::Read, nsid, lba, blocks, buffer);
        self.initiator.submit(self.path, command).is_ok()
    }

    /// The token of the command that was submitted last.
    pub(crate) fn last_token(&self) -> u64 {
        self.next_token
    }

    /// Commands that have not completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.initiator.path(self.path).in_flight()
    }

    /// Takes turns without waiting for anything: what was submitted is sent.
    pub(crate) fn turn(&mut self) {
        while self.initiator.turn().worked {}
    }

    /// Runs without anything to do.
    pub(crate) fn rest(&mut self, until: Nanos) {
        self.initiator.run_until(until, |_, _| false);
    }

    /// Runs until something holds that this host need not have to do with.
    pub(crate) fn run_until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        until(what, || {
            self.initiator.turn();
            done().then_some(())
        });
    }

    /// What has completed, after waiting for at least something to happen.
    pub(crate) fn poll_all(&mut self) -> Vec<Done> {
        let mut found = Vec::new();
        let (path, end) = (self.path, deadline());
        self.initiator.run_until(end, |service, _| {
            let path = service.path_mut(path);
            while let Some(done) = path.poll() {
                found.push(done);
            }
            !found.is_empty() || path.in_flight() == 0
        });
        found.into_iter().map(plain).collect()
    }

    /// Waits for everything that was submitted.
    pub(crate) fn await_all(&mut self) -> Vec<Done> {
        let mut found = Vec::new();
        while self.in_flight() > 0 {
            let before = found.len();
            found.extend(self.poll_all());
            assert!(found.len() > before, "commands hang");
        }
        found.extend(self.poll_all());
        found
    }

    fn await_one(&mut self) -> Done {
        let mut found = self.poll_all();
        assert_eq!(found.len(), 1, "one command, one completion: {found:?}");
        found.remove(0)
    }

    /// Waits for this event; others are dropped, but losses are counted.
    pub(crate) fn await_event(&mut self, wanted: PathEvent) {
        self.await_event_that(&format!("{wanted:?}"), |event| event == wanted);
    }

    /// Waits until the association is lost.
    pub(crate) fn await_loss(&mut self) {
        self.await_event_that("a loss", |event| {
            matches!(event, PathEvent::Disconnected { .. })
        });
    }

    fn await_event_that(&mut self, what: &str, wanted: impl Fn(PathEvent) -> bool) {
        let end = deadline();
        loop {
            while let Some(event) = self.poll_event() {
                if wanted(event) {
                    return;
                }
            }
            assert!(monotonic_now() < end, "{what}: did not happen in time");
            let soon = monotonic_now().after(Nanos::from_millis(5));
            self.initiator.run_until(soon, |_, _| false);
        }
    }

    fn poll_event(&mut self) -> Option<PathEvent> {
        let event = self.initiator.poll_event(self.path)?;
        if matches!(
            event,
            PathEvent::Disconnected { .. } | PathEvent::Stopped { .. }
        ) {
            self.losses += 1;
        }
        Some(event)
    }

    /// How often the association was lost or ended.
    pub(crate) fn losses(&mut self) -> usize {
        while self.poll_event().is_some() {}
        self.losses
    }

    /// Ends the association orderly.
    pub(crate) fn disconnect(&mut self) {
        self.initiator
            .disconnect(self.path, deadline())
            .expect("an orderly end");
    }

    /// Submits all of a burst at once and waits for all of it. Allocates nothing.
    pub(crate) fn burst(&mut self, burst: &mut Burst) {
        let depth = burst.buffers.len();
        let mut lba = 0;
        while let Some(data) = burst.buffers.pop() {
            let command = self.command(burst.op, burst.nsid, lba, burst.blocks, data);
            assert!(
                self.initiator.submit(self.path, command).is_ok(),
                "the queue is full"
            );
            lba += u64::from(burst.blocks);
        }
        let (path, end) = (self.path, deadline());
        let whole = self.initiator.run_until(end, |service, _| {
            while let Some(done) = service.path_mut(path).poll() {
                assert_eq!(done.status, Status::SUCCESS);
                burst.buffers.push(done.data);
            }
            burst.buffers.len() == depth
        });
        assert!(whole, "commands hang");
    }

    /// A burst of `depth` commands of `bytes` bytes each.
    pub(crate) fn prepare(&self, op: HostOp, depth: usize, bytes: usize) -> Burst {
        let nsid = NamespaceId(1);
        let buffers = (0..depth)
            .map(|_| self.buffer(bytes).expect("free buffers"))
            .collect();
        Burst {
            op,
            nsid,
            blocks: self.blocks(nsid, bytes),
            buffers,
        }
    }

    fn buffer(&self, len: usize) -> Option<Segments> {
        let mut buffer = self.initiator.pool().alloc(len)?;
        buffer.truncate(len);
        Some(Segments::from(buffer))
    }

    fn blocks(&self, nsid: NamespaceId, len: usize) -> u32 {
        let found = self.initiator.namespace(self.path, nsid);
        let block_bytes = found.map_or(BLOCK, |namespace| namespace.block_bytes);
        u32::try_from(len).expect("small data") / block_bytes
    }

    fn command(
        &mut self,
        op: HostOp,
        nsid: NamespaceId,
        lba: u64,
        blocks: u32,
        data: Segments,
    ) -> HostCommand {
        self.next_token += 1;
        HostCommand {
            op,
            nsid,
            lba,
            blocks,
            data,
            token: self.next_token,
        }
    }
}

fn plain(done: bowline_tcp::host::HostCompletion) -> Done {
    Done {
        token: done.token,
        status: verdict(done.status),
        result: done.result,
        path_lost: done.path_lost,
        data: done
            .data
            .iter()
            .flat_map(|segment| segment.iter().copied())
            .collect(),
    }
}

/// Commands that are submitted together, again and again, with the same buffers.
pub(crate) struct Burst {
    op: HostOp,
    nsid: NamespaceId,
    blocks: u32,
    buffers: Vec<Segments>,
}

/// A well-behaved host that writes, reads and verifies all the time, and counts.
pub(crate) struct Bystander {
    stop: Arc<AtomicBool>,
    verified: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// Where bystanders write: apart from what tests look at.
const BYSTANDER_LBA: u64 = 65_536;

impl Bystander {
    /// Starts and waits until it is connected.
    pub(crate) fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let verified = Arc::new(AtomicU64::new(0));
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn({
            let (stop, verified) = (Arc::clone(&stop), Arc::clone(&verified));
            move || {
                let mut disk = Disk::connect(address, IoBackend::Auto);
                tell.send(()).expect("the test waits");
                let mut seed = 0;
                while !stop.load(Ordering::SeqCst) {
                    seed += 1;
                    // In the capsule and after an R2T.
                    let len = if seed % 2 == 0 { 4096 } else { 32 << 10 };
                    let data = pattern(seed, len);
                    disk.write(NamespaceId(1), BYSTANDER_LBA, &data);
                    let read = disk.read(NamespaceId(1), BYSTANDER_LBA, len);
                    assert!(read == data, "the bystander's data differs");
                    verified.fetch_add(1, Ordering::SeqCst);
                }
                assert_eq!(disk.losses(), 0, "the bystander lost its connection");
                disk.disconnect();
            }
        });
        told.recv().expect("the bystander connects");
        Self {
            stop,
            verified,
            thread,
        }
    }

    /// Waits until it has verified something that was begun after this call.
    pub(crate) fn await_progress(&self, what: &str) {
        let before = self.verified.load(Ordering::SeqCst);
        until(what, || {
            assert!(
                !self.thread.is_finished(),
                "{what}: the bystander has failed"
            );
            (self.verified.load(Ordering::SeqCst) >= before + 2).then_some(())
        });
    }

    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .expect("the bystander was never disturbed");
    }
}
