//! Which endpoint a path and a method mean.

use std::borrow::Cow;

use http::Method;
use ids::{CheckpointId, SpriteName};

use super::checkpoints;
use crate::edge::respond::Answer;

/// Everything that is answered by the gateway itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Endpoint {
    List,
    Create,
    Read(SpriteName),
    Change(SpriteName),
    Destroy(SpriteName),
    Check(SpriteName),
    Why(SpriteName),
    Sleep(SpriteName),
    Wake(SpriteName),
    Restart(SpriteName),
    Upgrade(SpriteName),
    Checkpoints(SpriteName),
    TakeCheckpoint(SpriteName),
    Checkpoint(SpriteName, CheckpointId),
    RemoveCheckpoint(SpriteName, CheckpointId),
    RestoreCheckpoint(SpriteName, CheckpointId),
    Organization,
}

/// What happens inside a sprite, and is answered there by its runtime.
const INSIDE: [&str; 5] = ["exec", "fs", "ports", "proxy", "services"];
/// What the protocol has and we don't have yet. They wake nothing.
const NOT_YET: [&str; 2] = ["policy", "tasks"];

/// If the target concerns the inside of a sprite: its name (if it is one) and the path and query there.
pub(crate) fn inside(target: &str) -> Option<(Option<SpriteName>, String)> {
    let rest = target.strip_prefix("/v1/sprites/")?;
    let (name, rest) = rest.split_once('/')?;
    let first = rest.split(['/', '?']).next().unwrap_or_default();
    INSIDE.contains(&first).then(|| (sprite_name(name), format!("/{rest}")))
}

/// Whether a path inside a sprite is one that tells what happens there, and does nothing.
pub(crate) fn is_watch(path: &str) -> bool {
    matches!(path.split('?').next(), Some("/fs/watch" | "/ports/watch"))
}

fn sprite_name(segment: &str) -> Option<SpriteName> {
    decode(segment)?.parse().ok()
}

/// Percent-decodes once; `None` if that gives no text.
fn decode(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(segment.into());
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(digits[0])? << 4 | digit(digits[1])?);
        rest = tail;
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

impl Endpoint {
    pub(super) fn of(path: &str, method: &Method) -> Result<Self, Answer> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        // HEAD asks what GET would answer.
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        match segments.as_slice() {
            ["v1", "organization"] => one(method, &Method::GET, Self::Organization),
            ["v1", "sprites"] => match *method {
                Method::GET => Ok(Self::List),
                Method::POST => Ok(Self::Create),
                _ => Err(wrong_method("GET, POST")),
            },
            ["v1", "sprites", name] => {
                let known = sprite_name(name);
                match *method {
                    Method::GET => known.map(Self::Read),
                    Method::PUT => known.map(Self::Change),
                    Method::DELETE => known.map(Self::Destroy),
                    _ => return Err(wrong_method("GET, PUT, DELETE")),
                }
                .ok_or_else(no_sprite)
            }
            ["v1", "sprites", name, what @ ..] => Self::of_sprite(name, what, method),
            ["v1", "organizations", _, "tokens"] => Err(not_yet("tokens over the API")),
            _ => Err(Answer::new(404, "not_found", format!("There is nothing at {path:?} in this API."))),
        }
    }

    fn of_sprite(name: &str, what: &[&str], method: &Method) -> Result<Self, Answer> {
        let name = || sprite_name(name).ok_or_else(no_sprite);
        match what {
            ["check"] => one(method, &Method::GET, Self::Check(name()?)),
            ["why"] => one(method, &Method::GET, Self::Why(name()?)),
            ["sleep"] => one(method, &Method::POST, Self::Sleep(name()?)),
            ["wake"] => one(method, &Method::POST, Self::Wake(name()?)),
            ["restart"] => one(method, &Method::POST, Self::Restart(name()?)),
            ["upgrade"] => one(method, &Method::POST, Self::Upgrade(name()?)),
            ["checkpoint"] => one(method, &Method::POST, Self::TakeCheckpoint(name()?)),
            ["checkpoints"] => match *method {
                Method::GET => Ok(Self::Checkpoints(name()?)),
                // As some notes of the contract have it.
                Method::POST => Ok(Self::TakeCheckpoint(name()?)),
                _ => Err(wrong_method("GET, POST")),
            },
            ["checkpoints", id] => match *method {
                Method::GET => Ok(Self::Checkpoint(name()?, checkpoint_id(id)?)),
                Method::DELETE => Ok(Self::RemoveCheckpoint(name()?, checkpoint_id(id)?)),
                _ => Err(wrong_method("GET, DELETE")),
            },
            ["checkpoints", id, "restore"] => {
                one(method, &Method::POST, Self::RestoreCheckpoint(name()?, checkpoint_id(id)?))
            }
            // Clients take this for "no multiplexing here" and use the plain calls.
            ["control"] => Err(Answer::new(404, "not_found", "Multiplexed operations are not offered.")),
            [first, ..] if NOT_YET.contains(first) => Err(not_yet(first)),
            _ => Err(Answer::new(404, "not_found", "There is nothing at this path of a sprite.")),
        }
    }
}

fn checkpoint_id(segment: &str) -> Result<CheckpointId, Answer> {
    checkpoints::id(&decode(segment).unwrap_or_default())
}

fn one(method: &Method, expected: &Method, endpoint: Endpoint) -> Result<Endpoint, Answer> {
    if method == expected { Ok(endpoint) } else { Err(wrong_method(expected.as_str())) }
}

