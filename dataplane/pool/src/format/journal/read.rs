//! Groups in, and where they end.

use super::super::superblock::Superblock;
use super::ring::{Ring, SECTOR_BYTES};
use super::sector::{Sector, Tag};
use super::write::{generation_of, tag_of};

/// Why the journal does not end as a crash would have left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageReason {
    /// A sector that may have been in a durable group is neither zero nor valid.
    #[error("a sector is damaged")]
    Sector,
    /// Sectors of one group do not fit together in a way that no crash explains.
    #[error("sectors contradict each other")]
    Contradiction,
    /// A later sector was only written when what is missing was durable.
    #[error("sectors are missing that were durable when sector {proof} was written")]
    Missing {
        /// Sequence of the later one.
        proof: u64,
    },
    /// The checkpoint was only made valid when what is missing was durable.
    #[error("sectors are missing that were durable when the checkpoint was completed")]
    BeforeCheckpoint,
    /// The pool was closed later.
    #[error("sectors are missing that were durable when the pool was closed")]
    BeforeClose,
    /// The pool was opened again after the superblock was written.
    #[error("the journal is newer than the superblocks")]
    SuperblockOlder,
}

/// Where the journal is damaged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal is damaged at sector {sequence} (place {position} in the ring): {reason}")]
pub struct Damage {
    /// How.
    pub reason: DamageReason,
    /// The sequence that was expected.
    pub sequence: u64,
    /// Where it is in the ring, counted in sectors.
    pub position: u64,
}

/// One group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group<'r> {
    /// Of its first sector.
    pub sequence: u64,
    /// How many it has.
    pub sectors: u64,
    /// Of the opening in which it was written, low 32 bits.
    pub generation: u32,
    /// Whether its records must fit the state; else what they name may be gone.
    pub is_strict: bool,
    /// Its records, as [`RecordReader`](super::super::codec::RecordReader) reads them.
    pub records: &'r [u8],
}

/// Reads a journal. What is to be looked at of it has been when this is made.
#[derive(Debug)]
pub struct JournalReader<'b> {
    sectors: Sectors<'b>,
    strict_from: u64,
    next: u64,
    readable_to: u64,
    end: Result<u64, Damage>,
    stale_damaged: u64,
    records: Vec<u8>,
}

impl<'b> JournalReader<'b> {
    /// Of the whole ring. What could not be read of it is given as bytes of FFh.
    #[must_use]
    pub fn new(superblock: &Superblock, bytes: &'b [u8]) -> Self {
        let sectors = superblock.layout.ring().sectors();
        Self::of_sectors(superblock, bytes, sectors)
    }

    /// Of the sectors that must be looked at, [`needed`] ones: those elsewhere in `bytes` are not.
    #[must_use]
    pub fn of_needed(superblock: &Superblock, bytes: &'b [u8]) -> Self {
        Self::of_sectors(superblock, bytes, needed(superblock))
    }

    /// Of so many sectors, the first to be replayed first.
    fn of_sectors(superblock: &Superblock, bytes: &'b [u8], count: u64) -> Self {
        let ring = superblock.layout.ring();
        let sectors = Sectors {
            ring,
            tag: tag_of(superblock.uuid),
            bytes,
        };
        let (readable_to, end) = sectors.groups(superblock);
        let (end, stale_damaged) = sectors.all(superblock, count, (readable_to, end));
        Self {
            sectors,
            strict_from: superblock.strict_from,
            next: superblock.replay_from,
            readable_to,
            end,
            stale_damaged,
            records: Vec::new(),
        }
    }

    /// The sequence of the next group to be written, if the journal ends as it should. If not, the
    /// groups before the damage can be read all the same.
    pub const fn end(&self) -> Result<u64, Damage> {
        self.end
    }

    /// The sequence before which there are whole groups.
    #[must_use]
    pub const fn readable_to(&self) -> u64 {
        self.readable_to
    }

    /// Damaged sectors outside of what is to be replayed: of no consequence, and a bad sign.
    #[must_use]
    pub const fn stale_damaged(&self) -> u64 {
        self.stale_damaged
    }

    /// The next whole group.
    pub fn next_group(&mut self) -> Option<Group<'_>> {
        if self.next >= self.readable_to {
            return None;
        }
        self.records.clear();
        let sequence = self.next;
        let mut generation = 0;
        let mut at = sequence;
        while let Sector::Valid(head, payload) = self.sectors.at(at) {
            self.records.extend_from_slice(payload);
            generation = head.generation;
            at += 1;
            if head.is_last {
                break;
            }
        }
        self.next = self.sectors.ring.next_start(at.max(sequence + 1));
        Some(Group {
            sequence,
            sectors: at - sequence,
            generation,
            is_strict: sequence >= self.strict_from,
            records: &self.records,
        })
    }
}

/// How many sectors must be looked at, from the first to replay on: all of the ring, unless the pool was closed in
/// order. Then the superblock says where the journal ends, and whoever has written to it since has begun there: so the
/// block behind the end shows whether anybody has.
#[must_use]
pub fn needed(superblock: &Superblock) -> u64 {
    let ring = superblock.layout.ring();
    let closed = superblock.closed_at.and_then(|end| {
        let sectors = end.checked_sub(superblock.replay_from)?;
        sectors.checked_add(ring.block_sectors())
    });
    closed.map_or(ring.sectors(), |sectors| sectors.min(ring.sectors()))
}

