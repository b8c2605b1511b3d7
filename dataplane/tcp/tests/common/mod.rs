//! A target on a reactor thread of its own, and both kinds of host against it.
//!
//! What its disks and buffers are is said by the module `engine` of each test binary: `disk` makes
//! one, `memory` is what buffers lie in, and `own_devices!` makes the tests that bring devices of
//! their own, which one engine runs for all.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "every test binary uses the part that it needs"
)]

pub(crate) mod device;
pub(crate) mod harness;
pub(crate) mod initiator;
pub(crate) mod raw;
pub(crate) mod rig;

use std::io::Write as _;
use std::time::{Duration, Instant};

use bowline_nvme::Status;
use bowline_reactor::IoBackend;

/// A test that waits this long for something has hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Calls `probe` until it gives something; it must synchronise with what it looks at, so that
/// this does not burn a core in vain.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: did not happen in time");
        std::thread::yield_now();
    }
}

/// Whether tests can run on the backend here. Where they cannot, says so; in CI that is a failure.
pub(crate) fn is_permitted(io: IoBackend) -> bool {
    match rig::Rig::try_backend(io) {
        Ok(()) => true,
        Err(error) => {
            assert!(!is_ci(), "{io:?} is needed in CI: {error}");
            // Past the capture of the test harness, so that it is counted.
            let _ = writeln!(
                std::io::stderr(),
                "skipped: {io:?} is not available here: {error}"
            );
            false
        }
    }
}

/// Whether nothing may be left out.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|ci| ci == "true")
}

/// Makes two tests of each function: one per backend.
macro_rules! on_both_backends {
    ($($name:ident),+ $(,)?) => {
        mod uring {
            $(
                #[test]
                fn $name() {
                    if crate::common::is_permitted(bowline_reactor::IoBackend::Uring) {
                        super::$name(bowline_reactor::IoBackend::Uring);
                    }
                }
            )+
        }
        mod epoll {
            $(
                #[test]
                fn $name() {
                    super::$name(bowline_reactor::IoBackend::Epoll);
                }
            )+
        }
    };
}
pub(crate) use on_both_backends;

/// Code and retry advice of a status. The More bit is left out: it only says that the error log
/// has an entry.
pub(crate) fn verdict(status: Status) -> Status {
    let code = Status::new(status.sct(), status.sc());
    if status.is_dnr() { code.dnr() } else { code }
}

/// Bytes that differ from block to block and from seed to seed, so that data in the wrong place
/// is noticed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
