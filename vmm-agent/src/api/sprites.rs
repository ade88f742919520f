//! Sprites: create, read, change, destroy, explain, and put to sleep or wake by hand.

use std::sync::Arc;

use agent_api::{ChangeSprite, Changed, CreateSprite, SleepSprite, Sprite, WhyAwake};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use ids::{OrgSlug, SpriteId, SpriteName};
use serde::Deserialize;

use super::answer::{Body, Failure};
use crate::{agent::Agent, drivers::command, sprite::Handle};

#[derive(Deserialize)]
pub(crate) struct Filter {
    organization: Option<OrgSlug>,
    name: Option<SpriteName>,
}

pub(crate) async fn list(State(agent): State<Arc<Agent>>, Query(filter): Query<Filter>) -> Json<Vec<Sprite>> {
    let mut sprites = agent.directory.sprites();
    sprites.retain(|sprite| {
        filter.organization.as_ref().is_none_or(|organization| sprite.organization == *organization)
            && filter.name.as_ref().is_none_or(|name| sprite.name == *name)
    });
    sprites.sort_by(|a, b| (&a.organization, &a.name).cmp(&(&b.organization, &b.name)));
    Json(sprites)
}

pub(crate) async fn create(
    State(agent): State<Arc<Agent>>,
    Body(ask): Body<CreateSprite>,
) -> Result<(StatusCode, Json<Changed<Sprite>>), Failure> {
    // Runs to its end even if the caller leaves: half a sprite must not be left behind.
    let made = tokio::spawn(async move { agent.create_sprite(ask).await }).await;
    let made = made.map_err(|error| Failure::internal(&error))??;
    Ok((StatusCode::CREATED, Json(made)))
}

pub(super) fn handle(agent: &Agent, id: SpriteId) -> Result<Handle, Failure> {
    agent.sprite(id).ok_or_else(|| Failure::not_found("sprite"))
}

pub(crate) async fn read(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<SpriteId>,
) -> Result<Json<Sprite>, Failure> {
    agent.directory.sprite(id).map(Json).ok_or_else(|| Failure::not_found("sprite"))
}

pub(crate) async fn change(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<SpriteId>,
    Body(change): Body<ChangeSprite>,
) -> Result<Json<Changed<Sprite>>, Failure> {
    Ok(Json(handle(&agent, id)?.change(change).await?))
}

#[derive(serde::Serialize)]
pub(crate) struct Nothing {}

pub(crate) async fn destroy(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<SpriteId>,
) -> Result<Json<Changed<Nothing>>, Failure> {
    if agent.directory.sprite(id).is_some_and(|sprite| sprite.driver == command::NAME) {
        let message =
            "this sprite is named in the agent's configuration; remove it there and restart the agent";
        return Err(Failure::new(StatusCode::CONFLICT, "configured", message));
    }
    handle(&agent, id)?.destroy().await?;
    Ok(Json(Changed { revision: agent.directory.revision(), now: Nothing {} }))
}

pub(crate) async fn sleep(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<SpriteId>,
    Body(ask): Body<SleepSprite>,
) -> Result<Json<WhyAwake>, Failure> {
    Ok(Json(handle(&agent, id)?.sleep(ask.depth).await?))
}

pub(crate) async fn wake(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<SpriteId>,
) -> Result<Json<WhyAwake>, Failure> {
    Ok(Json(handle(&agent, id)?.wake().await?))
}

pub(crate) async fn why(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<SpriteId>,
) -> Result<Json<WhyAwake>, Failure> {
    Ok(Json(handle(&agent, id)?.why().await?))
}
