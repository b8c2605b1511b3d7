//! Changes to what is served: checked here, done on the reactor that owns the
//! subsystem, then recorded in the catalog and told to discovery. One at a time.

mod ana;
mod failure;
mod referral;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bowline_api::{Failure, Reason};
use bowline_block::Device;
use bowline_engine_spdk::Spdk;
use bowline_nvme::NamespaceId;
use bowline_nvmf::target::{
    AnaConfig, AnaState, CNTLID_MAX, ConfigError, DiscoveryTable, HealthTotals, Persistence,
    SubsystemConfig, pad,
};
use bowline_tcp::target::NamespaceSpec;
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use crate::allow::AllowList;
use crate::backing::{Backing, Opened};
use crate::catalog::{Access, Catalog, Held, Namespace, Origin, Subsystem, Volume};
use crate::config::BackingConfig;
use crate::fleet::{Fleet, Service};
use crate::listen::Portal;
use crate::names::{self, ANY_HOST};
use crate::pool::PoolAccess;
use crate::state::{Forgetting, Keeper, Kept};
use crate::{check, identity, observe};

pub(crate) use ana::AnaGroup;
pub(crate) use failure::{exists, limit, missing, not_resized};
use failure::{not_attached, opening, refused, same_identity};

/// Subsystems of one data plane at most.
const SUBSYSTEMS_MAX: usize = 1024;
/// Hosts allowed by name in one subsystem at most.
const HOSTS_MAX: usize = 1024;
/// Backings being opened at a time at most: each that hangs holds a thread.
const OPENING_MAX: usize = 16;
/// Highest namespace identifier, and so the most namespaces of a subsystem, unless told otherwise.
/// Hosts size tables by it.
const NAMESPACES_DEFAULT: u32 = 256;
/// The ANA group of namespaces that were made without a word about groups.
pub(crate) const FIRST_ANA_GROUP: u32 = 1;
/// Controllers of a subsystem at a time, unless told otherwise.
pub(crate) const CONTROLLERS_DEFAULT: u16 = 1024;

/// The only place that changes what is served.
pub(crate) struct Manager {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) catalog: Catalog,
    pub(crate) portals: Vec<Portal>,
    pub(crate) allow: AllowList,
    /// The way to the pool on the drive, if there is one.
    pool: Option<PoolAccess>,
    /// Held by whoever changes what is in the pool.
    pub(crate) pool_changes: Arc<Mutex<()>>,
    /// Volumes that are being made, with their names.
    pub(crate) making: Vec<(Uuid, String)>,
    /// Told when discovery is to be told of what has changed.
    pub(crate) discovery_due: Arc<Notify>,
    /// The library whose devices may back namespaces, if there is one.
    pub(crate) spdk: Option<Spdk>,
    /// Rises with every change that discovery shows.
    discovery: Arc<DiscoveryTable>,
    opening: Vec<Opening>,
    /// Where reservations are kept that outlive the process, if they are.
    keeper: Option<Keeper>,
    /// Those that were found there, until their namespace comes.
    kept: BTreeMap<(String, u32), Kept>,
    /// Of namespaces that were just removed.
    forgetting: Vec<Forgetting>,
}

/// What a namespace has while its backing is being opened.
#[derive(Debug)]
struct Opening {
    nqn: String,
    nsid: u32,
    /// Without links, once that is known.
    path: Option<PathBuf>,
}

impl Opening {
    fn is(&self, nqn: &str, nsid: u32) -> bool {
        self.nqn == nqn && self.nsid == nsid
    }
}

/// A namespace whose place is kept while its backing is being opened.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) nqn: String,
    pub(crate) nsid: u32,
    pub(crate) new: NewNamespace,
}

/// A subsystem to be made; `None` takes the default.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewSubsystem {
    pub(crate) nqn: String,
    /// Derived from the NQN by default.
    pub(crate) serial: Option<String>,
    /// First and last controller ID.
    pub(crate) cntlids: Option<(u16, u16)>,
    pub(crate) controllers_max: Option<u16>,
    pub(crate) namespaces_max: Option<u32>,
    /// State of an ANA group at first; hosts are told of no ANA by default.
    pub(crate) ana: Option<AnaState>,
    /// What it had been through before.
    pub(crate) health: HealthTotals,
}

