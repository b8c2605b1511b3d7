//! Judging the guest kernel's log: every line about NVMe must be one we expected.

/// Never right, whatever was going on.
const ALWAYS_WRONG: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Oops",
    "Call Trace",
    "blocked for more than",
    "Kernel panic",
    "I/O error",
    "EXT4-fs error",
    "EXT4-fs warning",
    "JBD2: Error",
    "critical medium error",
    "critical target error",
];

/// What a healthy host says of a healthy controller.
const EXPECTED: &[&str] = &[
    "new ctrl: NQN",
    "ctrl_loss_tmo < 0 will reconnect forever",
    "Removing ctrl: NQN",
    " I/O queues.",
    "default/read/poll queues.",
    "rescanning namespaces",
    // The shutdown time that Identify names, and a discovery queue shorter than the host's wish.
    "D3 entry latency set to",
    "Shutdown timeout set to",
    "clamping down",
    "detected capacity change",
    "EXT4-fs (nvme",
];

const EXPECTED_RESET: &[&str] = &[
    "resetting controller",
    "no usable path - requeuing I/O",
    "callbacks suppressed",
    // The host shuts its own socket while a queue still sends on it.
    "failed to send request -32",
];

const EXPECTED_LOSS: &[&str] = &[
    "starting error recovery",
    "no usable path - requeuing I/O",
    "callbacks suppressed",
    "Reconnecting in ",
    "Failed reconnect attempt ",
    "failed to connect socket: -111",
    "Successfully reconnected (",
    // What was under way when the peer was killed: reset by it, or a broken pipe, or a keep-alive.
    "failed to send request -104",
    "failed to send request -32",
    "queue 0: timeout",
    "failed nvme_keep_alive_end_io",
];

const EXPECTED_REFUSAL: &[&str] = &[
    "Connect for subsystem",
    "Connect command failed",
    // Status 1/84, Connect Invalid Host, without DNR. [FABRICS-1.1 §3.3]
    "failed to connect queue: 0 ret=388",
];

/// What was done to the controller since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Quiet,
    /// The host reset the controller on purpose.
    Reset,
    /// The data plane was killed, so connections broke and came back.
    Loss,
    /// The host asked for something that it must be refused.
    Refusal,
}

impl Phase {
    fn expected(self) -> &'static [&'static str] {
        match self {
            Self::Quiet => &[],
            Self::Reset => EXPECTED_RESET,
            Self::Loss => EXPECTED_LOSS,
            Self::Refusal => EXPECTED_REFUSAL,
        }
    }
}

/// The log from boot on.
pub(crate) struct KernelLog {
    text: String,
}

impl KernelLog {
    pub(crate) fn new(text: String) -> Self {
        Self { text }
    }

    /// Length in bytes; where the next look begins.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// True once the kernel itself broke: nothing that it says or does afterwards counts.
    pub(crate) fn is_broken(&self) -> bool {
        ["BUG:", "Oops", "Kernel panic"]
            .iter()
            .any(|part| self.text.contains(part))
    }

    /// Lines after byte `from` that should not be there.
    pub(crate) fn offences(&self, from: usize, phase: Phase) -> Vec<&str> {
        let lines = self.text.get(from..).unwrap_or_default().lines();
        lines.filter(|line| is_offence(line, phase)).collect()
    }
}

fn is_offence(line: &str, phase: Phase) -> bool {
    let has = |list: &[&str]| list.iter().any(|part| line.contains(part));
    has(ALWAYS_WRONG) || (line.contains("nvme") && !has(EXPECTED) && !has(phase.expected()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, phase: Phase, wrong: bool) {
        assert_eq!(is_offence(line, phase), wrong, "{line} in {phase:?}");
    }

    #[test]
    fn reconnects_are_expected_only_after_a_loss() {
        check(
            "[ 9.1] nvme nvme0: Reconnecting in 1 seconds...",
            Phase::Loss,
            false,
        );
        check(
            "[ 9.1] nvme nvme0: Reconnecting in 1 seconds...",
            Phase::Quiet,
            true,
        );
        check(
            "[ 9.1] nvme nvme0: resetting controller",
            Phase::Reset,
            false,
        );
        check("[ 9.1] nvme nvme0: resetting controller", Phase::Loss, true);
    }

    #[test]
    fn unknown_nvme_line_is_an_offence() {
        check("nvme nvme0: creating 2 I/O queues.", Phase::Quiet, false);
        check("nvme nvme0: queue 1: data digest error", Phase::Quiet, true);
        check("virtio_net virtio0 eth0: renamed", Phase::Quiet, false);
    }

    #[test]
    fn kernel_bugs_are_never_expected() {
        check(
            "WARNING: CPU: 0 PID: 1 at block/blk-mq.c",
            Phase::Loss,
            true,
        );
        check(
            "INFO: task fio:99 blocked for more than 60 seconds.",
            Phase::Loss,
            true,
        );
        check("I/O error, dev nvme0n1, sector 0", Phase::Loss, true);
    }

    #[test]
    fn only_what_came_after_the_last_look_counts() {
        let log = KernelLog::new("nvme nvme0: odd\nfine\n".to_owned());
        assert_eq!(log.offences(0, Phase::Quiet), ["nvme nvme0: odd"]);
        assert!(log.offences(16, Phase::Quiet).is_empty());
    }
}
