//! A subsystem: its namespaces, its controllers, who may connect, and which controller id is next.

use bowline_nvme::Nanos;

use super::ana::Ana;
use super::config::SubsystemConfig;
use super::health::SubsystemHealth;
use super::namespace::Namespaces;
use super::table::Key;

#[derive(Debug)]
pub(super) struct Subsystem {
    pub(super) config: SubsystemConfig,
    pub(super) namespaces: Namespaces,
    pub(super) ana: Option<Ana>,
    /// Controllers not yet gone, those that only drain included.
    pub(super) controllers: Vec<Key>,
    pub(super) cntlids: ControllerIds,
    pub(super) health: SubsystemHealth,
    /// It was, when that was looked at last.
    pub(super) is_spare_low: bool,
    /// No longer there; kept until its last controller has drained.
    pub(super) removed: bool,
}

/// Gives out controller ids round-robin, so that none is used again soon.
#[derive(Debug)]
pub(super) struct ControllerIds {
    low: u16,
    high: u16,
    next: u16,
}

impl ControllerIds {
    /// `random` decides where ids start, so that a restart does not repeat the last ones.
    pub(super) fn new((low, high): (u16, u16), random: u64) -> Self {
        let count = u64::from(high.saturating_sub(low)) + 1;
        let offset = u16::try_from(random % count).unwrap_or(0);
        Self {
            low,
            high,
            next: low.saturating_add(offset),
        }
    }

    /// The next id that `in_use` does not know.
    pub(super) fn allocate(&mut self, in_use: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in self.low..=self.high {
            let cntlid = self.next;
            self.next = if cntlid == self.high {
                self.low
            } else {
                cntlid + 1
            };
            if !in_use(cntlid) {
                return Some(cntlid);
            }
        }
        None
    }
}

impl Subsystem {
    pub(super) fn new(now: Nanos, config: SubsystemConfig, random: u64) -> Self {
        Self {
            namespaces: Namespaces::new(config.namespaces_max),
            ana: config.ana.map(Ana::new),
            cntlids: ControllerIds::new(config.cntlids, random),
            health: SubsystemHealth::new(now, config.health),
            config,
            controllers: Vec::new(),
            is_spare_low: false,
            removed: false,
        }
    }

    pub(super) fn allows(&self, hostnqn: &str, listener: u16) -> bool {
        let listener_ok = self
            .config
            .listeners
            .as_ref()
            .is_none_or(|listeners| listeners.contains(&listener));
        listener_ok && self.config.hosts.allows(hostnqn)
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Hosts;
    use super::*;

    #[test]
    fn controller_ids_go_round_and_skip_those_in_use() {
        let mut ids = ControllerIds::new((5, 7), 1);
        assert_eq!(ids.allocate(|id| id == 7), Some(6));
        assert_eq!(ids.allocate(|id| id == 7), Some(5));
        assert_eq!(ids.allocate(|id| id == 7), Some(6));
        assert_eq!(ids.allocate(|_| true), None);
        let mut all = ControllerIds::new((1, u16::MAX), u64::MAX);
        assert!(all.allocate(|_| false).is_some());
    }

    #[test]
    fn nobody_is_allowed_by_default() {
        let config = SubsystemConfig::new("nqn.2026-11.io.bowline:a", "S1");
        let mut subsystem = Subsystem::new(Nanos::ZERO, config, 0);
        assert!(!subsystem.allows("nqn.2014-08.org.nvmexpress:uuid:1", 0));
        subsystem.config.hosts = Hosts::Any;
        assert!(subsystem.allows("nqn.2014-08.org.nvmexpress:uuid:1", 0));
        subsystem.config.listeners = Some(vec![3]);
        assert!(!subsystem.allows("nqn.2014-08.org.nvmexpress:uuid:1", 0));
    }
}
