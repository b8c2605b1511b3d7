//! Notifications: to whom, in which order, and when the event comes.

use bowline_nvme::feature::{GetFeatures, SetFeatures, id as fid};
use bowline_nvme::log::{GetLogPage, ReservationNotification, id as lid};
use bowline_nvme::opcode::admin;
use bowline_nvme::reservation::{Acquire, Release, ReservationType, mask};
use bowline_nvme::{NamespaceId, Sgl, Sqe, Status};

use super::hosts::{Host, KEY_A, KEY_B, acquire};
use crate::glue::{Glue, Reply};

const EVENT: u64 = 0x0080_0006;

fn listen(glue: &mut Glue, host: Host) {
    let aer = Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0));
    glue.send(host.admin, aer);
}

fn heard(glue: &mut Glue, host: Host) -> bool {
    match glue.replies(host.admin).as_slice() {
        [] => false,
        [Reply::Response(cqe)] => {
            assert_eq!(cqe.result, EVENT);
            true
        }
        other => panic!("{other:?}"),
    }
}

fn page(glue: &mut Glue, host: Host, rae: bool) -> ReservationNotification {
    let log = GetLogPage {
        rae,
        ..GetLogPage::range(lid::RESERVATION, 0, 64)
    };
    let cid = glue.send(host.admin, log.encode().with_sgl1(Sgl::transport(64)));
    // An event may follow the data.
    let mut page = None;
    for reply in glue.replies(host.admin) {
        match reply {
            Reply::Data { bytes, cid: of, .. } if of == cid => {
                page = bytes.first_chunk().map(ReservationNotification::decode);
            }
            Reply::Response(cqe) if cqe.cid == cid => assert!(cqe.status.is_success()),
            Reply::Response(cqe) => assert_eq!(cqe.result, EVENT),
            other => panic!("{other:?}"),
        }
    }
    page.expect("the log's data")
}

fn set(glue: &mut Glue, host: Host, fid: u8, value: u32, nsid: NamespaceId) -> Status {
    let sqe = SetFeatures::new(fid, value).encode().with_nsid(nsid);
    glue.command(host.admin, sqe).status
}

fn get(glue: &mut Glue, host: Host, fid: u8, nsid: NamespaceId) -> Result<u64, Status> {
    let sqe = GetFeatures::current(fid).encode().with_nsid(nsid);
    let cqe = glue.command(host.admin, sqe);
    if cqe.status.is_success() {
        Ok(cqe.result)
    } else {
        Err(cqe.status)
    }
}

/// A holds `rtype`, B is registered, C is not; all listen.
fn listening(rtype: ReservationType) -> (Glue, [Host; 3]) {
    let mut glue = Glue::new();
    let hosts = [glue.host(1), glue.host(2), glue.host(3)];
    glue.register_all(&hosts[..2]);
    assert_eq!(
        glue.acquire(hosts[0], acquire(rtype, KEY_A)),
        Status::SUCCESS
    );
    hosts.into_iter().for_each(|host| listen(&mut glue, host));
    (glue, hosts)
}

fn release(rtype: u8) -> Release {
    Release {
        rtype,
        current_key: KEY_A,
        ..Release::default()
    }
}

#[test]
fn preempted_host_hears_of_it_and_reads_why() {
    let (mut glue, [a, b, c]) = listening(ReservationType::WriteExclusive);
    let preempt = Acquire {
        action: Acquire::PREEMPT,
        preempt_key: KEY_A,
        ..acquire(ReservationType::WriteExclusive, KEY_B)
    };
    assert_eq!(glue.acquire(b, preempt), Status::SUCCESS);
    assert!(heard(&mut glue, a));
    assert!(!heard(&mut glue, b) && !heard(&mut glue, c));
    let first = page(&mut glue, a, false);
    assert_eq!(
        (first.kind, first.nsid, first.count, first.available),
        (
            ReservationNotification::REGISTRATION_PREEMPTED,
            NamespaceId(1),
            1,
            0
        )
    );
    assert_eq!(page(&mut glue, a, false).kind, 0, "an empty page");
}

#[test]
fn release_is_heard_on_every_controller_of_other_registrants_only() {
    let (mut glue, [a, b, c]) = listening(ReservationType::WriteExclusiveRegistrantsOnly);
    let second = glue.host(2);
    listen(&mut glue, second);
    assert_eq!(glue.release_reservation(a, release(3)), Status::SUCCESS);
    assert!(heard(&mut glue, b) && heard(&mut glue, second));
    assert!(!heard(&mut glue, a) && !heard(&mut glue, c));
    let kind = page(&mut glue, second, false).kind;
    assert_eq!(kind, ReservationNotification::RESERVATION_RELEASED);
}

