//! Peers that break the protocol, on purpose or not: each ends as the specification says, and a
//! well-behaved host beside them never notices. The disks are memory here; each engine runs the same
//! in its own crate.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/engine.rs"]
mod engine;
#[path = "suite.rs"]
mod memory;
