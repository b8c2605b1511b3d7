//! A whole association against a scripted controller.

use bowline_nvme::event::AsyncEvent;
use bowline_nvme::fabrics::{Cc, PropertySet};
use bowline_nvme::identify::{IdentifyController, IdentifyNamespace};
use bowline_nvme::opcode::{admin, fabrics, io};
use bowline_nvme::{NamespaceId, Nanos, Sqe, Status};
use proptest::prelude::*;

use super::script::{Reply, Rig};
use super::*;
use crate::host::{ControllerConfig, HostEvent, HostState, Reconnect, command};

fn config() -> ControllerConfig {
    let identity = identity();
    ControllerConfig {
        io_queues: 2,
        io_queue_entries: 128,
        seed: 42,
        ..ControllerConfig::new(identity.hostnqn, identity.hostid, identity.subnqn)
    }
}

fn stopped(events: &[HostEvent]) -> Option<CloseReason> {
    events.iter().find_map(|event| match event {
        HostEvent::Stopped { reason } => Some(*reason),
        _ => None,
    })
}

fn lost(events: &[HostEvent]) -> Option<CloseReason> {
    events.iter().find_map(|event| match event {
        HostEvent::Disconnected { reason, .. } => Some(*reason),
        _ => None,
    })
}

fn opcodes(rig: &Rig) -> Vec<(u8, u32)> {
    let name = |sqe: &Sqe| match sqe.opcode() {
        admin::FABRICS if sqe.fctype() == fabrics::CONNECT => (0xC0, 0),
        admin::FABRICS => (sqe.fctype(), sqe.cdw(11)),
        opcode => (opcode, sqe.cdw(10)),
    };
    rig.script.seen.iter().map(name).collect()
}

#[test]
fn bring_up_follows_the_initialization_sequence() {
    for digests in DIGESTS_ALL {
        let mut rig = Rig::connected(ControllerConfig {
            digests,
            ..config()
        });
        let (get, set) = (fabrics::PROPERTY_GET, fabrics::PROPERTY_SET);
        let expected = [
            (0xC0, 0),
            (get, 0x00),
            (set, 0x14),
            (get, 0x1C),
            (set, 0x14),
            (get, 0x1C),
            (get, 0x08),
            (admin::IDENTIFY, 1),
            (admin::SET_FEATURES, 7),
            (admin::SET_FEATURES, 0xB),
            (admin::IDENTIFY, 2),
            (admin::IDENTIFY, 0),
            (admin::IDENTIFY, 3),
            (admin::ASYNC_EVENT_REQUEST, 0),
        ];
        assert_eq!(opcodes(&rig), expected);
        let enable = PropertySet::decode(&rig.script.seen[4]).value_dword();
        let cc = Cc(enable);
        assert_eq!(
            (cc.en(), cc.css(), cc.iosqes(), cc.iocqes()),
            (true, 0, 6, 4)
        );
        let facts = rig.host.facts().expect("known when connected");
        assert_eq!((facts.cntlid, facts.io_queues), (ControllerId(5), 2));
        assert_eq!(
            (facts.transfer_bytes_max, facts.in_capsule_bytes),
            (128 << 10, 4096)
        );
        assert!(facts.volatile_cache);
        assert_eq!(rig.host.depth_max(1), 63, "MAXCMD bounds the queue");
        let [namespace] = rig.host.namespaces() else {
            panic!("one namespace")
        };
        assert_eq!(
            (namespace.nsid, namespace.block_bytes),
            (NamespaceId(1), 4096)
        );
        assert_eq!((namespace.bytes(), namespace.uuid), (4096 * 1000, [1; 16]));
        rig.submit(
            2,
            command::read(NamespaceId(1), 0, 0),
            Transfer::ToHost { len: 4096 },
            7,
        );
        let events = rig.take_events();
        assert!(matches!(events.as_slice(),
            [HostEvent::Complete { queue: 2, completion }]
                if completion.token == 7 && completion.status.is_success()));
    }
}

#[test]
fn ready_is_awaited_as_long_as_cap_says() {
    let mut rig = Rig::new(config());
    rig.script.polls_until_change = 20;
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(100));
    assert_eq!(rig.host.state(), HostState::Ready);

    let mut rig = Rig::new(config());
    rig.script.polls_until_change = 1_000_000;
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(505));
    assert_eq!(lost(&rig.take_events()), Some(CloseReason::NotReadyInTime));
}

