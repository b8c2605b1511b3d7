//! Resource names of the management API: `subsystems/{nqn}/…`. An NQN may hold
//! any character but "/", which [`check_nqn`] refuses, so names split in one way.

use std::net::SocketAddr;

use bowline_api::Failure;
use uuid::Uuid;

/// Name of the only resource that is not in a collection.
pub(crate) const DATA_PLANE: &str = "dataplane";

/// What stands for every host, as an NQN and as the last part of a host's name.
pub(crate) const ANY_HOST: &str = "any";

const SUBSYSTEMS: &str = "subsystems/";
const NAMESPACES: &str = "/namespaces/";
const HOSTS: &str = "/hosts/";
const ANA_GROUPS: &str = "/anaGroups/";
const REFERRALS: &str = "referrals/";
const VOLUMES: &str = "volumes/";
const SNAPSHOTS: &str = "/snapshots/";

/// Name of the pool, of which there is one at the most.
pub(crate) const POOL: &str = "pool";

/// The parent of a list: one subsystem, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent<'a> {
    All,
    Subsystem(&'a str),
}

impl Parent<'_> {
    pub(crate) fn holds(self, nqn: &str) -> bool {
        match self {
            Self::All => true,
            Self::Subsystem(parent) => parent == nqn,
        }
    }
}

/// What counters are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted<'a> {
    DataPlane,
    Subsystem(&'a str),
    Namespace(&'a str, u32),
}

pub(crate) fn subsystem(nqn: &str) -> String {
    format!("{SUBSYSTEMS}{nqn}")
}

pub(crate) fn namespace(nqn: &str, nsid: u32) -> String {
    format!("{SUBSYSTEMS}{nqn}{NAMESPACES}{nsid}")
}

pub(crate) fn host(nqn: &str, host: &str) -> String {
    format!("{SUBSYSTEMS}{nqn}{HOSTS}{host}")
}

pub(crate) fn reservations(nqn: &str, nsid: u32) -> String {
    format!("{}/reservations", namespace(nqn, nsid))
}

pub(crate) fn ana_group(nqn: &str, id: u32) -> String {
    format!("{SUBSYSTEMS}{nqn}{ANA_GROUPS}{id}")
}

pub(crate) fn controller(nqn: &str, cntlid: u16) -> String {
    format!("{SUBSYSTEMS}{nqn}/controllers/{cntlid}")
}

pub(crate) fn referral(address: SocketAddr) -> String {
    format!("{REFERRALS}{address}")
}

pub(crate) fn volume(volume: Uuid) -> String {
    format!("{VOLUMES}{volume}")
}

/// As somebody named it, by UUID or display name.
pub(crate) fn volume_called(volume: &str) -> String {
    format!("{VOLUMES}{volume}")
}

/// The UUID or the display name.
pub(crate) fn parse_volume<'a>(field: &'static str, name: &'a str) -> Result<&'a str, Failure> {
    match name.strip_prefix(VOLUMES) {
        Some(volume) if !volume.is_empty() && !volume.contains('/') => Ok(volume),
        _ => Err(malformed(field, name, "volumes/{volume}")),
    }
}

pub(crate) fn snapshot(volume: Uuid, snapshot: Uuid) -> String {
    format!("{VOLUMES}{volume}{SNAPSHOTS}{snapshot}")
}

/// As somebody named it.
pub(crate) fn snapshot_called(volume: &str, snapshot: &str) -> String {
    format!("{VOLUMES}{volume}{SNAPSHOTS}{snapshot}")
}

/// Volume and snapshot, each by UUID or display name.
pub(crate) fn parse_snapshot<'a>(
    field: &'static str,
    name: &'a str,
) -> Result<(&'a str, &'a str), Failure> {
    let bad = || malformed(field, name, "volumes/{volume}/snapshots/{snapshot}");
    let (parent, snapshot) = name.split_once(SNAPSHOTS).ok_or_else(bad)?;
    let volume = parse_volume(field, parent).map_err(|_| bad())?;
    match snapshot {
        "" => Err(bad()),
        snapshot if snapshot.contains('/') => Err(bad()),
        snapshot => Ok((volume, snapshot)),
    }
}

pub(crate) fn parse_referral(field: &'static str, name: &str) -> Result<SocketAddr, Failure> {
    let address = name.strip_prefix(REFERRALS).and_then(|it| it.parse().ok());
    address.ok_or_else(|| malformed(field, name, "referrals/{address}:{port}"))
}

pub(crate) fn parse_subsystem<'a>(field: &'static str, name: &'a str) -> Result<&'a str, Failure> {
    match name.strip_prefix(SUBSYSTEMS) {
        Some(nqn) if !nqn.is_empty() && !nqn.contains('/') => Ok(nqn),
        _ => Err(malformed(field, name, "subsystems/{nqn}")),
    }
}

