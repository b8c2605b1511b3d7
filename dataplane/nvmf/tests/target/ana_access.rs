//! How every command ends in every state of its namespace's group. [BASE-2.0 §8.1.3]

use bowline_nvme::feature::{GetFeatures, Select, SetFeatures, id as fid};
use bowline_nvme::identify::{Identify, IdentifyNamespace, cns};
use bowline_nvme::log::{AnaState, EffectsLog, GetLogPage, id as lid};
use bowline_nvme::nvm::DsmRange;
use bowline_nvme::opcode::{Transfer, admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Fuse, NamespaceId, Sgl, Sqe, Status};
use bowline_nvmf::target::{AnaConfig, ConnId, NsGeometry, TargetConfig};

use crate::glue::{BLOCK, Glue, Reply, SUBNQN, geometry, h2c_data, io, pattern};

const STATES: [(AnaState, Option<Status>); 5] = [
    (AnaState::Optimized, None),
    (AnaState::NonOptimized, None),
    (AnaState::Inaccessible, Some(Status::ANA_INACCESSIBLE)),
    (AnaState::PersistentLoss, Some(Status::ANA_PERSISTENT_LOSS)),
    (AnaState::Change, Some(Status::ANA_TRANSITION)),
];

/// A controller whose namespace 1 is in a group of this state, and namespace 2 in another that is
/// always optimized.
fn in_state(state: AnaState) -> (Glue, ConnId, ConnId) {
    let mut glue = Glue::with_ana(TargetConfig::default(), AnaConfig::default());
    glue.add_namespace(2);
    let now = glue.now;
    let moved = glue.target.set_ana_group(now, SUBNQN, 2, 2);
    moved.expect("both are there");
    let set = glue.target.set_ana_state(now, SUBNQN, 1, state);
    set.expect("it is there");
    let (admin, queue) = glue.queues(Digests::NONE);
    (glue, admin, queue)
}

/// The status of a command of any kind, with `len` bytes of data in its opcode's direction.
fn status(glue: &mut Glue, queue: ConnId, sqe: Sqe, len: u32) -> Status {
    if Transfer::of(sqe.opcode()) == Transfer::ToController && len > 0 {
        let data = vec![0; len as usize];
        return glue.status_with_data(queue, sqe, &data);
    }
    glue.send(queue, sqe.with_sgl1(Sgl::transport(len)));
    let replies = glue.replies(queue);
    match replies.first() {
        Some(Reply::Data { .. }) => Status::SUCCESS,
        Some(Reply::R2t(_)) => panic!("its data is in the capsule"),
        Some(other) => other.cqe().status,
        None => panic!("no reply to {sqe:?}"),
    }
}

fn is_path(status: Status) -> bool {
    let path = STATES.iter().filter_map(|(_, status)| *status);
    path.into_iter().any(|it| it.same_code(status))
}

fn check_path(found: Status, expected: Status, what: &str) {
    assert!(found.same_code(expected), "{what}: {found:?}");
    assert!(!found.is_dnr(), "{what}: hosts must try another path");
}

/// What the effects log calls supported, of `commands` by opcode.
fn supported(glue: &mut Glue, admin: ConnId, at: usize) -> Vec<u8> {
    let get = GetLogPage::range(lid::EFFECTS, 0, 4096);
    let log = glue.log(admin, get).expect("supported");
    assert_eq!(log.len(), EffectsLog::SIZE);
    let entry = |opcode: &u8| log[at + usize::from(*opcode) * 4] & 1 != 0;
    (0..=u8::MAX).filter(entry).collect()
}

#[test]
fn every_io_command_ends_with_the_status_of_its_path() {
    for (state, expected) in STATES {
        let (mut glue, admin, queue) = in_state(state);
        let known = supported(&mut glue, admin, 1024);
        for must in [
            opcode::FLUSH,
            opcode::WRITE,
            opcode::READ,
            opcode::COMPARE,
            opcode::WRITE_ZEROES,
            opcode::DATASET_MANAGEMENT,
        ] {
            assert!(known.contains(&must));
        }
        for opcode in (0..=u8::MAX).filter(|&it| it != admin::FABRICS) {
            let what = format!("{opcode:#04x} in {state:?}");
            let len = match Transfer::of(opcode) {
                Transfer::None | Transfer::Both => 0,
                Transfer::ToController | Transfer::ToHost => BLOCK,
            };
            let sqe = Sqe::new(opcode).with_nsid(NamespaceId(1));
            let found = status(&mut glue, queue, sqe, len);
            match expected {
                _ if !known.contains(&opcode) => {
                    assert!(found.same_code(Status::INVALID_OPCODE), "{what}: {found:?}");
                    assert!(found.is_dnr(), "{what}");
                }
                Some(path) => check_path(found, path, &what),
                None => assert!(!is_path(found), "{what}: {found:?}"),
            }
            // The neighbour's state is its own.
            let sqe = Sqe::new(opcode).with_nsid(NamespaceId(2));
            let found = status(&mut glue, queue, sqe, len);
            assert!(!is_path(found), "{what}, of namespace 2: {found:?}");
        }
    }
}

