//! Following referrals from one discovery subsystem to the next.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use bowline_nvme::log::{Adrfam, DiscoveryEntry, Subtype, Transport};
use bowline_nvme::nqn::Nqn;

/// How far and how long referrals are followed, whatever they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferralLimits {
    /// Discovery subsystems asked, the first included.
    pub visits_max: usize,
    /// Referrals between the first and the last.
    pub depth_max: usize,
    /// Entries for subsystems kept in all.
    pub subsystems_max: usize,
}

impl Default for ReferralLimits {
    fn default() -> Self {
        Self {
            visits_max: 64,
            depth_max: 8,
            subsystems_max: 4096,
        }
    }
}

/// A subsystem at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Portal {
    /// Transport address and service.
    pub address: SocketAddr,
    /// Subsystem NQN.
    pub subnqn: Nqn,
}

impl Portal {
    /// Where an entry leads over TCP; `None` if it leads nowhere.
    #[must_use]
    pub fn of(entry: &DiscoveryEntry) -> Option<Self> {
        let ip: IpAddr = entry.address()?.parse().ok()?;
        let port: u16 = entry.service()?.parse().ok()?;
        let family = if ip.is_ipv4() {
            Adrfam::Ipv4
        } else {
            Adrfam::Ipv6
        };
        let is_tcp = entry.trtype == Transport::Tcp.wire() && entry.adrfam == family.wire();
        (is_tcp && port != 0 && !ip.is_unspecified()).then_some(())?;
        Some(Self {
            address: SocketAddr::new(ip.to_canonical(), port),
            subnqn: entry.nqn().ok()?,
        })
    }
}

/// Visits every discovery subsystem that can be reached by referrals, each once: referrals may
/// lead in circles, name each other without end, or point at nothing.
///
/// ```text
/// loop { walk.next() -> Portal; connect, read its log with DiscoveryReader; walk.take(entries) }
/// ```
#[derive(Debug)]
pub struct ReferralWalk {
    limits: ReferralLimits,
    /// Visited or waiting.
    known: HashSet<Portal>,
    waiting: VecDeque<(Portal, usize)>,
    /// Of the one that is being visited.
    depth: usize,
    subsystems: Vec<Portal>,
    listed: HashSet<Portal>,
    incomplete: bool,
}

impl ReferralWalk {
    /// A walk that begins at `first`.
    #[must_use]
    pub fn new(first: Portal, limits: ReferralLimits) -> Self {
        Self {
            limits,
            known: HashSet::from([first]),
            waiting: VecDeque::from([(first, 0)]),
            depth: 0,
            subsystems: Vec::new(),
            listed: HashSet::new(),
            incomplete: false,
        }
    }

    /// The next discovery subsystem to ask; nearer ones come first. One that does not answer is
    /// passed over by asking for the next.
    pub fn next_portal(&mut self) -> Option<Portal> {
        let (portal, depth) = self.waiting.pop_front()?;
        self.depth = depth;
        Some(portal)
    }

    /// Takes the log of the subsystem that is being visited.
    pub fn take(&mut self, entries: &[DiscoveryEntry]) {
        for entry in entries {
            let Some(portal) = Portal::of(entry) else {
                continue;
            };
            match Subtype::from_wire(entry.subtype) {
                Some(Subtype::Nvm) => self.list(portal),
                Some(Subtype::Referral) => self.refer(portal),
                // It is the one being visited, by this or another of its addresses.
                Some(Subtype::CurrentDiscovery) | None => {}
            }
        }
    }

    /// Whether a limit kept something out.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The subsystems found, each once at each of its addresses.
    #[must_use]
    pub fn into_subsystems(self) -> Vec<Portal> {
        self.subsystems
    }

    fn list(&mut self, portal: Portal) {
        if self.listed.contains(&portal) {
            return;
        }
        if self.subsystems.len() >= self.limits.subsystems_max {
            self.incomplete = true;
            return;
        }
        self.listed.insert(portal);
        self.subsystems.push(portal);
    }

    fn refer(&mut self, portal: Portal) {
        if self.known.contains(&portal) {
            return;
        }
        if self.depth >= self.limits.depth_max || self.known.len() >= self.limits.visits_max {
            self.incomplete = true;
            return;
        }
        self.known.insert(portal);
        self.waiting.push_back((portal, self.depth + 1));
    }
}

#[cfg(test)]
mod tests {
    use bowline_nvme::nqn;
    use proptest::prelude::*;

    use super::*;

    fn portal(node: u8) -> Portal {
        Portal {
            address: SocketAddr::from(([192, 0, 2, node], 8009)),
            subnqn: Nqn::new(nqn::DISCOVERY).expect("valid"),
        }
    }

