//! Where else hosts may look: other discovery subsystems.

use std::net::SocketAddr;

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use bowline_nvme::nqn;

use super::Manager;
use super::failure::{exists, limit, missing};
use crate::catalog::{Origin, Referral};
use crate::{check, config, names, view};

/// Referrals of a data plane at most.
const REFERRALS_MAX: usize = 64;

impl Manager {
    pub(crate) async fn create_referral(
        &mut self,
        new: &config::Referral,
        origin: Origin,
    ) -> Result<(), Failure> {
        check::check_referral(new.address, new.nqn.as_deref())
            .map_err(|(message, hint)| Failure::invalid_field("referral", message).hint(hint))?;
        let referrals = &self.catalog.referrals;
        if referrals.contains_key(&new.address) {
            return Err(exists(names::referral(new.address)));
        }
        if referrals.len() >= REFERRALS_MAX {
            return Err(limit("referrals of the data plane", REFERRALS_MAX));
        }
        let referral = Referral {
            nqn: new.nqn.clone().unwrap_or_else(|| nqn::DISCOVERY.to_owned()),
            persistent_connections: new.persistent_connections,
            origin,
        };
        self.catalog.referrals.insert(new.address, referral);
        self.tell_discovery().await
    }

    pub(crate) fn referral(&self, address: SocketAddr) -> Result<api::Referral, Failure> {
        let found = self.catalog.referrals.get(&address);
        found
            .map(|it| view::referral(address, it))
            .ok_or_else(|| missing(names::referral(address)))
    }

    /// Deletes a referral; gives who had made it.
    pub(crate) async fn delete_referral(&mut self, address: SocketAddr) -> Result<Origin, Failure> {
        let removed = self.catalog.referrals.remove(&address).ok_or_else(|| {
            missing(names::referral(address)).hint("`bowline referral list` shows what is")
        })?;
        self.tell_discovery().await?;
        Ok(removed.origin)
    }
}
