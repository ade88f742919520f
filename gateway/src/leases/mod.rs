//! The gateway's leases: one slot for each sprite that somebody here needs, and one channel to the agent.
//!
//! ```text
//!  requests ─▶ Slot (one a sprite: core Holder + core Line, behind one lock)
//!                │ messages, in order                    ▲ grants, refusals, revocations
//!                ▼                                       │
//!             Outbox ──────────▶ channel task ───────────┘  (connect, hello, ping, reconnect)
//!                                timer task: due slots are ticked; unused ones are forgotten
//! ```
//!
//! A request on a connection that already holds its sprite takes none of these locks.

mod channel;
mod slot;
mod timers;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_api::lease::{Endpoint, HolderMessage, Refusal, Usage};
use dashmap::DashMap;
use hold::Room;
use ids::{Attempt, Epoch, HolderId, Moment, SpriteId};
use lease::holder::{Channel, Grant};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;
use tracing::{debug, error};

pub(crate) use channel::run as run_channel;
pub(crate) use slot::{Lease, Slot, Use};

use crate::{
    clock::Clock,
    config::Settings,
    edge::respond::EdgeError,
    ledger::{Ledger, Traffic},
    metrics::Metrics,
};
use timers::Timers;

/// Messages on their way to the agent. A slot never has more than a few; when so many pile up, the
/// channel is stuck, and starting it over brings both ends into step again.
const OUTBOX: usize = 64 * 1024;
/// What the agent keeps for us until it has told its own number.
const FIRST_TTL: Duration = Duration::from_secs(10);
/// An agent that restarts is back sooner; waiting longer for a dead one helps nobody.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(10);

/// All leases of this gateway.
#[derive(Debug)]
pub(crate) struct Leases {
    slots: DashMap<SpriteId, Arc<Slot>>,
    shared: Arc<Shared>,
    holder: HolderId,
    ledger: Arc<Ledger>,
    /// The number of the newest attempt of any slot that was forgotten.
    newest: AtomicU64,
    reported: Mutex<HashMap<SpriteId, (Traffic, u32)>>,
}

/// What all slots share.
#[derive(Debug)]
pub(crate) struct Shared {
    clock: Clock,
    line: hold::Limits,
    linger: Duration,
    revoke_grace: Duration,
    held_in_all: usize,
    held: AtomicUsize,
    outbox: mpsc::Sender<HolderMessage>,
    /// The outbox ran over: the channel has to start over.
    stuck: AtomicBool,
    timers: Timers,
    /// Read while a slot is made and written while the channel comes or goes, so that no slot misses it.
    link: RwLock<Link>,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    channel: Channel,
    ttl: Duration,
    /// When the channel went, if it is down.
    down_since: Moment,
}

impl Shared {
    fn send(&self, message: HolderMessage) {
        if self.outbox.try_send(message).is_err() && !self.stuck.swap(true, Ordering::AcqRel) {
            error!("The lease channel is stuck and will be started over");
        }
    }

    fn room(&self) -> Room {
        if self.held.load(Ordering::Relaxed) < self.held_in_all { Room::Free } else { Room::Full }
    }

    /// Whether it is of no use to wait for the agent.
    fn is_unreachable(&self) -> bool {
        let link = *self.link.read();
        link.channel == Channel::Down && self.clock.now() - link.down_since >= UNREACHABLE_AFTER
    }
}

/// What the channel task takes messages from.
#[derive(Debug)]
pub(crate) struct Outbox(mpsc::Receiver<HolderMessage>);

impl Leases {
    pub(crate) fn new(
        settings: &Settings,
        clock: Clock,
        holder: HolderId,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, Outbox) {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let shared = Shared {
            clock,
            line: hold::Limits {
                max_waiting: settings.limits.held_per_sprite,
                release_at_once: settings.limits.release_at_once,
                budget: settings.timing.hold_budget,
            },
            linger: settings.timing.linger,
            revoke_grace: settings.timing.revoke_grace,
            held_in_all: settings.limits.held_in_all,
            held: AtomicUsize::new(0),
            outbox,
            stuck: AtomicBool::new(false),
            timers: Timers::default(),
            link: RwLock::new(Link { channel: Channel::Down, ttl: FIRST_TTL, down_since: clock.now() }),
            metrics,
        };
        let leases = Self {
            slots: DashMap::new(),
            shared: Arc::new(shared),
            holder,
            ledger,
            newest: AtomicU64::new(0),
            reported: Mutex::default(),
        };
        (Arc::new(leases), Outbox(messages))
    }

    /// The slot of a sprite that somebody is about to need.
    pub(crate) fn slot(&self, sprite: SpriteId) -> Arc<Slot> {
        if let Some(slot) = self.slots.get(&sprite) {
            return slot.clone();
        }
        let link = self.shared.link.read();
        let newest = Attempt(self.newest.load(Ordering::Acquire));
        let make = || Slot::new(sprite, self.shared.clone(), link.channel, link.ttl, newest);
        self.slots.entry(sprite).or_insert_with(make).clone()
    }

