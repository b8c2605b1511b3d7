//! The newest version of every logical extent of a volume.
//!
//! A node has 16 GiB of a volume with extents of 1 MiB. Where few of its extents are there, it lists
//! them in their order, six bytes each; where many are, it has leaves that need no search. It is
//! what takes less memory, so that a volume takes little however far apart its extents are.

use super::versions::Link;

/// Logical extents of a leaf.
const LEAF_EXTENTS: u32 = 128;

/// Logical extents of a node, whose places have 16 bits.
const NODE_EXTENTS: u32 = 1 << 14;

/// What an allocator adds to each piece of memory.
const OVERHEAD: usize = 16;

/// A node gets leaves when they take at most so many bytes for each extent that is there.
const TO_LEAVES: usize = 6;

/// A node has none any more when they take more than this for each.
const TO_LIST: usize = 8;

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// What nodes have besides their places here.
    bytes: usize,
}

#[derive(Debug)]
enum Node {
    List(Option<Box<List>>),
    Leaves(Leaves),
}

/// Extents in their order.
#[derive(Debug, Default)]
struct List {
    places: Vec<u16>,
    newest: Vec<Link>,
}

#[derive(Debug, Default)]
struct Leaves {
    /// No more than to the last one, and a power of two.
    leaves: Box<[Option<Box<Leaf>>]>,
    used: u16,
    /// Extents that are there.
    count: u16,
}

#[derive(Debug)]
struct Leaf {
    newest: [Link; LEAF_EXTENTS as usize],
    used: u32,
}

impl Tree {
    /// The newest version.
    pub(super) fn newest(&self, logical: u32) -> Link {
        let (node, place) = place(logical);
        match self.nodes.get(node) {
            Some(Node::Leaves(leaves)) => leaves.newest(place),
            Some(Node::List(Some(list))) => list.newest(place),
            _ => Link::NONE,
        }
    }

    /// Sets or, with [`Link::NONE`], takes away the newest version.
    pub(super) fn set_newest(&mut self, logical: u32, link: Link) {
        let (index, place) = place(logical);
        if index >= self.nodes.len() {
            if link.is_none() {
                return;
            }
            self.nodes.resize_with(index + 1, || Node::List(None));
        }
        let node = &mut self.nodes[index];
        self.bytes -= node.bytes();
        if link.is_none() {
            node.take(place);
        } else {
            node.set(place, link);
        }
        self.bytes += node.bytes();
    }

    /// The first logical extent from `from` on with a version.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let (first, mut from) = place(from);
        for (index, node) in self.nodes.iter().enumerate().skip(first) {
            if let Some(found) = node.next(from) {
                let before = u32::try_from(index).ok()? * NODE_EXTENTS;
                return Some(before + u32::from(found));
            }
            from = 0;
        }
        None
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        (self.nodes.capacity() * size_of::<Node>() + self.bytes) as u64
    }
}

/// The node of a logical extent, and its place there.
fn place(logical: u32) -> (usize, u16) {
    let place = u16::try_from(logical % NODE_EXTENTS).unwrap_or(u16::MAX);
    ((logical / NODE_EXTENTS) as usize, place)
}

/// The leaf of a place, and its place there.
const fn in_leaf(place: u16) -> (usize, usize) {
    let place = place as usize;
    (place / LEAF_EXTENTS as usize, place % LEAF_EXTENTS as usize)
}

impl Node {
    fn set(&mut self, place: u16, link: Link) {
        match self {
            Self::Leaves(leaves) => {
                leaves.set(place, link);
                self.list_if_smaller();
            }
            Self::List(list) => {
                let list = list.get_or_insert_default();
                if list.set(place, link) && list.would_be_smaller_as_leaves() {
                    let mut leaves = Leaves::default();
                    for (place, link) in list.places.iter().zip(&list.newest) {
                        leaves.set(*place, *link);
                    }
                    *self = Self::Leaves(leaves);
                }
            }
        }
    }

    fn take(&mut self, place: u16) {
        match self {
            Self::Leaves(leaves) => {
                leaves.take(place);
                self.list_if_smaller();
            }
            Self::List(None) => (),
            Self::List(Some(list)) => {
                list.take(place);
                if list.places.is_empty() {
                    *self = Self::List(None);
                }
            }
        }
    }

    fn list_if_smaller(&mut self) {
        let Self::Leaves(leaves) = self else {
            return;
        };
        if leaves.bytes() <= TO_LIST * usize::from(leaves.count) {
            return;
        }
        let mut list = List::default();
        let mut next = leaves.next(0);
        while let Some(place) = next {
            list.set(place, leaves.newest(place));
            next = leaves.next(place + 1);
        }
        let is_empty = list.places.is_empty();
        *self = Self::List((!is_empty).then(|| Box::new(list)));
    }

