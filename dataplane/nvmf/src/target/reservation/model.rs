//! Random commands of several hosts against a model that was written from the rules alone: one
//! list of who has which key and one flag per host for holding, no shared code.

use std::collections::BTreeMap;

use bowline_nvme::reservation::{Acquire, Register, Release, ReservationType};
use proptest::prelude::*;

use super::change::{News, Request};
use super::{Access, HostId, ReservationState};

const HOSTS: u8 = 4;
const KEYS: u64 = 3;

#[derive(Clone, Debug, Default)]
struct Model {
    keys: BTreeMap<u8, u64>,
    /// RTYPE, and the one holder of types 1 to 4.
    held: Option<(u8, Option<u8>)>,
    generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    Conflict,
    Invalid,
}

impl Model {
    fn holds(&self, host: u8) -> bool {
        match self.held {
            None => false,
            Some((rtype, _)) if rtype >= 5 => self.keys.contains_key(&host),
            Some((_, holder)) => holder == Some(host),
        }
    }

    fn forget(&mut self, hosts: &[u8]) {
        for host in hosts {
            self.keys.remove(host);
            if self.held.is_some_and(|(_, holder)| holder == Some(*host)) {
                self.held = None;
            }
        }
        if self.keys.is_empty() {
            self.held = None;
        }
    }

    fn take(&mut self, host: u8, rtype: u8) {
        self.held = Some((rtype, (rtype < 5).then_some(host)));
    }

    fn register(&mut self, host: u8, it: &Register) -> Verdict {
        let mine = self.keys.get(&host).copied();
        let knows = it.ignore_key || mine == Some(it.current_key);
        match it.action {
            0 | 2
                if it.new_key == 0 && (it.action == 0 || mine.map_or(it.ignore_key, |_| knows)) =>
            {
                return Verdict::Invalid;
            }
            0 if mine.is_some_and(|mine| mine != it.new_key) => return Verdict::Conflict,
            1 if mine.is_none() || !knows => return Verdict::Conflict,
            2 if mine.is_none() && !it.ignore_key => return Verdict::Conflict,
            2 if mine.is_some() && !knows => return Verdict::Conflict,
            0 | 2 => {
                self.keys.insert(host, it.new_key);
            }
            _ => self.forget(&[host]),
        }
        self.generation += 1;
        Verdict::Done
    }

    fn acquire(&mut self, host: u8, it: &Acquire) -> Verdict {
        if it.ignore_key || !(1..=6).contains(&it.rtype) {
            return Verdict::Invalid;
        }
        if self.keys.get(&host) != Some(&it.current_key) {
            return Verdict::Conflict;
        }
        if it.action == 0 {
            return match self.held {
                None => {
                    self.take(host, it.rtype);
                    Verdict::Done
                }
                Some((rtype, _)) if rtype == it.rtype && self.holds(host) => Verdict::Done,
                Some(_) => Verdict::Conflict,
            };
        }
        let named = |wanted: u64| -> Vec<u8> {
            let with = self.keys.iter().filter(|&(_, &key)| key == wanted);
            with.map(|(&host, _)| host).collect()
        };
        let others = |hosts: Vec<u8>| {
            hosts
                .into_iter()
                .filter(|&it| it != host)
                .collect::<Vec<u8>>()
        };
        match self.held {
            Some((rtype, _)) if rtype >= 5 && it.preempt_key == 0 => {
                let everybody = self.keys.keys().copied().collect();
                self.forget(&others(everybody));
                self.take(host, it.rtype);
            }
            Some((rtype, Some(holder))) if rtype < 5 && self.keys[&holder] == it.preempt_key => {
                let gone = others(named(it.preempt_key));
                self.forget(&gone);
                self.take(host, it.rtype);
            }
            Some((rtype, _)) if rtype < 5 && it.preempt_key == 0 => return Verdict::Invalid,
            _ => {
                let gone = named(it.preempt_key);
                if gone.is_empty() {
                    return Verdict::Conflict;
                }
                self.forget(&gone);
            }
        }
        self.generation += 1;
        Verdict::Done
    }

    fn release(&mut self, host: u8, it: &Release) -> Verdict {
        if it.ignore_key {
            return Verdict::Invalid;
        }
        if self.keys.get(&host) != Some(&it.current_key) {
            return Verdict::Conflict;
        }
        if it.action == 1 {
            self.keys.clear();
            self.held = None;
            self.generation += 1;
        } else if self.holds(host) {
            if self.held.is_some_and(|(rtype, _)| rtype != it.rtype) {
                return Verdict::Invalid;
            }
            self.held = None;
        }
        Verdict::Done
    }

