//! Volumes and snapshots become subsystems.

use std::time::Duration;

use bowline_api::{Failure, Reason};
use bowline_block::Geometry;
use bowline_nvmf::target::{AnaConfig, AnaState, CNTLID_MAX, SubsystemConfig};
use bowline_pool::VolumeInfo;
use uuid::Uuid;

use crate::catalog::{Access, Held, Namespace, Origin, Part, Subsystem, Volume};
use crate::identity;
use crate::manage::{CONTROLLERS_DEFAULT, FIRST_ANA_GROUP, Manager, exists, same_identity};
use crate::names;
use crate::pool::{self, Export, PoolAccess, Surveyed, VOLUME_NSID, VolumeDefaults};

/// Volumes exported in one turn of the reactor at start.
const EXPORTS_AT_ONCE: usize = 256;

/// From so many subsystems on discovery is told of several changes together.
const SUBSYSTEMS_TOLD_AT_ONCE: usize = 256;

/// How long a change may wait for others that discovery is told of together with it.
const TOLD_WITHIN: Duration = Duration::from_millis(50);

/// A volume that is to be exported, or a snapshot of it.
pub(super) struct Plan {
    /// Of the volume.
    pub(super) info: VolumeInfo,
    /// Its number and UUID.
    pub(super) snapshot: Option<(u32, Uuid)>,
    pub(super) hosts: Access,
    /// How it is reached; `None` takes what was said at start.
    pub(super) ana: Option<AnaState>,
}

/// What was exported, or was to be.
pub(crate) struct Exported {
    part: Part,
    info: VolumeInfo,
    hosts: Access,
    config: SubsystemConfig,
    outcome: Result<Geometry, Failure>,
}

/// Exports all volumes of a pool that was just opened.
pub(crate) async fn serve_pool(
    manager: &mut Manager,
    access: PoolAccess,
    mut volumes: Vec<Surveyed>,
) -> Result<(), Failure> {
    let all: Vec<String> = volumes
        .iter()
        .map(|it| identity::volume_nqn(it.info.uuid))
        .collect();
    while !volumes.is_empty() {
        let some = volumes.split_off(volumes.len().saturating_sub(EXPORTS_AT_ONCE));
        manager.record(export(&access, some).await?);
    }
    manager.serve_pool(access);
    manager.route_all(all).await?;
    manager.tell_discovery().await
}

/// Exports volumes to the hosts that the pool and the flags at start allow.
pub(super) async fn export(
    access: &PoolAccess,
    volumes: Vec<Surveyed>,
) -> Result<Vec<Exported>, Failure> {
    let plan = |Surveyed { info, hosts }: Surveyed| {
        if hosts.is_none() {
            tracing::error!(
                volume = %info.uuid,
                "the list of its hosts cannot be read: nobody is allowed but those of the start flags"
            );
        }
        let flags = &access.facts.defaults.hosts;
        Plan {
            hosts: Access::of_volume(&hosts.unwrap_or_default(), flags),
            info,
            snapshot: None,
            ana: None,
        }
    };
    let plans = volumes.into_iter().map(plan).collect();
    carry_out(access, plans).await
}

/// Exports volumes and snapshots.
pub(super) async fn carry_out(
    access: &PoolAccess,
    plans: Vec<Plan>,
) -> Result<Vec<Exported>, Failure> {
    let defaults = &access.facts.defaults;
    let prepared: Vec<_> = plans.into_iter().map(|it| it.prepare(defaults)).collect();
    access
        .work(move |served, now| {
            let each = |(export, part, info, hosts, config)| Exported {
                part,
                info,
                hosts,
                config,
                outcome: pool::export(served, now, export),
            };
            prepared.into_iter().map(each).collect()
        })
        .await
}

impl Plan {
    fn prepare(
        self,
        defaults: &VolumeDefaults,
    ) -> (Export, Part, VolumeInfo, Access, SubsystemConfig) {
        let Self {
            info,
            snapshot,
            hosts,
            ana,
        } = self;
        let volume = info.uuid;
        let (nqn, uuid, part) = match snapshot {
            None => (identity::volume_nqn(volume), volume, Part::Volume(volume)),
            Some((_, snapshot)) => {
                let part = Part::Snapshot { volume, snapshot };
                (identity::snapshot_nqn(snapshot), snapshot, part)
            }
        };
        let config = subsystem(&nqn, defaults, &hosts);
        let export = Export {
            volume: info.volume,
            snapshot: snapshot.map(|(number, _)| number),
            uuid: uuid.into_bytes(),
            nguid: identity::namespace_nguid(&nqn, VOLUME_NSID),
            subsystem: config.clone(),
            ana,
        };
        (export, part, info, hosts, config)
    }
}

