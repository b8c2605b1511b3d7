//! One subsystem through two targets: what a host must find equal on both paths, what must differ,
//! and a move from one to the other.

use bowline_nvme::fabrics::ConnectInvalid;
use bowline_nvme::feature::{SetFeatures, id as fid};
use bowline_nvme::identify::cns;
use bowline_nvme::log::{AnaLogReader, AnaState, GetLogPage, id as lid};
use bowline_nvme::opcode::{admin, io as opcode};
use bowline_nvme::pdu::Digests;
use bowline_nvme::{NamespaceId, Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::{AnaConfig, ConnId, Path, SubsystemConfig, TargetConfig};

use crate::glue::{BLOCK, CC_ENABLE, Glue, HOSTNQN, Reply, SUBNQN, h2c_data, io, pattern};

const ANA_CHANGED: u64 = 0x000C_0302;
const CFS: u32 = 2;
const SHN_NORMAL: u32 = 1 << 14;

/// One of the targets: its part of the controller ids, and how its groups begin.
fn target(cntlids: (u16, u16), initial: AnaState, seed: u64) -> Glue {
    let config = TargetConfig {
        seed,
        ..TargetConfig::default()
    };
    let subsystem = SubsystemConfig {
        cntlids,
        ana: Some(AnaConfig {
            initial,
            ..AnaConfig::default()
        }),
        ..Glue::subsystem()
    };
    let mut glue = Glue::serving(config, subsystem);
    glue.add_namespace(2);
    glue
}

fn pair() -> (Glue, Glue) {
    let old = target((1, 0x7FF), AnaState::Optimized, 1);
    let new = target((0x800, 0xFFF), AnaState::Inaccessible, 2);
    (old, new)
}

fn set(glue: &mut Glue, state: AnaState) {
    let now = glue.now;
    let set = glue.target.set_ana_state(now, SUBNQN, 1, state);
    set.expect("it is there");
    glue.pump();
}

fn state(glue: &mut Glue, admin: ConnId) -> AnaState {
    let log = glue.log(admin, GetLogPage::range(lid::ANA, 0, 4096));
    let log = log.expect("supported");
    let mut groups = AnaLogReader::new(&log).expect("a header");
    let group = groups.next().expect("a group").expect("valid");
    group.state
}

fn listen(glue: &mut Glue, admin: ConnId) {
    let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 0x900).encode();
    assert_eq!(glue.command(admin, aec).status, Status::SUCCESS);
    let request = Sqe::new(admin::ASYNC_EVENT_REQUEST);
    glue.send(admin, request.with_sgl1(Sgl::transport(0)));
}

#[test]
fn paths_differ_in_controller_id_and_state_alone() {
    let (mut old, mut new) = pair();
    let mut seen = Vec::new();
    for _ in 0..3 {
        for glue in [&mut old, &mut new] {
            let (admin, cntlid) = glue.admin();
            assert!(!seen.contains(&cntlid), "Linux refuses a duplicate");
            let page = glue.identify(admin, cns::CONTROLLER, 0).expect("mandatory");
            assert_eq!(page[78..80], cntlid.to_le_bytes());
            seen.push(cntlid);
        }
    }
    let (old_low, new_low) = (seen.iter().step_by(2), seen.iter().skip(1).step_by(2));
    assert!(old_low.clone().all(|id| (1..=0x7FF).contains(id)));
    assert!(new_low.clone().all(|id| (0x800..=0xFFF).contains(id)));

    let ((old_admin, _), (new_admin, _)) = (old.admin(), new.admin());
    let both = |old: &mut Glue, new: &mut Glue, cns, nsid| {
        let on_old = old.identify(old_admin, cns, nsid).expect("supported");
        (
            on_old,
            new.identify(new_admin, cns, nsid).expect("supported"),
        )
    };
    let (mut one, mut other) = both(&mut old, &mut new, cns::CONTROLLER, 0);
    assert_ne!(one[78..80], other[78..80]);
    one[78..80].fill(0);
    other[78..80].fill(0);
    assert!(one == other, "serial, model, firmware, limits, NQN");
    let (one, other) = both(&mut old, &mut new, cns::ACTIVE_NAMESPACE_LIST, 0);
    assert!(one == other);
    for nsid in [1, 2] {
        let (mut one, mut other) = both(&mut old, &mut new, cns::NAMESPACE, nsid);
        // What is allocated is told by the path that has the data.
        one[16..24].fill(0);
        other[16..24].fill(0);
        assert!(one == other, "size, format, sharing, group, NGUID");
        let (one, other) = both(&mut old, &mut new, cns::NAMESPACE_DESCRIPTORS, nsid);
        assert!(one == other);
    }
    assert_eq!(state(&mut old, old_admin), AnaState::Optimized);
    assert_eq!(state(&mut new, new_admin), AnaState::Inaccessible);
}

