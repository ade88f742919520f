//! What the gateway knows of sprites, organizations and tokens: the agent's truth, mirrored in memory.
//!
//! Every request is answered from here without asking anyone. The mirror is fed by the agent's watch
//! stream (see [`feed`](crate::feed)); while the agent can't be reached, what is known stays.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use agent_api::{Organization, Sprite, TokenRecord, UrlAuth, watch::WatchEvent};
use auth::{Access, PresentedToken, TokenDigest, Verified};
use dashmap::DashMap;
use ids::{OrgSlug, SpriteId, SpriteName, TokenId, UrlSuffix};
use parking_lot::Mutex;
use route::Zone;
use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

use crate::ledger::Ledger;

/// How many changes a slow watcher may lag behind before it is told to start over.
const CHANGES_KEPT: usize = 1024;

/// One sprite as the gateway sees it.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) sprite: Sprite,
}

impl Route {
    pub(crate) const fn access(&self) -> Access {
        match self.sprite.url_settings.auth {
            UrlAuth::Public => Access::Public,
            UrlAuth::Sprite => Access::Members,
        }
    }
}

/// A change that the watchers of the list hear of.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Sprite(Arc<Route>),
    Gone(Arc<Route>),
}

#[derive(Debug)]
struct Token {
    organization: OrgSlug,
    digest: TokenDigest,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct RouteTable {
    by_label: DashMap<String, Arc<Route>>,
    by_id: DashMap<SpriteId, Arc<Route>>,
    /// Each organization's sprites, in the order of their names.
    by_owner: DashMap<OrgSlug, BTreeMap<SpriteName, Arc<Route>>>,
    organizations: DashMap<OrgSlug, UrlSuffix>,
    tokens: DashMap<TokenId, Token>,
    /// What the present snapshot has mentioned; `None` once it is complete.
    mentioned: Mutex<Option<Mentioned>>,
    revision: watch::Sender<Option<u64>>,
    changes: broadcast::Sender<Change>,
    ledger: Arc<Ledger>,
}

#[derive(Debug, Default)]
struct Mentioned {
    sprites: HashSet<SpriteId>,
    tokens: HashSet<TokenId>,
    organizations: HashSet<OrgSlug>,
}

impl RouteTable {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            by_label: DashMap::new(),
            by_id: DashMap::new(),
            by_owner: DashMap::new(),
            organizations: DashMap::new(),
            tokens: DashMap::new(),
            mentioned: Mutex::new(None),
            revision: watch::Sender::new(None),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            ledger,
        }
    }

    /// The sprite with this `name-suffix`.
    pub(crate) fn by_label(&self, label: &str) -> Option<Arc<Route>> {
        self.by_label.get(label).map(|route| route.clone())
    }

    pub(crate) fn by_id(&self, id: SpriteId) -> Option<Arc<Route>> {
        self.by_id.get(&id).map(|route| route.clone())
    }

    /// An organization's sprite.
    pub(crate) fn by_name(&self, organization: &OrgSlug, name: &SpriteName) -> Option<Arc<Route>> {
        let suffix = self.organizations.get(organization)?.clone();
        self.by_label(&Zone::key(name, &suffix)).filter(|route| route.sprite.organization == *organization)
    }

    pub(crate) fn suffix_of(&self, organization: &OrgSlug) -> Option<UrlSuffix> {
        self.organizations.get(organization).map(|suffix| suffix.clone())
    }

    /// All sprites of an organization, in the order of their names.
    pub(crate) fn of(&self, organization: &OrgSlug) -> Vec<Arc<Route>> {
        self.by_owner.get(organization).map(|sprites| sprites.values().cloned().collect()).unwrap_or_default()
    }

    /// Proves a token.
    pub(crate) fn verify(&self, token: &PresentedToken) -> Option<Verified> {
        let recorded = self.tokens.get(token.id())?;
        token.verify(&recorded.digest, &recorded.organization)
    }

    /// Whether a whole snapshot has been seen.
    pub(crate) fn is_synced(&self) -> bool {
        self.revision.borrow().is_some()
    }

    /// Waits until everything up to `revision` is known here, or for `limit`.
    pub(crate) async fn caught_up(&self, revision: u64, limit: Duration) -> bool {
        let mut seen = self.revision.subscribe();
        let reached = seen.wait_for(|now| now.is_some_and(|now| now >= revision));
        tokio::time::timeout(limit, reached).await.is_ok_and(|changed| changed.is_ok())
    }

    /// Follows the changes from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// A new snapshot begins: what it does not mention is gone.
    pub(crate) fn begin_snapshot(&self) {
        *self.mentioned.lock() = Some(Mentioned::default());
    }

    /// One line of the watch stream.
    pub(crate) fn apply(&self, revision: u64, event: WatchEvent) {
        let mut mentioned = self.mentioned.lock();
        match event {
            WatchEvent::Sprite { sprite } => {
                if let Some(mentioned) = &mut *mentioned {
                    mentioned.sprites.insert(sprite.id);
                }
                self.put_sprite(*sprite);
            }
            WatchEvent::SpriteGone { id } => self.remove_sprite(id),
            WatchEvent::Organization { organization } => {
                if let Some(mentioned) = &mut *mentioned {
                    mentioned.organizations.insert(organization.slug.clone());
                }
                self.put_organization(organization);
            }
            WatchEvent::Token { token } => {
                if let Some(mentioned) = &mut *mentioned {
                    mentioned.tokens.insert(token.id.clone());
                }
                self.put_token(token);
            }
            WatchEvent::TokenGone { id } => self.remove_token(&id),
            WatchEvent::Synced => {
                if let Some(mentioned) = mentioned.take() {
                    self.sweep(&mentioned);
                }
            }
            WatchEvent::Heartbeat => {}
        }
        // During a snapshot nothing can be said about what is not there yet.
        if mentioned.is_none() {
            self.revision.send_replace(Some(revision));
        }
    }

    fn put_sprite(&self, sprite: Sprite) {
        let label = Zone::key(&sprite.name, &sprite.url_suffix);
        let route = Arc::new(Route { sprite });
        let before = self.by_id.insert(route.sprite.id, route.clone());
        self.by_label.insert(label, route.clone());
        let mut owned = self.by_owner.entry(route.sprite.organization.clone()).or_default();
        owned.insert(route.sprite.name.clone(), route.clone());
        drop(owned);
        // Last: whoever enters by the old setting from now on finds the new one when it looks again.
        let was_public = before.is_some_and(|before| before.access() == Access::Public);
        if was_public && route.access() == Access::Members {
            let closed = self.ledger.close_anonymous(route.sprite.id);
            info!(sprite = %route.sprite.id, closed, "A sprite's URL has become private");
        }
        self.tell(Change::Sprite(route));
    }

    fn remove_sprite(&self, id: SpriteId) {
        let Some((_, route)) = self.by_id.remove(&id) else { return };
        let label = Zone::key(&route.sprite.name, &route.sprite.url_suffix);
        // The name may have been given to another sprite already.
        self.by_label.remove_if(&label, |_, other| other.sprite.id == id);
        self.by_owner.remove_if_mut(&route.sprite.organization, |_, owned| {
            if owned.get(&route.sprite.name).is_some_and(|other| other.sprite.id == id) {
                owned.remove(&route.sprite.name);
            }
            owned.is_empty()
        });
        self.ledger.close_sprite(id);
        self.tell(Change::Gone(route));
    }

    fn put_organization(&self, organization: Organization) {
        self.organizations.insert(organization.slug, organization.url_suffix);
    }

    fn put_token(&self, token: TokenRecord) {
        match token.sha256.parse() {
            Ok(digest) => {
                self.tokens.insert(token.id, Token { organization: token.organization, digest });
            }
            Err(error) => warn!(token = %token.id, %error, "A token's record is unusable"),
        }
    }

    fn remove_token(&self, id: &TokenId) {
        if self.tokens.remove(id).is_some() {
            let closed = self.ledger.close_token(id);
            info!(token = %id, closed, "A token has been revoked");
        }
    }

    fn sweep(&self, mentioned: &Mentioned) {
        let sprites: Vec<SpriteId> = self.by_id.iter().map(|route| *route.key()).collect();
        for id in sprites.into_iter().filter(|id| !mentioned.sprites.contains(id)) {
            self.remove_sprite(id);
        }
        let tokens: Vec<TokenId> = self.tokens.iter().map(|token| token.key().clone()).collect();
        for id in tokens.iter().filter(|id| !mentioned.tokens.contains(*id)) {
            self.remove_token(id);
        }
        self.organizations.retain(|slug, _| mentioned.organizations.contains(slug));
    }

    fn tell(&self, change: Change) {
        // An error means that nobody listens.
        let _listeners = self.changes.send(change);
    }
}

