//! Namespaces that come, grow, and go while hosts use them.

use bowline_nvme::feature::{GetFeatures, SetFeatures, id as fid};
use bowline_nvme::identify::{IdentifyController, IdentifyNamespace, cns, namespace_list};
use bowline_nvme::log::{GetLogPage, changed_namespaces, id as lid};
use bowline_nvme::nvm::DsmRange;
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Sgl, Sqe, Status};
use bowline_nvmf::target::{
    ConfigError, ConnId, Hosts, IoOp, NamespaceConfig, NsGeometry, SubsystemConfig, TargetConfig,
};

use crate::glue::{BLOCK, BLOCKS, Glue, Reply, SUBNQN, geometry, io, namespace, pattern};

const NAMESPACE_CHANGED: u64 = 0x0004_0002;

/// An admin queue that listens for namespace events.
fn listening(glue: &mut Glue) -> ConnId {
    let (admin, _) = glue.admin();
    let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 0x100).encode();
    assert_eq!(glue.command(admin, aec).status, Status::SUCCESS);
    request_event(glue, admin);
    admin
}

fn request_event(glue: &mut Glue, admin: ConnId) {
    glue.send(
        admin,
        Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0)),
    );
}

fn changed(glue: &mut Glue, admin: ConnId, rae: bool) -> Vec<u32> {
    let log = GetLogPage {
        rae,
        ..GetLogPage::range(lid::CHANGED_NAMESPACE_LIST, 0, 4096)
    };
    let page = glue.log(admin, log).expect("supported");
    changed_namespaces(page.first_chunk().expect("4096"))
        .map(|nsid| nsid.0)
        .collect()
}

#[test]
fn hosts_hear_of_added_grown_and_removed_namespaces() {
    let mut glue = Glue::new();
    let admin = listening(&mut glue);
    glue.add_namespace(5);
    assert_eq!(glue.reply(admin).cqe().result, NAMESPACE_CHANGED);
    request_event(&mut glue, admin);
    let grown = NsGeometry {
        blocks: BLOCKS * 2,
        ..geometry()
    };
    glue.target
        .update_namespace(glue.now, SUBNQN, 1, grown)
        .expect("it grows");
    glue.target
        .remove_namespace(glue.now, SUBNQN, 5)
        .expect("it is there");
    glue.pump();
    assert!(
        glue.replies(admin).is_empty(),
        "one event until the log is read"
    );
    assert_eq!(
        changed(&mut glue, admin, true),
        [1, 5],
        "RAE keeps the list"
    );
    assert_eq!(changed(&mut glue, admin, false), [1, 5]);
    assert!(changed(&mut glue, admin, false).is_empty());
    let page = glue.identify(admin, cns::NAMESPACE, 1).expect("active");
    assert_eq!(IdentifyNamespace::decode(&page).nsze, BLOCKS * 2);
    let gone = glue
        .identify(admin, cns::NAMESPACE, 5)
        .expect("inactive is all zero");
    assert_eq!(gone, [0; 4096]);
    let list = glue
        .identify(admin, cns::ACTIVE_NAMESPACE_LIST, 0)
        .expect("mandatory");
    assert!(namespace_list(&list).eq([NamespaceId(1)]));
    glue.add_namespace(2);
    assert_eq!(
        glue.reply(admin).cqe().result,
        NAMESPACE_CHANGED,
        "re-armed by the reading"
    );
}

#[test]
fn allocation_is_no_news() {
    let mut glue = Glue::new();
    let admin = listening(&mut glue);
    let thinner = NsGeometry {
        used_blocks: 17,
        ..geometry()
    };
    glue.target
        .update_namespace(glue.now, SUBNQN, 1, thinner)
        .expect("valid");
    glue.pump();
    assert!(glue.replies(admin).is_empty());
    let page = glue.identify(admin, cns::NAMESPACE, 1).expect("active");
    assert_eq!(IdentifyNamespace::decode(&page).nuse, 17);
}

