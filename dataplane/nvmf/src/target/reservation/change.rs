//! What a reservation command makes of the state. [BASE-2.0 §8.19]
//!
//! Nothing here has an effect: the new state may have to be durable before it is in force.
//!
//! Other targets differ in places; these follow the specification:
//! - Acquire and Release leave the generation alone, and Register raises it also when it changes
//!   nothing: that is how the field is defined, and SPDK and nvmet agree. [BASE-2.0 §7.5]
//! - Release with another type than that of the reservation is an invalid field (SPDK), not a
//!   conflict (nvmet). [BASE-2.0 §7.4]
//! - Preempting nobody with PRKEY 0, where one host holds the reservation, is an invalid field
//!   (nvmet), not a conflict (SPDK). [BASE-2.0 §8.19.7]
//! - A preemptor that names its own key without naming the holder's unregisters itself too; one
//!   that takes the reservation stays registered.

use bowline_nvme::Status;
use bowline_nvme::log::ReservationNotification;
use bowline_nvme::reservation::{Acquire, Register, Release, ReservationType};

use super::{HostId, REGISTRANTS_MAX, Registrant, Reservation, ReservationState};

/// What happened to another host. [BASE-2.0 §8.19.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    RegistrationPreempted,
    ReservationReleased,
    ReservationPreempted,
}

impl News {
    pub(super) const fn wire(self) -> u8 {
        match self {
            Self::RegistrationPreempted => ReservationNotification::REGISTRATION_PREEMPTED,
            Self::ReservationReleased => ReservationNotification::RESERVATION_RELEASED,
            Self::ReservationPreempted => ReservationNotification::RESERVATION_PREEMPTED,
        }
    }
}

/// What is asked of the reservations of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Register(Register),
    Acquire(Acquire),
    Release(Release),
    /// Set Features of Reservation Persistence.
    Persist(bool),
}

/// What a command comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) next: ReservationState,
    pub(super) news: Vec<(HostId, News)>,
    /// Hosts whose commands are to be aborted.
    pub(super) victims: Vec<HostId>,
}

impl Change {
    fn to(next: ReservationState) -> Self {
        Self {
            next,
            news: Vec::new(),
            victims: Vec::new(),
        }
    }
}

const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();
/// The specification has no code for want of room. A conflict would blame a reservation, and a
/// later try may find room, so there is no DNR.
const NO_ROOM: Status = Status::INTERNAL;

impl ReservationState {
    /// What a request of `host` comes to. `persists`: the state can outlive the process.
    pub(super) fn change(
        &self,
        host: &HostId,
        request: &Request,
        persists: bool,
    ) -> Result<Change, Status> {
        match request {
            Request::Register(register) => self.register(host, register, persists),
            Request::Acquire(acquire) => self.acquire(host, acquire),
            Request::Release(release) => self.release(host, release),
            Request::Persist(persistent) if persists => Ok(Change::to(Self {
                persistent: *persistent,
                ..self.clone()
            })),
            Request::Persist(_) => Err(INVALID),
        }
    }

    /// Reservation Register. [BASE-2.0 §7.3, §8.19.3, §8.19.4]
    fn register(
        &self,
        host: &HostId,
        register: &Register,
        persists: bool,
    ) -> Result<Change, Status> {
        let persistent = match register.change_persistence {
            Register::PERSISTENCE_KEEP => self.persistent,
            Register::PERSISTENCE_CLEAR => false,
            Register::PERSISTENCE_SET if persists => true,
            _ => return Err(INVALID),
        };
        let key = self.registrant(host).map(|registrant| registrant.key);
        let matches = register.ignore_key || key == Some(register.current_key);
        // A key of 0 names everybody where it is to be preempted, so nobody can have it.
        let new_key = (register.new_key != 0)
            .then_some(register.new_key)
            .ok_or(INVALID);
        let mut change = match (register.action, key) {
            (Register::REGISTER, Some(key)) => {
                if new_key? != key {
                    return Err(CONFLICT);
                }
                Change::to(self.clone())
            }
            (Register::REGISTER, None) => self.with_key(host, new_key?)?,
            (Register::UNREGISTER, Some(_)) if matches => self.without(host),
            (Register::REPLACE, Some(_)) if matches => self.with_key(host, new_key?)?,
            // Ignoring the key ignores whether there is one. [BASE-2.0 §8.19.3]
            (Register::REPLACE, None) if register.ignore_key => self.with_key(host, new_key?)?,
            (Register::UNREGISTER | Register::REPLACE, _) => return Err(CONFLICT),
            _ => return Err(INVALID),
        };
        change.next.persistent = persistent;
        change.next.count();
        Ok(change)
    }

    fn with_key(&self, host: &HostId, key: u64) -> Result<Change, Status> {
        let mut next = self.clone();
        match next.find(host) {
            Ok(at) => next.registrants[at].key = key,
            Err(_) if next.registrants.len() >= REGISTRANTS_MAX => return Err(NO_ROOM),
            Err(at) => next
                .registrants
                .insert(at, Registrant { hostid: *host, key }),
        }
        Ok(Change::to(next))
    }

    /// A host unregisters, and lets go of what it holds. [BASE-2.0 §8.19.4]
    fn without(&self, host: &HostId) -> Change {
        let mut change = Change::to(self.clone());
        change.next.registrants.retain(|it| it.hostid != *host);
        change.next.drop_holderless();
        if let (Some(held), None) = (self.reservation, change.next.reservation) {
            change.released(held.rtype, host);
        }
        change
    }

