//! Load on an NVMe/TCP subsystem, from our own initiator, and what came of it.
//!
//! [`job::Job`] says what to do, [`runner::run`] does it on a reactor of the calling thread, and
//! [`report::Report`] is the outcome. One thread drives all connections: it is meant to be cheaper
//! than what it measures, and `bowline-perf ceiling` says how fast it can get.
//!
//! - `load`: a [`Service`](bowline_reactor::Service) around the initiator's. In every turn it
//!   takes what completed and submits what is due, so that one gather per connection and turn
//!   carries all new commands. The clock is read once per turn, nothing is allocated per command.
//! - `client`, `doze`: how the thread waits between turns.
//! - `pattern`, `arrivals`, `random`: where and when, from a seed.
//! - `block`, `verify`: blocks that describe themselves, and what is wrong with those that do not.
//! - `responder`: a controller that does nothing, for the client's own ceiling.
//! - `latency`: histograms, and percentiles only where there are samples for them.
//! - `fio`: fio's usual jobs on a disk of this host, without our initiator.

#![forbid(unsafe_code)]

pub mod arrivals;
mod block;
pub mod cli;
mod client;
mod doze;
pub mod error;
mod fio;
pub mod job;
pub mod latency;
mod load;
pub mod pattern;
pub mod progress;
mod random;
pub mod report;
mod responder;
pub mod runner;
mod units;
pub mod verify;
