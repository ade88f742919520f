//! Pingora's phases, each a few lines that delegate.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::RawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use http::Version;
use pingora::{
    Error, ErrorSource, ErrorType,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    protocols::Digest,
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session},
    upstreams::peer::{H1UpgradePolicy, HttpPeer, Tracer},
};
use tracing::debug;

use super::{
    Edge,
    access::{self, Line},
    admit::{Admission, Next, Prepared},
    answering::{SPRITE_VERSION, TIMING_WANTED, write_answer},
    attempt,
    ctx::{RequestCtx, UpstreamTry},
    h2::Handed,
    headers::{self, Told},
    request::{host_of, is_grpc},
    respond::{EdgeError, Shape, answer},
    tracked::conn_of,
};
use crate::{
    api,
    metrics::{Class, Side},
    upstream::Dialer,
};

/// Streams on one HTTP/2 connection into a sprite: what gRPC servers allow by default.
const UPSTREAM_H2_STREAMS: usize = 100;
/// What connecting may take beyond the wait for the port.
const CONNECT_SLACK: Duration = Duration::from_secs(6);
/// How much time a refused request's body may take before the connection is closed instead.
const DRAIN_BODY: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct EdgeProxy {
    pub(crate) edge: Arc<Edge>,
}

impl EdgeProxy {
    /// Takes over what was decided before Pingora saw the request.
    fn admission(session: &mut Session, ctx: &mut RequestCtx) -> Option<Admission> {
        let handed = session.req_header_mut().extensions_mut().remove::<Handed>();
        let prepared = match handed {
            Some(handed) => handed.take(),
            None => ctx.conn.as_ref()?.take_prepared(),
        };
        let Prepared { request_id, wants_page, started, admission } = prepared?;
        ctx.request_id = request_id;
        ctx.wants_page = wants_page;
        ctx.started = started;
        Some(admission)
    }

    async fn refuse(
        &self,
        session: &mut Session,
        ctx: &mut RequestCtx,
        error: EdgeError,
    ) -> pingora::Result<()> {
        let answer = answer(&error);
        self.edge.metrics.refusal(&answer.code);
        ctx.error = Some(error);
        let shape = if ctx.wants_page { Shape::Page } else { Shape::Json };
        write_answer(session, ctx, &answer, shape).await
    }

    fn peer(&self, session: &Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>, EdgeError> {
        let Some((forward, conn)) = ctx.forward.as_ref().zip(ctx.conn.clone()) else {
            return Err(EdgeError::Internal("a request without a sprite".into()));
        };
        let timing = &self.edge.settings.timing;
        let h2 = is_grpc(session.req_header());
        let upstream = forward.lease.upstream().clone();
        let pool_key = upstream.pool_key(forward.target, h2);
        let request = attempt::dial_request(&self.edge, forward, &ctx.request_id);
        let dialer = Dialer::new(upstream, conn, request, pool_key);
        // Never dialled: the address only has to be one that the pool does not compare with the socket's.
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80));
        let mut peer = Box::new(HttpPeer::new(address, false, String::new()));
        peer.group_key = pool_key;
        peer.options.custom_l4 = Some(dialer.clone());
        peer.options.tracer = Some(Tracer(dialer.tracing()));
        peer.options.idle_timeout = Some(timing.upstream_idle);
        peer.options.total_connection_timeout = Some(timing.port_wait + CONNECT_SLACK);
        // Upgrades never come here: see `tunnel`.
        peer.options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Deny;
        if h2 {
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = UPSTREAM_H2_STREAMS;
        }
        ctx.attempt = Some(UpstreamTry { dialer, began: Instant::now(), pool_key, busy: None });
        Ok(peer)
    }
}

#[async_trait]
impl ProxyHttp for EdgeProxy {
    type CTX = RequestCtx;

    fn init_downstream_modules(&self, _: &mut HttpModules) {
        // None: what sprites send is not ours to compress.
    }

