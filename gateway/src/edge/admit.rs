//! Route, authorize, hold: the one way in, for every protocol.
//!
//! Nothing is woken before a request has shown that it may enter, and a client without the right to know
//! can't tell a sprite that is absent from one that is private: same answer, same work (T34).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agent_api::UrlAuth;
use auth::{Allowed, Credential, Decision, Verified, decide, decide_api};
use ids::{OrgSlug, SpriteName};
use route::{Destination, SpriteHost};
use runtime_api::Target;

use super::{Edge, respond::EdgeError};
use crate::{api, leases::Lease, ledger::Conn, metrics::Class, routes::Route};

/// What of a request decides its way.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) host: &'a str,
    pub(crate) target: &'a str,
    pub(crate) authorization: &'a [&'a [u8]],
    pub(crate) request_id: &'a str,
}

/// A request that has been looked at, with what was decided about it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) request_id: String,
    pub(crate) wants_page: bool,
    pub(crate) started: Instant,
    pub(crate) admission: Admission,
}

impl Prepared {
    /// Whether the request goes to a sprite.
    pub(super) const fn is_forward(&self) -> bool {
        matches!(self.admission.next, Next::Forward(_))
    }

    /// Takes the request out, if it goes to a sprite.
    pub(crate) fn take_forward(&mut self) -> Option<Box<Forward>> {
        match std::mem::replace(&mut self.admission.next, Next::Taken) {
            Next::Forward(forward) => Some(forward),
            other @ (Next::Api(_) | Next::Refuse(_) | Next::Taken) => {
                self.admission.next = other;
                None
            }
        }
    }
}

/// What was decided, and how long it took.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) class: Class,
    pub(crate) auth_took: Duration,
    pub(crate) hold_took: Duration,
    pub(crate) next: Next,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Next {
    /// It goes to a sprite.
    Forward(Box<Forward>),
    /// It is answered here, on behalf of this organization.
    Api(Verified),
    /// It is refused.
    Refuse(EdgeError),
    /// It is already on its way.
    Taken,
}

/// A request that may go to a sprite, and the lease under which it does.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) route: Arc<Route>,
    pub(crate) target: Target,
    pub(crate) allowed: Allowed,
    pub(crate) lease: Lease,
    /// The path and query there, if they differ from the client's.
    pub(crate) path: Option<String>,
}

impl Forward {
    /// Whether it only watches the sprite, which keeps nothing awake.
    pub(crate) fn is_watch(&self) -> bool {
        self.target == Target::Api && self.path.as_deref().is_some_and(api::is_watch)
    }
}

/// A request that may go to a sprite once that is awake.
struct Cleared {
    route: Arc<Route>,
    target: Target,
    allowed: Allowed,
    path: Option<String>,
}

/// Decides about a request. `None` if its client left meanwhile, as `gone` tells.
pub(crate) async fn admit(
    edge: &Edge,
    conn: &Arc<Conn>,
    facts: &Facts<'_>,
    gone: impl Future<Output = ()>,
) -> Option<Admission> {
    let started = Instant::now();
    let (class, cleared) = clear(edge, conn, facts);
    let auth_took = started.elapsed();
    let next = match cleared {
        Err(error) => Next::Refuse(error),
        Ok(Entrance::Api(verified)) => Next::Api(verified),
        Ok(Entrance::Sprite(cleared)) => {
            match enter(edge, conn, cleared, facts.request_id, class, gone).await? {
                Ok(forward) => Next::Forward(Box::new(forward)),
                Err(error) => Next::Refuse(error),
            }
        }
    };
    Some(Admission { class, auth_took, hold_took: started.elapsed() - auth_took, next })
}

enum Entrance {
    Api(Verified),
    Sprite(Cleared),
}

/// Route and authorize.
fn clear(edge: &Edge, conn: &Conn, facts: &Facts<'_>) -> (Class, Result<Entrance, EdgeError>) {
    let destination = match edge.settings.public.zone.parse(facts.host) {
        Ok(destination) => destination,
        Err(error) => return (Class::Unknown, Err(error.into())),
    };
    let verified = verify(edge, conn, facts);
    match destination {
        Destination::Sprite(host) => (Class::Url, clear_url(edge, conn, facts, &host, verified.as_ref())),
        Destination::Api => match api::inside(facts.target) {
            None => {
                let class = Class::Api;
                (class, verified.map(Entrance::Api).ok_or(EdgeError::Unauthorized))
            }
            Some((name, path)) => (Class::Inside, clear_inside(edge, name, path, verified.as_ref())),
        },
    }
}

fn verify(edge: &Edge, conn: &Conn, facts: &Facts<'_>) -> Option<Verified> {
    let Credential::Ours(token) = Credential::of(facts.authorization.iter().copied()) else { return None };
    // Noted before it is verified: a revocation first forgets the token and then looks for who used it,
    // so that it finds us, or we don't find the token.
    conn.note_token(token.id()).then(|| edge.routes.verify(&token)).flatten()
}

