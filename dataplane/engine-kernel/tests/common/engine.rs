//! Disks that are files, served by the kernel.

use std::fs;

use bowline_block::PoolMemory;
use bowline_engine_kernel::{Backing, KernelDevice, OpenOptions};
use bowline_reactor::Reactor;

use crate::common::device::TestDevice;

/// A disk of this many bytes, zero, in a file that goes with it.
pub(crate) fn disk(cx: &mut Reactor, bytes: u64, block_bytes: u32) -> TestDevice {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    let file = fs::File::create(&path).expect("a file");
    file.set_len(bytes).expect("room");
    let options = OpenOptions {
        block_bytes: Some(block_bytes),
        ..OpenOptions::new(&path)
    };
    let backing = Backing::open(&options).expect("a file can be served");
    // The file stays as long as it is open; the folder goes now.
    TestDevice::new(KernelDevice::new(backing, cx.disk()).expect("a device"))
}

/// What buffers lie in.
pub(crate) fn memory() -> PoolMemory {
    PoolMemory::default()
}

/// Tests that bring devices of their own say nothing of this engine.
#[allow(
    unused_macros,
    reason = "every test binary uses the part that it needs"
)]
macro_rules! own_devices {
    ($($name:ident),+ $(,)?) => {};
}
#[allow(
    unused_imports,
    reason = "every test binary uses the part that it needs"
)]
pub(crate) use own_devices;
