//! The discovery controller. [FABRICS-1.1 §5]

use std::sync::Arc;

use bowline_nvme::fabrics::Connect;
use bowline_nvme::feature::{SetFeatures, id as fid};
use bowline_nvme::identify::{IdentifyController, cns};
use bowline_nvme::log::{DiscoveryEntry, DiscoveryHeader, GetLogPage, id as lid};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::opcode::admin;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::{
    ConfigError, ConnId, DiscoveryKind, DiscoveryRecord, DiscoveryTable, Hosts, SubsystemConfig,
    TargetConfig,
};

use crate::glue::{DISCOVERY, Glue, HOSTNQN, Reply};

const OTHER: &str = "nqn.2026-11.io.bowline:other-host";

fn record(subnqn: &str, address: &str, hosts: Hosts) -> DiscoveryRecord {
    DiscoveryRecord {
        kind: DiscoveryKind::Nvm,
        subnqn: subnqn.to_owned(),
        address: address.parse().expect("an address"),
        port_id: 1,
        hosts,
    }
}

impl Glue {
    /// The next version of what is told.
    fn tell(&mut self, table: &mut DiscoveryTable, entries: Vec<DiscoveryRecord>) {
        *table = table.next(entries);
        self.target.set_discovery(self.now, Arc::new(table.clone()));
        self.pump();
    }
}

fn connect(glue: &mut Glue, kato_ms: u32) -> ConnId {
    connect_to(glue, DISCOVERY, kato_ms)
}

fn connect_to(glue: &mut Glue, subnqn: &str, kato_ms: u32) -> ConnId {
    let id = glue.initialized(Digests::NONE);
    let command = Connect {
        kato_ms,
        ..Glue::connect_command(0, 31)
    };
    let data = Glue::connect_data(subnqn, HOSTNQN, 0xFFFF);
    assert!(glue.connect(id, command, &data).status.is_success());
    // Some hosts leave the entry sizes zero, others do not.
    glue.set_cc(
        id,
        if kato_ms == 0 {
            1
        } else {
            crate::glue::CC_ENABLE
        },
    );
    assert_eq!(glue.csts(id), 1);
    id
}

fn read(glue: &mut Glue, id: ConnId, offset: u64, len: u32) -> Vec<u8> {
    glue.log(id, GetLogPage::range(lid::DISCOVERY, offset, len))
        .expect("supported")
}

fn header(glue: &mut Glue, id: ConnId) -> (u64, u64) {
    let bytes = read(glue, id, 0, 1024);
    let header = DiscoveryHeader::decode(bytes.first_chunk().expect("1024"));
    (header.genctr, header.numrec)
}

fn entry(glue: &mut Glue, id: ConnId, index: u64) -> DiscoveryEntry {
    let bytes = read(glue, id, 1024 + index * 1024, 1024);
    DiscoveryEntry::decode(bytes.first_chunk().expect("1024"))
}

#[test]
fn host_sees_what_it_may_use_and_no_wildcard_addresses() {
    let mut glue = Glue::new();
    let only = |host: &str| Hosts::Only(vec![host.to_owned()]);
    let entries = vec![
        record("nqn.2026-11.io.bowline:a", "0.0.0.0:4420", Hosts::Any),
        record("nqn.2026-11.io.bowline:b", "192.0.2.7:4421", only(OTHER)),
        record(
            "nqn.2026-11.io.bowline:c",
            "[2001:db8::1]:4420",
            only(HOSTNQN),
        ),
    ];
    glue.tell(&mut DiscoveryTable::default(), entries);
    let id = connect(&mut glue, 0);
    assert_eq!(header(&mut glue, id), (1, 2));
    let first = entry(&mut glue, id, 0);
    assert_eq!(
        first.nqn().expect("valid").as_str(),
        "nqn.2026-11.io.bowline:a"
    );
    assert_eq!(
        (first.address(), first.service()),
        (Some("127.0.0.1"), Some("4420"))
    );
    assert_eq!((first.trtype, first.adrfam, first.subtype), (3, 1, 2));
    assert!(first.asqsz >= 32 && first.cntlid.0 == 0xFFFF);
    let second = entry(&mut glue, id, 1);
    assert_eq!((second.address(), second.adrfam), (Some("2001:db8::1"), 2));
    // Header and entries in one reading are the same bytes.
    let whole = read(&mut glue, id, 0, 3072);
    assert!(whole[1024..2048] == first.to_bytes() && whole[2048..] == second.to_bytes());
    let middle = read(&mut glue, id, 1024 + 256, 8);
    assert_eq!(&middle, b"nqn.2026");
}

