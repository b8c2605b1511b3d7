//! A pool on a drive with faults, and what its volumes should hold.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::rc::Rc;

use bowline_block::{
    BufPool, CachePlan, Completion, Completions, Device, DeviceEvent, FaultDevice, FaultPlan,
    Geometry, Io, IoError, Latency, MemDevice, Op, PoolConfig, Segments,
};
use bowline_nvme::Nanos;
use uuid::Uuid;

use crate::format::layout::LayoutOptions;
use crate::format::record::{Checksums, Durability};
use crate::offline::{Depth, Severity, Source, inspect};
use crate::pool::open::Waiting;
use crate::{
    FormatOptions, OpenOptions, Operation, Outcome, Pool, PoolError, Provisioning, Volume,
    VolumeSpec,
};

pub(super) const BLOCK: usize = 512;
pub(super) const EXTENT: u64 = 16 << 10;

/// A drive that takes its time for every request.
pub(super) fn slow() -> FaultPlan {
    let latency = Latency::Fixed(Nanos(5_000));
    FaultPlan {
        read_latency: latency,
        write_latency: latency,
        ..FaultPlan::default()
    }
}

/// A drive that writes slowly, and does everything else at once.
pub(super) fn slow_writes() -> FaultPlan {
    FaultPlan {
        write_latency: Latency::Fixed(Nanos(5_000)),
        ..FaultPlan::default()
    }
}

/// A drive that outlives the pool on it.
#[derive(Clone)]
pub(super) struct Shared(Rc<RefCell<FaultDevice<MemDevice>>>, Rc<RefCell<Late>>);

/// Answers to reads that are told late: what was read may be another thing by then.
#[derive(Default)]
pub(super) struct Late {
    /// Polls that an answer waits for.
    pub(super) polls: u32,
    /// Requests that the drive was given.
    pub(super) accesses: u32,
    reads: HashSet<u64>,
    held: VecDeque<(u32, Completion)>,
    /// The next write of which is said to have failed.
    pub(super) failing: Option<Failing>,
    /// Blocks that cannot be read.
    pub(super) unreadable: Range<u64>,
    /// Writes that were done and are said to have failed.
    doubted: HashSet<u64>,
}

/// A write that is going to fail.
pub(super) struct Failing {
    /// It begins in these blocks.
    pub(super) blocks: Range<u64>,
    /// How many of them come before.
    pub(super) after: u32,
    /// It is done all the same.
    pub(super) is_done: bool,
}

impl Late {
    /// Whether this is the write that fails.
    fn fails(&mut self, io: &Io) -> Option<Failing> {
        let failing = self.failing.as_mut()?;
        if io.op != Op::Write || !failing.blocks.contains(&io.lba) {
            return None;
        }
        if failing.after == 0 {
            return self.failing.take();
        }
        failing.after -= 1;
        None
    }

    fn poll(&mut self, drive: &mut FaultDevice<MemDevice>, now: Nanos, out: &mut Completions) {
        let mut fresh = Completions::with_capacity(64);
        drive.poll(now, &mut fresh);
        for completion in fresh.drain() {
            let is_read = self.reads.remove(&completion.token);
            let polls = if is_read { self.polls } else { 0 };
            let is_doubted = self.doubted.remove(&completion.token);
            let completion = Completion {
                result: match is_doubted {
                    true => Err(IoError::MediaWrite),
                    false => completion.result,
                },
                ..completion
            };
            self.held.push_back((polls, completion));
        }
        let held = std::mem::take(&mut self.held);
        for (polls, completion) in held {
            if polls == 0 && !out.is_full() {
                out.push(completion);
            } else {
                self.held.push_back((polls.saturating_sub(1), completion));
            }
        }
    }
}

impl Shared {
    pub(super) fn new(bytes: u64, block_bytes: u32, plan: FaultPlan) -> Self {
        let drive = MemDevice::new(bytes, block_bytes).unwrap();
        let drive = FaultDevice::new(drive, plan).unwrap();
        Self(Rc::new(RefCell::new(drive)), Rc::default())
    }

