//! What this data plane serves, as management sees it: the reactors hold the same,
//! each its own part. Plain data; nothing here talks to anybody.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use bowline_block::Geometry;
use bowline_nvmf::target::{AnaConfig, DiscoveryKind, DiscoveryRecord, Hosts, SubsystemConfig};
use uuid::Uuid;

use crate::config::BackingConfig;
use crate::identity;
use crate::listen::Portal;
use crate::names::{self, ANY_HOST};
use crate::pool::{AllowedHosts, VOLUME_NSID};

mod volumes;

pub(crate) use volumes::{Volume, Volumes, called};

/// Who asked for a resource, and so whether it comes back after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The flags at start.
    Start,
    /// The management API.
    Api,
    /// The pool on the drive, whoever has it made there.
    Pool,
}

impl Origin {
    pub(crate) fn is_persistent(self) -> bool {
        self != Self::Api
    }

    /// What to add when something of this origin is taken away over the API.
    pub(crate) fn undone(self) -> &'static str {
        match self {
            Self::Start => " until the next restart: it is in the start flags",
            Self::Api | Self::Pool => "",
        }
    }
}

/// Subsystems by NQN, and where else hosts may look.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// By address.
    pub(crate) referrals: BTreeMap<SocketAddr, Referral>,
    pub(crate) subsystems: BTreeMap<String, Subsystem>,
    pub(crate) volumes: Volumes,
}

/// Another discovery subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Referral {
    pub(crate) nqn: String,
    /// It is known to take persistent connections.
    pub(crate) persistent_connections: bool,
    pub(crate) origin: Origin,
}

#[derive(Debug)]
pub(crate) struct Subsystem {
    /// The reactor that owns it.
    pub(crate) reactor: usize,
    /// Serial number, padded with spaces.
    pub(crate) serial: [u8; 20],
    /// First and last controller ID.
    pub(crate) cntlids: (u16, u16),
    /// Controllers at a time.
    pub(crate) controllers_max: u16,
    /// The highest namespace identifier.
    pub(crate) namespaces_max: u32,
    /// How ANA is reported, if it is.
    pub(crate) ana: Option<AnaConfig>,
    pub(crate) access: Access,
    pub(crate) namespaces: BTreeMap<u32, Namespace>,
    /// The highest namespace identifier that was given up.
    pub(crate) given_up_nsid: u32,
    pub(crate) origin: Origin,
    /// What of the pool it exports.
    pub(crate) part: Option<Part>,
    pub(crate) created: SystemTime,
}

/// Who may connect, and who said so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// Every host is allowed.
    pub(crate) any_host: Option<Origin>,
    /// Hosts allowed by name.
    pub(crate) hosts: BTreeMap<String, Origin>,
}

impl Access {
    /// What the pool keeps, and what the flags at start say besides.
    pub(crate) fn of_volume(kept: &AllowedHosts, flags: &[String]) -> Self {
        let mut access = Self::default();
        for host in flags {
            access.allow(host, Origin::Start);
        }
        for host in kept.iter() {
            access.allow(host, Origin::Pool);
        }
        access
    }

    pub(crate) fn allow(&mut self, host: &str, origin: Origin) {
        if host == ANY_HOST {
            self.any_host = Some(origin);
        } else {
            self.hosts.insert(host.to_owned(), origin);
        }
    }

    /// Who allowed a host, or every host.
    pub(crate) fn origin(&self, host: &str) -> Option<Origin> {
        match host {
            ANY_HOST => self.any_host,
            _ => self.hosts.get(host).copied(),
        }
    }

    /// Takes a permission back; gives who had given it.
    pub(crate) fn deny(&mut self, host: &str) -> Option<Origin> {
        match host {
            ANY_HOST => self.any_host.take(),
            _ => self.hosts.remove(host),
        }
    }

    /// What the pool is to keep of it.
    pub(crate) fn kept(&self) -> AllowedHosts {
        let named = self.hosts.iter();
        let kept = named.filter(|(_, origin)| **origin == Origin::Pool);
        AllowedHosts {
            any: self.any_host == Some(Origin::Pool),
            names: kept.map(|(host, _)| host.clone()).collect(),
        }
    }

    /// As the target wants it.
    pub(crate) fn allowed(&self) -> Hosts {
        match self.any_host {
            Some(_) => Hosts::Any,
            None => Hosts::Only(self.hosts.keys().cloned().collect()),
        }
    }
}

/// What a namespace is over.
#[derive(Debug, Clone)]
pub(crate) enum Held {
    Backing(BackingConfig),
    Pool(Part),
}

