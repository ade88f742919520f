//! The API, as far as it concerns sprites as a whole: answered from the route table, changed through
//! the agent. What concerns the inside of a sprite is forwarded there ([`inside`]).

mod body;
mod checkpoints;
mod list;
mod object;
mod path;
mod sprites;
mod watch;

use agent_api::client::LineStream;
use auth::Verified;
use pingora::{http::ResponseHeader, proxy::Session};
use serde_json::{Value, json};

use crate::edge::{
    Edge,
    answering::{write_answer, write_whole},
    ctx::RequestCtx,
    respond::{Answer, Shape},
};
use path::Endpoint;

pub(crate) use path::{inside, is_watch};

/// How long a change may take to come back over the watch stream before it is answered anyway.
const CATCH_UP: std::time::Duration = std::time::Duration::from_secs(5);

/// A successful answer.
enum Reply {
    Json(u16, Value),
    /// 204.
    Empty,
    /// Was written already, as a stream.
    Streamed,
}

/// Answers one call of the API.
pub(crate) async fn serve(
    edge: &Edge,
    session: &mut Session,
    ctx: &mut RequestCtx,
    caller: &Verified,
) -> pingora::Result<()> {
    match dispatch(edge, session, ctx, caller).await? {
        Ok(Reply::Json(status, value)) => {
            let response = ResponseHeader::build(status, Some(8))?;
            write_whole(session, ctx, response, "application/json", format!("{value}\n").into()).await
        }
        Ok(Reply::Empty) => {
            let response = ResponseHeader::build(204, Some(8))?;
            write_whole(session, ctx, response, "", bytes::Bytes::new()).await
        }
        Ok(Reply::Streamed) => Ok(()),
        Err(answer) => write_answer(session, ctx, &answer, Shape::Json).await,
    }
}

async fn dispatch(
    edge: &Edge,
    session: &mut Session,
    ctx: &mut RequestCtx,
    caller: &Verified,
) -> pingora::Result<Result<Reply, Answer>> {
    let uri = session.req_header().uri.clone();
    let method = session.req_header().method.clone();
    let endpoint = match Endpoint::of(uri.path(), &method) {
        Ok(endpoint) => endpoint,
        Err(answer) => return Ok(Err(answer)),
    };
    let query = uri.query().unwrap_or_default();
    Ok(match endpoint {
        Endpoint::List if watch::is_wanted(session.req_header()) => {
            watch::stream(edge, session, ctx, caller, query).await?;
            Ok(Reply::Streamed)
        }
        Endpoint::List => list::page(edge, caller, query).map(|page| Reply::Json(200, page)),
        Endpoint::Create => match body::json(session).await {
            Ok(wish) => sprites::create(edge, caller, wish).await,
            Err(answer) => Err(answer),
        },
        Endpoint::Read(name) => sprites::read(edge, caller, &name),
        Endpoint::Change(name) => match body::json(session).await {
            Ok(wish) => sprites::change(edge, caller, &name, wish).await,
            Err(answer) => Err(answer),
        },
        Endpoint::Destroy(name) => sprites::destroy(edge, caller, &name).await,
        Endpoint::Check(name) => sprites::check(edge, caller, &name),
        Endpoint::Why(name) => sprites::ask(edge, caller, &name, http::Method::GET, "why", None).await,
        Endpoint::Wake(name) => sprites::ask(edge, caller, &name, http::Method::POST, "wake", None).await,
        Endpoint::Sleep(name) => match body::json_or_empty(session).await {
            Ok(wish) => sprites::ask(edge, caller, &name, http::Method::POST, "sleep", Some(wish)).await,
            Err(answer) => Err(answer),
        },
        Endpoint::Restart(name) => sprites::restart(edge, caller, &name).await,
        Endpoint::Upgrade(name) => sprites::upgrade(edge, caller, &name).await,
        Endpoint::Checkpoints(name) => checkpoints::list(edge, caller, &name, query).await,
        Endpoint::TakeCheckpoint(name) => {
            let begun = match body::json_or_empty(session).await {
                Ok(wish) => checkpoints::create(edge, caller, &name, query, wish).await,
                Err(answer) => Err(answer),
            };
            told(session, ctx, begun).await?
        }
        Endpoint::Checkpoint(name, id) => checkpoints::read(edge, caller, &name, id).await,
        Endpoint::RemoveCheckpoint(name, id) => checkpoints::remove(edge, caller, &name, id).await,
        Endpoint::RestoreCheckpoint(name, id) => {
            let begun = checkpoints::restore(edge, caller, &name, id).await;
            told(session, ctx, begun).await?
        }
        Endpoint::Organization => Ok(Reply::Json(200, organization(edge, caller))),
    })
}

/// Streams what was begun.
async fn told(
    session: &mut Session,
    ctx: &mut RequestCtx,
    begun: Result<LineStream, Answer>,
) -> pingora::Result<Result<Reply, Answer>> {
    match begun {
        Ok(lines) => checkpoints::stream(session, ctx, lines).await.map(|()| Ok(Reply::Streamed)),
        Err(answer) => Ok(Err(answer)),
    }
}

fn organization(edge: &Edge, caller: &Verified) -> Value {
    let slug = caller.organization();
    let active: Vec<String> = edge
        .routes
        .of(slug)
        .iter()
        .filter(|route| route.sprite.state == agent_api::PublicState::Running)
        .map(|route| route.sprite.name.to_string())
        .collect();
    json!({ "organization": {
        "slug": slug,
        "sprites_enabled": true,
        "active_sprites": active,
        "max_sprites": object::NO_LIMIT,
        "active_sprite_limit": object::NO_LIMIT,
    } })
}