/// What a command would be refused for comes after the path: elsewhere it may be right.
#[test]
fn well_formed_and_malformed_commands_alike_end_with_the_status_of_their_path() {
    let ranges = DsmRange {
        attributes: 0,
        blocks: 8,
        slba: 0,
    };
    for (state, expected) in STATES {
        let (mut glue, _, queue) = in_state(state);
        let now = glue.now;
        let read_only = NsGeometry {
            read_only: true,
            ..geometry()
        };
        let dsm = Sqe::new(opcode::DATASET_MANAGEMENT)
            .with_nsid(NamespaceId(1))
            .with_ranges(0, true);
        let many = vec![0; 64 * BLOCK as usize];
        let well_formed = [
            glue.write_by_r2t(queue, io(opcode::WRITE, 0, 64), &many)
                .status,
            glue.status_with_data(queue, io(opcode::WRITE, 0, 1), &[0; BLOCK as usize]),
            glue.status_with_data(queue, io(opcode::COMPARE, 0, 1), &[0; BLOCK as usize]),
            glue.status_with_data(queue, dsm, &ranges.encode()),
            glue.status_with_data(queue, dsm.with_ranges(0, false), &ranges.encode()),
            status(&mut glue, queue, io(opcode::READ, 0, 1), BLOCK),
            status(&mut glue, queue, io(opcode::WRITE_ZEROES, 0, 1), 0),
            status(&mut glue, queue, io(opcode::FLUSH, 0, 1), 0),
        ];
        let update = glue.target.update_namespace(now, SUBNQN, 1, read_only);
        update.expect("valid");
        let beyond = io(opcode::READ, u64::MAX, 1);
        let malformed = [
            status(&mut glue, queue, beyond, BLOCK),
            status(&mut glue, queue, io(opcode::READ, 0, 1), 4),
            glue.status_with_data(queue, io(opcode::WRITE, 0, 1), &[0; BLOCK as usize]),
        ];
        for found in well_formed {
            match expected {
                Some(path) => check_path(found, path, "well-formed"),
                None => assert_eq!(found, Status::SUCCESS),
            }
        }
        for found in malformed {
            match expected {
                Some(path) => check_path(found, path, "malformed"),
                None => assert!(found.is_dnr() && !is_path(found), "{found:?}"),
            }
        }
    }
}

#[test]
fn identify_and_log_pages_do_not_depend_on_the_state() {
    let read = |state| {
        let (mut glue, admin, _) = in_state(state);
        let mut found = Vec::new();
        for cns in 0..=0x1F {
            for nsid in [0, 1, 2, u32::MAX] {
                let sqe = Identify::new(cns).encode().with_nsid(NamespaceId(nsid));
                let mut page = glue.read_data(admin, sqe, 4096);
                if let (cns::NAMESPACE | cns::ALLOCATED_NAMESPACE, Ok(page)) = (cns, &mut page) {
                    page[16..24].fill(0);
                }
                found.push((cns, nsid, page));
            }
        }
        let mut logs = Vec::new();
        for lid in 0..=u8::MAX {
            let page = glue.log(admin, GetLogPage::range(lid, 0, 512));
            logs.push((lid, page.map(|_| ())));
        }
        (found, logs)
    };
    let (pages, logs) = read(AnaState::Optimized);
    assert!(logs[usize::from(lid::ANA)].1.is_ok());
    for (state, _) in STATES {
        let (found, found_logs) = read(state);
        for (found, expected) in found.iter().zip(&pages) {
            assert!(found == expected, "{:#x} of {} {state:?}", found.0, found.1);
        }
        assert_eq!(found_logs, logs, "{state:?}");
    }
}

#[test]
fn allocation_is_not_told_where_data_cannot_be_reached() {
    for (state, _) in STATES {
        let (mut glue, admin, _) = in_state(state);
        let told = !matches!(state, AnaState::Inaccessible | AnaState::PersistentLoss);
        for (nsid, told) in [(1, told), (2, true)] {
            for cns in [cns::NAMESPACE, cns::ALLOCATED_NAMESPACE] {
                let page = glue.identify(admin, cns, nsid).expect("active");
                let page = IdentifyNamespace::decode(&page);
                let blocks = if told { page.nsze } else { 0 };
                assert_eq!(page.nuse, blocks, "{state:?}");
                // A capacity of 0 would mean that the namespace is gone.
                assert!(page.ncap == page.nsze && page.nsze > 0);
            }
        }
    }
}