    pub(super) fn late(&self) -> RefMut<'_, Late> {
        self.1.borrow_mut()
    }

    pub(super) fn inner(&self) -> RefMut<'_, FaultDevice<MemDevice>> {
        self.0.borrow_mut()
    }

    fn look(&self) -> Ref<'_, FaultDevice<MemDevice>> {
        self.0.borrow()
    }
}

impl Device for Shared {
    fn geometry(&self) -> Geometry {
        self.look().geometry()
    }
    fn depth_max(&self) -> usize {
        64
    }
    fn try_submit(&mut self, io: Io) -> Result<(), Io> {
        let mut late = self.late();
        late.accesses += 1;
        if late.polls > 0 && io.op == Op::Read {
            late.reads.insert(io.token);
        }
        let last = (io.lba + u64::from(io.blocks)).saturating_sub(1);
        let blocks = &late.unreadable;
        if io.op == Op::Read && io.lba < blocks.end && last >= blocks.start {
            let failed = io.complete(Err(IoError::MediaRead));
            late.held.push_back((0, failed));
            return Ok(());
        }
        match late.fails(&io) {
            Some(failing) if failing.is_done => {
                late.doubted.insert(io.token);
            }
            Some(_) => {
                let failed = io.complete(Err(IoError::MediaWrite));
                late.held.push_back((0, failed));
                return Ok(());
            }
            None => {}
        }
        self.inner().try_submit(io)
    }
    fn poll(&mut self, now: Nanos, out: &mut Completions) {
        let is_late = {
            let late = self.late();
            late.polls > 0 || !late.doubted.is_empty() || !late.held.is_empty()
        };
        if is_late {
            return self.late().poll(&mut self.inner(), now, out);
        }
        self.inner().poll(now, out);
    }
    fn poll_timeout(&self) -> Option<Nanos> {
        self.look().poll_timeout()
    }
    fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.inner().poll_event()
    }
    fn refresh(&mut self) -> io::Result<Geometry> {
        self.inner().refresh()
    }
}

/// Requests take a while and overtake one another; the cache is volatile.
pub(super) fn plan(seed: u64) -> FaultPlan {
    let latency = Latency::Uniform {
        min: Nanos(0),
        max: Nanos(3000),
    };
    FaultPlan {
        seed,
        read_latency: latency,
        write_latency: latency,
        flush_latency: latency,
        cache: Some(CachePlan {
            bytes_max: 8 << 20,
            lost_per_million: 400_000,
            torn_per_million: 400_000,
        }),
        ..FaultPlan::default()
    }
}

pub(super) struct World {
    pub(super) drive: Shared,
    pub(super) pool: Pool<Shared>,
    pub(super) buffers: BufPool,
    pub(super) now: Rc<RefCell<Nanos>>,
    /// With which it is opened again.
    pub(super) options: OpenOptions,
}

pub(super) fn options() -> FormatOptions {
    FormatOptions {
        uuid: Uuid::from_u128(7),
        label: "test".into(),
        made: 1,
        layout: LayoutOptions {
            extent_bytes: 16 << 10,
            journal_bytes: Some(64 << 10),
            objects_max: Some(32),
            attribute_bytes_max: Some(4096),
        },
        is_forced: false,
    }
}

pub(super) fn spec(bytes: u64) -> VolumeSpec {
    VolumeSpec {
        uuid: Uuid::from_u128(1),
        name: "a".into(),
        bytes,
        block_bytes: None,
        provisioning: Provisioning::Thin,
        durability: Durability::Media,
        checksums: Checksums::Off,
        base: None,
        created: 1,
    }
}

/// From one poll to the next.
const TICK: u64 = 100;

