//! A device that is slow, fails and forgets, from a seed.
//!
//! The same seed, requests and times give the same faults: each request's latency and fate are
//! drawn when it is submitted, in the order of submission.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use bowline_nvme::Nanos;

use crate::buf::{BufPool, PoolConfig};
use crate::device::{Completions, Device, DeviceEvent, MEDIA_WARNING_INTERVAL};
use crate::geometry::Geometry;
use crate::io::{Completion, Io, IoError, Op};
use crate::segments::Segments;

mod cache;
mod plan;
mod rng;
#[cfg(test)]
mod tests;

use cache::Cache;
pub use plan::{CachePlan, CrashReport, ErrorRates, FaultPlan, Latency};
use rng::Rng;

/// Largest request whose loss can be simulated, in bytes; larger ones are written through.
const TRACKED_BYTES_MAX: usize = 1 << 20;

/// A device with faults over a device without. Test equipment: it allocates per request.
pub struct FaultDevice<D> {
    inner: D,
    plan: FaultPlan,
    rng: Rng,
    cache: Option<Cache>,
    pool: BufPool,
    // Rises with every submission and completion: names requests and orders flushes.
    clock: u64,
    // Submitted since the last poll, which alone knows the time.
    arrived: VecDeque<Request>,
    // By due time, then submission.
    delayed: BTreeMap<(Nanos, u64), Request>,
    // In the device below, by the token used there.
    running: BTreeMap<u64, Stage>,
    // While set, no request that changes the medium or flushes it starts.
    exclusive: Option<u64>,
    // The next due request has to wait for a completion of the device below.
    is_blocked: bool,
    done: VecDeque<Completion>,
    scratch: Completions,
    events: VecDeque<DeviceEvent>,
    // When the next media warning may be told.
    next_warning_at: Nanos,
    has_vanished: bool,
}

struct Request {
    io: Io,
    latency: Nanos,
    fault: Option<IoError>,
    arrival: u64,
}

enum Stage {
    /// Reading what the request is going to overwrite.
    Preimage(Request),
    /// Executing; `token` is the caller's.
    Execution {
        token: u64,
        op: Op,
        lba: u64,
        blocks: u32,
        fua: bool,
        arrival: u64,
        tracked: bool,
    },
}

