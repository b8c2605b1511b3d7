//! The state as records, a frame at a time, while it goes on changing.
//!
//! Every record says what one thing was at some time after the checkpoint began; see
//! [`apply`](super::apply) for why that suffices. What was made since it began is left out: the
//! record that made it is replayed in any case. So is the size bounded: whatever happens
//! meanwhile, a physical extent is told of as a version at most once, and holes, volumes,
//! snapshots and attributes are those there were at the start.

use super::versions::Link;
use super::volume::Volume;
use super::{Limits, State};
use crate::format::codec::record_bytes;
use crate::format::record::{NONE, Numbers, Record};

/// The largest record of a volume or a snapshot.
const OBJECT_BYTES_MAX: u64 = 324;

/// A record of one version, without its bitmap.
const VERSION_BYTES: usize = 24;

/// Extents of a record of activity.
const ACTIVE_MAX: usize = 1024;

/// Room that any one record fits in.
pub const EMIT_ROOM_MIN: usize = 61 << 10;

/// How far a checkpoint is.
#[derive(Debug)]
pub struct Cursor {
    checkpoint: u64,
    phase: Phase,
    /// Room to gather versions in, kept from call to call.
    gathered: Vec<Gathered>,
    chain: Vec<Link>,
    numbers: Vec<u32>,
    bitmap: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    NextVolume,
    /// The volume with this number, or the first one after it.
    Volume(u32),
    /// Its snapshots from a number on.
    Snapshots(u32, u32),
    /// Its attributes from a kind on.
    Attributes(u32, u32),
    /// Its versions from a logical extent on, and of that from a `born` on.
    Versions(u32, u32, u32),
    /// Clean extents from one on.
    Clean(u32),
    /// Active extents from one on.
    Active(u32),
    Done,
}

/// In the order in which it is told: a chain from its oldest version on.
#[derive(Clone, Copy, Debug)]
struct Gathered {
    born: u32,
    logical: u32,
    link: Link,
}

/// How an [`State::emit`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emitted {
    /// That was all.
    All,
    /// The next record may not fit in the room that is left.
    Full,
}

/// Records go out as long as there is room.
struct Out<'a> {
    room: usize,
    sink: &'a mut dyn FnMut(&Record<'_>),
}

impl Out<'_> {
    /// Whether it fitted.
    fn give(&mut self, record: &Record<'_>) -> bool {
        let bytes = record_bytes(record).unwrap_or(usize::MAX);
        if bytes > self.room {
            return false;
        }
        self.room -= bytes;
        (self.sink)(record);
        true
    }
}

impl Limits {
    /// The largest number of bytes of the records of a checkpoint.
    #[must_use]
    pub fn checkpoint_bytes_max(&self) -> u64 {
        let extents = u64::from(self.extents);
        let bitmap = u64::from(self.chunks().div_ceil(8)).next_multiple_of(4);
        let versions = extents * (VERSION_BYTES as u64 + bitmap);
        let holes = u64::from(self.holes_max()) * VERSION_BYTES as u64;
        let clean = 16 * (extents / 2 + 1);
        let active = 12 * extents;
        let objects = u64::from(self.objects_max) * OBJECT_BYTES_MAX;
        12 + versions + holes + clean + active + objects + self.attribute_bytes_max
    }
}

impl State {
    /// A checkpoint begins. What is applied from now on is in the journal from where the
    /// checkpoint says that it is to be replayed: so nothing that was committed before that place
    /// may still wait to be applied.
    pub fn begin_checkpoint(&mut self) -> Cursor {
        self.checkpoint += 1;
        self.is_checkpointing = true;
        self.touched.clear();
        Cursor {
            checkpoint: self.checkpoint,
            phase: Phase::NextVolume,
            gathered: Vec::new(),
            chain: Vec::new(),
            numbers: Vec::new(),
            bitmap: vec![0; self.chains.bitmaps.bytes()],
        }
    }

    /// The checkpoint is complete, or given up.
    pub const fn end_checkpoint(&mut self) {
        self.is_checkpointing = false;
    }

