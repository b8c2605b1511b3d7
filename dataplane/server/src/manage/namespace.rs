//! Namespaces: their place is taken while their backing opens, then they are made, resized and removed.

use std::io;
use std::path::{Path, PathBuf};

use bowline_api::{Failure, Reason};
use bowline_block::Device;
use bowline_nvme::NamespaceId;
use bowline_nvmf::target::{ConfigError, Persistence};
use bowline_tcp::target::NamespaceSpec;

use super::Manager;
use super::failure::{exists, limit, not_attached, not_resized, opening, refused, same_identity};
use crate::backing::{Backing, Opened};
use crate::catalog::{Held, Namespace, Origin};
use crate::config::BackingConfig;
use crate::{identity, names};

/// Backings being opened at a time at most: each that hangs holds a thread.
pub(super) const OPENING_MAX: usize = 16;
/// The ANA group of namespaces that were made without a word about groups.
pub(crate) const FIRST_ANA_GROUP: u32 = 1;

/// What a namespace has while its backing is being opened.
#[derive(Debug)]
pub(super) struct Opening {
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
    pub(super) fn forget_reservations(&mut self, nqn: &str, nsids: Vec<u32>) {
        if let Some(keeper) = &self.keeper
            && !nsids.is_empty()
        {
            self.forgetting.push(keeper.forget(nqn, nsids));
        }
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

enum AddError {
    Attach(io::Error),
    Config(ConfigError),
}
