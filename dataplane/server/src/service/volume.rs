//! What a request for a volume or a snapshot asks for.

use std::time::{SystemTime, UNIX_EPOCH};

use bowline_api::Failure;
use bowline_api::dataplane::v1 as api;
use bowline_pool::Provisioning;
use bowline_pool::format::record::{Checksums, Durability};
use uuid::Uuid;

use super::namespace::{block_bytes, identifier};
use crate::names;
use crate::volumes::{self, NewSnapshot, NewVolume};

/// Zero and empty take the default; whether the rest is possible is decided later.
pub(super) fn new(asked: Option<api::Volume>) -> Result<NewVolume, Failure> {
    let asked = asked.ok_or_else(|| Failure::invalid_field("volume", "volume is missing"))?;
    let durability = match known("volume.durability", asked.durability)? {
        api::Durability::Unspecified | api::Durability::Media => Durability::Media,
        api::Durability::Device => Durability::Device,
    };
    let provisioning = match known("volume.provisioning", asked.provisioning)? {
        api::Provisioning::Unspecified | api::Provisioning::Thin => Provisioning::Thin,
        api::Provisioning::Thick => Provisioning::Thick,
    };
    let checksums = match known("volume.checksums", asked.checksums)? {
        api::ChecksumMode::Unspecified | api::ChecksumMode::Off => Checksums::Off,
        api::ChecksumMode::Scrub => Checksums::Scrub,
        api::ChecksumMode::Verify => Checksums::Verify,
    };
    let source = match asked.source_snapshot.as_str() {
        "" => None,
        name => {
            let (volume, snapshot) = names::parse_snapshot("volume.source_snapshot", name)?;
            Some((volume.to_owned(), snapshot.to_owned()))
        }
    };
    let bytes = size("volume.size_bytes", asked.size_bytes)?;
    Ok(NewVolume {
        uuid: uuid("volume.uuid", &asked.uuid)?,
        name: asked.display_name,
        bytes: (bytes != 0).then_some(bytes),
        block_bytes: block_bytes("volume.block_size_bytes", asked.block_size_bytes)?,
        provisioning,
        durability,
        checksums,
        source,
        hosts: volumes::hosts("volume.host_nqns", asked.host_nqns)?,
        created: now(),
    })
}

pub(super) fn new_snapshot(asked: Option<api::Snapshot>) -> Result<NewSnapshot, Failure> {
    let asked = asked.unwrap_or_default();
    Ok(NewSnapshot {
        uuid: uuid("snapshot.uuid", &asked.uuid)?,
        name: asked.display_name,
        created: now(),
    })
}

/// A choice that is none of those known here was made by a caller of a later version, who would not get
/// what he asks for.
fn known<T: TryFrom<i32>>(field: &'static str, value: i32) -> Result<T, Failure> {
    T::try_from(value).map_err(|_| {
        Failure::invalid_field(field, format!("{field} {value} is not known here"))
            .hint("this data plane is older than its caller: choose what it knows")
    })
}

fn uuid(field: &'static str, text: &str) -> Result<Option<Uuid>, Failure> {
    Ok(identifier(field, text)?.map(Uuid::from_bytes))
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

pub(super) fn size(field: &'static str, bytes: i64) -> Result<u64, Failure> {
    u64::try_from(bytes)
        .map_err(|_| Failure::invalid_field(field, format!("{field} {bytes} is negative")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_of_a_later_version_are_refused_and_not_taken_for_the_default() {
        let usual = api::Volume::default;
        new(Some(usual())).unwrap();
        let of_later = [
            api::Volume {
                durability: 99,
                ..usual()
            },
            api::Volume {
                provisioning: 99,
                ..usual()
            },
            api::Volume {
                checksums: 99,
                ..usual()
            },
        ];
        for asked in of_later {
            let refused = new(Some(asked)).unwrap_err();
            assert!(
                refused.message.ends_with("99 is not known here"),
                "{refused:?}"
            );
        }
    }
}
