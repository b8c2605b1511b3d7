//! Asynchronous events as a host sees them. [BASE-2.0 §5.2]

use bowline_nvme::feature::{SetFeatures, id as fid};
use bowline_nvme::log::{GetLogPage, id as lid};
use bowline_nvme::opcode::admin;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Sgl, Sqe, Status};
use bowline_nvmf::target::ConnId;

use crate::glue::{CC_ENABLE, Glue, SUBNQN};

const NAMESPACE_CHANGED: u64 = 0x0004_0002;

fn request(glue: &mut Glue, admin: ConnId) {
    let aer = Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0));
    glue.send(admin, aer);
}

fn want(glue: &mut Glue, admin: ConnId, events: u32) {
    let sqe = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, events).encode();
    assert_eq!(glue.command(admin, sqe).status, Status::SUCCESS);
}

fn changed(glue: &mut Glue, admin: ConnId, rae: bool) -> Vec<u32> {
    let get = GetLogPage {
        rae,
        ..GetLogPage::range(lid::CHANGED_NAMESPACE_LIST, 0, 4096)
    };
    let log = glue.log(admin, get).expect("mandatory");
    let ids = log
        .chunks(4)
        .map(|id| u32::from_le_bytes(id.try_into().expect("4")));
    ids.take_while(|&id| id != 0).collect()
}

fn remove(glue: &mut Glue, nsid: u32) {
    glue.target
        .remove_namespace(glue.now, SUBNQN, nsid)
        .expect("there");
    glue.pump();
}

#[test]
fn many_changes_are_one_event_until_their_log_is_read() {
    let mut glue = Glue::new();
    let (admin, _) = glue.enabled(Digests::NONE, 0);
    want(&mut glue, admin, 1 << 8);
    request(&mut glue, admin);
    request(&mut glue, admin);
    glue.add_namespace(5);
    glue.add_namespace(3);
    assert_eq!(glue.reply(admin).cqe().result, NAMESPACE_CHANGED);
    remove(&mut glue, 5);
    assert!(glue.replies(admin).is_empty(), "masked");
    assert_eq!(changed(&mut glue, admin, true), [3, 5]);
    assert_eq!(changed(&mut glue, admin, false), [3, 5], "retained");
    assert_eq!(changed(&mut glue, admin, true), [], "read");
    glue.add_namespace(9);
    assert_eq!(glue.reply(admin).cqe().result, NAMESPACE_CHANGED);
    assert_eq!(changed(&mut glue, admin, false), [9]);
}

#[test]
fn event_without_a_request_waits_for_one() {
    let mut glue = Glue::new();
    let (admin, _) = glue.enabled(Digests::NONE, 0);
    want(&mut glue, admin, 1 << 8);
    glue.add_namespace(5);
    glue.add_namespace(6);
    assert!(glue.replies(admin).is_empty());
    request(&mut glue, admin);
    assert_eq!(glue.reply(admin).cqe().result, NAMESPACE_CHANGED);
    request(&mut glue, admin);
    assert!(glue.replies(admin).is_empty());
}

#[test]
fn log_read_before_the_request_leaves_nothing_to_report() {
    let mut glue = Glue::new();
    let (admin, _) = glue.enabled(Digests::NONE, 0);
    want(&mut glue, admin, 1 << 8);
    glue.add_namespace(5);
    assert_eq!(changed(&mut glue, admin, false), [5]);
    request(&mut glue, admin);
    assert!(glue.replies(admin).is_empty());
}

#[test]
fn reset_takes_requests_events_and_wishes_back() {
    let mut glue = Glue::new();
    let (admin, _) = glue.enabled(Digests::NONE, 0);
    want(&mut glue, admin, 1 << 8);
    for _ in 0..4 {
        request(&mut glue, admin);
    }
    glue.set_cc(admin, 0);
    assert!(
        glue.replies(admin).is_empty(),
        "requests end without completion"
    );
    glue.set_cc(admin, CC_ENABLE);
    for _ in 0..4 {
        request(&mut glue, admin);
    }
    glue.add_namespace(5);
    assert!(glue.replies(admin).is_empty(), "not wanted any more");
    want(&mut glue, admin, 1 << 8);
    assert!(glue.replies(admin).is_empty(), "the change was before");
    glue.add_namespace(6);
    assert_eq!(glue.reply(admin).cqe().result, NAMESPACE_CHANGED);
}
