//! The runtime's own HTTP API: what a gateway forwards from below `/v1/sprites/{name}`.

mod checkpoints;
mod connection;
mod error;
mod exec;
mod exec_http;
mod exec_socket;
mod file_watch;
mod files;
mod info;
mod ports;
mod services;
mod sessions;
mod stream;
mod tunnel;
mod websocket;

use std::{io, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    http::{Method, Uri},
    routing::{any, delete, get, post, put},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::UnixStream;

use self::{
    connection::{Connection, HostStream},
    error::ApiError,
};
use crate::state::Runtime;

/// How long the head of a request may take, the wait for the first one included: a gateway keeps idle
/// connections for 15 s.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bodies are JSON that people wrote.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Serves one connection of the host's until either side ends it.
///
/// # Errors
/// The connection broke, or spoke no HTTP/1.
pub(crate) async fn serve(runtime: &Arc<Runtime>, stream: UnixStream) -> io::Result<()> {
    serve_router(finish(services().merge(sessions()).merge(files()), runtime), stream).await
}

/// The same for one from inside, over the management socket.
///
/// # Errors
/// As above.
pub(crate) async fn serve_local(runtime: &Arc<Runtime>, stream: UnixStream) -> io::Result<()> {
    let inside = services().merge(checkpoints()).route("/info", get(info::read));
    let router = LATER
        .iter()
        .fold(Router::new().nest("/v1", inside), |router, path| router.route(path, any(ApiError::not_yet)));
    serve_router(finish(router, runtime), stream).await
}

/// What the protocol has on the management socket and this version has not.
const LATER: [&str; 2] = ["/v1/tasks", "/v1/tasks/{*rest}"];

async fn serve_router(router: Router, stream: UnixStream) -> io::Result<()> {
    let connection = Connection::default();
    let router = router.layer(Extension(connection.clone()));
    let stream = TokioIo::new(HostStream::new(stream, connection.clone()));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(stream, TowerToHyperService::new(router))
        .with_upgrades()
        .await
        .map_err(io::Error::other)?;
    if let Some(next) = connection.take_next() {
        next.await;
    }
    Ok(())
}

fn services() -> Router<Arc<Runtime>> {
    Router::new()
        .route("/services", get(services::list))
        .route("/services/signal", post(services::signal))
        .route("/services/{service}", get(services::read).put(services::put).delete(services::delete))
        .route("/services/{service}/start", post(services::start))
        .route("/services/{service}/stop", post(services::stop))
        .route("/services/{service}/restart", post(services::restart))
        .route("/services/{service}/logs", get(services::logs))
}

fn checkpoints() -> Router<Arc<Runtime>> {
    Router::new()
        .route("/checkpoint", post(checkpoints::create))
        .route("/checkpoints", get(checkpoints::list).post(checkpoints::create))
        .route("/checkpoints/{id}", get(checkpoints::read).delete(checkpoints::remove))
        .route("/checkpoints/{id}/restore", post(checkpoints::restore))
}

fn sessions() -> Router<Arc<Runtime>> {
    Router::new()
        .route("/exec", get(exec::get).post(exec_http::post))
        .route("/exec/{session}", get(exec::attach).delete(sessions::kill))
        .route("/exec/{session}/kill", post(sessions::kill))
        .route("/ports/watch", get(ports::watch))
        .route("/proxy", get(tunnel::open))
}

/// Older clients write with POST, and delete without naming the verb.
fn files() -> Router<Arc<Runtime>> {
    Router::new()
        .route("/fs", delete(files::delete))
        .route("/fs/read", get(files::read))
        .route("/fs/write", put(files::write).post(files::write))
        .route("/fs/list", get(files::list))
        .route("/fs/delete", delete(files::delete))
        .route("/fs/rename", post(files::rename))
        .route("/fs/copy", post(files::copy))
        .route("/fs/chmod", post(files::chmod))
        .route("/fs/chown", post(files::chown))
        .route("/fs/watch", get(file_watch::open))
}

fn finish(router: Router<Arc<Runtime>>, runtime: &Arc<Runtime>) -> Router {
    router
        .fallback(|method: Method, uri: Uri| async move { ApiError::not_found(&method, uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::method_not_allowed(&method, uri.path())
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::clone(runtime))
}
