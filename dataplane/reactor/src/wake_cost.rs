//! What waking a sleeping thread costs on this machine.
//!
//! It decides how long spinning is worthwhile, and differs by an order of magnitude between bare
//! metal and a crowded virtual machine. A timer wakes the thread as a network card does: by an
//! interrupt on an idle processor. How much too late it returns is the cost.

use std::sync::OnceLock;

use bowline_nvme::Nanos;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::clock::monotonic_now;

/// Where it cannot be measured: between what bare metal and virtual machines take.
pub(crate) const WAKE_COST_USUAL: Nanos = Nanos::from_micros(15);

/// What is measured beyond this is a disturbed measurement.
pub(crate) const WAKE_COST_MIN: Nanos = Nanos::from_micros(3);
pub(crate) const WAKE_COST_MAX: Nanos = Nanos::from_micros(40);

/// Wake-ups that are measured.
const ROUNDS: usize = 21;

/// Fewer say nothing.
const ROUNDS_MIN: usize = 5;

/// Each sleep: long enough to be idle, and in all short of the limit.
const SLEEP: Nanos = Nanos::from_micros(50);

/// No more rounds begin after this time.
const LIMIT: Nanos = Nanos::from_micros(2500);

/// The cost, measured once per process.
pub(crate) fn wake_cost() -> Nanos {
    static COST: OnceLock<Nanos> = OnceLock::new();
    *COST.get_or_init(|| {
        let cost = judge(&mut measure());
        tracing::debug!(nanos = cost.0, "the cost of waking a thread");
        cost
    })
}

/// How late each wake-up was.
fn measure() -> Vec<Nanos> {
    let mut late = Vec::with_capacity(ROUNDS);
    // Timers of this kind have no slack. Without one there is no measurement.
    let Ok(timer) = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC) else {
        return late;
    };
    let end = monotonic_now().after(LIMIT);
    for _ in 0..ROUNDS {
        let now = monotonic_now();
        if now >= end {
            break;
        }
        let due = now.after(SLEEP);
        let slept = timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &once_at(due))
            .and_then(|_| rustix::io::read(&timer, &mut [0; 8]));
        if slept.is_ok() {
            late.push(monotonic_now().saturating_sub(due));
        }
    }
    late
}

fn once_at(due: Nanos) -> Itimerspec {
    const NANOS_PER_SEC: u64 = 1_000_000_000;
    Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec {
            tv_sec: i64::try_from(due.0 / NANOS_PER_SEC).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(due.0 % NANOS_PER_SEC).unwrap_or(0),
        },
    }
}

/// The lower quartile, within reason: whatever else the machine does only adds to the cost.
fn judge(late: &mut [Nanos]) -> Nanos {
    if late.len() < ROUNDS_MIN {
        return WAKE_COST_USUAL;
    }
    let at = late.len() / 4;
    let (_, quartile, _) = late.select_nth_unstable(at);
    (*quartile).clamp(WAKE_COST_MIN, WAKE_COST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(micros: &[u64]) -> Nanos {
        let mut late: Vec<_> = micros.iter().copied().map(Nanos::from_micros).collect();
        judge(&mut late)
    }

    #[test]
    fn cost_is_the_lower_quartile_within_limits() {
        assert_eq!(judged(&[9, 900, 8, 7, 1]), Nanos::from_micros(7));
        assert_eq!(judged(&[0; 21]), WAKE_COST_MIN);
        assert_eq!(judged(&[5000; 21]), WAKE_COST_MAX);
    }

    #[test]
    fn too_few_measurements_count_for_nothing() {
        assert_eq!(judged(&[]), WAKE_COST_USUAL);
        assert_eq!(judged(&[30; ROUNDS_MIN - 1]), WAKE_COST_USUAL);
    }

    #[test]
    fn measured_cost_is_within_limits_and_stays() {
        let cost = wake_cost();
        eprintln!("waking a thread: {} ns", cost.0);
        assert!((WAKE_COST_MIN..=WAKE_COST_MAX).contains(&cost));
        assert_eq!(wake_cost(), cost);
    }
}
