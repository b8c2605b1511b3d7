//! Volumes: made, changed and deleted in the pool, and exported.

use bowline_api::{Failure, Reason};
use bowline_nvme::NamespaceId;
use bowline_nvmf::target::{AnaConfig, AnaState, CNTLID_MAX, SubsystemConfig};
use bowline_pool::format::record::{Checksums, Durability};
use bowline_pool::{
    Operation, Outcome, Pool, PoolError, Provisioning, Usage, VolumeInfo, VolumeSpec,
};
use uuid::Uuid;

use super::failure::{exists, limit, missing, not_resized};
use super::{CONTROLLERS_DEFAULT, FIRST_ANA_GROUP, HOSTS_MAX, Manager};
use crate::catalog::{Access, Held, Namespace, Origin, Subsystem, Volume};
use crate::drive::Drive;
use crate::fleet::Served;
use crate::names::{self, ANY_HOST};
use crate::pool::{
    self, AllowedHosts, Ending, Export, PoolHealth, Surveyed, VOLUME_NSID, attribute,
    explain_operation,
};
use crate::{check, identity};

/// Bytes of a display name at most, as the format has it.
const NAME_BYTES_MAX: usize = 255;
/// What sizes are multiples of.
const SIZE_UNIT_BYTES: u64 = 4096;
/// Volumes exported in one turn of the reactor at start.
const EXPORTS_AT_ONCE: usize = 256;

/// The pool that this data plane serves.
#[derive(Debug, Clone)]
pub(crate) struct PoolFacts {
    pub(crate) uuid: Uuid,
    /// As it was given at start.
    pub(crate) device: String,
    /// The reactor that owns it and all its volumes.
    pub(crate) reactor: usize,
    /// What the flags at start say of every volume's subsystem.
    pub(crate) defaults: VolumeDefaults,
}

/// What the flags at start say of every volume's subsystem.
#[derive(Debug, Clone)]
pub(crate) struct VolumeDefaults {
    pub(crate) cntlids: Option<(u16, u16)>,
    pub(crate) controllers_max: Option<u16>,
    /// State of an ANA group at first. Hosts are always told of ANA: a volume may get other paths
    /// later, and a host asks only when it connects.
    pub(crate) ana: AnaState,
    /// Hosts that may use every volume.
    pub(crate) hosts: Vec<String>,
}

/// A volume to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewVolume {
    pub(crate) uuid: Option<Uuid>,
    /// Empty: its UUID stands for it.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// `None` takes the drive's.
    pub(crate) block_bytes: Option<u32>,
    pub(crate) durability: Durability,
    pub(crate) hosts: AllowedHosts,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

/// What changes with every write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolNow {
    pub(crate) usage: Usage,
    pub(crate) health: PoolHealth,
}

impl Manager {
    pub(crate) fn pool(&self) -> Result<&PoolFacts, Failure> {
        self.pool.as_ref().ok_or_else(|| {
            Failure::new(Reason::NoPool, "this data plane has no pool")
                .cause("it serves its whole device as one namespace")
                .hint("start it with --format on an empty device, or on one that has a pool")
        })
    }

