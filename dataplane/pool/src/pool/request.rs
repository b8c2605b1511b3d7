//! Requests of volumes that are more than one access to the drive: taken apart at extents, and where what is read or
//! written is in different places.

use bowline_block::{ByteRange, Device, Io, IoBuf, IoError, Op, Segments};

use super::engine::{Engine, Todo};
use super::piece::{Kind, Piece, Stage};
use super::shape::CHUNK_BYTES;
use super::view::Key;

/// Pieces of one request on their way at once.
const PIECES_MAX: u32 = 8;

/// Pieces of one request that are begun before others have their turn. Where there is nothing to do, as in a large range
/// that is deallocated and has nothing, each ends at once.
const PIECES_IN_TURN_MAX: u32 = 256;

/// A request that is done in pieces.
pub(super) struct Request {
    pub(super) port: u32,
    pub(super) io: Io,
    /// Its start in the volume, in bytes.
    offset: u64,
    /// Up to here there are pieces.
    cursor: u64,
    end: u64,
    outstanding: u32,
    result: Result<(), IoError>,
    /// What was read of it before was not what was written, or somebody wrote it meanwhile.
    is_doubted: bool,
    /// It goes on just now, or is going to without being asked.
    is_due: bool,
}

impl<D: Device> Engine<D> {
    /// Takes a request apart.
    pub(super) fn begin(&mut self, port: u32, io: Io, range: ByteRange) {
        self.begin_as(port, io, range, false);
    }

    /// Reads again what was not what was written.
    pub(super) fn begin_doubted(&mut self, port: u32, io: Io, range: ByteRange) {
        self.begin_as(port, io, range, true);
    }

    fn begin_as(&mut self, port: u32, io: Io, range: ByteRange, is_doubted: bool) {
        let request = self.requests.insert(Request {
            port,
            io,
            offset: range.offset,
            cursor: range.offset,
            end: range.end(),
            outstanding: 0,
            result: Ok(()),
            is_doubted,
            is_due: false,
        });
        self.advance(request);
    }

    /// Starts as many pieces as may run; ends the request when there is nothing left.
    pub(super) fn advance(&mut self, index: u32) {
        for _ in 0..PIECES_IN_TURN_MAX {
            let Some(request) = self.requests.get_mut(index) else {
                return;
            };
            request.is_due = request.outstanding < PIECES_MAX
                && request.cursor < request.end
                && request.result.is_ok();
            if !request.is_due {
                return self.end_request(index);
            }
            let is_started = match request.io.op {
                Op::Read => self.read_next(index),
                _ => self.change_next(index),
            };
            if !is_started {
                // Buffers are short. Whoever gives one back goes on here.
                if let Some(request) = self.requests.get_mut(index) {
                    request.is_due = false;
                }
                return self.starved.push_back(index);
            }
        }
        self.yielding.push_back(index);
    }

    /// Ends a request of which nothing is left.
    fn end_request(&mut self, index: u32) {
        let is_done =
            |it: &Request| it.outstanding == 0 && (it.cursor >= it.end || it.result.is_err());
        if self.requests.get(index).is_some_and(is_done)
            && let Some(request) = self.requests.remove(index)
        {
            self.complete(request.port, request.io.complete(request.result));
        }
    }

    /// Requests that had their turn have another.
    pub(super) fn resume_yielding(&mut self) {
        // This is a part of every poll.
        if self.yielding.is_empty() {
            return;
        }
        let yielding = self.yielding.drain(..).map(Todo::Request);
        self.todo.extend(yielding);
    }

    /// Reads what comes next and is in one place. False when there is no buffer for it.
    fn read_next(&mut self, index: u32) -> bool {
        let Some(request) = self.requests.get(index) else {
            return true;
        };
        let Some(port) = self.ports.get(request.port) else {
            return true;
        };
        let (reader, checksums, is_doubted) = (port.reader, port.checksums, request.is_doubted);
        let (logical, start) = self.shape.split(request.cursor);
        let wanted = self.shape.within(start, request.end - request.cursor);
        let at = usize::try_from(request.cursor - request.offset).unwrap_or(usize::MAX);
        let slot = port.slot();
        let (physical, len) = self.run_at(reader, logical, (start, wanted));
        let Some(physical) = physical else {
            self.zero_payload(index, at, len);
            return true;
        };
        if self.verifies(checksums, physical) {
            let piece = self.new_piece(index, Kind::Read, (slot, logical), start, len);
            if let Some(piece) = self.pieces.get_mut(piece) {
                piece.doubts = u8::from(is_doubted);
            }
            self.read_piece(piece);
            return true;
        }
        // A segment that is filled is filled as a whole: what is found in several places goes through a buffer.
        let Some((buf, len)) = self.bounce(len) else {
            return false;
        };
        let access = self
            .shape
            .access(Op::Read, physical, start, len, false, buf.into());
        let piece = self.new_piece(index, Kind::Read, (slot, logical), start, len);
        self.submit_for(piece, Stage::Read, access);
        true
    }

    /// A buffer for at most `len` bytes.
    pub(super) fn bounce(&self, len: u32) -> Option<(IoBuf, u32)> {
        let len = len.min(super::engine::BOUNCE_BYTES_MAX);
        let buf = self.buffers.alloc(usize::try_from(len).ok()?)?;
        Some((buf, len))
    }

    /// What is read from nowhere is zero.
    fn zero_payload(&mut self, index: u32, at: usize, len: u32) {
        self.zero_part(index, at, len);
        if let Some(request) = self.requests.get_mut(index) {
            request.cursor += u64::from(len);
        }
    }