#[test]
fn commands_to_a_removed_namespace_fail_for_good_wherever_they_are() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let gone = Status::INVALID_NAMESPACE;
    glue.hold_io = true;
    let executing = glue.send(queue, io(opcode::READ, 0, 1));
    let transferring = glue.send(queue, io(opcode::WRITE, 0, 64));
    let Reply::R2t(r2t) = glue.reply(queue) else {
        panic!("no R2T")
    };
    glue.target
        .remove_namespace(glue.now, SUBNQN, 1)
        .expect("it is there");
    let bytes = glue.h2c(
        queue,
        crate::glue::h2c_data(&r2t),
        &pattern(1, 64 * BLOCK as usize),
    );
    glue.receive(queue, &bytes);
    let cqe = glue.reply(queue).cqe();
    assert_eq!(cqe.cid, transferring);
    assert!(cqe.status.same_code(gone) && cqe.status.is_dnr());
    let new = glue.read_data(queue, io(opcode::READ, 0, 1), BLOCK);
    assert!(new.is_err_and(|status| status.same_code(gone)));
    glue.hold_io = false;
    glue.finish_held();
    assert!(matches!(glue.reply(queue), Reply::Data { cid, .. } if cid == executing));
}

#[test]
fn namespaces_that_hosts_would_trip_over_are_refused() {
    let mut glue = Glue::new();
    let now = glue.now;
    let target = &mut glue.target;
    let other = "nqn.2026-11.io.bowline:other";
    target
        .add_subsystem(now, SubsystemConfig::new(other, "BL0002"))
        .expect("valid");
    let (identity, id) = (ConfigError::NamespaceIdentity, ConfigError::NamespaceId);
    let taken = NamespaceConfig {
        nsid: Some(1),
        ..namespace(9)
    };
    let nameless = NamespaceConfig {
        nguid: [0; 16],
        ..namespace(9)
    };
    for (nqn, config, expected) in [
        (SUBNQN, namespace(1), identity),
        (other, namespace(1), identity),
        (SUBNQN, nameless, identity),
        (SUBNQN, taken, id),
        (SUBNQN, namespace(17), id),
        (
            "nqn.2026-11.io.bowline:none",
            namespace(9),
            ConfigError::NoSubsystem,
        ),
    ] {
        assert_eq!(target.add_namespace(now, nqn, config), Err(expected));
    }
    let shrunk = NsGeometry {
        blocks: 1,
        used_blocks: 1,
        ..geometry()
    };
    for (nsid, geometry, expected) in [
        (1, shrunk, ConfigError::Geometry),
        (2, geometry(), ConfigError::NoNamespace),
    ] {
        assert_eq!(
            target.update_namespace(now, SUBNQN, nsid, geometry),
            Err(expected)
        );
    }
    assert_eq!(
        target.remove_namespace(now, SUBNQN, 2),
        Err(ConfigError::NoNamespace)
    );
}

#[test]
fn subsystems_that_cannot_be_are_refused() {
    let mut glue = Glue::new();
    let now = glue.now;
    let target = &mut glue.target;
    let fresh = SubsystemConfig::new("nqn.2026-11.io.bowline:fresh", "X");
    let bad_host = Hosts::Only(vec![String::new()]);
    for (config, expected) in [
        (
            SubsystemConfig::new(SUBNQN, "X"),
            ConfigError::SubsystemExists,
        ),
        (
            SubsystemConfig::new(crate::glue::DISCOVERY, "X"),
            ConfigError::SubsystemExists,
        ),
        (SubsystemConfig::new("drive", "X"), ConfigError::Nqn),
        (
            SubsystemConfig {
                cntlids: (9, 8),
                ..fresh.clone()
            },
            ConfigError::ControllerIds,
        ),
        (
            SubsystemConfig {
                cntlids: (0, 8),
                ..fresh.clone()
            },
            ConfigError::ControllerIds,
        ),
        (
            SubsystemConfig {
                namespaces_max: 0,
                ..fresh.clone()
            },
            ConfigError::NamespaceId,
        ),
        (
            SubsystemConfig {
                hosts: bad_host,
                ..fresh.clone()
            },
            ConfigError::Nqn,
        ),
    ] {
        assert_eq!(target.add_subsystem(now, config), Err(expected));
    }
    assert_eq!(target.add_subsystem(now, fresh), Ok(()));
    assert_eq!(target.allow_host(SUBNQN, ""), Err(ConfigError::Nqn));
    let none = "nqn.2026-11.io.bowline:none";
    assert_eq!(
        target.remove_subsystem(now, none),
        Err(ConfigError::NoSubsystem)
    );
}