    fn entry(subtype: Subtype, subnqn: &str, address: &str, port: &str) -> DiscoveryEntry {
        let family = if address.contains(':') {
            Adrfam::Ipv6
        } else {
            Adrfam::Ipv4
        };
        DiscoveryEntry {
            trtype: Transport::Tcp.wire(),
            adrfam: family.wire(),
            subtype: subtype.wire(),
            subnqn: Nqn::new(subnqn).expect("valid").encode(),
            ..DiscoveryEntry::default()
        }
        .with_address(address)
        .and_then(|entry| entry.with_service(port))
        .expect("short")
    }

    fn referral(node: u8) -> DiscoveryEntry {
        let address = format!("192.0.2.{node}");
        entry(Subtype::Referral, nqn::DISCOVERY, &address, "8009")
    }

    fn subsystem(name: &str) -> DiscoveryEntry {
        entry(Subtype::Nvm, name, "2001:db8::1", "4420")
    }

    const S: &str = "nqn.2026-11.io.bowline:s";

    #[test]
    fn referrals_in_a_circle_are_visited_once_each() {
        let mut walk = ReferralWalk::new(portal(1), ReferralLimits::default());
        let mut visited = Vec::new();
        while let Some(portal) = walk.next_portal() {
            visited.push(portal);
            let node = match portal.address.ip() {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => panic!("none was given"),
            };
            let next = node % 4 + 1;
            walk.take(&[referral(node), referral(next), referral(1), subsystem(S)]);
        }
        assert_eq!(visited, [portal(1), portal(2), portal(3), portal(4)]);
        assert!(!walk.is_incomplete());
        let found = walk.into_subsystems();
        assert_eq!(found.len(), 1);
        assert_eq!(&found[0].subnqn, S);
    }

    #[test]
    fn endless_referrals_end_at_the_limits() {
        let limits = ReferralLimits {
            visits_max: 10,
            depth_max: 3,
            subsystems_max: 2,
        };
        // Each leads to the next.
        let mut walk = ReferralWalk::new(portal(0), limits);
        let mut visits = 0;
        while walk.next_portal().is_some() {
            visits += 1;
            walk.take(&[referral(visits)]);
        }
        assert_eq!((visits, walk.is_incomplete()), (4, true));
        // One leads to all.
        let mut walk = ReferralWalk::new(portal(0), limits);
        let all: Vec<_> = (0..=255).map(referral).collect();
        let mut visits = 0;
        while walk.next_portal().is_some() {
            visits += 1;
            walk.take(&all);
        }
        assert_eq!((visits, walk.is_incomplete()), (10, true));
        let mut walk = ReferralWalk::new(portal(0), limits);
        walk.take(&[subsystem("a"), subsystem("b"), subsystem("a")]);
        assert!(!walk.is_incomplete());
        walk.take(&[subsystem("c")]);
        assert!(walk.is_incomplete());
        assert_eq!(walk.into_subsystems().len(), 2);
    }

    #[test]
    fn entries_that_lead_nowhere_are_passed_over() {
        let good = subsystem(S);
        assert!(Portal::of(&good).is_some());
        let mapped = entry(Subtype::Nvm, S, "::ffff:192.0.2.1", "4420");
        let expected = SocketAddr::from(([192, 0, 2, 1], 4420));
        assert_eq!(Portal::of(&mapped).map(|it| it.address), Some(expected));
        for bad in [
            entry(Subtype::Nvm, S, "0.0.0.0", "4420"),
            entry(Subtype::Nvm, S, "::", "4420"),
            entry(Subtype::Nvm, S, "192.0.2.1", "0"),
            entry(Subtype::Nvm, S, "192.0.2.1", "none"),
            entry(Subtype::Nvm, S, "192.0.2.1", "70000"),
            entry(Subtype::Nvm, S, "example.org", "4420"),
            entry(Subtype::Nvm, S, "", ""),
            DiscoveryEntry {
                trtype: Transport::Rdma.wire(),
                ..good
            },
            DiscoveryEntry {
                adrfam: Adrfam::Ipv4.wire(),
                ..good
            },
            DiscoveryEntry {
                subnqn: [0; 256],
                ..good
            },
            DiscoveryEntry {
                traddr: [0xFF; 256],
                ..good
            },
        ] {
            assert_eq!(Portal::of(&bad), None);
        }
    }

    proptest! {
        #[test]
        fn any_referrals_end_within_the_limits(
            logs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..40),
            visits_max in 1usize..20,
            depth_max in 0usize..6,
        ) {
            let limits = ReferralLimits { visits_max, depth_max, subsystems_max: 5 };
            let mut walk = ReferralWalk::new(portal(0), limits);
            let mut visited = HashSet::new();
            while let Some(portal) = walk.next_portal() {
                prop_assert!(visited.insert(portal));
                prop_assert!(visited.len() <= visits_max);
                let log = &logs[visited.len() % logs.len()];
                walk.take(&log.iter().map(|&node| referral(node)).collect::<Vec<_>>());
            }
        }
    }
}
