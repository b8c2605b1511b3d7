//! Our own host (initiator): associations of `nvmf::host` on a reactor's sockets.
//!
//! - [`HostPath`] is one association: its state machine, its sockets, the data of its commands.
//! - [`HostService`] runs any number of them on a reactor.
//! - [`Initiator`] is a `HostService` on a reactor of the caller's thread, with blocking calls
//!   for those who want them.
//!
//! The owner brings data as [`Segments`](bowline_block::Segments) and gets it back with the
//! completion. What a read brings is received into these buffers, directly when it is large;
//! what a write takes is sent from them. Nothing is allocated per command.
//!
//! A lost connection completes every command in flight with
//! [`HostCompletion::path_lost`](HostCompletion) and reconnects by itself. Commands are never
//! repeated here, except by the blocking calls, whose operations all may be.

mod blocking;
mod command;
mod initiator;
mod link;
mod path;
mod service;
#[cfg(test)]
mod tests;

pub use command::{
    BLOCKS_MAX, Direction, HostCommand, HostCompletion, HostError, HostOp, RejectReason, Rejected,
};
pub use initiator::Initiator;
pub use path::{HostPath, PathEvent};
pub use service::{HostMessage, HostService, PathId};