    /// Runs a closure on the pool's reactor, and waits for what it returns.
    pub(super) async fn on_pool<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Served, bowline_nvme::Nanos) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let reactor = self.pool()?.reactor;
        self.fleet
            .work(reactor, move |served, _, now| job(served, now))
            .await
    }

    /// Has the pool do something, and waits until it is durable.
    pub(super) async fn operate(
        &self,
        what: &str,
        start: impl FnOnce(&mut Pool<Drive>) -> Result<Operation, PoolError> + Send + 'static,
    ) -> Result<Outcome, Failure> {
        let begun = self.on_pool(|served, _| -> Result<Ending, PoolError> {
            let seat = served.pool.as_mut().ok_or(PoolError::Closing)?;
            seat.start(start)
        });
        let ending = begun
            .await?
            .map_err(|error| explain_operation(what, error))?;
        let ended = ending.await.unwrap_or(Err(PoolError::Closing));
        ended.map_err(|error| explain_operation(what, error))
    }

    pub(crate) async fn pool_now(&self) -> Result<PoolNow, Failure> {
        let now = self.on_pool(|served, _| {
            let seat = served.pool.as_ref()?;
            let (usage, health) = (seat.pool().usage(), seat.health());
            Some(PoolNow { usage, health })
        });
        now.await?.ok_or_else(stopping)
    }

    /// What these volumes have allocated now: as hosts see it, and of the pool.
    pub(crate) async fn allocated(&self, volumes: Vec<u32>) -> Result<Vec<(u64, u64)>, Failure> {
        let found = self.on_pool(move |served, _| {
            let pool = served.pool.as_ref()?.pool();
            let each = |volume: &u32| pool.allocated(*volume).unwrap_or_default();
            Some(volumes.iter().map(each).collect())
        });
        found.await?.ok_or_else(stopping)
    }

    /// Exports all volumes of a pool that was just opened.
    pub(crate) async fn serve_pool(
        &mut self,
        facts: PoolFacts,
        mut volumes: Vec<Surveyed>,
    ) -> Result<(), Failure> {
        self.pool = Some(facts);
        let all: Vec<String> = volumes.iter().map(|it| nqn_of(&it.info)).collect();
        while !volumes.is_empty() {
            let some = volumes.split_off(volumes.len().saturating_sub(EXPORTS_AT_ONCE));
            self.export_all(some).await?;
        }
        self.route_all(all).await?;
        self.tell_discovery().await
    }

    async fn export_all(&mut self, volumes: Vec<Surveyed>) -> Result<(), Failure> {
        let facts = self.pool()?.clone();
        let mut prepared = Vec::with_capacity(volumes.len());
        for Surveyed { info, hosts } in volumes {
            if hosts.is_none() {
                tracing::error!(
                    volume = %info.uuid,
                    "the list of its hosts cannot be read: nobody is allowed but those of the start flags"
                );
            }
            let access = Access::of_volume(&hosts.unwrap_or_default(), &facts.defaults.hosts);
            prepared.push((export_of(&info, &facts.defaults, &access), info, access));
        }
        let outcome = self.on_pool(move |served, now| {
            let each = |(export, info, access): (Export, _, _)| {
                let config = export.subsystem.clone();
                (pool::export(served, now, export), config, info, access)
            };
            prepared.into_iter().map(each).collect::<Vec<_>>()
        });
        for (exported, config, info, access) in outcome.await? {
            let not_served = match exported {
                Ok(geometry) => {
                    self.record(&config, &info, access, geometry, facts.reactor);
                    None
                }
                Err(failure) => {
                    tracing::error!(
                        volume = %info.uuid, name = %info.name, cause = %failure.cause,
                        "volume not exported"
                    );
                    Some(failure.cause)
                }
            };
            let nqn = config.nqn;
            self.catalog.volumes.insert(Volume {
                info,
                nqn,
                not_served,
            });
        }
        Ok(())
    }

    /// Writes down what the reactor serves now.
    fn record(
        &mut self,
        config: &SubsystemConfig,
        info: &VolumeInfo,
        access: Access,
        geometry: bowline_block::Geometry,
        reactor: usize,
    ) {
        let mut subsystem = Subsystem::new(reactor, config, Origin::Pool);
        subsystem.access = access;
        subsystem.volume = Some(info.uuid);
        let namespace = Namespace {
            held: Held::Volume(info.uuid),
            uuid: info.uuid.into_bytes(),
            nguid: identity::namespace_nguid(&config.nqn, VOLUME_NSID),
            ana_group: FIRST_ANA_GROUP,
            geometry,
            origin: Origin::Pool,
        };
        subsystem.namespaces.insert(VOLUME_NSID, namespace);
        self.catalog
            .subsystems
            .insert(config.nqn.clone(), subsystem);
    }

    /// Makes a volume and exports it. One that is there already and is the same is as good.
    pub(crate) async fn create_volume(&mut self, new: NewVolume) -> Result<Uuid, Failure> {
        let facts = self.pool()?.clone();
        check_volume(&new)?;
        let uuid = new.uuid.unwrap_or_else(Uuid::new_v4);
        if let Some(found) = self.catalog.volumes.get(uuid) {
            return match is_what_is_asked_for(&found.info, &new) {
                true => Ok(uuid),
                false => Err(exists(names::volume(uuid))
                    .cause("it is not what is asked for now")
                    .hint("choose another UUID, or leave it out")),
            };
        }
        if self.catalog.volumes.is_taken(&new.name) {
            return Err(exists(names::volume_called(&new.name)).hint("choose another name"));
        }
        let nqn = identity::volume_nqn(uuid);
        if self.catalog.subsystems.contains_key(&nqn) {
            return Err(exists(names::subsystem(&nqn)).hint("delete that subsystem first"));
        }
        let what = format!("volume {} not created", named(&new.name, uuid));
        let spec = spec_of(&new, uuid);
        let made = self.operate(&what, move |pool| pool.create_volume(spec));
        let Outcome::Volume(volume) = made.await? else {
            return Err(Failure::new(Reason::Internal, what));
        };
        if new.hosts != AllowedHosts::default() {
            let kept = new.hosts.encode();
            self.operate(&what, move |pool| {
                pool.set_attribute(volume, attribute::HOSTS, kept)
            })
            .await?;
        }
        let info = self
            .on_pool(move |served, _| served.pool.as_ref()?.pool().volume(volume))
            .await?
            .ok_or_else(stopping)?;
        let hosts = Some(new.hosts);
        self.export_all(vec![Surveyed { info, hosts }]).await?;
        self.route(&nqn, Some(facts.reactor)).await?;
        self.tell_discovery().await?;
        Ok(uuid)
    }

    /// Makes a volume larger.
    pub(crate) async fn resize_volume(
        &mut self,
        volume: &str,
        bytes: u64,
    ) -> Result<Uuid, Failure> {
        let Volume { info, nqn, .. } = self.volume(volume)?.clone();
        let what = format!("volume {} not resized", named(&info.name, info.uuid));
        check_size("size_bytes", bytes)?;
        if bytes < info.bytes {
            return Err(Failure::new(Reason::ShrinkRefused, what)
                .cause(format!("it has {} bytes already", info.bytes))
                .hint("a volume does not get smaller")
                .with("size_bytes", info.bytes.to_string()));
        }
        let number = info.volume;
        self.operate(&what, move |pool| pool.resize_volume(number, bytes, false))
            .await?;
        let name = nqn.clone();
        let geometry = self
            .on_pool(move |served, now| {
                let nsid = NamespaceId(VOLUME_NSID);
                served.service.refresh_namespace(now, &name, nsid)
            })
            .await?
            .map_err(|error| not_resized(&what, &error))?;
        if let Some(volume) = self.catalog.volumes.get_mut(info.uuid) {
            volume.info.bytes = bytes;
        }
        let namespaces = &mut self.subsystem_mut(&nqn)?.namespaces;
        if let Some(namespace) = namespaces.get_mut(&VOLUME_NSID) {
            namespace.geometry = geometry;
        }
        Ok(info.uuid)
    }

    /// Destroys a volume.
    pub(crate) async fn delete_volume(&mut self, volume: &str, force: bool) -> Result<(), Failure> {
        let Volume { info, nqn, .. } = self.volume(volume)?.clone();
        let what = format!("volume {} not deleted", named(&info.name, info.uuid));
        let name = nqn.clone();
        let hosts = self
            .on_pool(move |served, _| served.service.target().controller_count(&name))
            .await?;
        if hosts > 0 && !force {
            return Err(Failure::new(Reason::InUse, what)
                .cause(format!("{hosts} associations of hosts use it"))
                .hint("disconnect them first (`bowline controller list` shows them), or force it")
                .with("association_count", hosts.to_string()));
        }
        let number = info.volume;
        self.operate(&what, move |pool| pool.delete_volume(number))
            .await?;
        let name = nqn.clone();
        self.on_pool(move |served, now| pool::withdraw(served, now, &name))
            .await?;
        self.catalog.volumes.remove(info.uuid);
        if self.catalog.subsystems.remove(&nqn).is_some() {
            self.route(&nqn, None).await?;
            self.tell_discovery().await?;
        }
        Ok(())
    }

    /// By UUID or display name.
    pub(crate) fn volume(&self, volume: &str) -> Result<&Volume, Failure> {
        self.pool()?;
        self.catalog.volumes.find(volume).ok_or_else(|| {
            missing(names::volume_called(volume)).hint("`bowline volume list` shows what is")
        })
    }

    /// Keeps the hosts of a volume's subsystem in the pool.
    pub(super) async fn keep_hosts(&self, volume: Uuid, access: &Access) -> Result<(), Failure> {
        let found = self.catalog.volumes.get(volume);
        let number = found
            .ok_or_else(|| missing(names::volume(volume)))?
            .info
            .volume;
        let bytes = access.kept().encode();
        let kept = self.operate("hosts not changed", move |pool| {
            pool.set_attribute(number, attribute::HOSTS, bytes)
        });
        kept.await.map(drop)
    }
}

