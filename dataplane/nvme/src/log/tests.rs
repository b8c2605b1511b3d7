extern crate std;

use std::vec::Vec;

use super::*;
use crate::identify::SIZE;
use crate::layout::assert_layout;
use crate::{CommandId, ControllerId, NamespaceId, QueueId, Status};

fn offset_of(fields: &[(&str, usize, usize)], name: &str) -> usize {
    fields.iter().find(|field| field.0 == name).unwrap().1
}

#[test]
fn layouts_do_not_overlap_and_round_trip() {
    assert_layout!(ErrorLogEntry);
    assert_layout!(SmartLog);
    assert_layout!(FirmwareSlotLog);
    assert_layout!(SupportedLogs);
    assert_layout!(EffectsLog);
    assert_layout!(ReservationNotification);
    assert_layout!(AnaHeader);
    assert_layout!(AnaDescriptor);
    assert_layout!(DiscoveryHeader);
    assert_layout!(DiscoveryEntry);
}

#[test]
fn health_fields_are_where_hosts_read_them() {
    for (name, at) in [
        ("critical_warning", 0),
        ("composite_temperature", 1),
        ("available_spare", 3),
        ("available_spare_threshold", 4),
        ("percentage_used", 5),
        ("data_units_read", 32),
        ("data_units_written", 48),
        ("host_read_commands", 64),
        ("host_write_commands", 80),
        ("controller_busy_minutes", 96),
        ("power_cycles", 112),
        ("power_on_hours", 128),
        ("unsafe_shutdowns", 144),
        ("media_errors", 160),
        ("error_log_entries", 176),
    ] {
        assert_eq!(offset_of(SmartLog::FIELDS, name), at, "{name}");
    }
    for (name, at) in [
        ("error_count", 0),
        ("sqid", 8),
        ("cid", 10),
        ("status_field", 12),
        ("parameter_error_location", 14),
        ("lba", 16),
        ("nsid", 24),
        ("vendor_log", 28),
        ("command_specific", 32),
    ] {
        assert_eq!(offset_of(ErrorLogEntry::FIELDS, name), at, "{name}");
    }
    assert_eq!(SmartLog::data_units(0), 0);
    assert_eq!(SmartLog::data_units(1), 1);
    assert_eq!(SmartLog::data_units(512_001), 2);
}

#[test]
fn error_entry_keeps_the_status() {
    let status = Status::LBA_OUT_OF_RANGE.dnr();
    let entry = ErrorLogEntry::new(9, QueueId(3), CommandId(0x1007), status);
    let bytes = entry.to_bytes();
    assert_eq!(
        bytes[..16],
        [9, 0, 0, 0, 0, 0, 0, 0, 3, 0, 7, 0x10, 0, 0x81, 0xFF, 0xFF]
    );
    assert_eq!(ErrorLogEntry::decode(&bytes).status(), status);
}

#[test]
fn firmware_log_has_slot_1_at_byte_8() {
    let mut log = FirmwareSlotLog {
        afi: 1,
        ..FirmwareSlotLog::default()
    };
    log.frs[0] = *b"0.1.0   ";
    let bytes = log.to_bytes();
    assert_eq!(bytes[..16], *b"\x01\0\0\0\0\0\0\x000.1.0   ");
}

#[test]
fn effects_log_separates_admin_and_io() {
    let mut log = EffectsLog::default();
    log.set_admin(0x06, CommandEffects::SUPPORTED);
    log.set_io(
        0x01,
        CommandEffects::SUPPORTED.union(CommandEffects::CONTENT_CHANGE),
    );
    let bytes = log.to_bytes();
    assert_eq!((bytes[24], bytes[1028]), (1, 3));
    assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 2);
    assert!(log.io[1].contains(CommandEffects::CONTENT_CHANGE));
    assert!(!log.io[1].contains(CommandEffects::INVENTORY_CHANGE));
}

#[test]
fn supported_pages_are_one_bit_each() {
    let mut log = SupportedLogs::default();
    log.insert(id::ANA);
    assert!(log.contains(id::ANA) && !log.contains(id::ERROR));
    assert_eq!(log.to_bytes()[48..52], [1, 0, 0, 0]);
}

#[test]
fn too_many_changed_namespaces_become_the_broadcast_value() {
    let mut page = [0; SIZE];
    encode_changed_namespaces((1..=1024).map(NamespaceId), &mut page);
    assert!(changed_namespaces(&page).eq((1..=1024).map(NamespaceId)));
    encode_changed_namespaces((1..=1025).map(NamespaceId), &mut page);
    assert!(changed_namespaces(&page).eq([NamespaceId::BROADCAST]));
}

fn ana_log() -> Vec<u8> {
    let header = AnaHeader {
        chgcnt: 5,
        ngrps: 2,
    };
    let first = AnaDescriptor {
        grpid: 1,
        nnsids: 2,
        chgcnt: 4,
        state: AnaState::Optimized.wire(),
    };
    let second = AnaDescriptor {
        grpid: 7,
        nnsids: 0,
        chgcnt: 5,
        state: AnaState::Change.wire(),
    };
    let mut log = Vec::new();
    log.extend(header.to_bytes());
    log.extend(first.to_bytes());
    log.extend([1, 0, 0, 0, 9, 0, 0, 0]);
    log.extend(second.to_bytes());
    log
}

