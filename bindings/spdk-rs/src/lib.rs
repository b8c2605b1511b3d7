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
//! others wait for it when a device is removed. [`Thread::next_poll`] tells when its pollers want it,
//! and [`Rest`] how long it can be left alone without them; [`Thread::set_waker`] is for OS threads
//! that sleep meanwhile.
//!
//! A panic in a callback aborts the process, as it cannot unwind through C.
//!
//! # Example
//!
#![cfg_attr(any(feature = "spdk", feature = "double"), doc = "```")]
#![cfg_attr(not(any(feature = "spdk", feature = "double")), doc = "```text")]
//! use bowline_spdk_rs::{Access, Bdev, Config, Operation, Options, Range, Service};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The library, on an OS thread of its own, with a device in memory.
//! let options = Options::without_huge_pages("example", 512);
//! let service = Service::start(options, Config::new().malloc("disk", 2048, 512))?;
//!
//! // A thread of the library that is this OS thread's, and the device on it.
//! let thread = service.library().thread("example")?;
//! let disk = Bdev::open(&thread, "disk", Access::Write)?;
//! let mut queue = disk.queue(8, 1)?;
//!
//! let mut block = service.library().dma(512, 512)?;
//! block.fill(7);
//! let range = Range { block: 0, blocks: 1 };
//! queue.submit(Operation::Write, range, block).map_err(|rejected| format!("{rejected:?}"))?;
//! let written = loop {
//!     thread.poll();
//!     if let Some(finished) = queue.pop() {
//!         break finished;
//!     }
//! };
//! assert!(written.status.is_success());
//! assert_eq!(written.payload[0], 7);
//! # drop((written, queue, disk, thread));
//! # service.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/first_block.rs` is a program that reads a drive.
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
mod nvme;
#[allow(unsafe_code, reason = "calls the library")]
mod poller;
#[allow(unsafe_code, reason = "calls the library, and is called by it")]
mod queue;
mod rest;
mod service;
mod status;
#[allow(unsafe_code, reason = "calls the library, and is called by it")]
mod thread;

pub use application::Application;
pub use bdev::{Access, Bdev, BdevEvent, BdevInfo, Operation};
pub use config::Config;
pub use error::Error;
pub use library::{Library, Options, Pci, bound_for_user_space, is_double, version};
pub use log::{LogLevel, log_to_tracing};
pub use memory::DmaBuffer;
pub use nvme::{NvmeController, NvmeIdentity};
pub use poller::Poller;
pub use queue::{Finished, Payload, Queue, Range, Refusal, Rejected, Slices};
pub use rest::Rest;
pub use service::Service;
pub use status::Status;
pub use thread::{Handle, Thread};
