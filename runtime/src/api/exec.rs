//! `/exec`: run a command, or attach to one that runs.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderName, HeaderValue},
    response::{IntoResponse as _, Response},
};
use frames::{ExecQuery, SessionList};

use super::{
    error::ApiError,
    exec_socket::{self, Client},
    websocket::Upgrade,
};
use crate::{
    exec::Command,
    sessions::{Attachment, DEFAULT_LIMIT, Known},
    state::Runtime,
};

/// What a socket can do beyond the oldest protocol.
const CAPABILITIES: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-sprite-capabilities"), HeaderValue::from_static("signal"));

/// Without an upgrade the list of sessions; with one, a new session or an attachment.
pub(super) async fn get(
    State(runtime): State<Arc<Runtime>>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let Some(upgrade) = Upgrade::from_request(&mut request)? else {
        return Ok(list(&runtime));
    };
    let query = decode(&request)?;
    match query.session.clone() {
        Some(id) => attach_to(&runtime, upgrade, &id, &query),
        None => run(&runtime, upgrade, query),
    }
}

/// An attachment by path.
pub(super) async fn attach(
    State(runtime): State<Arc<Runtime>>,
    id: Result<Path<String>, PathRejection>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let Path(id) = id?;
    match Upgrade::from_request(&mut request)? {
        Some(upgrade) => attach_to(&runtime, upgrade, &id, &decode(&request)?),
        None => {
            let Known::Live(session) = runtime.sessions.find(&id) else {
                return Err(ApiError::no_session(&id));
            };
            Ok(axum::Json(session.entry()).into_response())
        }
    }
}

fn list(runtime: &Runtime) -> Response {
    axum::Json(SessionList::from(runtime.sessions.list())).into_response()
}

fn decode(request: &Request) -> Result<ExecQuery, ApiError> {
    let query = request.uri().query().unwrap_or_default();
    let query = ExecQuery::decode(query).map_err(|error| ApiError::bad_request(error.to_string()))?;
    if query.control_mode {
        return Err(ApiError::bad_request("tmux control mode (cc) is not offered; attach without it"));
    }
    Ok(query)
}

fn run(runtime: &Arc<Runtime>, upgrade: Upgrade, query: ExecQuery) -> Result<Response, ApiError> {
    let limit = limit(&query);
    let command = command(runtime, query)?;
    let client = Client { is_owner: true, input: command.stdin, drop_early_eof: false };
    let attachment = runtime.sessions.start(&command, limit)?;
    Ok(accept(runtime, upgrade, attachment, client))
}

/// The command that a query asks for.
pub(super) fn command(runtime: &Runtime, query: ExecQuery) -> Result<Command, ApiError> {
    Command::new(query, &runtime.sessions.environment()).ok_or_else(|| {
        ApiError::bad_request(
            "No command specified: give cmd (once for each argument), or an id to attach to",
        )
    })
}

/// How long the command may run without its client; `None` is for ever.
fn limit(query: &ExecQuery) -> Option<Duration> {
    match query.max_run_after_disconnect {
        Some(Duration::ZERO) => None,
        Some(limit) => Some(limit),
        None if query.tty || query.detachable => None,
        None => Some(DEFAULT_LIMIT),
    }
}

fn attach_to(
    runtime: &Arc<Runtime>,
    upgrade: Upgrade,
    id: &str,
    query: &ExecQuery,
) -> Result<Response, ApiError> {
    let Known::Live(session) = runtime.sessions.find(id) else { return Err(ApiError::no_session(id)) };
    let terminal = session.has_terminal();
    let client = Client { is_owner: false, input: query.stdin.unwrap_or(terminal), drop_early_eof: terminal };
    if let (Some(rows), Some(cols)) = (query.rows, query.cols) {
        session.resize(rows, cols);
    }
    Ok(accept(runtime, upgrade, session.attach(), client))
}

fn accept(runtime: &Arc<Runtime>, upgrade: Upgrade, attachment: Attachment, client: Client) -> Response {
    let runtime = Arc::clone(runtime);
    upgrade.accept(&[CAPABILITIES], move |socket| exec_socket::serve(runtime, socket, attachment, client))
}
