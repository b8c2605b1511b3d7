//! The reactor as services see it: sockets, buffers, the drive.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use bowline_block::{BufPool, PoolMemory};
use bowline_nvme::Nanos;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, SockRef, Type};

use crate::clock::monotonic_now;
use crate::config::{Backend, BackendInfo, Config, IoBackend, PollMode};
use crate::counters::{Counters, SharedCounters};
use crate::disk::DiskQueue;
use crate::driver::{Driver, Event, READ_INTEREST, WRITE_INTEREST};
use crate::epoll::Epoll;
use crate::gather::{Gather, GatherPool};
use crate::idle::IdlePolicy;
use crate::mailbox::Waker;
use crate::slab::{Key, Kind, Slab, Token};
use crate::socket::{DetachError, Listener, ListenerId, Output, Recv, Socket, SocketId};
use crate::staging::Staging;
use crate::uring::{Refusal, Uring};
use crate::wake_cost::{WAKE_COST_USUAL, wake_cost};

/// Events taken per turn without growing the list.
const EVENTS_CAPACITY: usize = 4096;

/// One thread's event loop. Made by [`spawn`](crate::spawn) or
/// [`LocalReactor`](crate::LocalReactor), lent to the service in every call.
pub struct Reactor {
    // Dropped first: it waits for what the kernel holds.
    pub(crate) driver: Driver,
    pub(crate) sockets: Slab<Socket>,
    pub(crate) listeners: Slab<Listener>,
    pub(crate) events: Vec<Event>,
    /// Sockets to be shown to the service, in order of arrival.
    pub(crate) ready: VecDeque<SocketId>,
    pub(crate) ready_listeners: VecDeque<ListenerId>,
    /// Sockets with a queued gather.
    pub(crate) outbox: VecDeque<SocketId>,
    /// Sockets with a finished gather.
    pub(crate) finished: VecDeque<SocketId>,
    pub(crate) connected: VecDeque<(SocketId, io::Result<()>)>,
    /// Descriptors that requests which the kernel refused for now still name.
    pub(crate) graveyard: Vec<TcpStream>,
    pub(crate) disk: DiskQueue,
    pub(crate) waker: Waker,
    pub(crate) idle: IdlePolicy,
    pub(crate) now: Nanos,
    /// When the reactor last ran out of work; `None` while it has some.
    pub(crate) idle_since: Option<Nanos>,
    /// It slept right before this turn.
    pub(crate) slept: bool,
    /// Something arrived in this turn.
    pub(crate) burst: bool,
    /// The only socket that received anything in the last burst, if it was only one.
    pub(crate) hot_socket: Option<SocketId>,
    pub(crate) received_from: Option<SocketId>,
    pub(crate) received_from_many: bool,
    /// The hot socket was tried before entering the kernel; do not try again first.
    pub(crate) guessed: bool,
    pub(crate) published_at: Nanos,
    pub(crate) counters: Counters,
    /// From then on the log hears of a pause in accepting again.
    pub(crate) pause_told_again_at: Nanos,
    pub(crate) shared: Arc<SharedCounters>,
    gathers: GatherPool,
    pool: BufPool,
    memory: PoolMemory,
    staging: Option<Staging>,
    info: BackendInfo,
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // Completions that were collected after the last turn: without them the driver would wait
        // for requests that the kernel has already given back.
        if let Driver::Uring(ring) = &mut self.driver {
            ring.take_back(&mut self.events);
        }
    }
}

impl Reactor {
    /// For the calling thread, which alone may use it.
    pub(crate) fn new(config: &Config) -> io::Result<Self> {
        let waker = Waker::new()?;
        let mut counters = Counters::default();
        let (driver, disk, info) = open_driver(config.io, &waker, &mut counters)?;
        let wake_cost = match config.poll {
            PollMode::Adaptive => wake_cost(),
            // Does not matter.
            PollMode::Always | PollMode::Never => WAKE_COST_USUAL,
        };
        let now = monotonic_now();
        Ok(Self {
            driver,
            sockets: Slab::new(),
            listeners: Slab::new(),
            events: Vec::with_capacity(EVENTS_CAPACITY),
            ready: VecDeque::new(),
            ready_listeners: VecDeque::new(),
            outbox: VecDeque::new(),
            finished: VecDeque::new(),
            connected: VecDeque::new(),
            graveyard: Vec::new(),
            disk,
            waker,
            idle: IdlePolicy::new(config.poll, wake_cost),
            now,
            idle_since: None,
            slept: false,
            burst: false,
            hot_socket: None,
            received_from: None,
            received_from_many: false,
            guessed: false,
            published_at: now,
            counters,
            pause_told_again_at: Nanos::ZERO,
            shared: Arc::default(),
            gathers: GatherPool::default(),
            pool: config.memory.pool(config.pool.clone())?,
            memory: config.memory.clone(),
            staging: None,
            info,
        })
    }

