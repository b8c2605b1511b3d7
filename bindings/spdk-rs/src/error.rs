//! What went wrong, why, and what to do about it.

use std::fmt;
use std::io;

/// Why something could not be done.
#[derive(Debug)]
pub struct Error {
    what: String,
    why: String,
    help: Option<&'static str>,
    errno: Option<i32>,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            help: None,
            errno: None,
        }
    }

    /// `result` is a negative errno, as SPDK's functions return it.
    pub(crate) fn of_result(what: impl Into<String>, result: i32) -> Self {
        let errno = result.saturating_abs();
        Self {
            errno: Some(errno),
            ..Self::new(what, io::Error::from_raw_os_error(errno).to_string())
        }
    }

    pub(crate) fn no_memory(what: impl Into<String>) -> Self {
        Self::of_result(what, -libc::ENOMEM)
    }

    /// The same of something that wanted this.
    pub(crate) fn instead_of(self, what: String) -> Self {
        Self { what, ..self }
    }

    pub(crate) fn help(self, help: &'static str) -> Self {
        Self {
            help: Some(help),
            ..self
        }
    }

    /// The error number, where the library gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        match self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = error.errno.map_or(io::ErrorKind::Other, |errno| {
            io::Error::from_raw_os_error(errno).kind()
        });
        Self::new(kind, error)
    }
}
