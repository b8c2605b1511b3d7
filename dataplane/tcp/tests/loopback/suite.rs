//! What a disk must do, whichever engine it is of.

#[path = "abort.rs"]
mod abort;
#[path = "ana.rs"]
mod ana;
#[path = "answers.rs"]
mod answers;
#[path = "connect.rs"]
mod connect;
#[path = "copy.rs"]
mod copy;
#[path = "data.rs"]
mod data;
#[path = "fused.rs"]
mod fused;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "namespaces.rs"]
mod namespaces;
#[path = "reservation.rs"]
mod reservation;
#[path = "status.rs"]
mod status;
#[path = "views.rs"]
mod views;