    /// Accepts connections; each is shown to [`Service::accepted`](crate::Service::accepted).
    ///
    /// # Errors
    /// The listener cannot be made non-blocking or watched.
    pub fn listen(&mut self, listener: TcpListener) -> io::Result<ListenerId> {
        listener.set_nonblocking(true)?;
        self.counters.socket_calls += 1;
        let fd = listener.as_raw_fd();
        let key = self.listeners.insert(Listener {
            listener,
            ready: false,
            paused_until: None,
        });
        let token = Token::new(Kind::Accept, key);
        match &mut self.driver {
            Driver::Uring(ring) => ring.watch(fd, token, READ_INTEREST, true),
            Driver::Epoll(epoll) => {
                let watched = self.listeners.get(key).map_or(Ok(()), |entry| {
                    epoll.watch(&entry.listener, token, READ_INTEREST, &mut self.counters)
                });
                if let Err(error) = watched {
                    self.listeners.remove(key);
                    return Err(error);
                }
            }
        }
        Ok(ListenerId(key))
    }

    /// Stops accepting and gives the listener back; connections in its backlog stay there.
    pub fn unlisten(&mut self, id: ListenerId) -> Option<TcpListener> {
        let Listener { listener, .. } = self.listeners.remove(id.0)?;
        match &mut self.driver {
            Driver::Uring(ring) => ring.unwatch(Token::new(Kind::Accept, id.0)),
            Driver::Epoll(epoll) => epoll.unwatch(&listener, &mut self.counters),
        }
        Some(listener)
    }

