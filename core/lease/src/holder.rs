//! The holder's end of one sprite's lease.
//!
//! ```text
//!            wanted                        granted (in use)
//!   Idle ───────────────► Acquiring ──────────────────────────► Held ◄──────────┐
//!    ▲ ▲                   │  │  ▲                               │ │            │ use begun
//!    │ │ refused, too late │  │  │ ttl after the channel broke,  │ │ last use   │
//!    │ └───────────────────┘  │  └──────── still in use ─────────┤ │ ended      │
//!    │                        │ granted (nobody waits any more)  │ ▼            │
//!    │                        └─────────────────────────────► Lingering ────────┘
//!    │              linger over: release                          │
//!    ├────────────────────────────────────────────────────────────┘
//!    │                                              revoked, in use or not
//!    └──────────────────────────────────────────────── Held, Lingering
//! ```
//!
//! A revoked lease that is in use is *ending* beside all this: it is released when those who relied on it have
//! ended, whoever waits for the next one meanwhile.
//!
//! A *use* is anything that needs the sprite: a held request, a request in flight, an open connection. What
//! [`Effect::Publish`] said last is what new requests may use without asking anyone.
//!
//! One attempt is out at a time, for everyone (single flight). Callers come and go without touching it: a
//! wake whose callers have all left still ends in a grant, which lingers and is given back (T11, T17).

use std::{marker::PhantomData, time::Duration};

use ids::{Attempt, Epoch, Moment};

/// Durations that a holder keeps to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How long a lease is kept after its last use, so that the next request finds it.
    pub linger: Duration,
    /// How long an attempt may stay unanswered.
    pub acquire_timeout: Duration,
    /// How long the agent keeps the leases of a silent holder; told by the agent.
    pub holder_ttl: Duration,
}

/// What a lease brings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant<E> {
    /// The sprite's network identity. Connections made in another one are dead.
    pub epoch: Epoch,
    /// How to reach it.
    pub endpoint: E,
}

/// Why those who wait get no grant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure<R> {
    /// The agent said no.
    Refused(R),
    /// The agent did not answer in time.
    TimedOut,
    /// There was no channel to the agent all that time.
    Unreachable,
}

/// Whether there is a channel to the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    /// Messages are sent.
    Up,
    /// Messages can't be sent.
    Down,
}

/// What the shell is to do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a dropped effect is a request that hangs or a sprite that never sleeps"]
pub enum Effect<E, R> {
    /// Send an acquire.
    Acquire(Attempt),
    /// Send a re-assertion.
    Reassert {
        /// Under which the lease is held from now on.
        attempt: Attempt,
        /// The epoch in use.
        epoch: Epoch,
    },
    /// Send a release.
    Release {
        /// What is given back.
        attempt: Attempt,
        /// Time since the last use.
        idle_for: Duration,
    },
    /// This is what requests may use from now on: a grant, or nothing, so that they wait. After nothing,
    /// whoever still waits is announced with [`Holder::wanted`].
    Publish(Option<Grant<E>>),
    /// Everyone who waits fails with this, once.
    Fail(Failure<R>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State<E> {
    Idle,
    Acquiring {
        attempt: Attempt,
        /// Whether the present channel has carried the acquire.
        sent: bool,
        deadline: Moment,
    },
    Held {
        attempt: Attempt,
        grant: Grant<E>,
        last_use: LastUse,
        /// Since the channel broke: until when the agent keeps the lease without a re-assertion.
        doubt: Option<Moment>,
    },
}

/// Which lease a use relies on: the one after so many revocations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Era(u64);

/// A lease that was revoked while it was in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ending {
    attempt: Attempt,
    /// Uses that rely on it.
    uses: u64,
}

/// `Held` and `Lingering` in the drawing differ in this only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LastUse {
    Present,
    Ended(Moment),
}

