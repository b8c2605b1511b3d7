//! Reads of volumes that verify: what was read is compared when it is there.
//!
//! A difference means damage only if nobody wrote the chunk meanwhile. So nothing is concluded from the first: it is read
//! again, watched, by way of the map. Only a watched read that no write came near decides.

use std::ops::Range;

use bowline_block::{Completion, Device, DeviceEvent, Io, IoError, Op, Segments};
use bowline_nvme::Nanos;

use super::Waiting;
use super::activity::Need;
use super::cache::Known;
use super::scrub::Seen;
use super::write::{is_aligned, slot_of_part};
use crate::format::record::Checksums;
use crate::pool::PoolEvent;
use crate::pool::drive::Access;
use crate::pool::engine::Engine;
use crate::pool::piece::Stage;
use crate::pool::shape::CHUNK_BYTES;

/// How often a chunk is read again because it was written meanwhile. Then whoever writes it all the time decides what it
/// holds, and it is given out as it is.
const TRIES_MAX: u8 = 8;

/// Mismatches and lost pages that are told in [`TOLD_INTERVAL`]; all are counted.
const TOLD_MAX: u32 = 16;
const TOLD_INTERVAL: Nanos = Nanos::from_secs(10);

/// A chunk that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The volume that was read.
    pub volume: u32,
    /// Its first logical block in that chunk.
    pub lba: u64,
    /// Where the chunk is on the drive, in bytes.
    pub offset: u64,
    /// The checksum of what was written.
    pub expected: u32,
    /// The checksum of what is there.
    pub found: u32,
}

/// Whose read it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// A handle's, from a logical block on.
    Direct {
        port: u32,
        token: u64,
        lba: u64,
    },
    Piece(u32),
    /// A scrub's, by its number. `is_plain`: there is nothing to compare it with.
    Scrub {
        scrub: u64,
        is_plain: bool,
    },
}

/// A read of whole chunks that are to be compared.
pub(in crate::pool) struct Check {
    origin: Origin,
    physical: u32,
    chunks: Range<u32>,
    /// The place in the cache of the group, which stays until the read has ended.
    watch: Option<u32>,
    /// A write came near.
    is_disturbed: bool,
    /// What was read, while it waits.
    data: Segments,
}

impl Check {
    /// A write of these chunks begins.
    pub(super) fn disturb(&mut self, physical: u32, chunks: &Range<u32>) {
        if self.physical == physical
            && self.chunks.start < chunks.end
            && chunks.start < self.chunks.end
        {
            self.is_disturbed = true;
        }
    }
}

/// What comparing has shown.
enum Verdict {
    /// Nothing is wrong, with so many chunks compared and so many not.
    Right { verified: u64, unverified: u64 },
    /// There was nothing to compare it with.
    Plain,
    /// It is being written.
    Busy,
    Differs {
        chunk: u32,
        expected: u32,
        found: u32,
    },
}

impl Verdict {
    const fn unknown(chunks: &Range<u32>) -> Self {
        Self::Right {
            verified: 0,
            unverified: (chunks.end - chunks.start) as u64,
        }
    }
}

impl<D: Device> Engine<D> {
    /// Reads for a handle from one place, if that is whole chunks. Else the request comes back.
    pub(in crate::pool) fn submit_checked(
        &mut self,
        access: Access,
        (physical, start): (u32, u32),
        (port, token, lba): (u32, u64, u64),
    ) -> Option<Access> {
        let len = u32::try_from(access.len).unwrap_or(0);
        if !is_aligned(start, access.len) {
            return Some(access);
        }
        let chunks = self.shape.chunks(start, len);
        if self.is_unknown(physical) {
            self.sums.counts.unverified += u64::from(chunks.end - chunks.start);
            self.drive.submit_direct(access, port, token);
            return None;
        }
        let group = self.sums.map.group_of(physical);
        if self.sums.cache.entry(group).is_none() {
            // Data and checksums at the same time. Without room the checksums are asked for again afterwards.
            let _ = self.bring(group);
        }
        let check = self.sums.checks.insert(Check {
            origin: Origin::Direct { port, token, lba },
            physical,
            chunks,
            watch: None,
            is_disturbed: false,
            data: Segments::new(),
        });
        self.drive.submit_check(access, check);
        None
    }

    /// Whether nothing is known of an extent since before the pool was opened, and nobody changes that now.
    pub(in crate::pool) fn is_unknown(&self, physical: u32) -> bool {
        let group = self.sums.map.group_of(physical);
        self.state.is_active(physical) && self.sums.cache.find(group).is_none()
    }

    /// Whether what a handle reads from an extent is compared.
    pub(in crate::pool) fn verifies(&self, checksums: Checksums, physical: u32) -> bool {
        checksums == Checksums::Verify && self.keeps_sums(physical)
    }

