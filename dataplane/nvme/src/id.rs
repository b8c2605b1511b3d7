//! Identifiers that must not be mixed up.

use core::fmt;

/// Command Identifier: 16 opaque bits chosen by the host, never an index. [BASE-2.0 §3.3.3.1]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u16);

/// Queue Identifier; 0 is the admin queue. [FABRICS-1.1 §3.3]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u16);

impl QueueId {
    /// The admin queue.
    pub const ADMIN: Self = Self(0);

    /// Whether this is the admin queue.
    pub const fn is_admin(self) -> bool {
        self.0 == 0
    }
}

/// Controller Identifier (CNTLID), unique in its subsystem. [BASE-2.0 §5.17.2.1]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControllerId(pub u16);

impl ControllerId {
    /// In Connect: give me any controller (dynamic controller model). [FABRICS-1.1 §3.3]
    pub const DYNAMIC: Self = Self(0xFFFF);
    /// Smallest identifier we give out.
    pub const MIN: Self = Self(1);
    /// Largest identifier a controller may have; those above are reserved.
    pub const MAX: Self = Self(0xFFEF);
}

/// Namespace Identifier (NSID). [BASE-2.0 §3.2.1]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// The command names no namespace.
    pub const NONE: Self = Self(0);
    /// The command names every namespace attached to the controller.
    pub const BROADCAST: Self = Self(0xFFFF_FFFF);

    /// Whether this can name one namespace: neither none, nor reserved, nor the broadcast value.
    pub const fn is_valid(self) -> bool {
        self.0 != 0 && self.0 < 0xFFFF_FFFE
    }
}

macro_rules! display_as_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}

display_as_number!(CommandId, QueueId, ControllerId, NamespaceId);
