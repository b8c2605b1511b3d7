//! Who may change which blocks of a device now.
//!
//! The device promises no order, and mostly none is needed. Some commands need the blocks they are
//! about to stay as they are from their first operation to their last: a fused Compare and Write,
//! and a read that must leave what it returns on stable media. Such a command has its range to
//! itself: it waits for the changes of these blocks that came before, and those that come later
//! wait for it. Everything waits only for what is older, so nothing waits for ever.
//!
//! While no such command is there, all this is one look at an empty list.

use std::collections::VecDeque;

use bowline_block::Io;

/// A range of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) lba: u64,
    pub(super) count: u64,
}

impl Blocks {
    pub(super) fn new(lba: u64, count: u32) -> Self {
        Self {
            lba,
            count: u64::from(count),
        }
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.lba < other.lba.saturating_add(other.count)
            && other.lba < self.lba.saturating_add(self.count)
    }
}

/// A change that has been asked for and has not ended: its range and its place in the order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) blocks: Blocks,
    ticket: u64,
}

/// A command that has its range to itself, or will.
#[derive(Debug)]
struct Exclusive {
    /// The command's position in the executor's table.
    owner: u64,
    blocks: Blocks,
    ticket: u64,
    /// Older changes and exclusive commands of these blocks that have not ended.
    waits_for: usize,
    /// Its first operation, until nothing is left to wait for.
    first: Option<Io>,
}

/// A change that waits for exclusive commands.
#[derive(Debug)]
struct Blocked {
    io: Io,
    change: Change,
    waits_for: usize,
}

/// The order of one device.
#[derive(Debug, Default)]
pub(super) struct Order {
    ticket: u64,
    exclusives: Vec<Exclusive>,
    blocked: Vec<Blocked>,
    /// Operations that need not wait any longer.
    ready: VecDeque<Io>,
}

impl Order {
    /// Whether nobody has blocks to himself, so that changes need not ask.
    pub(super) fn is_free(&self) -> bool {
        self.exclusives.is_empty()
    }

    /// A change that need not wait.
    pub(super) fn change(&self, blocks: Blocks) -> Change {
        Change {
            blocks,
            ticket: self.ticket,
        }
    }

    /// Takes a place in the order for a change. Gives the operation back if it may run now.
    pub(super) fn enter(&mut self, io: Io, blocks: Blocks) -> (Change, Result<(), Io>) {
        let change = self.change(blocks);
        let waits_for = self
            .exclusives
            .iter()
            .filter(|it| it.blocks.overlaps(blocks))
            .count();
        if waits_for == 0 {
            return (change, Err(io));
        }
        self.blocked.push(Blocked {
            io,
            change,
            waits_for,
        });
        (change, Ok(()))
    }

    /// Lets a command have its range to itself as soon as what is older has ended: `changes` are
    /// those that have been asked for. Its first operation becomes ready then.
    pub(super) fn claim(
        &mut self,
        owner: u64,
        blocks: Blocks,
        first: Io,
        changes: impl Iterator<Item = Change>,
    ) {
        self.ticket += 1;
        let older = changes.filter(|it| it.blocks.overlaps(blocks)).count();
        let before = self
            .exclusives
            .iter()
            .filter(|it| it.blocks.overlaps(blocks))
            .count();
        let waits_for = older + before;
        let first = if waits_for == 0 {
            self.ready.push_back(first);
            None
        } else {
            Some(first)
        };
        self.exclusives.push(Exclusive {
            owner,
            blocks,
            ticket: self.ticket,
            waits_for,
            first,
        });
    }

    /// A change has ended.
    pub(super) fn changed(&mut self, change: Change) {
        for it in &mut self.exclusives {
            if it.ticket > change.ticket && it.blocks.overlaps(change.blocks) {
                it.waits_for = it.waits_for.saturating_sub(1);
                if it.waits_for == 0 {
                    self.ready.extend(it.first.take());
                }
            }
        }
    }

    /// A command no longer needs its range to itself.
    pub(super) fn release(&mut self, owner: u64) {
        let Some(at) = self.exclusives.iter().position(|it| it.owner == owner) else {
            return;
        };
        // In order: who came first is found first.
        let Exclusive { blocks, ticket, .. } = self.exclusives.remove(at);
        for it in &mut self.exclusives {
            if it.ticket > ticket && it.blocks.overlaps(blocks) {
                it.waits_for = it.waits_for.saturating_sub(1);
                if it.waits_for == 0 {
                    self.ready.extend(it.first.take());
                }
            }
        }
        for it in &mut self.blocked {
            if it.change.ticket >= ticket && it.change.blocks.overlaps(blocks) {
                it.waits_for = it.waits_for.saturating_sub(1);
            }
        }
        let free = self.blocked.extract_if(.., |it| it.waits_for == 0);
        self.ready.extend(free.map(|it| it.io));
    }

    /// The next operation that need not wait any longer.
    pub(super) fn pop_ready(&mut self) -> Option<Io> {
        self.ready.pop_front()
    }

    /// Takes back an operation that waits.
    pub(super) fn withdraw(&mut self, token: u64) -> Option<Io> {
        let is_it = |io: &Io| io.token == token;
        if let Some(at) = self.ready.iter().position(is_it) {
            return self.ready.remove(at);
        }
        if let Some(at) = self.blocked.iter().position(|it| is_it(&it.io)) {
            return Some(self.blocked.remove(at).io);
        }
        let waiting = |it: &&mut Exclusive| it.first.as_ref().is_some_and(is_it);
        self.exclusives.iter_mut().find(waiting)?.first.take()
    }
}