fn wrong_method(allowed: &str) -> Answer {
    Answer::new(405, "method_not_allowed", format!("This path takes {allowed}.")).allow(allowed)
}

fn not_yet(what: &str) -> Answer {
    Answer::new(
        501,
        "not_implemented",
        format!("This server does not offer {what} yet. No sprite was woken."),
    )
}

pub(super) fn no_sprite() -> Answer {
    Answer::new(404, "not_found", "There is no sprite with this name in your organization.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str, method: &Method) -> u16 {
        Endpoint::of(path, method).expect_err(path).status
    }

    #[test]
    fn each_path_and_method_has_one_meaning() {
        let name = || "web".parse::<SpriteName>().expect("a name");
        let v1 = || CheckpointId::Numbered(1);
        for (path, method, endpoint) in [
            ("/v1/sprites", Method::GET, Endpoint::List),
            ("/v1/sprites/", Method::GET, Endpoint::List),
            ("/v1/sprites", Method::POST, Endpoint::Create),
            ("/v1/sprites/web", Method::HEAD, Endpoint::Read(name())),
            ("/v1/sprites/w%65b", Method::PUT, Endpoint::Change(name())),
            ("/v1/sprites/web", Method::DELETE, Endpoint::Destroy(name())),
            ("/v1/sprites/web/check", Method::GET, Endpoint::Check(name())),
            ("/v1/sprites/web/why", Method::GET, Endpoint::Why(name())),
            ("/v1/sprites/web/sleep", Method::POST, Endpoint::Sleep(name())),
            ("/v1/sprites/web/wake", Method::POST, Endpoint::Wake(name())),
            ("/v1/sprites/web/restart", Method::POST, Endpoint::Restart(name())),
            ("/v1/sprites/web/upgrade", Method::POST, Endpoint::Upgrade(name())),
            ("/v1/sprites/web/checkpoint", Method::POST, Endpoint::TakeCheckpoint(name())),
            ("/v1/sprites/web/checkpoints", Method::POST, Endpoint::TakeCheckpoint(name())),
            ("/v1/sprites/web/checkpoints", Method::GET, Endpoint::Checkpoints(name())),
            ("/v1/sprites/web/checkpoints/v1", Method::GET, Endpoint::Checkpoint(name(), v1())),
            ("/v1/sprites/web/checkpoints/v1", Method::DELETE, Endpoint::RemoveCheckpoint(name(), v1())),
            (
                "/v1/sprites/web/checkpoints/v1/restore",
                Method::POST,
                Endpoint::RestoreCheckpoint(name(), v1()),
            ),
            ("/v1/organization", Method::GET, Endpoint::Organization),
        ] {
            assert_eq!(Endpoint::of(path, &method), Ok(endpoint), "{method} {path}");
        }
    }

    #[test]
    fn what_is_not_there_says_so() {
        assert_eq!(status("/v1/sprites", &Method::PATCH), 405);
        assert_eq!(status("/v1/sprites/web", &Method::POST), 405);
        assert_eq!(status("/v1/sprites/web/control", &Method::GET), 404);
        assert_eq!(status("/v1/sprites/web/checkpoint", &Method::GET), 405);
        assert_eq!(status("/v1/sprites/web/checkpoints/v1", &Method::PUT), 405);
        for unknown in ["v01", "..", "%2e%2e", "v1%2f..", "Current"] {
            assert_eq!(
                status(&format!("/v1/sprites/web/checkpoints/{unknown}"), &Method::GET),
                404,
                "{unknown}"
            );
        }
        for later in ["policy/network", "tasks"] {
            assert_eq!(status(&format!("/v1/sprites/web/{later}"), &Method::POST), 501, "{later}");
        }
        assert_eq!(status("/v1/sprites/Not%20a%20name", &Method::GET), 404);
        assert_eq!(status("/v1/sprites/..", &Method::GET), 404);
        assert_eq!(status("/v2", &Method::GET), 404);
        assert_eq!(status("/", &Method::GET), 404);
    }

    #[test]
    fn what_concerns_the_inside_is_told_apart() {
        let (name, path) = inside("/v1/sprites/w%65b/services/x/start?duration=5s").expect("inside");
        assert_eq!((name, path.as_str()), ("web".parse().ok(), "/services/x/start?duration=5s"));
        assert_eq!(inside("/v1/sprites/web/services"), Some(("web".parse().ok(), "/services".to_owned())));
        assert_eq!(inside("/v1/sprites/a%2fb/services?x"), Some((None, "/services?x".to_owned())));
        for what in ["exec", "exec?cmd=ls", "exec/7/kill", "fs/read?path=/a", "proxy", "ports/watch"] {
            let target = format!("/v1/sprites/web/{what}");
            assert_eq!(inside(&target), Some(("web".parse().ok(), format!("/{what}"))));
        }
        for not in [
            "/v1/sprites/web",
            "/v1/sprites/web/servicesx",
            "/v1/sprites/web/control",
            "/v1/sprites",
            "/x/v1/sprites/web/services",
        ] {
            assert_eq!(inside(not), None, "{not}");
        }
    }

    #[test]
    fn decoding_is_strict() {
        assert_eq!(decode("a%2Fb").as_deref(), Some("a/b"));
        for bad in ["%", "%2", "%zz", "%ff", "%+1"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
