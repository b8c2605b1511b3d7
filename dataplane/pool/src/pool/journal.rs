//! Group commit: records that wait, one group on its way, and what happens when it is durable.
//!
//! The state changes when a group is durable and not before. There is one group at a time, so records of a group see in the
//! state everything that was committed before it.

use std::collections::VecDeque;

use bowline_block::{Completion, Device, IoBuf, IoError, Op};

use super::PoolEvent;
use super::drive::{Access, Tag};
use super::engine::Engine;
use super::piece::Stage;
use super::work::Fresh;
use crate::format::codec::{RecordReader, WriteError};
use crate::format::journal::{GroupWriter, Ring};
use crate::format::record::{NONE, Numbers, Record};
use crate::map::Tolerance;

/// Something that is to be recorded.
pub(super) enum Change {
    /// A physical extent for a logical one, whole.
    Map {
        volume: u32,
        born: u32,
        logical: u32,
        physical: u32,
    },
    /// Zeroes, whatever is older.
    Hole {
        volume: u32,
        born: u32,
        logical: u32,
    },
    /// Nothing any more.
    Unmap {
        volume: u32,
        born: u32,
        logical: u32,
    },
    /// The chunks of the work's pieces that are ready when the group is made.
    Bits {
        work: u32,
    },
    Reserve {
        physical: u32,
        count: u32,
    },
    Clean {
        physical: u32,
        count: u32,
    },
    /// The checksums of a group of extents on the drive may be out of date.
    Activate {
        group: u32,
    },
    /// They are right.
    Retire {
        group: u32,
    },
    /// Records that belong together, as bytes.
    Encoded(Box<[u8]>),
}

/// Who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    Piece(u32),
    /// The work whose target is being mapped.
    Fresh(u32),
    /// The work whose pieces' chunks are recorded.
    Bits(u32),
    Reserve,
    Clean,
    Operation,
    Collector,
    /// Those who want to change a group's checksums.
    Activated(u32),
    Retired(u32),
    /// Nobody: the pool is being closed.
    Closing,
}

/// The journal as it is written.
pub(super) struct Journal {
    ring: Ring,
    offset: u64,
    writer: GroupWriter,
    /// First sector that recovery would replay: what is before may be overwritten.
    pub(super) replay_from: u64,
    /// Where the next group goes.
    next: u64,
    /// Where the next group goes when the one on its way is durable and applied.
    applied: u64,
    queue: VecDeque<(Change, Waiter)>,
    /// Of the group on its way.
    waiters: Vec<Waiter>,
    is_writing: bool,
    buffer: Option<IoBuf>,
    has_failed: bool,
    /// Holes in the queue and on their way.
    pub(super) holes: u32,
    /// Those on their way.
    holes_sealed: u32,
    /// Groups written since the pool was opened.
    pub(super) groups: u64,
}

impl Journal {
    pub(super) fn new(
        ring: Ring,
        offset: u64,
        writer: GroupWriter,
        (replay_from, next): (u64, u64),
        buffer: IoBuf,
    ) -> Self {
        Self {
            ring,
            offset,
            writer,
            replay_from,
            next,
            applied: next,
            queue: VecDeque::new(),
            waiters: Vec::new(),
            is_writing: false,
            buffer: Some(buffer),
            has_failed: false,
            holes: 0,
            holes_sealed: 0,
            groups: 0,
        }
    }

    /// Has a change recorded with the next group that has room for it.
    pub(super) fn want(&mut self, change: Change, waiter: Waiter) {
        self.holes += holes_of(&change);
        self.queue.push_back((change, waiter));
    }

    /// Nothing is recorded any more.
    pub(super) const fn give_up(&mut self) {
        self.has_failed = true;
    }

    /// A journal write has failed: what is in the journal is not known, so nothing is recorded any more.
    pub(super) const fn has_failed(&self) -> bool {
        self.has_failed
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.is_writing
    }

    /// Whether there is something that a poll would write.
    pub(super) fn wants_seal(&self) -> bool {
        !self.queue.is_empty() && !self.is_writing && (self.has_failed || self.has_room())
    }

