//! What a controller has done since it was created: the counters behind the SMART log.
//! [BASE-2.0 §5.16.1.3]

use bowline_nvme::{Nanos, Status};

use super::output::IoOp;

/// Counts of one controller or namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Read commands completed without error.
    pub reads: u64,
    /// Write commands completed without error; Compare counts as a read.
    pub writes: u64,
    /// Bytes read by successful commands.
    pub read_bytes: u64,
    /// Bytes written by successful commands.
    pub written_bytes: u64,
    /// Flush, Write Zeroes, and Dataset Management commands completed without error.
    pub others: u64,
    /// Commands that ended with an error at the device.
    pub errors: u64,
    /// Those of them that the medium caused.
    pub media_errors: u64,
}

impl IoCounters {
    pub(super) fn count(&mut self, op: &IoOp, bytes: u32, status: Status) {
        if !status.is_success() {
            self.errors += 1;
            self.media_errors += u64::from(is_media_error(status));
            return;
        }
        match op {
            IoOp::Read { .. } | IoOp::Compare { .. } => {
                self.reads += 1;
                self.read_bytes += u64::from(bytes);
            }
            IoOp::Write { .. } => {
                self.writes += 1;
                self.written_bytes += u64::from(bytes);
            }
            IoOp::Flush | IoOp::WriteZeroes { .. } | IoOp::Deallocate { .. } => self.others += 1,
        }
    }
}

/// Media and Data Integrity Errors, less a Compare that found a difference.
fn is_media_error(status: Status) -> bool {
    status.sct() == Status::UNRECOVERED_READ.sct() && !status.same_code(Status::COMPARE_FAILURE)
}

/// The counters of one controller, and how long it was busy.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) io: IoCounters,
    /// Commands at their devices, on all queues.
    pub(super) executing: u32,
    busy: Nanos,
    busy_since: Nanos,
}

impl Health {
    pub(super) fn started(&mut self, now: Nanos) {
        if self.executing == 0 {
            self.busy_since = now;
        }
        self.executing += 1;
    }

    pub(super) fn finished(&mut self, now: Nanos) {
        self.executing = self.executing.saturating_sub(1);
        if self.executing == 0 {
            self.busy = self.busy + (now - self.busy_since);
        }
    }

    /// Controller Busy Time in minutes.
    pub(super) fn busy_minutes(&self, now: Nanos) -> u64 {
        let current = if self.executing > 0 {
            now - self.busy_since
        } else {
            Nanos::ZERO
        };
        (self.busy + current).as_millis() / 60_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_is_the_union_of_overlapping_commands() {
        let mut health = Health::default();
        health.started(Nanos::from_secs(0));
        health.started(Nanos::from_secs(30));
        health.finished(Nanos::from_secs(60));
        health.finished(Nanos::from_secs(120));
        health.started(Nanos::from_secs(1000));
        assert_eq!(health.busy_minutes(Nanos::from_secs(1060)), 3);
    }

    #[test]
    fn failed_compare_is_an_error_but_not_of_the_medium() {
        let mut counters = IoCounters::default();
        counters.count(
            &IoOp::Compare { lba: 0, blocks: 1 },
            512,
            Status::COMPARE_FAILURE,
        );
        counters.count(
            &IoOp::Read { lba: 0, blocks: 1 },
            512,
            Status::UNRECOVERED_READ,
        );
        counters.count(&IoOp::Read { lba: 0, blocks: 1 }, 512, Status::SUCCESS);
        assert_eq!((counters.errors, counters.media_errors), (2, 1));
        assert_eq!((counters.reads, counters.read_bytes), (1, 512));
    }
}
