//! The reactor of a run, and how its thread waits.

use std::io;
use std::num::NonZeroU64;

use bowline_nvme::Nanos;
use bowline_reactor::{Config, LocalReactor, Reactor, monotonic_now};
use rustix::thread::{nanosleep, set_current_timer_slack};
use rustix::time::Timespec;

use crate::doze::Doze;
use crate::job::Poll;
use crate::load::LoadService;

/// A sleep is to end when asked, not up to 50 us later as Linux has it by default.
const TIMER_SLACK: Option<NonZeroU64> = NonZeroU64::new(1);

/// Connections, and the load on them, driven by the calling thread.
pub(crate) struct Client {
    local: LocalReactor<LoadService>,
    /// Sleeps by the clock. Without it the reactor waits as it was told.
    doze: Option<Doze>,
    /// Sleeps so far.
    sleeps: u64,
}

impl Client {
    pub(crate) fn new(config: &Config, poll: Poll) -> io::Result<Self> {
        let local = LocalReactor::new(config, |_, _| Ok(LoadService::default()))?;
        let doze = (poll == Poll::Doze).then(Doze::new);
        if doze.is_some() {
            set_current_timer_slack(TIMER_SLACK)?;
        }
        Ok(Self {
            local,
            doze,
            sleeps: 0,
        })
    }

    pub(crate) const fn service(&self) -> &LoadService {
        self.local.service()
    }

    pub(crate) const fn parts(&mut self) -> (&mut LoadService, &mut Reactor) {
        self.local.parts()
    }

    pub(crate) const fn reactor(&self) -> &Reactor {
        self.local.reactor()
    }

    /// System calls so far.
    pub(crate) fn system_calls(&self) -> u64 {
        self.reactor().counters().syscalls() + self.sleeps
    }

    /// Runs until `done` holds after a turn (true), or the monotonic clock reaches `deadline`.
    pub(crate) fn run_until_that(
        &mut self,
        deadline: Nanos,
        mut done: impl FnMut(&mut LoadService, &mut Reactor) -> bool,
    ) -> bool {
        let Some(doze) = &mut self.doze else {
            return self.local.run_until_that(deadline, done);
        };
        loop {
            let now = monotonic_now();
            let (outstanding, before) = progress_of(self.local.service());
            let turn = self.local.turn(now);
            let (service, reactor) = self.local.parts();
            let is_done = done(service, reactor);
            if is_done || now >= deadline {
                return is_done;
            }
            let (_, after) = progress_of(self.local.service());
            doze.found(after - before, outstanding);
            let due = turn.next.map_or(deadline, |at| at.min(deadline));
            let span = doze.span().min(due.saturating_sub(now));
            if !turn.more && span > Nanos::ZERO {
                self.sleeps += 1;
                // One that is interrupted only ends early.
                let _ = nanosleep(&timespec(span));
            }
        }
    }
}

/// Commands outstanding, and completed so far.
fn progress_of(service: &LoadService) -> (u64, u64) {
    let load = service.load.as_ref();
    load.map_or((0, 0), |load| (load.outstanding(), load.completed))
}

fn timespec(span: Nanos) -> Timespec {
    const NANOS_PER_SEC: u64 = 1_000_000_000;
    Timespec {
        tv_sec: i64::try_from(span.0 / NANOS_PER_SEC).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(span.0 % NANOS_PER_SEC).unwrap_or(0),
    }
}
