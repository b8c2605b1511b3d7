//! A host that remembers what was acknowledged, for tests in which the data plane or the power goes
//! away. Part of no product.
//!
//! - [`ledger`]: what each block of a volume may hold, from the events of its life.
//! - [`volume`]: a volume with its snapshots, each with a ledger of its own.
//! - [`marks`]: the events as sectors on a drive, where they lie in one order with everything else
//!   that the drive is told.
//! - [`host`]: our own initiator: a random load that reports its events, and reading back.
//! - `stamp`: blocks that say which write of which block they are.
#![forbid(unsafe_code)]

pub mod host;
pub mod ledger;
pub mod marks;
mod random;
mod stamp;
pub mod volume;

pub use random::Random;
