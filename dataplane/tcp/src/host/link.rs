//! One queue's socket, and the data of the commands on it.

use std::io::IoSliceMut;

use bowline_block::{SEGMENTS_MAX, Segments};
use bowline_nvmf::frame::crc32c;
use bowline_nvmf::host::SlotId;
use bowline_reactor::SocketId;
use crc_fast::{CrcAlgorithm, Digest};

/// Data of one command.
#[derive(Debug, Default)]
pub(super) struct Slot {
    data: Segments,
    /// The owner did not bring the data and does not get it back: a list of ranges.
    own: bool,
}

/// A queue's transport.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) socket: Option<SocketId>,
    /// The connection is established.
    pub(super) open: bool,
    /// A gather is with the reactor.
    pub(super) sending: bool,
    /// To be closed as soon as nothing is left to send.
    pub(super) closing: bool,
    /// It is listed: there may be something to send, or it is to be closed.
    pub(super) listed: bool,
    slots: Vec<Slot>,
}

impl Link {
    /// Makes room for as many commands as the queue can hold.
    pub(super) fn reserve(&mut self, depth: usize) {
        if self.slots.len() < depth {
            self.slots.resize_with(depth, Slot::default);
        }
    }

    /// Whether there is a place for the data of a command in this slot.
    pub(super) fn bind(&mut self, slot: SlotId, data: Segments, own: bool) {
        self.reserve(slot.index() + 1);
        self.slots[slot.index()] = Slot { data, own };
    }

    /// Takes the data back: what the owner brought.
    pub(super) fn unbind(&mut self, slot: SlotId) -> Segments {
        match self.slots.get_mut(slot.index()).map(std::mem::take) {
            Some(Slot { data, own: false }) => data,
            Some(Slot { own: true, .. }) | None => Segments::new(),
        }
    }

    /// The data of a command.
    pub(super) fn data(&self, slot: SlotId) -> Option<&Segments> {
        self.slots.get(slot.index()).map(|slot| &slot.data)
    }

    pub(super) fn data_mut(&mut self, slot: SlotId) -> Option<&mut Segments> {
        self.slots.get_mut(slot.index()).map(|slot| &mut slot.data)
    }

    /// CRC32C of `begin..end` of a command's data.
    pub(super) fn crc(&self, slot: SlotId, begin: u32, end: u32) -> u32 {
        self.data(slot).map_or(0, |data| crc_of(data, begin, end))
    }
}

/// CRC32C of the bytes `begin..end` of `data`.
pub(super) fn crc_of(data: &Segments, begin: u32, end: u32) -> u32 {
    let mut pieces = data.pieces(begin as usize..end as usize);
    let first = pieces.next().unwrap_or_default();
    let Some(second) = pieces.next() else {
        return crc32c(first);
    };
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(first);
    digest.update(second);
    for piece in pieces {
        digest.update(piece);
    }
    // A 32-bit CRC in a 64-bit return type.
    u32::try_from(digest.finalize()).unwrap_or(0)
}

/// Copies `bytes` to `offset` of `data`, and says how many fitted.
pub(super) fn copy_in(data: &mut Segments, offset: u32, bytes: &[u8]) -> usize {
    let mut skip = offset as usize;
    let mut rest = bytes;
    for segment in data.iter_mut() {
        if skip >= segment.len() {
            skip -= segment.len();
            continue;
        }
        let Some(room) = segment.as_mut().and_then(|room| room.get_mut(skip..)) else {
            break;
        };
        let len = room.len().min(rest.len());
        let (now, later) = rest.split_at(len);
        room[..len].copy_from_slice(now);
        rest = later;
        skip = 0;
        if rest.is_empty() {
            break;
        }
    }
    bytes.len() - rest.len()
}

