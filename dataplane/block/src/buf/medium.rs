//! The memory that is a device's medium, and views of it for who sends its bytes as they are.
//!
//! Views and the device share the mapping, which goes with the last of them. The device changes
//! bytes that views lead to, so nobody makes a slice of the medium that outlives a call here: its
//! bytes are copied in and out, or read by address.

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use super::{BUFFER_ALIGN, IoBuf, Mapping, Region};

/// The medium of a device in memory. All methods panic when a range is not within it.
pub(crate) struct Medium {
    mapping: Rc<Mapping>,
}

impl Medium {
    /// `len` bytes, zero, that take memory only where they are written.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        Ok(Self {
            mapping: Rc::new(Mapping::new(len)?),
        })
    }

    /// Asks for pages of 2 MiB where the system has them.
    pub(crate) fn prefer_large_pages(&self) {
        self.mapping.prefer_large_pages();
    }

    /// Copies the bytes from `offset` on to all of `into`.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.place(offset, into.len());
        // SAFETY: the place is within the mapping, which is initialised; no slice leads to it, so
        // `into` is other memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) }
    }

    /// Copies all of `data` to the bytes from `offset` on.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let to = self.place(offset, data.len());
        // SAFETY: as in `read`; whoever reads by address does so on this thread, at another time.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.as_ptr(), data.len()) }
    }

    /// Whether the bytes from `offset` on are these.
    pub(crate) fn holds(&self, offset: usize, bytes: &[u8]) -> bool {
        let start = self.place(offset, bytes.len());
        // SAFETY: the place is within the mapping, which is initialised, and nothing writes to it
        // before this function returns.
        bytes == unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes.len()) }
    }

    /// Makes `range` read as zeroes and gives its whole pages back to the system.
    pub(crate) fn zero(&mut self, range: Range<usize>) {
        let pages =
            range.start.next_multiple_of(BUFFER_ALIGN)..range.end / BUFFER_ALIGN * BUFFER_ALIGN;
        if pages.start >= pages.end {
            self.fill_zero(range);
            return;
        }
        self.fill_zero(range.start..pages.start);
        self.fill_zero(pages.end..range.end);
        let start = self.place(pages.start, pages.len());
        // SAFETY: the pages lie within this anonymous private mapping, for which MADV_DONTNEED
        // means that they read as zeroes from now on; no slice of them exists.
        let result =
            unsafe { libc::madvise(start.as_ptr().cast(), pages.len(), libc::MADV_DONTNEED) };
        if result != 0 {
            // Locked pages and pages larger than ours are refused: zero them the plain way.
            self.fill_zero(pages);
        }
    }

    fn fill_zero(&mut self, range: Range<usize>) {
        let start = self.place(range.start, range.len());
        // SAFETY: as in `write`.
        unsafe { start.write_bytes(0, range.len()) }
    }

    /// A view of `len` bytes from `offset` on.
    pub(crate) fn view(&self, offset: usize, len: usize) -> MediumView {
        MediumView {
            start: self.place(offset, len),
            len,
            mapping: Rc::clone(&self.mapping),
        }
    }

    /// The address of `offset`, from which on there are at least `len` bytes.
    fn place(&self, offset: usize, len: usize) -> NonNull<u8> {
        let bytes = self.mapping.len();
        assert!(
            offset <= bytes && len <= bytes - offset,
            "range outside the medium"
        );
        // SAFETY: the offset was checked to be within the mapping, or at its end.
        unsafe { self.mapping.base().add(offset) }
    }
}

/// Bytes of a device's medium as they are whenever one looks. They outlive the device, but every
/// request to it may change them.
pub struct MediumView {
    // Within the mapping, with `len` bytes of it from here on.
    start: NonNull<u8>,
    len: usize,
    // Keeps the bytes where they are.
    mapping: Rc<Mapping>,
}

/// A buffer whose bytes are still in a device's medium, from where they can be sent, as long as
/// they may be newer. It has its place in memory already: copying them later never fails.
///
/// Not `Send`: who sends them is on the device's thread, so that no request changes what one
/// system call reads.
#[derive(Debug)]
pub struct ViewedBuf {
    view: MediumView,
    // As long as the view, and the only view of its buffer.
    buf: IoBuf,
}

impl ViewedBuf {
    /// The buffer `buf`, whose bytes are those of `view`.
    ///
    /// # Errors
    /// Hands the buffer back when it is not as long as the view, or not the only view of its
    /// memory.
    pub fn new(view: MediumView, buf: IoBuf) -> Result<Self, IoBuf> {
        if buf.len() == view.len && buf.is_unique() {
            Ok(Self { view, buf })
        } else {
            Err(buf)
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Size in bytes of the buffer: what it keeps from others.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.buf.buffer_bytes()
    }

    /// The address of the first byte in the medium. Reading through it is allowed while this
    /// exists, on its thread, and not by way of a slice that is still there when a request runs.
    #[must_use]
    pub const fn as_ptr(&self) -> *const u8 {
        self.view.start.as_ptr().cast_const()
    }

    /// The buffer, with the bytes as they are now.
    #[must_use]
    pub fn copied(self) -> IoBuf {
        let Self { view, mut buf } = self;
        let len = buf.len();
        // SAFETY: the view's bytes are initialised and stay mapped, and nothing runs on this thread
        // meanwhile that writes to them; the buffer is other memory, as long, and ours alone.
        unsafe { std::ptr::copy_nonoverlapping(view.start.as_ptr(), buf.as_mut_ptr(), len) }
        buf
    }
}

impl fmt::Debug for MediumView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MediumView")
            .field("start", &self.start)
            .field("len", &self.len)
            .field("holders", &Rc::strong_count(&self.mapping))
            .finish()
    }
}
