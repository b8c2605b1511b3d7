//! The device: between its reactor and the library's queue.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline_block::{
    ClassConfig, Completion, Completions, Deallocate, Device, DeviceEvent, DeviceEvents, Geometry,
    Io, IoBuf, IoError, Op, PoolConfig, PoolMemory, SEGMENTS_MAX,
};
use bowline_nvme::Nanos;
use bowline_spdk_rs::{Access, Bdev, BdevEvent, Finished, Queue, Refusal, Rejected, Rest, Thread};

use crate::drives::{Drive, Place};
use crate::library::SpdkBacking;
use crate::request::{Abilities, Lasts, Next, Request, ZEROES_BYTES};
use crate::status;
use crate::unflushed::Unflushed;

/// Requests that a device holds at once; of these the library takes as many as it can.
const DEPTH: usize = 1024;

/// How often pollers of the library are run that want to run now and then, while the device has nothing
/// to do. Waking for it takes some 70 microseconds.
const POLLERS_INTERVAL: Duration = Duration::from_millis(100);

/// How long a device that is dropped waits for what the library still has of it.
const DROP_PATIENCE: Duration = Duration::from_secs(30);

/// A block device of SPDK as a [`Device`]. Drop it when nothing is in flight: what is, is waited for.
///
/// Compare-and-write is the device's own, as large as that can be, else [`IoError::Unsupported`].
///
/// A drive that was pulled out is served again when it is back in its place. What it had in its cache is
/// lost then: if something was, the next flush fails, so that who relies on it is told.
pub struct SpdkDevice {
    /// `None` while the device is gone.
    open: Option<Open>,
    name: String,
    /// Where it is a drive's.
    drive: Option<Arc<Drive>>,
    /// Where the drive is put when it is back, while it is gone.
    place: Option<Arc<Place>>,
    /// It was said that the drive is back and cannot be opened.
    is_refused: bool,
    unflushed: Unflushed,
    /// The drive was gone with writes that no flush had covered, and nobody knows yet.
    has_forgotten: bool,
    thread: Thread,
    geometry: Geometry,
    abilities: Abilities,
    compare_blocks: u32,
    /// Requests that the library had no room for, oldest first.
    waiting: VecDeque<Request>,
    done: VecDeque<Completion>,
    /// Requests accepted and not handed out.
    held: usize,
    now: Nanos,
    /// How long nothing is to be done for what others of the library send, and for news of the device.
    rest: Rest,
    rest_until: Nanos,
    events: DeviceEvents,
    /// It has vanished, and is to be reset.
    reset_due: bool,
    /// Where the device cannot zero by itself.
    zeroes: Option<IoBuf>,
}

/// The library's side. The queue goes before what it is a queue to.
struct Open {
    queue: Queue<Request>,
    bdev: Bdev,
}

impl Open {
    fn new(thread: &Thread, name: &str, uuid: [u8; 16], geometry: &Geometry) -> io::Result<Self> {
        let access = if geometry.read_only {
            Access::Read
        } else {
            Access::Write
        };
        let bdev = Bdev::open(thread, name, access)?;
        let info = bdev.info();
        // It was looked at on another thread: a drive may have been exchanged since. Blocks may be
        // counted in other units, too.
        let is_other = info.uuid != uuid
            || info.block_bytes != geometry.block_bytes
            || info.blocks < geometry.blocks;
        if is_other {
            let other = format!("device {name} is another one meanwhile: add it again");
            return Err(io::Error::other(other));
        }
        // One more, for a reset.
        let slots = u32::try_from(DEPTH + 1).unwrap_or(u32::MAX);
        let slices = u32::try_from(SEGMENTS_MAX).unwrap_or(u32::MAX);
        let queue = bdev.queue(slots, slices)?;
        Ok(Self { queue, bdev })
    }
}