#[test]
fn clear_is_heard_by_those_who_were_registered() {
    let (mut glue, [a, b, c]) = listening(ReservationType::ExclusiveAccess);
    let clear = Release {
        action: Release::CLEAR,
        ..release(0)
    };
    assert_eq!(glue.release_reservation(a, clear), Status::SUCCESS);
    assert!(heard(&mut glue, b) && !heard(&mut glue, a) && !heard(&mut glue, c));
    let kind = page(&mut glue, b, false).kind;
    assert_eq!(kind, ReservationNotification::RESERVATION_PREEMPTED);
}

#[test]
fn event_comes_once_until_the_log_is_read_and_again_while_pages_are_left() {
    let (mut glue, [a, b, _]) = listening(ReservationType::WriteExclusiveRegistrantsOnly);
    let again = acquire(ReservationType::WriteExclusiveRegistrantsOnly, KEY_A);
    for round in 0..3 {
        assert_eq!(glue.release_reservation(a, release(3)), Status::SUCCESS);
        assert_eq!(glue.acquire(a, again), Status::SUCCESS);
        assert_eq!(heard(&mut glue, b), round == 0);
        listen(&mut glue, b);
    }
    let kept = page(&mut glue, b, true);
    assert_eq!((kept.count, kept.available), (1, 2));
    assert!(!heard(&mut glue, b), "RAE leaves the event masked");
    let next = page(&mut glue, b, false);
    assert_eq!((next.count, next.available), (2, 1));
    let last = page(&mut glue, b, false);
    assert_eq!((last.count, last.available), (3, 0));
}

#[test]
fn masked_notifications_make_neither_page_nor_event() {
    let (mut glue, [a, b, _]) = listening(ReservationType::WriteExclusiveRegistrantsOnly);
    let (one, all) = (NamespaceId(1), NamespaceId::BROADCAST);
    let feature = fid::RESERVATION_MASK;
    assert_eq!(get(&mut glue, b, feature, one), Ok(0));
    let masked = mask::RESERVATION_RELEASED;
    assert_eq!(set(&mut glue, b, feature, masked, one), Status::SUCCESS);
    assert_eq!(get(&mut glue, b, feature, one), Ok(u64::from(masked)));
    assert_eq!(glue.release_reservation(a, release(3)), Status::SUCCESS);
    assert!(!heard(&mut glue, b));
    assert_eq!(
        page(&mut glue, b, false),
        ReservationNotification::default()
    );
    // All namespaces at once, and unknown bits are not kept.
    assert_eq!(set(&mut glue, b, feature, u32::MAX, all), Status::SUCCESS);
    assert_eq!(get(&mut glue, b, feature, one), Ok(u64::from(mask::ALL)));
    for nsid in [all, NamespaceId(0), NamespaceId(9)] {
        let refused = get(&mut glue, b, feature, nsid).expect_err("not one namespace");
        assert!(refused.same_code(Status::INVALID_FIELD));
    }
    let refused = set(&mut glue, b, feature, 2, NamespaceId(9));
    assert!(refused.same_code(Status::INVALID_FIELD));
}

#[test]
fn mask_and_pages_do_not_survive_a_controller_reset() {
    let (mut glue, [a, b, _]) = listening(ReservationType::WriteExclusiveRegistrantsOnly);
    assert_eq!(glue.release_reservation(a, release(3)), Status::SUCCESS);
    assert!(heard(&mut glue, b));
    let one = NamespaceId(1);
    let masked = mask::REGISTRATION_PREEMPTED;
    let feature = fid::RESERVATION_MASK;
    assert_eq!(set(&mut glue, b, feature, masked, one), Status::SUCCESS);
    glue.set_cc(b.admin, 0);
    glue.set_cc(b.admin, crate::glue::CC_ENABLE);
    assert_eq!(get(&mut glue, b, feature, one), Ok(0));
    assert_eq!(page(&mut glue, b, false).count, 0);
}

#[test]
fn mask_is_not_inherited_by_the_next_namespace_with_the_nsid() {
    let (mut glue, [_, b, _]) = listening(ReservationType::WriteExclusive);
    let feature = fid::RESERVATION_MASK;
    assert_eq!(
        set(&mut glue, b, feature, mask::ALL, NamespaceId(1)),
        Status::SUCCESS
    );
    glue.target
        .remove_namespace(glue.now, crate::glue::SUBNQN, 1)
        .expect("there");
    let mut next = crate::glue::namespace(2);
    next.nsid = Some(1);
    glue.target
        .add_namespace(glue.now, crate::glue::SUBNQN, next)
        .expect("valid");
    assert_eq!(get(&mut glue, b, feature, NamespaceId(1)), Ok(0));
}
