//! Volumes and snapshots become subsystems.

use std::time::Duration;

use bowline_api::Failure;
use bowline_block::Geometry;
use bowline_nvmf::target::{AnaConfig, CNTLID_MAX, SubsystemConfig};
use bowline_pool::VolumeInfo;
use uuid::Uuid;

use crate::catalog::{Access, Held, Namespace, Origin, Part, Subsystem, Volume};
use crate::identity;
use crate::manage::{CONTROLLERS_DEFAULT, FIRST_ANA_GROUP, Manager};
use crate::pool::{self, Export, PoolAccess, Surveyed, VOLUME_NSID, VolumeDefaults};

/// Volumes exported in one turn of the reactor at start.
const EXPORTS_AT_ONCE: usize = 256;

/// From so many subsystems on discovery is told of several changes together.
const SUBSYSTEMS_TOLD_AT_ONCE: usize = 256;

/// How long a change may wait for others that discovery is told of together with it.
const TOLD_WITHIN: Duration = Duration::from_millis(50);

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
    let defaults = &access.facts.defaults;
    let prepare = |Surveyed { info, hosts }: Surveyed| {
        if hosts.is_none() {
            tracing::error!(
                volume = %info.uuid,
                "the list of its hosts cannot be read: nobody is allowed but those of the start flags"
            );
        }
        let hosts = Access::of_volume(&hosts.unwrap_or_default(), &defaults.hosts);
        let config = subsystem(&identity::volume_nqn(info.uuid), defaults, &hosts);
        let export = Export {
            volume: info.volume,
            snapshot: None,
            uuid: info.uuid.into_bytes(),
            nguid: identity::namespace_nguid(&config.nqn, VOLUME_NSID),
            subsystem: config.clone(),
        };
        (export, Part::Volume(info.uuid), info, hosts, config)
    };
    let prepared: Vec<_> = volumes.into_iter().map(prepare).collect();
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

/// Exports a snapshot of a volume.
pub(super) async fn export_snapshot(
    access: &PoolAccess,
    info: VolumeInfo,
    (number, uuid): (u32, Uuid),
    hosts: Access,
) -> Result<Exported, Failure> {
    let config = subsystem(
        &identity::snapshot_nqn(uuid),
        &access.facts.defaults,
        &hosts,
    );
    let export = Export {
        volume: info.volume,
        snapshot: Some(number),
        uuid: uuid.into_bytes(),
        nguid: identity::namespace_nguid(&config.nqn, VOLUME_NSID),
        subsystem: config.clone(),
    };
    let part = Part::Snapshot {
        volume: info.uuid,
        snapshot: uuid,
    };
    access
        .work(move |served, now| Exported {
            part,
            info,
            hosts,
            config,
            outcome: pool::export(served, now, export),
        })
        .await
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
