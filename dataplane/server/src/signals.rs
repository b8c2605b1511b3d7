//! The signals that ask a data plane to end.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT, heard from the moment this is made.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn watch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one; one that came since the last call counts.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Whether one came since the last call.
    pub(crate) async fn came(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.next() => true,
            // Lets the runtime look for signals once.
            () = tokio::task::yield_now() => false,
        }
    }
}
