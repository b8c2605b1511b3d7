//! Log lines: for people on a terminal, JSON for machines, always on stderr.

mod writer;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::error::CliError;
pub(crate) use writer::Guard;

/// Lines that wait to be written at most; more are dropped and counted.
const LINES_MAX: usize = 4096;

/// What is logged when nobody says.
const LEVEL_DEFAULT: &str = "info";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// Lines for people; in colour on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Checks a level as `--log-level` takes it.
pub(crate) fn filter(level: Option<&str>) -> Result<EnvFilter, CliError> {
    let level = level.unwrap_or(LEVEL_DEFAULT);
    EnvFilter::builder().parse(level).map_err(|source| {
        CliError::usage(format!("{level:?} is not a log level"))
            .cause(source)
            .hint(
                "write error, warn, info, debug or trace, or rooms such as info,bowline_tcp=debug",
            )
    })
}

/// Prints the error that a process ends with. One that nobody reads does not keep it.
pub(crate) fn last_words(text: &str) {
    if let Ok((mut lossy, guard)) = writer::start(io::stderr(), 1, |_| {}) {
        // Never fails, and finds room: it is the only line.
        let _taken = lossy.write_all(format!("{text}\n").as_bytes());
        drop(guard);
    }
}

/// Starts logging; what is said until the guard is dropped is written.
#[must_use]
pub(crate) fn start(format: LogFormat, filter: EnvFilter) -> Option<Guard> {
    let lost = |lines| tracing::warn!(lines, "log lines were dropped: stderr was not read");
    let (lossy, guard) = writer::start(io::stderr(), LINES_MAX, lost).ok()?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || lossy.clone());
    // Only fails when a subscriber is set already, and this is the only place that sets one.
    let _set_once = match format {
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).with_target(false).try_init()
        }
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_target(true)
            .try_init(),
    };
    Some(guard)
}
