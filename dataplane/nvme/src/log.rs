//! Get Log Page: the command and the log pages. [BASE-2.0 §5.16]

mod ana;
mod discovery;
mod effects;
mod health;
mod notice;

pub use ana::{AnaDescriptor, AnaGroup, AnaHeader, AnaLogError, AnaLogReader, AnaState};
pub use discovery::{
    Adrfam, DiscoveryEntry, DiscoveryHeader, SecType, SecureChannel, Subtype, Transport, Treq,
};
pub use effects::{CommandEffects, EffectsLog, SupportedLogs};
pub use health::{ErrorLogEntry, FirmwareSlotLog, SmartLog};
pub use notice::{ReservationNotification, changed_namespaces, encode_changed_namespaces};

use crate::Sqe;
use crate::opcode::admin;
use crate::wire::{put_u16, put_u64, u16_at, u64_at};

/// Log Page Identifiers. [BASE-2.0 §5.16.1]
pub mod id {
    /// Supported Log Pages.
    pub const SUPPORTED_LOG_PAGES: u8 = 0x00;
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT: u8 = 0x03;
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACE_LIST: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const EFFECTS: u8 = 0x05;
    /// Asymmetric Namespace Access.
    pub const ANA: u8 = 0x0C;
    /// Feature Identifiers Supported and Effects.
    pub const FEATURE_EFFECTS: u8 = 0x12;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Reservation Notification.
    pub const RESERVATION: u8 = 0x80;
}

/// The Get Log Page command. [BASE-2.0 §5.16]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GetLogPage {
    /// Log Page Identifier: one of [`id`].
    pub lid: u8,
    /// Log Specific Parameter, 7 bits.
    pub lsp: u8,
    /// Retain Asynchronous Event: the event stays pending.
    pub rae: bool,
    /// Number of Dwords, 0's based. See [`GetLogPage::bytes`].
    pub numd: u32,
    /// Log Page Offset: bytes, or an index if `ot` is set.
    pub lpo: u64,
    /// Offset Type: `lpo` is an index into a list of data structures.
    pub ot: bool,
    /// Command Set Identifier.
    pub csi: u8,
}

impl GetLogPage {
    /// LSP of the ANA log: groups without their namespaces (Return Groups Only).
    pub const LSP_ANA_GROUPS_ONLY: u8 = 1 << 0;

    /// Reads `bytes` (a multiple of 4, at least 4) from `offset` on, and lets the event go.
    pub const fn range(lid: u8, offset: u64, bytes: u32) -> Self {
        let numd = (bytes / 4).saturating_sub(1);
        Self {
            lid,
            lsp: 0,
            rae: false,
            numd,
            lpo: offset,
            ot: false,
            csi: 0,
        }
    }

    /// Bytes wanted, 4 to 16 GiB.
    pub const fn bytes(&self) -> u64 {
        (self.numd as u64 + 1) * 4
    }

    /// The command, without CID, NSID and SGL.
    pub fn encode(&self) -> Sqe {
        let [numdl, numdh, numdul, numduh] = self.numd.to_le_bytes();
        let mut sqe = Sqe::new(admin::GET_LOG_PAGE);
        sqe.0[40] = self.lid;
        sqe.0[41] = self.lsp & 0x7F | if self.rae { 0x80 } else { 0 };
        put_u16(&mut sqe.0, 42, u16::from_le_bytes([numdl, numdh]));
        put_u16(&mut sqe.0, 44, u16::from_le_bytes([numdul, numduh]));
        put_u64(&mut sqe.0, 48, self.lpo);
        sqe.0[58] = if self.ot { 0x80 } else { 0 };
        sqe.0[59] = self.csi;
        sqe
    }

    /// Reads the command.
    pub fn decode(sqe: &Sqe) -> Self {
        let numd = u32::from(u16_at(&sqe.0, 42)) | u32::from(u16_at(&sqe.0, 44)) << 16;
        Self {
            lid: sqe.0[40],
            lsp: sqe.0[41] & 0x7F,
            rae: sqe.0[41] & 0x80 != 0,
            numd,
            lpo: u64_at(&sqe.0, 48),
            ot: sqe.0[58] & 0x80 != 0,
            csi: sqe.0[59],
        }
    }
}

#[cfg(test)]
mod tests;
