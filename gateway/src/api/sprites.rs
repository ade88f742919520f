//! Creating, reading, changing and destroying sprites.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agent_api::{
    ApiError, ChangeSprite, Changed, CreateCheckpoint, CreateSprite, ForkSprite, Progress, ProgressKind,
    PublicState, SleepDepth, SleepSprite, Sprite, UrlAuth, UrlSettings, WhyAwake,
};
use auth::Verified;
use http::Method;
use ids::SpriteName;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use super::{CATCH_UP, Reply, checkpoints, object, path::no_sprite};
use crate::{
    edge::{Edge, respond::Answer},
    routes::Route,
};

/// How long the host may take to make a sprite, with a new disk and with a copy of another one.
const CREATE_LIMIT: Duration = Duration::from_secs(30);
const FORK_LIMIT: Duration = Duration::from_secs(600);

/// The body of a create. Clients send `null` for what they leave open; what we don't know is ignored.
#[derive(Deserialize)]
pub(super) struct CreateWish {
    name: Option<String>,
    url_settings: Option<SettingsWish>,
    labels: Option<Vec<String>>,
    environment: Option<BTreeMap<String, String>>,
    config: Option<Value>,
    wait_for_capacity: Option<bool>,
    /// From the last activity to warm; an extension.
    idle_timeout_ms: Option<u64>,
    /// From warm to cold; an extension.
    cold_after_ms: Option<u64>,
    /// From what its disk is made; an extension.
    fork: Option<ForkWish>,
}

/// A sprite's disk, as it was at a checkpoint or is now; and its memory, if it is suspended.
#[derive(Deserialize)]
struct ForkWish {
    sprite: String,
    checkpoint: Option<String>,
    memory: Option<bool>,
}

