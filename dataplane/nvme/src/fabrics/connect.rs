//! Connect and Disconnect. [FABRICS-1.1 §3.3, §3.4]

use crate::nqn::{Nqn, NqnError};
use crate::opcode::fabrics;
use crate::wire::{array_at, put, put_u16, put_u32, u16_at, u32_at};
use crate::{ControllerId, QueueId, Sqe};

/// CATTR bit 2: disable SQ flow control.
const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;

/// The Connect command. [FABRICS-1.1 §3.3]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Connect {
    /// Record Format; only 0 exists.
    pub recfmt: u16,
    /// The queue to create.
    pub qid: QueueId,
    /// Submission Queue Size, 0's based. See [`Connect::entries`].
    pub sqsize: u16,
    /// Connect Attributes.
    pub cattr: u8,
    /// Keep Alive Timeout in milliseconds; 0 is none. Admin queue only.
    pub kato_ms: u32,
}

impl Connect {
    /// Entries of the submission queue, 1 to 65536.
    pub const fn entries(&self) -> u32 {
        self.sqsize as u32 + 1
    }

    /// Whether the host asks to do without SQ head pointers.
    pub const fn disables_sq_flow_control(&self) -> bool {
        self.cattr & CATTR_DISABLE_SQ_FLOW_CONTROL != 0
    }

    /// Sets or clears the wish to do without SQ head pointers.
    #[must_use]
    pub const fn with_sq_flow_control_disabled(mut self, disabled: bool) -> Self {
        let others = self.cattr & !CATTR_DISABLE_SQ_FLOW_CONTROL;
        self.cattr = if disabled {
            others | CATTR_DISABLE_SQ_FLOW_CONTROL
        } else {
            others
        };
        self
    }

    /// The command, without CID and SGL.
    pub fn encode(&self) -> Sqe {
        let mut sqe = Sqe::fabrics(fabrics::CONNECT);
        put_u16(&mut sqe.0, 40, self.recfmt);
        put_u16(&mut sqe.0, 42, self.qid.0);
        put_u16(&mut sqe.0, 44, self.sqsize);
        sqe.0[46] = self.cattr;
        put_u32(&mut sqe.0, 48, self.kato_ms);
        sqe
    }

    /// Reads the command.
    pub fn decode(sqe: &Sqe) -> Self {
        Self {
            recfmt: u16_at(&sqe.0, 40),
            qid: QueueId(u16_at(&sqe.0, 42)),
            sqsize: u16_at(&sqe.0, 44),
            cattr: sqe.0[46],
            kato_ms: u32_at(&sqe.0, 48),
        }
    }
}

/// The data of Connect. [FABRICS-1.1 §3.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectData {
    /// Host Identifier, 128 bits.
    pub hostid: [u8; 16],
    /// The controller wanted, or [`ControllerId::DYNAMIC`].
    pub cntlid: ControllerId,
    /// The subsystem wanted.
    pub subnqn: Nqn,
    /// Who asks; [`Nqn::ANONYMOUS`] where the field is empty.
    pub hostnqn: Nqn,
}

impl ConnectData {
    /// Bytes of the data.
    pub const SIZE: usize = 1024;

    /// The data's bytes.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put(&mut bytes, 0, &self.hostid);
        put_u16(&mut bytes, 16, self.cntlid.0);
        put(&mut bytes, 256, &self.subnqn.encode());
        put(&mut bytes, 512, &self.hostnqn.encode());
        bytes
    }

    /// Reads the data; says which name is not one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, ConnectInvalid> {
        Ok(Self {
            hostid: array_at(bytes, 0),
            cntlid: ControllerId(u16_at(bytes, 16)),
            subnqn: Nqn::decode(&array_at(bytes, 256)).map_err(|_| ConnectInvalid::SUBNQN)?,
            hostnqn: match Nqn::decode(&array_at(bytes, 512)) {
                Err(NqnError::Empty) => Nqn::ANONYMOUS,
                name => name.map_err(|_| ConnectInvalid::HOSTNQN)?,
            },
        })
    }
}

/// The result of Connect that failed with Connect Invalid Parameters: which one.
/// [FABRICS-1.1 §3.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectInvalid {
    /// Invalid Parameter Offset (IPO): byte in the SQE or in the data.
    pub offset: u16,
    /// Invalid Attributes (IATTR) bit 0: the offset is in the data.
    pub in_data: bool,
}

impl ConnectInvalid {
    /// QID of the command.
    pub const QID: Self = Self {
        offset: 42,
        in_data: false,
    };
    /// SQSIZE of the command.
    pub const SQSIZE: Self = Self {
        offset: 44,
        in_data: false,
    };
    /// HOSTID of the data.
    pub const HOSTID: Self = Self {
        offset: 0,
        in_data: true,
    };
    /// CNTLID of the data.
    pub const CNTLID: Self = Self {
        offset: 16,
        in_data: true,
    };
    /// SUBNQN of the data.
    pub const SUBNQN: Self = Self {
        offset: 256,
        in_data: true,
    };
    /// HOSTNQN of the data.
    pub const HOSTNQN: Self = Self {
        offset: 512,
        in_data: true,
    };

    /// CQE dword 0.
    pub const fn encode(&self) -> u64 {
        self.offset as u64 | (self.in_data as u64) << 16
    }

    /// Reads CQE dword 0.
    pub const fn decode(result: u64) -> Self {
        let [low, high, iattr, ..] = result.to_le_bytes();
        Self {
            offset: u16::from_le_bytes([low, high]),
            in_data: iattr & 1 != 0,
        }
    }
}

/// The result of Connect that succeeded. [FABRICS-1.1 §3.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectResult {
    /// The controller now associated.
    pub cntlid: ControllerId,
    /// Authentication and Security Requirements, ATR: authentication must follow.
    pub authentication_required: bool,
    /// ASCR: authentication and secure channel establishment must follow.
    pub secure_channel_required: bool,
}

impl ConnectResult {
    /// CQE dword 0.
    pub const fn encode(&self) -> u64 {
        self.cntlid.0 as u64
            | (self.authentication_required as u64) << 17
            | (self.secure_channel_required as u64) << 18
    }

    /// Reads CQE dword 0.
    pub const fn decode(result: u64) -> Self {
        let [low, high, authreq, ..] = result.to_le_bytes();
        Self {
            cntlid: ControllerId(u16::from_le_bytes([low, high])),
            authentication_required: authreq & 0b010 != 0,
            secure_channel_required: authreq & 0b100 != 0,
        }
    }
}

/// The Disconnect command: deletes the I/O queue it is sent on. [FABRICS-1.1 §3.4]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Disconnect {
    /// Record Format; only 0 exists.
    pub recfmt: u16,
}

impl Disconnect {
    /// The command, without CID.
    pub fn encode(&self) -> Sqe {
        let mut sqe = Sqe::fabrics(fabrics::DISCONNECT);
        put_u16(&mut sqe.0, 40, self.recfmt);
        sqe
    }

    /// Reads the command.
    pub const fn decode(sqe: &Sqe) -> Self {
        Self {
            recfmt: u16_at(&sqe.0, 40),
        }
    }
}
