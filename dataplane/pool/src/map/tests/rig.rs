//! Does to a state what an engine does, over a drive that is a table of contents.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::format::codec::{RecordReader, RecordWriter, record_bytes};
use crate::format::record::{
    Checksums, Durability, NONE, Numbers, Record, SnapshotRecord, VolumeRecord,
};
use crate::map::{
    Collector, Cursor, EMIT_ROOM_MIN, Emitted, Garbage, HeadEntry, Limits, Reader, Slot, State,
    Step, Tolerance,
};

pub(super) const CHUNKS: u32 = 8;
const EXTENT: u32 = CHUNKS * 4096;

/// Contents of chunks by their places; what is not there is zero.
type Contents = BTreeMap<(u32, u32), u64>;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Create {
        extents: u32,
        thick: bool,
    },
    Write {
        volume: usize,
        logical: u32,
        first: u32,
        count: u32,
        unclean: bool,
    },
    Deallocate {
        volume: usize,
        logical: u32,
        first: u32,
        count: u32,
    },
    Snapshot(usize),
    DeleteSnapshot {
        volume: usize,
        at: usize,
    },
    Clone {
        volume: usize,
        at: usize,
    },
    DeleteVolume {
        volume: usize,
        at_once: bool,
    },
    Grow {
        volume: usize,
        extents: u32,
    },
    Shrink {
        volume: usize,
        extents: u32,
    },
    Clean(u32),
    Attribute {
        volume: usize,
        kind: u32,
        bytes: usize,
    },
    Activity {
        physical: u32,
        is_active: bool,
    },
    Checkpoint,
    Emit(usize),
    Collect(u32),
    Reopen,
}

#[derive(Clone, Debug, Default)]
struct Model {
    contents: Contents,
    snapshots: BTreeMap<u32, Contents>,
    /// By logical extent and number of snapshots taken: whether the last thing that happened to it
    /// was that it was written, and not deallocated.
    changes: BTreeMap<(u32, u32), bool>,
}

/// A checkpoint that is written, and what the superblock says of it then.
struct Written {
    bytes: Vec<u8>,
    /// Where the journal is to be replayed from, and from where on strictly.
    begin: usize,
    end: usize,
}

/// A checkpoint that is being written.
struct Checkpoint {
    cursor: Cursor,
    bytes: Vec<u8>,
    /// Where the journal was when it began.
    begin: usize,
}

pub(super) struct Rig {
    pub(super) state: State,
    /// What a drive holds: 0 is zeroes.
    disk: Vec<[u64; CHUNKS as usize]>,
    models: BTreeMap<u32, Model>,
    journal: Vec<u8>,
    checkpoint: Option<Checkpoint>,
    written: Written,
    collector: Collector,
    next_content: u64,
}

impl Rig {
    pub(super) fn new(extents: u32) -> Self {
        let mut state = State::new(limits(extents));
        state.recovered().unwrap();
        let mut rig = Self {
            state,
            disk: vec![[u64::MAX; CHUNKS as usize]; extents as usize],
            models: BTreeMap::new(),
            journal: Vec::new(),
            checkpoint: None,
            written: Written {
                bytes: Vec::new(),
                begin: 0,
                end: 0,
            },
            collector: Collector::new(),
            next_content: 1,
        };
        rig.clean(extents / 2);
        rig
    }

