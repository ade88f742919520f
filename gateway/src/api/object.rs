//! How a sprite looks in the API.

use agent_api::{PublicState, Sprite, UrlAuth};
use serde_json::{Map, Value, json};

use crate::{edge::Edge, routes::Route};

/// Limits that the protocol has and this server doesn't. Clients want a number.
pub(super) const NO_LIMIT: u32 = 0;
/// The version of what runs inside sprites.
const RUNTIME_VERSION: &str = env!("CARGO_PKG_VERSION");
/// The version of the base image.
const ENVIRONMENT_VERSION: &str = "1";

pub(super) const fn status(state: PublicState) -> &'static str {
    match state {
        PublicState::Running => "running",
        PublicState::Warm => "warm",
        PublicState::Cold => "cold",
    }
}

/// The whole object. Times are RFC 3339 or absent; lists are never null: strict clients fail otherwise.
pub(super) fn sprite(edge: &Edge, sprite: &Sprite) -> Value {
    let auth = match sprite.url_settings.auth {
        UrlAuth::Public => "public",
        UrlAuth::Sprite => "sprite",
    };
    let mut url_settings = json!({ "auth": auth });
    if let Some(private_access) = &sprite.url_settings.private_access {
        url_settings["private_access"] = json!(private_access);
    }
    let mut object = json!({
        "id": sprite.id,
        "name": sprite.name,
        "organization": sprite.organization,
        "org_slug": sprite.organization,
        "url": edge.url(sprite),
        "url_settings": url_settings,
        "status": status(sprite.state),
        "created_at": sprite.created_at,
        "updated_at": sprite.updated_at,
        "labels": sprite.labels,
        "environment": sprite.environment,
        "version": RUNTIME_VERSION,
        "environment_version": ENVIRONMENT_VERSION,
    });
    if let Some(object) = object.as_object_mut() {
        add_times(object, sprite);
        if let Some(config) = &sprite.config {
            object.insert("config".into(), config.clone());
        }
    }
    object
}

/// One line of the watch stream.
pub(super) fn line(sprite: &Sprite, organization: &Value, now: jiff::Timestamp) -> Value {
    let mut line = json!({
        "type": "sprite",
        "name": sprite.name,
        "status": status(sprite.state),
        "running_version": RUNTIME_VERSION,
        "timestamp": now,
        "org": organization,
    });
    if let Some(line) = line.as_object_mut() {
        add_times(line, sprite);
    }
    line
}

/// Each under both names that clients know.
fn add_times(object: &mut Map<String, Value>, sprite: &Sprite) {
    if let Some(at) = &sprite.last_running_at {
        object.insert("last_running_at".into(), json!(at));
        object.insert("last_started_at".into(), json!(at));
    }
    if let Some(at) = &sprite.last_warming_at {
        object.insert("last_warming_at".into(), json!(at));
        object.insert("last_active_at".into(), json!(at));
    }
}

/// How many of an organization's sprites are in which state.
pub(super) fn counters<'a>(slug: &str, sprites: impl Iterator<Item = &'a Route>) -> Value {
    let (mut running, mut warm, mut cold) = (0u32, 0u32, 0u32);
    for route in sprites {
        match route.sprite.state {
            PublicState::Running => running += 1,
            PublicState::Warm => warm += 1,
            PublicState::Cold => cold += 1,
        }
    }
    json!({
        "name": slug, "running": running, "warm": warm, "cold": cold,
        "running_limit": NO_LIMIT, "warm_limit": NO_LIMIT,
    })
}
