//! One piece of a request, within one extent: where it goes, and what has to be durable before it is acknowledged.
//!
//! In place: `InPlace`, done. Anything else that changes the map holds its chunks in the extent's [`Work`](super::work::Work) and goes
//! - to a clean extent that nobody mapped: `Fresh`, data and record in parallel;
//! - to chunks that were not there: (`Old`, for the rest of a chunk,) `Data`, `Ready`, `Recording`;
//! - away: `Ready` or `Recording` at once.

use bowline_block::{Completion, Device, IoBuf, IoError, Op, Segments};

use super::checksums::Home;
use super::drive::Access;
use super::engine::{Engine, Todo};
use super::journal::{Change, Waiter};
use super::shape::CHUNK_BYTES;
use super::view::{Key, Own};
use super::work::{Fresh, Work};
use crate::format::record::Checksums;
use crate::map::Reader;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// Zeroes, and what is no longer needed: it reads as zeroes too.
    Zero,
    /// Written if it holds what is expected. In place the drive does both; elsewhere it is alone with its chunk, which is
    /// read, compared and written to its new place.
    Compare,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not begun, or waiting for others.
    Waiting,
    /// Reading for a request.
    Read,
    /// Reading some of what a request wants, in whole chunks.
    Part,
    /// Writing where it is.
    InPlace,
    /// Reading the rest of its chunk.
    Old,
    /// Reading the chunk of which it is going to write a part in place, for its checksum.
    Rest,
    /// Zeroing an extent that is to cover a hole.
    Blank,
    /// Writing to chunks that are not there yet.
    Data,
    /// Its chunks are to be there, or not to be there any more (`is_clear`): it waits for a group.
    Ready { is_clear: bool },
    /// In a group.
    Recording,
    /// Writing to a clean extent; the record that maps it is on its way or durable.
    Fresh,
    /// Written to a clean extent whose record is not durable yet.
    FreshWritten,
}

/// A piece.
pub(super) struct Piece {
    /// The request that it is a piece of.
    pub(super) request: u32,
    pub(super) kind: Kind,
    /// Volume and logical extent.
    pub(super) key: Key,
    /// Within the extent.
    pub(super) start: u32,
    pub(super) len: u32,
    /// Where its bytes are in the request's payload.
    pub(super) payload: usize,
    pub(super) stage: Stage,
    pub(super) work: Option<u32>,
    /// Of the write under way, for its checksums.
    pub(super) claim: Option<u32>,
    /// What comes after [`Stage::Rest`].
    pub(super) after: Stage,
    /// How often what it has read was not what was written, or was written meanwhile.
    pub(super) doubts: u8,
    /// Bytes that the read under way is to give it.
    pub(super) part: u32,
    /// A chunk that is composed has bytes that were not compared with their checksum.
    pub(super) is_unknown: bool,
    /// A chunk that is composed and waits for its checksums.
    composed: Option<IoBuf>,
}

impl Piece {
    pub(super) const fn new(
        request: u32,
        kind: Kind,
        key: Key,
        start: u32,
        len: u32,
        payload: usize,
    ) -> Self {
        Self {
            request,
            kind,
            key,
            start,
            len,
            payload,
            stage: Stage::Waiting,
            work: None,
            claim: None,
            after: Stage::Waiting,
            doubts: 0,
            part: 0,
            is_unknown: false,
            composed: None,
        }
    }

    /// It changes only a part of a chunk.
    const fn is_within_chunk(&self) -> bool {
        !self.start.is_multiple_of(CHUNK_BYTES) || !self.len.is_multiple_of(CHUNK_BYTES)
    }
}

/// What a piece is about, copied so that the engine can be changed meanwhile.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) kind: Kind,
    pub(super) key: Key,
    pub(super) start: u32,
    pub(super) len: u32,
    pub(super) chunks: std::ops::Range<u32>,
    is_within_chunk: bool,
}

impl Task {
    /// Whether what is written elsewhere depends on what was there.
    pub(super) fn reads_old(&self) -> bool {
        self.is_within_chunk || self.kind == Kind::Compare
    }
}