#[cfg(test)]
mod tests {
    use agent_api::{PublicState, SpriteConfig, UrlSettings};
    use ids::Epoch;

    use super::*;
    use crate::clock::Clock;

    fn table() -> RouteTable {
        RouteTable::new(Ledger::new(Clock::start()))
    }

    fn sprite(id: u128, name: &str, organization: &str, suffix: &str) -> Sprite {
        Sprite {
            id: SpriteId::from_u128(id),
            name: name.parse().expect("a name"),
            organization: organization.parse().expect("a slug"),
            url_suffix: suffix.parse().expect("a suffix"),
            url_settings: UrlSettings::default(),
            state: PublicState::Cold,
            phase: "cold".into(),
            epoch: Epoch(1),
            timing: SpriteConfig { idle_timeout_ms: 1, cold_after_ms: 1 },
            labels: Vec::new(),
            environment: std::collections::BTreeMap::new(),
            config: None,
            driver: "test".into(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            updated_at: jiff::Timestamp::UNIX_EPOCH,
            last_running_at: None,
            last_warming_at: None,
        }
    }

    fn put(table: &RouteTable, revision: u64, sprite: Sprite) {
        table.apply(revision, WatchEvent::Sprite { sprite: Box::new(sprite) });
    }

    #[test]
    fn what_a_new_snapshot_does_not_mention_is_gone() {
        let table = table();
        table.begin_snapshot();
        put(&table, 1, sprite(1, "a", "acme", "aaaaa"));
        put(&table, 1, sprite(2, "b", "acme", "aaaaa"));
        assert!(!table.is_synced(), "half a snapshot says nothing about what is absent");
        table.apply(1, WatchEvent::Synced);
        assert!(table.is_synced() && table.by_label("a-aaaaa").is_some());
        table.begin_snapshot();
        put(&table, 5, sprite(2, "b", "acme", "aaaaa"));
        table.apply(5, WatchEvent::Synced);
        assert!(table.by_label("a-aaaaa").is_none() && table.by_id(SpriteId::from_u128(1)).is_none());
        assert!(table.by_label("b-aaaaa").is_some());
    }

    #[test]
    fn the_end_of_an_old_sprite_does_not_take_its_name_from_a_new_one() {
        let table = table();
        put(&table, 1, sprite(1, "a", "acme", "aaaaa"));
        put(&table, 2, sprite(2, "a", "acme", "aaaaa"));
        table.apply(3, WatchEvent::SpriteGone { id: SpriteId::from_u128(1) });
        let now = table.by_label("a-aaaaa").expect("the new one");
        assert_eq!(now.sprite.id, SpriteId::from_u128(2));
        assert_eq!(table.of(&now.sprite.organization).len(), 1);
        table.apply(4, WatchEvent::SpriteGone { id: SpriteId::from_u128(2) });
        assert!(table.of(&now.sprite.organization).is_empty() && table.by_owner.is_empty());
    }

    #[test]
    fn a_sprite_is_found_by_name_in_its_own_organization_only() {
        let table = table();
        for (slug, suffix) in [("acme", "aaaaa"), ("other", "bbbbb")] {
            let organization = Organization {
                slug: slug.parse().expect("a slug"),
                url_suffix: suffix.parse().expect("a suffix"),
            };
            table.apply(1, WatchEvent::Organization { organization });
        }
        put(&table, 2, sprite(1, "a", "acme", "aaaaa"));
        let name = "a".parse().expect("a name");
        assert!(table.by_name(&"acme".parse().expect("a slug"), &name).is_some());
        assert!(table.by_name(&"other".parse().expect("a slug"), &name).is_none());
    }

    #[tokio::test]
    async fn whoever_waits_for_a_revision_sees_it_applied() {
        let table = Arc::new(table());
        let waiting = tokio::spawn({
            let table = table.clone();
            async move { table.caught_up(2, Duration::from_secs(5)).await && table.by_label("a-aaaaa").is_some() }
        });
        table.apply(1, WatchEvent::Synced);
        put(&table, 2, sprite(1, "a", "acme", "aaaaa"));
        assert!(waiting.await.expect("no panic"));
        assert!(!table.caught_up(3, Duration::from_millis(1)).await);
    }
}
