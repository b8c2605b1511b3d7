//! What a person is told when a pool cannot be used, or does not do what was asked.

use bowline_api::{Failure, Reason};
use bowline_pool::{OpenError, PoolError};

/// Why the pool on a drive is not served.
pub(crate) fn explain_pool(device: &str, error: &OpenError) -> Failure {
    let failure = Failure::new(Reason::BackingUnusable, format!("{device} is not served"))
        .cause(error.to_string());
    match error {
        OpenError::Superblock(error) => failure.hint(error.hint()),
        OpenError::NotBlank(_) => failure
            .hint("check that this is the drive you mean; --format --force destroys what it holds"),
        OpenError::IsAPool => failure.hint("leave --format out to serve the pool"),
        OpenError::Layout(_) => failure.hint("choose a larger drive"),
        OpenError::ReadOnly => failure.hint("a pool is written to even when it is only read"),
        OpenError::Drive(_) => failure.hint("look for errors of the drive in the kernel log"),
        OpenError::Memory(_) => failure.hint("check the limits on memory"),
        OpenError::Journal(_)
        | OpenError::Checkpoint(_)
        | OpenError::Record(_)
        | OpenError::Map(_) => failure.hint(
            "nothing was changed; copy the drive before anything else is tried with it, and see \
             all that is wrong with `bowline pool check`",
        ),
    }
}

/// Why the pool did not do what was asked for `name`.
pub(crate) fn explain_operation(what: &str, error: PoolError) -> Failure {
    let (reason, hint) = match error {
        PoolError::NoSuchVolume | PoolError::NoSuchSnapshot => (Reason::NotFound, ""),
        PoolError::NoSpace => (
            Reason::NoSpace,
            "make it thin, or smaller, or delete volumes that are not needed",
        ),
        PoolError::WouldLose => (
            Reason::ShrinkRefused,
            "force it if what is beyond the new end is not needed",
        ),
        PoolError::Drive(_) => (
            Reason::PoolFailed,
            "look for errors of the drive in the kernel log",
        ),
        PoolError::Full => (
            Reason::LimitReached,
            "delete volumes or snapshots that are not needed",
        ),
        PoolError::Invalid(_) => (Reason::InvalidField, ""),
        PoolError::Busy => (Reason::LimitReached, "try again in a moment"),
        PoolError::Closing => (Reason::Stopping, "ask again when it has started anew"),
        PoolError::Journal | PoolError::Vanished => (
            Reason::PoolFailed,
            "look for errors of the drive in the kernel log, and start the data plane again",
        ),
    };
    Failure::new(reason, what.to_owned())
        .cause(error.to_string())
        .hint(hint)
}