fn subsystem(nqn: &str, defaults: &VolumeDefaults, hosts: &Access) -> SubsystemConfig {
    SubsystemConfig {
        serial: identity::serial_number(nqn),
        namespaces_max: VOLUME_NSID,
        hosts: hosts.allowed(),
        cntlids: defaults.cntlids.unwrap_or((1, CNTLID_MAX)),
        controllers_max: defaults.controllers_max.unwrap_or(CONTROLLERS_DEFAULT),
        ana: Some(AnaConfig {
            groups_max: 1,
            initial: defaults.ana,
            ..AnaConfig::default()
        }),
        ..SubsystemConfig::new(nqn, "")
    }
}

impl Exported {
    pub(super) fn nqn(&self) -> &str {
        &self.config.nqn
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.outcome.as_ref().err().cloned()
    }
}

impl Manager {
    /// Whether a UUID that somebody chose is free for this: what has it already may be exported too.
    pub(super) fn check_uuid(&self, part: Part) -> Result<(), Failure> {
        let other = self.catalog.volumes.part(part.uuid()).map(Part::name);
        match other.or_else(|| self.catalog.mistaken_for(part)) {
            None => Ok(()),
            Some(name) => Err(same_identity(&name).hint("choose another UUID, or leave it out")),
        }
    }

    /// Whether the NQN of what is not exported is free.
    pub(super) fn check_nqn(&self, part: Part) -> Result<(), Failure> {
        let nqn = part.nqn();
        let taken = || exists(names::subsystem(&nqn));
        match self.catalog.subsystems.get(&nqn).map(|it| it.part) {
            None => Ok(()),
            Some(None) => Err(taken().hint("delete that subsystem first")),
            Some(Some(other)) => Err(taken()
                .cause(format!("it exports {}", other.name()))
                .hint("withdraw that first")),
        }
    }

    /// The same, and whether hosts would take it for something else.
    pub(super) fn check_export(&self, part: Part) -> Result<(), Failure> {
        self.check_nqn(part)?;
        match self.catalog.mistaken_for(part) {
            None => Ok(()),
            Some(name) => Err(same_identity(&name).hint("remove that namespace first")),
        }
    }

    /// Writes down what the pool's reactor serves now.
    pub(crate) fn record(&mut self, exported: impl IntoIterator<Item = Exported>) {
        for it in exported {
            let not_served = it.failure().map(|failure| failure.cause);
            if let Some(cause) = &not_served {
                tracing::error!(part = it.part.name(), cause, "not exported");
            }
            if let Ok(geometry) = &it.outcome {
                let subsystem = served(&it, *geometry, self.pool_reactor());
                let nqn = it.config.nqn.clone();
                self.catalog.subsystems.insert(nqn, subsystem);
            }
            if let Part::Volume(_) = it.part {
                self.catalog.volumes.insert(Volume {
                    info: it.info,
                    nqn: it.config.nqn,
                    not_served,
                });
            }
        }
    }

    /// Writes down which of these subsystems are served again, and forgets all others.
    pub(super) async fn record_again(
        &mut self,
        nqns: Vec<String>,
        exported: Vec<Exported>,
    ) -> Result<(), Failure> {
        let failure = exported.iter().find_map(Exported::failure);
        let is_served = |nqn: &String| {
            let mut all = exported.iter();
            all.any(|it| it.nqn() == nqn && it.failure().is_none())
        };
        let gone = nqns.into_iter().filter(|nqn| !is_served(nqn)).collect();
        self.record(exported);
        self.forget_exports(gone).await?;
        match failure {
            None => Ok(()),
            Some(failure) => Err(Failure::new(
                Reason::Internal,
                "what was withdrawn for the change is not exported any more",
            )
            .cause(failure.cause)
            .hint("start the data plane again")),
        }
    }

    /// Tells the other reactors and discovery of a subsystem that has come.
    pub(super) async fn announce(&mut self, nqn: &str) -> Result<(), Failure> {
        let owner = self.pool_reactor();
        self.route(nqn, Some(owner)).await?;
        self.tell_discovery_soon().await
    }

