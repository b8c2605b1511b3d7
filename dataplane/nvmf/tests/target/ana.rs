//! Asymmetric Namespace Access as a host sees it: what is advertised, the log, events, and how
//! commands end in each state.

use bowline_nvme::feature::{SetFeatures, id as fid};
use bowline_nvme::identify::{IdentifyController, IdentifyNamespace, IndependentNamespace, cns};
use bowline_nvme::log::{AnaLogReader, AnaState, GetLogPage, SupportedLogs, id as lid};
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Sgl, Sqe, Status};
use bowline_nvmf::target::{AnaConfig, ConfigError, ConnId, NamespaceConfig, TargetConfig};

use crate::glue::{BLOCK, Glue, HOSTNQN, Reply, SUBNQN, h2c_data, io, namespace, pattern};

const ANA_CHANGED: u64 = 0x000C_0302;
const NAMESPACE_CHANGED: u64 = 0x0004_0002;
const PATH: [(AnaState, Status); 3] = [
    (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
    (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
    (AnaState::Change, Status::ANA_TRANSITION),
];

/// A target whose subsystem reports ANA and has the namespaces 1, 2 and 3, all in group 1.
fn glue() -> Glue {
    let mut glue = Glue::with_ana(TargetConfig::default(), AnaConfig::default());
    glue.add_namespace(2);
    glue.add_namespace(3);
    glue
}

fn set(glue: &mut Glue, group: u32, state: AnaState) {
    let now = glue.now;
    let set = glue.target.set_ana_state(now, SUBNQN, group, state);
    set.expect("there are groups");
    glue.pump();
}

fn relocate(glue: &mut Glue, nsid: u32, group: u32) {
    let now = glue.now;
    let moved = glue.target.set_ana_group(now, SUBNQN, nsid, group);
    moved.expect("namespace and group are there");
    glue.pump();
}

/// Enables events of namespaces and of ANA, and leaves two requests.
fn listen(glue: &mut Glue, admin: ConnId) {
    let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 0x900).encode();
    assert_eq!(glue.command(admin, aec).status, Status::SUCCESS);
    request_event(glue, admin);
    request_event(glue, admin);
}

fn request_event(glue: &mut Glue, admin: ConnId) {
    let request = Sqe::new(admin::ASYNC_EVENT_REQUEST);
    glue.send(admin, request.with_sgl1(Sgl::transport(0)));
}

fn events(glue: &mut Glue, admin: ConnId) -> Vec<u64> {
    let replies = glue.replies(admin).into_iter();
    replies.map(|reply| reply.cqe().result).collect()
}

/// Change count of the log, then group id, state, change count and namespaces of each group.
type Log = (u64, Vec<(u32, AnaState, u64, Vec<u32>)>);

fn parse(log: &[u8]) -> Log {
    let reader = AnaLogReader::new(log).expect("a header");
    let count = reader.header().chgcnt;
    let groups = reader.map(|group| {
        let group = group.expect("a group");
        let nsids = group.namespaces().map(|nsid| nsid.0).collect();
        let descriptor = group.descriptor;
        (descriptor.grpid, group.state, descriptor.chgcnt, nsids)
    });
    (count, groups.collect())
}

fn log(glue: &mut Glue, admin: ConnId) -> Log {
    let get = GetLogPage::range(lid::ANA, 0, 4096);
    parse(&glue.log(admin, get).expect("supported"))
}

/// Group ids, states and namespaces.
fn groups(glue: &mut Glue, admin: ConnId) -> Vec<(u32, AnaState, Vec<u32>)> {
    let (_, groups) = log(glue, admin);
    let short = |(id, state, _, nsids)| (id, state, nsids);
    groups.into_iter().map(short).collect()
}

#[test]
fn subsystem_without_ana_says_nothing_of_it() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    let page = glue.identify(admin, cns::CONTROLLER, 0).expect("mandatory");
    let controller = IdentifyController::decode(&page);
    assert_eq!(controller.cmic & IdentifyController::CMIC_ANA, 0);
    assert_eq!(controller.oaes & 1 << 11, 0);
    let fields = (controller.anatt, controller.anacap);
    assert_eq!(fields, (0, 0));
    assert_eq!((controller.anagrpmax, controller.nanagrpid), (0, 0));
    let page = glue.identify(admin, cns::NAMESPACE, 1).expect("active");
    assert_eq!(IdentifyNamespace::decode(&page).anagrpid, 0);
    let refused = glue.log(admin, GetLogPage::range(lid::ANA, 0, 16));
    assert!(refused.is_err_and(|it| it.same_code(Status::INVALID_LOG_PAGE)));
    let supported = GetLogPage::range(lid::SUPPORTED_LOG_PAGES, 0, 1024);
    let page = glue.log(admin, supported).expect("mandatory");
    let page = SupportedLogs::decode(page.first_chunk().expect("1024"));
    assert!(!page.contains(lid::ANA));
    let (now, target) = (glue.now, &mut glue.target);
    let none = Err(ConfigError::NoAna);
    let set = target.set_ana_state(now, SUBNQN, 1, AnaState::Change);
    assert_eq!(set, none);
    assert_eq!(target.set_ana_group(now, SUBNQN, 1, 1), none);
    assert_eq!(target.ana_executing(SUBNQN, 1), Err(ConfigError::NoAna));
    let grouped = NamespaceConfig {
        ana_group: Some(1),
        ..namespace(2)
    };
    let added = target.add_namespace(now, SUBNQN, grouped);
    assert_eq!(added, Err(ConfigError::NoAna));
    assert!(target.subsystems()[0].ana.is_none());
}

