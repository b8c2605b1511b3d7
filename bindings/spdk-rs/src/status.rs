//! How a request ended.

use std::fmt;

/// An NVMe status: its type and code. Errors of devices that are not NVMe are told as the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(u16);

impl Status {
    /// The request has done what it should.
    pub const SUCCESS: Self = Self(0);

    pub(crate) const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// Whether the request has done what it should.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// The status code type: 0 generic, 1 of the command, 2 of media and data integrity, 3 of the path.
    #[must_use]
    pub const fn code_type(self) -> u8 {
        self.0.to_le_bytes()[1] & 0x7
    }

    /// The status code within its type.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "NVMe status type {:#x} code {:#04x}",
            self.code_type(),
            self.code()
        )
    }
}
