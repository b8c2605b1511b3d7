//! One request on its way: what the library is asked next, and what an answer means.
//!
//! ```text
//! Main --done--> finished                 Main --done, FUA, a cache--> Flush --done--> finished
//! Zeroes --written some--> Zeroes         Zeroes --written all--> as Main
//! ```

use std::ptr::NonNull;

use bowline_block::{Completion, Io, IoBuf, IoError, Op, Segments};
use bowline_spdk_rs::{Operation, Payload, Range, Slices};

/// Blocks of zeroes written at a time where the device cannot zero by itself: as many bytes as the
/// buffer of zeroes has, as often as a request takes pieces.
pub(crate) const ZEROES_BYTES: usize = 128 << 10;

/// What the device can do, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// It is an NVMe drive.
    pub(crate) is_drive: bool,
    pub(crate) block_bytes: u32,
    pub(crate) flush: bool,
    pub(crate) write_cache: bool,
    pub(crate) write_zeroes: bool,
    pub(crate) reset: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Main,
    Zeroes,
    Flush,
    Reset,
}

/// What becomes of a request after an answer.
#[derive(Debug)]
pub(crate) enum Next {
    /// It is to be submitted once more.
    Continue(Request),
    /// It is over.
    Finish(Op, Lasts, Completion),
}

/// Whether what a request did outlives a power cut, as far as itself is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasts {
    /// It does, or it did nothing.
    Yes,
    /// Once a flush has ended that begins now or later.
    Flushed,
}

/// A request between submission and completion. The library's queue owns it while it is there.
#[derive(Debug)]
pub(crate) struct Request {
    op: Op,
    fua: bool,
    token: u64,
    range: Range,
    data: Segments,
    // What writing zeroes has done of the range, and is doing now, in blocks.
    done: u64,
    part: u64,
    zeroes: Option<IoBuf>,
    stage: Stage,
}

// SAFETY: the pieces are the bytes of buffer views that the request owns, at one address and
// initialised. Nobody changes them: a view gives mutable access only while it is the only one of its
// buffer and borrowed mutably, and a value in the queue is not borrowed. With `fill` nothing is
// pushed unless each view is the only one of its buffer, and no further one can be made but from it.
unsafe impl Payload for Request {
    fn pieces(&mut self, fill: bool, into: &mut Slices<'_>) {
        match self.stage {
            Stage::Flush | Stage::Reset => {}
            Stage::Zeroes => {
                let Some(zeroes) = &self.zeroes else { return };
                push(zeroes, into);
            }
            Stage::Main if fill => {
                if !self.data.is_unique() {
                    return;
                }
                for buf in self.data.iter_mut() {
                    let bytes = buf.len();
                    if let Some(base) = NonNull::new(buf.as_mut_ptr()) {
                        into.push(base, bytes);
                    }
                }
            }
            Stage::Main => self.data.iter().for_each(|buf| push(buf, into)),
        }
    }
}

fn push(buf: &IoBuf, into: &mut Slices<'_>) {
    // Only read through.
    if let Some(base) = NonNull::new(buf.as_ptr().cast_mut()) {
        into.push(base, buf.len());
    }
}

impl Request {
    /// The request of an [`Io`] that was checked and is not empty.
    pub(crate) fn new(io: Io, abilities: &Abilities, zeroes: Option<&IoBuf>) -> Self {
        let stage = match io.op {
            Op::Flush => Stage::Flush,
            Op::WriteZeroes { .. } if !abilities.write_zeroes => Stage::Zeroes,
            _ => Stage::Main,
        };
        let mut request = Self {
            op: io.op,
            fua: io.fua && io.op.is_modifying(),
            token: io.token,
            range: Range {
                block: io.lba,
                blocks: u64::from(io.blocks),
            },
            data: io.data,
            done: 0,
            part: 0,
            zeroes: None,
            stage,
        };
        if stage == Stage::Zeroes {
            request.next_zeroes(abilities, zeroes);
        }
        request
    }

    /// The engine's own, which ends what the device would not end by itself.
    pub(crate) const fn reset() -> Self {
        Self {
            op: Op::Flush,
            fua: false,
            token: 0,
            range: Range {
                block: 0,
                blocks: 0,
            },
            data: Segments::new(),
            done: 0,
            part: 0,
            zeroes: None,
            stage: Stage::Reset,
        }
    }

    /// Whether nobody waits for its end.
    pub(crate) fn is_reset(&self) -> bool {
        self.stage == Stage::Reset
    }

    /// What the library is asked now.
    pub(crate) fn operation(&self, device_blocks: u64) -> (Operation, Range) {
        let operation = match (self.stage, self.op) {
            // All of the device, as a host's flush covers whatever was written before.
            (Stage::Flush, Op::Flush) => {
                let whole = Range {
                    block: 0,
                    blocks: device_blocks,
                };
                return (Operation::Flush, whole);
            }
            (Stage::Flush, _) => Operation::Flush,
            (Stage::Reset, _) => Operation::Reset,
            (Stage::Zeroes, _) => {
                let part = Range {
                    block: self.range.block + self.done,
                    blocks: self.part,
                };
                return (Operation::Write, part);
            }
            (Stage::Main, Op::Read) => Operation::Read,
            (Stage::Main, Op::Write | Op::Flush) => Operation::Write,
            (Stage::Main, Op::WriteZeroes { .. }) => Operation::WriteZeroes,
            (Stage::Main, Op::Deallocate) => Operation::Unmap,
            (Stage::Main, Op::CompareAndWrite) => Operation::CompareAndWrite,
        };
        (operation, self.range)
    }

    /// What an error of the present operation is an error of.
    pub(crate) fn errs_as(&self) -> Op {
        match self.stage {
            Stage::Flush | Stage::Reset => Op::Flush,
            Stage::Main | Stage::Zeroes => self.op,
        }
    }

    /// The present operation has ended well.
    pub(crate) fn succeeded(mut self, abilities: &Abilities, zeroes: Option<&IoBuf>) -> Next {
        if self.stage == Stage::Zeroes {
            self.done += self.part;
            if self.done < self.range.blocks {
                self.next_zeroes(abilities, zeroes);
                return Next::Continue(self);
            }
            self.zeroes = None;
        }
        if self.stage != Stage::Flush && self.fua && abilities.write_cache && abilities.flush {
            self.stage = Stage::Flush;
            return Next::Continue(self);
        }
        self.finish(Ok(()))
    }

    /// It is over, and its segments go back.
    pub(crate) fn finish(self, result: Result<(), IoError>) -> Next {
        let lasts = if self.op.is_modifying() && !self.fua {
            Lasts::Flushed
        } else {
            Lasts::Yes
        };
        let completion = Completion {
            token: self.token,
            result,
            data: self.data,
        };
        Next::Finish(self.op, lasts, completion)
    }

    fn next_zeroes(&mut self, abilities: &Abilities, zeroes: Option<&IoBuf>) {
        let block_bytes = u64::from(abilities.block_bytes);
        let left_bytes = (self.range.blocks - self.done).saturating_mul(block_bytes);
        self.zeroes = zeroes.map(|zeroes| {
            let bytes = usize::try_from(left_bytes).unwrap_or(usize::MAX);
            zeroes.slice(0..bytes.min(zeroes.len()))
        });
        let bytes = self.zeroes.as_ref().map_or(0, |zeroes| zeroes.len() as u64);
        self.part = bytes / block_bytes;
    }
}
