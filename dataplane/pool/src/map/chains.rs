//! Versions of one logical extent, from the newest to the oldest.

use std::collections::BTreeMap;

use super::bitmaps::{self, Bitmaps, WHOLE};
use super::tree::Tree;
use super::versions::{Link, Versions};

/// Versions looked at one after another; a chain that is longer has an index.
pub(super) const WALK_MAX: usize = 16;

/// The slot of a volume, and a logical extent of it.
pub(super) type Key = (u32, u32);

/// The versions, their bitmaps, and the indices of long chains.
#[derive(Debug)]
pub(super) struct Chains {
    pub(super) versions: Versions,
    pub(super) bitmaps: Bitmaps,
    /// Every version of a long chain, the oldest first. It is only there to find what is deep in
    /// a chain; the versions are linked without it.
    long: BTreeMap<Key, Vec<Link>>,
}

impl Chains {
    pub(super) const fn new(versions: Versions, bitmaps: Bitmaps) -> Self {
        Self {
            versions,
            bitmaps,
            long: BTreeMap::new(),
        }
    }

    /// The newest version that was born after at most `born` snapshots, and the one before it in
    /// the chain.
    pub(super) fn seek(&self, newest: Link, key: Key, born: u32) -> (Link, Link) {
        let mut newer = Link::NONE;
        let mut at = newest;
        let mut steps = 0;
        while !at.is_none() && self.versions.born(at) > born {
            if steps == WALK_MAX
                && let Some(chain) = self.long.get(&key)
            {
                let end = chain.partition_point(|link| self.versions.born(*link) <= born);
                let at = end.checked_sub(1).and_then(|last| chain.get(last));
                let newer = chain.get(end).copied().unwrap_or(Link::NONE);
                return (newer, at.copied().unwrap_or(Link::NONE));
            }
            newer = at;
            at = self.versions.older(at);
            steps += 1;
        }
        (newer, at)
    }

    /// The version with this `born`.
    pub(super) fn find(&self, newest: Link, key: Key, born: u32) -> Option<Link> {
        let (_, at) = self.seek(newest, key, born);
        (!at.is_none() && self.versions.born(at) == born).then_some(at)
    }

    /// All, from the newest on.
    pub(super) fn iter(&self, newest: Link) -> impl Iterator<Item = Link> + '_ {
        let some = |link: Link| (!link.is_none()).then_some(link);
        std::iter::successors(some(newest), move |link| some(self.versions.older(*link)))
    }

    /// Puts a version that nobody has in its place. There is none with this `born`.
    pub(super) fn insert(&mut self, tree: &mut Tree, key: Key, born: u32, link: Link) {
        let newest = tree.newest(key.1);
        let (newer, older) = self.seek(newest, key, born);
        self.versions.own(link, key, born, older);
        if newer.is_none() {
            tree.set_newest(key.1, link);
        } else {
            self.versions.set_older(newer, link);
        }
        if newer.is_none() && older.is_none() {
            return;
        }
        let versions = &self.versions;
        if let Some(chain) = self.long.get_mut(&key) {
            let place = chain.partition_point(|link| versions.born(*link) < born);
            chain.insert(place, link);
        } else if self.iter(tree.newest(key.1)).nth(WALK_MAX).is_some() {
            let mut chain: Vec<_> = self.iter(tree.newest(key.1)).collect();
            chain.reverse();
            self.long.insert(key, chain);
        }
    }

    /// Takes the version with this `born` out; it still has its bitmap and its owner.
    pub(super) fn remove(&mut self, tree: &mut Tree, key: Key, born: u32) -> Option<Link> {
        let (newer, link) = self.seek(tree.newest(key.1), key, born);
        if link.is_none() || self.versions.born(link) != born {
            return None;
        }
        let older = self.versions.older(link);
        if newer.is_none() {
            tree.set_newest(key.1, older);
        } else {
            self.versions.set_older(newer, older);
        }
        self.forget(key, link);
        Some(link)
    }

    /// Takes all versions of a logical extent out, one after another; `None` when none is left.
    pub(super) fn pop(&mut self, tree: &mut Tree, key: Key) -> Option<Link> {
        let newest = tree.newest(key.1);
        if newest.is_none() {
            return None;
        }
        tree.set_newest(key.1, self.versions.older(newest));
        self.forget(key, newest);
        Some(newest)
    }

    /// Gives a version that has a physical extent its bitmap.
    pub(super) fn set_bitmap(&mut self, link: Link, bytes: Option<&[u8]>) {
        self.bitmaps.release(self.versions.bitmap(link));
        let bitmap = bytes.map_or(WHOLE, |bytes| self.bitmaps.store(bytes));
        self.versions.set_bitmap(link, bitmap);
    }

    /// Frees what a version has that is in no chain any more.
    pub(super) fn dispose(&mut self, link: Link) {
        self.bitmaps.release(self.versions.bitmap(link));
        if link.is_hole() {
            self.versions.free_hole(link);
        } else {
            self.versions.disown(link);
        }
    }

    /// The chunks it has; `None`: all.
    pub(super) fn chunks(&self, link: Link) -> Option<&[u64]> {
        match self.versions.bitmap(link) {
            WHOLE => None,
            bitmap => Some(self.bitmaps.words(bitmap)),
        }
    }

    /// When a newest version was born, if it has a physical extent.
    pub(super) fn newest_born(&self, newest: Link) -> Option<u32> {
        newest.physical().map(|_| self.versions.born(newest))
    }

    /// Whether it has a bitmap.
    pub(super) fn is_part(&self, link: Link) -> bool {
        self.versions.bitmap(link) != WHOLE
    }

    /// Whether it has all of these chunks.
    pub(super) fn has_all(&self, link: Link, first: u32, end: u32) -> bool {
        self.chunks(link).is_none_or(|words| {
            bitmaps::is_set(words, first) && bitmaps::run_end(words, first, end) == end
        })
    }

    /// The indices of long chains, for those who check them.
    pub(super) const fn long(&self) -> &BTreeMap<Key, Vec<Link>> {
        &self.long
    }

    /// Bytes of memory. An entry of the tree is counted with what nodes that are two thirds full
    /// lose.
    pub(super) fn memory_bytes(&self) -> u64 {
        let entry = 3 * size_of::<(Key, Vec<Link>)>() / 2;
        let long: usize = self
            .long
            .values()
            .map(|chain| entry + chain.capacity() * size_of::<Link>())
            .sum();
        self.versions.memory_bytes() + self.bitmaps.memory_bytes() + long as u64
    }

    fn forget(&mut self, key: Key, link: Link) {
        if self.long.is_empty() {
            return;
        }
        if let Some(chain) = self.long.get_mut(&key) {
            let born = self.versions.born(link);
            let versions = &self.versions;
            let place = chain.partition_point(|link| versions.born(*link) < born);
            chain.remove(place);
            if chain.len() <= WALK_MAX / 2 {
                self.long.remove(&key);
            }
        }
    }
}
