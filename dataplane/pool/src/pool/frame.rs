//! Frames of a checkpoint as bytes.

use uuid::Uuid;

use crate::format::codec::{RecordWriter, WriteError};
use crate::format::record::Record;

/// The longest frame.
pub(super) const FRAME_BYTES: usize = 64 << 10;
const HEAD_BYTES: usize = 64;
const MAGIC: &[u8; 4] = b"BWLC";
const FLAG_LAST: u32 = 1;
const UNIT: usize = 4096;

/// Makes one frame in a buffer of [`FRAME_BYTES`].
pub(super) struct FrameWriter<'b> {
    head: &'b mut [u8],
    body: RecordWriter<'b>,
    uuid: Uuid,
    number: u64,
    index: u32,
}

impl<'b> FrameWriter<'b> {
    pub(super) const ROOM: usize = FRAME_BYTES - HEAD_BYTES;

    pub(super) fn new(out: &'b mut [u8], uuid: Uuid, number: u64, index: u32) -> Self {
        out.fill(0);
        let (head, body) = out.split_at_mut(HEAD_BYTES);
        Self {
            head,
            body: RecordWriter::new(body),
            uuid,
            number,
            index,
        }
    }

    pub(super) fn push(&mut self, record: &Record<'_>) -> Result<(), WriteError> {
        self.body.push(record)
    }

    /// Returns what is to follow: head fields, and bytes of the frame.
    pub(super) fn finish(self, is_last: bool) -> usize {
        let used = self.body.used();
        let bytes = (HEAD_BYTES + used).next_multiple_of(UNIT);
        let number = |value: usize| u32::try_from(value).unwrap_or(0).to_le_bytes();
        self.head[0..4].copy_from_slice(MAGIC);
        self.head[8..24].copy_from_slice(self.uuid.as_bytes());
        self.head[24..32].copy_from_slice(&self.number.to_le_bytes());
        self.head[32..36].copy_from_slice(&self.index.to_le_bytes());
        self.head[36..40].copy_from_slice(&number(bytes));
        self.head[40..44].copy_from_slice(&number(used));
        let flags = if is_last { FLAG_LAST } else { 0 };
        self.head[44..48].copy_from_slice(&flags.to_le_bytes());
        bytes
    }
}

/// Completes a frame with its checksum.
pub(super) fn seal(frame: &mut [u8]) {
    let crc = crc_fast::crc32_iscsi(&frame[8..]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// The records of a frame and whether it is the last; `None`: damaged.
pub(super) fn read(frame: &[u8], uuid: Uuid, number: u64, index: u32) -> Option<(&[u8], bool)> {
    let field = |at: usize| Some(u32::from_le_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    let is_ours = frame.get(..4)? == MAGIC
        && frame.get(8..24)? == uuid.as_bytes()
        && frame.get(24..32)? == number.to_le_bytes()
        && field(32)? == index
        && usize::try_from(field(36)?).ok()? == frame.len();
    if !is_ours || field(4)? != crc_fast::crc32_iscsi(&frame[8..]) {
        return None;
    }
    let used = usize::try_from(field(40)?).ok()?;
    let records = frame.get(HEAD_BYTES..)?.get(..used)?;
    Some((records, field(44)? & FLAG_LAST != 0))
}

/// Bytes of the frame that begins so, if it says a possible number.
pub(super) fn length(head: &[u8]) -> Option<usize> {
    let bytes = u32::from_le_bytes(head.get(36..40)?.try_into().ok()?);
    let bytes = usize::try_from(bytes).ok()?;
    ((UNIT..=FRAME_BYTES).contains(&bytes) && bytes.is_multiple_of(UNIT)).then_some(bytes)
}