    /// Bytes of records that a group has room for.
    pub(super) const fn bytes_max(&self) -> usize {
        self.writer.bytes_max()
    }

    /// Whether a group of any length has room.
    fn has_room(&self) -> bool {
        let sectors = self.ring.group_sectors_max();
        self.ring.has_room(self.replay_from, self.next, sectors)
    }

    /// Whether so much is taken that a checkpoint is due.
    pub(super) fn is_half_full(&self) -> bool {
        self.ring.used(self.replay_from, self.next) >= self.ring.sectors() / 2
    }

    /// The records of the last group.
    pub(super) fn records(&self) -> &[u8] {
        self.writer.records()
    }

    /// The sequence of the first group that the state does not show yet.
    pub(super) const fn applied(&self) -> u64 {
        self.applied
    }
}

impl<D: Device> Engine<D> {
    /// Makes a group of what waits and writes it, unless one is on its way. Returns whether it did.
    pub(super) fn seal(&mut self) -> bool {
        if self.journal.is_writing || self.journal.queue.is_empty() {
            return false;
        }
        if self.journal.has_failed {
            self.refuse_queue();
            return true;
        }
        if !self.journal.has_room() {
            // The checkpoint that is under way, or that begins now, makes room.
            return false;
        }
        self.journal.writer.clear();
        while let Some((change, waiter)) = self.journal.queue.pop_front() {
            if self.record(&change).is_err() {
                self.journal.queue.push_front((change, waiter));
                break;
            }
            self.journal.holes_sealed += holes_of(&change);
            self.journal.waiters.push(waiter);
        }
        if self.journal.waiters.is_empty() {
            // The first does not fit into an empty group. Whoever made it should have asked.
            if let Some((_, waiter)) = self.journal.queue.pop_front() {
                self.tell(waiter, false);
            }
            return true;
        }
        if self.journal.writer.is_empty() {
            // Nothing of it is left to be said.
            self.tell_all(true);
            return true;
        }
        self.write_group();
        true
    }

    fn write_group(&mut self) {
        let journal = &mut self.journal;
        let Some(mut buffer) = journal.buffer.take() else {
            return;
        };
        let sealed = buffer
            .as_mut()
            .and_then(|out| journal.writer.seal(journal.next, out).ok());
        let Some(sealed) = sealed else {
            debug_assert!(false, "a group is longer than its buffer");
            journal.buffer = Some(buffer);
            journal.has_failed = true;
            return self.tell_all(false);
        };
        journal.is_writing = true;
        journal.groups += 1;
        journal.next = sealed.next;
        let access = Access {
            op: Op::Write,
            offset: journal.offset + sealed.offset,
            len: u64::try_from(sealed.bytes).unwrap_or(0),
            fua: self.drive.is_volatile(),
            data: buffer.slice(0..sealed.bytes).into(),
        };
        journal.buffer = Some(buffer);
        self.drive.submit(access, Tag::Group);
    }

    /// The drive has written a group, or not.
    pub(super) fn group_answered(&mut self, completion: Completion) {
        let Completion { result, data, .. } = completion;
        drop(data);
        self.journal.is_writing = false;
        let is_applied = match result {
            Ok(()) => self.apply_group(),
            Err(error) => {
                self.doubt_group();
                self.journal_failed(error);
                false
            }
        };
        self.tell_all(is_applied);
    }

    /// Nothing is recorded any more.
    pub(super) fn journal_failed(&mut self, error: IoError) {
        if error == IoError::Vanished {
            self.vanish();
        }
        if !self.journal.has_failed {
            self.journal.has_failed = true;
            tracing::error!(%error, pool = %self.superblock.uuid,
                "the journal could not be written: only what needs no change of the map goes on, until the pool is opened again");
            self.tell_event(PoolEvent::JournalFailed(error));
        }
    }

