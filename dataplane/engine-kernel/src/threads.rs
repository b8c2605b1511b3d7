//! A few threads that execute requests, for where `io_uring` is not permitted, or does not know a
//! request.
//!
//! Buffers are not `Send`; what crosses is their addresses. The pool keeps a job's [`Segments`]
//! parked from submission until the worker's answer has been taken, and dropping the pool waits
//! for the workers before anything parked is dropped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use bowline_block::{SEGMENTS_MAX, Segments};
use bowline_reactor::{DiskOpKind, Waker};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::process::getpid;
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use crate::backend::Answer;
use crate::slot::Command;
use crate::sys;

/// The threads and what they work on. Belongs to one device.
pub(crate) struct ThreadPool {
    // None once dropping has begun: closing the channel ends the workers.
    jobs: Option<Sender<Job>>,
    answers: Receiver<(u32, i32)>,
    // By slot; the payload of the job that a worker may be executing for that slot.
    parked: Vec<Option<Segments>>,
    workers: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// One system call for a worker. Holds no buffer, only addresses within parked ones.
struct Job {
    slot: u32,
    kind: DiskOpKind,
    offset: u64,
    pieces: Pieces,
}

struct Pieces {
    iov: [libc::iovec; SEGMENTS_MAX],
    count: usize,
}

// SAFETY: an address may be used on any thread on which its memory may be accessed. The memory
// belongs to pool buffers (plain shared memory of the process, not thread-local), whose views stay
// in `ThreadPool::parked` until the worker's answer is received; the channel's send and receive
// order the worker's accesses after the reactor's before and before its after. While parked nobody
// makes a slice of a read's views (they are the only ones of their buffers, checked by
// `as_mut_ptr`), and a write's are only read.
unsafe impl Send for Pieces {}

impl ThreadPool {
    /// Starts the workers. At most `depth` jobs are submitted and not yet polled at any time.
    pub(crate) fn new(
        file: &Arc<OwnedFd>,
        threads: usize,
        depth: usize,
        waker: &Waker,
    ) -> io::Result<Self> {
        let (jobs, job_receiver) = bounded(depth);
        let (answer_sender, answers) = bounded(depth);
        let mut pool = Self {
            jobs: Some(jobs),
            answers,
            parked: (0..depth).map(|_| None).collect(),
            workers: Vec::with_capacity(threads),
            stop: Arc::new(AtomicBool::new(false)),
        };
        for index in 0..threads {
            let worker = Worker {
                file: Arc::clone(file),
                jobs: job_receiver.clone(),
                answers: answer_sender.clone(),
                stop: Arc::clone(&pool.stop),
                waker: waker.clone(),
            };
            let named = thread::Builder::new().name(format!("bowline-disk{index}"));
            pool.workers.push(named.spawn(move || worker.run())?);
        }
        Ok(pool)
    }

    /// Hands a job to the workers.
    ///
    /// # Errors
    /// Gives the command back when as many jobs as the pool was made for are under way.
    #[expect(clippy::result_large_err, reason = "the command itself comes back")]
    pub(crate) fn submit(&mut self, slot: u32, mut command: Command) -> Result<(), Command> {
        let Command { kind, offset, .. } = command;
        let Some(parked) = self
            .parked
            .get_mut(slot as usize)
            .filter(|parked| parked.is_none())
        else {
            return Err(command);
        };
        let Some(jobs) = &self.jobs else {
            return Err(command);
        };
        let pieces = Pieces::new(&mut command);
        match jobs.try_send(Job {
            slot,
            kind,
            offset,
            pieces,
        }) {
            Ok(()) => {
                *parked = Some(command.data);
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(command),
        }
    }

    /// Takes an answer, if there is one.
    pub(crate) fn poll(&mut self) -> Option<Answer> {
        let (slot, result) = self.answers.try_recv().ok()?;
        let data = self.parked.get_mut(slot as usize)?.take()?;
        Some(Answer { slot, result, data })
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // Jobs that no worker has begun are dropped; those begun are waited for, since only their
        // end proves that nobody touches the parked buffers any more.
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // One that panicked is not touching anything either.
            let _ = worker.join();
        }
    }
}

impl Pieces {
    fn new(command: &mut Command) -> Self {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut iov = [empty; SEGMENTS_MAX];
        let reads = command.kind == DiskOpKind::Read;
        for (piece, buf) in iov.iter_mut().zip(command.data.iter_mut()) {
            let base = if reads {
                buf.as_mut_ptr()
            } else {
                buf.as_ptr().cast_mut()
            };
            *piece = libc::iovec {
                iov_base: base.cast(),
                iov_len: buf.len(),
            };
        }
        Self {
            iov,
            count: command.data.count(),
        }
    }
}

struct Worker {
    file: Arc<OwnedFd>,
    jobs: Receiver<Job>,
    answers: Sender<(u32, i32)>,
    stop: Arc<AtomicBool>,
    waker: Waker,
}

impl Worker {
    fn run(self) {
        leave_core();
        for job in &self.jobs {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let iov = &job.pieces.iov[..job.pieces.count];
            // SAFETY: the addresses are those of parked views, which stay parked until the answer
            // below is received or this thread has ended; see `Pieces`.
            let result = unsafe { sys::execute(self.file.as_fd(), job.kind, job.offset, iov) };
            // Never blocks: the channel has room for every job under way.
            if self.answers.send((job.slot, result)).is_err() {
                return;
            }
            self.waker.wake();
        }
    }
}

/// Lets this thread run wherever the process may. It was started by a reactor's thread, and with
/// that inherited its one core, which the reactor means to keep busy itself.
fn leave_core() {
    // The main thread's cores: nobody pins that one. Where this fails the core is shared.
    if let Ok(cores) = sched_getaffinity(Some(getpid())) {
        let _ = sched_setaffinity(None, &cores);
    }
}