fn stopping() -> Failure {
    Failure::new(Reason::Stopping, "the pool is being closed").hint("ask again after the restart")
}

fn nqn_of(info: &VolumeInfo) -> String {
    identity::volume_nqn(info.uuid)
}

/// What a person knows it by.
fn named(name: &str, uuid: Uuid) -> String {
    match name {
        "" => uuid.to_string(),
        name => name.to_owned(),
    }
}

fn export_of(info: &VolumeInfo, defaults: &VolumeDefaults, access: &Access) -> Export {
    let nqn = nqn_of(info);
    let subsystem = SubsystemConfig {
        serial: identity::serial_number(&nqn),
        namespaces_max: VOLUME_NSID,
        hosts: access.allowed(),
        cntlids: defaults.cntlids.unwrap_or((1, CNTLID_MAX)),
        controllers_max: defaults.controllers_max.unwrap_or(CONTROLLERS_DEFAULT),
        ana: Some(AnaConfig {
            groups_max: 1,
            initial: defaults.ana,
            ..AnaConfig::default()
        }),
        ..SubsystemConfig::new(&nqn, "")
    };
    Export {
        volume: info.volume,
        uuid: info.uuid.into_bytes(),
        nguid: identity::namespace_nguid(&nqn, VOLUME_NSID),
        subsystem,
    }
}

