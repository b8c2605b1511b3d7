//! What keeps a connected controller connected, and what is known about it true: keep-alive,
//! asynchronous events, and the namespaces they are about.

use bowline_nvme::event::AsyncEvent;
use bowline_nvme::log::{self, GetLogPage};
use bowline_nvme::{NamespaceId, Nanos};

use super::{HostController, Phase, token};
use crate::host::close_reason::CloseReason;
use crate::host::command;
use crate::host::controller::event::HostEvent;
use crate::host::namespace::NamespaceScan;
use crate::host::request::Completion;
use crate::host::slots::Transfer;

/// Work on the admin queue of a connected controller, one piece at a time.
#[derive(Debug)]
pub(super) enum Task {
    /// Reading the changed namespace list re-arms its event. [BASE-2.0 §5.16.1.5]
    ChangedNamespacesLog,
    Scan(NamespaceScan),
}

#[derive(Debug, Default)]
pub(super) struct KeepAlive {
    /// Zero if there is none.
    pub(super) timeout: Nanos,
    pub(super) due_at: Option<Nanos>,
    pub(super) sent_at: Option<Nanos>,
}

impl KeepAlive {
    /// The next is due half a time-out after this one was sent, however late its answer came: the
    /// controller has been counting since then.
    pub(super) fn answered(&mut self, now: Nanos) {
        if let Some(sent) = self.sent_at.take() {
            self.due_at = Some(sent.after(self.half()).max(now));
        }
    }

    fn half(&self) -> Nanos {
        Nanos((self.timeout.0 / 2).max(1))
    }
}

impl HostController {
    /// [BASE-2.0 §3.9]: one Keep Alive every half time-out leaves room for one lost half.
    pub(super) fn on_keep_alive(&mut self, now: Nanos) {
        let timeout = self.keep_alive.timeout;
        match self.keep_alive.sent_at {
            Some(sent) if sent.after(timeout) <= now => {
                self.lose(now, CloseReason::KeepAliveTimeout);
            }
            Some(sent) => self.keep_alive.due_at = Some(sent.after(timeout)),
            None => {
                self.keep_alive.sent_at = Some(now);
                self.keep_alive.due_at = Some(now.after(self.keep_alive.half()));
                self.run(
                    now,
                    command::keep_alive(),
                    Transfer::None,
                    token::KEEP_ALIVE,
                );
            }
        }
    }

    pub(super) fn on_async_event(&mut self, now: Nanos, completion: &Completion) {
        // A controller that refuses the request has no events for us.
        if !completion.status.is_success() {
            return;
        }
        let [r0, r1, r2, r3, ..] = completion.result.to_le_bytes();
        let event = AsyncEvent::decode(u32::from_le_bytes([r0, r1, r2, r3]));
        if event == AsyncEvent::NAMESPACE_CHANGED {
            self.rescan = true;
            self.start_task(now);
        } else {
            self.events.push_back(HostEvent::AsyncEvent(event));
        }
        if matches!(self.phase, Phase::IoQueues | Phase::Ready) {
            self.run(
                now,
                command::async_event_request(),
                Transfer::None,
                token::ASYNC_EVENT,
            );
        }
    }

    /// Begins following a namespace change, if one is pending and nothing else is under way.
    pub(super) fn start_task(&mut self, now: Nanos) {
        if self.phase != Phase::Ready || self.task.is_some() || !self.rescan {
            return;
        }
        self.rescan = false;
        self.task = Some(Task::ChangedNamespacesLog);
        // Its content is not needed: everything is looked at anew.
        let page = GetLogPage::range(log::id::CHANGED_NAMESPACE_LIST, 0, 4096);
        let sqe = page.encode().with_nsid(NamespaceId::BROADCAST);
        self.run(now, sqe, Transfer::ToHost { len: 4096 }, token::TASK);
    }

    pub(super) fn on_task(&mut self, now: Nanos, completion: &Completion) {
        let admin = self.queues.first().and_then(|entry| entry.queue.as_ref());
        let (Some(task), Some(admin)) = (&mut self.task, admin) else {
            return;
        };
        match task {
            Task::ChangedNamespacesLog => {
                *task = Task::Scan(NamespaceScan::new(self.config.namespaces_max));
            }
            Task::Scan(scan) => {
                // What is known stays known; the next event, or connection, tries again.
                if scan.handle(completion.status, admin.control()).is_err() {
                    self.task = None;
                }
            }
        }
        self.drive_scan(now);
    }

    fn drive_scan(&mut self, now: Nanos) {
        let command = match &self.task {
            Some(Task::Scan(scan)) => scan.command(),
            Some(Task::ChangedNamespacesLog) | None => None,
        };
        if let Some(sqe) = command {
            self.run(now, sqe, Transfer::ToHost { len: 4096 }, token::TASK);
            return;
        }
        if let Some(Task::Scan(scan)) = self.task.take() {
            let namespaces = scan.into_namespaces();
            if namespaces != self.namespaces {
                self.namespaces = namespaces;
                self.events.push_back(HostEvent::NamespacesChanged);
            }
        }
        self.start_task(now);
    }
}
