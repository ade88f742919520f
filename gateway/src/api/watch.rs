//! `GET /v1/sprites` with `Accept: application/x-ndjson`: one line for each sprite, then one for each
//! change, and a heartbeat so that both sides know that the other lives.

use std::time::Duration;

use auth::Verified;
use bytes::Bytes;
use pingora::{
    http::{RequestHeader, ResponseHeader},
    proxy::Session,
};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::{list::Query, object};
use crate::{
    edge::{
        Edge,
        answering::{stamp, write_answer},
        ctx::RequestCtx,
        respond::Shape,
    },
    routes::{Change, Route},
};

/// Clients give a silent stream up after some multiple of this.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(super) fn is_wanted(request: &RequestHeader) -> bool {
    let accept =
        request.headers.get(http::header::ACCEPT).map(http::HeaderValue::as_bytes).unwrap_or_default();
    accept.windows(20).any(|part| part.eq_ignore_ascii_case(b"application/x-ndjson"))
}

/// Runs until the client leaves or we drain.
pub(super) async fn stream(
    edge: &Edge,
    session: &mut Session,
    ctx: &mut RequestCtx,
    caller: &Verified,
    query: &str,
) -> pingora::Result<()> {
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(answer) => return write_answer(session, ctx, &answer, Shape::Json).await,
    };
    let mut response = ResponseHeader::build(200, Some(8))?;
    stamp(&mut response, ctx)?;
    response.insert_header("content-type", "application/x-ndjson")?;
    // An endless answer ends with its connection, however it ends.
    session.set_keepalive(None);
    session.write_response_header(Box::new(response), false).await?;

    // Subscribed before the snapshot is taken, so that no change falls between the two.
    let mut changes = edge.routes.changes();
    let mine = |route: &Route| {
        route.sprite.organization == *caller.organization()
            && route.sprite.name.as_str().starts_with(&query.prefix)
    };
    write(session, snapshot(edge, caller, mine)).await?;
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.reset();
    let mut draining = edge.draining.clone();
    loop {
        let text = tokio::select! {
            changed = changes.recv() => match changed {
                Ok(Change::Sprite(route)) if mine(&route) => {
                    text(&object::line(&route.sprite, &counters(edge, caller), jiff::Timestamp::now()))
                }
                Ok(Change::Gone(route)) if mine(&route) => text(&gone(&route, &counters(edge, caller))),
                Ok(Change::Sprite(_) | Change::Gone(_)) => continue,
                // Too slow for every step; what is now is what matters.
                Err(RecvError::Lagged(_)) => snapshot(edge, caller, mine),
                Err(RecvError::Closed) => break,
            },
            _ = heartbeat.tick() => text(&json!({ "type": "heartbeat", "timestamp": jiff::Timestamp::now() })),
            _ = draining.wait_for(|draining| *draining) => break,
            _ = session.as_downstream_mut().read_body_or_idle(true) => return Ok(()),
        };
        write(session, text).await?;
    }
    session.write_response_body(None, true).await
}

async fn write(session: &mut Session, text: String) -> pingora::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    session.write_response_body(Some(Bytes::from(text)), false).await
}

fn text(line: &Value) -> String {
    format!("{line}\n")
}

fn counters(edge: &Edge, caller: &Verified) -> Value {
    let all = edge.routes.of(caller.organization());
    object::counters(caller.organization().as_str(), all.iter().map(|route| &**route))
}

fn snapshot(edge: &Edge, caller: &Verified, mine: impl Fn(&Route) -> bool) -> String {
    let counters = counters(edge, caller);
    let now = jiff::Timestamp::now();
    let all = edge.routes.of(caller.organization());
    all.iter()
        .filter(|route| mine(route))
        .map(|route| text(&object::line(&route.sprite, &counters, now)))
        .collect()
}

fn gone(route: &Route, counters: &Value) -> Value {
    json!({
        "type": "deleted",
        "name": route.sprite.name,
        "status": "deleted",
        "timestamp": jiff::Timestamp::now(),
        "org": counters,
    })
}