    pub(super) fn run(&mut self, op: &Op) {
        match *op {
            Op::Create { extents, thick } => self.create(extents, thick, None),
            Op::Write {
                volume,
                logical,
                first,
                count,
                unclean,
            } => {
                if let Some(slot) = self.pick(volume) {
                    let end = (first + count).min(CHUNKS);
                    self.write(slot, logical, first..end, unclean);
                }
            }
            Op::Deallocate {
                volume,
                logical,
                first,
                count,
            } => {
                if let Some(slot) = self.pick(volume) {
                    let end = (first + count).min(CHUNKS);
                    self.deallocate(slot, logical, first..end);
                }
            }
            Op::Snapshot(volume) => self.snapshot(volume),
            Op::DeleteSnapshot { volume, at } => self.delete_snapshot(volume, at),
            Op::Clone { volume, at } => {
                if let Some((volume, number)) = self.pick_snapshot(volume, at) {
                    self.create(0, false, Some((volume.number(), number)));
                }
            }
            Op::DeleteVolume { volume, at_once } => self.delete_volume(volume, at_once),
            Op::Grow { volume, extents } => self.grow(volume, extents),
            Op::Shrink { volume, extents } => self.shrink(volume, extents),
            Op::Clean(count) => self.clean(count),
            Op::Attribute {
                volume,
                kind,
                bytes,
            } => {
                if let Some(slot) = self.pick(volume) {
                    let bytes = vec![7; bytes];
                    let volume = slot.number();
                    self.commit(&[Record::Attribute {
                        volume,
                        kind,
                        bytes: &bytes,
                    }]);
                }
            }
            Op::Activity {
                physical,
                is_active,
            } => {
                let physical = Numbers::Native(&[physical]);
                self.commit(&[if is_active {
                    Record::Activate { physical }
                } else {
                    Record::Retire { physical }
                }]);
            }
            Op::Reopen => self.reopen(),
            Op::Checkpoint => self.begin_checkpoint(),
            Op::Emit(room) => self.emit(room),
            Op::Collect(steps) => {
                self.collect(steps);
            }
        }
    }

    /// Every reader sees what the oracle says, and what is said to be zero is.
    pub(super) fn verify(&self) {
        assert_eq!(self.state.check(), Vec::<String>::new());
        for (number, model) in &self.models {
            let slot = self.state.slot(*number).unwrap();
            let volume = self.state.volume(slot).unwrap();
            if !volume.is_deleted {
                self.verify_reader(Reader::Head(slot), volume.end, &model.contents);
            }
            for (number, contents) in &model.snapshots {
                let end = volume.snapshot(*number).unwrap().end;
                self.verify_reader(Reader::Snapshot(slot, *number), end, contents);
            }
        }
        for physical in 0..self.state.limits().extents {
            if self.state.allocator.clean.contains(physical)
                || self.state.allocator.reserved.contains(physical)
            {
                assert_eq!(self.disk[physical as usize], [0; CHUNKS as usize]);
            }
        }
    }

    /// Writes the rest of a checkpoint, and reads it back.
    pub(super) fn finish_checkpoint(&mut self) {
        while self.checkpoint.is_some() {
            self.emit(EMIT_ROOM_MIN);
        }
    }

    /// Collects everything. What is allocated then is what somebody reads: for each logical extent
    /// as many extents as its readers see it at different times, and not deallocated.
    pub(super) fn verify_space(&mut self) {
        while self.collect(1000) {}
        let mut wanted = BTreeSet::new();
        for (&number, model) in &self.models {
            let slot = self.state.slot(number).unwrap();
            let volume = self.state.volume(slot).unwrap();
            let snapshots = volume.snapshots().iter();
            let readers: Vec<_> = snapshots
                .map(|snapshot| (snapshot.number, snapshot.end))
                .chain((!volume.is_deleted).then_some((NONE, volume.end)))
                .collect();
            for logical in 0..20 {
                for (reader, _) in readers.iter().filter(|(_, end)| logical < *end) {
                    let seen = model.changes.range((logical, 0)..(logical, *reader));
                    if let Some((&(_, born), true)) = seen.last() {
                        wanted.insert((number, logical, born));
                    }
                }
            }
        }
        assert_eq!(self.state.extents().used as usize, wanted.len());
    }

