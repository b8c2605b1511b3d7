//! What both engines have in common: events, and how long to wait for them.

use bowline_nvme::Nanos;

use crate::epoll::Epoll;
use crate::slab::Token;
use crate::uring::Uring;

/// Something that an engine reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) token: Token,
    /// A completion's result, or a mask of `POLL*` bits.
    pub(crate) result: i32,
    /// False: the engine watches this source no longer.
    pub(crate) more: bool,
}

/// How long to wait for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// For a span.
    For(Nanos),
    /// Until something happens.
    Forever,
}

/// Bits that say "receive": data, an end, or an error.
pub(crate) const READ_INTEREST: u32 = mask(libc::POLLIN) | mask(libc::POLLRDHUP);

/// Bits that say "send".
pub(crate) const WRITE_INTEREST: u32 = mask(libc::POLLOUT);

/// Bits after which a short receive does not mean that the socket is drained: an end or an error
/// follows the data.
pub(crate) const HANGUP_BITS: u32 =
    mask(libc::POLLRDHUP) | mask(libc::POLLHUP) | mask(libc::POLLERR);

const fn mask(bits: i16) -> u32 {
    #[expect(
        clippy::cast_sign_loss,
        reason = "poll bits are small positive constants"
    )]
    let mask = bits as u32;
    mask
}

/// The engine.
pub(crate) enum Driver {
    Uring(Box<Uring>),
    Epoll(Epoll),
}
