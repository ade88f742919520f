//! Checkpoints: list, take, restore, remove.

use std::{convert::Infallible, sync::Arc, time::Duration};

use agent_api::{
    Checkpoint, CreateCheckpoint, MAX_COMMENT_BYTES, Progress, ProgressKind, watch::HEARTBEAT_MS,
};
use axum::{
    Json,
    body::{Body as StreamBody, Bytes},
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use ids::{CheckpointId, SpriteId};
use jiff::Timestamp;
use tokio::{sync::mpsc, time::timeout};

use super::{
    answer::{Body, Failure},
    sprites::handle,
};
use crate::agent::Agent;

pub(crate) async fn list(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<SpriteId>,
) -> Result<Json<Vec<Checkpoint>>, Failure> {
    Ok(Json(handle(&agent, id)?.checkpoints().await?))
}

pub(crate) async fn create(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<SpriteId>,
    Body(ask): Body<CreateCheckpoint>,
) -> Result<Response, Failure> {
    if ask.comment.len() > MAX_COMMENT_BYTES {
        let message = format!("a comment has at most {MAX_COMMENT_BYTES} bytes");
        return Err(Failure::new(StatusCode::BAD_REQUEST, "bad_comment", message));
    }
    Ok(told(handle(&agent, id)?.take_checkpoint(ask).await?))
}

pub(crate) async fn restore(
    State(agent): State<Arc<Agent>>,
    Path((id, checkpoint)): Path<(SpriteId, CheckpointId)>,
) -> Result<Response, Failure> {
    Ok(told(handle(&agent, id)?.restore_checkpoint(checkpoint).await?))
}

pub(crate) async fn remove(
    State(agent): State<Arc<Agent>>,
    Path((id, checkpoint)): Path<(SpriteId, CheckpointId)>,
) -> Result<StatusCode, Failure> {
    handle(&agent, id)?.forget_checkpoint(checkpoint).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Streams what is told, with a line now and then where nothing is.
fn told(lines: mpsc::Receiver<Progress>) -> Response {
    let body = stream::unfold(lines, |mut lines| async move {
        let line = match timeout(Duration::from_millis(HEARTBEAT_MS), lines.recv()).await {
            Ok(line) => line?,
            Err(_) => Progress {
                kind: ProgressKind::Info,
                data: Some("It goes on".into()),
                error: None,
                time: Timestamp::now(),
            },
        };
        let mut bytes =
            serde_json::to_vec(&line).expect("our own types have string keys only, so they serialize");
        bytes.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), lines))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], StreamBody::from_stream(body)).into_response()
}
