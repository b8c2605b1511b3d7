//! Sockets and listeners as the reactor keeps them, and what callers see of them.

use std::io;
use std::net::{TcpListener, TcpStream};

use bowline_nvme::Nanos;

use crate::gather::Gather;
use crate::slab::Key;

/// Names a socket of one reactor for as long as it is open there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub(crate) Key);

impl SocketId {
    /// A small number, reused after the socket is closed: for tables indexed by socket.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0.index as usize
    }
}

/// Names a listener of one reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub(crate) Key);

/// What a receive found.
#[derive(Debug)]
pub enum Recv {
    /// Bytes arrived.
    Data {
        /// How many.
        bytes: usize,
        /// The socket is empty now: [`Service::readable`](crate::Service::readable) will be called
        /// when there is more. If false, receive again or rearm.
        drained: bool,
    },
    /// Nothing waits; `readable` will be called when something does.
    WouldBlock,
    /// The peer sent all it will send (or the socket is not open here any more).
    Closed,
    /// The connection is broken.
    Error(io::Error),
}

/// Why a socket cannot be detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetachError {
    /// A gather is on its way; wait for it.
    StillSending,
    /// The kernel has not taken all requests; try again next turn.
    Busy,
    /// It is not open here, or not connected yet.
    NotOpen,
}

impl std::fmt::Display for DetachError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::StillSending => "a gather is still being sent",
            Self::Busy => "the kernel has not taken all requests yet",
            Self::NotOpen => "the socket is not open on this reactor",
        })
    }
}

impl std::error::Error for DetachError {}

/// Where a socket's gather is.
pub(crate) enum Output {
    None,
    /// In the reactor's outbox.
    Queued(Gather),
    /// With the ring.
    Ring(Key),
    /// Partly sent directly; continues when the socket is writable.
    Blocked(Gather),
    /// Over, but the service has not been told.
    Finished(Gather, io::Result<()>),
}

/// A socket that once did not take a send at once is slow until it took this many at once: a peer
/// that reads in fits must not hold up the others time and again.
const SLOW_SENDS: u8 = 16;

pub(crate) struct Socket {
    pub(crate) stream: TcpStream,
    pub(crate) connecting: bool,
    /// In the ready list.
    pub(crate) ready: bool,
    /// An end or an error follows what can be received.
    pub(crate) hangup: bool,
    /// Sends that must complete at once before the peer is trusted to read quickly again.
    slow_sends: u8,
    pub(crate) output: Output,
}

impl Socket {
    pub(crate) const fn new(stream: TcpStream, connecting: bool) -> Self {
        Self {
            stream,
            connecting,
            ready: false,
            hangup: false,
            slow_sends: 0,
            output: Output::None,
        }
    }

    /// A send ended; `slow`: the socket did not take it at once.
    pub(crate) const fn note_sent(&mut self, slow: bool) {
        self.slow_sends = if slow {
            SLOW_SENDS
        } else {
            self.slow_sends.saturating_sub(1)
        };
    }

    /// Whether the peer reads slowly: nobody should wait for its sends.
    pub(crate) const fn is_slow(&self) -> bool {
        self.slow_sends > 0
    }
}

pub(crate) struct Listener {
    pub(crate) listener: TcpListener,
    /// In the list of listeners to accept from.
    pub(crate) ready: bool,
    /// Accepting pauses until then: no descriptor or memory was left.
    pub(crate) paused_until: Option<Nanos>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_peer_is_trusted_again_only_after_many_prompt_sends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut socket = Socket::new(stream, false);
        assert!(!socket.is_slow());
        for _ in 0..2 {
            socket.note_sent(true);
            for _ in 1..SLOW_SENDS {
                socket.note_sent(false);
                assert!(socket.is_slow());
            }
        }
        socket.note_sent(false);
        assert!(!socket.is_slow());
    }
}
