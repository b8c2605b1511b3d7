//! What one fuzz input does. Used by the fuzzer, and by the tests that replay its corpus.

mod commands;
mod conduct;
pub(crate) mod host;
#[path = "../../sim/host_side.rs"]
mod host_side;
mod input;
pub(crate) mod logs;
pub(crate) mod pdu;
mod peer;
mod referee;
pub(crate) mod target;
#[path = "../../sim/target_side.rs"]
mod target_side;
