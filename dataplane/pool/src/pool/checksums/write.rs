//! Writes to volumes with checksums: their chunks are claimed before they begin, and get their checksums when they have
//! ended.

use std::ops::Range;

use bowline_block::{Completion, Device, IoError, Op, Segments};

use super::Waiting;
use super::activity::Need;
use super::cache::Known;
use super::read::Origin;
use crate::format::pages::{slot_of, slot_of_chunk};
use crate::pool::drive::Access;
use crate::pool::engine::Engine;
use crate::pool::piece::Stage;
use crate::pool::shape::CHUNK_BYTES;
use crate::pool::view::{Key, Own};
use crate::pool::work::Fresh;

/// A write under way.
pub(in crate::pool) struct Claim {
    /// The place of the group in the cache, where it stays as long as it is written to.
    entry: u32,
    physical: u32,
    /// Within the extent.
    start: u32,
    len: u32,
    /// Whether what is written is known to be right.
    is_known: bool,
    /// Of a part of a chunk: the slot of the whole chunk with it, once that is known.
    slot: Option<u32>,
}

/// An extent for what is written.
pub(in crate::pool) enum Home {
    Here(u32),
    Nowhere,
    /// The piece goes on when the checksums are there.
    Later,
}

/// What became of the collector's claim.
pub(in crate::pool) enum Copied {
    /// It may copy. There is no claim where there are no checksums.
    Claimed(Option<u32>),
    /// It goes on when the checksums are there.
    Later,
    Refused,
}

impl<D: Device> Engine<D> {
    /// Writes in place for a handle, if the group is active and the write is of whole chunks. Else the request comes back.
    pub(in crate::pool) fn submit_claimed(
        &mut self,
        access: Access,
        (physical, start): (u32, u32),
        (port, token): (u32, u64),
    ) -> Option<Access> {
        let group = self.sums.map.group_of(physical);
        // Then it is looked at more closely.
        let has_failed = self.journal.has_failed();
        let is_active = !has_failed
            && self
                .sums
                .cache
                .entry(group)
                .is_some_and(|entry| entry.is_writable());
        let is_whole = is_aligned(start, access.len);
        let Some(len) = u32::try_from(access.len)
            .ok()
            .filter(|_| is_active && is_whole)
        else {
            return Some(access);
        };
        let Some(claim) = self.claim(physical, (start, len), true) else {
            return Some(access);
        };
        self.drive.submit_claimed(access, claim, port, token);
        None
    }

    /// A handle's write in place has ended.
    pub(in crate::pool) fn claimed_answered(
        &mut self,
        claim: u32,
        (port, token): (u32, u64),
        completion: Completion,
    ) {
        self.settle(claim, completion.result, &completion.data);
        self.complete(
            port,
            Completion {
                token,
                ..completion
            },
        );
    }

    /// Takes an extent for a new version of a volume's extent: one that is all zero, or any. Its slots say so, and the record
    /// of that is before the one that maps it.
    pub(in crate::pool) fn take_home(&mut self, index: u32, key: Key, is_zero: bool) -> Home {
        let taken = if is_zero {
            self.take_zero().map(|physical| (physical, true))
        } else {
            self.take_any()
        };
        let Some((physical, is_zero)) = taken else {
            return Home::Nowhere;
        };
        if !self.has_sums(key.0) {
            return Home::Here(physical);
        }
        let group = self.sums.map.group_of(physical);
        if self.refuses(physical) {
            self.give_home_back(physical, is_zero);
            self.end_piece(index, Err(IoError::MediaWrite));
            return Home::Later;
        }
        if !self.need(group, Need::New, Waiting::Piece(index)) {
            self.give_home_back(physical, is_zero);
            return Home::Later;
        }
        let slot = if is_zero { self.sums.zero } else { 0 };
        let map = self.sums.map;
        if let Some(entry) = self.sums.cache.entry(group) {
            for chunk in 0..self.shape.chunk_count() {
                entry.set(map.slot_in_group(physical, chunk) as usize, slot);
            }
        }
        Home::Here(physical)
    }

