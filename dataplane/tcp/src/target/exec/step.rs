//! What a command does at its device, one operation after the other.
//!
//! Each step takes the end of one operation and says what comes next. Nothing here knows of
//! devices, queues, or connections.

use bowline_block::{Io, IoBuf, IoError, Op, Segments};
use bowline_nvme::Status;
use bowline_nvme::nvm::{CopyRange, DsmRange};
use bowline_nvmf::target::{IoOp, SlotId};

use super::order::Blocks;
use crate::status::io_status;

/// Bytes that Verify and Copy move at a time: what a command of any length takes of the pool.
pub(super) const CHUNK_BYTES: usize = 128 << 10;

/// What is still to do for a command when its current device operation ends.
pub(super) enum Step {
    /// Nothing: the operation's end is the command's end.
    Last,
    /// The flush before a read with FUA is under way. [NVM-1.0 §3.2.4]
    Durable { read: Reading },
    /// The data of a Compare is being read.
    Compare { expected: IoBuf },
    /// What both halves of a fused pair are about is being read. `pair` is the data to compare,
    /// then the data to write.
    FusedRead {
        pair: IoBuf,
        second: SlotId,
        lba: u64,
        blocks: u32,
        fua: bool,
    },
    /// The second half of a fused pair is being written.
    FusedWrite { second: SlotId },
    /// A part is being read, and `blocks` from `lba` on are left.
    Verify {
        lba: u64,
        blocks: u32,
        block_bytes: u32,
    },
    /// A part is being read or written.
    Copy(Copying),
    /// Ranges `next..count` of the list are still to be deallocated.
    Deallocate { list: IoBuf, next: u16, count: u16 },
    /// Not a command: the flush at the end of the process.
    FinalFlush,
}

/// What follows the flush of a read with FUA.
pub(super) struct Reading {
    lba: u64,
    blocks: u32,
    into: IoBuf,
    then: Then,
}

enum Then {
    Last,
    Compare {
        expected: IoBuf,
    },
    Fused {
        pair: IoBuf,
        second: SlotId,
        fua: bool,
    },
    Verify {
        blocks: u32,
        block_bytes: u32,
    },
}

/// How far a Copy is. [NVM-1.0 §3.2.2]
pub(super) struct Copying {
    list: IoBuf,
    ranges: u16,
    /// The range that is being copied, and how many blocks of it are done.
    at: u16,
    done: u32,
    /// Where the next block goes.
    to: u64,
    fua: bool,
    block_bytes: u32,
    /// Size of the buffer in bytes.
    buffer_bytes: usize,
    /// Blocks of the operation under way.
    part: u32,
    writing: bool,
}

/// What comes next.
pub(super) enum Next {
    /// One more operation, still without a token.
    Run(Io),
    /// The command has ended.
    End {
        status: Status,
        buffer: Option<IoBuf>,
    },
    /// Both halves of a pair have ended.
    EndPair {
        first: Status,
        second: (SlotId, Status),
    },
    /// The flush at the end of the process has ended.
    Flushed(Result<(), IoError>),
}

impl Next {
    fn end(result: Result<(), IoError>, buffer: Option<IoBuf>) -> Self {
        let status = result.map_or_else(io_status, |()| Status::SUCCESS);
        Self::End { status, buffer }
    }

    /// Something that only a bug of ours can bring about.
    fn bug() -> Self {
        Self::end(Err(IoError::Internal), None)
    }

    fn read(lba: u64, blocks: u32, into: IoBuf) -> Self {
        Self::Run(operation(Op::Read, lba, blocks, false, Some(into)))
    }
}

fn operation(op: Op, lba: u64, blocks: u32, fua: bool, data: Option<IoBuf>) -> Io {
    Io {
        op,
        lba,
        blocks,
        fua,
        data: data.map_or_else(Segments::new, Segments::from),
        token: 0,
    }
}

fn flush() -> Io {
    operation(Op::Flush, 0, 0, false, None)
}

