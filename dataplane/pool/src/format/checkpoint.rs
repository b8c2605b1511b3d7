//! Checkpoints: the records of a state, in frames.

use uuid::Uuid;

use super::codec::{self, WriteError};
use super::record::Record;
use super::superblock::CheckpointPlace;
use super::wire::{Fields, Put};

/// The longest frame.
pub const FRAME_BYTES_MAX: usize = 64 << 10;

/// Bytes before the records of a frame.
pub const FRAME_HEAD_BYTES: usize = 64;

/// What a frame is a multiple of.
const FRAME_ALIGN: usize = 4096;

const MAGIC: u32 = u32::from_le_bytes(*b"BWLC");
const CRC_FROM: usize = 8;
const FLAG_LAST: u32 = 1 << 0;

/// Writes the frames of one checkpoint, each into a buffer of the caller, which has
/// [`FRAME_BYTES_MAX`] and stays the same from a frame's first record until it is sealed.
#[derive(Debug)]
pub struct FrameWriter {
    pool: Uuid,
    number: u64,
    frames: u32,
    offset: u64,
    area_bytes: u64,
    used: usize,
}

/// A frame, ready to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedFrame {
    /// Where it goes, in bytes from the start of the area.
    pub offset: u64,
    /// Its length, from the start of the buffer.
    pub bytes: usize,
}

impl FrameWriter {
    /// For checkpoint `number` of a pool, in an area of this size.
    #[must_use]
    pub const fn new(pool: Uuid, number: u64, area_bytes: u64) -> Self {
        Self {
            pool,
            number,
            frames: 0,
            offset: 0,
            area_bytes,
            used: 0,
        }
    }

    /// Adds a record to the frame, whole or not at all. [`WriteError::TooLong`] says that no frame
    /// can have it.
    pub fn push(&mut self, frame: &mut [u8], record: &Record<'_>) -> Result<(), WriteError> {
        let end = frame.len().min(FRAME_BYTES_MAX);
        let room = frame
            .get_mut(FRAME_HEAD_BYTES + self.used..end)
            .unwrap_or_default();
        match codec::write(record, room) {
            Ok(bytes) => {
                self.used += bytes;
                Ok(())
            }
            Err(WriteError::Full) if self.used == 0 => Err(WriteError::TooLong),
            Err(error) => Err(error),
        }
    }

    /// Ends the frame, so that it can be written, and begins the next one. [`WriteError::Full`]
    /// says that the area has no room for it: the checkpoint cannot be completed.
    pub fn seal(&mut self, frame: &mut [u8], is_last: bool) -> Result<SealedFrame, WriteError> {
        let bytes = (FRAME_HEAD_BYTES + self.used).next_multiple_of(FRAME_ALIGN);
        let (Ok(len), Ok(records_len)) = (u32::try_from(bytes), u32::try_from(self.used)) else {
            return Err(WriteError::Full);
        };
        let end = self.offset + u64::from(len);
        let frame = frame.get_mut(..bytes).filter(|_| end <= self.area_bytes);
        let frame = frame.ok_or(WriteError::Full)?;
        frame[FRAME_HEAD_BYTES + self.used..].fill(0);
        let mut put = Put::new(&mut frame[..FRAME_HEAD_BYTES]);
        put.u32(MAGIC);
        put.u32(0);
        put.bytes(self.pool.as_bytes());
        put.u64(self.number);
        put.u32(self.frames);
        put.u32(len);
        put.u32(records_len);
        put.u32(if is_last { FLAG_LAST } else { 0 });
        put.zeroes();
        let crc = crc_fast::crc32_iscsi(&frame[CRC_FROM..]);
        Put::new(&mut frame[4..8]).u32(crc);
        let sealed = SealedFrame {
            offset: self.offset,
            bytes,
        };
        self.offset = end;
        self.frames += 1;
        self.used = 0;
        Ok(sealed)
    }

    /// How many frames were sealed.
    #[must_use]
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// Whether nothing was added to the frame since the last one was sealed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }
}

