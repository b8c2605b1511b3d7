//! What is claimed to be supported is what works: every opcode, Identify structure and feature is
//! tried and compared with the logs and fields that tell of it.

use bowline_nvme::fabrics::{Connect, ConnectData};
use bowline_nvme::feature::{GetFeatures, Select, SetFeatures, capabilities, id as fid};
use bowline_nvme::identify::{
    Identify, IdentifyController, IdentifyNamespace, cns, controller_list,
};
use bowline_nvme::log::{CommandEffects, EffectsLog, ErrorLogEntry, GetLogPage, id as lid};
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{ControllerId, NamespaceId, Sgl, Sqe, Status};
use bowline_nvmf::target::{ConnId, NsGeometry, TargetConfig};
use proptest::prelude::*;

use crate::glue::{BLOCK, BLOCKS, CC_ENABLE, DISCOVERY, Glue, HOSTNQN, Reply, SUBNQN, geometry};

fn effects(glue: &mut Glue, admin: ConnId) -> EffectsLog {
    let log = glue
        .log(admin, GetLogPage::range(lid::EFFECTS, 0, 4096))
        .expect("LPA bit 1");
    EffectsLog::decode(log.first_chunk().expect("4096"))
}

/// Whether the opcode is known, whatever else is wrong with the command.
fn is_known(glue: &mut Glue, queue: ConnId, opcode: u8) -> bool {
    let sqe = Sqe::new(opcode).with_nsid(NamespaceId(1));
    glue.send(queue, sqe.with_sgl1(Sgl::transport(0)));
    match glue.replies(queue).as_slice() {
        [] => {
            assert_eq!(
                opcode,
                admin::ASYNC_EVENT_REQUEST,
                "all others are answered"
            );
            true
        }
        [reply] => !reply.cqe().status.same_code(Status::INVALID_OPCODE),
        more => panic!("{more:?}"),
    }
}

fn discovery(glue: &mut Glue) -> ConnId {
    let id = glue.initialized(Digests::NONE);
    let command = Connect {
        kato_ms: 30_000,
        ..Glue::connect_command(0, 31)
    };
    let data = Glue::connect_data(DISCOVERY, HOSTNQN, 0xFFFF);
    assert!(glue.connect(id, command, &data).status.is_success());
    glue.set_cc(id, CC_ENABLE);
    id
}

#[test]
fn effects_log_names_exactly_the_commands_that_are_known() {
    for write_zeroes in [true, false] {
        let mut glue = Glue::new();
        let zeroes = NsGeometry {
            write_zeroes,
            ..geometry()
        };
        glue.target
            .update_namespace(glue.now, SUBNQN, 1, zeroes)
            .expect("valid");
        let (admin, queue) = glue.queues(Digests::NONE);
        let log = effects(&mut glue, admin);
        let supports = |effects: CommandEffects| effects.contains(CommandEffects::SUPPORTED);
        for code in 0..=u8::MAX {
            let (of_admin, of_io) = (log.admin[usize::from(code)], log.io[usize::from(code)]);
            // Fabrics commands are no commands of a command set.
            if code != admin::FABRICS {
                assert_eq!(
                    is_known(&mut glue, admin, code),
                    supports(of_admin),
                    "admin {code:#x}"
                );
                assert_eq!(
                    is_known(&mut glue, queue, code),
                    supports(of_io),
                    "I/O {code:#x}"
                );
            }
            for effects in [of_admin, of_io] {
                assert_eq!(effects.0 >> 16 & 7, 0, "none makes Linux freeze its queues");
                assert!(supports(effects) || effects.0 == 0);
            }
        }
        let found = supports(log.io[usize::from(opcode::WRITE_ZEROES)]);
        assert_eq!(found, write_zeroes);
    }
}

#[test]
fn discovery_controller_knows_its_six_commands() {
    let mut glue = Glue::new();
    let id = discovery(&mut glue);
    let known: Vec<u8> = (0..=u8::MAX)
        .filter(|&code| code != admin::FABRICS)
        .filter(|&code| is_known(&mut glue, id, code))
        .collect();
    assert_eq!(known, [0x02, 0x06, 0x09, 0x0A, 0x0C, 0x18]);
}