/// Bytes of buffer a command needs besides what its host sent.
pub(super) fn scratch_bytes(op: &IoOp, block_bytes: u32) -> usize {
    let bytes = |blocks: u32| blocks as usize * block_bytes as usize;
    match *op {
        IoOp::Read { blocks, .. }
        | IoOp::Compare { blocks, .. }
        | IoOp::CompareAndWrite { blocks, .. } => bytes(blocks),
        IoOp::Verify { blocks, .. } | IoOp::Copy { blocks, .. } => bytes(blocks).min(CHUNK_BYTES),
        IoOp::Write { .. } | IoOp::Flush | IoOp::WriteZeroes { .. } | IoOp::Deallocate { .. } => 0,
    }
}

/// The blocks that must not change from a command's first operation to its last.
pub(super) fn exclusive(op: &IoOp) -> Option<Blocks> {
    match *op {
        IoOp::CompareAndWrite { lba, blocks, .. }
        | IoOp::Read {
            lba,
            blocks,
            fua: true,
        }
        | IoOp::Compare {
            lba,
            blocks,
            fua: true,
        }
        | IoOp::Verify {
            lba,
            blocks,
            fua: true,
        } => Some(Blocks::new(lba, blocks)),
        _ => None,
    }
}

/// How many of `blocks` fit in a part.
fn part_of(blocks: u32, block_bytes: u32) -> u32 {
    let most = CHUNK_BYTES / (block_bytes as usize).max(1);
    blocks.min(u32::try_from(most).unwrap_or(u32::MAX).max(1))
}

/// Makes a view of the last bytes of a buffer, which has `whole` in all, one of its last `bytes`.
fn fit(buffer: &mut IoBuf, whole: usize, bytes: usize) {
    buffer.rewind(whole.saturating_sub(buffer.len()));
    buffer.advance(buffer.len().saturating_sub(bytes));
}

impl Step {
    /// How a command begins. `payload` is what its host sent, `scratch` has
    /// [`scratch_bytes`].
    pub(super) fn begin(
        op: IoOp,
        block_bytes: u32,
        payload: Option<IoBuf>,
        scratch: Option<IoBuf>,
    ) -> (Self, Next) {
        let begun = match op {
            IoOp::Write { lba, blocks, fua } => {
                let bytes = blocks as usize * block_bytes as usize;
                let data = payload.map(|buf| buf.slice(0..bytes.min(buf.len())));
                Some(Self::once(operation(Op::Write, lba, blocks, fua, data)))
            }
            IoOp::Flush => Some(Self::once(flush())),
            IoOp::WriteZeroes {
                lba,
                blocks,
                deallocate,
                fua,
            } => {
                let op = Op::WriteZeroes { deallocate };
                Some(Self::once(operation(op, lba, blocks, fua, None)))
            }
            IoOp::Deallocate { ranges } => payload.map(|list| {
                let mut step = Self::Deallocate {
                    list,
                    next: 0,
                    count: ranges,
                };
                let next = step.next(Ok(()), Segments::new());
                (step, next)
            }),
            IoOp::Copy {
                lba,
                blocks: _,
                ranges,
                fua,
            } => payload.zip(scratch).map(|(list, scratch)| {
                let copying = Copying {
                    list,
                    ranges,
                    at: 0,
                    done: 0,
                    to: lba,
                    fua,
                    block_bytes,
                    buffer_bytes: scratch.len(),
                    part: 0,
                    // As if the part before had just been written.
                    writing: true,
                };
                let mut step = Self::Copy(copying);
                let next = step.next(Ok(()), scratch.into());
                (step, next)
            }),
            _ => Self::begin_reading(op, block_bytes, payload, scratch),
        };
        begun.unwrap_or_else(|| {
            let next = match op {
                IoOp::CompareAndWrite { second, .. } => fused_failed(second, IoError::Internal),
                _ => Next::bug(),
            };
            (Self::Last, next)
        })
    }

    fn once(io: Io) -> (Self, Next) {
        (Self::Last, Next::Run(io))
    }

