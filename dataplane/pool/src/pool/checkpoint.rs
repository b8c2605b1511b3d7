//! Checkpoints: the whole state, written while the pool goes on working, so that the journal can be used again.
//!
//! A crash before both superblocks name the new checkpoint finds the old one, and with it all of the journal that it
//! needs: neither is touched before then. The frames show only what is applied, and so durable in the journal.

use bowline_block::{Completion, Device, IoBuf, IoError, Op, Segments};

use super::drive::{Access, Tag};
use super::engine::Engine;
use super::open::{OpenError, Waiting};
use super::recovery::{Progress, RecoveryPhase};
use crate::format::checkpoint::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES, FrameReader, FrameWriter};
use crate::format::codec::RecordReader;
use crate::format::layout::SUPERBLOCK_OFFSETS;
use crate::format::record::Record;
use crate::format::superblock::{CheckpointPlace, Superblock};
use crate::map::{Cursor, Emitted, State, Tolerance};

/// Checkpoints that fail one after another before the journal is given up.
const FAILURES_MAX: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Frame { is_last: bool },
    Flush,
    Superblock(usize),
}

/// A checkpoint under way.
struct Running {
    cursor: Cursor,
    place: CheckpointPlace,
    writer: FrameWriter,
    replay_from: u64,
    strict_from: u64,
    step: Step,
}

/// Writes checkpoints, one at a time.
pub(super) struct Checkpointer {
    /// Of a frame, or of a superblock. Lent to the drive while it writes.
    buffer: IoBuf,
    running: Option<Running>,
    /// Of the last checkpoint that was begun.
    number: u64,
    /// Checkpoints that counted once since the pool was opened.
    pub(super) written: u64,
    failures: u32,
}

impl Checkpointer {
    /// For the opening that has this generation. What an earlier one has begun and not ended has other numbers.
    pub(super) const fn new(buffer: IoBuf, generation: u64) -> Self {
        Self {
            buffer,
            running: None,
            number: generation << 32,
            written: 0,
            failures: 0,
        }
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.running.is_none()
    }
}

impl<D: Device> Engine<D> {
    /// Begins a checkpoint when the journal is half full. Returns whether it did.
    pub(super) fn run_checkpoint(&mut self) -> bool {
        let is_due = self.journal.is_half_full() && !self.journal.has_failed();
        if !is_due || !self.checkpointer.is_idle() {
            return false;
        }
        let area = self.superblock.checkpoint.map_or(0, |last| 1 - last.area);
        // Also after one that has failed: none of its frames is ever taken for one of this.
        self.checkpointer.number += 1;
        let number = self.checkpointer.number;
        // The group that may be on its way is not applied, and so replayed.
        let replay_from = self.journal.applied();
        let area_bytes = self.superblock.layout.checkpoints[usize::from(area)].bytes;
        self.checkpointer.running = Some(Running {
            cursor: self.state.begin_checkpoint(),
            place: CheckpointPlace {
                number,
                area,
                frames: 0,
            },
            writer: FrameWriter::new(self.superblock.uuid, number, area_bytes),
            replay_from,
            strict_from: replay_from,
            step: Step::Flush,
        });
        self.write_frame();
        true
    }

    fn write_frame(&mut self) {
        let Some(running) = &mut self.checkpointer.running else {
            return;
        };
        let frame = self.checkpointer.buffer.as_mut().and_then(|out| {
            let mut has_fitted = true;
            let mut push =
                |record: &Record<'_>| has_fitted &= running.writer.push(out, record).is_ok();
            let room = FRAME_BYTES_MAX - FRAME_HEAD_BYTES;
            let emitted = self.state.emit(&mut running.cursor, room, &mut push);
            let is_last = emitted == Emitted::All;
            let sealed = running.writer.seal(out, is_last).ok()?;
            has_fitted.then_some((is_last, sealed))
        });
        let Some((is_last, sealed)) = frame else {
            return self.checkpoint_failed(IoError::NoSpace);
        };
        running.place.frames = running.writer.frames();
        running.step = Step::Frame { is_last };
        // The frames show what is applied now, and nothing later.
        running.strict_from = self.journal.applied();
        let area = self.superblock.layout.checkpoints[usize::from(running.place.area)];
        self.write_checkpoint(area.offset + sealed.offset, sealed.bytes, false);
    }

    fn write_checkpoint(&mut self, offset: u64, bytes: usize, fua: bool) {
        let access = Access {
            op: Op::Write,
            offset,
            len: u64::try_from(bytes).unwrap_or(0),
            fua: fua && self.drive.is_volatile(),
            data: self.checkpointer.buffer.slice(0..bytes).into(),
        };
        self.drive.submit(access, Tag::Checkpoint);
    }

