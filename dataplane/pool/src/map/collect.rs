//! Finds what nobody needs any more, a step at a time.
//!
//! A version is read by the snapshots taken between its birth and that of the next newer version,
//! and the newest one by the volume itself. One that is read so is *direct*. Others are needed
//! only for chunks that a newer version, filled in part, does not have: they are merged with it.
//! What is not needed for that either is dropped. When nothing is left to do, every extent is
//! there for a reader of its own.

use std::collections::BTreeSet;

use super::State;
use super::versions::Link;
use super::volume::{Snapshot, Volume};
use crate::format::record::{Numbers, Record};

/// Logical extents looked at in one step.
const LOOK_MAX: u32 = 4096;

/// Logical extents of one record.
const DROP_MAX: u32 = 1024;

/// Snapshots of one volume that are gone at once.
const SNAPSHOTS_MAX: usize = 256;

/// Where the collector is.
#[derive(Debug, Default)]
pub struct Collector {
    /// The volume it looks at, and the logical extent it looks at next.
    at: Option<(u32, u32)>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Idle,
    /// Nothing was found yet; ask again.
    Looked,
    /// Commit this.
    Commit(Garbage),
    /// Copy chunks, then commit.
    Merge(Merge),
}

/// What is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// Deleted snapshots, or snapshots of a deleted volume, without clones. When their records are applied,
    /// older versions may be written to in place.
    Snapshots {
        /// Number of the volume.
        volume: u32,
        /// Numbers of the snapshots.
        numbers: Box<[u32]>,
    },
    /// An attribute of a deleted volume.
    Attribute {
        /// Number of the volume.
        volume: u32,
        /// Which.
        kind: u32,
    },
    /// A deleted volume without anything.
    Volume {
        /// Number of the volume.
        volume: u32,
    },
    /// Versions that nobody reads.
    Versions {
        /// Number of the volume.
        volume: u32,
        /// Snapshots of the volume when they were made.
        born: u32,
        /// The first logical extent.
        logical: u32,
        /// How many, one after another.
        count: u32,
    },
}

/// Two versions become one: the newer one, which is filled in part, has a reader, and the older
/// one is only needed for what the newer does not have.
///
/// From the time this is told until its records are applied, nothing may be written to this
/// logical extent. What is copied must be durable before the records are committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Number of the volume.
    pub volume: u32,
    /// The logical extent.
    pub logical: u32,
    /// The physical extent that is copied from; it is free in the end.
    pub from: u32,
    /// The physical extent that is copied to; nobody reads these chunks of it.
    pub into: u32,
    /// What to copy, one bit a chunk.
    pub chunks: Box<[u8]>,
    /// The newer version's `born`.
    born: u32,
    /// The older version's `born`.
    older_born: u32,
    /// What the newer version has in the end, one bit a chunk.
    result: Box<[u8]>,
    is_whole: bool,
}

impl Garbage {
    /// The records to commit, in one group.
    #[must_use]
    pub fn records(&self) -> Vec<Record<'static>> {
        match *self {
            Self::Snapshots {
                volume,
                ref numbers,
            } => {
                let gone = |&number: &u32| Record::SnapshotGone { volume, number };
                numbers.iter().map(gone).collect()
            }
            Self::Attribute { volume, kind } => vec![Record::Attribute {
                volume,
                kind,
                bytes: &[],
            }],
            Self::Volume { volume } => vec![Record::VolumeGone { volume }],
            Self::Versions {
                volume,
                born,
                logical,
                count,
            } => vec![Record::Unmap {
                volume,
                born,
                logical,
                count,
            }],
        }
    }
}