/// A part of the pool that is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Volume(Uuid),
    Snapshot { volume: Uuid, snapshot: Uuid },
}

impl Part {
    /// UUID that hosts know it by.
    pub(crate) fn uuid(self) -> Uuid {
        match self {
            Self::Volume(uuid) => uuid,
            Self::Snapshot { snapshot, .. } => snapshot,
        }
    }

    /// NQN of the subsystem that exports it, if it is exported.
    pub(crate) fn nqn(self) -> String {
        match self {
            Self::Volume(volume) => identity::volume_nqn(volume),
            Self::Snapshot { snapshot, .. } => identity::snapshot_nqn(snapshot),
        }
    }

    /// Its resource name.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Volume(volume) => names::volume(volume),
            Self::Snapshot { volume, snapshot } => names::snapshot(volume, snapshot),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    pub(crate) held: Held,
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    /// ANA group; 0 without ANA.
    pub(crate) ana_group: u32,
    /// As the device last said.
    pub(crate) geometry: Geometry,
    pub(crate) origin: Origin,
}

impl Subsystem {
    /// A subsystem without hosts and namespaces, as the target is told of it.
    pub(crate) fn new(reactor: usize, config: &SubsystemConfig, origin: Origin) -> Self {
        Self {
            reactor,
            serial: config.serial,
            cntlids: config.cntlids,
            controllers_max: config.controllers_max,
            namespaces_max: config.namespaces_max,
            ana: config.ana,
            access: Access::default(),
            namespaces: BTreeMap::new(),
            given_up_nsid: 0,
            origin,
            part: None,
            created: SystemTime::now(),
        }
    }

    /// The next namespace identifier that is free. Those just given up come last: a namespace's
    /// identity follows from its identifier, and a host must not take a new one for the old.
    pub(crate) fn free_nsid(&self, is_reserved: impl Fn(u32) -> bool) -> Option<u32> {
        let given_up = self.given_up_nsid.min(self.namespaces_max);
        (given_up + 1..=self.namespaces_max)
            .chain(1..=given_up)
            .find(|nsid| !self.namespaces.contains_key(nsid) && !is_reserved(*nsid))
    }
}

impl Catalog {
    /// NQNs of the subsystems that export a volume and its snapshots.
    pub(crate) fn exports_of(&self, volume: Uuid) -> Vec<String> {
        let found = self.volumes.get(volume);
        let snapshots = found.into_iter().flat_map(|it| &it.info.snapshots);
        let snapshots = snapshots.map(|it| Part::Snapshot {
            volume,
            snapshot: it.uuid,
        });
        let all = [Part::Volume(volume)].into_iter().chain(snapshots);
        all.filter_map(|part| self.export_of(part)).collect()
    }

    /// NQN of the subsystem that exports a part of the pool, if it is exported.
    pub(crate) fn export_of(&self, part: Part) -> Option<String> {
        let nqn = part.nqn();
        let is_it = self.subsystems.get(&nqn)?.part == Some(part);
        is_it.then_some(nqn)
    }

    /// Name of the namespace that hosts would take for a part of the pool if it was exported.
    pub(crate) fn mistaken_for(&self, part: Part) -> Option<String> {
        let nguid = identity::namespace_nguid(&part.nqn(), VOLUME_NSID);
        let found = self.identified_by(part.uuid().into_bytes(), nguid);
        found.map(|(nqn, nsid)| names::namespace(nqn, nsid))
    }

    /// Subsystems that export parts of the pool.
    pub(crate) fn exported(&self) -> usize {
        let subsystems = self.subsystems.values();
        subsystems.filter(|it| it.part.is_some()).count()
    }

    /// The reactor with the fewest subsystems, the first of several.
    pub(crate) fn least_loaded(&self, reactors: usize) -> usize {
        let load = |index: &usize| self.subsystem_count(*index);
        (0..reactors).min_by_key(load).unwrap_or(0)
    }

    /// Subsystems that a reactor owns.
    pub(crate) fn subsystem_count(&self, reactor: usize) -> usize {
        self.subsystems
            .values()
            .filter(|subsystem| subsystem.reactor == reactor)
            .count()
    }

