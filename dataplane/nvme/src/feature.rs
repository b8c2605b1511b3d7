//! Features. [BASE-2.0 §5.15, §5.27]

use crate::Sqe;
use crate::opcode::admin;

/// Feature Identifiers. [BASE-2.0 §5.27.1]
pub mod id {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery, per namespace.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing: not for Fabrics.
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration: not for Fabrics.
    pub const INTERRUPT_VECTOR: u8 = 0x09;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0A;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0B;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0E;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR: u8 = 0x16;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation Notification Mask, per namespace.
    pub const RESERVATION_MASK: u8 = 0x82;
    /// Reservation Persistence, per namespace.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
    /// Namespace Write Protection Config, per namespace.
    pub const WRITE_PROTECT: u8 = 0x84;
}

/// Which value Get Features asks for (SEL, cdw10 bits 10:8). [BASE-2.0 §5.15]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Select {
    /// The value in force.
    Current,
    /// The value after a reset where nothing is saved.
    Default,
    /// The saved value.
    Saved,
    /// Not a value but what can be done with the feature: see [`capabilities`].
    Capabilities,
    /// One of the reserved values.
    Reserved(u8),
}

/// What Get Features answers to [`Select::Capabilities`], in dword 0. [BASE-2.0 §5.15]
pub mod capabilities {
    /// The feature can be saved.
    pub const SAVEABLE: u32 = 1 << 0;
    /// The feature belongs to a namespace.
    pub const NAMESPACE_SPECIFIC: u32 = 1 << 1;
    /// The feature can be changed.
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// The Get Features command. [BASE-2.0 §5.15]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GetFeatures {
    /// Feature Identifier.
    pub fid: u8,
    /// Which value.
    pub select: Select,
    /// cdw11, of which some features use a part.
    pub cdw11: u32,
}

impl GetFeatures {
    /// The value in force.
    pub const fn current(fid: u8) -> Self {
        Self {
            fid,
            select: Select::Current,
            cdw11: 0,
        }
    }

    /// The command, without CID, NSID and SGL.
    pub fn encode(&self) -> Sqe {
        let select = match self.select {
            Select::Current => 0,
            Select::Default => 1,
            Select::Saved => 2,
            Select::Capabilities => 3,
            Select::Reserved(value) => value & 7,
        };
        let cdw10 = u32::from_le_bytes([self.fid, select, 0, 0]);
        Sqe::new(admin::GET_FEATURES)
            .with_cdw(10, cdw10)
            .with_cdw(11, self.cdw11)
    }

    /// Reads the command.
    pub const fn decode(sqe: &Sqe) -> Self {
        let [fid, select, ..] = sqe.cdw(10).to_le_bytes();
        let select = match select & 7 {
            0 => Select::Current,
            1 => Select::Default,
            2 => Select::Saved,
            3 => Select::Capabilities,
            other => Select::Reserved(other),
        };
        Self {
            fid,
            select,
            cdw11: sqe.cdw(11),
        }
    }
}

/// The Set Features command. [BASE-2.0 §5.27]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetFeatures {
    /// Feature Identifier.
    pub fid: u8,
    /// Save: keep the value over power cycles and resets.
    pub save: bool,
    /// cdw11, the value of most features.
    pub cdw11: u32,
}

impl SetFeatures {
    /// Sets a value until the next reset.
    pub const fn new(fid: u8, cdw11: u32) -> Self {
        Self {
            fid,
            save: false,
            cdw11,
        }
    }

    /// The command, without CID, NSID and SGL.
    pub fn encode(&self) -> Sqe {
        let cdw10 = u32::from(self.fid) | u32::from(self.save) << 31;
        Sqe::new(admin::SET_FEATURES)
            .with_cdw(10, cdw10)
            .with_cdw(11, self.cdw11)
    }

    /// Reads the command.
    pub const fn decode(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw(10);
        Self {
            fid: cdw10.to_le_bytes()[0],
            save: cdw10 >> 31 != 0,
            cdw11: sqe.cdw(11),
        }
    }
}

/// Number of Queues: cdw11 when set, dword 0 when answered. [BASE-2.0 §5.27.1.5]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NumberOfQueues {
    /// I/O submission queues, 0's based. See [`NumberOfQueues::submission`].
    pub nsq: u16,
    /// I/O completion queues, 0's based. See [`NumberOfQueues::completion`].
    pub ncq: u16,
}

