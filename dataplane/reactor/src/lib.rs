//! Thread-per-core event loop: sockets by readiness, drive by completion.
//!
//! A [`Reactor`] owns sockets, a drive queue, a buffer pool and a sleeping policy, and drives one
//! [`Service`]. It knows bytes, not NVMe. Two engines give the same API: `io_uring` (readiness by
//! multishot poll, output and drive requests as submissions that leave in the same system call as
//! the wait) and epoll, for places where `io_uring` is not permitted.
//!
//! One turn: collect events, hand them to the service, let it build output, and send everything in
//! as few system calls as possible. Between turns the reactor spins while there is traffic, then
//! waits shortly, then parks in the kernel; an idle reactor takes no turn at all.
//!
//! `unsafe` is confined to `uring.rs`, `gather.rs` and `disk.rs`: memory that the kernel reads or
//! writes is owned by a table of the reactor from submission until the kernel gives it back, and
//! is leaked rather than freed when that moment cannot be awaited.

#![deny(unsafe_code)]

mod clock;
mod config;
mod counters;
#[allow(
    unsafe_code,
    reason = "describes memory of drive requests to the kernel"
)]
mod disk;
mod driver;
mod epoll;
#[allow(unsafe_code, reason = "describes memory of gathers to the kernel")]
mod gather;
mod idle;
mod mailbox;
mod pause;
mod reactor;
mod service;
mod slab;
mod socket;
mod spawn;
mod staging;
mod turn;
#[allow(
    unsafe_code,
    reason = "enters the ring and queues submissions that carry pointers"
)]
mod uring;
mod wake_cost;

pub use clock::monotonic_now;
pub use config::{Backend, BackendInfo, Config, IoBackend, PollMode};
pub use counters::{Counters, SharedCounters};
pub use disk::{DISK_OPS_MAX, DiskClientId, DiskDone, DiskOp, DiskOpKind, DiskQueue};
pub use gather::{GATHER_BYTES_MAX, GATHER_PIECES_MAX, Gather};
pub use mailbox::{Mailbox, Waker};
pub use reactor::Reactor;
pub use service::{Progress, Service};
pub use socket::{DetachError, ListenerId, Recv, SocketId};
pub use spawn::{Handle, LocalReactor, spawn};
pub use staging::{STAGING_BYTES, Staging};