#[test]
fn what_hosts_cannot_do_is_claimed_nowhere() {
    let mut glue = Glue::new();
    let (admin, _) = glue.queues(Digests::NONE);
    let page = glue.identify(admin, cns::CONTROLLER, 0).expect("mandatory");
    let found = IdentifyController::decode(&page);
    assert_eq!(
        (found.oacs, found.sanicap, found.fna, found.nwpc),
        (0, 0, 0, 0)
    );
    assert_eq!(
        (found.hmpre, found.hmmin, found.apsta, found.hctma),
        (0, 0, 0, 0)
    );
    assert_eq!(
        (found.edstt, found.dsto, found.rpmbs, found.pels),
        (0, 0, 0, 0)
    );
    assert_eq!(found.lpa & 1, 0, "no SMART log per namespace");
    assert_eq!(found.lpa & 1 << 4, 0, "no persistent event log");
    assert_eq!(found.frmw & 1, 1, "the only slot is read only");
    for (code, nsid) in [
        (admin::NAMESPACE_MANAGEMENT, 0),
        (admin::NAMESPACE_ATTACHMENT, 1),
        (admin::FORMAT_NVM, 1),
        (admin::FORMAT_NVM, NamespaceId::BROADCAST.0),
        (admin::SANITIZE, NamespaceId::BROADCAST.0),
        (admin::SECURITY_SEND, 0),
        (admin::SECURITY_RECEIVE, 0),
        (admin::FIRMWARE_COMMIT, 0),
        (admin::FIRMWARE_DOWNLOAD, 0),
        (admin::CREATE_SQ, 0),
        (admin::DELETE_SQ, 0),
        (admin::CREATE_CQ, 0),
        (admin::DELETE_CQ, 0),
        (DEVICE_SELF_TEST, NamespaceId::BROADCAST.0),
        (DIRECTIVE_SEND, 1),
        (DIRECTIVE_RECEIVE, 1),
        (VIRTUALIZATION_MANAGEMENT, 0),
        (DOORBELL_BUFFER_CONFIG, 0),
    ] {
        let sqe = Sqe::new(code).with_nsid(NamespaceId(nsid));
        let status = glue.command(admin, sqe).status;
        assert_eq!(status, Status::INVALID_OPCODE.dnr().more(), "{code:#x}");
    }
}

const DEVICE_SELF_TEST: u8 = 0x14;
const DIRECTIVE_SEND: u8 = 0x19;
const DIRECTIVE_RECEIVE: u8 = 0x1A;
const VIRTUALIZATION_MANAGEMENT: u8 = 0x1C;
const DOORBELL_BUFFER_CONFIG: u8 = 0x7C;

#[test]
fn namespace_says_what_can_be_done_with_it() {
    let mut glue = Glue::new();
    let (admin, _) = glue.queues(Digests::NONE);
    let page = glue.identify(admin, cns::NAMESPACE, 1).expect("active");
    let found = IdentifyNamespace::decode(&page);
    assert_eq!(
        (found.nsze, found.ncap, found.nuse),
        (BLOCKS, BLOCKS, BLOCKS)
    );
    assert_eq!(found.nvmcap, u128::from(BLOCKS) * u128::from(BLOCK));
    assert_eq!(
        (found.nlbaf, found.flbas, found.mc, found.dpc, found.dps),
        (0, 0, 0, 0, 0)
    );
    assert_eq!((found.nmic, found.nsattr), (1, 0));
    let controller = glue.identify(admin, cns::CONTROLLER, 0).expect("mandatory");
    let controller = IdentifyController::decode(&controller);
    assert_eq!((controller.tnvmcap, controller.unvmcap), (found.nvmcap, 0));
    assert_eq!((controller.nn, controller.mnan), (16, 16));
    assert_eq!((controller.sqes, controller.cqes), (0x66, 0x44));
}

/// A new error log entry, newest first.
fn newest(glue: &mut Glue, admin: ConnId) -> ErrorLogEntry {
    let log = glue
        .log(admin, GetLogPage::range(lid::ERROR, 0, 64))
        .expect("mandatory");
    ErrorLogEntry::decode(log.first_chunk().expect("64"))
}

