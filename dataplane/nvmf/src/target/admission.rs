//! How many connections one address, and one host, may have: counted, so that refusing costs the
//! same however many there are.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;

use bowline_nvme::nqn::Nqn;

/// Stands for a host's name. Should two hosts ever share one, they share a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct HostKey(u64);

#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Connections that have not become a queue, by address.
    unassociated: HashMap<IpAddr, u32>,
    /// Queues, by host.
    queues: HashMap<HostKey, u32>,
    hasher: RandomState,
}

impl Admission {
    pub(super) fn host(&self, hostnqn: &Nqn) -> HostKey {
        HostKey(self.hasher.hash_one(hostnqn))
    }

    /// Connections of an address that are not a queue.
    pub(super) fn unassociated(&self, address: IpAddr) -> u32 {
        self.unassociated.get(&address).copied().unwrap_or(0)
    }

    /// Queues of a host, over all its controllers.
    pub(super) fn queues(&self, host: HostKey) -> u32 {
        self.queues.get(&host).copied().unwrap_or(0)
    }

    pub(super) fn opened(&mut self, address: IpAddr) {
        *self.unassociated.entry(address).or_default() += 1;
    }

    /// The connection has become a queue of the host.
    pub(super) fn associated(&mut self, address: IpAddr, host: HostKey) {
        leave(&mut self.unassociated, address);
        *self.queues.entry(host).or_default() += 1;
    }

    /// The connection is gone; `host` if it was a queue.
    pub(super) fn closed(&mut self, address: IpAddr, host: Option<HostKey>) {
        match host {
            Some(host) => leave(&mut self.queues, host),
            None => leave(&mut self.unassociated, address),
        }
    }
}

/// What falls to nothing is forgotten: addresses and names are the peer's choice.
fn leave<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn what_has_gone_leaves_no_trace() {
        let mut admission = Admission::default();
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let host = admission.host(&Nqn::new("nqn.2026-11.io.bowline:a").expect("a name"));
        for _ in 0..3 {
            admission.opened(address);
        }
        admission.associated(address, host);
        assert_eq!(
            (admission.unassociated(address), admission.queues(host)),
            (2, 1)
        );
        admission.closed(address, None);
        admission.closed(address, None);
        admission.closed(address, Some(host));
        assert!(admission.unassociated.is_empty() && admission.queues.is_empty());
    }
}