impl Merge {
    /// The records to commit, in one group and in this order.
    #[must_use]
    pub fn records(&self) -> [Record<'_>; 2] {
        let (volume, born, logical) = (self.volume, self.born, self.logical);
        let newer = if self.is_whole {
            Record::Map {
                volume,
                born,
                logical,
                physical: Numbers::Native(std::slice::from_ref(&self.into)),
            }
        } else {
            Record::MapPart {
                volume,
                born,
                logical,
                physical: self.into,
                bitmap: &self.result,
            }
        };
        let older = Record::Unmap {
            volume,
            born: self.older_born,
            logical,
            count: 1,
        };
        [newer, older]
    }
}

/// What is wrong with a chain.
enum Found {
    /// Nobody needs the version with this `born`.
    Needless(u32),
    /// The first is direct, the second is needed only for what the first does not have.
    Mergeable(Link, Link),
}

/// Volumes where something may be that nobody needs, by their numbers.
pub(super) type Suspects = BTreeSet<u32>;

impl Collector {
    /// One that has looked at nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is to be done next. Ask again when it is applied, or [`skip`](Self::skip) it.
    pub fn step(&mut self, state: &mut State) -> Step {
        let (number, mut logical) = match self.at {
            Some(at) => at,
            None => match state.suspects.first() {
                Some(&number) => (number, 0),
                None => return Step::Idle,
            },
        };
        let Some(index) = state.volumes.index(number) else {
            state.suspects.remove(&number);
            self.at = None;
            return Step::Looked;
        };
        if self.at.is_none() {
            if let Some(garbage) = state.needless_parts(index) {
                return Step::Commit(garbage);
            }
            state.suspects.remove(&number);
        }
        for _ in 0..LOOK_MAX {
            let Some(next) = state.next_logical(index, logical) else {
                self.at = None;
                return state.end_of_volume(index);
            };
            self.at = Some((number, next));
            match state.look(index, next) {
                None => logical = next + 1,
                Some(Found::Needless(born)) => {
                    return Step::Commit(Garbage::Versions {
                        volume: number,
                        born,
                        logical: next,
                        count: state.needless_run(index, next, born),
                    });
                }
                Some(Found::Mergeable(newer, older)) => {
                    return Step::Merge(state.merge(number, next, newer, older));
                }
            }
        }
        self.at = Some((number, logical));
        Step::Looked
    }

    /// Whether it is not in the middle of a volume.
    #[must_use]
    pub const fn is_between(&self) -> bool {
        self.at.is_none()
    }

    /// What was told last cannot be done: goes on with what follows.
    pub fn skip(&mut self) {
        if let Some((_, logical)) = &mut self.at {
            *logical += 1;
        }
    }
}

impl State {
    /// Snapshots that are only kept for clones, and have none; attributes that nobody can ask for.
    fn needless_parts(&self, index: u32) -> Option<Garbage> {
        let volume = self.volumes.at(index)?;
        let number = volume.number;
        let is_needless = |snapshot: &&Snapshot| {
            let is_deleted = snapshot.is_deleted || volume.is_deleted;
            is_deleted && self.volumes.clones(number, snapshot.number) == 0
        };
        let needless = volume.snapshots.iter().filter(is_needless);
        let numbers: Box<[u32]> = needless.map(|it| it.number).take(SNAPSHOTS_MAX).collect();
        if !numbers.is_empty() {
            let volume = number;
            return Some(Garbage::Snapshots { volume, numbers });
        }
        let kind = volume.attributes.keys().next().copied();
        let kind = kind.filter(|_| volume.is_deleted)?;
        let volume = number;
        Some(Garbage::Attribute { volume, kind })
    }

    fn next_logical(&self, index: u32, from: u32) -> Option<u32> {
        self.volumes.at(index)?.tree.next(from)
    }

    /// All was looked at: a deleted volume that has nothing is gone.
    fn end_of_volume(&self, index: u32) -> Step {
        let is_gone = |volume: &&Volume| {
            volume.is_deleted && volume.snapshots.is_empty() && volume.tree.next(0).is_none()
        };
        match self.volumes.at(index).filter(is_gone) {
            Some(volume) => Step::Commit(Garbage::Volume {
                volume: volume.number,
            }),
            None => Step::Looked,
        }
    }

