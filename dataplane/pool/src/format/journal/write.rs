//! Groups out.

use uuid::Uuid;

use super::super::codec::{self, WriteError};
use super::super::record::Record;
use super::ring::{Ring, SECTOR_BYTES};
use super::sector::{Head, PAYLOAD_BYTES, Tag};

/// Collects the records of a group, and makes sectors of them. Allocates once.
#[derive(Debug)]
pub struct GroupWriter {
    ring: Ring,
    tag: Tag,
    generation: u32,
    records: Box<[u8]>,
    used: usize,
}

/// A group, ready to be written with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Of its first sector.
    pub sequence: u64,
    /// Where it goes, in bytes from the start of the journal.
    pub offset: u64,
    /// Its length, a multiple of the block.
    pub bytes: usize,
    /// The sequence of the next group.
    pub next: u64,
}

impl GroupWriter {
    /// An empty group of a pool that was opened for the `generation`-th time.
    #[must_use]
    pub fn new(ring: Ring, pool: Uuid, generation: u64) -> Self {
        let sectors = usize::try_from(ring.group_sectors_max()).unwrap_or(0);
        Self {
            ring,
            tag: tag_of(pool),
            generation: generation_of(generation),
            records: vec![0; sectors * PAYLOAD_BYTES].into_boxed_slice(),
            used: 0,
        }
    }

    /// Adds a record, whole or not at all. [`WriteError::TooLong`] says that no group can have it.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), WriteError> {
        match codec::write(record, &mut self.records[self.used..]) {
            Ok(bytes) => {
                self.used += bytes;
                Ok(())
            }
            Err(WriteError::Full) if self.used == 0 => Err(WriteError::TooLong),
            Err(error) => Err(error),
        }
    }

    /// Bytes of records that a group has room for.
    #[must_use]
    pub const fn bytes_max(&self) -> usize {
        self.records.len()
    }

    /// The records of the group, as [`RecordReader`](super::super::codec::RecordReader) reads them.
    #[must_use]
    pub const fn records(&self) -> &[u8] {
        self.records.split_at(self.used).0
    }

    /// Whether the group has no record.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// How many sectors the group takes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        // As many as fit into memory.
        let sectors = u64::try_from(self.used.div_ceil(PAYLOAD_BYTES).max(1)).unwrap_or(0);
        sectors.next_multiple_of(self.ring.block_sectors())
    }

    /// Writes the sectors of the group to the start of `out`. `next` is what came with the group
    /// before, or where the journal ended. The records stay until [`clear`](Self::clear).
    pub fn seal(&self, next: u64, out: &mut [u8]) -> Result<Sealed, WriteError> {
        let sequence = self.ring.next_start(next);
        let sectors = self.sectors();
        let bytes = usize::try_from(sectors).map_err(|_| WriteError::Full)? * SECTOR_BYTES;
        let (out, _) = out
            .get_mut(..bytes)
            .ok_or(WriteError::Full)?
            .as_chunks_mut();
        let mut payloads = self.records().chunks(PAYLOAD_BYTES);
        for (index, sector) in (0..).zip(out) {
            let head = Head {
                sequence: sequence + u64::from(index),
                generation: self.generation,
                index,
                is_last: u64::from(index) + 1 == sectors,
            };
            head.write(self.tag, payloads.next().unwrap_or(&[]), sector);
        }
        Ok(Sealed {
            sequence,
            offset: self.ring.offset(sequence),
            bytes,
            next: self.ring.next_start(sequence + sectors),
        })
    }

    /// Makes it an empty group.
    pub const fn clear(&mut self) {
        self.used = 0;
    }
}

/// What is in the sectors of the pool.
pub(super) fn tag_of(pool: Uuid) -> Tag {
    let [a, b, c, d, ..] = *pool.as_bytes();
    [a, b, c, d]
}

/// The low half.
pub(super) fn generation_of(generation: u64) -> u32 {
    let [a, b, c, d, ..] = generation.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
