//! A pool is given up: nobody takes the drive for one any more.

use std::io;

use super::{InspectError, Target, read_superblocks};
use crate::format::foreign::recognise;
use crate::format::layout::SUPERBLOCK_OFFSETS;
use crate::format::superblock::{CopyError, SUPERBLOCK_BYTES, Superblock, SuperblockError};

/// Why the drive is as it was, or is a pool still.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// It is no pool, and was none.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The drive does not take it.
    #[error("the superblocks cannot be written: {0}")]
    Write(io::Error),
}

/// Writes zeroes over the superblocks, whatever state the pool is in: what the volumes held cannot be found again.
pub fn erase(target: &mut dyn Target) -> Result<(), EraseError> {
    let [start, second] = read_superblocks(target)?;
    let is_absent = |copy: &[u8]| matches!(Superblock::decode(copy), Err(CopyError::Absent));
    if is_absent(&start) && is_absent(&second) {
        let foreign = SuperblockError::NotAPool(recognise(&start));
        return Err(InspectError::Superblock(foreign).into());
    }
    // Where somebody else has written since, that stays. What could not be read, which is FFh, may be
    // a superblock all the same.
    let is_foreign = |copy: &[u8]| is_absent(copy) && copy.iter().any(|&byte| byte != 0xff);
    let copies = SUPERBLOCK_OFFSETS.into_iter().zip([&start, &second]);
    for (offset, _) in copies.filter(|(_, copy)| !is_foreign(copy)) {
        let written = target.write(offset, &[0; SUPERBLOCK_BYTES]);
        written.map_err(EraseError::Write)?;
    }
    target.flush().map_err(EraseError::Write)
}
