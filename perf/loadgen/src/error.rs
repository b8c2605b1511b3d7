//! Errors as a person at a terminal reads them: what happened, why, what to do.

use std::fmt;
use std::process::ExitCode;

/// The command was understood and failed.
const EXIT_FAILED: u8 = 1;
/// The command line makes no sense.
const EXIT_USAGE: u8 = 2;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerfError {
    exit: u8,
    message: String,
    cause: String,
    hint: String,
}

impl PerfError {
    /// The command was understood and failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            exit: EXIT_FAILED,
            message: message.into(),
            cause: String::new(),
            hint: String::new(),
        }
    }

    /// What was asked for makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: EXIT_USAGE,
            ..Self::failed(message)
        }
    }

    /// Says why.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = cause.to_string();
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }
}

impl fmt::Display for PerfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if !self.cause.is_empty() {
            write!(f, "\ncause: {}", self.cause)?;
        }
        if !self.hint.is_empty() {
            write!(f, "\nhint:  {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for PerfError {}
