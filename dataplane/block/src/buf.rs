//! Pool memory and the reference-counted views into it: the only unsafe code of this crate.
//!
//! A [`BufPool`] cuts one [`Region`] of memory into buffers of a few sizes. An [`IoBuf`] is a view
//! of one buffer; views of the same buffer share a plain (non-atomic) count, and the last one to
//! go returns the buffer. Neither type is `Send`: a reactor's buffers stay on its thread.
//!
//! What makes the raw memory sound:
//! - *valid*: every view holds the pool's inner part, which owns the region, so the memory
//!   outlives every view; a view never leaves the bounds of its buffer, and buffers are disjoint;
//! - *initialised*: a region is initialised memory by its contract, and bytes only ever get
//!   overwritten with other bytes;
//! - *not aliased*: `&mut [u8]` is given out only through `&mut IoBuf` while the count is one, so
//!   no second view exists to read through; the free list touches no buffer memory.
//!
//! A device's medium is memory of its own, copied from and to; [`medium`] says who else reads it.
//!
//! The kernel, or a thread acting for an engine, may access a buffer by raw pointer while the
//! engine holds the request: the request owns the views then, and nobody makes slices of them.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::{Deref, Range, RangeInclusive};
use std::ptr::NonNull;
use std::rc::Rc;

mod medium;
mod memory;
#[cfg(test)]
mod tests;

pub(crate) use medium::Medium;
pub use medium::{MediumView, ViewedBuf};
pub use memory::PoolMemory;

/// Alignment of every buffer, and the granularity of their sizes, in bytes.
pub const BUFFER_ALIGN: usize = 4096;

/// The end of a free list.
const NO_SLOT: u32 = u32::MAX;

/// Buffers of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassConfig {
    /// Size of each buffer in bytes; a multiple of [`BUFFER_ALIGN`], not 0.
    pub bytes: usize,
    /// Number of buffers.
    pub count: usize,
}

/// The buffers of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// The size classes, in any order.
    pub classes: Vec<ClassConfig>,
}

impl PoolConfig {
    /// Classes of 4 KiB, 16 KiB, 128 KiB and 1 MiB that together take about `total_bytes`, at
    /// least two buffers of each. Memory is taken from the system only where it is touched.
    #[must_use]
    pub fn with_budget(total_bytes: usize) -> Self {
        // Half of the bytes go to the largest class: a class whose smaller neighbour is exhausted
        // stands in for it, never the other way round.
        let class = |bytes: usize, share_percent: usize| ClassConfig {
            bytes,
            count: (total_bytes / 100 * share_percent / bytes).max(2),
        };
        Self {
            classes: vec![
                class(4 << 10, 10),
                class(16 << 10, 15),
                class(128 << 10, 25),
                class(1 << 20, 50),
            ],
        }
    }

    fn total_bytes(&self) -> Option<usize> {
        self.classes.iter().try_fold(0_usize, |sum, class| {
            class
                .bytes
                .checked_mul(class.count)
                .and_then(|bytes| sum.checked_add(bytes))
        })
    }

    fn checked_bytes(&self) -> io::Result<usize> {
        let total = self
            .total_bytes()
            .ok_or_else(|| invalid("pool size overflows"))?;
        if total == 0 {
            return Err(invalid("a pool needs at least one buffer"));
        }
        Ok(total)
    }
}

/// How a size class is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassStats {
    /// Size of each buffer in bytes.
    pub bytes: usize,
    /// Buffers nobody holds.
    pub free: usize,
    /// Buffers somebody holds.
    pub used: usize,
}

/// How a pool is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Per size class, smallest first.
    pub classes: Vec<ClassStats>,
    /// Requests for a buffer that found none, since the pool was made.
    pub alloc_failures: u64,
}