/// One sprite's lease, as its holder sees it. `E` is how to reach the sprite, `R` what a refusal says.
#[derive(Clone, Debug)]
pub struct Holder<E, R> {
    limits: Limits,
    channel: Channel,
    state: State<E>,
    /// The newest attempt ever made.
    attempt: Attempt,
    uses: u64,
    /// Those of them that do not wait, but rely on a lease.
    relying: u64,
    era: Era,
    ending: Option<Ending>,
    /// Uses go on whose lease was lost while the channel was down. They get another one when it is back.
    uncovered: bool,
    refusals: PhantomData<fn() -> R>,
}

impl<E: Clone + PartialEq, R> Holder<E, R> {
    /// Holds nothing. Attempts begin after `newest`: no smaller than that of any earlier holder of this
    /// sprite under the same name, or the agent would take new attempts for old ones.
    #[must_use]
    pub const fn new(limits: Limits, channel: Channel, newest: Attempt) -> Self {
        Self {
            limits,
            channel,
            state: State::Idle,
            attempt: newest,
            uses: 0,
            relying: 0,
            era: Era(0),
            ending: None,
            uncovered: false,
            refusals: PhantomData,
        }
    }

    /// Something begins to need the sprite, and waits for a grant if none is published.
    pub fn use_begun(&mut self, now: Moment) -> Vec<Effect<E, R>> {
        self.uses += 1;
        if let State::Held { last_use, .. } = &mut self.state {
            *last_use = LastUse::Present;
        }
        self.wanted(now)
    }

    /// Someone waits for a grant (again): called after [`Effect::Publish`] took the grant from under
    /// requests that are still in line, whose use has long begun.
    pub fn wanted(&mut self, now: Moment) -> Vec<Effect<E, R>> {
        match self.state {
            // Idle → Acquiring
            State::Idle => self.acquire(now),
            State::Acquiring { .. } | State::Held { .. } => Vec::new(),
        }
    }

    /// A use that has begun does not wait (any more): what is published is what it relies on, until it ends
    /// with the answer.
    pub const fn rely(&mut self) -> Era {
        self.relying += 1;
        self.era
    }

    /// Something needs the sprite no longer: it ended, was refused, or its client has gone. `relied` is what
    /// [`Holder::rely`] answered; nothing, if it only waited.
    pub fn use_ended(&mut self, relied: Option<Era>, now: Moment) -> Vec<Effect<E, R>> {
        debug_assert!(self.uses > 0, "each end has its beginning");
        self.uses = self.uses.saturating_sub(1);
        let effects = relied.map(|era| self.relied(era)).unwrap_or_default();
        if self.uses > 0 {
            return effects;
        }
        self.uncovered = false;
        match &mut self.state {
            // Held → Lingering
            State::Held { last_use, .. } => *last_use = LastUse::Ended(now),
            // An acquire is not recalled: someone else may come, and if nobody does the grant is given back.
            State::Idle | State::Acquiring { .. } => {}
        }
        effects
    }

    /// A use that relied on a lease of `era` has ended. The last one of a revoked lease gives that back at
    /// once: the agent waits for it, and so does everyone who waits for the next lease.
    fn relied(&mut self, era: Era) -> Vec<Effect<E, R>> {
        debug_assert!(self.relying > 0, "each end has its beginning");
        self.relying = self.relying.saturating_sub(1);
        let Some(ending) = self.ending.as_mut().filter(|_| era < self.era) else { return Vec::new() };
        ending.uses = ending.uses.saturating_sub(1);
        match *ending {
            Ending { uses: 1.., .. } => Vec::new(),
            Ending { attempt, uses: 0 } => {
                self.ending = None;
                self.release(attempt, Duration::ZERO)
            }
        }
    }

