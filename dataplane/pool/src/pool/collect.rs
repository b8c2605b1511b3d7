//! The collector at work: what no snapshot and no clone needs any more is given up, one step at a time.

use bowline_block::{Completion, Device, IoBuf, Op};

use super::drive::Tag;
use super::engine::Engine;
use super::journal::Waiter;
use super::operation::Bytes;
use super::shape::CHUNK_BYTES;
use super::view::Key;
use crate::map::{Collector, Merge, Step};

/// What the collector waits for.
enum Doing {
    /// A record.
    Commit,
    Merge(Merging),
}

/// Two versions on their way to be one. The extent's chunks are all held, and the older of what is copied is not
/// written to in place either.
struct Merging {
    merge: Merge,
    key: Key,
    work: u32,
    /// The next chunk to look at.
    chunk: u32,
    /// Bytes that are copied now.
    start: u32,
    len: u32,
    is_recording: bool,
}

/// The pool's collector.
#[derive(Default)]
pub(super) struct Collecting {
    collector: Collector,
    doing: Option<Doing>,
}

impl Collecting {
    pub(super) const fn is_idle(&self) -> bool {
        self.doing.is_none()
    }
}

impl<D: Device> Engine<D> {
    /// Does the next step. Returns whether there was one.
    pub(super) fn run_collector(&mut self) -> bool {
        if self.collecting.doing.is_some()
            || self.journal.has_failed()
            || self.operations.is_closing()
        {
            return false;
        }
        match self.collecting.collector.step(&mut self.state) {
            Step::Idle => false,
            Step::Looked => true,
            Step::Commit(garbage) => {
                let mut bytes = Bytes::default();
                if bytes.push(&garbage.record()).is_err() {
                    self.collecting.collector.skip();
                    return true;
                }
                self.collecting.doing = Some(Doing::Commit);
                self.journal.want(bytes.into_change(), Waiter::Collector);
                true
            }
            Step::Merge(merge) => self.start_merge(merge),
        }
    }

    /// Holds the extent. Whoever works on it just now comes first: the collector asks again.
    fn start_merge(&mut self, merge: Merge) -> bool {
        let key = self
            .state
            .slot(merge.volume)
            .map(|slot| (slot, merge.logical));
        let held = key.and_then(|key| Some((key, self.hold(key)?)));
        let Some((key, work)) = held else {
            return false;
        };
        // What is copied away must not be written to in place any more, and what is being written must have ended.
        self.locked = merge.from;
        self.collecting.doing = Some(Doing::Merge(Merging {
            merge,
            key,
            work,
            chunk: 0,
            start: 0,
            len: 0,
            is_recording: false,
        }));
        self.cleaner.wait_for_grace(0);
        true
    }

    /// Everything has ended that began before: what is to be copied does not change any more.
    pub(super) fn merge_graced(&mut self) {
        self.copy_next();
    }

    /// Copies the next run of chunks, or records that all are copied.
    fn copy_next(&mut self) {
        let Some(Doing::Merge(merging)) = &mut self.collecting.doing else {
            return;
        };
        let is_set = |chunk: u32| {
            let byte = merging.merge.chunks.get((chunk / 8) as usize);
            byte.is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
        };
        let count = self.shape.chunk_count();
        let Some(first) = (merging.chunk..count).find(|chunk| is_set(*chunk)) else {
            return self.record_merge();
        };
        let limit = (first + super::engine::BOUNCE_BYTES_MAX / CHUNK_BYTES).min(count);
        let end = (first..limit)
            .find(|chunk| !is_set(*chunk))
            .unwrap_or(limit);
        merging.start = first * CHUNK_BYTES;
        merging.len = (end - first) * CHUNK_BYTES;
        merging.chunk = end;
        let (from, start, len) = (merging.merge.from, merging.start, merging.len);
        let Some((buffer, _)) = self.bounce(len) else {
            return self.end_merge(false);
        };
        let access = self
            .shape
            .access(Op::Read, from, start, len, false, buffer.into());
        self.drive.submit(access, Tag::Merge { is_read: true });
    }

    pub(super) fn merge_answered(&mut self, is_read: bool, completion: Completion) {
        let Completion {
            result, mut data, ..
        } = completion;
        let Some(Doing::Merge(merging)) = &self.collecting.doing else {
            return;
        };
        let (into, start, len) = (merging.merge.into, merging.start, merging.len);
        match (result, is_read, data.pop()) {
            (Ok(()), true, Some(buffer)) => self.copy_to(into, (start, len), buffer),
            (Ok(()), false, _) => self.copy_next(),
            // It cannot be read, or not be written: the versions stay two.
            _ => self.end_merge(false),
        }
    }

    /// Nobody reads these chunks of it. They are stable before the record says that they are there.
    fn copy_to(&mut self, into: u32, (start, len): (u32, u32), buffer: IoBuf) {
        let fua = self.drive.is_volatile();
        let access = self
            .shape
            .access(Op::Write, into, start, len, fua, buffer.into());
        self.drive.submit(access, Tag::Merge { is_read: false });
    }

    fn record_merge(&mut self) {
        let Some(Doing::Merge(merging)) = &mut self.collecting.doing else {
            return;
        };
        let mut bytes = Bytes::default();
        let records = merging.merge.records();
        if records.iter().any(|record| bytes.push(record).is_err()) {
            return self.end_merge(false);
        }
        merging.is_recording = true;
        self.journal.want(bytes.into_change(), Waiter::Collector);
    }

    /// The collector's records are durable and applied, or refused.
    pub(super) fn collected(&mut self, is_durable: bool) {
        match &self.collecting.doing {
            Some(Doing::Merge(merging)) if merging.is_recording => self.end_merge(is_durable),
            _ => self.collecting.doing = None,
        }
    }

    fn end_merge(&mut self, is_done: bool) {
        self.locked = u32::MAX;
        if let Some(Doing::Merge(merging)) = self.collecting.doing.take() {
            self.release(merging.work, merging.key);
        }
        if !is_done {
            self.collecting.collector.skip();
        }
    }
}
