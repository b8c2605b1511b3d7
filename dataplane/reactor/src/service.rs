//! What runs on a reactor.

use std::io;
use std::net::{SocketAddr, TcpStream};

use bowline_nvme::Nanos;

use crate::gather::Gather;
use crate::reactor::Reactor;
use crate::socket::{ListenerId, SocketId};

/// The state machines that a reactor drives. All calls come from the reactor's thread, none may
/// block. `now` is the time of the turn.
pub trait Service: Sized {
    /// What other threads may send through the [`Mailbox`](crate::Mailbox).
    type Message: Send + 'static;

    /// A message arrived.
    fn message(&mut self, cx: &mut Reactor, now: Nanos, message: Self::Message);

    /// A listener accepted a connection. Attach the stream to this reactor, or send it to another.
    fn accepted(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        listener: ListenerId,
        stream: TcpStream,
        peer: SocketAddr,
    );

    /// [`Reactor::connect`] succeeded, or failed and the socket is already closed.
    fn connected(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        result: io::Result<()>,
    ) {
        let _ = (cx, now, socket, result);
    }

    /// Bytes, an end or an error may wait. This is an edge: receive until the socket is drained,
    /// or call [`Reactor::rearm`] to be called again next turn. May be called in vain.
    fn readable(&mut self, cx: &mut Reactor, now: Nanos, socket: SocketId);

    /// The whole gather left, or the socket is broken. Not called for a socket that was closed.
    fn sent(
        &mut self,
        cx: &mut Reactor,
        now: Nanos,
        socket: SocketId,
        gather: Gather,
        result: io::Result<()>,
    );

    /// Ends every turn (and may run more than once in it): poll devices and timers, build and send
    /// gathers.
    fn turn(&mut self, cx: &mut Reactor, now: Nanos);

    /// When [`Service::turn`] must run again though nothing happens; `ZERO` means at once.
    fn poll_timeout(&self) -> Option<Nanos>;

    /// Whether device requests are in flight, so that spinning a little is worth it.
    fn expects_completion(&self) -> bool {
        false
    }

    /// The reactor was asked to stop: drain, then let [`Service::is_stopped`] become true.
    fn stopping(&mut self, cx: &mut Reactor, now: Nanos) {
        let _ = (cx, now);
    }

    /// Ends the loop when true.
    fn is_stopped(&self) -> bool;
}

/// What one turn did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Something happened: bytes, a connection, a message, a completion.
    pub worked: bool,
    /// Work is left for another turn that needs no new event.
    pub more: bool,
    /// When a turn is due though nothing happens.
    pub next: Option<Nanos>,
}