impl<D: Device> Engine<D> {
    pub(super) fn task(&self, index: u32) -> Option<Task> {
        let piece = self.pieces.get(index)?;
        Some(Task {
            kind: piece.kind,
            key: piece.key,
            start: piece.start,
            len: piece.len,
            chunks: self.shape.chunks(piece.start, piece.len),
            is_within_chunk: piece.is_within_chunk(),
        })
    }

    /// Begins a piece, or begins again after it has waited: what the map says may be another thing now.
    pub(super) fn start_piece(&mut self, index: u32) {
        let Some(task) = self.task(index) else {
            return;
        };
        let volume = self.state.volume(task.key.0);
        if volume.is_none_or(|volume| volume.is_deleted) {
            // It was deleted meanwhile.
            return self.end_piece(index, Err(IoError::Vanished));
        }
        if self.is_beyond(index, &task) {
            // It became smaller meanwhile.
            return self.end_piece(index, Err(IoError::OutOfRange));
        }
        if task.kind != Kind::Read && self.is_in_doubt(task.key) {
            return self.end_piece(index, Err(IoError::MediaWrite));
        }
        match task.kind {
            Kind::Write => self.start_write(index, &task),
            Kind::Zero => self.start_zero(index, &task),
            Kind::Compare => self.start_compare(index, &task),
            Kind::Read => self.read_piece(index),
        }
    }

    fn start_write(&mut self, index: u32, task: &Task) {
        if let Some(physical) = self.place_of(task.key, task.chunks.clone()) {
            return self.write_at(index, physical, Stage::InPlace);
        }
        if let Some(work) = self.enter(index, task) {
            self.write_elsewhere(index, task, work);
        }
    }

    fn start_compare(&mut self, index: u32, task: &Task) {
        if task.chunks.len() > 1 && self.place_of(task.key, task.chunks.clone()).is_none() {
            return self.end_piece(index, Err(IoError::Unsupported));
        }
        self.start_write(index, task);
    }

    fn start_zero(&mut self, index: u32, task: &Task) {
        let is_thick = self.is_thick(task.key);
        let is_whole = self.is_whole(task) && !is_thick;
        let has_own = self.own(task.key) != Own::None;
        if self.is_zero(task.key, task.chunks.clone()) && !(is_whole && has_own) {
            // What it reads as is durable already.
            return self.end_piece(index, Ok(()));
        }
        let shows_older = self.shows_older(task.key, task.chunks.clone());
        let stays = task.is_within_chunk || shows_older || is_thick;
        if !is_whole
            && stays
            && let Some(physical) = self.place_of(task.key, task.chunks.clone())
        {
            return self.write_at(index, physical, Stage::InPlace);
        }
        let Some(work) = self.enter(index, task) else {
            return;
        };
        if is_whole && (!shows_older || self.state.holes_left() > self.journal.holes) {
            self.unmap(index, task, shows_older);
        } else if stays {
            self.write_elsewhere(index, task, work);
        } else {
            self.become_ready(index, true);
        }
    }

    /// Whether the piece is not within what its handle has.
    fn is_beyond(&self, index: u32, task: &Task) -> bool {
        let piece = self.pieces.get(index);
        let request = piece.and_then(|piece| self.requests.get(piece.request));
        let port = request.and_then(|request| self.ports.get(request.port));
        port.is_some_and(|port| {
            self.shape.end(task.key.1, task.start, task.len) > port.geometry.bytes()
        })
    }

    pub(super) fn is_thick(&self, key: Key) -> bool {
        let volume = self.state.volume(key.0);
        volume.is_some_and(|volume| volume.is_thick)
    }

    /// Whether the piece is all of its extent that the volume has. While the volume is being resized, what is beyond its
    /// end counts too: it may be written to before the record that takes the extent away is durable.
    fn is_whole(&self, task: &Task) -> bool {
        let end = self.shape.end(task.key.1, task.start, task.len);
        let volume = self.state.volume(task.key.0);
        let is_resized = self.operations.resizing() == Some(task.key.0.number());
        task.start == 0
            && (task.len == self.shape.extent_bytes()
                || !is_resized && volume.is_none_or(|volume| end >= volume.bytes))
    }

