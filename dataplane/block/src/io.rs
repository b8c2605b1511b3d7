//! One request and its completion.

use std::fmt;

use crate::segments::Segments;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fills the segments from the range. Every segment must be unique.
    Read,
    /// Writes the segments to the range.
    Write,
    /// Makes every write that completed before this request was submitted durable.
    Flush,
    /// Makes the range read as zeroes.
    WriteZeroes {
        /// The backing may also release the range (DEAC). [NVM-1.0 §3.2.8]
        deallocate: bool,
    },
    /// The host no longer needs the range; what it reads afterwards is the geometry's
    /// [`Deallocate`](crate::Deallocate). Advisory, yet completed only when done.
    Deallocate,
    /// Writes the range only when it holds the expected data, atomically with regard to every
    /// other request of this device. The first half of the segments' bytes is the data to compare,
    /// the second half the data to write; each half covers the range.
    CompareAndWrite,
}

impl Op {
    /// Whether the request changes what the medium holds.
    #[must_use]
    pub const fn is_modifying(self) -> bool {
        match self {
            Self::Read | Self::Flush => false,
            Self::Write | Self::WriteZeroes { .. } | Self::Deallocate | Self::CompareAndWrite => {
                true
            }
        }
    }
}

/// A request. It owns its segments until its [`Completion`] gives them back.
#[derive(Debug)]
pub struct Io {
    /// What to do.
    pub op: Op,
    /// First logical block; ignored by [`Op::Flush`].
    pub lba: u64,
    /// Number of logical blocks, not 0's based; ignored by [`Op::Flush`].
    pub blocks: u32,
    /// Complete only when the range is on stable media (FUA). Meaningful on modifying requests.
    pub fua: bool,
    /// Payload: `blocks` blocks for read and write, twice that for compare-and-write, else empty.
    pub data: Segments,
    /// The caller's own; comes back in the completion.
    pub token: u64,
}

impl Io {
    /// The completion of this request with `result`, giving its segments back.
    #[must_use]
    pub fn complete(self, result: Result<(), IoError>) -> Completion {
        Completion {
            token: self.token,
            result,
            data: self.data,
        }
    }
}

/// A finished request.
#[derive(Debug)]
pub struct Completion {
    /// The token of the [`Io`].
    pub token: u64,
    /// How it ended. After an error the content of a read's segments is unspecified.
    pub result: Result<(), IoError>,
    /// The segments of the [`Io`], unchanged but for a read's bytes.
    pub data: Segments,
}

/// Why a request failed. Closed on purpose: the one mapping to NVMe status must choose for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoError {
    /// The range does not lie within the device.
    OutOfRange,
    /// The device accepts no modifying request.
    ReadOnly,
    /// The medium could not give the data.
    MediaRead,
    /// The medium could not take the data; the range's content is unspecified.
    MediaWrite,
    /// The backing has no space left for the write.
    NoSpace,
    /// The device cannot do this operation.
    Unsupported,
    /// Compare-and-write found other data and wrote nothing.
    CompareMismatch,
    /// The device is gone and will not come back under this handle.
    Vanished,
    /// The device did not answer in time.
    TimedOut,
    /// The request was given up before it finished; it may or may not have taken effect.
    Aborted,
    /// The request was malformed or the engine failed: a bug, not a fault of the medium.
    Internal,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "range beyond the end of the device",
            Self::ReadOnly => "device is read-only",
            Self::MediaRead => "medium failed to read",
            Self::MediaWrite => "medium failed to write",
            Self::NoSpace => "backing has no space left",
            Self::Unsupported => "operation not supported by the device",
            Self::CompareMismatch => "data differs from what was expected",
            Self::Vanished => "device is gone",
            Self::TimedOut => "device did not answer in time",
            Self::Aborted => "request was aborted",
            Self::Internal => "internal error",
        })
    }
}

impl std::error::Error for IoError {}
