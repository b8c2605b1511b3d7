//! What an owner asks of a namespace, and what it gets back.

use std::fmt;

use bowline_block::Segments;
use bowline_nvme::{NamespaceId, Sqe, Status};
use bowline_nvmf::host::{CloseReason, DiscoveryError, SubmitError, Transfer, command};

/// Largest number of blocks of one Read, Write, Compare or Write Zeroes: NLB is 16 bits, 0's
/// based.
pub const BLOCKS_MAX: u32 = 1 << 16;

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostOp {
    /// Fills the data from the range.
    Read,
    /// Writes the data to the range.
    Write {
        /// Complete only when the range is on stable media.
        fua: bool,
    },
    /// Makes every write completed before durable.
    Flush,
    /// Makes the range read as zeroes.
    WriteZeroes {
        /// The controller may deallocate the range (DEAC).
        deallocate: bool,
    },
    /// Tells that the range is no longer needed: Dataset Management with one range.
    Deallocate,
    /// Compares the range with the data; a difference is [`Status::COMPARE_FAILURE`].
    Compare,
    /// The entry as it is; NSID, LBA and block count of the command are not looked at.
    Raw {
        /// The entry. Command identifier and data pointer are filled in.
        sqe: Sqe,
        /// Where the data goes.
        direction: Direction,
    },
}

/// Where the data of a raw command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Nowhere: there is none.
    None,
    /// From the controller into the segments.
    ToHost,
    /// From the segments to the controller.
    FromHost,
}

/// A command. It owns its data until its [`HostCompletion`] gives it back.
#[derive(Debug)]
pub struct HostCommand {
    /// What to do.
    pub op: HostOp,
    /// Namespace.
    pub nsid: NamespaceId,
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks, not 0's based, 1..=65536; for Deallocate up to `u32::MAX`.
    pub blocks: u32,
    /// Data of Read, Write, Compare and raw commands, else empty. A multiple of 4 bytes; for a
    /// Read every segment must be unique.
    pub data: Segments,
    /// The owner's own, below 2^63; comes back in the completion.
    pub token: u64,
}

/// A finished command.
#[derive(Debug)]
pub struct HostCompletion {
    /// The command's token.
    pub token: u64,
    /// How it ended. After an error the content of a Read's data is unspecified.
    pub status: Status,
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
    /// The connection ended first: the command may have been executed, or not.
    pub path_lost: bool,
    /// The command's data. A buffer whose bytes the kernel still holds for sending is not unique
    /// yet.
    pub data: Segments,
}

/// A command that was not accepted.
#[derive(Debug)]
pub struct Rejected {
    /// The command, unchanged.
    pub command: HostCommand,
    /// Why.
    pub reason: RejectReason,
}

/// Why a command was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// As the queue said.
    Queue(SubmitError),
    /// The block count is 0 or above the maximum, or data is missing or unexpected.
    Shape,
    /// A buffer to be read into has other views.
    SharedBuffer,
    /// The buffer pool has nothing left for the command's list of ranges.
    NoBuffer,
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(error) => write!(f, "{error}"),
            Self::Shape => f.write_str("block count or data does not fit the operation"),
            Self::SharedBuffer => f.write_str("a buffer to read into is shared"),
            Self::NoBuffer => f.write_str("no buffer left"),
        }
    }
}

/// Why a blocking call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostError {
    /// The deadline passed; the operation may or may not have happened.
    TimedOut,
    /// The association ended for good.
    Stopped(CloseReason),
    /// The controller refused or failed the command.
    Failed(Status),
    /// The command cannot be sent as it is.
    Rejected(RejectReason),
    /// Offset or length is not a multiple of the block size, or beyond the namespace's end.
    Range,
    /// There is no such namespace.
    NoNamespace(NamespaceId),
    /// The discovery log could not be read.
    Discovery(DiscoveryError),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("deadline passed"),
            Self::Stopped(reason) => write!(f, "association ended: {reason}"),
            Self::Failed(status) => write!(f, "command failed: {status}"),
            Self::Rejected(reason) => write!(f, "command not possible: {reason}"),
            Self::Range => f.write_str("range not block-aligned or beyond the namespace's end"),
            Self::NoNamespace(nsid) => write!(f, "no namespace {nsid}"),
            Self::Discovery(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for HostError {}

/// The entry and the transfer of a command whose data has `data_bytes` bytes.
///
/// Deallocate's data is its list of ranges, which the caller has made.
pub(super) fn encode(command: &HostCommand, data_bytes: usize) -> Option<(Sqe, Transfer)> {
    let len = u32::try_from(data_bytes).ok()?;
    let nsid = command.nsid;
    let to_host = (len > 0).then_some(Transfer::ToHost { len });
    let from_host = (len > 0).then_some(Transfer::FromHost { len });
    let none = (len == 0).then_some(Transfer::None);
    // 0's based; only meaningful for operations over at most 65536 blocks.
    let nlb = command
        .blocks
        .checked_sub(1)
        .and_then(|nlb| u16::try_from(nlb).ok());
    Some(match command.op {
        HostOp::Read => (command::read(nsid, command.lba, nlb?), to_host?),
        HostOp::Write { fua } => (command::write(nsid, command.lba, nlb?, fua), from_host?),
        HostOp::Compare => (command::compare(nsid, command.lba, nlb?), from_host?),
        HostOp::Flush => (command::flush(nsid), none?),
        HostOp::WriteZeroes { deallocate } => (
            command::write_zeroes(nsid, command.lba, nlb?, deallocate),
            none?,
        ),
        HostOp::Deallocate => (command::deallocate(nsid, 0), from_host?),
        HostOp::Raw { sqe, direction } => {
            let transfer = match direction {
                Direction::None => none?,
                Direction::ToHost => to_host?,
                Direction::FromHost => from_host?,
            };
            (sqe, transfer)
        }
    })
}
