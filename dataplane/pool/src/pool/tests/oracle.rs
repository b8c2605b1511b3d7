//! What a pool should hold: kept by hand, block by block, and asked after a power cut or while the power is on.
//!
//! Of each block of each volume and snapshot there is a list of writes that it may show. A write leaves the list when
//! another one surely came after it, and surely is there.

use std::collections::BTreeMap;

use crate::format::record::Durability;

/// What is read of a block that was never written to.
const FIRST: u32 = 0;

/// The number of a write.
pub(super) type WriteId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Flying,
    Ok,
    /// Some of it may be there.
    Failed,
}

#[derive(Clone, Debug)]
struct Write {
    volume: u128,
    submitted: u64,
    /// The largest number while it is under way.
    ended: u64,
    fate: Fate,
    /// It is durable when it is acknowledged.
    is_stable: bool,
    is_durable: bool,
    /// First block, and how many.
    place: (usize, usize),
}

/// Which of the others in the list a write proves to be gone when it is there itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kills {
    None,
    /// Those that had ended before it was submitted.
    Ended,
    /// All that are listed before it.
    Listed,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    write: WriteId,
    value: u64,
    kills: Kills,
}

/// The blocks of a volume or of a snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    blocks: Vec<Vec<Candidate>>,
}

impl Content {
    pub(super) const fn len(&self) -> usize {
        self.blocks.len()
    }

    fn grow(&mut self, blocks: usize) {
        let first = Candidate {
            write: FIRST,
            value: 0,
            kills: Kills::Ended,
        };
        let blocks = blocks.max(self.blocks.len());
        self.blocks.resize(blocks, vec![first]);
    }
}

/// Whether something exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It is being made: perhaps.
    Coming,
    Here,
    /// It is being deleted: perhaps.
    Going,
}

#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) number: u32,
    pub(super) life: Life,
    pub(super) content: Content,
}

#[derive(Clone, Debug)]
pub(super) struct Volume {
    /// 0 while it is not known.
    pub(super) number: u32,
    pub(super) life: Life,
    pub(super) block_bytes: u32,
    pub(super) durability: Durability,
    /// Sizes that it may have, in blocks; the first is the one that it has as long as nobody says another.
    pub(super) sizes: Vec<usize>,
    pub(super) content: Content,
    pub(super) snapshots: BTreeMap<u128, Snapshot>,
    /// Attributes that it may have of kind 1.
    pub(super) attributes: Vec<Vec<u8>>,
    /// The snapshot it began as.
    pub(super) base: Option<(u128, u128)>,
}

impl Volume {
    pub(super) fn blocks(&self) -> usize {
        self.sizes[0]
    }
}

/// What was found of a snapshot.
pub(super) struct SeenSnapshot {
    pub(super) uuid: u128,
    pub(super) number: u32,
    pub(super) values: Vec<u64>,
}

/// What was found of a volume.
pub(super) struct Seen {
    pub(super) uuid: u128,
    pub(super) number: u32,
    pub(super) block_bytes: u32,
    pub(super) durability: Durability,
    pub(super) base: Option<(u32, u32)>,
    pub(super) attribute: Vec<u8>,
    pub(super) values: Vec<u64>,
    pub(super) snapshots: Vec<SeenSnapshot>,
}

/// The oracle.
#[derive(Clone)]
pub(super) struct Oracle {
    pub(super) volumes: BTreeMap<u128, Volume>,
    writes: Vec<Write>,
    flushes: Vec<(u128, u64)>,
    clock: u64,
    next_value: u64,
    /// Rises when less is possible than before.
    pub(super) version: u64,
}

/// What may be believed of a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Belief {
    /// The power was cut: what is durable is there.
    Cut,
    /// The power is on: what was acknowledged is there.
    On,
}

