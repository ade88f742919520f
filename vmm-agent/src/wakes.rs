//! The host's wake scheduler: a thin shell around [`lifecycle::Wakes`].
//!
//! A sprite's task asks for its turn and awaits it in its own loop, so no task ever waits for another.

use std::collections::HashMap;

use ids::{OrgSlug, SpriteId};
use lifecycle::{Ask, WakeLimits, Wakes as Scheduler};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// See the module.
#[derive(Debug)]
pub(crate) struct Wakes {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    scheduler: Scheduler,
    /// Exactly those that the scheduler has queued.
    waiting: HashMap<SpriteId, oneshot::Sender<()>>,
}

/// What a sprite that wants to wake is told.
#[derive(Debug)]
pub(crate) enum Turn {
    Now,
    /// Resolves when it is its turn.
    Later(oneshot::Receiver<()>),
    /// Too many wait already.
    Full,
}

impl Wakes {
    pub(crate) fn new(limits: WakeLimits) -> Self {
        Self { inner: Mutex::new(Inner { scheduler: Scheduler::new(limits), waiting: HashMap::new() }) }
    }

    /// Asks for a turn. Whoever got one, or waits for one, gives it back with [`Wakes::finished`].
    pub(crate) fn ask(&self, sprite: SpriteId, organization: &OrgSlug) -> Turn {
        let mut inner = self.inner.lock();
        match inner.scheduler.ask(sprite, organization) {
            Ask::Go => Turn::Now,
            Ask::Queued => {
                let (turn, waiting) = oneshot::channel();
                inner.waiting.insert(sprite, turn);
                Turn::Later(waiting)
            }
            Ask::Full(_) => Turn::Full,
        }
    }

    /// Gives a turn, or a place in the queue, back.
    pub(crate) fn finished(&self, sprite: SpriteId) {
        let mut inner = self.inner.lock();
        inner.waiting.remove(&sprite);
        if let Some(next) = inner.scheduler.cancel(sprite)
            && let Some(turn) = inner.waiting.remove(&next)
        {
            // A task that is gone has called `finished` on its way out.
            let _ = turn.send(());
        }
    }

    /// Wakes under way and waiting.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.scheduler.under_way(), inner.scheduler.queued())
    }
}
