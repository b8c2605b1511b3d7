//! All that a pool shows: kept byte by byte, and compared with what it shows when its drive is not as it was.

use std::collections::BTreeMap;

use bowline_block::{BufPool, Device, IoError, Segments};

use super::examine::{READ_BYTES, Ticks, read};
use super::log_device::LogDevice;
use crate::format::record::Checksums;
use crate::map::Reader;
use crate::{Pool, Volume, VolumeInfo};

pub(super) const CHUNK: usize = 4096;

/// A chunk: of which volume or snapshot, in the order in which they were read, and its number.
pub(super) type ChunkOf = (usize, usize);

/// A volume or a snapshot.
struct Part {
    volume: u32,
    snapshot: Option<u32>,
    checksums: Checksums,
    data: Vec<u8>,
    /// Which chunks were compared with their checksums.
    verified: Vec<bool>,
}

/// What a pool shows.
pub(super) struct Shown {
    about: Vec<String>,
    parts: Vec<Part>,
}

/// What became of chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// There are other volumes or snapshots, or they are not what they were.
    pub(super) is_another: bool,
    /// Chunks that cannot be read.
    pub(super) unread: usize,
    /// Chunks that hold something else.
    pub(super) wrong: usize,
}

impl Difference {
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// What a chunk is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Now {
    Same,
    Unread,
    Wrong,
}

fn about(pool: &Pool<LogDevice>, infos: &[VolumeInfo]) -> Vec<String> {
    let about = |info: &VolumeInfo| {
        // The pool gives extents back that nobody needs, whenever it likes.
        let info = VolumeInfo {
            mapped_bytes: 0,
            physical_bytes: 0,
            ..info.clone()
        };
        format!("{info:?}, {:?}", pool.attribute(info.volume, 1))
    };
    infos.iter().map(about).collect()
}

fn bytes_of(data: &Segments) -> Vec<u8> {
    data.iter().flat_map(|buf| buf.iter().copied()).collect()
}

/// How many blocks a chunk has.
fn chunk_blocks(handle: &Volume<LogDevice>) -> u64 {
    CHUNK as u64 / u64::from(handle.geometry().block_bytes)
}

impl Part {
    fn open(&self, pool: &Pool<LogDevice>) -> Result<Volume<LogDevice>, String> {
        let opened = match self.snapshot {
            Some(number) => pool.open_snapshot(self.volume, number),
            None => pool.open_volume(self.volume),
        };
        opened.map_err(|error| format!("volume {}: {error}", self.volume))
    }

    /// Reads it chunk by chunk, to see which are compared.
    fn read(
        &mut self,
        pool: &Pool<LogDevice>,
        buffers: &BufPool,
        ticks: &Ticks,
    ) -> Result<(), String> {
        let mut handle = self.open(pool)?;
        let blocks = chunk_blocks(&handle);
        for chunk in 0..handle.geometry().blocks / blocks {
            let before = pool.checksum_counts().verified;
            let data = read(&mut handle, buffers, ticks, (chunk * blocks, blocks))?
                .map_err(|error| format!("chunk {chunk}: {error}"))?;
            self.data.extend(bytes_of(&data));
            let is_verified = pool.checksum_counts().verified > before;
            self.verified.push(is_verified);
        }
        Ok(())
    }

    fn chunk(&self, at: usize) -> &[u8] {
        &self.data[at * CHUNK..][..CHUNK]
    }

    /// What one chunk is now.
    fn look(
        &self,
        handle: &mut Volume<LogDevice>,
        buffers: &BufPool,
        ticks: &Ticks,
        at: usize,
    ) -> Result<Now, String> {
        let blocks = chunk_blocks(handle);
        match read(handle, buffers, ticks, (at as u64 * blocks, blocks))? {
            Ok(data) if bytes_of(&data) == self.chunk(at) => Ok(Now::Same),
            Ok(_) => Ok(Now::Wrong),
            Err(IoError::MediaRead) => Ok(Now::Unread),
            Err(error) => Err(format!("chunk {at} of volume {}: {error}", self.volume)),
        }
    }