    /// Takes steps of the collector; whether it has more to do.
    fn collect(&mut self, steps: u32) -> bool {
        for _ in 0..steps {
            match self.collector.step(&mut self.state) {
                Step::Idle => return false,
                Step::Looked => {}
                Step::Commit(garbage) => {
                    if let Garbage::Volume { volume } = garbage {
                        self.models.remove(&volume);
                    }
                    self.commit(&garbage.records());
                }
                Step::Merge(merge) => {
                    let from = self.disk[merge.from as usize];
                    let into = &mut self.disk[merge.into as usize];
                    for chunk in 0..CHUNKS as usize {
                        if merge.chunks[0] >> chunk & 1 != 0 {
                            into[chunk] = from[chunk];
                        }
                    }
                    self.commit(&merge.records());
                }
            }
        }
        true
    }

    fn verify_reader(&self, reader: Reader, end: u32, contents: &Contents) {
        let mut runs = Vec::new();
        for logical in 0..end {
            self.state.resolve(reader, logical, 0..CHUNKS, &mut runs);
            let mut at = 0;
            for run in &runs {
                assert_eq!(run.chunks.start, at);
                at = run.chunks.end;
                for chunk in run.chunks.clone() {
                    let physical = run.physical.map(|physical| self.disk[physical as usize]);
                    let found = physical.map_or(0, |extent| extent[chunk as usize]);
                    let wanted = contents.get(&(logical, chunk)).copied().unwrap_or(0);
                    assert_eq!(found, wanted, "{reader:?} extent {logical} chunk {chunk}");
                }
            }
            assert_eq!(at, CHUNKS);
        }
    }

