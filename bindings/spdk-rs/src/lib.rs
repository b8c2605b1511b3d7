//! [SPDK](https://spdk.io) for Rust: its threads, DMA memory and block devices.
//!
//! It is small on purpose: what a program needs that polls drives in user space from a loop of its
//! own. Ownership and threads are in the types:
//!
//! - [`Application`] is the library itself: environment, subsystems with their JSON [`Config`], and the
//!   *application thread* on which devices are made and removed. [`Service`] runs one on an OS thread
//!   of its own.
//! - [`Library`] goes anywhere (`Send + Sync`), and makes [`Thread`]s and [`DmaBuffer`]s.
//! - [`Thread`] is a thread of the library. It belongs to the OS thread that made it, which polls it:
//!   nothing of SPDK runs there but within [`Thread::poll`]. A [`Handle`] sends closures to it.
//! - [`Bdev`] is an open block device and [`Queue`] a way to do I/O with it; both stay on their
//!   thread, and neither can be closed under a request: what is on its way keeps them.
//!
//! A request's memory belongs to the [`Queue`] until the request has ended, so that no `unsafe` is
//! needed to submit one. Slots are made beforehand: a request allocates nothing.
//!
//! Each OS thread has at most one [`Thread`]. Every one has to be polled now and then, idle or not:
//! others wait for it when a device is removed. [`Thread::next_poll`] tells when at the latest, and
//! about every 10 ms is enough for what other threads send.
//!
//! A panic in a callback aborts the process, as it cannot unwind through C.
//!
//! # Features
//!
//! `spdk` builds it over an installed SPDK (see `bowline-spdk-sys`), `double` over memory. With
//! neither, this crate is empty.

#![deny(unsafe_code)]
#![cfg(any(feature = "spdk", feature = "double"))]

#[allow(unsafe_code, reason = "calls the library")]
mod application;
#[allow(unsafe_code, reason = "calls the library")]
mod bdev;
mod config;
mod error;
#[allow(unsafe_code, reason = "calls the library")]
mod library;
#[allow(unsafe_code, reason = "is called by the library")]
mod log;
#[allow(unsafe_code, reason = "calls the library")]
mod memory;
#[allow(unsafe_code, reason = "calls the library")]
mod poller;
#[allow(unsafe_code, reason = "calls the library, and is called by it")]
mod queue;
mod service;
mod status;
#[allow(unsafe_code, reason = "calls the library, and is called by it")]
mod thread;

pub use application::Application;
pub use bdev::{Access, Bdev, BdevEvent, BdevInfo, Operation};
pub use config::Config;
pub use error::Error;
pub use library::{Library, Options, Pci, is_double, version};
pub use log::{LogLevel, log_to_tracing};
pub use memory::DmaBuffer;
pub use poller::Poller;
pub use queue::{Finished, Payload, Queue, Range, Refusal, Rejected, Slices};
pub use service::Service;
pub use status::Status;
pub use thread::{Handle, Thread};
