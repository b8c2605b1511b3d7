//! One connection's output of one turn: headers and payload views, sent by one `sendmsg`.
//!
//! Payload may still be in the medium of a device of this thread. Then it is read from there by the
//! direct `sendmsg` of its turn, in which nothing else runs; [`Gather::fix`] copies what that has left
//! behind before anything else may happen to it.

use std::cell::{Cell, RefCell};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::{fmt, io};

use bowline_block::{IoBuf, ViewedBuf};

/// A gather with this many bytes is full.
pub const GATHER_BYTES_MAX: usize = 1 << 20;

/// A gather with this many pieces is full; below the kernel's limit of 1024 with room for the last
/// response's pieces.
pub const GATHER_PIECES_MAX: usize = 500;

/// Gathers that are kept for reuse, however few were in use at once of late.
const KEPT_MIN: usize = 64;

/// Room for 128 commands of a host, each with its payload, so that a gather need not grow while
/// I/O runs. The pages of what is not used are never touched.
const ARENA_BYTES: usize = 16 << 10;
const PIECES: usize = 288;
const VIEWS: usize = 128;

/// A gather whose header arena grew beyond this is not kept.
const KEPT_ARENA_BYTES_MAX: usize = 64 << 10;

enum Piece {
    /// Bytes of the arena.
    Header(Range<usize>),
    Payload(IoBuf),
    /// The next of `views`.
    View,
}

/// Boxed, so that what the kernel was told stays where it is while the gather moves.
struct Parts {
    arena: Vec<u8>,
    pieces: Vec<Piece>,
    bytes: usize,
    /// Built from the pieces when sending starts, then advanced over what has left.
    iov: Vec<libc::iovec>,
    iov_next: usize,
    /// Payload that is still in its device's medium, with the piece that it is.
    views: Vec<(usize, ViewedBuf)>,
    viewed_bytes: usize,
    message: libc::msghdr,
    unsent: usize,
}

impl Parts {
    fn new() -> Box<Self> {
        Box::new(Self {
            arena: Vec::with_capacity(ARENA_BYTES),
            pieces: Vec::with_capacity(PIECES),
            bytes: 0,
            iov: Vec::with_capacity(PIECES),
            iov_next: 0,
            views: Vec::with_capacity(VIEWS),
            viewed_bytes: 0,
            message: empty_message(),
            unsent: 0,
        })
    }

    fn clear(&mut self) {
        self.arena.clear();
        self.pieces.clear();
        self.bytes = 0;
        self.iov.clear();
        self.iov_next = 0;
        self.views.clear();
        self.viewed_bytes = 0;
        self.message = empty_message();
        self.unsent = 0;
    }
}

fn empty_message() -> libc::msghdr {
    // SAFETY: `msghdr` is a plain C structure; null pointers with zero lengths are valid in it.
    unsafe { std::mem::zeroed() }
}

/// Gathers waiting for reuse, so that steady traffic allocates nothing.
#[derive(Clone, Default)]
pub(crate) struct GatherPool {
    #[expect(clippy::vec_box, reason = "the boxes are handed out as they are")]
    kept: Rc<RefCell<Vec<Box<Parts>>>>,
    used: Rc<Cell<usize>>,
    /// Most in use at once since the last trim.
    used_max: Rc<Cell<usize>>,
}

impl GatherPool {
    pub(crate) fn take(&self) -> Gather {
        let parts = self.kept.borrow_mut().pop().unwrap_or_else(Parts::new);
        self.used.set(self.used.get() + 1);
        self.used_max.set(self.used_max.get().max(self.used.get()));
        Gather {
            parts: Some(parts),
            home: self.clone(),
        }
    }

    /// Whether there are more than the usual number.
    pub(crate) fn has_spare(&self) -> bool {
        self.kept.borrow().len() + self.used.get() > KEPT_MIN
    }

    /// Gives back what was not in use at once since the last call. Returns whether only the usual
    /// number is left.
    pub(crate) fn trim(&self) -> bool {
        let wanted = self.used_max.replace(self.used.get()).max(KEPT_MIN);
        let mut kept = self.kept.borrow_mut();
        kept.truncate(wanted.saturating_sub(self.used.get()));
        kept.shrink_to(KEPT_MIN);
        drop(kept);
        !self.has_spare()
    }

    fn put_back(&self, mut parts: Box<Parts>) {
        // Payload goes back to its pool now, not when the gather is used again.
        parts.clear();
        self.used.set(self.used.get() - 1);
        if parts.arena.capacity() <= KEPT_ARENA_BYTES_MAX {
            self.kept.borrow_mut().push(parts);
        }
    }
}

/// Bytes to be sent on one socket, in order. Header bytes are copied into an arena, payload is
/// held by its buffer views until the gather is dropped.
pub struct Gather {
    /// Taken only by `drop`.
    parts: Option<Box<Parts>>,
    home: GatherPool,
}

