//! Changes to what is served: checked here, done on the reactor that owns the
//! subsystem, then recorded in the catalog and told to discovery. One at a time.

mod ana;
mod failure;
mod host;
mod namespace;
mod referral;
mod subsystem;
mod tell;

use std::collections::BTreeMap;
use std::sync::Arc;

use bowline_api::{Failure, Reason};
use bowline_engine_spdk::Spdk;
use bowline_nvmf::target::DiscoveryTable;
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use crate::allow::AllowList;
use crate::catalog::{Catalog, Namespace, Subsystem, Volume};
use crate::fleet::Fleet;
use crate::listen::Portal;
use crate::pool::PoolAccess;
use crate::state::{Forgetting, Keeper, Kept};
use crate::{names, observe};

pub(crate) use ana::AnaGroup;
pub(crate) use failure::{exists, limit, missing, not_resized, same_identity};
use namespace::Opening;
pub(crate) use namespace::{FIRST_ANA_GROUP, NewNamespace, Reserved};
pub(crate) use subsystem::{CONTROLLERS_DEFAULT, NewSubsystem};

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

    /// What the caller of a change waits for before it answers, without keeping others: a disk.
    pub(crate) fn take_forgetting(&mut self) -> Vec<Forgetting> {
        std::mem::take(&mut self.forgetting)
    }
}

#[cfg(test)]
mod tests;
