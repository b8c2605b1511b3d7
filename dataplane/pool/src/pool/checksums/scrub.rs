//! Scrubbing: everything that volumes have is read and compared, one read at a time, in the order of the drive.
//!
//! Nothing is computed that was not known: a chunk without a checksum stays without.

use std::ops::Range;

use bowline_block::{Device, Op};
use bowline_nvme::Nanos;

use super::Waiting;
use super::activity::Need;
use super::read::Origin;
use crate::pool::engine::{BOUNCE_BYTES_MAX, Engine};
use crate::pool::shape::CHUNK_BYTES;
use crate::pool::{PoolError, PoolEvent};

/// Beside requests of hosts it pauses for so many times as long as its last read took.
const PAUSES: u64 = 4;

/// How long it waits for a buffer.
const SHORT_PAUSE: Nanos = Nanos::from_millis(1);

/// Extents that are passed over at a time, because there is nothing to be read.
const PASSED_MAX: u32 = 4096;

/// What is to be scrubbed, and how fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Bytes in a second, at most. `None`: as fast as the drive is while hosts do not use it.
    pub bytes_per_second: Option<u64>,
    /// Whether volumes without checksums are read too, to see whether they can be.
    pub is_everything: bool,
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubState {
    /// It goes on.
    Running,
    /// It waits for being told to go on.
    Paused,
    /// It has seen everything.
    Done,
    /// It was told to end, or the pool is being closed.
    Stopped,
}

/// What a scrub has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubReport {
    /// How far it is.
    pub state: ScrubState,
    /// Bytes of the pool's room for data that it is done with, whatever is there.
    pub position: u64,
    /// All of them.
    pub total: u64,
    /// Chunks that are what was written.
    pub verified: u64,
    /// Chunks that can be read, whose checksums are not known.
    pub unverified: u64,
    /// Chunks of volumes without checksums that can be read.
    pub plain: u64,
    /// Chunks that are not what was written.
    pub mismatches: u64,
    /// Chunks that cannot be read.
    pub read_errors: u64,
}

/// A scrub, perhaps one that has ended.
pub(super) struct Scrub {
    /// Of all since the pool was opened: an answer to a read of the one before is not for this one.
    number: u64,
    options: ScrubOptions,
    report: ScrubReport,
    /// The extent that is looked at, and the next of its chunks.
    physical: u32,
    chunk: u32,
    /// The chunks that are being read.
    reading: Option<Range<u32>>,
    /// How often the chunk was read again.
    doubts: u8,
    /// Somebody has it go on.
    is_waiting: bool,
    not_before: Nanos,
    began: Nanos,
}

/// How a read of the scrub has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Right { verified: u64, unverified: u64 },
    Plain,
    Doubtful,
    Mismatch,
    Unreadable,
}

impl<D: Device> Engine<D> {
    pub(in crate::pool) fn start_scrub(&mut self, options: ScrubOptions) -> Result<(), PoolError> {
        if self.operations.is_closing() {
            return Err(PoolError::Closing);
        }
        if self
            .scrub_report()
            .is_some_and(|report| matches!(report.state, ScrubState::Running | ScrubState::Paused))
        {
            return Err(PoolError::Busy);
        }
        let extents = u64::from(self.state.extents().all);
        let number = self.sums.scrub.as_ref().map_or(0, |it| it.number + 1);
        self.sums.scrub = Some(Scrub {
            number,
            options,
            report: ScrubReport {
                state: ScrubState::Running,
                position: 0,
                total: extents * u64::from(self.shape.extent_bytes()),
                verified: 0,
                unverified: 0,
                plain: 0,
                mismatches: 0,
                read_errors: 0,
            },
            physical: 0,
            chunk: 0,
            reading: None,
            doubts: 0,
            is_waiting: false,
            not_before: self.now,
            began: self.now,
        });
        Ok(())
    }

    pub(in crate::pool) fn scrub_report(&self) -> Option<ScrubReport> {
        self.sums.scrub.as_ref().map(|scrub| scrub.report)
    }

    /// Has it pause, go on or end. Nothing happens to one that has ended.
    pub(in crate::pool) fn set_scrub_state(&mut self, state: ScrubState) {
        if let Some(scrub) = &mut self.sums.scrub
            && matches!(scrub.report.state, ScrubState::Running | ScrubState::Paused)
        {
            scrub.report.state = state;
        }
    }

    pub(in crate::pool) fn set_scrub_rate(&mut self, bytes_per_second: Option<u64>) {
        if let Some(scrub) = &mut self.sums.scrub {
            scrub.options.bytes_per_second = bytes_per_second;
            scrub.not_before = self.now;
        }
    }

    /// When it goes on by itself.
    pub(in crate::pool) fn scrub_timeout(&self) -> Option<Nanos> {
        let scrub = self.sums.scrub.as_ref()?;
        scrub.is_due_to_go_on().then_some(scrub.not_before)
    }

    /// Reads what comes next. Returns whether something was started.
    pub(in crate::pool) fn run_scrub(&mut self) -> bool {
        let now = self.now;
        let Some(scrub) = &mut self.sums.scrub else {
            return false;
        };
        if !scrub.is_due_to_go_on() || now < scrub.not_before {
            return false;
        }
        if self.operations.is_closing() {
            scrub.report.state = ScrubState::Stopped;
            return false;
        }
        self.scrub_next()
    }

    /// Waits no longer for checksums.
    pub(super) fn resume_scrub(&mut self) {
        if let Some(scrub) = &mut self.sums.scrub {
            scrub.is_waiting = false;
        }
    }

