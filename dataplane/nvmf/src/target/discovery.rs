//! The Discovery log: what a host may know of. [FABRICS-1.1 §5]

mod table;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bowline_nvme::ControllerId;
use bowline_nvme::log::{
    Adrfam, DiscoveryEntry, DiscoveryHeader, SecType, SecureChannel, Subtype, Transport, Treq,
};
use bowline_nvme::nqn::Nqn;

use super::config::TargetConfig;
use super::log_page::Window;

pub use table::{DiscoveryKind, DiscoveryRecord, DiscoveryTable};

/// How many versions a host that reads slowly may be behind. What it holds on to is memory.
const VERSIONS_KEPT: u64 = 8;

/// The version of the table that a discovery controller is reading. It is exchanged when a host
/// begins to read, so that a log read in pieces is of one version.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    table: Arc<DiscoveryTable>,
}

impl Snapshot {
    pub(super) fn new(table: &Arc<DiscoveryTable>) -> Self {
        Self {
            table: Arc::clone(table),
        }
    }

    /// Whether the host that reads sees in this what it would see in `table`.
    pub(super) fn is_of(&self, table: &DiscoveryTable, hostnqn: &str, local: SocketAddr) -> bool {
        self.table.generation(hostnqn, local.ip()) == table.generation(hostnqn, local.ip())
    }

    /// Takes the new table if this one is too old to be kept: the host that is still reading it
    /// learns so from the generation counter.
    pub(super) fn expire(&mut self, table: &Arc<DiscoveryTable>) {
        if table.version().wrapping_sub(self.table.version()) > VERSIONS_KEPT {
            self.table = Arc::clone(table);
        }
    }

    /// Bytes of the log for this host.
    pub(super) fn log_bytes(&self, hostnqn: &str, local: SocketAddr) -> u64 {
        let count = self.table.seen_by(hostnqn, local.ip()).count();
        (u64::try_from(count).unwrap_or(0) + 1) * ENTRY_BYTES
    }

    /// Writes the part of the log that the window shows.
    pub(super) fn write(
        &self,
        window: &mut Window<'_>,
        hostnqn: &str,
        local: SocketAddr,
        config: &TargetConfig,
    ) {
        let seen = self.table.seen_by(hostnqn, local.ip());
        let header = DiscoveryHeader {
            genctr: self.table.generation(hostnqn, local.ip()),
            numrec: u64::try_from(seen.count()).unwrap_or(u64::MAX),
            recfmt: 0,
        };
        window.put(0, &header.to_bytes());
        // The header is before entry 0.
        let first = (window.start() / ENTRY_BYTES).saturating_sub(1);
        let records = seen.from(usize::try_from(first).unwrap_or(usize::MAX));
        let duplicated = seen.is_duplicated();
        for (at, record) in (first + 1..).map(|index| index * ENTRY_BYTES).zip(records) {
            if !window.shows(at, ENTRY_BYTES) {
                break;
            }
            let entry = entry(record, local, config, duplicated);
            window.put(at, &entry.to_bytes());
        }
    }
}

/// Header and entries have one size.
const ENTRY_BYTES: u64 = 1024;

fn entry(
    record: &DiscoveryRecord,
    local: SocketAddr,
    config: &TargetConfig,
    duplicated: bool,
) -> DiscoveryEntry {
    let address = advertised(record.address.ip(), local.ip());
    let (subtype, eflags) = match record.kind {
        DiscoveryKind::Referral { persistent: false } => (Subtype::Referral, 0),
        DiscoveryKind::Referral { persistent: true } => {
            (Subtype::Referral, DiscoveryEntry::EFLAGS_EPCSD)
        }
        DiscoveryKind::Nvm => (Subtype::Nvm, 0),
        DiscoveryKind::Current if duplicated => (
            Subtype::CurrentDiscovery,
            DiscoveryEntry::EFLAGS_EPCSD | DiscoveryEntry::EFLAGS_DUPRETINFO,
        ),
        DiscoveryKind::Current => (Subtype::CurrentDiscovery, DiscoveryEntry::EFLAGS_EPCSD),
    };
    let subnqn = match record.kind {
        DiscoveryKind::Current => config.discovery_name(),
        DiscoveryKind::Nvm | DiscoveryKind::Referral { .. } => &record.subnqn,
    };
    let entry = DiscoveryEntry {
        trtype: Transport::Tcp.wire(),
        adrfam: if address.is_ipv4() {
            Adrfam::Ipv4.wire()
        } else {
            Adrfam::Ipv6.wire()
        },
        subtype: subtype.wire(),
        portid: record.port_id,
        cntlid: ControllerId::DYNAMIC,
        eflags,
        subnqn: Nqn::new(subnqn).map_or([0; 256], |nqn| nqn.encode()),
        ..requirements(record.kind, config)
    };
    // Addresses and ports are always short enough.
    entry
        .with_address(&address.to_string())
        .and_then(|entry| entry.with_service(&record.address.port().to_string()))
        .unwrap_or(entry)
}

/// TREQ, ASQSZ and SECTYPE. Of another discovery subsystem nothing is known but the least that
/// every one has.
fn requirements(kind: DiscoveryKind, config: &TargetConfig) -> DiscoveryEntry {
    let ours = !matches!(kind, DiscoveryKind::Referral { .. });
    let treq = Treq {
        secure_channel: ours.then_some(SecureChannel::NotRequired),
        sq_flow_control_disable: ours,
    };
    DiscoveryEntry {
        treq: treq.wire(),
        asqsz: if ours {
            config.admin_queue_entries_max
        } else {
            ADMIN_ENTRIES_LEAST
        },
        sectype: SecType::None.wire(),
        ..DiscoveryEntry::default()
    }
}

/// Every controller takes an admin queue of this many entries. [FABRICS-1.1 §5.3]
const ADMIN_ENTRIES_LEAST: u16 = 32;

/// A wildcard address is of no use to a host: it gets the one it reached us by.
fn advertised(listen: IpAddr, local: IpAddr) -> IpAddr {
    if listen.is_unspecified() {
        local.to_canonical()
    } else {
        listen.to_canonical()
    }
}
