//! Who may do what under which reservation, and what each command makes of the state.

use bowline_nvme::Status;
use bowline_nvme::opcode::io;
use bowline_nvme::reservation::{Acquire, Register, Release, ReservationType};

use super::change::{Change, News, Request};
use super::*;

const A: HostId = [0xA; 16];
const B: HostId = [0xB; 16];
const C: HostId = [0xC; 16];
const KEY_A: u64 = 0xA1;
const KEY_B: u64 = 0xB2;
const KEY_C: u64 = 0xC3;

const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();

fn register(action: u8, current_key: u64, new_key: u64) -> Request {
    Request::Register(Register {
        action,
        current_key,
        new_key,
        ..Register::default()
    })
}

fn acquire(rtype: ReservationType, current_key: u64) -> Request {
    Request::Acquire(Acquire {
        rtype: rtype.wire(),
        current_key,
        ..Acquire::default()
    })
}

fn preempt(rtype: ReservationType, current_key: u64, preempt_key: u64) -> Request {
    Request::Acquire(Acquire {
        action: Acquire::PREEMPT,
        rtype: rtype.wire(),
        current_key,
        preempt_key,
        ..Acquire::default()
    })
}

fn release(rtype: u8, current_key: u64) -> Request {
    Request::Release(Release {
        rtype,
        current_key,
        ..Release::default()
    })
}

fn clear(current_key: u64) -> Request {
    Request::Release(Release {
        action: Release::CLEAR,
        current_key,
        ..Release::default()
    })
}

/// A state that commands are sent to.
#[derive(Default)]
struct Machine(ReservationState);

impl Machine {
    /// A and B are registered, and A has acquired.
    fn held_by_a(rtype: ReservationType) -> Self {
        let mut machine = Self::default();
        machine.ok(A, register(Register::REGISTER, 0, KEY_A));
        machine.ok(B, register(Register::REGISTER, 0, KEY_B));
        machine.ok(A, acquire(rtype, KEY_A));
        machine
    }

    fn ok(&mut self, host: HostId, request: Request) -> Change {
        let change = self.0.change(&host, &request, false).expect("allowed");
        assert!(change.next.is_consistent(), "{change:?}");
        self.0 = change.next.clone();
        change
    }

    fn refused(&self, host: HostId, request: Request) -> Status {
        self.0
            .change(&host, &request, false)
            .expect_err("not allowed")
    }

    fn hosts(&self) -> Vec<HostId> {
        self.0.registrants.iter().map(|it| it.hostid).collect()
    }
}

/// The table of the specification, written out. Rows: types 1 to 6. Columns: holder, registrant,
/// others. `rw` both, `r` reading only, `-` neither.
const TABLE: [[&str; 3]; 6] = [
    ["rw", "r", "r"],
    ["rw", "-", "-"],
    ["rw", "rw", "r"],
    ["rw", "rw", "-"],
    ["rw", "rw", "r"],
    ["rw", "rw", "-"],
];

#[test]
fn every_cell_of_the_access_table_is_as_specified() {
    let reads = [io::READ, io::COMPARE, io::VERIFY];
    let writes = [
        io::WRITE,
        io::WRITE_ZEROES,
        io::DATASET_MANAGEMENT,
        io::FLUSH,
        io::COPY,
        io::WRITE_UNCORRECTABLE,
    ];
    let free = [
        io::RESERVATION_REGISTER,
        io::RESERVATION_REPORT,
        io::RESERVATION_ACQUIRE,
        io::RESERVATION_RELEASE,
    ];
    for (rtype, row) in ReservationType::ALL.into_iter().zip(TABLE) {
        let machine = Machine::held_by_a(rtype);
        for (host, cell) in [A, B, C].into_iter().zip(row) {
            let check = |opcodes: &[u8], expected| {
                for &opcode in opcodes {
                    let found = machine.0.allows(&host, Access::of(opcode));
                    assert_eq!(found, expected, "{rtype:?} {host:x?} {opcode:#x}");
                }
            };
            check(&reads, cell.contains('r'));
            check(&writes, cell.contains('w'));
            check(&free, true);
        }
    }
}

