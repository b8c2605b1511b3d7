//! What stands between a handle of a volume and the engine: what it may do, and what it has to be told.

use std::collections::VecDeque;

use bowline_block::{ByteRange, Completion, Completions, DeviceEvent, Geometry, Io, IoError, Op};

use crate::format::record::Checksums;
use crate::map::{Reader, Slot};

/// Requests that need more than the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookedAt {
    Nothing,
    Writes,
    All,
}

/// One open handle of a volume or snapshot.
pub(super) struct Port {
    pub(super) reader: Reader,
    pub(super) geometry: Geometry,
    /// Writes are stable when they complete.
    pub(super) is_media: bool,
    /// What is done with checksums.
    pub(super) checksums: Checksums,
    looked_at: LookedAt,
    /// Requests accepted whose completions were not handed out yet.
    pub(super) held: usize,
    done: VecDeque<Completion>,
    events: VecDeque<DeviceEvent>,
    /// The volume was deleted, or the drive is gone.
    is_gone: bool,
    /// The handle was dropped; the port goes with its last request.
    pub(super) is_closed: bool,
}

impl Port {
    pub(super) const fn new(
        reader: Reader,
        geometry: Geometry,
        is_media: bool,
        checksums: Checksums,
    ) -> Self {
        Self {
            reader,
            geometry,
            is_media,
            checksums,
            looked_at: match checksums {
                Checksums::Off => LookedAt::Nothing,
                Checksums::Scrub => LookedAt::Writes,
                Checksums::Verify => LookedAt::All,
            },
            held: 0,
            done: VecDeque::new(),
            events: VecDeque::new(),
            is_gone: false,
            is_closed: false,
        }
    }

    /// Whether a read or write is where the map says, and nothing else.
    pub(super) fn is_plain(&self, op: Op) -> bool {
        match self.looked_at {
            LookedAt::Nothing => true,
            LookedAt::Writes => op == Op::Read,
            LookedAt::All => false,
        }
    }

    /// From now on it is asked before each write whether it may be.
    pub(super) fn look_before_writing(&mut self) {
        if self.looked_at == LookedAt::Nothing {
            self.looked_at = LookedAt::Writes;
        }
    }

    pub(super) const fn slot(&self) -> Slot {
        match self.reader {
            Reader::Head(slot) | Reader::Snapshot(slot, _) => slot,
        }
    }

    /// What can be said about a request without looking at the map.
    pub(super) fn verdict(&self, io: &Io) -> Result<ByteRange, IoError> {
        if self.is_gone {
            return Err(IoError::Vanished);
        }
        let range = self.geometry.check_io(io)?;
        if io.op == Op::Read && !io.data.is_unique() {
            return Err(IoError::Internal);
        }
        Ok(range)
    }

    pub(super) fn complete(&mut self, mut completion: Completion) {
        if self.is_gone {
            // It may have been looked up where there is nothing any more.
            completion.result = Err(IoError::Vanished);
        }
        self.done.push_back(completion);
    }

    /// A completion, for the pool itself.
    pub(super) fn take_done(&mut self) -> Option<Completion> {
        let completion = self.done.pop_front()?;
        self.held -= 1;
        Some(completion)
    }

    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Moves completions to `out`, as many as fit. Returns how many.
    pub(super) fn hand_out(&mut self, out: &mut Completions) -> usize {
        let mut count = 0;
        while !out.is_full()
            && let Some(completion) = self.done.pop_front()
        {
            out.push(completion);
            count += 1;
        }
        self.held -= count;
        count
    }

    /// Forgets the completions that nobody is going to fetch. Returns how many.
    pub(super) fn discard(&mut self) -> usize {
        let count = self.done.len();
        self.done.clear();
        self.held -= count;
        count
    }

    /// Tells an event, once until it was fetched.
    pub(super) fn tell(&mut self, event: DeviceEvent) {
        if !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }

    /// From now on there is nothing behind the handle.
    pub(super) fn vanish(&mut self) {
        if !self.is_gone {
            self.is_gone = true;
            self.tell(DeviceEvent::Vanished);
        }
    }

    pub(super) fn next_event(&mut self) -> Option<DeviceEvent> {
        self.events.pop_front()
    }
}