/// A namespace to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewNamespace {
    /// `None` takes the next free.
    pub(crate) nsid: Option<u32>,
    pub(crate) backing: BackingConfig,
    /// `None` takes the backing's own.
    pub(crate) block_bytes: Option<u32>,
    /// `None` derives it from NQN and NSID.
    pub(crate) uuid: Option<[u8; 16]>,
    /// `None` derives it from NQN and NSID.
    pub(crate) nguid: Option<[u8; 16]>,
    /// `None` takes the first, where the subsystem reports ANA.
    pub(crate) ana_group: Option<u32>,
}

impl Manager {
    pub(crate) fn new(fleet: Arc<Fleet>, portals: Vec<Portal>, allow: AllowList) -> Self {
        Self {
            fleet,
            catalog: Catalog::default(),
            portals,
            allow,
            pool: None,
            pool_changes: Arc::default(),
            making: Vec::new(),
            discovery_due: Arc::default(),
            spdk: None,
            discovery: Arc::default(),
            opening: Vec::new(),
            keeper: None,
            kept: BTreeMap::new(),
            forgetting: Vec::new(),
        }
    }

    /// Lets reservations outlive the process, and takes those that did.
    pub(crate) fn keep_reservations(
        &mut self,
        keeper: Option<Keeper>,
        kept: BTreeMap<(String, u32), Kept>,
    ) {
        self.keeper = keeper;
        self.kept = kept;
    }

    /// From now on there is a pool.
    pub(crate) fn serve_pool(&mut self, access: PoolAccess) {
        self.pool = Some(access);
    }

    pub(crate) fn pool(&self) -> Result<&PoolAccess, Failure> {
        self.pool.as_ref().ok_or_else(|| {
            Failure::new(Reason::NoPool, "this data plane has no pool")
                .cause("it serves its whole device as one namespace")
                .hint("start it with --format on an empty device, or on one that has a pool")
        })
    }

    /// The reactor that owns the pool.
    pub(crate) fn pool_reactor(&self) -> usize {
        self.pool.as_ref().map_or(0, |it| it.facts.reactor)
    }

    /// A volume by UUID or display name.
    pub(crate) fn volume(&self, volume: &str) -> Result<&Volume, Failure> {
        self.pool()?;
        self.catalog.volumes.find(volume).ok_or_else(|| {
            missing(names::volume_called(volume)).hint("`bowline volume list` shows what is")
        })
    }

    pub(crate) async fn create_subsystem(
        &mut self,
        new: NewSubsystem,
        origin: Origin,
    ) -> Result<(), Failure> {
        let nqn = new.nqn.as_str();
        check_subsystem(&new)?;
        if self.catalog.subsystems.contains_key(nqn) {
            return Err(exists(names::subsystem(nqn)));
        }
        // Volumes have theirs besides: how many there can be is the pool's affair.
        let besides = self.catalog.subsystems.len() - self.catalog.exported();
        if besides >= SUBSYSTEMS_MAX {
            return Err(limit("subsystems of the data plane", SUBSYSTEMS_MAX));
        }
        let owner = self.catalog.least_loaded(self.fleet.members.len());
        let config = SubsystemConfig {
            serial: match &new.serial {
                Some(serial) => pad(serial),
                None => identity::serial_number(nqn),
            },
            cntlids: new.cntlids.unwrap_or((1, CNTLID_MAX)),
            controllers_max: new.controllers_max.unwrap_or(CONTROLLERS_DEFAULT),
            namespaces_max: new.namespaces_max.unwrap_or(NAMESPACES_DEFAULT),
            ana: new.ana.map(|initial| AnaConfig {
                initial,
                ..AnaConfig::default()
            }),
            health: new.health,
            ..SubsystemConfig::new(nqn, "")
        };
        let subsystem = Subsystem::new(owner, &config, origin);
        self.fleet
            .call(owner, move |service, _, now| {
                service.target().add_subsystem(now, config)
            })
            .await?
            .map_err(|error| refused(&names::subsystem(nqn), error))?;
        self.catalog.subsystems.insert(nqn.to_owned(), subsystem);
        self.route(nqn, Some(owner)).await?;
        self.tell_discovery().await
    }

    /// Deletes a subsystem; gives who had made it.
    pub(crate) async fn delete_subsystem(&mut self, nqn: &str) -> Result<Origin, Failure> {
        let Subsystem {
            reactor: owner,
            origin,
            ..
        } = *self.not_of_pool(nqn)?;
        let name = nqn.to_owned();
        self.fleet
            .call(owner, move |service, _, now| {
                service.remove_subsystem(now, &name)
            })
            .await?
            .map_err(|error| refused(&names::subsystem(nqn), error))?;
        let removed = self.catalog.subsystems.remove(nqn);
        let namespaces = removed.map(|it| it.namespaces).unwrap_or_default();
        self.forget_reservations(nqn, namespaces.into_keys().collect());
        self.route(nqn, None).await?;
        self.tell_discovery().await?;
        Ok(origin)
    }

