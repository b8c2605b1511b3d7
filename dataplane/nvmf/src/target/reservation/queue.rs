//! The reservation commands of one namespace, one at a time.
//!
//! ```text
//! waiting ─► decided ─what must be durable changes─► Storing ─stored─► Enacted ─no victim left─► ended
//!               ├─nothing more to make durable─────────────┼─────────────▲                       ▲
//!               └─refused──────────────────────────────────┴─failed──────────────────────────────┘
//! ```
//!
//! Until the new state is durable the old one is in force, and no other command is looked at: it
//! would have to be decided on a state that may not come.

use std::collections::VecDeque;

use bowline_nvme::Status;

use super::change::{Change, Request};
use super::{HostId, Persistence, ReservationState, StoreId};
use crate::target::output::{ConnId, SlotId};

/// Names a waiting command. Its slot may be given to another meanwhile, which the number tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::target) struct Ticket {
    pub(super) conn: ConnId,
    pub(super) slot: SlotId,
    pub(super) number: u64,
}

/// A command that waits, or is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::target) struct Task {
    pub(super) ticket: Ticket,
    pub(super) host: HostId,
    pub(super) request: Request,
    /// The same is asked of every namespace after this one.
    pub(super) all: bool,
}

#[derive(Debug)]
enum Work {
    Storing {
        id: StoreId,
        task: Task,
        change: Change,
    },
    /// The new state is in force; this many commands of those preempted are at the device.
    Enacted { task: Task, victims: u32 },
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: no command is there, or it waits for somebody.
    Idle,
    /// Respond.
    Ended(Task, Status),
    /// Have this stored, then call [`Reservations::stored`].
    Store(Option<ReservationState>),
    /// The new state is in force: act on the news, then call [`Reservations::enacted`].
    Enact(Task, Change),
}

/// Reservations of a namespace, and the commands that change them.
#[derive(Debug)]
pub(in crate::target) struct Reservations {
    state: ReservationState,
    /// There can be reservations.
    supported: bool,
    /// The state can outlive the process.
    persists: bool,
    work: Option<Box<Work>>,
    /// Each had a command slot when it came. What lost connections left behind is dropped when its
    /// turn comes, or when there are too many.
    waiting: VecDeque<Task>,
    /// At this many, those left behind are looked for.
    sweep_at: usize,
}

/// So few waiting commands need not be looked through.
const SWEEP_AT_MIN: usize = 64;

/// The state could not be made durable. A later try may succeed.
const NOT_STORED: Status = Status::INTERNAL;

impl Reservations {
    pub(in crate::target) fn new(persistence: Persistence) -> Self {
        let supported = persistence != Persistence::NoReservations;
        let (persists, state) = match persistence {
            Persistence::NoReservations | Persistence::Unsupported => (false, None),
            Persistence::Stored(state) => (true, state),
        };
        Self {
            supported,
            state: state.unwrap_or_default(),
            persists,
            work: None,
            waiting: VecDeque::new(),
            sweep_at: SWEEP_AT_MIN,
        }
    }

    pub(in crate::target) fn state(&self) -> &ReservationState {
        &self.state
    }

    pub(in crate::target) fn are_supported(&self) -> bool {
        self.supported
    }

    pub(in crate::target) fn persists(&self) -> bool {
        self.persists
    }

    /// Whether a command is being made durable, or waits for the commands of others.
    pub(in crate::target) fn is_at_work(&self) -> bool {
        self.work.is_some()
    }

    pub(super) fn submit(&mut self, task: Task, is_live: impl Fn(&Ticket) -> bool) {
        // While the one at work waits, for a store or a device, hosts may come and go for ever.
        if self.waiting.len() >= self.sweep_at {
            self.waiting.retain(|task| is_live(&task.ticket));
            self.sweep_at = SWEEP_AT_MIN.max(2 * self.waiting.len());
        }
        self.waiting.push_back(task);
    }