/// The places where up to `len` bytes from `offset` on go, and then `staging` for what follows
/// them.
pub(super) fn places<'a>(
    data: &'a mut Segments,
    offset: u32,
    len: u32,
    staging: &'a mut [u8],
) -> ([IoSliceMut<'a>; SEGMENTS_MAX + 1], usize) {
    let mut slices = std::array::from_fn(|_| IoSliceMut::new(&mut []));
    let mut count = 0;
    let (mut skip, mut left) = (offset as usize, len as usize);
    for segment in data.iter_mut() {
        if skip >= segment.len() {
            skip -= segment.len();
            continue;
        }
        let room = segment
            .as_mut()
            .and_then(|room| room.get_mut(skip..))
            .unwrap_or_default();
        let take = room.len().min(left);
        skip = 0;
        if take == 0 {
            break;
        }
        left -= take;
        slices[count] = IoSliceMut::new(&mut room[..take]);
        count += 1;
    }
    // Bytes behind the payload may only go to the staging area when all of the payload has a
    // place before it.
    if left == 0 {
        slices[count] = IoSliceMut::new(staging);
        count += 1;
    }
    (slices, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bowline_block::{BufPool, ClassConfig, PoolConfig};

    fn segments(lens: &[usize]) -> Segments {
        let classes = vec![ClassConfig {
            bytes: 4096,
            count: 8,
        }];
        let pool = BufPool::new(PoolConfig { classes }).expect("a small pool");
        let mut segments = Segments::new();
        for len in lens {
            let mut buf = pool.alloc(4096).expect("a free buffer");
            buf.truncate(*len);
            segments.push(buf).expect("four at most");
        }
        segments
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len)
            .map(|index| u8::try_from(index % 251).expect("below 251"))
            .collect()
    }

    #[test]
    fn bytes_copied_in_parts_over_segments_read_back_in_order() {
        let source = bytes(5000);
        for step in [1, 7, 1000, 5000] {
            let mut data = segments(&[8, 4000, 992]);
            let mut at = 0;
            for part in source.chunks(step) {
                let offset = u32::try_from(at).expect("small");
                assert_eq!(copy_in(&mut data, offset, part), part.len());
                at += part.len();
            }
            let read: Vec<u8> = data.pieces(0..5000).flatten().copied().collect();
            assert!(read == source);
        }
    }

    #[test]
    fn copy_stops_at_the_end_of_the_data() {
        let mut data = segments(&[16]);
        assert_eq!(copy_in(&mut data, 12, &[1; 8]), 4);
        assert_eq!(copy_in(&mut data, 16, &[1; 8]), 0);
    }

    #[test]
    fn shared_segment_takes_no_bytes() {
        let mut data = segments(&[16]);
        let other = data.clone();
        assert_eq!(copy_in(&mut data, 0, &[1; 16]), 0);
        let mut staging = [0; 8];
        let (_, count) = places(&mut data, 0, 16, &mut staging);
        assert_eq!(count, 0, "bytes must not land in the wrong place");
        drop(other);
    }

    #[test]
    fn places_cover_the_payload_and_then_the_staging_area() {
        let mut data = segments(&[100, 200, 300]);
        let mut staging = [0; 64];
        let lens = |data: &mut Segments, offset, len, staging: &mut [u8]| {
            let (slices, count) = places(data, offset, len, staging);
            slices[..count]
                .iter()
                .map(|slice| slice.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(lens(&mut data, 50, 550, &mut staging), [50, 200, 300, 64]);
        assert_eq!(lens(&mut data, 150, 10, &mut staging), [10, 64]);
        assert_eq!(lens(&mut data, 300, 300, &mut staging), [300, 64]);
    }

    #[test]
    fn crc_over_segments_equals_crc_over_bytes() {
        let source = bytes(600);
        let mut data = segments(&[100, 200, 300]);
        assert_eq!(copy_in(&mut data, 0, &source), 600);
        for (begin, end) in [(0, 600), (0, 100), (99, 301), (350, 600), (0, 0)] {
            let expected = crc32c(&source[begin..end]);
            let (begin, end) = (u32::try_from(begin).unwrap(), u32::try_from(end).unwrap());
            assert_eq!(crc_of(&data, begin, end), expected);
        }
    }
}
