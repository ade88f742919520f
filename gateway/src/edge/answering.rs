//! Writing answers of the gateway's own.

use bytes::Bytes;
use pingora::{http::ResponseHeader, proxy::Session};

use super::{
    ctx::RequestCtx,
    respond::{Answer, Shape},
};
use crate::metrics::Class;

/// A request with this header, whatever its value, is answered with `Server-Timing`: how long it took to
/// authorize, to hold, to connect, and to the first byte. The sprite does not see the header.
pub(super) const TIMING_WANTED: &str = "sprite-timing";
/// What is sent with every answer of the API: clients choose their dialect by it.
pub(crate) const SPRITE_VERSION: &str = "v0.0.1-rc46";
/// A refused request's body up to this size is read so that the connection can be used again.
const SMALL_BODY: u64 = 64 * 1024;

/// Writes a whole answer of the gateway's own.
pub(crate) async fn write_answer(
    session: &mut Session,
    ctx: &mut RequestCtx,
    answer: &Answer,
    shape: Shape,
) -> pingora::Result<()> {
    let (content_type, body) = answer.body(shape, &ctx.request_id);
    let mut response = ResponseHeader::build(answer.status, Some(8))?;
    if let Some(seconds) = answer.retry_after_s {
        response.insert_header("retry-after", seconds.to_string())?;
    }
    if answer.challenge {
        response.insert_header("www-authenticate", "Bearer")?;
    }
    if let Some(methods) = &answer.allow {
        response.insert_header("allow", methods)?;
    }
    write_whole(session, ctx, response, content_type, body.into()).await
}

/// A whole answer, for a connection that Pingora has no part in and that ends with it.
pub(crate) fn raw(answer: &Answer, shape: Shape, request_id: &str, class: Class) -> Vec<u8> {
    let (content_type, body) = answer.body(shape, request_id);
    let reason = http::StatusCode::from_u16(answer.status).ok().and_then(|status| status.canonical_reason());
    let mut head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nx-request-id: {request_id}\r\n\
         cache-control: no-store\r\nconnection: close\r\n",
        answer.status,
        reason.unwrap_or_default(),
        body.len(),
    );
    if let Some(seconds) = answer.retry_after_s {
        head.push_str(&format!("retry-after: {seconds}\r\n"));
    }
    if class == Class::Inside {
        head.push_str(&format!("sprite-version: {SPRITE_VERSION}\r\n"));
    }
    format!("{head}\r\n{body}").into_bytes()
}

/// Writes a head and all of its body.
pub(crate) async fn write_whole(
    session: &mut Session,
    ctx: &mut RequestCtx,
    mut response: ResponseHeader,
    content_type: &'static str,
    body: Bytes,
) -> pingora::Result<()> {
    stamp(&mut response, ctx)?;
    if !body.is_empty() {
        response.insert_header("content-type", content_type)?;
    }
    if response.status != http::StatusCode::NO_CONTENT {
        response.insert_header("content-length", body.len().to_string())?;
    }
    if has_large_rest(session) {
        session.set_keepalive(None);
    }
    let bodiless = body.is_empty() || session.req_header().method == http::Method::HEAD;
    ctx.status = response.status.as_u16();
    session.write_response_header(Box::new(response), bodiless).await?;
    if !bodiless {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}

/// Whether more of the request's body is to come than is worth reading only to keep the connection.
fn has_large_rest(session: &mut Session) -> bool {
    if session.as_downstream_mut().is_body_done() {
        return false;
    }
    let length = session.req_header().headers.get(http::header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    length.is_none_or(|length| length > SMALL_BODY)
}

/// What every answer of the gateway's own carries.
pub(crate) fn stamp(response: &mut ResponseHeader, ctx: &mut RequestCtx) -> pingora::Result<()> {
    response.insert_header("x-request-id", &ctx.request_id)?;
    response.insert_header("cache-control", "no-store")?;
    match ctx.class {
        Class::Api | Class::Inside => response.insert_header("sprite-version", SPRITE_VERSION)?,
        Class::Url | Class::Unknown => {}
    }
    ctx.first_byte = Some(ctx.started.elapsed());
    if ctx.wants_timing {
        response.insert_header("server-timing", ctx.server_timing())?;
    }
    Ok(())
}