#[test]
fn ana_log_has_the_known_bytes() {
    let log = ana_log();
    assert_eq!(log[..12], [5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(
        log[16..33],
        [1, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1]
    );
    assert_eq!(log[56 + 16], 0xF);
}

#[test]
fn ana_reader_yields_groups_and_their_namespaces() {
    let mut log = ana_log();
    log.extend([0; 100]);
    let reader = AnaLogReader::new(&log).unwrap();
    assert_eq!(reader.header().chgcnt, 5);
    let groups: Vec<_> = reader
        .map(|group| {
            let group = group.unwrap();
            (
                group.descriptor.grpid,
                group.state,
                group.namespaces().collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(
        groups[0],
        (1, AnaState::Optimized, [1, 9].map(NamespaceId).to_vec())
    );
    assert_eq!(groups[1], (7, AnaState::Change, Vec::new()));
    assert_eq!(groups.len(), 2);
}

#[test]
fn ana_reader_refuses_cut_and_senseless_logs() {
    let log = ana_log();
    for len in 0..log.len() {
        let refused = match AnaLogReader::new(&log[..len]) {
            Err(error) => error,
            Ok(reader) => reader.filter_map(Result::err).next().unwrap(),
        };
        assert_eq!(refused, AnaLogError::Truncated);
    }
    let first_error = |log: &[u8]| AnaLogReader::new(log).unwrap().find_map(Result::err);
    let mut bad = log.clone();
    bad[16] = 0;
    assert_eq!(first_error(&bad), Some(AnaLogError::Group));
    let mut bad = log.clone();
    bad[32] = 5;
    assert_eq!(first_error(&bad), Some(AnaLogError::State));
    let mut bad = log;
    bad[20..24].fill(0xFF);
    assert_eq!(first_error(&bad), Some(AnaLogError::Truncated));
    assert_eq!(AnaLogReader::new(&bad).unwrap().count(), 1);
}

#[test]
fn discovery_entry_has_the_known_bytes() {
    let nqn = crate::nqn::Nqn::new("nqn.2026-11.io.bowline:s").unwrap();
    let entry = DiscoveryEntry {
        trtype: Transport::Tcp.wire(),
        adrfam: Adrfam::Ipv4.wire(),
        subtype: Subtype::Nvm.wire(),
        treq: Treq {
            secure_channel: Some(SecureChannel::NotRequired),
            sq_flow_control_disable: true,
        }
        .wire(),
        portid: 1,
        cntlid: ControllerId::DYNAMIC,
        asqsz: 32,
        eflags: DiscoveryEntry::EFLAGS_EPCSD,
        subnqn: nqn.encode(),
        ..DiscoveryEntry::default()
    };
    let entry = entry
        .with_address("192.0.2.1")
        .unwrap()
        .with_service("4420")
        .unwrap();
    let bytes = entry.to_bytes();
    assert_eq!(bytes[..12], [3, 1, 2, 6, 1, 0, 0xFF, 0xFF, 32, 0, 2, 0]);
    assert_eq!(bytes[32..37], *b"4420\0");
    assert_eq!(bytes[256..281], *b"nqn.2026-11.io.bowline:s\0");
    assert_eq!(bytes[512..522], *b"192.0.2.1\0");
    let read = DiscoveryEntry::decode(&bytes);
    assert_eq!(
        (read.address(), read.service()),
        (Some("192.0.2.1"), Some("4420"))
    );
    assert_eq!(read.nqn(), Ok(nqn));
    assert_eq!(
        Treq::from_wire(read.treq).secure_channel,
        Some(SecureChannel::NotRequired)
    );
    assert_eq!(Transport::from_wire(read.trtype), Some(Transport::Tcp));
    assert_eq!(Subtype::from_wire(9), None);
}

#[test]
fn discovery_text_is_trimmed_bounded_and_checked() {
    let mut entry = DiscoveryEntry {
        trsvcid: [b' '; 32],
        ..DiscoveryEntry::default()
    };
    entry.trsvcid[..4].copy_from_slice(b"8009");
    assert_eq!(entry.service(), Some("8009"));
    entry.trsvcid[0] = 0xFF;
    assert_eq!(entry.service(), None);
    assert!(entry.with_service(&"1".repeat(32)).is_none());
    assert!(entry.with_service(&"1".repeat(31)).is_some());
}

#[test]
fn discovery_header_has_the_known_bytes() {
    let header = DiscoveryHeader {
        genctr: 3,
        numrec: 2,
        recfmt: 0,
    };
    assert_eq!(
        header.to_bytes()[..18],
        [3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn get_log_page_has_the_known_bytes() {
    let command = GetLogPage {
        lid: id::ANA,
        lsp: 1,
        rae: true,
        numd: 0x0001_03FF,
        lpo: 0x1_0000_0004,
        ot: false,
        csi: 2,
    };
    let sqe = command.encode();
    assert_eq!(sqe.0[40..46], [0x0C, 0x81, 0xFF, 0x03, 0x01, 0x00]);
    assert_eq!(sqe.0[48..60], [4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(GetLogPage::decode(&sqe), command);
    assert_eq!(command.bytes(), 0x4_1000);
    let most = GetLogPage {
        numd: u32::MAX,
        ot: true,
        ..command
    };
    assert_eq!(most.bytes(), 1 << 34);
    assert_eq!(GetLogPage::decode(&most.encode()), most);
    assert_eq!(GetLogPage::range(id::SMART, 0, 512).numd, 127);
}
