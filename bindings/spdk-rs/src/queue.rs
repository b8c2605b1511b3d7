//! Requests to a device: slots made beforehand, which own the memory of what is on its way.

use std::cell::{Cell, UnsafeCell};
use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use bowline_spdk_sys as sys;

use crate::bdev::{Descriptor, Operation};
use crate::error::Error;
use crate::memory::DmaBuffer;
use crate::status::Status;

/// The memory of a request, and whatever else goes with it. A queue owns it while the request is on
/// its way.
///
/// # Safety
/// Until the value is dropped or next borrowed mutably, though it may be moved, each piece that
/// [`pieces`](Self::pieces) has pushed is valid for reads, initialised, and changed by nobody. With
/// `fill` it is valid for writes as well, and used by nobody else at all.
pub unsafe trait Payload: 'static {
    /// Pushes the pieces of memory, in order. With `fill` the device writes to them: who does not
    /// have them alone pushes nothing.
    fn pieces(&mut self, fill: bool, into: &mut Slices<'_>);
}

// SAFETY: the buffer owns its bytes, at one address.
unsafe impl Payload for DmaBuffer {
    fn pieces(&mut self, _fill: bool, into: &mut Slices<'_>) {
        into.push(self.base(), self.len());
    }
}

/// For requests without memory.
// SAFETY: it has none.
unsafe impl Payload for () {
    fn pieces(&mut self, _fill: bool, _into: &mut Slices<'_>) {}
}

/// The pieces of memory of a payload.
pub struct Slices<'a> {
    into: &'a mut [sys::shim_slice],
    used: usize,
    bytes: u64,
    overflow: bool,
}

impl Slices<'_> {
    /// Adds `bytes` bytes from `base` on. One piece too many makes the request invalid.
    pub fn push(&mut self, base: NonNull<u8>, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let total = u64::try_from(bytes)
            .ok()
            .and_then(|bytes| self.bytes.checked_add(bytes));
        match (self.into.get_mut(self.used), total) {
            (Some(slice), Some(total)) => {
                slice.base = base.as_ptr().cast();
                slice.bytes = bytes;
                self.used += 1;
                self.bytes = total;
            }
            _ => self.overflow = true,
        }
    }
}

/// Blocks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first one.
    pub block: u64,
    /// How many.
    pub blocks: u64,
}

/// A request that was not accepted, and its payload.
#[derive(Debug)]
pub struct Rejected<P> {
    /// What was given.
    pub payload: P,
    /// Why it was not taken.
    pub reason: Refusal,
}

/// Why a request was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too much is on its way, here or elsewhere: try again after the next poll. What ends elsewhere
    /// makes room too, and nobody is told of it.
    Full,
    /// Range and payload do not fit together, or the range is not within the device.
    Invalid,
    /// The device was opened to be read.
    ReadOnly,
    /// The device cannot do this.
    Unsupported,
    /// As the library says, by its error number.
    Other(i32),
}

impl Refusal {
    fn of_result(result: i32) -> Self {
        match -result {
            libc::ENOMEM => Self::Full,
            libc::EINVAL => Self::Invalid,
            libc::EBADF => Self::ReadOnly,
            libc::ENOTSUP => Self::Unsupported,
            errno => Self::Other(errno),
        }
    }
}

/// A request that has ended.
#[derive(Debug)]
pub struct Finished<P> {
    /// What was given with it.
    pub payload: P,
    /// How it ended.
    pub status: Status,
}

/// A thread's own way to a device (SPDK calls it an I/O channel), with a fixed number of slots for
/// requests. Whatever happens to this value, a request that was accepted keeps its payload, the
/// device and the thread until it has ended; if its thread is never polled again, for ever.
pub struct Queue<P: Payload> {
    shared: Rc<Shared<P>>,
}

/// End of a list of slots.
const NONE: u32 = u32::MAX;