    /// Takes an identifier for a namespace whose backing is yet to be opened. Opening may take
    /// for ever, so nothing else waits for it; [`Manager::release`] comes after it.
    pub(crate) fn reserve(&mut self, nqn: &str, new: NewNamespace) -> Result<Reserved, Failure> {
        if self.opening.len() >= OPENING_MAX {
            return Err(limit("backings opened at a time", OPENING_MAX));
        }
        let (_, nsid) = self.place_namespace(nqn, &new)?;
        let reserved = Reserved {
            nqn: nqn.to_owned(),
            nsid,
            new: NewNamespace {
                nsid: Some(nsid),
                ..new
            },
        };
        self.opening.push(Opening {
            nqn: reserved.nqn.clone(),
            nsid,
            path: None,
        });
        Ok(reserved)
    }

    /// Takes the path too, now that it is known without links.
    pub(crate) fn claim(&mut self, reserved: &Reserved, path: &Path) -> Result<(), Failure> {
        self.unused(path)?;
        for opening in &mut self.opening {
            if opening.is(&reserved.nqn, reserved.nsid) {
                opening.path = Some(path.to_owned());
            }
        }
        Ok(())
    }

    /// Gives back what was reserved: the namespace is made next, or not at all.
    pub(crate) fn release(&mut self, reserved: &Reserved) {
        self.opening
            .retain(|opening| !opening.is(&reserved.nqn, reserved.nsid));
    }

    /// Makes a namespace over a backing that is open already; gives its identifier.
    pub(crate) async fn attach_namespace(
        &mut self,
        nqn: &str,
        new: NewNamespace,
        opened: Opened,
        origin: Origin,
    ) -> Result<u32, Failure> {
        let (owner, nsid) = self.place_namespace(nqn, &new)?;
        let (uuid, nguid) = new.identity(nqn, nsid);
        let spec = NamespaceSpec {
            nsid: Some(nsid),
            uuid,
            nguid,
            ana_group: new.ana_group,
            persistence: self.persistence(nqn, nsid, uuid, &new.backing),
            shared: matches!(new.backing, BackingConfig::Path { shared: true, .. }),
        };
        let name = nqn.to_owned();
        let added = self.fleet.work(owner, move |served, cx, now| {
            let there = served.drive.take();
            let device = opened.attach(cx, there).map_err(AddError::Attach)?;
            let geometry = device.geometry();
            served
                .service
                .add_namespace(now, &name, spec, Backing::Drive(device))
                .map_err(AddError::Config)?;
            Ok(geometry)
        });
        let added = added.await?.map_err(|error: AddError| match error {
            AddError::Attach(error) => not_attached(&names::namespace(nqn, nsid), &error),
            AddError::Config(error) => refused(&names::namespace(nqn, nsid), error),
        });
        if let (Err(_), Some(keeper)) = (&added, &self.keeper) {
            keeper.unidentify(nqn, nsid);
        }
        let geometry = added?;
        let namespace = Namespace {
            held: Held::Backing(new.backing),
            uuid,
            nguid,
            ana_group: match self.subsystem(nqn)?.ana {
                Some(_) => new.ana_group.unwrap_or(FIRST_ANA_GROUP),
                None => 0,
            },
            geometry,
            origin,
        };
        self.subsystem_mut(nqn)?.namespaces.insert(nsid, namespace);
        self.kept.remove(&(nqn.to_owned(), nsid));
        Ok(nsid)
    }

    /// Whether a new namespace's reservations outlive the process, and those that did.
    fn persistence(
        &self,
        nqn: &str,
        nsid: u32,
        uuid: [u8; 16],
        backing: &BackingConfig,
    ) -> Persistence {
        if backing.is_shared() {
            // The other data planes would not keep them. (ADR 0009)
            if self.kept.contains_key(&(nqn.to_owned(), nsid)) {
                tracing::warn!(
                    subsystem_nqn = %nqn, nsid,
                    "reservations of before are not in force while the device is shared"
                );
            }
            return Persistence::NoReservations;
        }
        let Some(keeper) = &self.keeper else {
            return Persistence::Unsupported;
        };
        keeper.identify(nqn, nsid, uuid);
        match self.kept.get(&(nqn.to_owned(), nsid)) {
            Some((of, state)) if *of == uuid => Persistence::Stored(Some(state.clone())),
            Some(_) => {
                tracing::warn!(
                    subsystem_nqn = %nqn, nsid, "reservations of another disk are forgotten"
                );
                Persistence::Stored(None)
            }
            None => Persistence::Stored(None),
        }
    }

