//! One sprite's slot: the lease and the line of held requests, behind one lock.
//!
//! The core machines decide; here their effects are performed, in order and under the lock, so that
//! messages leave in the order in which they were decided. The lock is never held across an await, and
//! everything done under it is short.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use agent_api::{
    PublicState,
    lease::{Endpoint, HolderMessage, Refusal},
};
use arc_swap::ArcSwapOption;
use auth::Allowed;
use hold::{Arrival, Line, Ticket};
use ids::{Attempt, Epoch, Moment, SpriteId};
use lease::holder::{Channel, Effect, Era, Failure, Grant, Holder, Limits};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Shared;
use crate::{edge::respond::EdgeError, ledger::Flight, metrics::Wake, upstream::Upstream};

/// How long an unused slot stays before it is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(1);
/// For how long a released request counts as a burden on its sprite if it is not answered. Uploads and long
/// polls are answered late, and must not keep the line from moving (T16).
const BURDEN: Duration = Duration::from_millis(250);
/// What an acquire may take beyond the longest wait for it: those who wait are told by their own budget.
const ACQUIRE_SLACK: Duration = Duration::from_secs(1);

type Verdict = Result<Arc<Upstream>, EdgeError>;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Slot {
    sprite: SpriteId,
    shared: Arc<Shared>,
    /// What requests may use without asking.
    published: ArcSwapOption<Upstream>,
    /// Whether they may: published, and nobody in line before them.
    open: AtomicBool,
    requests: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    holder: Holder<Endpoint, Refusal>,
    line: Line,
    waiters: HashMap<Ticket, Waiter>,
    /// The request that causes the present acquire, for `why awake`.
    request_id: String,
    acquiring_since: Option<Moment>,
    /// Released requests, and until when each counts as a burden.
    burdens: VecDeque<(Moment, Ticket)>,
    /// Ways into the sprite on which requests may finish although the lease was revoked, and until when.
    retired: Vec<(Moment, Arc<Upstream>)>,
    /// When the timers will tick this slot.
    timer: Option<Moment>,
}

impl State {
    fn is_unused(&self) -> bool {
        self.holder.is_unused() && self.line.is_empty() && self.retired.is_empty()
    }
}

/// How a lease ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// Nobody uses it, or nobody may any more.
    AtOnce,
    /// It was revoked: requests under way have a grace.
    Gently,
}

/// Something that needs the sprite, from its making to its drop.
#[derive(Debug)]
pub(crate) struct Use {
    slot: Arc<Slot>,
    relied: Relied,
}

/// Which lease a use relies on.
#[derive(Debug)]
enum Relied {
    On(Era),
    /// None, until it is let go on. Changed and read under the slot's lock only.
    Waiting(Arc<Mutex<Option<Era>>>),
}

impl Drop for Use {
    fn drop(&mut self) {
        let Self { slot, relied } = self;
        slot.with(|state, now| {
            let era = match relied {
                Relied::On(era) => Some(*era),
                Relied::Waiting(era) => *era.lock(),
            };
            state.holder.use_ended(era, now)
        });
    }
}

/// A request in line.
#[derive(Debug)]
struct Waiter {
    verdict: oneshot::Sender<Verdict>,
    relied: Arc<Mutex<Option<Era>>>,
}

impl Slot {
    pub(super) fn new(
        sprite: SpriteId,
        shared: Arc<Shared>,
        channel: Channel,
        holder_ttl: Duration,
        newest: Attempt,
    ) -> Arc<Self> {
        let limits =
            Limits { linger: shared.linger, acquire_timeout: shared.line.budget + ACQUIRE_SLACK, holder_ttl };
        let state = State {
            holder: Holder::new(limits, channel, newest),
            line: Line::new(shared.line),
            waiters: HashMap::new(),
            request_id: String::new(),
            acquiring_since: None,
            burdens: VecDeque::new(),
            retired: Vec::new(),
            timer: None,
        };
        Arc::new(Self {
            sprite,
            shared,
            published: ArcSwapOption::empty(),
            open: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            state: Mutex::new(state),
        })
    }

    pub(crate) const fn sprite(&self) -> SpriteId {
        self.sprite
    }

    pub(crate) fn published(&self) -> Option<Arc<Upstream>> {
        self.published.load_full()
    }

