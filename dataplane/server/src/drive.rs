//! The drive of a data plane: the few devices there are, behind one type that the compiler sees
//! through.

use std::io;

use bowline_block::{
    Completions, Device, DeviceEvent, Geometry, Io, IoError, MediumView, MemDevice,
};
use bowline_engine_kernel::KernelDevice;
use bowline_engine_spdk::SpdkDevice;
use bowline_nvme::Nanos;
use bowline_reactor::{Reactor, monotonic_now};

/// Every device that is no part of another.
#[allow(
    clippy::large_enum_variant,
    reason = "few, and a box would cost every I/O a hop; with SPDK in the build two are as large"
)]
pub(crate) enum Drive {
    Memory(MemDevice),
    Kernel(KernelDevice),
    Spdk(SpdkDevice),
}

/// How the answer of a drive is waited for where there is nothing else to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The drive answers when it is polled.
    Polled,
    /// The kernel has the request.
    Kernel,
}

/// What a wait for the kernel lasts at the most, in case the answer came before it.
const WAIT_MAX: Nanos = Nanos::from_millis(1);

impl Patience {
    /// Has some time pass; gives the time after it.
    pub(crate) fn wait(self, cx: &mut Reactor) -> Nanos {
        match self {
            Self::Polled => monotonic_now(),
            Self::Kernel => cx.wait_for_drive(WAIT_MAX),
        }
    }
}

impl Drive {
    pub(crate) fn patience(&self) -> Patience {
        match self {
            Self::Memory(_) | Self::Spdk(_) => Patience::Polled,
            Self::Kernel(_) => Patience::Kernel,
        }
    }
}

impl Device for Drive {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Memory(device) => device.geometry(),
            Self::Kernel(device) => device.geometry(),
            Self::Spdk(device) => device.geometry(),
        }
    }

    fn depth_max(&self) -> usize {
        match self {
            Self::Memory(device) => device.depth_max(),
            Self::Kernel(device) => device.depth_max(),
            Self::Spdk(device) => device.depth_max(),
        }
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        match self {
            Self::Memory(device) => device.try_submit(io),
            Self::Kernel(device) => device.try_submit(io),
            Self::Spdk(device) => device.try_submit(io),
        }
    }

    fn is_immediate(&self) -> bool {
        match self {
            Self::Memory(device) => device.is_immediate(),
            Self::Kernel(device) => device.is_immediate(),
            Self::Spdk(device) => device.is_immediate(),
        }
    }

    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        match self {
            Self::Memory(device) => device.read_now(lba, into),
            Self::Kernel(device) => device.read_now(lba, into),
            Self::Spdk(device) => device.read_now(lba, into),
        }
    }

    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        match self {
            Self::Memory(device) => device.write_now(lba, data),
            Self::Kernel(device) => device.write_now(lba, data),
            Self::Spdk(device) => device.write_now(lba, data),
        }
    }

    fn is_write_sure(&self, lba: u64, bytes: usize) -> bool {
        match self {
            Self::Memory(device) => device.is_write_sure(lba, bytes),
            Self::Kernel(device) => device.is_write_sure(lba, bytes),
            Self::Spdk(device) => device.is_write_sure(lba, bytes),
        }
    }

    fn view_now(&self, lba: u64, bytes: usize) -> Result<MediumView, IoError> {
        match self {
            Self::Memory(device) => device.view_now(lba, bytes),
            Self::Kernel(device) => device.view_now(lba, bytes),
            Self::Spdk(device) => device.view_now(lba, bytes),
        }
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        match self {
            Self::Memory(device) => device.poll(now, out),
            Self::Kernel(device) => device.poll(now, out),
            Self::Spdk(device) => device.poll(now, out),
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        match self {
            Self::Memory(device) => device.poll_timeout(),
            Self::Kernel(device) => device.poll_timeout(),
            Self::Spdk(device) => device.poll_timeout(),
        }
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        match self {
            Self::Memory(device) => device.poll_event(),
            Self::Kernel(device) => device.poll_event(),
            Self::Spdk(device) => device.poll_event(),
        }
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        match self {
            Self::Memory(device) => device.refresh(),
            Self::Kernel(device) => device.refresh(),
            Self::Spdk(device) => device.refresh(),
        }
    }
}