    fn may_write(&self, host: u8) -> bool {
        match self.held {
            None => true,
            Some((1 | 2, holder)) => holder == Some(host),
            Some(_) => self.keys.contains_key(&host),
        }
    }

    fn may_read(&self, host: u8) -> bool {
        self.may_write(host) || self.held.is_some_and(|(rtype, _)| rtype % 2 == 1)
    }
}

fn request() -> impl Strategy<Value = Request> {
    let key = || 0..=KEYS;
    // Mostly valid, so that the sequences lead somewhere.
    let ignore = || prop::bool::weighted(0.1);
    let rtype = || prop_oneof![20 => 1..=6_u8, 1 => Just(0_u8), 1 => Just(7_u8)];
    prop_oneof![
        3 => (0..=2_u8, ignore(), key(), key()).prop_map(|(action, ignore_key, current_key, new_key)| {
            Request::Register(Register { action, ignore_key, change_persistence: 0, current_key, new_key })
        }),
        3 => (0..=2_u8, ignore(), rtype(), key(), key()).prop_map(
            |(action, ignore_key, rtype, current_key, preempt_key)| {
                Request::Acquire(Acquire { action, ignore_key, rtype, current_key, preempt_key })
            }
        ),
        1 => (0..=1_u8, ignore(), rtype(), key()).prop_map(|(action, ignore_key, rtype, current_key)| {
            Request::Release(Release { action, ignore_key, rtype, current_key })
        }),
    ]
}

fn id(host: u8) -> HostId {
    [host + 1; 16]
}

fn same(state: &ReservationState, model: &Model) {
    let keys: BTreeMap<u8, u64> = state
        .registrants
        .iter()
        .map(|it| (it.hostid[0] - 1, it.key))
        .collect();
    assert_eq!(keys, model.keys);
    assert_eq!(state.generation, model.generation);
    let rtype = state.reservation.map(|held| held.rtype);
    let expected = model
        .held
        .and_then(|(rtype, _)| ReservationType::from_wire(rtype));
    assert_eq!(rtype, expected);
    for host in 0..HOSTS {
        assert_eq!(state.is_holder(&id(host)), model.holds(host), "host {host}");
        let found = [Access::Read, Access::Write].map(|access| state.allows(&id(host), access));
        assert_eq!(
            found,
            [model.may_read(host), model.may_write(host)],
            "host {host}"
        );
    }
}

/// What holds whatever the model says.
fn check(before: &ReservationState, host: u8, request: &Request) -> Option<ReservationState> {
    let change = before.change(&id(host), request, false).ok()?;
    let after = &change.next;
    assert!(after.is_consistent(), "{after:?}");
    assert!(
        ReservationState::decode(
            &ReservationState {
                persistent: true,
                ..after.clone()
            }
            .encode()
        )
        .is_ok()
    );
    let holders = (0..HOSTS).filter(|&host| after.is_holder(&id(host)));
    if after
        .reservation
        .is_some_and(|held| !held.rtype.is_all_registrants())
    {
        assert_eq!(holders.count(), 1);
    }
    for (told, news) in &change.news {
        assert_ne!(*told, id(host), "nobody is told of its own doing");
        let stays = after.registrant(told).is_some();
        assert_eq!(stays, *news == News::ReservationReleased, "{change:?}");
        assert!(before.registrant(told).is_some());
    }
    let mut told: Vec<HostId> = change.news.iter().map(|&(host, _)| host).collect();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), change.news.len(), "at most once each");
    Some(change.next)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_of_several_hosts_agree_with_the_model(
        commands in prop::collection::vec((0..HOSTS, request()), 1..60)
    ) {
        let (mut state, mut model) = (ReservationState::default(), Model::default());
        for (host, request) in commands {
            let verdict = match &request {
                Request::Register(it) => model.register(host, it),
                Request::Acquire(it) => model.acquire(host, it),
                Request::Release(it) => model.release(host, it),
                Request::Persist(_) => Verdict::Done,
            };
            match check(&state, host, &request) {
                Some(next) => {
                    prop_assert_eq!(verdict, Verdict::Done, "{:?} of {}", request, host);
                    state = next;
                }
                None => {
                    let status = state.change(&id(host), &request, false).expect_err("refused");
                    let expected = if status.sc() == 0x83 { Verdict::Conflict } else { Verdict::Invalid };
                    prop_assert_eq!(verdict, expected, "{:?} of {}", request, host);
                }
            }
            same(&state, &model);
        }
    }
}
