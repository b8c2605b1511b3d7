//! Power cuts at random moments: what was acknowledged is there, nothing was invented.

use std::collections::BTreeSet;

use bowline_block::{Completions, Device, Op, Segments};

use super::world::{Shared, World, io, plan, spec};
use crate::format::record::{Checksums, Durability};
use crate::{Volume, VolumeSpec};

const BLOCKS: u64 = 1024;

/// SplitMix64: the same tests everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// What each block may hold. More than one: a write was under way.
type Model = Vec<BTreeSet<u64>>;

struct Run {
    world: World,
    random: Random,
    volume: u32,
    model: Model,
    /// What each block holds as long as the power is on.
    latest: Vec<u64>,
    snapshots: Vec<(u32, Model)>,
    next_value: u64,
    /// What was acknowledged is durable; else only after a flush.
    is_media: bool,
}

struct Flying {
    lba: u64,
    values: Vec<u64>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut world = World::new(6 << 20, plan(seed));
        let checksums = match seed % 3 {
            0 => Checksums::Off,
            1 => Checksums::Scrub,
            _ => Checksums::Verify,
        };
        let is_media = seed.is_multiple_of(2);
        let durability = if is_media {
            Durability::Media
        } else {
            Durability::Device
        };
        let volume = world.create(VolumeSpec {
            durability,
            checksums,
            ..spec(BLOCKS * 512)
        });
        Self {
            world,
            random: Random(seed),
            volume,
            latest: vec![0; usize::try_from(BLOCKS).unwrap()],
            model: vec![BTreeSet::from([0]); usize::try_from(BLOCKS).unwrap()],
            snapshots: Vec::new(),
            next_value: 1,
            is_media,
        }
    }

    /// Submits a few requests whose ranges do not overlap; they are in the model as possible.
    fn submit(&mut self, volume: &mut Volume<Shared>) -> Vec<Flying> {
        let mut flying: Vec<Flying> = Vec::new();
        for _ in 0..=self.random.below(12) {
            let long = if self.random.below(4) == 0 { 100 } else { 12 };
            let blocks = 1 + self.random.below(long);
            let lba = self.random.below(BLOCKS - blocks);
            let overlaps = |it: &Flying| {
                it.lba < lba + blocks && lba < it.lba + u64::try_from(it.values.len()).unwrap()
            };
            if flying.iter().any(overlaps) {
                continue;
            }
            let is_write = self.random.below(3) > 0;
            let mut values = vec![0; usize::try_from(blocks).unwrap()];
            let mut data = Segments::new();
            let mut op = Op::WriteZeroes { deallocate: true };
            if is_write {
                for value in &mut values {
                    *value = self.next_value;
                    self.next_value += 1;
                }
                data = self.world.payload(&values);
                op = Op::Write;
            } else if self.random.below(2) == 0 {
                op = Op::Deallocate;
            }
            let mut io = io(op, lba, values.len(), data);
            io.token = u64::try_from(flying.len()).unwrap();
            volume.try_submit(io).unwrap();
            for (at, value) in (usize::try_from(lba).unwrap()..).zip(&values) {
                self.model[at].insert(*value);
            }
            flying.push(Flying { lba, values });
        }
        flying
    }

    /// The request is acknowledged: nothing else is possible any more, or will not be after a flush.
    fn acknowledged(&mut self, flying: &Flying) {
        for (at, value) in (usize::try_from(flying.lba).unwrap()..).zip(&flying.values) {
            self.latest[at] = *value;
            if self.is_media {
                self.model[at] = BTreeSet::from([*value]);
            }
        }
    }

    /// All that was acknowledged is durable afterwards.
    fn flush(&mut self) {
        let mut volume = self.world.pool.open_volume(self.volume).unwrap();
        self.world.change(&mut volume, Op::Flush, 0, 0).unwrap();
        for (possible, latest) in self.model.iter_mut().zip(&self.latest) {
            *possible = BTreeSet::from([*latest]);
        }
    }

    /// Runs requests, perhaps only for a while. A snapshot may be taken meanwhile.
    fn round(&mut self, polls_max: u64, is_snapshot: bool) {
        let mut volume = self.world.pool.open_volume(self.volume).unwrap();
        let flying = self.submit(&mut volume);
        let mut left = flying.len();
        let mut snapshot = None;
        if is_snapshot {
            let name = "s".to_owned();
            let uuid = uuid::Uuid::nil();
            snapshot = self
                .world
                .pool
                .create_snapshot(self.volume, uuid, name, 0)
                .ok();
        }
        let before = self.model.clone();
        let mut out = Completions::with_capacity(4);
        let mut polls = 0;
        while (left > 0 || snapshot.is_some()) && polls < polls_max {
            polls += 1;
            assert!(polls < 20_000, "requests do not end");
            self.world.poll();
            volume.poll(*self.world.now.borrow(), &mut out);
            while let Some(completion) = out.pop() {
                completion.result.unwrap();
                left -= 1;
                self.acknowledged(&flying[usize::try_from(completion.token).unwrap()]);
            }
            if let Some((_, result)) = self.world.pool.poll_operation() {
                snapshot = None;
                if let Ok(crate::Outcome::Snapshot(number)) = result {
                    // Requests that were not acknowledged when it was asked for are in it, or not.
                    self.snapshots.push((number, before.clone()));
                }
            }
        }
    }

    /// Looks at everything, after a crash or before one.
    fn check(&mut self, is_crashed: bool) {
        assert_eq!(self.world.pool.check(), Vec::<String>::new());
        let mut volume = self.world.pool.open_volume(self.volume).unwrap();
        let found = read(&mut self.world, &mut volume);
        if is_crashed {
            expect(&found, &mut self.model, true);
            self.latest = found;
        } else {
            assert_eq!(found, self.latest);
        }
        for (number, model) in &mut self.snapshots {
            let mut snapshot = self.world.pool.open_snapshot(self.volume, *number).unwrap();
            let found = read(&mut self.world, &mut snapshot);
            expect(&found, model, is_crashed || self.is_media);
        }
    }
}