#[test]
fn without_a_reservation_everybody_may_do_everything() {
    let mut machine = Machine::default();
    assert!(machine.0.allows(&C, Access::Write));
    machine.ok(A, register(Register::REGISTER, 0, KEY_A));
    assert!(machine.0.allows(&C, Access::Write) && machine.0.allows(&C, Access::Read));
}

#[test]
fn same_key_may_be_registered_again_and_another_is_a_conflict() {
    let mut machine = Machine::default();
    machine.ok(A, register(Register::REGISTER, 0, KEY_A));
    let before = machine.0.generation;
    machine.ok(A, register(Register::REGISTER, 0, KEY_A));
    assert_eq!(machine.0.generation, before + 1, "also without a change");
    assert_eq!(
        machine.refused(A, register(Register::REGISTER, KEY_A, KEY_B)),
        CONFLICT
    );
    assert_eq!(
        machine.refused(B, register(Register::REGISTER, 0, 0)),
        INVALID
    );
}

#[test]
fn two_hosts_may_have_the_same_key() {
    let mut machine = Machine::default();
    machine.ok(A, register(Register::REGISTER, 0, KEY_A));
    machine.ok(B, register(Register::REGISTER, 0, KEY_A));
    assert_eq!(machine.hosts(), [A, B]);
}

#[test]
fn replacing_a_key_needs_the_current_one_unless_it_is_ignored() {
    let ignoring = |new_key| {
        Request::Register(Register {
            action: Register::REPLACE,
            ignore_key: true,
            current_key: 0xDEAD,
            new_key,
            ..Register::default()
        })
    };
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusive);
    assert_eq!(
        machine.refused(A, register(Register::REPLACE, KEY_B, KEY_C)),
        CONFLICT
    );
    assert_eq!(
        machine.refused(C, register(Register::REPLACE, 0, KEY_C)),
        CONFLICT
    );
    assert_eq!(
        machine.refused(A, register(Register::REPLACE, KEY_A, 0)),
        INVALID
    );
    machine.ok(A, register(Register::REPLACE, KEY_A, KEY_C));
    assert_eq!(machine.0.registrant(&A).map(|it| it.key), Some(KEY_C));
    assert!(machine.0.is_holder(&A), "the reservation stays");
    machine.ok(A, ignoring(KEY_A));
    machine.ok(C, ignoring(KEY_C));
    assert_eq!(
        machine.hosts(),
        [A, B, C],
        "who ignores its key need not have one"
    );
}

#[test]
fn unregistering_needs_a_registration_and_its_key() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusive);
    let unregister = |key| register(Register::UNREGISTER, key, 0);
    assert_eq!(machine.refused(C, unregister(0)), CONFLICT);
    assert_eq!(machine.refused(B, unregister(KEY_A)), CONFLICT);
    let ignoring = Request::Register(Register {
        action: Register::UNREGISTER,
        ignore_key: true,
        ..Register::default()
    });
    assert_eq!(machine.refused(C, ignoring), CONFLICT);
    machine.ok(B, ignoring);
    assert_eq!(machine.hosts(), [A]);
}

#[test]
fn holder_that_unregisters_releases_and_tells_those_who_had_a_part_in_it() {
    for rtype in ReservationType::ALL {
        let mut machine = Machine::held_by_a(rtype);
        let change = machine.ok(A, register(Register::UNREGISTER, KEY_A, 0));
        let told = vec![(B, News::ReservationReleased)];
        match rtype.wire() {
            1 | 2 => assert!(machine.0.reservation.is_none() && change.news.is_empty()),
            3 | 4 => assert!(machine.0.reservation.is_none() && change.news == told),
            _ => {
                assert!(machine.0.is_holder(&B) && change.news.is_empty());
                machine.ok(B, register(Register::UNREGISTER, KEY_B, 0));
                assert_eq!(machine.0.reservation, None, "with the last registrant");
            }
        }
    }
}