/// Admin commands that are refused, and the byte (and bit) at fault.
fn refused() -> Vec<(Sqe, u16)> {
    let identify = |cns, csi| {
        Identify {
            csi,
            ..Identify::new(cns)
        }
        .encode()
    };
    let log = |get: GetLogPage| get.encode().with_nsid(NamespaceId::BROADCAST);
    let get = |fid, select| {
        GetFeatures {
            fid,
            select,
            cdw11: 0,
        }
        .encode()
    };
    let set = |fid, value| SetFeatures::new(fid, value).encode();
    let save = SetFeatures {
        save: true,
        ..SetFeatures::new(fid::WRITE_ATOMICITY, 1)
    };
    let smart = GetLogPage::range(lid::SMART, 0, 4);
    let page = Sgl::transport(4096);
    let dword = Sgl::transport(4);
    vec![
        (identify(0x17, 0).with_sgl1(page), 40),
        (identify(cns::COMMAND_SET_CONTROLLER, 2).with_sgl1(page), 47),
        (
            identify(cns::NAMESPACE, 0)
                .with_nsid(NamespaceId(17))
                .with_sgl1(page),
            4,
        ),
        (
            identify(cns::NAMESPACE, 0).with_sgl1(Sgl::transport(4092)),
            32,
        ),
        (log(GetLogPage::range(0x55, 0, 4)).with_sgl1(dword), 40),
        (log(GetLogPage { lpo: 2, ..smart }).with_sgl1(dword), 48),
        (log(GetLogPage { lpo: 516, ..smart }).with_sgl1(dword), 48),
        (
            log(GetLogPage { ot: true, ..smart }).with_sgl1(dword),
            58 | 7 << 8,
        ),
        (
            log(GetLogPage {
                numd: u32::MAX,
                ..smart
            })
            .with_sgl1(dword),
            42,
        ),
        (smart.encode().with_nsid(NamespaceId(1)).with_sgl1(dword), 4),
        (get(0x7F, Select::Current).with_sgl1(Sgl::transport(0)), 40),
        (
            get(fid::ARBITRATION, Select::Reserved(5)).with_sgl1(Sgl::transport(0)),
            41,
        ),
        (
            set(fid::POWER_MANAGEMENT, 1).with_sgl1(Sgl::transport(0)),
            44,
        ),
        (save.encode().with_sgl1(Sgl::transport(0)), 43 | 7 << 8),
        (Sqe::new(0xC1).with_sgl1(Sgl::transport(0)), 0),
    ]
}

#[test]
fn error_log_says_where_in_the_command_the_fault_is() {
    let mut glue = Glue::new();
    let (admin, queue) = glue.queues(Digests::NONE);
    for (sqe, at) in refused() {
        let cid = glue.send(admin, sqe);
        let status = glue.reply(admin).cqe().status;
        assert!(!status.is_success(), "{sqe:?}");
        let entry = newest(&mut glue, admin);
        assert_eq!(entry.parameter_error_location, at, "{sqe:?}");
        assert_eq!(
            (entry.cid, entry.sqid, entry.lba, entry.trtype),
            (cid.0, 0, 0, 3)
        );
        assert!(entry.status().same_code(status));
    }
    // The bits that are the block of other commands are none here.
    let deallocate = Sqe::new(opcode::DATASET_MANAGEMENT)
        .with_nsid(NamespaceId(1))
        .with_cdw(10, 7);
    assert!(!glue.command(queue, deallocate).status.is_success());
    let entry = newest(&mut glue, admin);
    assert_eq!((entry.sqid, entry.nsid.0, entry.lba), (1, 1, 0));
}

/// What Identify must say to a command, by the specification alone.
fn identify_expected(sqe: Identify, nsid: u32, active: &[u32], max: u32) -> Result<(), Status> {
    let valid = (1..=max).contains(&nsid);
    let ok_if = |ok: bool, otherwise: Status| if ok { Ok(()) } else { Err(otherwise) };
    let per_command_set = [0x05, 0x06, 0x07, 0x1A, 0x1B].contains(&sqe.cns);
    if per_command_set && sqe.csi != 0 {
        return Err(Status::INVALID_FIELD);
    }
    match sqe.cns {
        0x01 | 0x06 | 0x13 | 0x1C => Ok(()),
        0x00 | 0x05 | 0x08 | 0x11 | 0x1B => ok_if(valid, Status::INVALID_NAMESPACE),
        0x03 | 0x12 => ok_if(active.contains(&nsid), Status::INVALID_NAMESPACE),
        0x02 | 0x07 | 0x10 | 0x1A => ok_if(nsid < 0xFFFF_FFFE, Status::INVALID_NAMESPACE),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn some_nsid() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..20, Just(0xFFFF_FFFE), Just(0xFFFF_FFFF), any::<u32>()]
}

