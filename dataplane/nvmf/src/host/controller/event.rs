//! What an association tells its owner.

use bowline_nvme::Nanos;
use bowline_nvme::event::AsyncEvent;

use crate::host::close_reason::CloseReason;
use crate::host::request::Completion;

/// Where an association is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostState {
    /// Not started.
    Idle,
    /// On the way up.
    Connecting,
    /// Commands are taken.
    Ready,
    /// On the way down, orderly.
    ShuttingDown,
    /// Lost; tried again at this time.
    Waiting {
        /// When.
        until: Nanos,
    },
    /// Ended for good; [`HostController::connect`] starts anew.
    Stopped,
}

/// What the owner should do or know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostEvent {
    /// Open a connection for this queue, then call `opened`, or `closed` if it cannot be opened.
    Open {
        /// Index of the queue; 0 is the admin queue.
        queue: u16,
    },
    /// Send what `poll_output` still has for this queue, then close its connection, or give up
    /// opening it. Nothing more is to be reported for that connection.
    Close {
        /// Index of the queue.
        queue: u16,
    },
    /// The association is up: facts and namespaces are known, commands are taken.
    Connected,
    /// A command of the owner's finished; the slot's buffer is the owner's again.
    Complete {
        /// Index of the queue.
        queue: u16,
        /// Which, and how.
        completion: Completion,
    },
    /// The list of namespaces, or one of them, changed.
    NamespacesChanged,
    /// Another asynchronous event.
    AsyncEvent(AsyncEvent),
    /// The association was lost, and is tried again by itself. All commands were completed.
    Disconnected {
        /// Why.
        reason: CloseReason,
        /// When the next attempt begins.
        retry_at: Nanos,
    },
    /// The association ended and nothing more happens by itself. All commands were completed.
    Stopped {
        /// Why.
        reason: CloseReason,
    },
}
