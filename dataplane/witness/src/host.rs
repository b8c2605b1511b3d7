//! The host: a random load on a volume, and reading it back.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use bowline_block::Segments;
use bowline_nvme::nqn::Nqn;
use bowline_nvme::{NamespaceId, Nanos};
use bowline_nvmf::host::ControllerConfig;
use bowline_reactor::Config;
use bowline_tcp::host::{HostCommand, HostCompletion, HostOp, Initiator, PathId};

use crate::ledger::{Kind, Operation};
use crate::marks::Writer;
use crate::random::Random;
use crate::volume::{Event, Volume};

const NSID: NamespaceId = NamespaceId(1);
/// Time for a connection or one command; far more than any should take, also where the machine is
/// emulated.
const PATIENCE: Nanos = Nanos::from_secs(60);
const KEEP_ALIVE: Nanos = Nanos::from_secs(60);
const READ_BYTES: u32 = 256 << 10;
const UNIT_BYTES: u32 = 4096;
/// The longest range: an extent of the pool.
const LONG_UNITS: u32 = 256;
const HOST_ID: [u8; 16] = *b"bowline witness\0";

/// What is known of a volume, for everybody who does something to it.
pub struct Witness {
    /// Its ledgers.
    pub volume: Volume,
    marks: Option<(u8, Arc<Mutex<Writer>>)>,
}

impl Witness {
    /// Of a volume; with the number that it has in the marks and who writes them, if somebody does.
    #[must_use]
    pub fn new(volume: Volume, marks: Option<(u8, Arc<Mutex<Writer>>)>) -> Self {
        Self { volume, marks }
    }

    /// Takes note of events, before what they announce is done.
    ///
    /// # Errors
    /// The marks could not be written.
    pub fn note(&mut self, events: &[Event]) -> io::Result<()> {
        for event in events {
            self.volume.apply(*event);
        }
        let Some((number, writer)) = self.marks.as_ref().filter(|_| !events.is_empty()) else {
            return Ok(());
        };
        let marks: Vec<_> = events.iter().map(|event| (*number, *event)).collect();
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write(&marks)
    }
}

/// What a load does next, from a seed.
pub struct Load {
    random: Random,
    depth: usize,
    next: u32,
}

impl Load {
    /// `depth` commands at a time.
    #[must_use]
    pub fn new(seed: u64, depth: usize) -> Self {
        Self {
            random: Random::new(seed),
            depth,
            next: 1,
        }
    }

    /// The next job that overlaps none of those under way; none if chance does not find one.
    fn choose(&mut self, volume: Shape, running: &BTreeMap<u64, Job>) -> Option<Job> {
        let kind = match self.random.below(100) {
            0..12 => None,
            12..66 => Some(Kind::Write),
            66..76 => Some(Kind::WriteFua),
            76..84 => Some(Kind::Zero),
            84..94 => Some(Kind::Deallocate),
            _ => Some(Kind::Flush),
        };
        let (lba, count) = match kind {
            Some(Kind::Flush) => (0, 0),
            _ => self.range(volume),
        };
        let overlaps = |job: &Job| lba < job.lba + job.blocks && job.lba < lba + count;
        if running.values().any(overlaps) {
            return None;
        }
        let number = kind.map(|_| self.next);
        self.next += u32::from(kind.is_some());
        Some(Job {
            operation: kind.zip(number),
            lba,
            blocks: count,
        })
    }

    /// Small ranges anywhere, many of them in the first eighth, and now and then a long one that
    /// begins at a round number. Most are made of whole units of 4 KiB.
    fn range(&mut self, volume: Shape) -> (u32, u32) {
        let unit = match self.random.chance(80) {
            true => (UNIT_BYTES / volume.block_bytes).max(1),
            false => 1,
        };
        let units = volume.blocks / unit;
        let (most, is_round) = match self.random.below(20) {
            0..10 => (4, false),
            10..18 => (32, false),
            18 => (LONG_UNITS, false),
            _ => (LONG_UNITS, true),
        };
        let count = match is_round {
            true => most,
            false => 1 + self.random.below(most),
        };
        let count = count.min(units);
        let within = match self.random.chance(40) {
            true => (units / 8).max(count),
            false => units,
        };
        let first = self.random.below(within - count + 1);
        let first = if is_round {
            first / count * count
        } else {
            first
        };
        (first * unit, count * unit)
    }
}

/// The size of a volume.
#[derive(Debug, Clone, Copy)]
struct Shape {
    blocks: u32,
    block_bytes: u32,
}

