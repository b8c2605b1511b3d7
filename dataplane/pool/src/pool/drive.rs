//! The pool's side of the drive: requests with what they are for, a queue for those that the drive has no room for,
//! and the count of those that still use what the map said when they began.

use std::collections::VecDeque;

use bowline_block::{Completion, Completions, Device, Geometry, Io, Op, Segments};
use bowline_nvme::Nanos;

use super::slab::Slab;

/// What a request to the drive is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// A volume's request as a whole.
    Direct { port: u32, token: u64, epoch: Epoch },
    /// A volume's flush, and how many had failed when it began.
    Flush {
        port: u32,
        token: u64,
        failures: u64,
    },
    /// A part of a volume's request, or a piece of the pool's own work on an extent.
    Piece { piece: u32, epoch: Epoch },
    /// A volume's write as a whole, whose chunks were claimed for their checksums.
    Claimed {
        claim: u32,
        port: u32,
        token: u64,
        epoch: Epoch,
    },
    /// A read that is compared with its checksums.
    Check { check: u32, epoch: Epoch },
    /// Pages of checksums.
    Page(super::checksums::Step),
    /// A group of the journal.
    Group,
    /// A step of writing a checkpoint.
    Checkpoint,
    /// The collector reads or writes chunks.
    Copy { is_read: bool },
    /// Zeroes for free extents.
    Clean { physical: u32, count: u32 },
}

/// One of the two epochs that requests begin in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(usize);

/// A request: where, in bytes of the drive, and what.
pub(super) struct Access {
    pub(super) op: Op,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) fua: bool,
    pub(super) data: Segments,
}

/// The drive, its queue, and who waits for what.
pub(super) struct Drive<D> {
    device: D,
    geometry: Geometry,
    block_shift: u32,
    tags: Slab<Tag>,
    /// What the drive had no room for. Bounded by the requests and pieces that the pool admits.
    queue: VecDeque<Io>,
    scratch: Completions,
    grace: Grace,
}

impl<D: Device> Drive<D> {
    pub(super) fn new(device: D) -> Self {
        let geometry = device.geometry();
        let depth = device.depth_max();
        Self {
            device,
            geometry,
            block_shift: geometry.block_bytes.trailing_zeros(),
            tags: Slab::new(),
            queue: VecDeque::new(),
            scratch: Completions::with_capacity(depth.max(1)),
            grace: Grace::default(),
        }
    }

    pub(super) const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) const fn device(&self) -> &D {
        &self.device
    }

    pub(super) const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    pub(super) fn into_device(self) -> D {
        self.device
    }

    /// Whether a completed write may be lost without FUA or a flush.
    pub(super) const fn is_volatile(&self) -> bool {
        self.geometry.volatile_cache
    }

    /// Requests at the drive or on their way to it.
    pub(super) const fn in_flight(&self) -> usize {
        self.tags.len()
    }

    /// Submits, now or as soon as the drive has room.
    pub(super) fn submit(&mut self, access: Access, tag: Tag) {
        let io = Io {
            op: access.op,
            lba: access.offset >> self.block_shift,
            // No access is longer than an extent, the largest of which is 16 MiB.
            blocks: u32::try_from(access.len >> self.block_shift).unwrap_or(u32::MAX),
            fua: access.fua,
            data: access.data,
            token: u64::from(self.tags.insert(tag)),
        };
        if !self.queue.is_empty() {
            self.queue.push_back(io);
        } else if let Err(io) = self.device.try_submit(io) {
            self.queue.push_back(io);
        }
    }

    /// Submits a request that uses what the map says now.
    pub(super) fn submit_direct(&mut self, access: Access, port: u32, token: u64) {
        let epoch = self.grace.begin();
        self.submit(access, Tag::Direct { port, token, epoch });
    }

    /// Submits a piece's request, which uses what the map says now.
    pub(super) fn submit_piece(&mut self, access: Access, piece: u32) {
        let epoch = self.grace.begin();
        self.submit(access, Tag::Piece { piece, epoch });
    }

    /// Submits a write that uses what the map says now.
    pub(super) fn submit_claimed(&mut self, access: Access, claim: u32, port: u32, token: u64) {
        let epoch = self.grace.begin();
        let tag = Tag::Claimed {
            claim,
            port,
            token,
            epoch,
        };
        self.submit(access, tag);
    }

    /// Submits a read that uses what the map says now.
    pub(super) fn submit_check(&mut self, access: Access, check: u32) {
        let epoch = self.grace.begin();
        self.submit(access, Tag::Check { check, epoch });
    }

    /// Takes what the drive has finished. Call [`next`](Self::next) until there is nothing more.
    pub(super) fn poll(&mut self, now: Nanos) {
        while let Some(io) = self.queue.pop_front() {
            if let Err(io) = self.device.try_submit(io) {
                self.queue.push_front(io);
                break;
            }
        }
        self.device.poll(now, &mut self.scratch);
    }

    /// A finished request and what it was for.
    pub(super) fn next(&mut self) -> Option<(Tag, Completion)> {
        loop {
            let completion = self.scratch.pop()?;
            let place = u32::try_from(completion.token).ok();
            let Some(tag) = place.and_then(|place| self.tags.remove(place)) else {
                debug_assert!(false, "the drive completed what was never submitted");
                continue;
            };
            if let Tag::Direct { epoch, .. }
            | Tag::Piece { epoch, .. }
            | Tag::Claimed { epoch, .. }
            | Tag::Check { epoch, .. } = tag
            {
                self.grace.end(epoch);
            }
            return Some((tag, completion));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Nanos> {
        self.device.poll_timeout()
    }

    /// From here on: when has everything ended that began before? Ask [`is_over`](Self::is_over).
    pub(super) fn start_grace(&mut self) -> bool {
        self.grace.start()
    }

    pub(super) fn is_over(&self) -> bool {
        self.grace.is_over()
    }
}

/// Counts requests by the epoch they began in, so that one can wait for all that began before a point in time without
/// knowing them one by one.
#[derive(Debug, Default)]
struct Grace {
    current: usize,
    running: [u64; 2],
}

impl Grace {
    const fn begin(&mut self) -> Epoch {
        self.running[self.current] += 1;
        Epoch(self.current)
    }

    const fn end(&mut self, epoch: Epoch) {
        self.running[epoch.0] -= 1;
    }

    /// Begins the other epoch; what began before is over when [`is_over`](Self::is_over). Not while an earlier one
    /// is not.
    const fn start(&mut self) -> bool {
        if self.running[1 - self.current] > 0 {
            return false;
        }
        self.current = 1 - self.current;
        true
    }

    const fn is_over(&self) -> bool {
        self.running[1 - self.current] == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_is_over_when_everything_before_it_has_ended() {
        let mut grace = Grace::default();
        let (a, b) = (grace.begin(), grace.begin());
        assert!(grace.start() && !grace.is_over());
        let c = grace.begin();
        grace.end(a);
        assert!(!grace.is_over() && !grace.start(), "b still runs");
        grace.end(b);
        assert!(grace.is_over() && grace.start() && !grace.is_over());
        grace.end(c);
        assert!(grace.is_over());
    }
}
