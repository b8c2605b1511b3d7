//! Subsystems: made and deleted.

use bowline_api::Failure;
use bowline_nvmf::target::{AnaConfig, AnaState, CNTLID_MAX, HealthTotals, SubsystemConfig, pad};

use super::Manager;
use super::failure::{exists, limit, refused};
use crate::catalog::{Origin, Subsystem};
use crate::{check, identity, names};

/// Subsystems of one data plane at most.
const SUBSYSTEMS_MAX: usize = 1024;
/// Highest namespace identifier, and so the most namespaces of a subsystem, unless told otherwise.
/// Hosts size tables by it.
const NAMESPACES_DEFAULT: u32 = 256;
/// Controllers of a subsystem at a time, unless told otherwise.
pub(crate) const CONTROLLERS_DEFAULT: u16 = 1024;

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

impl Manager {
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
