//! Fabrics commands and controller properties. [FABRICS-1.1 §3], [BASE-2.0 §3.1.3]

mod connect;
mod property;

pub use connect::{Connect, ConnectData, ConnectInvalid, ConnectResult, Disconnect};
pub use property::{Cap, Cc, Crto, Csts, PropertyGet, PropertySet, Shn, Shst, Version, offset};

#[cfg(test)]
mod tests;