    fn scrub_next(&mut self) -> bool {
        for _ in 0..PASSED_MAX {
            let Some((physical, from, doubts)) = self
                .sums
                .scrub
                .as_ref()
                .map(|scrub| (scrub.physical, scrub.chunk, scrub.doubts))
            else {
                return false;
            };
            if physical >= self.state.extents().all {
                self.end_scrub();
                return false;
            }
            if let Some((chunks, is_plain)) = self.scrub_run(physical, from, doubts > 0) {
                return self.scrub_read(physical, chunks, is_plain, doubts > 0);
            }
            let position = u64::from(physical + 1) * u64::from(self.shape.extent_bytes());
            if let Some(scrub) = &mut self.sums.scrub {
                scrub.report.position = position;
                scrub.physical += 1;
                scrub.chunk = 0;
                scrub.doubts = 0;
            }
        }
        true
    }

    fn end_scrub(&mut self) {
        if let Some(scrub) = &mut self.sums.scrub {
            scrub.report.state = ScrubState::Done;
            let report = scrub.report;
            tracing::info!(?report, pool = %self.superblock.uuid, "scrubbed");
            self.tell_event(PoolEvent::ScrubDone);
        }
    }

    /// The next chunks of an extent that a version has, from one on, and whether they have no checksums.
    fn scrub_run(&self, physical: u32, from: u32, is_single: bool) -> Option<(Range<u32>, bool)> {
        let scrub = self.sums.scrub.as_ref()?;
        self.state.owner(physical)?;
        let is_plain = !self.keeps_sums(physical);
        if is_plain && !scrub.options.is_everything {
            return None;
        }
        let has = |chunk: u32| self.state.has_chunks(physical, chunk..chunk + 1);
        let all = self.shape.chunk_count();
        let start = (from..all).find(|chunk| has(*chunk))?;
        let limit = match is_single {
            true => start + 1,
            false => all.min(start + BOUNCE_BYTES_MAX / CHUNK_BYTES),
        };
        let end = (start..limit).find(|chunk| !has(*chunk));
        Some((start..end.unwrap_or(limit), is_plain))
    }

    fn scrub_read(
        &mut self,
        physical: u32,
        mut chunks: Range<u32>,
        is_plain: bool,
        is_doubted: bool,
    ) -> bool {
        let is_watched = is_doubted && !is_plain && !self.is_unknown(physical);
        let group = self.sums.map.group_of(physical);
        if is_watched && !self.need(group, Need::Slots, Waiting::Scrub) {
            if let Some(scrub) = &mut self.sums.scrub {
                scrub.is_waiting = true;
            }
            return false;
        }
        let wanted = (chunks.end - chunks.start) * CHUNK_BYTES;
        let Some((buffer, len)) = self.bounce(wanted) else {
            if let Some(scrub) = &mut self.sums.scrub {
                scrub.not_before = self.now.after(SHORT_PAUSE);
            }
            return false;
        };
        chunks.end = chunks.start + len / CHUNK_BYTES;
        let start = chunks.start * CHUNK_BYTES;
        let access = self
            .shape
            .access(Op::Read, physical, start, len, false, buffer.into());
        let now = self.now;
        let Some(scrub) = &mut self.sums.scrub else {
            return false;
        };
        scrub.reading = Some(chunks.clone());
        scrub.began = now;
        let origin = Origin::Scrub {
            scrub: scrub.number,
            is_plain,
        };
        self.compare_later(origin, physical, access, start, is_watched);
        true
    }

    /// A read of a scrub has ended. What is doubtful is read again, one chunk at a time.
    pub(super) fn scrub_seen(&mut self, number: u64, seen: Seen) {
        let (now, is_used) = (self.now, self.is_used());
        let Some(scrub) = self
            .sums
            .scrub
            .as_mut()
            .filter(|scrub| scrub.number == number)
        else {
            return;
        };
        let Some(chunks) = scrub.reading.take() else {
            return;
        };
        let count = u64::from(chunks.end - chunks.start);
        scrub.wait(now, count * u64::from(CHUNK_BYTES), is_used);
        let is_single = count == 1;
        match seen {
            Seen::Right {
                verified,
                unverified,
            } => {
                scrub.report.verified += verified;
                scrub.report.unverified += unverified;
            }
            Seen::Plain => scrub.report.plain += count,
            Seen::Mismatch if is_single => scrub.report.mismatches += 1,
            Seen::Unreadable if is_single => scrub.report.read_errors += 1,
            Seen::Doubtful | Seen::Mismatch | Seen::Unreadable => {
                scrub.chunk = chunks.start;
                scrub.doubts = scrub.doubts.saturating_add(1);
                return;
            }
        }
        scrub.chunk = chunks.end;
        scrub.doubts = 0;
    }

    /// How often the chunk that is being scrubbed was read again.
    pub(super) fn scrub_doubts(&self) -> u8 {
        self.sums.scrub.as_ref().map_or(0, |scrub| scrub.doubts)
    }
}

impl Scrub {
    const fn is_due_to_go_on(&self) -> bool {
        matches!(self.report.state, ScrubState::Running)
            && self.reading.is_none()
            && !self.is_waiting
    }

    /// Keeps to its rate, and leaves the drive to hosts most of the time.
    fn wait(&mut self, now: Nanos, bytes: u64, is_used: bool) {
        let mut not_before = now;
        if let Some(rate) = self.options.bytes_per_second {
            let span = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
            let span = Nanos(u64::try_from(span).unwrap_or(u64::MAX));
            // From when it was allowed to, not from when it did, so that the rate is kept on average.
            not_before = self.not_before.max(self.began).after(span).max(now);
        }
        if is_used {
            let took = now.0.saturating_sub(self.began.0);
            not_before = not_before.max(now.after(Nanos(took.saturating_mul(PAUSES))));
        }
        self.not_before = not_before;
    }
}
