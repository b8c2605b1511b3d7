//! Why a data plane did not start, or did not end well, for the person who reads it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use bowline_api::Failure;
use thiserror::Error;

/// Why a data plane did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// A value of the configuration is impossible.
    #[error("{message}")]
    Config {
        /// What is wrong.
        message: String,
        /// What to write instead.
        hint: String,
    },
    /// The device cannot be served. Says all itself.
    #[error("{}", .0.message)]
    Backing(Failure),
    /// The state folder, or a file in it, cannot be used.
    #[error("state in {} cannot be used", path.display())]
    State {
        /// The folder or the file.
        path: PathBuf,
        /// Why.
        cause: String,
        /// What to do.
        hint: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {purpose}")]
    Listen {
        /// What would have listened: "NVMe/TCP", "the management API", "metrics".
        purpose: &'static str,
        /// The flag that sets the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A reactor cannot run.
    #[error("reactor {index} not started")]
    Reactor {
        /// Its position, from 0.
        index: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The management thread cannot run.
    #[error("management thread not started")]
    Management {
        /// What the system said.
        source: io::Error,
    },
}

impl StartError {
    pub(crate) fn config(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Config {
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// True if the caller asked for something impossible, rather than the system
    /// refusing something possible.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Config { .. })
    }

    /// Why; empty when the message says it all.
    pub fn cause(&self) -> String {
        match self {
            Self::Config { .. } => String::new(),
            Self::Backing(failure) => failure.cause.clone(),
            Self::State { cause, .. } => cause.clone(),
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => "another process listens there already".to_owned(),
                io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
                io::ErrorKind::PermissionDenied => {
                    "the port is privileged, or a policy forbids it".to_owned()
                }
                _ => source.to_string(),
            },
            Self::Reactor { source, .. } | Self::Management { source } => source.to_string(),
        }
    }

    /// What to do next; empty when there is nothing to say.
    pub fn hint(&self) -> String {
        match self {
            Self::Config { hint, .. } => hint.clone(),
            Self::Backing(failure) => failure.hint.clone(),
            Self::State { hint, .. } => hint.clone(),
            Self::Listen {
                flag,
                address,
                source,
                ..
            } => match source.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "find it with `ss -ltnp 'sport = :{}'`, or choose another port with {flag} \
                     (0 takes a free one)",
                    address.port()
                ),
                io::ErrorKind::AddrNotAvailable => {
                    format!("`ip address` lists this machine's addresses; choose one with {flag}")
                }
                _ => format!("choose another address with {flag}"),
            },
            Self::Reactor { .. } => {
                "check --cores against the machine, --io, and the limits on memory and open files"
                    .to_owned()
            }
            Self::Management { .. } => "check the limits on threads and open files".to_owned(),
        }
    }
}

/// Why a data plane ended, when it did not end well.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// It never started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A second signal ended it before everything was drained and flushed.
    #[error("ended before everything was drained and flushed")]
    Forced,
    /// The flush at the end failed on some devices.
    #[error("stopped, but {devices} device(s) were not flushed")]
    NotFlushed {
        /// How many.
        devices: usize,
    },
    /// The pool's drive was gone and is there again: the next start opens the pool.
    #[error("ended because the pool's drive is there again")]
    DriveBack,
    /// A reactor ended without being told to.
    #[error("reactor {index} ended unexpectedly")]
    ReactorLost {
        /// Its position, from 0.
        index: usize,
    },
    /// The management thread ended without being told to.
    #[error("the management thread ended unexpectedly")]
    ManagementLost,
}

impl RunError {
    /// True if the same start may well work, and nobody has to do anything before it.
    pub fn is_restart_enough(&self) -> bool {
        match self {
            Self::DriveBack | Self::ReactorLost { .. } | Self::ManagementLost => true,
            Self::Start(_) | Self::Forced | Self::NotFlushed { .. } => false,
        }
    }

    /// Why; empty when the message says it all.
    pub fn cause(&self) -> String {
        match self {
            Self::Start(error) => error.cause(),
            Self::Forced => "a second signal came while it was stopping".to_owned(),
            Self::NotFlushed { .. } => {
                "the device answered the flush with an error; the log says which".to_owned()
            }
            Self::DriveBack => {
                "it was gone, and a pool whose drive was gone is used when it was opened again"
                    .to_owned()
            }
            Self::ReactorLost { .. } | Self::ManagementLost => {
                "an invariant was violated; the log says which".to_owned()
            }
        }
    }

    /// What to do next; empty when there is nothing to say.
    pub fn hint(&self) -> String {
        match self {
            Self::Start(error) => error.hint(),
            Self::Forced => "hosts repeat what was not acknowledged; nothing acknowledged as \
                             durable is lost"
                .to_owned(),
            Self::NotFlushed { .. } => "check the device before it is used again: writes that no \
                                        host flushed itself may be lost"
                .to_owned(),
            Self::DriveBack => {
                "start it again: hosts retry meanwhile, and find their volumes".to_owned()
            }
            Self::ReactorLost { .. } | Self::ManagementLost => {
                "start it again, and report the log".to_owned()
            }
        }
    }
}
