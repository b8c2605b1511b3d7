//! Errors as a person at a terminal reads them: what happened, why, what to do.

use std::fmt;
use std::process::ExitCode;

use bowline_api::Failure;
use bowline_server::{RunError, StartError};
use tonic::{Code, Status};

/// The command was understood and failed.
const EXIT_FAILED: u8 = 1;
/// The command line, the environment or the configuration file is wrong.
const EXIT_USAGE: u8 = 2;

/// What was served is served again if it is started again as it was.
const EXIT_START_AGAIN: u8 = 3;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct CliError {
    exit: u8,
    message: String,
    cause: String,
    hint: String,
    /// Stable name for programs, when the error came from a server.
    reason: Option<String>,
}

impl CliError {
    /// The command was understood and failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            exit: EXIT_FAILED,
            message: message.into(),
            cause: String::new(),
            hint: String::new(),
            reason: None,
        }
    }

    /// What was asked for makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: EXIT_USAGE,
            ..Self::failed(message)
        }
    }

    /// Says why.
    #[must_use]
    pub(crate) fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = cause.to_string();
        self
    }

    /// Says what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// An error a server answered with; `what` says what was not done.
    pub(crate) fn from_status(what: &str, status: &Status) -> Self {
        let message = match says_the_same(what, status.message()) {
            true => what.to_owned(),
            false => format!("{what}: {}", status.message()),
        };
        let error = Self::failed(message);
        match Failure::explain(status) {
            Some((reason, cause, hint)) => {
                let mut error = error.cause(cause).hint(hint);
                error.reason = Some(reason);
                error
            }
            None if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) => error
                .cause("there was no answer in time; what was begun goes on all the same")
                .hint(
                    "see what has become of it before you ask again, and the log of the data plane",
                ),
            None if status.code() == Code::Unimplemented => error
                .cause("the server does not know this call")
                .hint("check that --rpc is the address of a data plane of this version"),
            None => error.cause(format!("the server answered {:?}", status.code())),
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }
}

/// True if the server only names the resource in its own way: both end in "not resized".
fn says_the_same(what: &str, message: &str) -> bool {
    let undone = |text: &str| {
        text.rsplit_once(" not ")
            .map(|(_, undone)| undone.to_owned())
    };
    undone(what).is_some_and(|what| Some(what) == undone(message))
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if !self.cause.is_empty() {
            write!(f, "\ncause: {}", self.cause)?;
        }
        if !self.hint.is_empty() {
            write!(f, "\nhint:  {}", self.hint)?;
        }
        match &self.reason {
            Some(reason) => write!(f, "     [{reason}]"),
            None => Ok(()),
        }
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        let usage = error.is_usage();
        let failed = if usage { Self::usage } else { Self::failed };
        failed(error.to_string())
            .cause(error.cause())
            .hint(error.hint())
    }
}

impl From<RunError> for CliError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Start(error) => error.into(),
            error => Self {
                exit: match error.is_restart_enough() {
                    true => EXIT_START_AGAIN,
                    false => EXIT_FAILED,
                },
                ..Self::failed(error.to_string())
            }
            .cause(error.cause())
            .hint(error.hint()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_says_whether_starting_again_helps() {
        let code = |error: RunError| CliError::from(error).exit;
        assert_eq!(code(RunError::DriveBack), 3);
        assert_eq!(code(RunError::ReactorLost { index: 0 }), 3);
        assert_eq!(code(RunError::NotFlushed { devices: 1 }), 1);
        assert_eq!(code(RunError::Forced), 1);
    }

    #[test]
    fn who_waited_in_vain_is_told_that_it_may_happen_yet() {
        for status in [
            Status::cancelled("Timeout expired"),
            Status::deadline_exceeded("late"),
        ] {
            let error = CliError::from_status("volume db not created", &status);
            assert!(error.cause.contains("goes on all the same"), "{error}");
            assert!(error.hint.contains("what has become of it"), "{error}");
        }
    }

    #[test]
    fn server_and_verb_do_not_say_the_same_twice() {
        let said = |message: &str| {
            let what = "namespace 2 of X not resized";
            CliError::from_status(what, &Status::new(Code::Internal, message)).message
        };
        assert_eq!(
            said("subsystems/X/namespaces/2 not resized"),
            "namespace 2 of X not resized"
        );
        assert_eq!(
            said("subsystems/X/namespaces/2 does not exist"),
            "namespace 2 of X not resized: subsystems/X/namespaces/2 does not exist"
        );
    }
}
