//! Which queues have something to say, and when one wants to act: what is looked at is what
//! something happened to, however many queues there are.

use bowline_nvme::Nanos;

use super::{HostController, Transport};
use crate::host::queue::{HostQueue, QueueEvent};

impl HostController {
    /// Lets a queue act, and has its events and timers looked at.
    pub(super) fn with_queue<R>(
        &mut self,
        queue: u16,
        act: impl FnOnce(&mut HostQueue) -> R,
    ) -> Option<R> {
        let acting = self.queues.get_mut(usize::from(queue))?.queue.as_mut()?;
        let result = act(acting);
        let due = acting.poll_timeout();
        self.note_due(due);
        self.list(queue);
        Some(result)
    }

    /// Has the events of a queue looked at.
    pub(super) fn list(&mut self, queue: u16) {
        if let Some(entry) = self.queues.get_mut(usize::from(queue))
            && !entry.listed
        {
            entry.listed = true;
            self.listed.push_back(queue);
        }
    }

    /// The next event of a listed queue; one queue after the other.
    pub(super) fn next_queue_event(&mut self) -> Option<(u16, QueueEvent)> {
        while let Some(queue) = self.listed.front().copied() {
            let entry = self.queues.get_mut(usize::from(queue))?;
            if let Some(event) = entry.queue.as_mut().and_then(HostQueue::poll_event) {
                return Some((queue, event));
            }
            entry.listed = false;
            self.listed.pop_front();
        }
        None
    }

    /// A queue wants to act then.
    pub(super) fn note_due(&mut self, at: Option<Nanos>) {
        self.queues_due = match (self.queues_due, at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }

    /// Looks at every queue's timer: those that were noted may have been put off since.
    pub(super) fn renew_due(&mut self) {
        let timers = self
            .queues
            .iter()
            .filter_map(|entry| match entry.transport {
                Transport::Opening { until } => Some(until),
                Transport::Open => entry.queue.as_ref().and_then(HostQueue::poll_timeout),
                Transport::Closed => None,
            });
        self.queues_due = timers.min();
    }
}
