//! Volumes with checksums and without on one pool, with little memory for checksums, power cuts at random moments and
//! reads of what is being written: there is never an error where there is no damage, and never wrong data where there is.

use std::collections::{BTreeMap, BTreeSet};

use bowline_block::{Completions, Device, IoError, Op, Segments};

use super::random::Random;
use super::world::{BLOCK, Shared, World, io, options, plan, spec, values};
use crate::format::record::{Checksums, Durability};
use crate::{FormatOptions, OpenOptions, Volume, VolumeSpec};

/// Blocks of each volume: several groups of checksums.
const BLOCKS: u64 = 24 << 11;
const CHUNK: u64 = 4096 / BLOCK as u64;

/// What a block may hold.
type Possible = BTreeMap<u64, BTreeSet<u64>>;

struct Disk {
    number: u32,
    checksums: Checksums,
    is_media: bool,
    /// After a power cut.
    possible: Possible,
    /// As long as the power is on.
    latest: Possible,
    snapshots: Vec<(u32, Possible)>,
}

struct Flying {
    disk: usize,
    lba: u64,
    values: Vec<u64>,
    is_read: bool,
    is_done: bool,
}

impl Flying {
    fn blocks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (self.lba..).zip(self.values.iter().copied())
    }
}

struct Run {
    world: World,
    random: Random,
    disks: Vec<Disk>,
    next_value: u64,
    /// Few places, so that they are written again and read while they are.
    places: Vec<u64>,
}

fn one(possible: &Possible, block: u64) -> BTreeSet<u64> {
    possible
        .get(&block)
        .cloned()
        .unwrap_or_else(|| BTreeSet::from([0]))
}

impl Run {
    fn new(seed: u64) -> Self {
        let format = FormatOptions {
            layout: crate::format::layout::LayoutOptions {
                extent_bytes: 256 << 10,
                ..options().layout
            },
            ..options()
        };
        let mut random = Random(seed);
        let options = OpenOptions {
            checksum_cache_bytes: [1, 20_000, 40_000, 1 << 20][usize::try_from(seed % 4).unwrap()],
        };
        let mut world = World::with(64 << 20, plan(seed), &format, options);
        let modes = [
            (Checksums::Verify, Durability::Media),
            (Checksums::Verify, Durability::Device),
            (Checksums::Off, Durability::Media),
            (Checksums::Scrub, Durability::Media),
        ];
        let disks = modes.map(|(checksums, durability)| Disk {
            number: world.create(VolumeSpec {
                checksums,
                durability,
                ..spec(BLOCKS * BLOCK as u64)
            }),
            checksums,
            is_media: durability == Durability::Media,
            possible: Possible::new(),
            latest: Possible::new(),
            snapshots: Vec::new(),
        });
        let places = (0..24).map(|_| random.below(BLOCKS / CHUNK - 16) * CHUNK);
        let places = places.collect();
        Self {
            world,
            random,
            disks: disks.into(),
            next_value: 1,
            places,
        }
    }

    fn submit(&mut self, volumes: &mut [Volume<Shared>]) -> Vec<Flying> {
        let mut flying = Vec::new();
        for _ in 0..=self.random.below(16) {
            let disk = usize::try_from(self.random.below(4)).unwrap();
            let place = usize::try_from(self.random.below(24)).unwrap();
            let mut lba = self.places[place];
            let mut blocks = CHUNK * (1 + self.random.below(8));
            if self.random.below(4) == 0 {
                lba += self.random.below(CHUNK);
                blocks = 1 + self.random.below(20);
            }
            let is_read = self.random.below(3) == 0;
            let count = usize::try_from(blocks).unwrap();
            let mut values = vec![0; count];
            let (mut op, mut data) = (Op::WriteZeroes { deallocate: true }, Segments::new());
            if is_read {
                op = Op::Read;
                data = self.world.payload(&values);
            } else if self.random.below(5) > 0 {
                op = Op::Write;
                values.fill_with(|| {
                    self.next_value += 1;
                    self.next_value
                });
                data = self.world.payload(&values);
            }
            let mut io = io(op, lba, count, data);
            io.token = u64::try_from(flying.len()).unwrap();
            volumes[disk].try_submit(io).unwrap();
            flying.push(Flying {
                disk,
                lba,
                values,
                is_read,
                is_done: false,
            });
        }
        flying
    }

