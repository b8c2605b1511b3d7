//! What a target's turns cost: the proof that no peer can make one long.

use bowline_nvme::Nanos;

/// Counts over the life of a [`TargetService`](super::TargetService).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Most bytes received from one connection in one turn.
    pub turn_bytes_max: u64,
    /// Most PDUs taken from one connection in one turn.
    pub turn_pdus_max: u64,
    /// Turns of a connection that ended though it had more to be received.
    pub turns_cut: u64,
    /// Times that a connection was not read from until it gave a buffer back.
    pub stalls: u64,
    /// Reads that were cut in parts for want of memory.
    pub parts: u64,
    /// Connections ended because their peers did not take what was sent to them.
    pub unread: u64,
    /// Devices that went away while they were served.
    pub vanished: u64,
    /// Of these, devices that came back.
    pub returned: u64,
    /// Most bytes a connection held back that could not be placed.
    pub carry_bytes_max: u64,
}

impl Work {
    pub(super) fn note_turn(&mut self, bytes: usize, pdus: u64) {
        self.turn_bytes_max = self.turn_bytes_max.max(bytes as u64);
        self.turn_pdus_max = self.turn_pdus_max.max(pdus);
    }

    pub(super) fn note_carry(&mut self, bytes: usize) {
        self.carry_bytes_max = self.carry_bytes_max.max(bytes as u64);
    }
}

/// What a target keeps for its connections at one moment; all zero when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Connections with a socket.
    pub connections: usize,
    /// Connections and controllers the protocol machine knows, those that only drain included.
    pub machine_connections: usize,
    /// Commands that wait for the pool.
    pub waiting: usize,
    /// Connections that wait for a buffer before they receive again.
    pub stalled: usize,
    /// Commands at devices.
    pub executing: usize,
    /// Buffers in use of those that each connection has of its own.
    pub reserved: usize,
}

/// Lines a second that peers can make the log grow by.
const LINES_MAX: u32 = 5;

/// Of each kind of line, so that one does not hide another.
#[derive(Debug, Default)]
pub(super) struct LogLimits {
    pub(super) connections: LogLimit,
    pub(super) refusals: LogLimit,
    pub(super) expiries: LogLimit,
    pub(super) stores: LogLimit,
}

/// Keeps what peers cause from filling the log.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    since: Nanos,
    lines: u32,
    /// Lines left out since the last one.
    left_out: u64,
}

impl LogLimit {
    /// Whether a line may be written now, and if so how many were left out before it.
    pub(super) fn admit(&mut self, now: Nanos) -> Option<u64> {
        if now >= self.since.after(Nanos::from_secs(1)) {
            self.since = now;
            self.lines = 0;
        }
        if self.lines == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_grows_by_a_few_lines_a_second_and_says_what_it_left_out() {
        let mut limit = LogLimit::default();
        let mut lines = 0;
        for millis in 1_000..3_000 {
            lines += u32::from(limit.admit(Nanos::from_millis(millis)).is_some());
        }
        assert_eq!(lines, 2 * LINES_MAX);
        assert_eq!(limit.admit(Nanos::from_secs(4)), Some(995));
        assert_eq!(limit.admit(Nanos::from_secs(4)), Some(0));
    }
}
