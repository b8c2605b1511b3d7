//! The block boundary: what a namespace asks of its backing, whatever that backing is.
//!
//! A [`Device`] is one queue to one backing store, owned by one reactor. Requests ([`Io`]) carry
//! their buffers ([`IoBuf`], in [`Segments`]) in, and the matching [`Completion`] carries them
//! back; nothing here blocks, allocates per request or crosses a thread.
//!
//! [`MemDevice`] is a device in memory; [`FaultDevice`] wraps any device and makes it slow,
//! failing and forgetful from a seed.
#![deny(unsafe_code)]

#[allow(
    unsafe_code,
    reason = "the one module that owns raw memory: the pool's mapping and the views into it"
)]
mod buf;
mod device;
mod events;
mod fault;
mod geometry;
mod io;
mod mem;
mod segments;

pub use buf::{
    BUFFER_ALIGN, BufPool, ClassConfig, ClassStats, IoBuf, Mapping, MediumView, PoolConfig,
    PoolMemory, PoolStats, Region, ViewedBuf,
};
pub use device::{Allocation, Completions, Device, DeviceEvent, MEDIA_WARNING_INTERVAL};
pub use events::DeviceEvents;
pub use fault::{CachePlan, CrashReport, ErrorRates, FaultDevice, FaultPlan, Latency};
pub use geometry::{ByteRange, Deallocate, Geometry};
pub use io::{Completion, Io, IoError, Op};
pub use mem::MemDevice;
pub use segments::{SEGMENTS_MAX, Segments};
