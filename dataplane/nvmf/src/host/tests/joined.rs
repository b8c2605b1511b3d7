//! The host and the target of this crate, joined by a wire in virtual time.

use std::net::SocketAddr;
use std::sync::Arc;

use bowline_nvme::nqn;
use bowline_nvme::nvm::DsmRange;
use bowline_nvme::opcode::admin;
use bowline_nvme::{Nanos, Sqe, Status};
use proptest::prelude::*;

use super::world::{BLOCKS, NSID, World, geometry, namespace};
use super::*;
use crate::host::{ControllerConfig, DiscoveryReader, HostEvent, HostState, command};
use crate::target;

fn config() -> ControllerConfig {
    let identity = identity();
    ControllerConfig {
        io_queues: 2,
        seed: 1,
        ..ControllerConfig::new(identity.hostnqn, identity.hostid, identity.subnqn)
    }
}

fn every_operation(world: &mut World) {
    // One byte at a time is slow, and large transfers differ only in size.
    let limit = if world.chunk < 100 { 8192 } else { usize::MAX };
    let facts = *world.host.facts().expect("known");
    assert_eq!(
        (facts.in_capsule_bytes, facts.transfer_bytes_max),
        (4096, 64 << 10)
    );
    let [seen] = world.host.namespaces() else {
        panic!("one namespace")
    };
    assert_eq!(
        (seen.block_bytes, seen.blocks, seen.uuid),
        (512, BLOCKS, [1; 16])
    );

    // In the capsule, with one R2T, and at MDTS; read back the same.
    for (lba, bytes) in [(0, 512), (8, 4096), (64, 8192), (128, 64 << 10)] {
        if bytes > limit {
            continue;
        }
        let data = pattern(bytes);
        world.write(2, lba, &data, 0);
        assert_eq!(world.finish().0, Status::SUCCESS);
        world.check_read(lba, &data);
    }
    let data = pattern(4096);
    let compare = |world: &mut World, data: &[u8]| {
        let sqe = command::compare(NSID, 8, 7);
        world.submit(1, sqe, Transfer::FromHost { len: 4096 }, data.to_vec(), 0);
        world.finish().0
    };
    assert_eq!(compare(world, &data), Status::SUCCESS);
    assert!(compare(world, &pattern(4097)[1..]).same_code(Status::COMPARE_FAILURE));
    world.submit(1, command::flush(NSID), Transfer::None, Vec::new(), 0);
    assert_eq!(world.finish().0, Status::SUCCESS);

    world.submit(
        1,
        command::write_zeroes(NSID, 8, 3, true),
        Transfer::None,
        Vec::new(),
        0,
    );
    assert_eq!(world.finish().0, Status::SUCCESS);
    world.check_read(8, &[vec![0; 2048], data[2048..].to_vec()].concat());
    let range = DsmRange {
        attributes: 0,
        blocks: 8,
        slba: 8,
    }
    .encode()
    .to_vec();
    world.submit(
        1,
        command::deallocate(NSID, 0),
        Transfer::FromHost { len: 16 },
        range,
        0,
    );
    assert_eq!(world.finish().0, Status::SUCCESS);
    world.check_read(8, &[0; 4096]);

    world.read(1, BLOCKS - 1, 2, 0);
    assert!(world.finish().0.same_code(Status::LBA_OUT_OF_RANGE));
    world.submit(
        0,
        Sqe::new(admin::KEEP_ALIVE),
        Transfer::None,
        Vec::new(),
        0,
    );
    assert_eq!(world.finish().0, Status::SUCCESS);
}

#[test]
fn every_operation_works_with_every_digest_setting_and_split() {
    for digests in DIGESTS_ALL {
        for chunk in [1, 3, 1000, usize::MAX] {
            let mut world = World::connected(
                ControllerConfig {
                    digests,
                    ..config()
                },
                chunk,
            );
            every_operation(&mut world);
        }
    }
}

#[test]
fn flow_control_works_too() {
    let mut world = World::connected(
        ControllerConfig {
            sq_flow_control: true,
            ..config()
        },
        usize::MAX,
    );
    every_operation(&mut world);
}

#[test]
fn full_queue_of_commands_completes() {
    let mut world = World::connected(config(), 777);
    let depth = world.host.depth_max(1);
    assert_eq!(depth, 127);
    for token in 0..depth as u64 {
        world.write(1, token * 8, &pattern(4096), token);
        world.read(2, token * 8, 16, token);
    }
    world.settle();
    assert_eq!(world.done.len(), depth * 2);
    assert!(
        world
            .done
            .iter()
            .all(|(completion, _)| completion.status.is_success())
    );
}

