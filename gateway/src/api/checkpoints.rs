//! Checkpoints: the agent takes, restores and removes them; here they get the form that clients know.

use agent_api::{Checkpoint, CreateCheckpoint, client::LineStream};
use auth::Verified;
use bytes::Bytes;
use http::Method;
use ids::{CheckpointId, SpriteName};
use pingora::{http::ResponseHeader, proxy::Session};
use serde::Deserialize;
use serde_json::json;

use super::{
    Reply,
    list::pairs,
    sprites::{find, of_agent},
};
use crate::edge::{Edge, answering::stamp, ctx::RequestCtx, respond::Answer};

/// The body of a create.
#[derive(Default, Deserialize)]
pub(super) struct CreateWish {
    comment: Option<String>,
}

/// A list; `?history=v1` for those that descend from a checkpoint, `?includeAuto=true` for those that were made
/// by themselves, too.
pub(super) async fn list(
    edge: &Edge,
    caller: &Verified,
    name: &SpriteName,
    query: &str,
) -> Result<Reply, Answer> {
    let (mut ancestor, mut with_automatic) = (None, false);
    for (key, value) in pairs(query) {
        match key.as_str() {
            "history" if value.is_empty() => {}
            "history" => ancestor = Some(id(&value)?),
            "includeAuto" | "include_auto" => with_automatic = !matches!(value.as_str(), "false" | "0"),
            _ => {}
        }
    }
    let all = all(edge, caller, name).await?;
    let is_wanted = |checkpoint: &&Checkpoint| {
        (with_automatic || !checkpoint.id.is_automatic())
            && ancestor.is_none_or(|id| checkpoint.id == id || checkpoint.history.contains(&id))
    };
    Ok(Reply::Json(200, all.iter().filter(is_wanted).map(Checkpoint::in_public).collect()))
}

pub(super) async fn read(
    edge: &Edge,
    caller: &Verified,
    name: &SpriteName,
    id: CheckpointId,
) -> Result<Reply, Answer> {
    let all = all(edge, caller, name).await?;
    let found =
        all.iter().find(|checkpoint| checkpoint.id == id).ok_or_else(|| no_checkpoint(&id.to_string()))?;
    Ok(Reply::Json(200, found.in_public()))
}

pub(super) async fn remove(
    edge: &Edge,
    caller: &Verified,
    name: &SpriteName,
    id: CheckpointId,
) -> Result<Reply, Answer> {
    let path = format!("{}/{id}", path(edge, caller, name)?);
    let () = edge.agent.call(Method::DELETE, &path, None::<&()>).await.map_err(of_agent)?;
    Ok(Reply::Empty)
}

/// Takes a checkpoint. Older clients put the comment into the query.
pub(super) async fn create(
    edge: &Edge,
    caller: &Verified,
    name: &SpriteName,
    query: &str,
    wish: CreateWish,
) -> Result<LineStream, Answer> {
    let in_query = || pairs(query).find(|(key, _)| key == "comment").map(|(_, value)| value);
    let comment = wish.comment.or_else(in_query).unwrap_or_default();
    let ask = CreateCheckpoint { comment, automatic: false };
    edge.agent.lines(Method::POST, &path(edge, caller, name)?, Some(&ask)).await.map_err(of_agent)
}

pub(super) async fn restore(
    edge: &Edge,
    caller: &Verified,
    name: &SpriteName,
    id: CheckpointId,
) -> Result<LineStream, Answer> {
    let path = format!("{}/{id}/restore", path(edge, caller, name)?);
    edge.agent.lines(Method::POST, &path, None::<&()>).await.map_err(of_agent)
}

/// Passes on what the agent tells, until it has ended or the client leaves. The work goes on either way.
pub(super) async fn stream(
    session: &mut Session,
    ctx: &mut RequestCtx,
    mut lines: LineStream,
) -> pingora::Result<()> {
    let mut response = ResponseHeader::build(200, Some(8))?;
    stamp(&mut response, ctx)?;
    response.insert_header("content-type", "application/x-ndjson")?;
    response.insert_header("cache-control", "no-cache")?;
    ctx.status = 200;
    session.write_response_header(Box::new(response), false).await?;
    loop {
        match lines.next().await {
            Ok(Some(line)) => write(session, &line).await?,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "The agent broke off what it told about a checkpoint");
                let message = "The host can't be reached any more. It finishes or undoes what it has begun; \
                    list the checkpoints to see which.";
                let line = json!({ "type": "error", "error": message, "time": jiff::Timestamp::now() });
                write(session, line.to_string().as_bytes()).await?;
                break;
            }
        }
    }
    session.write_response_body(None, true).await
}

async fn write(session: &mut Session, line: &[u8]) -> pingora::Result<()> {
    session.write_response_body(Some(Bytes::from([line, b"\n"].concat())), false).await
}

/// A checkpoint's name in a path or a query.
pub(super) fn id(text: &str) -> Result<CheckpointId, Answer> {
    text.parse().map_err(|_| no_checkpoint(text))
}

fn no_checkpoint(id: &str) -> Answer {
    let message = format!("The sprite has no checkpoint {id:?}; list them to see which it has.");
    Answer::new(404, "not_found", message)
}

fn path(edge: &Edge, caller: &Verified, name: &SpriteName) -> Result<String, Answer> {
    Ok(format!("/v1/sprites/{}/checkpoints", find(edge, caller, name)?.sprite.id))
}

async fn all(edge: &Edge, caller: &Verified, name: &SpriteName) -> Result<Vec<Checkpoint>, Answer> {
    edge.agent.get(&path(edge, caller, name)?).await.map_err(of_agent)
}
