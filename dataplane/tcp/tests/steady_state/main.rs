//! Nothing is allocated per I/O. The disk is memory here; the SPDK engine runs the same in its own
//! crate.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/engine.rs"]
mod engine;
#[path = "suite.rs"]
mod memory;

fn main() {
    memory::run();
}
