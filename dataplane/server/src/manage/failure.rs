//! What a caller is told when management cannot do what was asked.

use std::io;

use bowline_api::{Failure, Reason};
use bowline_nvmf::target::ConfigError;
use bowline_tcp::target::RefreshError;

pub(super) fn opening(name: &str) -> Failure {
    Failure::new(Reason::BackingBusy, format!("{name} is being made"))
        .cause("an earlier call waits for its backing to open")
        .hint("wait for that call, or choose another nsid")
}

pub(super) fn not_attached(name: &str, error: &io::Error) -> Failure {
    Failure::new(Reason::BackingUnusable, format!("{name} not created"))
        .cause(error.to_string())
        .hint("check the size, the memory of the machine, and the limits on open files")
}

pub(crate) fn exists(name: String) -> Failure {
    Failure::new(Reason::AlreadyExists, format!("{name} exists already")).with("resource", name)
}

pub(crate) fn missing(name: String) -> Failure {
    Failure::new(Reason::NotFound, format!("{name} does not exist")).with("resource", name)
}

pub(crate) fn same_identity(name: &str) -> Failure {
    let message = format!("{name} has the same UUID or NGUID");
    Failure::new(Reason::AlreadyExists, message)
        .cause("hosts would take the two for one disk")
        .with("resource", name)
}

pub(crate) fn limit(what: &str, most: impl std::fmt::Display) -> Failure {
    Failure::new(
        Reason::LimitReached,
        format!("the limit of {most} {what} is reached"),
    )
    .with("limit", most.to_string())
    .hint("remove what is not needed")
}

/// What the protocol machine refused although it was checked before.
pub(super) fn refused(name: &str, error: ConfigError) -> Failure {
    let reason = match error {
        ConfigError::SubsystemExists => Reason::AlreadyExists,
        ConfigError::NoSubsystem | ConfigError::NoNamespace => Reason::NotFound,
        ConfigError::Nqn
        | ConfigError::NamespaceId
        | ConfigError::NoAna
        | ConfigError::AnaGroup
        | ConfigError::Ana => Reason::InvalidField,
        ConfigError::Geometry => Reason::BackingUnusable,
        ConfigError::NamespaceIdentity => Reason::AlreadyExists,
        ConfigError::ControllerIds | ConfigError::Reservations => Reason::Internal,
    };
    let hint = match error {
        ConfigError::NoAna => "make the subsystem with ANA: --ana at start, or `ana` over the API",
        ConfigError::Ana => "ask for fewer namespaces, or start with a larger --max-transfer",
        _ => "",
    };
    Failure::new(reason, format!("{name} not changed"))
        .cause(error.to_string())
        .hint(hint)
}

pub(crate) fn not_resized(name: &str, error: &RefreshError) -> Failure {
    let message = format!("{name} not resized");
    match error {
        RefreshError::Config(error) => refused(name, *error),
        RefreshError::Device(error) => {
            Failure::new(Reason::BackingUnusable, message).cause(error.to_string())
        }
        RefreshError::Shrunk {
            blocks,
            backing_blocks,
        } => Failure::new(Reason::ShrinkRefused, message)
            .cause(error.to_string())
            .hint("make the backing at least as large as it was")
            .with("namespace_blocks", blocks.to_string())
            .with("backing_blocks", backing_blocks.to_string()),
    }
}
