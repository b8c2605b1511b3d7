//! What controllers and subsystems have done: the counters behind the SMART log.
//! [BASE-2.0 §5.16.1.3]

use bowline_nvme::{Nanos, Status};

use super::output::IoOp;

/// Counts of one controller or namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Read commands completed without error.
    pub reads: u64,
    /// Write commands completed without error; Compare and Verify count as reads.
    pub writes: u64,
    /// Bytes read by successful commands.
    pub read_bytes: u64,
    /// Bytes written by successful commands.
    pub written_bytes: u64,
    /// Flush, Write Zeroes, Copy, and Dataset Management commands completed without error.
    pub others: u64,
    /// Commands that ended with an error at the device.
    pub errors: u64,
    /// Those of them that the medium caused.
    pub media_errors: u64,
}

impl IoCounters {
    pub(super) fn count(&mut self, one: Tally) {
        match one {
            Tally::Read(bytes) => {
                self.reads += 1;
                self.read_bytes += bytes;
            }
            Tally::Write(bytes) => {
                self.writes += 1;
                self.written_bytes += bytes;
            }
            Tally::Other => self.others += 1,
            Tally::Error => self.errors += 1,
            Tally::MediaError => {
                self.errors += 1;
                self.media_errors += 1;
            }
        }
    }
}

/// What one command counts as, with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tally {
    Read(u64),
    Write(u64),
    Other,
    Error,
    MediaError,
}

impl Tally {
    pub(super) fn of(op: &IoOp, bytes: u32, status: Status) -> Self {
        if !status.is_success() {
            return if is_media_error(status) {
                Self::MediaError
            } else {
                Self::Error
            };
        }
        match op {
            IoOp::Read { .. }
            | IoOp::Compare { .. }
            | IoOp::CompareAndWrite { .. }
            | IoOp::Verify { .. } => Self::Read(u64::from(bytes)),
            IoOp::Write { .. } => Self::Write(u64::from(bytes)),
            IoOp::Flush
            | IoOp::WriteZeroes { .. }
            | IoOp::Copy { .. }
            | IoOp::Deallocate { .. } => Self::Other,
        }
    }
}

/// What a subsystem has been through over all its starts: the counters of its SMART log, which
/// belong to the drive and not to one association. Whoever keeps them gives them back at the next
/// start, with one unsafe shutdown more if the last run had no regular end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthTotals {
    /// Read and Compare commands completed without error.
    pub reads: u64,
    /// Write commands completed without error.
    pub writes: u64,
    /// Bytes read by hosts.
    pub read_bytes: u64,
    /// Bytes written by hosts.
    pub written_bytes: u64,
    /// Commands that failed because of the medium.
    pub media_errors: u64,
    /// Entries ever made in the error logs of the subsystem's controllers.
    pub error_log_entries: u64,
    /// Time with a command at a device.
    pub busy: Nanos,
    /// Time served.
    pub power_on: Nanos,
    /// Starts, the present one included.
    pub power_cycles: u64,
    /// Runs that ended without a shutdown.
    pub unsafe_shutdowns: u64,
}

/// The present run of a subsystem.
#[derive(Debug)]
pub(super) struct SubsystemHealth {
    /// What was before.
    before: HealthTotals,
    since: Nanos,
    pub(super) run: Health,
    error_log_entries: u64,
}

impl SubsystemHealth {
    pub(super) fn new(now: Nanos, before: HealthTotals) -> Self {
        Self {
            before,
            since: now,
            run: Health::default(),
            error_log_entries: before.error_log_entries,
        }
    }

    /// The number of a new entry in an error log: never one that was given before.
    pub(super) fn next_error(&mut self) -> u64 {
        self.error_log_entries = self.error_log_entries.saturating_add(1);
        self.error_log_entries
    }

    pub(super) fn totals(&self, now: Nanos) -> HealthTotals {
        let (before, io) = (&self.before, &self.run.io);
        HealthTotals {
            reads: before.reads.saturating_add(io.reads),
            writes: before.writes.saturating_add(io.writes),
            read_bytes: before.read_bytes.saturating_add(io.read_bytes),
            written_bytes: before.written_bytes.saturating_add(io.written_bytes),
            media_errors: before.media_errors.saturating_add(io.media_errors),
            error_log_entries: self.error_log_entries,
            busy: before.busy + self.run.busy(now),
            power_on: before.power_on + (now - self.since),
            power_cycles: before.power_cycles.saturating_add(1),
            unsafe_shutdowns: before.unsafe_shutdowns,
        }
    }
}

/// Media and Data Integrity Errors, less a Compare that found a difference.
fn is_media_error(status: Status) -> bool {
    status.sct() == Status::UNRECOVERED_READ.sct() && !status.same_code(Status::COMPARE_FAILURE)
}

/// The counters of one controller or subsystem, and how long it was busy.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) io: IoCounters,
    /// Queues with a command at its device: not commands, so that this is touched only when a
    /// queue's first goes there and when its last is done.
    busy_queues: u32,
    busy: Nanos,
    busy_since: Nanos,
}

impl Health {
    /// The first command of a queue goes to its device.
    pub(super) fn started(&mut self, now: Nanos) {
        if self.busy_queues == 0 {
            self.busy_since = now;
        }
        self.busy_queues += 1;
    }

    /// The last command of a queue has left its device.
    pub(super) fn finished(&mut self, now: Nanos) {
        self.busy_queues = self.busy_queues.saturating_sub(1);
        if self.busy_queues == 0 {
            self.busy = self.busy + (now - self.busy_since);
        }
    }

    /// Whether a command is at its device.
    pub(super) fn is_busy(&self) -> bool {
        self.busy_queues > 0
    }

    /// Time with a command at a device.
    pub(super) fn busy(&self, now: Nanos) -> Nanos {
        let current = if self.is_busy() {
            now - self.busy_since
        } else {
            Nanos::ZERO
        };
        self.busy + current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: IoOp = IoOp::Read {
        lba: 0,
        blocks: 1,
        fua: false,
    };

    #[test]
    fn busy_time_is_the_union_of_overlapping_queues() {
        let mut health = Health::default();
        health.started(Nanos::from_secs(0));
        health.started(Nanos::from_secs(30));
        health.finished(Nanos::from_secs(60));
        health.finished(Nanos::from_secs(120));
        health.started(Nanos::from_secs(1000));
        assert_eq!(health.busy(Nanos::from_secs(1060)), Nanos::from_secs(180));
    }

    #[test]
    fn failed_compare_is_an_error_but_not_of_the_medium() {
        let mut counters = IoCounters::default();
        let compare = IoOp::Compare {
            lba: 0,
            blocks: 1,
            fua: false,
        };
        counters.count(Tally::of(&compare, 512, Status::COMPARE_FAILURE));
        counters.count(Tally::of(&READ, 512, Status::UNRECOVERED_READ));
        counters.count(Tally::of(&READ, 512, Status::SUCCESS));
        assert_eq!((counters.errors, counters.media_errors), (2, 1));
        assert_eq!((counters.reads, counters.read_bytes), (1, 512));
    }
}