impl SpdkDevice {
    /// Opens the device on the calling thread, the reactor's, which is made a thread of the library
    /// while it has devices. `memory` is [`Spdk::memory`](crate::Spdk::memory); `wake` has the reactor
    /// take a turn, and is called on other threads.
    ///
    /// # Errors
    /// When somebody else has it, it has gone meanwhile, or there is no memory.
    pub fn open(
        backing: SpdkBacking,
        memory: &PoolMemory,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let SpdkBacking {
            library,
            name,
            uuid,
            geometry,
            abilities,
            compare_blocks,
            drive,
        } = backing;
        let thread = match Thread::current() {
            Some(thread) => thread,
            None => {
                let own = std::thread::current();
                library.thread(own.name().unwrap_or("reactor"))?
            }
        };
        thread.set_waker(wake);
        let open = Open::new(&thread, &name, uuid, &geometry)?;
        let zeroes = if abilities.write_zeroes {
            None
        } else {
            Some(zeroes(memory)?)
        };
        Ok(Self {
            open: Some(open),
            name,
            drive,
            place: None,
            is_refused: false,
            unflushed: Unflushed::default(),
            has_forgotten: false,
            thread,
            geometry,
            abilities,
            compare_blocks,
            waiting: VecDeque::with_capacity(DEPTH),
            done: VecDeque::with_capacity(DEPTH),
            held: 0,
            now: Nanos::ZERO,
            rest: Rest::default(),
            rest_until: Nanos::ZERO,
            events: DeviceEvents::default(),
            reset_due: false,
            zeroes,
        })
    }

