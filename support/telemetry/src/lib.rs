//! Structured logs, the same in every program.
//!
//! Logs go to stderr: stdout belongs to results. A line is a constant sentence plus fields, as text
//! for people or as JSON for machines. The filter is taken as an argument, not from the environment:
//! only `main` reads that.
//!
//! Whoever reads stderr may be slow, and a file's disk be busy. A server must not wait for that, so it logs in the
//! background and rather loses lines, which are counted.

use std::{
    io::{self, IsTerminal},
    str::FromStr,
    sync::OnceLock,
};

#[cfg(feature = "metrics")]
mod metrics;

#[cfg(feature = "metrics")]
pub use metrics::LostLines;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter,
    fmt::{self, MakeWriter},
    prelude::*,
};

/// Lines that wait for their writing; more than these are lost.
const MOST_WAITING: usize = 16 * 1024;

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

/// Counts lines that were lost; as logging, there is one for the process.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Logging in the background. What still waits is written when this is dropped, for as long as a second.
#[derive(Debug)]
#[must_use = "without it nothing is written"]
pub struct Background {
    _writer: WorkerGuard,
}

/// Starts logging for the whole process: each line is written before its event is over. `filter` is in the syntax of
/// `tracing`'s directives, such as `info` or `info,gateway=debug`.
///
/// # Errors
/// A filter that does not parse, or a second call.
pub fn init(format: Format, filter: &str) -> Result<(), String> {
    start(format, filter, io::stderr)
}

/// As [`init`], but nobody waits for a line to be written.
///
/// # Errors
/// As there.
pub fn init_in_background(format: Format, filter: &str) -> Result<Background, String> {
    let (lines, writer) = NonBlockingBuilder::default()
        .buffered_lines_limit(MOST_WAITING)
        .thread_name("log")
        .finish(io::stderr());
    let lost = lines.error_counter();
    start(format, filter, lines)?;
    LOST.get_or_init(|| lost);
    Ok(Background { _writer: writer })
}

fn start<W>(format: Format, filter: &str, lines: W) -> Result<(), String>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter =
        EnvFilter::try_new(filter).map_err(|error| format!("{filter:?} is not a log filter: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(lines).with_target(false);
    let done = match format {
        Format::Text => registry.with(layer.with_ansi(io::stderr().is_terminal())).try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    done.map_err(|error| format!("logging was already started: {error}"))
}
