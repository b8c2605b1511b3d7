//! What a drive holds, before anything is done with it.

use bowline_block::Device;
use bowline_nvme::Nanos;

use super::Pool;
use super::engine;
use super::open::{OpenError, Waiting};
use crate::format::foreign::Foreign;
use crate::format::superblock::{Superblock, SuperblockError};

/// What is at the start of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No pool.
    Nothing(Foreign),
    /// A pool that this program may open.
    Pool(Box<Superblock>),
}

impl<D: Device> Pool<D> {
    /// Says what a drive holds that is no pool: at its start and at its end. Writes nothing.
    ///
    /// `wait` is called until the drive has answered; it returns the time.
    ///
    /// # Errors
    /// When the drive fails.
    pub fn recognise(
        device: &mut D,
        wait: &mut dyn FnMut() -> Nanos,
    ) -> Result<Foreign, OpenError> {
        let buffers = engine::buffers()?;
        let mut drive = Waiting::new(device, &buffers, wait);
        let (start, _) = drive.read_superblocks()?;
        Ok(drive.recognise(&start)?)
    }

    /// Looks at the start of a drive. Writes nothing.
    ///
    /// `wait` is called until the drive has answered; it returns the time.
    ///
    /// # Errors
    /// When the drive fails, or has a pool that cannot be opened.
    pub fn find(device: &mut D, wait: &mut dyn FnMut() -> Nanos) -> Result<Found, OpenError> {
        let geometry = device.geometry();
        let buffers = engine::buffers()?;
        let (start, second) = Waiting::new(device, &buffers, wait).read_superblocks()?;
        match Superblock::choose(&start, &second) {
            Ok(chosen) => {
                let superblock = chosen.superblock;
                superblock.check_drive(geometry.bytes(), geometry.block_bytes)?;
                Ok(Found::Pool(Box::new(superblock)))
            }
            Err(SuperblockError::NotAPool(foreign)) => Ok(Found::Nothing(foreign)),
            Err(error) => Err(error.into()),
        }
    }
}
