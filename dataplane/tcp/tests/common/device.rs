//! Devices with something special, and one type for all of them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bowline_block::{
    Completions, Device, DeviceEvent, ErrorRates, FaultDevice, FaultPlan, Geometry, Io, IoError,
    MediumView, MemDevice, Op,
};
use bowline_nvme::Nanos;

/// Any device, and a witness: the Writes that it has promised are made in that order, and before it is
/// used in any other way. The reactor panics if not.
pub(crate) struct TestDevice {
    inner: Box<dyn Device>,
    /// Where the Writes begin that were promised and not made yet, and their bytes.
    promised: RefCell<VecDeque<(u64, usize)>>,
}

impl TestDevice {
    pub(crate) fn new(device: impl Device + 'static) -> Self {
        Self {
            inner: Box::new(device),
            promised: RefCell::default(),
        }
    }

    fn check_promises(&self) {
        let promised = self.promised.borrow();
        assert!(promised.is_empty(), "Writes were not made: {promised:?}");
    }

    /// Memory of this many bytes.
    pub(crate) fn memory(bytes: u64, block_bytes: u32) -> Self {
        Self::new(memory(bytes, block_bytes))
    }
}

/// Memory of this many bytes.
pub(crate) fn memory(bytes: u64, block_bytes: u32) -> MemDevice {
    MemDevice::new(bytes, block_bytes).expect("memory for a small device")
}

impl Device for TestDevice {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn depth_max(&self) -> usize {
        self.inner.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        self.check_promises();
        self.inner.try_submit(io)
    }

    fn is_immediate(&self) -> bool {
        self.inner.is_immediate()
    }

    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        self.check_promises();
        self.inner.read_now(lba, into)
    }

    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        if let Some(promised) = self.promised.get_mut().pop_front() {
            assert_eq!(promised, (lba, data.len()), "a Write before others");
        }
        self.inner.write_now(lba, data)
    }

    fn is_write_sure(&self, lba: u64, bytes: usize) -> bool {
        let is_sure = self.inner.is_write_sure(lba, bytes);
        if is_sure {
            self.promised.borrow_mut().push_back((lba, bytes));
        }
        is_sure
    }

    fn view_now(&self, lba: u64, bytes: usize) -> Result<MediumView, IoError> {
        self.check_promises();
        self.inner.view_now(lba, bytes)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.check_promises();
        self.inner.poll(now, out);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.inner.poll_timeout()
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.check_promises();
        self.inner.poll_event()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        self.check_promises();
        self.inner.refresh()
    }
}

impl Drop for TestDevice {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check_promises();
        }
    }
}

/// A device whose properties a test chooses.
pub(crate) struct Shaped<D> {
    pub(crate) inner: D,
    /// Changes what the device below says of itself.
    pub(crate) shape: fn(&mut Geometry),
}

impl<D: Device> Device for Shaped<D> {
    fn geometry(&self) -> Geometry {
        let mut geometry = self.inner.geometry();
        (self.shape)(&mut geometry);
        geometry
    }

    fn depth_max(&self) -> usize {
        self.inner.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        // The device below knows nothing of the shape: what the target lets through happens.
        self.inner.try_submit(io)
    }

    fn is_immediate(&self) -> bool {
        self.inner.is_immediate()
    }

    fn read_now(&mut self, lba: u64, into: &mut [u8]) -> Result<(), IoError> {
        self.inner.read_now(lba, into)
    }

    fn write_now(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        self.inner.write_now(lba, data)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.inner.poll(now, out);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.inner.poll_timeout()
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.inner.poll_event()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        let mut geometry = self.inner.refresh()?;
        (self.shape)(&mut geometry);
        Ok(geometry)
    }
}

/// The part of a device that its backing has grown to so far.
pub(crate) struct Growing {
    pub(crate) inner: MemDevice,
    /// Size of the backing now, in logical blocks.
    pub(crate) backing_blocks: Arc<AtomicU64>,
    blocks: u64,
}