#[test]
fn deallocate_and_write_zeroes_reach_the_device() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    let data = pattern(4, 64 * BLOCK as usize);
    assert!(
        glue.write_by_r2t(queue, io(opcode::WRITE, 0, 64), &data)
            .status
            .is_success()
    );
    // Linux sends 4096 bytes whatever the number of ranges.
    let mut ranges = [0; 4096];
    ranges[..16].copy_from_slice(
        &DsmRange {
            attributes: 0,
            blocks: 4,
            slba: 8,
        }
        .encode(),
    );
    ranges[16..32].copy_from_slice(
        &DsmRange {
            attributes: 0,
            blocks: 1,
            slba: 60,
        }
        .encode(),
    );
    ranges[32..48].copy_from_slice(
        &DsmRange {
            attributes: 0,
            blocks: 9,
            slba: 0,
        }
        .encode(),
    );
    let dsm = Sqe::new(opcode::DATASET_MANAGEMENT).with_nsid(NamespaceId(1));
    let status = glue.status_with_data(queue, dsm.with_ranges(1, true), &ranges);
    assert_eq!(status, Status::SUCCESS);
    assert!(
        glue.write_by_r2t(queue, dsm.with_ranges(0, false), &ranges)
            .status
            .is_success()
    );
    let mut expected = data;
    expected[8 * 512..12 * 512].fill(0);
    expected[60 * 512..61 * 512].fill(0);
    assert!(glue.disks[&1][..expected.len()] == expected);
    ranges[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let status = glue.status_with_data(queue, dsm.with_ranges(1, true), &ranges);
    assert!(status.same_code(Status::LBA_OUT_OF_RANGE));

    // More blocks than MDTS: Write Zeroes moves no data.
    glue.hold_io = true;
    let zeroes = io(opcode::WRITE_ZEROES, 0, 8000)
        .with_deac(true)
        .with_sgl1(Sgl::transport(0));
    glue.send(queue, zeroes);
    let op = IoOp::WriteZeroes {
        lba: 0,
        blocks: 8000,
        deallocate: true,
        fua: false,
    };
    assert_eq!(glue.held[0].2.op, op);
    glue.finish_held();
    assert!(glue.reply(queue).cqe().status.is_success());
    assert!(glue.disks[&1].iter().all(|&byte| byte == 0));
}

#[test]
fn fua_is_passed_on() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 1, 1).with_fua(true), &[1; 512]);
    assert_eq!(
        glue.held[0].2.op,
        IoOp::Write {
            lba: 1,
            blocks: 1,
            fua: true
        }
    );
}

#[test]
fn subsystems_do_not_see_each_other() {
    let mut glue = Glue::bare(TargetConfig::default());
    for (nqn, id) in [
        ("nqn.2026-11.io.bowline:a", 1),
        ("nqn.2026-11.io.bowline:b", 2),
    ] {
        let config = SubsystemConfig {
            hosts: Hosts::Any,
            ..SubsystemConfig::new(nqn, "BL")
        };
        glue.target.add_subsystem(glue.now, config).expect("valid");
        glue.target
            .add_namespace(glue.now, nqn, namespace(id))
            .expect("valid");
    }
    let id = glue.initialized(Digests::NONE);
    let data = Glue::connect_data("nqn.2026-11.io.bowline:b", "nqn.2026-11.io:h", 0xFFFF);
    assert!(
        glue.connect(id, Glue::connect_command(0, 31), &data)
            .status
            .is_success()
    );
    glue.set_cc(id, crate::glue::CC_ENABLE);
    let list = glue
        .identify(id, cns::ACTIVE_NAMESPACE_LIST, 0)
        .expect("mandatory");
    assert!(namespace_list(&list).eq([NamespaceId(2)]));
}