    /// Whether an extent's slots are there, for a piece that has doubts; if not, it goes on when they are.
    pub(in crate::pool) fn has_slots(&mut self, physical: u32, piece: u32) -> bool {
        let group = self.sums.map.group_of(physical);
        self.need(group, Need::Slots, Waiting::Piece(piece))
    }

    /// Reads what a piece still wants, as far as it is in one place.
    pub(in crate::pool) fn read_piece(&mut self, index: u32) {
        let Some(piece) = self.pieces.get(index) else {
            return;
        };
        let (key, start, len, doubts) = (piece.key, piece.start, piece.len, piece.doubts);
        let (request, payload) = (piece.request, piece.payload);
        let port = self
            .requests
            .get(request)
            .and_then(|it| self.ports.get(it.port));
        let Some((reader, checksums)) = port.map(|port| (port.reader, port.checksums)) else {
            return self.end_piece(index, Err(IoError::Internal));
        };
        let (physical, len) = self.run_at(reader, key.1, (start, len));
        let Some(physical) = physical else {
            self.zero_part(request, payload, len);
            return self.part_done(index, len);
        };
        let skip = start % CHUNK_BYTES;
        let wanted = (skip + len).next_multiple_of(CHUNK_BYTES);
        let verifies = self.verifies(checksums, physical);
        let is_checked = verifies && !self.is_unknown(physical);
        let group = self.sums.map.group_of(physical);
        let is_watched = is_checked && doubts > 0;
        if is_watched && !self.need(group, Need::Slots, Waiting::Piece(index)) {
            return self.set_stage(index, Stage::Waiting);
        }
        let Some((buffer, wanted)) = self.bounce(wanted) else {
            self.sums.roomless.push_back(Waiting::Piece(index));
            return self.set_stage(index, Stage::Waiting);
        };
        if let Some(piece) = self.pieces.get_mut(index) {
            piece.part = len.min(wanted - skip);
        }
        let from = start - skip;
        let access = self
            .shape
            .access(Op::Read, physical, from, wanted, false, buffer.into());
        if is_checked {
            self.check_piece(index, Stage::Part, physical, access, from);
        } else {
            if verifies {
                self.sums.counts.unverified += u64::from(wanted / CHUNK_BYTES);
            }
            self.submit_for(index, Stage::Part, access);
        }
    }

    /// Reads whole chunks for a piece and has them compared. If the piece has doubts, the group is in the cache.
    pub(in crate::pool) fn check_piece(
        &mut self,
        index: u32,
        stage: Stage,
        physical: u32,
        access: Access,
        start: u32,
    ) {
        let is_watched = self.pieces.get(index).is_some_and(|it| it.doubts > 0);
        self.set_stage(index, stage);
        self.compare_later(Origin::Piece(index), physical, access, start, is_watched);
    }

    /// Reads whole chunks and has them compared. To be watched, their group is in the cache.
    pub(super) fn compare_later(
        &mut self,
        origin: Origin,
        physical: u32,
        access: Access,
        start: u32,
        is_watched: bool,
    ) {
        let len = u32::try_from(access.len).unwrap_or(0);
        let chunks = self.shape.chunks(start, len);
        let group = self.sums.map.group_of(physical);
        let watch = self.sums.cache.find(group).filter(|_| is_watched);
        let map = self.sums.map;
        let mut is_disturbed = false;
        if let Some(entry) = watch.and_then(|at| self.sums.cache.get_mut(at)) {
            entry.watches += 1;
            is_disturbed = chunks.clone().any(|chunk| {
                entry.known(map.slot_in_group(physical, chunk) as usize) == Known::Busy
            });
        } else if !matches!(origin, Origin::Scrub { is_plain: true, .. })
            && !self.is_unknown(physical)
            && self.sums.cache.find(group).is_none()
        {
            let _ = self.bring(group);
        }
        let check = self.sums.checks.insert(Check {
            origin,
            physical,
            chunks,
            watch,
            is_disturbed,
            data: Segments::new(),
        });
        self.drive.submit_check(access, check);
    }

    /// The drive has read what is to be compared.
    pub(in crate::pool) fn check_answered(&mut self, index: u32, completion: Completion) {
        let Completion { result, data, .. } = completion;
        let Some(check) = self.sums.checks.get_mut(index) else {
            return;
        };
        if let Some(entry) = check.watch.and_then(|at| self.sums.cache.get_mut(at)) {
            entry.watches -= 1;
        }
        match result {
            Ok(()) => self.judge(index, data),
            Err(error) => self.end_check(index, data, Err(error)),
        }
    }

