//! The `io_uring` engine: one ring for readiness, output and the drive.
//!
//! Requests wait in queues of this module and become submissions only inside [`Uring::enter`],
//! right before the system call; whoever closes a descriptor takes its waiting requests back
//! first. So the kernel is never given a descriptor that was closed or reused meanwhile, unless it
//! refused submissions; [`Uring::has_unsubmitted`] tells.
//!
//! Memory that submissions point to is owned here ([`Gather`]s) or in the [`DiskTable`] until the
//! completion, or else leaked by `drop`.
//!
//! [`DiskTable`]: crate::disk::DiskTable

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use bowline_nvme::Nanos;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::clock::monotonic_now;
use crate::counters::Counters;
use crate::disk::DiskQueue;
use crate::driver::{Event, Wait};
use crate::gather::Gather;
use crate::slab::{Key, Kind, Slab, Token};

mod setup;

pub(crate) use setup::Refusal;
use setup::{
    FLAGS, SQ_ENTRIES, build, feature_names, is_transient, register_ring, unregister_ring,
};

/// Waiting for a send's completion along with the next event is limited to this long, in case the
/// socket takes the bytes later than expected: other sockets' events wait too.
pub(crate) const SEND_WAIT: Nanos = Nanos::from_micros(200);

/// A reactor that is dropped waits this long for what the kernel holds.
const DROP_WAIT: Nanos = Nanos::from_secs(5);

