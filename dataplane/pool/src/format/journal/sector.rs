//! One sector.

use super::super::wire::{Fields, Put};
use super::ring::{Ring, SECTOR_BYTES};

/// Bytes of records in a sector.
pub(super) const PAYLOAD_BYTES: usize = 480;

const HEAD_BYTES: usize = SECTOR_BYTES - PAYLOAD_BYTES;
const MAGIC: u32 = u32::from_le_bytes(*b"BWLJ");
const CRC_FROM: usize = 8;
const FLAG_LAST: u16 = 1 << 0;

/// First bytes of the pool's UUID.
pub(super) type Tag = [u8; 4];

/// What a sector says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) sequence: u64,
    pub(super) generation: u32,
    /// Of the sector in its group.
    pub(super) index: u32,
    pub(super) is_last: bool,
}

impl Head {
    /// The sequence of its group's first sector: all before was durable when this was written.
    pub(super) fn group_start(self) -> u64 {
        self.sequence - u64::from(self.index)
    }

    /// Writes a sector with the payload, which is not longer than [`PAYLOAD_BYTES`].
    pub(super) fn write(self, tag: Tag, payload: &[u8], out: &mut [u8; SECTOR_BYTES]) {
        let mut put = Put::new(out);
        put.u32(MAGIC);
        put.u32(0);
        put.u64(self.sequence);
        put.u32(self.generation);
        put.bytes(&tag);
        put.u32(self.index);
        put.u16(u16::try_from(payload.len()).unwrap_or(0));
        put.u16(if self.is_last { FLAG_LAST } else { 0 });
        put.bytes(payload);
        put.zeroes();
        let crc = crc_fast::crc32_iscsi(&out[CRC_FROM..]);
        Put::new(&mut out[4..8]).u32(crc);
    }
}

/// What is found at a place in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sector<'b> {
    /// Never written.
    Zero,
    /// What a writer of this pool has put here.
    Valid(Head, &'b [u8]),
    /// Neither.
    Damaged,
}

impl<'b> Sector<'b> {
    /// What is at `position` in the ring. A valid sector that belongs elsewhere is damage here.
    pub(super) fn read(bytes: &'b [u8], tag: Tag, ring: Ring, position: u64) -> Self {
        if bytes.len() == SECTOR_BYTES && bytes.iter().all(|&byte| byte == 0) {
            return Self::Zero;
        }
        Self::valid(bytes, tag, ring, position).unwrap_or(Self::Damaged)
    }

    fn valid(bytes: &'b [u8], tag: Tag, ring: Ring, position: u64) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let is_ours = fields.u32()? == MAGIC;
        let is_whole = fields.u32()? == crc_fast::crc32_iscsi(bytes.get(CRC_FROM..SECTOR_BYTES)?);
        let sequence = fields.u64()?;
        let generation = fields.u32()?;
        let is_here = fields.bytes(4)? == tag && ring.position(sequence) == position;
        let index = fields.u32()?;
        let used = usize::from(fields.u16()?);
        let flags = fields.u16()?;
        let payload = fields.bytes(PAYLOAD_BYTES)?.get(..used)?;
        let start = sequence.checked_sub(u64::from(index))?;
        let is_possible = flags & !FLAG_LAST == 0
            && u64::from(index) < ring.group_sectors_max()
            && start > 0
            && ring.next_start(start) == start;
        let head = Head {
            sequence,
            generation,
            index,
            is_last: flags & FLAG_LAST != 0,
        };
        (is_ours && is_whole && is_here && is_possible).then_some(Self::Valid(head, payload))
    }
}

const _: () = assert!(HEAD_BYTES == 32);
