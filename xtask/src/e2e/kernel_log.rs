//! Judging the guest kernel's log: every line about NVMe must be one we expected at that moment.
//!
//! The table goes through what the host drivers of Linux 6.1 and 6.12 (nvme-core, nvme-fabrics,
//! nvme-tcp) can say. A line that depends on the moment at which a connection ended is allowed
//! where connections end, whether or not a run has shown it yet; everything that the drivers say of
//! a wrong PDU, a wrong digest or a wrong answer is in no row, so it fails in every phase.

use Phase::{Ana, Loss, Pulled, Quiet, Refusal, Reset, Restart, Shared};

/// What was done to the controller since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Connects, disconnects and plain use.
    Quiet,
    /// The host reset the controller on purpose.
    Reset,
    /// The data plane was killed, so connections broke and came back.
    Loss,
    /// The host asked for something that it must be refused.
    Refusal,
    /// Paths changed their ANA state under I/O.
    Ana,
    /// Two hosts on one disk, so that writes meet the other's reservation.
    Shared,
    /// The drive under the data plane was pulled under I/O.
    Pulled,
    /// As [`Loss`], of a data plane that takes long to come back because its drive does. The drive
    /// may come from the kernel's own driver.
    Restart,
}

const ALWAYS: &[Phase] = &[Quiet, Reset, Loss, Refusal, Ana, Shared, Pulled, Restart];
const CUT: &[Phase] = &[Reset, Loss, Restart];
const LOST: &[Phase] = &[Loss, Restart];

/// Never right, whatever else the line says and whatever was going on.
const ALWAYS_WRONG: &[&str] = &[
    "BUG:",
    "kernel BUG at",
    "WARNING:",
    "Oops",
    "Call Trace",
    "blocked for more than",
    "Kernel panic",
    "EXT4-fs error",
    "EXT4-fs warning",
    "JBD2: Error",
    "critical medium error",
    "critical target error",
    "no available path - failing I/O",
];

/// A line that is expected in some phases.
struct Expected {
    /// The message without its time and device: `#` is a number, `*` any text, also none.
    pattern: &'static str,
    /// What the last number may be; any if empty.
    numbers: &'static [i64],
    phases: &'static [Phase],
}

const fn line(pattern: &'static str, phases: &'static [Phase]) -> Expected {
    with(pattern, &[], phases)
}

const fn with(
    pattern: &'static str,
    numbers: &'static [i64],
    phases: &'static [Phase],
) -> Expected {
    Expected {
        pattern,
        numbers,
        phases,
    }
}

/// How an operation ends when its connection does: the errors of a socket whose peer is gone
/// (EINTR for a request taken back, EIO, EPIPE, ECONNABORTED, ECONNRESET, ENOTCONN, ESHUTDOWN,
/// ETIMEDOUT, ECONNREFUSED), and the two statuses that the host makes up itself, Host Path Error
/// and Host Aborted Command. [BASE-2.0 §3.3.3.2.1]
const CUT_OFF: &[i64] = &[
    -4, -5, -32, -103, -104, -107, -108, -110, -111, 0x370, 0x371,
];
/// TIME-WAIT and CLOSING. The other states of an ending connection start a recovery, which says so.
const BOTH_ENDS_CLOSE: &[i64] = &[6, 11];
/// Connect Invalid Host, plain or with Do Not Retry. [FABRICS-1.1 §3.3]
const INVALID_HOST: &[i64] = &[0x184, 0x4184];
const ADMIN_QUEUE: &[i64] = &[0];