/// `IORING_ENTER_REGISTERED_RING`: not exported by the crate.
const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct EnterArgument {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_usec: u32,
    /// Address of a [`KernelTimespec`].
    timeout: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTimespec {
    secs: i64,
    nanos: i64,
}

/// A change of what is watched, not yet told to the kernel.
enum PollChange {
    Add {
        fd: RawFd,
        token: Token,
        interest: u32,
        multishot: bool,
    },
    Remove {
        token: Token,
    },
}

/// A gather on its way.
struct Sending {
    gather: Gather,
    socket: Key,
    fd: RawFd,
    /// Expected to be taken by the socket at once.
    prompt: bool,
    /// [`Uring::serial`] of the call that submitted it.
    serial: u64,
}

/// A gather that the kernel gave back.
pub(crate) struct SendDone {
    pub(crate) socket: Key,
    pub(crate) gather: Gather,
    /// It did not complete within the call that submitted it.
    pub(crate) slow: bool,
}

pub(crate) struct Uring {
    ring: IoUring,
    /// Index of the registered ring descriptor, which spares a look-up per call.
    registered: Option<u32>,
    features: Vec<&'static str>,
    polls: VecDeque<PollChange>,
    sends: Slab<Sending>,
    /// Of `sends`, those not submitted yet.
    outbox: VecDeque<Key>,
    disk: DiskQueue,
    /// Counts system calls.
    serial: u64,
    /// Sends submitted by the next call that are expected to complete in it.
    prompt_sends: u32,
}

impl Uring {
    /// Opens a ring for the calling thread, with what the kernel offers.
    pub(crate) fn open(disk: DiskQueue) -> Result<Self, Refusal> {
        Self::open_without(0, disk)
    }

    /// As [`Uring::open`], giving up the first `given_up` flags from the start.
    fn open_without(mut given_up: usize, disk: DiskQueue) -> Result<Self, Refusal> {
        let ring = build(&mut given_up)?;
        let registered = register_ring(&ring);
        let mut features = feature_names(&FLAGS[given_up..]);
        if registered.is_some() {
            features.push("registered_ring");
        }
        Ok(Self {
            ring,
            registered,
            features,
            polls: VecDeque::new(),
            sends: Slab::new(),
            outbox: VecDeque::new(),
            disk,
            serial: 0,
            prompt_sends: 0,
        })
    }

    pub(crate) fn features(&self) -> Vec<&'static str> {
        self.features.clone()
    }

    /// Watches `fd`, which must stay open until [`Uring::unwatch`]. What is ready already is
    /// reported too.
    pub(crate) fn watch(&mut self, fd: RawFd, token: Token, interest: u32, multishot: bool) {
        self.polls.push_back(PollChange::Add {
            fd,
            token,
            interest,
            multishot,
        });
    }

    /// Watches it no longer. Events on their way still come.
    pub(crate) fn unwatch(&mut self, token: Token) {
        let waiting = self
            .polls
            .iter()
            .position(|change| matches!(change, PollChange::Add { token: t, .. } if *t == token));
        match waiting {
            Some(index) => drop(self.polls.remove(index)),
            None => self.polls.push_back(PollChange::Remove { token }),
        }
    }

    /// Queues a prepared gather. `prompt`: the socket will take it at once.
    pub(crate) fn send(&mut self, fd: RawFd, socket: Key, gather: Gather, prompt: bool) -> Key {
        let key = self.sends.insert(Sending {
            gather,
            socket,
            fd,
            prompt,
            serial: 0,
        });
        self.outbox.push_back(key);
        key
    }

    /// Takes a send back. False: the kernel holds it, and its completion will still come.
    pub(crate) fn cancel_send(&mut self, key: Key) -> bool {
        let Some(index) = self.outbox.iter().position(|waiting| *waiting == key) else {
            return self.sends.get(key).is_none();
        };
        self.outbox.remove(index);
        drop(self.sends.remove(key));
        true
    }

    /// Takes the gather of a completed send.
    pub(crate) fn finish_send(&mut self, key: Key) -> Option<SendDone> {
        let Sending {
            gather,
            socket,
            serial,
            ..
        } = self.sends.remove(key)?;
        Some(SendDone {
            socket,
            gather,
            slow: serial != self.serial,
        })
    }

    /// Requests that the kernel refused to take for now. While there are any, a descriptor that
    /// was in use must not be closed.
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Whether requests wait to be submitted.
    pub(crate) fn has_queued(&mut self) -> bool {
        !self.polls.is_empty()
            || !self.outbox.is_empty()
            || self.disk.with(|table| table.has_queued())
            || self.has_unsubmitted()
    }

    /// Whether the kernel has something for us. Looks at shared memory only.
    pub(crate) fn has_events(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.needs_enter()
    }

    /// Whether completions wait for a system call to be posted.
    pub(crate) fn needs_enter(&mut self) -> bool {
        let submission = self.ring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Whether nothing is posted yet, but completions wait to be.
    pub(crate) fn has_only_deferred(&mut self) -> bool {
        self.ring.completion().is_empty() && self.ring.submission().taskrun()
    }

    /// Submits everything queued, waits, and appends what completed to `events`.
    pub(crate) fn enter(&mut self, wait: Wait, events: &mut Vec<Event>, counters: &mut Counters) {
        while !self.fill(counters) {
            // The ring is full: make room. The last call of the loop may wait.
            let before = self.ring.submission().len();
            self.call(0, Wait::No, counters);
            if self.ring.submission().len() == before {
                break;
            }
        }
        let wait = if self.ring.completion().is_empty() {
            wait
        } else {
            Wait::No
        };
        let (want, wait) = match wait {
            Wait::No => (0, wait),
            Wait::For(span) if self.prompt_sends > 0 => {
                (1 + self.prompt_sends, Wait::For(span.min(SEND_WAIT)))
            }
            Wait::Forever if self.prompt_sends > 0 => (1 + self.prompt_sends, Wait::For(SEND_WAIT)),
            Wait::For(_) | Wait::Forever => (1, wait),
        };
        self.call(want, wait, counters);
        self.reap(events, counters);
    }

    /// Appends what has completed already to `events`.
    pub(crate) fn reap(&mut self, events: &mut Vec<Event>, counters: &mut Counters) {
        let before = events.len();
        events.extend(self.ring.completion().map(|entry| Event {
            token: Token::decode(entry.user_data()),
            result: entry.result(),
            more: cqueue::more(entry.flags()),
        }));
        counters.cqes += (events.len() - before) as u64;
    }

    /// Turns queued requests into submissions. False: the ring is full.
    fn fill(&mut self, counters: &mut Counters) -> bool {
        let mut submission = self.ring.submission();
        while let Some(change) = self.polls.front() {
            // SAFETY: a poll request carries no pointer.
            if unsafe { submission.push(&poll_entry(change)) }.is_err() {
                return false;
            }
            self.polls.pop_front();
        }
        while let Some(key) = self.outbox.front().copied() {
            let Some(sending) = self.sends.get_mut(key) else {
                self.outbox.pop_front();
                continue;
            };
            let entry = opcode::SendMsg::new(types::Fd(sending.fd), sending.gather.message())
                .flags(SEND_FLAGS)
                .build()
                .user_data(Token::new(Kind::Send, key).encode());
            // SAFETY: the message and all it points to belong to the gather, which stays in
            // `sends` until the completion arrives, or is leaked by `drop`.
            if unsafe { submission.push(&entry) }.is_err() {
                return false;
            }
            self.outbox.pop_front();
            // The call that submits it is the next one.
            sending.serial = self.serial + 1;
            self.prompt_sends += u32::from(sending.prompt);
        }
        self.disk.with(|table| {
            while let Some(entry) = table.next_submission() {
                // SAFETY: the entry's pointers lead to a slot of the table and to buffers the slot
                // owns; both stay until the completion arrives, or are leaked by `drop`.
                if unsafe { submission.push(&entry) }.is_err() {
                    table.put_back(&entry);
                    return false;
                }
                counters.disk_ops += 1;
            }
            true
        })
    }

    /// `io_uring_enter`. Being interrupted, timed out, or told to come again is not an error: the
    /// caller looks at the queues anyway.
    fn call(&mut self, want: u32, wait: Wait, counters: &mut Counters) {
        let queued = self.ring.submission().len();
        // Cannot fail: there are SQ_ENTRIES at most.
        let queued = u32::try_from(queued).unwrap_or(SQ_ENTRIES);
        let (ring, mut flags) = match self.registered {
            Some(index) => (i64::from(index), ENTER_REGISTERED_RING),
            None => (i64::from(self.ring.as_raw_fd()), 0),
        };
        flags |= io_uring::EnterFlags::GETEVENTS.bits();
        let span = if let Wait::For(span) = wait {
            span
        } else {
            Nanos::ZERO
        };
        let timeout = kernel_timespec(span);
        let argument = EnterArgument {
            sigmask: 0,
            sigmask_bytes: 0,
            min_wait_usec: 0,
            timeout: (&raw const timeout).addr() as u64,
        };
        let (argument, argument_bytes) = if matches!(wait, Wait::For(_)) {
            flags |= io_uring::EnterFlags::EXT_ARG.bits();
            (&raw const argument, size_of::<EnterArgument>())
        } else {
            (std::ptr::null(), 0)
        };
        // SAFETY: the arguments are those of io_uring_enter; the argument structure and the time
        // outlive the call. What the submissions point to was argued where they were queued.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                ring,
                queued,
                want,
                flags,
                argument,
                argument_bytes,
            )
        };
        counters.enters += 1;
        self.serial += 1;
        self.prompt_sends = 0;
        match u64::try_from(result) {
            Ok(submitted) => counters.sqes += submitted,
            Err(_) => {
                let error = io::Error::last_os_error();
                // Whether the call is permitted at all was tried when the ring was opened.
                assert!(is_transient(&error), "io_uring_enter: {error}");
            }
        }
    }

    /// Requests whose memory the kernel may still use.
    fn held(&self) -> usize {
        self.sends.len() + self.disk.with(|table| table.in_kernel())
    }

    /// Frees what the kernel has given back in these completions, which nobody will handle.
    pub(crate) fn take_back(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event.token.kind {
                Kind::Send => drop(self.sends.remove(event.token.key)),
                Kind::Disk => {
                    self.disk
                        .with(|table| table.complete(event.token.key, event.result));
                }
                Kind::Ignore | Kind::Wake | Kind::Accept | Kind::Socket => {}
            }
        }
    }

    /// Cancels everything and waits for the kernel to give back what it holds.
    fn recall(&mut self) {
        self.polls.clear();
        for key in std::mem::take(&mut self.outbox) {
            drop(self.sends.remove(key));
        }
        self.disk.with(|table| table.close());
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any())
            .build()
            .user_data(Token::IGNORE.encode());
        // SAFETY: the request carries no pointer. Without room for it the wait below is longer.
        let _ = unsafe { self.ring.submission().push(&cancel) };
        let (mut events, mut counters) = (Vec::new(), Counters::default());
        let deadline = monotonic_now().after(DROP_WAIT);
        // Once without waiting: sockets whose polls are cancelled close without delay.
        self.enter(Wait::No, &mut events, &mut counters);
        loop {
            self.take_back(&mut events);
            let now = monotonic_now();
            if self.held() == 0 || now >= deadline {
                break;
            }
            self.enter(
                Wait::For(deadline.saturating_sub(now)),
                &mut events,
                &mut counters,
            );
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.recall();
        // Otherwise the thread would keep the ring, and one of its few places, until it ends.
        if let Some(index) = self.registered.take() {
            unregister_ring(&self.ring, index);
        }
        let held = self.held();
        if held > 0 {
            tracing::error!(held, "the kernel kept requests, their memory is not freed");
            std::mem::forget(std::mem::replace(&mut self.sends, Slab::new()));
            self.disk.with(|table| table.leak());
        }
    }
}

