//! `/v1/checkpoints` of the management socket: the host has them, and is asked.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, RawQuery, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use ids::CheckpointId;
use runtime_api::{Question, Reply};
use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use crate::state::Runtime;

type Shared = State<Arc<Runtime>>;
type Id = Result<Path<String>, PathRejection>;

#[derive(Default, Deserialize)]
struct Wish {
    comment: Option<String>,
}

pub(super) async fn list(State(runtime): Shared, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let Reply { status, mut body } = runtime.host.ask(Question::ListCheckpoints).await?;
    let with_automatic = query.is_some_and(|query| query.contains("includeAuto=true"));
    if let Some(all) = body.as_array_mut().filter(|_| !with_automatic) {
        all.retain(|one| one["is_auto"] != true);
    }
    Ok(answer(status, &body))
}

pub(super) async fn read(State(runtime): Shared, id: Id) -> Result<Response, ApiError> {
    let id = parsed(&id?.0)?;
    let Reply { status, body } = runtime.host.ask(Question::ListCheckpoints).await?;
    match body.as_array() {
        None => Ok(answer(status, &body)),
        Some(all) => {
            let found = all.iter().find(|one| one["id"] == id.to_string());
            found.map(|one| answer(200, one)).ok_or_else(|| ApiError::no_checkpoint(&id.to_string()))
        }
    }
}

/// Answered when it is there, with the last line of what the host tells.
pub(super) async fn create(State(runtime): Shared, body: Bytes) -> Result<Response, ApiError> {
    let wish: Wish = match body.is_empty() {
        true => Wish::default(),
        false => serde_json::from_slice(&body)
            .map_err(|error| ApiError::bad_request(format!("the body is not usable: {error}")))?,
    };
    let comment = wish.comment.unwrap_or_default();
    let Reply { status, body } = runtime.host.ask(Question::TakeCheckpoint { comment }).await?;
    if status != 200 {
        return Ok(answer(status, &body));
    }
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], format!("{body}\n")).into_response())
}

/// Answered when it has begun: the sprite ends soon, and with it whoever asked.
pub(super) async fn restore(State(runtime): Shared, id: Id) -> Result<Response, ApiError> {
    ask_about(&runtime, id, |checkpoint| Question::RestoreCheckpoint { checkpoint }).await
}

pub(super) async fn remove(State(runtime): Shared, id: Id) -> Result<Response, ApiError> {
    ask_about(&runtime, id, |checkpoint| Question::RemoveCheckpoint { checkpoint }).await
}

async fn ask_about(
    runtime: &Runtime,
    id: Id,
    question: impl FnOnce(CheckpointId) -> Question,
) -> Result<Response, ApiError> {
    let Reply { status, body } = runtime.host.ask(question(parsed(&id?.0)?)).await?;
    Ok(answer(status, &body))
}

fn parsed(text: &str) -> Result<CheckpointId, ApiError> {
    text.parse().map_err(|_| ApiError::no_checkpoint(text))
}

fn answer(status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    if status == StatusCode::NO_CONTENT {
        status.into_response()
    } else {
        (status, Json(body)).into_response()
    }
}
