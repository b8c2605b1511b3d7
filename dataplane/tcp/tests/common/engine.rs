//! Disks in memory. Tests that bring devices of their own, over memory, run beside them.

use bowline_block::PoolMemory;
use bowline_reactor::Reactor;

use crate::common::device::TestDevice;

/// A disk of this many bytes, zero.
pub(crate) fn disk(_: &mut Reactor, bytes: u64, block_bytes: u32) -> TestDevice {
    TestDevice::memory(bytes, block_bytes)
}

/// What buffers lie in.
pub(crate) fn memory() -> PoolMemory {
    PoolMemory::default()
}

/// Tests that bring devices of their own, to have faults or sizes that no engine has.
#[allow(
    unused_macros,
    reason = "every test binary uses the part that it needs"
)]
macro_rules! own_devices {
    ($($name:ident),+ $(,)?) => {
        mod own_devices {
            $(use super::$name;)+
            crate::common::on_both_backends!($($name),+);
        }
    };
}
#[allow(
    unused_imports,
    reason = "every test binary uses the part that it needs"
)]
pub(crate) use own_devices;