#[test]
fn any_identify_answers_as_specified() {
    let mut glue = Glue::new();
    glue.add_namespace(3);
    let (admin, _) = glue.queues(Digests::NONE);
    let glue = std::cell::RefCell::new(glue);
    let any = (
        prop_oneof![0u8..0x20, any::<u8>()],
        any::<u16>(),
        prop_oneof![Just(0u8), 0u8..4],
        some_nsid(),
    );
    proptest!(ProptestConfig::with_cases(512), |((cns, cntid, csi, nsid) in any)| {
        let mut glue = glue.borrow_mut();
        let identify = Identify { cns, cntid: ControllerId(cntid), csi };
        let sqe = identify.encode().with_nsid(NamespaceId(nsid));
        let found = glue.read_data(admin, sqe, 4096);
        match identify_expected(identify, nsid, &[1, 3], 16) {
            Ok(()) => {
                let found = found.expect("supported");
                let inactive = [0x00, 0x08, 0x11].contains(&cns) && ![1, 3].contains(&nsid);
                if inactive {
                    prop_assert!(found.iter().all(|&byte| byte == 0));
                }
            }
            Err(status) => prop_assert_eq!(found, Err(status.dnr().more())),
        }
    });
}

/// Bytes of data that a feature has.
fn feature_bytes(fid: u8) -> u32 {
    match fid {
        0x0E => 8,
        0x16 => 512,
        0x81 => 16,
        _ => 0,
    }
}

fn get(
    glue: &mut Glue,
    admin: ConnId,
    get: GetFeatures,
    nsid: u32,
) -> Result<(u64, Vec<u8>), Status> {
    let len = match get.select {
        Select::Capabilities => 0,
        _ => feature_bytes(get.fid),
    };
    let sqe = get.encode().with_nsid(NamespaceId(nsid));
    if len == 0 {
        let cqe = glue.command(admin, sqe);
        return match cqe.status {
            Status::SUCCESS => Ok((cqe.result, Vec::new())),
            status => Err(status),
        };
    }
    glue.read_data(admin, sqe, len).map(|data| (0, data))
}

#[test]
fn any_feature_agrees_with_what_is_said_of_it() {
    let mut glue = Glue::new();
    let (admin, _) = glue.queues(Digests::NONE);
    let log = glue
        .log(admin, GetLogPage::range(lid::FEATURE_EFFECTS, 0, 1024))
        .expect("LPA bit 5");
    let glue = std::cell::RefCell::new(glue);
    let any = (
        prop_oneof![0u8..0x20, 0x7Cu8..0x88, any::<u8>()],
        any::<u32>(),
        prop_oneof![0u32..4, any::<u32>()],
        prop_oneof![Just(0u32), Just(1), Just(0xFFFF_FFFF), some_nsid()],
        any::<bool>(),
    );
    proptest!(ProptestConfig::with_cases(1024), |((fid, wild, tame, nsid, save) in any)| {
        let mut glue = glue.borrow_mut();
        let value = if save { tame } else { wild };
        let effects = &log[usize::from(fid) * 4..][..4];
        let supported = effects[0] & 1 == 1;
        let of = |select| GetFeatures { fid, select, cdw11: u32::from(fid == 0x81) };
        let abilities = get(&mut glue, admin, of(Select::Capabilities), nsid);
        prop_assert_eq!(abilities.is_ok(), supported);
        let abilities = abilities.map_or(0, |(value, _)| value);
        let namespaced = abilities & u64::from(capabilities::NAMESPACE_SPECIFIC) != 0;
        prop_assert_eq!(namespaced, effects[2] & 1 << 4 != 0);
        prop_assert_eq!(abilities & u64::from(capabilities::SAVEABLE), 0);
        let before = get(&mut glue, admin, of(Select::Current), 1);
        prop_assert!(supported || before == Err(Status::INVALID_FIELD.dnr().more()));
        let sqe = SetFeatures { fid, save, cdw11: value }.encode().with_nsid(NamespaceId(nsid));
        let status = match feature_bytes(fid) {
            len @ (8 | 512) => glue.status_with_data(admin, sqe, &vec![0; len as usize]),
            _ => glue.command(admin, sqe).status,
        };
        if !supported {
            prop_assert!(status.same_code(Status::INVALID_FIELD), "{}", status);
        } else if save {
            let absent = namespaced && status.same_code(Status::INVALID_NAMESPACE);
            prop_assert!(absent || status.same_code(Status::FEATURE_NOT_SAVEABLE), "{}", status);
        }
        let after = get(&mut glue, admin, of(Select::Current), 1);
        let changeable = abilities & u64::from(capabilities::CHANGEABLE) != 0;
        // Time goes on by itself, though not here.
        prop_assert!(before == after || (changeable && status.is_success()), "{:#x}", fid);
        for select in [Select::Default, Select::Saved] {
            let found = get(&mut glue, admin, of(select), 1);
            prop_assert_eq!(found.is_ok(), supported && before.is_ok());
        }
    });
}

