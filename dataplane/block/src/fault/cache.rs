//! What a volatile write cache may lose: every write since the last flush, block by block.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::rng::Rng;
use super::{CachePlan, CrashReport};

/// The writes a crash may lose, and what their blocks held before.
///
/// The device below always holds the newest content; this remembers the older ones, so that a
/// crash can choose among them. A write is named by a rising id, in the order of execution.
pub(super) struct Cache {
    plan: CachePlan,
    block_bytes: usize,
    atomic_blocks: u32,
    bytes: usize,
    writes: BTreeMap<u64, Unflushed>,
    blocks: BTreeMap<u64, Block>,
}

/// What each block that had unflushed writes holds after a crash, by block.
pub(super) type Outcome = Vec<(u64, Box<[u8]>)>;

struct Unflushed {
    lba: u64,
    blocks: u32,
    // None: zeroes.
    content: Option<Box<[u8]>>,
    completed: Option<u64>,
    // Blocks whose version list names this write; at 0 it is forgotten.
    referenced: u32,
}

struct Block {
    // Content on stable media.
    stable: Box<[u8]>,
    // Writes on top of it, oldest first; never empty.
    versions: Vec<u64>,
}

impl Cache {
    pub(super) fn new(plan: CachePlan, block_bytes: usize, atomic_blocks: u32) -> Self {
        Self {
            plan,
            block_bytes,
            atomic_blocks: atomic_blocks.max(1),
            bytes: 0,
            writes: BTreeMap::new(),
            blocks: BTreeMap::new(),
        }
    }

    /// Whether a range of `bytes` is remembered at all; larger ones are written through.
    pub(super) fn holds(&self, bytes: usize) -> bool {
        bytes <= self.plan.bytes_max
    }

    /// Whether `record` needs to know what the range holds now.
    pub(super) fn needs_preimage(&self, lba: u64, blocks: u32) -> bool {
        range(lba, blocks).any(|lba| !self.blocks.contains_key(&lba))
    }

    /// Remembers write `id` before it is executed. `preimage` is what the range holds now, and may
    /// be empty when it is not needed.
    pub(super) fn record(
        &mut self,
        id: u64,
        lba: u64,
        blocks: u32,
        content: Option<Box<[u8]>>,
        preimage: &[u8],
    ) {
        let mut pieces = preimage.chunks_exact(self.block_bytes);
        for lba in range(lba, blocks) {
            let stable = pieces.next().unwrap_or_default();
            let block = self.blocks.entry(lba);
            let fresh = || Block {
                stable: stable.into(),
                versions: Vec::new(),
            };
            block.or_insert_with(fresh).versions.push(id);
        }
        self.bytes += self.range_bytes(blocks);
        let unflushed = Unflushed {
            lba,
            blocks,
            content,
            completed: None,
            referenced: blocks,
        };
        self.writes.insert(id, unflushed);
        self.evict();
    }

    /// Write `id` was completed to the caller at `clock`.
    pub(super) fn complete(&mut self, id: u64, clock: u64) {
        if let Some(write) = self.writes.get_mut(&id) {
            write.completed = Some(clock);
        }
    }

    /// Write `id` failed in a way that certainly changed nothing.
    pub(super) fn withdraw(&mut self, id: u64) {
        let Some(write) = self.writes.get(&id) else {
            return;
        };
        for lba in range(write.lba, write.blocks) {
            let Some(block) = self.blocks.get_mut(&lba) else {
                continue;
            };
            let before = block.versions.len();
            block.versions.retain(|version| *version != id);
            let dropped = before != block.versions.len();
            if block.versions.is_empty() {
                self.blocks.remove(&lba);
            }
            if dropped {
                self.release(id);
            }
        }
    }

    /// A flush that arrived at `clock` has completed: what completed before it is durable.
    pub(super) fn flushed(&mut self, clock: u64) {
        let covered = |write: &Unflushed| write.completed.is_some_and(|at| at < clock);
        let durable: Vec<u64> = self
            .writes
            .iter()
            .filter(|(_, write)| covered(write))
            .map(|(id, _)| *id)
            .collect();
        for id in durable {
            self.persist(id);
        }
    }

