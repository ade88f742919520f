//! One client connection, from its first byte to its last.
//!
//! HTTP/1 runs through a loop of our own around Pingora: a small task waits for a head, judges it, holds
//! the request if its sprite sleeps, and only then enters Pingora with the bytes read so far. What an idle
//! or held connection costs is this task and its socket.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pingora::{
    apps::{HttpServerApp, ServerApp},
    protocols::{Stream, http::ServerSession},
    proxy::HttpProxy,
};
use tokio::{
    sync::watch,
    time::{timeout, timeout_at},
};
use tracing::debug;

use super::{
    Edge,
    admit::{Facts, Prepared, admit},
    answering,
    head::{self, Head, HeadError},
    proxy::EdgeProxy,
    request_id,
    respond::{EdgeError, Shape, answer},
    tracked::Tracked,
    tunnel,
};
use crate::{
    ledger::Conn,
    metrics::{Class, Side},
};

/// What begins every HTTP/2 connection (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much of a held request is read; the rest waits in the client's and the kernel's buffers.
const HELD_BYTES: usize = 16 * 1024;

/// How long a client may take to take its last answer.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What every connection needs.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) edge: Arc<Edge>,
    pub(crate) proxy: Arc<HttpProxy<EdgeProxy>>,
    pub(crate) draining: watch::Receiver<bool>,
}

/// What a connection turned out to speak.
enum Protocol {
    Http1,
    Http2,
}

/// Why there is no next request.
enum NoHead {
    /// The client closed, was idle for too long, or we are ending.
    Closed,
    Refused(HeadError),
    TooSlow,
}

impl Gate {
    /// Serves a plain connection, whichever HTTP it speaks.
    pub(crate) async fn serve(mut self, mut client: Tracked) {
        match self.protocol(&mut client).await {
            Some(Protocol::Http1) => self.serve_h1(client).await,
            Some(Protocol::Http2) => Box::pin(self.serve_h2(client)).await,
            None => {}
        }
    }

    /// Serves a connection that is known to speak HTTP/2.
    pub(crate) async fn serve_h2(self, mut client: Tracked) {
        client.become_h2();
        let stream: Stream = Box::new(client);
        let none = self.proxy.process_new(stream, &self.draining).await;
        debug_assert!(none.is_none(), "an HTTP/2 connection is served to its end");
    }

    /// Looks at the first bytes without taking them (B6).
    async fn protocol(&mut self, client: &mut Tracked) -> Option<Protocol> {
        let timing = self.edge.settings.timing;
        let mut limit = timing.keepalive_idle;
        loop {
            let seen = client.ahead();
            if seen.len() >= PREFACE.len() && seen.starts_with(PREFACE) {
                return Some(Protocol::Http2);
            }
            if !seen.is_empty() && !PREFACE.starts_with(seen) {
                return Some(Protocol::Http1);
            }
            tokio::select! {
                read = timeout(limit, client.fill()) => match read {
                    Ok(Ok(1..)) => limit = timing.header_timeout,
                    Ok(Ok(0) | Err(_)) | Err(_) => return None,
                },
                _ = self.draining.wait_for(|draining| *draining) => return None,
            }
        }
    }

    async fn serve_h1(mut self, mut client: Tracked) {
        loop {
            let head = match self.next_head(&mut client).await {
                Ok(head) => head,
                Err(NoHead::Closed) => return,
                Err(NoHead::Refused(error)) => return self.refuse(client, &error.into()).await,
                Err(NoHead::TooSlow) => {
                    let error = EdgeError::BadRequest("its header took too long".into());
                    return self.refuse(client, &error).await;
                }
            };
            let Some(prepared) = self.prepare(&mut client, &head).await else {
                self.edge.metrics.error(Side::Downstream);
                debug!(peer = %client.conn().peer(), "A client left while its request was held");
                return;
            };
            let mut prepared = prepared;
            if tunnel::is_wanted(&head)
                && let Some(forward) = prepared.take_forward()
            {
                // Boxed, so that connections without a tunnel don't have its size.
                return Box::pin(tunnel::serve(&self.edge, client, &head, prepared, forward)).await;
            }
            client.admit_request(head.length, head.framing);
            let handover = Handover::new(client.conn().clone(), prepared);
            let Some(kept) = Box::pin(self.enter_pingora(client)).await else { return };
            drop(handover);
            client = *kept;
        }
    }

