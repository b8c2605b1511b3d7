//! One request on its way: which system call it needs next, and what an answer means.
//!
//! ```text
//! Transfer --moved all--> finished          Transfer --short--> Transfer
//! Punch --unsupported--> ZeroRange          ZeroRange --unsupported--> ZeroWrite
//! CompareRead --equal--> CompareWrite       Punch, ZeroRange, Discard --done, FUA--> Sync
//! ```
//!
//! A call that the kernel asks to repeat is repeated, except a sync: see [`errno::sync_error`].

use bowline_block::{
    BufPool, ByteRange, Completion, Deallocate, Io, IoBuf, IoError, Op, SEGMENTS_MAX, Segments,
};
use bowline_reactor::DiskOpKind;

use crate::errno;
use crate::open::BackingKind;

/// How often a call is repeated that the kernel asks to repeat.
const RETRIES_MAX: u8 = 16;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What the backing has not refused so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    pub(crate) kind: BackingKind,
    pub(crate) deallocate: Deallocate,
    pub(crate) punch: bool,
    pub(crate) zero_range: bool,
    pub(crate) block_bytes: u32,
}

/// The buffers an engine lends to its requests.
pub(crate) struct Lent<'a> {
    /// Zeroes.
    pub(crate) zeroes: &'a IoBuf,
    /// What the running compare-and-write has read so far; its command carries it.
    pub(crate) scratch: &'a mut Option<IoBuf>,
    /// Where the scratch buffer comes from: one is always free when none is in use.
    pub(crate) pool: &'a BufPool,
}

/// One system call to make.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) kind: DiskOpKind,
    pub(crate) offset: u64,
    pub(crate) data: Segments,
}

/// What becomes of a request after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another [`Slot::command`] is to be submitted.
    Continue,
    /// It is over.
    Finish(Result<(), IoError>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Transfer,
    Punch,
    ZeroRange,
    ZeroWrite,
    Discard,
    Sync,
    CompareRead,
    CompareWrite,
}

/// A request between submission and completion.
#[derive(Debug)]
pub(crate) struct Slot {
    op: Op,
    fua: bool,
    token: u64,
    /// Order of submission.
    pub(crate) sequence: u64,
    pub(crate) range: ByteRange,
    // Empty while a command carries it.
    data: Segments,
    // Bytes by which each segment was advanced past what has been moved.
    consumed: [usize; SEGMENTS_MAX],
    // Bytes of the range that the present stage has done.
    progress: u64,
    stage: Stage,
    retries: u8,
}

impl Slot {
    /// The slot of a checked request that needs at least one system call.
    pub(crate) fn new(io: Io, range: ByteRange, sequence: u64, abilities: &Abilities) -> Self {
        let stage = match io.op {
            Op::Read | Op::Write => Stage::Transfer,
            Op::Flush => Stage::Sync,
            Op::WriteZeroes { deallocate: true } if abilities.punch => Stage::Punch,
            Op::WriteZeroes { .. } if abilities.zero_range => Stage::ZeroRange,
            Op::WriteZeroes { .. } => Stage::ZeroWrite,
            Op::Deallocate => match abilities.kind {
                BackingKind::File => Stage::Punch,
                BackingKind::BlockDevice => Stage::Discard,
            },
            Op::CompareAndWrite => Stage::CompareRead,
        };
        Self {
            op: io.op,
            fua: io.fua,
            token: io.token,
            sequence,
            range,
            data: io.data,
            consumed: [0; SEGMENTS_MAX],
            progress: 0,
            stage,
            retries: 0,
        }
    }

    pub(crate) const fn op(&self) -> Op {
        self.op
    }

    /// Whether the two may not run at the same time, so that the later one waits.
    pub(crate) fn conflicts_with(&self, other: &Self) -> bool {
        let compares = |slot: &Self| slot.op == Op::CompareAndWrite;
        match (compares(self), compares(other)) {
            (false, false) => false,
            // There is one scratch buffer.
            (true, true) => true,
            (true, false) | (false, true) => {
                self.op.is_modifying()
                    && other.op.is_modifying()
                    && self.range.overlaps(other.range)
            }
        }
    }

    /// The next system call.
    pub(crate) fn command(&mut self, lent: &mut Lent<'_>) -> Command {
        let rest = self.range.len - self.progress;
        let whole = |kind| (kind, self.range.offset, Segments::new());
        let at = self.range.offset + self.progress;
        let (kind, offset, data) = match self.stage {
            Stage::Transfer if self.op == Op::Read => (DiskOpKind::Read, at, self.data.take()),
            Stage::Transfer => (DiskOpKind::Write { dsync: self.fua }, at, self.data.take()),
            Stage::Punch => whole(DiskOpKind::Fallocate {
                mode: PUNCH,
                len: rest,
            }),
            Stage::ZeroRange => whole(DiskOpKind::Fallocate {
                mode: ZERO,
                len: rest,
            }),
            Stage::Discard => whole(DiskOpKind::Discard { len: rest }),
            Stage::Sync => whole(DiskOpKind::Fsync { data_only: true }),
            Stage::ZeroWrite => (
                DiskOpKind::Write { dsync: self.fua },
                at,
                zeroes(lent.zeroes, rest),
            ),
            Stage::CompareRead => {
                let scratch = lent.scratch.take();
                let scratch = scratch.or_else(|| lent.pool.alloc(clamp(self.range.len)));
                let rest = scratch.map(|mut buf| {
                    buf.advance(clamp(self.progress));
                    buf
                });
                (
                    DiskOpKind::Read,
                    at,
                    rest.map(Segments::from).unwrap_or_default(),
                )
            }
            Stage::CompareWrite => {
                let from = clamp(self.range.len + self.progress);
                let new = self.data.slice(from..clamp(self.range.len * 2));
                (DiskOpKind::Write { dsync: self.fua }, at, new)
            }
        };
        Command { kind, offset, data }
    }

