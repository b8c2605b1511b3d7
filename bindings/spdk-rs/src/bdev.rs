//! Block devices: what there is, and those that are open.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use bowline_spdk_sys as sys;

use crate::error::Error;
use crate::library::{Library, c_string};
use crate::queue::{Payload, Queue};
use crate::thread::Thread;

/// What can be asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Fills the payload from the range.
    Read,
    /// Writes the payload to the range.
    Write,
    /// What was written to the range, and has ended, is on stable media afterwards.
    Flush,
    /// The range is no longer needed.
    Unmap,
    /// The range reads as zeroes afterwards.
    WriteZeroes,
    /// Whether the range holds the payload: [`Status`](crate::Status) says so.
    Compare,
    /// Writes the second half of the payload if the range holds the first, as one.
    CompareAndWrite,
    /// Ends what is on its way, by force if need be. It has no range and no payload.
    Reset,
}

impl Operation {
    const fn bit(self) -> sys::shim_bdev_operation {
        match self {
            Self::Read => sys::SHIM_BDEV_READ,
            Self::Write => sys::SHIM_BDEV_WRITE,
            Self::Flush => sys::SHIM_BDEV_FLUSH,
            Self::Unmap => sys::SHIM_BDEV_UNMAP,
            Self::WriteZeroes => sys::SHIM_BDEV_WRITE_ZEROES,
            Self::Compare => sys::SHIM_BDEV_COMPARE,
            Self::CompareAndWrite => sys::SHIM_BDEV_COMPARE_AND_WRITE,
            Self::Reset => sys::SHIM_BDEV_RESET,
        }
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BdevInfo {
    /// Its name, by which it is opened.
    pub name: String,
    /// What it is called by its maker.
    pub product: String,
    /// The module that made it: `nvme`, `malloc`...
    pub module: String,
    /// Its own identity; zeroes when it has none.
    pub uuid: [u8; 16],
    /// Bytes of a logical block, without metadata.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Bytes of metadata that go with each block. A device that has some cannot be opened here.
    pub metadata_bytes: u32,
    /// Bytes that the medium writes as one.
    pub physical_block_bytes: u32,
    /// Blocks by which every write has to be aligned and sized.
    pub write_unit_blocks: u32,
    /// Blocks that compare-and-write compares and writes as one, at most.
    pub compare_and_write_blocks: u32,
    /// Blocks after which a request had better end; 0: it does not matter.
    pub optimal_boundary_blocks: u32,
    /// Multiple of bytes at which payload has to begin in memory, or else it is copied.
    pub buffer_align: u32,
    /// What was written may be lost before a flush.
    pub write_cache: bool,
    operations: sys::shim_bdev_operation,
}

impl BdevInfo {
    /// Whether the device can do this.
    #[must_use]
    pub fn supports(&self, operation: Operation) -> bool {
        self.operations & operation.bit() != 0
    }

    fn new(raw: &sys::shim_bdev_info) -> Self {
        Self {
            name: text(&raw.name),
            product: text(&raw.product),
            module: text(&raw.module),
            uuid: raw.uuid,
            block_bytes: raw.block_bytes,
            blocks: raw.blocks,
            metadata_bytes: raw.metadata_bytes,
            physical_block_bytes: raw.physical_block_bytes,
            write_unit_blocks: raw.write_unit_blocks,
            compare_and_write_blocks: raw.compare_and_write_blocks,
            optimal_boundary_blocks: raw.optimal_boundary_blocks,
            buffer_align: raw.buffer_align,
            write_cache: raw.write_cache,
            operations: raw.operations,
        }
    }
}

/// All devices; on the application thread.
pub(crate) fn list() -> Vec<BdevInfo> {
    unsafe extern "C" fn add(context: *mut c_void, info: *const sys::shim_bdev_info) {
        // SAFETY: the context is the list below, which nobody else uses meanwhile; the description
        // is valid during the call.
        let (list, info) = unsafe { (&mut *context.cast::<Vec<BdevInfo>>(), &*info) };
        list.push(BdevInfo::new(info));
    }

    let mut list: Vec<BdevInfo> = Vec::new();
    // SAFETY: the subsystems run, and the list outlives the call.
    unsafe { sys::shim_bdev_for_each(Some(add), (&raw mut list).cast()) };
    list
}

/// What the shim wrote as a name.
pub(crate) fn text(bytes: &[c_char]) -> String {
    // SAFETY: the shim ends every name with a NUL within its bounds.
    let text = unsafe { CStr::from_ptr(bytes.as_ptr()) };
    text.to_string_lossy().into_owned()
}

/// How a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To read and write; nobody else may write to it then.
    Write,
}

/// Something that happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BdevEvent {
    /// Its number of blocks has changed.
    Resized,
    /// It goes. Who removes it waits until its queues and the device are dropped here.
    Removed,
}