    /// Requests in flight.
    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Something needs the sprite until the guard is dropped.
    pub(crate) fn begin_use(self: &Arc<Self>) -> Use {
        let mut relied = None;
        self.with(|state, now| {
            let effects = state.holder.use_begun(now);
            relied = Some(state.holder.rely());
            effects
        });
        let relied = relied.expect("decided at once");
        Use { slot: self.clone(), relied: Relied::On(relied) }
    }

    /// What a request may use at once, if it comes over a connection that already holds the sprite.
    pub(crate) fn pass(self: &Arc<Self>, _: &Allowed, flight: Flight) -> Option<Lease> {
        if !self.open.load(Ordering::Acquire) {
            return None;
        }
        let upstream = self.published.load_full()?;
        Some(Lease::new(self.clone(), upstream, Held::ByConnection { _flight: flight }))
    }

    /// Takes a lease for a request, waiting for the sprite to wake if it must.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in line; the acquire that others wait for goes on.
    pub(crate) async fn acquire(self: &Arc<Self>, _: &Allowed, request_id: &str) -> Result<Lease, EdgeError> {
        if self.published.load().is_none() && self.shared.is_unreachable() {
            return Err(EdgeError::AgentUnreachable);
        }
        let Entered { place, held } = self.arrive(request_id)?;
        match place {
            Arrived::Passed(upstream) => {
                Ok(Lease::new(self.clone(), upstream, Held::ByRequest { _used: held }))
            }
            Arrived::Waits(place, verdict) => {
                // The line tells everyone when their budget is spent; a lost verdict would be our mistake.
                let lost = |_| EdgeError::Internal("a held request was forgotten".into());
                let upstream = verdict.await.map_err(lost)??;
                let mut lease = Lease::new(self.clone(), upstream, Held::ByRequest { _used: held });
                lease.place = Some(place);
                Ok(lease)
            }
        }
    }

    fn arrive(self: &Arc<Self>, request_id: &str) -> Result<Entered, EdgeError> {
        let mut arrived = None;
        self.with(|state, now| {
            match (state.line.arrive(now, self.shared.room()), self.published.load_full()) {
                (Arrival::Pass, Some(upstream)) => {
                    arrived = Some(Ok((Arrived::Passed(upstream), Relied::On(state.holder.rely()))));
                }
                (Arrival::Pass, None) => {
                    // The line is open exactly while something is published.
                    arrived = Some(Err(EdgeError::Internal("an open line leads nowhere".into())));
                    return Vec::new();
                }
                (Arrival::Wait { ticket, .. }, _) => {
                    let (tell, verdict) = oneshot::channel();
                    let relied = Arc::new(Mutex::new(None));
                    state.waiters.insert(ticket, Waiter { verdict: tell, relied: relied.clone() });
                    self.shared.held.fetch_add(1, Ordering::Relaxed);
                    let waits = Arrived::Waits(Place { slot: self.clone(), ticket }, verdict);
                    arrived = Some(Ok((waits, Relied::Waiting(relied))));
                }
                (Arrival::Refuse(full), _) => {
                    arrived = Some(Err(EdgeError::LineFull(full)));
                    return Vec::new();
                }
            }
            if state.acquiring_since.is_none() {
                request_id.clone_into(&mut state.request_id);
            }
            state.holder.use_begun(now)
        });
        let (place, relied) = arrived.unwrap_or(Err(EdgeError::Internal("nothing was decided".into())))?;
        Ok(Entered { place, held: Use { slot: self.clone(), relied } })
    }

    pub(super) fn granted(&self, attempt: Attempt, grant: Grant<Endpoint>, woken_from: PublicState) {
        self.with(|state, now| {
            let epoch = grant.epoch;
            let effects = state.holder.granted(attempt, grant, now);
            let published = effects.iter().any(|effect| matches!(effect, Effect::Publish(Some(_))));
            if let Some(since) = state.acquiring_since.take_if(|_| published) {
                tracing::info!(
                    sprite = %self.sprite, %epoch, ?woken_from, elapsed = ?now - since,
                    request_id = state.request_id, "The sprite is awake"
                );
                self.shared.metrics.wake(Wake::Granted(woken_from), now - since);
            }
            effects
        });
    }

    pub(super) fn refused(&self, attempt: Attempt, refusal: Refusal) {
        self.with(|state, _| state.holder.refused(attempt, refusal));
    }

    pub(super) fn revoked(&self, epoch: Epoch) {
        self.decide(Ending::Gently, |state, _| state.holder.revoked(epoch));
    }

