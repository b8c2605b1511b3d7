//! What a drive holds, cheap to copy: pages that are shared until one is written to.

use std::ops::Range;
use std::rc::Rc;

const PAGE: usize = 4096;

/// A drive's content. A page that is not there is zero.
#[derive(Clone)]
pub(super) struct Medium {
    pages: Vec<Option<Rc<[u8; PAGE]>>>,
}

impl Medium {
    pub(super) fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes).unwrap().div_ceil(PAGE);
        Self {
            pages: vec![None; pages],
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        let mut done = 0;
        for (page, part) in parts(offset, out.len()) {
            let out = &mut out[done..done + part.len()];
            match &self.pages[page] {
                Some(bytes) => out.copy_from_slice(&bytes[part.clone()]),
                None => out.fill(0),
            }
            done += part.len();
        }
    }

    /// So many bytes from there on.
    pub(super) fn bytes_at(&self, range: &Range<u64>) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(range.end - range.start).unwrap()];
        self.read(range.start, &mut out);
        out
    }

    /// Whether nothing was written since the one was a copy of the other.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let is_same = |(a, b): (&Option<Rc<_>>, &Option<Rc<_>>)| match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => Rc::ptr_eq(a, b),
            _ => false,
        };
        self.pages.iter().zip(&other.pages).all(is_same)
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        for (page, part) in parts(offset, bytes.len()) {
            let bytes = &bytes[done..done + part.len()];
            let page = self.pages[page].get_or_insert_with(|| Rc::new([0; PAGE]));
            Rc::make_mut(page)[part.clone()].copy_from_slice(bytes);
            done += part.len();
        }
    }

    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        for (page, part) in parts(offset, usize::try_from(len).unwrap()) {
            if part.len() == PAGE {
                self.pages[page] = None;
            } else if let Some(page) = &mut self.pages[page] {
                Rc::make_mut(page)[part].fill(0);
            }
        }
    }

    pub(super) fn is_zero(&self, offset: u64, len: u64) -> bool {
        parts(offset, usize::try_from(len).unwrap()).all(|(page, part)| {
            let page = self.pages[page].as_ref();
            page.is_none_or(|bytes| bytes[part].iter().all(|byte| *byte == 0))
        })
    }
}

/// The pages of a range, and what of each.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let start = usize::try_from(offset).unwrap();
    let end = start + len;
    (start / PAGE..end.div_ceil(PAGE)).map(move |page| {
        let first = page * PAGE;
        let part = start.max(first) - first..end.min(first + PAGE) - first;
        (page, part)
    })
}