impl<D: Device> FaultDevice<D> {
    /// Wraps `inner`.
    ///
    /// # Errors
    /// When memory for its own buffers cannot be mapped.
    pub fn new(inner: D, plan: FaultPlan) -> io::Result<Self> {
        let geometry = inner.geometry();
        let block_bytes = usize::try_from(geometry.block_bytes).unwrap_or(usize::MAX);
        let new_cache = |plan| Cache::new(plan, block_bytes, geometry.atomic_write_blocks);
        let depth = inner.depth_max();
        Ok(Self {
            inner,
            plan,
            rng: Rng::new(plan.seed),
            cache: plan.cache.map(new_cache),
            pool: BufPool::new(PoolConfig::with_budget(8 << 20))?,
            clock: 0,
            arrived: VecDeque::new(),
            delayed: BTreeMap::new(),
            running: BTreeMap::new(),
            exclusive: None,
            is_blocked: false,
            done: VecDeque::new(),
            scratch: Completions::with_capacity(depth),
            events: VecDeque::new(),
            next_warning_at: Nanos::ZERO,
            has_vanished: false,
        })
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The device below, giving up the faults.
    #[must_use]
    pub fn into_inner(self) -> D {
        self.inner
    }

    /// Makes the requests that come from now on fail at these rates: a drive that wears out.
    pub fn set_errors(&mut self, errors: ErrorRates) {
        self.plan.errors = errors;
    }

    /// Pulls the drive out: what is in flight and what comes later ends in
    /// [`IoError::Vanished`].
    pub fn vanish(&mut self) {
        if !self.has_vanished {
            self.has_vanished = true;
            self.events.push_back(DeviceEvent::Vanished);
        }
    }

    /// Puts the drive back in, with all that it had.
    pub fn come_back(&mut self) {
        if self.has_vanished {
            self.has_vanished = false;
            self.events.push_back(DeviceEvent::Returned);
        }
    }

    /// Cuts the power and restores it: requests in flight are gone without a completion, unflushed
    /// writes are kept, torn or lost as planned, and the device serves what survived.
    ///
    /// The device below must finish its requests by being polled alone, as
    /// [`MemDevice`](crate::MemDevice) does.
    ///
    /// # Errors
    /// When the device below refuses what has to be written back.
    pub fn crash(&mut self) -> Result<CrashReport, IoError> {
        while !self.running.is_empty() {
            self.poll_inner(Nanos::ZERO);
        }
        self.arrived.clear();
        self.delayed.clear();
        self.done.clear();
        self.exclusive = None;
        let Some(cache) = &mut self.cache else {
            return Ok(CrashReport::default());
        };
        let (outcome, report) = cache.crash(&mut self.rng);
        for (lba, content) in outcome {
            self.restore(lba, &content)?;
        }
        Ok(report)
    }

    /// Writes one block to the device below and waits for it.
    fn restore(&mut self, lba: u64, content: &[u8]) -> Result<(), IoError> {
        let mut data = self
            .pool
            .alloc(content.len())
            .map(Segments::from)
            .ok_or(IoError::Internal)?;
        if !data.copy_from(content) {
            return Err(IoError::Internal);
        }
        let io = Io {
            op: Op::Write,
            lba,
            blocks: 1,
            fua: true,
            data,
            token: 0,
        };
        self.inner.try_submit(io).map_err(|_| IoError::Internal)?;
        loop {
            self.inner.poll(Nanos::ZERO, &mut self.scratch);
            if let Some(completion) = self.scratch.pop() {
                return completion.result;
            }
        }
    }

    fn held(&self) -> usize {
        self.arrived.len() + self.delayed.len() + self.running.len() + self.done.len()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn draw(&mut self, op: Op) -> (Nanos, Option<IoError>) {
        let errors = self.plan.errors;
        let (latency, rate, error) = match op {
            Op::Read => (
                self.plan.read_latency,
                errors.read_per_million,
                IoError::MediaRead,
            ),
            Op::Flush => (
                self.plan.flush_latency,
                errors.flush_per_million,
                IoError::MediaWrite,
            ),
            Op::Deallocate => (
                self.plan.write_latency,
                errors.deallocate_per_million,
                IoError::MediaWrite,
            ),
            Op::Write | Op::WriteZeroes { .. } | Op::CompareAndWrite => (
                self.plan.write_latency,
                errors.write_per_million,
                IoError::MediaWrite,
            ),
        };
        let latency = match latency {
            Latency::None => Nanos::ZERO,
            Latency::Fixed(latency) => latency,
            Latency::Uniform { min, max } => self.rng.between(min, max),
            Latency::Tail {
                usual,
                rare,
                rare_per_million,
            } => {
                if self.rng.hits(rare_per_million) {
                    rare
                } else {
                    usual
                }
            }
        };
        (latency, self.rng.hits(rate).then_some(error))
    }

    /// Starts everything that is due and may start. Returns whether anything did.
    fn start_due(&mut self, now: Nanos) -> bool {
        let mut progressed = false;
        self.is_blocked = false;
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now && !self.has_vanished {
                break;
            }
            let due = *entry.key();
            if self.exclusive.is_some() && entry.get().io.op != Op::Read {
                self.is_blocked = true;
                break;
            }
            let request = entry.remove();
            if let Err(request) = self.start(request, now) {
                self.delayed.insert(due, request);
                self.is_blocked = true;
                break;
            }
            progressed = true;
        }
        progressed
    }

    /// Ends the request or hands it on; gives it back when the device below takes no more.
    #[expect(clippy::result_large_err, reason = "the request itself comes back")]
    fn start(&mut self, request: Request, now: Nanos) -> Result<(), Request> {
        let fault = request.fault.filter(|_| !self.has_vanished);
        let fault = if self.has_vanished {
            Some(IoError::Vanished)
        } else {
            fault
        };
        if let Some(error) = fault {
            if error != IoError::Vanished && self.next_warning_at <= now {
                self.next_warning_at = now.after(MEDIA_WARNING_INTERVAL);
                self.events.push_back(DeviceEvent::MediaWarning);
            }
            self.finish(request.io.complete(Err(error)));
            return Ok(());
        }
        let Some(cache) = self.cache.as_ref().filter(|_| request.io.op.is_modifying()) else {
            return self.execute(request, false);
        };
        // What the device below is going to refuse leaves nothing to remember.
        let Ok(range) = self.inner.geometry().check_io(&request.io) else {
            return self.execute(request, false);
        };
        let tracked_bytes = usize::try_from(range.len)
            .ok()
            .filter(|bytes| *bytes > 0 && *bytes <= TRACKED_BYTES_MAX && cache.holds(*bytes));
        match tracked_bytes {
            None => self.execute_through(request),
            Some(bytes) if cache.needs_preimage(request.io.lba, request.io.blocks) => {
                self.read_preimage(request, bytes)
            }
            Some(_) => self.execute_tracked(request, &[]),
        }
    }

    #[expect(clippy::result_large_err, reason = "the request itself comes back")]
    fn read_preimage(&mut self, request: Request, bytes: usize) -> Result<(), Request> {
        let Some(buf) = self.pool.alloc(bytes) else {
            return Err(request);
        };
        let token = self.tick();
        let (lba, blocks) = (request.io.lba, request.io.blocks);
        let read = Io {
            op: Op::Read,
            lba,
            blocks,
            fua: false,
            data: buf.into(),
            token,
        };
        if self.inner.try_submit(read).is_err() {
            return Err(request);
        }
        self.exclusive = Some(token);
        self.running.insert(token, Stage::Preimage(request));
        Ok(())
    }

    #[expect(clippy::result_large_err, reason = "the request itself comes back")]
    fn execute_tracked(&mut self, request: Request, preimage: &[u8]) -> Result<(), Request> {
        let io = &request.io;
        let payload_bytes = io.data.len_bytes();
        let written = match io.op {
            Op::CompareAndWrite => payload_bytes / 2..payload_bytes,
            _ => 0..payload_bytes,
        };
        let content: Vec<u8> = io.data.pieces(written).flatten().copied().collect();
        let content = (!content.is_empty()).then(|| content.into_boxed_slice());
        let (lba, blocks) = (io.lba, io.blocks);
        // The id is the token the execution is going to have.
        let id = self.clock + 1;
        if let Some(cache) = &mut self.cache {
            cache.record(id, lba, blocks, content, preimage);
        }
        self.execute(request, true).inspect_err(|_| {
            if let Some(cache) = &mut self.cache {
                cache.withdraw(id);
            }
        })
    }

    /// Executes a change that is too large to remember: durable at once, and alone.
    #[expect(clippy::result_large_err, reason = "the request itself comes back")]
    fn execute_through(&mut self, mut request: Request) -> Result<(), Request> {
        let fua = std::mem::replace(&mut request.io.fua, true);
        match self.execute(request, false) {
            Ok(()) => {
                self.exclusive = Some(self.clock);
                Ok(())
            }
            Err(mut request) => {
                request.io.fua = fua;
                Err(request)
            }
        }
    }

    #[expect(clippy::result_large_err, reason = "the request itself comes back")]
    fn execute(&mut self, mut request: Request, tracked: bool) -> Result<(), Request> {
        let id = self.tick();
        let token = std::mem::replace(&mut request.io.token, id);
        let Request {
            io,
            latency,
            fault,
            arrival,
        } = request;
        let (op, lba, blocks, fua) = (io.op, io.lba, io.blocks, io.fua);
        if let Err(mut io) = self.inner.try_submit(io) {
            io.token = token;
            return Err(Request {
                io,
                latency,
                fault,
                arrival,
            });
        }
        let stage = Stage::Execution {
            token,
            op,
            lba,
            blocks,
            fua,
            arrival,
            tracked,
        };
        self.running.insert(id, stage);
        Ok(())
    }

    /// Takes what the device below has finished. Returns whether there was anything.
    fn poll_inner(&mut self, now: Nanos) -> bool {
        self.inner.poll(now, &mut self.scratch);
        let mut progressed = false;
        while let Some(completion) = self.scratch.pop() {
            progressed = true;
            let id = completion.token;
            if self.exclusive == Some(id) {
                self.exclusive = None;
            }
            match self.running.remove(&id) {
                Some(Stage::Preimage(request)) => self.preimage_read(request, &completion),
                Some(Stage::Execution {
                    token,
                    op,
                    lba,
                    blocks,
                    fua,
                    arrival,
                    tracked,
                }) => {
                    let result = completion.result;
                    self.settle(id, op, (lba, blocks), (fua, tracked), arrival, result);
                    self.finish(Completion {
                        token,
                        ..completion
                    });
                }
                None => {}
            }
        }
        progressed
    }

    fn preimage_read(&mut self, request: Request, completion: &Completion) {
        let due = (Nanos::ZERO, request.arrival);
        let started = match completion.result {
            Ok(()) => {
                let whole = 0..completion.data.len_bytes();
                let preimage: Vec<u8> = completion.data.pieces(whole).flatten().copied().collect();
                self.execute_tracked(request, &preimage)
            }
            // What cannot be read cannot be brought back either.
            Err(_) => self.execute_through(request),
        };
        if let Err(request) = started {
            self.delayed.insert(due, request);
        }
    }

    /// Tells the cache how an execution ended.
    fn settle(
        &mut self,
        id: u64,
        op: Op,
        (lba, blocks): (u64, u32),
        (fua, tracked): (bool, bool),
        arrival: u64,
        result: Result<(), IoError>,
    ) {
        let clock = self.tick();
        let Some(cache) = &mut self.cache else { return };
        match result {
            Ok(()) if op == Op::Flush => cache.flushed(arrival),
            Ok(()) if tracked => {
                cache.complete(id, clock);
                if fua {
                    cache.persist(id);
                }
            }
            Ok(()) if op.is_modifying() => cache.forget(lba, blocks),
            Err(
                IoError::CompareMismatch
                | IoError::Unsupported
                | IoError::ReadOnly
                | IoError::OutOfRange,
            ) if tracked => cache.withdraw(id),
            // After any other error the write may or may not be there: a crash decides.
            Ok(()) | Err(_) => {}
        }
    }

    fn finish(&mut self, mut completion: Completion) {
        if self.has_vanished {
            completion.result = Err(IoError::Vanished);
        }
        self.done.push_back(completion);
    }
}

impl<D: Device> Device for FaultDevice<D> {
    fn geometry(&self) -> Geometry {
        let geometry = self.inner.geometry();
        Geometry {
            volatile_cache: geometry.volatile_cache || self.cache.is_some(),
            ..geometry
        }
    }