    /// `None` when the host's data, which the command is about, is missing.
    fn begin_reading(
        op: IoOp,
        block_bytes: u32,
        payload: Option<IoBuf>,
        scratch: Option<IoBuf>,
    ) -> Option<(Self, Next)> {
        let (lba, blocks, durable, then) = match op {
            IoOp::Read { lba, blocks, fua } => (lba, blocks, fua, Then::Last),
            IoOp::Compare { lba, blocks, fua } => {
                let expected = payload?;
                (lba, blocks, fua, Then::Compare { expected })
            }
            IoOp::CompareAndWrite {
                second,
                lba,
                blocks,
                read_fua,
                fua,
            } => {
                let pair = payload?;
                (lba, blocks, read_fua, Then::Fused { pair, second, fua })
            }
            IoOp::Verify { lba, blocks, fua } => {
                let part = part_of(blocks, block_bytes);
                let blocks = blocks - part;
                (
                    lba,
                    part,
                    fua,
                    Then::Verify {
                        blocks,
                        block_bytes,
                    },
                )
            }
            _ => return None,
        };
        let read = Reading {
            lba,
            blocks,
            into: scratch?,
            then,
        };
        Some(if durable {
            (Self::Durable { read }, Next::Run(flush()))
        } else {
            read.start()
        })
    }

    /// The other half's slot, for a fused pair.
    pub(super) fn second(&self) -> Option<SlotId> {
        match self {
            Self::FusedRead { second, .. }
            | Self::FusedWrite { second, .. }
            | Self::Durable {
                read:
                    Reading {
                        then: Then::Fused { second, .. },
                        ..
                    },
            } => Some(*second),
            _ => None,
        }
    }

    /// Whether the command may still end before it has done everything.
    pub(super) fn is_divisible(&self) -> bool {
        matches!(
            self,
            Self::Verify { .. } | Self::Copy(_) | Self::Deallocate { .. }
        )
    }

    /// An operation has ended with `result` and gives back `data`.
    pub(super) fn next(&mut self, result: Result<(), IoError>, mut data: Segments) -> Next {
        match self {
            Self::Last => Next::end(result, data.pop()),
            Self::FinalFlush => Next::Flushed(result),
            Self::Verify {
                lba,
                blocks,
                block_bytes,
            } => {
                let Some(mut scratch) = data.pop().filter(|_| result.is_ok() && *blocks > 0) else {
                    return Next::end(result, None);
                };
                let part = part_of(*blocks, *block_bytes);
                let from = *lba;
                *lba += u64::from(part);
                *blocks -= part;
                scratch.truncate(part as usize * *block_bytes as usize);
                Next::read(from, part, scratch)
            }
            Self::Copy(copying) => copying.next(result, data),
            Self::Deallocate { list, next, count } => deallocate(list, next, *count, result),
            _ => {
                let step = std::mem::replace(self, Self::Last);
                step.next_whole(result, data, self)
            }
        }
    }

    /// Steps that are used up by what comes next, which is left in `place`.
    fn next_whole(self, result: Result<(), IoError>, mut data: Segments, place: &mut Self) -> Next {
        match self {
            Self::Durable { read } => {
                if let Err(error) = result {
                    return read.fail(error);
                }
                let (step, next) = read.start();
                *place = step;
                next
            }
            Self::Compare { expected } => {
                let found = data.pop();
                let same = found.is_some_and(|found| holds(&expected, &found));
                Next::end(result.and_then(|()| matched(same)), None)
            }
            Self::FusedRead {
                pair,
                second,
                lba,
                blocks,
                fua,
            } => {
                let Some(found) = data.pop() else {
                    return fused_failed(second, IoError::Internal);
                };
                let half = found.len();
                if let Err(error) = result.and_then(|()| matched(holds(&pair, &found))) {
                    return fused_failed(second, error);
                }
                if pair.len() < 2 * half {
                    return fused_failed(second, IoError::Internal);
                }
                let write = pair.slice(half..2 * half);
                *place = Self::FusedWrite { second };
                Next::Run(operation(Op::Write, lba, blocks, fua, Some(write)))
            }
            Self::FusedWrite { second } => {
                let status = result.map_or_else(io_status, |()| Status::SUCCESS);
                Next::EndPair {
                    first: Status::SUCCESS,
                    second: (second, status),
                }
            }
            _ => Next::end(result, data.pop()),
        }
    }
}

