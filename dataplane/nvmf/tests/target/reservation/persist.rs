//! Reservations that outlive the process: durable before they are answered, or not at all.

use bowline_nvme::feature::{GetFeatures, SetFeatures, id as fid};
use bowline_nvme::identify::{IdentifyNamespace, cns};
use bowline_nvme::log::AnaState;
use bowline_nvme::reservation::{Acquire, Register, Release, ReservationType, rescap};
use bowline_nvme::{NamespaceId, Status};
use bowline_nvmf::target::{
    AnaConfig, ConfigError, Persistence, Registrant, Reservation, ReservationState, StoreRequest,
    TargetConfig,
};

use super::hosts::{Host, KEY_A, KEY_B, acquire, key};
use crate::glue::{Glue, SUBNQN, namespace};

/// A target whose namespace 1 can be made durable, and what was stored for it.
fn durable(state: Option<ReservationState>) -> Glue {
    let mut glue = Glue::new();
    glue.target
        .remove_namespace(glue.now, SUBNQN, 1)
        .expect("there");
    add(&mut glue, 1, state);
    glue
}

fn add(glue: &mut Glue, id: u8, state: Option<ReservationState>) {
    let mut config = namespace(id);
    config.persistence = Persistence::Stored(state);
    glue.disks.insert(u32::from(id), vec![0; 4 << 20]);
    glue.target
        .add_namespace(glue.now, SUBNQN, config)
        .expect("valid");
}

fn persistent(host: Host) -> Register {
    Register {
        change_persistence: Register::PERSISTENCE_SET,
        ..key(host)
    }
}

fn send(glue: &mut Glue, host: Host, register: Register) {
    let sqe = register.encode().with_nsid(NamespaceId(1));
    glue.send_with_data(host.queue, sqe, &register.data());
}

fn wanted(glue: &mut Glue) -> StoreRequest {
    let request = glue.target.poll_store().expect("to be stored");
    assert_eq!(glue.target.poll_store(), None, "one at a time");
    request
}

fn answer(glue: &mut Glue, request: &StoreRequest, durable: bool) {
    glue.target.handle_stored(glue.now, request.id, durable);
    glue.pump();
}

/// Everything that is to be stored is, until there is nothing more.
fn store_all(glue: &mut Glue) -> Vec<Option<ReservationState>> {
    let mut states = Vec::new();
    while let Some(request) = glue.target.poll_store() {
        answer(glue, &request, true);
        states.push(request.state);
    }
    states
}

/// The command that waited for the first to be stored would have been acted upon after the move,
/// and acknowledged where nobody looks at its result any more.
#[test]
fn move_ends_commands_that_wait_and_waits_for_the_one_that_is_being_stored() {
    let mut glue = Glue::with_ana(TargetConfig::default(), AnaConfig::default());
    let now = glue.now;
    let gone = glue.target.remove_namespace(now, SUBNQN, 1);
    gone.expect("there");
    add(&mut glue, 1, None);
    let (a, b) = (glue.host(1), glue.host(2));
    send(&mut glue, a, persistent(a));
    let request = wanted(&mut glue);
    send(&mut glue, b, persistent(b));
    let left = |glue: &Glue| glue.target.ana_executing(SUBNQN, 1).expect("a group");
    let state = AnaState::Inaccessible;
    let moved = glue.target.set_ana_state(now, SUBNQN, 1, state);
    moved.expect("a group");
    glue.pump();
    let refused = glue.reply(b.queue).cqe().status;
    assert!(refused.same_code(Status::ANA_INACCESSIBLE) && !refused.is_dnr());
    assert_eq!(left(&glue), 1, "A's may be durable already");
    answer(&mut glue, &request, true);
    assert_eq!(glue.reply(a.queue).cqe().status, Status::SUCCESS);
    assert_eq!(left(&glue), 0);
    assert_eq!(glue.target.poll_store(), None);
}

#[test]
fn registration_is_answered_only_when_it_is_durable() {
    let mut glue = durable(None);
    let a = glue.host(1);
    send(&mut glue, a, persistent(a));
    let request = wanted(&mut glue);
    assert!(glue.replies(a.queue).is_empty());
    let b = glue.host(2);
    assert_eq!(glue.report(b).0.regctl, 0, "the old state is in force");
    let state = request.state.clone().expect("to be remembered");
    let registrant = Registrant {
        hostid: [1; 16],
        key: KEY_A,
    };
    assert_eq!(
        (state.generation, state.persistent, state.registrants),
        (1, true, vec![registrant])
    );
    answer(&mut glue, &request, true);
    assert_eq!(glue.reply(a.queue).cqe().status, Status::SUCCESS);
    let (head, _) = glue.report(b);
    assert_eq!((head.regctl, head.ptpls), (1, 1));
    answer(&mut glue, &request, true);
    assert!(glue.replies(a.queue).is_empty(), "an answer counts once");
}

