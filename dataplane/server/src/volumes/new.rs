//! What may be asked for.

use bowline_api::Failure;
use bowline_pool::Provisioning;
use bowline_pool::format::record::{Checksums, Durability};
use uuid::Uuid;

use crate::check;
use crate::manage::limit;
use crate::names::ANY_HOST;
use crate::pool::AllowedHosts;

/// Bytes of a display name at most, as the format has it.
const NAME_BYTES_MAX: usize = 255;
/// Hosts allowed by name on one volume at most: so many of the longest have room in an attribute.
const HOSTS_MAX: usize = 256;
/// What sizes are multiples of.
const SIZE_UNIT_BYTES: u64 = 4096;

/// A volume to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewVolume {
    pub(crate) uuid: Option<Uuid>,
    /// Empty: its UUID stands for it.
    pub(crate) name: String,
    /// `None` takes that of the snapshot which it begins as.
    pub(crate) bytes: Option<u64>,
    /// `None` takes the drive's, or that of the volume which it begins as.
    pub(crate) block_bytes: Option<u32>,
    pub(crate) provisioning: Provisioning,
    pub(crate) durability: Durability,
    pub(crate) checksums: Checksums,
    /// Volume and snapshot that it begins as.
    pub(crate) source: Option<(String, String)>,
    pub(crate) hosts: AllowedHosts,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

/// A snapshot to be taken.
#[derive(Debug, Clone)]
pub(crate) struct NewSnapshot {
    pub(crate) uuid: Option<Uuid>,
    /// Empty: its UUID stands for it.
    pub(crate) name: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

impl NewVolume {
    pub(super) fn check(&self) -> Result<(), Failure> {
        check_name("volume.display_name", &self.name)?;
        match self.bytes {
            Some(bytes) => check_size("volume.size_bytes", bytes),
            None if self.source.is_some() => Ok(()),
            None => check_size("volume.size_bytes", 0),
        }
    }
}

pub(crate) fn check_hosts(field: &'static str, hosts: &AllowedHosts) -> Result<(), Failure> {
    check_host_count(hosts)?;
    for host in hosts.iter().filter(|host| *host != ANY_HOST) {
        check::check_host_nqn(host).map_err(|why| {
            let message = format!("host NQN {host:?} is not possible");
            Failure::invalid_field(field, message)
                .cause(why)
                .hint("write what /etc/nvme/hostnqn of the host holds, or any")
        })?;
    }
    Ok(())
}

/// Whether the pool can keep so many.
pub(super) fn check_host_count(hosts: &AllowedHosts) -> Result<(), Failure> {
    match hosts.names.len() > HOSTS_MAX {
        true => Err(limit("hosts of a volume", HOSTS_MAX)),
        false => Ok(()),
    }
}

pub(super) fn check_name(field: &'static str, name: &str) -> Result<(), Failure> {
    let refused = |why: &str| {
        Failure::invalid_field(field, format!("the name {name:?} is not possible"))
            .cause(why)
            .hint("write up to 255 bytes without \"/\"")
    };
    if name.len() > NAME_BYTES_MAX {
        return Err(refused("it is too long"));
    }
    if name.contains('/') || name.chars().any(char::is_control) {
        return Err(refused("it holds \"/\" or what cannot be printed"));
    }
    if name == "-" || Uuid::try_parse(name).is_ok() {
        return Err(refused("it stands for something else"));
    }
    Ok(())
}

pub(crate) fn check_size(field: &'static str, bytes: u64) -> Result<(), Failure> {
    if bytes == 0 || !bytes.is_multiple_of(SIZE_UNIT_BYTES) {
        let message = format!("a size of {bytes} bytes is not possible");
        return Err(Failure::invalid_field(field, message)
            .hint(format!("give a positive multiple of {SIZE_UNIT_BYTES}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_hosts_as_a_volume_may_have_can_be_kept() {
        let longest = |index: usize| format!("{index:0>223}");
        let names: std::collections::BTreeSet<_> = (0..HOSTS_MAX).map(longest).collect();
        let mut hosts = AllowedHosts { any: true, names };
        check_host_count(&hosts).unwrap();
        assert!(hosts.encode().len() <= bowline_pool::format::codec::ATTRIBUTE_BYTES_MAX);
        hosts.names.insert("one more".to_owned());
        let refused = check_host_count(&hosts).unwrap_err();
        assert_eq!(
            refused.message,
            "the limit of 256 hosts of a volume is reached"
        );
    }

    #[test]
    fn names_that_stand_for_something_else_are_refused() {
        let long = "n".repeat(256);
        for name in [
            "a/b",
            "-",
            "a\nb",
            "0f4a2b9e-5e57-4b5c-9a53-6b1f6ac9d1a2",
            &long,
        ] {
            assert!(check_name("f", name).is_err(), "{name}");
        }
        for name in ["", "db", "pvc-0f4a", "Größe 1", &"n".repeat(255)] {
            assert!(check_name("f", name).is_ok(), "{name}");
        }
    }
}
