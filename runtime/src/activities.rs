//! What keeps the sprite awake from inside, for the host to know.
//!
//! Whoever does something that must not be put to sleep holds a [`Guard`]. A control stream tells the host
//! all that are held, then what changes; see [`Teller`]. A stream that breaks loses nothing: the next one
//! begins with everything.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use runtime_api::{Activity, ActivityKind, Event};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::text::cut;

/// The longest name that the host is told, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// The host hears of use that holds nothing at most so often. It counts in seconds.
const TOUCH_INTERVAL: Duration = Duration::from_secs(1);

/// All that keeps the sprite awake now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Activities(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<u64, Activity>,
    begun: u64,
    /// How often the sprite was used by something that held nothing, or not any more.
    touches: u64,
}

/// Keeps the sprite awake until it is dropped.
#[derive(Debug)]
#[must_use = "a dropped guard keeps nobody awake"]
pub(crate) struct Guard {
    activities: Activities,
    id: u64,
}

impl Activities {
    /// Begins an activity. A name that is too long is cut.
    pub(crate) fn begin(&self, kind: ActivityKind, name: &str) -> Guard {
        let name = cut(name, MAX_NAME_BYTES).to_owned();
        let mut state = self.lock();
        state.begun += 1;
        let id = state.begun;
        state.held.insert(id, Activity { id, kind, name });
        drop(state);
        self.changed();
        Guard { activities: self.clone(), id }
    }

    /// The sprite was used just now.
    pub(crate) fn touch(&self) {
        self.lock().touches += 1;
        self.changed();
    }

    /// Begins to tell the host.
    pub(crate) fn teller(&self) -> Teller {
        let state = self.lock();
        let mut changes = self.0.changes.subscribe();
        changes.mark_changed();
        Teller {
            activities: self.clone(),
            changes,
            told: BTreeMap::new(),
            seen: 0,
            touches: state.touches,
            next_touch: Instant::now(),
        }
    }

    fn changed(&self) {
        self.0.changes.send_modify(|number| *number += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.activities.lock().held.remove(&self.id);
        self.activities.changed();
    }
}

/// What one control stream has told and has yet to tell. It holds no queue: what began and ended between two
/// looks is told as one use.
#[derive(Debug)]
pub(crate) struct Teller {
    activities: Activities,
    changes: watch::Receiver<u64>,
    told: BTreeMap<u64, Activity>,
    /// The newest activity that there was at the last look.
    seen: u64,
    touches: u64,
    next_touch: Instant,
}

impl Teller {
    /// Resolves when there may be something to tell. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        let untold = self.activities.lock().touches != self.touches;
        tokio::select! {
            // Its sender lives as long as we do.
            _ = self.changes.changed() => {}
            () = sleep_until(self.next_touch), if untold => {}
        }
    }

    /// What the host has to hear now, in order: what began before what ended, so that nothing that goes on
    /// under another name leaves a gap.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let mut state = self.activities.lock();
        let mut events: Vec<Event> =
            state.held.range(self.seen + 1..).map(|(_, one)| Event::ActivityBegun(one.clone())).collect();
        let missed = state.begun - self.seen > events.len() as u64;
        let ended: Vec<u64> = self.told.keys().filter(|id| !state.held.contains_key(id)).copied().collect();
        events.extend(ended.iter().map(|id| Event::ActivityEnded { id: *id }));
        if missed && self.seen > 0 {
            state.touches += 1;
        }
        self.seen = state.begun;
        self.told.clone_from(&state.held);
        let now = Instant::now();
        if state.touches != self.touches && now >= self.next_touch {
            self.touches = state.touches;
            self.next_touch = now + TOUCH_INTERVAL;
            events.push(Event::Touched);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(events: &[Event]) -> Vec<(u64, ActivityKind)> {
        let one = |event: &Event| match event {
            Event::ActivityBegun(activity) => Some((activity.id, activity.kind)),
            _ => None,
        };
        events.iter().filter_map(one).collect()
    }

    #[tokio::test]
    async fn a_stream_hears_of_everything_and_then_of_changes() {
        let activities = Activities::default();
        let exec = activities.begin(ActivityKind::Exec, "sleep 5");
        let mut first = activities.teller();
        first.changed().await;
        assert_eq!(begun(&first.events()), [(1, ActivityKind::Exec)]);
        assert!(first.events().is_empty());
        // A session follows an exec without a gap.
        let session = activities.begin(ActivityKind::Session, "sleep 5");
        drop(exec);
        first.changed().await;
        let events = first.events();
        assert!(matches!(events[0], Event::ActivityBegun(Activity { id: 2, .. })), "{events:?}");
        assert_eq!(events[1], Event::ActivityEnded { id: 1 });
        // Another stream begins anew.
        let mut second = activities.teller();
        second.changed().await;
        assert_eq!(begun(&second.events()), [(2, ActivityKind::Session)]);
        drop(session);
        assert_eq!(second.events(), [Event::ActivityEnded { id: 2 }]);
    }

    #[tokio::test]
    async fn use_is_told_once_a_second_and_never_forgotten() {
        let activities = Activities::default();
        let mut teller = activities.teller();
        assert!(teller.events().is_empty());
        for _ in 0..1000 {
            activities.touch();
        }
        teller.changed().await;
        assert_eq!(teller.events(), [Event::Touched]);
        activities.touch();
        let before = Instant::now();
        while teller.events().is_empty() {
            teller.changed().await;
        }
        assert!(before.elapsed() >= TOUCH_INTERVAL - Duration::from_millis(10));
    }

    #[tokio::test]
    async fn what_was_over_before_anybody_looked_counts_as_use() {
        let activities = Activities::default();
        let kept = activities.begin(ActivityKind::Task, "backup");
        let mut teller = activities.teller();
        assert_eq!(begun(&teller.events()).len(), 1);
        drop(activities.begin(ActivityKind::Exec, "true"));
        teller.changed().await;
        assert_eq!(teller.events(), [Event::Touched]);
        drop(kept);
    }

    #[test]
    fn names_are_cut_between_letters() {
        let activities = Activities::default();
        let _guard = activities.begin(ActivityKind::Exec, &"ü".repeat(300));
        let state = activities.lock();
        assert_eq!(state.held.values().next().unwrap().name, "ü".repeat(128));
    }
}
