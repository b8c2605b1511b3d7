//! The Error Information log of one controller. [BASE-2.0 §5.16.1.2]

use std::collections::VecDeque;

use bowline_nvme::log::ErrorLogEntry;

/// Entries kept (ELPE + 1); allocated as errors occur.
pub(super) const ENTRIES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    /// Oldest first.
    entries: VecDeque<ErrorLogEntry>,
    /// Errors of this controller.
    pub(super) count: u64,
}

impl ErrorLog {
    /// Adds an entry. Its Error Count is higher than those before.
    pub(super) fn add(&mut self, entry: ErrorLogEntry) {
        self.count += 1;
        if self.entries.len() == ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// Newest first, as hosts read them.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &ErrorLogEntry> {
        self.entries.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use bowline_nvme::{CommandId, QueueId, Status};

    use super::*;

    #[test]
    fn log_keeps_the_newest_and_counts_all() {
        let mut log = ErrorLog::default();
        for cid in 0..100 {
            log.add(ErrorLogEntry::new(
                u64::from(cid) + 8,
                QueueId(1),
                CommandId(cid),
                Status::INVALID_FIELD,
            ));
        }
        assert_eq!(log.count, 100);
        assert_eq!(log.newest_first().count(), ENTRIES);
        let newest = log.newest_first().next().expect("there are some");
        assert_eq!((newest.error_count, newest.cid), (107, 99));
    }
}
