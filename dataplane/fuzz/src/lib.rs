//! The drivers, as a library for the fuzz targets. They live with the tests of `nvmf`, so that
//! they are checked, and the corpus replayed, wherever its tests are.

#![forbid(unsafe_code)]

#[path = "../../nvmf/tests/fuzz/drivers/mod.rs"]
mod drivers;

/// PDUs and their framing.
pub fn pdu(bytes: &[u8]) {
    drivers::pdu::run(bytes);
}

/// The target's state machine.
pub fn target(bytes: &[u8]) {
    drivers::target::run(bytes);
}

/// The host's state machine.
pub fn host(bytes: &[u8]) {
    drivers::host::run(bytes);
}

/// Log pages, Identify data, and their readers.
pub fn logs(bytes: &[u8]) {
    drivers::logs::run(bytes);
}
