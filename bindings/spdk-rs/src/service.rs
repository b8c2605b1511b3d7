//! The library on an OS thread of its own.

use std::fmt;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::application::Application;
use crate::config::Config;
use crate::error::Error;
use crate::library::{Library, Options};
use crate::rest::Rest;

/// How soon the application thread is polled again: it does no I/O, so nothing of it is more urgent.
const PERIOD_MIN: Duration = Duration::from_millis(1);
/// Calls that wait to be run.
const CALLS_MAX: usize = 16;

type Call = Box<dyn FnOnce(&Application) + Send>;

/// Runs an [`Application`] on an OS thread named `spdk`, which sleeps in between. Dropping it stops
/// the library, which waits for all its threads to end.
pub struct Service {
    library: Library,
    /// None once it was stopped.
    running: Option<Running>,
}

struct Running {
    calls: SyncSender<Call>,
    thread: JoinHandle<Result<(), Error>>,
}

impl Service {
    /// Starts the library; see [`Application::start`].
    ///
    /// # Errors
    /// As there, and when there is no OS thread.
    pub fn start(options: Options, config: Config) -> Result<Self, Error> {
        let (calls, receiver) = mpsc::sync_channel(CALLS_MAX);
        let (started, start) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("spdk".to_owned())
            .spawn(move || {
                match Application::start(&options, &config) {
                    Ok(application) => {
                        // Whoever asked waits for it.
                        let _ = started.send(Ok(application.library()));
                        run(&application, &receiver);
                        application.stop()
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                        Ok(())
                    }
                }
            });
        let thread =
            thread.map_err(|error| Error::new("SPDK was not started", error.to_string()))?;
        match start.recv() {
            Ok(library) => Ok(Self {
                library: library?,
                running: Some(Running { calls, thread }),
            }),
            Err(_) => Err(ended("SPDK was not started")),
        }
    }

    /// What makes threads and DMA memory.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Runs `call` on the library's OS thread, and waits for its result. An OS thread with a
    /// [`Thread`](crate::Thread) that the call may wait for, as it has a device that is removed, must
    /// not wait here.
    ///
    /// # Errors
    /// When that thread has ended, or it is this one.
    pub fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&Application) -> R + Send + 'static,
    ) -> Result<R, Error> {
        const WHAT: &str = "SPDK was not asked";
        let Some(running) = &self.running else {
            return Err(ended(WHAT));
        };
        if running.thread.thread().id() == thread::current().id() {
            return Err(Error::new(WHAT, "this is its own OS thread")
                .help("use the application that the call was given"));
        }
        let (answer, answered) = mpsc::sync_channel(1);
        let call: Call = Box::new(move |application| {
            // Whoever asked waits for it.
            let _ = answer.send(call(application));
        });
        running.calls.send(call).map_err(|_| ended(WHAT))?;
        running.thread.thread().unpark();
        answered.recv().map_err(|_| ended(WHAT))
    }

    /// Stops the library; see [`Application::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(Running { calls, thread }) = self.running.take() else {
            return Ok(());
        };
        drop(calls);
        thread.thread().unpark();
        thread
            .join()
            .unwrap_or_else(|_| Err(ended("SPDK was not stopped")))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "SPDK was not stopped");
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

fn ended(what: &str) -> Error {
    Error::new(what, "its OS thread has ended").help("the log says why")
}

/// Until nobody can call any more.
fn run(application: &Application, calls: &Receiver<Call>) {
    let begun = Instant::now();
    let mut rest = Rest::default();
    let thread = application.thread();
    let own = thread::current();
    thread.set_waker(move || own.unpark());
    loop {
        match calls.try_recv() {
            Ok(call) => call(application),
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                if !application.poll() {
                    let rest = rest.after_poll(thread, begun.elapsed());
                    let next = thread.next_poll().map_or(rest, |next| next.min(rest));
                    thread::park_timeout(next.max(PERIOD_MIN));
                }
            }
        }
    }
}