    /// The agent granted `attempt`.
    pub fn granted(&mut self, attempt: Attempt, grant: Grant<E>, now: Moment) -> Vec<Effect<E, R>> {
        match &mut self.state {
            // Acquiring → Held, or Lingering if everyone has left
            State::Acquiring { attempt: ours, .. } if *ours == attempt => self.hold(attempt, grant, now),
            // Idle → Held: the lease was revoked before a re-assertion of it was heard, and is granted anew by
            // that.
            State::Idle if self.ending.is_some_and(|ending| ending.attempt == attempt) => {
                self.ending = None;
                self.hold(attempt, grant, now)
            }
            // Held → Held: a re-assertion was answered
            State::Held { attempt: ours, grant: present, doubt, .. } if *ours == attempt => {
                *doubt = None;
                if *present == grant {
                    return Vec::new();
                }
                *present = grant.clone();
                vec![Effect::Publish(Some(grant))]
            }
            // Nobody waits for this grant any more. Give it back, or the sprite would never sleep.
            State::Idle | State::Acquiring { .. } | State::Held { .. } => {
                self.release(attempt, Duration::ZERO)
            }
        }
    }

    fn hold(&mut self, attempt: Attempt, grant: Grant<E>, now: Moment) -> Vec<Effect<E, R>> {
        self.uncovered = false;
        let last_use = if self.uses > 0 { LastUse::Present } else { LastUse::Ended(now) };
        self.state = State::Held { attempt, grant: grant.clone(), last_use, doubt: None };
        vec![Effect::Publish(Some(grant))]
    }

    /// The agent refused `attempt`. Nothing is remembered: whoever comes next asks again (T12).
    pub fn refused(&mut self, attempt: Attempt, refusal: R) -> Vec<Effect<E, R>> {
        match &self.state {
            // Acquiring → Idle
            State::Acquiring { attempt: ours, .. } if *ours == attempt => {
                self.state = State::Idle;
                vec![Effect::Fail(Failure::Refused(refusal))]
            }
            // Held → Idle: a re-assertion was refused
            State::Held { attempt: ours, .. } if *ours == attempt => {
                self.state = State::Idle;
                vec![Effect::Publish(None), Effect::Fail(Failure::Refused(refusal))]
            }
            State::Idle | State::Acquiring { .. } | State::Held { .. } => Vec::new(),
        }
    }

    /// The agent ended leases up to `epoch`. Uses that rely on it are left to end by themselves; the agent is
    /// told when they have.
    pub fn revoked(&mut self, epoch: Epoch) -> Vec<Effect<E, R>> {
        match &self.state {
            // Held → Idle, Lingering → Idle
            State::Held { grant, attempt, .. } if grant.epoch <= epoch => {
                let attempt = *attempt;
                self.state = State::Idle;
                self.era.0 += 1;
                let mut effects = vec![Effect::Publish(None)];
                match self.relying {
                    0 => effects.extend(self.release(attempt, Duration::ZERO)),
                    uses => self.ending = Some(Ending { attempt, uses }),
                }
                effects
            }
            // Of an older lease. One that is being acquired is not held yet: the agent will answer it.
            State::Idle | State::Acquiring { .. } | State::Held { .. } => Vec::new(),
        }
    }

    /// The channel broke. `heard_at` is when the agent was last heard of (or now, if that is not known):
    /// from then on the agent keeps leases for its TTL, and so long what is published stays good. A channel
    /// over which nothing was heard for the TTL must be taken for broken, or a lease could be used that the
    /// agent has let expire.
    pub fn channel_lost(&mut self, heard_at: Moment) -> Vec<Effect<E, R>> {
        self.channel = Channel::Down;
        // What is ending expires on the agent's side.
        self.ending = None;
        match &mut self.state {
            State::Acquiring { sent, .. } => *sent = false,
            State::Held { doubt, .. } => {
                // A lease that was in doubt already has not become safer by a second break.
                doubt.get_or_insert(heard_at + self.limits.holder_ttl);
            }
            State::Idle => {}
        }
        Vec::new()
    }

