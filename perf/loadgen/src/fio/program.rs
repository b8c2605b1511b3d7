//! The fio of this machine: is it there, is it new enough, and one run of it.

use std::ffi::OsStr;
use std::io::{ErrorKind, Write as _};
use std::process::{Command, Output, Stdio};

use crate::error::PerfError;

/// The first with `ioengine=io_uring`, which the jobs use.
const VERSION_MIN: Version = Version(3, 13);
/// Lines of what fio says that are passed on when it fails.
const SAID_LINES_MAX: usize = 12;
const HINT: &str = "Debian and Ubuntu: apt-get install fio; Fedora and RHEL: dnf install fio";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// A fio that can run the jobs.
#[derive(Debug)]
pub(super) struct Fio {
    /// As it names itself, such as `fio-3.33`.
    pub(super) version: String,
}

/// What a run left.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) printed: String,
    /// The last lines of what it said besides; empty if it said nothing.
    pub(super) said: String,
    pub(super) succeeded: bool,
}

impl Fio {
    pub(super) fn find() -> Result<Self, PerfError> {
        let output = match Command::new("fio").arg("--version").output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(PerfError::failed("fio is not installed").hint(HINT));
            }
            Err(error) => return Err(PerfError::failed("fio cannot be run").cause(error)),
            Ok(output) => output,
        };
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match Version::parse(&version) {
            Some(found) if found >= VERSION_MIN => Ok(Self { version }),
            Some(_) => Err(PerfError::failed(format!("{version} is too old"))
                .cause(format!(
                    "the jobs want fio {}.{} or newer",
                    VERSION_MIN.0, VERSION_MIN.1
                ))
                .hint(HINT)),
            None => Err(PerfError::failed("fio does not tell its version")
                .cause(last_lines(&output.stderr))),
        }
    }

    /// Runs a job file given as text on the device of that name; to read only, unless it may write.
    pub(super) fn run(&self, script: &str, device: &OsStr, write: bool) -> Result<Ran, PerfError> {
        let failed = |error| PerfError::failed("fio cannot be run").cause(error);
        let mut command = Command::new("fio");
        command.arg("--output-format=json+");
        if !write {
            command.arg("--readonly");
        }
        command
            .arg("-")
            .env("BOWLINE_DEVICE", device)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read to the end says why on its standard error.
            let _ = stdin.write_all(script.as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        Ok(Ran::of(&output))
    }
}

impl Ran {
    fn of(output: &Output) -> Self {
        Self {
            printed: String::from_utf8_lossy(&output.stdout).into_owned(),
            said: last_lines(&output.stderr),
            succeeded: output.status.success(),
        }
    }
}

impl Version {
    /// From `fio-3.33` or `fio-3.33-12-gabcdef`.
    fn parse(text: &str) -> Option<Self> {
        let numbers = text.strip_prefix("fio-")?.split('-').next()?;
        let mut numbers = numbers.split('.').map(str::parse);
        let major = numbers.next()?.ok()?;
        Some(Self(
            major,
            numbers.next().and_then(Result::ok).unwrap_or(0),
        ))
    }
}

fn last_lines(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let (_, last) = lines.split_at(lines.len().saturating_sub(SAID_LINES_MAX));
    last.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let version = |text| Version::parse(text);
        assert_eq!(version("fio-3.33"), Some(Version(3, 33)));
        assert_eq!(version("fio-3.36-5-gb8c7923917"), Some(Version(3, 36)));
        assert_eq!(version("fio-4.0.1"), Some(Version(4, 0)));
        assert!(version("fio-3.9") < Some(VERSION_MIN));
        assert_eq!(version("nothing"), None);
        assert_eq!(version("fio-x"), None);
    }

    #[test]
    fn last_lines_are_what_fio_said_last() {
        let said: Vec<String> = (1..=15).map(|line| format!(" {line}\n\n")).collect();
        assert_eq!(
            last_lines(said.concat().as_bytes()),
            "4; 5; 6; 7; 8; 9; 10; 11; 12; 13; 14; 15"
        );
        assert_eq!(last_lines(b""), "");
    }
}