#[test]
fn groups_and_states_are_where_hosts_look_for_them() {
    let mut glue = glue();
    let (admin, _) = glue.admin();
    relocate(&mut glue, 2, 7);
    set(&mut glue, 7, AnaState::NonOptimized);
    set(&mut glue, 9, AnaState::Change);
    for (nsid, group) in [(1, 1), (2, 7), (3, 1)] {
        let page = glue.identify(admin, cns::NAMESPACE, nsid).expect("active");
        assert_eq!(IdentifyNamespace::decode(&page).anagrpid, group);
        let page = glue
            .identify(admin, cns::INDEPENDENT_NAMESPACE, nsid)
            .expect("active");
        assert_eq!(IndependentNamespace::decode(&page).anagrpid, group);
    }
    let expected = [
        (1, AnaState::Optimized, vec![1, 3]),
        (7, AnaState::NonOptimized, vec![2]),
    ];
    assert_eq!(groups(&mut glue, admin), expected);
    let ana = glue.target.subsystems()[0].ana.clone().expect("on");
    let ids: Vec<u32> = ana.groups.iter().map(|group| group.id).collect();
    assert_eq!(ids, [1, 7, 9], "the owner also sees empty groups");
    assert_eq!(ana.groups[1].nsids, [2]);
    assert_eq!(glue.target.subsystems()[0].namespaces[1].ana_group, 7);
}

#[test]
fn states_and_groups_that_cannot_be_are_refused() {
    let mut glue = glue();
    let (now, target) = (glue.now, &mut glue.target);
    let none = "nqn.2026-11.io.bowline:none";
    let group = ConfigError::AnaGroup;
    for (nqn, id, expected) in [
        (SUBNQN, 0, group),
        (SUBNQN, 33, group),
        (none, 1, ConfigError::NoSubsystem),
    ] {
        let set = target.set_ana_state(now, nqn, id, AnaState::Change);
        assert_eq!(set, Err(expected));
        assert_eq!(target.set_ana_group(now, nqn, 1, id), Err(expected));
        assert_eq!(target.ana_executing(nqn, id), Err(expected));
    }
    let missing = target.set_ana_group(now, SUBNQN, 9, 1);
    assert_eq!(missing, Err(ConfigError::NoNamespace));
    let config = NamespaceConfig {
        ana_group: Some(33),
        ..namespace(9)
    };
    assert_eq!(target.add_namespace(now, SUBNQN, config), Err(group));
    let ana = target.subsystems()[0].ana.clone().expect("on");
    assert_eq!(ana.groups.len(), 1, "nothing was made on the way");
}