    /// Whether there is a channel to the agent.
    pub(crate) fn is_connected(&self) -> bool {
        self.shared.link.read().channel == Channel::Up
    }

    /// How many requests are held now.
    pub(crate) fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// How many leases are held now, and how many connections into sprites there are under them.
    pub(crate) fn count(&self) -> (usize, usize) {
        let published = self.slots.iter().filter_map(|slot| slot.published());
        published.fold((0, 0), |(leases, sockets), upstream| (leases + 1, sockets + upstream.open_sockets()))
    }

    /// Closes connections into sprites that nobody has used for `most_idle`.
    pub(crate) fn sweep(&self, most_idle: Duration) {
        let now = self.shared.clock.now();
        for upstream in self.slots.iter().filter_map(|slot| slot.published()) {
            upstream.sweep(now, most_idle);
        }
    }

    /// Everyone who waits is told `error`.
    pub(crate) fn fail_waiting(&self, error: &EdgeError) {
        for slot in self.all() {
            slot.fail_waiting(error);
        }
    }

    /// Ticks due slots and forgets unused ones, for as long as the program runs.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        loop {
            self.shared.timers.due(&self.shared.clock).await;
            let now = self.shared.clock.now();
            while let Some(sprite) = self.shared.timers.pop_due(now) {
                let Some(slot) = self.slots.get(&sprite).map(|slot| slot.clone()) else { continue };
                slot.tick(now);
                drop(slot);
                self.forget_if_unused(sprite);
            }
        }
    }

    fn forget_if_unused(&self, sprite: SpriteId) {
        // While the entry is locked nobody else can come by the slot: one reference means that nobody has.
        self.slots.remove_if(&sprite, |_, slot| {
            let unused = Arc::strong_count(slot) == 1 && slot.is_unused();
            if unused {
                self.newest.fetch_max(slot.newest_attempt().0, Ordering::AcqRel);
            }
            unused
        });
    }

    fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.iter().map(|slot| slot.clone()).collect()
    }

    fn channel_up(&self, ttl: Duration) {
        let mut link = self.shared.link.write();
        link.channel = Channel::Up;
        link.ttl = ttl;
        self.shared.stuck.store(false, Ordering::Release);
        for slot in self.all() {
            slot.channel_up(ttl);
        }
        drop(link);
        self.reported.lock().clear();
    }

    fn channel_lost(&self, heard_at: Moment) {
        let mut link = self.shared.link.write();
        link.channel = Channel::Down;
        link.down_since = self.shared.clock.now();
        for slot in self.all() {
            slot.channel_lost(heard_at);
        }
    }

    fn granted(
        &self,
        sprite: SpriteId,
        attempt: Attempt,
        grant: Grant<Endpoint>,
        woken_from: agent_api::PublicState,
    ) {
        match self.slots.get(&sprite).map(|slot| slot.clone()) {
            Some(slot) => slot.granted(attempt, grant, woken_from),
            None => {
                debug!(%sprite, %attempt, "A grant came for nobody");
                self.shared.send(HolderMessage::Release { sprite, attempt, idle_for_ms: 0 });
            }
        }
    }

    fn refused(&self, sprite: SpriteId, attempt: Attempt, refusal: Refusal) {
        if let Some(slot) = self.slots.get(&sprite).map(|slot| slot.clone()) {
            slot.refused(attempt, refusal);
        }
    }

    fn revoked(&self, sprite: SpriteId, epoch: Epoch) {
        if let Some(slot) = self.slots.get(&sprite).map(|slot| slot.clone()) {
            slot.revoked(epoch);
            // Idle connections let go at once, so that the agent need not wait for them.
            self.ledger.detach(sprite);
        }
    }

    /// Tells the agent what goes on, where that has changed.
    pub(crate) fn report(&self) {
        if !self.is_connected() {
            return;
        }
        let traffic = self.ledger.traffic();
        let now = self.shared.clock.now();
        let mut reported = self.reported.lock();
        let mut present = HashMap::with_capacity(reported.len());
        for slot in self.all().into_iter().filter(|slot| slot.published().is_some()) {
            let sprite = slot.sprite();
            let usage = (traffic.get(&sprite).copied().unwrap_or_default(), slot.requests());
            if reported.get(&sprite) != Some(&usage) {
                let last_byte_ms_ago =
                    u64::try_from((now - usage.0.last_byte).as_millis()).unwrap_or(u64::MAX);
                let usage = Usage { connections: usage.0.connections, requests: usage.1, last_byte_ms_ago };
                self.shared.send(HolderMessage::Report { sprite, usage });
            }
            present.insert(sprite, usage);
        }
        *reported = present;
    }
}

#[cfg(test)]
mod tests;
