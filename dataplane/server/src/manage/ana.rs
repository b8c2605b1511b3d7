//! How namespaces are reached through this data plane: states of ANA groups.

use bowline_api::{Failure, Reason};
use bowline_nvmf::target::{AnaGroupSnapshot, AnaState, ConfigError};

use super::Manager;
use super::failure::refused;
use crate::names;

/// A group at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnaGroup {
    pub(crate) group: AnaGroupSnapshot,
    /// Commands at the drive.
    pub(crate) executing: usize,
}

impl Manager {
    /// The groups of a subsystem by ascending identifier; none where it does not report ANA.
    pub(crate) async fn ana_groups(&self, nqn: &str) -> Result<Vec<AnaGroup>, Failure> {
        let owner = self.subsystem(nqn)?.reactor;
        let name = nqn.to_owned();
        let found = self.fleet.call(owner, move |service, _, _| {
            let target = service.target();
            let Some(ana) = target.ana(&name) else {
                return Ok(Vec::new());
            };
            let mut groups = Vec::with_capacity(ana.groups.len());
            for group in ana.groups {
                let executing = target.ana_executing(&name, group.id)?;
                groups.push(AnaGroup { group, executing });
            }
            Ok(groups)
        });
        found
            .await?
            .map_err(|error: ConfigError| refused(&names::subsystem(nqn), error))
    }

    pub(crate) async fn ana_group(&self, nqn: &str, id: u32) -> Result<AnaGroup, Failure> {
        let groups = self.ana_groups(nqn).await?;
        let found = groups.into_iter().find(|it| it.group.id == id);
        found.ok_or_else(|| {
            let name = names::ana_group(nqn, id);
            Failure::new(Reason::NotFound, format!("{name} does not exist"))
                .with("resource", name)
                .hint("`bowline ana list` shows what is")
        })
    }

    /// Says how a group is reached from now on, and gives what it is then.
    pub(crate) async fn set_ana_state(
        &self,
        nqn: &str,
        id: u32,
        state: AnaState,
    ) -> Result<AnaGroup, Failure> {
        let owner = self.subsystem(nqn)?.reactor;
        let name = nqn.to_owned();
        self.fleet
            .call(owner, move |service, _, now| {
                service.target().set_ana_state(now, &name, id, state)
            })
            .await?
            .map_err(|error| refused(&names::ana_group(nqn, id), error))?;
        let group = self.ana_group(nqn, id).await?;
        tracing::info!(
            subsystem_nqn = %nqn,
            ana_group = id,
            ?state,
            changes = group.group.changes,
            executing = group.executing,
            "ANA state set"
        );
        Ok(group)
    }

    /// Moves a namespace to another group.
    pub(crate) async fn set_ana_group(
        &mut self,
        nqn: &str,
        nsid: u32,
        group: u32,
    ) -> Result<(), Failure> {
        let owner = self.namespace(nqn, nsid)?.0.reactor;
        let name = nqn.to_owned();
        self.fleet
            .call(owner, move |service, _, now| {
                service.target().set_ana_group(now, &name, nsid, group)
            })
            .await?
            .map_err(|error| refused(&names::namespace(nqn, nsid), error))?;
        if let Some(namespace) = self.subsystem_mut(nqn)?.namespaces.get_mut(&nsid) {
            namespace.ana_group = group;
        }
        tracing::info!(subsystem_nqn = %nqn, nsid, ana_group = group, "namespace changed its ANA group");
        Ok(())
    }
}
