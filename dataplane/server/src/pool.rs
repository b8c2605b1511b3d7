//! The pool on the drive, and the reactor that owns it: opened before anything is served, polled
//! with every turn, closed when the last host is gone.

mod access;
mod explain;
mod export;
mod hosts;
mod open;
mod seat;
mod stores;

pub(crate) use access::{PoolAccess, PoolFacts, PoolNow, VolumeDefaults};
pub(crate) use explain::{explain_operation, explain_pool};
pub(crate) use export::{Export, Surveyed, VOLUME_NSID, export, survey, withdraw};
pub(crate) use hosts::AllowedHosts;
pub(crate) use open::{Begun, begin};
pub(crate) use seat::{Ending, PoolHealth, PoolSeat};
pub(crate) use stores::Stores;

/// Kinds of attributes of a volume, as the format has them.
pub(crate) mod attribute {
    /// Reservations that persist.
    pub(crate) const RESERVATIONS: u32 = 1;
    /// Hosts that may use the volume.
    pub(crate) const HOSTS: u32 = 3;
}
