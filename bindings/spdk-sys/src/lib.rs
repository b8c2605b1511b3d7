//! Raw bindings to what bowline uses of SPDK.
//!
//! They are made from `shim/shim.h`, which documents every function, and not from SPDK's own headers:
//! inline functions, bit fields and what differs between versions end in `shim/spdk/`. Use
//! `bowline-spdk-rs`, the safe side, instead.
//!
//! Feature `spdk` builds them over an installed SPDK, feature `double` over memory. With neither, this
//! crate is empty.

#![no_std]

#[cfg(any(feature = "spdk", feature = "double"))]
#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::undocumented_unsafe_blocks,
    reason = "made by bindgen"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

#[cfg(any(feature = "spdk", feature = "double"))]
pub use bindings::*;