    fn depth_max(&self) -> usize {
        self.inner.depth_max()
    }

    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        if self.held() >= self.depth_max() {
            return Err(io);
        }
        let (latency, fault) = self.draw(io.op);
        let arrival = self.tick();
        self.arrived.push_back(Request {
            io,
            latency,
            fault,
            arrival,
        });
        Ok(())
    }

    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        while let Some(request) = self.arrived.pop_front() {
            let due = now.saturating_add(request.latency);
            self.delayed.insert((due, request.arrival), request);
        }
        while self.start_due(now) | self.poll_inner(now) {}
        while !out.is_full() {
            let Some(completion) = self.done.pop_front() else {
                break;
            };
            out.push(completion);
        }
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        if !self.done.is_empty() || !self.arrived.is_empty() {
            return Some(Nanos::ZERO);
        }
        let due = self
            .delayed
            .keys()
            .next()
            .map(|(due, _)| *due)
            .filter(|_| !self.is_blocked);
        match (due, self.inner.poll_timeout()) {
            (Some(due), Some(inner)) => Some(due.min(inner)),
            (due, inner) => due.or(inner),
        }
    }

    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.events.pop_front().or_else(|| self.inner.poll_event())
    }

    fn refresh(&mut self) -> io::Result<Geometry> {
        // The size is the backing's, which may be less than what stays in use.
        let Geometry { blocks, .. } = self.inner.refresh()?;
        Ok(Geometry {
            blocks,
            ..self.geometry()
        })
    }
}