/// What log there is, and how many bytes.
const LOGS: [(u8, u64); 9] = [
    (lid::SUPPORTED_LOG_PAGES, 1024),
    (lid::ERROR, 4096),
    (lid::SMART, 512),
    (lid::FIRMWARE_SLOT, 512),
    (lid::CHANGED_NAMESPACE_LIST, 4096),
    (lid::EFFECTS, 4096),
    (lid::FEATURE_EFFECTS, 1024),
    (0x13, 1024),
    (lid::RESERVATION, 64),
];

#[test]
fn any_log_page_is_the_part_of_the_log_that_was_asked_for() {
    const MDTS: u64 = 8192;
    let mut glue = Glue::with(TargetConfig {
        mdts_bytes: 8192,
        ..TargetConfig::default()
    });
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.add_namespace(2);
    glue.failures.push_back(Status::UNRECOVERED_READ);
    assert!(
        glue.read_data(queue, crate::glue::io(opcode::READ, 1, 1), BLOCK)
            .is_err()
    );
    let listed = glue
        .log(admin, GetLogPage::range(lid::SUPPORTED_LOG_PAGES, 0, 1024))
        .expect("LPA bit 5");
    let glue = std::cell::RefCell::new(glue);
    let lids: Vec<u8> = LOGS.iter().map(|&(lid, _)| lid).collect();
    let any = (
        prop_oneof![4 => prop::sample::select(lids), 1 => any::<u8>()],
        0u8..128,
        prop_oneof![6 => (0u64..1100).prop_map(|at| at * 4), 1 => 0u64..4200, 1 => any::<u64>()],
        prop_oneof![6 => 0u32..1200, 2 => 0u32..2200, 1 => any::<u32>()],
        prop_oneof![9 => Just(false), 1 => Just(true)],
        prop_oneof![6 => Just(0xFFFF_FFFFu32), 2 => Just(0), 1 => some_nsid()],
    );
    proptest!(ProptestConfig::with_cases(1024), |((lid, lsp, lpo, numd, ot, nsid) in any)| {
        let mut glue = glue.borrow_mut();
        let get = GetLogPage { lid, lsp, rae: true, numd, lpo, ot, csi: 0 };
        let size = LOGS.iter().find(|&&(known, _)| known == lid).map(|&(_, size)| size);
        let size = size.filter(|_| listed[usize::from(lid) * 4] & 1 == 1);
        prop_assert_eq!(size.is_some(), listed[usize::from(lid) * 4] & 1 == 1);
        let whole = size.and_then(|size| {
            let size = u32::try_from(size).expect("small");
            let all = GetLogPage { rae: true, lsp, ..GetLogPage::range(lid, 0, size) };
            glue.log(admin, all).ok()
        });
        let len = u32::try_from(get.bytes().min(MDTS)).expect("small");
        let found = glue.read_data(admin, get.encode().with_nsid(NamespaceId(nsid)), len);
        let of_all = nsid == 0 || nsid == 0xFFFF_FFFF;
        let expected = match (size, whole) {
            _ if get.bytes() > MDTS => Err(Status::INVALID_FIELD),
            (None, _) | (_, None) => Err(Status::INVALID_LOG_PAGE),
            (Some(size), _) if ot || lpo % 4 != 0 || lpo > size => Err(Status::INVALID_FIELD),
            _ if lid == lid::SMART && !of_all => Err(Status::INVALID_FIELD),
            (Some(size), Some(whole)) => {
                let from = usize::try_from(lpo.min(size)).expect("small");
                let mut part = whole[from..].to_vec();
                part.resize(len as usize, 0);
                Ok(part)
            }
        };
        prop_assert_eq!(found, expected.map_err(|status| status.dnr().more()));
    });
}