    /// The group is durable. Whether the state shows it now.
    fn apply_group(&mut self) -> bool {
        for record in RecordReader::new(self.journal.writer.records()) {
            let applied = match record {
                Ok(record) => self
                    .state
                    .apply(&record, Tolerance::Strict)
                    .map_err(|damage| damage.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(damage) = applied {
                // A fault of this program. What is on the drive is to be looked at before anything else is written.
                tracing::error!(damage, pool = %self.superblock.uuid, "a record contradicts the map");
                self.journal.has_failed = true;
                self.tell_event(PoolEvent::JournalFailed(IoError::Internal));
                for port in self.ports.iter_mut() {
                    port.vanish();
                }
                return false;
            }
        }
        self.journal.applied = self.journal.next;
        for at in 0..self.journal.waiters.len() {
            if let Waiter::Fresh(work) | Waiter::Bits(work) = self.journal.waiters[at] {
                self.look_for_target(work);
            }
        }
        self.cleaner.look_for_freed();
        self.watch_use();
        true
    }

    fn tell_all(&mut self, is_durable: bool) {
        // From here on the state counts them.
        self.journal.holes -= std::mem::take(&mut self.journal.holes_sealed);
        let mut waiters = std::mem::take(&mut self.journal.waiters);
        for waiter in waiters.drain(..) {
            self.tell(waiter, is_durable);
        }
        self.journal.waiters = waiters;
    }

    fn refuse_queue(&mut self) {
        while let Some((_, waiter)) = self.journal.queue.pop_front() {
            self.tell(waiter, false);
        }
    }

    fn tell(&mut self, waiter: Waiter, is_durable: bool) {
        let result = if is_durable {
            Ok(())
        } else {
            Err(IoError::MediaWrite)
        };
        match waiter {
            Waiter::Piece(piece) => self.end_piece(piece, result),
            Waiter::Fresh(work) => self.fresh_recorded(work, result),
            Waiter::Bits(work) => self.bits_recorded(work, result),
            Waiter::Reserve => self.reserved(),
            Waiter::Clean => self.clean_recorded(),
            Waiter::Operation => self.operation_recorded(is_durable),
            Waiter::Collector => self.collected(is_durable),
            Waiter::Activated(group) => self.activated(group, is_durable),
            Waiter::Retired(group) => self.retired(group, is_durable),
            Waiter::Closing => {}
        }
    }

    /// The record that maps a clean extent is durable, or refused.
    fn fresh_recorded(&mut self, at: u32, result: Result<(), IoError>) {
        let Some(work) = self.works.get_mut(at) else {
            return;
        };
        work.fresh = if result.is_ok() {
            Fresh::Durable
        } else {
            Fresh::Failed
        };
        let active: Vec<u32> = work.active.iter().map(|(piece, _)| *piece).collect();
        if active.is_empty() {
            return self.end_work(at);
        }
        for piece in active {
            if self
                .pieces
                .get(piece)
                .is_some_and(|it| it.stage == Stage::FreshWritten)
            {
                self.end_piece(piece, result);
            }
        }
    }

    fn bits_recorded(&mut self, at: u32, result: Result<(), IoError>) {
        if let Some(work) = self.works.get_mut(at)
            && result.is_err()
        {
            work.is_queued = false;
        }
        let Some(work) = self.works.get(at) else {
            return;
        };
        let is_recording = |piece: &u32| {
            let stage = self.pieces.get(*piece).map(|piece| piece.stage);
            stage == Some(Stage::Recording)
                || result.is_err() && matches!(stage, Some(Stage::Ready { .. }))
        };
        let active = work.active.iter().map(|(piece, _)| *piece);
        let ended: Vec<u32> = active.filter(is_recording).collect();
        let key = work.key;
        for piece in ended {
            self.end_piece(piece, result);
        }
        self.watch_depth(key);
    }

    /// Puts a change into the group.
    fn record(&mut self, change: &Change) -> Result<(), WriteError> {
        let writer = &mut self.journal.writer;
        match *change {
            Change::Map {
                volume,
                born,
                logical,
                physical,
            } => writer.push(&Record::Map {
                volume,
                born,
                logical,
                physical: Numbers::Native(&[physical]),
            }),
            Change::Hole {
                volume,
                born,
                logical,
            } => writer.push(&Record::Map {
                volume,
                born,
                logical,
                physical: Numbers::Native(&[NONE]),
            }),
            Change::Unmap {
                volume,
                born,
                logical,
            } => writer.push(&Record::Unmap {
                volume,
                born,
                logical,
                count: 1,
            }),
            Change::Reserve { physical, count } => {
                writer.push(&Record::Reserve { physical, count })
            }
            Change::Clean { physical, count } => writer.push(&Record::Clean { physical, count }),
            Change::Bits { work } => self.record_bits(work),
            Change::Activate { group } => {
                let extents: Vec<u32> = self.sums.extents(group).collect();
                let physical = Numbers::Native(&extents);
                writer.push(&Record::Activate { physical })
            }
            Change::Retire { group } => {
                let extents: Vec<u32> = self.sums.extents(group).collect();
                let physical = Numbers::Native(&extents);
                writer.push(&Record::Retire { physical })
            }
            Change::Encoded(ref bytes) => {
                let room = self.journal.bytes_max() - self.journal.writer.records().len();
                if bytes.len() > room {
                    return Err(WriteError::Full);
                }
                for record in RecordReader::new(bytes).flatten() {
                    self.journal.writer.push(&record)?;
                }
                Ok(())
            }
        }
    }

    /// The version of a work's extent, with what its ready pieces have written and without what they take away.
    fn record_bits(&mut self, at: u32) -> Result<(), WriteError> {
        let Some(work) = self.works.get(at) else {
            return Ok(());
        };
        let (key, target, covers) = (work.key, work.target, work.covers);
        let own = self.own(key).physical();
        let Some(physical) = own.or(target) else {
            return self.bits_taken(at);
        };
        let mut bitmap = std::mem::take(&mut self.bitmap);
        bitmap.fill(0);
        if covers {
            // It is zero where nobody has written, and hides what the hole has hidden.
            (0..self.shape.chunk_count()).for_each(|chunk| set_bit(&mut bitmap, chunk, true));
        }
        if own.is_some() {
            self.state.copy_bitmap(physical, &mut bitmap);
        }
        for (piece, _) in &work.active {
            if let Some(piece) = self.pieces.get(*piece)
                && let Stage::Ready { is_clear } = piece.stage
            {
                for chunk in self.shape.chunks(piece.start, piece.len) {
                    set_bit(&mut bitmap, chunk, !is_clear);
                }
            }
        }
        let (volume, logical) = (key.0.number(), key.1);
        let born = self.state.born(key.0, key.1);
        let count: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
        let record = if count == self.shape.chunk_count() {
            Record::Map {
                volume,
                born,
                logical,
                physical: Numbers::Native(&[physical]),
            }
        } else if count == 0 {
            // Only zeroes take chunks away: they are alone with the extent, and nothing older shows.
            Record::Unmap {
                volume,
                born,
                logical,
                count: 1,
            }
        } else {
            Record::MapPart {
                volume,
                born,
                logical,
                physical,
                bitmap: &bitmap,
            }
        };
        let written = self.journal.writer.push(&record);
        self.bitmap = bitmap;
        written?;
        self.bits_taken(at)
    }

    /// The work's ready pieces are in the group.
    fn bits_taken(&mut self, at: u32) -> Result<(), WriteError> {
        if let Some(work) = self.works.get_mut(at) {
            work.is_queued = false;
            for (piece, _) in &work.active {
                if let Some(piece) = self.pieces.get_mut(*piece)
                    && matches!(piece.stage, Stage::Ready { .. })
                {
                    piece.stage = Stage::Recording;
                }
            }
        }
        Ok(())
    }
}

/// How many holes a change makes at most.
fn holes_of(change: &Change) -> u32 {
    let is_hole = |record: &Record<'_>| matches!(record, Record::Map { physical, .. } if physical.iter().all(|it| it == NONE));
    match change {
        Change::Hole { .. } => 1,
        Change::Encoded(bytes) => {
            let records = RecordReader::new(bytes).flatten();
            let holes = records.filter(is_hole).count();
            u32::try_from(holes).unwrap_or(u32::MAX)
        }
        _ => 0,
    }
}

fn set_bit(bitmap: &mut [u8], chunk: u32, is_set: bool) {
    if let Some(byte) = bitmap.get_mut((chunk / 8) as usize) {
        let bit = 1 << (chunk % 8);
        *byte = if is_set { *byte | bit } else { *byte & !bit };
    }
}