    /// Takes a connected stream: non-blocking, without Nagle's delay. Data that waits already will
    /// be reported.
    ///
    /// # Errors
    /// The socket cannot be configured or watched; it is closed then.
    pub fn attach(&mut self, stream: TcpStream) -> io::Result<SocketId> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        self.counters.socket_calls += 2;
        self.counters.attaches += 1;
        self.insert(stream, false)
    }

    /// Starts connecting; [`Service::connected`](crate::Service::connected) tells the outcome.
    ///
    /// # Errors
    /// No socket can be made, or the address is refused at once.
    pub fn connect(&mut self, address: SocketAddr) -> io::Result<SocketId> {
        let socket = socket2::Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        socket.set_tcp_nodelay(true)?;
        self.counters.socket_calls += 3;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        self.insert(TcpStream::from(socket), true)
    }

    fn insert(&mut self, stream: TcpStream, connecting: bool) -> io::Result<SocketId> {
        let fd = stream.as_raw_fd();
        let key = self.sockets.insert(Socket::new(stream, connecting));
        let token = Token::new(Kind::Socket, key);
        match &mut self.driver {
            // Connecting ends once; reading goes on.
            Driver::Uring(ring) if connecting => ring.watch(fd, token, WRITE_INTEREST, false),
            Driver::Uring(ring) => ring.watch(fd, token, READ_INTEREST, true),
            Driver::Epoll(epoll) => {
                let interest = if connecting {
                    WRITE_INTEREST
                } else {
                    READ_INTEREST
                };
                let watched = self.sockets.get(key).map_or(Ok(()), |entry| {
                    epoll.watch(&entry.stream, token, interest, &mut self.counters)
                });
                if let Err(error) = watched {
                    self.sockets.remove(key);
                    return Err(error);
                }
            }
        }
        Ok(SocketId(key))
    }

    /// Lets a socket go, to be attached to another reactor. Nothing that arrives meanwhile is
    /// lost: it waits in the socket.
    ///
    /// # Errors
    /// See [`DetachError`]; the socket stays.
    pub fn detach(&mut self, id: SocketId) -> Result<TcpStream, DetachError> {
        match self.sockets.get(id.0) {
            None
            | Some(Socket {
                connecting: true, ..
            }) => return Err(DetachError::NotOpen),
            Some(Socket {
                output: Output::None,
                ..
            }) => {}
            Some(_) => return Err(DetachError::StillSending),
        }
        if let Driver::Uring(ring) = &mut self.driver
            && ring.has_unsubmitted()
        {
            return Err(DetachError::Busy);
        }
        let stream = self.remove(id).ok_or(DetachError::NotOpen)?;
        Ok(stream)
    }

    /// Receives into `bufs`, in order, without waiting.
    pub fn recv(&mut self, id: SocketId, bufs: &mut [IoSliceMut<'_>]) -> Recv {
        let Some(socket) = self.sockets.get(id.0) else {
            return Recv::Closed;
        };
        let wanted: usize = bufs.iter().map(|buf| buf.len()).sum();
        if wanted == 0 {
            return Recv::Data {
                bytes: 0,
                drained: false,
            };
        }
        let hangup = socket.hangup;
        loop {
            self.counters.recvs += 1;
            let received = match bufs {
                [buf] => rustix::net::recv(&socket.stream, &mut buf[..], RecvFlags::DONTWAIT)
                    .map(|(_, bytes)| bytes),
                _ => rustix::io::readv(&socket.stream, bufs),
            };
            return match received {
                Ok(0) => Recv::Closed,
                Ok(bytes) => {
                    self.counters.recv_bytes += bytes as u64;
                    self.note_received(id);
                    // Less than asked for empties the socket. If an end or an error follows, it
                    // was reported already and must be fetched.
                    Recv::Data {
                        bytes,
                        drained: bytes < wanted && !hangup,
                    }
                }
                Err(Errno::AGAIN) => {
                    self.counters.recvs_empty += 1;
                    Recv::WouldBlock
                }
                Err(Errno::INTR) => continue,
                Err(error) => Recv::Error(error.into()),
            };
        }
    }

    fn note_received(&mut self, id: SocketId) {
        self.burst = true;
        match self.received_from {
            Some(other) if other != id => self.received_from_many = true,
            _ => self.received_from = Some(id),
        }
    }

    /// Has [`Service::readable`](crate::Service::readable) called for this socket next turn although
    /// nothing new arrives.
    pub fn rearm(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(id.0)
            && !socket.ready
        {
            socket.ready = true;
            self.ready.push_back(id);
        }
    }

    /// An empty gather.
    #[must_use]
    pub fn gather(&mut self) -> Gather {
        self.gathers.take()
    }

    /// Whether [`Reactor::trim_gathers`] has something to give back, now or soon.
    #[must_use]
    pub fn has_spare_gathers(&self) -> bool {
        self.gathers.has_spare()
    }

    /// Gives the memory of gathers back that were not in use at once since the last call. Returns
    /// whether nothing more can be given back: call it now and then until it is.
    pub fn trim_gathers(&mut self) -> bool {
        self.gathers.trim()
    }

    /// Sends a gather; it leaves at the end of the turn, or [before](Self::send_early), and
    /// [`Service::sent`](crate::Service::sent) gives it back. Dropped if the socket is not open.
    ///
    /// # Panics
    /// When one is on its way already: sends have no order among each other.
    pub fn send(&mut self, id: SocketId, mut gather: Gather) {
        let Some(socket) = self.sockets.get_mut(id.0) else {
            return;
        };
        assert!(
            matches!(socket.output, Output::None),
            "one gather at a time on a socket"
        );
        gather.prepare();
        if gather.unsent() == 0 {
            socket.output = Output::Finished(gather, Ok(()));
            self.finished.push_back(id);
        } else {
            socket.output = Output::Queued(gather);
            self.outbox.push_back(id);
        }
    }

    /// Whether a gather is on its way, up to the moment before `sent` is called.
    #[must_use]
    pub fn is_sending(&self, id: SocketId) -> bool {
        self.sockets
            .get(id.0)
            .is_some_and(|socket| !matches!(socket.output, Output::None))
    }

    /// Whether the socket is open here.
    #[must_use]
    pub fn is_open(&self, id: SocketId) -> bool {
        self.sockets.get(id.0).is_some()
    }

    /// Closes with FIN. A gather on its way is cut off; wait for `sent` before, to avoid that.
    pub fn close(&mut self, id: SocketId) {
        if let Some(stream) = self.remove(id) {
            self.bury(stream);
        }
    }

    /// Closes with RST: the peer learns that the connection failed.
    pub fn abort(&mut self, id: SocketId) {
        let Some(stream) = self.remove(id) else {
            return;
        };
        self.counters.socket_calls += 2;
        // Both only bring the reset forward; closing follows in any case.
        let _ = SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
        let _ = rustix::net::connect_unspec(&stream);
        self.bury(stream);
    }

    /// Forgets a socket: events for it find nothing, `sent` will not be called.
    fn remove(&mut self, id: SocketId) -> Option<TcpStream> {
        let Socket { stream, output, .. } = self.sockets.remove(id.0)?;
        match &mut self.driver {
            Driver::Uring(ring) => {
                ring.unwatch(Token::new(Kind::Socket, id.0));
                if let Output::Ring(send) = output
                    && !ring.cancel_send(send)
                {
                    // The kernel holds the gather; it gives it back as soon as sending fails.
                    self.counters.socket_calls += 1;
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
            Driver::Epoll(epoll) => epoll.unwatch(&stream, &mut self.counters),
        }
        Some(stream)
    }

    /// Closes a descriptor as soon as no waiting submission names it.
    fn bury(&mut self, stream: TcpStream) {
        self.counters.closes += 1;
        self.counters.socket_calls += 1;
        if let Driver::Uring(ring) = &mut self.driver
            && ring.has_unsubmitted()
        {
            self.graveyard.push(stream);
        }
    }

    /// The socket's own address.
    ///
    /// # Errors
    /// The socket is not open or not connected.
    pub fn local_addr(&self, id: SocketId) -> io::Result<SocketAddr> {
        self.stream(id)?.local_addr()
    }

    /// The peer's address.
    ///
    /// # Errors
    /// The socket is not open or not connected.
    pub fn peer_addr(&self, id: SocketId) -> io::Result<SocketAddr> {
        self.stream(id)?.peer_addr()
    }

    /// The address that a listener is bound to.
    ///
    /// # Errors
    /// There is no such listener.
    pub fn listener_addr(&self, id: ListenerId) -> io::Result<SocketAddr> {
        let listener = self
            .listeners
            .get(id.0)
            .ok_or(io::ErrorKind::NotConnected)?;
        listener.listener.local_addr()
    }

    fn stream(&self, id: SocketId) -> io::Result<&TcpStream> {
        let socket = self.sockets.get(id.0).ok_or(io::ErrorKind::NotConnected)?;
        Ok(&socket.stream)
    }

    /// A handle to the drive queue.
    #[must_use]
    pub fn disk(&self) -> DiskQueue {
        self.disk.clone()
    }

    /// A handle with which another thread wakes this reactor.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The reactor's buffers.
    #[must_use]
    pub const fn pool(&self) -> &BufPool {
        &self.pool
    }

    /// Where its buffers' memory comes from, for further pools of buffers that go to devices.
    #[must_use]
    pub const fn memory(&self) -> &PoolMemory {
        &self.memory
    }

    /// The time of this turn.
    #[must_use]
    pub const fn now(&self) -> Nanos {
        self.now
    }

    /// Totals so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The totals as other threads may read them.
    #[must_use]
    pub fn shared_counters(&self) -> Arc<SharedCounters> {
        Arc::clone(&self.shared)
    }

    /// Sockets open on this reactor.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Takes the receive staging area; give it back with [`Reactor::put_staging`]. Taken twice, it
    /// is made anew.
    #[must_use]
    pub fn take_staging(&mut self) -> Staging {
        self.staging.take().unwrap_or_else(Staging::new)
    }

    /// Gives the staging area back.
    pub fn put_staging(&mut self, staging: Staging) {
        self.staging = Some(staging);
    }

    /// The engine that was chosen, and why.
    #[must_use]
    pub const fn backend(&self) -> &BackendInfo {
        &self.info
    }

    /// Watches a socket again after its poll ended.
    pub(crate) fn rewatch(&mut self, key: Key) {
        let Some(socket) = self.sockets.get(key) else {
            return;
        };
        let token = Token::new(Kind::Socket, key);
        if let Driver::Uring(ring) = &mut self.driver {
            ring.watch(socket.stream.as_raw_fd(), token, READ_INTEREST, true);
        }
    }
}

fn open_driver(
    io: IoBackend,
    waker: &Waker,
    counters: &mut Counters,
) -> io::Result<(Driver, DiskQueue, BackendInfo)> {
    let mut fallback = None;
    if io != IoBackend::Epoll {
        let disk = DiskQueue::new(Backend::Uring, waker.clone());
        match Uring::open(disk.clone()) {
            Ok(mut ring) => {
                ring.watch(
                    waker.eventfd().as_raw_fd(),
                    Token::WAKE,
                    READ_INTEREST,
                    true,
                );
                let features = ring.features();
                let info = BackendInfo {
                    backend: Backend::Uring,
                    features,
                    fallback,
                };
                return Ok((Driver::Uring(Box::new(ring)), disk, info));
            }
            Err(refusal) if io == IoBackend::Uring => return Err(refused(&refusal)),
            Err(refusal) => fallback = Some(refused(&refusal).to_string()),
        }
    }
    let epoll = Epoll::open()?;
    epoll.watch(waker.eventfd(), Token::WAKE, READ_INTEREST, counters)?;
    let disk = DiskQueue::new(Backend::Epoll, waker.clone());
    let info = BackendInfo {
        backend: Backend::Epoll,
        features: Vec::new(),
        fallback,
    };
    Ok((Driver::Epoll(epoll), disk, info))
}

/// Says what stands in the way of `io_uring`, and what would help.
fn refused(refusal: &Refusal) -> io::Error {
    let Refusal { call, error } = refusal;
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ": forbidden by a seccomp profile or by kernel.io_uring_disabled"
        }
        Some(libc::ENOSYS) => ": the kernel or a seccomp profile does not offer it",
        Some(libc::ENOMEM) => ": too little lockable memory, raise RLIMIT_MEMLOCK",
        _ => "",
    };
    io::Error::new(error.kind(), format!("{call}: {error}{hint}"))
}