    /// Write `id` is on stable media, and with it the end of everything older in its blocks.
    pub(super) fn persist(&mut self, id: u64) {
        let Some(write) = self.writes.get(&id) else {
            return;
        };
        for (index, lba) in (0..).zip(range(write.lba, write.blocks)) {
            let stable = self.content(id, index);
            let Some(block) = self.blocks.get_mut(&lba) else {
                continue;
            };
            let Some(at) = block.versions.iter().position(|version| *version == id) else {
                continue;
            };
            block.stable = stable;
            let superseded: Vec<u64> = block.versions.drain(..=at).collect();
            if block.versions.is_empty() {
                self.blocks.remove(&lba);
            }
            for version in superseded {
                self.release(version);
            }
        }
    }

    /// The range was written through: nothing in it can be lost any more.
    pub(super) fn forget(&mut self, lba: u64, blocks: u32) {
        let end = lba.saturating_add(u64::from(blocks));
        let inside: Vec<u64> = self.blocks.range(lba..end).map(|(lba, _)| *lba).collect();
        for lba in inside {
            let Some(block) = self.blocks.remove(&lba) else {
                continue;
            };
            for version in block.versions {
                self.release(version);
            }
        }
    }

    /// Decides what survives, forgets everything, and returns what each block holds now.
    pub(super) fn crash(&mut self, rng: &mut Rng) -> (Outcome, CrashReport) {
        let mut report = CrashReport::default();
        let fates: BTreeMap<u64, Fate> = self
            .writes
            .iter()
            .map(|(id, write)| {
                let fate = self.fate(write, rng);
                match &fate {
                    Fate::Kept => report.kept += 1,
                    Fate::Lost => report.lost += 1,
                    Fate::Torn(_) => report.torn += 1,
                }
                (*id, fate)
            })
            .collect();
        let survives = |id: &u64, lba: u64| match fates.get(id) {
            Some(Fate::Kept) => true,
            Some(Fate::Torn(written)) => written.contains(&lba),
            Some(Fate::Lost) | None => false,
        };
        let mut outcome = Vec::with_capacity(self.blocks.len());
        for (lba, block) in &self.blocks {
            let survivor = block.versions.iter().rev().find(|id| survives(id, *lba));
            let start = survivor
                .and_then(|id| self.writes.get(id))
                .map_or(0, |write| write.lba);
            let content = match survivor {
                Some(id) => self.content(*id, lba - start),
                None => block.stable.clone(),
            };
            outcome.push((*lba, content));
        }
        self.writes.clear();
        self.blocks.clear();
        self.bytes = 0;
        (outcome, report)
    }

    fn fate(&self, write: &Unflushed, rng: &mut Rng) -> Fate {
        if rng.hits(self.plan.lost_per_million) {
            Fate::Lost
        } else if write.blocks > self.atomic_blocks && rng.hits(self.plan.torn_per_million) {
            Fate::Torn(
                range(write.lba, write.blocks)
                    .filter(|_| rng.hits(500_000))
                    .collect(),
            )
        } else {
            Fate::Kept
        }
    }

    /// Like a real cache: when it is full, the oldest completed writes reach the medium.
    fn evict(&mut self) {
        while self.bytes > self.plan.bytes_max {
            let oldest = self
                .writes
                .iter()
                .find(|(_, write)| write.completed.is_some());
            let Some(id) = oldest.map(|(id, _)| *id) else {
                break;
            };
            self.persist(id);
        }
    }

    fn content(&self, id: u64, block_index: u64) -> Box<[u8]> {
        let content = self
            .writes
            .get(&id)
            .and_then(|write| write.content.as_deref());
        let piece = content.and_then(|bytes| {
            bytes
                .chunks_exact(self.block_bytes)
                .nth(usize::try_from(block_index).ok()?)
        });
        piece.map_or_else(|| vec![0; self.block_bytes].into(), Into::into)
    }

    fn release(&mut self, id: u64) {
        let Some(write) = self.writes.get_mut(&id) else {
            return;
        };
        write.referenced -= 1;
        if write.referenced == 0 {
            let blocks = write.blocks;
            self.writes.remove(&id);
            self.bytes -= self.range_bytes(blocks);
        }
    }

    fn range_bytes(&self, blocks: u32) -> usize {
        usize::try_from(blocks).map_or(usize::MAX, |blocks| blocks * self.block_bytes)
    }
}

enum Fate {
    Kept,
    Lost,
    // The logical blocks that were written.
    Torn(BTreeSet<u64>),
}

fn range(lba: u64, blocks: u32) -> Range<u64> {
    lba..lba.saturating_add(u64::from(blocks))
}