fn tick(now: &Rc<RefCell<Nanos>>) -> Nanos {
    let mut now = now.borrow_mut();
    now.0 += TICK;
    *now
}

/// A drive as the offline tools read it.
struct Offline<'a> {
    drive: Shared,
    buffers: BufPool,
    now: &'a Rc<RefCell<Nanos>>,
}

impl Source for Offline<'_> {
    fn bytes(&self) -> u64 {
        self.drive.geometry().bytes()
    }
    fn block_bytes(&self) -> Option<u32> {
        Some(self.drive.geometry().block_bytes)
    }
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut wait = || tick(self.now);
        Waiting::new(&mut self.drive, &self.buffers, &mut wait)
            .read(offset, out)
            .map_err(|error| io::Error::other(format!("{error:?}")))
    }
}

/// Nothing is wrong with the pool on a drive that nobody uses.
fn check(drive: &Shared, now: &Rc<RefCell<Nanos>>) {
    let buffers = BufPool::new(PoolConfig::with_budget(8 << 20)).unwrap();
    let mut offline = Offline {
        drive: drive.clone(),
        buffers,
        now,
    };
    // The data too: where nothing was damaged, every checksum that is believed is right.
    let inspection = inspect(&mut offline, Depth::Data).unwrap();
    let worst = inspection.worst();
    assert!(worst <= Some(Severity::Notice), "{:?}", inspection.findings);
}

impl World {
    pub(super) fn new(bytes: u64, plan: FaultPlan) -> Self {
        let mut drive = Shared::new(bytes, 512, plan);
        let now = Rc::new(RefCell::new(Nanos(0)));
        Pool::format(&mut drive, &options(), &mut || tick(&now)).unwrap();
        Self::open(drive, now)
    }

    pub(super) fn with(
        bytes: u64,
        plan: FaultPlan,
        format: &FormatOptions,
        options: OpenOptions,
    ) -> Self {
        let mut drive = Shared::new(bytes, 512, plan);
        let now = Rc::new(RefCell::new(Nanos(0)));
        Pool::format(&mut drive, format, &mut || tick(&now)).unwrap();
        Self::open_with(drive, now, options)
    }

    pub(super) fn open(drive: Shared, now: Rc<RefCell<Nanos>>) -> Self {
        Self::open_with(drive, now, OpenOptions::default())
    }

    pub(super) fn open_with(drive: Shared, now: Rc<RefCell<Nanos>>, options: OpenOptions) -> Self {
        let pool = Pool::open_with(drive.clone(), &options, &mut || tick(&now)).unwrap();
        let buffers = BufPool::new(PoolConfig::with_budget(8 << 20)).unwrap();
        Self {
            drive,
            pool,
            buffers,
            now,
            options,
        }
    }

    /// Closes the pool in order and opens it again.
    pub(super) fn reopen(self) -> Self {
        let Self {
            drive,
            pool,
            now,
            options,
            ..
        } = self;
        pool.close(&mut || tick(&now)).unwrap();
        check(&drive, &now);
        Self::open_with(drive, now, options)
    }

    /// Cuts the power and opens the pool again.
    pub(super) fn crash(self) -> Self {
        let Self {
            drive,
            pool,
            now,
            options,
            ..
        } = self;
        drop(pool);
        drive.inner().crash().unwrap();
        check(&drive, &now);
        Self::open_with(drive, now, options)
    }

    pub(super) fn poll(&mut self) {
        let now = tick(&self.now);
        self.pool.poll(now);
    }

    /// Has background work come to an end. Where it only waits for a point in time, that is now: so it takes as many polls
    /// as there is work, however long the work waits between its steps.
    pub(super) fn settle(&mut self) {
        for _ in 0..60_000 {
            self.poll();
            let engine = self.pool.engine.borrow();
            // Nothing is under way, and nothing waits for a quieter time.
            if engine.is_idle() && engine.chores_timeout().is_none() {
                return;
            }
            let next = engine.timeout().filter(|_| self.drive.late().polls == 0);
            let mut now = self.now.borrow_mut();
            if let Some(next) = next {
                now.0 = now.0.max(next.0.saturating_sub(TICK));
            }
        }
        panic!("the pool does not come to rest");
    }

