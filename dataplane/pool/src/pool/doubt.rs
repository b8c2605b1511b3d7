//! What is not known after the write of a group was said to have failed: the group may be on the drive or not.
//!
//! The state does not show it, and no group comes after it. Until the pool is opened again, whatever is acknowledged has to
//! be right in both cases. New extents, holes and all that needs a record is refused anyway. What is left is to write where
//! something is already, and to say of zeroes that they are there already: neither is done where the group says something
//! else than the state. So nobody changes
//! - an extent of a volume that the group maps, fills, moves or takes away;
//! - a chunk whose checksum counts again, if the group retires its extent;
//! - a volume that the group makes smaller or deletes, or of which it takes a snapshot.
//!
//! The rest is the same in both cases: what the group frees is not given to anybody, what it calls clean or reserved is not
//! taken, and extents that it activates have the slots that they had. Reads go on everywhere, since nothing is reused.

use std::collections::HashSet;

use bowline_block::Device;

use super::engine::Engine;
use super::view::Key;
use crate::format::codec::RecordReader;
use crate::format::record::{Record, VolumeRecord};

/// What must not be changed. At most what the records of one group name.
#[derive(Default)]
pub(super) struct Doubt {
    volumes: HashSet<u32>,
    /// Logical extents, with their volumes.
    extents: HashSet<(u32, u32)>,
}

impl Doubt {
    fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.extents.is_empty()
    }

    fn hold(&mut self, volume: u32, first: u32, count: u32) {
        let extents = first..first.saturating_add(count);
        self.extents
            .extend(extents.map(|logical| (volume, logical)));
    }
}

impl<D: Device> Engine<D> {
    /// The group that was on its way is in doubt.
    pub(super) fn doubt_group(&mut self) {
        let mut doubt = std::mem::take(&mut self.doubt);
        for record in RecordReader::new(self.journal.records()).flatten() {
            self.doubt_record(&mut doubt, &record);
        }
        self.doubt = doubt;
        if self.has_doubts() {
            for port in self.ports.iter_mut() {
                port.look_before_writing();
            }
        }
    }

    fn doubt_record(&self, doubt: &mut Doubt, record: &Record<'_>) {
        match *record {
            Record::Volume(ref record) if self.takes_away(record) => {
                doubt.volumes.insert(record.volume);
            }
            Record::Map {
                volume,
                logical,
                physical,
                ..
            } => {
                let count = u32::try_from(physical.len()).unwrap_or(u32::MAX);
                doubt.hold(volume, logical, count);
            }
            Record::MapPart {
                volume, logical, ..
            } => doubt.hold(volume, logical, 1),
            Record::Unmap {
                volume,
                logical,
                count,
                ..
            } => doubt.hold(volume, logical, count),
            Record::Retire { physical } => {
                for physical in physical.iter().filter(|it| self.keeps_sums(*it)) {
                    if let Some((volume, logical, _)) = self.state.owner(physical) {
                        doubt.hold(volume, logical, 1);
                    }
                }
            }
            // Nobody writes where these make a difference.
            Record::Volume(_)
            | Record::VolumeGone { .. }
            | Record::Snapshot(_)
            | Record::SnapshotGone { .. }
            | Record::Clean { .. }
            | Record::Activate { .. }
            | Record::Attribute { .. }
            | Record::NextVolume { .. }
            | Record::Reserve { .. } => {}
        }
    }

    /// Whether a volume would lose something by this record that its handles could write: the volume, its end, or the
    /// right to write in place.
    fn takes_away(&self, record: &VolumeRecord<'_>) -> bool {
        let slot = self.state.slot(record.volume);
        let volume = slot.and_then(|slot| self.state.volume(slot));
        volume.is_some_and(|volume| {
            record.is_deleted && !volume.is_deleted
                || record.bytes < volume.bytes
                || record.snapshots_taken != volume.snapshots_taken
        })
    }

    /// Whether it has to be asked before something is written in place.
    pub(super) fn has_doubts(&self) -> bool {
        !self.doubt.is_empty()
    }

    /// Whether an extent must not be changed, since it may be another one on the drive.
    pub(super) fn is_in_doubt(&self, (slot, logical): Key) -> bool {
        self.has_doubts()
            && (self.doubt.volumes.contains(&slot.number())
                || self.doubt.extents.contains(&(slot.number(), logical)))
    }
}