#[test]
fn features_of_a_namespace_are_as_far_away_as_itself() {
    let abilities = |glue: &mut Glue, admin, fid| {
        let get = GetFeatures {
            select: Select::Capabilities,
            ..GetFeatures::current(fid)
        };
        let cqe = glue.command(admin, get.encode());
        (cqe.status.is_success(), cqe.result & 2 != 0)
    };
    let (mut near, near_admin, _) = in_state(AnaState::Optimized);
    for (state, expected) in STATES {
        let (mut glue, admin, _) = in_state(state);
        let mut of_namespace = 0;
        for fid in 0..=u8::MAX {
            let (is_known, specific) = abilities(&mut near, near_admin, fid);
            of_namespace += usize::from(is_known && specific);
            for nsid in [0, 1, 2, u32::MAX] {
                let what = format!("feature {fid:#04x} of {nsid:#x} in {state:?}");
                let set = SetFeatures::new(fid, 0).encode();
                for sqe in [GetFeatures::current(fid).encode(), set] {
                    let sqe = sqe.with_nsid(NamespaceId(nsid));
                    let expected = expected.filter(|_| specific && matches!(nsid, 1 | u32::MAX));
                    let found = glue.command(admin, sqe).status;
                    let usual = near.command(near_admin, sqe).status;
                    match expected {
                        Some(path) => check_path(found, path, &what),
                        None => assert_eq!(found, usual, "{what}"),
                    }
                }
            }
        }
        assert!(of_namespace > 0, "Error Recovery is one");
    }
}

#[test]
fn every_other_admin_command_ends_as_ever() {
    let (mut near, near_admin, _) = in_state(AnaState::Optimized);
    for (state, _) in STATES {
        let (mut glue, admin, _) = in_state(state);
        for opcode in 0..=u8::MAX {
            // The first is held, the second is told apart by more than its opcode.
            if matches!(opcode, admin::ASYNC_EVENT_REQUEST | admin::FABRICS) {
                continue;
            }
            let sqe = Sqe::new(opcode).with_nsid(NamespaceId(1));
            let found = status(&mut glue, admin, sqe, 0);
            let usual = status(&mut near, near_admin, sqe, 0);
            assert_eq!(found, usual, "{opcode:#04x} in {state:?}");
            assert!(!is_path(found), "{opcode:#04x} in {state:?}: {found:?}");
        }
        let kept = glue.command(admin, Sqe::new(admin::KEEP_ALIVE)).status;
        assert_eq!(kept, Status::SUCCESS);
        let request = Sqe::new(admin::ASYNC_EVENT_REQUEST);
        glue.send(admin, request.with_sgl1(Sgl::transport(0)));
        assert!(glue.replies(admin).is_empty(), "held");
        assert_eq!(glue.csts(admin), 1);
        let write = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 0x900).encode();
        assert_eq!(glue.command(admin, write).status, Status::SUCCESS);
    }
}

/// The ranges were looked at while the namespace could still be reached, and applied when not.
#[test]
fn ranges_that_arrive_after_the_switch_are_not_deallocated() {
    let (mut glue, _, queue) = in_state(AnaState::Optimized);
    let disk = pattern(9, 8 * BLOCK as usize);
    for (to, from) in glue.disks.get_mut(&1).expect("known").iter_mut().zip(&disk) {
        *to = *from;
    }
    let range = DsmRange {
        attributes: 0,
        blocks: 8,
        slba: 0,
    };
    let dsm = Sqe::new(opcode::DATASET_MANAGEMENT)
        .with_nsid(NamespaceId(1))
        .with_ranges(0, true)
        .with_sgl1(Sgl::transport(16));
    glue.send(queue, dsm);
    let Reply::R2t(r2t) = glue.reply(queue) else {
        panic!("no R2T")
    };
    let now = glue.now;
    let set = glue
        .target
        .set_ana_state(now, SUBNQN, 1, AnaState::Inaccessible);
    set.expect("it is there");
    let bytes = glue.h2c(queue, h2c_data(&r2t), &range.encode());
    glue.receive(queue, &bytes);
    let found = glue.reply(queue).cqe().status;
    check_path(found, Status::ANA_INACCESSIBLE, "ranges");
    assert!(glue.disks[&1].starts_with(&disk));
}