impl NumberOfQueues {
    /// `queues` (at least 1) of each kind.
    pub const fn of(queues: u16) -> Self {
        let raw = queues.saturating_sub(1);
        Self { nsq: raw, ncq: raw }
    }

    /// I/O submission queues, 1 to 65536; 65536 is not valid to ask for.
    pub const fn submission(&self) -> u32 {
        self.nsq as u32 + 1
    }

    /// I/O completion queues, 1 to 65536; 65536 is not valid to ask for.
    pub const fn completion(&self) -> u32 {
        self.ncq as u32 + 1
    }

    /// The dword.
    pub const fn encode(&self) -> u32 {
        self.nsq as u32 | (self.ncq as u32) << 16
    }

    /// Reads the dword.
    pub const fn decode(value: u32) -> Self {
        let [a, b, c, d] = value.to_le_bytes();
        Self {
            nsq: u16::from_le_bytes([a, b]),
            ncq: u16::from_le_bytes([c, d]),
        }
    }
}

/// Asynchronous Event Configuration, and OAES of Identify Controller. [BASE-2.0 §5.27.1.8]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AsyncEventConfig(pub u32);

impl AsyncEventConfig {
    /// Bits 4:0: the critical warnings of the SMART log; not in OAES.
    pub const SMART: Self = Self(0x1F);
    /// Bit 0: the critical warning of too little spare.
    pub const SMART_SPARE: Self = Self(1);
    /// Bit 8: namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTE: Self = Self(1 << 8);
    /// Bit 9: firmware activation notices.
    pub const FIRMWARE_ACTIVATION: Self = Self(1 << 9);
    /// Bit 11: asymmetric namespace access change notices.
    pub const ANA_CHANGE: Self = Self(1 << 11);
    /// Bit 31: discovery log page change notices.
    pub const DISCOVERY_CHANGE: Self = Self(1 << 31);

    /// Both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both have.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Host Behavior Support, the data of feature 16h. [BASE-2.0 §5.27.1.18]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostBehavior {
    /// Advanced Command Retry Enable: the host honours Command Retry Delay.
    pub acre: bool,
    /// Extended Telemetry Data Area 4 Supported.
    pub etdas: bool,
    /// LBA Format Extension Enable.
    pub lbafee: bool,
}

impl HostBehavior {
    /// Bytes of the data.
    pub const SIZE: usize = 512;

    /// The data's bytes.
    pub const fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.acre as u8;
        bytes[1] = self.etdas as u8;
        bytes[2] = self.lbafee as u8;
        bytes
    }

    /// Reads the data; `None` if a value is neither 0 nor 1.
    pub const fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        if bytes[0] > 1 || bytes[1] > 1 || bytes[2] > 1 {
            return None;
        }
        Some(Self {
            acre: bytes[0] == 1,
            etdas: bytes[1] == 1,
            lbafee: bytes[2] == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_queues_is_zero_based_once() {
        let queues = NumberOfQueues::of(8);
        assert_eq!(queues.encode(), 0x0007_0007);
        assert_eq!(queues.submission(), 8);
        let most = NumberOfQueues::decode(0xFFFE_0001);
        assert_eq!((most.submission(), most.completion()), (2, 65535));
    }

    #[test]
    fn feature_commands_round_trip() {
        let set = SetFeatures {
            fid: id::KEEP_ALIVE_TIMER,
            save: true,
            cdw11: 5000,
        };
        assert_eq!(SetFeatures::decode(&set.encode()), set);
        assert_eq!(set.encode().cdw(10), 0x8000_000F);
        for select in [
            Select::Current,
            Select::Default,
            Select::Saved,
            Select::Capabilities,
            Select::Reserved(5),
        ] {
            let get = GetFeatures {
                fid: id::ASYNC_EVENT_CONFIG,
                select,
                cdw11: 1,
            };
            assert_eq!(GetFeatures::decode(&get.encode()), get);
        }
    }

    #[test]
    fn host_behavior_rejects_values_beyond_one() {
        let behavior = HostBehavior {
            acre: true,
            etdas: false,
            lbafee: true,
        };
        let mut bytes = behavior.encode();
        assert_eq!(HostBehavior::decode(&bytes), Some(behavior));
        bytes[2] = 2;
        assert_eq!(HostBehavior::decode(&bytes), None);
    }
}