    /// Namespaces of every subsystem, with their NQN, in order.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = (&str, u32, &Namespace)> {
        self.subsystems.iter().flat_map(|(nqn, subsystem)| {
            let namespaces = subsystem.namespaces.iter();
            namespaces.map(move |(nsid, namespace)| (nqn.as_str(), *nsid, namespace))
        })
    }

    /// The namespace that a path backs already.
    pub(crate) fn backed_by(&self, path: &Path) -> Option<(&str, u32)> {
        self.namespaces()
            .find(|(_, _, namespace)| match &namespace.held {
                Held::Backing(BackingConfig::Path { path: other, .. }) => other == path,
                Held::Backing(BackingConfig::Memory { .. } | BackingConfig::Spdk(_))
                | Held::Pool(_) => false,
            })
            .map(|(nqn, nsid, _)| (nqn, nsid))
    }

    /// The namespace that hosts know by one of these already.
    pub(crate) fn identified_by(&self, uuid: [u8; 16], nguid: [u8; 16]) -> Option<(&str, u32)> {
        self.namespaces()
            .find(|(_, _, namespace)| namespace.uuid == uuid || namespace.nguid == nguid)
            .map(|(nqn, nsid, _)| (nqn, nsid))
    }

    /// What discovery tells: itself and every subsystem at every address that is advertised, and the
    /// referrals.
    pub(crate) fn discovery(&self, portals: &[Portal]) -> Vec<DiscoveryRecord> {
        // With --advertise every portal has the same address, which is told once.
        let mut told: Vec<&Portal> = Vec::with_capacity(portals.len());
        for portal in portals {
            if told
                .iter()
                .all(|other| other.advertised != portal.advertised)
            {
                told.push(portal);
            }
        }
        let records = self.subsystems.iter().flat_map(|(nqn, subsystem)| {
            told.iter().map(|portal| DiscoveryRecord {
                kind: DiscoveryKind::Nvm,
                subnqn: nqn.clone(),
                address: portal.advertised,
                port_id: portal.id,
                hosts: subsystem.access.allowed(),
            })
        });
        let referrals = self
            .referrals
            .iter()
            .map(|(address, referral)| DiscoveryRecord {
                kind: DiscoveryKind::Referral {
                    persistent: referral.persistent_connections,
                },
                subnqn: referral.nqn.clone(),
                address: *address,
                port_id: 0,
                hosts: Hosts::Any,
            });
        // Itself, at every address, whoever asks. The target knows its name.
        let itself = told.iter().map(|portal| DiscoveryRecord {
            kind: DiscoveryKind::Current,
            subnqn: String::new(),
            address: portal.advertised,
            port_id: portal.id,
            hosts: Hosts::Any,
        });
        itself.chain(records).chain(referrals).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(reactors: &[usize]) -> Catalog {
        let mut catalog = Catalog::default();
        for (index, reactor) in reactors.iter().enumerate() {
            let config = SubsystemConfig::new("", "");
            let subsystem = Subsystem::new(*reactor, &config, Origin::Api);
            catalog.subsystems.insert(format!("s{index}"), subsystem);
        }
        catalog
    }

    #[test]
    fn new_subsystem_goes_to_the_reactor_with_the_fewest() {
        assert_eq!(catalog(&[]).least_loaded(3), 0);
        assert_eq!(catalog(&[0, 1]).least_loaded(3), 2);
        assert_eq!(catalog(&[0, 1, 2, 0, 2]).least_loaded(3), 1);
    }

    #[test]
    fn any_host_hides_the_names_until_it_is_taken_back() {
        let mut access = Access::default();
        assert_eq!(access.allowed(), Hosts::Only(vec![]));
        access.hosts.insert("h".to_owned(), Origin::Api);
        access.any_host = Some(Origin::Api);
        assert_eq!(access.allowed(), Hosts::Any);
        access.any_host = None;
        assert_eq!(access.allowed(), Hosts::Only(vec!["h".to_owned()]));
    }

    fn portal(id: u16, advertised: u16) -> Portal {
        let at = |port| ([127, 0, 0, 1], port).into();
        Portal {
            id,
            bound: at(4420 + id),
            advertised: at(advertised),
        }
    }

    #[test]
    fn every_subsystem_is_told_at_every_address() {
        let records = catalog(&[0, 0]).discovery(&[portal(1, 4421), portal(2, 4422)]);
        assert_eq!(records.len(), 6);
        assert!(
            records[2..]
                .iter()
                .all(|record| record.hosts == Hosts::Only(vec![]))
        );
        assert_eq!(records[3].address.to_string(), "127.0.0.1:4422");
        let itself = |record: &DiscoveryRecord| {
            (record.kind, &record.hosts) == (DiscoveryKind::Current, &Hosts::Any)
        };
        assert!(records[..2].iter().all(itself));
    }

    #[test]
    fn advertised_address_of_several_listeners_is_told_once() {
        let records = catalog(&[0]).discovery(&[portal(1, 8009), portal(2, 8009)]);
        assert_eq!(records.len(), 2);
        assert_eq!((records[1].port_id, records[1].address.port()), (1, 8009));
    }
}
