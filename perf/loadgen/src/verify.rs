//! What every block should hold, and what is wrong with those that hold something else.
//!
//! The ledger knows of each unit (what one command covers) the generation that was acknowledged
//! last and the one that was given out last; they differ only while a write is on its way, or when
//! one failed and may have happened or not. A unit is in one command at a time, so that what it
//! should hold is always known.
//!
//! Old content in an answer has two causes, and a second read tells them apart: the newest write
//! is not there (lost), or it is there and was not shown (stale).

use bowline_block::Segments;
use bowline_nvme::NamespaceId;
use serde::Serialize;

use crate::block::{Content, Identity};

/// Findings that are told in words.
const FINDINGS_MAX: usize = 16;
/// Largest ledger, in units.
pub(crate) const UNITS_MAX: u64 = 1 << 27;

/// What is wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An acknowledged write is not there.
    Lost,
    /// The newest write is there, yet an older state was shown.
    Stale,
    /// The content of another block.
    Misplaced,
    /// Parts of different writes.
    Torn,
    /// None of these: bits have changed.
    Corrupt,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Blocks that were read and compared with what they should hold.
    pub blocks_checked: u64,
    /// Blocks without the newest acknowledged write.
    pub lost: u64,
    /// Blocks that showed an older state once, and the newest when they were read again.
    pub stale: u64,
    /// Blocks with the content of another block.
    pub misplaced: u64,
    /// Blocks, or commands, with parts of different writes.
    pub torn: u64,
    /// Blocks whose bits have changed.
    pub corrupt: u64,
    /// The first ones, in words.
    pub findings: Vec<String>,
}

impl Verified {
    /// Everything that is wrong.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.lost + self.stale + self.misplaced + self.torn + self.corrupt
    }

    fn note(&mut self, fault: Fault, lba: u64, what: &str) {
        let (count, name) = match fault {
            Fault::Lost => (&mut self.lost, "lost"),
            Fault::Stale => (&mut self.stale, "stale"),
            Fault::Misplaced => (&mut self.misplaced, "misplaced"),
            Fault::Torn => (&mut self.torn, "torn"),
            Fault::Corrupt => (&mut self.corrupt, "corrupt"),
        };
        *count += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(format!("block {lba}: {name}: {what}"));
        }
    }
}

/// What a read of a unit means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// All is noted; the unit is free for the next command.
    Settled,
    /// Old content: read it again, to know why.
    ReadAgain,
}

#[derive(Debug, Clone, Copy, Default)]
struct Unit {
    /// Newest generation that a write was acknowledged for; 0 is whatever was there before.
    acknowledged: u32,
    /// Newest generation given out.
    issued: u32,
    busy: bool,
}

/// What every block should hold.
#[derive(Debug)]
pub(crate) struct Ledger {
    seed: u64,
    nsid: NamespaceId,
    block_bytes: usize,
    unit_blocks: u64,
    units: Vec<Unit>,
    pub(crate) verified: Verified,
}

impl Ledger {
    /// For units of `unit_blocks` blocks of `block_bytes` bytes, at most [`UNITS_MAX`].
    pub(crate) fn new(
        seed: u64,
        nsid: NamespaceId,
        block_bytes: u32,
        unit_blocks: u32,
        units: u64,
    ) -> Self {
        let units = usize::try_from(units.min(UNITS_MAX)).unwrap_or(0);
        Self {
            seed,
            nsid,
            block_bytes: usize::try_from(block_bytes).unwrap_or(4096),
            unit_blocks: u64::from(unit_blocks),
            units: vec![Unit::default(); units],
            verified: Verified::default(),
        }
    }

    pub(crate) fn unit_count(&self) -> u64 {
        self.units.len() as u64
    }

    /// The first unit from `wanted` on, round the end, that no command is using; it is in use
    /// from now on.
    pub(crate) fn claim(&mut self, wanted: u64) -> Option<u64> {
        let count = self.units.len();
        let start = usize::try_from(wanted)
            .ok()
            .filter(|start| *start < count)?;
        let index = (start..count)
            .chain(0..start)
            .find(|index| !self.units[*index].busy)?;
        self.units[index].busy = true;
        Some(index as u64)
    }

    /// Whether the unit was written in this run.
    pub(crate) fn is_written(&self, unit: u64) -> bool {
        self.unit(unit).issued > 0
    }