#[test]
fn idle_association_lives_on_keep_alives() {
    let mut world = World::connected(config(), usize::MAX);
    world.run_for(Nanos::from_secs(600));
    assert_eq!(world.events, []);
    assert_eq!(world.host.state(), HostState::Ready);
}

#[test]
fn namespace_changes_are_seen_live() {
    let mut world = World::connected(config(), 100);
    let subnqn = identity().subnqn;
    let subnqn = subnqn.as_str();
    let seen = |world: &mut World| {
        world.settle();
        assert_eq!(
            std::mem::take(&mut world.events),
            [HostEvent::NamespacesChanged]
        );
        let each = world.host.namespaces().iter();
        each.map(|namespace| (namespace.nsid.0, namespace.blocks))
            .collect::<Vec<_>>()
    };
    world
        .target
        .add_namespace(world.now, subnqn, namespace(2, 10))
        .expect("room");
    assert_eq!(seen(&mut world), [(1, BLOCKS), (2, 10)]);
    let grown = geometry(20);
    world
        .target
        .update_namespace(world.now, subnqn, 2, grown)
        .expect("larger");
    assert_eq!(seen(&mut world), [(1, BLOCKS), (2, 20)]);
    world
        .target
        .remove_namespace(world.now, subnqn, 2)
        .expect("there");
    assert_eq!(seen(&mut world), [(1, BLOCKS)]);
}

#[test]
fn orderly_disconnect_leaves_nothing_behind() {
    let mut world = World::connected(config(), usize::MAX);
    world.host.disconnect(world.now);
    world.run_for(Nanos::from_secs(1));
    assert_eq!(
        world.events,
        [HostEvent::Stopped {
            reason: CloseReason::Requested
        }]
    );
    assert!(world.links.is_empty());
    world.events.clear();
    world.host.connect(world.now);
    world.run_until_ready();
    every_operation(&mut world);
}

/// A host that was not allowed yet, as around a restart of the target, was told to give up. It
/// stopped for ever, although it would have been allowed a moment later.
#[test]
fn host_that_is_not_allowed_tries_again_and_gets_in_once_it_is() {
    let mut world = World::new(config(), usize::MAX);
    let subnqn = identity().subnqn;
    let set = |world: &mut World, hosts| {
        let set = world.target.set_hosts(world.now, subnqn.as_str(), hosts);
        set.expect("there");
    };
    set(&mut world, target::Hosts::Only(Vec::new()));
    world.host.connect(world.now);
    world.settle();
    let [
        HostEvent::Disconnected {
            reason: CloseReason::ConnectRejected { status, .. },
            ..
        },
    ] = world.events.as_slice()
    else {
        panic!("{:?}", world.events);
    };
    assert_eq!(*status, Status::CONNECT_INVALID_HOST);
    set(&mut world, target::Hosts::Any);
    world.events.clear();
    world.run_until_ready();
}

