//! Why a connection ended.

use std::fmt;

use bowline_nvme::Status;
use bowline_nvme::fabrics::ConnectInvalid;
use bowline_nvme::pdu::{Fes, Violation};

/// Why a connection, or the association it was part of, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The owner asked for it.
    Requested,
    /// The transport ended, or could not be opened.
    PathLost,
    /// The transport was not open in time.
    OpenTimeout,
    /// No ICResp or no Connect response in time.
    SetupTimeout,
    /// A command was not completed in time.
    CommandTimeout,
    /// A Keep Alive was not completed in time.
    KeepAliveTimeout,
    /// The controller broke the protocol; it was told so with H2CTermReq.
    Violation(Violation),
    /// The controller sent C2HTermReq: it says that this host broke the protocol.
    Terminated {
        /// Fatal error status.
        fes: Fes,
        /// Fatal error information.
        fei: u32,
    },
    /// Connect failed.
    ConnectRejected {
        /// Its status.
        status: Status,
        /// Which field was wrong, if the status is about one.
        invalid: ConnectInvalid,
    },
    /// The controller demands authentication, which this host was not told to do.
    AuthenticationRequired,
    /// A command needed to bring the controller up failed.
    BringUpFailed {
        /// What was being done.
        step: &'static str,
        /// How it ended.
        status: Status,
    },
    /// The controller did not become ready in the time it announced in CAP.TO.
    NotReadyInTime,
    /// The controller reports a fatal status (CSTS.CFS).
    ControllerFatal,
    /// The controller announces something no host can work with.
    Unsupported {
        /// What.
        what: &'static str,
    },
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("disconnected on request"),
            Self::PathLost => f.write_str("connection lost or refused"),
            Self::OpenTimeout => f.write_str("connection not open in time"),
            Self::SetupTimeout => f.write_str("no answer to ICReq or Connect in time"),
            Self::CommandTimeout => f.write_str("command not completed in time"),
            Self::KeepAliveTimeout => f.write_str("Keep Alive not answered in time"),
            Self::Violation(violation) => {
                write!(f, "protocol violated by the controller: {violation}")
            }
            Self::Terminated { fes, fei } => {
                write!(
                    f,
                    "terminated by the controller: {}",
                    Violation {
                        fes: *fes,
                        fei: *fei
                    }
                )
            }
            Self::ConnectRejected { status, invalid }
                if status.same_code(Status::CONNECT_INVALID_PARAMETERS) =>
            {
                let place = if invalid.in_data { "data" } else { "command" };
                write!(
                    f,
                    "Connect rejected: {status}, byte {} of the {place}",
                    invalid.offset
                )
            }
            Self::ConnectRejected { status, .. } => write!(f, "Connect rejected: {status}"),
            Self::AuthenticationRequired => f.write_str("the controller demands authentication"),
            Self::BringUpFailed { step, status } => write!(f, "{step} failed: {status}"),
            Self::NotReadyInTime => f.write_str("controller not ready in time"),
            Self::ControllerFatal => f.write_str("controller reports a fatal status"),
            Self::Unsupported { what } => write!(f, "unsupported by this host: {what}"),
        }
    }
}
