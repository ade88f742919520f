//! The access log: one line for each request, with its phases; and its counting.

use std::time::Duration;

use http::Method;
use tracing::{Level, event, field};

use super::{Edge, ctx::RequestCtx};

/// What of a request only its transport knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) method: &'a Method,
    pub(super) host: &'a str,
    /// Without the query, which may hold secrets.
    pub(super) path: &'a str,
    /// 0 if the client left without an answer.
    pub(super) status: u16,
    /// Bytes of body from the client.
    pub(super) received: u64,
    /// Bytes of body to the client.
    pub(super) sent: u64,
}

/// What took at least this long before its sprite was awake was held for it.
const HELD: Duration = Duration::from_millis(1);

macro_rules! write_line {
    ($level:expr, $ctx:expr, $line:expr) => {{
        let (ctx, line) = ($ctx, $line);
        let ms = |took: Duration| (took.as_secs_f64() * 1e6).round() / 1e3;
        event!(
            target: "access",
            $level,
            request_id = ctx.request_id,
            class = ctx.class.as_str(),
            peer = ctx.conn.as_ref().map(|conn| field::display(conn.peer())),
            method = %line.method,
            host = line.host,
            path = line.path,
            status = line.status,
            abandoned = ctx.abandoned,
            sprite = ctx.forward.as_ref().map(|forward| field::display(forward.route.sprite.id)),
            epoch = ctx.forward.as_ref().map(|forward| forward.lease.upstream().epoch().0),
            error = ctx.error.as_ref().map(field::display),
            tries = ctx.tries,
            received = line.received,
            sent = line.sent,
            auth_ms = ms(ctx.auth_took),
            hold_ms = ms(ctx.hold_took),
            connect_ms = ctx.connect_took.map(ms),
            first_byte_ms = ctx.first_byte.map(ms),
            total_ms = ms(ctx.started.elapsed()),
            "Request"
        );
    }};
}

/// Counts the request, and writes its line: at `info` if somebody may ask about it one day (it failed, was
/// given up, or woke a sprite), else at `debug`, because a line costs more than the request.
pub(super) fn log(edge: &Edge, ctx: &RequestCtx, line: &Line<'_>) {
    edge.metrics.request(ctx.class, line.status, ctx.first_byte.unwrap_or_else(|| ctx.started.elapsed()));
    let notable = ctx.abandoned || !(100..500).contains(&line.status) || ctx.hold_took >= HELD;
    match notable {
        true => write_line!(Level::INFO, ctx, line),
        false => write_line!(Level::DEBUG, ctx, line),
    }
}