/// The order of a planned move: the new owner's path opens, and hosts are told; then the old one
/// closes, and they are told. At no time is there no path.
#[test]
fn planned_move_leaves_a_path_at_every_moment_and_repeats_what_did_not_happen() {
    let (mut old, mut new) = pair();
    let (old_admin, old_queue) = old.queues(Digests::NONE);
    let (new_admin, new_queue) = new.queues(Digests::NONE);
    listen(&mut old, old_admin);
    listen(&mut new, new_admin);
    let refused = new.read_data(new_queue, io(opcode::READ, 0, 1), BLOCK);
    assert!(refused.is_err_and(|it| it.same_code(Status::ANA_INACCESSIBLE)));

    old.hold_io = true;
    let at_device = old.send_with_data(old_queue, io(opcode::WRITE, 0, 1), &[1; BLOCK as usize]);
    let on_its_way = old.send(old_queue, io(opcode::WRITE, 8, 64));
    let Reply::R2t(r2t) = old.reply(old_queue) else {
        panic!("no R2T")
    };

    set(&mut new, AnaState::Optimized);
    assert_eq!(new.reply(new_admin).cqe().result, ANA_CHANGED);
    assert!(old.replies(old_admin).is_empty(), "not yet");
    assert_eq!(state(&mut new, new_admin), AnaState::Optimized);
    set(&mut old, AnaState::Inaccessible);
    assert_eq!(old.reply(old_admin).cqe().result, ANA_CHANGED);
    assert_eq!(state(&mut old, old_admin), AnaState::Inaccessible);
    assert_eq!(old.target.ana_executing(SUBNQN, 1), Ok(1));

    let data = pattern(5, 64 * BLOCK as usize);
    let bytes = old.h2c(old_queue, h2c_data(&r2t), &data);
    old.receive(old_queue, &bytes);
    let cqe = old.reply(old_queue).cqe();
    assert_eq!(cqe.cid, on_its_way);
    assert!(cqe.status.same_code(Status::ANA_INACCESSIBLE) && !cqe.status.is_dnr());
    old.hold_io = false;
    old.finish_held();
    let cqe = old.reply(old_queue).cqe();
    assert_eq!((cqe.cid, cqe.status), (at_device, Status::SUCCESS));
    assert_eq!(old.target.ana_executing(SUBNQN, 1), Ok(0), "drained");
    let start = 8 * BLOCK as usize;
    assert!(old.disks[&1][start..].iter().all(|byte| *byte == 0));

    let repeated = new.write_by_r2t(new_queue, io(opcode::WRITE, 8, 64), &data);
    assert_eq!(repeated.status, Status::SUCCESS);
    assert!(new.disks[&1][start..].starts_with(&data));
}

#[test]
fn what_leaves_a_group_in_time_is_not_touched_by_its_state() {
    let (mut glue, _) = pair();
    let (_, queue) = glue.queues(Digests::NONE);
    let now = glue.now;
    glue.hold_io = true;
    let of_2 = io(opcode::WRITE, 0, 1).with_nsid(NamespaceId(2));
    glue.send_with_data(queue, of_2, &[1; BLOCK as usize]);
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; BLOCK as usize]);
    assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(2));
    // A group begins inaccessible for all we know of it here.
    let prepared = glue
        .target
        .set_ana_state(now, SUBNQN, 3, AnaState::Optimized);
    prepared.expect("a group without namespaces");
    let moved = glue.target.set_ana_group(now, SUBNQN, 2, 3);
    moved.expect("both are there");
    set(&mut glue, AnaState::Inaccessible);
    assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(1));
    assert_eq!(glue.target.ana_executing(SUBNQN, 3), Ok(1));
    glue.hold_io = false;
    glue.finish_held();
    assert_eq!(glue.replies(queue).len(), 2);
    let read = |nsid| io(opcode::READ, 0, 1).with_nsid(NamespaceId(nsid));
    assert!(glue.read_data(queue, read(2), BLOCK).is_ok());
    assert!(glue.read_data(queue, read(1), BLOCK).is_err());
    // And into a group without access.
    let now = glue.now;
    let moved = glue.target.set_ana_group(now, SUBNQN, 2, 1);
    moved.expect("both are there");
    assert!(glue.read_data(queue, read(2), BLOCK).is_err());
}

