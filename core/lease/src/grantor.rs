//! The agent's end: all that keeps one sprite awake.
//!
//! ```text
//!             acquire, reassert             granted                  revoke
//!  no lease ────────────────────► waiting ───────────► granted ───────────────► ending
//!     ▲                             │  ▲                 │  │ acquire, reassert    │
//!     │                     refused │  └─────────────────┼──┘                      │
//!     └─────────────────────────────┴────────────────────┴─────────────────────────┘
//!     release, or nothing heard of the holder for the ttl
//! ```
//!
//! A holder has at most one lease. Beside leases, things inside the sprite keep it awake (a command, a
//! session, a task): [`Grantor::activity_begun`]. Whoever still waits makes [`Demand::Waiting`], so that
//! only people who ask for it wake a sprite, and not a command that was frozen by an explicit sleep.

use std::{collections::BTreeMap, time::Duration};

use ids::{Attempt, Epoch, HolderId, Moment};

/// Whether a sprite is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Demand {
    /// A holder waits for an answer.
    Waiting,
    /// Nobody waits, and a lease or something inside keeps it awake.
    Held,
    /// Nothing has needed it since.
    IdleSince(Moment),
}

/// What goes on under a lease, as its holder reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Open client connections.
    pub connections: u32,
    /// Requests in flight.
    pub requests: u32,
    /// When the last byte went in either direction.
    pub last_byte: Moment,
}

/// One reason why a sprite is awake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Why {
    /// Who or what.
    pub who: Who,
    /// Since when.
    pub since: Moment,
}

/// Who or what keeps a sprite awake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Who {
    /// A holder's lease.
    Holder {
        /// Whose.
        holder: HolderId,
        /// Where the lease stands.
        lease: LeaseState,
        /// What it reported last.
        usage: Option<Usage>,
        /// The request that made it acquire.
        request_id: Option<String>,
    },
    /// Something inside.
    Activity {
        /// What kind of thing.
        kind: &'static str,
        /// What it is called.
        name: String,
    },
    /// More things inside than are listed.
    Unlisted(u32),
}

/// Where a lease stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseState {
    /// Asked for.
    Waiting,
    /// Granted.
    Granted(Epoch),
    /// Revoked, but its holder still has uses of it that are ending. Keeps nothing awake.
    Ending,
}

#[derive(Clone, Debug)]
struct Lease {
    attempt: Attempt,
    state: LeaseState,
    /// The attempt of a revoked lease that is still being used up beside the present one.
    ending: Option<Attempt>,
    since: Moment,
    request_id: Option<String>,
    usage: Option<Usage>,
    /// Since when the holder is not heard of, if it isn't.
    lost_at: Option<Moment>,
}

#[derive(Clone, Debug)]
struct Activity {
    kind: &'static str,
    name: String,
    since: Moment,
}

/// Activities of one sprite that are known by name. A sprite says itself what goes on in it, and must not fill
/// its host's memory by that; those beyond keep it awake all the same.
const MAX_LISTED: usize = 1024;
/// The longest name that is kept, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// All that keeps one sprite awake.
#[derive(Clone, Debug)]
pub struct Grantor {
    holder_ttl: Duration,
    leases: BTreeMap<HolderId, Lease>,
    activities: BTreeMap<u64, Activity>,
    /// How many go on beside the listed ones, and since when.
    unlisted: u32,
    unlisted_since: Moment,
    last_activity: Moment,
}

impl Grantor {
    /// Nothing needs the sprite; idleness counts from `now`. Leases outlive a silent holder by `holder_ttl`.
    #[must_use]
    pub const fn new(holder_ttl: Duration, now: Moment) -> Self {
        Self {
            holder_ttl,
            leases: BTreeMap::new(),
            activities: BTreeMap::new(),
            unlisted: 0,
            unlisted_since: now,
            last_activity: now,
        }
    }

    /// A holder wants the sprite awake. It is answered by [`Grantor::granted`] or [`Grantor::refused`].
    /// An attempt older than the one known is ignored.
    pub fn acquire(&mut self, holder: HolderId, attempt: Attempt, request_id: Option<String>, now: Moment) {
        self.touch(now);
        let lease = self.leases.entry(holder).or_insert_with(|| Lease {
            attempt,
            state: LeaseState::Waiting,
            ending: None,
            since: now,
            request_id: None,
            usage: None,
            lost_at: None,
        });
        if attempt < lease.attempt {
            return;
        }
        lease.attempt = attempt;
        lease.state = LeaseState::Waiting;
        lease.lost_at = None;
        if request_id.is_some() {
            lease.request_id = request_id;
        }
    }

    /// A holder that came back still uses its lease (or wants it anew, if it is gone). Answered like an
    /// acquire.
    pub fn reassert(&mut self, holder: HolderId, attempt: Attempt, now: Moment) {
        self.acquire(holder, attempt, None, now);
    }

    /// A holder needs the sprite no longer; it last did `idle_for` ago. Older attempts and unknown holders
    /// are ignored.
    pub fn release(&mut self, holder: &HolderId, attempt: Attempt, idle_for: Duration, now: Moment) {
        let Some(lease) = self.leases.get_mut(holder) else { return };
        if attempt >= lease.attempt {
            self.leases.remove(holder);
            // Never before the last activity known, so that no holder can backdate another's use.
            self.touch(now.saturating_before(idle_for));
        } else if lease.ending.is_some_and(|ending| ending <= attempt) {
            lease.ending = None;
        }
    }

    /// A holder tells what goes on under its lease.
    pub fn report(&mut self, holder: &HolderId, usage: Usage) {
        if let Some(lease) = self.leases.get_mut(holder) {
            lease.usage = Some(usage);
        }
    }

