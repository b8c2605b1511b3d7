//! Connect: every refusal and its exact result. [FABRICS-1.1 §3.3]

use bowline_nvme::fabrics::{Connect, ConnectData, PropertyGet, offset};
use bowline_nvme::nqn::Nqn;
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{ControllerId, NamespaceId, Nanos, QueueId, Sgl, Sqe, Status};
use bowline_nvmf::target::{Hosts, SubsystemConfig, TargetConfig};

use crate::glue::{DISCOVERY, Glue, HOSTNQN, Reply, SUBNQN};

/// IPO with IATTR: the parameter is in the data.
const fn in_data(offset: u64) -> u64 {
    offset | 1 << 16
}

struct Case {
    name: &'static str,
    command: Connect,
    data: ConnectData,
    status: Status,
    result: u64,
}

const INVALID: Status = Status::CONNECT_INVALID_PARAMETERS;

fn case(
    name: &'static str,
    command: Connect,
    data: ConnectData,
    status: Status,
    result: u64,
) -> Case {
    Case {
        name,
        command,
        data,
        status,
        result,
    }
}

fn check(glue: &mut Glue, case: &Case) {
    let id = glue.initialized(Digests::NONE);
    let cqe = glue.connect(id, case.command, &case.data);
    assert_eq!(cqe.status, case.status, "{}", case.name);
    assert_eq!(cqe.result, case.result, "{}", case.name);
    assert!(glue.is_open(id), "{}: the connection stays", case.name);
    glue.drop_socket(id);
}

#[test]
fn subsystems_and_hosts_that_do_not_go_together_are_named() {
    let mut glue = Glue::new();
    let elsewhere = "nqn.2026-11.io.bowline:elsewhere";
    let listeners = SubsystemConfig {
        hosts: Hosts::Any,
        listeners: Some(vec![5]),
        ..SubsystemConfig::new(elsewhere, "BL0002")
    };
    glue.target
        .add_subsystem(glue.now, listeners)
        .expect("valid");
    let command = Glue::connect_command(0, 31);
    let data = |subnqn, hostnqn| Glue::connect_data(subnqn, hostnqn, 0xFFFF);
    let unknown = data("nqn.2026-11.io.bowline:none", HOSTNQN);
    let stranger = data(SUBNQN, "nqn.2026-11.io.bowline:stranger");
    let not_here = data(elsewhere, HOSTNQN);
    let denied = Status::CONNECT_INVALID_HOST;
    for case in [
        case("unknown subsystem", command, unknown, INVALID, in_data(256)),
        case("host not allowed", command, stranger, denied, in_data(512)),
        case(
            "listener not allowed",
            command,
            not_here,
            denied,
            in_data(512),
        ),
    ] {
        check(&mut glue, &case);
    }
}

/// SPDK's load generator gives no host NQN unless told to.
#[test]
fn host_without_a_name_connects_where_any_host_may() {
    let mut glue = Glue::new();
    let command = Glue::connect_command(0, 31);
    let mut data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    data.hostnqn = Nqn::ANONYMOUS;
    let denied = Status::CONNECT_INVALID_HOST;
    check(
        &mut glue,
        &case("no name", command, data, denied, in_data(512)),
    );
    glue.target.allow_any(SUBNQN).expect("there");
    let id = glue.initialized(Digests::NONE);
    assert!(glue.connect(id, command, &data).status.is_success());
}

#[test]
fn wrong_parameters_of_an_admin_connect_are_named() {
    let mut glue = Glue::new();
    let command = Glue::connect_command(0, 31);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    let sqsize = |sqsize| Connect { sqsize, ..command };
    let fixed = ConnectData {
        cntlid: ControllerId(1),
        ..data
    };
    let format = Connect {
        recfmt: 1,
        ..command
    };
    let incompatible = Status::CONNECT_INCOMPATIBLE_FORMAT.dnr();
    for case in [
        case(
            "static controller",
            command,
            fixed,
            INVALID.dnr(),
            in_data(16),
        ),
        case("no entries", sqsize(0), data, INVALID.dnr(), 44),
        case("too many entries", sqsize(128), data, INVALID.dnr(), 44),
        case("record format", format, data, incompatible, 0),
    ] {
        check(&mut glue, &case);
    }
}

