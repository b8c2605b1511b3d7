//! Referrals: what requests ask for, and the list.

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;

use crate::catalog::{Catalog, Origin};
use crate::config::Referral;
use crate::manage::Manager;
use crate::view;

/// Every referral, with the key of its place in the list.
pub(super) fn keyed(catalog: &Catalog) -> Vec<(String, api::Referral)> {
    let referrals = catalog.referrals.iter();
    let mut keyed: Vec<(String, api::Referral)> = referrals
        .map(|(address, it)| (address.to_string(), view::referral(*address, it)))
        .collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0));
    keyed
}

pub(super) async fn create(
    manager: &mut Manager,
    request: api::CreateReferralRequest,
) -> Result<api::Referral, Failure> {
    let asked = request.referral.unwrap_or_default();
    let address = asked.address.parse().map_err(|_| {
        let message = format!("address {:?} is not possible", asked.address);
        Failure::invalid_field("referral.address", message)
            .hint("write it like 192.0.2.9:8009 or [2001:db8::9]:8009")
    })?;
    let new = Referral {
        address,
        nqn: (!asked.nqn.is_empty()).then_some(asked.nqn),
        persistent_connections: asked.persistent_connections,
    };
    manager.create_referral(&new, Origin::Api).await?;
    tracing::info!(%address, "referral added, until the process ends");
    manager.referral(address)
}