/// A command under way: a read if it has no operation.
#[derive(Debug, Clone, Copy)]
struct Job {
    operation: Option<(Kind, u32)>,
    lba: u32,
    blocks: u32,
}

impl Job {
    fn operation(&self) -> Option<Operation> {
        let (kind, number) = self.operation?;
        Some(Operation {
            number,
            kind,
            lba: self.lba,
            blocks: self.blocks,
        })
    }
}

/// An association with one volume's subsystem.
pub struct Host {
    initiator: Initiator,
    path: PathId,
    next_token: u64,
    /// Blocks of the volume.
    pub blocks: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
}

impl Host {
    /// Connects; a lost connection stays lost.
    ///
    /// # Errors
    /// No connection, or no namespace behind it.
    pub fn connect(address: SocketAddr, subsystem: &str) -> Result<Self> {
        let mut initiator = Initiator::new(&Config::default()).context("no reactor")?;
        let name = "nqn.2026-11.io.bowline:witness";
        let config = ControllerConfig {
            reconnect: None,
            keep_alive: KEEP_ALIVE,
            ..ControllerConfig::new(Nqn::new(name)?, HOST_ID, Nqn::new(subsystem)?)
        };
        let path = initiator.connect(address, config);
        let deadline = initiator.now().after(PATIENCE);
        initiator
            .wait_ready(path, deadline)
            .with_context(|| format!("cannot connect to {subsystem} at {address}"))?;
        let namespace = initiator.namespace(path, NSID)?;
        let blocks = u32::try_from(namespace.blocks).context("the volume is too large")?;
        let block_bytes = namespace.block_bytes;
        Ok(Self {
            initiator,
            path,
            next_token: 0,
            blocks,
            block_bytes,
        })
    }

    /// Runs the load until `is_enough` says so of the number of commands done, or the connection is
    /// lost. Gives that number.
    ///
    /// # Errors
    /// A command failed, a read brought what it may not, or the marks could not be written.
    pub fn load(
        &mut self,
        witness: &Mutex<Witness>,
        load: &mut Load,
        mut is_enough: impl FnMut(u64) -> bool,
    ) -> Result<u64> {
        let (mut running, mut count) = (BTreeMap::new(), 0);
        let mut done: Vec<HostCompletion> = Vec::new();
        loop {
            let mut events = Vec::new();
            for done in done.drain(..) {
                let job = running.remove(&done.token);
                let job: Job = job.context("an answer to nothing")?;
                if done.path_lost {
                    continue;
                }
                ensure!(done.status.is_success(), "{job:?}: {}", done.status);
                count += 1;
                match job.operation {
                    Some((_, number)) => events.push(Event::End(number)),
                    None => check(&lock(witness).volume, job.lba, &done.data)?,
                }
            }
            let is_over = self.is_lost() || is_enough(count);
            let begun = match is_over {
                true => Vec::new(),
                false => self.choose(load, &mut running),
            };
            let operations = begun.iter().filter_map(|(_, job)| job.operation());
            events.extend(operations.map(Event::Begin));
            lock(witness).note(&events).context("the marks")?;
            if is_over && running.is_empty() {
                return Ok(count);
            }
            for (token, job) in begun {
                self.submit(witness, token, job, &mut running)?;
            }
            done = self.completions(running.is_empty())?;
        }
    }

    /// Reads the whole volume; `each` gets the pieces with their first blocks.
    ///
    /// # Errors
    /// A read failed, or what `each` says.
    pub fn read_back(&mut self, mut each: impl FnMut(u32, &[u8]) -> Result<()>) -> Result<()> {
        let step = READ_BYTES / self.block_bytes;
        let mut data = vec![0; READ_BYTES as usize];
        for lba in (0..self.blocks).step_by(step as usize) {
            let blocks = step.min(self.blocks - lba);
            let data = &mut data[..(blocks * self.block_bytes) as usize];
            let deadline = self.initiator.now().after(PATIENCE);
            let at = u64::from(lba) * u64::from(self.block_bytes);
            self.initiator
                .read_at(self.path, NSID, at, data, deadline)
                .with_context(|| format!("cannot read {blocks} blocks from {lba} on"))?;
            each(lba, data)?;
        }
        Ok(())
    }

    fn is_lost(&self) -> bool {
        self.initiator.path(self.path).stopped().is_some()
    }