#[test]
fn io_connect_is_refused_for_the_right_reason() {
    let mut glue = Glue::new();
    let (admin, cntlid) = glue.admin();
    let command = Glue::connect_command(1, 127);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, cntlid);
    let unknown = ConnectData {
        cntlid: ControllerId(cntlid ^ 1),
        ..data
    };
    let stranger = Glue::connect_data(SUBNQN, "nqn.2026-11.io.bowline:stranger", cntlid);
    let hostid = ConnectData {
        hostid: [8; 16],
        ..data
    };
    let qid = Connect {
        qid: QueueId(65),
        ..command
    };
    let sqsize = |sqsize| Connect { sqsize, ..command };
    for case in [
        case("unknown controller", command, unknown, INVALID, in_data(16)),
        case(
            "another host's controller",
            command,
            stranger,
            INVALID,
            in_data(16),
        ),
        case("another host id", command, hostid, INVALID, in_data(16)),
        case("queue id", qid, data, INVALID.dnr(), 42),
        case("no entries", sqsize(0), data, INVALID.dnr(), 44),
        case("too many entries", sqsize(128), data, INVALID.dnr(), 44),
    ] {
        check(&mut glue, &case);
    }
    glue.set_cc(admin, 0);
    check(&mut glue, &case("disabled", command, data, INVALID, 42));
}

#[test]
fn discovery_controller_has_no_io_queues() {
    let mut glue = Glue::new();
    let admin = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(DISCOVERY, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(admin, Glue::connect_command(0, 31), &data);
    assert_eq!(cqe.status, Status::SUCCESS);
    glue.set_cc(admin, 1);
    let cntlid = ControllerId(u16::try_from(cqe.result).expect("16 bits"));
    let case = Case {
        name: "discovery",
        command: Glue::connect_command(1, 31),
        data: ConnectData { cntlid, ..data },
        status: Status::CONNECT_INVALID_PARAMETERS.dnr(),
        result: 42,
    };
    check(&mut glue, &case);
}

#[test]
fn refusals_are_told_with_host_and_reason_and_are_bounded() {
    let mut glue = Glue::new();
    let command = Glue::connect_command(0, 31);
    let id = glue.initialized(Digests::NONE);
    let unknown = Glue::connect_data("nqn.2026-11.io.bowline:no", HOSTNQN, 0xFFFF);
    assert!(!glue.connect(id, command, &unknown).status.is_success());
    let told = glue.target.poll_refusal().expect("told");
    assert_eq!(
        (told.hostnqn.as_str(), told.subnqn.as_str(), told.reason()),
        (
            HOSTNQN,
            "nqn.2026-11.io.bowline:no",
            "there is no such subsystem"
        )
    );
    assert_eq!(glue.target.poll_refusal(), None);
    glue.target
        .set_hosts(glue.now, SUBNQN, Hosts::Only(Vec::new()))
        .expect("there");
    let denied = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    for _ in 0..100 {
        let id = glue.initialized(Digests::NONE);
        assert!(!glue.connect(id, command, &denied).status.is_success());
        glue.target.closed(glue.now, id);
    }
    assert_eq!(glue.target.counters().connects_refused, 101);
    let told: Vec<_> = std::iter::from_fn(|| glue.target.poll_refusal()).collect();
    assert!((1..=16).contains(&told.len()));
    assert!(
        told.iter()
            .all(|it| it.reason() == "the host is not allowed")
    );
}

#[test]
fn malformed_names_are_refused_with_their_position() {
    let mut glue = Glue::new();
    for (range, position) in [(512..768, 512), (256..512, 256)] {
        let id = glue.initialized(Digests::NONE);
        let mut data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF).encode();
        data[range].fill(b'a');
        glue.send_with_data(id, Glue::connect_command(0, 31).encode(), &data);
        let cqe = glue.reply(id).cqe();
        assert_eq!(cqe.status, Status::CONNECT_INVALID_PARAMETERS.dnr());
        assert_eq!(cqe.result, in_data(position));
    }
}

#[test]
fn short_connect_data_is_an_invalid_field() {
    let mut glue = Glue::new();
    let id = glue.initialized(Digests::NONE);
    let connect = Glue::connect_command(0, 31).encode();
    let status = glue.status_with_data(id, connect, &[0; 1020]);
    assert_eq!(status, Status::INVALID_FIELD.dnr());
}

#[test]
fn connect_data_may_come_by_r2t() {
    let mut glue = Glue::new();
    for digests in [
        Digests::NONE,
        Digests {
            header: true,
            data: true,
        },
    ] {
        let id = glue.initialized(digests);
        let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF).encode();
        let cqe = glue.write_by_r2t(id, Glue::connect_command(0, 31).encode(), &data);
        assert_eq!(cqe.status, Status::SUCCESS);
    }
}

