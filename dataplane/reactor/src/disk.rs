//! The drive queue that a reactor lends to engines.
//!
//! A [`DiskTable`] slot owns a request's file and buffers from acceptance until the engine takes
//! the completion. While the kernel holds the request nobody can reach them: neither the engine,
//! which gave them away, nor the reactor, which only looks at them again after the completion.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use bowline_block::{SEGMENTS_MAX, Segments};
use io_uring::{opcode, squeue, types};

use crate::config::Backend;
use crate::mailbox::Waker;
use crate::slab::{Key, Kind, Slab, Token};

/// Drive requests that one reactor holds, completed ones that were not taken included.
pub const DISK_OPS_MAX: usize = 1024;

/// `BLOCK_URING_CMD_DISCARD`, `_IO(0x12, 0)`: first byte in `addr`, length in the command area.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// What to do with the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOpKind {
    /// Read into the segments, each of which must be the only view of its buffer.
    Read,
    /// Write the segments; with `dsync` durable on completion (`RWF_DSYNC`).
    Write {
        /// Durable on completion.
        dsync: bool,
    },
    /// Flush the drive's cache and, unless `data_only`, all metadata.
    Fsync {
        /// `fdatasync` rather than `fsync`.
        data_only: bool,
    },
    /// `fallocate` of `len` bytes.
    Fallocate {
        /// `FALLOC_FL_*` flags.
        mode: i32,
        /// Bytes from the offset.
        len: u64,
    },
    /// Discard `len` bytes of a block device (since Linux 6.12; else `-EINVAL` or `-EOPNOTSUPP`).
    Discard {
        /// Bytes from the offset.
        len: u64,
    },
}

/// One drive request.
#[derive(Debug)]
pub struct DiskOp {
    /// The file or device; kept open until the completion.
    pub file: Rc<OwnedFd>,
    /// What to do.
    pub kind: DiskOpKind,
    /// First byte.
    pub offset: u64,
    /// The payload of a read or write.
    pub data: Segments,
    /// The engine's own tag.
    pub user: u64,
}

/// A completed drive request, given back.
#[derive(Debug)]
pub struct DiskDone {
    /// The engine's own tag.
    pub user: u64,
    /// Bytes moved or 0, or a negated errno.
    pub result: i32,
    /// The request.
    pub op: DiskOp,
}

/// Names an engine's registration with a [`DiskQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskClientId(Key);

/// A handle to the reactor's drive queue; cheap to clone, stays on the reactor's thread.
#[derive(Clone)]
pub struct DiskQueue {
    backend: Backend,
    table: Rc<RefCell<DiskTable>>,
    waker: Waker,
}

impl DiskQueue {
    pub(crate) fn new(backend: Backend, waker: Waker) -> Self {
        Self {
            backend,
            table: Rc::new(RefCell::new(DiskTable::new())),
            waker,
        }
    }

    /// The reactor's engine. With epoll there is no drive queue and every submission is refused:
    /// use threads and the [`DiskQueue::waker`].
    #[must_use]
    pub const fn kind(&self) -> Backend {
        self.backend
    }

    /// Registers a client, to which completions will be queued.
    #[must_use]
    pub fn register(&self) -> DiskClientId {
        DiskClientId(self.table.borrow_mut().clients.insert(VecDeque::new()))
    }

    /// Ends a registration. What is in flight completes unseen and is dropped then.
    pub fn unregister(&self, client: DiskClientId) {
        self.table.borrow_mut().unregister(client.0);
    }

    /// Accepts a request; it leaves with the reactor's next system call.
    ///
    /// # Errors
    /// Hands the request back: [`DISK_OPS_MAX`] are held (a turn follows as soon as there is room,
    /// so no timer is needed to try again), the reactor runs on epoll or is gone, or the client is
    /// not registered.
    #[expect(clippy::result_large_err, reason = "the error is the request itself")]
    pub fn try_submit(&self, client: DiskClientId, op: DiskOp) -> Result<(), DiskOp> {
        if self.backend != Backend::Uring {
            return Err(op);
        }
        self.table.borrow_mut().accept(client.0, op)
    }

    /// Takes a completion of this client, if there is one.
    #[must_use]
    pub fn poll(&self, client: DiskClientId) -> Option<DiskDone> {
        self.table.borrow_mut().take_done(client.0)
    }