    /// Forgets subsystems that the pool's reactor serves no more.
    pub(super) async fn forget_exports(&mut self, nqns: Vec<String>) -> Result<(), Failure> {
        for nqn in nqns {
            if self.catalog.subsystems.remove(&nqn).is_some() {
                self.route(&nqn, None).await?;
            }
        }
        self.tell_discovery_soon().await
    }

    /// Tells discovery of a change: at once, or where there is much to tell, of several together.
    async fn tell_discovery_soon(&mut self) -> Result<(), Failure> {
        if self.catalog.subsystems.len() < SUBSYSTEMS_TOLD_AT_ONCE {
            return self.tell_discovery().await;
        }
        self.discovery_due.notify_one();
        Ok(())
    }
}

/// Tells discovery of what was put off, for as long as the process runs.
pub(crate) async fn tell_discovery(state: std::sync::Weak<super::Shared>) {
    loop {
        let Some(shared) = state.upgrade() else {
            return;
        };
        let due = std::sync::Arc::clone(&shared.lock().await.manager.discovery_due);
        drop(shared);
        due.notified().await;
        tokio::time::sleep(TOLD_WITHIN).await;
        let Some(shared) = state.upgrade() else {
            return;
        };
        let told = shared.lock().await.manager.tell_discovery().await;
        if let Err(failure) = told {
            tracing::error!(message = %failure.message, "discovery not told");
        }
    }
}

fn served(exported: &Exported, geometry: Geometry, reactor: usize) -> Subsystem {
    let Exported {
        part,
        hosts,
        config,
        ..
    } = exported;
    let origin = match part {
        Part::Volume(_) => Origin::Pool,
        Part::Snapshot { .. } => Origin::Api,
    };
    let uuid = match part {
        Part::Volume(uuid) => uuid,
        Part::Snapshot { snapshot, .. } => snapshot,
    };
    let mut subsystem = Subsystem::new(reactor, config, origin);
    subsystem.access = hosts.clone();
    subsystem.part = Some(*part);
    let namespace = Namespace {
        held: Held::Pool(*part),
        uuid: uuid.into_bytes(),
        nguid: identity::namespace_nguid(&config.nqn, VOLUME_NSID),
        ana_group: FIRST_ANA_GROUP,
        geometry,
        origin,
    };
    subsystem.namespaces.insert(VOLUME_NSID, namespace);
    subsystem
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bowline_block::{Device, MemDevice};
    use bowline_pool::Provisioning;
    use bowline_pool::format::record::{Checksums, Durability};

    use super::*;
    use crate::allow::AllowList;
    use crate::fleet::Fleet;

    fn exported(uuid: Uuid, outcome: Result<Geometry, Failure>) -> Exported {
        let info = VolumeInfo {
            volume: 1,
            uuid,
            name: "db".to_owned(),
            bytes: 1 << 20,
            block_bytes: 4096,
            provisioning: Provisioning::Thin,
            durability: Durability::Device,
            checksums: Checksums::Off,
            base: None,
            created: 0,
            mapped_bytes: 0,
            physical_bytes: 0,
            snapshots: Vec::new(),
        };
        Exported {
            part: Part::Volume(uuid),
            info,
            hosts: Access::default(),
            config: SubsystemConfig::new(&identity::volume_nqn(uuid), ""),
            outcome,
        }
    }

    #[tokio::test]
    async fn what_cannot_be_exported_again_is_no_subsystem_any_more() {
        let fleet = Arc::new(Fleet {
            members: Vec::new(),
            not_flushed: Arc::default(),
        });
        let mut manager = Manager::new(fleet, Vec::new(), AllowList::default());
        let geometry = MemDevice::new(1 << 20, 4096).unwrap().geometry();
        let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
        manager.record([
            exported(first, Ok(geometry)),
            exported(second, Ok(geometry)),
        ]);
        let nqns = vec![identity::volume_nqn(first), identity::volume_nqn(second)];
        let failure = Failure::new(Reason::Internal, "not exported").cause("of this");
        let again = vec![
            exported(first, Err(failure)),
            exported(second, Ok(geometry)),
        ];
        let told = manager.record_again(nqns, again).await.unwrap_err();
        assert_eq!(told.cause, "of this");
        let served: Vec<_> = manager.catalog.subsystems.into_keys().collect();
        assert_eq!(served, [identity::volume_nqn(second)]);
        let volume = manager.catalog.volumes.get(first).unwrap();
        assert_eq!(volume.not_served.as_deref(), Some("of this"));
    }
}
