//! What has to happen before a volume becomes larger: nothing of what was there before it became smaller may show again.

use bowline_block::{Device, Io, IoError, Op, Segments};

use super::PoolError;
use super::engine::Engine;
use super::journal::Waiter;
use super::operation::Bytes;
use super::port::Port;
use super::shape::CHUNK_BYTES;
use crate::format::record::{NONE, Numbers, Record};
use crate::map::{Reader, Slot};

/// Extents that are hidden with one group.
const HIDDEN_MAX: usize = 256;

/// What comes before the record that makes a volume larger.
pub(super) enum Growth {
    /// Somebody else has to end first.
    Waiting,
    /// Records that hide what is beyond the end are on their way.
    Recording,
    /// The rest of the last extent is zeroed by way of this port.
    Zeroing(u32),
    /// It is zero.
    Zeroed,
    /// Nothing.
    Ready,
}

impl<D: Device> Engine<D> {
    /// Does the next step.
    pub(super) fn prepare_growth(
        &mut self,
        volume: u32,
        bytes: u64,
        zeroing: Option<u32>,
        is_zeroed: bool,
    ) -> Result<Growth, PoolError> {
        let (slot, found) = self.find_volume(volume)?;
        let was = found.bytes;
        if let Some(port) = zeroing {
            return self.end_zeroing(port);
        }
        if bytes <= was || self.journal.has_failed() {
            return Ok(Growth::Ready);
        }
        // What the collector has found needless may be what hides something from now on.
        if !self.collecting.is_idle() {
            return Ok(Growth::Waiting);
        }
        if self.hide_beyond(slot, self.extents_of(was), self.extents_of(bytes))? {
            return Ok(Growth::Recording);
        }
        if !is_zeroed && let Some(port) = self.start_zeroing(slot, was, bytes)? {
            return Ok(Growth::Zeroing(port));
        }
        Ok(Growth::Ready)
    }

    /// Takes away what the volume would show beyond its end, or hides what snapshots and bases still need. Whether there
    /// was any.
    fn hide_beyond(&mut self, slot: Slot, first: u64, end: u64) -> Result<bool, PoolError> {
        let mut bytes = Bytes::default();
        let mut holes = self.journal.holes;
        let extent = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        let (mut from, end) = (extent(first), extent(end));
        for _ in 0..HIDDEN_MAX {
            let Some(logical) = self.state.next_shown(slot, from..end) else {
                break;
            };
            let (volume, born) = (slot.number(), self.state.born(slot, logical));
            let record = if self.state.shows_older(slot, logical) {
                holes += 1;
                Record::Map {
                    volume,
                    born,
                    logical,
                    physical: Numbers::Native(&[NONE]),
                }
            } else {
                Record::Unmap {
                    volume,
                    born,
                    logical,
                    count: 1,
                }
            };
            if holes > self.state.holes_left() {
                return Err(PoolError::Full);
            }
            bytes.push(&record)?;
            from = logical + 1;
        }
        let has_any = bytes.len() > 0;
        if has_any {
            self.journal.want(bytes.into_change(), Waiter::Operation);
        }
        Ok(has_any)
    }

    /// Writes zeroes to what the volume's last extent has beyond its end, as its own host would.
    fn start_zeroing(
        &mut self,
        slot: Slot,
        was: u64,
        bytes: u64,
    ) -> Result<Option<u32>, PoolError> {
        let (logical, start) = self.shape.split(was);
        if start == 0 {
            return Ok(None);
        }
        let len = self.shape.within(start, bytes - was);
        if self.is_zero((slot, logical), self.shape.chunks(start, len)) {
            return Ok(None);
        }
        let geometry = self.volume_geometry(was + u64::from(len), CHUNK_BYTES, (true, true));
        let checksums = self.checksums_of(slot);
        let port = self.open_port(Port::new(Reader::Head(slot), geometry, true, checksums));
        let io = Io {
            op: Op::WriteZeroes { deallocate: false },
            lba: was / u64::from(CHUNK_BYTES),
            blocks: len / CHUNK_BYTES,
            fua: true,
            data: Segments::new(),
            token: 0,
        };
        if self.submit(port, io).is_err() {
            self.close_port(port);
            return Err(PoolError::Busy);
        }
        Ok(Some(port))
    }

    fn end_zeroing(&mut self, at: u32) -> Result<Growth, PoolError> {
        let done = self.ports.get_mut(at).and_then(Port::take_done);
        let Some(completion) = done else {
            return Ok(Growth::Zeroing(at));
        };
        self.take_held();
        self.close_port(at);
        completion.result.map_err(|error| match error {
            IoError::NoSpace => PoolError::NoSpace,
            error => PoolError::Drive(error),
        })?;
        Ok(Growth::Zeroed)
    }
}