    fn commit(&mut self, records: &[Record<'_>]) {
        for record in records {
            push(&mut self.journal, record);
            if let Err(damage) = self.state.apply(record, Tolerance::Strict) {
                panic!("{record:?}: {damage}");
            }
        }
        // Nobody is reading what was freed.
        while let Some(physical) = self.state.next_freed() {
            self.state.release(physical);
        }
    }

    fn pick(&self, index: usize) -> Option<Slot> {
        let live = self
            .state
            .volumes()
            .filter(|(_, volume)| !volume.is_deleted);
        let slots: Vec<_> = live.map(|(slot, _)| slot).collect();
        slots.get(index % slots.len().max(1)).copied()
    }

    fn pick_snapshot(&self, volume: usize, at: usize) -> Option<(Slot, u32)> {
        let slots: Vec<_> = self.state.volumes().map(|(slot, _)| slot).collect();
        let slot = *slots.get(volume % slots.len().max(1))?;
        let numbers: Vec<_> = self.models[&slot.number()]
            .snapshots
            .keys()
            .copied()
            .collect();
        let number = *numbers.get(at % numbers.len().max(1))?;
        Some((slot, number))
    }

    fn create(&mut self, extents: u32, is_thick: bool, base: Option<(u32, u32)>) {
        if self.state.objects_left() == 0 {
            return;
        }
        let volume = self.state.next_volume();
        let snapshot = base.map(|(volume, number)| {
            let slot = self.state.slot(volume).unwrap();
            self.state.volume(slot).unwrap().snapshot(number).unwrap()
        });
        let bytes = snapshot.map_or(u64::from(extents * EXTENT), |snapshot| snapshot.bytes);
        let contents = base.map(|(volume, number)| self.models[&volume].snapshots[&number].clone());
        self.models.insert(
            volume,
            Model {
                contents: contents.unwrap_or_default(),
                ..Model::default()
            },
        );
        self.commit(&[Record::Volume(VolumeRecord {
            volume,
            uuid: Uuid::from_u128(volume.into()),
            bytes,
            block_bytes: 512,
            snapshots_taken: 0,
            base,
            is_thick,
            is_deleted: false,
            is_being_made: false,
            durability: Durability::Media,
            checksums: Checksums::Off,
            created: 0,
            name: "some",
        })]);
    }

    fn write(&mut self, slot: Slot, logical: u32, chunks: std::ops::Range<u32>, unclean: bool) {
        let volume = self.state.volume(slot).unwrap();
        let taken = volume.snapshots_taken;
        let born = self.state.born(slot, logical);
        if logical >= self.state.limits().logical_extents(volume.bytes).unwrap() {
            return;
        }
        let mut bits = 0u8;
        let (physical, is_whole) = match self.state.head(slot, logical) {
            HeadEntry::Whole {
                physical,
                is_own: true,
            } => (physical, true),
            HeadEntry::Part {
                physical,
                is_own: true,
            } => {
                let mut bytes = [0];
                self.state.copy_bitmap(physical, &mut bytes);
                bits = bytes[0];
                (physical, false)
            }
            entry => {
                let Some((physical, is_zero)) = self.allocate(unclean) else {
                    return;
                };
                let is_hole = matches!(entry, HeadEntry::Hole { is_own: true });
                if is_hole && !is_zero {
                    self.disk[physical as usize] = [0; CHUNKS as usize];
                }
                let is_empty = matches!(entry, HeadEntry::Nothing { has_base: false });
                (physical, is_hole || (is_empty && is_zero))
            }
        };
        let model = self.models.get_mut(&slot.number()).unwrap();
        model.changes.insert((logical, taken), true);
        for chunk in chunks {
            let content = self.next_content;
            self.next_content += 1;
            self.disk[physical as usize][chunk as usize] = content;
            model.contents.insert((logical, chunk), content);
            bits |= 1 << chunk;
        }
        let (volume, physicals, bitmap) = (slot.number(), [physical], [bits]);
        let whole = Record::Map {
            volume,
            born,
            logical,
            physical: Numbers::Native(&physicals),
        };
        let part = Record::MapPart {
            volume,
            born,
            logical,
            physical,
            bitmap: &bitmap,
        };
        self.commit(&[if is_whole { whole } else { part }]);
    }

    fn deallocate(&mut self, slot: Slot, logical: u32, chunks: std::ops::Range<u32>) {
        let volume = self.state.volume(slot).unwrap();
        let taken = volume.snapshots_taken;
        let born = self.state.born(slot, logical);
        let is_inside = logical < self.state.limits().logical_extents(volume.bytes).unwrap();
        let shows_older = self.state.shows_older(slot, logical);
        let volume = slot.number();
        let unmap = Record::Unmap {
            volume,
            born,
            logical,
            count: 1,
        };
        if !is_inside {
            return;
        }
        let mut is_empty = true;
        if chunks == (0..CHUNKS) {
            if !shows_older {
                self.commit(&[unmap]);
            } else if self.state.holes_left() > 0 {
                let physical = Numbers::Native(&[NONE]);
                self.commit(&[Record::Map {
                    volume,
                    born,
                    logical,
                    physical,
                }]);
            } else {
                return;
            }
        } else {
            match self.state.head(slot, logical) {
                HeadEntry::Whole {
                    physical,
                    is_own: true,
                }
                | HeadEntry::Part {
                    physical,
                    is_own: true,
                } if !shows_older => {
                    let mut bitmap = [0];
                    self.state.copy_bitmap(physical, &mut bitmap);
                    chunks.clone().for_each(|chunk| bitmap[0] &= !(1 << chunk));
                    let part = Record::MapPart {
                        volume,
                        born,
                        logical,
                        physical,
                        bitmap: &bitmap,
                    };
                    is_empty = bitmap == [0];
                    self.commit(&[if is_empty { unmap } else { part }]);
                }
                _ => return,
            }
        }
        let model = self.models.get_mut(&volume).unwrap();
        if is_empty {
            model.changes.insert((logical, taken), false);
        }
        for chunk in chunks {
            model.contents.remove(&(logical, chunk));
        }
    }

    fn snapshot(&mut self, volume: usize) {
        let Some(slot) = self.pick(volume) else {
            return;
        };
        if self.state.objects_left() == 0 {
            return;
        }
        let volume = self.state.volume(slot).unwrap();
        let number = volume.snapshots_taken + 1;
        let bytes = volume.bytes;
        let name = volume.name.clone();
        let record = VolumeRecord {
            snapshots_taken: number,
            ..volume.record()
        };
        let record = VolumeRecord {
            name: &name,
            ..record
        };
        self.commit(&[
            Record::Volume(record),
            Record::Snapshot(SnapshotRecord {
                volume: slot.number(),
                number,
                uuid: Uuid::from_u128(number.into()),
                bytes,
                is_deleted: false,
                created: 0,
                name: "as it was",
            }),
        ]);
        let model = self.models.get_mut(&slot.number()).unwrap();
        model.snapshots.insert(number, model.contents.clone());
    }

    fn delete_snapshot(&mut self, volume: usize, at: usize) {
        let Some((slot, number)) = self.pick_snapshot(volume, at) else {
            return;
        };
        let volume = slot.number();
        if self.state.clones(volume, number) == 0 {
            self.commit(&[Record::SnapshotGone { volume, number }]);
        } else {
            let snapshot = self.state.volume(slot).unwrap().snapshot(number).unwrap();
            let name = snapshot.name.clone();
            let record = SnapshotRecord {
                is_deleted: true,
                ..snapshot.record(volume)
            };
            let record = SnapshotRecord {
                name: &name,
                ..record
            };
            self.commit(&[Record::Snapshot(record)]);
        }
        self.models
            .get_mut(&volume)
            .unwrap()
            .snapshots
            .remove(&number);
    }

    fn delete_volume(&mut self, volume: usize, at_once: bool) {
        let Some(slot) = self.pick(volume) else {
            return;
        };
        let number = slot.number();
        let volume = self.state.volume(slot).unwrap();
        if at_once && volume.snapshots().is_empty() {
            self.commit(&[Record::VolumeGone { volume: number }]);
            self.models.remove(&number);
            return;
        }
        self.change(slot, |record| record.is_deleted = true);
        self.models.get_mut(&number).unwrap().snapshots.clear();
    }

    /// What was there before the volume became smaller is hidden first.
    fn grow(&mut self, volume: usize, extents: u32) {
        let Some(slot) = self.pick(volume) else {
            return;
        };
        let end = self.state.volume(slot).unwrap().end;
        while let Some(logical) = self.state.next_shown(slot, end..u32::MAX) {
            let (volume, born) = (slot.number(), self.state.born(slot, logical));
            if !self.state.shows_older(slot, logical) {
                self.commit(&[Record::Unmap {
                    volume,
                    born,
                    logical,
                    count: 1,
                }]);
            } else if self.state.holes_left() > 0 {
                let physical = Numbers::Native(&[NONE]);
                self.commit(&[Record::Map {
                    volume,
                    born,
                    logical,
                    physical,
                }]);
            } else {
                return;
            }
        }
        self.change(slot, |record| record.bytes += u64::from(extents * EXTENT));
    }

    fn shrink(&mut self, volume: usize, extents: u32) {
        let Some(slot) = self.pick(volume) else {
            return;
        };
        let volume = self.state.volume(slot).unwrap();
        let (taken, end) = (volume.snapshots_taken, volume.end.saturating_sub(extents));
        if end == 0 {
            return;
        }
        self.change(slot, |record| record.bytes = u64::from(end * EXTENT));
        let model = self.models.get_mut(&slot.number()).unwrap();
        model.contents.retain(|(logical, _), _| *logical < end);
        for logical in end..20 {
            model.changes.insert((logical, taken), false);
        }
    }

    fn change(&mut self, slot: Slot, with: impl FnOnce(&mut VolumeRecord<'_>)) {
        let volume = self.state.volume(slot).unwrap();
        let name = volume.name.clone();
        let mut record = VolumeRecord {
            name: &name,
            ..own(volume.record())
        };
        with(&mut record);
        self.commit(&[Record::Volume(record)]);
    }

    /// A physical extent, and whether it is zero.
    fn allocate(&mut self, unclean: bool) -> Option<(u32, bool)> {
        if unclean && let Some(run) = self.state.take_unclean(3, 1) {
            return Some((run.start, false));
        }
        if let Some(physical) = self.state.take_reserved(5) {
            return Some((physical, true));
        }
        if let Some(run) = self.state.clean_run(5, 4) {
            let (physical, count) = (run.start, run.end - run.start);
            self.commit(&[Record::Reserve { physical, count }]);
            return Some((self.state.take_reserved(physical).unwrap(), true));
        }
        let run = self.state.take_unclean(3, 1)?;
        Some((run.start, false))
    }

    fn clean(&mut self, count: u32) {
        let Some(run) = self.state.take_unclean(0, count) else {
            return;
        };
        for physical in run.clone() {
            self.disk[physical as usize] = [0; CHUNKS as usize];
        }
        let (physical, count) = (run.start, run.end - run.start);
        self.commit(&[Record::Clean { physical, count }]);
    }

    fn begin_checkpoint(&mut self) {
        self.checkpoint = Some(Checkpoint {
            cursor: self.state.begin_checkpoint(),
            bytes: Vec::new(),
            begin: self.journal.len(),
        });
    }

    fn emit(&mut self, room: usize) {
        let Some(mut checkpoint) = self.checkpoint.take() else {
            return;
        };
        let before = checkpoint.bytes.len();
        let bytes = &mut checkpoint.bytes;
        let emitted = self
            .state
            .emit(&mut checkpoint.cursor, room, &mut |record| {
                push(bytes, record)
            });
        assert!(checkpoint.bytes.len() - before <= room);
        if emitted == Emitted::All {
            self.state.end_checkpoint();
            self.written = Written {
                bytes: checkpoint.bytes,
                begin: checkpoint.begin,
                end: self.journal.len(),
            };
            self.recover();
        } else {
            self.checkpoint = Some(checkpoint);
        }
    }

    /// The pool is opened again, as after a crash.
    fn reopen(&mut self) {
        self.state = self.recover();
        self.checkpoint = None;
        self.collector = Collector::new();
    }

    /// The checkpoint and the journal from its beginning on are the state.
    fn recover(&mut self) -> State {
        let limits = *self.state.limits();
        let written = &self.written;
        assert!(written.bytes.len() as u64 <= limits.checkpoint_bytes_max());
        let mut state = State::new(limits);
        for (bytes, tolerance) in [
            (&written.bytes[..], Tolerance::Replay),
            (&self.journal[written.begin..written.end], Tolerance::Replay),
            (&self.journal[written.end..], Tolerance::Strict),
        ] {
            for record in RecordReader::new(bytes) {
                state.apply(&record.unwrap(), tolerance).unwrap();
            }
        }
        state.recovered().unwrap();
        assert_eq!(state.check(), Vec::<String>::new());
        assert_eq!(dump(&mut state), dump(&mut self.state));
        let (is, was) = (state.extents(), self.state.extents());
        assert_eq!(
            (is.used, is.clean, is.promised),
            (was.used, was.clean, was.promised)
        );
        assert_eq!(is.unclean, is.all - is.used - is.clean);
        state
    }
}

pub(super) fn limits(extents: u32) -> Limits {
    Limits {
        extents,
        extent_bytes: EXTENT,
        chunk_bytes: 4096,
        objects_max: 40,
        attribute_bytes_max: 200,
    }
}

/// A record without its borrowed name.
fn own<'a>(record: VolumeRecord<'_>) -> VolumeRecord<'a> {
    VolumeRecord { name: "", ..record }
}

fn push(bytes: &mut Vec<u8>, record: &Record<'_>) {
    let begin = bytes.len();
    bytes.resize(begin + record_bytes(record).unwrap(), 0);
    RecordWriter::new(&mut bytes[begin..]).push(record).unwrap();
}

/// All records that make a state, as text. A checkpoint that is being written is given up, so this
/// is only asked where there is none, or of one that is forgotten.
fn dump(state: &mut State) -> String {
    let mut text = String::new();
    let mut cursor = state.begin_checkpoint();
    while state.emit(&mut cursor, 1 << 20, &mut |record| {
        text.push_str(&format!("{record:?}\n"));
    }) == Emitted::Full
    {}
    state.end_checkpoint();
    text
}
