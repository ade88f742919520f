//! The watch stream: a snapshot, then every change.

use std::{convert::Infallible, sync::Arc, time::Duration};

use agent_api::watch::{HEARTBEAT_MS, WatchEvent, WatchLine};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::{sync::broadcast::error::RecvError, time::timeout};

use crate::{agent::Agent, directory::Watch};

/// Streams until the watcher leaves, lags too far behind, or the agent shuts down.
pub(crate) async fn stream(State(agent): State<Arc<Agent>>) -> Response {
    let Watch { snapshot, changes } = agent.directory.watch();
    let snapshot: Bytes = snapshot.iter().flat_map(line).collect();
    let first = stream::once(async { Ok::<_, Infallible>(snapshot) });
    let rest = stream::unfold((agent, changes), |(agent, mut changes)| async move {
        let next = tokio::select! {
            next = timeout(Duration::from_millis(HEARTBEAT_MS), changes.recv()) => next,
            () = agent.shutdown.cancelled() => return None,
        };
        let bytes = match next {
            Ok(Ok(change)) => line(&change),
            // The snapshot of a new stream will be cheaper than what it has missed.
            Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) => return None,
            Err(_) => line(&WatchLine { revision: agent.directory.revision(), event: WatchEvent::Heartbeat }),
        };
        Some((Ok(Bytes::from(bytes)), (agent, changes)))
    });
    let body = Body::from_stream(stream::StreamExt::chain(first, rest));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

fn line(line: &WatchLine) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line).expect("our own types have string keys only, so they serialize");
    bytes.push(b'\n');
    bytes
}
