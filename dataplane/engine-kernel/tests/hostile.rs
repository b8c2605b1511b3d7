//! Peers that break the protocol, over this engine on files: the suite of `tcp`.

#[path = "../../tcp/tests/common/mod.rs"]
mod common;
#[path = "common/engine.rs"]
mod engine;
#[path = "../../tcp/tests/hostile/suite.rs"]
mod kernel_file;