#[test]
fn log_read_in_pieces_is_of_one_version() {
    let mut glue = Glue::new();
    let a = record("nqn.2026-11.io.bowline:a", "192.0.2.1:4420", Hosts::Any);
    let b = record("nqn.2026-11.io.bowline:b", "192.0.2.2:4420", Hosts::Any);
    let mut table = DiscoveryTable::default();
    glue.tell(&mut table, vec![a.clone(), b.clone()]);
    let id = connect(&mut glue, 0);
    assert_eq!(header(&mut glue, id), (1, 2));
    glue.tell(&mut table, vec![b.clone()]);
    assert_eq!(entry(&mut glue, id, 0).address(), Some("192.0.2.1"));
    assert_eq!(entry(&mut glue, id, 1).address(), Some("192.0.2.2"));
    assert_eq!(header(&mut glue, id), (2, 1));
    // A change that this host cannot see does not move the generation counter.
    let hidden = DiscoveryRecord {
        hosts: Hosts::Only(vec![OTHER.to_owned()]),
        ..a
    };
    glue.tell(&mut table, vec![hidden, b]);
    assert_eq!(header(&mut glue, id), (2, 1));
    let beyond = glue.log(id, GetLogPage::range(lid::DISCOVERY, 2052, 4));
    assert_eq!(beyond, Err(Status::INVALID_FIELD.dnr().more()));
}

#[test]
fn persistent_host_is_told_of_changes_it_can_see() {
    let mut glue = Glue::new();
    let id = connect(&mut glue, 30_000);
    let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 1 << 31).encode();
    assert_eq!(glue.command(id, aec).status, Status::SUCCESS);
    glue.send(
        id,
        Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0)),
    );
    assert_eq!(header(&mut glue, id), (0, 0));
    let hidden = record(
        "nqn.2026-11.io.bowline:h",
        "192.0.2.1:4420",
        Hosts::Only(Vec::new()),
    );
    let mut table = DiscoveryTable::default();
    glue.tell(&mut table, vec![hidden.clone()]);
    assert!(glue.replies(id).is_empty());
    let seen = record("nqn.2026-11.io.bowline:s", "192.0.2.1:4420", Hosts::Any);
    glue.tell(&mut table, vec![hidden, seen]);
    assert_eq!(glue.reply(id).cqe().result, 0x0070_F002);
    assert_eq!(header(&mut glue, id), (2, 1));
}

#[test]
fn discovery_controller_says_what_it_is_and_does_nothing_else() {
    let mut glue = Glue::new();
    let id = connect(&mut glue, 0);
    let page = glue.identify(id, cns::CONTROLLER, 0).expect("mandatory");
    let controller = IdentifyController::decode(&page);
    assert_eq!(
        (controller.cntrltype, controller.nn, controller.oaes),
        (2, 0, 1 << 31)
    );
    assert!(glue.identify(id, cns::ACTIVE_NAMESPACE_LIST, 0).is_err());
    for opcode in [
        admin::ABORT,
        admin::FORMAT_NVM,
        admin::NAMESPACE_MANAGEMENT,
        0xC0,
    ] {
        let status = glue.command(id, Sqe::new(opcode)).status;
        assert!(status.same_code(Status::INVALID_OPCODE), "{opcode:#x}");
    }
    assert_eq!(
        glue.command(id, Sqe::new(admin::KEEP_ALIVE)).status,
        Status::SUCCESS
    );
    let smart = glue.log(id, GetLogPage::range(lid::SMART, 0, 512));
    assert!(smart.is_err_and(|status| status.same_code(Status::INVALID_LOG_PAGE)));
    let queues = SetFeatures::new(fid::NUMBER_OF_QUEUES, 0).encode();
    assert!(
        glue.command(id, queues)
            .status
            .same_code(Status::INVALID_FIELD)
    );
}

#[test]
fn one_shot_discovery_without_keep_alive_ends_after_two_idle_minutes() {
    let mut glue = Glue::new();
    let id = connect(&mut glue, 0);
    glue.advance(Nanos::from_secs(100));
    header(&mut glue, id);
    glue.advance(Nanos::from_secs(100));
    assert!(glue.is_open(id));
    glue.advance(Nanos::from_secs(21));
    assert!(!glue.is_open(id));
}

#[test]
fn many_short_associations_leave_nothing_behind() {
    let mut glue = Glue::new();
    for _ in 0..200 {
        let id = connect(&mut glue, 0);
        header(&mut glue, id);
        glue.set_cc(id, 1 | 1 << 14);
        glue.drop_socket(id);
    }
    assert!(glue.target.connections().is_empty());
    assert!(glue.target.discovery_controllers().is_empty());
}