const EXPECTED: &[Expected] = &[
    // A healthy controller comes, changes and goes.
    line("new ctrl: NQN *", ALWAYS),
    line("Removing ctrl: NQN *", ALWAYS),
    line("ctrl_loss_tmo < 0 will reconnect forever", ALWAYS),
    line("creating # I/O queues.", ALWAYS),
    line("mapped #/#/# default/read/poll queues.", ALWAYS),
    line("rescanning namespaces.", ALWAYS),
    line("*: detected capacity change from # to #", ALWAYS),
    line("EXT4-fs (nvme*): mounted filesystem *", ALWAYS),
    line("EXT4-fs (nvme*): unmounting filesystem*", ALWAYS),
    line(
        "EXT4-fs (nvme*): resizing filesystem from # to # blocks",
        ALWAYS,
    ),
    line("EXT4-fs (nvme*): resized filesystem to #", ALWAYS),
    // The shutdown time that Identify names, and a discovery queue shorter than the host's wish.
    line("Shutdown timeout set to # seconds", ALWAYS),
    line("D3 entry latency set to # seconds", ALWAYS),
    line("queue_size # > ctrl sqsize #, clamping down", ALWAYS),
    line("sqsize # > ctrl maxcmd #, clamping down", ALWAYS),
    // The emulator's machine is slow or busy. The second line is 0.1 s of unread send buffer.
    line("workqueue: * hogged CPU for *", ALWAYS),
    line(
        "qid #: timeout draining sock wmem allocation expired",
        ALWAYS,
    ),
    // Both ends close at once, as they may whenever a controller goes. What made them has a line
    // of its own where it is a fault.
    with("queue # socket state #", BOTH_ENDS_CLOSE, ALWAYS),
    // The host resets the controller, or recovers it.
    line("resetting controller", &[Reset, Shared]),
    line("starting error recovery", LOST),
    line("Reconnecting in # seconds...", LOST),
    line("Failed reconnect attempt #", LOST),
    line("Failed reconnect attempt #/#", LOST),
    line("Successfully reconnected (# attempt)", LOST),
    line("Successfully reconnected (attempt #/#)", LOST),
    // Multipath holds back what has no path for the moment.
    line(
        "no usable path - requeuing I/O",
        &[Reset, Loss, Ana, Restart],
    ),
    line(
        "nvme_ns_head_submit_bio: # callbacks suppressed",
        &[Reset, Loss, Ana, Restart],
    ),
    // What was under way on the sockets. In a reset the host shuts its own.
    with("failed to send request #", &[-32], &[Reset]),
    with("failed to send request #", CUT_OFF, LOST),
    with("queue #: receive failed: #", CUT_OFF, CUT),
    line("failed nvme_keep_alive_end_io error=#", CUT),
    with("keep-alive failed: #", CUT_OFF, CUT),
    line("long keepalive RTT (# ms)", LOST),
    // A connection that ends while the host brings it up again.
    with("failed to connect socket: #", CUT_OFF, LOST),
    with("queue #: failed to send icreq, error #", CUT_OFF, LOST),
    with("queue #: failed to receive icresp, error #", CUT_OFF, LOST),
    with("failed to connect queue: # ret=#", CUT_OFF, LOST),
    with("Connect command failed, errno: #", CUT_OFF, LOST),
    with("Connect command failed, error wo/DNR bit: #", CUT_OFF, LOST),
    line("Connect command failed: host path error", LOST),
    // A command of the bring-up or of a scan that ends with its connection.
    line("Property Get error: #, offset #", LOST),
    line("Property Set error: #, offset #", LOST),
    with("Reading CAP failed (#)", CUT_OFF, LOST),
    with("Reading VS failed (#)", CUT_OFF, LOST),
    with("Could not set queue count (#)", CUT_OFF, LOST),
    line("unable to set any I/O queues", LOST),
    line("Failed to configure AEN (cfg #)", LOST),
    with("Identify Controller failed (#)", CUT_OFF, LOST),
    with("reading non-mdts-limits failed: #", CUT_OFF, LOST),
    with("Identify namespace failed (#)", CUT_OFF, CUT),
    with(
        "Identify Descriptors failed (nsid=#, status=#)",
        CUT_OFF,
        CUT,
    ),
    with("Identify NS List failed (status=#)", CUT_OFF, CUT),
    with("reading changed ns log failed: #", CUT_OFF, CUT),
    with("Failed to get ANA log: #", CUT_OFF, CUT),
    line("Get FW SLOT INFO log error", CUT),
    // A keep-alive or a command of the bring-up that nobody answered; on 6.12 a Connect of an I/O
    // queue too. No other command may ever wait that long.
    line("queue 0: timeout request # type #", LOST),
    with(
        "I/O tag # (*) type # opcode # (*) QID # timeout",
        ADMIN_QUEUE,
        LOST,
    ),
    line(
        "I/O tag # (*) type # opcode 0x7f (Connect) QID # timeout",
        LOST,
    ),
    // The data plane says no.
    line(
        "Connect for subsystem * is not allowed, hostnqn: *",
        &[Refusal],
    ),
    with("failed to connect queue: # ret=#", INVALID_HOST, &[Refusal]),
    // The kernel without multipath, which is how it plays two hosts.
    line(
        "Found shared namespace #, but multipathing not supported.",
        &[Shared],
    ),
    line(
        "Support for shared namespaces without CONFIG_NVME_MULTIPATH is deprecated *",
        &[Shared],
    ),
    // Another host's reservation, as nvme-core and the block layers of both kernels say it.
    line(
        "*: I/O Cmd(#) @ LBA #, # blocks, I/O Error (sct 0x0 / sc 0x83)*",
        &[Shared],
    ),
    line("critical nexus error, dev nvme*", &[Shared]),
    line("reservation conflict error, dev nvme*", &[Shared]),
    // A drive that is not there any more: an internal error, to which the error log has more.
    line(
        "*: I/O Cmd(#) @ LBA #, # blocks, I/O Error (sct 0x0 / sc 0x6) MORE*",
        &[Pulled],
    ),
    line("I/O error, dev nvme*, sector *", &[Pulled]),
    // A data plane listens before its drive is up, and the host waits for ten seconds.
    with(
        "queue #: failed to receive icresp, error #",
        &[-11],
        &[Restart],
    ),
    // The kernel's own driver finds a drive of the guest.
    line("pci function *", &[Restart]),
    line("nvme *: enabling device (*)", &[Restart]),
    line("#/#/# default/read/poll queues", &[Restart]),
    line("Ignoring bogus Namespace Identifiers", &[Restart]),
];

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
        ["BUG:", "kernel BUG at", "Oops", "Kernel panic"]
            .iter()
            .any(|part| self.text.contains(part))
    }

    /// How often the host came back after a loss, counted from byte `from` on.
    pub(crate) fn reconnects(&self, from: usize) -> usize {
        let text = self.text.get(from..).unwrap_or_default();
        text.matches("Successfully reconnected (").count()
    }

    /// Lines after byte `from` that should not be there.
    pub(crate) fn offences(&self, from: usize, phase: Phase) -> Vec<&str> {
        let lines = self.text.get(from..).unwrap_or_default().lines();
        lines.filter(|line| is_offence(line, phase)).collect()
    }
}