    /// The drive has ended a step.
    pub(super) fn checkpoint_answered(&mut self, completion: Completion) {
        let Completion { result, data, .. } = completion;
        // The buffer is ours alone again.
        drop(data);
        let Some(step) = self.checkpointer.running.as_ref().map(|it| it.step) else {
            return;
        };
        match (step, result) {
            (Step::Superblock(_), Err(error)) => self.superblock_failed(error),
            (Step::Flush, Err(error)) => {
                self.flush_failed(error);
                self.checkpoint_failed(error);
            }
            (_, Err(error)) => self.checkpoint_failed(error),
            (Step::Frame { is_last: false }, Ok(())) => self.write_frame(),
            (Step::Frame { is_last: true }, Ok(())) if self.drive.is_volatile() => {
                if let Some(running) = &mut self.checkpointer.running {
                    running.step = Step::Flush;
                }
                self.submit_flush(Tag::Checkpoint, Segments::new());
            }
            (Step::Frame { is_last: true } | Step::Flush, Ok(())) => self.write_superblock(0),
            (Step::Superblock(0), Ok(())) => self.write_superblock(1),
            (Step::Superblock(_), Ok(())) => self.end_checkpoint(),
        }
    }

    /// Names the new checkpoint, in one copy after the other: at any time one of them is whole.
    fn write_superblock(&mut self, copy: usize) {
        let Some(running) = &mut self.checkpointer.running else {
            return;
        };
        running.step = Step::Superblock(copy);
        let superblock = Superblock {
            sequence: self.superblock.sequence + 1,
            checkpoint: Some(running.place),
            replay_from: running.replay_from,
            strict_from: running.strict_from,
            ..self.superblock.clone()
        };
        let bytes = superblock.encode();
        let Some(out) = self.checkpointer.buffer.as_mut() else {
            // Somebody still looks at it: what it has is a frame.
            return self.superblock_failed(IoError::Internal);
        };
        out[..bytes.len()].copy_from_slice(&bytes);
        if copy == 1 {
            self.superblock = superblock;
        }
        self.write_checkpoint(SUPERBLOCK_OFFSETS[copy], bytes.len(), true);
    }

    /// Which checkpoint counts after a crash is not known, so both and their journals must stay.
    fn superblock_failed(&mut self, error: IoError) {
        self.checkpointer.running = None;
        self.state.end_checkpoint();
        self.journal_failed(error);
    }

    /// The checkpoint counts: the journal before it is free.
    fn end_checkpoint(&mut self) {
        if let Some(running) = self.checkpointer.running.take() {
            self.journal.replay_from = running.replay_from;
        }
        self.checkpointer.written += 1;
        self.checkpointer.failures = 0;
        self.state.end_checkpoint();
    }

    /// The older checkpoint still counts.
    fn checkpoint_failed(&mut self, error: IoError) {
        self.checkpointer.running = None;
        self.checkpointer.failures += 1;
        self.state.end_checkpoint();
        tracing::warn!(%error, pool = %self.superblock.uuid, "a checkpoint could not be written");
        if self.checkpointer.failures >= FAILURES_MAX {
            // The journal would be full sooner or later, and what needs it would wait for ever.
            self.journal_failed(error);
        }
    }
}

/// Replays the checkpoint that counts. Nothing of it is believed that is not whole.
pub(super) fn replay<D: Device>(
    drive: &mut Waiting<'_, D>,
    superblock: &Superblock,
    state: &mut State,
    progress: &mut Progress<'_>,
) -> Result<(), OpenError> {
    let Some(place) = superblock.checkpoint else {
        return Ok(());
    };
    let area = superblock.layout.checkpoints[usize::from(place.area)];
    let mut reader = FrameReader::new(superblock.uuid, place);
    let mut frame = vec![0; FRAME_BYTES_MAX];
    progress.phase(RecoveryPhase::Checkpoint, place.frames.into(), drive.now());
    let mut frames = 0;
    while let Some(offset) = reader.offset() {
        let rest = area.bytes.saturating_sub(offset);
        let room = usize::try_from(rest).map_or(FRAME_BYTES_MAX, |rest| rest.min(FRAME_BYTES_MAX));
        drive.read(area.offset + offset, &mut frame[..room])?;
        for record in RecordReader::new(reader.next_frame(&frame[..room])?.records) {
            state.apply(&record?, Tolerance::Replay)?;
        }
        frames += 1;
        progress.done(frames, drive.now());
    }
    Ok(())
}
