//! Was the machine ours during a slice? A neighbour that takes a tenth of a core changes orders of
//! results, not only figures, so a slice that had one is thrown away.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Slices with more foreign CPU time than this share of the cores in use are rejected.
pub(crate) const FOREIGN_MAX: f64 = 0.03;
/// `USER_HZ`, which is 100 for every program on Linux.
const TICK: Duration = Duration::from_millis(10);

/// Ticks in which each of the cores in use did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdleTicks<const CORES: usize>([u64; CORES]);

impl<const CORES: usize> IdleTicks<CORES> {
    /// Of these cores, now.
    pub(crate) fn now(cores: [usize; CORES]) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text, cores)
    }

    pub(crate) fn parse(text: &str, cores: [usize; CORES]) -> Result<Self> {
        let mut ticks = [0; CORES];
        for (sum, core) in ticks.iter_mut().zip(cores) {
            let label = format!("cpu{core}");
            let line = text
                .lines()
                .find(|line| line.split_whitespace().next() == Some(&label));
            let line = line.with_context(|| format!("/proc/stat has no {label}"))?;
            // name user nice system idle iowait irq softirq steal
            for position in [4, 5] {
                let field = line.split_whitespace().nth(position).unwrap_or_default();
                let count: u64 = field
                    .parse()
                    .with_context(|| format!("/proc/stat, {label}: `{field}` is no number"))?;
                *sum += count;
            }
        }
        Ok(Self(ticks))
    }

    /// The most that the cores can have been idle since then. The kernel counts idle time exactly
    /// but tells it in whole ticks: a core that was idle at all may have been so for nearly a tick
    /// longer than that. One that shows no tick was busy.
    fn most_since(self, earlier: Self) -> Duration {
        let both = self.0.into_iter().zip(earlier.0);
        both.map(|(now, then)| match now.saturating_sub(then) {
            0 => Duration::ZERO,
            ticks => TICK.saturating_mul(u32::try_from(ticks + 1).unwrap_or(u32::MAX)),
        })
        .sum()
    }
}

/// The share of the cores' time that went to others for sure: what was neither idle nor ours. Busy
/// is what is not idle, as the kernel counts busy time by sampling; that includes what the
/// hypervisor stole.
pub(crate) fn foreign_share<const CORES: usize>(
    before: IdleTicks<CORES>,
    after: IdleTicks<CORES>,
    elapsed: Duration,
    own: Duration,
) -> f64 {
    let capacity = elapsed.as_secs_f64() * CORES as f64;
    if capacity <= 0.0 {
        return 1.0;
    }
    let busy = capacity - after.most_since(before).as_secs_f64();
    ((busy - own.as_secs_f64()) / capacity).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 100 7 1 1 5 0 0\n\
        cpu1 1 2 3 200 8 1 1 5 0 0\ncpu11 1 1 1 1 1 1 1 1 0 0\nintr 1 2 3\n";
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn idle_and_waiting_ticks_of_each_core_are_summed() {
        assert_eq!(IdleTicks::parse(STAT, [0]).unwrap(), IdleTicks([107]));
        let both = IdleTicks::parse(STAT, [0, 1]).unwrap();
        assert_eq!(both, IdleTicks([107, 208]));
        assert!(IdleTicks::parse(STAT, [2]).is_err());
    }

    #[test]
    fn what_is_neither_idle_nor_own_is_foreign() {
        let before = IdleTicks([7, 9]);
        let share = |idle: u64, own| foreign_share(before, IdleTicks([7 + idle, 9]), SECOND, own);
        // Two cores for a second: one and a half ours, the other half of one idle but for a tenth.
        let own = Duration::from_millis(1500);
        assert!((share(39, own) - 0.05).abs() < 1e-9);
        assert!(share(49, own).abs() < 1e-9);
        // Clocks that disagree by a little are no neighbour.
        assert!(share(55, own).abs() < 1e-9);
    }

    #[test]
    fn part_of_a_tick_of_idle_time_is_no_neighbour() {
        let before = IdleTicks([0, 0]);
        let half = Duration::from_millis(1500);
        // 0.5 s of idle time is told as 49 ticks when it began within one.
        assert!(foreign_share(before, IdleTicks([49, 0]), SECOND, half).abs() < 1e-9);
        // A core that was never idle has no such doubt.
        let most = Duration::from_millis(1980);
        let share = foreign_share(before, before, SECOND, most);
        assert!((share - 0.01).abs() < 1e-9);
    }

    #[test]
    fn own_work_is_not_foreign_on_this_machine() {
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        assert!(IdleTicks::parse(&text, [0]).is_ok());
    }
}
