//! How many controllers, connections and queues there can be, and what whoever is too many hears.

use bowline_nvme::fabrics::{ConnectData, ConnectInvalid};
use bowline_nvme::feature::{NumberOfQueues, SetFeatures, id as fid};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Cqe, Status};
use bowline_nvmf::target::{ConnId, Hosts, Path, SubsystemConfig, TargetConfig};

use crate::glue::{CC_ENABLE, Glue, HOSTNQN, SUBNQN};

fn limited(controllers_max: u16, cntlids: (u16, u16)) -> Glue {
    let subsystem = SubsystemConfig {
        hosts: Hosts::Any,
        controllers_max,
        cntlids,
        ..Glue::subsystem()
    };
    Glue::serving(TargetConfig::default(), subsystem)
}

/// An admin Connect of the host of this number.
fn connect(glue: &mut Glue, host: u8) -> (ConnId, Cqe) {
    let id = glue.initialized(Digests::NONE);
    let hostnqn = format!("nqn.2026-11.io.bowline:host{host}");
    let data = ConnectData {
        hostid: [host; 16],
        ..Glue::connect_data(SUBNQN, &hostnqn, 0xFFFF)
    };
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    (id, cqe)
}

/// Linux 6.12 gives a controller up for good when Connect fails with DNR.
fn assert_busy(cqe: Cqe) {
    assert!(cqe.status.same_code(Status::CONTROLLER_BUSY));
    assert!(!cqe.status.is_dnr(), "there may be room in a moment");
}

#[test]
fn hosts_beyond_the_limit_of_controllers_get_in_when_one_leaves() {
    // The limit itself, and the ids that there are.
    for mut glue in [limited(3, (1, 0xFFEF)), limited(100, (7, 9))] {
        let mut inside = Vec::new();
        let mut cntlids = Vec::new();
        // Two hosts, one of them twice: each association is a controller.
        for host in [1, 2, 1] {
            let (id, cqe) = connect(&mut glue, host);
            assert_eq!(cqe.status, Status::SUCCESS);
            inside.push(id);
            cntlids.push(cqe.result & 0xFFFF);
        }
        cntlids.sort_unstable();
        cntlids.dedup();
        assert_eq!(cntlids.len(), 3);
        let (outside, cqe) = connect(&mut glue, 3);
        assert_busy(cqe);
        assert!(glue.is_open(outside), "it may try again on this connection");
        for &id in &inside {
            glue.set_cc(id, CC_ENABLE);
            assert_eq!(glue.csts(id), 1, "those inside go on");
        }
        glue.drop_socket(inside[0]);
        let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
        let cqe = glue.connect(outside, Glue::connect_command(0, 31), &data);
        assert_eq!(cqe.status, Status::SUCCESS);
        assert_busy(connect(&mut glue, 4).1);
    }
}

#[test]
fn id_of_a_controller_that_left_is_the_last_to_be_given_again() {
    let mut glue = limited(100, (0x10, 0x17));
    let mut last = Vec::new();
    for _ in 0..40 {
        let (id, cqe) = connect(&mut glue, 1);
        let cntlid = cqe.result & 0xFFFF;
        assert!((0x10..=0x17).contains(&cntlid));
        assert!(!last.contains(&cntlid), "{cntlid} after {last:?}");
        last.push(cntlid);
        if last.len() == 8 {
            last.remove(0);
        }
        glue.drop_socket(id);
    }
}

#[test]
fn connections_beyond_the_limit_get_in_when_one_leaves() {
    let config = TargetConfig {
        connections_max: 3,
        ..TargetConfig::default()
    };
    let mut glue = Glue::with(config);
    let (admin, cntlid) = glue.admin();
    let queues: Vec<ConnId> = (1..=2)
        .map(|qid| glue.io_queue(Digests::NONE, cntlid, qid))
        .collect();
    assert!(glue.target.open(glue.now, Path::default()).is_none());
    assert_eq!(glue.csts(admin), 1);
    glue.drop_socket(queues[0]);
    let again = glue.io_queue(Digests::NONE, cntlid, 3);
    assert!(glue.is_open(again) && glue.is_open(queues[1]));
    assert!(glue.target.open(glue.now, Path::default()).is_none());
    assert_eq!(glue.target.counters().connections_refused, 2);
}

#[test]
fn queues_are_granted_up_to_the_limit_and_none_beyond_the_grant() {
    let config = TargetConfig {
        io_queues_max: 4,
        ..TargetConfig::default()
    };
    // Asked for, granted; SPDK asks for 1024.
    for (asked, granted) in [(1, 1), (3, 3), (4, 4), (1024, 4)] {
        let mut glue = Glue::with(config.clone());
        let (admin, cntlid) = glue.admin();
        let value = NumberOfQueues::of(asked).encode();
        let set = SetFeatures::new(fid::NUMBER_OF_QUEUES, value).encode();
        let cqe = glue.command(admin, set);
        let found = u32::try_from(cqe.result).expect("dword 0");
        assert_eq!(found, NumberOfQueues::of(granted).encode());
        for qid in 1..=granted {
            glue.io_queue(Digests::NONE, cntlid, qid);
        }
        for qid in [granted + 1, 0xFFFF] {
            let id = glue.initialized(Digests::NONE);
            let data = Glue::connect_data(SUBNQN, HOSTNQN, cntlid);
            let cqe = glue.connect(id, Glue::connect_command(qid, 31), &data);
            assert_eq!(cqe.status, Status::CONNECT_INVALID_PARAMETERS.dnr());
            assert_eq!(cqe.result, ConnectInvalid::QID.encode());
        }
        let late = glue.command(admin, set);
        assert!(late.status.same_code(Status::COMMAND_SEQUENCE_ERROR));
    }
}
