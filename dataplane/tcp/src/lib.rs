//! NVMe/TCP on a reactor's sockets: the glue between `nvmf`'s sans-IO machines, which never see a
//! payload, and the sockets, buffers and devices, which know no protocol.
//!
//! - [`target`] serves subsystems: one [`target::TargetService`] per reactor.
//! - [`host`] is our own initiator.

#![forbid(unsafe_code)]

pub mod host;
mod status;
pub mod target;

pub use status::io_status;
