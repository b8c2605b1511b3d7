//! What was written and acknowledged, block by block: in memory while it is written,
//! and in a file beside the drive so that a later run can verify it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::pattern::{Damage, Stamp};

/// Version of the file.
const FORMAT: u32 = 1;
/// Bytes of a file at most, far above what a ledger of [`BLOCKS_MAX`] needs.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Blocks a ledger follows at most.
pub(crate) const BLOCKS_MAX: u64 = 1 << 24;

/// Who may change the drive, as the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// A run writes: after a crash of the run, nothing is known.
    Writing,
    /// Everything in the file was acknowledged, and nothing else was written.
    Acknowledged,
    /// Hosts of the user may have written; nothing is known, and it is not ours to
    /// write over.
    HandedOver,
}

/// The generation of every block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) seed: u64,
    pub(crate) block_bytes: u32,
    /// The last acknowledged write of each block; 0 is none.
    acknowledged: Vec<u32>,
    /// Writes sent and not acknowledged: the block may hold them or not.
    in_flight: HashMap<u64, u32>,
}

/// A block that does not hold what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) lba: u64,
    /// The write that was acknowledged.
    pub(crate) expected: u32,
    pub(crate) damage: Damage,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    format: u32,
    phase: Phase,
    seed: u64,
    block_bytes: u32,
    /// Runs of blocks with one generation: count and generation.
    generations: Vec<(u64, u32)>,
}