#[test]
fn both_names_of_the_discovery_subsystem_are_answered() {
    let unique = "nqn.2026-11.io.bowline:discovery:one";
    let mut glue = Glue::with(TargetConfig {
        discovery_nqn: Some(unique.to_owned()),
        ..TargetConfig::default()
    });
    assert_eq!(glue.target.config().discovery_name(), unique);
    let itself = DiscoveryRecord {
        kind: DiscoveryKind::Current,
        ..record("", "0.0.0.0:8009", Hosts::Any)
    };
    glue.tell(&mut DiscoveryTable::default(), vec![itself]);
    for name in [DISCOVERY, unique] {
        let id = connect_to(&mut glue, name, 0);
        let itself = entry(&mut glue, id, 0);
        assert_eq!(itself.nqn().expect("valid").as_str(), unique);
        assert_eq!((itself.subtype, itself.eflags), (3, 0b11));
        let page = glue.identify(id, cns::CONTROLLER, 0).expect("mandatory");
        let controller = IdentifyController::decode(&page);
        let subnqn = Nqn::decode(&controller.subnqn).expect("a name");
        assert_eq!(subnqn.as_str(), name);
        assert_eq!((controller.cntrltype, controller.dctype), (2, 1));
    }
    let config = SubsystemConfig::new(unique, "X");
    let taken = glue.target.add_subsystem(glue.now, config);
    assert_eq!(taken, Err(ConfigError::SubsystemExists));
    let other = "nqn.2026-11.io.bowline:discovery:two";
    let id = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(other, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    assert!(cqe.status.same_code(Status::CONNECT_INVALID_PARAMETERS));
    for bad in [DISCOVERY, "no name", ""] {
        let config = TargetConfig {
            discovery_nqn: Some(bad.to_owned()),
            ..TargetConfig::default()
        };
        assert_eq!(
            Glue::with(config).target.config().discovery_name(),
            DISCOVERY
        );
    }
}

/// A log read with RAE cleared re-armed the event and forgot the one that waited, also where what
/// was read was the old version. The host never learnt of the change.
#[test]
fn change_during_a_read_in_pieces_is_reported_after_it() {
    let mut glue = Glue::new();
    let id = connect(&mut glue, 30_000);
    let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 1 << 31).encode();
    assert_eq!(glue.command(id, aec).status, Status::SUCCESS);
    let aer = Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0));
    glue.send(id, aer);
    let of = |name: &str| record(name, "192.0.2.1:4420", Hosts::Any);
    let mut table = DiscoveryTable::default();
    glue.tell(&mut table, vec![of("nqn.2026-11.io.bowline:a")]);
    assert_eq!(glue.reply(id).cqe().result, 0x0070_F002);
    glue.send(id, aer);
    let piece = GetLogPage {
        rae: true,
        ..GetLogPage::range(lid::DISCOVERY, 0, 1024)
    };
    glue.log(id, piece).expect("the header");
    glue.tell(&mut table, Vec::new());
    assert!(glue.replies(id).is_empty(), "masked until the log is read");
    let last = GetLogPage::range(lid::DISCOVERY, 1024, 1024);
    glue.send(id, last.encode().with_sgl1(Sgl::transport(1024)));
    let replies = glue.replies(id);
    assert!(matches!(replies[0], Reply::Data { .. }));
    assert_eq!(replies[1].cqe().result, 0x0070_F002);
    assert_eq!(header(&mut glue, id), (2, 0));
}

#[test]
fn slow_reader_keeps_few_versions_alive() {
    let mut glue = Glue::new();
    let id = connect(&mut glue, 0);
    let mut table = DiscoveryTable::default();
    let address = |version: usize| format!("192.0.2.{version}:4420");
    glue.tell(
        &mut table,
        vec![record("nqn.2026-11.io.bowline:a", &address(1), Hosts::Any)],
    );
    assert_eq!(header(&mut glue, id), (1, 1));
    for version in 2..10 {
        glue.tell(
            &mut table,
            vec![record(
                "nqn.2026-11.io.bowline:a",
                &address(version),
                Hosts::Any,
            )],
        );
        assert_eq!(entry(&mut glue, id, 0).address(), Some("192.0.2.1"));
    }
    glue.tell(
        &mut table,
        vec![record("nqn.2026-11.io.bowline:a", &address(10), Hosts::Any)],
    );
    assert_eq!(entry(&mut glue, id, 0).address(), Some("192.0.2.10"));
    assert_eq!(header(&mut glue, id), (10, 1));
}

#[test]
fn entries_say_what_is_known_of_what_they_name() {
    let mut glue = Glue::new();
    let of = |kind, address: &str| DiscoveryRecord {
        kind,
        ..record("nqn.2026-11.io.bowline:x", address, Hosts::Any)
    };
    let entries = vec![
        of(DiscoveryKind::Current, "192.0.2.1:8009"),
        of(DiscoveryKind::Current, "192.0.2.2:8009"),
        of(DiscoveryKind::Nvm, "192.0.2.1:4420"),
        of(
            DiscoveryKind::Referral { persistent: true },
            "192.0.2.9:8009",
        ),
        of(
            DiscoveryKind::Referral { persistent: false },
            "[2001:db8::9]:8009",
        ),
        of(DiscoveryKind::Nvm, "[::ffff:192.0.2.3]:4420"),
    ];
    glue.tell(&mut DiscoveryTable::default(), entries);
    let id = connect(&mut glue, 0);
    let found: Vec<_> = (0..6)
        .map(|index| {
            let it = entry(&mut glue, id, index);
            (
                it.subtype, it.treq, it.asqsz, it.eflags, it.adrfam, it.sectype,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (3, 0b110, 128, 0b11, 1, 0),
            (3, 0b110, 128, 0b11, 1, 0),
            (2, 0b110, 128, 0, 1, 0),
            (1, 0, 32, 0b10, 1, 0),
            (1, 0, 32, 0, 2, 0),
            (2, 0b110, 128, 0, 1, 0),
        ]
    );
}