/// A whole gather per completion, and no signal when the peer is gone.
const SEND_FLAGS: u32 = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;

fn poll_entry(change: &PollChange) -> squeue::Entry {
    match *change {
        PollChange::Add {
            fd,
            token,
            interest,
            multishot,
        } => opcode::PollAdd::new(types::Fd(fd), interest)
            .multi(multishot)
            .build()
            .user_data(token.encode()),
        // Not a removal: the kernel refuses that (EALREADY) while an event of the poll is on its
        // way, and the poll would stay and keep the socket from being closed.
        PollChange::Remove { token } => opcode::AsyncCancel::new(token.encode())
            .build()
            .user_data(Token::IGNORE.encode()),
    }
}

fn kernel_timespec(span: Nanos) -> KernelTimespec {
    const NANOS_PER_SEC: u64 = 1_000_000_000;
    KernelTimespec {
        secs: i64::try_from(span.0 / NANOS_PER_SEC).unwrap_or(i64::MAX),
        nanos: i64::try_from(span.0 % NANOS_PER_SEC).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backend;
    use crate::mailbox::Waker;

    #[test]
    fn every_rung_of_the_flag_ladder_gives_a_working_ring() {
        for given_up in 0..=FLAGS.len() {
            let waker = Waker::new().unwrap();
            let disk = DiskQueue::new(Backend::Uring, waker.clone());
            let Ok(mut ring) = Uring::open_without(given_up, disk) else {
                return; // Not permitted here; the reactor's own tests say so.
            };
            ring.watch(
                waker.eventfd().as_raw_fd(),
                Token::WAKE,
                crate::driver::READ_INTEREST,
                true,
            );
            let (mut events, mut counters) = (Vec::new(), Counters::default());
            ring.enter(Wait::No, &mut events, &mut counters);
            assert!(events.is_empty());
            assert!(waker.park());
            waker.wake();
            ring.enter(Wait::Forever, &mut events, &mut counters);
            assert_eq!(events[0].token, Token::WAKE, "{:?}", ring.features());
            assert!(events[0].more);
        }
    }

    #[test]
    fn dropped_ring_gives_its_place_on_the_thread_back() {
        // The kernel has 16 places per thread.
        for number in 0..40 {
            let waker = Waker::new().unwrap();
            let disk = DiskQueue::new(Backend::Uring, waker);
            let Ok(ring) = Uring::open(disk) else {
                return; // Not permitted here; the reactor's own tests say so.
            };
            if number == 0 && ring.registered.is_none() {
                return; // Before Linux 5.18.
            }
            assert!(ring.registered.is_some(), "ring {number}");
        }
    }
}