impl Gather {
    /// Appends header bytes by copying.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.push_with(|arena| arena.extend_from_slice(bytes));
    }

    /// Appends what `write` appends to the header arena.
    ///
    /// # Panics
    /// When `write` shortens the arena.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let parts = self.parts_mut();
        let start = parts.arena.len();
        write(&mut parts.arena);
        let end = parts.arena.len();
        assert!(end >= start, "push_with may only append");
        if end == start {
            return;
        }
        parts.bytes += end - start;
        match parts.pieces.last_mut() {
            // Neighbours in the arena are one piece.
            Some(Piece::Header(range)) if range.end == start => range.end = end,
            _ => parts.pieces.push(Piece::Header(start..end)),
        }
    }

    /// Appends payload; the view is held until the gather is dropped.
    pub fn push_buf(&mut self, buf: IoBuf) {
        if buf.is_empty() {
            return;
        }
        let parts = self.parts_mut();
        parts.bytes += buf.len();
        parts.pieces.push(Piece::Payload(buf));
    }

    /// Appends payload that is still in its device's medium. It is sent from there if all of the
    /// gather leaves in this turn by a call that reads it at once; else it is copied.
    pub fn push_view(&mut self, viewed: ViewedBuf) {
        if viewed.is_empty() {
            return;
        }
        let parts = self.parts_mut();
        parts.bytes += viewed.len();
        parts.viewed_bytes += viewed.len();
        parts.views.push((parts.pieces.len(), viewed));
        parts.pieces.push(Piece::View);
    }

    /// Copies what is still in a medium and has not left: the rest is of this moment. Whoever keeps
    /// a gather beyond its turn does this first.
    pub fn fix(&mut self) {
        let Parts {
            pieces,
            iov,
            iov_next,
            views,
            viewed_bytes,
            ..
        } = self.parts_mut();
        *viewed_bytes = 0;
        for (index, viewed) in views.drain(..) {
            // Nothing is listed, and nothing has left, before the gather is prepared.
            if index < *iov_next {
                continue;
            }
            let buf = viewed.copied();
            if let Some(rest) = iov.get_mut(index) {
                let left = buf.len() - rest.iov_len;
                rest.iov_base = buf[left..].as_ptr().cast_mut().cast();
            }
            pieces[index] = Piece::Payload(buf);
        }
    }

    /// Total length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts().bytes
    }

    /// How much of it is still in a medium.
    pub(crate) fn viewed_bytes(&self) -> usize {
        self.parts().viewed_bytes
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts().bytes == 0
    }

    /// Whether this should be sent before more is appended: [`GATHER_BYTES_MAX`] or
    /// [`GATHER_PIECES_MAX`] reached.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let parts = self.parts();
        parts.bytes >= GATHER_BYTES_MAX || parts.pieces.len() >= GATHER_PIECES_MAX
    }

    /// Lists the pieces for the kernel. The pieces must not change until the gather is dropped.
    pub(crate) fn prepare(&mut self) {
        let Parts {
            arena,
            pieces,
            bytes,
            iov,
            iov_next,
            views,
            unsent,
            ..
        } = self.parts_mut();
        let mut views = views.iter();
        iov.clear();
        iov.extend(pieces.iter().map(|piece| {
            let (base, len) = match piece {
                Piece::Header(range) => (arena[range.clone()].as_ptr(), range.len()),
                Piece::Payload(buf) => (buf.as_ptr(), buf.len()),
                Piece::View => match views.next() {
                    Some((_, viewed)) => (viewed.as_ptr(), viewed.len()),
                    None => unreachable!("a view is pushed along with its piece"),
                },
            };
            libc::iovec {
                iov_base: base.cast_mut().cast(),
                iov_len: len,
            }
        }));
        *iov_next = 0;
        *unsent = *bytes;
    }

    /// Bytes that have not left yet.
    pub(crate) fn unsent(&self) -> usize {
        self.parts().unsent
    }

    /// Accounts for `bytes` that left.
    pub(crate) fn advance(&mut self, bytes: usize) {
        let parts = self.parts_mut();
        parts.unsent = parts.unsent.saturating_sub(bytes);
        let mut left = bytes;
        while let Some(piece) = parts.iov.get_mut(parts.iov_next) {
            if left < piece.iov_len {
                // SAFETY: `left` is less than the piece's length, so the result is within it.
                piece.iov_base = unsafe { piece.iov_base.cast::<u8>().add(left) }.cast();
                piece.iov_len -= left;
                break;
            }
            left -= piece.iov_len;
            parts.iov_next += 1;
        }
    }

    /// The message with what has not left yet. The pointer, and all that it points to, stays valid
    /// until the gather is dropped or advanced, however the gather moves.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        let parts = self.parts_mut();
        let rest = parts.iov.get_mut(parts.iov_next..).unwrap_or_default();
        parts.message.msg_iov = rest.as_mut_ptr();
        parts.message.msg_iovlen = rest.len().min(UIO_MAXIOV);
        &raw const parts.message
    }

    /// One direct, non-blocking `sendmsg` of what has not left yet.
    pub(crate) fn send_direct(&mut self, socket: &TcpStream) -> io::Result<usize> {
        let message = self.message();
        // SAFETY: `message` points to a valid message whose vectors describe memory that this
        // gather owns or has views of; the kernel only reads it, and only during the call.
        let sent = unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn parts(&self) -> &Parts {
        match &self.parts {
            Some(parts) => parts,
            None => unreachable!("only drop takes the parts"),
        }
    }

    fn parts_mut(&mut self) -> &mut Parts {
        match &mut self.parts {
            Some(parts) => parts,
            None => unreachable!("only drop takes the parts"),
        }
    }
}

/// Vectors that one message may carry; more are sent by continuing.
const UIO_MAXIOV: usize = 1024;

impl Drop for Gather {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            self.home.put_back(parts);
        }
    }
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts();
        f.debug_struct("Gather")
            .field("bytes", &parts.bytes)
            .field("pieces", &parts.pieces.len())
            .field("unsent", &parts.unsent)
            .finish()
    }
}

#[cfg(test)]
mod tests;