#[test]
fn change_that_cannot_be_stored_fails_and_leaves_the_old_state() {
    let mut glue = durable(None);
    let a = glue.host(1);
    send(&mut glue, a, persistent(a));
    let request = wanted(&mut glue);
    answer(&mut glue, &request, false);
    let status = glue.reply(a.queue).cqe().status;
    assert!(status.same_code(Status::INTERNAL) && !status.is_dnr());
    let (head, _) = glue.report(a);
    assert_eq!((head.generation, head.regctl, head.ptpls), (0, 0, 0));
    send(&mut glue, a, persistent(a));
    assert_eq!(store_all(&mut glue).len(), 1);
    assert_eq!(glue.reply(a.queue).cqe().status, Status::SUCCESS);
}

#[test]
fn commands_of_a_namespace_wait_for_the_one_being_stored() {
    let mut glue = durable(None);
    let (a, b) = (glue.host(1), glue.host(2));
    send(&mut glue, a, persistent(a));
    send(&mut glue, b, key(b));
    let first = wanted(&mut glue);
    answer(&mut glue, &first, true);
    assert_eq!(glue.reply(a.queue).cqe().status, Status::SUCCESS);
    assert!(glue.replies(b.queue).is_empty());
    let second = wanted(&mut glue);
    let state = second.state.clone().expect("to be remembered");
    assert_eq!(
        state.registrants.len(),
        2,
        "decided upon the first's result"
    );
    answer(&mut glue, &second, true);
    assert_eq!(glue.reply(b.queue).cqe().status, Status::SUCCESS);
}

#[test]
fn host_that_is_gone_gets_its_change_but_no_answer_and_what_waited_is_dropped() {
    let mut glue = durable(None);
    let (a, b) = (glue.host(1), glue.host(2));
    send(&mut glue, a, persistent(a));
    send(&mut glue, b, key(b));
    let first = wanted(&mut glue);
    glue.drop_socket(a.queue);
    glue.drop_socket(b.queue);
    answer(&mut glue, &first, true);
    assert_eq!(glue.target.poll_store(), None, "B's never began");
    let c = glue.host(3);
    let (_, entries) = glue.report(c);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].hostid, [1; 16]);
}

#[test]
fn namespace_that_goes_ends_what_waits_for_its_store() {
    let mut glue = durable(None);
    let (a, b) = (glue.host(1), glue.host(2));
    send(&mut glue, a, persistent(a));
    send(&mut glue, b, key(b));
    let request = wanted(&mut glue);
    glue.target
        .remove_namespace(glue.now, SUBNQN, 1)
        .expect("there");
    glue.pump();
    for host in [a, b] {
        let status = glue.reply(host.queue).cqe().status;
        assert!(status.same_code(Status::INVALID_NAMESPACE));
    }
    let mut next = namespace(2);
    next.nsid = Some(1);
    next.persistence = Persistence::Stored(None);
    glue.target
        .add_namespace(glue.now, SUBNQN, next)
        .expect("valid");
    answer(&mut glue, &request, true);
    assert_eq!(
        glue.report(a).0.regctl,
        0,
        "the late answer was for another"
    );
}

#[test]
fn state_that_was_stored_is_in_force_after_a_restart() {
    let mut glue = durable(None);
    let (a, b) = (glue.host(1), glue.host(2));
    send(&mut glue, a, persistent(a));
    send(&mut glue, b, key(b));
    let exclusive = acquire(ReservationType::WriteExclusive, KEY_B);
    let sqe = exclusive.encode().with_nsid(NamespaceId(1));
    glue.send_with_data(b.queue, sqe, &exclusive.data());
    let stored = store_all(&mut glue)
        .pop()
        .expect("stored")
        .expect("a state");
    let image = stored.encode();
    let read = ReservationState::decode(&image).expect("what was written");
    let mut glue = durable(Some(read));
    let (a, b) = (glue.host(1), glue.host(2));
    let (head, entries) = glue.report(a);
    assert_eq!((head.generation, head.rtype, head.ptpls), (2, 1, 1));
    assert_eq!((entries[0].rcsts, entries[1].rcsts), (0, 1));
    let write = crate::glue::io(bowline_nvme::opcode::io::WRITE, 0, 1);
    let refused = glue.status_with_data(a.queue, write, &[0; 512]);
    assert!(refused.same_code(Status::RESERVATION_CONFLICT));
    assert_eq!(
        glue.status_with_data(b.queue, write, &[0; 512]),
        Status::SUCCESS
    );
}

#[test]
fn switching_persistence_off_forgets_what_was_stored() {
    let mut glue = durable(None);
    let a = glue.host(1);
    send(&mut glue, a, persistent(a));
    store_all(&mut glue);
    let off = Register {
        change_persistence: Register::PERSISTENCE_CLEAR,
        ..key(a)
    };
    send(&mut glue, a, off);
    assert_eq!(store_all(&mut glue), [None]);
    send(&mut glue, a, key(a));
    assert!(store_all(&mut glue).is_empty(), "nothing durable changes");
    assert_eq!(glue.replies(a.queue).len(), 3);
}

