//! Structured logs, the same in every program.
//!
//! Logs go to stderr: stdout belongs to results. A line is a constant sentence plus fields, as text
//! for people or as JSON for machines. The filter is taken as an argument, not from the environment:
//! only `main` reads that.

use std::{io::IsTerminal, str::FromStr};

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is not a log format; use \"text\" or \"json\"")),
        }
    }
}

/// Starts logging for the whole process. `filter` is in the syntax of `tracing`'s directives, such as
/// `info` or `info,gateway=debug`.
///
/// # Errors
/// A filter that does not parse, or a second call.
pub fn init(format: Format, filter: &str) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(filter).map_err(|error| format!("{filter:?} is not a log filter: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let done = match format {
        Format::Text => registry
            .with(
                fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_target(false),
            )
            .try_init(),
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_target(false))
            .try_init(),
    };
    done.map_err(|error| format!("logging was already started: {error}"))
}