#[test]
fn commands_before_connect_and_before_enable_are_out_of_sequence() {
    let mut glue = Glue::new();
    let id = glue.initialized(Digests::NONE);
    let keep_alive = Sqe::new(admin::KEEP_ALIVE);
    assert_eq!(
        glue.command(id, keep_alive).status,
        Status::COMMAND_SEQUENCE_ERROR
    );
    let get = PropertyGet::dword(offset::CSTS).encode();
    assert_eq!(glue.command(id, get).status, Status::COMMAND_SEQUENCE_ERROR);
    // Data that comes with it is thrown away and the stream stays whole.
    let status = glue.status_with_data(id, Sqe::new(opcode::WRITE), &[1; 8192]);
    assert_eq!(status, Status::COMMAND_SEQUENCE_ERROR);
    let (admin, _) = glue.admin_with(Digests::NONE, 0);
    let status = glue.command(admin, keep_alive).status;
    assert!(status.same_code(Status::COMMAND_SEQUENCE_ERROR));
    assert_eq!(glue.csts(admin), 0);
}

#[test]
fn second_connect_on_a_connection_is_busy() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(admin, Glue::connect_command(0, 31), &data);
    assert!(cqe.status.same_code(Status::CONTROLLER_BUSY));
    assert!(!cqe.status.is_dnr());
}

#[test]
fn refused_connect_can_be_followed_by_a_better_one() {
    let mut glue = Glue::new();
    let id = glue.initialized(Digests::NONE);
    let command = Glue::connect_command(0, 31);
    let wrong = Glue::connect_data("nqn.2026-11.io.bowline:none", HOSTNQN, 0xFFFF);
    assert!(!glue.connect(id, command, &wrong).status.is_success());
    let right = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    assert_eq!(glue.connect(id, command, &right).status, Status::SUCCESS);
}

#[test]
fn controller_ids_are_not_reused_soon() {
    let mut glue = Glue::new();
    let mut seen = Vec::new();
    for _ in 0..50 {
        let (admin, cntlid) = glue.admin_with(Digests::NONE, 0);
        assert!((1..=0xFFEF).contains(&cntlid));
        assert!(!seen.contains(&cntlid));
        seen.push(cntlid);
        glue.drop_socket(admin);
    }
}

#[test]
fn controllers_beyond_the_limit_find_the_subsystem_busy() {
    let mut glue = Glue::bare(TargetConfig::default());
    let subsystem = SubsystemConfig {
        hosts: Hosts::Any,
        controllers_max: 2,
        ..SubsystemConfig::new(SUBNQN, "BL0001")
    };
    glue.target
        .add_subsystem(glue.now, subsystem)
        .expect("valid");
    glue.admin();
    glue.admin();
    let id = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    assert_eq!(cqe.status, Status::CONTROLLER_BUSY);
}

#[test]
fn queue_id_in_use_waits_for_the_old_queue_and_then_is_refused() {
    let mut glue = Glue::new();
    let (_, cntlid) = glue.admin();
    let old = glue.io_queue(Digests::NONE, cntlid, 1);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, cntlid);
    let new = glue.initialized(Digests::NONE);
    glue.send_with_data(new, Glue::connect_command(1, 127).encode(), &data.encode());
    assert!(glue.replies(new).is_empty());
    glue.drop_socket(old);
    assert_eq!(glue.reply(new).cqe().status, Status::SUCCESS);

    let third = glue.initialized(Digests::NONE);
    glue.send_with_data(
        third,
        Glue::connect_command(1, 127).encode(),
        &data.encode(),
    );
    assert!(glue.replies(third).is_empty());
    glue.advance(Nanos::from_secs(3));
    assert_eq!(
        glue.reply(third).cqe().status,
        Status::COMMAND_SEQUENCE_ERROR
    );
}

#[test]
fn connection_can_be_handed_to_the_target_that_owns_the_subsystem() {
    let mut arriving = Glue::bare(TargetConfig::default());
    let mut owner = Glue::new();
    arriving.manual_route = true;
    let digests = Digests {
        header: true,
        data: true,
    };
    let id = arriving.initialized(digests);
    let connect = Glue::connect_command(0, 31).encode();
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    arriving.send_with_data(id, connect, &data.encode());
    assert_eq!(arriving.routes, [(id, SUBNQN.to_owned())]);
    let handoff = arriving.target.take(id).expect("it is being routed");
    assert!(arriving.target.take(id).is_none());
    arriving.target.closed(arriving.now, id);
    let adopted = owner.target.adopt(owner.now, handoff).expect("room");
    let conn = arriving.release(id);
    owner.track_moved(adopted, conn);
    owner.target.resume(owner.now, adopted);
    owner.pump();
    assert_eq!(owner.reply(adopted).cqe().status, Status::SUCCESS);
    owner.set_cc(adopted, crate::glue::CC_ENABLE);
    assert_eq!(owner.csts(adopted), 1);
    assert_eq!(arriving.target.connections().len(), 0);
}

