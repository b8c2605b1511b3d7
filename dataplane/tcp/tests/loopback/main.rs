//! Our host against our target over real sockets: what a disk must do, on both backends.

#[path = "../common/mod.rs"]
mod common;

mod abort;
mod ana;
mod answers;
mod at_once;
mod connect;
mod copy;
mod data;
mod fused;
mod lifecycle;
mod namespaces;
mod reservation;
mod status;
mod views;
