//! Ctrl-C and SIGTERM: the first is a question that may be asked at any time, the second
//! ends the process at once.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::CliError;
use crate::log;

/// Hears the first signal that asks this process to end.
pub(crate) struct Signals {
    asked: Receiver<()>,
}

impl Signals {
    pub(crate) fn watch() -> Result<Self, CliError> {
        let failed = |error| CliError::failed("signals cannot be handled").cause(error);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (mut terminate, mut interrupt) = {
            let _context = runtime.enter();
            (
                signal(SignalKind::terminate()).map_err(failed)?,
                signal(SignalKind::interrupt()).map_err(failed)?,
            )
        };
        let (ask, asked) = mpsc::channel();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let mut next = || {
                    runtime.block_on(async {
                        tokio::select! {
                            _ = terminate.recv() => {}
                            _ = interrupt.recv() => {}
                        }
                    });
                };
                next();
                // Dropping the sender says the same as sending.
                drop(ask);
                next();
                log::last_words("error: interrupted\ncause: a second signal ended this at once");
                // The data plane ends with this process.
                std::process::exit(1);
            })
            .map_err(failed)?;
        Ok(Self { asked })
    }

    /// An error once this process was asked to end.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        match self.asked.try_recv() {
            Err(TryRecvError::Empty) => Ok(()),
            Ok(()) | Err(TryRecvError::Disconnected) => {
                Err(CliError::failed("interrupted").cause("a signal asked this process to end"))
            }
        }
    }

    /// True once this process was asked to end; waits that long for it.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        self.asked.recv_timeout(timeout) != Err(RecvTimeoutError::Timeout)
    }
}
