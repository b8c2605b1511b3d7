//! Namespaces that share a medium: what they have of it, and that it runs short.

use std::cell::Cell;
use std::rc::Rc;

use bowline_nvme::feature::{SetFeatures, id as fid};
use bowline_nvme::identify::{IdentifyNamespace, cns};
use bowline_nvme::log::{GetLogPage, SmartLog, id as lid};
use bowline_nvme::opcode::admin;
use bowline_nvme::{NamespaceId, Sgl, Sqe, Status};
use bowline_nvmf::target::{Allocation, AllocationSource, ConnId, NamespaceConfig};

use crate::glue::{BLOCKS, Glue, SUBNQN, namespace};

const SPARE_BELOW_THRESHOLD: u64 = 0x0002_0201;

/// A namespace that shares a medium, and what it has of it.
fn sharing(glue: &mut Glue) -> Rc<Cell<Allocation>> {
    let all = Rc::new(Cell::new(Allocation {
        used_blocks: 3,
        spare_percent: 50,
    }));
    let asked = Rc::clone(&all);
    let config = NamespaceConfig {
        allocation: Some(AllocationSource::new(Rc::new(move || asked.get()))),
        ..namespace(2)
    };
    let added = glue.target.add_namespace(glue.now, SUBNQN, config);
    added.expect("valid");
    all
}

fn smart(glue: &mut Glue, admin: ConnId) -> SmartLog {
    let log = GetLogPage::range(lid::SMART, 0, 512);
    let page = glue.log(admin, log).expect("supported");
    SmartLog::decode(page.first_chunk().expect("512"))
}

fn tell(glue: &mut Glue, shared: &Cell<Allocation>, spare_percent: u8) {
    shared.set(Allocation {
        spare_percent,
        ..shared.get()
    });
    glue.target.spare_changed(glue.now);
    glue.pump();
}

#[test]
fn allocated_blocks_are_those_of_the_moment() {
    let mut glue = Glue::new();
    let shared = sharing(&mut glue);
    let (admin, _) = glue.admin();
    // A medium that allocates in larger pieces may have more than there is.
    for (used, nuse) in [(3, 3), (70, 70), (BLOCKS + 9, BLOCKS)] {
        shared.set(Allocation {
            used_blocks: used,
            ..shared.get()
        });
        let page = glue.identify(admin, cns::NAMESPACE, 2).expect("active");
        assert_eq!(IdentifyNamespace::decode(&page).nuse, nuse);
    }
    let page = glue.identify(admin, cns::NAMESPACE, 1).expect("active");
    assert_eq!(IdentifyNamespace::decode(&page).nuse, BLOCKS);
}

#[test]
fn little_room_is_a_warning_and_one_event_until_the_log_is_read() {
    let mut glue = Glue::new();
    let shared = sharing(&mut glue);
    let (admin, _) = glue.admin();
    let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 1).encode();
    assert_eq!(glue.command(admin, aec).status, Status::SUCCESS);
    let ask = |glue: &mut Glue| {
        let request = Sqe::new(admin::ASYNC_EVENT_REQUEST).with_sgl1(Sgl::transport(0));
        glue.send(admin, request.with_nsid(NamespaceId(0)));
    };
    ask(&mut glue);
    let before = smart(&mut glue, admin);
    assert_eq!((before.critical_warning, before.available_spare), (0, 50));
    assert_eq!(before.available_spare_threshold, 10);
    tell(&mut glue, &shared, 10);
    assert!(glue.replies(admin).is_empty(), "it is not below yet");
    tell(&mut glue, &shared, 9);
    assert_eq!(glue.reply(admin).cqe().result, SPARE_BELOW_THRESHOLD);
    ask(&mut glue);
    for spare in [4, 40, 2] {
        tell(&mut glue, &shared, spare);
    }
    assert!(glue.replies(admin).is_empty(), "the log was not read");
    let low = smart(&mut glue, admin);
    assert_eq!((low.critical_warning, low.available_spare), (1, 2));
    // What was read is no news; what happens after it is.
    assert!(glue.replies(admin).is_empty());
    tell(&mut glue, &shared, 60);
    tell(&mut glue, &shared, 1);
    assert_eq!(glue.reply(admin).cqe().result, SPARE_BELOW_THRESHOLD);
}

#[test]
fn namespaces_of_media_of_their_own_have_all_their_spare() {
    let mut glue = Glue::new();
    let (admin, _) = glue.admin();
    let log = smart(&mut glue, admin);
    assert_eq!((log.critical_warning, log.available_spare), (0, 100));
    assert_eq!(log.available_spare_threshold, 0);
}