    /// The newest version of a logical extent that is not needed for a reader of its own.
    fn look(&self, index: u32, logical: u32) -> Option<Found> {
        let volume = self.volumes.at(index)?;
        let versions = &self.chains.versions;
        let mut newer = Link::NONE;
        let mut newer_born = u32::MAX;
        // Whether the version before shows what is older, and which.
        let mut passes = false;
        for link in self.chains.iter(volume.tree.newest(logical)) {
            let born = versions.born(link);
            let is_head = newer.is_none() && !volume.is_over(logical);
            let is_direct = is_head || volume.has_reader_between(born, newer_born, logical);
            let is_part = !link.is_hole() && self.chains.is_part(link);
            if link.is_hole() {
                let is_read = is_direct || passes;
                if !is_read || !self.is_backed(volume, versions.older(link), logical) {
                    return Some(Found::Needless(born));
                }
            } else if !is_direct {
                if !passes || !self.adds(newer, link) {
                    return Some(Found::Needless(born));
                }
                return Some(Found::Mergeable(newer, link));
            }
            passes = is_part;
            newer = link;
            newer_born = born;
        }
        None
    }

    /// Whether the older version has chunks that the newer one lacks.
    fn adds(&self, newer: Link, older: Link) -> bool {
        let (newer, older) = (self.bits(newer), self.bits(older));
        newer.zip(older).any(|(newer, older)| older & !newer != 0)
    }

    /// The words of a version's bitmap; those of one that is whole have all bits set.
    fn bits(&self, link: Link) -> impl Iterator<Item = u64> + '_ {
        let count = (self.limits.chunks() as usize).div_ceil(64);
        let words = self.chains.chunks(link);
        (0..count).map(move |index| words.map_or(u64::MAX, |words| words[index]))
    }

    /// How many logical extents one after another have nothing with this `born` that somebody
    /// needs.
    fn needless_run(&self, index: u32, first: u32, born: u32) -> u32 {
        let Some(volume) = self.volumes.at(index) else {
            return 1;
        };
        let limit = first.saturating_add(DROP_MAX);
        let mut end = first + 1;
        while let Some(logical) = volume.tree.next(end).filter(|logical| *logical < limit) {
            let newest = volume.tree.newest(logical);
            let is_there = self.chains.find(newest, (index, logical), born).is_some();
            let found = self.look(index, logical);
            if is_there && !matches!(found, Some(Found::Needless(other)) if other == born) {
                break;
            }
            end = logical + 1;
        }
        end - first
    }

    /// How two versions become one: whatever needs fewer chunks copied.
    fn merge(&self, volume: u32, logical: u32, newer: Link, older: Link) -> Merge {
        let bytes = |link: Link| {
            let mut bytes = vec![0; self.chains.bitmaps.bytes()].into_boxed_slice();
            if let Some(physical) = link.physical() {
                self.copy_bitmap(physical, &mut bytes);
            }
            bytes
        };
        let (has_newer, has_older) = (bytes(newer), bytes(older));
        let pairs = || has_newer.iter().zip(&has_older);
        let missing: Box<[u8]> = pairs().map(|(newer, older)| older & !newer).collect();
        let result: Box<[u8]> = pairs().map(|(newer, older)| older | newer).collect();
        let is_less = count(&has_newer) < count(&missing);
        let (from, into) = if is_less {
            (newer, older)
        } else {
            (older, newer)
        };
        Merge {
            volume,
            logical,
            from: from.physical().unwrap_or_default(),
            into: into.physical().unwrap_or_default(),
            chunks: if is_less { has_newer } else { missing },
            born: self.chains.versions.born(newer),
            older_born: self.chains.versions.born(older),
            is_whole: count(&result) == self.limits.chunks(),
            result,
        }
    }
}

fn count(bits: &[u8]) -> u32 {
    bits.iter().map(|byte| byte.count_ones()).sum()
}
