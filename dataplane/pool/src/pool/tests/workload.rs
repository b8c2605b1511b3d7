//! What a pool is asked to do, by chance.

use bowline_block::{Op, Segments};
use uuid::Uuid;

use super::oracle::{Content, Life, Volume};
use super::timeline::{Asked, FLIGHTS_MAX, Flight, InFlight, Timeline};
use crate::format::record::{Checksums, Durability};
use crate::{Provisioning, VolumeSpec};

/// Sizes of volumes are counted in this.
const CHUNK: u64 = 4096;

/// Largest volume, in chunks.
const CHUNKS_MAX: u64 = 40;

const VOLUMES_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 4;

impl Timeline<'_> {
    /// A volume that is there and stays so for now.
    fn any_volume(&mut self) -> Option<u128> {
        let here = self.oracle.volumes.iter();
        let here: Vec<u128> = here
            .filter(|(_, it)| it.life == Life::Here)
            .map(|(uuid, _)| *uuid)
            .collect();
        (!here.is_empty()).then(|| here[self.random.index(here.len())])
    }

    fn overlaps(&self, uuid: u128, lba: usize, blocks: usize, is_compare: bool) -> bool {
        self.flights.values().any(|it| {
            it.volume == uuid
                && it.lba < lba + blocks
                && lba < it.lba + it.blocks
                && (is_compare || matches!(it.flight, Flight::Compare(..)))
        })
    }

    /// A write, zeroes, or compare-and-write.
    pub(super) fn submit_io(&mut self) {
        let Some(uuid) = self.any_volume() else {
            return self.operate();
        };
        if self.flights.len() >= FLIGHTS_MAX {
            return;
        }
        let volume = &self.oracle.volumes[&uuid];
        let (block_bytes, all) = (u64::from(volume.block_bytes), volume.blocks());
        let is_media = volume.durability == Durability::Media;
        let (lba, blocks) = self.any_range(all, block_bytes);
        let what = self.random.below(16);
        let is_compare = what == 0;
        let blocks = if is_compare { blocks.min(8) } else { blocks };
        // Requests that overlap are rare, and nobody writes where another one compares.
        let is_exclusive = is_compare || !self.random.once_in(6);
        if self.overlaps(uuid, lba, blocks, is_exclusive) {
            return;
        }
        let fua = self.random.once_in(4);
        let is_stable = is_media || fua || !self.plan.is_volatile;
        if is_compare {
            return self.submit_compare(uuid, (lba, blocks), fua, is_stable);
        }
        let mut values = vec![0; blocks];
        let (op, data) = match what {
            1..=9 => {
                values.fill_with(|| self.oracle.new_value());
                (Op::Write, self.payload(&values, block_bytes))
            }
            10 | 11 => (Op::WriteZeroes { deallocate: false }, Segments::new()),
            12 | 13 => (Op::WriteZeroes { deallocate: true }, Segments::new()),
            _ => (Op::Deallocate, Segments::new()),
        };
        self.write_beside(uuid, lba, &values);
        let id = self.oracle.write(uuid, lba, &values, is_stable);
        let in_flight = InFlight {
            volume: uuid,
            lba,
            blocks,
            flight: Flight::Write(id),
        };
        self.send(in_flight, op, fua, data);
    }

    /// Where to write: often a part of a chunk, sometimes whole extents.
    fn any_range(&mut self, all: usize, block_bytes: u64) -> (usize, usize) {
        let chunk = usize::try_from(CHUNK / block_bytes).unwrap();
        let extent = 4 * chunk;
        let (mut lba, mut blocks) = match self.random.below(8) {
            0..=3 => (self.random.index(all), 1 + self.random.index(chunk)),
            4 => (self.random.index(all), 1 + self.random.index(2 * extent)),
            5 => (
                self.random.index(all) / chunk * chunk,
                chunk * (1 + self.random.index(3)),
            ),
            6 => (self.random.index(all) / extent * extent, extent),
            _ => (self.random.index(all) / extent * extent, 2 * extent),
        };
        lba = lba.min(all - 1);
        blocks = blocks.min(all - lba);
        (lba, blocks)
    }

    fn submit_compare(
        &mut self,
        uuid: u128,
        (lba, blocks): (usize, usize),
        fua: bool,
        is_stable: bool,
    ) {
        let block_bytes = u64::from(self.oracle.volumes[&uuid].block_bytes);
        let mut expected = self.oracle.known(uuid, lba..lba + blocks);
        if self.random.once_in(4) {
            expected = None;
        }
        let is_match = expected.is_some();
        let mut values = expected.unwrap_or_else(|| {
            let wrong = || self.oracle.new_value();
            std::iter::repeat_with(wrong).take(blocks).collect()
        });
        for _ in 0..blocks {
            let value = self.oracle.new_value();
            values.push(value);
        }
        let data = self.payload(&values, block_bytes);
        self.write_beside(uuid, lba, &values[blocks..]);
        let id = self.oracle.write(uuid, lba, &values[blocks..], is_stable);
        let in_flight = InFlight {
            volume: uuid,
            lba,
            blocks,
            flight: Flight::Compare(id, is_match),
        };
        self.send(in_flight, Op::CompareAndWrite, fua, data);
    }

    /// Blocks with these values, in one to three segments.
    fn payload(&self, values: &[u64], block_bytes: u64) -> Segments {
        let mut data = Segments::new();
        let block = usize::try_from(block_bytes).unwrap();
        let parts = 1 + values.len() % 3;
        for part in values.chunks(values.len().div_ceil(parts)) {
            let mut buf = self.buffers.alloc(part.len() * block).unwrap();
            let blocks = buf.as_mut().unwrap().chunks_mut(block);
            for (bytes, value) in blocks.zip(part) {
                for word in bytes.as_chunks_mut::<8>().0 {
                    *word = value.to_le_bytes();
                }
            }
            data.push(buf).unwrap();
        }
        data
    }

    /// Reads that are under way may find what is written now.
    fn write_beside(&mut self, uuid: u128, lba: usize, values: &[u64]) {
        for flight in self.flights.values_mut().filter(|it| it.volume == uuid) {
            if let Flight::Read(possible) = &mut flight.flight {
                for (at, value) in (lba..).zip(values) {
                    let block = at.checked_sub(flight.lba);
                    if let Some(block) = block.and_then(|block| possible.get_mut(block)) {
                        block.push(*value);
                    }
                }
            }
        }
    }

    /// Reads, beside whatever is written.
    pub(super) fn submit_read(&mut self) {
        let Some(uuid) = self.any_volume() else {
            return;
        };
        if self.flights.len() >= FLIGHTS_MAX {
            return;
        }
        let volume = &self.oracle.volumes[&uuid];
        let (block_bytes, all) = (u64::from(volume.block_bytes), volume.blocks());
        let (lba, blocks) = self.any_range(all, block_bytes);
        let possible = self.oracle.possible(uuid, lba..lba + blocks);
        let data = self.payload(&vec![u64::MAX; blocks], block_bytes);
        let in_flight = InFlight {
            volume: uuid,
            lba,
            blocks,
            flight: Flight::Read(possible),
        };
        self.send(in_flight, Op::Read, false, data);
    }

    pub(super) fn submit_flush(&mut self) {
        if let Some(uuid) = self.any_volume() {
            let flush = self.oracle.flush(uuid);
            let in_flight = InFlight {
                volume: uuid,
                lba: 0,
                blocks: 0,
                flight: Flight::Flush(flush),
            };
            self.send(in_flight, Op::Flush, false, Segments::new());
        }
    }

    /// Asks for an operation.
    pub(super) fn operate(&mut self) {
        if self.asked.len() >= 3 || self.is_failing() {
            return;
        }
        let volume = self.any_volume().filter(|uuid| !self.busy.contains(uuid));
        let what = self.random.below(20);
        match (volume, what) {
            (Some(uuid), 0..=6) => self.ask_snapshot(uuid),
            (Some(uuid), 7..=10) => self.ask_delete_snapshot(uuid),
            (Some(uuid), 11 | 12) => self.ask_resize(uuid),
            (Some(uuid), 13) => self.ask_delete(uuid),
            (Some(uuid), 14 | 15) => self.ask_attribute(uuid),
            _ => self.ask_create(),
        }
    }

    fn ask_snapshot(&mut self, uuid: u128) {
        let volume = &self.oracle.volumes[&uuid];
        if volume.snapshots.len() >= SNAPSHOTS_MAX {
            return;
        }
        let number = volume.number;
        let snapshot = self.new_uuid();
        self.oracle.snapshot(uuid, snapshot);
        let (id, name) = Self::name(snapshot);
        let pool = self.pool.as_mut().unwrap();
        let operation = pool.create_snapshot(number, id, name, 1);
        self.ask(Asked::Snapshot(uuid, snapshot), operation);
    }

    /// One of a volume's snapshots.
    fn any_snapshot(&mut self, uuid: u128) -> Option<(u128, u32)> {
        let snapshots = &self.oracle.volumes[&uuid].snapshots;
        let here = snapshots.iter().filter(|(_, it)| it.life == Life::Here);
        let here: Vec<(u128, u32)> = here.map(|(uuid, it)| (*uuid, it.number)).collect();
        (!here.is_empty()).then(|| here[self.random.index(here.len())])
    }

    fn ask_delete_snapshot(&mut self, uuid: u128) {
        let number = self.oracle.volumes[&uuid].number;
        let Some((snapshot, of)) = self.any_snapshot(uuid) else {
            return;
        };
        self.oracle.deleting_snapshot(uuid, snapshot);
        let operation = self.pool.as_mut().unwrap().delete_snapshot(number, of);
        self.ask(Asked::DeleteSnapshot(uuid, snapshot), operation);
    }

    fn ask_resize(&mut self, uuid: u128) {
        let volume = &self.oracle.volumes[&uuid];
        let block_bytes = u64::from(volume.block_bytes);
        let (number, chunks) = (volume.number, volume.blocks() as u64 * block_bytes / CHUNK);
        let chunks = (chunks + 1 + self.random.below(8))
            .min(CHUNKS_MAX)
            .max(chunks);
        let blocks = usize::try_from(chunks * CHUNK / block_bytes).unwrap();
        self.oracle.resizing(uuid, blocks);
        let pool = self.pool.as_mut().unwrap();
        let operation = pool.resize_volume(number, chunks * CHUNK, true);
        self.ask(Asked::Resize(uuid), operation);
    }

    fn ask_delete(&mut self, uuid: u128) {
        let number = self.oracle.volumes[&uuid].number;
        self.oracle.deleting(uuid);
        let operation = self.pool.as_mut().unwrap().delete_volume(number);
        self.ask(Asked::Delete(uuid), operation);
    }

    fn ask_attribute(&mut self, uuid: u128) {
        let number = self.oracle.volumes[&uuid].number;
        let len = self.random.index(self.campaign.attribute_bytes);
        let fill = u8::try_from(self.random.below(256)).unwrap();
        let bytes = vec![fill; len];
        self.oracle.setting_attribute(uuid, bytes.clone());
        let pool = self.pool.as_mut().unwrap();
        let operation = pool.set_attribute(number, 1, bytes);
        self.ask(Asked::Attribute(uuid), operation);
    }

    fn ask_create(&mut self) {
        if self.oracle.volumes.len() >= VOLUMES_MAX {
            return;
        }
        let uuid = self.new_uuid();
        let mut block_bytes = self.plan.block_bytes;
        if self.plan.block_bytes * self.plan.atomic_blocks >= 4096 && self.random.once_in(2) {
            block_bytes = 4096;
        }
        let durability = if self.random.once_in(2) {
            Durability::Media
        } else {
            Durability::Device
        };
        let checksums = [Checksums::Off, Checksums::Scrub, Checksums::Verify];
        let checksums = checksums[self.random.index(3)];
        let provisioning = if self.random.once_in(6) {
            Provisioning::Thick
        } else {
            Provisioning::Thin
        };
        let mut bytes = CHUNK * (1 + self.random.below(CHUNKS_MAX));
        let base = self.any_volume().filter(|it| !self.busy.contains(it));
        let base = base.and_then(|base| Some((base, self.any_snapshot(base)?)));
        let base = base.filter(|_| self.random.once_in(2));
        if let Some((base, (snapshot, _))) = base {
            let base = &self.oracle.volumes[&base];
            let blocks = base.snapshots[&snapshot].content.len() as u64;
            // A clone has its base's block here, so that blocks are comparable.
            block_bytes = base.block_bytes;
            bytes = bytes.max(blocks * u64::from(block_bytes));
        }
        let volume = Volume {
            number: 0,
            life: Life::Coming,
            block_bytes,
            durability,
            sizes: vec![usize::try_from(bytes / u64::from(block_bytes)).unwrap()],
            content: Content::default(),
            snapshots: std::collections::BTreeMap::new(),
            attributes: vec![Vec::new()],
            base: base.map(|(base, (snapshot, _))| (base, snapshot)),
        };
        self.oracle.create(uuid, volume);
        let number_of = |base: u128| self.oracle.volumes[&base].number;
        let spec = VolumeSpec {
            uuid: Uuid::from_u128(uuid),
            name: format!("{uuid:x}"),
            bytes,
            block_bytes: Some(block_bytes),
            provisioning,
            durability,
            checksums,
            base: base.map(|(base, (_, number))| (number_of(base), number)),
            created: 1,
        };
        let operation = self.pool.as_mut().unwrap().create_volume(spec);
        self.ask(Asked::Create(uuid), operation);
        // Nobody deletes the base meanwhile.
        self.busy.extend(base.map(|(base, _)| base));
    }
}
