//! What each block of a volume may hold.
//!
//! A block has a history: first what is certainly there or was overwritten since, then everything
//! that was begun after it. Whatever of these a block holds is right; anything older was lost, and
//! anything else was never written. An operation becomes certain when it is acknowledged and durable,
//! and what is older than it leaves the history. Operations that overlap are never under way
//! together, so their numbers tell the order.

use std::collections::BTreeMap;
use std::fmt;

use crate::stamp::{self, Content, Stamp};

/// What a command does to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writes stamps.
    Write,
    /// The same, durable when acknowledged.
    WriteFua,
    /// Write Zeroes, without or with leave to deallocate.
    Zero,
    /// Dataset Management: what is deallocated reads as zeroes.
    Deallocate,
    /// What was acknowledged before it began is durable when it is acknowledged.
    Flush,
}

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Rises with each operation of a volume; from 1 on.
    pub number: u32,
    /// What it does.
    pub kind: Kind,
    /// First block.
    pub lba: u32,
    /// Blocks; 0 for a flush.
    pub blocks: u32,
}

/// When an acknowledged write is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// At once.
    Always,
    /// When a flush that began later is acknowledged.
    Flushed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// 0: there from the start on.
    operation: u32,
    /// The write whose stamp it is: its volume's seed and its number. None: zeroes.
    write: Option<(u64, u32)>,
}

/// The blocks' histories, and what is under way.
#[derive(Debug, Clone)]
pub struct Ledger {
    seed: u64,
    block_bytes: usize,
    promise: Promise,
    histories: Vec<Vec<Entry>>,
    running: BTreeMap<u32, Operation>,
    acknowledged: BTreeMap<u32, Operation>,
    /// For each flush under way, what it makes durable.
    flushes: BTreeMap<u32, Vec<u32>>,
}

/// A block that does not hold what it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    lba: u32,
    allowed: Vec<String>,
    found: String,
}

impl Ledger {
    /// An empty volume, of which every block reads as zeroes.
    #[must_use]
    pub fn new(seed: u64, block_bytes: u32, blocks: u32, promise: Promise) -> Self {
        let nothing = Entry {
            operation: 0,
            write: None,
        };
        Self {
            seed,
            block_bytes: block_bytes as usize,
            promise,
            histories: vec![vec![nothing]; blocks as usize],
            running: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            flushes: BTreeMap::new(),
        }
    }

    /// A volume with a seed of its own that begins as this one, of which it may hold anything that this
    /// one may hold now.
    #[must_use]
    pub fn begun_as(&self, seed: u64, promise: Promise) -> Self {
        let first = |entry: &Entry| Entry {
            operation: 0,
            ..*entry
        };
        let histories = self.histories.iter();
        let histories = histories.map(|history| history.iter().map(first).collect());
        Self {
            seed,
            block_bytes: self.block_bytes,
            promise,
            histories: histories.collect(),
            running: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            flushes: BTreeMap::new(),
        }
    }

