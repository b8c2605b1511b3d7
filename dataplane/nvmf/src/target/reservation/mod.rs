//! Reservations of one namespace. [BASE-2.0 §8.19]
//!
//! A host that registers a key is a registrant, whichever of its controllers it used: identity is
//! the 128-bit host identifier, and outlives connections. One registrant can hold a reservation,
//! or all of them do, and then the type of the reservation says who may read and write.
//!
//! - This file: the state, what it allows, and when it is consistent.
//! - `change`: what each command makes of it, without any effect yet.
//! - `queue`: one command of a namespace at a time, and what it waits for.
//! - `command`: from the command to its response, through the target.
//! - `notice`: what a controller tells its host of the doings of others.
//! - `image`: the state as bytes that outlive the process.

mod change;
mod command;
mod feature;
mod image;
mod notice;
mod queue;

use bowline_nvme::opcode::io;
use bowline_nvme::reservation::ReservationType;

use super::config::ConfigError;

pub(super) use command::Stores;
pub(super) use feature::is_reservation;
pub use image::{IMAGE_BYTES_MAX, ReservationStateError};
pub(super) use notice::Notices;
pub(super) use queue::Reservations;

/// A host, by the identifier that Connect brought.
pub(super) type HostId = [u8; 16];

/// Registrants of a namespace: what a host with many identifiers can make a namespace remember.
pub const REGISTRANTS_MAX: usize = 1024;

/// A host that has registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Reservation key; not 0.
    pub key: u64,
}

/// A reservation that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// What it excludes.
    pub rtype: ReservationType,
    /// Who holds it; `None` where all registrants do.
    pub holder: Option<[u8; 16]>,
}

/// Registrants and reservation of a namespace: a plain value, of which
/// [`encode`](Self::encode) makes bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationState {
    /// Rises with each register, preempt and clear, and wraps.
    pub generation: u32,
    /// Persist Through Power Loss: the state outlives the process.
    pub persistent: bool,
    /// By ascending host identifier.
    pub registrants: Vec<Registrant>,
    /// The reservation, if there is one.
    pub reservation: Option<Reservation>,
}

/// Whether a namespace's reservations can outlive the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    /// There are no reservations at all, and hosts are told so: others serve the namespace too and
    /// would not keep them.
    NoReservations,
    /// They cannot, and hosts are told so.
    #[default]
    Unsupported,
    /// The owner stores them: see [`Target::poll_store`](super::Target::poll_store). With what it
    /// has stored last, if anything.
    Stored(Option<ReservationState>),
}

impl Persistence {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Stored(Some(state)) if !state.is_consistent() || !state.persistent => {
                Err(ConfigError::Reservations)
            }
            Self::Stored(_) | Self::Unsupported | Self::NoReservations => Ok(()),
        }
    }
}

/// The owner is to make this durable, and say so with
/// [`Target::handle_stored`](super::Target::handle_stored).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRequest {
    /// Names the request in the answer.
    pub id: StoreId,
    /// Whose reservations; the namespace may be gone when the answer comes.
    pub namespace: super::NamespaceHandle,
    /// Replaces what was stored before; `None` means that nothing is to be remembered.
    pub state: Option<ReservationState>,
}

/// Names a [`StoreRequest`]; never the same twice in the life of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(pub u64);

/// What a command does to a namespace, as far as reservations care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    /// Reservation commands have rules of their own.
    Free,
}

impl Access {
    /// The command groups. What is not known counts as a write, the stricter. [NVM-1.0 §3],
    /// [BASE-2.0 §8.19]
    pub(super) const fn of(opcode: u8) -> Self {
        match opcode {
            io::READ | io::COMPARE | io::VERIFY => Self::Read,
            io::RESERVATION_REGISTER
            | io::RESERVATION_REPORT
            | io::RESERVATION_ACQUIRE
            | io::RESERVATION_RELEASE => Self::Free,
            // Flush, too. And Copy, whose reading needs no look of its own: source and destination
            // are one namespace, and no type lets anybody write who may not read.
            _ => Self::Write,
        }
    }
}

impl ReservationState {
    /// Whether the reservation lets a host do this. Without a reservation it costs one branch.
    #[inline]
    pub(super) fn allows(&self, host: &HostId, access: Access) -> bool {
        let Some(held) = &self.reservation else {
            return true;
        };
        match access {
            Access::Free => true,
            Access::Read if !held.rtype.excludes_readers() => true,
            Access::Read | Access::Write if held.rtype.is_holder_only() => {
                held.holder.as_ref() == Some(host)
            }
            Access::Read | Access::Write => self.registrant(host).is_some(),
        }
    }

    /// The host's registration.
    pub(super) fn registrant(&self, host: &HostId) -> Option<&Registrant> {
        self.find(host).ok().and_then(|at| self.registrants.get(at))
    }

    /// Whether the host holds the reservation, alone or with others.
    pub(super) fn is_holder(&self, host: &HostId) -> bool {
        self.reservation.is_some_and(|held| match held.holder {
            Some(holder) => holder == *host,
            None => self.registrant(host).is_some(),
        })
    }

    fn find(&self, host: &HostId) -> Result<usize, usize> {
        self.registrants
            .binary_search_by(|registrant| registrant.hostid.cmp(host))
    }

    /// What must outlive the process.
    pub(super) fn durable(&self) -> Option<&Self> {
        self.persistent.then_some(self)
    }

    /// Whether commands can have led here.
    pub(super) fn is_consistent(&self) -> bool {
        let ascending = self
            .registrants
            .windows(2)
            .all(|pair| pair[0].hostid < pair[1].hostid);
        let keyed = self
            .registrants
            .iter()
            .all(|registrant| registrant.key != 0);
        let held = self.reservation.is_none_or(|held| match held.holder {
            Some(holder) => !held.rtype.is_all_registrants() && self.registrant(&holder).is_some(),
            None => held.rtype.is_all_registrants() && !self.registrants.is_empty(),
        });
        ascending && keyed && held && self.registrants.len() <= REGISTRANTS_MAX
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
