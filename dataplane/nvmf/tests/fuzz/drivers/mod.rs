//! What one fuzz input does. Used by the fuzzer, and by the tests that replay its corpus.

mod commands;
mod input;
pub(crate) mod logs;
pub(crate) mod pdu;
mod peer;
pub(crate) mod target;
#[path = "../../sim/target_side.rs"]
mod target_side;
