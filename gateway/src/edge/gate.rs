//! One client connection, from its first byte to its last.
//!
//! HTTP/1 runs through a loop of our own around Pingora: a small task waits for a head, judges it, holds
//! the request if its sprite sleeps, and only then enters Pingora with the bytes read so far. What an idle
//! or held connection costs is this task and its socket.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use pingora::{apps::HttpServerApp, protocols::http::ServerSession, proxy::HttpProxy};
use tokio::{
    sync::watch,
    time::{Sleep, sleep, timeout, timeout_at},
};
use tracing::debug;

use super::{
    Edge,
    admit::{Facts, Prepared, admit},
    answering,
    exchange::{self, After},
    h2,
    head::{self, HeadError, MAX_AUTHORIZATIONS, Request},
    proxy::EdgeProxy,
    request_id,
    respond::{EdgeError, Shape, answer},
    tracked::Tracked,
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
    pub(crate) async fn serve(self, mut client: Box<Tracked>) {
        match self.protocol(&mut client).await {
            Some(Protocol::Http1) => self.serve_h1(client).await,
            Some(Protocol::Http2) => Box::pin(self.serve_h2(client)).await,
            None => {}
        }
    }

    /// Serves a connection that is known to speak HTTP/2.
    pub(crate) async fn serve_h2(self, client: Box<Tracked>) {
        h2::serve(self, client).await;
    }

    /// Looks at the first bytes without taking them (B6).
    async fn protocol(&self, client: &mut Tracked) -> Option<Protocol> {
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
            match timeout(limit, client.fill()).await {
                Ok(Ok(1..)) => limit = timing.header_timeout,
                Ok(Ok(0) | Err(_)) | Err(_) => return None,
            }
        }
    }

    async fn serve_h1(self, mut client: Box<Tracked>) {
        let mut idle = pin!(sleep(self.edge.settings.timing.keepalive_idle));
        loop {
            let request = match self.next_request(&mut client, idle.as_mut()).await {
                Ok(request) => request,
                Err(NoHead::Closed) => return,
                Err(NoHead::Refused(error)) => return Box::pin(self.refuse(client, &error.into())).await,
                Err(NoHead::TooSlow) => {
                    let error = EdgeError::BadRequest("its header took too long".into());
                    return Box::pin(self.refuse(client, &error)).await;
                }
            };
            // Boxed, so that idle connections and tunnels don't have the size of a request.
            match Box::pin(self.serve_request(client, request)).await {
                After::Next(kept) => client = kept,
                After::Closed => return,
                After::Switched(tunnel) => return Box::pin(tunnel.run()).await,
            }
        }
    }

    /// Waits for the next request's head.
    async fn next_request(&self, client: &mut Tracked, idle: Pin<&mut Sleep>) -> Result<Request, NoHead> {
        let max = self.edge.settings.limits.header_bytes;
        if !client.conn().end_request()
            || (client.ahead().is_empty() && !self.first_bytes(client, idle).await)
            || !client.conn().begin_request()
        {
            return Err(NoHead::Closed);
        }
        // Made when the head does not come at once. One deadline for all of it, however it drips (B8).
        let mut deadline = None;
        loop {
            // A line end too many after the request before is nobody's (RFC 9112 §2.2).
            while client.ahead().starts_with(b"\r\n") {
                client.skip_ahead(2);
            }
            if let Some(judged) = head::parse(client.ahead(), max).map_err(NoHead::Refused)? {
                let raw = client.take_ahead(judged.length);
                return Ok(judged.own(raw));
            }
            let deadline = *deadline.get_or_insert_with(|| {
                tokio::time::Instant::now() + self.edge.settings.timing.header_timeout
            });
            match timeout_at(deadline, client.fill()).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => return Err(NoHead::Closed),
                Err(_) => return Err(NoHead::TooSlow),
            }
        }
    }

    /// Waits while the connection is idle, for as long as it may be. The timer is left running from request to
    /// request: whenever it rings, it is set anew for what is left.
    /// False if nothing came.
    async fn first_bytes(&self, client: &mut Tracked, mut idle: Pin<&mut Sleep>) -> bool {
        let until = tokio::time::Instant::now() + self.edge.settings.timing.keepalive_idle;
        poll_fn(|cx| {
            if let Poll::Ready(read) = client.poll_fill(cx) {
                return Poll::Ready(matches!(read, Ok(1..)));
            }
            while idle.as_mut().poll(cx).is_ready() {
                if idle.deadline() >= until {
                    return Poll::Ready(false);
                }
                idle.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await
    }

    /// Decides about one request and has it served, by us or by Pingora.
    async fn serve_request(&self, mut client: Box<Tracked>, request: Request) -> After {
        let Some(prepared) = self.prepare(&mut client, &request).await else {
            self.edge.metrics.error(Side::Downstream);
            debug!(peer = %client.conn().peer(), "A client left while its request was held");
            return After::Closed;
        };
        if prepared.is_forward() && !request.needs_translation {
            // Boxed, so that a held request has not the size of one that moves.
            return Box::pin(exchange::serve(&self.edge, client, request, prepared)).await;
        }
        client.admit_request(request.raw().len(), request.framing);
        client.put_back(request.into_raw());
        let handover = Handover::new(client.conn().clone(), prepared);
        let kept = Box::pin(self.enter_pingora(client)).await;
        drop(handover);
        kept.map_or(After::Closed, After::Next)
    }

    /// Decides about a request, holding it if need be; `None` if its client left.
    async fn prepare(&self, client: &mut Tracked, request: &Request) -> Option<Prepared> {
        let started = Instant::now();
        let request_id = request_id::of(request.request_id());
        let conn = client.conn().clone();
        let mut lines = [&b""[..]; MAX_AUTHORIZATIONS];
        let mut count = 0;
        for (place, line) in lines.iter_mut().zip(request.authorization()) {
            *place = line;
            count += 1;
        }
        let target = request.target();
        let facts = Facts {
            host: request.host(),
            target: &target,
            authorization: &lines[..count],
            request_id: &request_id,
        };
        let admission = admit(&self.edge, &conn, &facts, gone(client)).await?;
        Some(Prepared { wants_page: request.wants_page, request_id, started, admission })
    }

    /// Lets Pingora serve one request; the connection comes back if it can be used again.
    async fn enter_pingora(&self, client: Box<Tracked>) -> Option<Box<Tracked>> {
        let mut session = ServerSession::new_http1(client);
        let draining = *self.draining.borrow();
        // Idle connections wait in our loop, not in Pingora: the number only says "keep it".
        session
            .set_keepalive((!draining).then_some(self.edge.settings.timing.keepalive_idle.as_secs().max(1)));
        let (stream, _) = self.proxy.process_new_http(session, &self.draining).await?.consume();
        stream.into_any().downcast::<Tracked>().ok()
    }

    /// Answers what is not even a request, and closes so that the client can read the answer.
    async fn refuse(&self, mut client: Box<Tracked>, error: &EdgeError) {
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
pub(super) async fn gone(client: &mut Tracked) {
    while client.ahead().len() < HELD_BYTES {
        if !matches!(client.fill().await, Ok(1..)) {
            return;
        }
    }
    client.conn().left().await;
}