#[test]
fn subsystems_are_seen_bit_by_bit_as_at_once() {
    let mut glue = Glue::bare(TargetConfig::default());
    let name = |index: usize| format!("nqn.2026-11.io.bowline:s{index}");
    for index in 0..10 {
        let config = SubsystemConfig::new(&name(index), "BL");
        glue.target.add_subsystem(glue.now, config).expect("valid");
    }
    for index in [0, 3, 4, 9] {
        let removed = glue.target.remove_subsystem(glue.now, &name(index));
        removed.expect("it is there");
    }
    let all = glue.target.subsystems().into_iter().map(|it| it.nqn);
    let all: Vec<String> = all.collect();
    assert_eq!(all, [1, 2, 5, 6, 7, 8].map(name));
    for places in [1, 3, 10, 11] {
        let (mut seen, mut next) = (Vec::new(), Some(0));
        while let Some(first) = next {
            let (some, rest) = glue.target.subsystems_from(first, places);
            assert!(some.len() <= places);
            seen.extend(some.into_iter().map(|it| it.nqn));
            next = rest;
        }
        assert_eq!(seen, all, "{places} at once");
    }
    let beyond = glue.target.subsystems_from(1000, 1);
    assert!(beyond.0.is_empty() && beyond.1.is_none());
}

/// VWC followed the namespaces of the moment, but hosts read it once. One that connected when no
/// namespace was volatile never flushed those added later, and lost what it had been told was
/// written.
#[test]
fn host_that_was_told_of_no_cache_has_its_writes_made_durable() {
    let mut glue = Glue::new();
    glue.target
        .remove_namespace(glue.now, SUBNQN, 1)
        .expect("it is there");
    let (early, early_queue) = glue.queues(Digests::NONE);
    glue.add_namespace(1);
    let (late, late_queue) = glue.queues(Digests::NONE);
    for (admin, queue, announced) in [(early, early_queue, false), (late, late_queue, true)] {
        let page = glue.identify(admin, cns::CONTROLLER, 0).expect("mandatory");
        let vwc = IdentifyController::decode(&page).vwc;
        assert_eq!(vwc & IdentifyController::VWC_PRESENT != 0, announced);
        let get = GetFeatures::current(fid::VOLATILE_WRITE_CACHE).encode();
        assert_eq!(glue.command(admin, get).status.is_success(), announced);

        glue.hold_io = true;
        glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; 512]);
        let zeroes = io(opcode::WRITE_ZEROES, 0, 1).with_sgl1(Sgl::transport(0));
        glue.send(queue, zeroes);
        let durable = |op: IoOp| match op {
            IoOp::Write { fua, .. } | IoOp::WriteZeroes { fua, .. } => fua,
            other => panic!("{other:?}"),
        };
        let fua: Vec<bool> = glue.held.iter().map(|held| durable(held.2.op)).collect();
        assert_eq!(fua, [!announced; 2]);
        glue.finish_held();
    }
}

/// A command was planned anew when its data had come, against whatever had its NSID by then. A
/// write to a removed namespace ended up in the one added in its place.
#[test]
fn data_of_a_removed_namespace_does_not_reach_the_next_of_its_nsid() {
    let mut glue = Glue::new();
    let (_, queue) = glue.queues(Digests::NONE);
    glue.send(queue, io(opcode::WRITE, 0, 64));
    let Reply::R2t(write) = glue.reply(queue) else {
        panic!("no R2T")
    };
    let dsm = Sqe::new(opcode::DATASET_MANAGEMENT).with_nsid(NamespaceId(1));
    let dsm = dsm.with_ranges(0, true).with_sgl1(Sgl::transport(4096));
    glue.send(queue, dsm);
    let Reply::R2t(ranges) = glue.reply(queue) else {
        panic!("no R2T")
    };
    glue.target
        .remove_namespace(glue.now, SUBNQN, 1)
        .expect("it is there");
    let next = NamespaceConfig {
        nsid: Some(1),
        ..namespace(2)
    };
    let untouched = pattern(7, glue.disks[&1].len());
    glue.disks.insert(2, untouched.clone());
    glue.target
        .add_namespace(glue.now, SUBNQN, next)
        .expect("valid");
    let list = DsmRange {
        attributes: 0,
        blocks: 4,
        slba: 8,
    };
    let mut list = list.encode().to_vec();
    list.resize(4096, 0);
    for (r2t, data) in [(write, pattern(1, 64 * BLOCK as usize)), (ranges, list)] {
        let bytes = glue.h2c(queue, crate::glue::h2c_data(&r2t), &data);
        glue.receive(queue, &bytes);
        let status = glue.reply(queue).cqe().status;
        assert!(status.same_code(Status::INVALID_NAMESPACE) && status.is_dnr());
    }
    assert!(glue.disks[&2] == untouched);
}
