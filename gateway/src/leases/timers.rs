//! Which slot wants to be ticked when.
//!
//! A slot enters itself when its next deadline is earlier than the one it is entered with; entries that
//! turn out to be late or useless cost one empty tick.

use std::{cmp::Reverse, collections::BinaryHeap};

use ids::{Moment, SpriteId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::Clock;

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: Mutex<BinaryHeap<Reverse<(Moment, SpriteId)>>>,
    earlier: Notify,
}

impl Timers {
    pub(super) fn enter(&self, at: Moment, sprite: SpriteId) {
        let mut heap = self.heap.lock();
        let first = heap.peek().is_none_or(|Reverse((first, _))| at < *first);
        heap.push(Reverse((at, sprite)));
        drop(heap);
        if first {
            self.earlier.notify_one();
        }
    }

    pub(super) fn pop_due(&self, now: Moment) -> Option<SpriteId> {
        let mut heap = self.heap.lock();
        match heap.peek() {
            Some(Reverse((at, _))) if *at <= now => heap.pop().map(|Reverse((_, sprite))| sprite),
            Some(_) | None => None,
        }
    }

    /// Waits until something is due.
    pub(super) async fn due(&self, clock: &Clock) {
        loop {
            let first = self.heap.lock().peek().map(|Reverse((at, _))| *at);
            let Some(at) = first else {
                self.earlier.notified().await;
                continue;
            };
            if at <= clock.now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(clock.instant(at)) => {}
                () = self.earlier.notified() => {}
            }
        }
    }
}
