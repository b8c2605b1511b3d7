//! What happens to the worlds.

use bowline_nvme::Nanos;
use bowline_nvme::pdu::Digests;
use bowline_nvmf::host::HostState;
use bowline_nvmf::target::{AnaState, Hosts};

use super::random::Random;
use super::world::{Loss, SUBNQN, Setting, World, geometry, hostnqn};

/// Seeds of each scenario when nothing else is asked for.
const SEEDS: u64 = 12;
const SECOND: Nanos = Nanos::from_secs(1);
/// After the last disturbance everything is well again within this time: the longest Keep Alive
/// expiry, device, and reconnect delay, several times over.
const RECOVERY: Nanos = Nanos::from_secs(400);

/// Runs a scenario for every seed; a failure tells which.
fn for_seeds(scenario: impl Fn(u64)) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok())
    };
    let seeds = match number("BOWLINE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("BOWLINE_SIM_SEEDS").unwrap_or(SEEDS) + 1,
    };
    for seed in seeds {
        // Libtest shows the last line if the run panics.
        println!("BOWLINE_SIM_SEED={seed}");
        scenario(seed);
    }
}

/// Lets the world recover, looks at every block, and takes it down.
fn recover_and_end(world: &mut World) {
    world.workload.calm = false;
    let until = world.now.after(RECOVERY);
    while world.now < until && !world.all_ready() {
        for host in &mut world.hosts {
            // Only those that were told to leave.
            host.host.connect(world.now);
        }
        world.run(world.now.after(SECOND));
    }
    assert!(
        world.all_ready(),
        "not everyone came back: {:?}",
        states(world)
    );
    world.workload.active = false;
    world.run(world.now.after(Nanos::from_secs(60)));
    assert_eq!(
        world.workload.outstanding(),
        0,
        "commands are never completed"
    );
    world.workload.active = true;
    world.run(world.now.after(SECOND));
    world.workload.active = false;
    for host in &mut world.hosts {
        host.host.disconnect(world.now);
    }
    world.run(world.now.after(RECOVERY));
    assert_eq!(
        world.workload.outstanding(),
        0,
        "commands are never completed"
    );
    world.check_empty();
}

fn states(world: &World) -> Vec<HostState> {
    world.hosts.iter().map(|host| host.host.state()).collect()
}

#[test]
fn undisturbed_hosts_see_no_error_and_keep_their_connections() {
    for_seeds(|seed| {
        let mut random = Random::new(seed);
        let setting = Setting::random(&mut random);
        let mut world = World::new(seed, setting);
        world.run(world.now.after(Nanos::from_secs(20)));
        assert!(world.all_ready(), "{:?}", states(&world));
        let counters = world.side.target.counters();
        assert_eq!((counters.keep_alive_expired, counters.timed_out), (0, 0));
        assert_eq!(
            (counters.terminated_by_us, counters.terminated_by_host),
            (0, 0)
        );
        assert!(
            world.workload.completed > 50,
            "{} commands",
            world.workload.completed
        );
        recover_and_end(&mut world);
        let counters = world.side.target.counters();
        assert_eq!(counters.keep_alive_expired, 0, "an idle host was given up");
    });
}

#[test]
fn disturbed_hosts_lose_nothing_that_was_acknowledged() {
    for_seeds(|seed| {
        let mut random = Random::new(seed ^ 0xD15);
        let mut setting = Setting::random(&mut random);
        setting.failures = random.one_in(2).then(|| 5 + random.below(20));
        let mut world = World::new(seed, setting);
        world.workload.calm = false;
        for _ in 0..12 {
            world.run(world.now.after(random.span(SECOND)));
            disturb(&mut world, &mut random);
        }
        if world.down {
            world.run(world.now.after(Nanos::from_secs(60)));
            world.restart();
        }
        let target = &mut world.side.target;
        target
            .set_hosts(world.now, SUBNQN, Hosts::Any)
            .expect("there");
        for group in 1..=2 {
            let set = target.set_ana_state(world.now, SUBNQN, group, AnaState::Optimized);
            set.expect("there");
        }
        world.side.pump(world.now);
        world.setting.failures = None;
        for link in &mut world.links {
            link.cut = None;
        }
        world.next_cut = None;
        recover_and_end(&mut world);
        let counters = world.side.target.counters();
        assert_eq!(counters.terminated_by_us, 0, "our host broke the protocol");
        assert_eq!(
            counters.terminated_by_host, 0,
            "our target broke the protocol"
        );
    });
}

