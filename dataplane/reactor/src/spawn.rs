//! A reactor on a thread of its own, or on the caller's.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::{fmt, io};

use bowline_nvme::Nanos;
use crossbeam_channel::Receiver;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::clock::monotonic_now;
use crate::config::{BackendInfo, Config};
use crate::counters::SharedCounters;
use crate::mailbox::{Mailbox, Waker};
use crate::reactor::Reactor;
use crate::service::{Progress, Service};

/// A reactor and its service on the thread that made it.
pub struct LocalReactor<S: Service> {
    // Dropped before the reactor, whose buffers and sockets it may name.
    service: S,
    inbox: Receiver<S::Message>,
    mailbox: Mailbox<S::Message>,
    reactor: Reactor,
    more: bool,
}

impl<S: Service> LocalReactor<S> {
    /// Makes the reactor, then the service on it. `Config::core` is not applied: the thread is the
    /// caller's.
    ///
    /// # Errors
    /// The engine or the buffers cannot be made, or `make` failed.
    pub fn new(
        config: &Config,
        make: impl FnOnce(&mut Reactor, Mailbox<S::Message>) -> io::Result<S>,
    ) -> io::Result<Self> {
        let mut reactor = Reactor::new(config)?;
        let (mailbox, inbox) = Mailbox::new(config.mailbox_depth, reactor.waker());
        let service = make(&mut reactor, mailbox.clone())?;
        Ok(Self {
            service,
            inbox,
            mailbox,
            reactor,
            more: false,
        })
    }

    /// Takes one turn without ever blocking: for callers with a loop of their own.
    pub fn turn(&mut self, now: Nanos) -> Progress {
        self.reactor.collect();
        self.more = self.reactor.step(&mut self.service, &self.inbox, now);
        self.reactor.submit();
        self.reactor.publish(now);
        Progress {
            worked: self.reactor.burst,
            more: self.more || self.reactor.has_work(),
            next: self.next_timer(),
        }
    }

    /// Runs, sleeping as the policy says, until the service has stopped (true) or the monotonic
    /// clock reaches `deadline` (false).
    pub fn run_until(&mut self, deadline: Nanos) -> bool {
        self.run_until_that(deadline, |_, _| false);
        self.service.is_stopped()
    }

    /// Runs until `done` holds after a turn (true), the service has stopped, or the monotonic clock
    /// reaches `deadline`.
    pub fn run_until_that(
        &mut self,
        deadline: Nanos,
        mut done: impl FnMut(&mut S, &mut Reactor) -> bool,
    ) -> bool {
        loop {
            let now = monotonic_now();
            self.more = self.reactor.step(&mut self.service, &self.inbox, now);
            let is_done = done(&mut self.service, &mut self.reactor);
            if is_done || self.service.is_stopped() || now >= deadline {
                self.reactor.flush();
                self.reactor.submit();
                self.reactor.publish(now);
                return is_done;
            }
            let timer = self.next_timer().map_or(deadline, |at| at.min(deadline));
            let until = (timer < Nanos::MAX).then_some(timer);
            let expects = self.service.expects_completion();
            self.reactor.settle(until, expects, self.more);
        }
    }

    fn next_timer(&self) -> Option<Nanos> {
        match (self.service.poll_timeout(), self.reactor.accept_deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Asks the service to stop, as [`Handle::stop`] does.
    pub fn stop(&self) {
        self.reactor.waker.request_stop();
    }

    /// The service.
    pub const fn service(&self) -> &S {
        &self.service
    }

    /// The service and its reactor, to be used between turns.
    pub const fn parts(&mut self) -> (&mut S, &mut Reactor) {
        (&mut self.service, &mut self.reactor)
    }

    /// The reactor.
    pub const fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// The way in for other threads.
    pub fn mailbox(&self) -> Mailbox<S::Message> {
        self.mailbox.clone()
    }
}

/// A spawned reactor. Dropping the handle leaves it running.
pub struct Handle<M> {
    /// The way in.
    pub mailbox: Mailbox<M>,
    /// What it counts.
    pub counters: Arc<SharedCounters>,
    /// Its engine.
    pub info: BackendInfo,
    waker: Waker,
    thread: JoinHandle<()>,
}

impl<M> Handle<M> {
    /// Asks the service to stop; [`Handle::join`] waits until it has.
    pub fn stop(&self) {
        self.waker.request_stop();
    }

    /// Whether the thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread's end.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }
}

// Not derived: a message need not be printable.
impl<M> fmt::Debug for Handle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// Starts a thread, pins it if so configured, and runs the service that `make` builds there until
/// it has stopped.
///
/// # Errors
/// The thread, its pinning, the engine or the buffers failed, or `make` did.
pub fn spawn<S: Service>(
    config: Config,
    make: impl FnOnce(&mut Reactor, Mailbox<S::Message>) -> io::Result<S> + Send + 'static,
) -> io::Result<Handle<S::Message>> {
    if config.name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a thread name with a NUL byte",
        ));
    }
    let (ready, started) = crossbeam_channel::bounded(1);
    let thread = thread::Builder::new()
        .name(config.name.clone())
        .spawn(move || {
            let made = pin(&config).and_then(|()| LocalReactor::<S>::new(&config, make));
            let mut local = match made {
                Ok(local) => local,
                Err(error) => {
                    // The receiver waits below.
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let reactor = local.reactor();
            let parts = (
                local.mailbox(),
                reactor.shared_counters(),
                reactor.backend().clone(),
                reactor.waker(),
            );
            if ready.send(Ok(parts)).is_ok() {
                while !local.run_until(Nanos::MAX) {}
            }
        })?;
    let parts = started.recv().unwrap_or_else(|_| {
        Err(io::Error::other(
            "the reactor's thread panicked while it started",
        ))
    });
    let (mailbox, counters, info, waker) = parts?;
    Ok(Handle {
        mailbox,
        counters,
        info,
        waker,
        thread,
    })
}

fn pin(config: &Config) -> io::Result<()> {
    let Some(core) = config.core else {
        return Ok(());
    };
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no core {core}"),
        ));
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot pin a reactor to core {core}: {error}"),
        )
    })
}
