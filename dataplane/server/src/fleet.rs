//! The reactors: how they are started, asked, and watched.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bowline_api::{Failure, Reason};
use bowline_block::PoolMemory;
use bowline_nvme::Nanos;
use bowline_nvmf::target::TargetConfig;
use bowline_reactor::{
    BackendInfo, Config as ReactorConfig, Gather, Handle, ListenerId, Mailbox, Reactor,
    SharedCounters, SocketId,
};
use bowline_tcp::target::{TargetMessage, TargetService};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

use crate::backing::Backing;
use crate::config::Config;
use crate::error::StartError;
use crate::state::Keeper;

/// How long a full mailbox is given to make room, and how often it is asked.
const SEND_PATIENCE: Duration = Duration::from_secs(10);
const SEND_INTERVAL: Duration = Duration::from_millis(2);

/// What runs on every reactor.
pub(crate) type Service = TargetService<Backing>;

/// One reactor, seen from the management thread.
pub(crate) struct Member {
    pub(crate) mailbox: Mailbox<TargetMessage<Backing>>,
    pub(crate) counters: Arc<SharedCounters>,
    pub(crate) info: BackendInfo,
    /// CPU it is pinned to.
    pub(crate) cpu: Option<usize>,
    /// Taken by whoever joins the thread, at its end.
    handle: Arc<Mutex<Option<Handle<TargetMessage<Backing>>>>>,
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
            let service = move |cx: &mut Reactor, mailbox: Mailbox<TargetMessage<Backing>>| {
                let service = Service::new(target)
                    .with_memory(cx.memory())
                    .with_flush_failures(not_flushed);
                match keeper {
                    Some(keeper) => {
                        service.with_reservation_store(Box::new(keeper.for_reactor(mailbox)))
                    }
                    None => service,
                }
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

    /// Runs a closure on a reactor and waits for what it returns.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut Service, &mut Reactor, Nanos) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let (answer, answered) = oneshot::channel();
        let message = TargetMessage::Call(Box::new(move |service: &mut Service, cx, now| {
            // Nobody waits any more when the caller hung up; the work is done all the same.
            let _unheard = answer.send(job(service, cx, now));
        }));
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
    fn start(
        settings: ReactorConfig,
        service: impl FnOnce(&mut Reactor, Mailbox<TargetMessage<Backing>>) -> Service + Send + 'static,
        index: usize,
        ended: Sender<Ended>,
    ) -> io::Result<Self> {
        let cpu = settings.core;
        let (alive, end) = mpsc::channel();
        let make = move |cx: &mut Reactor, mailbox| {
            Ok(Served {
                service: service(cx, mailbox),
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

    fn handle(&self) -> MutexGuard<'_, Option<Handle<TargetMessage<Backing>>>> {
        lock(&self.handle)
    }
}

/// Nothing is done under these locks that could leave half of something.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The service, and the sign of its life.
struct Served {
    service: Service,
    _alive: mpsc::Sender<Infallible>,
}

impl bowline_reactor::Service for Served {
    type Message = TargetMessage<Backing>;

    fn message(&mut self, cx: &mut Reactor, now: Nanos, message: Self::Message) {
        self.service.message(cx, now, message);
    }

    fn accepted(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        listener: ListenerId,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        self.service.accepted(cx, now, listener, stream, peer);
    }

    fn connected(&mut self, cx: &mut Reactor, now: Nanos, id: SocketId, result: io::Result<()>) {
        self.service.connected(cx, now, id, result);
    }

    fn readable(&mut self, cx: &mut Reactor, now: Nanos, socket: SocketId) {
        self.service.readable(cx, now, socket);
    }

    fn sent(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        gather: Gather,
        result: io::Result<()>,
    ) {
        self.service.sent(cx, now, socket, gather, result);
    }

    fn turn(&mut self, cx: &mut Reactor, now: Nanos) {
        self.service.turn(cx, now);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.service.poll_timeout()
    }

    fn expects_completion(&self) -> bool {
        self.service.expects_completion()
    }

    fn stopping(&mut self, cx: &mut Reactor, now: Nanos) {
        self.service.stopping(cx, now);
    }

    fn is_stopped(&self) -> bool {
        self.service.is_stopped()
    }
}

fn lost(index: usize) -> Failure {
    Failure::new(Reason::Stopping, format!("reactor {index} does not answer"))
        .cause("it has ended, or the data plane is stopping")
        .hint("see the log of the data plane")
}
