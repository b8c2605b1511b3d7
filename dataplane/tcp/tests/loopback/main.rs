//! Our host against our target over real sockets: what a disk must do, on both backends.

#[path = "../common/mod.rs"]
mod common;

mod ana;
mod connect;
mod data;
mod lifecycle;
mod namespaces;
mod reservation;
mod status;
