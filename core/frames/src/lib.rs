//! What clients and a sprite's runtime say to each other over a WebSocket or a streamed answer.
//!
//! Codecs for exec, sessions, tunnels and watches, both directions of each, so that the runtime, the
//! `sprite` command and tests share one idea of the protocol. The crate refuses to do I/O, and it never
//! panics: every decoder here reads a stranger's bytes.
//!
//! Decoders are lenient where clients are known to differ (numbers as text, `SIGTERM` and `TERM`, fields
//! that are missing or unknown) and strict where leniency would hide a mistake. Encoders write the one
//! form that all known clients understand.

pub mod duration;
pub mod exec;
pub mod kill;
mod lenient;
pub mod message;
pub mod query;
pub mod session;
pub mod signal;
pub mod stream;
pub mod tunnel;
pub mod watch;

pub use self::{
    exec::ExecQuery,
    kill::{KillEvent, KillRequest},
    message::{ClientMessage, PortNotice, ServerMessage, SessionInfo},
    session::{SessionEntry, SessionList},
    signal::Signal,
    stream::{FromClient, FromServer, Stream},
    tunnel::{TunnelMessage, TunnelReply, TunnelRequest},
    watch::{FileEvent, FileEventKind, FileWatchMessage, FileWatchRequest, PortWatchMessage},
};

/// The longest text message that is decoded, in bytes. The longest legitimate one is a subscription to
/// many paths.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;

/// Why a text message or a body was not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TextError {
    /// It is longer than [`MAX_TEXT_BYTES`].
    #[error("it is longer than {MAX_TEXT_BYTES} bytes")]
    TooLong,
    /// It is no JSON, or not of the expected shape; the text says where.
    #[error("{0}")]
    Malformed(String),
}

/// Reads bounded JSON: an object, or null where that is possible.
fn from_json<'a, T: serde::Deserialize<'a>>(text: &'a [u8]) -> Result<T, TextError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(TextError::TooLong);
    }
    // serde would take a list for an object whose fields are in order.
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(TextError::Malformed("a list where an object was expected".into()));
    }
    serde_json::from_slice(text).map_err(|error| TextError::Malformed(error.to_string()))
}

/// Writes JSON. Nothing here has keys or values that JSON can't hold.
fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
