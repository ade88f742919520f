//! Reading a call's JSON body: bounded in size and time.

use std::time::Duration;

use bytes::BytesMut;
use pingora::proxy::Session;
use serde::de::DeserializeOwned;

use crate::edge::respond::Answer;

/// Environments and labels are small; anything larger is a mistake.
const MAX_BODY_BYTES: usize = 1 << 20;
/// What an honest client on a bad network needs for so little.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The body as JSON; an empty one is a mistake.
pub(super) async fn json<T: DeserializeOwned>(session: &mut Session) -> Result<T, Answer> {
    let bytes = read(session).await?;
    if bytes.is_empty() {
        return Err(Answer::new(
            400,
            "bad_request",
            "The request has no body; this call needs a JSON object.",
        ));
    }
    parse(&bytes)
}

/// The body as JSON; an empty one stands for an empty object.
pub(super) async fn json_or_empty<T: DeserializeOwned>(session: &mut Session) -> Result<T, Answer> {
    let bytes = read(session).await?;
    parse(if bytes.is_empty() { b"{}" } else { &bytes })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Answer> {
    serde_json::from_slice(bytes).map_err(|error| {
        Answer::new(400, "bad_request", format!("The request's JSON body is not usable: {error}."))
    })
}

async fn read(session: &mut Session) -> Result<BytesMut, Answer> {
    let mut bytes = BytesMut::new();
    if session.req_header().headers.contains_key(http::header::EXPECT) {
        // A client that can't be told finds out by itself.
        let _told = session.write_continue_response().await;
    }
    let reading = async {
        loop {
            match session.read_request_body().await {
                Ok(Some(part)) if bytes.len() + part.len() > MAX_BODY_BYTES => {
                    return Err(Answer::new(
                        413,
                        "body_too_large",
                        "The request's body is larger than 1 MiB.",
                    ));
                }
                Ok(Some(part)) => bytes.extend_from_slice(&part),
                Ok(None) => return Ok(()),
                Err(_) => {
                    return Err(Answer::new(400, "bad_request", "The request's body could not be read."));
                }
            }
        }
    };
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(read) => read?,
        Err(_) => {
            return Err(Answer::new(408, "request_timeout", "The request's body took too long to arrive."));
        }
    }
    Ok(bytes)
}