/// Commands whose host is gone are at the device all the same.
#[test]
fn commands_of_ended_associations_count_until_their_device_is_done() {
    let (mut glue, _) = pair();
    let (admin, queue) = glue.queues(Digests::NONE);
    glue.hold_io = true;
    glue.send_with_data(queue, io(opcode::WRITE, 0, 1), &[1; BLOCK as usize]);
    glue.drop_socket(queue);
    glue.drop_socket(admin);
    set(&mut glue, AnaState::Inaccessible);
    assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(1));
    glue.finish_held();
    assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(0));
}

/// A shutdown flushes what this target still has; what is somebody else's by now is left alone.
#[test]
fn shutdown_does_not_flush_what_has_moved_away() {
    let (mut glue, _) = pair();
    let now = glue.now;
    let moved = glue.target.set_ana_group(now, SUBNQN, 2, 2);
    moved.expect("both are there");
    set(&mut glue, AnaState::Inaccessible);
    let (admin, _) = glue.admin();
    glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
    assert_eq!(glue.csts(admin) >> 2 & 3, 2, "complete");
    assert_eq!(glue.csts(admin) & CFS, 0);
    assert_eq!(glue.flushes, 1, "namespace 2 is still here");
    assert_eq!(glue.target.ana_executing(SUBNQN, 1), Ok(0));
}

#[test]
fn flush_that_waits_for_its_turn_is_left_out_when_access_ends() {
    let (mut glue, _) = pair();
    let now = glue.now;
    let (both, other) = (AnaState::Optimized, AnaState::Inaccessible);
    let set = glue.target.set_ana_state(now, SUBNQN, 2, both);
    set.expect("within the limits");
    let moved = glue.target.set_ana_group(now, SUBNQN, 2, 2);
    moved.expect("both are there");
    let (admin, _) = glue.admin();
    glue.hold_io = true;
    glue.set_cc(admin, CC_ENABLE | SHN_NORMAL);
    let (id, slot, command) = glue.held.pop_front().expect("a flush");
    assert_eq!(command.namespace.0, 1);
    // The next flush is queued by this, and access to its namespace ends before it is polled.
    glue.target.complete(now, id, slot, Status::SUCCESS);
    let set = glue.target.set_ana_state(now, SUBNQN, 2, other);
    set.expect("it is there");
    glue.pump();
    assert!(glue.held.is_empty());
    assert_eq!(glue.csts(admin) >> 2 & 3, 2, "complete");
}

/// SPDK asks for it, and so does the meaning of a path: its state is that of its port.
#[test]
fn io_queue_comes_through_the_port_of_its_admin_queue() {
    let connect = |glue: &mut Glue, cntlid, listener| {
        let path = Path {
            listener,
            ..Path::default()
        };
        let id = glue.open_on(path);
        glue.icreq(id, Digests::NONE);
        glue.replies(id);
        let data = Glue::connect_data(SUBNQN, HOSTNQN, cntlid);
        glue.connect(id, Glue::connect_command(1, 31), &data)
    };
    let (mut glue, _) = pair();
    let (_, cntlid) = glue.admin();
    let cqe = connect(&mut glue, cntlid, 1);
    assert_eq!(cqe.status, Status::CONNECT_INVALID_PARAMETERS.dnr());
    assert_eq!(cqe.result, ConnectInvalid::QID.encode());
    assert_eq!(connect(&mut glue, cntlid, 0).status, Status::SUCCESS);
    // Without ANA all ports are as good.
    let mut glue = Glue::new();
    let (_, cntlid) = glue.admin();
    assert_eq!(connect(&mut glue, cntlid, 1).status, Status::SUCCESS);
}

/// Events are sent to every host of the subsystem, whatever the others did with theirs.
#[test]
fn every_controller_hears_of_a_change_and_masks_for_itself() {
    let (mut glue, _) = pair();
    let admins: Vec<ConnId> = (0..3).map(|_| glue.admin().0).collect();
    admins.iter().for_each(|&admin| listen(&mut glue, admin));
    set(&mut glue, AnaState::NonOptimized);
    for &admin in &admins {
        assert_eq!(glue.reply(admin).cqe().result, ANA_CHANGED);
        listen(&mut glue, admin);
    }
    assert_eq!(state(&mut glue, admins[1]), AnaState::NonOptimized);
    glue.advance(Nanos::from_millis(1));
    set(&mut glue, AnaState::Optimized);
    for (at, admin) in admins.into_iter().enumerate() {
        let found = glue.replies(admin).len();
        assert_eq!(
            found,
            usize::from(at == 1),
            "only this one has read the log"
        );
    }
}
