//! Nothing is allocated per I/O, over this engine: the suite of `tcp`, on malloc devices of SPDK or of
//! its double.

#[cfg(any(feature = "spdk", feature = "double"))]
#[path = "../../tcp/tests/common/mod.rs"]
mod common;
#[cfg(any(feature = "spdk", feature = "double"))]
#[path = "common/engine.rs"]
mod engine;
#[cfg(any(feature = "spdk", feature = "double"))]
#[path = "../../tcp/tests/steady_state/suite.rs"]
mod suite;

fn main() {
    #[cfg(any(feature = "spdk", feature = "double"))]
    suite::run();
}