    pub(super) fn wait(
        &mut self,
        operation: Result<Operation, PoolError>,
    ) -> Result<Outcome, PoolError> {
        let operation = operation?;
        for _ in 0..100_000 {
            self.poll();
            while let Some((ended, result)) = self.pool.poll_operation() {
                if ended == operation {
                    return result;
                }
            }
        }
        panic!("the operation does not end");
    }

    pub(super) fn create(&mut self, spec: VolumeSpec) -> u32 {
        let operation = self.pool.create_volume(spec);
        match self.wait(operation) {
            Ok(Outcome::Volume(volume)) => volume,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn snapshot(&mut self, volume: u32) -> u32 {
        let operation = self
            .pool
            .create_snapshot(volume, Uuid::from_u128(3), "s".into(), 1);
        match self.wait(operation) {
            Ok(Outcome::Snapshot(number)) => number,
            other => panic!("{other:?}"),
        }
    }

    /// A payload whose blocks have these values, in one to three segments.
    pub(super) fn payload(&self, values: &[u64]) -> Segments {
        let mut data = Segments::new();
        let parts = 1 + values.len() % 3;
        for part in values.chunks(values.len().div_ceil(parts)) {
            let mut buf = self.buffers.alloc(part.len() * BLOCK).unwrap();
            for (block, value) in buf.as_mut().unwrap().chunks_mut(BLOCK).zip(part) {
                for word in block.chunks_mut(8) {
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
            data.push(buf).unwrap();
        }
        data
    }

    pub(super) fn run(&mut self, volume: &mut Volume<Shared>, io: Io) -> Result<Segments, IoError> {
        volume.try_submit(io).unwrap();
        let mut out = Completions::with_capacity(1);
        for _ in 0..100_000 {
            volume.poll(tick(&self.now), &mut out);
            if let Some(completion) = out.pop() {
                return completion.result.map(|()| completion.data);
            }
        }
        panic!("the request does not end");
    }

    pub(super) fn write(
        &mut self,
        volume: &mut Volume<Shared>,
        lba: u64,
        values: &[u64],
    ) -> Result<(), IoError> {
        let data = self.payload(values);
        self.run(volume, io(Op::Write, lba, values.len(), data))
            .map(drop)
    }

    pub(super) fn change(
        &mut self,
        volume: &mut Volume<Shared>,
        op: Op,
        lba: u64,
        blocks: usize,
    ) -> Result<(), IoError> {
        self.run(volume, io(op, lba, blocks, Segments::new()))
            .map(drop)
    }

    pub(super) fn read(
        &mut self,
        volume: &mut Volume<Shared>,
        lba: u64,
        blocks: usize,
    ) -> Vec<u64> {
        let data = self.payload(&vec![u64::MAX; blocks]);
        let data = self.run(volume, io(Op::Read, lba, blocks, data)).unwrap();
        values(&data)
    }
}

pub(super) fn io(op: Op, lba: u64, blocks: usize, data: Segments) -> Io {
    Io {
        op,
        lba,
        blocks: u32::try_from(blocks).unwrap(),
        fua: false,
        data,
        token: 0,
    }
}

/// What each block has; a block that is not the same everywhere has been torn.
pub(super) fn values(data: &Segments) -> Vec<u64> {
    let block = |block: &[u8]| {
        let words: Vec<&[u8]> = block.chunks(8).collect();
        assert!(words.iter().all(|word| word == &words[0]), "a torn block");
        u64::from_le_bytes(words[0].try_into().unwrap())
    };
    data.iter()
        .flat_map(|buf| buf.chunks(BLOCK).map(block).collect::<Vec<_>>())
        .collect()
}