    pub(super) fn zero_part(&mut self, index: u32, at: usize, len: u32) {
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        let len_bytes = usize::try_from(len).unwrap_or(0);
        let is_filled = fill(&mut request.io.data, at, len_bytes, |bytes, _| {
            bytes.fill(0)
        });
        if !is_filled {
            request.result = Err(IoError::Internal);
        }
    }

    /// Starts the next piece of a write or of zeroes.
    fn change_next(&mut self, index: u32) -> bool {
        let Some(request) = self.requests.get(index) else {
            return true;
        };
        let Some(port) = self.ports.get(request.port) else {
            return true;
        };
        let kind = match request.io.op {
            Op::Write => Kind::Write,
            Op::CompareAndWrite => Kind::Compare,
            _ => Kind::Zero,
        };
        let slot = port.slot();
        let (logical, start) = self.shape.split(request.cursor);
        let mut len = self.shape.within(start, request.end - request.cursor);
        let chunks = self.shape.chunks(start, len);
        // A part of a chunk is not written with others: for its checksum the rest may have to be read.
        let is_parted = self.has_sums(slot) || self.place_of((slot, logical), chunks).is_none();
        if kind != Kind::Compare && is_parted {
            len = until_edge(start, len);
        }
        let piece = self.new_piece(index, kind, (slot, logical), start, len);
        self.start_piece(piece);
        true
    }

    /// A piece of the request from its cursor on.
    fn new_piece(&mut self, index: u32, kind: Kind, key: Key, start: u32, len: u32) -> u32 {
        let mut payload = 0;
        if let Some(request) = self.requests.get_mut(index) {
            payload = usize::try_from(request.cursor - request.offset).unwrap_or(usize::MAX);
            request.cursor += u64::from(len);
            request.outstanding += 1;
        }
        self.pieces
            .insert(Piece::new(index, kind, key, start, len, payload))
    }

    /// A piece of the request has ended.
    pub(super) fn piece_ended(&mut self, index: u32, result: Result<(), IoError>) {
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        request.outstanding -= 1;
        // The first error counts.
        request.result = request.result.and(result);
        if !std::mem::replace(&mut request.is_due, true) {
            self.todo.push_back(Todo::Request(index));
        }
    }

    /// The piece's bytes of the payload.
    pub(super) fn payload(&self, piece: &Piece) -> Segments {
        let len = usize::try_from(piece.len).unwrap_or(0);
        match self.requests.get(piece.request) {
            Some(request) if piece.kind == Kind::Write => {
                let end = piece.payload.saturating_add(len);
                request.io.data.slice(piece.payload..end)
            }
            // What it is compared with comes first.
            Some(request) if piece.kind == Kind::Compare => request.io.data.slice(len..2 * len),
            _ => Segments::new(),
        }
    }

    /// What a piece is to find where it writes, and then what it writes.
    pub(super) fn compared(&self, piece: &Piece) -> Segments {
        let len = usize::try_from(piece.len).unwrap_or(0);
        let request = self.requests.get(piece.request);
        request.map_or_else(Segments::new, |request| request.io.data.slice(0..2 * len))
    }

    /// Copies what a piece has read to where it was asked for.
    pub(super) fn deliver(&mut self, index: u32, payload: usize, found: &Segments) -> bool {
        let Some(request) = self.requests.get_mut(index) else {
            return false;
        };
        let whole = found.iter().next();
        whole.is_some_and(|found| {
            let copy = |bytes: &mut [u8], at: usize| {
                bytes.copy_from_slice(&found[at..at + bytes.len()]);
            };
            fill(&mut request.io.data, payload, found.len(), copy)
        })
    }
}

/// A piece of a chunk ends with the chunk; another begins at a chunk and is whole chunks as long as it can be. So a
/// piece that changes the map is either, and what a chunk lacks is only ever filled up for one chunk.
fn until_edge(start: u32, len: u32) -> u32 {
    let to_edge = CHUNK_BYTES - start % CHUNK_BYTES;
    if to_edge < CHUNK_BYTES {
        len.min(to_edge)
    } else if len >= CHUNK_BYTES {
        len - len % CHUNK_BYTES
    } else {
        len
    }
}

/// Has `with` write `len` bytes of the payload from `at` on, with their distance from there. False if they are not there or
/// somebody else looks at them.
fn fill(
    data: &mut Segments,
    at: usize,
    len: usize,
    mut with: impl FnMut(&mut [u8], usize),
) -> bool {
    let (mut start, mut filled) = (0_usize, 0);
    for buf in data.iter_mut() {
        let buf_len = buf.len();
        let from = at.saturating_sub(start).min(buf_len);
        let to = at.saturating_add(len).saturating_sub(start).min(buf_len);
        start += buf_len;
        if from < to {
            let Some(bytes) = buf.as_mut() else {
                return false;
            };
            with(&mut bytes[from..to], filled);
            filled += to - from;
        }
    }
    filled == len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_within_a_chunk_or_whole_chunks() {
        for (start, len, expected) in [
            (0, 512, 512),
            (512, 512, 512),
            (512, 4096, 3584),
            (0, 4096, 4096),
            (4096, 9000, 8192),
            (8192, 4095, 4095),
            (8191, 4097, 1),
        ] {
            assert_eq!(until_edge(start, len), expected, "{start} {len}");
        }
    }
}