    /// Reservation Acquire. [BASE-2.0 §7.2, §8.19.5, §8.19.7]
    fn acquire(&self, host: &HostId, acquire: &Acquire) -> Result<Change, Status> {
        let rtype = ReservationType::from_wire(acquire.rtype).ok_or(INVALID)?;
        if acquire.ignore_key || acquire.action > Acquire::PREEMPT_AND_ABORT {
            return Err(INVALID);
        }
        self.check_key(host, acquire.current_key)?;
        if acquire.action != Acquire::ACQUIRE {
            let mut change = self.preempt(host, acquire.preempt_key, rtype)?;
            if acquire.action == Acquire::PREEMPT_AND_ABORT {
                let removed = |it: &Registrant| change.next.registrant(&it.hostid).is_none();
                let hosts = self.registrants.iter().filter(|it| removed(it));
                // A host does not preempt itself, even where it removes its own registration.
                change.victims = hosts.map(|it| it.hostid).filter(|it| it != host).collect();
            }
            return Ok(change);
        }
        match self.reservation {
            None => {
                let mut change = Change::to(self.clone());
                change.next.hold(host, rtype);
                Ok(change)
            }
            Some(held) if held.rtype == rtype && self.is_holder(host) => {
                Ok(Change::to(self.clone()))
            }
            Some(_) => Err(CONFLICT),
        }
    }

    fn preempt(&self, host: &HostId, key: u64, rtype: ReservationType) -> Result<Change, Status> {
        // Whom the key means, and whether the reservation changes hands.
        let holder_key = self.reservation.map(|held| {
            let holder = held.holder.and_then(|holder| self.registrant(&holder));
            holder.map_or(0, |holder| holder.key)
        });
        let takes = holder_key == Some(key);
        if key == 0 && !takes {
            // Nobody has the key 0; only where all hold the reservation does it mean them all.
            let held = self.reservation.is_some();
            return Err(if held { INVALID } else { CONFLICT });
        }
        let mut next = self.clone();
        next.registrants.retain(|it| {
            let named = key == 0 || it.key == key;
            !named || (takes && it.hostid == *host)
        });
        // A key that nobody has is an error unless there is something to take.
        if !takes && next.registrants.len() == self.registrants.len() {
            return Err(CONFLICT);
        }
        if takes {
            next.hold(host, rtype);
        }
        next.drop_holderless();
        next.count();
        let mut change = Change::to(next);
        for it in self.registrants.iter().filter(|it| it.hostid != *host) {
            if change.next.registrant(&it.hostid).is_none() {
                change.news.push((it.hostid, News::RegistrationPreempted));
            }
        }
        // Those who stay learn that the reservation they knew is no more.
        let was = self.reservation.map(|held| held.rtype);
        if was.is_some_and(|was| change.next.reservation.is_some_and(|now| now.rtype != was)) {
            change.tell_others(host, News::ReservationReleased);
        }
        Ok(change)
    }

    /// Reservation Release. [BASE-2.0 §7.4, §8.19.6, §8.19.8]
    fn release(&self, host: &HostId, release: &Release) -> Result<Change, Status> {
        if release.ignore_key || release.action > Release::CLEAR {
            return Err(INVALID);
        }
        self.check_key(host, release.current_key)?;
        let mut change = Change::to(self.clone());
        if release.action == Release::CLEAR {
            change.tell_others(host, News::ReservationPreempted);
            change.next.registrants.clear();
            change.next.drop_holderless();
            change.next.count();
            return Ok(change);
        }
        // Who does not hold it has nothing to release, and that is no error.
        let Some(held) = self.reservation.filter(|_| self.is_holder(host)) else {
            return Ok(change);
        };
        if release.rtype != held.rtype.wire() {
            return Err(INVALID);
        }
        change.next.reservation = None;
        change.released(held.rtype, host);
        Ok(change)
    }

    /// Only registrants that know their key go on.
    fn check_key(&self, host: &HostId, key: u64) -> Result<(), Status> {
        let registrant = self.registrant(host).filter(|it| it.key == key);
        registrant.map(|_| ()).ok_or(CONFLICT)
    }

    fn hold(&mut self, host: &HostId, rtype: ReservationType) {
        let holder = (!rtype.is_all_registrants()).then_some(*host);
        self.reservation = Some(Reservation { rtype, holder });
    }

    /// A reservation ends with the registration of its last holder.
    fn drop_holderless(&mut self) {
        let held = self.reservation.is_some_and(|held| match held.holder {
            Some(holder) => self.registrant(&holder).is_some(),
            None => !self.registrants.is_empty(),
        });
        if !held {
            self.reservation = None;
        }
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}

impl Change {
    /// Tells the other registrants of a release, if they had a part in the reservation.
    fn released(&mut self, rtype: ReservationType, by: &HostId) {
        if !rtype.is_holder_only() {
            self.tell_others(by, News::ReservationReleased);
        }
    }

    fn tell_others(&mut self, by: &HostId, news: News) {
        let others = self.next.registrants.iter().filter(|it| it.hostid != *by);
        self.news.extend(others.map(|it| (it.hostid, news)));
    }
}