    fn new_ctx(&self) -> RequestCtx {
        RequestCtx::new()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> pingora::Result<bool> {
        // Slow clients are found by TCP; a stalled upload or an idle tunnel is not an error (B7).
        session.set_read_timeout(None);
        session.set_total_drain_timeout(Some(DRAIN_BODY));
        ctx.conn = conn_of(session.digest());
        ctx.wants_timing = session.req_header().headers.contains_key(TIMING_WANTED);
        let Some(admission) = Self::admission(session, ctx) else {
            return Err(failed(ctx, EdgeError::Internal("nothing was decided about a request".into())));
        };
        ctx.class = admission.class;
        ctx.auth_took = admission.auth_took;
        ctx.hold_took = admission.hold_took;
        match admission.next {
            Next::Forward(forward) => {
                ctx.forward = Some(forward);
                Ok(false)
            }
            Next::Api(verified) => {
                api::serve(&self.edge, session, ctx, &verified).await?;
                Ok(true)
            }
            Next::Taken => Err(failed(ctx, EdgeError::Internal("a request was served twice".into()))),
            Next::Refuse(error) => {
                self.refuse(session, ctx, error).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut RequestCtx,
    ) -> pingora::Result<Box<HttpPeer>> {
        if ctx.tries > 0
            && let Err(error) = attempt::again(ctx).await
        {
            return Err(failed(ctx, error));
        }
        ctx.tries += 1;
        self.peer(session, ctx).map_err(|error| failed(ctx, error))
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _: RawFd,
        digest: Option<&Digest>,
        ctx: &mut RequestCtx,
    ) -> pingora::Result<()> {
        let (Some(attempt), Some(forward)) = (&mut ctx.attempt, &ctx.forward) else { return Ok(()) };
        ctx.connect_took = Some(attempt.began.elapsed());
        attempt.busy = forward.lease.upstream().begin(digest, attempt.pool_key);
        if attempt.busy.is_some() {
            return Ok(());
        }
        // Can't happen by the pool's key; if it did, one sprite's request would reach another.
        tracing::error!(reused, request_id = ctx.request_id, "A pooled connection belongs to another lease");
        Err(failed(ctx, EdgeError::Internal("a pooled connection belongs to another lease".into())))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> pingora::Result<()> {
        let (Some(forward), Some(conn)) = (&ctx.forward, &ctx.conn) else { return Ok(()) };
        let host = host_of(session.req_header()).to_owned();
        let told = Told::of(conn, forward, &host, &ctx.request_id);
        headers::to_sprite(request, &told)?;
        if let Some(path) = &forward.path {
            request.set_raw_path(path.as_bytes())?;
        } else if request.version != Version::HTTP_2 && request.uri.scheme().is_some() {
            // An absolute target is for proxies such as us; servers expect a path (RFC 9112 §3.2).
            let path = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
            request.set_raw_path(path.as_bytes())?;
        }
        // Over HTTP/2 the client's authority is no header yet.
        if request.version != Version::HTTP_2 && !request.headers.contains_key(http::header::HOST) {
            request.insert_header(http::header::HOST, &host)?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> pingora::Result<()> {
        if response.status.is_informational() && response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        ctx.first_byte = Some(ctx.started.elapsed());
        if let Some(forward) = &mut ctx.forward {
            forward.lease.answered();
        }
        headers::drop_hop_by_hop(response, session.as_downstream().is_http2());
        if session.req_header().version == Version::HTTP_10 {
            // Such a client does not know chunks: the end of the connection ends the body (RFC 9112 §6.1).
            response.remove_header(&http::header::TRANSFER_ENCODING);
        }
        if response.version < Version::HTTP_11 {
            // The version is ours to say, hop by hop (RFC 9110 §6.2).
            response.set_version(Version::HTTP_11);
        }
        headers::from_sprite(response, host_of(session.req_header()))?;
        response.insert_header("x-request-id", &ctx.request_id)?;
        if ctx.class == Class::Inside {
            response.insert_header("sprite-version", SPRITE_VERSION)?;
        }
        if ctx.wants_timing {
            response.insert_header("server-timing", ctx.server_timing())?;
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut RequestCtx,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // Nothing of the request has been sent: whatever may help is safe.
        let failure = ctx.attempt.as_ref().and_then(|attempt| attempt.dialer.take_failure());
        let (cause, may_help) = match failure {
            Some(failure) => attempt::classify(failure),
            None => (EdgeError::SpriteUnreachable(error.to_string()), false),
        };
        ctx.abandoned |= ctx.attempt.as_ref().is_some_and(|attempt| attempt.dialer.was_abandoned());
        ctx.error = Some(cause);
        error.set_retry(may_help && !ctx.abandoned && ctx.tries < attempt::MAX_TRIES);
        error
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut RequestCtx,
        reused: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("to {peer}"));
        let upstream = *error.esource() == ErrorSource::Upstream;
        let slept = ctx.forward.as_ref().is_some_and(|forward| forward.lease.upstream().has_ended());
        if upstream {
            ctx.error = Some(if slept {
                EdgeError::SpriteSlept
            } else {
                EdgeError::UpstreamBroken(error.to_string())
            });
        }
        // Bytes have been sent, so the sprite may have seen the request: it is not sent again (T19). One
        // exception, as RFC 9110 §9.2.2 has it: a kept connection broke before any answer, which nearly
        // always means that the server closed it for being idle, and the request only reads.
        let only_reads = session.req_header().method.is_safe();
        let unanswered = session.response_written().is_none() && !session.as_ref().retry_buffer_truncated();
        error.set_retry(
            upstream && reused && only_reads && unanswered && !slept && ctx.tries < attempt::MAX_TRIES,
        );
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut RequestCtx) -> FailToProxy {
        let closed = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let side = match error.esource() {
            ErrorSource::Upstream => Side::Upstream,
            ErrorSource::Downstream => Side::Downstream,
            // An answer of our own that could not be written has no source.
            ErrorSource::Internal | ErrorSource::Unset if *error.etype() == ErrorType::WriteError => {
                Side::Downstream
            }
            ErrorSource::Internal | ErrorSource::Unset => Side::Internal,
        };
        self.edge.metrics.error(side);
        if ctx.abandoned || (side == Side::Downstream && is_gone(error)) {
            ctx.abandoned = true;
            return closed;
        }
        debug!(request_id = ctx.request_id, %error, "A request failed");
        if session.response_written().is_some() {
            return closed;
        }
        let cause = match (ctx.error.take(), side) {
            (Some(cause), Side::Upstream | Side::Internal | Side::Downstream) => cause,
            (None, Side::Downstream) => EdgeError::BadRequest("its body could not be read".into()),
            (None, Side::Upstream) => EdgeError::UpstreamBroken(error.to_string()),
            (None, Side::Internal) => EdgeError::Internal(error.to_string()),
        };
        let code = answer(&cause).status;
        session.set_keepalive(None);
        match self.refuse(session, ctx, cause).await {
            Ok(()) => FailToProxy { error_code: code, can_reuse_downstream: false },
            Err(_) => closed,
        }
    }

    fn suppress_error_log(&self, _: &Session, _: &RequestCtx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &RequestCtx,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut RequestCtx) {
        let status = session.response_written().map_or(ctx.status, |response| response.status.as_u16());
        let request = session.req_header();
        let count = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        let line = Line {
            method: &request.method,
            host: host_of(request),
            path: request.uri.path(),
            status,
            received: count(session.body_bytes_read()),
            sent: count(session.body_bytes_sent()),
        };
        access::log(&self.edge, ctx, &line);
    }
}

fn failed(ctx: &mut RequestCtx, error: EdgeError) -> Box<Error> {
    let text = error.to_string();
    ctx.error = Some(error);
    Error::explain(ErrorType::InternalError, text)
}

/// The client's side of the connection is of no use any more.
fn is_gone(error: &Error) -> bool {
    matches!(
        error.etype(),
        ErrorType::WriteError
            | ErrorType::ReadError
            | ErrorType::ConnectionClosed
            | ErrorType::H2Error
            | ErrorType::ConnectError
            | ErrorType::WriteTimedout
            | ErrorType::ReadTimedout
    )
}