    /// Blocks that are followed.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.histories.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        u32::try_from(self.block_bytes).unwrap_or(u32::MAX)
    }

    /// The data of a write.
    pub fn fill(&self, operation: Operation, data: &mut [u8]) {
        for (lba, block) in (operation.lba..).zip(data.chunks_exact_mut(self.block_bytes)) {
            Stamp {
                seed: self.seed,
                lba,
                operation: operation.number,
            }
            .fill(block);
        }
    }

    /// The operation is about to be submitted.
    pub fn begin(&mut self, operation: Operation) {
        if operation.kind == Kind::Flush {
            let covered = self.acknowledged.keys().copied().collect();
            self.flushes.insert(operation.number, covered);
            return;
        }
        let is_zeroes = matches!(operation.kind, Kind::Zero | Kind::Deallocate);
        let entry = Entry {
            operation: operation.number,
            write: (!is_zeroes).then_some((self.seed, operation.number)),
        };
        for history in self.of(operation) {
            history.push(entry);
        }
        self.running.insert(operation.number, operation);
    }

    /// The operation was acknowledged.
    pub fn end(&mut self, number: u32) {
        if let Some(covered) = self.flushes.remove(&number) {
            for number in covered {
                let operation = self.acknowledged.remove(&number);
                operation.into_iter().for_each(|done| self.is_certain(done));
            }
        }
        let Some(operation) = self.running.remove(&number) else {
            return;
        };
        if self.promise == Promise::Always || operation.kind == Kind::WriteFua {
            self.is_certain(operation);
        } else {
            self.acknowledged.insert(number, operation);
        }
    }

    /// Whoever acknowledges is gone: nothing that is under way will be acknowledged.
    pub fn cut(&mut self) {
        self.running.clear();
        self.acknowledged.clear();
        self.flushes.clear();
    }

    /// Judges what was read from `lba` on, and gives how many blocks of it held data.
    ///
    /// # Errors
    /// The first block that holds what it may not.
    pub fn check(&self, lba: u32, data: &[u8]) -> Result<u32, Mismatch> {
        let mut stamps = 0;
        for (lba, block) in (lba..).zip(data.chunks_exact(self.block_bytes)) {
            let found = self.check_block(lba, block)?;
            stamps += u32::from(found.write.is_some());
        }
        Ok(stamps)
    }

    /// The same; and what was found is certain from now on. For when nothing is under way.
    ///
    /// # Errors
    /// The first block that holds what it may not.
    pub fn settle(&mut self, lba: u32, data: &[u8]) -> Result<u32, Mismatch> {
        let mut stamps = 0;
        for (lba, block) in (lba..).zip(data.chunks_exact(self.block_bytes)) {
            let found = self.check_block(lba, block)?;
            self.histories[lba as usize] = vec![found];
            stamps += u32::from(found.write.is_some());
        }
        Ok(stamps)
    }

    fn check_block(&self, lba: u32, block: &[u8]) -> Result<Entry, Mismatch> {
        let content = stamp::read(block);
        let history = self.histories.get(lba as usize);
        let history = history.map_or(&[][..], Vec::as_slice);
        let is_it = |entry: &&Entry| match content {
            Content::Zeroes => entry.write.is_none(),
            Content::Stamp(stamp) => {
                stamp.lba == lba && entry.write == Some((stamp.seed, stamp.operation))
            }
            Content::Torn(_) | Content::Foreign => false,
        };
        // Of several that look the same, the last.
        let found = history.iter().rev().find(is_it).copied();
        found.ok_or_else(|| Mismatch {
            lba,
            allowed: history.iter().map(Entry::to_string).collect(),
            found: self.describe(lba, content),
        })
    }

    fn describe(&self, lba: u32, content: Content) -> String {
        match content {
            Content::Zeroes => "zeroes".to_owned(),
            Content::Foreign => "what was never written".to_owned(),
            Content::Torn(stamp) => format!(
                "write {} of block {} in part, with something else behind it",
                stamp.operation, stamp.lba
            ),
            Content::Stamp(stamp) if stamp.seed != self.seed => {
                format!("block {} of another volume", stamp.lba)
            }
            Content::Stamp(stamp) if stamp.lba != lba => format!("block {}", stamp.lba),
            Content::Stamp(stamp) => format!("write {}", stamp.operation),
        }
    }

    fn is_certain(&mut self, operation: Operation) {
        for history in self.of(operation) {
            let older = |entry: &Entry| entry.operation < operation.number;
            let place = history.iter().position(|entry| !older(entry));
            history.drain(..place.unwrap_or(0));
        }
    }

    fn of(&mut self, operation: Operation) -> impl Iterator<Item = &mut Vec<Entry>> {
        let (first, count) = (operation.lba as usize, operation.blocks as usize);
        self.histories.iter_mut().skip(first).take(count)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.operation, self.write) {
            (0, None) => out.write_str("nothing (zeroes)"),
            (0, Some((_, write))) => write!(out, "nothing (write {write} of its origin)"),
            (number, None) => write!(out, "{number} (zeroes)"),
            (number, Some(_)) => write!(out, "{number}"),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "block {} holds {}; it may hold what one of these operations left: {}",
            self.lba,
            self.found,
            self.allowed.join(", ")
        )
    }
}