    /// Submits a piece's write, if the checksums allow it now; else the piece begins again when they do.
    pub(in crate::pool) fn submit_write(
        &mut self,
        index: u32,
        stage: Stage,
        physical: u32,
        (start, len): (u32, u32),
        access: Access,
    ) {
        let Some(piece) = self.pieces.get(index) else {
            return;
        };
        let key = piece.key;
        if self.has_sums(key.0) {
            let is_pending = piece
                .work
                .and_then(|work| self.works.get(work))
                .is_some_and(|work| work.fresh == Fresh::Pending);
            let need = match stage {
                // Beside chunks that its version lacks it may write to some that are there.
                Stage::Data if self.shows_any(key, physical, (start, len)) => Need::Overwrite,
                Stage::Data | Stage::Blank => Need::New,
                Stage::Fresh if is_pending => Need::New,
                _ => Need::Overwrite,
            };
            let is_known = !piece.is_unknown;
            if self.refuses(physical) || self.is_in_doubt(key) {
                return self.end_piece(index, Err(IoError::MediaWrite));
            }
            let group = self.sums.map.group_of(physical);
            if !self.need(group, need, Waiting::Piece(index)) {
                return self.set_stage(index, Stage::Waiting);
            }
            let rest = match self.wants_rest(physical, (start, len)) {
                false => None,
                true => match self.bounce(CHUNK_BYTES) {
                    Some((buffer, _)) => Some(buffer),
                    None => {
                        self.sums.roomless.push_back(Waiting::Piece(index));
                        return self.set_stage(index, Stage::Waiting);
                    }
                },
            };
            let claim = self.claim(physical, (start, len), is_known);
            if let Some(piece) = self.pieces.get_mut(index) {
                piece.claim = claim;
                piece.after = stage;
            }
            if let Some(rest) = rest {
                let start = start - start % CHUNK_BYTES;
                let access =
                    self.shape
                        .access(Op::Read, physical, start, CHUNK_BYTES, false, rest.into());
                return self.submit_for(index, Stage::Rest, access);
            }
        }
        self.submit_for(index, stage, access);
    }

    /// Whether the volume reads any of these bytes where they are.
    fn shows_any(&self, key: Key, physical: u32, (start, len): (u32, u32)) -> bool {
        match self.own(key) {
            Own::Whole(own) => own == physical,
            Own::Part(own) if own == physical => (self.shape.chunks(start, len))
                .any(|chunk| self.state.has_chunks(physical, chunk..chunk + 1)),
            Own::Part(_) | Own::None => false,
        }
    }

    /// Whether it is a part of a chunk whose checksum is known: then the rest is read first, so that it is known afterwards
    /// too. If somebody else writes the chunk just now, it will not be.
    fn wants_rest(&mut self, physical: u32, (start, len): (u32, u32)) -> bool {
        let is_one = start % CHUNK_BYTES + len <= CHUNK_BYTES;
        if !is_one || is_aligned(start, u64::from(len)) {
            return false;
        }
        let map = self.sums.map;
        let at = map.slot_in_group(physical, start / CHUNK_BYTES) as usize;
        let entry = self.sums.cache.entry(map.group_of(physical));
        entry.is_some_and(|entry| matches!(entry.known(at), Known::Slot(_)))
    }

    /// The chunk that a piece is to write a part of was read.
    pub(in crate::pool) fn rest_read(
        &mut self,
        index: u32,
        result: Result<(), IoError>,
        data: Segments,
    ) {
        let result = match result {
            Ok(()) => self.rest_compared(index, data),
            Err(error) => Err(error),
        };
        let Some(piece) = self.pieces.get_mut(index) else {
            return;
        };
        let (stage, claim) = (piece.after, piece.claim);
        let claimed = claim.and_then(|claim| self.sums.claims.get(claim));
        match (result, claimed.map(|claim| claim.physical)) {
            (Ok(()), Some(physical)) if self.has_moved(index, stage, physical) => {
                if let Some(claim) = self.pieces.get_mut(index).and_then(|it| it.claim.take()) {
                    self.settle_unchanged(claim);
                }
                self.start_piece(index);
            }
            (Ok(()), Some(physical)) => {
                if let Some(access) = self.piece_access(index, physical, stage) {
                    self.submit_for(index, stage, access);
                }
            }
            (Err(error), _) => {
                if let Some(claim) = self.pieces.get_mut(index).and_then(|it| it.claim.take()) {
                    self.settle_unchanged(claim);
                }
                self.piece_written(index, stage, Err(error));
            }
            (Ok(()), None) => self.end_piece(index, Err(IoError::Internal)),
        }
    }

