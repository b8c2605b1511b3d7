//! Who may read and write a device: reservations in a model of its own, which leaves open what
//! nobody can know.
//!
//! At most one command about a device's reservations is under way, so what may be in force at a
//! time is what was in force before it, and what it makes of that.

use std::collections::BTreeMap;

use bowline_nvme::reservation::{Acquire, Register, Release, ReservationType};
use bowline_nvme::{NamespaceId, Sqe, Status};

use super::model::Tick;
use super::random::Random;

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    /// Keys of the hosts that have registered.
    keys: BTreeMap<usize, u64>,
    /// The type, and whoever acquired it.
    held: Option<(ReservationType, usize)>,
    persistent: bool,
}

/// A state that may have been in force.
#[derive(Debug)]
struct Possible {
    state: State,
    /// When it was known to be over.
    until: Option<Tick>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Register {
        persist: Option<bool>,
    },
    Unregister,
    Acquire(ReservationType),
    /// Takes away the registration of another host.
    Preempt {
        other: usize,
        rtype: ReservationType,
        abort: bool,
    },
    Release(ReservationType),
    Clear,
}

#[derive(Debug)]
struct Asked {
    token: u64,
    host: usize,
    ask: Ask,
    before: Vec<State>,
}

#[derive(Debug)]
struct Device {
    possible: Vec<Possible>,
    asked: Option<Asked>,
}

/// What a command needs a right to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

#[derive(Default)]
pub(crate) struct Rights {
    devices: BTreeMap<u32, Device>,
}

fn key(host: usize) -> u64 {
    0xB0 + u64::try_from(host).expect("few")
}

impl Ask {
    pub(crate) fn random(random: &mut Random, host: usize, hosts: usize) -> Self {
        let rtype = ReservationType::ALL[random.index(6)];
        match random.below(12) {
            0..4 => Self::Register {
                persist: random.one_in(2).then(|| random.one_in(2)),
            },
            4 => Self::Unregister,
            5 | 6 => Self::Acquire(rtype),
            7 | 8 if hosts > 1 => Self::Preempt {
                other: (host + 1 + random.index(hosts - 1)) % hosts,
                rtype,
                abort: random.one_in(2),
            },
            7..11 => Self::Release(rtype),
            _ => Self::Clear,
        }
    }

    /// The command, and its data.
    pub(crate) fn command(self, device: u32, host: usize) -> (Sqe, Vec<u8>) {
        let current_key = key(host);
        let (sqe, data) = match self {
            Self::Register { persist } => {
                let register = Register {
                    change_persistence: match persist {
                        None => Register::PERSISTENCE_KEEP,
                        Some(false) => Register::PERSISTENCE_CLEAR,
                        Some(true) => Register::PERSISTENCE_SET,
                    },
                    new_key: current_key,
                    ..Register::default()
                };
                (register.encode(), register.data().to_vec())
            }
            Self::Unregister => {
                let register = Register {
                    action: Register::UNREGISTER,
                    current_key,
                    ..Register::default()
                };
                (register.encode(), register.data().to_vec())
            }
            Self::Acquire(rtype) => acquire(Acquire {
                rtype: rtype.wire(),
                current_key,
                ..Acquire::default()
            }),
            Self::Preempt {
                other,
                rtype,
                abort,
            } => acquire(Acquire {
                action: if abort {
                    Acquire::PREEMPT_AND_ABORT
                } else {
                    Acquire::PREEMPT
                },
                rtype: rtype.wire(),
                current_key,
                preempt_key: key(other),
                ..Acquire::default()
            }),
            Self::Release(rtype) => release(Release {
                rtype: rtype.wire(),
                current_key,
                ..Release::default()
            }),
            Self::Clear => release(Release {
                action: Release::CLEAR,
                current_key,
                ..Release::default()
            }),
        };
        (sqe.with_nsid(NamespaceId(device)), data)
    }
}

fn acquire(acquire: Acquire) -> (Sqe, Vec<u8>) {
    (acquire.encode(), acquire.data().to_vec())
}

fn release(release: Release) -> (Sqe, Vec<u8>) {
    (release.encode(), release.data().to_vec())
}

impl State {
    fn holds(&self, host: usize) -> bool {
        self.held.is_some_and(|(rtype, by)| {
            by == host || rtype.is_all_registrants() && self.keys.contains_key(&host)
        })
    }

    fn allows(&self, host: usize, access: Access) -> bool {
        let Some((rtype, by)) = self.held else {
            return true;
        };
        let inside = match rtype {
            ReservationType::WriteExclusive | ReservationType::ExclusiveAccess => by == host,
            _ => self.keys.contains_key(&host),
        };
        let readable = matches!(
            rtype,
            ReservationType::WriteExclusive
                | ReservationType::WriteExclusiveRegistrantsOnly
                | ReservationType::WriteExclusiveAllRegistrants
        );
        inside || (readable && access == Access::Read)
    }

    /// Without these hosts, and without what they held.
    fn without(mut self, gone: impl Fn(usize) -> bool) -> Self {
        self.keys.retain(|host, _| !gone(*host));
        self.held = self.held.filter(|(rtype, by)| {
            if rtype.is_all_registrants() {
                !self.keys.is_empty()
            } else {
                self.keys.contains_key(by)
            }
        });
        self
    }