#[test]
fn commands_that_change_nothing_durable_do_not_wait() {
    let mut glue = durable(None);
    let a = glue.host(1);
    assert_eq!(glue.register(a, key(a)), Status::SUCCESS, "not persistent");
    send(&mut glue, a, persistent(a));
    store_all(&mut glue);
    glue.replies(a.queue);
    let none = Release {
        rtype: 1,
        current_key: KEY_A,
        ..Release::default()
    };
    assert_eq!(glue.release_reservation(a, none), Status::SUCCESS);
    let conflict = Acquire {
        current_key: KEY_B,
        ..acquire(ReservationType::WriteExclusive, KEY_B)
    };
    assert!(
        glue.acquire(a, conflict)
            .same_code(Status::RESERVATION_CONFLICT)
    );
}

#[test]
fn persistence_feature_waits_for_the_store_one_namespace_or_all() {
    let mut glue = durable(None);
    add(&mut glue, 2, None);
    glue.add_namespace(3);
    let a = glue.host(1);
    let set = |on: u32, nsid| {
        SetFeatures::new(fid::RESERVATION_PERSISTENCE, on)
            .encode()
            .with_nsid(nsid)
            .with_sgl1(bowline_nvme::Sgl::transport(0))
    };
    let get = |glue: &mut Glue, nsid| {
        let sqe = GetFeatures::current(fid::RESERVATION_PERSISTENCE).encode();
        let cqe = glue.command(a.admin, sqe.with_nsid(NamespaceId(nsid)));
        cqe.status.is_success().then_some(cqe.result)
    };
    glue.send(a.admin, set(1, NamespaceId(2)));
    assert!(glue.replies(a.admin).is_empty());
    assert_eq!(store_all(&mut glue).len(), 1);
    assert_eq!(glue.reply(a.admin).cqe().status, Status::SUCCESS);
    assert_eq!((get(&mut glue, 1), get(&mut glue, 2)), (Some(0), Some(1)));
    assert_eq!(get(&mut glue, 3), None, "it cannot persist");
    assert_eq!(get(&mut glue, NamespaceId::BROADCAST.0), None);
    glue.send(a.admin, set(1, NamespaceId::BROADCAST));
    assert_eq!(store_all(&mut glue).len(), 1, "namespace 2 has it already");
    assert_eq!(glue.reply(a.admin).cqe().status, Status::SUCCESS);
    assert_eq!((get(&mut glue, 1), get(&mut glue, 2)), (Some(1), Some(1)));
    let refused = glue.command(a.admin, set(1, NamespaceId(3))).status;
    assert!(refused.same_code(Status::INVALID_FIELD));
}

#[test]
fn persistence_is_claimed_only_where_it_can_be_kept() {
    let mut glue = durable(None);
    glue.add_namespace(2);
    let a = glue.host(1);
    let bit = |glue: &mut Glue, nsid| {
        let page = glue.identify(a.admin, cns::NAMESPACE, nsid).expect("there");
        IdentifyNamespace::decode(&page).rescap & rescap::PERSIST
    };
    assert_eq!((bit(&mut glue, 1), bit(&mut glue, 2)), (1, 0));
    let sqe = persistent(a).encode().with_nsid(NamespaceId(2));
    let refused = glue.status_with_data(a.queue, sqe, &persistent(a).data());
    assert!(refused.same_code(Status::INVALID_FIELD) && refused.is_dnr());
}

#[test]
fn stored_state_that_contradicts_itself_is_refused() {
    let mut glue = Glue::new();
    let state = ReservationState {
        persistent: true,
        reservation: Some(Reservation {
            rtype: ReservationType::WriteExclusive,
            holder: Some([1; 16]),
        }),
        ..ReservationState::default()
    };
    let mut config = namespace(2);
    config.persistence = Persistence::Stored(Some(state));
    let refused = glue.target.add_namespace(glue.now, SUBNQN, config);
    assert_eq!(refused, Err(ConfigError::Reservations));
}

#[test]
fn controller_reset_gives_up_a_feature_that_is_being_stored() {
    let mut glue = durable(None);
    let a = glue.host(1);
    let sqe = SetFeatures::new(fid::RESERVATION_PERSISTENCE, 1)
        .encode()
        .with_nsid(NamespaceId(1))
        .with_sgl1(bowline_nvme::Sgl::transport(0));
    glue.send(a.admin, sqe);
    let request = wanted(&mut glue);
    glue.set_cc(a.admin, 0);
    answer(&mut glue, &request, true);
    assert!(glue.replies(a.admin).is_empty());
    let b = glue.host(2);
    assert_eq!(glue.report(b).0.ptpls, 1, "it happened all the same");
}