    fn next(&self, from: u16) -> Option<u16> {
        match self {
            Self::List(list) => list.as_ref()?.next(from),
            Self::Leaves(leaves) => leaves.next(from),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::List(None) => 0,
            Self::List(Some(list)) => list.bytes(),
            Self::Leaves(leaves) => leaves.bytes(),
        }
    }
}

impl List {
    fn newest(&self, place: u16) -> Link {
        match self.places.binary_search(&place) {
            Ok(at) => self.newest[at],
            Err(_) => Link::NONE,
        }
    }

    /// Tells whether it took more memory.
    fn set(&mut self, place: u16, link: Link) -> bool {
        let at = match self.places.binary_search(&place) {
            Ok(at) => {
                self.newest[at] = link;
                return false;
            }
            Err(at) => at,
        };
        let is_full = self.places.len() == self.places.capacity();
        if is_full {
            let more = self.places.len() / 16 + 4;
            self.places.reserve_exact(more);
            self.newest.reserve_exact(more);
        }
        self.places.insert(at, place);
        self.newest.insert(at, link);
        is_full
    }

    fn take(&mut self, place: u16) {
        let Ok(at) = self.places.binary_search(&place) else {
            return;
        };
        self.places.remove(at);
        self.newest.remove(at);
        let room = self.places.len() + self.places.len() / 8 + 8;
        if self.places.capacity() > room {
            self.places.shrink_to_fit();
            self.newest.shrink_to_fit();
        }
    }

    fn next(&self, from: u16) -> Option<u16> {
        let at = self.places.partition_point(|place| *place < from);
        self.places.get(at).copied()
    }

    fn bytes(&self) -> usize {
        let places = self.places.capacity() * size_of::<u16>();
        let newest = self.newest.capacity() * size_of::<Link>();
        size_of::<Self>() + places + newest + 3 * OVERHEAD
    }

    fn would_be_smaller_as_leaves(&self) -> bool {
        let leaves = || self.places.iter().map(|place| in_leaf(*place).0);
        let others = leaves().zip(leaves().skip(1)).filter(|(a, b)| a != b);
        let table = leaves().next_back().map_or(0, room);
        bytes_of_leaves(table, 1 + others.count()) <= TO_LEAVES * self.places.len()
    }
}

/// Places for leaves so that there is this one.
const fn room(leaf: usize) -> usize {
    (leaf + 1).next_power_of_two()
}

const fn bytes_of_leaves(table: usize, used: usize) -> usize {
    let table = table * size_of::<Option<Box<Leaf>>>() + OVERHEAD;
    table + used * (size_of::<Leaf>() + OVERHEAD)
}

impl Leaves {
    fn newest(&self, place: u16) -> Link {
        let (leaf, at) = in_leaf(place);
        match self.leaves.get(leaf) {
            Some(Some(leaf)) => leaf.newest[at],
            _ => Link::NONE,
        }
    }

    fn set(&mut self, place: u16, link: Link) {
        let (index, at) = in_leaf(place);
        if index >= self.leaves.len() {
            let mut leaves = std::mem::take(&mut self.leaves).into_vec();
            leaves.resize_with(room(index), || None);
            self.leaves = leaves.into_boxed_slice();
        }
        let leaf = self.leaves[index].get_or_insert_with(|| {
            self.used += 1;
            Box::new(Leaf {
                newest: [Link::NONE; LEAF_EXTENTS as usize],
                used: 0,
            })
        });
        let entry = &mut leaf.newest[at];
        if entry.is_none() {
            leaf.used += 1;
            self.count += 1;
        }
        *entry = link;
    }

    fn take(&mut self, place: u16) {
        let (index, at) = in_leaf(place);
        let Some(Some(leaf)) = self.leaves.get_mut(index) else {
            return;
        };
        let entry = &mut leaf.newest[at];
        if entry.is_none() {
            return;
        }
        *entry = Link::NONE;
        leaf.used -= 1;
        self.count -= 1;
        if leaf.used == 0 {
            self.leaves[index] = None;
            self.used -= 1;
        }
    }

    fn next(&self, from: u16) -> Option<u16> {
        let (first, mut from) = in_leaf(from);
        for (index, leaf) in self.leaves.iter().enumerate().skip(first) {
            if let Some(leaf) = leaf
                && let Some(found) = leaf.newest[from..].iter().position(|link| !link.is_none())
            {
                let place = index * LEAF_EXTENTS as usize + from + found;
                return u16::try_from(place).ok();
            }
            from = 0;
        }
        None
    }

    fn bytes(&self) -> usize {
        bytes_of_leaves(self.leaves.len(), self.used.into())
    }
}