    /// What any of the round's writes leaves behind, now that some are acknowledged.
    fn settle_round(&mut self, flying: &[Flying]) {
        for (index, disk) in self.disks.iter_mut().enumerate() {
            let writes = || flying.iter().filter(|it| it.disk == index && !it.is_read);
            let mut written: BTreeMap<u64, (BTreeSet<u64>, bool)> = BTreeMap::new();
            for write in writes() {
                for (block, value) in write.blocks() {
                    let (values, is_done) = written.entry(block).or_default();
                    values.insert(value);
                    *is_done |= write.is_done;
                }
            }
            for (block, (values, is_done)) in written {
                let mut latest = one(&disk.latest, block);
                let mut possible = one(&disk.possible, block);
                if is_done {
                    latest.clear();
                }
                if is_done && disk.is_media {
                    possible.clear();
                }
                latest.extend(&values);
                possible.extend(&values);
                disk.latest.insert(block, latest);
                disk.possible.insert(block, possible);
            }
        }
    }

    fn round(&mut self, polls_max: u64) {
        let mut volumes: Vec<_> = self
            .disks
            .iter()
            .map(|disk| self.world.pool.open_volume(disk.number).unwrap())
            .collect();
        let mut flying = self.submit(&mut volumes);
        let mut left = flying.len();
        let mut polls = 0;
        let mut out = Completions::with_capacity(8);
        while left > 0 && polls < polls_max {
            polls += 1;
            assert!(polls < 200_000, "requests do not end");
            self.world.poll();
            for volume in &mut volumes {
                volume.poll(*self.world.now.borrow(), &mut out);
                while let Some(completion) = out.pop() {
                    completion.result.unwrap();
                    left -= 1;
                    let index = usize::try_from(completion.token).unwrap();
                    flying[index].is_done = true;
                    if flying[index].is_read {
                        self.check_read(&flying, index, &values(&completion.data));
                    }
                }
            }
        }
        self.settle_round(&flying);
    }

    /// A read gives what was there or what is being written.
    fn check_read(&self, flying: &[Flying], index: usize, found: &[u64]) {
        let read = &flying[index];
        let disk = &self.disks[read.disk];
        for (block, value) in (read.lba..).zip(found) {
            let mut possible = one(&disk.latest, block);
            let writes = flying
                .iter()
                .filter(|it| it.disk == read.disk && !it.is_read);
            let written = writes.flat_map(Flying::blocks);
            possible.extend(
                written
                    .filter(|(at, _)| *at == block)
                    .map(|(_, value)| value),
            );
            assert!(
                possible.contains(value),
                "block {block} of volume {} holds {value}, and only {possible:?} is possible",
                disk.number
            );
        }
    }

    /// Reads everything that was ever written.
    fn check(&mut self, is_crashed: bool) {
        assert_eq!(self.world.pool.check(), Vec::<String>::new());
        for index in 0..self.disks.len() {
            let number = self.disks[index].number;
            let mut volume = self.world.pool.open_volume(number).unwrap();
            if is_crashed {
                self.disks[index].latest = self.disks[index].possible.clone();
            }
            let mut latest = std::mem::take(&mut self.disks[index].latest);
            self.read_all(&mut volume, &mut latest);
            self.disks[index].latest = latest;
            if is_crashed {
                self.disks[index].possible = self.disks[index].latest.clone();
            }
            let mut snapshots = std::mem::take(&mut self.disks[index].snapshots);
            for (snapshot, possible) in &mut snapshots {
                let mut volume = self.world.pool.open_snapshot(number, *snapshot).unwrap();
                self.read_all(&mut volume, possible);
            }
            self.disks[index].snapshots = snapshots;
        }
    }