/// Keys that had come were still acted upon when access had ended before they were looked at.
#[test]
fn reservation_whose_keys_came_before_the_switch_does_not_happen_after_it() {
    let (mut glue, _, queue) = in_state(AnaState::Optimized);
    // Register a new key, whatever the current one.
    let register = Sqe::new(opcode::RESERVATION_REGISTER)
        .with_nsid(NamespaceId(1))
        .with_cdw(10, 1 << 3)
        .with_sgl1(Sgl::in_capsule(16));
    let mut keys = [0; 16];
    keys[8] = 1;
    let cid = glue.next_cid(queue);
    let bytes = glue.capsule(queue, register.with_cid(cid), &keys);
    glue.receive_only(queue, &bytes);
    let now = glue.now;
    let set = glue
        .target
        .set_ana_state(now, SUBNQN, 1, AnaState::Inaccessible);
    set.expect("it is there");
    glue.pump();
    let found = glue.reply(queue).cqe().status;
    check_path(found, Status::ANA_INACCESSIBLE, "register");
}

/// A Read that moved in parts for want of memory went on with the next part after the switch, and
/// so mixed what was here with what had been written elsewhere since.
#[test]
fn read_in_parts_does_not_go_on_after_the_switch() {
    let parts = 4096;
    for part_is_at_device in [true, false] {
        let (mut glue, _, queue) = in_state(AnaState::Optimized);
        glue.part_bytes = Some(parts);
        glue.hold_io = true;
        glue.send(queue, io(opcode::READ, 0, 32));
        assert_eq!(glue.held.len(), 1);
        let (now, state) = (glue.now, AnaState::Inaccessible);
        if part_is_at_device {
            let set = glue.target.set_ana_state(now, SUBNQN, 1, state);
            set.expect("it is there");
            assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(1));
        } else {
            // Completed, and not sent yet.
            let (id, slot, _) = glue.held[0];
            glue.target.complete(now, id, slot, Status::SUCCESS);
            glue.held.clear();
            let set = glue.target.set_ana_state(now, SUBNQN, 1, state);
            set.expect("it is there");
        }
        glue.finish_held();
        let replies = glue.replies(queue);
        let last = replies.last().expect("an answer").cqe();
        check_path(last.status, Status::ANA_INACCESSIBLE, "the rest");
        let data = replies.iter().filter(|it| matches!(it, Reply::Data { .. }));
        assert!(data.count() <= 1);
        assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(0));
        glue.part_bytes = None;
        glue.hold_io = false;
        let sqe = io(opcode::READ, 0, 1).with_nsid(NamespaceId(2));
        let other = glue.read_data(queue, sqe, BLOCK);
        assert!(other.is_ok(), "the queue goes on");
    }
}

/// The path goes between the halves of a pair, or before the data of the second has come.
#[test]
fn pair_whose_path_goes_between_its_halves_writes_nothing() {
    let failed = Status::ABORTED_FAILED_FUSED;
    let first = || io(opcode::COMPARE, 8, 1).with_fuse(Fuse::First);
    let second = || io(opcode::WRITE, 8, 1).with_fuse(Fuse::Second);
    let (old, new) = ([0; BLOCK as usize], [1; BLOCK as usize]);
    for (state, path) in STATES {
        for late in [false, true] {
            let (mut glue, _, queue) = in_state(AnaState::Optimized);
            glue.send_with_data(queue, first(), &old);
            let r2t = late.then(|| {
                glue.send(queue, second());
                glue.reply(queue)
            });
            let now = glue.now;
            let set = glue.target.set_ana_state(now, SUBNQN, 1, state);
            set.expect("it is there");
            glue.pump();
            match r2t {
                Some(Reply::R2t(r2t)) => {
                    let bytes = glue.h2c(queue, h2c_data(&r2t), &new);
                    glue.receive(queue, &bytes);
                }
                Some(other) => panic!("expected an R2T, found {other:?}"),
                None => {
                    glue.send_with_data(queue, second(), &new);
                }
            }
            let mut cqes: Vec<_> = glue.replies(queue).iter().map(Reply::cqe).collect();
            cqes.sort_by_key(|cqe| cqe.cid);
            let expected = match path {
                None => [Status::SUCCESS; 2],
                // Both are looked at again, and the first is found first.
                Some(path) if late => [path, failed],
                Some(path) => [failed, path],
            };
            let what = format!("{state:?}, {late}: {cqes:?}");
            assert_eq!(cqes.len(), 2, "{what}");
            for (cqe, expected) in cqes.iter().zip(expected) {
                assert!(cqe.status.same_code(expected), "{what}");
                assert!(!cqe.status.is_dnr(), "{what}: another path may be there");
            }
            let block = &glue.disks[&1][8 * old.len()..9 * old.len()];
            let written = if path.is_none() { new } else { old };
            assert_eq!(block, written, "{what}");
            assert_eq!(glue.conn(queue).buffers_bound(), 0);
        }
    }
}
