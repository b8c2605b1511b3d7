//! Bytes on the drive and what they mean: pure, without I/O. `FORMAT.md` is the document.

#[cfg(test)]
pub(crate) mod arbitrary;
/// Records as bytes.
pub mod codec;
/// Records.
pub mod record;
mod wire;
