//! Ending sessions: a streamed answer that tells what is being done.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{
        Path, RawQuery, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::header,
    response::{IntoResponse as _, Response},
};
use frames::{
    KillEvent, KillRequest, Signal, duration,
    kill::{DEFAULT_TIMEOUT, KillEventKind as Kind},
};
use futures_util::stream;
use tokio::time::timeout;

use super::error::ApiError;
use crate::{
    sessions::{KILL_MARGIN, Known, Session},
    state::Runtime,
};

/// Sends a signal, and a KILL when the time is up.
pub(super) async fn kill(
    State(runtime): State<Arc<Runtime>>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let Path(id) = id?;
    let asked = KillRequest::decode(query.as_deref().unwrap_or_default(), &body?)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let session = match runtime.sessions.find(&id) {
        Known::Live(session) => session,
        Known::Ended(code) => return Err(ApiError::session_gone(&id, code)),
        Known::Unknown => return Err(ApiError::no_session(&id)),
    };
    if let Some(code) = session.exit_code() {
        return Err(ApiError::session_gone(&id, code));
    }
    let signal = asked.signal.unwrap_or(Signal::TERM);
    let grace = asked.timeout.unwrap_or(DEFAULT_TIMEOUT);
    session.ask_to_end(signal, (!grace.is_zero()).then_some(grace));
    let text = format!("Signaling {signal} to process group {}", session.pid());
    let first = KillEvent {
        signal: Some(signal.to_string()),
        pid: Some(session.pid()),
        ..KillEvent::new(Kind::Signal, text)
    };
    let end = if grace.is_zero() { End::Told(complete(None)) } else { End::Awaited(session, grace) };
    let state = (VecDeque::from([first]), end);
    let lines = stream::unfold(state, |(mut ready, mut end)| async move {
        loop {
            if let Some(event) = ready.pop_front() {
                return Some((Ok::<_, Infallible>(Bytes::from(event.encode())), (ready, end)));
            }
            end = end.next(&mut ready).await?;
        }
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// What is still to be told.
enum End {
    /// Whether it obeys within this time.
    Awaited(Arc<Session>, Duration),
    /// That it has been killed.
    Killed(Arc<Session>),
    /// Only this.
    Told(KillEvent),
    Over,
}

impl End {
    /// Waits for what comes next; `None` when all has been told.
    async fn next(self, ready: &mut VecDeque<KillEvent>) -> Option<Self> {
        match self {
            Self::Awaited(session, grace) => match timeout(grace, session.exited()).await {
                Ok(code) => {
                    ready.push_back(KillEvent::new(Kind::Exited, format!("Session ended with code {code}")));
                    Some(Self::Told(complete(Some(code))))
                }
                Err(_) => {
                    let text =
                        format!("Session did not end within {}; sending SIGKILL", duration::format(grace));
                    ready.push_back(KillEvent::new(Kind::Timeout, text));
                    Some(Self::Killed(session))
                }
            },
            Self::Killed(session) => match timeout(KILL_MARGIN, session.exited()).await {
                Ok(code) => {
                    ready.push_back(KillEvent::new(Kind::Killed, "Session was killed"));
                    Some(Self::Told(complete(Some(code))))
                }
                Err(_) => {
                    let text =
                        "Session was killed but its process is still there: it may be waiting for a disk";
                    Some(Self::Told(KillEvent::new(Kind::Error, text)))
                }
            },
            Self::Told(event) => {
                ready.push_back(event);
                Some(Self::Over)
            }
            Self::Over => None,
        }
    }
}

fn complete(code: Option<u8>) -> KillEvent {
    let text =
        code.map_or_else(|| "Signal sent".to_owned(), |code| format!("Session ended with code {code}"));
    KillEvent { exit_code: code.map(i32::from), ..KillEvent::new(Kind::Complete, text) }
}