    /// There is a channel again, and it has said hello. `holder_ttl` is what the agent answered.
    pub fn channel_up(&mut self, holder_ttl: Duration, now: Moment) -> Vec<Effect<E, R>> {
        self.channel = Channel::Up;
        self.limits.holder_ttl = holder_ttl;
        match &mut self.state {
            // A new attempt: the agent may have answered the old one into the broken channel.
            State::Acquiring { attempt, sent, .. } => {
                self.attempt = self.attempt.next();
                *attempt = self.attempt;
                *sent = true;
                vec![Effect::Acquire(self.attempt)]
            }
            State::Held { attempt, grant, .. } => {
                self.attempt = self.attempt.next();
                *attempt = self.attempt;
                vec![Effect::Reassert { attempt: self.attempt, epoch: grant.epoch }]
            }
            // Idle → Acquiring
            State::Idle if self.uncovered => self.acquire(now),
            State::Idle => Vec::new(),
        }
    }

    /// Time has passed; call at [`Holder::next_deadline`].
    pub fn tick(&mut self, now: Moment) -> Vec<Effect<E, R>> {
        match &self.state {
            // Acquiring → Idle
            State::Acquiring { attempt, sent, deadline } if *deadline <= now => {
                let (attempt, sent) = (*attempt, *sent);
                self.state = State::Idle;
                if sent {
                    let mut effects = self.release(attempt, Duration::ZERO);
                    effects.push(Effect::Fail(Failure::TimedOut));
                    effects
                } else {
                    vec![Effect::Fail(Failure::Unreachable)]
                }
            }
            // Held → Acquiring, Lingering → Idle: the agent has let the lease expire by now
            State::Held { doubt: Some(until), .. } if *until <= now => {
                self.state = State::Idle;
                let mut effects = vec![Effect::Publish(None)];
                if self.uses > 0 {
                    self.uncovered = true;
                    effects.extend(self.acquire(now));
                }
                effects
            }
            // Lingering → Idle. Without a channel nothing can be said, and the lease expires.
            State::Held { attempt, last_use: LastUse::Ended(at), .. } if *at + self.limits.linger <= now => {
                let (attempt, idle_for) = (*attempt, now - *at);
                self.state = State::Idle;
                let mut effects = vec![Effect::Publish(None)];
                effects.extend(self.release(attempt, idle_for));
                effects
            }
            State::Idle | State::Acquiring { .. } | State::Held { .. } => Vec::new(),
        }
    }

    /// When [`Holder::tick`] will have something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        match &self.state {
            State::Acquiring { deadline, .. } => Some(*deadline),
            State::Held { last_use, doubt, .. } => {
                let lingers_until = match last_use {
                    LastUse::Present => None,
                    LastUse::Ended(at) => Some(*at + self.limits.linger),
                };
                [lingers_until, *doubt].into_iter().flatten().min()
            }
            State::Idle => None,
        }
    }

    /// What was published last.
    #[must_use]
    pub const fn published(&self) -> Option<&Grant<E>> {
        match &self.state {
            State::Held { grant, .. } => Some(grant),
            State::Idle | State::Acquiring { .. } => None,
        }
    }

    /// How many uses there are now.
    #[must_use]
    pub const fn uses(&self) -> u64 {
        self.uses
    }

    /// The newest attempt made: what a later [`Holder`] of the same sprite begins after.
    #[must_use]
    pub const fn newest_attempt(&self) -> Attempt {
        self.attempt
    }

    /// Whether nothing is held, asked for or used, so that nothing is lost when the holder is dropped.
    #[must_use]
    pub const fn is_unused(&self) -> bool {
        self.uses == 0 && matches!(self.state, State::Idle)
    }

    fn acquire(&mut self, now: Moment) -> Vec<Effect<E, R>> {
        self.attempt = self.attempt.next();
        let sent = self.channel == Channel::Up;
        self.state =
            State::Acquiring { attempt: self.attempt, sent, deadline: now + self.limits.acquire_timeout };
        if sent { vec![Effect::Acquire(self.attempt)] } else { Vec::new() }
    }

    fn release(&self, attempt: Attempt, idle_for: Duration) -> Vec<Effect<E, R>> {
        match self.channel {
            Channel::Up => vec![Effect::Release { attempt, idle_for }],
            // The agent lets go of what nobody re-asserts.
            Channel::Down => Vec::new(),
        }
    }
}