/// Memory for a pool: plain memory by default, an engine's DMA memory where it needs its own.
///
/// # Safety
/// From `base` on, `len` bytes must be valid for reads and writes, initialised, aligned to
/// [`BUFFER_ALIGN`], at the same address and used by nobody else, for as long as the value lives.
pub unsafe trait Region {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;
    /// Length in bytes.
    fn len(&self) -> usize;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Anonymous private memory: reads as zeroes, and takes memory only where it was written.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, rounded up to whole pages by the kernel.
    ///
    /// # Errors
    /// When the kernel has no room for it.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no existing
        // memory; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| io::Error::other("the kernel mapped memory at address 0"))?;
        Ok(Self { base, len })
    }

    /// Asks for pages of 2 MiB where the system has them: copies to and from random places then
    /// spend no time on looking up addresses. What is touched for the first time takes as much.
    pub(crate) fn prefer_large_pages(&self) {
        // SAFETY: the advice concerns this mapping alone and changes none of its bytes.
        let result =
            unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_HUGEPAGE) };
        // A kernel without them refuses; then pages are of the usual size.
        let _ = result;
    }
}

/// Bytes of memory this machine has; 0 when it does not say.
pub(crate) fn memory_bytes() -> u64 {
    // SAFETY: asks for two numbers; no memory is involved.
    let (pages, page_bytes) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    let pages = u64::try_from(pages).unwrap_or(0);
    pages.saturating_mul(u64::try_from(page_bytes).unwrap_or(0))
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; the owner is going away, so nothing refers to it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: `new` mapped `len` zero-initialised, page-aligned, private bytes; they stay there until
// drop, and within this module a mapping given to a pool is reached through the pool only.
unsafe impl Region for Mapping {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// A pool of buffers. Clones are the same pool; its memory lives as long as any clone or buffer.
#[derive(Clone)]
pub struct BufPool {
    inner: Rc<Inner>,
}

struct Inner {
    // Smallest first.
    classes: Box<[Class]>,
    slots: Box<[Slot]>,
    // Of all classes: asked for with every command.
    free_bytes: Cell<usize>,
    alloc_failures: Cell<u64>,
    region: Box<dyn Region>,
}

struct Class {
    bytes: usize,
    count: usize,
    free_head: Cell<u32>,
    free: Cell<usize>,
}

struct Slot {
    start: NonNull<u8>,
    class: u32,
    // Number of views; 0 while on the free list.
    views: Cell<u32>,
    next_free: Cell<u32>,
}

impl BufPool {
    /// A pool over fresh anonymous memory.
    ///
    /// # Errors
    /// When the configuration has no buffer, a size of 0 or not a multiple of [`BUFFER_ALIGN`], or
    /// more buffers or bytes than can be counted; or when the memory cannot be mapped.
    pub fn new(config: PoolConfig) -> io::Result<Self> {
        let total = config.checked_bytes()?;
        Self::with_region(config, Box::new(Mapping::new(total)?))
    }

    /// A pool over memory of the caller's.
    ///
    /// # Errors
    /// As [`new`](Self::new), or when the region is smaller than the configuration needs.
    pub fn with_region(mut config: PoolConfig, region: Box<dyn Region>) -> io::Result<Self> {
        config.classes.retain(|class| class.count > 0);
        config.classes.sort_by_key(|class| class.bytes);
        let total = config
            .total_bytes()
            .ok_or_else(|| invalid("pool size overflows"))?;
        if total == 0 || total > region.len() {
            return Err(invalid("the region does not hold the pool's buffers"));
        }
        let mut classes = Vec::with_capacity(config.classes.len());
        let mut slots = Vec::new();
        let mut offset = 0;
        for (class_index, class) in (0_u32..).zip(&config.classes) {
            let aligned = class.bytes > 0 && class.bytes.is_multiple_of(BUFFER_ALIGN);
            if !aligned || u32::try_from(class.bytes).is_err() {
                return Err(invalid(
                    "a buffer size is a multiple of 4096, above 0 and below 4 GiB",
                ));
            }
            let first = u32::try_from(slots.len()).map_err(|_| invalid("too many buffers"))?;
            let count = u32::try_from(class.count).map_err(|_| invalid("too many buffers"))?;
            let end = first.checked_add(count).filter(|end| *end < NO_SLOT);
            let end = end.ok_or_else(|| invalid("too many buffers"))?;
            for index in first..end {
                // SAFETY: the sum of all buffers' sizes is at most the region's length, so the
                // start of each lies within it.
                let start = unsafe { region.base().add(offset) };
                let next = if index + 1 == end { NO_SLOT } else { index + 1 };
                slots.push(Slot {
                    start,
                    class: class_index,
                    views: Cell::new(0),
                    next_free: Cell::new(next),
                });
                offset += class.bytes;
            }
            classes.push(Class {
                bytes: class.bytes,
                count: class.count,
                free_head: Cell::new(first),
                free: Cell::new(class.count),
            });
        }
        Ok(Self {
            inner: Rc::new(Inner {
                classes: classes.into(),
                slots: slots.into(),
                free_bytes: Cell::new(total),
                alloc_failures: Cell::new(0),
                region,
            }),
        })
    }

    /// A view of `len` bytes of a buffer of the smallest class that has one free. Its content is
    /// whatever the last user left. `None` when no buffer fits, or for `len` 0. Never touches the
    /// heap.
    #[must_use]
    pub fn alloc(&self, len: usize) -> Option<IoBuf> {
        self.alloc_within(len, usize::MAX)
    }

    /// As [`alloc`](Self::alloc), from buffers of at most `buffer_bytes`: larger ones are left to
    /// those that need them.
    #[must_use]
    pub fn alloc_within(&self, len: usize, buffer_bytes: usize) -> Option<IoBuf> {
        let len_u32 = u32::try_from(len).ok().filter(|len| *len > 0)?;
        let fits = |class: &&Class| (len..=buffer_bytes).contains(&class.bytes);
        let fitting = self.inner.classes.iter().filter(fits);
        for class in fitting {
            let index = class.free_head.get();
            let Some(slot) = self.inner.slot(index) else {
                continue;
            };
            class.free_head.set(slot.next_free.get());
            class.free.set(class.free.get() - 1);
            let free_bytes = &self.inner.free_bytes;
            free_bytes.set(free_bytes.get() - class.bytes);
            slot.views.set(1);
            let pool = Rc::clone(&self.inner);
            return Some(IoBuf {
                pool,
                start: slot.start,
                len: len_u32,
                slot: index,
            });
        }
        self.inner
            .alloc_failures
            .set(self.inner.alloc_failures.get().saturating_add(1));
        None
    }

    /// The bytes of all buffers, free or not.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        let classes = self.inner.classes.iter();
        classes.map(|class| class.bytes * class.count).sum()
    }

    /// Size of the largest free buffer of at most `buffer_bytes`.
    #[must_use]
    pub fn largest_free(&self, buffer_bytes: usize) -> Option<usize> {
        let free = |class: &&Class| class.bytes <= buffer_bytes && class.free.get() > 0;
        let largest = self.inner.classes.iter().rev().find(free);
        largest.map(|class| class.bytes)
    }

    /// The bytes of all free buffers.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.inner.free_bytes.get()
    }

    /// How many buffers of `sizes` bytes are free.
    #[must_use]
    pub fn free_of(&self, sizes: RangeInclusive<usize>) -> usize {
        let fits = |class: &&Class| sizes.contains(&class.bytes);
        let fitting = self.inner.classes.iter().filter(fits);
        fitting.map(|class| class.free.get()).sum()
    }

    /// The largest `len` that [`alloc`](Self::alloc) can ever satisfy.
    #[must_use]
    pub fn bytes_max_request(&self) -> usize {
        self.inner.classes.last().map_or(0, |class| class.bytes)
    }

    /// The memory all buffers lie in, for registration with the kernel.
    #[must_use]
    pub fn region(&self) -> (*const u8, usize) {
        (
            self.inner.region.base().as_ptr().cast_const(),
            self.inner.region.len(),
        )
    }

    /// How the pool is used now. Allocates: for the management path.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let class_stats = |class: &Class| ClassStats {
            bytes: class.bytes,
            free: class.free.get(),
            used: class.count - class.free.get(),
        };
        PoolStats {
            classes: self.inner.classes.iter().map(class_stats).collect(),
            alloc_failures: self.inner.alloc_failures.get(),
        }
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BufPool").field(&self.stats()).finish()
    }
}