    /// Takes a whole extent away. The record alone does it: what the extent held is neither readable nor allocated
    /// again before the record is durable.
    fn unmap(&mut self, index: u32, task: &Task, shows_older: bool) {
        let (volume, logical) = (task.key.0.number(), task.key.1);
        let born = self.state.born(task.key.0, logical);
        let change = if shows_older {
            Change::Hole {
                volume,
                born,
                logical,
            }
        } else {
            Change::Unmap {
                volume,
                born,
                logical,
            }
        };
        self.set_stage(index, Stage::Recording);
        self.journal.want(change, Waiter::Piece(index));
    }

    /// Writes to where there is nothing of this volume yet. The piece holds its chunks.
    pub(super) fn write_elsewhere(&mut self, index: u32, task: &Task, work: u32) {
        let Some((fresh, target)) = self.works.get(work).map(|it| (it.fresh, it.target)) else {
            return;
        };
        let is_compare = task.kind == Kind::Compare;
        if let (Fresh::Pending | Fresh::Durable, Some(physical)) = (fresh, target) {
            if is_compare {
                // What is there will be known when the extent is mapped.
                self.leave_work(index);
                return self.todo.push_back(Todo::Piece(index));
            }
            return self.write_at(index, physical, Stage::Fresh);
        }
        if let Some(physical) = self.own(task.key).physical().or(target) {
            return self.write_target(index, task, work, physical);
        }
        if !self.may_take(task.key) {
            return self.wait_or_fail(index, task.key);
        }
        let all = 0..self.shape.chunk_count();
        // A comparison must not be joined by writes to an extent that is being mapped.
        let is_zero = !is_compare && self.is_zero(task.key, all);
        if is_zero && self.wants_reserve() {
            // Clean extents there are, but a crash must not find them believed clean once they are written to.
            return self.wait_for_space(index);
        }
        let mut home = Home::Nowhere;
        if is_zero {
            home = self.take_home(index, task.key, true);
        }
        if let Home::Here(physical) = home {
            self.set_target(work, physical, Fresh::Pending);
            let (volume, logical) = (task.key.0.number(), task.key.1);
            let born = self.state.born(task.key.0, logical);
            let change = Change::Map {
                volume,
                born,
                logical,
                physical,
            };
            self.journal.want(change, Waiter::Fresh(work));
            // In parallel: after a crash between the two the extent is mapped and zero, or not mapped.
            return self.write_at(index, physical, Stage::Fresh);
        }
        if matches!(home, Home::Nowhere) {
            home = self.take_home(index, task.key, false);
        }
        match home {
            Home::Here(physical) => {
                self.set_target(work, physical, Fresh::No);
                self.write_target(index, task, work, physical);
            }
            Home::Later => self.set_stage(index, Stage::Waiting),
            Home::Nowhere => self.wait_or_fail(index, task.key),
        }
    }

    /// Writes to the extent that is, or is to be, the volume's own. What covers a hole is zeroed first: the hole hides what
    /// is older, and is not there any more then.
    fn write_target(&mut self, index: u32, task: &Task, work: u32, physical: u32) {
        let is_bare = |it: &Work| it.covers && !it.is_blank;
        if !self.works.get(work).is_some_and(is_bare) {
            return self.write_part(index, task, physical);
        }
        let (op, len) = (
            Op::WriteZeroes { deallocate: false },
            self.shape.extent_bytes(),
        );
        let fua = self.drive.is_volatile();
        let access = self
            .shape
            .access(op, physical, 0, len, fua, Segments::new());
        self.submit_write(index, Stage::Blank, physical, (0, len), access);
    }

    /// The extent that is to cover a hole is zero.
    fn blanked(&mut self, index: u32) {
        let task = self.task(index);
        let work = self.pieces.get(index).and_then(|piece| piece.work);
        let (Some(task), Some(at)) = (task, work) else {
            return;
        };
        if let Some(work) = self.works.get_mut(at) {
            work.is_blank = true;
        }
        self.write_elsewhere(index, &task, at);
    }