    /// A handle with which another thread wakes the reactor.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut DiskTable) -> R) -> R {
        f(&mut self.table.borrow_mut())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Queued,
    InKernel,
    Done,
}

struct Slot {
    op: Option<DiskOp>,
    client: Key,
    state: State,
    result: i32,
    generation: u32,
    /// Describes the segments while the kernel holds the request.
    iov: [libc::iovec; SEGMENTS_MAX],
}

/// All drive requests of one reactor.
pub(crate) struct DiskTable {
    /// Never grows beyond its first capacity, so a slot's address is stable.
    slots: Vec<Slot>,
    free: Vec<u32>,
    queued: VecDeque<u32>,
    clients: Slab<VecDeque<u32>>,
    in_kernel: usize,
    /// A request was refused for want of a slot, and none has become free since.
    refused: bool,
    /// Something happened without the kernel: a request completed, or room was made for one that
    /// had been refused.
    turn_due: bool,
    open: bool,
}

const GENERATION_MASK: u32 = 0x00FF_FFFF;

const EMPTY_IOV: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

impl DiskTable {
    fn new() -> Self {
        Self {
            slots: Vec::with_capacity(DISK_OPS_MAX),
            free: Vec::with_capacity(DISK_OPS_MAX),
            queued: VecDeque::with_capacity(DISK_OPS_MAX),
            clients: Slab::new(),
            in_kernel: 0,
            refused: false,
            turn_due: false,
            open: true,
        }
    }

    #[expect(clippy::result_large_err, reason = "the error is the request itself")]
    fn accept(&mut self, client: Key, mut op: DiskOp) -> Result<(), DiskOp> {
        if !self.open || self.clients.get(client).is_none() {
            return Err(op);
        }
        let Some(index) = self.free_slot() else {
            self.refused = true;
            return Err(op);
        };
        let valid = is_valid(&mut op);
        let slot = &mut self.slots[index as usize];
        slot.op = Some(op);
        slot.client = client;
        if valid {
            slot.state = State::Queued;
            self.queued.push_back(index);
        } else {
            self.turn_due = true;
            self.finish(index, -libc::EINVAL);
        }
        Ok(())
    }

    fn free_slot(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        if self.slots.len() >= DISK_OPS_MAX {
            return None;
        }
        let index = u32::try_from(self.slots.len()).ok()?;
        self.slots.push(Slot {
            op: None,
            client: Key {
                index: 0,
                generation: 0,
            },
            state: State::Free,
            result: 0,
            generation: 0,
            iov: [EMPTY_IOV; SEGMENTS_MAX],
        });
        Some(index)
    }

    /// The next accepted request as a submission. The caller must queue it to the ring, or call
    /// [`DiskTable::put_back`].
    pub(crate) fn next_submission(&mut self) -> Option<squeue::Entry> {
        let index = self.queued.pop_front()?;
        let slot = &mut self.slots[index as usize];
        slot.state = State::InKernel;
        self.in_kernel += 1;
        let token = Token::new(
            Kind::Disk,
            Key {
                index,
                generation: slot.generation,
            },
        );
        Some(slot.submission().user_data(token.encode()))
    }

    /// The submission just taken found no room in the ring.
    pub(crate) fn put_back(&mut self, entry: &squeue::Entry) {
        let index = Token::decode(entry.get_user_data()).key.index;
        self.slots[index as usize].state = State::Queued;
        self.in_kernel -= 1;
        self.queued.push_front(index);
    }

    /// The kernel gave a request back. False: there is no such request.
    pub(crate) fn complete(&mut self, key: Key, result: i32) -> bool {
        let Some(slot) = self.slots.get_mut(key.index as usize) else {
            return false;
        };
        if slot.generation != key.generation || slot.state != State::InKernel {
            return false;
        }
        self.in_kernel -= 1;
        self.finish(key.index, result);
        true
    }

    fn finish(&mut self, index: u32, result: i32) {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Done;
        slot.result = result;
        let client = slot.client;
        match self.clients.get_mut(client) {
            Some(done) => done.push_back(index),
            None => drop(self.release(index)),
        }
    }

    fn release(&mut self, index: u32) -> Option<DiskDone> {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        let op = slot.op.take()?;
        self.free.push(index);
        // The client that was refused need not be the one that made room: it has to be asked
        // again, and no event will bring that about.
        self.turn_due |= std::mem::take(&mut self.refused);
        Some(DiskDone {
            user: op.user,
            result: slot.result,
            op,
        })
    }