/// What is found where a group should begin.
enum Found {
    /// A group of so many sectors.
    Whole(u64, u32),
    /// Nothing, or what a crash left of a group.
    End,
    /// Something else, so many sectors on.
    Damaged(u64, DamageReason),
}

#[derive(Clone, Copy, Debug)]
struct Sectors<'b> {
    ring: Ring,
    tag: Tag,
    bytes: &'b [u8],
}

impl<'b> Sectors<'b> {
    fn at(&self, sequence: u64) -> Sector<'b> {
        self.at_position(self.ring.position(sequence))
    }

    fn at_position(&self, position: u64) -> Sector<'b> {
        let bytes = usize::try_from(position).ok().and_then(|position| {
            self.bytes
                .get(position * SECTOR_BYTES..)?
                .get(..SECTOR_BYTES)
        });
        bytes.map_or(Sector::Damaged, |bytes| {
            Sector::read(bytes, self.tag, self.ring, position)
        })
    }

    /// Goes through the groups: where whole ones end, and whether that is as it should be.
    fn groups(&self, superblock: &Superblock) -> (u64, Result<u64, Damage>) {
        let mut next = superblock.replay_from;
        let opened = generation_of(superblock.generation);
        let mut generation = None;
        let mut has_strict_start = next == superblock.strict_from;
        let reason = loop {
            if superblock.closed_at == Some(next) {
                break None;
            }
            match self.group(next, generation, opened) {
                Found::Whole(sectors, of) => {
                    next = self.ring.next_start(next + sectors);
                    has_strict_start |= next == superblock.strict_from;
                    generation = Some(of);
                }
                Found::End => break None,
                Found::Damaged(sectors, reason) => break Some((next + sectors, reason)),
            }
        };
        let reason = reason.or(if superblock.closed_at.is_some_and(|at| at > next) {
            Some((next, DamageReason::BeforeClose))
        } else if superblock.closed_at.is_some_and(|at| at < next) {
            Some((next, DamageReason::SuperblockOlder))
        } else if superblock.strict_from > next {
            Some((next, DamageReason::BeforeCheckpoint))
        } else if has_strict_start {
            None
        } else {
            Some((superblock.strict_from, DamageReason::Contradiction))
        });
        let end = match reason {
            None => Ok(next),
            Some((sequence, reason)) => Err(self.damage(sequence, reason)),
        };
        (next, end)
    }

    /// What is at `start`, behind a group of generation `before`, if any is known, in a pool that
    /// was last opened with generation `opened`.
    fn group(&self, start: u64, before: Option<u32>, opened: u32) -> Found {
        let mut generation = None;
        for sectors in 0..self.ring.group_sectors_max() {
            let head = match self.at(start + sectors) {
                Sector::Valid(head, _) if head.sequence == start + sectors => head,
                // Of another lap, or none: it was not written, or not any more.
                Sector::Valid(..) | Sector::Zero => return Found::End,
                Sector::Damaged => return Found::Damaged(sectors, DamageReason::Sector),
            };
            if head.group_start() != start {
                // Left of a group that was cut short, if a later generation has gone on since.
                let since = generation.or(before).unwrap_or(opened);
                return if is_newer(since, head.generation) {
                    Found::End
                } else {
                    Found::Damaged(sectors, DamageReason::Contradiction)
                };
            }
            match generation.replace(head.generation) {
                // Who wrote this saw that the group before was durable; so nobody wrote that group
                // in a later generation.
                None if before.is_some_and(|before| is_newer(before, head.generation)) => {
                    return Found::Damaged(sectors, DamageReason::Contradiction);
                }
                // One is left of an attempt of another generation: this one was cut short.
                Some(first) if first != head.generation => return Found::End,
                _ => {}
            }
            if head.is_last {
                return if (sectors + 1) % self.ring.block_sectors() == 0 {
                    Found::Whole(sectors + 1, head.generation)
                } else {
                    Found::Damaged(sectors, DamageReason::Contradiction)
                };
            }
        }
        Found::Damaged(0, DamageReason::Contradiction)
    }

    /// Looks at every one of `count` sectors: what it proves about the end, and how many are damaged elsewhere.
    fn all(
        &self,
        superblock: &Superblock,
        count: u64,
        (next, mut end): (u64, Result<u64, Damage>),
    ) -> (Result<u64, Damage>, u64) {
        let mut stale_damaged = 0_u64;
        let places = self.ring.places(superblock.replay_from, count);
        for position in places.into_iter().flatten() {
            let head = match self.at_position(position) {
                Sector::Valid(head, _) => head,
                Sector::Zero => continue,
                Sector::Damaged => {
                    stale_damaged += 1;
                    continue;
                }
            };
            let reason = if is_newer(head.generation, generation_of(superblock.generation)) {
                DamageReason::SuperblockOlder
            } else if head.group_start() > next {
                DamageReason::Missing {
                    proof: head.sequence,
                }
            } else {
                continue;
            };
            if end.is_ok() {
                end = Err(self.damage(next, reason));
            }
        }
        if end.is_err_and(|damage| damage.reason == DamageReason::Sector) {
            stale_damaged = stale_damaged.saturating_sub(1);
        }
        (end, stale_damaged)
    }

    const fn damage(&self, sequence: u64, reason: DamageReason) -> Damage {
        Damage {
            reason,
            sequence,
            position: self.ring.position(sequence),
        }
    }
}

/// Whether generation `a` is later than `b`; both are low halves.
const fn is_newer(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}
