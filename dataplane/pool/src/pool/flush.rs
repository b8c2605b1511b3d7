//! Flushes, and what is believed after one that has failed.
//!
//! A drive, or the kernel before it, may drop what it could not make stable, and says so to the flush that was under way;
//! the next one succeeds. But a flush is of all volumes, and it may be the pool's own: so each volume that relies on flushes
//! is told by its own next one.

use std::collections::HashSet;

use bowline_block::{Completion, Device, Io, IoError, Op, Segments};

use super::drive::{Access, Tag};
use super::engine::Engine;
use crate::format::record::Durability;
use crate::map::Reader;

/// Flushes that have failed, and who has not been told.
#[derive(Default)]
pub(super) struct Flushes {
    pub(super) failures: u64,
    /// How the last of them has failed.
    last: Option<IoError>,
    /// Volumes that may have lost what they have written since their last flush.
    untold: HashSet<u32>,
}

impl<D: Device> Engine<D> {
    /// What a completed request changed in the map is durable already. What it wrote is, for a volume of media
    /// durability; else the drive's cache may hold it.
    pub(super) fn flush(&mut self, at: u32, io: Io) {
        let is_media = self.ports.get(at).is_none_or(|port| port.is_media);
        if is_media || !self.drive.is_volatile() {
            return self.complete(at, io.complete(Ok(())));
        }
        let tag = Tag::Flush {
            port: at,
            token: io.token,
            failures: self.flushes.failures,
        };
        self.submit_flush(tag, io.data);
    }

    pub(super) fn submit_flush(&mut self, tag: Tag, data: Segments) {
        let access = Access {
            op: Op::Flush,
            offset: 0,
            len: 0,
            fua: false,
            data,
        };
        self.drive.submit(access, tag);
    }

    /// A handle's flush has ended, which began after so many failures.
    pub(super) fn flush_answered(
        &mut self,
        (at, token): (u32, u64),
        failures: u64,
        completion: Completion,
    ) {
        if let Err(error) = completion.result {
            self.flush_failed(error);
        }
        let mut is_lost = self.flushes.failures != failures;
        if let Some(port) = self.ports.get(at)
            && matches!(port.reader, Reader::Head(_))
        {
            is_lost |= self.flushes.untold.remove(&port.slot().number());
        }
        let lost = self.flushes.last.filter(|_| is_lost);
        let result = lost.map_or(completion.result, Err);
        self.complete(
            at,
            Completion {
                token,
                result,
                ..completion
            },
        );
    }

    /// A flush has failed, whoever asked for it.
    pub(super) fn flush_failed(&mut self, error: IoError) {
        self.flushes.failures += 1;
        self.flushes.last = Some(error);
        let volumes = self.state.volumes().map(|(_, volume)| volume);
        let relying = volumes.filter(|it| it.durability == Durability::Device);
        self.flushes.untold.extend(relying.map(|it| it.number));
    }
}
