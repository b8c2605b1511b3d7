//! The reactors: how they are started, asked, and watched.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bowline_api::{Failure, Reason};
use bowline_block::PoolMemory;
use bowline_nvme::Nanos;
use bowline_nvmf::target::TargetConfig;
use bowline_reactor::{
    BackendInfo, Config as ReactorConfig, Gather, Handle, ListenerId, Mailbox, Reactor,
    Service as _, SharedCounters, SocketId,
};
use bowline_tcp::target::{Route, TargetMessage, TargetService};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

use crate::backing::Backing;
use crate::config::Config;
use crate::drive::Drive;
use crate::error::StartError;
use crate::pool::{PoolSeat, Stores};
use crate::state::Keeper;

/// How long a full mailbox is given to make room, and how often it is asked.
const SEND_PATIENCE: Duration = Duration::from_secs(10);
const SEND_INTERVAL: Duration = Duration::from_millis(2);

/// What serves hosts on every reactor.
pub(crate) type Service = TargetService<Backing>;

/// What the management thread and other reactors send to a reactor.
pub(crate) enum Message {
    /// Of another reactor's target.
    Target(TargetMessage<Backing>),
    /// Of management.
    Work(Work),
}

/// Something to be done on a reactor.
type Work = Box<dyn FnOnce(&mut Served, &mut Reactor, Nanos) + Send>;

impl Message {
    pub(crate) fn work(
        work: impl FnOnce(&mut Served, &mut Reactor, Nanos) + Send + 'static,
    ) -> Self {
        Self::Work(Box::new(work))
    }
}

/// One reactor, seen from the management thread.
pub(crate) struct Member {
    pub(crate) mailbox: Mailbox<Message>,
    pub(crate) counters: Arc<SharedCounters>,
    pub(crate) info: BackendInfo,
    /// CPU it is pinned to.
    pub(crate) cpu: Option<usize>,
    /// Taken by whoever joins the thread, at its end.
    handle: Arc<Mutex<Option<Handle<Message>>>>,
}

/// Every reactor of the process, in the order of `--cores`.
pub(crate) struct Fleet {
    pub(crate) members: Vec<Member>,
    /// Devices whose flush at the end failed; final once every reactor has ended.
    pub(crate) not_flushed: Arc<AtomicUsize>,
}

/// A reactor ended: its position, and whether its thread came to a regular end.
pub(crate) struct Ended {
    pub(crate) index: usize,
    pub(crate) regular: bool,
}

impl Fleet {
    /// Starts one reactor for each CPU, or a single one that is not pinned. The end of
    /// each is told to `ended`.
    pub(crate) fn start(
        config: &Config,
        target: &TargetConfig,
        keeper: Option<&Keeper>,
        memory: &PoolMemory,
        ended: &Sender<Ended>,
    ) -> Result<Self, StartError> {
        let cpus: Vec<Option<usize>> = match config.cores.as_slice() {
            [] => vec![None],
            cores => cores.iter().copied().map(Some).collect(),
        };
        let not_flushed = Arc::new(AtomicUsize::new(0));
        let mut members = Vec::with_capacity(cpus.len());
        for (index, cpu) in cpus.into_iter().enumerate() {
            let (target, not_flushed) = (target.clone(), Arc::clone(&not_flushed));
            let keeper = keeper.cloned();
            let service = move |cx: &mut Reactor, mailbox: Mailbox<Message>| {
                let stores = Stores::new(keeper.map(|keeper| keeper.for_reactor(mailbox)));
                let service = Service::new(target)
                    .with_memory(cx.memory())
                    .with_flush_failures(Arc::clone(&not_flushed))
                    .with_reservation_store(Box::new(stores.clone()));
                Served::new(service, stores, not_flushed)
            };
            let settings = ReactorConfig {
                io: config.io,
                poll: config.poll,
                core: cpu,
                name: format!("reactor-{index}"),
                memory: memory.clone(),
                ..ReactorConfig::default()
            };
            let member = Member::start(settings, service, index, ended.clone())
                .map_err(|source| StartError::Reactor { index, source })?;
            members.push(member);
        }
        Ok(Self {
            members,
            not_flushed,
        })
    }

    /// Lets every reactor drain, flush and end. Reaches also those whose mailbox is full.
    pub(crate) fn stop(&self) {
        for member in &self.members {
            if let Some(handle) = &*member.handle() {
                handle.stop();
            }
        }
    }

    /// Runs a closure on a reactor's target and waits for what it returns.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut Service, &mut Reactor, Nanos) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        self.work(index, |served, cx, now| job(&mut served.service, cx, now))
            .await
    }

    /// Runs a closure on all that a reactor has, and waits for what it returns.
    pub(crate) async fn work<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut Served, &mut Reactor, Nanos) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let (answer, answered) = oneshot::channel();
        let message = Message::work(move |served, cx, now| {
            // Nobody waits any more when the caller hung up; the work is done all the same.
            let _unheard = answer.send(job(served, cx, now));
        });
        let member = self.members.get(index).ok_or_else(|| lost(index))?;
        send(&member.mailbox, message).await.map_err(|_| {
            Failure::new(
                Reason::LimitReached,
                format!("reactor {index} took no request"),
            )
            .cause("its mailbox is full, or it has ended")
            .hint("try again in a moment; if that does not help, see the log")
        })?;
        answered.await.map_err(|_| lost(index))
    }
}

