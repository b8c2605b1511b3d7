//! What is supported: log pages and commands. [BASE-2.0 §5.16.1.1, §5.16.1.6]

use crate::layout::{Field, layout};

layout! {
    /// Supported Log Pages, LID 00h. [BASE-2.0 §5.16.1.1]
    pub struct SupportedLogs: 1024 bytes {
        /// LID Supported and Effects of each log page; bit 0 is LSUPP.
        lids: [u32; 256] = 0,
    }
}

impl SupportedLogs {
    /// Marks a log page as supported.
    pub fn insert(&mut self, lid: u8) {
        self.lids[usize::from(lid)] |= 1;
    }

    /// Whether a log page is supported.
    pub fn contains(&self, lid: u8) -> bool {
        self.lids[usize::from(lid)] & 1 != 0
    }
}

/// Commands Supported and Effects data structure of one opcode. [BASE-2.0 §5.16.1.6]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CommandEffects(pub u32);

impl CommandEffects {
    /// CSUPP: the command is supported.
    pub const SUPPORTED: Self = Self(1 << 0);
    /// LBCC: the command may change the content of blocks.
    pub const CONTENT_CHANGE: Self = Self(1 << 1);
    /// NCC: the command may change the capabilities of one namespace.
    pub const NAMESPACE_CHANGE: Self = Self(1 << 2);
    /// NIC: the command may change which namespaces there are.
    pub const INVENTORY_CHANGE: Self = Self(1 << 3);
    /// CCC: the command may change the controller's capabilities.
    pub const CONTROLLER_CHANGE: Self = Self(1 << 4);

    /// Both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Field for CommandEffects {
    const BYTES: usize = 4;

    fn load(bytes: &[u8], at: usize) -> Self {
        Self(u32::load(bytes, at))
    }

    fn store(&self, bytes: &mut [u8], at: usize) {
        self.0.store(bytes, at);
    }
}

layout! {
    /// Commands Supported and Effects, LID 05h. [BASE-2.0 §5.16.1.6]
    pub struct EffectsLog: 4096 bytes {
        /// Admin commands by opcode (ACS).
        admin: [CommandEffects; 256] = 0,
        /// I/O commands by opcode (IOCS).
        io: [CommandEffects; 256] = 1024,
    }
}

impl EffectsLog {
    /// Declares an admin command.
    pub fn set_admin(&mut self, opcode: u8, effects: CommandEffects) {
        self.admin[usize::from(opcode)] = effects;
    }

    /// Declares an I/O command.
    pub fn set_io(&mut self, opcode: u8, effects: CommandEffects) {
        self.io[usize::from(opcode)] = effects;
    }
}