#[test]
fn persistence_is_refused_where_it_cannot_be_kept() {
    let with = |change_persistence| {
        Request::Register(Register {
            change_persistence,
            new_key: KEY_A,
            ..Register::default()
        })
    };
    let state = ReservationState::default();
    let persistent = |request: &Request, persists| {
        let change = state.change(&A, request, persists);
        change.map(|change| change.next.persistent)
    };
    assert_eq!(
        persistent(&with(Register::PERSISTENCE_SET), false),
        Err(INVALID)
    );
    assert_eq!(persistent(&with(Register::PERSISTENCE_SET), true), Ok(true));
    assert_eq!(
        persistent(&with(Register::PERSISTENCE_CLEAR), false),
        Ok(false)
    );
    assert_eq!(persistent(&with(1), true), Err(INVALID));
    assert_eq!(persistent(&Request::Persist(true), false), Err(INVALID));
    assert_eq!(persistent(&Request::Persist(true), true), Ok(true));
}

#[test]
fn registrants_beyond_the_maximum_are_refused_and_those_there_go_on() {
    let mut machine = Machine::default();
    for number in 0..u128::try_from(REGISTRANTS_MAX).expect("small") {
        let host = (number + 1).to_be_bytes();
        machine.ok(host, register(Register::REGISTER, 0, KEY_A));
    }
    assert_eq!(
        machine.refused(A, register(Register::REGISTER, 0, KEY_A)),
        Status::INTERNAL,
        "a later try may find room"
    );
    let first = 1u128.to_be_bytes();
    machine.ok(first, register(Register::REPLACE, KEY_A, KEY_B));
    machine.ok(first, register(Register::UNREGISTER, KEY_B, 0));
    machine.ok(A, register(Register::REGISTER, 0, KEY_A));
}

#[test]
fn acquiring_needs_a_key_and_a_free_namespace() {
    use ReservationType::{ExclusiveAccess, WriteExclusive, WriteExclusiveAllRegistrants};
    let mut machine = Machine::held_by_a(WriteExclusive);
    assert_eq!(machine.refused(C, acquire(WriteExclusive, 0)), CONFLICT);
    assert_eq!(
        machine.refused(B, acquire(WriteExclusive, KEY_A)),
        CONFLICT,
        "not its key"
    );
    assert_eq!(machine.refused(B, acquire(WriteExclusive, KEY_B)), CONFLICT);
    let before = machine.0.clone();
    machine.ok(A, acquire(WriteExclusive, KEY_A));
    assert_eq!(machine.0, before, "again, with no effect");
    assert_eq!(
        machine.refused(A, acquire(ExclusiveAccess, KEY_A)),
        CONFLICT
    );
    let mut all = Machine::held_by_a(WriteExclusiveAllRegistrants);
    all.ok(B, acquire(WriteExclusiveAllRegistrants, KEY_B));
}

#[test]
fn acquire_and_release_refuse_what_their_fields_do_not_allow() {
    let machine = Machine::held_by_a(ReservationType::WriteExclusive);
    let bad_acquire = |change: fn(&mut Acquire)| {
        let mut acquire = Acquire {
            rtype: 1,
            current_key: KEY_A,
            ..Acquire::default()
        };
        change(&mut acquire);
        machine.refused(A, Request::Acquire(acquire))
    };
    assert_eq!(bad_acquire(|it| it.ignore_key = true), INVALID);
    assert_eq!(bad_acquire(|it| it.rtype = 0), INVALID);
    assert_eq!(bad_acquire(|it| it.rtype = 7), INVALID);
    assert_eq!(bad_acquire(|it| it.action = 3), INVALID);
    let bad_release = |change: fn(&mut Release)| {
        let mut release = Release {
            rtype: 1,
            current_key: KEY_A,
            ..Release::default()
        };
        change(&mut release);
        machine.refused(A, Request::Release(release))
    };
    assert_eq!(bad_release(|it| it.ignore_key = true), INVALID);
    assert_eq!(bad_release(|it| it.action = 2), INVALID);
    assert_eq!(bad_release(|it| it.rtype = 2), INVALID, "another type");
    assert_eq!(bad_release(|it| it.current_key = KEY_B), CONFLICT);
    let bad_register = Request::Register(Register {
        action: 3,
        ..Register::default()
    });
    assert_eq!(machine.refused(A, bad_register), INVALID);
}