fn is_offence(line: &str, phase: Phase) -> bool {
    let message = message(line);
    let wrong = ALWAYS_WRONG.iter().any(|part| line.contains(part));
    wrong || (line.contains("nvme") && !EXPECTED.iter().any(|row| row.allows(message, phase)))
}

impl Expected {
    fn allows(&self, message: &str, phase: Phase) -> bool {
        self.phases.contains(&phase)
            && matches(self.pattern, message, None).is_some_and(|number| {
                self.numbers.is_empty() || number.is_some_and(|n| self.numbers.contains(&n))
            })
    }
}

/// A line without its time, and without the device or module that says it.
fn message(line: &str) -> &str {
    let line = line.trim_end();
    let text = match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, text)) => text,
        None => line,
    };
    let said = |origin: &str| text.strip_prefix(origin)?.split_once(": ");
    ["nvme nvme", "block nvme", "nvme_tcp", "nvme_fabrics"]
        .iter()
        .find_map(|origin| said(origin))
        .map_or(text, |(_, message)| message)
}

/// Matches a whole text; gives the last number in it, if there was one.
fn matches(pattern: &str, text: &str, last: Option<i64>) -> Option<Option<i64>> {
    let Some(special) = pattern.find(['#', '*']) else {
        return (pattern == text).then_some(last);
    };
    let rest = text.strip_prefix(&pattern[..special])?;
    let after = &pattern[special + 1..];
    if pattern[special..].starts_with('#') {
        let (number, rest) = leading_number(rest)?;
        return matches(after, rest, Some(number));
    }
    let mut ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.find_map(|end| matches(after, &rest[end..], last))
}