#[test]
fn fatal_status_while_enabling_loses_the_controller() {
    let mut rig = Rig::new(config());
    rig.script.fatal = true;
    rig.script.polls_until_change = 3;
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(5));
    assert_eq!(lost(&rig.take_events()), Some(CloseReason::ControllerFatal));
}

#[test]
fn fewer_queues_than_asked_are_used() {
    let mut rig = Rig::new(config());
    rig.script.granted = 1;
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(10));
    assert_eq!(rig.host.state(), HostState::Ready);
    assert_eq!(rig.host.facts().map(|facts| facts.io_queues), Some(1));
    let command = Command {
        sqe: command::flush(NamespaceId(1)),
        transfer: Transfer::None,
        token: 0,
    };
    assert_eq!(
        rig.host.submit(rig.now, 2, command),
        Err(SubmitError::NotReady)
    );
    assert_eq!(
        rig.host.submit(rig.now, 99, command),
        Err(SubmitError::NotReady)
    );
}

#[test]
fn controllers_no_host_can_use_are_refused() {
    type Change = fn(&mut IdentifyController);
    let change: [(&str, Change); 5] = [
        ("small capsules", |identify| identify.ioccsz = 3),
        ("no response capsules", |identify| identify.iorcsz = 0),
        ("in-capsule offset", |identify| identify.icdoff = 1),
        ("no SGLs", |identify| identify.sgls = 0),
        ("other controller", |identify| {
            identify.cntlid = ControllerId(6)
        }),
    ];
    for (name, change) in change {
        let mut rig = Rig::new(config());
        change(&mut rig.script.identify);
        rig.host.connect(rig.now);
        rig.run_for(Nanos::from_millis(5));
        let reason = lost(&rig.take_events());
        assert!(
            matches!(reason, Some(CloseReason::Unsupported { .. })),
            "{name}: {reason:?}"
        );
    }
}

#[test]
fn keep_alive_is_sent_every_half_and_its_absence_noticed() {
    let mut rig = Rig::connected(config());
    let sent = |rig: &Rig| {
        rig.script
            .seen
            .iter()
            .filter(|sqe| sqe.opcode() == admin::KEEP_ALIVE)
            .count()
    };
    rig.run_for(Nanos::from_secs(50));
    assert_eq!(sent(&rig), 20);
    assert_eq!(rig.take_events(), []);
    rig.script.answers_keep_alive = false;
    rig.run_for(Nanos::from_millis(7300));
    assert_eq!(
        rig.take_events(),
        [],
        "half a time-out, and a whole one to answer"
    );
    rig.run_for(Nanos::from_millis(300));
    assert_eq!(
        lost(&rig.take_events()),
        Some(CloseReason::KeepAliveTimeout)
    );
}

/// After a slow answer the next Keep Alive was sent a whole time-out after the last. A controller
/// that counts from the command it received had given the host up by then.
#[test]
fn late_answer_does_not_delay_the_next_keep_alive() {
    let mut rig = Rig::connected(config());
    let sent = |rig: &Rig| {
        let seen = rig.script.seen.iter();
        seen.filter(|sqe| sqe.opcode() == admin::KEEP_ALIVE).count()
    };
    rig.script.answers_keep_alive = false;
    rig.run_for(Nanos::from_secs(6));
    assert_eq!(sent(&rig), 1, "one at half the time-out, not answered yet");
    let last = rig.script.seen.last().expect("it was sent").cid();
    let answer = response(last, Status::SUCCESS, 0, rig.host.config().digests);
    rig.deliver(0, &answer);
    rig.script.answers_keep_alive = true;
    rig.run_for(Nanos::from_millis(1));
    assert_eq!(sent(&rig), 2);
    assert_eq!(rig.take_events(), []);
}

#[test]
fn controller_without_keep_alive_gets_none() {
    let mut rig = Rig::new(config());
    rig.script.identify.kas = 0;
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_secs(60));
    assert_eq!(rig.take_events(), [HostEvent::Connected]);
    assert!(
        rig.script
            .seen
            .iter()
            .all(|sqe| sqe.opcode() != admin::KEEP_ALIVE)
    );
}