    fn choose(&mut self, load: &mut Load, running: &mut BTreeMap<u64, Job>) -> Vec<(u64, Job)> {
        let mut begun = Vec::new();
        let shape = Shape {
            blocks: self.blocks,
            block_bytes: self.block_bytes,
        };
        for _ in running.len()..load.depth {
            if let Some(job) = load.choose(shape, running) {
                running.insert(self.next_token, job);
                begun.push((self.next_token, job));
                self.next_token += 1;
            }
        }
        begun
    }

    /// What cannot be submitted, because the connection is lost, was begun all the same.
    fn submit(
        &mut self,
        witness: &Mutex<Witness>,
        token: u64,
        job: Job,
        running: &mut BTreeMap<u64, Job>,
    ) -> Result<()> {
        let kind = job.operation.map(|(kind, _)| kind);
        let op = match kind {
            None => HostOp::Read,
            Some(Kind::Write) => HostOp::Write { fua: false },
            Some(Kind::WriteFua) => HostOp::Write { fua: true },
            Some(Kind::Zero) => HostOp::WriteZeroes {
                deallocate: token.is_multiple_of(2),
            },
            Some(Kind::Deallocate) => HostOp::Deallocate,
            Some(Kind::Flush) => HostOp::Flush,
        };
        let mut data = Segments::new();
        if matches!(op, HostOp::Read | HostOp::Write { .. }) {
            let bytes = (job.blocks * self.block_bytes) as usize;
            let buffer = self.initiator.pool().alloc(bytes);
            let mut buffer = buffer.context("no buffer for so many commands of that size")?;
            buffer.truncate(bytes);
            if let Some(operation) = job.operation() {
                let bytes = buffer.as_mut().context("a buffer that is in use")?;
                lock(witness).volume.ledger.fill(operation, bytes);
            }
            data = Segments::from(buffer);
        }
        let command = HostCommand {
            op,
            nsid: NSID,
            lba: u64::from(job.lba),
            blocks: job.blocks,
            data,
            token,
        };
        match self.initiator.submit(self.path, command) {
            Ok(()) => {}
            Err(_) if !self.initiator.path(self.path).is_ready() => {
                running.remove(&token);
            }
            Err(rejected) => bail!("not accepted: {}", rejected.reason),
        }
        Ok(())
    }

    /// What is done, at least one unless nothing is under way or the connection is lost.
    fn completions(&mut self, is_idle: bool) -> Result<Vec<HostCompletion>> {
        let deadline = self.initiator.now().after(PATIENCE);
        let (path, mut done) = (self.path, Vec::new());
        self.initiator.run_until(deadline, |service, _| {
            done.extend(std::iter::from_fn(|| service.path_mut(path).poll()));
            is_idle || !done.is_empty() || service.path(path).stopped().is_some()
        });
        let hangs = done.is_empty() && !is_idle && !self.is_lost();
        ensure!(!hangs, "no command was answered for a minute");
        Ok(done)
    }
}

/// Nobody leaves a witness half-way.
pub fn lock(witness: &Mutex<Witness>) -> std::sync::MutexGuard<'_, Witness> {
    witness.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(volume: &Volume, lba: u32, data: &Segments) -> Result<()> {
    let bytes: Vec<u8> = data
        .iter()
        .flat_map(|one| one.as_slice())
        .copied()
        .collect();
    volume.ledger.check(lba, &bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_together_never_overlaps_and_stays_within_the_volume() {
        for (block_bytes, blocks) in [(4096, 1000), (512, 5001), (512, 8)] {
            let mut load = Load::new(3, 16);
            let shape = Shape {
                blocks,
                block_bytes,
            };
            let mut running = BTreeMap::new();
            let (mut longest, mut flushes, mut reads) = (0, 0, 0);
            for token in 0..20_000_u64 {
                let Some(job) = load.choose(shape, &running) else {
                    running.pop_first();
                    continue;
                };
                assert!(job.lba + job.blocks <= blocks, "{job:?}");
                longest = longest.max(job.blocks);
                flushes += u32::from(matches!(job.operation, Some((Kind::Flush, _))));
                reads += u32::from(job.operation.is_none());
                let apart = |other: &Job| {
                    other.lba + other.blocks <= job.lba || job.lba + job.blocks <= other.lba
                };
                assert!(running.values().all(apart), "{job:?} in {running:?}");
                running.insert(token, job);
                if running.len() == 16 {
                    running.pop_first();
                }
            }
            let most = (LONG_UNITS * UNIT_BYTES / block_bytes).min(blocks / 8 * 8);
            assert!(longest >= most, "{longest} of {most}");
            assert!(flushes > 100 && reads > 100, "{flushes} {reads}");
        }
    }
}
