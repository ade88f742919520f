//! The host's wake scheduler: so many wakes at once, and none that starves another organization's (T18).
//!
//! ```text
//!   ask ──► Go ────────────────────────────────► under way ──► finished: the next goes
//!      └──► Queued ── its organization's turn ──────┘
//!      └──► Full
//! ```
//!
//! Organizations take turns; within one, the first to ask goes first. Sprites that are awake never come here.
//!
//! There are two such lines, which take turns as well: of those that have their memory already, and of those that
//! need some. When the host has none left, only the second one stands still.

use std::collections::{BTreeMap, VecDeque};

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

/// What a wake takes of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// It was paused: what it needs it has.
    Light,
    /// It needs memory: it is cold, or its memory is on disk.
    Heavy,
}

impl Load {
    const fn other(self) -> Self {
        match self {
            Self::Light => Self::Heavy,
            Self::Heavy => Self::Light,
        }
    }
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
    under_way: BTreeMap<SpriteId, Load>,
    light: Line,
    heavy: Line,
    /// All that wait, whose they are, and where.
    waiting: BTreeMap<SpriteId, (OrgSlug, Load)>,
    /// How many heavy wakes there is memory for.
    room: usize,
    /// Which line's turn it is.
    turn: Load,
}

impl Wakes {
    /// Nothing wakes, and there is memory for everybody.
    #[must_use]
    pub const fn new(limits: WakeLimits) -> Self {
        Self {
            limits,
            under_way: BTreeMap::new(),
            light: Line::new(),
            heavy: Line::new(),
            waiting: BTreeMap::new(),
            room: usize::MAX,
            turn: Load::Light,
        }
    }

    /// A sprite wants to wake. Asking again changes nothing.
    pub fn ask(&mut self, sprite: SpriteId, organization: &OrgSlug, load: Load) -> Ask {
        if self.under_way.contains_key(&sprite) {
            return Ask::Go;
        }
        if self.waiting.contains_key(&sprite) {
            return Ask::Queued;
        }
        if self.may_begin(load) {
            self.begin(sprite, load);
            return Ask::Go;
        }
        if self.waiting.len() >= self.limits.queued {
            return Ask::Full(Full::Host);
        }
        if self.light.of(organization) + self.heavy.of(organization) >= self.limits.queued_per_organization {
            return Ask::Full(Full::Organization);
        }
        self.line(load).push(sprite, organization);
        self.waiting.insert(sprite, (organization.clone(), load));
        Ask::Queued
    }

    /// A wake is over, however it ended. Returns who goes now.
    #[must_use = "a sprite that is not told never wakes"]
    pub fn finished(&mut self, sprite: SpriteId) -> Option<SpriteId> {
        self.under_way.remove(&sprite)?;
        self.next()
    }

    /// A sprite does not want to wake any more, whether it waits or was told to go. Returns who goes now.
    #[must_use = "a sprite that is not told never wakes"]
    pub fn cancel(&mut self, sprite: SpriteId) -> Option<SpriteId> {
        if let Some((organization, load)) = self.waiting.remove(&sprite) {
            self.line(load).remove(sprite, &organization);
        }
        self.finished(sprite)
    }

    /// For how many more heavy wakes the host has memory now. Returns who goes now.
    #[must_use = "a sprite that is not told never wakes"]
    pub fn set_room(&mut self, room: usize) -> Vec<SpriteId> {
        self.room = room;
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Sends away everyone who waits for memory. Returns who they were.
    #[must_use = "a sprite that is not told waits for ever"]
    pub fn refuse_heavy(&mut self) -> Vec<SpriteId> {
        let refused = std::iter::from_fn(|| self.heavy.pop()).collect::<Vec<_>>();
        for sprite in &refused {
            self.waiting.remove(sprite);
        }
        refused
    }

    /// How many wakes are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// How many of them need memory that they may not have taken yet.
    #[must_use]
    pub fn heavy_under_way(&self) -> usize {
        self.under_way.values().filter(|load| **load == Load::Heavy).count()
    }

    /// How many sprites wait for their turn.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// For how many heavy wakes there is memory.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.room
    }

    /// How many sprites wait for memory and nothing else.
    #[must_use]
    pub fn without_memory(&self) -> usize {
        let free = self.limits.at_once.max(1).saturating_sub(self.under_way.len());
        if self.room == 0 { self.heavy.len().min(free) } else { 0 }
    }

    fn may_begin(&self, load: Load) -> bool {
        let has_memory = match load {
            Load::Light => true,
            Load::Heavy => self.room > 0,
        };
        has_memory && self.under_way.len() < self.limits.at_once.max(1)
    }

    fn begin(&mut self, sprite: SpriteId, load: Load) {
        if load == Load::Heavy {
            self.room = self.room.saturating_sub(1);
        }
        self.under_way.insert(sprite, load);
    }

    const fn line(&mut self, load: Load) -> &mut Line {
        match load {
            Load::Light => &mut self.light,
            Load::Heavy => &mut self.heavy,
        }
    }

    fn next(&mut self) -> Option<SpriteId> {
        let lines = [self.turn, self.turn.other()];
        let load = lines.into_iter().find(|load| self.may_begin(*load) && self.line(*load).len() > 0)?;
        let sprite = self.line(load).pop()?;
        self.waiting.remove(&sprite);
        self.begin(sprite, load);
        self.turn = load.other();
        Some(sprite)
    }
}

/// Sprites that wait, in an order that is fair between organizations.
#[derive(Clone, Debug)]
struct Line {
    /// Never an empty queue.
    queues: BTreeMap<OrgSlug, VecDeque<SpriteId>>,
    /// Each organization with a queue once, in the order of their turns.
    turns: VecDeque<OrgSlug>,
    len: usize,
}

impl Line {
    const fn new() -> Self {
        Self { queues: BTreeMap::new(), turns: VecDeque::new(), len: 0 }
    }

    const fn len(&self) -> usize {
        self.len
    }

    /// How many wait of one organization.
    fn of(&self, organization: &OrgSlug) -> usize {
        self.queues.get(organization).map_or(0, VecDeque::len)
    }

    fn push(&mut self, sprite: SpriteId, organization: &OrgSlug) {
        let queue = self.queues.entry(organization.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(organization.clone());
        }
        queue.push_back(sprite);
        self.len += 1;
    }

    fn pop(&mut self) -> Option<SpriteId> {
        let organization = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&organization)?;
        let sprite = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&organization);
        } else {
            self.turns.push_back(organization);
        }
        self.len -= 1;
        Some(sprite)
    }

    /// Takes out one that waits here.
    fn remove(&mut self, sprite: SpriteId, organization: &OrgSlug) {
        let Some(queue) = self.queues.get_mut(organization) else { return };
        queue.retain(|waiting| *waiting != sprite);
        if queue.is_empty() {
            self.queues.remove(organization);
            self.turns.retain(|turn| turn != organization);
        }
        self.len -= 1;
    }
}
