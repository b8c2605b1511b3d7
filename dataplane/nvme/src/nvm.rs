//! Data structures of the NVM Command Set. [NVM-1.0 §3]

use crate::wire::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};

/// One range of Dataset Management. [NVM-1.0 §3.2.3]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DsmRange {
    /// Context Attributes, hints only.
    pub attributes: u32,
    /// Length in logical blocks. Unlike NLB of a command this is not 0's based; 0 is no block.
    pub blocks: u32,
    /// Starting LBA.
    pub slba: u64,
}

impl DsmRange {
    /// Bytes of a range.
    pub const SIZE: usize = 16;
    /// Most ranges of one command.
    pub const COUNT_MAX: usize = 256;
    /// Bytes of the longest list, which is also what Linux always sends.
    pub const LIST_BYTES_MAX: usize = Self::SIZE * Self::COUNT_MAX;

    /// The range's bytes.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_u32(&mut bytes, 0, self.attributes);
        put_u32(&mut bytes, 4, self.blocks);
        put_u64(&mut bytes, 8, self.slba);
        bytes
    }

    /// Reads a range; any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            attributes: u32_at(bytes, 0),
            blocks: u32_at(bytes, 4),
            slba: u64_at(bytes, 8),
        }
    }

    /// The ranges in a command's data, of which the first `count` are meant; fewer if the data
    /// ends before.
    pub fn list(data: &[u8], count: u16) -> impl Iterator<Item = Self> + '_ {
        let (chunks, _) = data.as_chunks::<{ Self::SIZE }>();
        chunks.iter().take(usize::from(count)).map(Self::decode)
    }
}

/// One source range of Copy, descriptor format 0. [NVM-1.0 §3.2.2]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CopyRange {
    /// Starting LBA.
    pub slba: u64,
    /// Length in logical blocks, 1 to 65536: on the wire it is 0's based.
    pub blocks: u32,
}

impl CopyRange {
    /// Bytes of a range.
    pub const SIZE: usize = 32;

    /// The range's bytes, without protection information.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_u64(&mut bytes, 8, self.slba);
        let nlb = u16::try_from(self.blocks.saturating_sub(1)).unwrap_or(u16::MAX);
        put_u16(&mut bytes, 16, nlb);
        bytes
    }

    /// Reads a range; any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            slba: u64_at(bytes, 8),
            blocks: u32::from(u16_at(bytes, 16)) + 1,
        }
    }

    /// Range `n` of a command's data, if the data has that many.
    pub fn nth(data: &[u8], n: u16) -> Option<Self> {
        let (chunks, _) = data.as_chunks::<{ Self::SIZE }>();
        chunks.get(usize::from(n)).map(Self::decode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_range_has_lba_then_zero_based_length() {
        let range = CopyRange {
            slba: 0x1122_3344_5566_7788,
            blocks: 8,
        };
        let bytes = range.encode();
        assert_eq!(
            bytes[..18],
            *b"\0\0\0\0\0\0\0\0\x88\x77\x66\x55\x44\x33\x22\x11\x07\0"
        );
        assert_eq!(CopyRange::nth(&bytes, 0), Some(range));
        assert_eq!(CopyRange::nth(&bytes, 1), None);
        let longest = CopyRange {
            blocks: 65_536,
            ..range
        };
        assert_eq!(CopyRange::decode(&longest.encode()), longest);
    }

    #[test]
    fn range_has_attributes_then_length_then_lba() {
        let range = DsmRange {
            attributes: 0x0403_0201,
            blocks: 8,
            slba: 0x1122_3344_5566_7788,
        };
        let bytes = range.encode();
        assert_eq!(
            bytes,
            *b"\x01\x02\x03\x04\x08\0\0\0\x88\x77\x66\x55\x44\x33\x22\x11"
        );
        assert_eq!(DsmRange::decode(&bytes), range);
    }

    #[test]
    fn list_stops_at_count_and_at_the_end_of_data() {
        let mut data = [0; 40];
        data[4] = 1;
        data[20] = 2;
        let blocks =
            |data: &[u8], count| DsmRange::list(data, count).map(|r| r.blocks).sum::<u32>();
        assert_eq!(blocks(&data, 1), 1);
        assert_eq!(blocks(&data, 256), 3);
        assert_eq!(blocks(&data[..15], 256), 0);
    }
}