#[test]
fn discovery_log_is_read() {
    let discovery = Nqn::new(nqn::DISCOVERY).expect("valid");
    let mut world = World::new(
        ControllerConfig {
            subnqn: discovery,
            io_queues: 0,
            ..config()
        },
        usize::MAX,
    );
    let record = |port: u16| target::DiscoveryRecord {
        subnqn: identity().subnqn.as_str().to_owned(),
        kind: target::DiscoveryKind::Nvm,
        address: SocketAddr::from(([192, 0, 2, 1], port)),
        port_id: port,
        hosts: target::Hosts::Any,
    };
    let table = target::DiscoveryTable::new((1..=5).map(record).collect());
    world.target.set_discovery(world.now, Arc::new(table));
    world.host.connect(world.now);
    world.run_until_ready();
    assert!(world.host.facts().expect("known").is_discovery);
    let mut reader = DiscoveryReader::new(2048, 100);
    while let Some((sqe, len)) = reader.command() {
        world.submit(0, sqe, Transfer::ToHost { len }, vec![0; len as usize], 0);
        let (status, data) = world.finish();
        reader.handle(status, &data).expect("readable");
    }
    let entries = reader.into_entries();
    let named = entries
        .iter()
        .filter(|entry| Nqn::decode(&entry.subnqn).is_ok_and(|name| name == identity().subnqn));
    assert_eq!(named.count(), 5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever byte a connection dies at: every command ends once, the association comes back,
    /// what was acknowledged is there, and what was lost is there wholly or not at all.
    #[test]
    fn connection_lost_at_any_byte_loses_nothing_acknowledged(
        cuts in prop::collection::vec((1usize..60_000, 0u16..3), 1..4),
        digests in (any::<bool>(), any::<bool>()),
        chunk in prop_oneof![20usize..100, 100usize..5000],
    ) {
        let digests = Digests { header: digests.0, data: digests.1 };
        let mut world = World::connected(ControllerConfig { digests, ..config() }, chunk);
        // The values each of 8 ranges of 8 KiB may have: one, or more after lost writes.
        let mut possible = vec![vec![0u8]; 8];
        let mut value = 0u8;
        for (after, victim) in cuts {
            world.cut = Some((after, victim));
            for round in 0..6usize {
                if world.host.state() != HostState::Ready {
                    break;
                }
                for index in 0..8u8 {
                    let queue = 1 + u16::from(index % 2);
                    if (round + usize::from(index)).is_multiple_of(3) {
                        world.read(queue, u64::from(index) * 32, 16, u64::from(index));
                    } else {
                        value = value.wrapping_add(1);
                        let token = 1000 + u64::from(index) * 256 + u64::from(value);
                        world.write(queue, u64::from(index) * 32, &vec![value; 8 << 10], token);
                    }
                }
                world.settle();
                for (completion, data) in std::mem::take(&mut world.done) {
                    let lost = completion.path_lost;
                    prop_assert!(lost || completion.status.is_success(), "{completion:?}");
                    if completion.token < 1000 {
                        let known = &possible[usize::try_from(completion.token).expect("small")];
                        let same = data.iter().all(|byte| *byte == data[0]);
                        prop_assert!(lost || (same && known.contains(&data[0])));
                        continue;
                    }
                    let index = usize::try_from((completion.token - 1000) / 256).expect("small");
                    let wrote = data[0];
                    if lost {
                        possible[index].push(wrote);
                    } else {
                        possible[index] = vec![wrote];
                    }
                }
            }
            world.cut = None;
            world.run_until_ready();
            prop_assert!(world.host_buffers.is_empty(), "a command was forgotten");
        }
        for (index, known) in possible.iter().enumerate() {
            world.read(1, index as u64 * 32, 16, 0);
            let (status, data) = world.finish();
            prop_assert_eq!(status, Status::SUCCESS);
            prop_assert!(data.iter().all(|byte| *byte == data[0]), "torn write");
            prop_assert!(known.contains(&data[0]));
        }
    }
}

#[test]
fn any_of_many_queues_completes_and_is_watched() {
    const QUEUES: u16 = 16;
    let config = ControllerConfig {
        io_queues: QUEUES,
        keep_alive: Nanos::ZERO,
        io_timeout: Some(Nanos::from_secs(8)),
        ..config()
    };
    let mut world = World::connected(config, usize::MAX);
    for queue in (1..=QUEUES).rev() {
        world.submit(queue, command::flush(NSID), Transfer::None, Vec::new(), 0);
        assert_eq!(world.finish().0, Status::SUCCESS, "queue {queue}");
    }
    // Sent and never answered.
    let command = Command {
        sqe: command::flush(NSID),
        transfer: Transfer::None,
        token: 9,
    };
    let sent_at = world.now;
    let taken = world.host.submit(sent_at, QUEUES, command);
    assert!(taken.is_ok() && world.host.poll_output(QUEUES).is_some());
    let mut lost = None;
    while lost.is_none() {
        let at = world.host.poll_timeout().expect("the command is watched");
        world.host.handle_timeout(at);
        world.now = at;
        let events = std::iter::from_fn(|| world.host.poll_event(at)).collect::<Vec<_>>();
        lost = events.iter().find_map(|event| match event {
            HostEvent::Disconnected { reason, .. } | HostEvent::Stopped { reason } => Some(*reason),
            _ => None,
        });
    }
    assert_eq!(lost, Some(CloseReason::CommandTimeout));
    let waited = world.now.saturating_sub(sent_at);
    assert!(
        (8..=10).contains(&(waited.as_millis() / 1000)),
        "{waited:?}"
    );
}
