//! Repair: what can be put right without losing anything.

use std::io;

use super::{Depth, InspectError, Severity, Target, inspect};
use crate::format::layout::SUPERBLOCK_OFFSETS;
use crate::format::superblock::SuperblockError;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mended {
    /// Nothing: there was nothing to do.
    Nothing,
    /// This copy of the superblock was written again.
    Superblock(usize),
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// There is no pool to repair.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// This program must not write to it.
    #[error(transparent)]
    Foreign(#[from] SuperblockError),
    /// Something else is damaged, which the older superblock may explain.
    #[error("nothing was changed, since the pool is damaged: {0}")]
    Damaged(String),
    /// The drive does not take it.
    #[error("superblock {copy} cannot be written: {source}")]
    Write {
        /// Which.
        copy: usize,
        /// Why not.
        source: io::Error,
    },
}

/// Writes a damaged or outdated copy of the superblock again, if everything else is in order: with
/// a damaged journal or checkpoint the copy that is left may be the wrong one, and what the other
/// one holds is all there is to find out from.
pub fn mend(target: &mut dyn Target) -> Result<Mended, MendError> {
    let inspection = inspect(target, Depth::Opening)?;
    inspection.superblock.check_writable()?;
    let damage = inspection
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::Damage);
    if let Some(finding) = damage {
        return Err(MendError::Damaged(format!(
            "{}: {}",
            finding.place, finding.text
        )));
    }
    let Some(copy) = inspection.to_mend else {
        return Ok(Mended::Nothing);
    };
    let written = target
        .write(SUPERBLOCK_OFFSETS[copy], &inspection.superblock.encode())
        .and_then(|()| target.flush());
    match written {
        Ok(()) => Ok(Mended::Superblock(copy)),
        Err(source) => Err(MendError::Write { copy, source }),
    }
}
