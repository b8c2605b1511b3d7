//! The errors that travel over gRPC: a canonical code, a message that says what
//! happened, and a `google.rpc.ErrorInfo` that says why and what to do.

use std::collections::HashMap;
use std::fmt;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// `google.rpc.ErrorInfo.domain` of every error made here.
pub const ERROR_DOMAIN: &str = "bowline";

const CAUSE: &str = "cause";
const HINT: &str = "hint";

/// Why an operator's request failed, for programs. Names are stable: a client may
/// branch on them. Each has one canonical gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field of the request is malformed.
    InvalidField,
    /// A request_id came again with another request.
    RequestIdReused,
    /// A page token is not one of ours, or belongs to another list.
    InvalidPageToken,
    /// The named resource is not there.
    NotFound,
    /// The named resource is there already.
    AlreadyExists,
    /// The path is not on the allow-list given at start.
    PathNotAllowed,
    /// The backing is used by somebody else.
    BackingBusy,
    /// The backing is already used by another namespace of this process.
    BackingInUse,
    /// The backing cannot be opened or read.
    BackingUnusable,
    /// The backing has become smaller than the namespace.
    ShrinkRefused,
    /// It is in use: hosts are connected, or something was made of it.
    InUse,
    /// The data plane has no pool.
    NoPool,
    /// The pool has not enough room left.
    NoSpace,
    /// The pool cannot record anything any more.
    PoolFailed,
    /// State that must outlive the process cannot be read or written.
    StateUnusable,
    /// A limit of the process is reached.
    LimitReached,
    /// The process has not opened yet what it is going to serve.
    Starting,
    /// The process is stopping.
    Stopping,
    /// The fault is ours.
    Internal,
}

impl Reason {
    /// Every reason, for documentation and tests.
    pub const ALL: [Self; 19] = [
        Self::InvalidField,
        Self::RequestIdReused,
        Self::InvalidPageToken,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PathNotAllowed,
        Self::BackingBusy,
        Self::BackingInUse,
        Self::BackingUnusable,
        Self::ShrinkRefused,
        Self::InUse,
        Self::NoPool,
        Self::NoSpace,
        Self::PoolFailed,
        Self::StateUnusable,
        Self::LimitReached,
        Self::Starting,
        Self::Stopping,
        Self::Internal,
    ];

    /// The stable name, as in `google.rpc.ErrorInfo.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidField => "INVALID_FIELD",
            Self::RequestIdReused => "REQUEST_ID_REUSED",
            Self::InvalidPageToken => "INVALID_PAGE_TOKEN",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PathNotAllowed => "PATH_NOT_ALLOWED",
            Self::BackingBusy => "BACKING_BUSY",
            Self::BackingInUse => "BACKING_IN_USE",
            Self::BackingUnusable => "BACKING_UNUSABLE",
            Self::ShrinkRefused => "SHRINK_REFUSED",
            Self::InUse => "IN_USE",
            Self::NoPool => "NO_POOL",
            Self::NoSpace => "NO_SPACE",
            Self::PoolFailed => "POOL_FAILED",
            Self::StateUnusable => "STATE_UNUSABLE",
            Self::LimitReached => "LIMIT_REACHED",
            Self::Starting => "STARTING",
            Self::Stopping => "STOPPING",
            Self::Internal => "INTERNAL",
        }
    }

    /// The canonical code that goes with the reason.
    pub const fn code(self) -> Code {
        match self {
            Self::InvalidField | Self::RequestIdReused | Self::InvalidPageToken => {
                Code::InvalidArgument
            }
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::PathNotAllowed => Code::PermissionDenied,
            Self::BackingBusy
            | Self::BackingInUse
            | Self::BackingUnusable
            | Self::ShrinkRefused
            | Self::InUse
            | Self::NoPool
            | Self::PoolFailed
            | Self::StateUnusable => Code::FailedPrecondition,
            Self::LimitReached | Self::NoSpace => Code::ResourceExhausted,
            Self::Starting | Self::Stopping => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An operator's request that failed: what happened, why, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub reason: Reason,
    /// What happened, naming the resource.
    pub message: String,
    /// Why; empty when the message says it all.
    pub cause: String,
    /// What to do next; empty when there is nothing.
    pub hint: String,
    /// Further facts for programs: field names, limits, sizes with their unit.
    pub metadata: Vec<(&'static str, String)>,
}

impl Failure {
    /// A failure with neither cause nor hint yet.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            cause: String::new(),
            hint: String::new(),
            metadata: Vec::new(),
        }
    }

    /// Says why.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = cause.into();
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }

    /// A malformed field of a request.
    pub fn invalid_field(field: &'static str, message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidField, message).with("field", field)
    }

    /// Cause and hint of an error received from a server, if it is one of ours:
    /// `(reason, cause, hint)`.
    pub fn explain(status: &Status) -> Option<(String, String, String)> {
        let info = status.get_details_error_info()?;
        if info.domain != ERROR_DOMAIN {
            return None;
        }
        let field = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
        Some((info.reason.clone(), field(CAUSE), field(HINT)))
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut metadata: HashMap<String, String> = HashMap::new();
        for (key, value) in failure.metadata {
            metadata.insert(key.to_owned(), value);
        }
        if !failure.cause.is_empty() {
            metadata.insert(CAUSE.to_owned(), failure.cause);
        }
        if !failure.hint.is_empty() {
            metadata.insert(HINT.to_owned(), failure.hint);
        }
        let mut details = ErrorDetails::new();
        if let Some(field) = metadata.get("field") {
            details.add_bad_request_violation(field.clone(), failure.message.clone());
        }
        details.set_error_info(failure.reason.as_str(), ERROR_DOMAIN, metadata);
        Self::with_error_details(failure.reason.code(), failure.message, details)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn reasons_have_distinct_names_in_upper_snake_case() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte == b'_'),
                "{name}"
            );
        }
    }

    #[test]
    fn cause_and_hint_survive_the_wire() {
        let status = Status::from(
            Failure::new(Reason::BackingBusy, "namespace not created")
                .cause("another process holds the lock")
                .hint("stop it"),
        );
        assert_eq!(status.code(), Code::FailedPrecondition);
        let (reason, cause, hint) = Failure::explain(&status).unwrap();
        assert_eq!(reason, "BACKING_BUSY");
        assert_eq!(cause, "another process holds the lock");
        assert_eq!(hint, "stop it");
    }

    #[test]
    fn malformed_field_is_named_in_bad_request() {
        let status = Status::from(Failure::invalid_field("page_size", "page_size is negative"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "page_size");
    }

    #[test]
    fn foreign_errors_are_not_explained() {
        assert_eq!(Failure::explain(&Status::internal("x")), None);
    }
}
