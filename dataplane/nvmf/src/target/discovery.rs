//! The Discovery log: what a host may know of. [FABRICS-1.1 §5]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bowline_nvme::ControllerId;
use bowline_nvme::log::{
    Adrfam, DiscoveryEntry, DiscoveryHeader, SecureChannel, Subtype, Transport, Treq,
};
use bowline_nvme::nqn::Nqn;

use super::config::{DiscoveryKind, DiscoveryRecord, DiscoveryTable, TargetConfig};
use super::log_page::Window;

/// The version of the table that a discovery controller is reading. It is exchanged only when a
/// host begins to read, so that a log read in pieces is of one version.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    table: Arc<DiscoveryTable>,
    /// Generation Counter: changes only if something this host sees has changed.
    genctr: u64,
}

impl Snapshot {
    pub(super) fn new(table: &Arc<DiscoveryTable>) -> Self {
        Self {
            table: Arc::clone(table),
            genctr: table.genctr,
        }
    }

    /// Whether `table` tells this host something else.
    pub(super) fn differs(&self, table: &DiscoveryTable, hostnqn: &str) -> bool {
        !visible(&self.table, hostnqn)
            .map(content)
            .eq(visible(table, hostnqn).map(content))
    }

    /// Takes the new table; the generation counter moves only if the host can see why.
    pub(super) fn refresh(&mut self, table: &Arc<DiscoveryTable>, hostnqn: &str) {
        if self.differs(table, hostnqn) {
            self.genctr = if table.genctr == self.genctr {
                self.genctr.wrapping_add(1)
            } else {
                table.genctr
            };
        }
        self.table = Arc::clone(table);
    }

    /// Bytes of the log for this host.
    pub(super) fn log_bytes(&self, hostnqn: &str) -> u64 {
        let count = u64::try_from(visible(&self.table, hostnqn).count()).unwrap_or(0);
        (count + 1) * ENTRY_BYTES
    }

    /// Writes the part of the log that the window shows.
    pub(super) fn write(
        &self,
        window: &mut Window<'_>,
        hostnqn: &str,
        local: SocketAddr,
        config: &TargetConfig,
    ) {
        let mut at = ENTRY_BYTES;
        let mut numrec = 0;
        for record in visible(&self.table, hostnqn) {
            numrec += 1;
            if window.shows(at, ENTRY_BYTES) {
                window.put(at, &entry(record, local, config).to_bytes());
            }
            at += ENTRY_BYTES;
        }
        let header = DiscoveryHeader {
            genctr: self.genctr,
            numrec,
            recfmt: 0,
        };
        window.put(0, &header.to_bytes());
    }
}

/// Header and entries have one size.
const ENTRY_BYTES: u64 = 1024;

fn visible<'a>(
    table: &'a DiscoveryTable,
    hostnqn: &'a str,
) -> impl Iterator<Item = &'a DiscoveryRecord> {
    table
        .entries
        .iter()
        .filter(move |record| record.hosts.allows(hostnqn))
}

/// What an entry says; who else may see it is no host's business.
fn content(record: &DiscoveryRecord) -> (DiscoveryKind, &str, SocketAddr, u16) {
    (record.kind, &record.subnqn, record.address, record.port_id)
}

fn entry(record: &DiscoveryRecord, local: SocketAddr, config: &TargetConfig) -> DiscoveryEntry {
    let address = advertised(record.address.ip(), local.ip());
    let (subtype, eflags) = match record.kind {
        DiscoveryKind::Referral => (Subtype::Referral, DiscoveryEntry::EFLAGS_EPCSD),
        DiscoveryKind::Nvm => (Subtype::Nvm, 0),
        DiscoveryKind::Current => (Subtype::CurrentDiscovery, DiscoveryEntry::EFLAGS_EPCSD),
    };
    let treq = Treq {
        secure_channel: Some(SecureChannel::NotRequired),
        sq_flow_control_disable: true,
    };
    let entry = DiscoveryEntry {
        trtype: Transport::Tcp.wire(),
        adrfam: if address.is_ipv4() {
            Adrfam::Ipv4.wire()
        } else {
            Adrfam::Ipv6.wire()
        },
        subtype: subtype.wire(),
        treq: treq.wire(),
        portid: record.port_id,
        cntlid: ControllerId::DYNAMIC,
        asqsz: config.admin_queue_entries_max,
        eflags,
        subnqn: Nqn::new(&record.subnqn).map_or([0; 256], |nqn| nqn.encode()),
        ..DiscoveryEntry::default()
    };
    // Addresses and ports are always short enough.
    entry
        .with_address(&address.to_string())
        .and_then(|entry| entry.with_service(&record.address.port().to_string()))
        .unwrap_or(entry)
}

/// A wildcard address is of no use to a host: it gets the one it reached us by.
fn advertised(listen: IpAddr, local: IpAddr) -> IpAddr {
    if listen.is_unspecified() {
        local.to_canonical()
    } else {
        listen.to_canonical()
    }
}
