//! The engine over real files and devices, with the ring and with threads.

mod bench;
mod files;
mod mounts;
mod opening;
