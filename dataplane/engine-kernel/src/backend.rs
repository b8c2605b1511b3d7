//! Who makes the system calls: the reactor's ring, threads, or the ring and one thread for what the
//! ring's kernel cannot do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use bowline_block::Segments;
use bowline_reactor::{Backend as ReactorBackend, DiskClientId, DiskOp, DiskOpKind, DiskQueue};

use crate::errno;
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
                    helper: None,
                    depth,
                    #[cfg(test)]
                    refuses_discard: false,
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
    // Discards, from the first that the ring did not know (before Linux 6.12) on. One thread: a
    // device that is told of many ranges at once is no faster for it.
    helper: Option<ThreadPool>,
    depth: usize,
    #[cfg(test)]
    refuses_discard: bool,
}

impl Ring {
    #[expect(clippy::result_large_err, reason = "the command itself comes back")]
    fn submit(&mut self, slot: u32, command: Command) -> Result<(), Command> {
        if let (Some(helper), DiskOpKind::Discard { .. }) = (&mut self.helper, command.kind) {
            return helper.submit(slot, command);
        }
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

    fn poll(&mut self) -> Option<Answer> {
        while let Some(done) = self.disk.poll(self.client) {
            // Always ours: the number was a slot's when it was submitted.
            let slot = u32::try_from(done.user).unwrap_or(u32::MAX);
            let (result, op) = (done.result, done.op);
            let answer = if self.is_unknown(op.kind, result) {
                let DiskOp {
                    kind, offset, data, ..
                } = op;
                self.help(slot, Command { kind, offset, data })
            } else {
                let data = op.data;
                Some(Answer { slot, result, data })
            };
            if answer.is_some() {
                return answer;
            }
        }
        self.helper.as_mut()?.poll()
    }

    /// Whether the ring refused the command because it does not know it. A device that does not
    /// discard is refused likewise, and says so once more to the helper.
    fn is_unknown(&self, kind: DiskOpKind, result: i32) -> bool {
        let errno = result.saturating_neg();
        #[cfg(test)]
        let errno = if self.refuses_discard {
            libc::EOPNOTSUPP
        } else {
            errno
        };
        // A ring that knows no device's commands at all says "invalid".
        matches!(kind, DiskOpKind::Discard { .. })
            && (errno::is_unsupported(errno) || errno == libc::EINVAL)
    }

    /// Hands a command to the helper, and from now on all of its kind. Where none can be had,
    /// returns what to answer, and the next command tries again.
    fn help(&mut self, slot: u32, command: Command) -> Option<Answer> {
        let refused = |errno: i32, data| {
            Some(Answer {
                slot,
                result: -errno,
                data,
            })
        };
        if self.helper.is_none() {
            match self.new_helper() {
                Ok(helper) => self.helper = Some(helper),
                Err(error) => {
                    return refused(error.raw_os_error().unwrap_or(libc::EAGAIN), command.data);
                }
            }
        }
        match self.helper.as_mut()?.submit(slot, command) {
            Ok(()) => None,
            // Cannot be: it has room for every slot.
            Err(command) => refused(libc::EAGAIN, command.data),
        }
    }

    fn new_helper(&self) -> io::Result<ThreadPool> {
        // The ring's own handle cannot cross to a thread. The lock belongs to both, and the helper
        // ends with the device.
        let file = Arc::new(self.file.try_clone()?);
        ThreadPool::new(&file, 1, self.depth, &self.disk.waker())
    }

    /// Behaves as on a kernel whose ring does not know how to discard.
    #[cfg(test)]
    pub(crate) fn refuse_discard(&mut self) {
        self.refuses_discard = true;
    }

    #[cfg(test)]
    pub(crate) fn has_helper(&self) -> bool {
        self.helper.is_some()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.disk.unregister(self.client);
    }
}