    /// The checksums are there now, or may be.
    pub(super) fn resume_check(&mut self, index: u32) {
        if let Some(check) = self.sums.checks.get_mut(index) {
            let data = check.data.take();
            self.judge(index, data);
        }
    }

    fn judge(&mut self, index: u32, data: Segments) {
        let Some(check) = self.sums.checks.get(index) else {
            return;
        };
        let (physical, origin) = (check.physical, check.origin);
        let (is_certain, chunks) = (
            check.watch.is_some() && !check.is_disturbed,
            check.chunks.clone(),
        );
        if matches!(origin, Origin::Scrub { is_plain: true, .. }) {
            return self.end_check(index, data, Ok(Verdict::Plain));
        }
        if self.is_unknown(physical) {
            let unverified = u64::from(chunks.end - chunks.start);
            let verdict = Verdict::Right {
                verified: 0,
                unverified,
            };
            return self.end_check(index, data, Ok(verdict));
        }
        let group = self.sums.map.group_of(physical);
        if check.watch.is_none() && !self.need(group, Need::Slots, Waiting::Check(index)) {
            if let Some(check) = self.sums.checks.get_mut(index) {
                check.data = data;
            }
            return;
        }
        match self.compare_chunks(physical, chunks, &data) {
            verdict @ (Verdict::Right { .. } | Verdict::Plain) => {
                self.end_check(index, data, Ok(verdict));
            }
            Verdict::Differs {
                chunk,
                expected,
                found,
            } if is_certain => {
                self.tell_mismatch(origin, (physical, chunk), (expected, found));
                let verdict = Verdict::Differs {
                    chunk,
                    expected,
                    found,
                };
                self.end_check(index, data, Ok(verdict));
            }
            Verdict::Busy | Verdict::Differs { .. } => self.doubt(index, data),
        }
    }

    fn compare_chunks(&mut self, physical: u32, chunks: Range<u32>, data: &Segments) -> Verdict {
        let map = self.sums.map;
        let Some(entry) = self.sums.cache.entry(map.group_of(physical)) else {
            return Verdict::Right {
                verified: 0,
                unverified: u64::from(chunks.end - chunks.start),
            };
        };
        let (mut verified, mut unverified) = (0, 0);
        for (at, chunk) in (0..).step_by(CHUNK_BYTES as usize).zip(chunks) {
            match entry.known(map.slot_in_group(physical, chunk) as usize) {
                Known::Nothing => unverified += 1,
                Known::Busy => return Verdict::Busy,
                Known::Slot(expected) => {
                    let found = slot_of_part(data, at);
                    if found != expected {
                        return Verdict::Differs {
                            chunk,
                            expected,
                            found,
                        };
                    }
                    verified += 1;
                }
            }
        }
        Verdict::Right {
            verified,
            unverified,
        }
    }

    /// Has it read again, and watched.
    fn doubt(&mut self, index: u32, data: Segments) {
        let Some(check) = self.sums.checks.get(index) else {
            return;
        };
        match check.origin {
            Origin::Direct { port, token, lba } => {
                self.sums.checks.remove(index);
                let Some(geometry) = self.ports.get(port).map(|port| port.geometry) else {
                    return;
                };
                let len = u64::try_from(data.len_bytes()).unwrap_or(0);
                let io = Io {
                    op: Op::Read,
                    lba,
                    blocks: u32::try_from(len / u64::from(geometry.block_bytes)).unwrap_or(0),
                    fua: false,
                    data,
                    token,
                };
                match geometry.check_io(&io) {
                    Ok(range) => self.begin_doubted(port, io, range),
                    Err(error) => self.complete(port, io.complete(Err(error))),
                }
            }
            Origin::Piece(piece) => {
                let Some(it) = self.pieces.get_mut(piece) else {
                    return;
                };
                it.doubts += 1;
                if it.doubts > TRIES_MAX {
                    return self.end_check(index, data, Ok(Verdict::unknown(&check.chunks)));
                }
                self.sums.checks.remove(index);
                drop(data);
                self.resume_piece(piece);
            }
            Origin::Scrub { scrub, .. } => {
                if self.scrub_doubts() > TRIES_MAX {
                    let verdict = Verdict::unknown(&check.chunks);
                    return self.end_check(index, data, Ok(verdict));
                }
                self.sums.checks.remove(index);
                self.scrub_seen(scrub, Seen::Doubtful);
            }
        }
    }

