//! The agent's HTTP/JSON API: thin handlers that parse, ask whoever owns the answer, and reply.

mod answer;
mod checkpoints;
mod leases;
mod organizations;
mod sprites;
mod watch;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    routing::{delete, get, post},
};

pub(crate) use answer::{Failure, chain};

use crate::agent::Agent;

/// All routes. `/livez` and `/readyz` are for supervisors, `/metrics` for Prometheus.
pub(crate) fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/sprites", get(sprites::list).post(sprites::create))
        .route("/v1/sprites/{id}", get(sprites::read).patch(sprites::change).delete(sprites::destroy))
        .route("/v1/sprites/{id}/sleep", post(sprites::sleep))
        .route("/v1/sprites/{id}/wake", post(sprites::wake))
        .route("/v1/sprites/{id}/why", get(sprites::why))
        .route("/v1/sprites/{id}/checkpoints", get(checkpoints::list).post(checkpoints::create))
        .route("/v1/sprites/{id}/checkpoints/{checkpoint}", delete(checkpoints::remove))
        .route("/v1/sprites/{id}/checkpoints/{checkpoint}/restore", post(checkpoints::restore))
        .route("/v1/organizations", get(organizations::list))
        .route("/v1/tokens", get(organizations::list_tokens).post(organizations::mint))
        .route("/v1/tokens/{id}", delete(organizations::revoke))
        .route("/v1/watch", get(watch::stream))
        .route("/v1/leases", post(leases::upgrade))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(answer::unknown_path)
        .with_state(agent)
}

async fn ready(State(agent): State<Arc<Agent>>) -> (StatusCode, &'static str) {
    if agent.shutdown.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics(State(agent): State<Arc<Agent>>) -> Result<String, answer::Failure> {
    // Of each sprite some lines of `/proc` are read.
    let rendered = tokio::task::spawn_blocking(move || agent.metrics.render(&agent)).await;
    let text = rendered.map_err(|error| answer::Failure::internal(&error))?;
    text.map_err(|error| answer::Failure::internal(&error))
}
