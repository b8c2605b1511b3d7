//! What a pool is read from.

use std::io;

/// A drive, or a copy of one.
pub trait Source {
    /// Its size.
    fn bytes(&self) -> u64;

    /// Its logical block, if it has one: a copy in a file has none.
    fn block_bytes(&self) -> Option<u32>;

    /// Fills `out` from `offset` on; both are multiples of the block.
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

/// A drive that is repaired.
pub trait Target: Source {
    /// Writes `bytes` at `offset`; both are multiples of the block.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was written.
    fn flush(&mut self) -> io::Result<()>;
}
