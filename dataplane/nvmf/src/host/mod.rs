//! The host (initiator) side of NVMe/TCP, without I/O.
//!
//! [`HostQueue`] is one queue pair on one connection: ICReq, Connect, command slots, data in both
//! directions. [`HostController`] is one association: the admin queue's bring-up, the I/O queues,
//! keep-alive, namespaces, asynchronous events, orderly shutdown, and coming back after a loss.
//!
//! The owner (the glue) has the sockets, the clock and the data buffers. It feeds bytes in as
//! [`Rx`] asks for them, sends what `poll_output` returns, acts on `poll_event`, and calls
//! `handle_timeout` at `poll_timeout`. User data never passes through: the machines speak of it
//! as ranges of a slot's buffer. Every field a controller sends is checked; a violation ends the
//! connection with H2CTermReq and is never a panic.
//!
//! **A lost connection** ends the whole association, as on Linux: every command in flight is
//! given back at once with [`Status::HOST_PATHING`](bowline_nvme::Status) and
//! [`Completion::path_lost`] set, and nothing is retried here. Whether a command may be repeated
//! is only known to its owner (a write that may have happened can be repeated if nothing else
//! wrote meanwhile; a compare-and-write can not). What the lost controller still held is the
//! target's to fence, and ours runs none of it after the next Connect, once it knows of the loss.
//! A target that has not heard of it yet may run an old command later: whoever repeats a write
//! elsewhere or soon must fence by other means (reservations, epochs).

mod backoff;
mod bring_up;
mod close_reason;
pub mod command;
mod controller;
mod discovery;
mod namespace;
mod queue;
mod receive;
mod referral;
mod request;
mod slots;
mod transmit;

pub use backoff::Reconnect;
pub use bring_up::ControllerFacts;
pub use close_reason::CloseReason;
pub use controller::{ControllerConfig, HostController, HostEvent, HostState};
pub use discovery::{DiscoveryError, DiscoveryReader};
pub use namespace::HostNamespace;
pub use queue::{HostIdentity, HostQueue, HostQueueConfig, Output, QueueEvent, Rx};
pub use referral::{Portal, ReferralLimits, ReferralWalk};
pub use request::{Command, Completion, SubmitError};
pub use slots::{SlotId, Transfer};
pub use transmit::{TxPayload, TxPdu};

#[cfg(test)]
mod tests;
