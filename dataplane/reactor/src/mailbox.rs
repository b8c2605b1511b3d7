//! Messages and wake-ups from other threads.
//!
//! A sender stores its message, then raises `signal`, then looks at `parked`. The reactor stores
//! `parked`, then looks at `signal`, then sleeps. Both sides use sequentially consistent order, so
//! at least one sees the other: either the reactor does not sleep, or the sender writes the
//! eventfd. While the reactor is awake a message costs its sender no system call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustix::event::{EventfdFlags, eventfd};

struct WakeCell {
    /// Sleeping, or about to.
    parked: AtomicBool,
    /// Something was sent since the reactor last looked.
    signal: AtomicBool,
    /// The service shall stop.
    stop: AtomicBool,
    eventfd: OwnedFd,
}

/// Wakes a reactor from any thread: for engines with threads of their own.
#[derive(Clone)]
pub struct Waker {
    cell: Arc<WakeCell>,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let cell = WakeCell {
            parked: AtomicBool::new(false),
            signal: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            eventfd,
        };
        Ok(Self {
            cell: Arc::new(cell),
        })
    }

    /// Makes the reactor take a turn soon. A system call only if it sleeps.
    pub fn wake(&self) {
        self.cell.signal.store(true, Ordering::SeqCst);
        // The swap lets one of several senders pay for the wake-up.
        if self.cell.parked.load(Ordering::SeqCst) && self.cell.parked.swap(false, Ordering::SeqCst)
        {
            // Fails only when the counter is full, and then the reactor has been woken already.
            let _ = rustix::io::write(&self.cell.eventfd, &1_u64.to_ne_bytes());
        }
    }

    pub(crate) fn request_stop(&self) {
        self.cell.stop.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn take_stop(&self) -> bool {
        self.cell.stop.load(Ordering::Relaxed) && self.cell.stop.swap(false, Ordering::SeqCst)
    }

    /// Announces sleep. False: something was sent meanwhile, stay awake.
    pub(crate) fn park(&self) -> bool {
        self.cell.parked.store(true, Ordering::SeqCst);
        if self.cell.signal.load(Ordering::SeqCst) {
            self.unpark();
            return false;
        }
        true
    }

    pub(crate) fn unpark(&self) {
        self.cell.parked.store(false, Ordering::SeqCst);
    }

    /// Whether something was sent since the last [`Waker::take_signal`].
    pub(crate) fn is_signalled(&self) -> bool {
        self.cell.signal.load(Ordering::Relaxed)
    }

    /// Must precede looking for what was sent.
    pub(crate) fn take_signal(&self) -> bool {
        self.is_signalled() && self.cell.signal.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn eventfd(&self) -> BorrowedFd<'_> {
        self.cell.eventfd.as_fd()
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}

/// The bounded way into a reactor.
pub struct Mailbox<M> {
    sender: Sender<M>,
    waker: Waker,
}

impl<M> Mailbox<M> {
    pub(crate) fn new(depth: usize, waker: Waker) -> (Self, Receiver<M>) {
        let (sender, receiver) = crossbeam_channel::bounded(depth.max(1));
        (Self { sender, waker }, receiver)
    }

    /// Sends, or hands the message back because the mailbox is full or the reactor is gone.
    ///
    /// # Errors
    /// The message itself.
    pub fn try_send(&self, message: M) -> Result<(), M> {
        match self.sender.try_send(message) {
            Ok(()) => {
                self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => Err(message),
        }
    }

    /// Sends, waiting for room. Never call it on a reactor's thread: two full mailboxes would wait
    /// for each other.
    ///
    /// # Errors
    /// The message itself: the reactor is gone.
    pub fn send_blocking(&self, message: M) -> Result<(), M> {
        // A full mailbox was signalled by whoever filled it, so the reactor is draining it.
        self.sender.send(message).map_err(|error| error.0)?;
        self.waker.wake();
        Ok(())
    }

    /// A handle that wakes the same reactor without a message.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            waker: self.waker.clone(),
        }
    }
}

impl<M> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("waiting", &self.sender.len())
            .finish_non_exhaustive()
    }
}
