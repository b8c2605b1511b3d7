//! The payload of one request: a few buffer views, held inline.

use std::ops::Range;

use crate::buf::IoBuf;

/// The largest number of segments of one request.
pub const SEGMENTS_MAX: usize = 4;

/// Up to [`SEGMENTS_MAX`] buffers that together are one request's payload, in order. No heap.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    // Filled from the front; `count` says how many.
    bufs: [Option<IoBuf>; SEGMENTS_MAX],
    count: u8,
}

impl Segments {
    /// No segments.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bufs: [const { None }; SEGMENTS_MAX],
            count: 0,
        }
    }

    /// Appends one.
    ///
    /// # Errors
    /// Hands the buffer back when there are [`SEGMENTS_MAX`] already.
    pub fn push(&mut self, buf: IoBuf) -> Result<(), IoBuf> {
        let Some(place) = self.bufs.get_mut(usize::from(self.count)) else {
            return Err(buf);
        };
        *place = Some(buf);
        self.count += 1;
        Ok(())
    }

    /// Takes the last segment.
    pub fn pop(&mut self) -> Option<IoBuf> {
        self.count = self.count.checked_sub(1)?;
        self.bufs[usize::from(self.count)].take()
    }

    /// The number of segments.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether there is no segment.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The sum of the segments' lengths in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.iter().map(IoBuf::len).sum()
    }

    /// The segments in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &IoBuf> {
        self.bufs.iter().filter_map(Option::as_ref)
    }

    /// The segments in order, to be changed.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut IoBuf> {
        self.bufs.iter_mut().filter_map(Option::as_mut)
    }

    /// All segments, leaving none.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Whether no other view of any of the buffers exists, so that each may be written to.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        self.iter().all(IoBuf::is_unique)
    }

    /// The bytes of `range`, counted over all segments, in contiguous pieces. What lies beyond the
    /// end is left out.
    pub fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.iter().filter_map(move |buf| {
            let from = range.start.saturating_sub(start).min(buf.len());
            let to = range.end.saturating_sub(start).min(buf.len());
            start += buf.len();
            (from < to).then(|| &buf.as_slice()[from..to])
        })
    }

    /// Further views of the bytes of `range`, counted over all segments. What lies beyond the end
    /// is left out.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let mut part = Self::new();
        let mut start = 0;
        for buf in self.iter() {
            let from = range.start.saturating_sub(start).min(buf.len());
            let to = range.end.saturating_sub(start).min(buf.len());
            start += buf.len();
            if from < to {
                part.bufs[part.count()] = Some(buf.slice(from..to));
                part.count += 1;
            }
        }
        part
    }

    /// Copies `source` over the segments' bytes from the first on. Returns whether it could: every
    /// segment unique, and as many bytes as `source` has.
    #[must_use]
    pub fn copy_from(&mut self, source: &[u8]) -> bool {
        if self.len_bytes() != source.len() {
            return false;
        }
        let mut rest = source;
        for buf in self.iter_mut() {
            let Some(bytes) = buf.as_mut() else {
                return false;
            };
            let (head, tail) = rest.split_at(bytes.len());
            bytes.copy_from_slice(head);
            rest = tail;
        }
        true
    }
}

impl From<IoBuf> for Segments {
    fn from(buf: IoBuf) -> Self {
        Self {
            bufs: [Some(buf), None, None, None],
            count: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{BufPool, PoolConfig};

    fn three_of_ten_bytes() -> (BufPool, Segments) {
        let pool = BufPool::new(PoolConfig::with_budget(0)).unwrap();
        let mut data = Segments::new();
        for (len, class) in [(10, 10), (10, 5000), (10, 20_000)] {
            let mut buf = pool.alloc(class).unwrap();
            buf.truncate(len);
            data.push(buf).unwrap();
        }
        let bytes: Vec<u8> = (0..30).collect();
        assert!(data.copy_from(&bytes));
        (pool, data)
    }

    #[test]
    fn pieces_and_slices_are_the_bytes_of_the_range() {
        let (_pool, data) = three_of_ten_bytes();
        for from in 0..32_u8 {
            for to in from..32 {
                let range = usize::from(from)..usize::from(to);
                let expected: Vec<u8> = (from.min(30)..to.min(30)).collect();
                let pieces: Vec<u8> = data.pieces(range.clone()).flatten().copied().collect();
                assert_eq!(pieces, expected);
                let slice = data.slice(range);
                assert_eq!(slice.len_bytes(), expected.len());
                let bytes: Vec<u8> = slice.pieces(0..usize::MAX).flatten().copied().collect();
                assert_eq!(bytes, expected);
            }
        }
    }

    #[test]
    fn one_segment_too_many_is_handed_back() {
        let (pool, mut data) = three_of_ten_bytes();
        data.push(pool.alloc(1).unwrap()).unwrap();
        assert_eq!(data.push(pool.alloc(7).unwrap()).unwrap_err().len(), 7);
        assert_eq!((data.count(), data.len_bytes()), (SEGMENTS_MAX, 31));
        assert_eq!(data.take().count(), SEGMENTS_MAX);
        assert!(data.is_empty() && data.len_bytes() == 0);
    }

    #[test]
    fn shared_segment_is_not_copied_over() {
        let (_pool, mut data) = three_of_ten_bytes();
        assert!(
            !data.copy_from(&[0; 29]),
            "as many bytes as there are, or none"
        );
        let view = data.slice(12..13);
        assert!(!data.is_unique() && !data.copy_from(&[0; 30]));
        drop(view);
        assert!(data.is_unique() && data.copy_from(&[0; 30]));
    }
}
