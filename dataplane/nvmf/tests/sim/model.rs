//! What a disk may answer: the simplest model in which writes that overlap, fail, or get lost
//! with their connection leave more than one possibility.
//!
//! A block's value is possible for a read if the write that made it had begun before the read
//! ended, and no acknowledged write lies wholly between the two. A write that failed may have
//! happened; one that was lost with its connection may still happen, until its host has connected
//! again. A read that overlapped no write settles what the block holds.
//!
//! When power is lost, a write counts as acknowledged only if it was on stable media: written with
//! Force Unit Access, or acknowledged before a Flush that succeeded was submitted.

use std::collections::BTreeMap;

pub(crate) const BLOCK: usize = 512;

/// What a block holds: which write, and the LBA it wrote. Zeroes are the write 0.
pub(crate) type Value = (u64, u64);

/// When something happened: a count of submissions and completions.
pub(crate) type Tick = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Not completed, or lost with its connection: it may still happen.
    Open,
    /// Over at this tick, and it happened.
    Done(Tick),
    /// Over at this tick; it may have happened.
    Maybe(Tick),
}

/// What a write makes a block hold.
#[derive(Clone, Debug)]
enum Made {
    Value(Value),
    /// What this block of the same device held at some time from this tick on.
    CopyOf(u64, Tick),
    /// One of these: a copy that is over.
    OneOf(Vec<Value>),
}

#[derive(Clone, Debug)]
struct Write {
    token: u64,
    made: Made,
    start: Tick,
    end: End,
    /// Survives a loss of power.
    stable: bool,
}

#[derive(Default)]
pub(crate) struct Model {
    tick: Tick,
    blocks: BTreeMap<(u32, u64), Vec<Write>>,
}

impl Model {
    pub(crate) fn tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    /// A command that makes this block of a device hold `value` was submitted.
    pub(crate) fn begin(&mut self, device: u32, lba: u64, token: u64, value: Value) {
        self.add(device, lba, token, Made::Value(value));
    }

    /// A command that copies block `source` of the same device to this one was submitted.
    pub(crate) fn begin_copy(&mut self, device: u32, lba: u64, token: u64, source: u64) {
        self.add(device, lba, token, Made::CopyOf(source, self.tick));
    }

    fn add(&mut self, device: u32, lba: u64, token: u64, made: Made) {
        let (start, end) = (self.tick, End::Open);
        let write = Write {
            token,
            made,
            start,
            end,
            stable: false,
        };
        self.writes(device, lba).push(write);
    }

    /// The command succeeded: the block was written; `stable`: with Force Unit Access.
    pub(crate) fn done(&mut self, device: u32, lba: u64, token: u64, stable: bool) {
        self.end(device, lba, token, End::Done(self.tick));
        if stable {
            let writes = self.writes(device, lba);
            let same = writes.iter_mut().filter(|write| write.token == token);
            same.for_each(|write| write.stable = true);
        }
    }

    /// Nothing of the command happened, nor will it.
    pub(crate) fn never(&mut self, device: u32, lba: u64, token: u64) {
        self.writes(device, lba)
            .retain(|write| write.token != token);
    }

    /// A Flush that was submitted at `from` succeeded.
    pub(crate) fn flushed(&mut self, device: u32, from: Tick) {
        for write in self.of_device(device) {
            write.stable |= matches!(write.end, End::Done(end) if end < from);
        }
    }

    /// Devices lose what is not on stable media.
    pub(crate) fn lose_power(&mut self) {
        for write in self.blocks.values_mut().flatten() {
            if let End::Done(end) = write.end
                && !write.stable
            {
                write.end = End::Maybe(end);
            }
        }
    }

    fn of_device(&mut self, device: u32) -> impl Iterator<Item = &mut Write> {
        let blocks = self.blocks.range_mut((device, 0)..=(device, u64::MAX));
        blocks.flat_map(|(_, writes)| writes)
    }

    /// The command failed, or nothing of it can happen any more: the block may have been written.
    pub(crate) fn over(&mut self, device: u32, lba: u64, token: u64) {
        self.end(device, lba, token, End::Maybe(self.tick));
    }

