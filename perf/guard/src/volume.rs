//! A volume of a pool on a device in memory, overwritten in place and read: what a pool costs beyond
//! the device, with no network before it.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bowline_block::{BufPool, Completions, Device, Io, MemDevice, Op, PoolConfig};
use bowline_nvme::Nanos;
use bowline_pool::format::layout::LayoutOptions;
use bowline_pool::format::record::{Checksums, Durability};
use bowline_pool::{FormatOptions, Pool, Provisioning, Volume, VolumeSpec};
use uuid::Uuid;

use crate::machine::{Counts, allocations};

const DRIVE_BYTES: u64 = 64 << 20;
const BLOCK_BYTES: u32 = 4096;
/// The first that a pool makes.
const VOLUME: u32 = 1;
/// All that can be there at once.
const BUFFERS_BYTES: usize = 16 << 20;
/// More looks than any command takes.
const POLLS_MAX: u32 = 1 << 16;

/// So many rounds of as many commands, which are counted, after as many before that.
pub(crate) fn run(op: Op, depth: u16, blocks: u32, rounds: u32) -> Result<Counts> {
    let (_pool, mut volume) = volume(u64::from(depth) * u64::from(blocks))?;
    let buffers = BufPool::new(PoolConfig::with_budget(BUFFERS_BYTES))?;
    let mut out = Completions::with_capacity(usize::from(depth));
    let mut counts = Counts::default();
    let begin = |op| commands(&buffers, op, depth, blocks);
    // What was never written has no place that could be overwritten.
    turn(&mut volume, begin(Op::Write)?, &mut out)?;
    for _ in 0..rounds {
        turn(&mut volume, begin(op)?, &mut out)?;
    }
    for _ in 0..rounds {
        let commands = begin(op)?;
        let before = allocations();
        counted_volume(&mut volume, commands, &mut out)?;
        counts.allocations += allocations() - before;
        counts.turns += 1;
    }
    Ok(counts)
}

/// A pool, and a volume of it that has so many blocks.
fn volume(blocks: u64) -> Result<(Pool<MemDevice>, Volume<MemDevice>)> {
    let mut time = || Nanos(0);
    let mut drive = MemDevice::new(DRIVE_BYTES, BLOCK_BYTES)?;
    let options = FormatOptions {
        uuid: Uuid::from_u128(1),
        label: String::new(),
        made: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        layout: LayoutOptions::default(),
        is_forced: false,
    };
    Pool::format(&mut drive, &options, &mut time).context("no pool was made")?;
    let mut pool = Pool::open(drive, &mut time).context("the pool cannot be opened")?;
    let spec = VolumeSpec {
        uuid: Uuid::from_u128(2),
        name: String::new(),
        bytes: blocks * u64::from(BLOCK_BYTES),
        block_bytes: None,
        provisioning: Provisioning::Thin,
        durability: Durability::Media,
        checksums: Checksums::Off,
        base: None,
        created: 0,
    };
    pool.create_volume(spec).context("the volume was refused")?;
    for _ in 0..POLLS_MAX {
        if pool.poll_operation().is_some() {
            let volume = pool.open_volume(VOLUME).context("no volume")?;
            return Ok((pool, volume));
        }
        pool.poll(Nanos(0));
    }
    bail!("the volume is not made")
}

fn commands(buffers: &BufPool, op: Op, depth: u16, blocks: u32) -> Result<Vec<Io>> {
    let bytes = usize::try_from(blocks * BLOCK_BYTES)?;
    let commands = (0..u64::from(depth)).map(|number| {
        let buffer = buffers.alloc(bytes).context("no buffer")?;
        Ok(Io {
            op,
            lba: number * u64::from(blocks),
            blocks,
            fua: false,
            data: buffer.into(),
            token: number,
        })
    });
    commands.collect()
}

/// As the machine's turns: what is counted.
#[inline(never)]
fn counted_volume(
    volume: &mut Volume<MemDevice>,
    commands: Vec<Io>,
    out: &mut Completions,
) -> Result<()> {
    turn(volume, commands, out)
}

fn turn(volume: &mut Volume<MemDevice>, commands: Vec<Io>, out: &mut Completions) -> Result<()> {
    let count = commands.len();
    for command in commands {
        if volume.try_submit(command).is_err() {
            bail!("a command was not taken");
        }
    }
    for _ in 0..POLLS_MAX {
        if out.len() == count {
            while let Some(completion) = out.pop() {
                completion.result.context("a command failed")?;
            }
            return Ok(());
        }
        volume.poll(Nanos(0), out);
    }
    bail!("a command does not end")
}