#[test]
fn releasing_what_one_does_not_hold_succeeds_and_changes_nothing() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusiveRegistrantsOnly);
    let before = machine.0.clone();
    let change = machine.ok(B, release(1, KEY_B));
    assert_eq!((machine.0.clone(), change.news), (before, vec![]));
    machine.ok(A, release(3, KEY_A));
    let change = machine.ok(A, release(0, KEY_A));
    assert!(change.news.is_empty(), "there is nothing left to release");
    assert_eq!(machine.refused(C, release(3, KEY_C)), CONFLICT);
}

#[test]
fn release_tells_other_registrants_where_they_had_rights() {
    for rtype in ReservationType::ALL {
        let mut machine = Machine::held_by_a(rtype);
        let before = machine.0.generation;
        let change = machine.ok(A, release(rtype.wire(), KEY_A));
        assert_eq!(
            (machine.0.reservation, machine.0.generation),
            (None, before)
        );
        assert_eq!(machine.hosts(), [A, B], "registrations stay");
        let expected = if rtype.is_holder_only() {
            vec![]
        } else {
            vec![(B, News::ReservationReleased)]
        };
        assert_eq!(change.news, expected, "{rtype:?}");
    }
}

#[test]
fn any_registrant_releases_what_all_hold() {
    let mut machine = Machine::held_by_a(ReservationType::ExclusiveAccessAllRegistrants);
    let change = machine.ok(B, release(6, KEY_B));
    assert_eq!(change.news, [(A, News::ReservationReleased)]);
    assert_eq!(machine.0.reservation, None);
}

#[test]
fn clear_forgets_everybody_and_tells_the_others() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusive);
    assert_eq!(machine.refused(C, clear(0)), CONFLICT);
    let before = machine.0.generation;
    let change = machine.ok(B, clear(KEY_B));
    assert_eq!(change.news, [(A, News::ReservationPreempted)]);
    assert!(machine.0.registrants.is_empty() && machine.0.reservation.is_none());
    assert_eq!(machine.0.generation, before + 1);
}

#[test]
fn preempting_the_holder_takes_its_place() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusive);
    machine.ok(C, register(Register::REGISTER, 0, KEY_C));
    let change = machine.ok(B, preempt(ReservationType::ExclusiveAccess, KEY_B, KEY_A));
    assert_eq!(machine.hosts(), [B, C]);
    assert!(machine.0.is_holder(&B));
    let news = [
        (A, News::RegistrationPreempted),
        (C, News::ReservationReleased),
    ];
    assert_eq!(change.news, news, "the type has changed, and C stays");
    assert!(change.victims.is_empty(), "nothing is to be aborted");
}

#[test]
fn preempting_the_holder_for_the_same_type_is_no_news_to_those_who_stay() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusiveRegistrantsOnly);
    machine.ok(C, register(Register::REGISTER, 0, KEY_C));
    let again = preempt(ReservationType::WriteExclusiveRegistrantsOnly, KEY_B, KEY_A);
    let change = machine.ok(B, again);
    assert_eq!(change.news, [(A, News::RegistrationPreempted)]);
}

#[test]
fn preempting_another_registrant_leaves_the_reservation() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusiveRegistrantsOnly);
    machine.ok(C, register(Register::REGISTER, 0, KEY_C));
    let change = machine.ok(B, preempt(ReservationType::ExclusiveAccess, KEY_B, KEY_C));
    assert_eq!(change.news, [(C, News::RegistrationPreempted)]);
    assert_eq!(machine.hosts(), [A, B]);
    let held = machine.0.reservation.expect("still");
    assert_eq!(held.rtype, ReservationType::WriteExclusiveRegistrantsOnly);
    assert_eq!(held.holder, Some(A));
}

