//! What is served, as the messages of the management API.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bowline_api::dataplane::v1 as api;
use bowline_nvme::reservation::ReservationType;
use bowline_nvmf::target::{AnaState, TargetConfig};
use bowline_pool::format::record::{Checksums, Durability};
use bowline_pool::{Provisioning, ScrubReport, ScrubState, SnapshotInfo};
use uuid::Uuid;

use crate::catalog::{
    Catalog, Held, Namespace, Origin, Part, Referral, Subsystem, Volume, Volumes, called,
};
use crate::config::{BackingConfig, SpdkSource};
use crate::identity;
use crate::manage::AnaGroup;
use crate::names::{self, ANY_HOST};
use crate::pool::{PoolFacts, PoolHealth, PoolNow, VOLUME_NSID};

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
    let kind = match &namespace.held {
        Held::Backing(backing) => backing_kind(backing),
        Held::Pool(part) => api::backing::Kind::Volume(api::VolumeBacking { name: part.name() }),
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

fn backing_kind(backing: &BackingConfig) -> api::backing::Kind {
    match backing {
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
    }
}

pub(crate) fn pool(facts: &PoolFacts, now: PoolNow, volumes: &Volumes) -> api::Pool {
    let state = match now.health {
        PoolHealth::Active => api::PoolState::Active,
        PoolHealth::JournalFailed => api::PoolState::JournalFailed,
        PoolHealth::DriveGone | PoolHealth::DriveBack => api::PoolState::DriveGone,
    };
    let snapshots = volumes.iter().map(|(_, it)| it.info.snapshots.len());
    api::Pool {
        name: names::POOL.to_owned(),
        uuid: facts.uuid.to_string(),
        device: facts.device.clone(),
        state: state.into(),
        capacity_bytes: bytes(now.usage.bytes),
        used_bytes: bytes(now.usage.used_bytes),
        clean_bytes: bytes(now.usage.clean_bytes),
        volume_count: count(volumes.len()),
        snapshot_count: count(snapshots.sum()),
        reactor_index: count(facts.reactor),
        available_bytes: bytes(now.usage.available_bytes),
        promised_bytes: bytes(now.usage.promised_bytes),
        reclaiming_bytes: bytes(now.usage.reclaiming_bytes),
        checksums: Some(api::ChecksumCounts {
            verified_chunk_count: bytes(now.checksums.verified),
            unverified_chunk_count: bytes(now.checksums.unverified),
            mismatch_chunk_count: bytes(now.checksums.mismatches),
            lost_page_count: bytes(now.checksums.pages_lost),
        }),
        scrub: now.scrub.map(|report| scrub(&report)),
        last_mismatch: now.mismatch.map(|(mismatch, at)| api::Mismatch {
            volume: volumes
                .numbered(mismatch.volume)
                .map_or_else(String::new, |it| names::volume(it.info.uuid)),
            block_index: bytes(mismatch.lba),
            drive_offset_bytes: bytes(mismatch.offset),
            find_time: Some(timestamp(at)),
        }),
    }
}

fn scrub(report: &ScrubReport) -> api::Scrub {
    let state = match report.state {
        ScrubState::Running => api::ScrubState::Running,
        ScrubState::Paused => api::ScrubState::Paused,
        ScrubState::Done => api::ScrubState::Done,
        ScrubState::Stopped => api::ScrubState::Stopped,
    };
    api::Scrub {
        state: state.into(),
        position_bytes: bytes(report.position),
        total_bytes: bytes(report.total),
        verified_chunk_count: bytes(report.verified),
        unverified_chunk_count: bytes(report.unverified),
        plain_chunk_count: bytes(report.plain),
        mismatch_chunk_count: bytes(report.mismatches),
        unreadable_chunk_count: bytes(report.read_errors),
    }
}

/// About the bytes that a volume takes as a message: those of its hosts, and enough for all else.
pub(crate) fn volume_bytes(volume: &Volume, catalog: &Catalog) -> usize {
    const ALL_ELSE: usize = 1024;
    // A tag and a length with each.
    const HOST: usize = 4;
    let subsystem = catalog.subsystems.get(&volume.nqn);
    let hosts = subsystem.into_iter().flat_map(|it| it.access.hosts.keys());
    ALL_ELSE + hosts.map(|host| host.len() + HOST).sum::<usize>()
}

/// `allocated` is as hosts see it, and of the pool.
pub(crate) fn volume(
    volume: &Volume,
    catalog: &Catalog,
    (mapped_bytes, pool_bytes): (u64, u64),
) -> api::Volume {
    let subsystem = catalog.subsystems.get(&volume.nqn);
    let access = subsystem.map(|it| &it.access);
    let info = &volume.info;
    let durability = match info.durability {
        Durability::Media => api::Durability::Media,
        Durability::Device => api::Durability::Device,
    };
    let any = access.and_then(|it| it.any_host).map(|_| ANY_HOST);
    let named = access.into_iter().flat_map(|it| it.hosts.keys());
    let hosts = any.into_iter().chain(named.map(String::as_str));
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(info.created);
    api::Volume {
        name: names::volume(info.uuid),
        uuid: info.uuid.to_string(),
        display_name: volume.called(),
        size_bytes: bytes(info.bytes),
        block_size_bytes: number(info.block_bytes),
        durability: durability.into(),
        host_nqns: hosts.map(str::to_owned).collect(),
        allocated_bytes: bytes(mapped_bytes.min(info.bytes)),
        pool_bytes: bytes(pool_bytes),
        subsystem_nqn: volume.nqn.clone(),
        nguid: Uuid::from_bytes(identity::namespace_nguid(&volume.nqn, VOLUME_NSID))
            .simple()
            .to_string(),
        create_time: Some(timestamp(created)),
        snapshot_count: count(info.snapshots.len()),
        not_served_reason: volume.not_served.clone().unwrap_or_default(),
        provisioning: match info.provisioning {
            Provisioning::Thin => api::Provisioning::Thin.into(),
            Provisioning::Thick => api::Provisioning::Thick.into(),
        },
        checksums: match info.checksums {
            Checksums::Off => api::ChecksumMode::Off.into(),
            Checksums::Scrub => api::ChecksumMode::Scrub.into(),
            Checksums::Verify => api::ChecksumMode::Verify.into(),
        },
        source_snapshot: source(volume, &catalog.volumes).unwrap_or_default(),
    }
}

/// The snapshot that a volume began as, if it is still there.
fn source(volume: &Volume, volumes: &Volumes) -> Option<String> {
    let (base, number) = volume.info.base?;
    let base = &volumes.numbered(base)?.info;
    let snapshot = base.snapshots.iter().find(|it| it.number == number)?;
    Some(names::snapshot(base.uuid, snapshot.uuid))
}

pub(crate) fn snapshot(volume: &Volume, info: &SnapshotInfo, catalog: &Catalog) -> api::Snapshot {
    let part = Part::Snapshot {
        volume: volume.info.uuid,
        snapshot: info.uuid,
    };
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(info.created);
    api::Snapshot {
        name: names::snapshot(volume.info.uuid, info.uuid),
        uuid: info.uuid.to_string(),
        display_name: called(&info.name, info.uuid),
        size_bytes: bytes(info.bytes),
        create_time: Some(timestamp(created)),
        subsystem_nqn: catalog.export_of(part).unwrap_or_default(),
        volume_display_name: volume.called(),
    }
}

pub(crate) fn host(nqn: &str, host: &str, origin: Origin, in_start_flags: bool) -> api::Host {
    api::Host {
        name: names::host(nqn, host),
        nqn: host.to_owned(),
        persistent: origin.is_persistent(),
        in_start_flags,
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