struct Shared<P> {
    slots: Box<[Slot<P>]>,
    /// The first of those that are free.
    free: Cell<u32>,
    /// Those that have ended, oldest first.
    ended: Cell<u32>,
    ended_last: Cell<u32>,
    running: Cell<u32>,
    channel: NonNull<sys::shim_channel>,
    descriptor: Rc<Descriptor>,
}

struct Slot<P> {
    index: u32,
    /// The next of the list that it is in.
    next: Cell<u32>,
    payload: Cell<Option<P>>,
    status: Cell<Status>,
    /// While the request is on its way: what keeps the slot.
    keep: Cell<Option<Rc<Shared<P>>>>,
    /// Read by the library while the request is on its way.
    request: UnsafeCell<sys::shim_request>,
    slices: UnsafeCell<Box<[sys::shim_slice]>>,
}

impl<P: Payload> Queue<P> {
    pub(crate) fn new(
        descriptor: Rc<Descriptor>,
        depth: u32,
        slices_max: u32,
    ) -> Result<Self, Error> {
        let what = || format!("no queue to device {}", descriptor.name());
        let fits = |count: u32| usize::try_from(count).ok().filter(|_| count < NONE - 1);
        let (Some(depth_usize), Some(slices)) = (fits(depth), fits(slices_max)) else {
            return Err(Error::new(what(), "it cannot be as large"));
        };
        // SAFETY: the descriptor is open, on this OS thread's current thread.
        let channel = unsafe { sys::shim_bdev_channel(descriptor.raw()) };
        let channel = NonNull::new(channel).ok_or_else(|| Error::no_memory(what()))?;
        let mut made = Vec::with_capacity(depth_usize);
        for index in 0..depth {
            made.push(Slot {
                index,
                next: Cell::new(if index + 1 < depth { index + 1 } else { NONE }),
                payload: Cell::new(None),
                status: Cell::new(Status::SUCCESS),
                keep: Cell::new(None),
                request: UnsafeCell::default(),
                // One more, as compare-and-write may have to cut one in two.
                slices: UnsafeCell::new(
                    vec![sys::shim_slice::default(); slices + 1].into_boxed_slice(),
                ),
            });
        }
        Ok(Self {
            shared: Rc::new(Shared {
                slots: made.into_boxed_slice(),
                free: Cell::new(if depth > 0 { 0 } else { NONE }),
                ended: Cell::new(NONE),
                ended_last: Cell::new(NONE),
                running: Cell::new(0),
                channel,
                descriptor,
            }),
        })
    }

    /// Requests that are on their way.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.shared.running.get()
    }

    /// Asks the device for something. Its end comes out of [`pop`](Self::pop) after some poll of the
    /// thread.
    ///
    /// The payload of [`Read`](Operation::Read), [`Write`](Operation::Write) and
    /// [`Compare`](Operation::Compare) is as long as the range, that of
    /// [`CompareAndWrite`](Operation::CompareAndWrite) twice as long; that of others is not looked at.
    ///
    /// # Errors
    /// When it is not accepted: the payload comes back with the reason. [`Refusal::Full`] too, when
    /// requests that have ended were not taken out.
    pub fn submit(
        &mut self,
        operation: Operation,
        range: Range,
        payload: P,
    ) -> Result<(), Rejected<P>> {
        let mut payload = payload;
        let shared = &self.shared;
        let Some(slot) = shared.slot(shared.free.get()) else {
            let reason = Refusal::Full;
            return Err(Rejected { payload, reason });
        };
        if let Err(reason) = shared.start(slot, operation, range, &mut payload) {
            return Err(Rejected { payload, reason });
        }
        slot.payload.set(Some(payload));
        slot.keep.set(Some(Rc::clone(shared)));
        shared.free.set(slot.next.get());
        shared.running.set(shared.running.get() + 1);
        if operation == Operation::Reset {
            // Whoever has a queue to the device is asked.
            shared.descriptor.stir();
        }
        Ok(())
    }

    /// The oldest request that has ended and was not taken out yet.
    pub fn pop(&mut self) -> Option<Finished<P>> {
        let shared = &self.shared;
        let slot = shared.slot(shared.ended.get())?;
        shared.ended.set(slot.next.get());
        if shared.ended.get() == NONE {
            shared.ended_last.set(NONE);
        }
        slot.next.set(shared.free.get());
        shared.free.set(slot.index);
        slot.payload.take().map(|payload| Finished {
            payload,
            status: slot.status.get(),
        })
    }
}