/// An open device, on the thread that opened it. It is closed when this and all its queues are gone,
/// and what was on its way has ended.
pub struct Bdev {
    descriptor: Rc<Descriptor>,
}

/// Closes the device when dropped: channels hold it.
pub(crate) struct Descriptor {
    raw: NonNull<sys::shim_bdev_desc>,
    /// What the library's context points to.
    events: Rc<Events>,
    name: String,
    block_bytes: u32,
    thread: Thread,
}

struct Events {
    resized: Cell<bool>,
    removed: Cell<bool>,
    library: Library,
}

impl Bdev {
    /// Opens the device `name` on `thread`.
    ///
    /// # Errors
    /// When there is none of this name, somebody else has it, or its blocks carry metadata.
    pub fn open(thread: &Thread, name: &str, access: Access) -> Result<Self, Error> {
        let what = || format!("device {name} was not opened");
        let c_name = c_string(&what(), name)?;
        let events = Rc::new(Events {
            resized: Cell::new(false),
            removed: Cell::new(false),
            library: thread.library().clone(),
        });
        let mut raw = ptr::null_mut();
        let context = Rc::as_ptr(&events).cast_mut().cast();
        let write = access == Access::Write;
        // SAFETY: `thread` is this OS thread's current one. The events stay where they are until the
        // descriptor is closed.
        let result = unsafe {
            sys::shim_bdev_open(
                c_name.as_ptr(),
                write,
                Some(happened),
                context,
                &raw mut raw,
            )
        };
        let raw = match (result, NonNull::new(raw)) {
            (0, Some(raw)) => raw,
            (0, None) => return Err(Error::no_memory(what())),
            (result, _) => return Err(not_opened(what(), result)),
        };
        let mut descriptor = Descriptor {
            raw,
            events,
            name: name.to_owned(),
            block_bytes: 0,
            thread: thread.clone(),
        };
        let info = descriptor.info();
        if info.metadata_bytes != 0 {
            let why = format!("its blocks carry {} bytes of metadata", info.metadata_bytes);
            return Err(Error::new(what(), why).help("format it without metadata"));
        }
        descriptor.block_bytes = info.block_bytes;
        thread.library().stir();
        Ok(Self {
            descriptor: Rc::new(descriptor),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.descriptor.name
    }

    /// What it is now.
    #[must_use]
    pub fn info(&self) -> BdevInfo {
        self.descriptor.info()
    }

    /// What has happened since it was last asked.
    pub fn poll_event(&self) -> Option<BdevEvent> {
        let events = &self.descriptor.events;
        if events.resized.take() {
            Some(BdevEvent::Resized)
        } else if events.removed.take() {
            Some(BdevEvent::Removed)
        } else {
            None
        }
    }

    /// A queue of this thread to the device, for `depth` requests at once, whose payloads are
    /// `slices_max` pieces of memory at most.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn queue<P: Payload>(&self, depth: u32, slices_max: u32) -> Result<Queue<P>, Error> {
        Queue::new(Rc::clone(&self.descriptor), depth, slices_max)
    }
}

impl fmt::Debug for Bdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bdev").field(&self.descriptor.name).finish()
    }
}

fn not_opened(what: String, result: i32) -> Error {
    let error = Error::of_result(what, result);
    match -result {
        libc::ENODEV => error.help("there is none of this name: see Application::bdevs"),
        libc::EPERM | libc::EBUSY => error.help("somebody else writes to it"),
        _ => error,
    }
}

impl Descriptor {
    pub(crate) fn raw(&self) -> *mut sys::shim_bdev_desc {
        self.raw.as_ptr()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Has all threads look soon, as something was begun that may take several.
    pub(crate) fn stir(&self) {
        self.thread.library().stir();
    }

    pub(crate) fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn info(&self) -> BdevInfo {
        let mut raw = sys::shim_bdev_info::default();
        // SAFETY: the descriptor is open.
        unsafe { sys::shim_bdev_info(self.raw.as_ptr(), &raw mut raw) };
        BdevInfo::new(&raw)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it is open, on this OS thread's current thread, and its channels are gone, as they
        // hold it. No event comes any more.
        unsafe { sys::shim_bdev_close(self.raw.as_ptr()) }
        // Somebody may wait for this.
        self.stir();
    }
}

unsafe extern "C" fn happened(context: *mut c_void, event: sys::shim_bdev_event) {
    // SAFETY: the descriptor is open, and its events live until it is closed, on this OS thread.
    let events = unsafe { &*context.cast::<Events>() };
    match event {
        sys::SHIM_BDEV_RESIZED => events.resized.set(true),
        sys::SHIM_BDEV_REMOVED => events.removed.set(true),
        _ => return,
    }
    events.library.stir();
}
