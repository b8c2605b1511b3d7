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
pub(crate) struct IdleTicks(u64);

impl IdleTicks {
    /// Of these cores, now.
    pub(crate) fn now(cores: &[usize]) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text, cores)
    }

    pub(crate) fn parse(text: &str, cores: &[usize]) -> Result<Self> {
        let mut ticks = 0;
        for core in cores {
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
                ticks += count;
            }
        }
        Ok(Self(ticks))
    }

    fn since(self, earlier: Self) -> Duration {
        let ticks = self.0.saturating_sub(earlier.0);
        TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }
}

/// The share of the cores' time that went to others: what was neither idle nor ours. The kernel
/// counts idle time exactly but busy time by sampling, so busy is what is not idle; that includes
/// what the hypervisor stole.
pub(crate) fn foreign_share(
    before: IdleTicks,
    after: IdleTicks,
    elapsed: Duration,
    cores: usize,
    own: Duration,
) -> f64 {
    let capacity = elapsed.as_secs_f64() * cores as f64;
    if capacity <= 0.0 {
        return 1.0;
    }
    let busy = capacity - after.since(before).as_secs_f64();
    ((busy - own.as_secs_f64()) / capacity).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 100 7 1 1 5 0 0\n\
        cpu1 1 2 3 200 8 1 1 5 0 0\ncpu11 1 1 1 1 1 1 1 1 0 0\nintr 1 2 3\n";

    #[test]
    fn idle_and_waiting_ticks_of_the_cores_are_summed() {
        assert_eq!(IdleTicks::parse(STAT, &[0]).unwrap(), IdleTicks(107));
        assert_eq!(IdleTicks::parse(STAT, &[0, 1]).unwrap(), IdleTicks(315));
        assert!(IdleTicks::parse(STAT, &[2]).is_err());
    }

    #[test]
    fn what_is_neither_idle_nor_own_is_foreign() {
        let second = Duration::from_secs(1);
        let share = |idle, own| foreign_share(IdleTicks(0), IdleTicks(idle), second, 2, own);
        // Two cores for a second: one ours, half idle, so a quarter of the two went elsewhere.
        assert!((share(50, second) - 0.25).abs() < 1e-9);
        assert!(share(100, second).abs() < 1e-9);
        // Clocks that disagree by a little are no neighbour.
        assert!(share(110, second).abs() < 1e-9);
    }

    #[test]
    fn own_work_is_not_foreign_on_this_machine() {
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        assert!(IdleTicks::parse(&text, &[0]).is_ok());
    }
}