    fn read_all(&mut self, volume: &mut Volume<Shared>, possible: &mut Possible) {
        let mut next = 0;
        while let Some(block) = possible.range(next..).map(|(block, _)| *block).next() {
            let lba = block / CHUNK * CHUNK;
            next = lba + 16 * CHUNK;
            let found = self
                .world
                .read(volume, lba, usize::try_from(16 * CHUNK).unwrap());
            for (block, value) in (lba..).zip(found) {
                let before = one(possible, block);
                assert!(
                    before.contains(&value),
                    "block {block}: {value}, {before:?}"
                );
                if let Some(possible) = possible.get_mut(&block) {
                    *possible = BTreeSet::from([value]);
                }
            }
        }
    }

    /// A byte of a chunk changes on the drive. Where the chunk was verified before, it must be found.
    fn damage(&mut self) {
        // What the collector copies is damaged there, too.
        self.world.settle();
        let disk = &self.disks[0];
        let (number, blocks) = (disk.number, disk.latest.len());
        if blocks == 0 {
            return;
        }
        let nth = usize::try_from(self.random.below(blocks as u64)).unwrap();
        let lba = disk.latest.keys().nth(nth).unwrap() / CHUNK * CHUNK;
        let count = usize::try_from(CHUNK).unwrap();
        let mut volume = self.world.pool.open_volume(number).unwrap();
        let before = self.world.pool.checksum_counts().verified;
        self.world.read(&mut volume, lba, count);
        if self.world.pool.checksum_counts().verified == before {
            return;
        }
        let offset = self.world.place(number, lba) + self.random.below(4096);
        self.world.flip(offset);
        let first = self.random.below(CHUNK);
        let blocks = 1 + self.random.below(CHUNK - first);
        let (lba, blocks) = match self.random.below(2) {
            0 => (lba, CHUNK),
            _ => (lba + first, blocks),
        };
        let result = self
            .world
            .try_read(&mut volume, lba, usize::try_from(blocks).unwrap());
        assert_eq!(result.err(), Some(IoError::MediaRead));
        // The same bit again: it is what it was.
        self.world.flip(offset);
        assert!(self.world.try_read(&mut volume, lba, 1).is_ok());
    }

    fn snapshots(&mut self) {
        let index = usize::try_from(self.random.below(4)).unwrap();
        let number = self.disks[index].number;
        if self.disks[index].snapshots.len() < 2 {
            let snapshot = self.world.snapshot(number);
            // What it holds is what the drive has; for a volume of device durability perhaps only after a flush.
            let mut volume = self.world.pool.open_volume(number).unwrap();
            self.world.change(&mut volume, Op::Flush, 0, 0).unwrap();
            let disk = &mut self.disks[index];
            disk.possible = disk.latest.clone();
            disk.snapshots.push((snapshot, disk.latest.clone()));
        } else {
            let (snapshot, _) = self.disks[index].snapshots.swap_remove(0);
            let operation = self.world.pool.delete_snapshot(number, snapshot);
            self.world.wait(operation).unwrap();
        }
    }
}

fn run(seed: u64) {
    println!("seed {seed}");
    let mut it = Run::new(seed);
    for _ in 0..7 {
        for _ in 0..it.random.below(6) {
            it.round(u64::MAX);
        }
        if it.random.below(2) == 0 {
            it.snapshots();
        }
        if it.random.below(3) == 0 {
            it.check(false);
        }
        it.damage();
        let polls = it.random.below(120);
        it.round(polls);
        let is_orderly = it.random.below(3) == 0;
        it.world = if is_orderly {
            it.world.reopen()
        } else {
            it.world.crash()
        };
        it.check(true);
        it.damage();
    }
    assert_eq!(it.disks[3].checksums, Checksums::Scrub);
}

#[test]
fn nothing_is_wrong_without_damage_and_damage_is_always_found() {
    for seed in 0..4 {
        run(seed);
    }
}
