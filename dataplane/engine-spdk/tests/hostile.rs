//! Peers that break the protocol, over this engine: the suite of `tcp`, on malloc devices of SPDK or of its double.

#![cfg(any(feature = "spdk", feature = "double"))]

#[path = "../../tcp/tests/common/mod.rs"]
mod common;
#[path = "common/engine.rs"]
mod engine;
#[cfg(feature = "spdk")]
#[path = "../../tcp/tests/hostile/suite.rs"]
mod spdk;
#[cfg(not(feature = "spdk"))]
#[path = "../../tcp/tests/hostile/suite.rs"]
mod spdk_double;
