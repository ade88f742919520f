//! What can go wrong, said to the person who typed the command.

use std::process::ExitCode;

/// The API refused or failed, a machine was not reached, or nothing could be done.
pub(crate) const FAILED: u8 = 1;
/// What a shell adds to the number of the signal that ended a process.
pub(crate) const SIGNALLED: u8 = 128;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "could not reach {api}: {reason}\nIs it running there? `make run` starts one; --api, SPRITES_API_URL or `sprite login URL` says where it is."
    )]
    Unreachable { api: String, reason: String },
    #[error(
        "{message}\nUse a token of the organization: `sprite login`, SPRITES_TOKEN or --token. On the server, `vmm-agent token mint` makes one."
    )]
    Unauthorized { message: String },
    #[error("{}", refusal(*status, code, message, *retry_after))]
    Refused { status: u16, code: String, message: String, retry_after: Option<u64> },
    #[error("{0}")]
    Said(String),
    /// Everything has been said already, or there is nothing to say: end with this code.
    #[error("ended with {0}")]
    Exit(u8),
}

fn refusal(status: u16, code: &str, message: &str, retry_after: Option<u64>) -> String {
    let mut text = message.to_owned();
    if status == 501 && code == "not_implemented" {
        text.push_str("\nIt comes with a later version of the server.");
    }
    if let Some(seconds) = retry_after {
        text.push_str(&format!("\nTry again in {seconds} s."));
    }
    text
}

impl Error {
    pub(crate) fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }

    /// The code to end with.
    pub(crate) const fn code(&self) -> u8 {
        match self {
            Self::Exit(code) => *code,
            Self::Unreachable { .. } | Self::Unauthorized { .. } | Self::Refused { .. } | Self::Said(_) => {
                FAILED
            }
        }
    }

    /// Whether it may go away by itself and nothing was done yet.
    pub(crate) const fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(*status, 429 | 502 | 503 | 504),
            Self::Unauthorized { .. } | Self::Said(_) | Self::Exit(_) => false,
        }
    }

    /// Whether what was asked for is not there.
    pub(crate) const fn is_absence(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Who read our output has seen enough: end as if by SIGPIPE, without a word.
            return Self::Exit(SIGNALLED + 13);
        }
        Self::Said(error.to_string())
    }
}

/// Says what went wrong and returns the code to end with.
pub(crate) fn report(error: &Error) -> ExitCode {
    if !matches!(error, Error::Exit(_)) {
        eprintln!("sprite: {error}");
    }
    ExitCode::from(error.code())
}

/// The innermost cause: "connection refused" says more than "error sending request".
pub(crate) fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