    /// Whether a piece may not write to where it was to write in place any more: while it read, the extent may have been
    /// given up or have become a snapshot's. Nobody waits for a write that has not begun.
    fn has_moved(&self, index: u32, stage: Stage, physical: u32) -> bool {
        let task = self.task(index).filter(|_| stage == Stage::InPlace);
        task.is_some_and(|task| self.place_of(task.key, task.chunks) != Some(physical))
    }

    /// Compares a chunk with its checksum and computes that of the chunk with the piece's bytes.
    fn rest_compared(&mut self, index: u32, mut data: Segments) -> Result<(), IoError> {
        let piece = self.pieces.get(index).ok_or(IoError::Internal)?;
        let key = piece.claim.ok_or(IoError::Internal)?;
        let claim = self.sums.claims.get(key).ok_or(IoError::Internal)?;
        let (physical, chunk) = (claim.physical, claim.start / CHUNK_BYTES);
        let at = self.sums.map.slot_in_group(physical, chunk) as usize;
        let entry = self.sums.cache.get(claim.entry);
        let Some(expected) = entry.and_then(|entry| entry.sole_slot(at)) else {
            // Somebody else writes it too: nothing is known afterwards.
            return Ok(());
        };
        let found = slot_of_part(&data, 0);
        if found != expected {
            self.tell_mismatch(Origin::Piece(index), (physical, chunk), (expected, found));
            return Err(IoError::MediaRead);
        }
        let mut whole = data.pop().ok_or(IoError::Internal)?;
        if !self.overlay(index, &mut whole) {
            return Err(IoError::Internal);
        }
        let slot = slot_of_chunk(whole.as_slice());
        if let Some(claim) = self.sums.claims.get_mut(key) {
            claim.slot = Some(slot);
        }
        Ok(())
    }

    /// Nothing was written.
    fn settle_unchanged(&mut self, claim: u32) {
        // As a comparison that has failed: then nothing is written either.
        self.settle(claim, Err(IoError::CompareMismatch), &Segments::new());
    }

    /// Whether an extent cannot become active any more: nothing is recorded.
    fn refuses(&mut self, physical: u32) -> bool {
        let group = self.sums.map.group_of(physical);
        let entry = self.sums.cache.entry(group);
        self.journal.has_failed()
            && !entry.is_some_and(|entry| entry.is_writable())
            && !self.is_unknown(physical)
    }

    /// The slots of chunks that the collector copies. `None`: it goes on when they are known.
    pub(in crate::pool) fn slots_to_copy(
        &mut self,
        key: Key,
        from: Option<u32>,
        chunks: &Range<u32>,
    ) -> Option<Vec<u32>> {
        if !self.has_sums(key.0) {
            return Some(Vec::new());
        }
        let map = self.sums.map;
        let zero = self.sums.zero;
        let count = chunks.len();
        let Some(physical) = from else {
            return Some(vec![zero; count]);
        };
        if !self.keeps_sums(physical) || self.is_unknown(physical) {
            return Some(vec![0; count]);
        }
        let group = map.group_of(physical);
        if !self.need(group, Need::Slots, Waiting::Copy) {
            return None;
        }
        let entry = self.sums.cache.entry(group)?;
        let slot = |chunk| match entry.known(map.slot_in_group(physical, chunk) as usize) {
            Known::Slot(slot) => slot,
            Known::Nothing | Known::Busy => 0,
        };
        Some(chunks.clone().map(slot).collect())
    }

    /// Claims chunks that the collector copies to.
    pub(in crate::pool) fn claim_copy(
        &mut self,
        key: Key,
        into: u32,
        chunks: &Range<u32>,
    ) -> Copied {
        if !self.has_sums(key.0) {
            return Copied::Claimed(None);
        }
        if self.refuses(into) {
            return Copied::Refused;
        }
        let group = self.sums.map.group_of(into);
        if !self.need(group, Need::New, Waiting::Copy) {
            return Copied::Later;
        }
        let (start, end) = (chunks.start * CHUNK_BYTES, chunks.end * CHUNK_BYTES);
        Copied::Claimed(self.claim(into, (start, end - start), true))
    }

