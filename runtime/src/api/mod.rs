//! The runtime's own HTTP API: what a gateway forwards from below `/v1/sprites/{name}`.

mod error;
mod services;
mod stream;

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{Method, Uri},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::UnixStream;

use self::error::ApiError;
use crate::state::Runtime;

/// How long the head of a request may take, the wait for the first one included: a gateway keeps idle
/// connections for 15 s.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bodies are JSON that people wrote.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Serves one connection until either side ends it.
///
/// # Errors
/// The connection broke, or spoke no HTTP/1.
pub(crate) async fn serve(runtime: &Arc<Runtime>, stream: UnixStream) -> io::Result<()> {
    let service = TowerToHyperService::new(router(Arc::clone(runtime)));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

fn router(runtime: Arc<Runtime>) -> Router {
    Router::new()
        .route("/services", get(services::list))
        .route("/services/signal", post(services::signal))
        .route("/services/{service}", get(services::read).put(services::put).delete(services::delete))
        .route("/services/{service}/start", post(services::start))
        .route("/services/{service}/stop", post(services::stop))
        .route("/services/{service}/restart", post(services::restart))
        .route("/services/{service}/logs", get(services::logs))
        .fallback(|method: Method, uri: Uri| async move { ApiError::not_found(&method, uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::method_not_allowed(&method, uri.path())
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(runtime)
}