fn holds(expected: &IoBuf, found: &IoBuf) -> bool {
    expected
        .get(..found.len())
        .is_some_and(|expected| *expected == **found)
}

fn matched(same: bool) -> Result<(), IoError> {
    if same {
        Ok(())
    } else {
        Err(IoError::CompareMismatch)
    }
}

/// The first half has failed, and with it the second, which has done nothing. [BASE-2.0 §3.4.2]
fn fused_failed(second: SlotId, error: IoError) -> Next {
    Next::EndPair {
        first: io_status(error),
        second: (second, Status::ABORTED_FAILED_FUSED),
    }
}

impl Reading {
    fn start(self) -> (Step, Next) {
        let Self {
            lba,
            blocks,
            into,
            then,
        } = self;
        let step = match then {
            Then::Last => Step::Last,
            Then::Compare { expected } => Step::Compare { expected },
            Then::Fused { pair, second, fua } => Step::FusedRead {
                pair,
                second,
                lba,
                blocks,
                fua,
            },
            Then::Verify {
                blocks: left,
                block_bytes,
            } => Step::Verify {
                lba: lba + u64::from(blocks),
                blocks: left,
                block_bytes,
            },
        };
        (step, Next::read(lba, blocks, into))
    }

    fn fail(self, error: IoError) -> Next {
        match self.then {
            Then::Fused { second, .. } => fused_failed(second, error),
            Then::Last | Then::Compare { .. } | Then::Verify { .. } => Next::end(Err(error), None),
        }
    }
}

impl Copying {
    fn next(&mut self, result: Result<(), IoError>, mut data: Segments) -> Next {
        let Some(mut buffer) = data.pop().filter(|_| result.is_ok()) else {
            return Next::end(result.and(Err(IoError::Internal)), None);
        };
        if !self.writing {
            self.writing = true;
            let (to, part) = (self.to, self.part);
            self.to += u64::from(part);
            self.done += part;
            let write = operation(Op::Write, to, part, self.fua, Some(buffer));
            return Next::Run(write);
        }
        let Some((lba, left)) = self.source() else {
            return Next::end(Ok(()), None);
        };
        self.writing = false;
        self.part = part_of(left, self.block_bytes);
        let bytes = self.part as usize * self.block_bytes as usize;
        fit(&mut buffer, self.buffer_bytes, bytes);
        Next::read(lba, self.part, buffer)
    }

    /// Where the next part comes from, and how many blocks of its range are left.
    fn source(&mut self) -> Option<(u64, u32)> {
        while self.at < self.ranges {
            let range = CopyRange::nth(&self.list, self.at)?;
            if self.done < range.blocks {
                return Some((range.slba + u64::from(self.done), range.blocks - self.done));
            }
            self.at += 1;
            self.done = 0;
        }
        None
    }
}

/// Goes on with a Dataset Management command, or ends it.
fn deallocate(list: &IoBuf, next: &mut u16, count: u16, result: Result<(), IoError>) -> Next {
    // Deallocate is advice: a device that cannot do it has still obeyed. [NVM-1.0 §3.2.3]
    let result = result.or_else(|error| match error {
        IoError::Unsupported => Ok(()),
        error => Err(error),
    });
    while result.is_ok() && *next < count {
        let at = usize::from(*next) * DsmRange::SIZE;
        *next += 1;
        let Some(range) = list
            .get(at..)
            .and_then(<[u8]>::first_chunk)
            .map(DsmRange::decode)
        else {
            return Next::bug();
        };
        if range.blocks > 0 {
            return Next::Run(operation(
                Op::Deallocate,
                range.slba,
                range.blocks,
                false,
                None,
            ));
        }
    }
    Next::end(result, None)
}