#[test]
fn holder_changes_its_type_by_preempting_itself_and_stays() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusive);
    // B shares A's key.
    machine.ok(B, register(Register::REPLACE, KEY_B, KEY_A));
    let change = machine.ok(
        A,
        preempt(
            ReservationType::ExclusiveAccessRegistrantsOnly,
            KEY_A,
            KEY_A,
        ),
    );
    assert_eq!(machine.hosts(), [A]);
    assert_eq!(change.news, [(B, News::RegistrationPreempted)]);
    assert!(machine.0.is_holder(&A));
}

#[test]
fn preemptor_that_names_its_own_key_without_the_holders_goes_too() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusive);
    let change = machine.ok(B, preempt(ReservationType::WriteExclusive, KEY_B, KEY_B));
    assert_eq!(machine.hosts(), [A]);
    assert!(change.news.is_empty(), "it knows");
}

#[test]
fn preempting_without_a_reservation_only_unregisters() {
    let mut machine = Machine::default();
    machine.ok(A, register(Register::REGISTER, 0, KEY_A));
    machine.ok(B, register(Register::REGISTER, 0, KEY_B));
    let write_exclusive = ReservationType::WriteExclusive;
    assert_eq!(
        machine.refused(A, preempt(write_exclusive, KEY_A, 0)),
        CONFLICT
    );
    assert_eq!(
        machine.refused(A, preempt(write_exclusive, KEY_A, KEY_C)),
        CONFLICT,
        "nobody has that key"
    );
    let change = machine.ok(A, preempt(write_exclusive, KEY_A, KEY_B));
    assert_eq!(change.news, [(B, News::RegistrationPreempted)]);
    assert_eq!(machine.0.reservation, None);
}

#[test]
fn preempting_nobody_where_one_holds_is_an_invalid_field() {
    let machine = Machine::held_by_a(ReservationType::WriteExclusive);
    let nobody = preempt(ReservationType::WriteExclusive, KEY_B, 0);
    assert_eq!(machine.refused(B, nobody), INVALID);
}

#[test]
fn preempting_everybody_where_all_hold_leaves_only_the_preemptor() {
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusiveAllRegistrants);
    machine.ok(C, register(Register::REGISTER, 0, KEY_C));
    let change = machine.ok(B, preempt(ReservationType::WriteExclusive, KEY_B, 0));
    assert_eq!(machine.hosts(), [B]);
    let held = machine.0.reservation.expect("taken");
    assert_eq!(
        (held.rtype, held.holder),
        (ReservationType::WriteExclusive, Some(B))
    );
    let news = [
        (A, News::RegistrationPreempted),
        (C, News::RegistrationPreempted),
    ];
    assert_eq!(change.news, news);
}

#[test]
fn preempting_by_key_where_all_hold_ends_it_with_the_last_registrant() {
    let all = ReservationType::WriteExclusiveAllRegistrants;
    let mut machine = Machine::held_by_a(all);
    machine.ok(B, preempt(ReservationType::ExclusiveAccess, KEY_B, KEY_A));
    let held = machine.0.reservation.expect("B still holds it");
    assert_eq!(held.rtype, all, "nothing was taken, so the type stays");
    assert_eq!(machine.refused(B, preempt(all, KEY_B, KEY_C)), CONFLICT);
    machine.ok(B, preempt(all, KEY_B, KEY_B));
    assert!(machine.0.registrants.is_empty() && machine.0.reservation.is_none());
}

#[test]
fn preempt_and_abort_names_the_hosts_it_removed_but_not_itself() {
    let abort = |current_key, preempt_key| {
        Request::Acquire(Acquire {
            action: Acquire::PREEMPT_AND_ABORT,
            rtype: 1,
            current_key,
            preempt_key,
            ..Acquire::default()
        })
    };
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusive);
    machine.ok(C, register(Register::REGISTER, 0, KEY_B));
    let change = machine.ok(B, abort(KEY_B, KEY_B));
    assert_eq!(change.victims, [C]);
    let mut machine = Machine::held_by_a(ReservationType::WriteExclusive);
    assert_eq!(machine.ok(B, abort(KEY_B, KEY_A)).victims, [A]);
}