pub(crate) fn parse_parent<'a>(field: &'static str, name: &'a str) -> Result<Parent<'a>, Failure> {
    match parse_subsystem(field, name)? {
        "-" => Ok(Parent::All),
        nqn => Ok(Parent::Subsystem(nqn)),
    }
}

pub(crate) fn parse_namespace<'a>(
    field: &'static str,
    name: &'a str,
) -> Result<(&'a str, u32), Failure> {
    let bad = || malformed(field, name, "subsystems/{nqn}/namespaces/{nsid}");
    parse_numbered(name, NAMESPACES).ok_or_else(bad)
}

pub(crate) fn parse_ana_group<'a>(
    field: &'static str,
    name: &'a str,
) -> Result<(&'a str, u32), Failure> {
    let bad = || malformed(field, name, "subsystems/{nqn}/anaGroups/{ana_group_id}");
    parse_numbered(name, ANA_GROUPS).ok_or_else(bad)
}

/// The subsystem and the number, from 1, of something in a collection of numbers.
fn parse_numbered<'a>(name: &'a str, collection: &str) -> Option<(&'a str, u32)> {
    let (parent, number) = name.split_once(collection)?;
    let nqn = parse_subsystem("name", parent).ok()?;
    let number: u32 = number.parse().ok()?;
    (number != 0).then_some((nqn, number))
}

pub(crate) fn parse_host<'a>(
    field: &'static str,
    name: &'a str,
) -> Result<(&'a str, &'a str), Failure> {
    let bad = || malformed(field, name, "subsystems/{nqn}/hosts/{host_nqn}");
    let (parent, host) = name.split_once(HOSTS).ok_or_else(bad)?;
    let nqn = parse_subsystem(field, parent).map_err(|_| bad())?;
    if host.is_empty() {
        Err(bad())
    } else {
        Ok((nqn, host))
    }
}

pub(crate) fn parse_counted<'a>(
    field: &'static str,
    name: &'a str,
) -> Result<Counted<'a>, Failure> {
    if name == DATA_PLANE {
        return Ok(Counted::DataPlane);
    }
    if name.contains(NAMESPACES) {
        return parse_namespace(field, name).map(|(nqn, nsid)| Counted::Namespace(nqn, nsid));
    }
    parse_subsystem(field, name).map(Counted::Subsystem)
}

fn malformed(field: &'static str, name: &str, expected: &str) -> Failure {
    Failure::invalid_field(
        field,
        format!("{field} {name:?} is not a name of that kind"),
    )
    .cause(format!("the format is {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NQN: &str = "nqn.2026-11.io.bowline:a:b";

    #[test]
    fn names_parse_back() {
        assert_eq!(parse_subsystem("name", &subsystem(NQN)).unwrap(), NQN);
        assert_eq!(
            parse_namespace("name", &namespace(NQN, 7)).unwrap(),
            (NQN, 7)
        );
        assert_eq!(
            parse_ana_group("name", &ana_group(NQN, 32)).unwrap(),
            (NQN, 32)
        );
        assert_eq!(
            parse_host("name", &host(NQN, ANY_HOST)).unwrap(),
            (NQN, ANY_HOST)
        );
        let with_slash = "nqn.2014-08.org.nvmexpress:uuid:a/b";
        assert_eq!(
            parse_host("name", &host(NQN, with_slash)).unwrap(),
            (NQN, with_slash)
        );
    }

    #[test]
    fn dash_is_every_subsystem() {
        assert_eq!(parse_parent("parent", "subsystems/-").unwrap(), Parent::All);
        let one = subsystem(NQN);
        assert_eq!(
            parse_parent("parent", &one).unwrap(),
            Parent::Subsystem(NQN)
        );
    }

    #[test]
    fn malformed_names_are_refused() {
        for name in [
            "",
            "subsystems",
            "subsystems/",
            "subsystems/a/b",
            "nqn.2026-11.io:x",
        ] {
            assert!(parse_subsystem("name", name).is_err(), "{name}");
        }
        for name in [
            "subsystems/a/namespaces/0",
            "subsystems/a/namespaces/-1",
            "subsystems/a",
        ] {
            assert!(parse_namespace("name", name).is_err(), "{name}");
            let name = name.replace("namespaces", "anaGroups");
            assert!(parse_ana_group("name", &name).is_err(), "{name}");
        }
        for name in ["subsystems/a/hosts/", "subsystems//hosts/x", "hosts/x"] {
            assert!(parse_host("name", name).is_err(), "{name}");
        }
    }
}