fn read(world: &mut World, volume: &mut Volume<Shared>) -> Vec<u64> {
    let mut found = Vec::new();
    for lba in (0..BLOCKS).step_by(128) {
        found.extend(world.read(volume, lba, 128));
    }
    found
}

/// Every block holds something possible; if it is durable, that is what it holds from now on.
fn expect(found: &[u64], model: &mut Model, is_durable: bool) {
    for (at, (value, possible)) in found.iter().zip(model).enumerate() {
        assert!(
            possible.contains(value),
            "block {at} holds {value}, and only {possible:?} is possible"
        );
        if is_durable {
            *possible = BTreeSet::from([*value]);
        }
    }
}

fn run(seed: u64) {
    println!("seed {seed}");
    let mut it = Run::new(seed);
    for _ in 0..12 {
        for _ in 0..it.random.below(4) {
            let is_snapshot = it.random.below(8) == 0 && it.snapshots.len() < 6;
            it.round(u64::MAX, is_snapshot);
        }
        if it.random.below(3) == 0 {
            it.check(false);
        }
        if it.random.below(2) == 0 {
            it.flush();
        }
        if it.random.below(4) == 0 && !it.snapshots.is_empty() {
            let at = usize::try_from(it.random.below(it.snapshots.len() as u64)).unwrap();
            let (number, _) = it.snapshots.swap_remove(at);
            let operation = it.world.pool.delete_snapshot(it.volume, number);
            it.world.wait(operation).unwrap();
        }
        let polls = it.random.below(60);
        it.round(polls, false);
        it.world = if it.random.below(5) == 0 {
            it.world.reopen()
        } else {
            it.world.crash()
        };
        it.check(true);
    }
}

#[test]
fn acknowledged_writes_survive_power_cuts() {
    for seed in 0..16 {
        run(seed);
    }
}