    /// It is certain what was read, or it could not be read.
    fn end_check(&mut self, index: u32, data: Segments, result: Result<Verdict, IoError>) {
        let Some(check) = self.sums.checks.remove(index) else {
            return;
        };
        if let Origin::Scrub { scrub, .. } = check.origin {
            let seen = match result {
                Ok(Verdict::Right {
                    verified,
                    unverified,
                }) => Seen::Right {
                    verified,
                    unverified,
                },
                Ok(Verdict::Plain) => Seen::Plain,
                Ok(Verdict::Busy) => Seen::Doubtful,
                Ok(Verdict::Differs { .. }) => Seen::Mismatch,
                Err(_) => Seen::Unreadable,
            };
            return self.scrub_seen(scrub, seen);
        }
        let result = match result {
            Ok(Verdict::Right {
                verified,
                unverified,
            }) => {
                self.sums.counts.verified += verified;
                self.sums.counts.unverified += unverified;
                Ok(unverified == 0)
            }
            Ok(Verdict::Plain | Verdict::Busy) => Ok(false),
            Ok(Verdict::Differs { .. }) => Err(IoError::MediaRead),
            Err(error) => Err(error),
        };
        match check.origin {
            Origin::Direct { port, token, .. } => {
                let result = result.map(drop);
                self.complete(
                    port,
                    Completion {
                        token,
                        result,
                        data,
                    },
                );
            }
            Origin::Piece(piece) => self.piece_checked(piece, data, result),
            Origin::Scrub { .. } => {}
        }
    }

    /// What a piece has read was compared.
    fn piece_checked(&mut self, index: u32, data: Segments, result: Result<bool, IoError>) {
        let stage = self.pieces.get(index).map(|piece| piece.stage);
        match (stage, result) {
            (Some(Stage::Part), Ok(_)) => self.part_read(index, &data),
            (Some(Stage::Old), Ok(is_known)) => {
                if let Some(piece) = self.pieces.get_mut(index) {
                    piece.is_unknown = !is_known;
                }
                self.old_read(index, data);
            }
            (Some(_), Err(error)) => self.end_piece(index, Err(error)),
            _ => self.end_piece(index, Err(IoError::Internal)),
        }
        self.buffer_came_back();
    }

    /// A part of a piece was read: whole chunks, of which the piece perhaps wants less.
    pub(in crate::pool) fn part_read(&mut self, index: u32, data: &Segments) {
        let Some(piece) = self.pieces.get(index) else {
            return;
        };
        let (request, payload, part) = (piece.request, piece.payload, piece.part);
        let skip = (piece.start % CHUNK_BYTES) as usize;
        let wanted = data.slice(skip..skip + part as usize);
        if self.deliver(request, payload, &wanted) {
            self.part_done(index, part);
        } else {
            self.end_piece(index, Err(IoError::Internal));
        }
    }

    /// A part of a piece is where it was asked for; then the next.
    fn part_done(&mut self, index: u32, part: u32) {
        let Some(piece) = self.pieces.get_mut(index) else {
            return;
        };
        piece.start += part;
        piece.len -= part;
        piece.payload += part as usize;
        if piece.len == 0 {
            self.end_piece(index, Ok(()));
        } else {
            self.read_piece(index);
        }
    }

    pub(super) fn tell_mismatch(
        &mut self,
        origin: Origin,
        (physical, chunk): (u32, u32),
        (expected, found): (u32, u32),
    ) {
        self.sums.counts.mismatches += 1;
        let mut port = None;
        let key = match origin {
            Origin::Piece(piece) => self.pieces.get(piece).map(|piece| {
                port = self.requests.get(piece.request).map(|it| it.port);
                (piece.key.0.number(), piece.key.1)
            }),
            // The volume that wrote it.
            _ => self
                .state
                .owner(physical)
                .map(|(volume, at, _)| (volume, at)),
        };
        let Some((number, logical)) = key else {
            return;
        };
        let start = u64::from(logical) * u64::from(self.shape.extent_bytes())
            + u64::from(chunk) * u64::from(CHUNK_BYTES);
        let volume = self
            .state
            .slot(number)
            .and_then(|slot| self.state.volume(slot));
        let block_bytes = volume.map_or(CHUNK_BYTES, |volume| volume.block_bytes);
        let mismatch = Mismatch {
            volume: number,
            lba: start / u64::from(block_bytes),
            offset: self.shape.place(physical, chunk * CHUNK_BYTES),
            expected,
            found,
        };
        if !self.may_tell() {
            return;
        }
        self.tell_event(PoolEvent::Mismatch(mismatch));
        if let Some(port) = port.and_then(|port| self.ports.get_mut(port)) {
            port.tell(DeviceEvent::MediaWarning);
        }
    }

    /// Whether something may be told now, or there was too much already.
    pub(super) fn may_tell(&mut self) -> bool {
        if self.now >= self.sums.told_from.after(TOLD_INTERVAL) {
            self.sums.told_from = self.now;
            self.sums.told = 0;
        }
        self.sums.told += 1;
        self.sums.told <= TOLD_MAX
    }
}