    fn wait_or_fail(&mut self, index: u32, key: Key) {
        if self.may_get_space(key) {
            self.wait_for_space(index);
        } else {
            self.end_piece(index, Err(IoError::NoSpace));
        }
    }

    /// Writes to chunks of `physical` that no version shows. Stable before the record says that they are there: what else
    /// was in them must never be read.
    fn write_part(&mut self, index: u32, task: &Task, physical: u32) {
        if !task.is_within_chunk && task.kind != Kind::Compare {
            return self.write_at(index, physical, Stage::Data);
        }
        let composed = self.pieces.get_mut(index).and_then(|it| it.composed.take());
        if let Some(chunk) = composed {
            return self.write_chunk(index, chunk, task.chunks.start * CHUNK_BYTES, physical);
        }
        let Some((mut buf, _)) = self.bounce(CHUNK_BYTES) else {
            return self.wait_for_space(index);
        };
        let chunk_start = task.chunks.start * CHUNK_BYTES;
        let reader = Reader::Head(task.key.0);
        match self
            .run_at(reader, task.key.1, (chunk_start, CHUNK_BYTES))
            .0
        {
            None => {
                if let Some(bytes) = buf.as_mut() {
                    bytes.fill(0);
                }
                self.write_composed(index, buf, physical);
            }
            Some(older) => {
                let access =
                    self.shape
                        .access(Op::Read, older, chunk_start, CHUNK_BYTES, false, buf.into());
                self.read_old(index, task, older, access);
            }
        }
    }

    /// Reads the rest of a chunk. Where the new chunk gets a checksum, the old one is compared with its own first.
    fn read_old(&mut self, index: u32, task: &Task, older: u32, access: Access) {
        if !self.has_sums(task.key.0) {
            return self.submit_for(index, Stage::Old, access);
        }
        if !self.verifies(Checksums::Verify, older) || self.is_unknown(older) {
            if let Some(piece) = self.pieces.get_mut(index) {
                piece.is_unknown = true;
            }
            return self.submit_for(index, Stage::Old, access);
        }
        let has_doubts = self.pieces.get(index).is_some_and(|it| it.doubts > 0);
        if has_doubts && !self.has_slots(older, index) {
            return self.set_stage(index, Stage::Waiting);
        }
        self.check_piece(
            index,
            Stage::Old,
            older,
            access,
            task.chunks.start * CHUNK_BYTES,
        );
    }

    /// Writes a chunk: `buf` with the piece's bytes over it.
    fn write_composed(&mut self, index: u32, mut buf: IoBuf, physical: u32) {
        let Some(start) = self.pieces.get(index).map(|piece| piece.start) else {
            return;
        };
        if !self.is_expected(index, &buf) {
            return self.end_piece(index, Err(IoError::CompareMismatch));
        }
        if !self.overlay(index, &mut buf) {
            return self.end_piece(index, Err(IoError::Internal));
        }
        self.write_chunk(index, buf, start - start % CHUNK_BYTES, physical);
    }

    /// Whether a chunk has what a piece compares it with, if it does.
    fn is_expected(&self, index: u32, chunk: &IoBuf) -> bool {
        let compared = self.pieces.get(index).filter(|it| it.kind == Kind::Compare);
        compared.is_none_or(|piece| {
            let at = usize::try_from(piece.start % CHUNK_BYTES).unwrap_or(0);
            let len = usize::try_from(piece.len).unwrap_or(0);
            let expected = self.compared(piece).slice(0..len);
            let place = chunk.as_slice().get(at..at + len);
            place.is_some_and(|place| is_same(place, &expected))
        })
    }