#[test]
fn namespace_event_rereads_namespaces_and_rearms() {
    let mut rig = Rig::connected(config());
    rig.script.add_namespace(3, 50);
    rig.send_event(AsyncEvent::NAMESPACE_CHANGED);
    assert_eq!(rig.take_events(), [HostEvent::NamespacesChanged]);
    let ids: Vec<_> = rig
        .host
        .namespaces()
        .iter()
        .map(|namespace| namespace.nsid.0)
        .collect();
    assert_eq!(ids, [1, 3]);
    assert_eq!(rig.script.waiting_events.len(), 1, "another request waits");
    let log = rig
        .script
        .seen
        .iter()
        .find(|sqe| sqe.opcode() == admin::GET_LOG_PAGE);
    assert_eq!(
        log.map(|sqe| sqe.cdw(10) & 0x80FF),
        Some(4),
        "read without RAE"
    );

    rig.script.namespaces.remove(0);
    rig.script.namespaces[0].1.nsze = 60;
    rig.send_event(AsyncEvent::NAMESPACE_CHANGED);
    assert_eq!(rig.take_events(), [HostEvent::NamespacesChanged]);
    assert_eq!(rig.host.namespaces()[0].blocks, 60);

    rig.send_event(AsyncEvent::NAMESPACE_CHANGED);
    assert_eq!(rig.take_events(), [], "nothing is different");

    rig.send_event(AsyncEvent::ANA_CHANGED);
    assert_eq!(
        rig.take_events(),
        [HostEvent::AsyncEvent(AsyncEvent::ANA_CHANGED)]
    );
}

#[test]
fn unusable_namespaces_are_left_out() {
    let mut rig = Rig::new(config());
    for nsid in 2..8 {
        rig.script.add_namespace(nsid, 100);
    }
    let change: [fn(&mut IdentifyNamespace); 6] = [
        |identify| identify.ncap = 0,
        |identify| identify.lbaf[0].ms = 8,
        |identify| identify.lbaf[0].lbads = 8,
        |identify| identify.lbaf[0].lbads = 17,
        |identify| identify.flbas = 5,
        |identify| identify.nsze = u64::MAX / 512,
    ];
    for (namespace, change) in rig.script.namespaces.iter_mut().zip(change) {
        change(&mut namespace.1);
    }
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(10));
    let ids: Vec<_> = rig
        .host
        .namespaces()
        .iter()
        .map(|namespace| namespace.nsid.0)
        .collect();
    assert_eq!(ids, [7]);
}

#[test]
fn namespace_list_that_never_ends_is_cut_off() {
    let mut rig = Rig::new(ControllerConfig {
        namespaces_max: 1500,
        ..config()
    });
    rig.script.custom = Some(|queue, sqe| {
        let is_list = queue == 0 && sqe.opcode() == admin::IDENTIFY && sqe.cdw(10) == 2;
        let is_namespace = queue == 0 && sqe.opcode() == admin::IDENTIFY && sqe.cdw(10) == 0;
        let ids = || {
            (1..=1024)
                .flat_map(|id| (sqe.nsid().0 + id).to_le_bytes())
                .collect()
        };
        match (is_list, is_namespace) {
            (true, _) => Some(Reply::Data(ids())),
            (_, true) => Some(Reply::Status(Status::INVALID_NAMESPACE)),
            _ => None,
        }
    });
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(10));
    assert_eq!(rig.host.state(), HostState::Ready);
    let asked = rig
        .script
        .seen
        .iter()
        .filter(|sqe| sqe.opcode() == admin::IDENTIFY)
        .count();
    assert_eq!(asked, 1 + 2 + 1500);

    // The same list again and again.
    let mut rig = Rig::new(config());
    rig.script.custom = Some(|queue, sqe| {
        let is_list = queue == 0 && sqe.opcode() == admin::IDENTIFY && sqe.cdw(10) == 2;
        let ids = || (1u32..=1024).flat_map(|_| 7u32.to_le_bytes()).collect();
        is_list.then(|| Reply::Data(ids()))
    });
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(10));
    assert_eq!(rig.host.state(), HostState::Ready);
}

