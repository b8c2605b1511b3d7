//! What is served, as the messages of the management API.

use std::time::SystemTime;

use bowline_api::dataplane::v1 as api;
use uuid::Uuid;

use crate::catalog::{Namespace, Origin, Subsystem};
use crate::config::BackingConfig;
use crate::{identity, names};

pub(crate) fn subsystem(nqn: &str, subsystem: &Subsystem) -> api::Subsystem {
    let access = match (subsystem.access.any_host, subsystem.access.hosts.is_empty()) {
        (Some(_), _) => api::HostAccess::Any,
        (None, false) => api::HostAccess::Listed,
        (None, true) => api::HostAccess::None,
    };
    api::Subsystem {
        name: names::subsystem(nqn),
        nqn: nqn.to_owned(),
        serial_number: String::from_utf8_lossy(&identity::serial_number(nqn)).into_owned(),
        host_access: access.into(),
        namespace_count: count(subsystem.namespaces.len()),
        host_count: count(subsystem.access.hosts.len()),
        reactor_index: count(subsystem.reactor),
        persistent: subsystem.origin.is_persistent(),
        create_time: Some(timestamp(subsystem.created)),
    }
}

pub(crate) fn namespace(nqn: &str, nsid: u32, namespace: &Namespace) -> api::Namespace {
    let geometry = &namespace.geometry;
    let kind = match &namespace.backing {
        BackingConfig::Memory { size_bytes } => api::backing::Kind::Memory(api::MemoryBacking {
            size_bytes: bytes(*size_bytes),
        }),
        BackingConfig::Path(path) => api::backing::Kind::Path(api::PathBacking {
            path: path.display().to_string(),
        }),
    };
    api::Namespace {
        name: names::namespace(nqn, nsid),
        nsid: i32::try_from(nsid).unwrap_or(i32::MAX),
        backing: Some(api::Backing { kind: Some(kind) }),
        size_bytes: bytes(geometry.bytes()),
        block_size_bytes: i32::try_from(geometry.block_bytes).unwrap_or(i32::MAX),
        uuid: Uuid::from_bytes(identity::namespace_uuid(nqn, nsid)).to_string(),
        nguid: Uuid::from_bytes(identity::namespace_nguid(nqn, nsid))
            .simple()
            .to_string(),
        volatile_write_cache: geometry.volatile_cache,
        read_only: geometry.read_only,
        persistent: namespace.origin.is_persistent(),
    }
}

pub(crate) fn host(nqn: &str, host: &str, origin: Origin) -> api::Host {
    api::Host {
        name: names::host(nqn, host),
        nqn: host.to_owned(),
        persistent: origin.is_persistent(),
    }
}

pub(crate) fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

/// A quantity that is bounded far below the largest value of its field.
pub(crate) fn count(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// Bytes and totals; 2^63 is out of reach, so nothing is ever cut.
pub(crate) fn bytes(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
