//! Blocks that describe themselves, and what is wrong with one that does not.
//!
//! ```text
//! 0..8  magic    8..16 seed of the run   16..24 LBA   24..32 generation   32..36 namespace
//! 40..len-8      words that each follow from seed, namespace, LBA, place and generation
//! len-4..        CRC32C of all before
//! ```
//! Every word of the body tells its generation by itself, so a block that is put together from two
//! writes is told from one whose bits have changed.

use bowline_nvme::NamespaceId;
use bowline_nvmf::frame::crc32c;

use crate::random::mix;

const MAGIC: [u8; 8] = *b"BLPERF\x01\x00";
const HEADER_BYTES: usize = 40;
const TRAILER_BYTES: usize = 8;
const WORD_BYTES: usize = 8;
/// Difference of the words of successive generations; odd, so that it can be divided by.
const GENERATION_STEP: u64 = 0x9E37_79B9_7F4A_7C15;
/// Its inverse modulo 2^64.
const GENERATION_STEP_INVERSE: u64 = inverse(GENERATION_STEP);
/// Difference of successive words of a block.
const PLACE_STEP: u64 = 0xD1B5_4A32_D192_ED03;
/// A device that tears a write leaves pieces of at least so many words.
const PIECE_WORDS_MIN: usize = 8;

/// Which block, of which run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) seed: u64,
    pub(crate) nsid: NamespaceId,
    pub(crate) lba: u64,
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// What this block was given in a write of this generation.
    Own { generation: u64 },
    /// What another block of this run was given.
    Other { nsid: NamespaceId, lba: u64 },
    /// Parts of different writes, or of a write and of something older.
    Torn,
    /// Given in this run and changed since.
    Damaged,
    /// Nothing of this run.
    Foreign,
}

impl Identity {
    /// What the words of the body start from.
    fn base(self) -> u64 {
        mix(self.seed ^ mix(self.lba ^ mix(u64::from(self.nsid.0))))
    }

    /// Fills a block of at least 64 bytes.
    pub(crate) fn write(self, generation: u64, block: &mut [u8]) {
        let end = block.len() - TRAILER_BYTES;
        block[..8].copy_from_slice(&MAGIC);
        block[8..16].copy_from_slice(&self.seed.to_le_bytes());
        block[16..24].copy_from_slice(&self.lba.to_le_bytes());
        block[24..32].copy_from_slice(&generation.to_le_bytes());
        block[32..36].copy_from_slice(&self.nsid.0.to_le_bytes());
        block[36..40].fill(0);
        let first = self
            .base()
            .wrapping_add(generation.wrapping_mul(GENERATION_STEP));
        let mut word = first;
        for place in block[HEADER_BYTES..end].chunks_exact_mut(WORD_BYTES) {
            place.copy_from_slice(&word.to_le_bytes());
            word = word.wrapping_add(PLACE_STEP);
        }
        block[end..end + 4].fill(0);
        let crc = crc32c(&block[..end + 4]);
        block[end + 4..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Judges a block. Generations up to `newest` have been given out.
    pub(crate) fn read(self, newest: u64, block: &[u8]) -> Content {
        let end = block.len() - TRAILER_BYTES;
        let intact = word32(block, end + 4) == crc32c(&block[..end + 4]) && block[..8] == MAGIC;
        if intact && word64(block, 8) == self.seed {
            let (nsid, lba) = (NamespaceId(word32(block, 32)), word64(block, 16));
            let generation = word64(block, 24);
            return match (nsid, lba) == (self.nsid, self.lba) {
                true if generation <= newest => Content::Own { generation },
                // Never given out: somebody made it up.
                true => Content::Damaged,
                false => Content::Other { nsid, lba },
            };
        }
        self.read_body(newest, &block[HEADER_BYTES..end])
    }

    /// Judges a block whose checksum is wrong, by the words of its body.
    fn read_body(self, newest: u64, body: &[u8]) -> Content {
        let base = self.base();
        let mut pieces = Pieces::default();
        for (place, word) in (0_u64..).zip(body.chunks_exact(WORD_BYTES)) {
            let step = base.wrapping_add(place.wrapping_mul(PLACE_STEP));
            let difference = word64(word, 0).wrapping_sub(step);
            let generation = difference.wrapping_mul(GENERATION_STEP_INVERSE);
            pieces.add((1..=newest).contains(&generation).then_some(generation));
        }
        pieces.verdict()
    }
}

/// Runs of words of the same origin.
#[derive(Default)]
struct Pieces {
    count: usize,
    current: Option<(Option<u64>, usize)>,
    shortest: Option<usize>,
    any_own: bool,
}

impl Pieces {
    fn add(&mut self, origin: Option<u64>) {
        self.any_own |= origin.is_some();
        match &mut self.current {
            Some((same, words)) if *same == origin => *words += 1,
            _ => {
                self.end_piece();
                self.current = Some((origin, 1));
            }
        }
    }

    fn end_piece(&mut self) {
        if let Some((_, words)) = self.current.take() {
            self.count += 1;
            self.shortest = Some(self.shortest.map_or(words, |shortest| shortest.min(words)));
        }
    }

    fn verdict(mut self) -> Content {
        self.end_piece();
        if !self.any_own {
            Content::Foreign
        } else if self.count > 1 && self.shortest >= Some(PIECE_WORDS_MIN) {
            Content::Torn
        } else {
            Content::Damaged
        }
    }
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    u64::from_le_bytes(word.unwrap_or_default())
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_le_bytes(word.unwrap_or_default())
}

/// The inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the bits
/// that are right, and the number itself is right in three.
const fn inverse(odd: u64) -> u64 {
    let mut found = odd;
    let mut step = 0;
    while step < 5 {
        found = found.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(found)));
        step += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SELF: Identity = Identity {
        seed: 7,
        nsid: NamespaceId(1),
        lba: 42,
    };

    fn block(identity: Identity, generation: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; len];
        identity.write(generation, &mut bytes);
        bytes
    }