    /// Lays a piece's bytes over its chunk. False if that is not possible.
    pub(super) fn overlay(&self, index: u32, chunk: &mut IoBuf) -> bool {
        let Some(piece) = self.pieces.get(index) else {
            return false;
        };
        let at = usize::try_from(piece.start % CHUNK_BYTES).unwrap_or(0);
        let len = usize::try_from(piece.len).unwrap_or(0);
        let data = self.payload(piece);
        let Some(place) = chunk.as_mut().and_then(|bytes| bytes.get_mut(at..at + len)) else {
            return false;
        };
        if data.is_empty() {
            place.fill(0);
        } else {
            let mut done = 0;
            for bytes in data.pieces(0..len) {
                place[done..done + bytes.len()].copy_from_slice(bytes);
                done += bytes.len();
            }
        }
        true
    }

    /// Writes a chunk that was composed; while that has to wait, the piece keeps it.
    fn write_chunk(&mut self, index: u32, chunk: IoBuf, start: u32, physical: u32) {
        let fua = self.drive.is_volatile();
        let len = chunk.len();
        let data = chunk.slice(0..len).into();
        let access = self
            .shape
            .access(Op::Write, physical, start, CHUNK_BYTES, fua, data);
        self.submit_write(index, Stage::Data, physical, (start, CHUNK_BYTES), access);
        if let Some(piece) = self.pieces.get_mut(index)
            && piece.stage == Stage::Waiting
        {
            piece.composed = Some(chunk);
        }
    }

    /// Writes the piece's bytes to their place in `physical`.
    pub(super) fn write_at(&mut self, index: u32, physical: u32, stage: Stage) {
        let range = self.pieces.get(index).map(|it| (it.start, it.len));
        let access = self.piece_access(index, physical, stage);
        if let (Some(range), Some(access)) = (range, access) {
            self.submit_write(index, stage, physical, range, access);
        }
    }

    /// The access that writes the piece's bytes to their place in `physical`.
    pub(super) fn piece_access(&self, index: u32, physical: u32, stage: Stage) -> Option<Access> {
        let piece = self.pieces.get(index)?;
        let op = match piece.kind {
            Kind::Zero => Op::WriteZeroes { deallocate: false },
            Kind::Read | Kind::Write => Op::Write,
            Kind::Compare => Op::CompareAndWrite,
        };
        let fua = stage == Stage::Data || self.wants_fua(piece);
        let fua = fua && self.drive.is_volatile();
        let mut data = self.payload(piece);
        if piece.kind == Kind::Compare {
            data = self.compared(piece);
        }
        let (start, len) = (piece.start, piece.len);
        Some(self.shape.access(op, physical, start, len, fua, data))
    }

    /// Whether the request must be stable when it completes.
    fn wants_fua(&self, piece: &Piece) -> bool {
        let request = self.requests.get(piece.request);
        request.is_none_or(|request| {
            let port = self.ports.get(request.port);
            request.io.fua || port.is_none_or(|port| port.is_media)
        })
    }

    pub(super) fn submit_for(&mut self, index: u32, stage: Stage, access: Access) {
        self.set_stage(index, stage);
        self.drive.submit_piece(access, index);
    }

    pub(super) fn set_stage(&mut self, index: u32, stage: Stage) {
        if let Some(piece) = self.pieces.get_mut(index) {
            piece.stage = stage;
        }
    }

    /// The drive has ended a piece's access.
    pub(super) fn piece_answered(&mut self, index: u32, completion: Completion) {
        let Some(piece) = self.pieces.get_mut(index) else {
            return;
        };
        let (stage, request, payload) = (piece.stage, piece.request, piece.payload);
        let Completion {
            result, mut data, ..
        } = completion;
        if stage == Stage::Rest {
            self.rest_read(index, result, data);
            return self.buffer_came_back();
        }
        if stage == Stage::InPlace && piece.kind == Kind::Compare {
            // The second half is what was written.
            let len = data.len_bytes();
            data = data.slice(len / 2..len);
        }
        if let Some(claim) = piece.claim.take() {
            self.settle(claim, result, &data);
        }
        match (stage, result) {
            (Stage::Read, Ok(())) => {
                let is_delivered = self.deliver(request, payload, &data);
                let result = if is_delivered {
                    Ok(())
                } else {
                    Err(IoError::Internal)
                };
                self.end_piece(index, result);
            }
            (Stage::Part, Ok(())) => self.part_read(index, &data),
            (Stage::Old, Ok(())) => self.old_read(index, data),
            (stage, result) => self.piece_written(index, stage, result),
        }
        self.buffer_came_back();
    }