    /// Requests accepted and not yet handed out.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.held
    }

    /// What can be said about a request without asking the library; `None` when it is to be asked.
    fn verdict(&mut self, io: &Io) -> Option<Result<(), IoError>> {
        if self.events.has_vanished() {
            return Some(Err(IoError::Vanished));
        }
        let range = match self.geometry.check_io(io) {
            Ok(range) => range,
            Err(error) => return Some(Err(error)),
        };
        match io.op {
            Op::Flush if std::mem::take(&mut self.has_forgotten) => {
                return Some(Err(IoError::MediaWrite));
            }
            // A device that cannot flush has nothing to flush.
            Op::Flush => return (!self.abilities.flush).then_some(Ok(())),
            Op::Deallocate if self.geometry.deallocate == Deallocate::None => {
                return Some(Err(IoError::Unsupported));
            }
            Op::CompareAndWrite if io.blocks > self.compare_blocks => {
                return Some(Err(IoError::Unsupported));
            }
            Op::Read if !io.data.is_unique() => return Some(Err(IoError::Internal)),
            _ => {}
        }
        (range.len == 0).then_some(Ok(()))
    }

    /// Has the library do a request, or lets it wait for room there.
    fn start(&mut self, request: Request) {
        if self.waiting.is_empty() {
            if let Some(request) = self.submit(request) {
                self.waiting.push_back(request);
            }
        } else {
            self.waiting.push_back(request);
        }
    }

    /// Hands back a request that the library has no room for.
    fn submit(&mut self, request: Request) -> Option<Request> {
        // Nothing new for a device that goes: it may have been reset for what is on its way.
        let has_vanished = self.events.has_vanished();
        let Some(open) = self.open.as_mut().filter(|_| !has_vanished) else {
            self.over(request.finish(Err(IoError::Vanished)));
            return None;
        };
        let (operation, range) = request.operation(self.geometry.blocks);
        let Rejected { payload, reason } = open.queue.submit(operation, range, request).err()?;
        if reason == Refusal::Full {
            return Some(payload);
        }
        let blocks = open.bdev.info().blocks;
        let is_inside = range.block.saturating_add(range.blocks) <= blocks;
        let error = self.judge(status::refused(reason, is_inside));
        self.over(payload.finish(Err(error)));
        None
    }

    fn start_waiting(&mut self) {
        while let Some(request) = self.waiting.pop_front() {
            if let Some(request) = self.submit(request) {
                self.waiting.push_front(request);
                return;
            }
        }
    }

    fn ended(&mut self, finished: Finished<Request>) {
        let Finished { payload, status } = finished;
        if payload.is_reset() {
            return;
        }
        if status.is_success() {
            let next = payload.succeeded(&self.abilities, self.zeroes.as_ref());
            self.over(next);
            return;
        }
        let code = (status.code_type(), status.code());
        let error = status::io_error(code, payload.errs_as(), self.abilities.is_drive);
        let error = self.judge(error);
        self.over(payload.finish(Err(error)));
    }

    fn over(&mut self, next: Next) {
        match next {
            Next::Continue(request) => self.start(request),
            Next::Finish(op, lasts, completion) => {
                self.note_durability(op, lasts, &completion);
                if op == Op::Deallocate && completion.result == Err(IoError::Unsupported) {
                    // Was claimed by the library; it turned out to be wrong.
                    self.abilities_changed();
                }
                self.done.push_back(completion);
            }
        }
    }

    fn note_durability(&mut self, op: Op, lasts: Lasts, completion: &Completion) {
        let is_done = completion.result.is_ok();
        if op == Op::Flush {
            self.unflushed.end_flush(completion.token, is_done);
        } else if is_done && lasts == Lasts::Flushed {
            self.unflushed.change();
        }
    }

    fn abilities_changed(&mut self) {
        if self.geometry.deallocate != Deallocate::None {
            self.geometry.deallocate = Deallocate::None;
            self.events.change_geometry();
        }
    }

    /// Looks at what an error says about the device as a whole.
    fn judge(&mut self, error: IoError) -> IoError {
        if self.events.has_vanished() {
            return IoError::Vanished;
        }
        if matches!(error, IoError::MediaRead | IoError::MediaWrite) {
            self.events.warn(self.now);
        }
        error
    }

    /// What the library tells of the device.
    fn note_events(&mut self) {
        while let Some(event) = self.open.as_ref().and_then(|open| open.bdev.poll_event()) {
            match event {
                BdevEvent::Removed => {
                    self.events.vanish();
                    self.reset_due = true;
                }
                BdevEvent::Resized => self.resize(),
            }
        }
        if self.reset_due {
            self.reset_due = self.reset();
        }
    }

    /// Has a device that goes end what runs, however stuck it is: whoever removes it waits for that.
    /// True when there was no room for that, and it is to be tried again.
    fn reset(&mut self) -> bool {
        if let Some(open) = &mut self.open
            && open.queue.running() > 0
            && self.abilities.reset
        {
            let request = Request::reset();
            let (operation, range) = request.operation(0);
            match open.queue.submit(operation, range, request) {
                Ok(()) => {}
                Err(Rejected {
                    reason: Refusal::Full,
                    ..
                }) => return true,
                Err(Rejected { reason, .. }) => {
                    tracing::warn!(device = open.bdev.name(), ?reason, "SPDK refused a reset");
                }
            }
        }
        false
    }

    /// Takes over a larger size; hosts rely on the one they were told, so never a smaller one.
    fn resize(&mut self) {
        if let Some(open) = &self.open {
            let blocks = open.bdev.info().blocks;
            if blocks > self.geometry.blocks {
                self.geometry.blocks = blocks;
                self.events.change_geometry();
            }
        }
    }

    /// Takes what has ended, and gives a device that has gone back to the library, which waits for
    /// that, when nothing of it is left there.
    fn collect(&mut self) {
        while let Some(finished) = self.open.as_mut().and_then(|open| open.queue.pop()) {
            self.ended(finished);
        }
        let is_idle = |open: &Open| open.queue.running() == 0;
        if self.events.has_vanished() && self.open.as_ref().is_some_and(is_idle) {
            self.open = None;
            self.place = self.drive.as_ref().map(|drive| {
                let handle = self.thread.handle();
                drive.seek(&self.name, self.geometry, handle)
            });
        }
    }

    /// Serves a drive again that is back in its place.
    fn come_back(&mut self) {
        let Some(drive) = &self.drive else { return };
        let returned = self.place.as_ref().and_then(|place| place.take());
        let Some(SpdkBacking { name, uuid, .. }) = returned else {
            return;
        };
        self.place = None;
        match Open::new(&self.thread, &name, uuid, &self.geometry) {
            Ok(open) => {
                self.open = Some(open);
                self.is_refused = false;
                self.reset_due = false;
                if self.abilities.write_cache && self.unflushed.is_any() {
                    tracing::warn!(
                        device = name,
                        "the drive was pulled out with writes that no flush had covered, which it may \
                         have forgotten: the next flush fails"
                    );
                    self.has_forgotten = true;
                }
                self.unflushed = Unflushed::default();
                self.events.come_back();
                self.resize();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    tracing::warn!(
                        device = name, %error,
                        "a drive is back and was not opened; it is tried again"
                    );
                }
                let handle = self.thread.handle();
                self.place = Some(drive.seek(&self.name, self.geometry, handle));
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.held > 0 || self.events.is_untold()
    }

    /// After a poll that found nothing to do.
    fn begin_rest(&mut self) {
        let rest = self
            .rest
            .after_poll(&self.thread, Duration::from_nanos(self.now.0));
        let due = self.thread.next_timed_poll();
        let rest = due.map_or(rest, |due| rest.min(due.max(POLLERS_INTERVAL)));
        let rest = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
        self.rest_until = self.now.after(Nanos(rest));
    }

    fn hand_out(&mut self, out: &mut Completions) {
        while !out.is_full()
            && let Some(completion) = self.done.pop_front()
        {
            self.held -= 1;
            out.push(completion);
        }
    }
}

