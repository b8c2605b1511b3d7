//! A [`Device`](bowline_block::Device) over a Linux block device or a regular file.
//!
//! Opening ([`Backing::open`]) may block and runs on any thread: it locks the path, finds out what
//! the backing can do and fixes the geometry. The [`KernelDevice`] made from it belongs to one
//! reactor and never blocks: with `io_uring` its requests leave with the reactor's own system
//! calls, without it a few threads execute them.
//!
//! `unsafe` is confined to `sys`, the system calls that take raw memory or numbers, and
//! `threads`, which hands the addresses of parked buffers to its threads.
#![deny(unsafe_code)]

mod backend;
mod device;
mod errno;
mod error;
mod open;
mod probe;
mod slot;
#[allow(
    unsafe_code,
    reason = "ioctl, preadv2 and pwritev2 take raw numbers and memory"
)]
mod sys;
#[allow(
    unsafe_code,
    reason = "buffer addresses cross to the threads that read and write them"
)]
mod threads;

#[cfg(test)]
mod tests;

pub use device::KernelDevice;
pub use error::OpenError;
pub use open::{Backing, BackingInfo, BackingKind, Buffered, OpenOptions};
