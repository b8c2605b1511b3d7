//! What the discovery controllers of a process tell: records, who sees them, and when that changed.
//!
//! A table is made once for each version and shared by all reactors, so what every host sees is
//! worked out here and not with each command: finding a record and a host's generation counter
//! takes no longer with ten thousand records than with one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::config::Hosts;

/// Host NQNs that are remembered though no record names them any more.
const NAMES_MAX: usize = 4096;

/// One discovery log entry and who may see it. [FABRICS-1.1 §5.3]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryRecord {
    /// What the entry names.
    pub kind: DiscoveryKind,
    /// Subsystem NQN. For [`DiscoveryKind::Current`] the target says its own, whatever is here.
    pub subnqn: String,
    /// Where; an unspecified address stands for the one the asking host reached us by, and is not
    /// told to a host that came by the other address family.
    pub address: SocketAddr,
    /// NVMe port id.
    pub port_id: u16,
    /// Hosts that see it.
    pub hosts: Hosts,
}

/// Subsystem type of a discovery log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiscoveryKind {
    /// A referral to another discovery subsystem.
    Referral {
        /// Whether it is known to take persistent connections.
        persistent: bool,
    },
    /// A subsystem with namespaces.
    Nvm,
    /// The discovery subsystem itself.
    Current,
}

/// What the discovery controller tells, identical on every reactor. [BASE-2.0 §5.16.1.23]
///
/// Each version is made from the one before: the generation counter of a host moves exactly when
/// what it sees does.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryTable {
    version: u64,
    entries: Vec<DiscoveryRecord>,
    /// What hosts see whom no record has ever named.
    everyone: View,
    /// What the others see besides.
    named: BTreeMap<String, View>,
}

#[derive(Clone, Debug, Default)]
struct View {
    v4: Listed,
    v6: Listed,
}

/// Records for hosts that came by one address family.
#[derive(Clone, Debug, Default)]
struct Listed {
    /// The version in which something last changed for this host.
    generation: u64,
    /// Positions in `entries`, ascending.
    at: Vec<usize>,
    /// One of them names this discovery subsystem by an address of its own.
    named: bool,
    /// One of them has an address that depends on how the host came.
    wildcard: bool,
}

impl DiscoveryTable {
    /// The first version. Each record is to differ from the others in more than its hosts.
    #[must_use]
    pub fn new(entries: Vec<DiscoveryRecord>) -> Self {
        Self::default().next(entries)
    }

    /// The version after this one.
    #[must_use]
    pub fn next(&self, entries: Vec<DiscoveryRecord>) -> Self {
        let version = self.version.wrapping_add(1);
        let (names, forgotten) = self.names(&entries);
        let views = names.into_iter().map(|name| (name, View::default()));
        let mut next = Self {
            version,
            named: views.collect(),
            ..Self::default()
        };
        next.list(&entries);
        next.entries = entries;
        next.date(self, forgotten);
        next
    }

    /// Rises with every version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The records it was made of.
    #[must_use]
    pub fn entries(&self) -> &[DiscoveryRecord] {
        &self.entries
    }

    /// Generation Counter of the log that this host sees.
    pub(in super::super) fn generation(&self, hostnqn: &str, local: IpAddr) -> u64 {
        let view = self.named.get(hostnqn).unwrap_or(&self.everyone);
        view.listed(local).generation
    }

    /// The log as one host sees it that reached us by `local`.
    pub(super) fn seen_by(&self, hostnqn: &str, local: IpAddr) -> Seen<'_> {
        let own = self.named.get(hostnqn).map(|view| view.listed(local));
        Seen {
            table: self,
            common: self.everyone.listed(local),
            own,
        }
    }

    /// Every host that a record names or has named. Beyond the limit the others are forgotten.
    fn names(&self, entries: &[DiscoveryRecord]) -> (BTreeSet<String>, bool) {
        let mut names = BTreeSet::new();
        for record in entries {
            if let Hosts::Only(hosts) = &record.hosts {
                names.extend(hosts.iter().cloned());
            }
        }
        let forgotten = names.len().max(self.named.len()) > NAMES_MAX;
        if !forgotten {
            names.extend(self.named.keys().cloned());
        }
        (names, forgotten)
    }

    /// Works out who sees what.
    fn list(&mut self, entries: &[DiscoveryRecord]) {
        let twins = wildcards_of_v4(entries);
        for (at, record) in entries.iter().enumerate() {
            let has_twin = twins.get(&twin_key(record)) == Some(&&record.hosts);
            match &record.hosts {
                Hosts::Any => self.everyone.insert(at, record, has_twin),
                Hosts::Only(hosts) => {
                    for host in hosts.iter().collect::<BTreeSet<_>>() {
                        if let Some(view) = self.named.get_mut(host) {
                            view.insert(at, record, has_twin);
                        }
                    }
                }
            }
        }
    }

    /// Gives every view its generation: the present version if it differs from the `old` one.
    /// The generation of hosts that were forgotten moves without need.
    fn date(&mut self, old: &Self, forgotten: bool) {
        let changes = Changes::between(&old.entries, &self.entries);
        let generation = |hostnqn: &str, local: IpAddr| {
            let same = !changes.may_concern(hostnqn)
                || old
                    .seen_by(hostnqn, local)
                    .is_same(&self.seen_by(hostnqn, local));
            if same {
                old.generation(hostnqn, local)
            } else {
                self.version
            }
        };
        let dates: Vec<(u64, u64)> = self
            .named
            .keys()
            .map(|name| (generation(name, V4), generation(name, V6)))
            .collect();
        // No host is called that.
        let everyone = if forgotten {
            (self.version, self.version)
        } else {
            (generation("", V4), generation("", V6))
        };
        self.everyone.date(everyone);
        for (view, date) in self.named.values_mut().zip(dates) {
            view.date(date);
        }
    }
}