    fn compare(
        &self,
        pool: &Pool<LogDevice>,
        buffers: &BufPool,
        ticks: &Ticks,
        found: &mut Difference,
    ) -> Result<(), String> {
        let mut handle = self.open(pool)?;
        let blocks = chunk_blocks(&handle);
        let at_once = usize::try_from(READ_BYTES).unwrap() / CHUNK;
        for (index, data) in self.data.chunks(at_once * CHUNK).enumerate() {
            let first = index * at_once;
            let count = data.len() / CHUNK;
            let range = (first as u64 * blocks, count as u64 * blocks);
            let now = read(&mut handle, buffers, ticks, range)?;
            if now.is_ok_and(|now| bytes_of(&now) == data) {
                continue;
            }
            for at in first..first + count {
                match self.look(&mut handle, buffers, ticks, at)? {
                    Now::Same => {}
                    Now::Unread => found.unread += 1,
                    Now::Wrong => found.wrong += 1,
                }
            }
        }
        Ok(())
    }
}

impl Shown {
    /// Of a pool of which every chunk can be read.
    pub(super) fn of(
        pool: &Pool<LogDevice>,
        buffers: &BufPool,
        ticks: &Ticks,
    ) -> Result<Self, String> {
        let infos = pool.volumes();
        let about = about(pool, &infos);
        let mut parts = Vec::new();
        for info in infos {
            let snapshots = info.snapshots.iter().map(|it| Some(it.number));
            for snapshot in snapshots.chain([None]) {
                let mut part = Part {
                    volume: info.volume,
                    snapshot,
                    checksums: info.checksums,
                    data: Vec::new(),
                    verified: Vec::new(),
                };
                part.read(pool, buffers, ticks)?;
                parts.push(part);
            }
        }
        Ok(Self { about, parts })
    }

    /// What is another now.
    pub(super) fn compare(
        &self,
        pool: &Pool<LogDevice>,
        buffers: &BufPool,
        ticks: &Ticks,
    ) -> Result<Difference, String> {
        let mut found = Difference::default();
        if about(pool, &pool.volumes()) != self.about {
            found.is_another = true;
            return Ok(found);
        }
        for part in &self.parts {
            part.compare(pool, buffers, ticks, &mut found)?;
        }
        Ok(found)
    }

    /// What one chunk is now.
    pub(super) fn look(
        &self,
        pool: &Pool<LogDevice>,
        buffers: &BufPool,
        ticks: &Ticks,
        (part, chunk): ChunkOf,
    ) -> Result<Now, String> {
        let part = &self.parts[part];
        part.look(&mut part.open(pool)?, buffers, ticks, chunk)
    }

    pub(super) fn is_verified(&self, (part, chunk): ChunkOf) -> bool {
        self.parts[part].verified[chunk]
    }

    pub(super) fn checksums(&self, (part, _): ChunkOf) -> Checksums {
        self.parts[part].checksums
    }

    /// Where chunks are on the drive, and who shows them.
    pub(super) fn places(&self, pool: &Pool<LogDevice>) -> BTreeMap<u64, Vec<ChunkOf>> {
        let engine = pool.engine.borrow();
        let count = engine.shape.chunk_count();
        let mut places: BTreeMap<u64, Vec<ChunkOf>> = BTreeMap::new();
        let mut runs = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            let slot = engine.state.slot(part.volume).unwrap();
            let reader = match part.snapshot {
                Some(number) => Reader::Snapshot(slot, number),
                None => Reader::Head(slot),
            };
            let chunks = u32::try_from(part.verified.len()).unwrap();
            for logical in 0..chunks.div_ceil(count) {
                let end = count.min(chunks - logical * count);
                engine.state.resolve(reader, logical, 0..end, &mut runs);
                for run in &runs {
                    let Some(physical) = run.physical else {
                        continue;
                    };
                    for chunk in run.chunks.clone() {
                        let place = engine.shape.place(physical, chunk * 4096);
                        let chunk = usize::try_from(logical * count + chunk).unwrap();
                        places.entry(place).or_default().push((index, chunk));
                    }
                }
            }
        }
        places
    }
}
