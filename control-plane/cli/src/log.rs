//! Log lines: for people on a terminal, JSON for machines, always on stderr.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::error::CliError;

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

/// Starts logging for the life of the process.
pub(crate) fn start(format: LogFormat, filter: EnvFilter) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
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
}
