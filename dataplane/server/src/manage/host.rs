//! Who may connect to a subsystem.

use bowline_api::Failure;

use super::Manager;
use super::failure::{limit, missing, refused};
use crate::catalog::{Access, Origin};
use crate::check;
use crate::names::{self, ANY_HOST};

/// Hosts allowed by name in one subsystem at most.
const HOSTS_MAX: usize = 1024;

impl Manager {
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
}
