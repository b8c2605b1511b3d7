//! What the map says, in the words of the data path.

use std::ops::Range;

use bowline_block::Device;

use super::engine::Engine;
use super::shape::CHUNK_BYTES;
use crate::map::{HeadEntry, Reader, Slot};

/// A logical extent of a volume.
pub(super) type Key = (Slot, u32);

/// The version of an extent that may be written to in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// There is no version, or others need the newest one; or it is a hole.
    None,
    Whole(u32),
    /// Some chunks are there.
    Part(u32),
}

impl Own {
    pub(super) const fn physical(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Whole(physical) | Self::Part(physical) => Some(physical),
        }
    }
}

impl<D: Device> Engine<D> {
    pub(super) fn own(&self, (slot, logical): Key) -> Own {
        match self.state.head(slot, logical) {
            HeadEntry::Whole {
                physical,
                is_own: true,
            } => Own::Whole(physical),
            HeadEntry::Part {
                physical,
                is_own: true,
            } => Own::Part(physical),
            _ => Own::None,
        }
    }

    /// Where these chunks may be written to in place, if all are there.
    pub(super) fn place_of(&self, key: Key, chunks: Range<u32>) -> Option<u32> {
        let place = match self.own(key) {
            Own::None => None,
            Own::Whole(physical) => Some(physical),
            Own::Part(physical) => self.state.has_chunks(physical, chunks).then_some(physical),
        };
        // What is being copied away is not written to: the write waits for the end of that.
        place.filter(|physical| *physical != self.locked && !self.is_in_doubt(key))
    }

    /// Where the byte at `start` of an extent is read (`None`: it is zero), and how many of `len` bytes are together with
    /// it.
    pub(super) fn run_at(
        &mut self,
        reader: Reader,
        logical: u32,
        (start, len): (u32, u32),
    ) -> (Option<u32>, u32) {
        let chunks = self.shape.chunks(start, len);
        self.state.resolve(reader, logical, chunks, &mut self.runs);
        self.runs.first().map_or((None, len), |run| {
            let end = (run.chunks.end * CHUNK_BYTES).min(start + len);
            (run.physical, end - start)
        })
    }

    /// Whether all of these chunks are read as zeroes because nothing is there.
    pub(super) fn is_zero(&mut self, (slot, logical): Key, chunks: Range<u32>) -> bool {
        let reader = Reader::Head(slot);
        self.state.resolve(reader, logical, chunks, &mut self.runs);
        self.runs.iter().all(|run| run.physical.is_none())
    }

    /// Whether something would be read of these chunks if the volume's own version of the extent were not there.
    pub(super) fn shows_older(&mut self, (slot, logical): Key, chunks: Range<u32>) -> bool {
        let reader = Reader::Snapshot(slot, self.state.born(slot, logical));
        self.state.resolve(reader, logical, chunks, &mut self.runs);
        self.runs.iter().any(|run| run.physical.is_some())
    }
}
