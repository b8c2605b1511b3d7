//! A command as its owner gives it, and as it gets it back.

use std::fmt;

use bowline_nvme::{Sqe, Status};

use super::slots::{SlotId, Transfer};

/// One command to submit.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// The entry; the queue fills in command identifier and data pointer.
    pub sqe: Sqe,
    /// Its data.
    pub transfer: Transfer,
    /// The owner's own; comes back in the [`Completion`].
    pub token: u64,
}

/// Why a command was not accepted. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubmitError {
    /// As many commands are outstanding as the queue can hold.
    Full,
    /// The queue is not connected.
    NotReady,
    /// The data length is zero, not a multiple of 4, or above what the controller takes.
    Length,
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "queue full",
            Self::NotReady => "queue not connected",
            Self::Length => "data length not possible",
        })
    }
}

impl std::error::Error for SubmitError {}

/// A finished command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The slot, free again for the next command.
    pub slot: SlotId,
    /// The command's token.
    pub token: u64,
    /// How it ended. The host's own verdicts are [`Status::HOST_PATHING`] with the connection,
    /// [`Status::TRANSIENT_TRANSPORT`] for a data digest that did not match, and
    /// [`Status::DATA_TRANSFER_ERROR`] for a successful read with too little data.
    pub status: Status,
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
    /// The connection ended first: the command may have been executed, or not.
    pub path_lost: bool,
    pub(super) internal: bool,
}