    /// The command could not be submitted: takes its buffers back.
    pub(crate) fn take_back(&mut self, command: Command, lent: &mut Lent<'_>) {
        match self.stage {
            Stage::Transfer => self.data = command.data,
            Stage::CompareRead => self.keep_scratch(command.data, lent),
            _ => {}
        }
    }

    /// The answer to the last command: `result` is bytes moved or 0, or a negated errno.
    pub(crate) fn answer(
        &mut self,
        result: i32,
        data: Segments,
        lent: &mut Lent<'_>,
        abilities: &mut Abilities,
    ) -> Next {
        match self.stage {
            Stage::Transfer => self.data = data,
            Stage::CompareRead => self.keep_scratch(data, lent),
            _ => {}
        }
        match u32::try_from(result) {
            Ok(moved) => self.succeeded(moved, lent, abilities),
            Err(_) => self.failed(result.saturating_neg(), abilities),
        }
    }

    /// Ends the request and gives its segments back as they came.
    pub(crate) fn complete(mut self, result: Result<(), IoError>) -> Completion {
        for (buf, consumed) in self.data.iter_mut().zip(self.consumed) {
            buf.rewind(consumed);
        }
        Completion {
            token: self.token,
            result,
            data: self.data,
        }
    }

    fn succeeded(&mut self, moved: u32, lent: &Lent<'_>, abilities: &Abilities) -> Next {
        match self.stage {
            Stage::Transfer | Stage::ZeroWrite | Stage::CompareRead | Stage::CompareWrite => {
                // Direct I/O continues only at a block; the torn rest is moved again.
                let moved = u64::from(moved - moved % abilities.block_bytes);
                let moved = moved.min(self.range.len - self.progress);
                if moved == 0 {
                    // The backing ends before the geometry does: it shrank under us.
                    return Next::Finish(Err(errno::io_error(libc::EIO, self.direction())));
                }
                self.progress += moved;
                if self.stage == Stage::Transfer {
                    self.advance(clamp(moved));
                }
                if self.progress < self.range.len {
                    return Next::Continue;
                }
                if self.stage == Stage::CompareRead {
                    self.compare(lent)
                } else {
                    DONE
                }
            }
            Stage::Punch | Stage::ZeroRange | Stage::Discard if self.fua => self.enter(Stage::Sync),
            Stage::Punch | Stage::ZeroRange | Stage::Discard | Stage::Sync => DONE,
        }
    }

    fn failed(&mut self, errno: i32, abilities: &mut Abilities) -> Next {
        if self.stage == Stage::Sync {
            return Next::Finish(Err(errno::sync_error(errno)));
        }
        if errno::is_transient(errno) && self.retries < RETRIES_MAX {
            self.retries += 1;
            return Next::Continue;
        }
        if errno::is_unsupported(errno) {
            match self.stage {
                Stage::Punch if matches!(self.op, Op::WriteZeroes { .. }) => {
                    abilities.punch = false;
                    return self.enter(Stage::ZeroRange);
                }
                Stage::ZeroRange => {
                    abilities.zero_range = false;
                    return self.enter(Stage::ZeroWrite);
                }
                _ => {}
            }
        }
        Next::Finish(Err(errno::io_error(errno, self.direction())))
    }

    fn enter(&mut self, stage: Stage) -> Next {
        self.stage = stage;
        self.progress = 0;
        Next::Continue
    }

    fn compare(&mut self, lent: &Lent<'_>) -> Next {
        let Some(found) = lent.scratch.as_deref() else {
            return Next::Finish(Err(IoError::Internal));
        };
        let mut rest = found;
        for expected in self.data.pieces(0..clamp(self.range.len)) {
            let Some((piece, after)) = rest.split_at_checked(expected.len()) else {
                return Next::Finish(Err(IoError::Internal));
            };
            if piece != expected {
                return Next::Finish(Err(IoError::CompareMismatch));
            }
            rest = after;
        }
        self.enter(Stage::CompareWrite)
    }

    /// Puts the scratch buffer back, its view beginning at the range's first byte again.
    fn keep_scratch(&mut self, mut data: Segments, lent: &mut Lent<'_>) {
        if let Some(buf) = data.iter_mut().next() {
            buf.rewind(clamp(self.progress));
            *lent.scratch = Some(buf.clone());
        }
    }

    fn advance(&mut self, moved: usize) {
        let mut rest = moved;
        for (buf, consumed) in self.data.iter_mut().zip(&mut self.consumed) {
            let part = rest.min(buf.len());
            buf.advance(part);
            *consumed += part;
            rest -= part;
        }
    }

    /// The direction of the present call, which decides what an I/O error means.
    fn direction(&self) -> Op {
        if self.stage == Stage::CompareRead {
            Op::Read
        } else {
            self.op
        }
    }
}

const DONE: Next = Next::Finish(Ok(()));

/// As many zeroes as fit into one command, at most `len` bytes.
fn zeroes(buf: &IoBuf, len: u64) -> Segments {
    let mut rest = clamp(len);
    let mut data = Segments::new();
    while rest > 0 {
        let part = rest.min(buf.len());
        if data.push(buf.slice(0..part)).is_err() {
            break;
        }
        rest -= part;
    }
    data
}

fn clamp(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