    pub(super) fn channel_up(&self, ttl: Duration) {
        self.with(|state, now| state.holder.channel_up(ttl, now));
    }

    pub(super) fn channel_lost(&self, heard_at: Moment) {
        self.with(|state, _| state.holder.channel_lost(heard_at));
    }

    pub(super) fn fail_waiting(&self, error: &EdgeError) {
        self.with(|state, _| {
            let failed = state.line.fail();
            self.tell(state, failed, || Err(error.clone()));
            Vec::new()
        });
    }

    pub(super) fn tick(&self, now: Moment) {
        self.with(|state, _| {
            state.timer = None;
            state.retired.retain(|(until, upstream)| {
                if *until <= now {
                    upstream.end();
                }
                *until > now
            });
            while let Some((_, ticket)) = state.burdens.front().copied().filter(|(until, _)| *until <= now) {
                state.burdens.pop_front();
                let going = state.line.answered(ticket);
                self.let_go(state, going, now);
            }
            let expired = state.line.expire(now);
            self.tell(state, expired, || Err(EdgeError::HoldExpired(self.shared.line.budget)));
            state.holder.tick(now)
        });
    }

    /// Whether nothing is lost when the slot is forgotten.
    pub(super) fn is_unused(&self) -> bool {
        self.state.lock().is_unused()
    }

    pub(super) fn newest_attempt(&self) -> Attempt {
        self.state.lock().holder.newest_attempt()
    }

    /// Keeps everyone else out, to show who does not need to get in.
    #[cfg(test)]
    pub(super) fn lock_for_test(&self) -> impl Sized + '_ {
        self.state.lock()
    }

    /// Lets the machines decide, then does what they say.
    fn with(&self, decide: impl FnOnce(&mut State, Moment) -> Vec<Effect<Endpoint, Refusal>>) {
        self.decide(Ending::AtOnce, decide);
    }

    fn decide(
        &self,
        ending: Ending,
        decide: impl FnOnce(&mut State, Moment) -> Vec<Effect<Endpoint, Refusal>>,
    ) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let now = self.shared.clock.now();
        let mut effects = decide(state, now);
        while !effects.is_empty() {
            effects =
                effects.into_iter().flat_map(|effect| self.perform(state, effect, ending, now)).collect();
        }
        if state.holder.uses() == 0 {
            state.retired.drain(..).for_each(|(_, upstream)| upstream.end());
        }
        if state.line.is_empty() {
            state.burdens.clear();
        }
        self.open.store(state.line.is_open() && state.line.waiting() == 0, Ordering::Release);
        self.set_timer(state, now);
    }

    fn perform(
        &self,
        state: &mut State,
        effect: Effect<Endpoint, Refusal>,
        ending: Ending,
        now: Moment,
    ) -> Vec<Effect<Endpoint, Refusal>> {
        let sprite = self.sprite;
        match effect {
            Effect::Acquire(attempt) => {
                state.acquiring_since.get_or_insert(now);
                let request_id = state.request_id.clone();
                self.shared.send(HolderMessage::Acquire { sprite, attempt, request_id });
            }
            Effect::Reassert { attempt, epoch } => {
                self.shared.send(HolderMessage::Reassert { sprite, attempt, epoch });
            }
            Effect::Release { attempt, idle_for } => {
                let idle_for_ms = u64::try_from(idle_for.as_millis()).unwrap_or(u64::MAX);
                self.shared.send(HolderMessage::Release { sprite, attempt, idle_for_ms });
            }
            Effect::Publish(Some(Grant { epoch, endpoint })) => {
                let upstream = Upstream::new(epoch, endpoint);
                if let Some(before) = self.published.swap(Some(upstream.clone())) {
                    before.end();
                }
                let going = state.line.open();
                self.let_go(state, going, now);
            }
            Effect::Publish(None) => {
                self.open.store(false, Ordering::Release);
                match (self.published.swap(None), ending) {
                    (Some(before), Ending::AtOnce) => before.end(),
                    (Some(before), Ending::Gently) => {
                        before.retire();
                        state.retired.push((now + self.shared.revoke_grace, before));
                    }
                    (None, _) => {}
                }
                state.line.close();
                if state.line.waiting() > 0 {
                    return state.holder.wanted(now);
                }
            }
            Effect::Fail(failure) => {
                if let Some(since) = state.acquiring_since.take() {
                    self.shared.metrics.wake(outcome(&failure), now - since);
                }
                let error = error_of(failure, self.shared.line.budget);
                let failed = state.line.fail();
                self.tell(state, failed, || Err(error.clone()));
            }
        }
        Vec::new()
    }

    /// Ends the waiting of these.
    fn tell(&self, state: &mut State, tickets: Vec<Ticket>, verdict: impl Fn() -> Verdict) {
        for ticket in tickets {
            if let Some(waiter) = state.waiters.remove(&ticket) {
                self.shared.held.fetch_sub(1, Ordering::Relaxed);
                // A waiter that has gone cancels its place by itself.
                let _told = waiter.verdict.send(verdict());
            }
        }
    }

    /// A place in line is given up, or its request was answered: the next may go.
    fn leave(&self, ticket: Ticket) {
        self.with(|state, now| {
            if state.waiters.remove(&ticket).is_some() {
                self.shared.held.fetch_sub(1, Ordering::Relaxed);
            }
            let going = state.line.cancel(ticket);
            self.let_go(state, going, now);
            Vec::new()
        });
    }

    /// These may go to the sprite.
    fn let_go(&self, state: &mut State, going: Vec<Ticket>, now: Moment) {
        // Nobody goes while nothing is published: the line is closed then.
        let Some(upstream) = self.published.load_full() else { return };
        state.burdens.extend(going.iter().map(|ticket| (now + BURDEN, *ticket)));
        for waiter in going.iter().filter_map(|ticket| state.waiters.get(ticket)) {
            *waiter.relied.lock() = Some(state.holder.rely());
        }
        self.tell(state, going, || Ok(upstream.clone()));
    }

    fn set_timer(&self, state: &mut State, now: Moment) {
        let deadlines = [state.holder.next_deadline(), state.line.next_deadline()];
        let forget = state.is_unused().then_some(now + FORGET_AFTER);
        let retired = state.retired.first().map(|(until, _)| *until);
        // Only while somebody waits for it: nobody else gains by being let go of.
        let burden = state.burdens.front().filter(|_| state.line.waiting() > 0).map(|(until, _)| *until);
        let due = deadlines.into_iter().flatten().chain(forget).chain(retired).chain(burden);
        let Some(next) = due.min() else { return };
        if state.timer.is_none_or(|timer| next < timer) {
            state.timer = Some(next);
            self.shared.timers.enter(next, self.sprite);
        }
    }
}