impl Growing {
    pub(crate) fn new(inner: MemDevice, blocks: u64) -> Self {
        Self {
            inner,
            backing_blocks: Arc::new(AtomicU64::new(blocks)),
            blocks,
        }
    }
}

impl Device for Growing {
    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks,
            ..self.inner.geometry()
        }
    }

    fn depth_max(&self) -> usize {
        self.inner.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        self.inner.try_submit(io)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.inner.poll(now, out);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.inner.poll_timeout()
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.inner.poll_event()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        let blocks = self.backing_blocks.load(Ordering::SeqCst);
        self.blocks = self.blocks.max(blocks);
        Ok(Geometry {
            blocks,
            ..self.inner.geometry()
        })
    }
}

/// What a [`Gated`] device and its test share.
#[derive(Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    full: AtomicBool,
    refused: AtomicU64,
    submitted: AtomicU64,
    flushes: AtomicU64,
    fua_writes: AtomicU64,
}

impl Gate {
    /// While closed no request completes. Whoever opens it again must wake the reactor.
    pub(crate) fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
    }

    /// While full the device takes no request. Whoever ends that must wake the reactor.
    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// How often a request was not taken.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    /// Requests that have reached the device.
    pub(crate) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::SeqCst)
    }

    /// Of these, flushes.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    /// Of these, writes with FUA.
    pub(crate) fn fua_writes(&self) -> u64 {
        self.fua_writes.load(Ordering::SeqCst)
    }
}

/// A device that counts its requests and completes them only while its gate is open.
pub(crate) struct Gated<D> {
    pub(crate) inner: D,
    pub(crate) gate: Arc<Gate>,
}

impl<D: Device> Device for Gated<D> {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn depth_max(&self) -> usize {
        self.inner.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        if self.gate.full.load(Ordering::SeqCst) {
            self.gate.refused.fetch_add(1, Ordering::SeqCst);
            return Err(io);
        }
        let (op, fua) = (io.op, io.fua);
        self.inner.try_submit(io)?;
        self.gate.submitted.fetch_add(1, Ordering::SeqCst);
        self.gate
            .flushes
            .fetch_add(u64::from(op == Op::Flush), Ordering::SeqCst);
        self.gate
            .fua_writes
            .fetch_add(u64::from(op == Op::Write && fua), Ordering::SeqCst);
        Ok(())
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        if !self.gate.closed.load(Ordering::SeqCst) {
            self.inner.poll(now, out);
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        if self.gate.closed.load(Ordering::SeqCst) {
            None
        } else {
            self.inner.poll_timeout()
        }
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.inner.poll_event()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        self.inner.refresh()
    }
}

/// How a [`Worn`] device fails, for its test to change.
#[derive(Default)]
pub(crate) struct Wear {
    /// Requests that still succeed, and how the others fail.
    state: Mutex<(u64, ErrorRates)>,
}

impl Wear {
    /// Lets `spared` requests succeed and then all fail of which `errors` says so.
    pub(crate) fn set(&self, spared: u64, errors: ErrorRates) {
        *self.state.lock().expect("nobody panics with it") = (spared, errors);
    }

    fn next(&self) -> ErrorRates {
        let mut state = self.state.lock().expect("nobody panics with it");
        match state.0.checked_sub(1) {
            Some(spared) => {
                state.0 = spared;
                ErrorRates::default()
            }
            None => state.1,
        }
    }
}

/// A faulty device that begins to fail, and stops, when a test wants.
pub(crate) struct Worn {
    inner: FaultDevice<MemDevice>,
    wear: Arc<Wear>,
}

impl Worn {
    pub(crate) fn new(inner: MemDevice, wear: Arc<Wear>) -> Self {
        let inner = FaultDevice::new(inner, FaultPlan::default()).expect("memory");
        Self { inner, wear }
    }
}

impl Device for Worn {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn depth_max(&self) -> usize {
        self.inner.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        self.inner.set_errors(self.wear.next());
        self.inner.try_submit(io)
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.inner.poll(now, out);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.inner.poll_timeout()
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.inner.poll_event()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        self.inner.refresh()
    }
}
