//! Asynchronous events: dword 0 of a completed Asynchronous Event Request. [BASE-2.0 §5.2]

use crate::log;

/// Type, information and log page of one event. [BASE-2.0 §5.2.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AsyncEvent {
    /// Asynchronous Event Type, bits 2:0.
    pub kind: u8,
    /// Asynchronous Event Information, bits 15:8.
    pub info: u8,
    /// Log Page Identifier to read for more, bits 23:16.
    pub lid: u8,
}

/// Event types. [BASE-2.0 §5.2.1]
pub mod kind {
    /// Error status.
    pub const ERROR: u8 = 0;
    /// SMART / health status.
    pub const SMART: u8 = 1;
    /// Notice.
    pub const NOTICE: u8 = 2;
    /// Immediate.
    pub const IMMEDIATE: u8 = 3;
    /// I/O Command Set specific.
    pub const IO_COMMAND_SET: u8 = 6;
}

impl AsyncEvent {
    /// Error: persistent internal error. Linux resets the controller.
    pub const PERSISTENT_INTERNAL_ERROR: Self = Self::new(kind::ERROR, 3, log::id::ERROR);
    /// SMART: NVM subsystem reliability.
    pub const RELIABILITY: Self = Self::new(kind::SMART, 0, log::id::SMART);
    /// SMART: available spare below the threshold.
    pub const SPARE_BELOW_THRESHOLD: Self = Self::new(kind::SMART, 2, log::id::SMART);
    /// Notice: a namespace attribute changed.
    pub const NAMESPACE_CHANGED: Self = Self::new(kind::NOTICE, 0, log::id::CHANGED_NAMESPACE_LIST);
    /// Notice: firmware activation starting.
    pub const FIRMWARE_ACTIVATION: Self = Self::new(kind::NOTICE, 1, log::id::FIRMWARE_SLOT);
    /// Notice: asymmetric namespace access changed.
    pub const ANA_CHANGED: Self = Self::new(kind::NOTICE, 3, log::id::ANA);
    /// Notice: the discovery log page changed.
    pub const DISCOVERY_CHANGED: Self = Self::new(kind::NOTICE, 0xF0, log::id::DISCOVERY);
    /// NVM Command Set: the reservation log page is available.
    pub const RESERVATION_AVAILABLE: Self =
        Self::new(kind::IO_COMMAND_SET, 0, log::id::RESERVATION);

    const fn new(kind: u8, info: u8, lid: u8) -> Self {
        Self { kind, info, lid }
    }

    /// CQE dword 0.
    pub const fn encode(self) -> u32 {
        u32::from_le_bytes([self.kind & 7, self.info, self.lid, 0])
    }

    /// Reads CQE dword 0.
    pub const fn decode(result: u32) -> Self {
        let [kind, info, lid, _] = result.to_le_bytes();
        Self {
            kind: kind & 7,
            info,
            lid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_results_are_those_hosts_know() {
        for (event, result) in [
            (AsyncEvent::NAMESPACE_CHANGED, 0x0004_0002),
            (AsyncEvent::FIRMWARE_ACTIVATION, 0x0003_0102),
            (AsyncEvent::ANA_CHANGED, 0x000C_0302),
            (AsyncEvent::DISCOVERY_CHANGED, 0x0070_F002),
            (AsyncEvent::RESERVATION_AVAILABLE, 0x0080_0006),
            (AsyncEvent::PERSISTENT_INTERNAL_ERROR, 0x0001_0300),
        ] {
            assert_eq!(event.encode(), result);
            assert_eq!(AsyncEvent::decode(result), event);
        }
    }
}