    /// Begins the next command whose host still waits for it. `id` names the store request, if
    /// there is to be one.
    pub(super) fn step(&mut self, id: StoreId, is_live: impl Fn(&Ticket) -> bool) -> Step {
        if self.work.is_some() {
            return Step::Idle;
        }
        // What a lost connection left behind has not begun, and its host will not expect it.
        let mut waiting = std::iter::from_fn(|| self.waiting.pop_front());
        let Some(task) = waiting.find(|task| is_live(&task.ticket)) else {
            return Step::Idle;
        };
        let change = match self.state.change(&task.host, &task.request, self.persists) {
            Ok(change) => change,
            Err(status) => return Step::Ended(task, status),
        };
        if change.next.durable() == self.state.durable() {
            return self.enact(task, change);
        }
        let durable = change.next.durable().cloned();
        self.work = Some(Box::new(Work::Storing { id, task, change }));
        Step::Store(durable)
    }

    /// The owner has said whether what `id` named is durable.
    pub(super) fn stored(&mut self, id: StoreId, durable: bool) -> Step {
        let is_it =
            |work: &mut Box<Work>| matches!(**work, Work::Storing { id: it, .. } if it == id);
        let Some(work) = self.work.take_if(is_it) else {
            return Step::Idle;
        };
        match *work {
            Work::Storing { task, change, .. } if durable => self.enact(task, change),
            Work::Storing { task, .. } | Work::Enacted { task, .. } => {
                Step::Ended(task, NOT_STORED)
            }
        }
    }

    fn enact(&mut self, task: Task, mut change: Change) -> Step {
        std::mem::swap(&mut self.state, &mut change.next);
        self.work = Some(Box::new(Work::Enacted { task, victims: 0 }));
        Step::Enact(task, change)
    }

    /// The change has been acted upon, and `victims` commands are waited for.
    pub(super) fn enacted(&mut self, victims: u32) -> Option<Task> {
        if let Some(Work::Enacted { victims: left, .. }) = self.work.as_deref_mut() {
            *left = victims;
        }
        self.take_finished()
    }

    /// A command that was waited for has left the device.
    pub(super) fn victim_ended(&mut self) -> Option<Task> {
        if let Some(Work::Enacted { victims, .. }) = self.work.as_deref_mut() {
            *victims = victims.saturating_sub(1);
        }
        self.take_finished()
    }

    fn take_finished(&mut self) -> Option<Task> {
        let done = |work: &mut Box<Work>| matches!(**work, Work::Enacted { victims: 0, .. });
        match *self.work.take_if(done)? {
            Work::Enacted { task, .. } | Work::Storing { task, .. } => Some(task),
        }
    }

    /// Takes those out that still wait for their turn.
    pub(super) fn withdraw(&mut self, concerns: impl Fn(&Task) -> bool) -> Vec<Task> {
        let (out, stay) = self.waiting.drain(..).partition(|task| concerns(task));
        self.waiting = stay;
        Vec::from(out)
    }

    /// Takes all out, also what is at work: the namespace has gone.
    pub(super) fn clear(&mut self) -> Vec<Task> {
        let work = self.work.take().map(|work| match *work {
            Work::Storing { task, .. } | Work::Enacted { task, .. } => task,
        });
        work.into_iter().chain(self.waiting.drain(..)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u64) -> Task {
        let conn = ConnId {
            index: 0,
            generation: 0,
        };
        Task {
            ticket: Ticket {
                conn,
                slot: SlotId(0),
                number,
            },
            host: [1; 16],
            request: Request::Persist(true),
            all: false,
        }
    }

    /// Hosts that came, asked and went while a store took its time were remembered each, without
    /// end.
    #[test]
    fn commands_of_hosts_that_have_gone_do_not_pile_up_behind_a_slow_store() {
        let mut reservations = Reservations::new(Persistence::Stored(None));
        reservations.submit(task(0), |_| true);
        let step = reservations.step(StoreId(1), |_| true);
        assert!(matches!(step, Step::Store(Some(_))), "{step:?}");
        // Every hundredth host waits.
        let is_live = |ticket: &Ticket| ticket.number.is_multiple_of(100);
        for number in 1..=10_000 {
            reservations.submit(task(number), is_live);
        }
        assert!(reservations.waiting.len() <= 300);
        let live = reservations.waiting.iter();
        assert_eq!(live.filter(|task| is_live(&task.ticket)).count(), 100);
    }
}
