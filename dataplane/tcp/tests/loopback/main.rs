//! Our host against our target over real sockets: what a disk must do, on both backends. The disks
//! are memory here; each engine runs the same in its own crate.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/engine.rs"]
mod engine;

mod at_once;
mod late;
#[path = "suite.rs"]
mod memory;
