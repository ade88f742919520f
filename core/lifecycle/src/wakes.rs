//! The host's wake scheduler: so many wakes at once, and none that starves another organization's (T18).
//!
//! ```text
//!   ask ──► Go ────────────────────────────────► under way ──► finished: the next goes
//!      └──► Queued ── its organization's turn ──────┘
//!      └──► Full
//! ```
//!
//! Organizations take turns; within one, the first to ask goes first. Sprites that are awake never come here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ids::{OrgSlug, SpriteId};

/// What a host bears.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WakeLimits {
    /// How many sprites wake at once. Zero counts as one.
    pub at_once: usize,
    /// How many wait for their turn in all.
    pub queued: usize,
    /// How many of one organization wait for their turn.
    pub queued_per_organization: usize,
}

/// The answer to a sprite that asks to wake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Ask {
    /// Now.
    Go,
    /// When [`Wakes::finished`] or [`Wakes::cancel`] returns it.
    Queued,
    /// Not now.
    Full(Full),
}

/// Which limit refuses a wake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Full {
    /// The host's.
    #[error("too many sprites wait to wake on this host")]
    Host,
    /// The organization's share of it.
    #[error("too many sprites of this organization wait to wake on this host")]
    Organization,
}

/// The wakes of one host.
#[derive(Clone, Debug)]
pub struct Wakes {
    limits: WakeLimits,
    under_way: BTreeSet<SpriteId>,
    /// Never an empty queue.
    queues: BTreeMap<OrgSlug, VecDeque<SpriteId>>,
    /// Each organization with a queue once, in the order of their turns.
    turns: VecDeque<OrgSlug>,
    /// All that wait, and whose they are.
    waiting: BTreeMap<SpriteId, OrgSlug>,
}

impl Wakes {
    /// Nothing wakes.
    #[must_use]
    pub const fn new(limits: WakeLimits) -> Self {
        Self {
            limits,
            under_way: BTreeSet::new(),
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// A sprite wants to wake. Asking again changes nothing.
    pub fn ask(&mut self, sprite: SpriteId, organization: &OrgSlug) -> Ask {
        if self.under_way.contains(&sprite) {
            return Ask::Go;
        }
        if self.waiting.contains_key(&sprite) {
            return Ask::Queued;
        }
        if self.under_way.len() < self.limits.at_once.max(1) {
            self.under_way.insert(sprite);
            return Ask::Go;
        }
        if self.waiting.len() >= self.limits.queued {
            return Ask::Full(Full::Host);
        }
        let queue = self.queues.entry(organization.clone()).or_default();
        if queue.len() >= self.limits.queued_per_organization {
            if queue.is_empty() {
                self.queues.remove(organization);
            }
            return Ask::Full(Full::Organization);
        }
        if queue.is_empty() {
            self.turns.push_back(organization.clone());
        }
        queue.push_back(sprite);
        self.waiting.insert(sprite, organization.clone());
        Ask::Queued
    }

    /// A wake is over, however it ended. Returns who goes now.
    #[must_use = "a sprite that is not told never wakes"]
    pub fn finished(&mut self, sprite: SpriteId) -> Option<SpriteId> {
        if !self.under_way.remove(&sprite) {
            return None;
        }
        self.next()
    }

    /// A sprite does not want to wake any more, whether it waits or was told to go. Returns who goes now.
    #[must_use = "a sprite that is not told never wakes"]
    pub fn cancel(&mut self, sprite: SpriteId) -> Option<SpriteId> {
        if let Some(organization) = self.waiting.remove(&sprite)
            && let Some(queue) = self.queues.get_mut(&organization)
        {
            queue.retain(|waiting| *waiting != sprite);
            if queue.is_empty() {
                self.queues.remove(&organization);
                self.turns.retain(|turn| *turn != organization);
            }
        }
        self.finished(sprite)
    }

    /// How many wakes are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// How many sprites wait for their turn.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.waiting.len()
    }

    fn next(&mut self) -> Option<SpriteId> {
        let organization = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&organization)?;
        let sprite = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&organization);
        } else {
            self.turns.push_back(organization);
        }
        self.waiting.remove(&sprite);
        self.under_way.insert(sprite);
        Some(sprite)
    }
}
