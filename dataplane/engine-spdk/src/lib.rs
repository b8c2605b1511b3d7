//! A [`Device`](bowline_block::Device) over a block device of SPDK: a drive that this process drives
//! itself, from user space, or whatever else SPDK offers.
//!
//! [`Spdk`] is the library in this process. Its own work (drives coming and going, their admin
//! queues) runs on an OS thread of its own, which sleeps in between. A [`SpdkDevice`] belongs to one
//! reactor: that reactor's thread is a thread of the library too, and polling the device polls it.
//! Sockets and drive are one loop, and nothing is handed from one thread to another. One more OS thread
//! looks for drives that were pulled out, and sleeps while there are none.
//!
//! Buffers have to lie in memory that the drive reaches: [`Spdk::memory`] is where the reactor's
//! pools get theirs.
//!
//! Feature `spdk` builds it over an installed SPDK, feature `double` over memory. With neither,
//! [`Spdk::start`] says so.
//!
//! `unsafe` is confined to `memory` and `request`, which tell the library of the engine's memory.
#![deny(unsafe_code)]

mod options;

#[cfg(not(any(feature = "spdk", feature = "double")))]
mod absent;
#[cfg(any(feature = "spdk", feature = "double"))]
mod device;
#[cfg(any(feature = "spdk", feature = "double"))]
mod drives;
#[cfg(any(feature = "spdk", feature = "double"))]
mod geometry;
#[cfg(any(feature = "spdk", feature = "double"))]
mod library;
#[cfg(any(feature = "spdk", feature = "double"))]
#[allow(unsafe_code, reason = "DMA memory becomes the memory of pools")]
mod memory;
#[cfg(any(feature = "spdk", feature = "double"))]
#[allow(unsafe_code, reason = "tells the library where a request's bytes are")]
mod request;
#[cfg(any(feature = "spdk", feature = "double"))]
mod status;
#[cfg(any(feature = "spdk", feature = "double"))]
mod unflushed;

#[cfg(not(any(feature = "spdk", feature = "double")))]
pub use absent::{Spdk, SpdkBacking, SpdkDevice};
#[cfg(any(feature = "spdk", feature = "double"))]
pub use device::SpdkDevice;
#[cfg(any(feature = "spdk", feature = "double"))]
pub use library::{Spdk, SpdkBacking};
pub use options::{BUILD, Build, Options, Source, SpdkError};
