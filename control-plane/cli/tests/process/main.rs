//! The executable from the outside: processes, sockets, signals, exit codes.
#![expect(clippy::unwrap_used, reason = "tests, their helpers included")]

mod cut_off;
mod damage;
mod dataplane;
mod dev;
mod harness;
mod host;
mod hosts;
mod kills;
mod management;
mod opening;
mod parts;
mod paths;
mod pool;
mod scale;
#[cfg(any(feature = "spdk", feature = "spdk-double"))]
mod spdk;
mod state;
mod volumes;
