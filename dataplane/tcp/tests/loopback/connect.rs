//! Who gets in, and what they are told.

use std::sync::Arc;
use std::time::Instant;

use bowline_nvme::fabrics::{Connect, ConnectInvalid};
use bowline_nvme::identify::{self, IdentifyController, IdentifyNamespace};
use bowline_nvme::nqn::{DISCOVERY, Nqn};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{ControllerId, NamespaceId, Nanos, Sgl, Status};
use bowline_nvmf::host::{CloseReason, command};
use bowline_nvmf::target::{DiscoveryKind, DiscoveryRecord, DiscoveryTable, Hosts, TargetConfig};
use bowline_reactor::{Config, IoBackend};

use crate::common::initiator::{Disk, Options};
use crate::common::on_both_backends;
use crate::common::raw::{End, Raw};
use crate::common::rig::{BLOCK, DISK_BYTES, HOST, NQN, Rig};

on_both_backends!(
    controller_and_namespace_are_as_identified,
    several_queues_all_carry_commands,
    nobody_is_allowed_by_default,
    only_allowed_hosts_get_in,
    unknown_subsystem_is_an_invalid_parameter,
    discovery_lists_what_the_asking_host_may_use,
    sixty_four_associations_at_once_do_io,
    silent_host_loses_its_controller_and_a_speaking_one_does_not,
    connect_data_may_come_after_an_r2t,
);

const NSID: NamespaceId = NamespaceId(1);

fn controller_and_namespace_are_as_identified(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::with(
        rig.address,
        Options {
            io,
            queues: 4,
            ..Options::default()
        },
    );
    let facts = *disk.facts();
    assert_eq!(&facts.serial, b"BOWLINE-TEST        ");
    assert_eq!(facts.io_queues, 4);
    assert_eq!(
        (facts.in_capsule_bytes, facts.transfer_bytes_max),
        (16 << 10, 1 << 20)
    );
    assert_eq!(facts.queue_entries_max, 128);
    assert!(facts.keep_alive && !facts.is_discovery);
    let promised = rig.geometry();
    assert_eq!(facts.volatile_cache, promised.volatile_cache);

    let done = disk.admin(
        command::identify(identify::cns::CONTROLLER, NamespaceId::NONE),
        4096,
    );
    assert_eq!(done.status, Status::SUCCESS);
    let controller = IdentifyController::decode(done.data.first_chunk().expect("4096 bytes"));
    assert_eq!(controller.cntlid, facts.cntlid);
    let name = Nqn::decode(&controller.subnqn).expect("a name");
    assert_eq!(name.as_str(), NQN);

    let namespaces = disk.namespaces();
    assert_eq!(namespaces.len(), 1);
    assert_eq!(
        (namespaces[0].nsid, namespaces[0].block_bytes),
        (NSID, BLOCK)
    );
    assert_eq!(namespaces[0].bytes(), DISK_BYTES);
    assert_eq!(
        namespaces[0].uuid, namespaces[0].nguid,
        "as the rig chose them"
    );
    let done = disk.admin(command::identify(identify::cns::NAMESPACE, NSID), 4096);
    let namespace = IdentifyNamespace::decode(done.data.first_chunk().expect("4096 bytes"));
    assert_eq!(namespace.nsze * u64::from(BLOCK), DISK_BYTES);
    assert_eq!(
        (namespace.ncap, namespace.nuse),
        (namespace.nsze, namespace.nsze)
    );
    assert_eq!(namespace.nmic & 1, 1, "shared: Linux multipath needs it");
}

fn several_queues_all_carry_commands(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disk = Disk::with(
        rig.address,
        Options {
            io,
            queues: 4,
            ..Options::default()
        },
    );
    assert_eq!(rig.connections(), 5);
    for queue in 1..=4 {
        assert_eq!(disk.flush_on(queue, NSID), Status::SUCCESS, "queue {queue}");
    }
    disk.disconnect();
    rig.await_connections(0);
}

fn nobody_is_allowed_by_default(io: IoBackend) {
    let rig = Rig::empty(
        Config {
            io,
            ..Config::default()
        },
        TargetConfig::default(),
    );
    rig.add_subsystem(NQN, Hosts::Only(Vec::new()));
    let refused = Disk::try_with(
        rig.address,
        Options {
            io,
            ..Options::default()
        },
    );
    assert_rejected(
        refused.err(),
        Status::CONNECT_INVALID_HOST,
        ConnectInvalid::HOSTNQN,
    );
}

fn only_allowed_hosts_get_in(io: IoBackend) {
    let rig = Rig::empty(
        Config {
            io,
            ..Config::default()
        },
        TargetConfig::default(),
    );
    rig.add_subsystem(NQN, Hosts::Only(vec![HOST.to_owned()]));
    rig.add_disk(NQN, DISK_BYTES);
    let mut disk = Disk::connect(rig.address, io);
    let stranger = "nqn.2026-11.io.bowline:test:stranger";
    let refused = Disk::try_with(
        rig.address,
        Options {
            io,
            hostnqn: stranger,
            ..Options::default()
        },
    );
    assert_rejected(
        refused.err(),
        Status::CONNECT_INVALID_HOST,
        ConnectInvalid::HOSTNQN,
    );
    disk.flush(NSID);
}

fn unknown_subsystem_is_an_invalid_parameter(io: IoBackend) {
    let rig = Rig::new(io);
    let subnqn = "nqn.2026-11.io.bowline:test:nowhere";
    let refused = Disk::try_with(
        rig.address,
        Options {
            io,
            subnqn,
            ..Options::default()
        },
    );
    let expected = Status::CONNECT_INVALID_PARAMETERS;
    assert_rejected(refused.err(), expected, ConnectInvalid::SUBNQN);
}

