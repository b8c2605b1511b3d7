//! Blocks that say which write of which block of which volume they are: a header, then words that
//! follow from it, so that a block is of one write as a whole or of none.

use crate::random::{Random, mix};

const MAGIC: u64 = u64::from_le_bytes(*b"BLWITNES");
/// Magic, seed, block and operation.
const HEADER_WORDS: usize = 4;

/// What a write leaves in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Of the volume.
    pub(crate) seed: u64,
    pub(crate) lba: u32,
    pub(crate) operation: u32,
}

/// What a block turns out to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Zeroes,
    Stamp(Stamp),
    /// A header, and not all of what belongs to it.
    Torn(Stamp),
    Foreign,
}

impl Stamp {
    pub(crate) fn fill(self, block: &mut [u8]) {
        for (bytes, word) in block.chunks_exact_mut(8).zip(self.words()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn words(self) -> impl Iterator<Item = u64> {
        let (lba, operation) = (u64::from(self.lba), u64::from(self.operation));
        let mut body = Random::new(mix(self.seed ^ mix(lba << 32 | operation)));
        [MAGIC, self.seed, lba, operation]
            .into_iter()
            .chain(std::iter::repeat_with(move || body.bits()))
    }
}

/// Looks at a block of at least 512 bytes.
pub(crate) fn read(block: &[u8]) -> Content {
    if block.iter().all(|byte| *byte == 0) {
        return Content::Zeroes;
    }
    let words = || {
        let words = block.chunks_exact(8);
        words.map(|bytes| bytes.try_into().map_or(0, u64::from_le_bytes))
    };
    let header: Vec<u64> = words().take(HEADER_WORDS).collect();
    let [MAGIC, seed, lba, operation] = header[..] else {
        return Content::Foreign;
    };
    let (Ok(lba), Ok(operation)) = (u32::try_from(lba), u32::try_from(operation)) else {
        return Content::Foreign;
    };
    let stamp = Stamp {
        seed,
        lba,
        operation,
    };
    if words().eq(stamp.words().take(block.len() / 8)) {
        Content::Stamp(stamp)
    } else {
        Content::Torn(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_of_one_write_as_a_whole_or_of_none() {
        let stamp = Stamp {
            seed: 5,
            lba: 9,
            operation: 3,
        };
        let mut block = [0; 1024];
        assert_eq!(read(&block), Content::Zeroes);
        stamp.fill(&mut block);
        assert_eq!(read(&block), Content::Stamp(stamp));
        for at in 0..1024 {
            let mut damaged = block;
            damaged[at] ^= 4;
            assert_ne!(read(&damaged), Content::Stamp(stamp), "byte {at}");
        }
        let other = Stamp {
            operation: 4,
            ..stamp
        };
        let mut newer = [0; 1024];
        other.fill(&mut newer);
        newer[512..].copy_from_slice(&block[512..]);
        assert_eq!(read(&newer), Content::Torn(other));
        newer[..512].fill(0);
        assert_eq!(read(&newer), Content::Foreign);
    }
}