impl std::error::Error for Mismatch {}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 512;

    fn operation(number: u32, kind: Kind, lba: u32, blocks: u32) -> Operation {
        Operation {
            number,
            kind,
            lba,
            blocks,
        }
    }

    fn begin(ledger: &mut Ledger, number: u32, kind: Kind, lba: u32, blocks: u32) -> Vec<u8> {
        let operation = operation(number, kind, lba, blocks);
        ledger.begin(operation);
        let mut data = vec![0; (blocks * BLOCK) as usize];
        if matches!(kind, Kind::Write | Kind::WriteFua) {
            ledger.fill(operation, &mut data);
        }
        data
    }

    #[test]
    fn acknowledged_write_replaces_what_was_before() {
        let mut ledger = Ledger::new(1, BLOCK, 8, Promise::Always);
        let nothing = vec![0; BLOCK as usize];
        let first = begin(&mut ledger, 1, Kind::Write, 3, 1);
        assert_eq!(ledger.check(3, &nothing), Ok(0));
        assert_eq!(ledger.check(3, &first), Ok(1));
        ledger.end(1);
        assert!(ledger.check(3, &nothing).is_err());
        let zero = begin(&mut ledger, 2, Kind::Zero, 3, 1);
        assert_eq!(
            (ledger.check(3, &zero), ledger.check(3, &first)),
            (Ok(0), Ok(1))
        );
        ledger.end(2);
        let lost = ledger.check(3, &first).unwrap_err();
        assert_eq!(
            lost.to_string(),
            "block 3 holds write 1; it may hold what one of these operations left: 2 (zeroes)"
        );
        assert!(ledger.check(4, &first).is_err(), "another place");
        assert!(ledger.check(7, &[9; 512]).is_err(), "never written");
    }

    #[test]
    fn without_a_promise_only_a_later_flush_makes_it_certain() {
        let mut ledger = Ledger::new(1, BLOCK, 8, Promise::Flushed);
        let nothing = vec![0; BLOCK as usize];
        begin(&mut ledger, 1, Kind::Write, 0, 1);
        begin(&mut ledger, 2, Kind::Flush, 0, 0);
        ledger.end(1);
        // It was acknowledged after the flush began.
        ledger.end(2);
        assert_eq!(ledger.check(0, &nothing), Ok(0));
        begin(&mut ledger, 3, Kind::Flush, 0, 0);
        ledger.end(3);
        assert!(ledger.check(0, &nothing).is_err());
        let fua = begin(&mut ledger, 4, Kind::WriteFua, 1, 1);
        ledger.end(4);
        assert_eq!(ledger.check(1, &fua), Ok(1));
        assert!(ledger.check(1, &nothing).is_err());
    }

    #[test]
    fn clone_begins_as_its_origin_and_goes_on_with_writes_of_its_own() {
        let mut origin = Ledger::new(1, BLOCK, 8, Promise::Always);
        let nothing = vec![0; BLOCK as usize];
        let first = begin(&mut origin, 7, Kind::Write, 0, 1);
        origin.end(7);
        let open = begin(&mut origin, 8, Kind::Write, 1, 1);
        let mut clone = origin.begun_as(2, Promise::Always);
        let later = begin(&mut origin, 9, Kind::Write, 0, 1);
        origin.end(9);
        assert_eq!(clone.check(0, &first), Ok(1));
        assert!(clone.check(0, &later).is_err(), "not of the clone");
        assert!(clone.check(0, &nothing).is_err(), "it began with data");
        for data in [&open, &nothing] {
            assert!(clone.check(1, data).is_ok());
        }
        // Its numbers begin anew, and are later than all that it began with.
        let own = begin(&mut clone, 1, Kind::Write, 0, 1);
        assert_eq!(
            (clone.check(0, &first), clone.check(0, &own)),
            (Ok(1), Ok(1))
        );
        assert!(origin.check(0, &own).is_err());
        clone.end(1);
        let lost = clone.check(0, &first).unwrap_err().to_string();
        assert!(
            lost.starts_with("block 0 holds block 0 of another volume"),
            "{lost}"
        );
        assert_eq!(clone.check(0, &own), Ok(1));
    }

    #[test]
    fn what_was_found_after_a_cut_must_stay() {
        let mut ledger = Ledger::new(1, BLOCK, 8, Promise::Always);
        let old = begin(&mut ledger, 1, Kind::Write, 0, 4);
        ledger.end(1);
        let new = begin(&mut ledger, 2, Kind::Write, 2, 4);
        ledger.cut();
        ledger.end(2);
        assert_eq!(ledger.settle(2, &old[1024..]), Ok(2));
        assert_eq!(ledger.settle(4, &new[1024..]), Ok(2));
        assert!(ledger.check(2, &new[..1024]).is_err());
        assert!(ledger.check(4, &vec![0; 1024]).is_err());
    }
}