fn disturb(world: &mut World, random: &mut Random) {
    let now = world.now;
    let loss = if random.one_in(4) {
        Loss::Silence
    } else {
        Loss::Reset
    };
    match random.below(15) {
        0..3 => {
            if let Some(link) = pick(random, &mut world.links) {
                link.cut = Some((random.below(20_000), loss));
            }
        }
        3 => {
            if let Some(link) = pick(random, &mut world.links) {
                link.lose(now, loss, random);
            }
        }
        4 => {
            let queue = u16::try_from(random.below(3)).expect("small");
            world.next_cut = Some((queue, random.below(6000), loss));
        }
        5..9 | 11 if !world.down => operate(world, random),
        9 if !world.down => {
            world.side.target.stop(now);
            world.side.pump(now);
            world.down = true;
        }
        9 | 10 if world.down => {
            world.run(now.after(Nanos::from_secs(60)));
            world.restart();
        }
        10 => {
            let host = random.index(world.hosts.len());
            world.hosts[host].host.disconnect(now);
            world.run(now.after(random.span(Nanos::from_secs(10))));
            world.hosts[host].host.connect(world.now);
        }
        12 => {
            let host = random.index(world.hosts.len());
            let side = &mut world.hosts[host];
            world.workload.reset(now, host, side, random);
        }
        13 | 14 if !world.down => world.lose_power(),
        _ => {}
    }
    world.side.pump(world.now);
}

/// The operator changes something.
fn operate(world: &mut World, random: &mut Random) {
    let now = world.now;
    match random.below(5) {
        0 => world.add_namespace(),
        1 if world.workload.devices.len() > 1 => {
            let devices: Vec<u32> = world.workload.devices.keys().copied().collect();
            let device = devices[random.index(devices.len())];
            world.workload.devices.remove(&device);
            let removed = world.side.target.remove_namespace(now, SUBNQN, device);
            removed.expect("there");
        }
        2 => {
            let Some((&device, blocks)) = world.workload.devices.iter_mut().next() else {
                return;
            };
            *blocks += 16;
            let grown = geometry(*blocks);
            world.disks.add(device, *blocks);
            let updated = world
                .side
                .target
                .update_namespace(now, SUBNQN, device, grown);
            updated.expect("larger");
        }
        3 => {
            let allowed = (0..3).filter(|_| random.one_in(2)).map(hostnqn).collect();
            let set = world
                .side
                .target
                .set_hosts(now, SUBNQN, Hosts::Only(allowed));
            set.expect("valid");
        }
        4 => {
            let states = [
                AnaState::Optimized,
                AnaState::NonOptimized,
                AnaState::Inaccessible,
            ];
            let (group, state) = (1 + u32::from(random.one_in(2)), states[random.index(3)]);
            let set = world.side.target.set_ana_state(now, SUBNQN, group, state);
            set.expect("there");
        }
        _ => {}
    }
}

fn pick<'a, T>(random: &mut Random, list: &'a mut [T]) -> Option<&'a mut T> {
    let index = random.index(list.len());
    list.get_mut(index)
}

/// A small world in which only the lost connection is left to chance.
fn small(digests: Digests) -> Setting {
    Setting {
        hosts: 1,
        io_queues: 2,
        digests,
        flow_control: false,
        icd_bytes: 4096,
        chunk: 100_000,
        part_bytes: None,
        window: usize::MAX,
        withheld: false,
        depth: 4,
        failures: None,
        at_once: false,
    }
}

/// Bring-up and a second of work, with one queue's first connection lost after so many bytes.
fn lose_after(queue: u16, bytes: u64, loss: Loss) -> World {
    let mut world = World::new(
        bytes,
        small(Digests {
            header: true,
            data: true,
        }),
    );
    world.workload.calm = false;
    world.next_cut = Some((queue, bytes, loss));
    world.run(world.now.after(SECOND));
    world
}

#[test]
fn connection_lost_at_every_byte_is_recovered_from() {
    let every = std::env::var("BOWLINE_SIM_SEEDS").is_ok();
    for queue in 0..=2 {
        let whole = lose_after(queue, u64::MAX, Loss::Reset);
        let link = whole
            .links
            .iter()
            .find(|link| link.queue == queue)
            .expect("open");
        let step = if every { 1 } else { 1021 };
        let mut bytes = 0;
        while bytes <= link.carried.min(30_000) {
            println!("queue {queue} lost after {bytes} bytes");
            recover_and_end(&mut lose_after(queue, bytes, Loss::Reset));
            // The first PDUs decide most: byte by byte through their headers.
            bytes += if bytes < 64 { 8 } else { step };
        }
    }
}