    #[test]
    fn block_tells_its_generation() {
        for len in [512, 4096] {
            assert_eq!(
                SELF.read(5, &block(SELF, 3, len)),
                Content::Own { generation: 3 }
            );
            assert_eq!(
                SELF.read(2, &block(SELF, 3, len)),
                Content::Damaged,
                "not given out"
            );
        }
    }

    #[test]
    fn block_of_another_place_or_run_is_told_apart() {
        let elsewhere = Identity { lba: 43, ..SELF };
        let other = Content::Other {
            nsid: SELF.nsid,
            lba: 43,
        };
        assert_eq!(SELF.read(5, &block(elsewhere, 3, 512)), other);
        let earlier = Identity { seed: 6, ..SELF };
        assert_eq!(SELF.read(5, &block(earlier, 3, 512)), Content::Foreign);
        assert_eq!(SELF.read(5, &[0; 512]), Content::Foreign);
        assert_eq!(SELF.read(5, &[0xFF; 4096]), Content::Foreign);
    }

    #[test]
    fn parts_of_two_writes_are_torn_wherever_the_seam_is() {
        let (old, new) = (block(SELF, 2, 4096), block(SELF, 3, 4096));
        for seam in (512..4096).step_by(512) {
            let mut torn = new.clone();
            torn[seam..].copy_from_slice(&old[seam..]);
            assert_eq!(SELF.read(3, &torn), Content::Torn, "old from {seam} on");
            torn[..seam].copy_from_slice(&old[..seam]);
            torn[seam..].copy_from_slice(&new[seam..]);
            assert_eq!(SELF.read(3, &torn), Content::Torn, "new from {seam} on");
            torn[..seam].fill(0);
            assert_eq!(
                SELF.read(3, &torn),
                Content::Torn,
                "never written up to {seam}"
            );
        }
    }

    #[test]
    fn any_changed_bit_is_damage() {
        let good = block(SELF, 3, 512);
        for bit in 0..512 * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SELF.read(3, &bad), Content::Damaged, "bit {bit}");
        }
    }
}