/// Any address of each family.
const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

impl View {
    fn listed(&self, local: IpAddr) -> &Listed {
        match local.to_canonical() {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }

    /// A wildcard of IPv6 serves IPv4 as well, unless IPv4 has one of its own.
    fn insert(&mut self, at: usize, record: &DiscoveryRecord, has_twin: bool) {
        let ip = record.address.ip();
        if ip != V6 || !has_twin {
            self.v4.insert(at, record);
        }
        if ip != V4 {
            self.v6.insert(at, record);
        }
    }

    fn date(&mut self, (v4, v6): (u64, u64)) {
        self.v4.generation = v4;
        self.v6.generation = v6;
    }
}

impl Listed {
    fn insert(&mut self, at: usize, record: &DiscoveryRecord) {
        self.at.push(at);
        let is_wildcard = record.address.ip().is_unspecified();
        self.named |= record.kind == DiscoveryKind::Current && !is_wildcard;
        self.wildcard |= is_wildcard;
    }
}

/// One host's view of a table.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    table: &'a DiscoveryTable,
    common: &'a Listed,
    own: Option<&'a Listed>,
}

impl<'a> Seen<'a> {
    pub(super) fn count(&self) -> usize {
        self.common.at.len() + self.own.map_or(0, |own| own.at.len())
    }

    /// The records from the `first` on: those for everybody, then those for this host.
    pub(super) fn from(&self, first: usize) -> impl Iterator<Item = &'a DiscoveryRecord> + use<'a> {
        let table = self.table;
        let common = &self.common.at;
        let own = self.own.map_or(&[][..], |own| &own.at);
        let (common, own) = match common.get(first..) {
            Some(rest) => (rest, own),
            None => (&[][..], own.get(first - common.len()..).unwrap_or_default()),
        };
        common
            .iter()
            .chain(own)
            .filter_map(|&at| table.entries.get(at))
    }

    fn is_same(&self, other: &Seen<'_>) -> bool {
        self.from(0).map(content).eq(other.from(0).map(content))
    }

    /// Whether all entries for this discovery subsystem lead to the information that they are in.
    /// Where there are wildcards, those lead elsewhere that have another address than the one by
    /// which the host came.
    pub(super) fn is_duplicated(&self) -> bool {
        let any = |has: fn(&Listed) -> bool| has(self.common) || self.own.is_some_and(has);
        !(any(|listed| listed.wildcard) && any(|listed| listed.named))
    }
}

/// What an entry says; who else may see it is no host's business.
type Content<'a> = (DiscoveryKind, &'a str, SocketAddr, u16);

fn content(record: &DiscoveryRecord) -> Content<'_> {
    (record.kind, &record.subnqn, record.address, record.port_id)
}

/// What two wildcards of both families have in common that stand for one listener.
fn twin_key(record: &DiscoveryRecord) -> (DiscoveryKind, &str, u16) {
    (record.kind, &record.subnqn, record.address.port())
}

/// The IPv4 wildcards and who sees them.
fn wildcards_of_v4(entries: &[DiscoveryRecord]) -> HashMap<(DiscoveryKind, &str, u16), &Hosts> {
    entries
        .iter()
        .filter(|record| record.address.ip() == V4)
        .map(|record| (twin_key(record), &record.hosts))
        .collect()
}

/// The difference of two versions, by record: a quick way to see whom it cannot concern.
struct Changes<'a> {
    /// Who saw a record before, and who does now.
    hosts: Vec<(&'a Hosts, &'a Hosts)>,
    /// What stayed is in another order.
    reordered: bool,
}

static NOBODY: Hosts = Hosts::Only(Vec::new());

impl<'a> Changes<'a> {
    fn between(old: &'a [DiscoveryRecord], new: &'a [DiscoveryRecord]) -> Self {
        let before: HashMap<Content<'_>, usize> = old
            .iter()
            .enumerate()
            .map(|(at, record)| (content(record), at))
            .collect();
        let mut stayed = vec![false; old.len()];
        let mut hosts = Vec::new();
        let (mut reordered, mut last) = (before.len() < old.len(), None);
        for record in new {
            match before.get(&content(record)) {
                Some(&at) => {
                    reordered |= Some(at) <= last;
                    last = Some(at);
                    stayed[at] = true;
                    if old[at].hosts != record.hosts {
                        hosts.push((&old[at].hosts, &record.hosts));
                    }
                }
                None => hosts.push((&NOBODY, &record.hosts)),
            }
        }
        let gone = old.iter().zip(stayed).filter(|(_, stayed)| !stayed);
        hosts.extend(gone.map(|(record, _)| (&record.hosts, &NOBODY)));
        Self { hosts, reordered }
    }

    fn may_concern(&self, hostnqn: &str) -> bool {
        let sees = |(old, new): &(&Hosts, &Hosts)| old.allows(hostnqn) || new.allows(hostnqn);
        self.reordered || self.hosts.iter().any(sees)
    }
}

#[cfg(test)]
mod tests;