fn clear_url(
    edge: &Edge,
    conn: &Conn,
    facts: &Facts<'_>,
    host: &SpriteHost<'_>,
    verified: Option<&Verified>,
) -> Result<Entrance, EdgeError> {
    if conn.tls_name().is_some_and(|name| !same_host(name, facts.host)) {
        return Err(EdgeError::Misdirected);
    }
    let route = edge.routes.by_label(host.key());
    let target = host.port().map_or(Target::Web, Target::Port);
    let Some(route) = route else {
        return Err(absent(edge, host, verified));
    };
    match decide(route.access(), &route.sprite.organization, verified) {
        Decision::Allowed(allowed) => Ok(Entrance::Sprite(Cleared { route, target, allowed, path: None })),
        Decision::Denied => Err(EdgeError::Unauthorized),
    }
}

/// Only the organization whose suffix it is may learn that there is no such sprite.
fn absent(edge: &Edge, host: &SpriteHost<'_>, verified: Option<&Verified>) -> EdgeError {
    if !edge.routes.is_synced() {
        return EdgeError::Starting;
    }
    let owner = verified.and_then(|verified| edge.routes.suffix_of(verified.organization()));
    match owner {
        Some(suffix) if suffix.as_str() == host.suffix() => EdgeError::NoSprite,
        Some(_) | None => EdgeError::Unauthorized,
    }
}

fn clear_inside(
    edge: &Edge,
    name: Option<SpriteName>,
    path: String,
    verified: Option<&Verified>,
) -> Result<Entrance, EdgeError> {
    let organization = verified.ok_or(EdgeError::Unauthorized)?.organization();
    let route = name.and_then(|name| edge.routes.by_name(organization, &name)).ok_or(EdgeError::NoSprite)?;
    match decide_api(&route.sprite.organization, verified) {
        Decision::Allowed(allowed) => {
            Ok(Entrance::Sprite(Cleared { route, target: Target::Api, allowed, path: Some(path) }))
        }
        Decision::Denied => Err(EdgeError::NoSprite),
    }
}

/// Hold, and become a user of the sprite.
async fn enter(
    edge: &Edge,
    conn: &Arc<Conn>,
    cleared: Cleared,
    request_id: &str,
    class: Class,
    gone: impl Future<Output = ()>,
) -> Option<Result<Forward, EdgeError>> {
    let sprite = cleared.route.sprite.id;
    let anonymous = cleared.allowed.member().is_none();
    let forward = |lease, cleared: Cleared| Forward {
        route: cleared.route,
        target: cleared.target,
        allowed: cleared.allowed,
        path: cleared.path,
        lease,
    };
    // A connection that already holds the sprite, awake: no lock shared with any other connection.
    let held = conn.attached(sprite, anonymous);
    if let Some(lease) = held.and_then(|(slot, flight)| slot.pass(&cleared.allowed, flight)) {
        return Some(Ok(forward(lease, cleared)));
    }
    if edge.is_draining() {
        return Some(Err(EdgeError::Draining));
    }
    let slot = edge.leases.slot(sprite);
    let lease = tokio::select! {
        biased;
        lease = slot.acquire(&cleared.allowed, request_id) => lease,
        () = gone => return None,
    };
    let lease = match lease {
        Ok(lease) => lease,
        Err(error) => return Some(Err(error)),
    };
    if class == Class::Url {
        if !conn.attach(&slot, anonymous) {
            // A client that gathers this many hosts on one connection is sent to open another.
            return Some(Err(EdgeError::Misdirected));
        }
        // What was public when the request came may have become private while it waited (T31).
        if anonymous && !still_public(edge, &cleared.route) {
            return Some(Err(EdgeError::Unauthorized));
        }
    }
    Some(Ok(forward(lease, cleared)))
}

fn still_public(edge: &Edge, route: &Route) -> bool {
    let now = edge.routes.by_id(route.sprite.id);
    now.is_some_and(|route| route.sprite.url_settings.auth == UrlAuth::Public)
}

/// Whether a TLS server name and an authority name one host.
fn same_host(name: &str, authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.strip_suffix('.').unwrap_or(host);
    name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(host)
}

/// As whom a request goes on: told to the sprite in headers.
pub(crate) fn identity(allowed: &Allowed) -> (Option<&OrgSlug>, &'static str) {
    match allowed.member() {
        Some(organization) => (Some(organization), "member"),
        None => (None, "public"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_name_matches_its_host_in_any_spelling() {
        for authority in ["a-b.x", "A-B.x", "a-b.x:8443", "a-b.x.", "a-b.x.:443"] {
            assert!(same_host("a-b.x", authority), "{authority}");
        }
        assert!(!same_host("a-b.x", "c-b.x"));
    }
}
