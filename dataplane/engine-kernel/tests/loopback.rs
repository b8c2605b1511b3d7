//! What a disk must do, over this engine on files: the suite of `tcp`.

#[path = "../../tcp/tests/common/mod.rs"]
mod common;
#[path = "common/engine.rs"]
mod engine;
#[allow(
    dead_code,
    reason = "tests that bring devices of their own run with memory"
)]
#[path = "../../tcp/tests/loopback/suite.rs"]
mod kernel_file;
