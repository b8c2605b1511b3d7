//! What a request for a volume asks for.

use std::time::{SystemTime, UNIX_EPOCH};

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use bowline_pool::format::record::Durability;
use uuid::Uuid;

use super::namespace::{block_bytes, identifier};
use crate::manage::NewVolume;
use crate::names::ANY_HOST;
use crate::pool::AllowedHosts;

/// Zero and empty take the default; whether the rest is possible is decided later.
pub(super) fn new(asked: Option<api::Volume>) -> Result<NewVolume, Failure> {
    let asked = asked.ok_or_else(|| Failure::invalid_field("volume", "volume is missing"))?;
    let durability = match asked.durability() {
        api::Durability::Unspecified | api::Durability::Media => Durability::Media,
        api::Durability::Device => Durability::Device,
    };
    let mut hosts = AllowedHosts::default();
    for host in asked.host_nqns {
        match host.as_str() {
            ANY_HOST => hosts.any = true,
            _ => {
                hosts.names.insert(host);
            }
        }
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(NewVolume {
        uuid: identifier("volume.uuid", &asked.uuid)?.map(Uuid::from_bytes),
        name: asked.display_name,
        bytes: size("volume.size_bytes", asked.size_bytes)?,
        block_bytes: block_bytes("volume.block_size_bytes", asked.block_size_bytes)?,
        durability,
        hosts,
        created: since.map_or(0, |since| since.as_secs()),
    })
}

pub(super) fn size(field: &'static str, bytes: i64) -> Result<u64, Failure> {
    u64::try_from(bytes)
        .map_err(|_| Failure::invalid_field(field, format!("{field} {bytes} is negative")))
}