impl Inner {
    fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(usize::try_from(index).ok()?)
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// A view of a part of one buffer. Clones and slices are further views of the same buffer; the
/// last view to go returns the buffer to its pool.
pub struct IoBuf {
    pool: Rc<Inner>,
    // Within the buffer `slot` of `pool`, with `len` bytes of that buffer from here on.
    start: NonNull<u8>,
    len: u32,
    slot: u32,
}

const _: () = assert!(
    size_of::<Option<IoBuf>>() <= 32,
    "request slots count on a small view"
);

impl IoBuf {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        // A u32 always fits in a usize on the 64-bit systems io_uring and O_DIRECT exist on.
        self.len as usize
    }

    /// Size in bytes of the buffer that this is a view of: what it keeps from others.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        let class = self.pool.classes.get(self.owner().class as usize);
        class.map_or(0, |class| class.bytes)
    }

    /// Whether the view has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` and `len` stay within a buffer of a region that `pool` keeps alive and
        // that is initialised. Mutable slices exist only through `&mut` of a sole view, so none
        // exists while this view is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }

    /// The bytes, to be changed; `None` unless this is the only view of the buffer.
    #[must_use]
    pub fn as_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_unique() {
            return None;
        }
        let len = self.len();
        // SAFETY: as in `as_slice`; this is the only view, it is borrowed exclusively, and a new
        // view can only be made from it.
        Some(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), len) })
    }

    /// Whether this is the only view of its buffer.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        self.owner().views.get() == 1
    }

    /// A further view, of the bytes in `range` of this one.
    ///
    /// # Panics
    /// When the range is not within the view, as with slices.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "slice outside the view"
        );
        let mut view = self.clone();
        view.truncate(range.end);
        view.advance(range.start);
        view
    }

    /// Shortens the view to its first `len` bytes; no effect when it is not longer.
    pub fn truncate(&mut self, len: usize) {
        // A `len` too large for a u32 is longer than any view.
        self.len = self.len.min(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// Drops the first `bytes` bytes from the view; [`rewind`](Self::rewind) takes it back.
    ///
    /// # Panics
    /// When the view is shorter.
    pub fn advance(&mut self, bytes: usize) {
        let rest = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.len.checked_sub(bytes));
        let Some(rest) = rest else {
            panic!("advanced past the end of the view")
        };
        // SAFETY: `bytes` is at most `len`, so the new start is within the buffer or at its end.
        self.start = unsafe { self.start.add(bytes) };
        self.len = rest;
    }

    /// Extends the view by the `bytes` bytes of its buffer that lie before it.
    ///
    /// # Panics
    /// When the view would begin before its buffer.
    pub fn rewind(&mut self, bytes: usize) {
        let offset = self.start.addr().get() - self.owner().start.addr().get();
        let len = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.len.checked_add(bytes));
        let Some(len) = len.filter(|_| bytes <= offset) else {
            panic!("rewound past the start of the buffer")
        };
        // SAFETY: `start` lies `offset` bytes into its buffer and `bytes` is at most that.
        self.start = unsafe { self.start.sub(bytes) };
        self.len = len;
    }

    /// The address of the first byte. Reading through it is allowed while a view exists and nobody
    /// writes.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr().cast_const()
    }

    /// The address of the first byte, for a writer outside the language: the kernel, a device.
    /// The pointer may be written through as long as this view exists, is the only one, and no
    /// slice of it is in use.
    ///
    /// # Panics
    /// When this is not the only view of the buffer.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        assert!(self.is_unique(), "a shared buffer was to be written to");
        self.start.as_ptr()
    }

    fn owner(&self) -> &Slot {
        match self.pool.slot(self.slot) {
            Some(slot) => slot,
            None => unreachable!("a view is made with the index of an existing slot"),
        }
    }
}

impl Clone for IoBuf {
    fn clone(&self) -> Self {
        let views = &self.owner().views;
        // Wrapping to 0 would free a buffer in use. Reaching 2^32 needs 100 GiB of leaked views.
        views.set(
            views
                .get()
                .checked_add(1)
                .unwrap_or_else(|| panic!("too many views")),
        );
        Self {
            pool: Rc::clone(&self.pool),
            start: self.start,
            len: self.len,
            slot: self.slot,
        }
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        let slot = self.owner();
        let views = slot.views.get() - 1;
        slot.views.set(views);
        if views == 0 {
            let class = &self.pool.classes[slot.class as usize];
            slot.next_free.set(class.free_head.replace(self.slot));
            class.free.set(class.free.get() + 1);
            let free_bytes = &self.pool.free_bytes;
            free_bytes.set(free_bytes.get() + class.bytes);
        }
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf")
            .field("start", &self.start)
            .field("len", &self.len)
            .field("views", &self.owner().views.get())
            .finish()
    }
}