#[test]
fn loss_of_one_queue_returns_every_command_and_reconnects() {
    let mut rig = Rig::connected(config());
    rig.script.custom = Some(|_, sqe| (sqe.opcode() == io::WRITE).then_some(Reply::Never));
    for token in 0..10 {
        let queue = 1 + u16::from(token % 2 == 0);
        let sqe = command::write(NamespaceId(1), token, 0, false);
        rig.submit(queue, sqe, Transfer::FromHost { len: 4096 }, token);
    }
    rig.settle();
    rig.cut(2);
    let events = rig.take_events();
    let returned = events.iter().filter(|event| {
        matches!(event, HostEvent::Complete { completion, .. }
            if completion.path_lost && completion.status == Status::HOST_PATHING)
    });
    assert_eq!(returned.count(), 10);
    assert!(matches!(
        events.last(),
        Some(HostEvent::Disconnected {
            reason: CloseReason::PathLost,
            ..
        })
    ));
    rig.run_for(Nanos::from_millis(20));
    assert_eq!(rig.take_events(), [HostEvent::Connected]);
    rig.submit(1, command::flush(NamespaceId(1)), Transfer::None, 99);
    assert_eq!(rig.take_events().len(), 1);
}

#[test]
fn refused_connections_are_retried_at_growing_intervals() {
    let reconnect = Reconnect {
        delay_min: Nanos::from_millis(10),
        delay_max: Nanos::from_millis(200),
        attempts_max: None,
    };
    let mut rig = Rig::connected(ControllerConfig {
        reconnect: Some(reconnect),
        ..config()
    });
    rig.refuses = true;
    rig.cut(0);
    rig.run_for(Nanos::from_secs(2));
    let events = rig.take_timed_events();
    assert!((12..30).contains(&events.len()), "{}", events.len());
    let gaps: Vec<_> = events
        .windows(2)
        .map(|pair| pair[1].0 - pair[0].0)
        .collect();
    assert!(gaps[0] <= Nanos::from_millis(10));
    assert!(gaps.iter().all(|gap| *gap <= Nanos::from_millis(200)));
    assert!(gaps[gaps.len() - 1] >= Nanos::from_millis(100));
    rig.refuses = false;
    rig.run_for(Nanos::from_millis(250));
    assert_eq!(rig.take_events(), [HostEvent::Connected]);
}

#[test]
fn connection_that_does_not_open_is_given_up() {
    let mut rig = Rig::new(config());
    rig.silent = true;
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(999));
    assert_eq!(rig.opening, [0]);
    assert_eq!(rig.take_events(), []);
    rig.run_for(Nanos::from_millis(1));
    assert_eq!(lost(&rig.take_events()), Some(CloseReason::OpenTimeout));
    assert_eq!(rig.opening, []);
}

#[test]
fn rejected_connect_is_retried_unless_told_not_to() {
    let mut rig = Rig::new(config());
    rig.script.connect = Some(Status::CONTROLLER_BUSY);
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_millis(5));
    assert!(matches!(
        lost(&rig.take_events()),
        Some(CloseReason::ConnectRejected { .. })
    ));
    rig.script.connect = None;
    rig.run_for(Nanos::from_millis(50));
    assert_eq!(rig.take_events(), [HostEvent::Connected]);

    let mut rig = Rig::new(config());
    rig.script.connect = Some(Status::CONNECT_INVALID_HOST.dnr());
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_secs(60));
    assert!(matches!(
        stopped(&rig.take_events()),
        Some(CloseReason::ConnectRejected { .. })
    ));
    assert_eq!(rig.host.state(), HostState::Stopped);
    rig.script.connect = None;
    rig.host.connect(rig.now);
    assert_eq!(
        rig.take_events(),
        [HostEvent::Connected],
        "the owner may start anew"
    );
}

#[test]
fn attempts_end_when_they_are_limited() {
    let reconnect = Reconnect {
        attempts_max: Some(3),
        ..Reconnect::default()
    };
    let mut rig = Rig::new(ControllerConfig {
        reconnect: Some(reconnect),
        ..config()
    });
    rig.refuses = true;
    rig.host.connect(rig.now);
    rig.run_for(Nanos::from_secs(10));
    let events = rig.take_events();
    assert_eq!(events.len(), 4);
    assert_eq!(stopped(&events), Some(CloseReason::PathLost));

    let mut rig = Rig::new(ControllerConfig {
        reconnect: None,
        ..config()
    });
    rig.refuses = true;
    rig.host.connect(rig.now);
    assert_eq!(stopped(&rig.take_events()), Some(CloseReason::PathLost));
}