    /// The collector's copy goes on when buffers have come back.
    pub(in crate::pool) fn copy_when_there_is_room(&mut self) {
        self.sums.roomless.push_back(Waiting::Copy);
    }

    /// Chunks were copied with their slots, or not.
    pub(in crate::pool) fn settle_copy(&mut self, claim: u32, slots: Option<&[u32]>) {
        let Some(claim) = self.sums.claims.remove(claim) else {
            return;
        };
        let map = self.sums.map;
        let Some(entry) = self.sums.cache.get_mut(claim.entry) else {
            return;
        };
        entry.writes -= 1;
        for (index, chunk) in self.shape.chunks(claim.start, claim.len).enumerate() {
            let slot = slots.and_then(|slots| slots.get(index)).copied();
            let at = map.slot_in_group(claim.physical, chunk) as usize;
            entry.end(at, Some(slot.unwrap_or(0)));
        }
    }

    /// A piece's checksums are there, or may be.
    pub(super) fn resume_piece(&mut self, index: u32) {
        let Some(piece) = self.pieces.get(index) else {
            return;
        };
        match (self.task(index), piece.work) {
            (Some(task), Some(work)) => self.write_elsewhere(index, &task, work),
            _ => self.start_piece(index),
        }
    }

    /// A write begins. The group is active, or is going to be before anybody can see it.
    fn claim(&mut self, physical: u32, (start, len): (u32, u32), is_known: bool) -> Option<u32> {
        let map = self.sums.map;
        let group = map.group_of(physical);
        let at = self.sums.cache.find(group)?;
        let chunks = self.shape.chunks(start, len);
        let now = self.now;
        let entry = self.sums.cache.get_mut(at)?;
        entry.begin_write(now);
        for chunk in chunks.clone() {
            entry.begin(map.slot_in_group(physical, chunk) as usize);
        }
        if entry.watches > 0 {
            for check in self.sums.checks.iter_mut() {
                check.disturb(physical, &chunks);
            }
        }
        Some(self.sums.claims.insert(Claim {
            entry: at,
            physical,
            start,
            len,
            is_known,
            slot: None,
        }))
    }

    /// A write has ended: `data` is what was written, or nothing for zeroes.
    pub(in crate::pool) fn settle(
        &mut self,
        claim: u32,
        result: Result<(), IoError>,
        data: &Segments,
    ) {
        let Some(claim) = self.sums.claims.remove(claim) else {
            return;
        };
        let (map, zero) = (self.sums.map, self.sums.zero);
        let Some(entry) = self.sums.cache.get_mut(claim.entry) else {
            return;
        };
        entry.writes -= 1;
        let end = claim.start + claim.len;
        for chunk in self.shape.chunks(claim.start, claim.len) {
            let chunk_start = chunk * CHUNK_BYTES;
            let is_whole = chunk_start >= claim.start && chunk_start + CHUNK_BYTES <= end;
            let slot = match result {
                Ok(()) if is_whole && claim.is_known && data.is_empty() => Some(zero),
                Ok(()) if is_whole && claim.is_known => {
                    Some(slot_of_part(data, chunk_start - claim.start))
                }
                Ok(()) if claim.slot.is_some() => claim.slot,
                Err(IoError::CompareMismatch) => None,
                // What the rest of the chunk holds was not looked at, or nobody knows what was written.
                _ => Some(0),
            };
            entry.end(map.slot_in_group(claim.physical, chunk) as usize, slot);
        }
    }
}

/// The slot of the chunk that begins at `at` of these bytes.
pub(super) fn slot_of_part(data: &Segments, at: u32) -> u32 {
    let (at, len) = (at as usize, CHUNK_BYTES as usize);
    let mut digest = None;
    for piece in data.pieces(at..at + len) {
        if piece.len() == len {
            return slot_of_chunk(piece);
        }
        digest
            .get_or_insert_with(|| crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
            .update(piece);
    }
    let crc = digest.map_or(0, |digest| digest.finalize());
    slot_of(u32::try_from(crc).unwrap_or(0))
}

/// Whether a request is of whole chunks.
pub(super) const fn is_aligned(start: u32, len: u64) -> bool {
    start.is_multiple_of(CHUNK_BYTES) && len.is_multiple_of(CHUNK_BYTES as u64)
}
