use super::*;

fn only(hosts: &[&str]) -> Hosts {
    Hosts::Only(hosts.iter().map(|&host| host.to_owned()).collect())
}

fn record(subnqn: &str, address: &str, hosts: Hosts) -> DiscoveryRecord {
    DiscoveryRecord {
        kind: DiscoveryKind::Nvm,
        subnqn: subnqn.to_owned(),
        address: address.parse().expect("an address"),
        port_id: 1,
        hosts,
    }
}

fn any(subnqn: &str) -> DiscoveryRecord {
    record(subnqn, "192.0.2.1:4420", Hosts::Any)
}

fn of(subnqn: &str, hosts: &[&str]) -> DiscoveryRecord {
    record(subnqn, "192.0.2.1:4420", only(hosts))
}

fn seen<'a>(table: &'a DiscoveryTable, host: &str, local: IpAddr) -> Vec<Content<'a>> {
    let seen = table.seen_by(host, local);
    let all: Vec<_> = seen.from(0).map(content).collect();
    assert_eq!(all.len(), seen.count());
    for first in 0..=all.len() + 1 {
        let rest: Vec<_> = seen.from(first).map(content).collect();
        assert_eq!(rest, all.get(first..).unwrap_or_default());
    }
    all
}

/// Small deterministic random numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).expect("31 bits") % sides
    }
}

#[test]
fn generation_moves_exactly_when_what_a_host_sees_does() {
    let hosts = ["a", "b", "c", "stranger"];
    let addresses = ["192.0.2.1:4420", "0.0.0.0:4420", "[::]:4420"];
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let mut table = DiscoveryTable::default();
        for _ in 0..60 {
            let mut entries = Vec::new();
            for name in (0..4).filter(|_| dice.roll(2) == 0).collect::<Vec<_>>() {
                let allowed: Vec<&str> = hosts[..3]
                    .iter()
                    .copied()
                    .filter(|_| dice.roll(2) == 0)
                    .collect();
                let to = if dice.roll(3) == 0 {
                    Hosts::Any
                } else {
                    only(&allowed)
                };
                for address in addresses.iter().filter(|_| dice.roll(2) == 0) {
                    entries.push(record(&format!("s{name}"), address, to.clone()));
                }
            }
            if dice.roll(8) == 0 {
                entries.reverse();
            }
            let next = table.next(entries);
            for (host, local) in hosts.into_iter().flat_map(|host| [(host, V4), (host, V6)]) {
                let same = seen(&table, host, local) == seen(&next, host, local);
                let (old, new) = (table.generation(host, local), next.generation(host, local));
                assert_eq!(same, old == new, "{host} {local} {seed}");
                assert!(same || new == next.version());
            }
            table = next;
        }
    }
}

#[test]
fn wildcard_is_told_once_and_to_those_it_can_serve() {
    let table = DiscoveryTable::new(vec![
        record("s", "0.0.0.0:4420", Hosts::Any),
        record("s", "[::]:4420", Hosts::Any),
        record("s", "[::]:4421", Hosts::Any),
        record("s", "192.0.2.1:4422", Hosts::Any),
    ]);
    let ports = |local| {
        let all = table.seen_by("h", local);
        let ports: Vec<u16> = all.from(0).map(|it| it.address.port()).collect();
        (
            ports,
            all.from(0).filter(|it| it.address.ip() == V6).count(),
        )
    };
    assert_eq!(ports(V4), (vec![4420, 4421, 4422], 1));
    assert_eq!(ports(V6), (vec![4420, 4421, 4422], 2));
    assert_eq!(
        ports("::ffff:192.0.2.9".parse().expect("mapped")),
        ports(V4)
    );
}

#[test]
fn names_beyond_the_limit_are_forgotten_but_no_change_is_hidden() {
    let mut table = DiscoveryTable::new(vec![of("s", &["early"])]);
    let generation = table.generation("early", V4);
    let names: Vec<String> = (0..=NAMES_MAX).map(|at| format!("h{at}")).collect();
    let many = DiscoveryRecord {
        hosts: Hosts::Only(names),
        ..any("t")
    };
    table = table.next(vec![many]);
    assert!(!table.named.contains_key("early"));
    assert!(table.generation("early", V4) > generation);
    table = table.next(Vec::new());
    assert!(table.named.is_empty());
}

#[test]
fn entries_for_oneself_are_duplicates_unless_the_address_depends_on_the_asker() {
    let current = |address: &str| DiscoveryRecord {
        kind: DiscoveryKind::Current,
        ..record("discovery", address, Hosts::Any)
    };
    let is_duplicated = |entries: &[DiscoveryRecord]| {
        let table = DiscoveryTable::new(entries.to_vec());
        table.seen_by("h", V4).is_duplicated()
    };
    let two = [current("192.0.2.1:8009"), current("192.0.2.2:8009")];
    assert!(is_duplicated(&two));
    let wildcard = record("s", "0.0.0.0:4420", Hosts::Any);
    assert!(!is_duplicated(
        &[two.as_slice(), std::slice::from_ref(&wildcard)].concat()
    ));
    let hidden = record("s", "0.0.0.0:4420", only(&["other"]));
    assert!(is_duplicated(&[two.as_slice(), &[hidden]].concat()));
    // These both become the address by which the host came.
    let both = [current("0.0.0.0:8009"), current("[::]:4420"), wildcard];
    assert!(is_duplicated(&both));
}
