//! What is served from the start on: a pool's volumes, or a whole device.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use bowline_api::Failure;
use bowline_nvmf::target::{AnaState, TargetConfig};
use bowline_pool::Recovery;
use tokio::sync::watch;

use super::Ready;
use crate::backing::Opened;
use crate::catalog::Origin;
use crate::config::{BackingConfig, Config};
use crate::error::StartError;
use crate::fleet::Fleet;
use crate::listen::Portal;
use crate::manage::{Manager, NewNamespace, NewSubsystem};
use crate::pool::{self, Begun, PoolAccess, PoolFacts, Surveyed, VolumeDefaults};
use crate::prepare::Prepared;
use crate::state::{Health, Keeper, SubsystemRecord};
use crate::volumes;

/// Opens the pool of the drive on the reactor that owns it from now on, if it has one or is to have one.
pub(super) async fn begin_pool(
    fleet: &Fleet,
    prepared: &mut Prepared,
    told: watch::Sender<Option<Recovery>>,
) -> Result<Option<(PoolFacts, Vec<Surveyed>)>, Failure> {
    let opened = std::mem::replace(&mut prepared.opened, Opened::There);
    let config = &prepared.config;
    let (device, serve) = (prepared.backing.to_string(), config.serve);
    let (name, is_shared) = (device.clone(), config.backing.is_shared());
    let begun = fleet.work(POOL_REACTOR, move |served, cx, _| {
        let begun = pool::begin(opened, serve, (&name, is_shared), &told, cx)?;
        told.send_replace(None);
        match begun {
            Begun::Whole(drive) => {
                served.drive = Some(*drive);
                Ok(None)
            }
            Begun::Pool(seat) => {
                let found = (seat.pool().uuid(), pool::survey(seat.pool()), seat.watch());
                served.pool = Some(*seat);
                Ok(Some(found))
            }
        }
    });
    let Some((uuid, volumes, health)) = begun.await?? else {
        return Ok(None);
    };
    if !prepared.of_one_disk.is_empty() {
        tracing::warn!(
            flags = prepared.of_one_disk.join(" "),
            "not used: the device has a pool, and each of its volumes is a disk of its own"
        );
    }
    let facts = PoolFacts {
        uuid,
        device,
        path: config.backing.path().map(Path::to_owned),
        reactor: POOL_REACTOR,
        health,
        defaults: VolumeDefaults {
            cntlids: config.cntlids,
            controllers_max: config.controllers_max,
            ana: config.ana.unwrap_or(AnaState::Optimized),
            hosts: config.hosts.clone(),
        },
    };
    Ok(Some((facts, volumes)))
}

/// What the protocol machines are told.
pub(super) fn target_config(config: &Config, discovery_nqn: &str) -> TargetConfig {
    // Controller IDs start somewhere else after each start, so that a host which missed
    // the restart does not find its old controller's number. [BASE-2.0 CNTLID]
    let (seed, _) = uuid::Uuid::new_v4().as_u64_pair();
    TargetConfig {
        icd_bytes: config.limits.in_capsule_data_bytes,
        mdts_bytes: config.limits.max_transfer_bytes,
        io_queue_entries_max: config.limits.queue_depth,
        connections_max: config.limits.connections_max,
        queues_per_host_max: config.limits.queues_per_host_max,
        discovery_nqn: Some(discovery_nqn.to_owned()),
        seed,
        ..TargetConfig::default()
    }
}

/// Every volume of the pool, as a subsystem of its own.
pub(super) async fn serve_pool(
    manager: &mut Manager,
    facts: PoolFacts,
    found: Vec<Surveyed>,
) -> Result<(), Failure> {
    let access = PoolAccess::new(Arc::clone(&manager.fleet), facts);
    let facts = Arc::clone(&access.facts);
    volumes::serve_pool(manager, access, found).await?;
    tracing::info!(
        pool = %facts.uuid, device = %facts.device, volumes = manager.catalog.volumes.len(),
        hosts = ?facts.defaults.hosts, "pool serves"
    );
    Ok(())
}

/// The subsystem that the flags ask for, with the whole device as namespace 1; and its counters, if
/// they are kept.
pub(super) async fn serve_whole(
    manager: &mut Manager,
    config: &Config,
    nqn: &str,
    backing: BackingConfig,
    keeper: Option<Keeper>,
    record: Option<SubsystemRecord>,
) -> Result<Option<Health>, Failure> {
    let before = record.as_ref().map(SubsystemRecord::health_before);
    let subsystem = NewSubsystem {
        nqn: nqn.to_owned(),
        serial: config.serial.clone(),
        cntlids: config.cntlids,
        controllers_max: config.controllers_max,
        namespaces_max: config.namespaces_max,
        ana: config.ana,
        health: before.unwrap_or_default(),
    };
    manager.create_subsystem(subsystem, Origin::Start).await?;
    let device = NewNamespace {
        nsid: Some(FIRST_NSID),
        backing,
        block_bytes: config.block_bytes,
        uuid: config.uuid,
        nguid: config.nguid,
        ana_group: None,
    };
    manager
        .attach_namespace(nqn, device, Opened::There, Origin::Start)
        .await?;
    for host in &config.hosts {
        manager.allow_host(nqn, host, Origin::Start).await?;
    }
    if config.hosts.is_empty() {
        tracing::warn!(
            subsystem_nqn = %nqn,
            "no host may connect: allow one with --host or `bowline host allow`"
        );
    }
    tracing::info!(
        subsystem_nqn = %nqn, device = %config.backing, hosts = ?config.hosts, "subsystem serves"
    );
    match keeper {
        Some(keeper) => begin_health(keeper, manager, nqn, record).await.map(Some),
        None => Ok(None),
    }
}

/// Gives every listener to a reactor; from here on hosts come.
pub(super) async fn listen(
    fleet: &Fleet,
    nvme: Vec<(Portal, TcpListener)>,
) -> Result<(), StartError> {
    for (index, (portal, listener)) in nvme.into_iter().enumerate() {
        let owner = index % fleet.members.len();
        let listened = fleet
            .call(owner, move |service, cx, _| {
                service.listen(cx, listener, portal.id)
            })
            .await
            .map_err(StartError::Backing)?;
        listened.map_err(|source| StartError::Reactor {
            index: owner,
            source,
        })?;
    }
    Ok(())
}

/// Writes down that the first subsystem is served from now on.
async fn begin_health(
    keeper: Keeper,
    manager: &Manager,
    nqn: &str,
    record: Option<SubsystemRecord>,
) -> Result<Health, Failure> {
    let (subsystem, namespace) = manager.namespace(nqn, FIRST_NSID)?;
    let record = SubsystemRecord {
        nqn: nqn.to_owned(),
        serial: subsystem.serial,
        uuid: namespace.uuid,
        nguid: namespace.nguid,
        ..record.unwrap_or_default()
    };
    let health = Health::new(keeper, record.begun(), subsystem.reactor);
    health.save().await?;
    Ok(health)
}

/// Nothing authenticates yet, so leaving the loopback address deserves a word.
pub(super) fn warn_where_exposed(ready: &Ready) {
    for address in &ready.listen {
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "hosts on this network are told apart by their NQN alone");
        }
    }
    if !ready.rpc.ip().is_loopback() {
        tracing::warn!(address = %ready.rpc, "anybody on this network may manage this data plane");
    }
}

/// The reactor that owns the drive which the data plane is started with.
const POOL_REACTOR: usize = 0;

/// The whole device is this namespace of the first subsystem.
const FIRST_NSID: u32 = 1;
