//! The clock that reactors run on.

use bowline_nvme::Nanos;
use rustix::time::{ClockId, clock_gettime};

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// `CLOCK_MONOTONIC` in nanoseconds; comparable between all threads of the machine.
#[must_use]
pub fn monotonic_now() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    // The monotonic clock is never negative.
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Nanos(secs.saturating_mul(NANOS_PER_SEC).saturating_add(nanos))
}
