//! The trait every engine implements, and the list completions come out in.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use bowline_nvme::Nanos;

use crate::buf::MediumView;
use crate::geometry::Geometry;
use crate::io::{Completion, Io, IoError};

/// Something that happened to the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// [`Device::geometry`] now says something else.
    GeometryChanged,
    /// The device is gone; every request from now on ends in
    /// [`IoError::Vanished`](crate::IoError::Vanished).
    Vanished,
    /// The device that had vanished is back, the same as it was, and serves requests again.
    Returned,
    /// The medium returned an error it should not have; told at most once per
    /// [`MEDIA_WARNING_INTERVAL`], however many requests fail.
    MediaWarning,
}

/// What a device has allocated of a medium that it shares with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Logical blocks.
    pub used_blocks: u64,
    /// Percentage of the medium that its writes may still allocate; 100 where they need none.
    pub spare_percent: u8,
}

/// The shortest time between two [`DeviceEvent::MediaWarning`]s of a device.
pub const MEDIA_WARNING_INTERVAL: Nanos = Nanos::from_secs(10);

/// One queue to one backing store, owned by one reactor. It never blocks.
///
/// Requests complete in any order; a request that must follow another is submitted after the
/// other's completion. Every accepted request completes exactly once.
pub trait Device {
    /// What the device is now. Its size only ever grows.
    fn geometry(&self) -> Geometry;

    /// The largest number of requests the device holds at once.
    fn depth_max(&self) -> usize;

    /// Accepts a request. A malformed or out-of-range one is accepted too, and completes with its
    /// error.
    ///
    /// # Errors
    /// When the queue is full the request is handed back unchanged; try again after `poll`.
    #[expect(
        clippy::result_large_err,
        reason = "the request itself comes back; a box allocates"
    )]
    fn try_submit(&mut self, io: Io) -> Result<(), Io>;

    /// Whether [`read_now`](Self::read_now) and [`write_now`](Self::write_now) may be used: no
    /// request waits for anything, so that there is nothing to submit and poll. It stays so.
    fn is_immediate(&self) -> bool {
        false
    }

    /// Reads whole blocks from `lba` on, before it returns.
    ///
    /// # Errors
    /// As a completion's; [`IoError::Unsupported`] unless the device is immediate.
    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        let _ = (lba, into);
        Err(IoError::Unsupported)
    }

    /// Writes whole blocks from `lba` on, before it returns. They are then as durable as with FUA.
    ///
    /// # Errors
    /// As a completion's; [`IoError::Unsupported`] unless the device is immediate. Nothing has
    /// changed then, and the caller may submit the same request.
    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        let _ = (lba, data);
        Err(IoError::Unsupported)
    }

    /// Whether [`write_now`](Self::write_now) of so many bytes to `lba` cannot fail, whatever other
    /// Writes that are sure come before it, as long as nothing else does: then a Write may be
    /// answered first and made at once after.
    fn is_write_sure(&self, lba: u64, bytes: usize) -> bool {
        let _ = (lba, bytes);
        false
    }

    /// A view of whole blocks from `lba` on: what is read through it is what a Read would return
    /// at that moment.
    ///
    /// # Errors
    /// As a completion's; [`IoError::Unsupported`] unless the device is immediate and its medium
    /// is memory.
    fn view_now(&self, lba: u64, bytes: usize) -> Result<MediumView, IoError> {
        let _ = (lba, bytes);
        Err(IoError::Unsupported)
    }

    /// Moves finished requests to `out`, as many as fit.
    fn poll(&mut self, now: Nanos, out: &mut Completions);

    /// Where what is allocated changes with writes: asks for that at any time but within a call of the
    /// device. It may be kept, and asked after the device is gone.
    fn allocation(&self) -> Option<Rc<dyn Fn() -> Allocation>> {
        None
    }

    /// When `poll` must be called again although nothing happened, as a point in time;
    /// [`Nanos::ZERO`] means at once. `None` when the reactor is woken by the device.
    fn poll_timeout(&self) -> Option<Nanos>;

    /// What happened to the device since the last call, oldest first.
    fn poll_event(&mut self) -> Option<DeviceEvent>;

    /// Reads the backing's size again, for the management path; blocks for a system call or two.
    /// Returns the geometry with that size.
    ///
    /// A larger size is taken over. A smaller one is only returned: hosts rely on the size they
    /// were told, so [`geometry`](Self::geometry) stays, no event follows, and requests that the
    /// backing no longer reaches fail on their own until it is as large again.
    ///
    /// # Errors
    /// When the backing cannot be asked.
    fn refresh(&mut self) -> io::Result<Geometry>;
}

/// A reusable, bounded, first-in-first-out list of completions. It never grows past its capacity.
#[derive(Debug)]
pub struct Completions {
    list: VecDeque<Completion>,
    capacity: usize,
}

impl Completions {
    /// An empty list for `capacity` completions, all allocated now.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            list: VecDeque::with_capacity(capacity),
            capacity,
        }
    }

    /// The number of completions it can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of completions it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether a push would be one too many.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.list.len() >= self.capacity
    }

    /// Adds one.
    ///
    /// # Panics
    /// When full: the engine asks [`is_full`](Self::is_full) before it takes a completion out of
    /// its own tables, so that none is ever lost.
    pub fn push(&mut self, completion: Completion) {
        assert!(!self.is_full(), "completion pushed to a full list");
        self.list.push_back(completion);
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<Completion> {
        self.list.pop_front()
    }

    /// Takes all, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Completion> + '_ {
        self.list.drain(..)
    }
}