#[test]
fn keep_alive_works_on_a_queue_with_flow_control_and_reports_sq_head() {
    let mut glue = Glue::new();
    let id = glue.initialized(Digests::NONE);
    let command = Connect {
        sqsize: 3,
        ..Glue::connect_command(0, 3)
    }
    .with_sq_flow_control_disabled(false);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    assert_eq!(glue.connect(id, command, &data).sqhd, 1);
    glue.set_cc(id, crate::glue::CC_ENABLE);
    let heads: Vec<u16> = (0..5)
        .map(|_| glue.command(id, Sqe::new(admin::KEEP_ALIVE)).sqhd)
        .collect();
    assert_eq!(heads, [3, 0, 1, 2, 3]);
    // With flow control SUCCESS must not stand in for the response, which carries SQHD.
    let sqe = Sqe::new(admin::IDENTIFY)
        .with_cdw(10, 1)
        .with_nsid(NamespaceId(0));
    glue.send(id, sqe.with_sgl1(Sgl::transport(4096)));
    let replies = glue.replies(id);
    assert!(matches!(
        replies[0],
        Reply::Data {
            success: false,
            last: true,
            ..
        }
    ));
    assert_eq!(replies[1].cqe().sqhd, 0);
}

/// Connect Invalid Host carried DNR although the list of hosts is complete only a moment after a
/// restart. Hosts that would have been allowed gave the controller up for good.
#[test]
fn host_that_is_allowed_a_moment_later_was_not_told_to_give_up() {
    let mut glue = Glue::new();
    let id = glue.initialized(Digests::NONE);
    let late = "nqn.2026-11.io.bowline:late";
    let data = Glue::connect_data(SUBNQN, late, 0xFFFF);
    let command = Glue::connect_command(0, 31);
    let refused = glue.connect(id, command, &data).status;
    assert_eq!(refused, Status::CONNECT_INVALID_HOST);
    glue.target.allow_host(SUBNQN, late).expect("valid");
    assert_eq!(glue.connect(id, command, &data).status, Status::SUCCESS);
}

/// Every refused Connect gave its sender the full time to connect anew. A peer that repeated an
/// invalid one kept its place among the unassociated connections for ever.
#[test]
fn refusals_do_not_prolong_the_time_to_connect() {
    let mut glue = Glue::new();
    let id = glue.initialized(Digests::NONE);
    let wrong = Glue::connect_data("nqn.2026-11.io.bowline:none", HOSTNQN, 0xFFFF);
    for _ in 0..3 {
        let cqe = glue.connect(id, Glue::connect_command(0, 31), &wrong);
        assert!(!cqe.status.is_success());
        assert!(glue.is_open(id));
        glue.advance(Nanos::from_secs(4));
    }
    assert!(!glue.is_open(id));
}

/// PSDT and FUSE were demanded of Fabrics commands too, in whose capsules that byte is partly
/// reserved. A host that left or set those bits could not even connect.
#[test]
fn reserved_byte_of_a_fabrics_command_is_not_looked_at() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    for (byte, opcode_ok) in [(0x00, false), (0x03, false), (0xFF, false), (0x40, true)] {
        let get = PropertyGet::dword(offset::CSTS).encode();
        let keep_alive = Sqe::new(admin::KEEP_ALIVE);
        for (sqe, accepted) in [(get, true), (keep_alive, opcode_ok)] {
            let cid = glue.next_cid(admin);
            let mut sqe = sqe.with_cid(cid).with_sgl1(Sgl::transport(0));
            sqe.0[1] = byte;
            let bytes = glue.capsule(admin, sqe, &[]);
            glue.receive(admin, &bytes);
            let status = glue.reply(admin).cqe().status;
            assert_eq!(status.is_success(), accepted, "{byte:#x}");
        }
    }
}

/// One host could take every connection of the target.
#[test]
fn host_with_its_share_of_queues_is_refused_and_others_are_not() {
    let mut glue = Glue::with(TargetConfig {
        queues_per_host_max: 2,
        ..TargetConfig::default()
    });
    let other = "nqn.2026-11.io.bowline:test:other";
    glue.target
        .set_hosts(glue.now, SUBNQN, Hosts::Any)
        .expect("valid");
    let (admin, queue) = glue.queues(Digests::NONE);
    let third = glue.initialized(Digests::NONE);
    let data = Glue::connect_data(SUBNQN, HOSTNQN, 0xFFFF);
    let cqe = glue.connect(third, Glue::connect_command(0, 31), &data);
    assert_eq!(cqe.status, Status::CONTROLLER_BUSY, "try again later");
    let fourth = glue.initialized(Digests::NONE);
    let data_of_other = Glue::connect_data(SUBNQN, other, 0xFFFF);
    let cqe = glue.connect(fourth, Glue::connect_command(0, 31), &data_of_other);
    assert!(cqe.status.is_success());
    // Who goes makes room.
    glue.drop_socket(queue);
    glue.drop_socket(admin);
    let cqe = glue.connect(third, Glue::connect_command(0, 31), &data);
    assert!(cqe.status.is_success());
}