/// A number as the kernel prints it: decimal, or hexadecimal after `0x`, where it prints a negative
/// one in two's complement.
fn leading_number(text: &str) -> Option<(i64, &str)> {
    if let Some(digits) = text.strip_prefix("0x") {
        let (digits, rest) = split_digits(digits, 16);
        let number = u32::from_str_radix(digits, 16).ok()?;
        return Some((i64::from(number.cast_signed()), rest));
    }
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let sign = if unsigned.len() == text.len() { 1 } else { -1 };
    let (digits, rest) = split_digits(unsigned, 10);
    Some((sign * digits.parse::<i64>().ok()?, rest))
}

fn split_digits(text: &str, radix: u32) -> (&str, &str) {
    let end = text.find(|character: char| !character.is_digit(radix));
    text.split_at(end.unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line is right in the phases named with it and wrong in all others.
    fn check(lines: &[(&str, &[Phase])]) {
        for (line, right) in lines {
            for phase in ALWAYS {
                assert_eq!(
                    is_offence(line, *phase),
                    !right.contains(phase),
                    "{line} in {phase:?}"
                );
            }
        }
    }

    #[test]
    fn lines_of_a_healthy_controller_are_right_in_every_phase() {
        check(&[
            ("[ 2.1] nvme nvme0: creating 2 I/O queues.", ALWAYS),
            ("nvme nvme0: mapped 1/2/1 default/read/poll queues.", ALWAYS),
            (
                "nvme_fabrics: ctrl_loss_tmo < 0 will reconnect forever",
                ALWAYS,
            ),
            (
                "nvme0n2: detected capacity change from 65536 to 98304",
                ALWAYS,
            ),
            (
                "EXT4-fs (nvme0n1): mounted filesystem with ordered data mode.",
                ALWAYS,
            ),
            ("EXT4-fs (nvme0n1): unmounting filesystem.", ALWAYS),
            (
                "EXT4-fs (nvme0n1): unmounting filesystem 0f4a2b9e-5e57.",
                ALWAYS,
            ),
            ("virtio_net virtio0 eth0: renamed", ALWAYS),
            (
                "workqueue: nvme_tcp_io_work [nvme_tcp] hogged CPU for >10000us 4 times",
                ALWAYS,
            ),
        ]);
    }

    #[test]
    fn simultaneous_close_is_right_and_an_unknown_socket_state_is_not() {
        check(&[
            ("[ 9.1] nvme nvme0: queue 1 socket state 11", ALWAYS),
            ("[ 9.1] nvme nvme0: queue 0 socket state 6", ALWAYS),
            ("[ 9.1] nvme nvme0: queue 0 socket state 2", &[]),
        ]);
    }

    #[test]
    fn lost_connections_are_right_only_where_they_were_cut() {
        check(&[
            ("[ 9.1] nvme nvme0: Reconnecting in 1 seconds...", LOST),
            ("[ 9.1] nvme nvme0: resetting controller", &[Reset, Shared]),
            ("nvme nvme0: Successfully reconnected (1 attempt)", LOST),
            ("nvme nvme0: Successfully reconnected (attempt 1/-1)", LOST),
            ("nvme nvme0: Failed reconnect attempt 2/-1", LOST),
            ("nvme nvme0: failed to send request -32", CUT),
            ("nvme nvme0: failed to send request -104", LOST),
            ("nvme nvme0: failed to send request -22", &[]),
            ("nvme nvme0: failed to connect socket: -111", LOST),
            (
                "nvme_tcp: queue 3: failed to receive icresp, error -104",
                LOST,
            ),
            ("nvme_tcp: queue 3: failed to send icreq, error -32", LOST),
            (
                "nvme nvme0: Identify Descriptors failed (nsid=1, status=0xfffffffc)",
                CUT,
            ),
            (
                "nvme nvme0: Identify Descriptors failed (nsid=1, status=0x4002)",
                &[],
            ),
            (
                "block nvme0n1: no usable path - requeuing I/O",
                &[Reset, Loss, Ana, Restart],
            ),
        ]);
    }

    #[test]
    fn only_the_bring_up_and_the_admin_queue_may_time_out() {
        check(&[
            ("nvme nvme0: queue 0: timeout request 0x0 type 4", LOST),
            ("nvme nvme0: queue 2: timeout request 0x1 type 4", &[]),
            (
                "nvme nvme0: I/O tag 0 (4000) type 4 opcode 0x18 (Keep Alive) QID 0 timeout",
                LOST,
            ),
            (
                "nvme nvme0: I/O tag 0 (4000) type 4 opcode 0x7f (Connect) QID 2 timeout",
                LOST,
            ),
            (
                "nvme nvme0: I/O tag 9 (4009) type 4 opcode 0x1 (Write) QID 2 timeout",
                &[],
            ),
        ]);
    }

    #[test]
    fn refusals_are_right_only_with_their_status() {
        let denied = "nvme nvme1: Connect for subsystem nqn.a:b is not allowed, hostnqn: nqn.c";
        check(&[
            (denied, &[Refusal]),
            ("nvme nvme1: failed to connect queue: 0 ret=388", &[Refusal]),
            (
                "nvme nvme1: failed to connect queue: 0 ret=16772",
                &[Refusal],
            ),
            ("nvme nvme1: failed to connect queue: 0 ret=880", LOST),
            ("nvme nvme1: failed to connect queue: 0 ret=386", &[]),
        ]);
    }

    #[test]
    fn reservation_conflicts_are_right_only_where_one_was_made() {
        check(&[
            (
                "nvme1n1: I/O Cmd(0x1) @ LBA 0, 8 blocks, I/O Error (sct 0x0 / sc 0x83) MORE DNR ",
                &[Shared],
            ),
            (
                "critical nexus error, dev nvme1n1, sector 0 op 0x1:(WRITE) flags 0x8800",
                &[Shared],
            ),
            (
                "reservation conflict error, dev nvme1n1, sector 0 op 0x1:(WRITE)",
                &[Shared],
            ),
            (
                "nvme1n1: I/O Cmd(0x1) @ LBA 0, 8 blocks, I/O Error (sct 0x0 / sc 0x80) MORE DNR ",
                &[],
            ),
        ]);
    }

    #[test]
    fn errors_of_io_are_right_only_where_a_drive_was_pulled() {
        check(&[
            (
                "nvme0c0n1: I/O Cmd(0x1) @ LBA 8, 8 blocks, I/O Error (sct 0x0 / sc 0x6) MORE ",
                &[Pulled],
            ),
            (
                "nvme0c0n1: I/O Cmd(0x1) @ LBA 8, 8 blocks, I/O Error (sct 0x0 / sc 0x2) MORE ",
                &[],
            ),
            (
                "I/O error, dev nvme0c0n1, sector 8 op 0x1:(WRITE)",
                &[Pulled],
            ),
            ("Buffer I/O error on dev nvme0n1, logical block 0", &[]),
        ]);
    }

    #[test]
    fn kernels_own_driver_and_slow_starts_are_right_only_where_a_drive_comes_back() {
        check(&[
            ("nvme nvme1: pci function 0000:01:00.0", &[Restart]),
            (
                "nvme 0000:01:00.0: enabling device (0000 -> 0002)",
                &[Restart],
            ),
            ("nvme nvme1: 2/0/0 default/read/poll queues", &[Restart]),
            (
                "nvme_tcp: queue 0: failed to receive icresp, error -11",
                &[Restart],
            ),
        ]);
    }

    #[test]
    fn protocol_errors_are_wrong_in_every_phase() {
        let lines = [
            "nvme nvme0: queue 1: header digest error: recv 0x1 expected 0x2",
            "nvme nvme0: header digest error: recv 0x1 expected 0x2",
            "nvme nvme0: data digest error: recv 0x1 expected 0x2",
            "nvme nvme0: queue 1: data digest flag is cleared",
            "nvme nvme0: receive failed:  -22",
            "nvme nvme0: unsupported pdu type (9)",
            "nvme nvme0: pdu type 7 has unexpected header length (24)",
            "nvme nvme0: got bad cqe.command_id 0x1 on queue 1",
            "nvme nvme0: got bad r2t.command_id 0x1 on queue 1",
            "nvme nvme0: got bad c2hdata.command_id 0x1 on queue 1",
            "nvme nvme0: request 0x1 genctr mismatch (got 0x1 expected 0x2)",
            "nvme nvme0: queue 1 tag 0x1 unexpected data",
            "nvme nvme0: queue 1 tag 0x1 SUCCESS set but not last PDU",
            "nvme nvme0: queue 1 tag 0x1 short data-in: got 1 of 2",
            "nvme nvme0: req 1 r2t len 9 exceeded data len 8 (0 sent)",
            "nvme nvme0: req 1 unexpected r2t offset 9 (expected 8)",
            "nvme nvme0: Received C2HTermReq (FES = PDU Sequence Error)",
            "nvme_tcp: could not locate request for tag 0x1",
            "nvme_tcp: queue 1: bad pdu length returned 1",
            "nvme nvme0: Device not ready; aborting initialisation, CSTS=0x0",
            "nvme nvme0: Device shutdown incomplete; abort shutdown",
            "nvme nvme0: Duplicate cntlid 1 with nvme1, subsys nqn.a, rejecting",
            "nvme nvme0: identifiers changed for nsid 1",
            "nvme nvme0: duplicate IDs in subsystem for nsid 1",
            "nvme nvme0: ANATT timeout, resetting controller.",
            "nvme nvme0: Removing controller...",
            "nvme nvme0: async event result 00ff0002",
            "block nvme0n1: no available path - failing I/O",
            "WARNING: CPU: 0 PID: 1 at block/blk-mq.c",
            "INFO: task fio:99 blocked for more than 120 seconds.",
            "EXT4-fs (nvme0n1): warning: mounting fs with errors",
        ];
        check(&lines.map(|line| (line, &[] as &[Phase])));
    }

    #[test]
    fn only_what_came_after_the_last_look_counts() {
        let log = KernelLog::new("nvme nvme0: odd\nfine\n".to_owned());
        assert_eq!(log.offences(0, Phase::Quiet), ["nvme nvme0: odd"]);
        assert!(log.offences(16, Phase::Quiet).is_empty());
    }

    #[test]
    fn broken_kernel_is_told_from_one_with_errors() {
        let is_broken = |text: &str| KernelLog::new(text.to_owned()).is_broken();
        assert!(is_broken("[   61.1] kernel BUG at mm/usercopy.c:101!"));
        assert!(is_broken("[   61.1] BUG: unable to handle page fault"));
        assert!(!is_broken("[   61.1] I/O error, dev nvme0n1, sector 0"));
    }

    #[test]
    fn patterns_match_whole_messages() {
        assert_eq!(matches("a # b", "a -7 b", None), Some(Some(-7)));
        assert_eq!(matches("a * b #", "a x y b 0x10", None), Some(Some(16)));
        assert_eq!(matches("a * b", "a x b c", None), None);
        assert_eq!(matches("a #", "a x", None), None);
        assert_eq!(matches("*", "", None), Some(None));
    }
}
