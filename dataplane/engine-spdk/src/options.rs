//! What the library is started with, and what it serves.

use std::fmt;
use std::path::PathBuf;

/// What of SPDK this executable has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Nothing: it was built without.
    None,
    /// A double of the library, whose devices are memory of the process: for checks.
    Double,
    /// The library.
    Spdk,
}

/// What of SPDK this executable has.
pub const BUILD: Build = if cfg!(feature = "spdk") {
    Build::Spdk
} else if cfg!(feature = "double") {
    Build::Double
} else {
    Build::None
};

/// How the library is started. Once in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its own JSON configuration, which makes devices.
    pub config: Option<PathBuf>,
    /// Drives that it may take, by PCI address; `None` are all that are bound for user space.
    pub drives: Option<Vec<String>>,
    /// Memory in huge pages. Without them there are no drives on PCI.
    pub huge_pages: bool,
    /// Memory for DMA to set aside in MiB; `None` takes what the library takes by itself, and 1 GiB
    /// without huge pages.
    pub memory_mib: Option<u32>,
}

/// A device of the library, as an operator names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The drive at a PCI address such as `0000:01:00.0`: its first namespace.
    Drive(String),
    /// The block device of this name.
    Bdev(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drive(address) => f.write_str(address),
            Self::Bdev(name) => write!(f, "bdev:{name}"),
        }
    }
}

/// Why the library did not start, or a device cannot be served: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpdkError {
    /// Somebody else has it: it may be free later.
    pub is_busy: bool,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for SpdkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.hint)
    }
}

impl std::error::Error for SpdkError {}
