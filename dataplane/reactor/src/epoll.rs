//! The epoll engine: edge-triggered readiness.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bowline_nvme::Nanos;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::counters::Counters;
use crate::driver::{Event, Wait};
use crate::slab::Token;

/// Events taken by one wait; the rest come with the next.
const EVENTS_MAX: usize = 256;

const NANOS_PER_MILLI: u64 = 1_000_000;

pub(crate) struct Epoll {
    fd: OwnedFd,
    buffer: Vec<epoll::Event>,
    /// `epoll_pwait2` is missing or forbidden: waits last whole milliseconds.
    whole_millis: bool,
}

impl Epoll {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            fd: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            buffer: Vec::with_capacity(EVENTS_MAX),
            whole_millis: false,
        })
    }

    /// Watches `fd`. What is ready already is reported too.
    pub(crate) fn watch(
        &self,
        fd: impl AsFd,
        token: Token,
        interest: u32,
        counters: &mut Counters,
    ) -> io::Result<()> {
        counters.epoll_ctls += 1;
        epoll::add(
            &self.fd,
            fd,
            epoll::EventData::new_u64(token.encode()),
            flags(interest),
        )?;
        Ok(())
    }

    /// Changes what is watched. What is ready already is reported again.
    pub(crate) fn change(
        &self,
        fd: impl AsFd,
        token: Token,
        interest: u32,
        counters: &mut Counters,
    ) -> io::Result<()> {
        counters.epoll_ctls += 1;
        epoll::modify(
            &self.fd,
            fd,
            epoll::EventData::new_u64(token.encode()),
            flags(interest),
        )?;
        Ok(())
    }

    pub(crate) fn unwatch(&self, fd: impl AsFd, counters: &mut Counters) {
        counters.epoll_ctls += 1;
        // Fails only if it was not watched, and then the goal is reached.
        let _ = epoll::delete(&self.fd, fd);
    }

    /// Appends what happened to `events`.
    pub(crate) fn wait(&mut self, wait: Wait, events: &mut Vec<Event>, counters: &mut Counters) {
        self.buffer.clear();
        let timeout = self.timeout(wait);
        counters.epoll_waits += 1;
        match epoll::wait(&self.fd, spare_capacity(&mut self.buffer), timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return,
            Err(error) if !self.whole_millis => {
                tracing::debug!(%error, "epoll_pwait2 is not usable, waits last whole milliseconds");
                self.whole_millis = true;
                return;
            }
            // A valid descriptor and buffer leave no other error.
            Err(error) => panic!("epoll_wait: {error}"),
        }
        events.extend(self.buffer.iter().map(|event| {
            let (data, flags) = (event.data, event.flags);
            Event {
                token: Token::decode(data.u64()),
                result: i32::from_ne_bytes(flags.bits().to_ne_bytes()),
                more: true,
            }
        }));
    }

    fn timeout(&self, wait: Wait) -> Option<Timespec> {
        let span = match wait {
            Wait::No => Nanos::ZERO,
            Wait::For(span) if self.whole_millis => Nanos(
                span.0
                    .div_ceil(NANOS_PER_MILLI)
                    .saturating_mul(NANOS_PER_MILLI),
            ),
            Wait::For(span) => span,
            Wait::Forever => return None,
        };
        // Longer than the type can say is as good as forever.
        std::time::Duration::from_nanos(span.0).try_into().ok()
    }
}

/// Edge-triggered. `POLL*` and `EPOLL*` bits have equal values.
fn flags(interest: u32) -> epoll::EventFlags {
    epoll::EventFlags::from_bits_retain(interest) | epoll::EventFlags::ET
}