    fn end(&mut self, device: u32, lba: u64, token: u64, end: End) {
        let writes = self.writes(device, lba);
        let at = writes.iter().position(|write| write.token == token);
        let at = at.expect("begun");
        writes[at].end = end;
        if let Made::CopyOf(source, from) = writes[at].made {
            let copied = self.possible(device, source, from);
            self.writes(device, lba)[at].made = Made::OneOf(copied);
        }
    }

    fn writes(&mut self, device: u32, lba: u64) -> &mut Vec<Write> {
        self.blocks
            .entry((device, lba))
            .or_insert_with(|| vec![never()])
    }

    /// What a read that began at `from` and ends now may find.
    pub(crate) fn possible(&self, device: u32, lba: u64, from: Tick) -> Vec<Value> {
        let mut values = Vec::new();
        self.collect(device, lba, from, &mut Vec::new(), &mut values);
        values.sort_unstable();
        values.dedup();
        values
    }

    /// `visited` ends the circles that copies make.
    fn collect(
        &self,
        device: u32,
        lba: u64,
        from: Tick,
        visited: &mut Vec<(u64, Tick)>,
        values: &mut Vec<Value>,
    ) {
        if visited.contains(&(lba, from)) {
            return;
        }
        visited.push((lba, from));
        let Some(writes) = self.blocks.get(&(device, lba)) else {
            values.push((0, 0));
            return;
        };
        for write in writes
            .iter()
            .filter(|write| !is_hidden(write, writes, from))
        {
            match &write.made {
                Made::Value(value) => values.push(*value),
                Made::OneOf(several) => values.extend(several),
                Made::CopyOf(source, from) => {
                    self.collect(device, *source, *from, visited, values);
                }
            }
        }
    }

    /// A read that began at `from` found this value; it must have been possible. Nobody asks any
    /// more about times before `oldest`.
    pub(crate) fn read(&mut self, device: u32, lba: u64, from: Tick, value: Value, oldest: Tick) {
        let possible = self.possible(device, lba, from);
        assert!(
            possible.contains(&value),
            "block {lba} of device {device} held {value:?} from {from} to {}, possible: \
             {possible:?} of {:?}",
            self.tick,
            self.blocks.get(&(device, lba))
        );
        let now = self.tick;
        let writes = self.writes(device, lba);
        let overlaps = |write: &Write| match write.end {
            End::Open => true,
            End::Done(end) | End::Maybe(end) => end >= from,
        };
        if !writes.iter().any(overlaps) {
            let (made, end) = (Made::Value(value), End::Done(now));
            writes.push(Write {
                token: 0,
                made,
                start: from,
                end,
                stable: false,
            });
            // What only a loss of power could bring back is kept, too.
            let stable: Vec<Write> = writes.iter().filter(|it| it.stable).cloned().collect();
            writes.retain(|write| !is_hidden(write, &stable, oldest));
        }
    }
}

/// What a new device holds.
fn never() -> Write {
    let (made, end) = (Made::Value((0, 0)), End::Done(0));
    Write {
        token: 0,
        made,
        start: 0,
        end,
        stable: true,
    }
}

/// Whether a read that began at `from` cannot find what this write made.
fn is_hidden(write: &Write, writes: &[Write], from: Tick) -> bool {
    let (End::Done(end) | End::Maybe(end)) = write.end else {
        return false;
    };
    let hides =
        |other: &Write| matches!(other.end, End::Done(done) if other.start > end && done < from);
    writes.iter().any(hides)
}

/// A block's bytes.
pub(crate) fn encode(value: Value) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    if value.0 != 0 {
        let (words, _) = block.as_chunks_mut::<8>();
        for (word, index) in words.iter_mut().zip(0u64..) {
            *word = match index {
                0 => value.0,
                1 => value.1,
                _ => value.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ value.1 ^ index,
            }
            .to_le_bytes();
        }
    }
    block
}

/// What the bytes of a block say; a block that is torn is nothing that was ever written.
pub(crate) fn decode(block: &[u8]) -> Value {
    let word = |at: usize| {
        let bytes = block[at..at + 8].try_into().expect("8 bytes");
        u64::from_le_bytes(bytes)
    };
    let value = (word(0), word(8));
    assert!(
        block == encode(value),
        "a torn block: {:02x?}",
        &block[..32]
    );
    value
}