    /// What a host's command makes of this.
    fn after(&self, host: usize, ask: Ask) -> Result<Self, Status> {
        let mut next = self.clone();
        let registered = self.keys.contains_key(&host);
        match ask {
            Ask::Register { persist } => {
                next.keys.insert(host, key(host));
                next.persistent = persist.unwrap_or(self.persistent);
            }
            _ if !registered => return Err(Status::RESERVATION_CONFLICT),
            Ask::Unregister => return Ok(next.without(|it| it == host)),
            Ask::Clear => return Ok(next.without(|_| true)),
            Ask::Acquire(rtype) => match self.held {
                Some((held, _)) if held == rtype && self.holds(host) => {}
                Some(_) => return Err(Status::RESERVATION_CONFLICT),
                None => next.held = Some((rtype, host)),
            },
            Ask::Release(rtype) => match self.held.filter(|_| self.holds(host)) {
                Some((held, _)) if held != rtype => return Err(Status::INVALID_FIELD),
                Some(_) => next.held = None,
                None => {}
            },
            Ask::Preempt { other, rtype, .. } => {
                if !self.keys.contains_key(&other) {
                    return Err(Status::RESERVATION_CONFLICT);
                }
                let takes = self
                    .held
                    .is_some_and(|(held, by)| by == other && !held.is_all_registrants());
                next = next.without(|it| it == other);
                if takes {
                    next.held = Some((rtype, host));
                }
            }
        }
        Ok(next)
    }
}

impl Device {
    fn new() -> Self {
        Self {
            possible: vec![Possible {
                state: State::default(),
                until: None,
            }],
            asked: None,
        }
    }

    fn now(&self) -> Vec<State> {
        let open = self.possible.iter().filter(|it| it.until.is_none());
        open.map(|it| it.state.clone()).collect()
    }

    /// From now on it is one of these.
    fn become_one_of(&mut self, states: Vec<State>, tick: Tick) {
        assert!(!states.is_empty(), "no state explains the answer");
        for it in self.possible.iter_mut().filter(|it| it.until.is_none()) {
            it.until = Some(tick);
        }
        self.also(states);
    }

    fn also(&mut self, states: Vec<State>) {
        for state in states {
            if !self.now().contains(&state) {
                self.possible.push(Possible { state, until: None });
            }
        }
    }
}

impl Asked {
    fn outcomes(&self) -> impl Iterator<Item = (&State, Result<State, Status>)> {
        let after = |state: &State| state.after(self.host, self.ask);
        self.before.iter().map(move |it| (it, after(it)))
    }
}

impl Rights {
    fn device(&mut self, device: u32) -> &mut Device {
        self.devices.entry(device).or_insert_with(Device::new)
    }

    /// Whether a command about the device's reservations is under way.
    pub(crate) fn is_busy(&mut self, device: u32) -> bool {
        self.device(device).asked.is_some()
    }

    pub(crate) fn begin(&mut self, device: u32, host: usize, token: u64, ask: Ask) {
        let device = self.device(device);
        let before = device.now();
        let asked = Asked {
            token,
            host,
            ask,
            before,
        };
        let next = asked.outcomes().filter_map(|(_, after)| after.ok());
        device.also(next.collect());
        device.asked = Some(asked);
    }

    /// The command was answered.
    pub(crate) fn answered(&mut self, device: u32, token: u64, status: Status, tick: Tick) {
        let device = self.device(device);
        let Some(asked) = device.asked.take_if(|asked| asked.token == token) else {
            return;
        };
        let conclusive = status.same_code(Status::RESERVATION_CONFLICT)
            || status.same_code(Status::INVALID_FIELD);
        let agrees = |(before, after): (&State, Result<State, Status>)| match after {
            Ok(next) => status.is_success().then_some(next),
            Err(error) => (!status.is_success() && (!conclusive || status.same_code(error)))
                .then(|| before.clone()),
        };
        // Ended for a reason that has nothing to do with what it asked.
        let states = if status.is_success() || conclusive {
            asked.outcomes().filter_map(agrees).collect()
        } else {
            asked.before.clone()
        };
        device.become_one_of(states, tick);
    }

    /// Nothing of the command can happen any more, and nobody knows what did.
    pub(crate) fn over(&mut self, device: u32, token: u64) {
        let device = self.device(device);
        // What may be in force is what may have been since it was asked.
        drop(device.asked.take_if(|asked| asked.token == token));
    }

    /// The target has begun anew: what does not persist is forgotten.
    pub(crate) fn restarted(&mut self, tick: Tick) {
        for device in self.devices.values_mut() {
            device.asked = None;
            let states = device.now().into_iter();
            let kept = states.map(|it| if it.persistent { it } else { State::default() });
            device.become_one_of(kept.collect(), tick);
        }
    }

    /// Whether the host may have had this right, and whether it may not have had it, at some time
    /// from this tick on.
    pub(crate) fn had(
        &mut self,
        device: u32,
        host: usize,
        access: Access,
        from: Tick,
    ) -> (bool, bool) {
        let then = |it: &&Possible| it.until.is_none_or(|until| until >= from);
        let mut had = (false, false);
        for it in self.device(device).possible.iter().filter(then) {
            let allows = it.state.allows(host, access);
            had = (had.0 || allows, had.1 || !allows);
        }
        had
    }
}