impl Device for SpdkDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn depth_max(&self) -> usize {
        DEPTH
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        // A completion keeps its place until it is handed out: nothing grows.
        if self.held == DEPTH {
            return Err(io);
        }
        self.held += 1;
        match self.verdict(&io) {
            Some(result) => self.done.push_back(io.complete(result)),
            None => {
                if io.op == Op::Flush {
                    self.unflushed.begin_flush(io.token);
                }
                let request = Request::new(io, &self.abilities, self.zeroes.as_ref());
                self.start(request);
            }
        }
        Ok(())
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        self.now = now;
        self.thread.poll();
        self.come_back();
        self.note_events();
        self.collect();
        self.start_waiting();
        self.hand_out(out);
        if !self.is_busy() {
            self.begin_rest();
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        // Also when the device has gone: others may wait for something from this thread.
        let is_due = self.is_busy() || self.rest.is_over(&self.thread);
        Some(if is_due { Nanos::ZERO } else { self.rest_until })
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.events.pop()
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        self.note_events();
        let Some(open) = self.open.as_ref().filter(|_| !self.events.has_vanished()) else {
            let gone = "the device is gone";
            return Err(io::Error::new(io::ErrorKind::NotFound, gone));
        };
        let blocks = open.bdev.info().blocks;
        self.resize();
        Ok(Geometry {
            blocks,
            ..self.geometry
        })
    }
}

impl Drop for SpdkDevice {
    fn drop(&mut self) {
        let Some(open) = &mut self.open else { return };
        let until = Instant::now() + DROP_PATIENCE;
        while open.queue.running() > 0 && Instant::now() < until {
            self.thread.poll();
        }
        if open.queue.running() > 0 {
            // Queue, device and buffers stay with the library, which may still use them.
            tracing::error!(
                device = open.bdev.name(),
                requests = open.queue.running(),
                "SPDK does not end its requests: the device stays open"
            );
        }
    }
}

/// A buffer of zeroes, from a pool of its own.
fn zeroes(memory: &PoolMemory) -> io::Result<IoBuf> {
    let classes = vec![ClassConfig {
        bytes: ZEROES_BYTES,
        count: 1,
    }];
    let pool = memory.pool(PoolConfig { classes })?;
    // New memory is zero, and nobody is given it to write to.
    pool.alloc(ZEROES_BYTES)
        .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