    /// What a piece writes is written, or not.
    pub(super) fn piece_written(&mut self, index: u32, stage: Stage, result: Result<(), IoError>) {
        match (stage, result) {
            (Stage::Blank, Ok(())) => self.blanked(index),
            (Stage::Data, Ok(())) => self.become_ready(index, false),
            (Stage::Fresh, result) => self.fresh_written(index, result),
            (_, result) => self.end_piece(index, result),
        }
    }

    /// The rest of a chunk is known.
    pub(super) fn old_read(&mut self, index: u32, mut data: Segments) {
        let target = self.task(index).and_then(|task| {
            let work = self.pieces.get(index)?.work?;
            let own = self.own(task.key).physical();
            own.or(self.works.get(work)?.target)
        });
        match (data.pop(), target) {
            (Some(buf), Some(physical)) => self.write_composed(index, buf, physical),
            _ => self.end_piece(index, Err(IoError::Internal)),
        }
    }

    /// The piece's chunks are to change in the map with the next group.
    fn become_ready(&mut self, index: u32, is_clear: bool) {
        self.set_stage(index, Stage::Ready { is_clear });
        let work = self.pieces.get(index).and_then(|piece| piece.work);
        let Some((at, work)) = work.and_then(|at| Some((at, self.works.get_mut(at)?))) else {
            return;
        };
        if !work.is_queued {
            work.is_queued = true;
            self.journal
                .want(Change::Bits { work: at }, Waiter::Bits(at));
        }
    }

    /// Data for a clean extent is written, or not: the extent is mapped all the same.
    fn fresh_written(&mut self, index: u32, result: Result<(), IoError>) {
        let work = self.pieces.get(index).and_then(|piece| piece.work);
        let fresh = work
            .and_then(|work| self.works.get(work))
            .map(|it| it.fresh);
        match (fresh, result) {
            (Some(Fresh::Pending), Ok(())) => self.set_stage(index, Stage::FreshWritten),
            (Some(Fresh::Failed), Ok(())) => self.end_piece(index, Err(IoError::MediaWrite)),
            (_, result) => self.end_piece(index, result),
        }
    }

    /// Ends a piece, and gives its chunks to others.
    pub(super) fn end_piece(&mut self, index: u32, result: Result<(), IoError>) {
        let Some(piece) = self.pieces.remove(index) else {
            return;
        };
        if let Some(work) = piece.work {
            self.leave(work, index, piece.key.0.number());
        }
        self.piece_ended(piece.request, result);
    }

    /// The piece is tried again when there is more room. Meanwhile it holds nothing that whoever makes room may need.
    fn wait_for_space(&mut self, index: u32) {
        self.leave_work(index);
        self.homeless.push_back(index);
    }

    /// The piece gives its chunks back, to begin again later.
    fn leave_work(&mut self, index: u32) {
        let Some(piece) = self.pieces.get_mut(index) else {
            return;
        };
        piece.stage = Stage::Waiting;
        piece.composed = None;
        if let Some(work) = piece.work.take() {
            let volume = piece.key.0.number();
            self.leave(work, index, volume);
        }
    }

    /// Tries again what waited for room.
    pub(super) fn retry_homeless(&mut self) {
        // This is a part of every poll.
        if self.homeless.is_empty() {
            return;
        }
        self.todo.extend(self.homeless.drain(..).map(Todo::Piece));
    }

    pub(super) fn buffer_came_back(&mut self) {
        while let Some(request) = self.starved.pop_front() {
            self.todo.push_back(Todo::Request(request));
        }
    }
}

/// Whether bytes are those of the segments.
fn is_same(bytes: &[u8], segments: &Segments) -> bool {
    let mut rest = bytes;
    let is_same = segments.iter().all(|segment| {
        let (same, left) = rest.split_at(segment.len().min(rest.len()));
        rest = left;
        *same == **segment
    });
    is_same && rest.is_empty()
}
