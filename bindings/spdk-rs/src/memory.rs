//! Memory that devices can reach.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use bowline_spdk_sys as sys;

use crate::error::Error;
use crate::library::Library;

/// Memory for DMA, by itself a slice of bytes. Zeroed at first; given back when dropped, on whichever
/// OS thread.
pub struct DmaBuffer {
    base: NonNull<u8>,
    bytes: usize,
    /// The memory goes with the environment, which goes with this.
    _library: Library,
}

// SAFETY: it is the only owner of its bytes, which are reached through it as those of a Vec are, and
// SPDK takes memory back on any thread.
unsafe impl Send for DmaBuffer {}
// SAFETY: a shared one only lends shared slices.
unsafe impl Sync for DmaBuffer {}

impl DmaBuffer {
    pub(crate) fn new(library: &Library, bytes: usize, align: usize) -> Result<Self, Error> {
        let what = || format!("no {bytes} bytes of DMA memory");
        if bytes == 0 || isize::try_from(bytes).is_err() || !align.is_power_of_two() {
            let why = format!("{bytes} bytes at a multiple of {align} cannot be had");
            return Err(Error::new(what(), why));
        }
        // SAFETY: the environment lives as long as `library`.
        let memory = unsafe { sys::shim_dma_alloc(bytes, align) };
        match NonNull::new(memory.cast()) {
            Some(base) => Ok(Self {
                base,
                bytes,
                _library: library.clone(),
            }),
            None => Err(Error::no_memory(what())
                .help("give the library more: Options::memory_mib, or more huge pages")),
        }
    }

    /// The first byte. It stays where it is when the buffer is moved.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Deref for DmaBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is `bytes` long, was zeroed and lives as long as this. While a device
        // writes to it, its queue owns the buffer.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.bytes) }
    }
}

impl DerefMut for DmaBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only reference.
        unsafe { slice::from_raw_parts_mut(self.base.as_ptr(), self.bytes) }
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        // SAFETY: it was allocated by `shim_dma_alloc`, is freed once, and the environment lives.
        unsafe { sys::shim_dma_free(self.base.as_ptr().cast()) }
    }
}

impl fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaBuffer")
            .field("base", &self.base)
            .field("bytes", &self.bytes)
            .finish()
    }
}