impl<P: Payload> fmt::Debug for Queue<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("device", &self.shared.descriptor.name())
            .field("running", &self.shared.running.get())
            .finish_non_exhaustive()
    }
}

impl<P: Payload> Shared<P> {
    fn slot(&self, index: u32) -> Option<&Slot<P>> {
        self.slots.get(usize::try_from(index).ok()?)
    }

    /// Makes the request in a free slot.
    fn start(
        &self,
        slot: &Slot<P>,
        operation: Operation,
        range: Range,
        payload: &mut P,
    ) -> Result<(), Refusal> {
        let (desc, channel) = (self.descriptor.raw(), self.channel.as_ptr());
        let Range { block, blocks } = range;
        let request = slot.request.get();
        // SAFETY: the slot is free, so the library does not look at it.
        unsafe {
            (*request).done = Some(done::<P>);
            (*request).context = ptr::from_ref(slot).cast_mut().cast();
        }
        // SAFETY: the slot is free, so this is the only reference to its slices.
        let slices = unsafe { &mut **slot.slices.get() };
        // SAFETY: this is what all calls below ask for. Descriptor and channel are open, on this OS
        // thread's current thread. Until `done` is called, which is after the call has returned, the
        // slot stays where it is, with request and slices: `keep` sees to that, and nobody borrows them
        // meanwhile. So does the payload, whose pieces stay valid although it is moved into the slot.
        let result = unsafe {
            match operation {
                Operation::Read | Operation::Write | Operation::Compare => {
                    let fill = operation == Operation::Read;
                    let count = count(pieces(slices, payload, fill)?)?;
                    let transfer = match operation {
                        Operation::Read => sys::shim_bdev_read,
                        Operation::Write => sys::shim_bdev_write,
                        _ => sys::shim_bdev_compare,
                    };
                    transfer(
                        desc,
                        channel,
                        slices.as_ptr(),
                        count,
                        block,
                        blocks,
                        request,
                    )
                }
                Operation::CompareAndWrite => {
                    let used = pieces(slices, payload, false)?;
                    let bytes = blocks.checked_mul(u64::from(self.descriptor.block_bytes()));
                    let (compare, write) = cut(slices, used, bytes.ok_or(Refusal::Invalid)?)?;
                    let (old, new) = slices.split_at(compare);
                    sys::shim_bdev_compare_and_write(
                        desc,
                        channel,
                        old.as_ptr(),
                        count(compare)?,
                        new.as_ptr(),
                        count(write)?,
                        block,
                        blocks,
                        request,
                    )
                }
                Operation::Flush => sys::shim_bdev_flush(desc, channel, block, blocks, request),
                Operation::Unmap => sys::shim_bdev_unmap(desc, channel, block, blocks, request),
                Operation::WriteZeroes => {
                    sys::shim_bdev_write_zeroes(desc, channel, block, blocks, request)
                }
                Operation::Reset => sys::shim_bdev_reset(desc, channel, request),
            }
        };
        if result == 0 {
            Ok(())
        } else {
            Err(Refusal::of_result(result))
        }
    }

    /// Puts a slot at the end of those that have ended.
    fn ended(&self, slot: &Slot<P>) {
        slot.next.set(NONE);
        match self.slot(self.ended_last.replace(slot.index)) {
            Some(last) => last.next.set(slot.index),
            None => self.ended.set(slot.index),
        }
        self.running.set(self.running.get() - 1);
    }
}

impl<P> Drop for Shared<P> {
    fn drop(&mut self) {
        // SAFETY: the channel is open, on this OS thread's current thread, and nothing is on its way:
        // that would keep this.
        unsafe { sys::shim_channel_put(self.channel.as_ptr()) }
        // It goes in a message of the thread to itself.
        self.descriptor.stir();
    }
}

