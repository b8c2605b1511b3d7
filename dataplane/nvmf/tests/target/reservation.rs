//! Reservations through real PDUs: several hosts, each with controllers of its own.

mod access;
mod hosts;
mod notice;
mod persist;
mod preempt;
mod storm;
