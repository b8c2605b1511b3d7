//! Which chunks of an extent are there: bitmaps of one length, in blocks that are never moved.

/// Words of a block of bitmaps: 64 KiB.
const BLOCK_WORDS: usize = 8192;

/// What stands for "all chunks are there": no bitmap.
pub(super) const WHOLE: u32 = 0;

/// Bitmaps, known by numbers from 1 on.
#[derive(Debug)]
pub(super) struct Bitmaps {
    /// Bits of each.
    chunks: u32,
    words: usize,
    in_block: usize,
    blocks: Vec<Box<[u64]>>,
    /// The last one freed; its first word is the one freed before it. 0: there is none.
    free: u32,
    /// All numbers from here on were never used.
    next: u32,
    used: u32,
}

impl Bitmaps {
    /// None yet; each is to have `chunks` bits.
    pub(super) fn new(chunks: u32) -> Self {
        let words = (chunks as usize).div_ceil(64);
        Self {
            chunks,
            words,
            in_block: (BLOCK_WORDS / words).max(1),
            blocks: Vec::new(),
            free: 0,
            next: 1,
            used: 0,
        }
    }

    /// How many there are.
    pub(super) const fn used(&self) -> u32 {
        self.used
    }

    /// Bytes of one on the drive.
    pub(super) const fn bytes(&self) -> usize {
        (self.chunks as usize).div_ceil(8)
    }

    /// The words of a bitmap that is used.
    pub(super) fn words(&self, number: u32) -> &[u64] {
        let (block, first) = self.place(number);
        &self.blocks[block][first..first + self.words]
    }

    fn words_mut(&mut self, number: u32) -> &mut [u64] {
        let (block, first) = self.place(number);
        &mut self.blocks[block][first..first + self.words]
    }

    /// A bitmap with these bytes; [`WHOLE`] when all its bits are set.
    pub(super) fn store(&mut self, bytes: &[u8]) -> u32 {
        if self.is_full(bytes) {
            return WHOLE;
        }
        let number = self.take();
        for (word, bytes) in self.words_mut(number).iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        number
    }

    /// Frees a bitmap; [`WHOLE`] is none.
    pub(super) fn release(&mut self, number: u32) {
        if number != WHOLE {
            let next = u64::from(self.free);
            self.words_mut(number)[0] = next;
            self.free = number;
            self.used -= 1;
        }
    }

    /// Whether bytes are as many as a bitmap has, with no bit beyond the last chunk.
    pub(super) fn fits(&self, bytes: &[u8]) -> bool {
        let beyond = self.chunks % 8;
        bytes.len() == self.bytes()
            && (beyond == 0 || bytes.last().is_none_or(|last| last >> beyond == 0))
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        let block = 8 * (self.in_block * self.words) as u64;
        block * self.blocks.len() as u64 + 16 * self.blocks.capacity() as u64
    }

    fn is_full(&self, bytes: &[u8]) -> bool {
        let set: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        set == self.chunks
    }

    fn take(&mut self) -> u32 {
        self.used += 1;
        if self.free != 0 {
            let number = self.free;
            // What is stored there is a number of ours.
            self.free = u32::try_from(self.words(number)[0]).unwrap_or(0);
            return number;
        }
        let number = self.next;
        self.next += 1;
        if self.place(number).0 == self.blocks.len() {
            let words = self.in_block * self.words;
            self.blocks.push(vec![0; words].into_boxed_slice());
        }
        number
    }

    const fn place(&self, number: u32) -> (usize, usize) {
        let index = number as usize;
        (index / self.in_block, index % self.in_block * self.words)
    }
}

/// Whether a bit is set.
pub(super) fn is_set(words: &[u64], chunk: u32) -> bool {
    words[(chunk / 64) as usize] >> (chunk % 64) & 1 != 0
}

/// The first chunk from `from` on whose bit is not as `from`'s; at most `end`.
pub(super) fn run_end(words: &[u64], from: u32, end: u32) -> u32 {
    let flip = if is_set(words, from) { u64::MAX } else { 0 };
    let mut at = from;
    while at < end {
        let differs = (words[(at / 64) as usize] ^ flip) >> (at % 64);
        if differs != 0 {
            return (at + differs.trailing_zeros()).min(end);
        }
        at = (at / 64 + 1) * 64;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_bitmaps_are_used_again_and_whole_ones_need_none() {
        let mut bitmaps = Bitmaps::new(256);
        assert_eq!(bitmaps.store(&[0xFF; 32]), WHOLE);
        let mut bytes = [0; 32];
        bytes[9] = 0x81;
        let numbers: Vec<_> = (0..5000).map(|_| bitmaps.store(&bytes)).collect();
        let before = bitmaps.memory_bytes();
        numbers.iter().for_each(|number| bitmaps.release(*number));
        assert_eq!(bitmaps.used(), 0);
        for _ in 0..5000 {
            let number = bitmaps.store(&bytes);
            assert_eq!(bitmaps.words(number), [0, 0x8100, 0, 0]);
        }
        assert_eq!(bitmaps.memory_bytes(), before);
    }

    #[test]
    fn runs_end_where_a_bit_differs() {
        let words = [u64::MAX << 60, 0b11];
        assert_eq!(run_end(&words, 0, 128), 60);
        assert_eq!(run_end(&words, 60, 128), 66);
        assert_eq!(run_end(&words, 66, 128), 128);
        assert_eq!(run_end(&words, 61, 64), 64);
    }

    #[test]
    fn bits_beyond_the_last_chunk_do_not_fit() {
        let bitmaps = Bitmaps::new(4);
        assert!(bitmaps.fits(&[0x0F]));
        assert!(!bitmaps.fits(&[0x1F]));
        assert!(!bitmaps.fits(&[0x0F, 0]));
    }
}