    /// Fills the data of a write. False if a buffer cannot be written to now.
    pub(crate) fn fill(&mut self, unit: u64, data: &mut Segments) -> bool {
        let generation = {
            let entry = self.unit_mut(unit);
            // Wraps after four billion writes of one unit; 0 means never.
            entry.issued = entry.issued.checked_add(1).unwrap_or(1);
            u64::from(entry.issued)
        };
        let mut lba = unit * self.unit_blocks;
        for segment in data.iter_mut() {
            let Some(bytes) = segment.as_mut() else {
                return false;
            };
            for block in bytes.chunks_exact_mut(self.block_bytes) {
                self.identity(lba).write(generation, block);
                lba += 1;
            }
        }
        true
    }

    /// A write ended.
    pub(crate) fn written(&mut self, unit: u64, succeeded: bool) {
        let entry = self.unit_mut(unit);
        if succeeded {
            entry.acknowledged = entry.issued;
        }
        entry.busy = false;
    }

    /// A read failed: its data says nothing.
    pub(crate) fn unread(&mut self, unit: u64) {
        self.unit_mut(unit).busy = false;
    }

    /// Judges what a read brought. `again`: it is the second look at old content.
    pub(crate) fn read(&mut self, unit: u64, data: &Segments, again: bool) -> Judgement {
        let Unit {
            acknowledged,
            issued,
            ..
        } = self.unit(unit);
        let first = unit * self.unit_blocks;
        let (mut old, mut new) = (Vec::new(), 0_u64);
        let blocks = data
            .iter()
            .flat_map(|segment| segment.as_slice().chunks_exact(self.block_bytes));
        let contents = (first..)
            .zip(blocks)
            .map(|(lba, block)| (lba, self.identity(lba).read(u64::from(issued), block)));
        let contents: Vec<_> = contents.collect();
        if !again {
            self.verified.blocks_checked += contents.len() as u64;
        }
        for (lba, content) in contents {
            let has = match content {
                Content::Own { generation } => generation,
                Content::Foreign => 0,
                Content::Other { nsid, lba: other } => {
                    let what = format!("holds what block {other} of namespace {nsid} was given");
                    self.verified.note(Fault::Misplaced, lba, &what);
                    continue;
                }
                Content::Torn => {
                    self.verified
                        .note(Fault::Torn, lba, "parts of different writes");
                    continue;
                }
                Content::Damaged => {
                    self.verified
                        .note(Fault::Corrupt, lba, "its bits have changed");
                    continue;
                }
            };
            if has >= u64::from(acknowledged) {
                new += 1;
            } else {
                old.push((lba, has));
            }
        }
        let judgement = if again {
            self.judge_again(&old, new, acknowledged, first);
            Judgement::Settled
        } else if old.is_empty() {
            Judgement::Settled
        } else {
            Judgement::ReadAgain
        };
        if judgement == Judgement::Settled {
            self.unit_mut(unit).busy = false;
        }
        judgement
    }

    /// Old content was seen a moment ago: what is there now?
    fn judge_again(&mut self, old: &[(u64, u64)], new: u64, acknowledged: u32, first: u64) {
        if old.is_empty() {
            let what =
                format!("an older state was shown once, generation {acknowledged} the next time");
            return self.verified.note(Fault::Stale, first, &what);
        }
        // A command of several blocks that is there in part was torn, not lost.
        let fault = if new > 0 { Fault::Torn } else { Fault::Lost };
        for (lba, has) in old {
            let what = match has {
                0 => format!("nothing of this run, instead of generation {acknowledged}"),
                _ => format!("generation {has}, instead of {acknowledged}"),
            };
            self.verified.note(fault, *lba, &what);
        }
    }

    fn identity(&self, lba: u64) -> Identity {
        Identity {
            seed: self.seed,
            nsid: self.nsid,
            lba,
        }
    }

    fn unit(&self, unit: u64) -> Unit {
        let index = usize::try_from(unit).unwrap_or(usize::MAX);
        self.units.get(index).copied().unwrap_or_default()
    }

