//! DMA memory as the memory of pools.

use std::io;
use std::ptr::NonNull;

use bowline_block::{BUFFER_ALIGN, PoolMemory, Region};
use bowline_spdk_rs::{DmaBuffer, Library};

/// Memory that devices reach. It keeps the library's environment, whoever still has a buffer.
struct DmaMemory {
    buffer: DmaBuffer,
}

// SAFETY: a `DmaBuffer` owns its bytes alone, zeroed at first, at one address for as long as it
// lives; it was asked for at a multiple of BUFFER_ALIGN, and within this module nothing makes a slice
// of it.
unsafe impl Region for DmaMemory {
    fn base(&self) -> NonNull<u8> {
        self.buffer.base()
    }

    fn len(&self) -> usize {
        self.buffer.len()
    }
}

/// Where pools of buffers for the library's devices get their memory from.
pub(crate) fn source(library: Library) -> PoolMemory {
    PoolMemory::from_source(move |bytes| {
        let buffer = library
            .dma(bytes, BUFFER_ALIGN)
            .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error.to_string()))?;
        Ok(Box::new(DmaMemory { buffer }))
    })
}