    fn take_done(&mut self, client: Key) -> Option<DiskDone> {
        let index = self.clients.get_mut(client)?.pop_front()?;
        self.release(index)
    }

    fn unregister(&mut self, client: Key) {
        for index in self.clients.remove(client).unwrap_or_default() {
            drop(self.release(index));
        }
    }

    /// Whether requests wait to be submitted.
    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Whether clients have a reason to look that no event tells, new since the last call.
    pub(crate) fn take_turn_due(&mut self) -> bool {
        std::mem::take(&mut self.turn_due)
    }

    /// Requests that the kernel holds.
    pub(crate) const fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    /// Refuses further requests; drops what is not in the kernel.
    pub(crate) fn close(&mut self) {
        self.open = false;
        for index in std::mem::take(&mut self.queued) {
            drop(self.release(index));
        }
    }

    /// The kernel still writes to these buffers and nobody will be told when it stops: they must
    /// never be freed.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        // Nothing names a slot any more.
        self.clients = Slab::new();
        self.free.clear();
        self.in_kernel = 0;
    }
}

/// Whether the kernel may be given this request.
fn is_valid(op: &mut DiskOp) -> bool {
    match op.kind {
        // The kernel writes to the buffers: nobody else may have a view of them.
        DiskOpKind::Read => op.data.len_bytes() > 0 && op.data.is_unique(),
        DiskOpKind::Write { .. } => op.data.len_bytes() > 0,
        DiskOpKind::Fsync { .. } | DiskOpKind::Fallocate { .. } | DiskOpKind::Discard { .. } => {
            true
        }
    }
}

impl Slot {
    /// The submission for the slot's request. Its pointers lead to the slot, which stays where it
    /// is, and to buffers that the slot owns; both stay until the completion, or are leaked.
    fn submission(&mut self) -> squeue::Entry {
        let Self { op, iov, .. } = self;
        let Some(op) = op else {
            unreachable!("a queued slot has a request")
        };
        let fd = types::Fd(op.file.as_raw_fd());
        match op.kind {
            DiskOpKind::Read => {
                for (piece, buf) in iov.iter_mut().zip(op.data.iter_mut()) {
                    piece.iov_len = buf.len();
                    piece.iov_base = buf.as_mut_ptr().cast();
                }
                match single(iov, op.data.count()) {
                    Some((base, len)) => opcode::Read::new(fd, base, len).offset(op.offset).build(),
                    None => opcode::Readv::new(fd, iov.as_ptr(), count(&op.data))
                        .offset(op.offset)
                        .build(),
                }
            }
            DiskOpKind::Write { dsync } => {
                for (piece, buf) in iov.iter_mut().zip(op.data.iter()) {
                    piece.iov_len = buf.len();
                    piece.iov_base = buf.as_ptr().cast_mut().cast();
                }
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                match single(iov, op.data.count()) {
                    Some((base, len)) => opcode::Write::new(fd, base, len)
                        .offset(op.offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Writev::new(fd, iov.as_ptr(), count(&op.data))
                        .offset(op.offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            DiskOpKind::Fsync { data_only } => {
                let flags = if data_only {
                    types::FsyncFlags::DATASYNC
                } else {
                    types::FsyncFlags::empty()
                };
                opcode::Fsync::new(fd).flags(flags).build()
            }
            DiskOpKind::Fallocate { mode, len } => opcode::Fallocate::new(fd, len)
                .offset(op.offset)
                .mode(mode)
                .build(),
            DiskOpKind::Discard { len } => {
                let mut command = [0; 16];
                command[..8].copy_from_slice(&len.to_ne_bytes());
                opcode::UringCmd16::new(fd, BLOCK_URING_CMD_DISCARD)
                    .addr(Some(op.offset))
                    .cmd(command)
                    .build()
            }
        }
    }
}

/// Base and length of the only piece, if there is just one that fits the short form.
fn single(iov: &[libc::iovec; SEGMENTS_MAX], pieces: usize) -> Option<(*mut u8, u32)> {
    if pieces != 1 {
        return None;
    }
    Some((iov[0].iov_base.cast(), u32::try_from(iov[0].iov_len).ok()?))
}

fn count(data: &Segments) -> u32 {
    u32::try_from(data.count()).unwrap_or(0)
}