#[test]
fn controllers_that_only_drain_are_not_listed() {
    let mut glue = Glue::new();
    let (old, cntlid) = glue.enabled(Digests::NONE, 0);
    let queue = glue.io_queue(Digests::NONE, cntlid, 1);
    glue.hold_io = true;
    glue.send(queue, crate::glue::io(opcode::READ, 0, 1));
    let (other, other_cntlid) = another_host(&mut glue);
    for lists in [cns::CONTROLLER_LIST, cns::NAMESPACE_CONTROLLER_LIST] {
        let page = glue.identify(other, lists, 1).expect("2.0");
        let mut found: Vec<u16> = controller_list(&page).map(|id| id.0).collect();
        found.sort_unstable();
        let mut expected = [cntlid, other_cntlid];
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
    glue.drop_socket(old);
    let page = glue.identify(other, cns::CONTROLLER_LIST, 0).expect("2.0");
    assert!(controller_list(&page).eq([ControllerId(other_cntlid)]));
}

/// An enabled controller of another host.
fn another_host(glue: &mut Glue) -> (ConnId, u16) {
    const OTHER: &str = "nqn.2026-11.io.bowline:other";
    glue.target.allow_host(SUBNQN, OTHER).expect("there");
    let id = glue.initialized(Digests::NONE);
    let data = ConnectData {
        hostid: [9; 16],
        ..Glue::connect_data(SUBNQN, OTHER, 0xFFFF)
    };
    let cqe = glue.connect(id, Glue::connect_command(0, 31), &data);
    assert_eq!(cqe.status, Status::SUCCESS);
    glue.set_cc(id, CC_ENABLE);
    (id, u16::try_from(cqe.result & 0xFFFF).expect("16 bits"))
}

#[test]
fn error_recovery_is_asked_of_a_namespace_that_is_there() {
    let mut glue = Glue::new();
    let (admin, _) = glue.queues(Digests::NONE);
    let gone = Status::INVALID_NAMESPACE.dnr().more();
    for (nsid, expected) in [(1, Status::SUCCESS), (0, gone), (2, gone), (u32::MAX, gone)] {
        let sqe = GetFeatures::current(fid::ERROR_RECOVERY).encode();
        let status = glue.command(admin, sqe.with_nsid(NamespaceId(nsid))).status;
        assert_eq!(status, expected, "{nsid}");
    }
    for (nsid, expected) in [(1, Status::SUCCESS), (2, gone), (u32::MAX, Status::SUCCESS)] {
        let sqe = SetFeatures::new(fid::ERROR_RECOVERY, 0).encode();
        let status = glue.command(admin, sqe.with_nsid(NamespaceId(nsid))).status;
        assert_eq!(status, expected, "{nsid}");
    }
}

/// What is outstanding may be answered by an event only.
#[test]
fn event_requests_beyond_the_limit_are_refused() {
    let mut glue = Glue::new();
    let (admin, _) = glue.queues(Digests::NONE);
    let aer = Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0));
    for _ in 0..4 {
        glue.send(admin, aer);
    }
    assert!(glue.replies(admin).is_empty());
    glue.send(admin, aer);
    let [Reply::Response(cqe)] = glue.replies(admin)[..] else {
        panic!("one answer");
    };
    assert!(cqe.status.same_code(Status::AER_LIMIT_EXCEEDED));
}