impl Oracle {
    pub(super) fn new() -> Self {
        let first = Write {
            volume: 0,
            submitted: 0,
            ended: 0,
            fate: Fate::Ok,
            is_stable: true,
            is_durable: true,
            place: (0, 0),
        };
        Self {
            volumes: BTreeMap::new(),
            writes: vec![first],
            flushes: Vec::new(),
            clock: 1,
            next_value: 1,
            version: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Something was acknowledged.
    const fn tighten(&mut self) {
        self.version += 1;
    }

    /// A value that no block has held yet.
    pub(super) const fn new_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    /// A volume is asked for.
    pub(super) fn create(&mut self, uuid: u128, mut volume: Volume) {
        let blocks = volume.blocks();
        volume.content = match volume.base {
            Some((base, snapshot)) => self.volumes[&base].snapshots[&snapshot].content.clone(),
            None => Content::default(),
        };
        volume.content.grow(blocks);
        self.volumes.insert(uuid, volume);
    }

    pub(super) fn created(&mut self, uuid: u128, number: u32) {
        let volume = self.volumes.get_mut(&uuid).unwrap();
        volume.number = number;
        volume.life = Life::Here;
        self.tighten();
    }

    pub(super) fn deleting(&mut self, uuid: u128) {
        self.volumes.get_mut(&uuid).unwrap().life = Life::Going;
    }

    /// It is gone for good, or was never made.
    pub(super) fn deleted(&mut self, uuid: u128) {
        self.volumes.remove(&uuid);
        self.tighten();
    }

    pub(super) fn resizing(&mut self, uuid: u128, blocks: usize) {
        let volume = self.volumes.get_mut(&uuid).unwrap();
        volume.sizes.push(blocks);
        volume.content.grow(blocks);
    }

    pub(super) fn resized(&mut self, uuid: u128, is_done: bool) {
        let volume = self.volumes.get_mut(&uuid).unwrap();
        let size = volume.sizes[usize::from(is_done)];
        volume.sizes = vec![size];
        volume.content.blocks.truncate(size);
        self.tighten();
    }

    pub(super) fn setting_attribute(&mut self, uuid: u128, bytes: Vec<u8>) {
        self.volumes.get_mut(&uuid).unwrap().attributes.push(bytes);
    }

    pub(super) fn attribute_set(&mut self, uuid: u128, is_done: bool) {
        let attributes = &mut self.volumes.get_mut(&uuid).unwrap().attributes;
        *attributes = vec![attributes.swap_remove(usize::from(is_done))];
        self.tighten();
    }

    /// A snapshot is asked for: whatever is acknowledged is in it, what is under way perhaps.
    pub(super) fn snapshot(&mut self, uuid: u128, snapshot: u128) {
        let Self {
            volumes, writes, ..
        } = self;
        let volume = volumes.get_mut(&uuid).unwrap();
        let mut content = volume.content.clone();
        content.blocks.truncate(volume.sizes[0]);
        for candidate in content.blocks.iter_mut().flatten() {
            if writes[candidate.write as usize].fate == Fate::Flying {
                candidate.kills = Kills::None;
            }
        }
        let snapshot_state = Snapshot {
            number: 0,
            life: Life::Coming,
            content,
        };
        volume.snapshots.insert(snapshot, snapshot_state);
    }

    pub(super) fn snapshot_made(&mut self, uuid: u128, snapshot: u128, number: u32) {
        let snapshot = self.snapshot_mut(uuid, snapshot);
        snapshot.number = number;
        snapshot.life = Life::Here;
        self.tighten();
    }

    pub(super) fn deleting_snapshot(&mut self, uuid: u128, snapshot: u128) {
        self.snapshot_mut(uuid, snapshot).life = Life::Going;
    }

    /// It is gone for good, or was never made.
    pub(super) fn snapshot_deleted(&mut self, uuid: u128, snapshot: u128) {
        let volume = self.volumes.get_mut(&uuid).unwrap();
        volume.snapshots.remove(&snapshot);
        self.tighten();
    }

    fn snapshot_mut(&mut self, uuid: u128, snapshot: u128) -> &mut Snapshot {
        let volume = self.volumes.get_mut(&uuid).unwrap();
        volume.snapshots.get_mut(&snapshot).unwrap()
    }

    /// A write, or zeroes, is submitted.
    pub(super) fn write(
        &mut self,
        uuid: u128,
        lba: usize,
        values: &[u64],
        is_stable: bool,
    ) -> WriteId {
        let id = u32::try_from(self.writes.len()).unwrap();
        let submitted = self.tick();
        self.writes.push(Write {
            volume: uuid,
            submitted,
            ended: u64::MAX,
            fate: Fate::Flying,
            is_stable,
            is_durable: false,
            place: (lba, values.len()),
        });
        let volume = self.volumes.get_mut(&uuid).unwrap();
        let add = |content: &mut Content, kills| {
            for (block, value) in content.blocks.iter_mut().skip(lba).zip(values) {
                block.push(Candidate {
                    write: id,
                    value: *value,
                    kills,
                });
            }
        };
        add(&mut volume.content, Kills::Ended);
        for snapshot in volume.snapshots.values_mut() {
            if snapshot.life == Life::Coming {
                add(&mut snapshot.content, Kills::None);
            }
        }
        id
    }

    /// What these blocks hold, if that is known.
    pub(super) fn known(&self, uuid: u128, range: std::ops::Range<usize>) -> Option<Vec<u64>> {
        let blocks = &self.volumes[&uuid].content.blocks[range];
        let known = |block: &Vec<Candidate>| {
            let possible = possible(block, &self.writes, Belief::On);
            let [one] = possible.as_slice() else {
                return None;
            };
            Some(one.value)
        };
        blocks.iter().map(known).collect()
    }

    /// What a read may find of these blocks: of each what was acknowledged last, and whatever is under way.
    pub(super) fn possible(&self, uuid: u128, range: std::ops::Range<usize>) -> Vec<Vec<u64>> {
        let blocks = &self.volumes[&uuid].content.blocks[range];
        let values = |block: &Vec<Candidate>| {
            let possible = possible(block, &self.writes, Belief::On);
            possible.iter().map(|it| it.value).collect()
        };
        blocks.iter().map(values).collect()
    }

    /// A write has ended.
    pub(super) fn written(&mut self, id: WriteId, is_ok: bool) {
        let ended = self.tick();
        let write = &mut self.writes[id as usize];
        write.ended = ended;
        write.fate = if is_ok { Fate::Ok } else { Fate::Failed };
        write.is_durable = is_ok && write.is_stable;
        let (is_durable, (first, count)) = (write.is_durable, write.place);
        if is_durable {
            self.prune(Some(first..first + count));
        }
        self.tighten();
    }

    /// A write has ended, and for certain nothing of it was done.
    pub(super) fn refused(&mut self, id: WriteId) {
        self.writes[id as usize].fate = Fate::Failed;
        for content in self.contents() {
            for block in &mut content.blocks {
                block.retain(|it| it.write != id);
            }
        }
        self.tighten();
    }

    pub(super) fn flush(&mut self, uuid: u128) -> usize {
        let now = self.tick();
        self.flushes.push((uuid, now));
        self.flushes.len() - 1
    }

    /// What was acknowledged before the flush was submitted is durable.
    pub(super) fn flushed(&mut self, flush: usize) {
        let (uuid, submitted) = self.flushes[flush];
        for write in &mut self.writes {
            let is_before = write.fate == Fate::Ok && write.ended < submitted;
            write.is_durable |= is_before && write.volume == uuid;
        }
        self.prune(None);
        self.tighten();
    }

    fn contents(&mut self) -> impl Iterator<Item = &mut Content> {
        self.volumes.values_mut().flat_map(|volume| {
            let snapshots = volume.snapshots.values_mut().map(|it| &mut it.content);
            std::iter::once(&mut volume.content).chain(snapshots)
        })
    }

    /// Drops what a power cut cannot bring back any more.
    fn prune(&mut self, range: Option<std::ops::Range<usize>>) {
        let writes = std::mem::take(&mut self.writes);
        for content in self.contents() {
            let all = 0..content.blocks.len();
            let range = range.clone().unwrap_or(all.clone());
            let range = range.start.min(all.end)..range.end.min(all.end);
            for block in &mut content.blocks[range] {
                if block.len() > 1 {
                    *block = possible(block, &writes, Belief::Cut);
                }
            }
        }
        self.writes = writes;
    }

    /// The process has gone, or the power: what was under way stays undecided.
    pub(super) fn restart(&mut self) {
        let now = self.tick();
        for write in &mut self.writes {
            if write.fate == Fate::Flying {
                write.fate = Fate::Failed;
                write.ended = now;
            }
        }
    }

    /// Whether what was found after a power cut is possible.
    pub(super) fn judge(&self, seen: &[Seen]) -> Result<(), String> {
        self.judge_as(seen, Belief::Cut)
    }

    /// Whether what was found while the power is on, and nothing is under way, is possible.
    pub(super) fn judge_on(&self, seen: &[Seen]) -> Result<(), String> {
        self.judge_as(seen, Belief::On)
    }

    fn judge_as(&self, seen: &[Seen], belief: Belief) -> Result<(), String> {
        for found in seen {
            let name = format!("volume {:x}", found.uuid);
            let Some(volume) = self.volumes.get(&found.uuid) else {
                return Err(format!("{name} should not exist"));
            };
            self.judge_volume(found, volume)
                .and_then(|()| self.judge_content(&found.values, &volume.content, belief))
                .map_err(|why| format!("{name} (number {}): {why}", found.number))?;
            self.judge_snapshots(found, volume, belief)
                .map_err(|why| format!("{name} (number {}): {why}", found.number))?;
        }
        let is_missing = |(uuid, volume): &(&u128, &Volume)| {
            volume.life == Life::Here && seen.iter().all(|it| it.uuid != **uuid)
        };
        match self.volumes.iter().find(is_missing) {
            Some((uuid, volume)) => Err(format!(
                "volume {uuid:x} (number {}) is missing",
                volume.number
            )),
            None => Ok(()),
        }
    }

    fn judge_volume(&self, found: &Seen, volume: &Volume) -> Result<(), String> {
        let is_number = volume.number == 0 || volume.number == found.number;
        let base = volume.base.and_then(|(base, snapshot)| {
            let base = self.volumes.get(&base)?;
            Some((base.number, base.snapshots.get(&snapshot)?.number))
        });
        let is_base =
            found.base.is_some() == volume.base.is_some() && (base.is_none() || base == found.base);
        let is_like = found.block_bytes == volume.block_bytes;
        if !is_number || !is_base || !is_like || found.durability != volume.durability {
            return Err(format!("it is another: {volume:?}"));
        }
        if !volume.sizes.contains(&found.values.len()) {
            let (sizes, found) = (&volume.sizes, found.values.len());
            return Err(format!(
                "it has {found} blocks, and only {sizes:?} are possible"
            ));
        }
        if !volume.attributes.contains(&found.attribute) {
            return Err("its attribute is none that was set".into());
        }
        Ok(())
    }

    fn judge_snapshots(&self, found: &Seen, volume: &Volume, belief: Belief) -> Result<(), String> {
        for seen in &found.snapshots {
            let Some(snapshot) = volume.snapshots.get(&seen.uuid) else {
                return Err(format!("snapshot {:x} should not exist", seen.uuid));
            };
            if snapshot.number != 0 && snapshot.number != seen.number {
                return Err(format!("snapshot {:x} has another number", seen.uuid));
            }
            if seen.values.len() != snapshot.content.blocks.len() {
                return Err(format!("snapshot {} has another size", seen.number));
            }
            self.judge_content(&seen.values, &snapshot.content, belief)
                .map_err(|why| format!("snapshot {}: {why}", seen.number))?;
        }
        let is_seen = |uuid: &u128| found.snapshots.iter().any(|it| it.uuid == *uuid);
        let is_missing = |(uuid, it): &(&u128, &Snapshot)| it.life == Life::Here && !is_seen(uuid);
        match volume.snapshots.iter().find(is_missing) {
            Some((uuid, it)) => Err(format!("snapshot {uuid:x} ({}) is missing", it.number)),
            None => Ok(()),
        }
    }

    fn judge_content(
        &self,
        values: &[u64],
        content: &Content,
        belief: Belief,
    ) -> Result<(), String> {
        for (at, (value, block)) in values.iter().zip(&content.blocks).enumerate() {
            if block.len() == 1 && block[0].value == *value {
                continue;
            }
            let possible = possible(block, &self.writes, belief);
            if !possible.iter().any(|it| it.value == *value) {
                let writes: Vec<_> = block
                    .iter()
                    .map(|it| (it, &self.writes[it.write as usize]))
                    .collect();
                return Err(format!(
                    "block {at} holds {value:#x}, which is not possible; of these it may hold {:?}: {writes:?}",
                    possible.iter().map(|it| it.value).collect::<Vec<_>>()
                ));
            }
        }
        Ok(())
    }

    /// What was found is what is there, after a power cut: nothing else is possible from now on.
    pub(super) fn resolve(&mut self, seen: &[Seen]) {
        self.resolve_objects(seen);
        let fixed = |content: &mut Content, values: &[u64]| {
            for (block, value) in content.blocks.iter_mut().zip(values) {
                *block = vec![Candidate {
                    write: FIRST,
                    value: *value,
                    kills: Kills::Ended,
                }];
            }
        };
        for found in seen {
            let volume = self.volumes.get_mut(&found.uuid).unwrap();
            fixed(&mut volume.content, &found.values);
            for seen in &found.snapshots {
                let snapshot = volume.snapshots.get_mut(&seen.uuid).unwrap();
                fixed(&mut snapshot.content, &seen.values);
            }
        }
        self.writes.truncate(1);
        self.tighten();
    }

    /// What exists, and what it is, is decided.
    pub(super) fn resolve_objects(&mut self, seen: &[Seen]) {
        self.volumes
            .retain(|uuid, _| seen.iter().any(|it| it.uuid == *uuid));
        for found in seen {
            let volume = self.volumes.get_mut(&found.uuid).unwrap();
            volume.number = found.number;
            volume.life = Life::Here;
            volume.sizes = vec![found.values.len()];
            volume.content.blocks.truncate(found.values.len());
            volume.attributes = vec![found.attribute.clone()];
            let is_seen = |uuid: &u128| found.snapshots.iter().any(|it| it.uuid == *uuid);
            volume.snapshots.retain(|uuid, _| is_seen(uuid));
            for seen in &found.snapshots {
                let snapshot = volume.snapshots.get_mut(&seen.uuid).unwrap();
                snapshot.number = seen.number;
                snapshot.life = Life::Here;
            }
        }
        self.tighten();
    }

    /// What was found while nothing was under way is what came last: where several writes were under way at once, that is
    /// known now.
    pub(super) fn pin(&mut self, seen: &[Seen]) {
        let writes = &self.writes;
        let pin = |content: &mut Content, values: &[u64]| {
            for (block, value) in content.blocks.iter_mut().zip(values) {
                let mut same = (0..block.len()).filter(|at| block[*at].value == *value);
                let (Some(at), None) = (same.next(), same.next()) else {
                    continue;
                };
                if writes[block[at].write as usize].fate == Fate::Ok {
                    let mut last = block.remove(at);
                    last.kills = Kills::Listed;
                    block.push(last);
                }
            }
        };
        for found in seen {
            let volume = self.volumes.get_mut(&found.uuid).unwrap();
            pin(&mut volume.content, &found.values);
            for seen in &found.snapshots {
                let snapshot = volume.snapshots.get_mut(&seen.uuid).unwrap();
                pin(&mut snapshot.content, &seen.values);
            }
        }
        self.prune(None);
        self.tighten();
    }
}

/// Those of the writes that the block may show.
fn possible(block: &[Candidate], writes: &[Write], belief: Belief) -> Vec<Candidate> {
    let is_there = |it: &Candidate| {
        let write = &writes[it.write as usize];
        match belief {
            Belief::Cut => write.is_durable,
            Belief::On => write.fate == Fate::Ok,
        }
    };
    let killed = |(at, victim): (usize, &Candidate)| {
        block.iter().enumerate().any(|(by, killer)| {
            by != at
                && is_there(killer)
                && match killer.kills {
                    Kills::None => false,
                    Kills::Ended => {
                        let victim = &writes[victim.write as usize];
                        victim.ended < writes[killer.write as usize].submitted
                    }
                    Kills::Listed => at < by,
                }
        })
    };
    let left = block
        .iter()
        .enumerate()
        .filter(|(at, it)| !killed((*at, it)));
    left.map(|(_, it)| *it).collect()
}
