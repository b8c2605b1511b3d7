//! What a disk must do, over this engine: the suite of `tcp`, on malloc devices of SPDK or of its double.

#![cfg(any(feature = "spdk", feature = "double"))]

#[path = "../../tcp/tests/common/mod.rs"]
mod common;
#[path = "common/engine.rs"]
mod engine;
#[allow(
    dead_code,
    reason = "tests that bring devices of their own run with memory"
)]
#[cfg(feature = "spdk")]
#[path = "../../tcp/tests/loopback/suite.rs"]
mod spdk;
#[allow(
    dead_code,
    reason = "tests that bring devices of their own run with memory"
)]
#[cfg(not(feature = "spdk"))]
#[path = "../../tcp/tests/loopback/suite.rs"]
mod spdk_double;
