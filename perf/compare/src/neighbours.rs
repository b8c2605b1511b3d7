//! What other processes used meanwhile, by their own clocks.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

use crate::gate::TICK;
use crate::process::stats;

/// The parent of the kernel's own threads.
const KERNEL_THREADS: i32 = 2;

/// Which processes are not neighbours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ours {
    /// This one, and what it has started.
    pub(crate) starter: u32,
    /// The kernel's threads, when they work for us.
    pub(crate) kernel: bool,
}

/// CPU time of every other process that there was at one moment, by its number.
#[derive(Debug)]
pub(crate) struct Neighbours(HashMap<i32, Duration>);

impl Neighbours {
    pub(crate) fn now(ours: Ours) -> Result<Self> {
        let starter = i32::try_from(ours.starter).unwrap_or(0);
        let mut times = HashMap::new();
        for (pid, text) in stats()? {
            let Some(stat) = Stat::parse(&text) else {
                continue;
            };
            let is_ours = pid == starter
                || stat.parent == starter
                || (ours.kernel && stat.parent == KERNEL_THREADS);
            if !is_ours {
                times.insert(pid, cpu_time(pid) + stat.ended_children);
            }
        }
        Ok(Self(times))
    }

    /// What those that are there now have used since then. What a process used that has ended since
    /// is in its parent's account, with all of its life: rather too much than too little.
    pub(crate) fn used_since(&self, earlier: &Self) -> Duration {
        let used = self.0.iter().map(|(pid, now)| {
            let then = earlier.0.get(pid).copied().unwrap_or_default();
            now.saturating_sub(then)
        });
        used.sum()
    }
}

/// Of all threads of a process; none of one that has ended.
fn cpu_time(pid: i32) -> Duration {
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).and_then(ClockId::now);
    clock.map_or(Duration::ZERO, Duration::from)
}

/// What `/proc/PID/stat` tells.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// CPU time of the children that have ended and were waited for.
    ended_children: Duration,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name stands in parentheses and may hold anything; after it: state, parent, and what
        // the manual numbers from 5 on.
        let after_name = text.rsplit(')').next()?;
        let field = |number: usize| after_name.split_whitespace().nth(number - 3);
        let ticks = |number| field(number)?.parse::<u32>().ok();
        Some(Self {
            parent: field(4)?.parse().ok()?,
            ended_children: TICK.saturating_mul(ticks(16)?.saturating_add(ticks(17)?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    const OTHERS: Ours = Ours {
        starter: 0,
        kernel: false,
    };

    fn burn(time: Duration) {
        let begun = cpu_time(0);
        let limit = Instant::now() + Duration::from_secs(60);
        while cpu_time(0).saturating_sub(begun) < time && Instant::now() < limit {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn work_of_another_process_is_seen_and_own_work_is_not() {
        let work = Duration::from_millis(50);
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = Neighbours::now(OTHERS).unwrap();
        burn(work);
        let after = Neighbours::now(OTHERS).unwrap();
        assert!(after.used_since(&before) >= work);
        let ours = Ours {
            starter: std::process::id(),
            ..OTHERS
        };
        assert!(before.0.contains_key(&pid));
        assert!(!Neighbours::now(ours).unwrap().0.contains_key(&pid));
    }

    #[test]
    fn what_this_process_started_is_its_own() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let ours = Ours {
            starter: std::process::id(),
            ..OTHERS
        };
        let found = Neighbours::now(ours).map(|all| all.0.contains_key(&pid));
        let seen = Neighbours::now(OTHERS).map(|all| all.0.contains_key(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found.unwrap(), seen.unwrap()), (false, true));
    }

    #[test]
    fn children_that_have_ended_are_in_their_parents_account() {
        let text = "77 (a) b) S 12 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99";
        let wanted = Stat {
            parent: 12,
            ended_children: Duration::from_millis(150),
        };
        assert_eq!(Stat::parse(text), Some(wanted));
        assert_eq!(Stat::parse(""), None);
        assert_eq!(Stat::parse("77 (a) S 1"), None);
    }

    #[test]
    fn newcomer_counts_with_all_it_used_and_who_is_gone_with_nothing() {
        let times = |pairs: &[(i32, u64)]| {
            let pairs = pairs.iter();
            Neighbours(
                pairs
                    .map(|(pid, ms)| (*pid, Duration::from_millis(*ms)))
                    .collect(),
            )
        };
        let (before, after) = (times(&[(1, 10), (2, 70)]), times(&[(1, 13), (3, 4)]));
        assert_eq!(after.used_since(&before), Duration::from_millis(7));
    }
}
