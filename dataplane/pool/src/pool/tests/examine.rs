//! What is on a drive: opened by the engine, looked at by the offline tools, and read through and through.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use bowline_block::{BufPool, Completions, Device, Io, IoError, Op, Segments};
use bowline_nvme::Nanos;

use super::log_device::{LogDevice, Plan};
use super::medium::Medium;
use super::oracle::{Oracle, Seen, SeenSnapshot};
use crate::offline::{Depth, Severity, Source, inspect};
use crate::{Pool, Volume};

/// Read at once.
pub(super) const READ_BYTES: u64 = 128 << 10;

/// A clock that goes on when it is looked at.
#[derive(Clone)]
pub(super) struct Ticks(pub(super) Rc<Cell<u64>>);

impl Ticks {
    pub(super) fn new() -> Self {
        Self(Rc::new(Cell::new(0)))
    }

    pub(super) fn next(&self) -> Nanos {
        self.0.set(self.0.get() + 10_000);
        Nanos(self.0.get())
    }
}

pub(super) struct Offline<'m> {
    pub(super) medium: &'m Medium,
    pub(super) block_bytes: u32,
}

impl Source for Offline<'_> {
    fn bytes(&self) -> u64 {
        self.medium.bytes()
    }
    fn block_bytes(&self) -> Option<u32> {
        Some(self.block_bytes)
    }
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.medium.read(offset, out);
        Ok(())
    }
}

/// Opens what a power cut has left, and compares it with what is possible.
pub(super) fn examine(
    medium: &Medium,
    plan: &Plan,
    oracle: &Oracle,
    buffers: &BufPool,
) -> Result<(), String> {
    let mut offline = Offline {
        medium,
        block_bytes: plan.block_bytes,
    };
    let inspection = inspect(&mut offline, Depth::Everything).map_err(|it| it.to_string())?;
    if inspection.worst() > Some(Severity::Notice) {
        return Err(format!("offline: {:?}", inspection.findings));
    }
    let drive = LogDevice::new(medium.clone(), &plan.calm());
    let ticks = Ticks::new();
    let mut pool = Pool::open(drive.clone(), &mut || ticks.next())
        .map_err(|error| format!("the pool is not opened: {error}"))?;
    let wrong = pool.check();
    if !wrong.is_empty() {
        return Err(format!("check: {wrong:?}"));
    }
    clean_is_zero(&pool, medium)?;
    let seen =
        look(&pool, buffers, &ticks).map_err(|why| format!("{why}, {:?}", pool.poll_event()))?;
    oracle.judge(&seen)
}

/// What is believed to be clean is zero.
fn clean_is_zero(pool: &Pool<LogDevice>, medium: &Medium) -> Result<(), String> {
    let engine = pool.engine.borrow();
    let mut near = 0;
    while let Some(run) = engine.state.clean_run(near, u32::MAX)
        && run.start >= near
    {
        for physical in run.clone() {
            let bytes = u64::from(engine.shape.extent_bytes());
            if !medium.is_zero(engine.shape.place(physical, 0), bytes) {
                return Err(format!("extent {physical} is clean and not zero"));
            }
        }
        near = run.end;
    }
    Ok(())
}

/// Reads all there is.
pub(super) fn look(
    pool: &Pool<LogDevice>,
    buffers: &BufPool,
    ticks: &Ticks,
) -> Result<Vec<Seen>, String> {
    let mut all = Vec::new();
    for info in pool.volumes() {
        let name = |error| format!("volume {}: {error:?}", info.volume);
        let mut handle = pool.open_volume(info.volume).map_err(name)?;
        let mut snapshots = Vec::new();
        for snapshot in &info.snapshots {
            let number = snapshot.number;
            let name = |error| format!("volume {}, snapshot {number}: {error:?}", info.volume);
            let mut handle = pool.open_snapshot(info.volume, number).map_err(name)?;
            snapshots.push(SeenSnapshot {
                uuid: snapshot.uuid.as_u128(),
                number,
                values: read_all(&mut handle, buffers, ticks)
                    .map_err(|why| format!("volume {}, snapshot {number}: {why}", info.volume))?,
            });
        }
        all.push(Seen {
            uuid: info.uuid.as_u128(),
            number: info.volume,
            block_bytes: info.block_bytes,
            durability: info.durability,
            base: info.base,
            attribute: pool.attribute(info.volume, 1).unwrap_or_default(),
            values: read_all(&mut handle, buffers, ticks)
                .map_err(|why| format!("volume {}: {why}", info.volume))?,
            snapshots,
        });
    }
    Ok(all)
}

/// The value of each block.
fn read_all(
    handle: &mut Volume<LogDevice>,
    buffers: &BufPool,
    ticks: &Ticks,
) -> Result<Vec<u64>, String> {
    let geometry = handle.geometry();
    let block = u64::from(geometry.block_bytes);
    let mut values = Vec::new();
    let mut lba = 0;
    while lba < geometry.blocks {
        let blocks = (geometry.blocks - lba).min(READ_BYTES / block);
        let data = read(handle, buffers, ticks, (lba, blocks))?
            .map_err(|error| format!("a read from block {lba} on: {error}"))?;
        for buf in data.iter() {
            for bytes in buf.chunks(usize::try_from(block).unwrap()) {
                let at = values.len();
                values.push(
                    value(bytes).ok_or_else(|| format!("block {at} is torn: {}", words(bytes)))?,
                );
            }
        }
        lba += blocks;
    }
    Ok(values)
}

/// Reads so many blocks from one on. The outer error: there is no answer.
pub(super) fn read(
    handle: &mut Volume<LogDevice>,
    buffers: &BufPool,
    ticks: &Ticks,
    (lba, blocks): (u64, u64),
) -> Result<Result<Segments, IoError>, String> {
    let bytes = blocks * u64::from(handle.geometry().block_bytes);
    let mut data = buffers
        .alloc(usize::try_from(bytes).unwrap())
        .ok_or("no buffer")?;
    // Nobody else has it yet.
    data.as_mut().unwrap().fill(0xff);
    let io = Io {
        op: Op::Read,
        lba,
        blocks: u32::try_from(blocks).unwrap(),
        fua: false,
        data: data.into(),
        token: 0,
    };
    handle.try_submit(io).map_err(|_| "a read is not taken")?;
    let mut out = Completions::with_capacity(1);
    for _ in 0..100_000 {
        handle.poll(ticks.next(), &mut out);
        if let Some(completion) = out.pop() {
            return Ok(completion.result.map(|()| completion.data));
        }
    }
    Err("a read does not end".into())
}

/// What a block is filled with, if it is one thing.
pub(super) fn value(bytes: &[u8]) -> Option<u64> {
    let first = &bytes[..8];
    let is_whole = bytes[8..] == bytes[..bytes.len() - 8];
    is_whole.then(|| u64::from_le_bytes(first.try_into().unwrap()))
}

fn words(bytes: &[u8]) -> String {
    let mut words: Vec<u64> = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .collect();
    words.dedup();
    format!("{words:x?}")
}
