//! NVMe and NVMe-oF wire types and constants.
//!
//! Facts only: layouts, codes and the checks that need nothing but the bytes themselves. No I/O,
//! no allocation, no policy. Every multi-byte integer on the wire is little-endian. Tags such as
//! `[BASE-2.0 §5.15]` name a section of a specification listed in `SPEC.md`.
//!
//! Fields that the specification counts from zero keep their raw value under their spec name; one
//! accessor beside each returns the real quantity.

#![no_std]
#![forbid(unsafe_code)]

mod command;
pub mod event;
pub mod fabrics;
pub mod feature;
mod id;
pub mod identify;
mod layout;
pub mod log;
pub mod nqn;
pub mod nvm;
pub mod opcode;
pub mod pdu;
pub mod reservation;
mod status;
mod time;
mod wire;

pub use command::{Cqe, Fuse, Sgl, Sqe};
pub use id::{CommandId, ControllerId, NamespaceId, QueueId};
pub use status::Status;
pub use time::Nanos;