    /// Waits for the next request's head.
    async fn next_head(&mut self, client: &mut Tracked) -> Result<Head, NoHead> {
        let timing = self.edge.settings.timing;
        let max = self.edge.settings.limits.header_bytes;
        if client.ahead().is_empty() {
            tokio::select! {
                read = timeout(timing.keepalive_idle, client.fill()) => match read {
                    Ok(Ok(1..)) => {}
                    Ok(Ok(0) | Err(_)) | Err(_) => return Err(NoHead::Closed),
                },
                _ = self.draining.wait_for(|draining| *draining) => return Err(NoHead::Closed),
            }
        }
        // One deadline for the whole head, however it drips (B8).
        let deadline = tokio::time::Instant::now() + timing.header_timeout;
        loop {
            if let Some(head) = head::parse(client.ahead(), max).map_err(NoHead::Refused)? {
                return Ok(head);
            }
            match timeout_at(deadline, client.fill()).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => return Err(NoHead::Closed),
                Err(_) => return Err(NoHead::TooSlow),
            }
        }
    }

    /// Decides about a request, holding it if need be; `None` if its client left.
    async fn prepare(&self, client: &mut Tracked, head: &Head) -> Option<Prepared> {
        let started = Instant::now();
        let request_id = request_id::of(head.request_id.as_deref());
        let conn = client.conn().clone();
        let facts = Facts {
            host: &head.host,
            target: &head.target,
            authorization: head.authorization.iter().map(Vec::as_slice).collect(),
            request_id: &request_id,
        };
        let admission = admit(&self.edge, &conn, &facts, gone(client, head.length)).await?;
        Some(Prepared { wants_page: head.wants_page, request_id, started, admission })
    }

    /// Lets Pingora serve one request; the connection comes back if it can be used again.
    async fn enter_pingora(&self, client: Tracked) -> Option<Box<Tracked>> {
        let mut session = ServerSession::new_http1(Box::new(client));
        let draining = *self.draining.borrow();
        // Idle connections wait in our loop, not in Pingora: the number only says "keep it".
        session
            .set_keepalive((!draining).then_some(self.edge.settings.timing.keepalive_idle.as_secs().max(1)));
        let (stream, _) = self.proxy.process_new_http(session, &self.draining).await?.consume();
        stream.into_any().downcast::<Tracked>().ok()
    }

    /// Answers what is not even a request, and closes so that the client can read the answer.
    async fn refuse(&self, mut client: Tracked, error: &EdgeError) {
        let answer = answer(error);
        self.edge.metrics.refusal(&answer.code);
        self.edge.metrics.request(Class::Unknown, answer.status, Duration::ZERO);
        let request_id = request_id::of(None);
        let text = answering::raw(&answer, Shape::Json, &request_id, Class::Unknown);
        debug!(peer = %client.conn().peer(), %error, request_id, "Refused what is not a request");
        // Whether it was read or not, this connection ends here.
        let _ended = timeout(LAST_WORDS, client.end_with(&text)).await;
    }
}

/// What was decided about a request, on its way through Pingora to the request filter. Should it never get
/// there, it must not stay with the connection: it may hold the sprite, and the connection itself.
struct Handover(Arc<Conn>);

impl Handover {
    fn new(conn: Arc<Conn>, prepared: Prepared) -> Self {
        conn.put_prepared(prepared);
        Self(conn)
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        drop(self.0.take_prepared());
    }
}

/// Ends when the client has left. Until then, what it sends is kept, up to a bound: then it has to wait.
pub(super) async fn gone(client: &mut Tracked, head_bytes: usize) {
    while client.ahead().len() < head_bytes + HELD_BYTES {
        if !matches!(client.fill().await, Ok(1..)) {
            return;
        }
    }
    client.conn().left().await;
}
