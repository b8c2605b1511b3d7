//! What is there in a build without SPDK: the same names, and nobody can make one.

use std::io;

use bowline_block::{Completions, Device, DeviceEvent, Geometry, Io, PoolMemory};
use bowline_nvme::Nanos;

use crate::options::{Options, Source, SpdkError};

/// The library in this process. This build has none.
#[derive(Clone, Debug)]
pub enum Spdk {}

/// A device of the library on its way to its reactor.
#[derive(Clone, Debug)]
pub enum SpdkBacking {}

/// A device of the library.
#[derive(Debug)]
pub enum SpdkDevice {}

impl Spdk {
    /// Says that it is not in this build.
    ///
    /// # Errors
    /// Always.
    pub fn start(_: &Options) -> Result<Self, SpdkError> {
        Err(SpdkError {
            is_busy: false,
            cause: "this executable was built without SPDK".to_owned(),
            hint: "build one with `cargo build --release --features spdk`".to_owned(),
        })
    }

    /// Looks for a device.
    ///
    /// # Errors
    /// When it cannot be served.
    pub fn find(&self, _: &Source) -> Result<SpdkBacking, SpdkError> {
        match *self {}
    }

    /// Leaves the library as it is.
    pub fn abandon(self) {
        match self {}
    }

    /// Where pools of buffers for its devices get their memory from.
    #[must_use]
    pub fn memory(&self) -> PoolMemory {
        match *self {}
    }
}

impl SpdkBacking {
    /// What it is.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        match *self {}
    }

    /// The name by which the library knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        match *self {}
    }
}

impl SpdkDevice {
    /// Opens the device on the calling thread.
    ///
    /// # Errors
    /// When somebody else has it, or it has gone.
    pub fn open(
        backing: SpdkBacking,
        _: &PoolMemory,
        _: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        match backing {}
    }
}

impl Device for SpdkDevice {
    fn geometry(&self) -> Geometry {
        match *self {}
    }

    fn depth_max(&self) -> usize {
        match *self {}
    }

    fn try_submit(&mut self, _: Io) -> Result<(), Io> {
        match *self {}
    }

    fn poll(&mut self, _: Nanos, _: &mut Completions) {
        match *self {}
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        match *self {}
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        match *self {}
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_without_spdk_says_how_to_get_one_with_it() {
        let options = Options {
            config: None,
            drives: None,
            huge_pages: false,
            memory_mib: None,
        };
        let error = Spdk::start(&options).unwrap_err();
        assert!(error.hint.contains("--features spdk"), "{error}");
    }
}
