//! Who makes the system calls: the reactor's ring, or threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use bowline_block::Segments;
use bowline_reactor::{Backend as ReactorBackend, DiskClientId, DiskOp, DiskQueue};

use crate::slot::Command;
use crate::threads::ThreadPool;

/// The answer to a command.
pub(crate) struct Answer {
    /// The slot the command was submitted for.
    pub(crate) slot: u32,
    /// Bytes moved or 0, or a negated errno.
    pub(crate) result: i32,
    /// The command's buffers.
    pub(crate) data: Segments,
}

pub(crate) enum Backend {
    Ring(Ring),
    Threads(ThreadPool, Arc<OwnedFd>),
}

impl Backend {
    /// The reactor's ring where it has one, else threads. At most one command per slot is under
    /// way, and slots are numbered below `depth`.
    pub(crate) fn new(
        file: OwnedFd,
        disk: DiskQueue,
        threads: usize,
        depth: usize,
    ) -> io::Result<Self> {
        match disk.kind() {
            ReactorBackend::Uring => {
                let client = disk.register();
                Ok(Self::Ring(Ring {
                    disk,
                    client,
                    file: Rc::new(file),
                }))
            }
            ReactorBackend::Epoll => {
                let file = Arc::new(file);
                let pool = ThreadPool::new(&file, threads, depth, &disk.waker())?;
                Ok(Self::Threads(pool, file))
            }
        }
    }

    #[expect(clippy::result_large_err, reason = "the command itself comes back")]
    pub(crate) fn submit(&mut self, slot: u32, command: Command) -> Result<(), Command> {
        match self {
            Self::Ring(ring) => ring.submit(slot, command),
            Self::Threads(pool, _) => pool.submit(slot, command),
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Answer> {
        match self {
            Self::Ring(ring) => ring.poll(),
            Self::Threads(pool, _) => pool.poll(),
        }
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ring(ring) => ring.file.as_fd(),
            Self::Threads(_, file) => file.as_fd(),
        }
    }
}

/// Commands go through the reactor's ring, which keeps file and buffers until the kernel is done
/// with them, whatever becomes of the device.
pub(crate) struct Ring {
    disk: DiskQueue,
    client: DiskClientId,
    file: Rc<OwnedFd>,
}

impl Ring {
    #[expect(clippy::result_large_err, reason = "the command itself comes back")]
    fn submit(&self, slot: u32, command: Command) -> Result<(), Command> {
        let Command { kind, offset, data } = command;
        let file = Rc::clone(&self.file);
        let op = DiskOp {
            file,
            kind,
            offset,
            data,
            user: u64::from(slot),
        };
        self.disk.try_submit(self.client, op).map_err(
            |DiskOp {
                 kind, offset, data, ..
             }| Command { kind, offset, data },
        )
    }

    fn poll(&self) -> Option<Answer> {
        let done = self.disk.poll(self.client)?;
        // Always ours: the number was a slot's when it was submitted.
        let slot = u32::try_from(done.user).unwrap_or(u32::MAX);
        Some(Answer {
            slot,
            result: done.result,
            data: done.op.data,
        })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.disk.unregister(self.client);
    }
}