    /// Forgets the reservations of namespaces that were removed.
    fn forget_reservations(&mut self, nqn: &str, nsids: Vec<u32>) {
        if let Some(keeper) = &self.keeper
            && !nsids.is_empty()
        {
            self.forgetting.push(keeper.forget(nqn, nsids));
        }
    }

    /// What the caller of a change waits for before it answers, without keeping others: a disk.
    pub(crate) fn take_forgetting(&mut self) -> Vec<Forgetting> {
        std::mem::take(&mut self.forgetting)
    }

    /// Reads the backing's size anew.
    pub(crate) async fn resize_namespace(&mut self, nqn: &str, nsid: u32) -> Result<(), Failure> {
        self.not_of_pool(nqn)?;
        let owner = self.namespace(nqn, nsid)?.0.reactor;
        let name = nqn.to_owned();
        let geometry = self
            .fleet
            .call(owner, move |service, _, now| {
                service.refresh_namespace(now, &name, NamespaceId(nsid))
            })
            .await?
            .map_err(|error| not_resized(&names::namespace(nqn, nsid), &error))?;
        if let Some(namespace) = self.subsystem_mut(nqn)?.namespaces.get_mut(&nsid) {
            namespace.geometry = geometry;
        }
        Ok(())
    }

    /// Removes a namespace; gives who had made it. Its backing is let go when its last command
    /// has ended.
    pub(crate) async fn delete_namespace(
        &mut self,
        nqn: &str,
        nsid: u32,
    ) -> Result<Origin, Failure> {
        self.not_of_pool(nqn)?;
        let (subsystem, namespace) = self.namespace(nqn, nsid)?;
        let (owner, origin) = (subsystem.reactor, namespace.origin);
        let name = nqn.to_owned();
        self.fleet
            .call(owner, move |service, _, now| {
                service.remove_namespace(now, &name, NamespaceId(nsid))
            })
            .await?
            .map_err(|error| refused(&names::namespace(nqn, nsid), error))?;
        let subsystem = self.subsystem_mut(nqn)?;
        subsystem.namespaces.remove(&nsid);
        subsystem.given_up_nsid = subsystem.given_up_nsid.max(nsid);
        self.forget_reservations(nqn, vec![nsid]);
        Ok(origin)
    }

    /// Allows a host, or every host; gives who allowed it first.
    pub(crate) async fn allow_host(
        &mut self,
        nqn: &str,
        host: &str,
        origin: Origin,
    ) -> Result<Origin, Failure> {
        let mut access = self.subsystem(nqn)?.access.clone();
        self.check_host(nqn, host)?;
        let origin = access.origin(host).unwrap_or(origin);
        access.allow(host, origin);
        self.apply_access(nqn, access).await?;
        Ok(origin)
    }

    /// Whether one more host may be allowed.
    pub(crate) fn check_host(&self, nqn: &str, host: &str) -> Result<(), Failure> {
        if host == ANY_HOST {
            return Ok(());
        }
        check::check_host_nqn(host).map_err(|why| {
            Failure::invalid_field("host_nqn", format!("host NQN {host:?} is not possible"))
                .cause(why)
                .hint("write what /etc/nvme/hostnqn of the host holds, or any")
        })?;
        let hosts = &self.subsystem(nqn)?.access.hosts;
        match hosts.len() >= HOSTS_MAX && !hosts.contains_key(host) {
            true => Err(limit("hosts of a subsystem", HOSTS_MAX)),
            false => Ok(()),
        }
    }

    /// Takes a permission back, and gives who had allowed the host. Associations of hosts that
    /// are not allowed any more end.
    pub(crate) async fn deny_host(&mut self, nqn: &str, host: &str) -> Result<Origin, Failure> {
        let mut access = self.subsystem(nqn)?.access.clone();
        let origin = access.deny(host).ok_or_else(|| {
            missing(names::host(nqn, host)).hint("`bowline host list` shows who is")
        })?;
        self.apply_access(nqn, access).await?;
        Ok(origin)
    }

