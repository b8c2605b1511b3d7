//! Was the machine ours during a slice? A neighbour that takes a tenth of a core changes orders of
//! results, not only figures, so a slice that had one is thrown away.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Slices with more foreign CPU time than this share of the cores in use are rejected.
pub(crate) const FOREIGN_MAX: f64 = 0.03;
/// `USER_HZ`, which is 100 for every program on Linux.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// What the kernel has counted of the cores in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticks<const CORES: usize> {
    /// In which each of them did nothing.
    idle: [u64; CORES],
    /// That the hypervisor kept from them.
    stolen: u64,
}

impl<const CORES: usize> Ticks<CORES> {
    /// Of these cores, now.
    pub(crate) fn now(cores: [usize; CORES]) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text, cores)
    }

    pub(crate) fn parse(text: &str, cores: [usize; CORES]) -> Result<Self> {
        let (mut idle, mut stolen) = ([0; CORES], 0);
        for (sum, core) in idle.iter_mut().zip(cores) {
            let label = format!("cpu{core}");
            let line = text
                .lines()
                .find(|line| line.split_whitespace().next() == Some(&label));
            let line = line.with_context(|| format!("/proc/stat has no {label}"))?;
            let count = |position| -> Result<u64> {
                let field = line.split_whitespace().nth(position).unwrap_or_default();
                let number = field.parse();
                number.with_context(|| format!("/proc/stat, {label}: `{field}` is no number"))
            };
            // name user nice system idle iowait irq softirq steal
            *sum = count(4)? + count(5)?;
            stolen += count(8)?;
        }
        Ok(Self { idle, stolen })
    }

    fn stolen_since(self, earlier: Self) -> Duration {
        whole(self.stolen.saturating_sub(earlier.stolen))
    }

    /// The most that the cores can have been idle since then. The kernel counts idle time exactly
    /// but tells it in whole ticks: a core that was idle at all may have been so for nearly a tick
    /// longer than that. One that shows no tick was busy.
    fn most_since(self, earlier: Self) -> Duration {
        let both = self.idle.into_iter().zip(earlier.idle);
        both.map(|(now, then)| match now.saturating_sub(then) {
            0 => Duration::ZERO,
            ticks => whole(ticks + 1),
        })
        .sum()
    }
}

fn whole(ticks: u64) -> Duration {
    TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
}

/// The share of the cores' time that went to others for sure: what was neither idle nor ours. Busy
/// is what is not idle, as the kernel counts busy time by sampling; that includes what the
/// hypervisor stole.
///
/// A core that goes to sleep and wakes up spends time on that which is neither idle nor anybody's:
/// a tenth of it where that happens 30,000 times a second. So where a core was idle at all it is
/// not more than what the others' own clocks tell of the whole slice, and what was stolen.
pub(crate) fn foreign_share<const CORES: usize>(
    before: Ticks<CORES>,
    after: Ticks<CORES>,
    elapsed: Duration,
    own: Duration,
    others: Duration,
) -> f64 {
    let capacity = elapsed.as_secs_f64() * CORES as f64;
    if capacity <= 0.0 {
        return 1.0;
    }
    let idle = after.most_since(before);
    let unexplained = capacity - idle.as_secs_f64() - own.as_secs_f64();
    let foreign = if idle.is_zero() {
        unexplained
    } else {
        let told = others + after.stolen_since(before);
        unexplained.min(told.as_secs_f64())
    };
    (foreign / capacity).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 100 7 1 1 5 0 0\n\
        cpu1 1 2 3 200 8 1 1 6 0 0\ncpu11 1 1 1 1 1 1 1 1 0 0\nintr 1 2 3\n";
    const SECOND: Duration = Duration::from_secs(1);
    const BUSY: Duration = Duration::MAX;

    const fn ticks(idle: [u64; 2]) -> Ticks<2> {
        Ticks { idle, stolen: 3 }
    }

    #[test]
    fn idle_and_waiting_ticks_of_each_core_are_summed() {
        let one = Ticks::parse(STAT, [0]).unwrap();
        assert_eq!((one.idle, one.stolen), ([107], 5));
        let both = Ticks::parse(STAT, [0, 1]).unwrap();
        assert_eq!((both.idle, both.stolen), ([107, 208], 11));
        assert!(Ticks::parse(STAT, [2]).is_err());
    }

    #[test]
    fn what_is_neither_idle_nor_own_is_foreign() {
        let before = ticks([7, 9]);
        let share = |idle: u64, own| foreign_share(before, ticks([7 + idle, 9]), SECOND, own, BUSY);
        // Two cores for a second: one and a half ours, the other half of one idle but for a tenth.
        let own = Duration::from_millis(1500);
        assert!((share(39, own) - 0.05).abs() < 1e-9);
        assert!(share(49, own).abs() < 1e-9);
        // Clocks that disagree by a little are no neighbour.
        assert!(share(55, own).abs() < 1e-9);
    }

    #[test]
    fn part_of_a_tick_of_idle_time_is_no_neighbour() {
        let before = ticks([0, 0]);
        let half = Duration::from_millis(1500);
        // 0.5 s of idle time is told as 49 ticks when it began within one.
        assert!(foreign_share(before, ticks([49, 0]), SECOND, half, BUSY).abs() < 1e-9);
        // A core that was never idle has no such doubt, whatever others tell.
        let most = Duration::from_millis(1980);
        let share = foreign_share(before, before, SECOND, most, Duration::ZERO);
        assert!((share - 0.01).abs() < 1e-9);
    }

    /// Measured here: bare sockets that sleep between messages, 85 ms on two cores that nobody else
    /// used, were taken for busy: 3,000 times asleep took 11 ms and more that no process has.
    #[test]
    fn falling_asleep_and_waking_up_is_no_neighbour() {
        let (elapsed, own) = (
            Duration::from_micros(84_750),
            Duration::from_micros(118_500),
        );
        let after = ticks([2, 0]);
        let share = |others, after| foreign_share(ticks([0, 0]), after, elapsed, own, others);
        assert!(share(BUSY, after) > FOREIGN_MAX);
        assert!(share(Duration::from_millis(1), after) < FOREIGN_MAX);
        // Somebody was there: what they used counts, and what the hypervisor took.
        let neighbour = Duration::from_millis(10);
        assert!(share(neighbour, after) > FOREIGN_MAX);
        let stolen = Ticks { stolen: 4, ..after };
        assert!(share(Duration::ZERO, stolen) > FOREIGN_MAX);
        // But no more than there is.
        assert!((share(BUSY, after) - 0.123).abs() < 1e-3);
    }

    #[test]
    fn own_work_is_not_foreign_on_this_machine() {
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        assert!(Ticks::parse(&text, [0]).is_ok());
    }
}