/// Why a frame is not what the superblock says must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame {index} of checkpoint {number}, {offset} bytes into its area, is damaged: {reason}")]
pub struct FrameError {
    /// Of the checkpoint.
    pub number: u64,
    /// Of the frame.
    pub index: u32,
    /// Where it should be.
    pub offset: u64,
    /// What is wrong.
    pub reason: FrameReason,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameReason {
    /// Not our magic, or not a length of a frame.
    #[error("there is no frame")]
    Absent,
    /// The area ends before it.
    #[error("it is cut off")]
    Truncated,
    /// Its content changed.
    #[error("its checksum is wrong")]
    Checksum,
    /// A valid one, and another.
    #[error("it is a frame of another checkpoint, or another one of this")]
    Misplaced,
    /// It has what this version does not write.
    #[error("it has a wrong field")]
    Field,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'b> {
    /// Its records, as [`RecordReader`](super::codec::RecordReader) reads them.
    pub records: &'b [u8],
    /// Its length: the next one is so many bytes on.
    pub bytes: usize,
}

/// Reads the frames of a checkpoint one after another.
#[derive(Clone, Debug)]
pub struct FrameReader {
    pool: Uuid,
    place: CheckpointPlace,
    index: u32,
    offset: u64,
}

impl FrameReader {
    /// Of the checkpoint that the superblock names.
    #[must_use]
    pub const fn new(pool: Uuid, place: CheckpointPlace) -> Self {
        Self {
            pool,
            place,
            index: 0,
            offset: 0,
        }
    }

    /// Where the next frame begins, in bytes from the start of the area; `None` after the last.
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        if self.index < self.place.frames {
            Some(self.offset)
        } else {
            None
        }
    }

    /// The next frame, at the start of `bytes`: what the area has from [`offset`](Self::offset) on,
    /// [`FRAME_BYTES_MAX`] or to its end. After an error it is tried again.
    pub fn next_frame<'b>(&mut self, bytes: &'b [u8]) -> Result<Frame<'b>, FrameError> {
        let frame = self.read(bytes).map_err(|reason| FrameError {
            number: self.place.number,
            index: self.index,
            offset: self.offset,
            reason,
        })?;
        self.index += 1;
        // At most 64 KiB.
        self.offset += u64::try_from(frame.bytes).unwrap_or(0);
        Ok(frame)
    }

    fn read<'b>(&self, bytes: &'b [u8]) -> Result<Frame<'b>, FrameReason> {
        let mut head = Fields::new(bytes);
        let (magic, crc) = (head.u32(), head.u32());
        let (uuid, number, index) = (head.uuid(), head.u64(), head.u32());
        let (len, records_len, flags) = (head.u32(), head.u32(), head.u32());
        let (Some(len), Some(records_len), Some(flags), Some(spare)) =
            (len, records_len, flags, head.bytes(16))
        else {
            return Err(FrameReason::Truncated);
        };
        let as_size = |len: u32| usize::try_from(len).map_err(|_| FrameReason::Absent);
        let (len, records_len) = (as_size(len)?, as_size(records_len)?);
        let is_frame = (FRAME_ALIGN..=FRAME_BYTES_MAX).contains(&len) && len % FRAME_ALIGN == 0;
        if magic != Some(MAGIC) || !is_frame {
            return Err(FrameReason::Absent);
        }
        let frame = bytes.get(..len).ok_or(FrameReason::Truncated)?;
        if crc != Some(crc_fast::crc32_iscsi(&frame[CRC_FROM..])) {
            return Err(FrameReason::Checksum);
        }
        let is_this = uuid == Some(self.pool) && number == Some(self.place.number);
        if !is_this || index != Some(self.index) {
            return Err(FrameReason::Misplaced);
        }
        let last = if self.index.checked_add(1) == Some(self.place.frames) {
            FLAG_LAST
        } else {
            0
        };
        let records = frame[FRAME_HEAD_BYTES..].get(..records_len);
        match records {
            Some(records) if flags == last && spare.iter().all(|&byte| byte == 0) => Ok(Frame {
                records,
                bytes: len,
            }),
            _ => Err(FrameReason::Field),
        }
    }
}

#[cfg(test)]
mod tests;