/// Sends, and waits a while for room: a change that was begun on one reactor must reach the
/// others. A reactor makes room within microseconds, unless something is badly wrong.
async fn send<M: Send + 'static>(mailbox: &Mailbox<M>, mut message: M) -> Result<(), M> {
    let started = Instant::now();
    loop {
        match mailbox.try_send(message) {
            Ok(()) => return Ok(()),
            Err(refused) if started.elapsed() >= SEND_PATIENCE => return Err(refused),
            Err(refused) => message = refused,
        }
        tokio::time::sleep(SEND_INTERVAL).await;
    }
}

impl Member {
    /// The way in for the targets of other reactors.
    pub(crate) fn route(&self) -> Route<Backing> {
        let mailbox = self.mailbox.clone();
        Route::new(move |message| {
            let sent = mailbox.try_send(Message::Target(message));
            sent.or_else(|message| match message {
                Message::Target(message) => Err(message),
                Message::Work(_) => Ok(()),
            })
        })
    }

    fn start(
        settings: ReactorConfig,
        service: impl FnOnce(&mut Reactor, Mailbox<Message>) -> Served + Send + 'static,
        index: usize,
        ended: Sender<Ended>,
    ) -> io::Result<Self> {
        let cpu = settings.core;
        let (alive, end) = mpsc::channel();
        let make = move |cx: &mut Reactor, mailbox| {
            Ok(Alive {
                served: service(cx, mailbox),
                _alive: alive,
            })
        };
        let handle = bowline_reactor::spawn(settings, make)?;
        let member = Self {
            mailbox: handle.mailbox.clone(),
            counters: Arc::clone(&handle.counters),
            info: handle.info.clone(),
            cpu,
            handle: Arc::new(Mutex::new(Some(handle))),
        };
        let handle = Arc::clone(&member.handle);
        std::thread::Builder::new()
            .name(format!("join-{index}"))
            .spawn(move || {
                // Nothing is ever sent: the service drops its end when the reactor ends.
                let _at_the_end = end.recv();
                let handle = lock(&handle).take();
                let regular = handle.is_some_and(|handle| handle.join().is_ok());
                // The management thread may be gone already when everything ends.
                let _unheard = ended.blocking_send(Ended { index, regular });
            })?;
        Ok(member)
    }

    fn handle(&self) -> MutexGuard<'_, Option<Handle<Message>>> {
        lock(&self.handle)
    }
}

/// Nothing is done under these locks that could leave half of something.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that a reactor has.
pub(crate) struct Served {
    pub(crate) service: Service,
    /// If it is the one that owns the pool.
    pub(crate) pool: Option<PoolSeat>,
    pub(crate) stores: Stores,
    /// A whole drive that was looked at, until its namespace comes.
    pub(crate) drive: Option<Drive>,
    not_flushed: Arc<AtomicUsize>,
}

impl Served {
    fn new(service: Service, stores: Stores, not_flushed: Arc<AtomicUsize>) -> Self {
        Self {
            service,
            pool: None,
            stores,
            drive: None,
            not_flushed,
        }
    }

    fn turn(&mut self, cx: &mut Reactor, now: Nanos) {
        if let Some(pool) = &mut self.pool {
            pool.turn(&mut self.service, &self.stores, now);
        }
        self.service.turn(cx, now);
        if self.service.is_stopped()
            && let Some(pool) = self.pool.take()
            && !pool.close(cx)
        {
            self.not_flushed.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        let pool = self.pool.as_ref();
        let pool = pool.and_then(|pool| pool.poll_timeout(&self.stores));
        let service = self.service.poll_timeout();
        match (pool, service) {
            (Some(pool), Some(service)) => Some(pool.min(service)),
            (one, other) => one.or(other),
        }
    }

    fn is_stopped(&self) -> bool {
        self.service.is_stopped() && self.pool.is_none()
    }
}

/// What a reactor serves, and the sign of its life.
struct Alive {
    served: Served,
    _alive: mpsc::Sender<Infallible>,
}

impl bowline_reactor::Service for Alive {
    type Message = Message;

    fn message(&mut self, cx: &mut Reactor, now: Nanos, message: Message) {
        match message {
            Message::Target(message) => self.served.service.message(cx, now, message),
            Message::Work(work) => work(&mut self.served, cx, now),
        }
    }

    fn accepted(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        listener: ListenerId,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        let service = &mut self.served.service;
        service.accepted(cx, now, listener, stream, peer);
    }

    fn connected(&mut self, cx: &mut Reactor, now: Nanos, id: SocketId, result: io::Result<()>) {
        self.served.service.connected(cx, now, id, result);
    }

    fn readable(&mut self, cx: &mut Reactor, now: Nanos, socket: SocketId) {
        self.served.service.readable(cx, now, socket);
    }

    fn sent(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        gather: Gather,
        result: io::Result<()>,
    ) {
        self.served.service.sent(cx, now, socket, gather, result);
    }

    fn turn(&mut self, cx: &mut Reactor, now: Nanos) {
        self.served.turn(cx, now);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.served.poll_timeout()
    }

    fn expects_completion(&self) -> bool {
        self.served.service.expects_completion()
    }

    fn stopping(&mut self, cx: &mut Reactor, now: Nanos) {
        self.served.service.stopping(cx, now);
    }

    fn is_stopped(&self) -> bool {
        self.served.is_stopped()
    }
}

fn lost(index: usize) -> Failure {
    Failure::new(Reason::Stopping, format!("reactor {index} does not answer"))
        .cause("it has ended, or the data plane is stopping")
        .hint("see the log of the data plane")
}