#[test]
fn disconnect_shuts_the_controller_down_first() {
    let mut rig = Rig::connected(config());
    rig.script.polls_until_change = 3;
    rig.host.disconnect(rig.now);
    rig.run_for(Nanos::from_millis(50));
    assert_eq!(
        rig.take_events(),
        [HostEvent::Stopped {
            reason: CloseReason::Requested
        }]
    );
    assert_eq!(rig.script.cc.shn(), 1);
    assert!(rig.script.cc.en());
    rig.run_for(Nanos::from_secs(60));
    assert_eq!(rig.take_events(), [], "no reconnect");

    let mut rig = Rig::connected(config());
    rig.script.polls_until_change = 1_000_000;
    rig.host.disconnect(rig.now);
    rig.run_for(Nanos::from_secs(6));
    assert_eq!(stopped(&rig.take_events()), Some(CloseReason::Requested));
}

#[test]
fn disconnect_at_any_time_ends_in_stopped() {
    for refuses in [false, true] {
        for at_us in [0, 1, 500, 3000, 10_000, 30_000] {
            let mut rig = Rig::new(config());
            rig.refuses = refuses;
            rig.script.polls_until_change = 2;
            rig.host.connect(rig.now);
            rig.run_for(Nanos::from_micros(at_us));
            rig.host.disconnect(rig.now);
            rig.run_for(Nanos::from_secs(6));
            assert_eq!(stopped(&rig.take_events()), Some(CloseReason::Requested));
            assert_eq!(rig.host.state(), HostState::Stopped);
        }
    }
}

#[test]
fn transfers_above_mdts_are_refused() {
    let mut rig = Rig::connected(config());
    let sqe = command::read(NamespaceId(1), 0, 0);
    let submit = |rig: &mut Rig, len| {
        let transfer = Transfer::ToHost { len };
        rig.host.submit(
            rig.now,
            1,
            Command {
                sqe,
                transfer,
                token: 0,
            },
        )
    };
    assert_eq!(submit(&mut rig, (128 << 10) + 4), Err(SubmitError::Length));
    assert!(submit(&mut rig, 128 << 10).is_ok());
}

#[test]
fn admin_commands_leave_room_for_the_controllers_own() {
    let mut rig = Rig::connected(ControllerConfig {
        admin_queue_entries: 8,
        ..config()
    });
    rig.script.custom = Some(|_, sqe| (sqe.opcode() == admin::ABORT).then_some(Reply::Never));
    let command = Command {
        sqe: Sqe::new(admin::ABORT),
        transfer: Transfer::None,
        token: 1,
    };
    let mut taken = 0;
    while rig.host.submit(rig.now, 0, command).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 3, "one of four is the event request");
    rig.run_for(Nanos::from_secs(3));
    let sent = rig
        .script
        .seen
        .iter()
        .filter(|sqe| sqe.opcode() == admin::KEEP_ALIVE)
        .count();
    assert_eq!(sent, 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_answers_never_break_the_association(
        seed in any::<u64>(),
        rounds in 1usize..6,
    ) {
        let mut rig = Rig::new(config());
        let mut random = seed;
        let mut next = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> 16
        };
        for byte in rig.script.identify.subnqn.iter_mut() {
            *byte = next().to_le_bytes()[0];
        }
        let mut noise = [0; 4096];
        for byte in &mut noise {
            *byte = next().to_le_bytes()[0];
        }
        let cntlid = rig.script.identify.cntlid;
        rig.script.identify = IdentifyController::decode(&noise);
        rig.script.identify.cntlid = cntlid;
        rig.script.cap.0 = next() << 20 | next();
        for namespace in &mut rig.script.namespaces {
            namespace.1 = IdentifyNamespace::decode(&noise);
        }
        rig.host.connect(rig.now);
        for _ in 0..rounds {
            rig.run_for(Nanos::from_secs(2));
            let bytes: Vec<u8> = (0..64).map(|_| next().to_le_bytes()[0]).collect();
            rig.deliver(u16::try_from(next() % 3).expect("small"), &bytes);
            rig.cut(u16::try_from(next() % 3).expect("small"));
        }
        rig.host.disconnect(rig.now);
        rig.run_for(Nanos::from_secs(10));
        prop_assert_eq!(rig.host.state(), HostState::Stopped);
    }
}
