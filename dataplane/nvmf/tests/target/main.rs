//! The target driven through its public interface: an in-memory glue with a RAM disk on one side,
//! the bytes of a host on the other.

mod abort;
mod ana;
mod ana_access;
mod ana_log;
mod ana_paths;
mod answers;
mod at_once;
mod bring_up;
mod connect;
mod discovery;
mod effects;
mod events;
mod fused;
mod glue;
mod health;
mod hostile;
mod keep_alive;
mod lifecycle;
mod limits;
mod model;
mod namespaces;
mod parts;
mod properties;
mod reservation;
mod spare;
mod transfer;