/// Status of a refused Connect, and which of its parameters was at fault.
fn assert_rejected(reason: Option<CloseReason>, expected: Status, at: ConnectInvalid) {
    match reason {
        Some(CloseReason::ConnectRejected { status, invalid }) => {
            assert!(status.same_code(expected), "{status}");
            assert_eq!(invalid, at);
        }
        other => panic!("not rejected: {other:?}"),
    }
}

fn discovery_lists_what_the_asking_host_may_use(io: IoBackend) {
    let rig = Rig::new(io);
    let address = rig.address;
    let record = move |subnqn: &str, hosts| DiscoveryRecord {
        kind: DiscoveryKind::Nvm,
        subnqn: subnqn.to_owned(),
        address: (std::net::Ipv4Addr::UNSPECIFIED, address.port()).into(),
        port_id: 1,
        hosts,
    };
    rig.call(move |target, _, now| {
        let entries = vec![
            record(NQN, Hosts::Any),
            record(
                "nqn.2026-11.io.bowline:test:ours",
                Hosts::Only(vec![HOST.to_owned()]),
            ),
            record(
                "nqn.2026-11.io.bowline:test:theirs",
                Hosts::Only(Vec::new()),
            ),
        ];
        target
            .target()
            .set_discovery(now, Arc::new(DiscoveryTable::new(entries)));
    });
    let options = Options {
        io,
        subnqn: DISCOVERY,
        queues: 0,
        ..Options::default()
    };
    let mut disk = Disk::with(rig.address, options);
    assert!(disk.facts().is_discovery);
    let entries = disk.discover();
    let names: Vec<_> = entries
        .iter()
        .map(|entry| entry.nqn().expect("a name"))
        .collect();
    let lists = |name| names.iter().any(|found| found.as_str() == name);
    assert!(
        lists(NQN) && lists("nqn.2026-11.io.bowline:test:ours"),
        "{names:?}"
    );
    assert!(!lists("nqn.2026-11.io.bowline:test:theirs"), "{names:?}");
    for entry in entries {
        // The wildcard stands for the address that the host came in on.
        assert_eq!(entry.address(), Some("127.0.0.1"));
        assert_eq!(entry.service(), Some(address.port().to_string().as_str()));
    }
    disk.disconnect();
    rig.await_connections(0);
}

fn sixty_four_associations_at_once_do_io(io: IoBackend) {
    let rig = Rig::new(io);
    let mut disks: Vec<Disk> = (0..64).map(|_| Disk::connect(rig.address, io)).collect();
    assert_eq!(rig.connections(), 128);
    for (index, disk) in (0..).zip(&mut disks) {
        disk.write(NSID, index * 16, &crate::common::pattern(index, 8192));
    }
    for (index, disk) in (0..).zip(disks.iter_mut().rev()) {
        let lba = (63 - index) * 16;
        let other = (lba / 16 + 1) % 64;
        assert!(disk.read(NSID, other * 16, 8192) == crate::common::pattern(other, 8192));
    }
    drop(disks);
    rig.await_connections(0);
    rig.await_free_pool();
}

fn silent_host_loses_its_controller_and_a_speaking_one_does_not(io: IoBackend) {
    // Long enough that the speaking one is heard in time on a busy machine.
    const KATO: Nanos = Nanos::from_secs(2);
    let rig = Rig::new(io);
    let mut speaking = Disk::with(
        rig.address,
        Options {
            io,
            keep_alive: KATO,
            ..Options::default()
        },
    );
    let mut silent = Raw::initialized(rig.address, Digests::NONE);
    let connect = Connect {
        sqsize: 31,
        kato_ms: 2000,
        ..Connect::default()
    };
    let data = Raw::connect_data(
        ControllerId::DYNAMIC,
        NQN,
        "nqn.2026-11.io.bowline:test:silent",
    );
    assert_eq!(
        silent.command(connect.encode(), Some(&data)).status,
        Status::SUCCESS
    );
    silent.enable();
    let begin = Instant::now();
    let silent = std::thread::spawn(move || (silent.await_end(), begin.elapsed()));
    speaking.run_until("the silent host is closed", || silent.is_finished());
    let (end, after) = silent.join().expect("no panic");
    assert_eq!(end, End::Closed);
    assert!(after.as_millis() >= 1950, "closed early, after {after:?}");
    speaking.flush(NSID);
    assert_eq!(speaking.losses(), 0, "Keep Alive was sent and not honoured");
}

fn connect_data_may_come_after_an_r2t(io: IoBackend) {
    let rig = Rig::new(io);
    let mut raw = Raw::initialized(rig.address, Digests::NONE);
    let connect = Connect {
        sqsize: 31,
        ..Connect::default()
    };
    let data = Raw::connect_data(ControllerId::DYNAMIC, NQN, HOST);
    let capsule = raw.capsule_with(connect.encode().with_sgl1(Sgl::transport(1024)), &[]);
    raw.send(&capsule);
    let r2t = raw.recv().expect("an R2T").r2t();
    assert_eq!((r2t.cccid, r2t.r2to, r2t.r2tl), (raw.last_cid(), 0, 1024));
    // In three parts, as a host may.
    for (datao, len) in [(0, 4), (4, 1000), (1004, 20)] {
        let header = bowline_nvme::pdu::H2CData {
            cccid: r2t.cccid,
            ttag: r2t.ttag,
            datao,
            datal: len,
            last: datao + len == 1024,
        };
        let range = datao as usize..(datao + len) as usize;
        let part = raw.h2c_data(header, &data[range]);
        raw.send(&part);
    }
    assert_eq!(raw.await_status(), Status::SUCCESS);
}
