//! Size, limits and promises of a device, and the one place where block ranges become bytes.

use crate::io::{Io, IoError, Op};

/// What a deallocated block reads as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deallocate {
    /// The device does not deallocate.
    #[default]
    None,
    /// It deallocates; what the blocks read afterwards is not specified.
    Undefined,
    /// It deallocates, and the blocks read as zeroes afterwards.
    ReadsZero,
}

/// A range in bytes that lies within the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte, from the start of the device.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl ByteRange {
    /// The byte after the last. Cannot wrap: the range lies within a device.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Whether the two ranges share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// What a device is. What it says here is what Identify Namespace tells the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Logical block size in bytes, a power of two.
    pub block_bytes: u32,
    /// Size in logical blocks (NSZE).
    pub blocks: u64,
    /// A completed write without FUA may be lost at a power cut until a flush completes (VWC).
    pub volatile_cache: bool,
    /// Modifying requests are refused.
    pub read_only: bool,
    /// Blocks written as a whole or not at all over a power cut, at least 1 (AWUPF + 1).
    pub atomic_write_blocks: u32,
    /// Preferred request size in blocks; 0 when the device has no preference.
    pub optimal_io_blocks: u32,
    /// Whether it deallocates, and what deallocated blocks read as.
    pub deallocate: Deallocate,
    /// Deallocation is effective in aligned pieces of this many blocks; 0 when it has none.
    pub deallocate_granularity_blocks: u32,
    /// [`Op::WriteZeroes`] is offloaded; without it the engine still does it, by writing.
    pub write_zeroes: bool,
    /// Blocks are backed only once written, so that writes may end in [`IoError::NoSpace`].
    pub thin: bool,
}

impl Geometry {
    /// Size in bytes; `u64::MAX` for a geometry too large to address.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_bytes as u64)
    }

    /// The bytes of `blocks` logical blocks from `lba`.
    ///
    /// # Errors
    /// [`IoError::OutOfRange`] when the range does not lie within the device, however large the
    /// numbers. An empty range is within the device up to and including its end.
    pub fn check(&self, lba: u64, blocks: u32) -> Result<ByteRange, IoError> {
        let end = lba
            .checked_add(u64::from(blocks))
            .ok_or(IoError::OutOfRange)?;
        if end > self.blocks {
            return Err(IoError::OutOfRange);
        }
        let block_bytes = u64::from(self.block_bytes);
        // The end is multiplied, not the start: when it fits, so does everything before it.
        let end_bytes = end.checked_mul(block_bytes).ok_or(IoError::OutOfRange)?;
        let offset = lba * block_bytes;
        Ok(ByteRange {
            offset,
            len: end_bytes - offset,
        })
    }

    /// Everything an engine checks before it touches the medium: range, write protection, and
    /// that the payload has exactly the length the operation needs.
    ///
    /// # Errors
    /// [`IoError::OutOfRange`] and [`IoError::ReadOnly`] as named; [`IoError::Internal`] for a
    /// payload of the wrong length, which is a bug of the caller.
    pub fn check_io(&self, io: &Io) -> Result<ByteRange, IoError> {
        if io.op == Op::Flush {
            return Ok(ByteRange { offset: 0, len: 0 });
        }
        let range = self.check(io.lba, io.blocks)?;
        if self.read_only && io.op.is_modifying() {
            return Err(IoError::ReadOnly);
        }
        let payload_bytes = match io.op {
            Op::Read | Op::Write => range.len,
            Op::CompareAndWrite => range.len.saturating_mul(2),
            Op::Flush | Op::WriteZeroes { .. } | Op::Deallocate => 0,
        };
        if u64::try_from(io.data.len_bytes()) == Ok(payload_bytes) {
            Ok(range)
        } else {
            Err(IoError::Internal)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn geometry(block_bytes: u32, blocks: u64) -> Geometry {
        Geometry {
            block_bytes,
            blocks,
            volatile_cache: false,
            read_only: false,
            atomic_write_blocks: 1,
            optimal_io_blocks: 0,
            deallocate: Deallocate::None,
            deallocate_granularity_blocks: 0,
            write_zeroes: false,
            thin: false,
        }
    }

    /// Numbers near the ends of their range and near each other, where arithmetic goes wrong.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            0_u64..20,
            (0_u64..20).prop_map(|below| u64::MAX - below),
            (0_u32..64, 0_u64..20).prop_map(|(bit, more)| (1_u64 << bit).saturating_add(more)),
        ]
    }

    proptest! {
        #[test]
        fn check_agrees_with_arithmetic_that_cannot_overflow(
            lba in number(),
            blocks in any::<u32>(),
            size in number(),
            shift in prop_oneof![Just(9_u32), Just(12_u32)],
        ) {
            let block_bytes = u128::from(1_u32 << shift);
            let end = u128::from(lba) + u128::from(blocks);
            let fits = end <= u128::from(size) && end * block_bytes <= u128::from(u64::MAX);
            match geometry(1 << shift, size).check(lba, blocks) {
                Ok(range) => {
                    prop_assert!(fits);
                    prop_assert_eq!(u128::from(range.offset), u128::from(lba) * block_bytes);
                    prop_assert_eq!(u128::from(range.len), u128::from(blocks) * block_bytes);
                    prop_assert_eq!(u128::from(range.end()), end * block_bytes);
                }
                Err(error) => prop_assert!(!fits && error == IoError::OutOfRange),
            }
        }

        #[test]
        fn ranges_overlap_when_they_share_a_byte(
            a in 0_u64..30, a_len in 0_u64..10, b in 0_u64..30, b_len in 1_u64..10,
        ) {
            let (first, second) = (ByteRange { offset: a, len: a_len }, ByteRange { offset: b, len: b_len });
            let shares = (a..a + a_len).any(|byte| (b..b + b_len).contains(&byte));
            prop_assert_eq!(a_len > 0 && first.overlaps(second), shares);
            prop_assert_eq!(first.overlaps(second), second.overlaps(first));
        }
    }

    #[test]
    fn end_of_the_device_is_inside_only_when_empty() {
        let geometry = geometry(512, 10);
        assert_eq!(
            geometry.check(10, 0),
            Ok(ByteRange {
                offset: 5120,
                len: 0
            })
        );
        assert_eq!(geometry.check(9, 2), Err(IoError::OutOfRange));
        assert_eq!(geometry.check(11, 0), Err(IoError::OutOfRange));
    }

    #[test]
    fn read_only_device_refuses_what_modifies_and_nothing_else() {
        let geometry = Geometry {
            read_only: true,
            ..geometry(512, 10)
        };
        let io = |op| Io {
            op,
            lba: 0,
            blocks: 0,
            fua: false,
            data: crate::Segments::new(),
            token: 0,
        };
        for op in [
            Op::Write,
            Op::WriteZeroes { deallocate: false },
            Op::Deallocate,
            Op::CompareAndWrite,
        ] {
            assert_eq!(geometry.check_io(&io(op)), Err(IoError::ReadOnly));
        }
        assert!(
            geometry.check_io(&io(Op::Read)).is_ok() && geometry.check_io(&io(Op::Flush)).is_ok()
        );
    }
}
