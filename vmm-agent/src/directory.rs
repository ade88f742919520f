//! The published view of everything this agent owns: what the API answers from, and what gateways watch.
//!
//! Sprite tasks and handlers put what is now true here, after the store has it. Each change gets the
//! next revision and goes to every watcher; a new watcher gets a snapshot and then exactly the changes
//! after it, because both are taken under one lock.

use std::{collections::HashMap, sync::Arc};

use agent_api::{
    Organization, Sprite, TokenRecord,
    watch::{WatchEvent, WatchLine},
};
use ids::{OrgSlug, SpriteId, TokenId};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::store::Stored;

/// Changes that a slow watcher may lag behind before it is cut off (it reconnects and gets a snapshot).
const MAX_LAG: usize = 4096;
/// Revisions of one run of the agent; with 24 bits of boots the sum never wraps.
const REVISIONS_PER_BOOT_BITS: u32 = 40;

/// See the module.
#[derive(Debug)]
pub(crate) struct Directory {
    inner: Mutex<Inner>,
    changes: broadcast::Sender<Arc<WatchLine>>,
}

#[derive(Debug)]
struct Inner {
    revision: u64,
    organizations: HashMap<OrgSlug, Organization>,
    tokens: HashMap<TokenId, TokenRecord>,
    sprites: HashMap<SpriteId, Sprite>,
}

/// A snapshot and what comes after it.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) snapshot: Vec<WatchLine>,
    pub(crate) changes: broadcast::Receiver<Arc<WatchLine>>,
}

impl Directory {
    /// Begins with what was stored.
    pub(crate) fn new(stored: Stored) -> Self {
        let inner = Inner {
            revision: stored.boots << REVISIONS_PER_BOOT_BITS,
            organizations: stored.organizations.into_iter().map(|o| (o.slug.clone(), o)).collect(),
            tokens: stored.tokens.into_iter().map(|t| (t.id.clone(), t)).collect(),
            sprites: stored.sprites.into_iter().map(|s| (s.id, s)).collect(),
        };
        Self { inner: Mutex::new(inner), changes: broadcast::Sender::new(MAX_LAG) }
    }

    fn publish(&self, inner: &mut Inner, event: WatchEvent) -> u64 {
        inner.revision += 1;
        let line = WatchLine { revision: inner.revision, event };
        // Nobody watches: nobody needs to be told.
        let _ = self.changes.send(Arc::new(line));
        inner.revision
    }

    /// Everything there is, and every later change.
    pub(crate) fn watch(&self) -> Watch {
        let inner = self.inner.lock();
        let revision = inner.revision;
        let line = |event| WatchLine { revision, event };
        let organizations = inner
            .organizations
            .values()
            .cloned()
            .map(|organization| WatchEvent::Organization { organization });
        let tokens = inner.tokens.values().cloned().map(|token| WatchEvent::Token { token });
        let sprites =
            inner.sprites.values().cloned().map(|sprite| WatchEvent::Sprite { sprite: Box::new(sprite) });
        let snapshot =
            organizations.chain(tokens).chain(sprites).chain([WatchEvent::Synced]).map(line).collect();
        Watch { snapshot, changes: self.changes.subscribe() }
    }

    /// The revision of the newest change.
    pub(crate) fn revision(&self) -> u64 {
        self.inner.lock().revision
    }

    pub(crate) fn organization(&self, slug: &OrgSlug) -> Option<Organization> {
        self.inner.lock().organizations.get(slug).cloned()
    }

    pub(crate) fn has_suffix(&self, suffix: &ids::UrlSuffix) -> bool {
        self.inner.lock().organizations.values().any(|organization| organization.url_suffix == *suffix)
    }

    pub(crate) fn organizations(&self) -> Vec<Organization> {
        self.inner.lock().organizations.values().cloned().collect()
    }

    pub(crate) fn put_organization(&self, organization: Organization) -> u64 {
        let mut inner = self.inner.lock();
        inner.organizations.insert(organization.slug.clone(), organization.clone());
        self.publish(&mut inner, WatchEvent::Organization { organization })
    }

    pub(crate) fn tokens(&self) -> Vec<TokenRecord> {
        self.inner.lock().tokens.values().cloned().collect()
    }

    pub(crate) fn put_token(&self, token: TokenRecord) -> u64 {
        let mut inner = self.inner.lock();
        inner.tokens.insert(token.id.clone(), token.clone());
        self.publish(&mut inner, WatchEvent::Token { token })
    }

    /// `None` if there is no such token.
    pub(crate) fn remove_token(&self, id: &TokenId) -> Option<u64> {
        let mut inner = self.inner.lock();
        inner.tokens.remove(id)?;
        Some(self.publish(&mut inner, WatchEvent::TokenGone { id: id.clone() }))
    }

    pub(crate) fn sprite(&self, id: SpriteId) -> Option<Sprite> {
        self.inner.lock().sprites.get(&id).cloned()
    }

    pub(crate) fn sprites(&self) -> Vec<Sprite> {
        self.inner.lock().sprites.values().cloned().collect()
    }

    /// Publishes a new sprite or a changed one.
    pub(crate) fn put_sprite(&self, sprite: &Sprite) -> u64 {
        let mut inner = self.inner.lock();
        inner.sprites.insert(sprite.id, sprite.clone());
        self.publish(&mut inner, WatchEvent::Sprite { sprite: Box::new(sprite.clone()) })
    }

    /// Withdraws a sprite; its name is free from here on.
    pub(crate) fn remove_sprite(&self, id: SpriteId) -> u64 {
        let mut inner = self.inner.lock();
        inner.sprites.remove(&id);
        self.publish(&mut inner, WatchEvent::SpriteGone { id })
    }
}