    /// A holder's channel broke: its lease expires unless it asserts it again within the TTL. To come back
    /// and say hello is not enough: it may have let go of the lease while nothing could be said.
    pub fn holder_lost(&mut self, holder: &HolderId, now: Moment) {
        if let Some(lease) = self.leases.get_mut(holder) {
            lease.lost_at.get_or_insert(now);
        }
    }

    /// Drops the leases of holders that were not heard of for the TTL, and returns them.
    pub fn expire(&mut self, now: Moment) -> Vec<HolderId> {
        let mut gone = Vec::new();
        let ttl = self.holder_ttl;
        let mut last = Moment::ZERO;
        self.leases.retain(|holder, lease| match lease.lost_at {
            Some(lost_at) if lost_at + ttl <= now => {
                gone.push(holder.clone());
                last = last.max(lost_at);
                false
            }
            Some(_) | None => true,
        });
        // What went over the holder ended with it at the latest.
        self.touch(last);
        gone
    }

    /// When [`Grantor::expire`] will have something to do.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Moment> {
        self.leases.values().filter_map(|lease| lease.lost_at).min().map(|lost_at| lost_at + self.holder_ttl)
    }

    /// Something inside begins to keep the sprite awake, until `id` ends. One id begins once.
    pub fn activity_begun(&mut self, id: u64, kind: &'static str, name: &str, now: Moment) {
        self.touch(now);
        if self.activities.len() >= MAX_LISTED && !self.activities.contains_key(&id) {
            if self.unlisted == 0 {
                self.unlisted_since = now;
            }
            self.unlisted = self.unlisted.saturating_add(1);
            return;
        }
        let name = name[..name.floor_char_boundary(MAX_NAME_BYTES)].to_owned();
        self.activities.entry(id).or_insert(Activity { kind, name, since: now });
    }

    /// It ended.
    pub fn activity_ended(&mut self, id: u64, now: Moment) {
        self.touch(now);
        if self.activities.remove(&id).is_none() {
            self.unlisted = self.unlisted.saturating_sub(1);
        }
    }

    /// Nothing inside is known to keep the sprite awake: it was stopped, has died, or is about to say anew
    /// what goes on in it.
    pub fn activities_gone(&mut self, now: Moment) {
        if self.has_activities() {
            self.activities.clear();
            self.unlisted = 0;
            self.touch(now);
        }
    }

    fn has_activities(&self) -> bool {
        !self.activities.is_empty() || self.unlisted > 0
    }

    /// Activity at `at` that holds nothing, such as bytes written to a terminal.
    pub fn touch(&mut self, at: Moment) {
        self.last_activity = self.last_activity.max(at);
    }

    /// The sprite is awake: everyone who waits has a lease now, and is to be told.
    #[must_use = "an answer not sent is a request that hangs"]
    pub fn granted(&mut self, epoch: Epoch) -> Vec<(HolderId, Attempt)> {
        let waiting = self.leases.iter_mut().filter(|(_, lease)| lease.state == LeaseState::Waiting);
        waiting
            .map(|(holder, lease)| {
                lease.state = LeaseState::Granted(epoch);
                lease.ending = None;
                (holder.clone(), lease.attempt)
            })
            .collect()
    }

    /// The sprite can't be had: nobody waits any more, and those who did are to be told.
    #[must_use = "an answer not sent is a request that hangs"]
    pub fn refused(&mut self) -> Vec<(HolderId, Attempt)> {
        let mut refused = Vec::new();
        self.leases.retain(|holder, lease| {
            let waiting = lease.state == LeaseState::Waiting;
            if waiting {
                refused.push((holder.clone(), lease.attempt));
            }
            !waiting
        });
        refused
    }

    /// All granted leases end; their holders are to be told. Those who wait go on waiting.
    #[must_use = "a holder that is not told sends requests to a sprite that sleeps"]
    pub fn revoke(&mut self) -> Vec<HolderId> {
        let mut told = Vec::new();
        for (holder, lease) in &mut self.leases {
            lease.ending = None;
            match lease.state {
                LeaseState::Granted(_) => {
                    lease.state = LeaseState::Ending;
                    lease.ending = Some(lease.attempt);
                    told.push(holder.clone());
                }
                LeaseState::Waiting | LeaseState::Ending => {}
            }
        }
        told
    }

    /// Whether holders still use up leases that were revoked last.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.leases.values().any(|lease| lease.ending.is_some())
    }

    /// Whether the sprite is needed.
    #[must_use]
    pub fn demand(&self) -> Demand {
        let any = |wanted: fn(LeaseState) -> bool| self.leases.values().any(|lease| wanted(lease.state));
        if any(|state| state == LeaseState::Waiting) {
            Demand::Waiting
        } else if self.has_activities() || any(|state| matches!(state, LeaseState::Granted(_))) {
            Demand::Held
        } else {
            Demand::IdleSince(self.last_activity)
        }
    }

    /// Everything that keeps the sprite awake, or is just ending to do so.
    #[must_use]
    pub fn why(&self) -> Vec<Why> {
        let holders = self.leases.iter().map(|(holder, lease)| Why {
            who: Who::Holder {
                holder: holder.clone(),
                lease: lease.state,
                usage: lease.usage,
                request_id: lease.request_id.clone(),
            },
            since: lease.since,
        });
        let activities = self.activities.values().map(|activity| Why {
            who: Who::Activity { kind: activity.kind, name: activity.name.clone() },
            since: activity.since,
        });
        let unlisted = (self.unlisted > 0)
            .then_some(Why { who: Who::Unlisted(self.unlisted), since: self.unlisted_since });
        holders.chain(activities).chain(unlisted).collect()
    }
}
