//! Bytes on the drive and what they mean: pure, without I/O. `FORMAT.md` is the document.

/// Records.
pub mod record;