    fn unit_mut(&mut self, unit: u64) -> &mut Unit {
        let index = usize::try_from(unit).unwrap_or(usize::MAX);
        match self.units.get_mut(index) {
            Some(unit) => unit,
            None => unreachable!("units come from `claim`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use bowline_block::{BufPool, ClassConfig, PoolConfig};

    use super::*;

    /// A ledger over four units of two blocks, and a pool for their data.
    fn ledger() -> (Ledger, BufPool) {
        let classes = vec![ClassConfig {
            bytes: 4096,
            count: 8,
        }];
        let pool = BufPool::new(PoolConfig { classes }).unwrap();
        (Ledger::new(9, NamespaceId(1), 512, 2, 4), pool)
    }

    fn data(pool: &BufPool) -> Segments {
        let mut buf = pool.alloc(1024).unwrap();
        buf.truncate(1024);
        buf.as_mut().unwrap().fill(0);
        Segments::from(buf)
    }

    /// Writes a unit and gives what it wrote.
    fn write(ledger: &mut Ledger, pool: &BufPool, unit: u64) -> Segments {
        assert_eq!(ledger.claim(unit), Some(unit));
        let mut data = data(pool);
        assert!(ledger.fill(unit, &mut data));
        ledger.written(unit, true);
        data
    }

    fn read(ledger: &mut Ledger, unit: u64, data: &Segments) -> Judgement {
        assert_eq!(ledger.claim(unit), Some(unit));
        ledger.read(unit, data, false)
    }

    #[test]
    fn newest_content_is_right_and_older_content_needs_a_second_look() {
        let (mut ledger, pool) = ledger();
        let first = write(&mut ledger, &pool, 1);
        assert_eq!(read(&mut ledger, 1, &first), Judgement::Settled);
        let second = write(&mut ledger, &pool, 1);
        assert_eq!(read(&mut ledger, 1, &first), Judgement::ReadAgain);
        assert_eq!(ledger.read(1, &second, true), Judgement::Settled);
        assert_eq!((ledger.verified.stale, ledger.verified.faults()), (1, 1));
        assert_eq!(read(&mut ledger, 1, &first), Judgement::ReadAgain);
        ledger.read(1, &first, true);
        assert_eq!(
            (ledger.verified.lost, ledger.verified.faults()),
            (2, 3),
            "two blocks"
        );
        assert_eq!(ledger.verified.blocks_checked, 6);
    }

    #[test]
    fn failed_write_may_have_happened_or_not() {
        let (mut ledger, pool) = ledger();
        let first = write(&mut ledger, &pool, 0);
        assert_eq!(ledger.claim(0), Some(0));
        let mut second = data(&pool);
        assert!(ledger.fill(0, &mut second));
        ledger.written(0, false);
        assert_eq!(read(&mut ledger, 0, &first), Judgement::Settled);
        assert_eq!(read(&mut ledger, 0, &second), Judgement::Settled);
        assert_eq!(ledger.verified.faults(), 0);
    }

    #[test]
    fn half_of_a_command_is_torn() {
        let (mut ledger, pool) = ledger();
        let mut first = write(&mut ledger, &pool, 2);
        let second = write(&mut ledger, &pool, 2);
        let half: Vec<u8> = second.pieces(0..512).flatten().copied().collect();
        let bytes = first.iter_mut().next().unwrap().as_mut().unwrap();
        bytes[..512].copy_from_slice(&half);
        assert_eq!(read(&mut ledger, 2, &first), Judgement::ReadAgain);
        ledger.read(2, &first, true);
        assert_eq!((ledger.verified.torn, ledger.verified.faults()), (1, 1));
    }

    #[test]
    fn content_of_another_unit_is_misplaced() {
        let (mut ledger, pool) = ledger();
        write(&mut ledger, &pool, 0);
        let other = write(&mut ledger, &pool, 1);
        assert_eq!(read(&mut ledger, 0, &other), Judgement::Settled);
        assert_eq!(
            (ledger.verified.misplaced, ledger.verified.faults()),
            (2, 2)
        );
        assert!(ledger.verified.findings[0].contains("block 0: misplaced: holds what block 2"));
    }

    #[test]
    fn unit_is_in_one_command_at_a_time() {
        let (mut ledger, pool) = ledger();
        assert_eq!(
            (ledger.claim(3), ledger.claim(3), ledger.claim(3)),
            (Some(3), Some(0), Some(1))
        );
        ledger.unread(0);
        assert_eq!(
            (ledger.claim(2), ledger.claim(3), ledger.claim(0)),
            (Some(2), Some(0), None)
        );
        assert_eq!(data(&pool).len_bytes(), 1024);
    }

    #[test]
    fn unit_that_was_never_written_may_hold_anything() {
        let (mut ledger, pool) = ledger();
        let zeroes = data(&pool);
        assert!(!ledger.is_written(0));
        assert_eq!(read(&mut ledger, 0, &zeroes), Judgement::Settled);
        assert_eq!(ledger.verified.faults(), 0);
    }
}
