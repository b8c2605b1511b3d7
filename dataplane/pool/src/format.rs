//! Bytes on the drive and what they mean: pure, without I/O. `FORMAT.md` is the document.

#[cfg(test)]
pub(crate) mod arbitrary;
/// Checkpoints.
pub mod checkpoint;
/// Records as bytes.
pub mod codec;
/// What else a drive may hold.
pub mod foreign;
#[cfg(test)]
pub(crate) mod golden;
/// The journal's sectors.
pub mod journal;
/// Where things are on the drive.
pub mod layout;
/// Pages of checksums.
pub mod pages;
/// Records.
pub mod record;
/// Superblocks.
pub mod superblock;
mod wire;
