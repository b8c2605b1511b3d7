//! Blocks that say themselves what they should hold: a header with seed, position
//! and generation, then bytes that follow from these three.

use std::fmt;

/// First bytes of every block.
const MAGIC: [u8; 8] = *b"BOWLINE\x01";
/// Magic, seed, block number and generation, eight bytes each.
const HEADER_BYTES: usize = 32;

/// What one block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Of the run that wrote it.
    pub(crate) seed: u64,
    /// Logical block number.
    pub(crate) lba: u64,
    /// Rises with every write of the block; 0 is never written.
    pub(crate) generation: u32,
}

impl Stamp {
    /// Fills a block of any multiple of eight bytes, at least 512.
    pub(crate) fn fill(self, block: &mut [u8]) {
        let (header, body) = block.split_at_mut(HEADER_BYTES);
        header[..8].copy_from_slice(&MAGIC);
        header[8..16].copy_from_slice(&self.seed.to_le_bytes());
        header[16..24].copy_from_slice(&self.lba.to_le_bytes());
        header[24..].copy_from_slice(&u64::from(self.generation).to_le_bytes());
        for (word, bytes) in self.words().zip(body.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// What is wrong with a block, if anything.
    pub(crate) fn check(self, block: &[u8]) -> Result<(), Damage> {
        let (header, body) = block.split_at(HEADER_BYTES);
        match read_header(header) {
            Some(found) if found == self => {}
            Some(found) if found.seed != self.seed => return Err(Damage::OtherRun),
            Some(found) if found.lba != self.lba => {
                return Err(Damage::OtherPlace { lba: found.lba });
            }
            Some(found) => {
                return Err(Damage::OtherGeneration {
                    found: found.generation,
                });
            }
            None if block.iter().all(|byte| *byte == 0) => return Err(Damage::Zeroes),
            None => return Err(Damage::Header),
        }
        let different = |(word, bytes): (u64, &[u8])| bytes != word.to_le_bytes();
        match self.words().zip(body.chunks_exact(8)).position(different) {
            None => Ok(()),
            Some(word) => Err(Damage::Body {
                offset: HEADER_BYTES + word * 8,
            }),
        }
    }

    /// The generation a block claims to be, if it belongs here.
    pub(crate) fn generation_of(self, block: &[u8]) -> Option<u32> {
        let found = read_header(block.get(..HEADER_BYTES)?)?;
        (found.seed == self.seed && found.lba == self.lba).then_some(found.generation)
    }

    /// SplitMix64 from a state in which seed, position and generation all count.
    fn words(self) -> impl Iterator<Item = u64> {
        let mut state = mix(self.seed ^ mix(self.lba ^ mix(u64::from(self.generation))));
        std::iter::repeat_with(move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        })
    }
}

/// The finaliser of SplitMix64: every input bit changes every output bit.
pub(crate) const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn read_header(header: &[u8]) -> Option<Stamp> {
    let rest = header.strip_prefix(&MAGIC)?;
    let (words, _) = rest.as_chunks::<8>();
    let [seed, lba, generation] = words else {
        return None;
    };
    let generation = u32::try_from(u64::from_le_bytes(*generation)).ok()?;
    Some(Stamp {
        seed: u64::from_le_bytes(*seed),
        lba: u64::from_le_bytes(*lba),
        generation,
    })
}

/// How a block differs from what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Never written, or deallocated.
    Zeroes,
    /// Not a block of ours.
    Header,
    /// A block of an earlier pattern over the same file.
    OtherRun,
    /// A block that belongs elsewhere: a misdirected write or read.
    OtherPlace { lba: u64 },
    /// An older or a newer write.
    OtherGeneration { found: u32 },
    /// The header is right and what follows is not.
    Body { offset: usize },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => f.write_str("it holds zeroes"),
            Self::Header => f.write_str("its header is damaged"),
            Self::OtherRun => f.write_str("it holds a block of another run"),
            Self::OtherPlace { lba } => write!(f, "it holds block {lba}"),
            Self::OtherGeneration { found } => write!(f, "it holds write number {found}"),
            Self::Body { offset } => write!(f, "the eight bytes from byte {offset} are damaged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        seed: 7,
        lba: 11,
        generation: 3,
    };

    fn block(stamp: Stamp) -> [u8; 512] {
        let mut block = [0; 512];
        stamp.fill(&mut block);
        block
    }

    #[test]
    fn filled_block_checks() {
        assert_eq!(STAMP.check(&block(STAMP)), Ok(()));
        assert_eq!(STAMP.generation_of(&block(STAMP)), Some(3));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        for at in 0..512 {
            let mut block = block(STAMP);
            block[at] ^= 0x10;
            assert!(STAMP.check(&block).is_err(), "byte {at}");
        }
    }

    #[test]
    fn damage_says_what_is_there_instead() {
        let check = |other: Stamp| STAMP.check(&block(other)).unwrap_err();
        assert_eq!(STAMP.check(&[0; 512]), Err(Damage::Zeroes));
        assert_eq!(check(Stamp { seed: 8, ..STAMP }), Damage::OtherRun);
        assert_eq!(
            check(Stamp { lba: 12, ..STAMP }),
            Damage::OtherPlace { lba: 12 }
        );
        let older = Stamp {
            generation: 2,
            ..STAMP
        };
        assert_eq!(check(older), Damage::OtherGeneration { found: 2 });
        let mut torn = block(STAMP);
        torn[256..].copy_from_slice(&block(older)[256..]);
        assert_eq!(STAMP.check(&torn), Err(Damage::Body { offset: 256 }));
    }
}
