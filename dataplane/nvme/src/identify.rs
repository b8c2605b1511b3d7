//! Identify: the command and its data structures. [BASE-2.0 §5.17]

mod controller;
mod list;
mod namespace;

pub use controller::{IdentifyController, IdentifyNvmController};
pub use list::{
    NamespaceDescriptor, controller_list, encode_controller_list, encode_namespace_descriptors,
    encode_namespace_list, namespace_descriptors, namespace_list,
};
pub use namespace::{IdentifyNamespace, IndependentNamespace, LbaFormat};

use crate::opcode::admin;
use crate::wire::{put_u16, u16_at};
use crate::{ControllerId, Sqe};

/// Bytes of every Identify data structure.
pub const SIZE: usize = 4096;

/// CNS values: which structure. [BASE-2.0 §5.17.1]
pub mod cns {
    /// Namespace, NVM Command Set.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active Namespace ID list.
    pub const ACTIVE_NAMESPACE_LIST: u8 = 0x02;
    /// Namespace Identification Descriptor list.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// Namespace, specific to an I/O command set.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// Controller, specific to an I/O command set.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// Active Namespace ID list of an I/O command set.
    pub const COMMAND_SET_ACTIVE_NAMESPACE_LIST: u8 = 0x07;
    /// Namespace, independent of the I/O command set.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Allocated Namespace ID list.
    pub const ALLOCATED_NAMESPACE_LIST: u8 = 0x10;
    /// Namespace, also where it is not attached.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers attached to a namespace.
    pub const NAMESPACE_CONTROLLER_LIST: u8 = 0x12;
    /// Controllers of the subsystem.
    pub const CONTROLLER_LIST: u8 = 0x13;
    /// Allocated Namespace ID list of an I/O command set.
    pub const COMMAND_SET_ALLOCATED_NAMESPACE_LIST: u8 = 0x1A;
    /// Namespace of an I/O command set, also where it is not attached.
    pub const COMMAND_SET_ALLOCATED_NAMESPACE: u8 = 0x1B;
    /// I/O command set combinations.
    pub const COMMAND_SETS: u8 = 0x1C;
}

/// Command Set Identifiers. [BASE-2.0 §5.17.1]
pub mod csi {
    /// NVM Command Set.
    pub const NVM: u8 = 0x00;
}

/// The Identify command. [BASE-2.0 §5.17]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identify {
    /// Controller or Namespace Structure: one of [`cns`].
    pub cns: u8,
    /// Controller Identifier, which some structures need.
    pub cntid: ControllerId,
    /// Command Set Identifier, one of [`csi`], which some structures need.
    pub csi: u8,
}

impl Identify {
    /// A structure that needs neither controller nor command set.
    pub const fn new(cns: u8) -> Self {
        Self {
            cns,
            cntid: ControllerId(0),
            csi: 0,
        }
    }

    /// The command, without CID, NSID and SGL.
    pub fn encode(&self) -> Sqe {
        let mut sqe = Sqe::new(admin::IDENTIFY);
        sqe.0[40] = self.cns;
        put_u16(&mut sqe.0, 42, self.cntid.0);
        sqe.0[47] = self.csi;
        sqe
    }

    /// Reads the command.
    pub const fn decode(sqe: &Sqe) -> Self {
        Self {
            cns: sqe.0[40],
            cntid: ControllerId(u16_at(&sqe.0, 42)),
            csi: sqe.0[47],
        }
    }
}

#[cfg(test)]
mod tests;