impl Ledger {
    /// A drive of which nothing is written yet.
    pub(crate) fn new(seed: u64, block_bytes: u32, blocks: u64) -> Self {
        let count = usize::try_from(blocks.min(BLOCKS_MAX)).unwrap_or(0);
        Self {
            seed,
            block_bytes,
            acknowledged: vec![0; count],
            in_flight: HashMap::new(),
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// Fills the payload of a write from `lba` on, and notes it as in flight.
    pub(crate) fn begin_write(&mut self, lba: u64, payload: &mut [u8]) {
        let block_bytes = self.block_bytes as usize;
        for (lba, block) in (lba..).zip(payload.chunks_exact_mut(block_bytes)) {
            let generation = self.generation(lba) + 1;
            self.in_flight.insert(lba, generation);
            Stamp {
                seed: self.seed,
                lba,
                generation,
            }
            .fill(block);
        }
    }

    /// The write of `blocks` blocks from `lba` on was acknowledged.
    pub(crate) fn acknowledge(&mut self, lba: u64, blocks: u64) {
        for lba in lba..lba + blocks {
            if let Some(generation) = self.in_flight.remove(&lba) {
                self.settle(lba, generation);
            }
        }
    }

    /// Checks what was read from `lba` on. A block with a write in flight may hold
    /// either content, and is settled by what it holds.
    pub(crate) fn check(&mut self, lba: u64, data: &[u8]) -> Result<(), Mismatch> {
        let block_bytes = self.block_bytes as usize;
        for (lba, block) in (lba..).zip(data.chunks_exact(block_bytes)) {
            let mut stamp = Stamp {
                seed: self.seed,
                lba,
                generation: self.generation(lba),
            };
            if let Some(sent) = self.in_flight.remove(&lba)
                && stamp.generation_of(block) == Some(sent)
            {
                stamp.generation = sent;
                self.settle(lba, sent);
            }
            if stamp.generation > 0 {
                let expected = stamp.generation;
                stamp.check(block).map_err(|damage| Mismatch {
                    lba,
                    expected,
                    damage,
                })?;
            }
        }
        Ok(())
    }

    fn generation(&self, lba: u64) -> u32 {
        let at = usize::try_from(lba).unwrap_or(usize::MAX);
        self.acknowledged.get(at).copied().unwrap_or(0)
    }

    fn settle(&mut self, lba: u64, generation: u32) {
        let at = usize::try_from(lba).unwrap_or(usize::MAX);
        if let Some(slot) = self.acknowledged.get_mut(at) {
            *slot = generation;
        }
    }

    /// Writes the file: the old one or the new one is there, whatever happens.
    pub(crate) fn store(&self, path: &Path, phase: Phase) -> io::Result<()> {
        let runs = self.acknowledged.chunk_by(|a, b| a == b);
        let stored = Stored {
            format: FORMAT,
            phase,
            seed: self.seed,
            block_bytes: self.block_bytes,
            generations: runs.map(|run| (run.len() as u64, run[0])).collect(),
        };
        let text = serde_json::to_vec(&stored)?;
        let next = path.with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Reads the file; `None` if there is none.
    pub(crate) fn load(path: &Path) -> io::Result<Option<(Self, Phase)>> {
        let bytes = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if bytes > FILE_BYTES_MAX {
            return Err(invalid("it is too large to be one of ours"));
        }
        let stored: Stored = serde_json::from_slice(&fs::read(path)?)?;
        if stored.format != FORMAT {
            return Err(invalid("it was written by another version of bowline"));
        }
        if stored.block_bytes != 512 && stored.block_bytes != 4096 {
            return Err(invalid("its block size is not possible"));
        }
        let total = stored
            .generations
            .iter()
            .try_fold(0_u64, |sum, run| sum.checked_add(run.0));
        let Some(blocks) = total.filter(|blocks| *blocks <= BLOCKS_MAX) else {
            return Err(invalid("it has too many blocks"));
        };
        let mut ledger = Self::new(stored.seed, stored.block_bytes, blocks);
        let mut at = 0;
        for (count, generation) in stored.generations {
            for lba in at..at + count {
                ledger.settle(lba, generation);
            }
            at += count;
        }
        Ok(Some((ledger, stored.phase)))
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    fn written(ledger: &mut Ledger, lba: u64, blocks: usize) -> Vec<u8> {
        let mut payload = vec![0; blocks * BLOCK];
        ledger.begin_write(lba, &mut payload);
        payload
    }

    #[test]
    fn acknowledged_write_must_be_there() {
        let mut ledger = Ledger::new(1, 512, 8);
        let first = written(&mut ledger, 2, 2);
        ledger.acknowledge(2, 2);
        let second = written(&mut ledger, 2, 2);
        ledger.acknowledge(2, 2);
        assert_eq!(ledger.check(2, &second), Ok(()));
        let damage = Damage::OtherGeneration { found: 1 };
        assert_eq!(
            ledger.check(2, &first),
            Err(Mismatch {
                lba: 2,
                expected: 2,
                damage
            })
        );
    }

    #[test]
    fn write_in_flight_may_be_there_or_not_but_not_torn() {
        let mut ledger = Ledger::new(1, 512, 4);
        let old = written(&mut ledger, 0, 4);
        ledger.acknowledge(0, 4);
        let new = written(&mut ledger, 0, 4);
        let mut found = old.clone();
        found[BLOCK..2 * BLOCK].copy_from_slice(&new[BLOCK..2 * BLOCK]);
        let mut mixed = ledger.clone();
        assert_eq!(mixed.check(0, &found), Ok(()));
        assert!(mixed.in_flight.is_empty());
        // What was found is from now on what must be there.
        assert!(mixed.check(0, &old).is_err());
        found[BLOCK + 256..2 * BLOCK].copy_from_slice(&old[BLOCK + 256..2 * BLOCK]);
        assert_eq!(ledger.check(0, &found).unwrap_err().lba, 1);
    }

    #[test]
    fn unwritten_blocks_may_hold_anything() {
        let mut ledger = Ledger::new(1, 512, 4);
        assert_eq!(ledger.check(0, &[0xa5; 4 * BLOCK]), Ok(()));
    }

    #[test]
    fn file_keeps_every_generation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.json");
        assert!(Ledger::load(&path).unwrap().is_none());
        let mut ledger = Ledger::new(9, 512, 100);
        for (lba, blocks) in [(0, 100), (10, 5), (12, 1)] {
            let _payload = written(&mut ledger, lba, blocks);
            ledger.acknowledge(lba, blocks as u64);
        }
        ledger.store(&path, Phase::Acknowledged).unwrap();
        assert_eq!(
            Ledger::load(&path).unwrap(),
            Some((ledger, Phase::Acknowledged))
        );
    }

    #[test]
    fn damaged_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.json");
        let huge = r#"{"format":1,"phase":"writing","seed":1,"blockBytes":512,
                       "generations":[[18446744073709551615,1],[2,2]]}"#;
        for text in [
            "",
            "{}",
            huge,
            &huge.replace("512", "513"),
            &huge.replace(":1,", ":2,"),
        ] {
            fs::write(&path, text).unwrap();
            assert!(Ledger::load(&path).is_err(), "{text}");
        }
    }
}
