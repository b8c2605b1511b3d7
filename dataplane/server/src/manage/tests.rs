use std::path::Path;

use bowline_nvmf::target::SubsystemConfig;

use super::namespace::OPENING_MAX;
use super::*;
use crate::catalog::{Access, Origin};
use crate::config::BackingConfig;
use crate::names::ANY_HOST;

const NQN: &str = "nqn.2026-11.io.bowline:test:first";

/// A manager of one subsystem and no reactor: reserving asks none.
fn manager() -> Manager {
    let fleet = Arc::new(Fleet {
        members: Vec::new(),
        not_flushed: Arc::default(),
    });
    let mut manager = Manager::new(fleet, Vec::new(), AllowList::default());
    let subsystem = Subsystem::new(0, &SubsystemConfig::new(NQN, ""), Origin::Api);
    manager.catalog.subsystems.insert(NQN.to_owned(), subsystem);
    manager
}

fn new(nsid: Option<u32>) -> NewNamespace {
    NewNamespace {
        nsid,
        backing: BackingConfig::Path {
            path: "/asked".into(),
            shared: false,
        },
        block_bytes: None,
        uuid: None,
        nguid: None,
        ana_group: None,
    }
}

#[test]
fn place_of_a_namespace_is_kept_while_its_backing_opens() {
    let mut manager = manager();
    let first = manager.reserve(NQN, new(None)).unwrap();
    assert_eq!(first.nsid, 1);
    let taken = manager.reserve(NQN, new(Some(1))).unwrap_err();
    assert_eq!(taken.reason, Reason::BackingBusy);
    let second = manager.reserve(NQN, new(None)).unwrap();
    assert_eq!(second.nsid, 2);

    let real = Path::new("/real");
    manager.claim(&first, real).unwrap();
    let claimed = manager.claim(&second, real).unwrap_err();
    assert_eq!(claimed.reason, Reason::BackingInUse);

    manager.release(&first);
    manager.claim(&second, real).unwrap();
    assert_eq!(manager.reserve(NQN, new(Some(1))).unwrap().nsid, 1);
}

#[test]
fn backings_opened_at_a_time_are_limited() {
    let mut manager = manager();
    let all: Vec<Reserved> = (0..OPENING_MAX)
        .map(|_| manager.reserve(NQN, new(None)).unwrap())
        .collect();
    let one_more = manager.reserve(NQN, new(None)).unwrap_err();
    assert_eq!(one_more.reason, Reason::LimitReached);
    manager.release(&all[3]);
    assert_eq!(manager.reserve(NQN, new(None)).unwrap().nsid, 4);
}

#[tokio::test]
async fn what_the_reactor_did_not_do_is_not_recorded() {
    let mut manager = manager();
    // The reactor that owns it is gone.
    manager
        .allow_host(NQN, ANY_HOST, Origin::Api)
        .await
        .unwrap_err();
    assert_eq!(manager.subsystem(NQN).unwrap().access, Access::default());
    let start = Access {
        any_host: Some(Origin::Start),
        ..Access::default()
    };
    manager.subsystem_mut(NQN).unwrap().access = start.clone();
    manager.deny_host(NQN, ANY_HOST).await.unwrap_err();
    assert_eq!(manager.subsystem(NQN).unwrap().access, start);
}