const fn outcome(failure: &Failure<Refusal>) -> Wake {
    match failure {
        Failure::Refused(_) => Wake::Refused,
        Failure::TimedOut => Wake::TimedOut,
        Failure::Unreachable => Wake::Unreachable,
    }
}

fn error_of(failure: Failure<Refusal>, budget: Duration) -> EdgeError {
    match failure {
        Failure::Refused(refusal) => EdgeError::LeaseRefused(refusal),
        Failure::TimedOut => EdgeError::HoldExpired(budget),
        Failure::Unreachable => EdgeError::AgentUnreachable,
    }
}

/// A place in line, waiting or released. Dropped, it is free.
#[derive(Debug)]
struct Place {
    slot: Arc<Slot>,
    ticket: Ticket,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.slot.leave(self.ticket);
    }
}

/// What became of an arrival.
enum Arrived {
    Passed(Arc<Upstream>),
    Waits(Place, oneshot::Receiver<Verdict>),
}

/// A request that was let in, to go on or to wait. Fields are dropped in this order.
struct Entered {
    place: Arrived,
    held: Use,
}

/// A request's right to use the sprite, from its admission to its end.
#[derive(Debug)]
pub(crate) struct Lease {
    slot: Arc<Slot>,
    upstream: Arc<Upstream>,
    place: Option<Place>,
    _held: Held,
}

/// What keeps the sprite awake for a request.
#[derive(Debug)]
enum Held {
    ByRequest { _used: Use },
    ByConnection { _flight: Flight },
}

impl Lease {
    fn new(slot: Arc<Slot>, upstream: Arc<Upstream>, held: Held) -> Self {
        slot.requests.fetch_add(1, Ordering::Relaxed);
        Self { slot, upstream, place: None, _held: held }
    }

    pub(crate) const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    pub(crate) const fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// The sprite has begun to answer: the next in line may go.
    pub(crate) fn answered(&mut self) {
        self.place = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.slot.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