fn spec_of(new: &NewVolume, uuid: Uuid) -> VolumeSpec {
    VolumeSpec {
        uuid,
        name: new.name.clone(),
        bytes: new.bytes,
        block_bytes: new.block_bytes,
        provisioning: Provisioning::Thin,
        durability: new.durability,
        checksums: Checksums::Off,
        base: None,
        created: new.created,
    }
}

/// Whether a volume that is there is what a repeated request asks for.
fn is_what_is_asked_for(found: &VolumeInfo, new: &NewVolume) -> bool {
    found.name == new.name
        && found.bytes == new.bytes
        && new
            .block_bytes
            .is_none_or(|bytes| bytes == found.block_bytes)
        && found.durability == new.durability
}

fn check_volume(new: &NewVolume) -> Result<(), Failure> {
    check_name("volume.display_name", &new.name)?;
    check_size("volume.size_bytes", new.bytes)?;
    if new.uuid.is_some_and(|uuid| uuid.is_nil()) {
        return Err(
            Failure::invalid_field("volume.uuid", "a UUID of zeroes names nothing")
                .hint("make one with `uuidgen`, or leave it out"),
        );
    }
    if new.hosts.names.len() > HOSTS_MAX {
        return Err(limit("hosts of a subsystem", HOSTS_MAX));
    }
    for host in new.hosts.iter().filter(|host| *host != ANY_HOST) {
        check::check_host_nqn(host).map_err(|why| {
            let message = format!("host NQN {host:?} is not possible");
            Failure::invalid_field("volume.host_nqns", message)
                .cause(why)
                .hint("write what /etc/nvme/hostnqn of the host holds, or any")
        })?;
    }
    Ok(())
}

fn check_name(field: &'static str, name: &str) -> Result<(), Failure> {
    let refused = |why: &str| {
        Failure::invalid_field(field, format!("the name {name:?} is not possible"))
            .cause(why)
            .hint("write up to 255 bytes without \"/\"")
    };
    if name.len() > NAME_BYTES_MAX {
        return Err(refused("it is too long"));
    }
    if name.contains('/') || name.chars().any(char::is_control) {
        return Err(refused("it holds \"/\" or what cannot be printed"));
    }
    if name == "-" || Uuid::try_parse(name).is_ok() {
        return Err(refused("it stands for something else"));
    }
    Ok(())
}

fn check_size(field: &'static str, bytes: u64) -> Result<(), Failure> {
    if bytes == 0 || !bytes.is_multiple_of(SIZE_UNIT_BYTES) {
        let message = format!("a size of {bytes} bytes is not possible");
        return Err(Failure::invalid_field(field, message)
            .hint(format!("give a positive multiple of {SIZE_UNIT_BYTES}")));
    }
    Ok(())
}
