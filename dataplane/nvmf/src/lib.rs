//! NVMe/TCP as state machines without I/O: no socket, clock, thread, or `async`.
//!
//! - [`frame`] cuts a byte stream into PDUs; both sides use it.
//! - [`target`] is the controller side: subsystems, controllers, connections.
//! - [`host`] is the initiator side: queue pairs and controller bring-up.
//!
//! Bytes and events go in, outputs come out, time is an argument, and user data never passes
//! through: it is spoken of by slot and range, and stays in its owner's buffers.

#![forbid(unsafe_code)]

pub mod frame;
pub mod host;
pub mod target;