fn count(slices: usize) -> Result<u32, Refusal> {
    u32::try_from(slices).map_err(|_| Refusal::Invalid)
}

/// Lists the pieces of a payload, and gives their number.
fn pieces<P: Payload>(
    slices: &mut [sys::shim_slice],
    payload: &mut P,
    fill: bool,
) -> Result<usize, Refusal> {
    let room = slices.len() - 1;
    let mut list = Slices {
        into: &mut slices[..room],
        used: 0,
        bytes: 0,
        overflow: false,
    };
    payload.pieces(fill, &mut list);
    if list.overflow {
        return Err(Refusal::Invalid);
    }
    Ok(list.used)
}

/// Has a slice end after `bytes` bytes, and gives the number of slices before and behind that.
/// There is room for one more than `used`.
fn cut(slices: &mut [sys::shim_slice], used: usize, bytes: u64) -> Result<(usize, usize), Refusal> {
    let mut left = usize::try_from(bytes).map_err(|_| Refusal::Invalid)?;
    for at in 0..used {
        if left == 0 {
            return Ok((at, used - at));
        }
        let slice = slices[at];
        if slice.bytes <= left {
            left -= slice.bytes;
            continue;
        }
        slices.copy_within(at..used, at + 1);
        slices[at].bytes = left;
        let rest = &mut slices[at + 1];
        rest.base = slice.base.cast::<u8>().wrapping_add(left).cast();
        rest.bytes = slice.bytes - left;
        return Ok((at + 1, used - at));
    }
    Err(Refusal::Invalid)
}

unsafe extern "C" fn done<P: Payload>(context: *mut c_void, status: u16) {
    // SAFETY: the context is the slot of a request on its way, which `keep` keeps, and this is the
    // OS thread of its queue.
    let slot = unsafe { &*context.cast::<Slot<P>>() };
    let Some(shared) = slot.keep.take() else {
        unreachable!("a request that is on its way keeps its slot");
    };
    slot.status.set(Status::new(status));
    shared.ended(slot);
    // With the last of a dropped queue's requests this ends the queue, and the slot with it.
    drop(shared);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(base: usize, bytes: usize) -> sys::shim_slice {
        sys::shim_slice {
            base: ptr::without_provenance_mut(base),
            bytes,
        }
    }

    fn flat(slices: &[sys::shim_slice]) -> Vec<(usize, usize)> {
        let each = slices.iter();
        each.map(|slice| (slice.base.addr(), slice.bytes)).collect()
    }

    #[test]
    fn cut_between_two_slices_changes_neither() {
        let mut slices = [slice(100, 10), slice(200, 10), slice(0, 0)];
        assert_eq!(cut(&mut slices, 2, 10), Ok((1, 1)));
        assert_eq!(flat(&slices[..2]), [(100, 10), (200, 10)]);
    }

    #[test]
    fn cut_inside_a_slice_makes_two_of_it() {
        let mut slices = [slice(100, 10), slice(200, 10), slice(300, 4), slice(0, 0)];
        assert_eq!(cut(&mut slices, 3, 12), Ok((2, 2)));
        assert_eq!(flat(&slices), [(100, 10), (200, 2), (202, 8), (300, 4)]);
        let mut one = [slice(100, 10), slice(0, 0)];
        assert_eq!(cut(&mut one, 1, 5), Ok((1, 1)));
        assert_eq!(flat(&one), [(100, 5), (105, 5)]);
    }

    #[test]
    fn cut_that_leaves_nothing_is_refused() {
        let mut slices = [slice(100, 10), slice(0, 0)];
        assert_eq!(cut(&mut slices, 1, 10), Err(Refusal::Invalid));
        assert_eq!(cut(&mut slices, 1, 11), Err(Refusal::Invalid));
        assert_eq!(cut(&mut slices, 0, 0), Err(Refusal::Invalid));
    }
}