/// What the switch found at the device finishes; everything else ends with the path's status.
#[test]
fn command_that_is_not_at_its_device_fails_when_access_ends() {
    for (state, status) in PATH {
        let mut glue = glue();
        let (_, queue) = glue.queues(Digests::NONE);
        glue.hold_io = true;
        let executing = glue.send(queue, io(opcode::READ, 0, 1));
        let transferring = glue.send(queue, io(opcode::WRITE, 8, 64));
        let Reply::R2t(r2t) = glue.reply(queue) else {
            panic!("no R2T")
        };
        set(&mut glue, 1, state);
        assert!(glue.replies(queue).is_empty(), "its data is on the way");
        let data = pattern(1, 64 * BLOCK as usize);
        let bytes = glue.h2c(queue, h2c_data(&r2t), &data);
        glue.receive(queue, &bytes);
        let cqe = glue.reply(queue).cqe();
        assert_eq!(cqe.cid, transferring);
        assert!(cqe.status.same_code(status) && !cqe.status.is_dnr());
        assert_eq!(glue.held.len(), 1, "the write must not execute");
        assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(1));
        glue.hold_io = false;
        glue.finish_held();
        assert!(matches!(glue.reply(queue), Reply::Data { cid, .. } if cid == executing));
        assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(0));
        set(&mut glue, 1, AnaState::NonOptimized);
        let read = glue.read_data(queue, io(opcode::READ, 8, 1), BLOCK);
        assert_eq!(read, Ok(vec![0; BLOCK as usize]));
    }
}

#[test]
fn change_of_state_is_one_event_until_the_log_is_read() {
    let mut glue = glue();
    let (admin, _) = glue.admin();
    listen(&mut glue, admin);
    set(&mut glue, 1, AnaState::Inaccessible);
    assert_eq!(events(&mut glue, admin), [ANA_CHANGED]);
    set(&mut glue, 1, AnaState::Change);
    set(&mut glue, 1, AnaState::NonOptimized);
    assert!(events(&mut glue, admin).is_empty(), "masked");
    let retained = GetLogPage {
        rae: true,
        ..GetLogPage::range(lid::ANA, 0, 4096)
    };
    let before = parse(&glue.log(admin, retained).expect("supported"));
    set(&mut glue, 1, AnaState::Optimized);
    assert!(events(&mut glue, admin).is_empty(), "RAE keeps the mask");
    let after = log(&mut glue, admin);
    assert_eq!(after.0, before.0 + 1);
    assert_eq!(after.1[0].2, before.1[0].2 + 1);
    set(&mut glue, 1, AnaState::Optimized);
    assert!(events(&mut glue, admin).is_empty(), "nothing changed");
    assert_eq!(log(&mut glue, admin), after);
    set(&mut glue, 1, AnaState::Inaccessible);
    assert_eq!(events(&mut glue, admin), [ANA_CHANGED]);
}

#[test]
fn namespaces_that_come_and_go_raise_their_own_event_and_those_that_move_that_of_ana() {
    let mut glue = glue();
    let (admin, _) = glue.admin();
    listen(&mut glue, admin);
    let (count, before) = log(&mut glue, admin);
    glue.add_namespace(4);
    assert_eq!(events(&mut glue, admin), [NAMESPACE_CHANGED]);
    let (added, groups) = log(&mut glue, admin);
    assert_eq!((added, &groups[0].3[..]), (count + 1, &[1, 2, 3, 4][..]));
    assert_eq!(groups[0].2, before[0].2 + 1);
    relocate(&mut glue, 4, 2);
    assert_eq!(events(&mut glue, admin), [ANA_CHANGED]);
    let (moved, groups) = log(&mut glue, admin);
    assert_eq!(moved, added + 1, "one change");
    assert_eq!((groups[0].2, groups.len()), (before[0].2 + 2, 2));
    request_event(&mut glue, admin);
    let now = glue.now;
    let gone = glue.target.remove_namespace(now, SUBNQN, 4);
    gone.expect("it is there");
    glue.pump();
    let masked = GetLogPage::range(lid::CHANGED_NAMESPACE_LIST, 0, 4096);
    assert!(
        events(&mut glue, admin).is_empty(),
        "masked since the first"
    );
    glue.log(admin, masked).expect("mandatory");
    let (removed, groups) = log(&mut glue, admin);
    assert_eq!((removed, groups.len()), (moved + 1, 1));
    let controllers = &glue.target.subsystems()[0].controllers;
    assert_eq!(controllers[0].hostnqn, HOSTNQN);
}
