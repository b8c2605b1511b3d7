//! What is served, as the messages of the management API.

use std::net::SocketAddr;
use std::time::SystemTime;

use bowline_api::dataplane::v1 as api;
use bowline_nvme::reservation::ReservationType;
use bowline_nvmf::target::{AnaState, TargetConfig};
use uuid::Uuid;

use crate::catalog::{Namespace, Origin, Referral, Subsystem};
use crate::config::{BackingConfig, SpdkSource};
use crate::manage::AnaGroup;
use crate::names;

pub(crate) fn subsystem(nqn: &str, subsystem: &Subsystem) -> api::Subsystem {
    let access = match (subsystem.access.any_host, subsystem.access.hosts.is_empty()) {
        (Some(_), _) => api::HostAccess::Any,
        (None, false) => api::HostAccess::Listed,
        (None, true) => api::HostAccess::None,
    };
    api::Subsystem {
        name: names::subsystem(nqn),
        nqn: nqn.to_owned(),
        serial_number: text(&subsystem.serial),
        host_access: access.into(),
        namespace_count: count(subsystem.namespaces.len()),
        host_count: count(subsystem.access.hosts.len()),
        reactor_index: count(subsystem.reactor),
        persistent: subsystem.origin.is_persistent(),
        create_time: Some(timestamp(subsystem.created)),
        cntlid_range: Some(api::CntlidRange {
            first_cntlid: i32::from(subsystem.cntlids.0),
            last_cntlid: i32::from(subsystem.cntlids.1),
        }),
        controller_max_count: i32::from(subsystem.controllers_max),
        namespace_max_count: number(subsystem.namespaces_max),
        ana: subsystem.ana.is_some(),
        initial_ana_state: match subsystem.ana {
            Some(ana) => ana_state(ana.initial).into(),
            None => api::AnaState::Unspecified.into(),
        },
    }
}

pub(crate) fn ana_group(nqn: &str, found: &AnaGroup) -> api::AnaGroup {
    let AnaGroup { group, executing } = found;
    api::AnaGroup {
        name: names::ana_group(nqn, group.id),
        ana_group_id: number(group.id),
        state: ana_state(group.state).into(),
        change_count: bytes(group.changes),
        nsids: group.nsids.iter().copied().map(number).collect(),
        executing_command_count: count(*executing),
    }
}

pub(crate) fn ana_state(state: AnaState) -> api::AnaState {
    match state {
        AnaState::Optimized => api::AnaState::Optimized,
        AnaState::NonOptimized => api::AnaState::NonOptimized,
        AnaState::Inaccessible => api::AnaState::Inaccessible,
        AnaState::PersistentLoss => api::AnaState::PersistentLoss,
        AnaState::Change => api::AnaState::Change,
    }
}

pub(crate) fn reservation_type(rtype: ReservationType) -> api::ReservationType {
    match rtype {
        ReservationType::WriteExclusive => api::ReservationType::WriteExclusive,
        ReservationType::ExclusiveAccess => api::ReservationType::ExclusiveAccess,
        ReservationType::WriteExclusiveRegistrantsOnly => {
            api::ReservationType::WriteExclusiveRegistrantsOnly
        }
        ReservationType::ExclusiveAccessRegistrantsOnly => {
            api::ReservationType::ExclusiveAccessRegistrantsOnly
        }
        ReservationType::WriteExclusiveAllRegistrants => {
            api::ReservationType::WriteExclusiveAllRegistrants
        }
        ReservationType::ExclusiveAccessAllRegistrants => {
            api::ReservationType::ExclusiveAccessAllRegistrants
        }
    }
}

/// Identifiers and limits, which stay far below the largest value of their fields.
fn number(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// ASCII that is padded with spaces.
fn text(padded: &[u8]) -> String {
    String::from_utf8_lossy(padded).trim_end().to_owned()
}

pub(crate) fn namespace(nqn: &str, nsid: u32, namespace: &Namespace) -> api::Namespace {
    let geometry = &namespace.geometry;
    let kind = match &namespace.backing {
        BackingConfig::Memory { size_bytes } => api::backing::Kind::Memory(api::MemoryBacking {
            size_bytes: bytes(*size_bytes),
        }),
        BackingConfig::Path { path, shared } => api::backing::Kind::Path(api::PathBacking {
            path: path.display().to_string(),
            shared: *shared,
        }),
        BackingConfig::Spdk(SpdkSource::Drive(name) | SpdkSource::Bdev(name)) => {
            api::backing::Kind::Bdev(api::BdevBacking { name: name.clone() })
        }
    };
    api::Namespace {
        name: names::namespace(nqn, nsid),
        nsid: number(nsid),
        backing: Some(api::Backing { kind: Some(kind) }),
        size_bytes: bytes(geometry.bytes()),
        block_size_bytes: number(geometry.block_bytes),
        uuid: Uuid::from_bytes(namespace.uuid).to_string(),
        nguid: Uuid::from_bytes(namespace.nguid).simple().to_string(),
        volatile_write_cache: geometry.volatile_cache,
        read_only: geometry.read_only,
        persistent: namespace.origin.is_persistent(),
        ana_group_id: number(namespace.ana_group),
    }
}

pub(crate) fn host(nqn: &str, host: &str, origin: Origin) -> api::Host {
    api::Host {
        name: names::host(nqn, host),
        nqn: host.to_owned(),
        persistent: origin.is_persistent(),
    }
}

pub(crate) fn referral(address: SocketAddr, referral: &Referral) -> api::Referral {
    api::Referral {
        name: names::referral(address),
        address: address.to_string(),
        nqn: referral.nqn.clone(),
        persistent_connections: referral.persistent_connections,
        persistent: referral.origin.is_persistent(),
    }
}

pub(crate) fn limits(config: &TargetConfig) -> api::Limits {
    api::Limits {
        max_transfer_bytes: number(config.mdts_bytes),
        in_capsule_data_bytes: number(config.icd_bytes),
        queue_entry_count: i32::from(config.io_queue_entries_max),
        io_queue_max_count: i32::from(config.io_queues_max),
        connection_max_count: number(config.connections_max),
        unassociated_connection_max_count: number(config.unassociated_per_address_max),
        host_queue_max_count: number(config.queues_per_host_max),
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