    /// Hands out the next records, at most `room` bytes of them, as they are on the drive.
    /// [`EMIT_ROOM_MIN`] is room for at least one.
    pub fn emit(
        &self,
        cursor: &mut Cursor,
        room: usize,
        sink: &mut dyn FnMut(&Record<'_>),
    ) -> Emitted {
        let mut out = Out { room, sink };
        loop {
            let has_fitted = match cursor.phase {
                Phase::NextVolume => {
                    let volume = self.next_volume;
                    let has_fitted = out.give(&Record::NextVolume { volume });
                    if has_fitted {
                        cursor.phase = Phase::Volume(0);
                    }
                    has_fitted
                }
                Phase::Volume(from) => self.emit_volume(from, cursor, &mut out),
                Phase::Snapshots(number, from) => {
                    self.emit_snapshots(number, from, cursor, &mut out)
                }
                Phase::Attributes(number, from) => {
                    self.emit_attributes(number, from, cursor, &mut out)
                }
                Phase::Versions(number, logical, born) => {
                    self.emit_versions(number, (logical, born), cursor, &mut out)
                }
                Phase::Clean(from) => self.emit_clean(from, cursor, &mut out),
                Phase::Active(from) => self.emit_active(from, cursor, &mut out),
                Phase::Done => return Emitted::All,
            };
            if !has_fitted {
                return Emitted::Full;
            }
        }
    }

    fn emit_volume(&self, from: u32, cursor: &mut Cursor, out: &mut Out<'_>) -> bool {
        let is_old = |volume: &Volume| volume.made_in != cursor.checkpoint;
        let Some((_, volume)) = self.volumes.from(from).find(|(_, volume)| is_old(volume)) else {
            cursor.phase = Phase::Clean(0);
            return true;
        };
        if !out.give(&Record::Volume(volume.record())) {
            return false;
        }
        cursor.phase = Phase::Snapshots(volume.number, 0);
        true
    }

    fn emit_snapshots(
        &self,
        number: u32,
        from: u32,
        cursor: &mut Cursor,
        out: &mut Out<'_>,
    ) -> bool {
        let snapshots = self.emitted(number).map_or(&[][..], Volume::snapshots);
        let place = snapshots.partition_point(|snapshot| snapshot.number < from);
        for snapshot in &snapshots[place..] {
            if snapshot.made_in != cursor.checkpoint
                && !out.give(&Record::Snapshot(snapshot.record(number)))
            {
                cursor.phase = Phase::Snapshots(number, snapshot.number);
                return false;
            }
        }
        cursor.phase = Phase::Attributes(number, 0);
        true
    }

    fn emit_attributes(
        &self,
        number: u32,
        from: u32,
        cursor: &mut Cursor,
        out: &mut Out<'_>,
    ) -> bool {
        let attributes = self
            .emitted(number)
            .into_iter()
            .flat_map(|volume| volume.attributes.range(from..));
        for (&kind, attribute) in attributes {
            let record = Record::Attribute {
                volume: number,
                kind,
                bytes: &attribute.bytes,
            };
            if attribute.made_in != cursor.checkpoint && !out.give(&record) {
                cursor.phase = Phase::Attributes(number, kind);
                return false;
            }
        }
        cursor.phase = Phase::Versions(number, 0, 0);
        true
    }

    fn emit_versions(
        &self,
        number: u32,
        from: (u32, u32),
        cursor: &mut Cursor,
        out: &mut Out<'_>,
    ) -> bool {
        cursor.gathered.clear();
        let next = self
            .emitted(number)
            .and_then(|volume| self.gather(volume, from, cursor, out.room));
        let has_some = !cursor.gathered.is_empty();
        self.emit_gathered(number, cursor, out);
        cursor.phase = match next {
            // Whoever has the last number has no version: it stands for none.
            None => Phase::Volume(number + 1),
            Some((logical, born)) => Phase::Versions(number, logical, born),
        };
        has_some || next.is_none()
    }

    /// Gathers versions of a volume that fit in `room`, however they are; where to go on.
    fn gather(
        &self,
        volume: &Volume,
        (from, mut from_born): (u32, u32),
        cursor: &mut Cursor,
        room: usize,
    ) -> Option<(u32, u32)> {
        let mut left = room;
        let versions = &self.chains.versions;
        let part = VERSION_BYTES + self.chains.bitmaps.bytes().next_multiple_of(4);
        let mut next = volume.tree.next(from);
        while let Some(logical) = next {
            if logical != from {
                from_born = 0;
            }
            cursor.chain.clear();
            let newest = volume.tree.newest(logical);
            cursor.chain.extend(self.chains.iter(newest));
            for &link in cursor.chain.iter().rev() {
                let born = versions.born(link);
                if born < from_born || self.touched.contains(versions.ordinal(link)) {
                    continue;
                }
                let is_part = !link.is_hole() && self.chains.is_part(link);
                let bytes = if is_part { part } else { VERSION_BYTES };
                if bytes > left {
                    return Some((logical, born));
                }
                left -= bytes;
                cursor.gathered.push(Gathered {
                    born,
                    logical,
                    link,
                });
            }
            next = volume.tree.next(logical + 1);
        }
        None
    }

    /// Versions without a bitmap and with the same `born` are told together.
    fn emit_gathered(&self, volume: u32, cursor: &mut Cursor, out: &mut Out<'_>) {
        let is_whole = |link: Link| link.is_hole() || !self.chains.is_part(link);
        cursor
            .gathered
            .sort_unstable_by_key(|item| (item.born, item.logical));
        let mut rest = &cursor.gathered[..];
        while let Some(first) = rest.first() {
            let (born, logical) = (first.born, first.logical);
            let run = (logical..)
                .zip(rest)
                .take_while(|(logical, item)| {
                    item.logical == *logical && item.born == born && is_whole(item.link)
                })
                .count();
            if run > 0 {
                let physical = |item: &Gathered| item.link.physical().unwrap_or(NONE);
                cursor.numbers.clear();
                cursor.numbers.extend(rest[..run].iter().map(physical));
                out.give(&Record::Map {
                    volume,
                    born,
                    logical,
                    physical: Numbers::Native(&cursor.numbers),
                });
            } else if let Some(physical) = first.link.physical() {
                self.copy_bitmap(physical, &mut cursor.bitmap);
                out.give(&Record::MapPart {
                    volume,
                    born,
                    logical,
                    physical,
                    bitmap: &cursor.bitmap,
                });
            }
            rest = &rest[run.max(1)..];
        }
    }

    fn emit_clean(&self, from: u32, cursor: &mut Cursor, out: &mut Out<'_>) -> bool {
        let Some(physical) = self.allocator.clean.next(from) else {
            cursor.phase = Phase::Active(0);
            return true;
        };
        let run = self.allocator.clean.run(physical, u32::MAX);
        let count = run.end - run.start;
        if !out.give(&Record::Clean { physical, count }) {
            return false;
        }
        cursor.phase = Phase::Clean(run.end);
        true
    }

    fn emit_active(&self, from: u32, cursor: &mut Cursor, out: &mut Out<'_>) -> bool {
        let first = self.active.next(from);
        let active = std::iter::successors(first, |last| self.active.next(last + 1));
        cursor.numbers.clear();
        cursor.numbers.extend(active.take(ACTIVE_MAX));
        let Some(last) = cursor.numbers.last() else {
            cursor.phase = Phase::Done;
            return true;
        };
        let physical = Numbers::Native(&cursor.numbers);
        if !out.give(&Record::Activate { physical }) {
            return false;
        }
        cursor.phase = Phase::Active(last + 1);
        true
    }

    /// The volume that is told of just now, if it is not gone meanwhile.
    fn emitted(&self, number: u32) -> Option<&Volume> {
        self.volumes.at(self.volumes.index(number)?)
    }
}
