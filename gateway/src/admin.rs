//! `/metrics`, `/livez` and `/readyz`, on a listener of their own that the public never sees.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};
use tracing::debug;

use crate::{edge::Edge, metrics::Levels};

/// Scrapers are quick; whoever isn't makes room.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// More than any operator's tools need at once.
const MAX_CONNECTIONS: usize = 64;

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, edge: Arc<Edge>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((tcp, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let edge = edge.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&edge, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new());
            let connection = server.serve_connection(TokioIo::new(tcp), service);
            match tokio::time::timeout(CONNECTION_LIMIT, connection).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => debug!(%peer, %error, "An admin connection failed"),
            }
        });
    }
}

fn answer(edge: &Edge, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "live\n".into()),
        "/readyz" => match readiness(edge) {
            Ok(()) => text(StatusCode::OK, "ready\n".into()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        "/metrics" => {
            let (leases, upstream_connections) = edge.leases.count();
            let connections = edge.ledger.len();
            let levels = Levels { held: edge.leases.held(), connections, leases, upstream_connections };
            let mut response = Response::new(Full::from(edge.metrics.render(levels)));
            let value = header::HeaderValue::from_static("text/plain; version=0.0.4");
            response.headers_mut().insert(header::CONTENT_TYPE, value);
            response
        }
        _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

/// Ready to take traffic: not ending, and in step with the agent.
fn readiness(edge: &Edge) -> Result<(), &'static str> {
    if edge.is_draining() {
        Err("draining")
    } else if !edge.routes.is_synced() {
        Err("the route table is not filled yet")
    } else if !edge.leases.is_connected() {
        Err("there is no lease channel to the agent")
    } else {
        Ok(())
    }
}