/// The body of a change.
#[derive(Deserialize)]
pub(super) struct ChangeWish {
    url_settings: Option<SettingsWish>,
    labels: Option<Vec<String>>,
    clear_labels: Option<bool>,
    idle_timeout_ms: Option<u64>,
    cold_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct SettingsWish {
    auth: Option<UrlAuth>,
    private_access: Option<String>,
}

impl SettingsWish {
    /// What it asks for, over what there is.
    fn over(self, present: &UrlSettings) -> Result<UrlSettings, Answer> {
        if let Some(access) =
            self.private_access.as_deref().filter(|access| !["admins", "org_users"].contains(access))
        {
            let message = format!("private_access is \"admins\" or \"org_users\", not {access:?}.");
            return Err(Answer::new(400, "bad_request", message));
        }
        Ok(UrlSettings {
            auth: self.auth.unwrap_or(present.auth),
            private_access: self.private_access.or_else(|| present.private_access.clone()),
        })
    }
}

pub(super) fn find(edge: &Edge, caller: &Verified, name: &SpriteName) -> Result<Arc<Route>, Answer> {
    match edge.routes.by_name(caller.organization(), name) {
        Some(route) => Ok(route),
        None if edge.routes.is_synced() => Err(no_sprite()),
        None => Err(crate::edge::respond::answer(&crate::edge::respond::EdgeError::Starting)),
    }
}

pub(super) fn read(edge: &Edge, caller: &Verified, name: &SpriteName) -> Result<Reply, Answer> {
    let route = find(edge, caller, name)?;
    Ok(Reply::Json(200, object::sprite(edge, &route.sprite)))
}

pub(super) async fn create(edge: &Edge, caller: &Verified, wish: CreateWish) -> Result<Reply, Answer> {
    // Accepted: a sprite that does not run needs no capacity, so there is never anything to wait for.
    let _granted_anyway = wish.wait_for_capacity;
    let name = wish.name.ok_or_else(|| Answer::new(400, "bad_request", "A sprite needs a \"name\"."))?;
    let name: SpriteName = name.parse().map_err(|error| {
        Answer::new(400, "bad_name", format!("{name:?} can't be the name of a sprite: {error}."))
    })?;
    let url_settings = match wish.url_settings {
        Some(settings) => settings.over(&UrlSettings::default())?,
        None => UrlSettings::default(),
    };
    let fork = wish.fork.map(|fork| {
        let source =
            fork.sprite.parse().map_err(|_| no_sprite()).and_then(|name| find(edge, caller, &name))?;
        let checkpoint = fork.checkpoint.as_deref().map(checkpoints::id).transpose()?;
        Ok(ForkSprite { source: source.sprite.id, checkpoint, memory: fork.memory.unwrap_or_default() })
    });
    let fork = fork.transpose()?;
    // To copy a disk may take a while; to make a new one does not.
    let limit = if fork.is_some() { FORK_LIMIT } else { CREATE_LIMIT };
    let ask = CreateSprite {
        name,
        organization: caller.organization().clone(),
        url_settings,
        labels: wish.labels.unwrap_or_default(),
        environment: wish.environment.unwrap_or_default(),
        config: wish.config,
        idle_timeout_ms: wish.idle_timeout_ms,
        cold_after_ms: wish.cold_after_ms,
        fork,
    };
    let made: Changed<Sprite> =
        edge.agent.call_within(limit, Method::POST, "/v1/sprites", Some(&ask)).await.map_err(of_agent)?;
    catch_up(edge, made.revision).await;
    Ok(Reply::Json(201, object::sprite(edge, &made.now)))
}

pub(super) async fn change(
    edge: &Edge,
    caller: &Verified,
    name: &SpriteName,
    wish: ChangeWish,
) -> Result<Reply, Answer> {
    let route = find(edge, caller, name)?;
    let url_settings =
        wish.url_settings.map(|settings| settings.over(&route.sprite.url_settings)).transpose()?;
    let labels = if wish.clear_labels == Some(true) { Some(Vec::new()) } else { wish.labels };
    let ask = ChangeSprite {
        url_settings,
        labels,
        idle_timeout_ms: wish.idle_timeout_ms,
        cold_after_ms: wish.cold_after_ms,
    };
    let path = format!("/v1/sprites/{}", route.sprite.id);
    let made: Changed<Sprite> = edge.agent.call(Method::PATCH, &path, Some(&ask)).await.map_err(of_agent)?;
    catch_up(edge, made.revision).await;
    Ok(Reply::Json(200, object::sprite(edge, &made.now)))
}

pub(super) async fn destroy(edge: &Edge, caller: &Verified, name: &SpriteName) -> Result<Reply, Answer> {
    #[derive(Deserialize)]
    struct Nothing {}
    let route = find(edge, caller, name)?;
    let path = format!("/v1/sprites/{}", route.sprite.id);
    let gone: Changed<Nothing> =
        edge.agent.call(Method::DELETE, &path, None::<&()>).await.map_err(of_agent)?;
    catch_up(edge, gone.revision).await;
    Ok(Reply::Empty)
}

/// Passes a question or a command about one sprite to the agent, and its answer back.
pub(super) async fn ask(
    edge: &Edge,
    caller: &Verified,
    name: &SpriteName,
    method: Method,
    what: &str,
    wish: Option<Value>,
) -> Result<Reply, Answer> {
    let route = find(edge, caller, name)?;
    let path = format!("/v1/sprites/{}/{what}", route.sprite.id);
    let answer: Value = edge.agent.call(method, &path, wish.as_ref()).await.map_err(of_agent)?;
    Ok(Reply::Json(200, answer))
}

/// Ends all that runs in a sprite, and starts it anew.
pub(super) async fn restart(edge: &Edge, caller: &Verified, name: &SpriteName) -> Result<Reply, Answer> {
    let route = find(edge, caller, name)?;
    cold_start(edge, &route).await?;
    Ok(Reply::Json(
        200,
        json!({ "sprite_name": name, "machine_id": route.sprite.id, "message": "restarted" }),
    ))
}

/// A sprite gets the newest runtime of its host with each cold start; one that is cold has nothing older.
pub(super) async fn upgrade(edge: &Edge, caller: &Verified, name: &SpriteName) -> Result<Reply, Answer> {
    let route = find(edge, caller, name)?;
    if route.sprite.state != PublicState::Cold {
        keep_as_it_is(edge, &route).await?;
        cold_start(edge, &route).await?;
    }
    Ok(Reply::Json(200, json!({ "name": name, "status": "upgraded" })))
}

/// An automatic checkpoint, where the sprite can have any.
async fn keep_as_it_is(edge: &Edge, route: &Route) -> Result<(), Answer> {
    let path = format!("/v1/sprites/{}/checkpoints", route.sprite.id);
    let ask = CreateCheckpoint { comment: "before an upgrade".into(), automatic: true };
    let mut lines = match edge.agent.lines(Method::POST, &path, Some(&ask)).await {
        Err(ApiError::Answered { status: 501, .. }) => return Ok(()),
        other => other.map_err(of_agent)?,
    };
    while let Some(line) = lines.next().await.map_err(of_agent)? {
        let told = serde_json::from_slice::<Progress>(&line);
        if let Ok(Progress { kind: ProgressKind::Error, error, .. }) = told {
            let message = format!("Nothing was upgraded: {}.", error.unwrap_or_default());
            return Err(Answer::new(500, "checkpoint_failed", message));
        }
    }
    Ok(())
}

async fn cold_start(edge: &Edge, route: &Route) -> Result<(), Answer> {
    let path = |verb: &str| format!("/v1/sprites/{}/{verb}", route.sprite.id);
    let asleep = SleepSprite { depth: SleepDepth::Cold };
    // The wake waits for the end of the sleep that was begun.
    let _begun: WhyAwake =
        edge.agent.call(Method::POST, &path("sleep"), Some(&asleep)).await.map_err(of_agent)?;
    let _awake: WhyAwake =
        edge.agent.call(Method::POST, &path("wake"), None::<&()>).await.map_err(of_agent)?;
    Ok(())
}

/// Whether a sprite is well, as far as can be told without waking it.
pub(super) fn check(edge: &Edge, caller: &Verified, name: &SpriteName) -> Result<Reply, Answer> {
    let sprite = &find(edge, caller, name)?.sprite;
    let (status, reason) = match sprite.state {
        PublicState::Running => ("healthy", "it runs"),
        PublicState::Warm => ("hibernated", "its memory is kept"),
        PublicState::Cold => ("hibernated", "its disk is kept"),
    };
    Ok(Reply::Json(
        200,
        json!({
            "sprite_name": sprite.name,
            "sprite_id": sprite.id,
            "status": status,
            "reason": reason,
            "checked_at": jiff::Timestamp::now(),
            "elapsed": "0s",
        }),
    ))
}

/// Whoever made a change sees it in the next answer, whichever connection asks.
async fn catch_up(edge: &Edge, revision: u64) {
    if !edge.routes.caught_up(revision, CATCH_UP).await {
        warn!(revision, "A change was answered before the watch stream showed it");
    }
}

pub(super) fn of_agent(error: ApiError) -> Answer {
    match error {
        ApiError::Answered { status, body } => {
            let answer = Answer::new(status, body.error, body.message);
            if status == 503 { answer.retry_after(1) } else { answer }
        }
        ApiError::Unreachable(_) | ApiError::TimedOut(_) => {
            warn!(%error, "The agent did not answer a call");
            let message =
                "The host can't be reached at the moment; nothing may have been changed. Try again.";
            Answer::new(503, "agent_unreachable", message).retry_after(2)
        }
        ApiError::Protocol(_) => {
            tracing::error!(%error, "The agent answered a call with something else");
            Answer::new(
                502,
                "agent_protocol",
                "The host answered something that the gateway does not understand.",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_private_mode_is_one() {
        let auth = |text: &str| {
            serde_json::from_str::<ChangeWish>(text)
                .ok()
                .and_then(|wish| wish.url_settings)
                .and_then(|settings| settings.auth)
        };
        for private in ["sprite", "default", ""] {
            let text = format!(r#"{{"url_settings":{{"auth":"{private}"}}}}"#);
            assert_eq!(auth(&text), Some(UrlAuth::Sprite), "{private:?}");
        }
        assert_eq!(auth(r#"{"url_settings":{"auth":"public"}}"#), Some(UrlAuth::Public));
        assert!(serde_json::from_str::<ChangeWish>(r#"{"url_settings":{"auth":"everyone"}}"#).is_err());
    }

    #[test]
    fn a_change_of_one_setting_keeps_the_other() {
        let present = UrlSettings { auth: UrlAuth::Public, private_access: Some("admins".into()) };
        let wish =
            |auth, access: Option<&str>| SettingsWish { auth, private_access: access.map(str::to_owned) };
        assert_eq!(wish(None, None).over(&present), Ok(present.clone()));
        let private = wish(Some(UrlAuth::Sprite), None).over(&present).expect("valid");
        assert_eq!(private.private_access.as_deref(), Some("admins"));
        assert_eq!(wish(None, Some("nobody")).over(&present).expect_err("invalid").status, 400);
    }
}
