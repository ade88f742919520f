//! The host's wake scheduler: a thin shell around [`lifecycle::Wakes`].
//!
//! A sprite's task asks for its turn and awaits it in its own loop, so no task ever waits for another.

use std::collections::HashMap;

use ids::{OrgSlug, SpriteId};
use lifecycle::{Ask, Load, WakeLimits, Wakes as Scheduler};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// See the module.
#[derive(Debug)]
pub(crate) struct Wakes {
    inner: Mutex<Inner>,
    /// Somebody waits for memory.
    wanted: Notify,
}

#[derive(Debug)]
struct Inner {
    scheduler: Scheduler,
    /// Exactly those that the scheduler has queued.
    waiting: HashMap<SpriteId, oneshot::Sender<Admission>>,
}

/// What a sprite that wants to wake is told.
#[derive(Debug)]
pub(crate) enum Turn {
    Now,
    /// Resolves when it is its turn, or never will be.
    Later(oneshot::Receiver<Admission>),
    /// Too many wait already.
    Full,
}

/// How its wait ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    /// It is its turn.
    Go,
    /// The host has no memory for it.
    NoMemory,
}

impl Wakes {
    pub(crate) fn new(limits: WakeLimits) -> Self {
        let inner = Inner { scheduler: Scheduler::new(limits), waiting: HashMap::new() };
        Self { inner: Mutex::new(inner), wanted: Notify::new() }
    }

    /// Asks for a turn. Whoever got one, or waits for one, gives it back with [`Wakes::finished`].
    pub(crate) fn ask(&self, sprite: SpriteId, organization: &OrgSlug, load: Load) -> Turn {
        let mut inner = self.inner.lock();
        match inner.scheduler.ask(sprite, organization, load) {
            Ask::Go => Turn::Now,
            Ask::Queued => {
                let (turn, waiting) = oneshot::channel();
                inner.waiting.insert(sprite, turn);
                if inner.scheduler.without_memory() > 0 {
                    self.wanted.notify_one();
                }
                Turn::Later(waiting)
            }
            Ask::Full(_) => Turn::Full,
        }
    }

    /// Gives a turn, or a place in the queue, back.
    pub(crate) fn finished(&self, sprite: SpriteId) {
        let mut inner = self.inner.lock();
        inner.waiting.remove(&sprite);
        let next = inner.scheduler.cancel(sprite);
        inner.tell(next, Admission::Go);
    }

    /// For how many wakes that need memory there is some.
    pub(crate) fn set_room(&self, room: usize) {
        let mut inner = self.inner.lock();
        let next = inner.scheduler.set_room(room);
        inner.tell(next, Admission::Go);
    }

    /// Sends away everyone who waits for memory. Returns how many.
    pub(crate) fn refuse_heavy(&self) -> usize {
        let mut inner = self.inner.lock();
        let refused = inner.scheduler.refuse_heavy();
        let count = refused.len();
        inner.tell(refused, Admission::NoMemory);
        count
    }

    /// Wakes that are under way and may not have taken their memory, and wakes that wait for some.
    pub(crate) fn wanting_memory(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.scheduler.heavy_under_way(), inner.scheduler.without_memory())
    }

    /// Resolves when a wake has begun to wait for memory.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn memory_is_wanted(&self) {
        self.wanted.notified().await;
    }

    /// Wakes under way, waiting, and those for which there is memory.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let Inner { scheduler, .. } = &*self.inner.lock();
        (scheduler.under_way(), scheduler.queued(), scheduler.room())
    }
}

impl Inner {
    fn tell(&mut self, sprites: impl IntoIterator<Item = SpriteId>, admission: Admission) {
        for sprite in sprites {
            if let Some(turn) = self.waiting.remove(&sprite) {
                // A task that is gone has called `finished` on its way out.
                let _ = turn.send(admission);
            }
        }
    }
}
