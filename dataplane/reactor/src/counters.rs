//! What a reactor counts: plain numbers on its own thread, copied to atomics for readers.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the counters once: the plain form, the shared form, and their names.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Totals since the reactor started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// Every counter with its name, in a fixed order.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }

        /// The counters as other threads see them: at most a millisecond behind a busy reactor,
        /// exact while it sleeps.
        #[derive(Debug, Default)]
        pub struct SharedCounters {
            $($name: AtomicU64,)+
        }

        impl SharedCounters {
            /// The latest published totals. Counters are read one by one, not as one instant.
            #[must_use]
            pub fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }

            /// Only the owning reactor stores, so plain stores lose nothing.
            pub(crate) fn publish(&self, counters: &Counters) {
                $(self.$name.store(counters.$name, Ordering::Relaxed);)+
            }
        }
    };
}

counters! {
    /// Turns of the event loop.
    turns,
    /// Times the reactor went to sleep without a short limit.
    parks,
    /// Times it slept for at most the warm limit after spinning in vain.
    warm_waits,
    /// Times it slept and something happened before the time was over.
    wakeups,
    /// Idle periods that began by spinning.
    spins,
    /// Of these, periods in which spinning found the next event.
    spin_hits,
    /// `io_uring_enter` calls.
    enters,
    /// Submissions handed to the ring.
    sqes,
    /// Completions taken from the ring.
    cqes,
    /// `epoll_wait` calls.
    epoll_waits,
    /// `epoll_ctl` calls.
    epoll_ctls,
    /// `recv` and `readv` calls on sockets.
    recvs,
    /// Of these, calls that found nothing.
    recvs_empty,
    /// Bytes received from sockets.
    recv_bytes,
    /// Gathers sent completely.
    gathers,
    /// `sendmsg` calls.
    sends_direct,
    /// `sendmsg` submissions to the ring.
    sends_ring,
    /// Sends that the socket took only in part, to be continued.
    sends_partial,
    /// Bytes sent to sockets.
    send_bytes,
    /// `accept` calls.
    accept_calls,
    /// Connections accepted.
    accepts,
    /// Times a listener paused because no descriptor or memory was left for a new connection.
    accept_pauses,
    /// Sockets attached, accepted ones that the service kept included.
    attaches,
    /// Sockets closed or aborted.
    closes,
    /// System calls to set up, connect, shut down or close sockets.
    socket_calls,
    /// Drive requests handed to the ring.
    disk_ops,
    /// Drive requests completed.
    disk_dones,
    /// Messages taken from the mailbox.
    messages,
    /// Events for sockets or requests that no longer exist.
    stale_events,
}

impl Counters {
    /// System calls on the data path: everything but setting up and closing sockets.
    #[must_use]
    pub const fn syscalls(&self) -> u64 {
        self.enters
            + self.epoll_waits
            + self.epoll_ctls
            + self.recvs
            + self.sends_direct
            + self.accept_calls
    }
}
