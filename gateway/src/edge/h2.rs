//! HTTP/2 connections: their streams are accepted and held here, and enter Pingora when their sprite is awake.
//!
//! A stream that waits is then what the `h2` crate keeps of it and a small task. Pingora's own loop would put
//! each into a task that has the size of a whole exchange.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pingora::{
    apps::HttpServerApp,
    protocols::{
        Digest, GetProxyDigest, Stream,
        http::{
            ServerSession,
            v2::server::{H2Accept, H2Options, HttpSession, default_h2_options, handshake},
        },
    },
};
use tokio::{sync::Notify, time::timeout};
use tracing::debug;

use super::{
    Edge,
    admit::{Admission, Facts, Next, Prepared, admit},
    gate::Gate,
    request::{h2_host, wants_page},
    request_id,
    respond::EdgeError,
    tracked::Tracked,
};
use crate::{
    ledger::Conn,
    metrics::{Class, Side},
};

/// A sprite's web server, a browser's tabs: more streams on one connection are more connections.
const STREAMS: u32 = 250;
/// Streams that are no requests, on one connection: a client that makes more is not one.
const MOST_REJECTED: u32 = 32;
/// From the connection's first bytes to the end of its preface and settings.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

fn options(edge: &Edge) -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(STREAMS);
    options.max_header_list_size(u32::try_from(edge.settings.limits.header_bytes).unwrap_or(u32::MAX));
    options
}

/// Serves a connection to its end.
pub(super) async fn serve(gate: Gate, client: Box<Tracked>) {
    let conn = client.conn().clone();
    if !conn.begin_request() {
        return;
    }
    let digest = Arc::new(Digest {
        ssl_digest: None,
        timing_digest: Vec::new(),
        proxy_digest: client.get_proxy_digest(),
        socket_digest: None,
    });
    let stream: Stream = client;
    let mut streams = match timeout(HANDSHAKE_TIMEOUT, handshake(stream, Some(options(&gate.edge)))).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return debug!(peer = %conn.peer(), %error, "An HTTP/2 handshake failed"),
        Err(_) => return debug!(peer = %conn.peer(), "An HTTP/2 handshake took too long"),
    };
    let active = Arc::new(Active::default());
    let mut draining = gate.draining.clone();
    let (mut ending, mut rejected) = (false, 0);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining), if !ending => {
                // What the client has begun, or begins before it hears of it, is still served (RFC 9113 §6.8).
                streams.graceful_shutdown();
                ending = true;
                continue;
            }
            accepted = HttpSession::from_h2_conn(&mut streams, digest.clone()) => accepted,
            () = active.idle_for(gate.edge.settings.timing.keepalive_idle) => return,
        };
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                let stream = HeldStream { gate: gate.clone(), conn: conn.clone(), _active: active.begin() };
                // Ends with its stream, which ends with the connection; the ledger waits for that.
                tokio::spawn(stream.serve(session));
            }
            Ok(Some(H2Accept::Rejected)) => {
                rejected += 1;
                if rejected > MOST_REJECTED {
                    return debug!(peer = %conn.peer(), "Too many streams of a connection were no requests");
                }
            }
            Ok(None) => return,
            Err(error) => return debug!(peer = %conn.peer(), %error, "An HTTP/2 connection broke"),
        }
    }
}

/// How many streams there are.
#[derive(Debug, Default)]
struct Active {
    count: AtomicUsize,
    none: Notify,
}

impl Active {
    fn begin(self: &Arc<Self>) -> ActiveStream {
        self.count.fetch_add(1, Ordering::Relaxed);
        ActiveStream(self.clone())
    }

    /// Ends when there has been no stream for so long. Began anew with each stream that is accepted.
    async fn idle_for(&self, limit: Duration) {
        while self.count.load(Ordering::Relaxed) > 0 {
            self.none.notified().await;
        }
        tokio::time::sleep(limit).await;
    }
}

struct ActiveStream(Arc<Active>);

impl Drop for ActiveStream {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none.notify_one();
        }
    }
}

/// What was decided about a stream's request, on its way through Pingora to the request filter. It travels
/// with the request, and is let go of with it.
#[derive(Clone, Debug)]
pub(super) struct Handed(Arc<Mutex<Option<Box<Prepared>>>>);

impl Handed {
    pub(super) fn take(&self) -> Option<Prepared> {
        self.0.lock().take().map(|prepared| *prepared)
    }
}

/// One stream until its sprite is awake.
struct HeldStream {
    gate: Gate,
    conn: Arc<Conn>,
    _active: ActiveStream,
}

impl HeldStream {
    async fn serve(self, mut session: HttpSession) {
        let Some(prepared) = self.prepare(&mut session).await else {
            self.gate.edge.metrics.error(Side::Downstream);
            return debug!(peer = %self.conn.peer(), "A stream was given up while it was held");
        };
        let handed = Handed(Arc::new(Mutex::new(Some(Box::new(prepared)))));
        session.req_header_mut().extensions_mut().insert(handed);
        // Boxed, so that those that wait have not the size of those that go on.
        Box::pin(self.enter_pingora(session)).await;
    }

    async fn enter_pingora(&self, session: HttpSession) {
        let session = ServerSession::new_http2(session);
        let none = self.gate.proxy.process_new_http(session, &self.gate.draining).await;
        debug_assert!(none.is_none(), "a stream is not used twice");
    }

    /// Decides about a request, holding it if need be; `None` if its client gave it up.
    async fn prepare(&self, session: &mut HttpSession) -> Option<Prepared> {
        let started = Instant::now();
        let request = session.req_header();
        let request_id = request_id::of(request.headers.get("x-request-id").map(http::HeaderValue::as_bytes));
        let wants_page = wants_page(request);
        let host = match h2_host(request) {
            Ok(host) => host.to_owned(),
            Err(error) => {
                return Some(Prepared { request_id, wants_page, started, admission: refused(error) });
            }
        };
        let target = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        let authorization: Vec<http::HeaderValue> =
            request.headers.get_all(http::header::AUTHORIZATION).iter().cloned().collect();
        let lines: Vec<&[u8]> = authorization.iter().map(http::HeaderValue::as_bytes).collect();
        let facts = Facts { host: &host, target: &target, authorization: &lines, request_id: &request_id };
        // Both a reset and a lost connection mean that nobody waits any more.
        let gone = async { drop(session.idle().await) };
        let admission = admit(&self.gate.edge, &self.conn, &facts, gone).await?;
        Some(Prepared { request_id, wants_page, started, admission })
    }
}

fn refused(error: EdgeError) -> Admission {
    Admission {
        class: Class::Unknown,
        auth_took: Duration::ZERO,
        hold_took: Duration::ZERO,
        next: Next::Refuse(error),
    }
}