    /// Whether the flags at start allow a host, whoever else does.
    pub(crate) fn is_in_start_flags(&self, nqn: &str, host: &str) -> bool {
        let Some(subsystem) = self.catalog.subsystems.get(nqn) else {
            return false;
        };
        match (&self.pool, subsystem.part) {
            (Some(pool), Some(_)) => pool.facts.defaults.hosts.iter().any(|it| it == host),
            _ => subsystem.access.origin(host) == Some(Origin::Start),
        }
    }

    /// Takes over the sizes and states that devices reported by themselves.
    pub(crate) async fn observe_geometries(&mut self) -> Result<(), Failure> {
        for observation in observe::all(&self.fleet).await? {
            for seen in observation.subsystems {
                let Some(subsystem) = self.catalog.subsystems.get_mut(&seen.nqn) else {
                    continue;
                };
                for found in seen.namespaces {
                    if let Some(namespace) = subsystem.namespaces.get_mut(&found.nsid) {
                        namespace.geometry.blocks = found.geometry.blocks;
                        namespace.geometry.read_only = found.geometry.read_only;
                        namespace.geometry.volatile_cache = found.geometry.volatile_cache;
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn subsystem(&self, nqn: &str) -> Result<&Subsystem, Failure> {
        self.catalog
            .subsystems
            .get(nqn)
            .ok_or_else(|| missing(names::subsystem(nqn)))
    }

    /// A subsystem that may be changed as such.
    fn not_of_pool(&self, nqn: &str) -> Result<&Subsystem, Failure> {
        let subsystem = self.subsystem(nqn)?;
        match subsystem.part {
            None => Ok(subsystem),
            Some(part) => Err(Failure::new(
                Reason::InUse,
                format!("{} not changed", names::subsystem(nqn)),
            )
            .cause(format!("it exports {}", part.name()))
            .hint("see `bowline volume --help` and `bowline snapshot --help`")),
        }
    }

    pub(crate) fn namespace(
        &self,
        nqn: &str,
        nsid: u32,
    ) -> Result<(&Subsystem, &Namespace), Failure> {
        let subsystem = self.subsystem(nqn)?;
        let namespace = subsystem.namespaces.get(&nsid);
        namespace
            .map(|namespace| (subsystem, namespace))
            .ok_or_else(|| {
                missing(names::namespace(nqn, nsid)).hint("`bowline namespace list` shows what is")
            })
    }

    pub(crate) fn subsystem_mut(&mut self, nqn: &str) -> Result<&mut Subsystem, Failure> {
        self.catalog
            .subsystems
            .get_mut(nqn)
            .ok_or_else(|| missing(names::subsystem(nqn)))
    }

    /// The reactor and the identifier of a new namespace, if it may be made.
    fn place_namespace(&self, nqn: &str, new: &NewNamespace) -> Result<(usize, u32), Failure> {
        let subsystem = self.not_of_pool(nqn)?;
        let is_opening = |nsid: u32| self.opening.iter().any(|opening| opening.is(nqn, nsid));
        let nsid = match new.nsid {
            None => subsystem
                .free_nsid(is_opening)
                .ok_or_else(|| limit("namespaces of the subsystem", subsystem.namespaces_max))?,
            Some(nsid) if nsid > subsystem.namespaces_max => {
                let most = subsystem.namespaces_max;
                let message = format!("nsid {nsid} is larger than {most}");
                return Err(Failure::invalid_field("namespace.nsid", message)
                    .hint("how many a subsystem may have is said when it is made"));
            }
            Some(nsid) if subsystem.namespaces.contains_key(&nsid) => {
                return Err(exists(names::namespace(nqn, nsid)));
            }
            Some(nsid) if is_opening(nsid) => return Err(opening(&names::namespace(nqn, nsid))),
            Some(nsid) => nsid,
        };
        if let Some(path) = new.backing.path() {
            self.unused(path)?;
        }
        let (uuid, nguid) = new.identity(nqn, nsid);
        match self.catalog.identified_by(uuid, nguid) {
            Some((nqn, nsid)) => Err(same_identity(&names::namespace(nqn, nsid))),
            None => Ok((subsystem.reactor, nsid)),
        }
    }

    /// A path backs one namespace at most.
    fn unused(&self, path: &Path) -> Result<(), Failure> {
        let being_opened = self
            .opening
            .iter()
            .find(|opening| opening.path.as_deref() == Some(path))
            .map(|opening| (opening.nqn.as_str(), opening.nsid));
        let Some((nqn, nsid)) = self.catalog.backed_by(path).or(being_opened) else {
            return Ok(());
        };
        let message = format!("{} backs a namespace already", path.display());
        Err(Failure::new(Reason::BackingInUse, message)
            .cause(format!("it is {}", names::namespace(nqn, nsid)))
            .hint("two namespaces over one disk would corrupt each other's data"))
    }

    /// Lets the reactor serve these hosts, and only then records them.
    pub(crate) async fn apply_access(&mut self, nqn: &str, access: Access) -> Result<(), Failure> {
        let owner = self.subsystem(nqn)?.reactor;
        let (name, hosts) = (nqn.to_owned(), access.allowed());
        self.fleet
            .call(owner, move |service, _, now| {
                service.target().set_hosts(now, &name, hosts)
            })
            .await?
            .map_err(|error| refused(&names::subsystem(nqn), error))?;
        self.subsystem_mut(nqn)?.access = access;
        self.tell_discovery().await
    }

    /// Tells the other reactors where a subsystem lives, so that they hand its
    /// connections over; or that it is gone.
    pub(crate) async fn route(&self, nqn: &str, owner: Option<usize>) -> Result<(), Failure> {
        for index in 0..self.fleet.members.len() {
            let name = nqn.to_owned();
            match owner.and_then(|owner| self.fleet.members.get(owner)) {
                Some(_) if owner == Some(index) => {}
                Some(member) => {
                    let route = member.route();
                    self.fleet
                        .call(index, move |service, _, _| service.set_route(name, route))
                        .await?;
                }
                None => {
                    self.fleet
                        .call(index, move |service, _, _| service.clear_route(&name))
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// The same, for subsystems of the pool's reactor that have just come.
    pub(crate) async fn route_all(&self, nqns: Vec<String>) -> Result<(), Failure> {
        let owner = self.pool_reactor();
        let Some(member) = self.fleet.members.get(owner) else {
            return Ok(());
        };
        for index in (0..self.fleet.members.len()).filter(|index| *index != owner) {
            let (route, nqns) = (member.route(), nqns.clone());
            let set = move |service: &mut Service, _: &mut _, _| {
                for nqn in nqns {
                    service.set_route(nqn, route.clone());
                }
            };
            self.fleet.call(index, set).await?;
        }
        Ok(())
    }

    pub(crate) async fn tell_discovery(&mut self) -> Result<(), Failure> {
        let entries = self.catalog.discovery(&self.portals);
        let table = Arc::new(self.discovery.next(entries));
        self.discovery = Arc::clone(&table);
        for index in 0..self.fleet.members.len() {
            let table = Arc::clone(&table);
            self.fleet
                .call(index, move |service, _, now| {
                    service.target().set_discovery(now, table)
                })
                .await?;
        }
        Ok(())
    }
}

impl NewNamespace {
    /// UUID and NGUID.
    fn identity(&self, nqn: &str, nsid: u32) -> ([u8; 16], [u8; 16]) {
        let uuid = self
            .uuid
            .unwrap_or_else(|| identity::namespace_uuid(nqn, nsid));
        let nguid = self
            .nguid
            .unwrap_or_else(|| identity::namespace_nguid(nqn, nsid));
        (uuid, nguid)
    }
}

/// Finds what is impossible, with the field of the request that says so.
fn check_subsystem(new: &NewSubsystem) -> Result<(), Failure> {
    let refused = |field, (message, hint): (String, String)| {
        Failure::invalid_field(field, message).hint(hint)
    };
    check::check_subsystem_nqn(&new.nqn).map_err(|why| {
        let nqn = &new.nqn;
        Failure::invalid_field("subsystem.nqn", format!("NQN {nqn:?} is not possible"))
            .cause(why)
            .hint("write it like nqn.2026-11.io.bowline:node:drive")
    })?;
    if let Some(serial) = &new.serial {
        check::check_serial(serial).map_err(|why| refused("subsystem.serial_number", why))?;
    }
    if let Some(range) = new.cntlids {
        check::check_cntlids(range).map_err(|why| refused("subsystem.cntlid_range", why))?;
    }
    if let Some(most) = new.controllers_max {
        let field = "subsystem.controller_max_count";
        check::check_controllers_max(most).map_err(|why| refused(field, why))?;
    }
    if let Some(most) = new.namespaces_max {
        let field = "subsystem.namespace_max_count";
        check::check_namespaces_max(most).map_err(|why| refused(field, why))?;
    }
    Ok(())
}

enum AddError {
    Attach(io::Error),
    Config(ConfigError),
}

#[cfg(test)]
mod tests;
