//! One sprite's life.
//!
//! ```text
//!             AskWake, admitted            done
//!      Cold ────────────────────► Starting ─────► Running ◄──────────────────────────────┐
//!     ▲ ▲ ▲                          │ failed      │  ▲ │ sleep ordered, in use           │
//!     │ │ └─── Failed ◄──────────────┘             │  │ └──────► Draining ──┐             │
//!     │ │ exited                                   │  │ failed, or          │ drained,    │
//!     │ └──────────────────────────────────────────┤  │ wanted in time      │ grace over  │
//!     │                                      idle  ▼  │                     │             │ done
//!     │        done           cold_after        Pausing ◄───────────────────┘             │
//!     └─── Stopping ◄──────────────────────┐       │ done                                 │
//!           │    ▲ resume failed           │       ▼            AskWake, admitted         │
//!           │    └──────────────────────── │ ──── Warm ─────────────────────────────► Resuming
//!           ▼ failed                       └──────┘ ▲ │ suspend_after
//!         Stuck (tried again)              Suspending ┘
//!
//!   from every state at rest: Checkpointing → the same state; Stopping → Restoring → Cold;
//!   Stopping → Destroying → Destroyed
//! ```
//!
//! Orders (destroy, shut down, restore, checkpoint, sleep) are remembered until the driver call that is out
//! has ended, then carried out in that order of rank. Everything else follows from the demand: whatever
//! state the sprite comes to rest in, [`Machine::settle`] looks at what is wanted of it now. So a request
//! that arrives in the middle of a transition waits for its end and then wakes the sprite (T2), and no
//! interleaving needs an arm of its own.

use std::time::Duration;

use ids::{Epoch, Moment};

use crate::{
    Capabilities, Confirmation, Demand, Depth, Effect, Event, Found, Public, Refusal, Revocation, Settings,
    Timing, Transition, Trouble, backoff,
    state::{Asleep, Awake, Busy, Call, Memory, Resolve, Rest, State},
};

/// A sprite that dies sooner than this after it became awake is taken to crash.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// What the sprite has at the host's wake scheduler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    None,
    Asked,
    Admitted,
}

/// What is to be done as soon as no driver call is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Orders {
    destroy: bool,
    shutdown: bool,
    restore: bool,
    checkpoint: bool,
    sleep: Option<Depth>,
}

/// One sprite's life. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    state: State,
    slot: Slot,
    orders: Orders,
    epoch: Epoch,
    transition: Transition,
    /// Starts that failed, or ended in a crash, in a row.
    failures: u32,
    /// Pauses, suspends and stops that failed, in a row.
    failed_sinks: u32,
    trouble: Option<Trouble>,
    woken_from: Public,
    /// What [`Effect::Changed`] told last.
    told: (Public, Epoch),
    wakeup: Option<Moment>,
}

impl Machine {
    /// A sprite as an agent finds it. `epoch` is the last one written down. It does not sink before
    /// `holders_back_by`, so that those who hold it can say so first.
    #[must_use]
    pub const fn new(
        settings: Settings,
        found: Found,
        epoch: Epoch,
        now: Moment,
        holders_back_by: Moment,
    ) -> Self {
        let (rest, public) = match found {
            Found::Running => {
                (Rest::Running(Awake { since: now, not_before: holders_back_by }), Public::Running)
            }
            Found::Paused => (
                Rest::Warm(Asleep { memory: Memory::Ram, since: now, not_before: holders_back_by }),
                Public::Warm,
            ),
            Found::Stopped => (Rest::Cold, Public::Cold),
        };
        Self {
            settings,
            state: State::Resting(rest),
            slot: Slot::None,
            orders: Orders {
                destroy: false,
                shutdown: false,
                restore: false,
                checkpoint: false,
                sleep: None,
            },
            epoch,
            transition: Transition(0),
            failures: 0,
            failed_sinks: 0,
            trouble: None,
            woken_from: public,
            told: (public, epoch),
            wakeup: None,
        }
    }

    /// Something happened; `demand` is what is wanted now.
    pub fn handle(&mut self, event: Event, demand: Demand, now: Moment) -> Vec<Effect> {
        let mut step = Step { effects: Vec::new(), demand, now };
        match event {
            Event::Tick => {}
            Event::WakeAdmitted => self.admitted(&mut step),
            Event::WakeRefused { retry_after } => {
                if self.slot == Slot::Asked {
                    self.slot = Slot::None;
                    step.refuse(Refusal::HostFull, Some(retry_after));
                }
            }
            Event::DriverDone { transition, outcome } => match self.state {
                State::Busy(busy) if busy.transition == transition => self.done(busy, outcome, &mut step),
                // Of a call that was abandoned.
                State::Busy(_)
                | State::Resting(_)
                | State::Draining { .. }
                | State::Stuck { .. }
                | State::Destroyed => {}
            },
            Event::Exited { epoch } if epoch == self.epoch => self.exited(&mut step),
            Event::Exited { .. } => {}
            Event::Drained => {
                // Draining → Pausing or Stopping
                if let State::Draining { awake, .. } = self.state {
                    self.sink(awake, self.orders.sleep.unwrap_or(Depth::Warm), Resolve::Firm, &mut step);
                }
            }
            Event::Sleep(depth) => self.orders.sleep = self.orders.sleep.max(Some(depth)),
            Event::Checkpoint => self.orders.checkpoint = true,
            Event::Restore => self.orders.restore = true,
            Event::Destroy => self.orders.destroy = true,
            Event::Shutdown => self.orders.shutdown = true,
        }
        self.settle(&mut step);
        step.effects
    }

    /// Asked right before each driver call: whether it still is to be made (T1). Between the decision to
    /// put a sprite to sleep and its execution somebody may have come.
    pub fn confirm(&mut self, transition: Transition, demand: Demand, now: Moment) -> Confirmation {
        let State::Busy(busy) = self.state else { return Confirmation::Abandoned(Vec::new()) };
        if busy.transition != transition {
            return Confirmation::Abandoned(Vec::new());
        }
        let mut step = Step { effects: Vec::new(), demand, now };
        self.settle(&mut step);
        match &mut self.state {
            State::Busy(busy) if busy.transition == transition => {
                busy.resolve = Resolve::Firm;
                // What settling might have said has not changed the state, and is said again at the end.
                Confirmation::Go
            }
            State::Busy(_)
            | State::Resting(_)
            | State::Draining { .. }
            | State::Stuck { .. }
            | State::Destroyed => Confirmation::Abandoned(step.effects),
        }
    }

    /// Changes when the sprite sinks; a [`Event::Tick`] is due afterwards.
    pub const fn set_timing(&mut self, timing: Timing) {
        self.settings.timing = timing;
    }

    /// When a [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub const fn next_wakeup(&self) -> Option<Moment> {
        self.wakeup
    }

    /// The state that the world sees.
    #[must_use]
    pub fn public(&self) -> Public {
        self.state.public()
    }

    /// The state inside, for operators.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        self.state.phase()
    }

    /// The present network identity, or the last one.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What went wrong and matters now.
    #[must_use]
    pub const fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Whether a driver call is out, or about to be.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self.state, State::Busy(_))
    }

    /// Brings orders and demand to bear on the state, until the driver or somebody else has to act.
    fn settle(&mut self, step: &mut Step) {
        loop {
            self.wakeup = None;
            let before = self.state;
            match self.state {
                State::Resting(rest) => match self.carry_out_orders(rest, step) {
                    Carried::Nothing => self.follow_demand(rest, step),
                    Carried::Something => {}
                },
                State::Draining { awake, until } => self.drain(awake, until, step),
                State::Busy(busy) => self.reconsider(busy, step),
                State::Stuck { retry_at } => self.unstick(retry_at, step),
                State::Destroyed => step.refuse_waiting(&Refusal::Destroying, None),
            }
            self.tell(step);
            if self.state == before {
                return;
            }
        }
    }

    fn carry_out_orders(&mut self, rest: Rest, step: &mut Step) -> Carried {
        if self.orders.destroy {
            step.refuse_waiting(&Refusal::Destroying, None);
            self.cancel_wake(step);
            return self.stop_then(rest, Call::Destroying, Revocation::Destroy, step);
        }
        if self.orders.shutdown {
            step.refuse_waiting(&Refusal::ShuttingDown, None);
            self.cancel_wake(step);
            return match rest {
                Rest::Cold | Rest::Failed { .. } => Carried::Something,
                Rest::Running(_) | Rest::Warm(_) => self.stop(rest, Revocation::Shutdown, step),
            };
        }
        if self.orders.restore || self.orders.checkpoint {
            // It may be long, and the wake is asked for again afterwards.
            self.end_wake(step);
        }
        if self.orders.restore {
            self.orders.restore = matches!(rest, Rest::Running(_) | Rest::Warm(_));
            return self.stop_then(rest, Call::Restoring, Revocation::Restore, step);
        }
        if self.orders.checkpoint {
            self.orders.checkpoint = false;
            self.call(Call::Checkpointing(rest), Resolve::Firm, step);
            return Carried::Something;
        }
        let Some(depth) = self.orders.sleep else { return Carried::Nothing };
        match (rest, depth, step.demand) {
            // Running → Draining
            (Rest::Running(awake), _, Demand::Waiting | Demand::Held) => {
                step.effects.push(Effect::Revoke(Revocation::Sleep));
                self.enter(State::Draining { awake, until: step.now + self.settings.drain_grace }, step);
                Carried::Something
            }
            // Running → Pausing or Stopping
            (Rest::Running(awake), depth, Demand::IdleSince(_)) => {
                self.sink(awake, depth, Resolve::Firm, step);
                Carried::Something
            }
            // Warm → Stopping
            (Rest::Warm(_), Depth::Cold, _) => {
                self.call(Call::Stopping(rest), Resolve::Firm, step);
                Carried::Something
            }
            // It sleeps as deep as was ordered.
            (Rest::Warm(_), Depth::Warm, _) | (Rest::Cold | Rest::Failed { .. }, _, _) => {
                self.orders.sleep = None;
                Carried::Nothing
            }
        }
    }

    /// Towards a call that needs the sprite stopped.
    fn stop_then(&mut self, rest: Rest, call: Call, why: Revocation, step: &mut Step) -> Carried {
        match rest {
            Rest::Running(_) | Rest::Warm(_) => self.stop(rest, why, step),
            Rest::Cold | Rest::Failed { .. } => {
                self.call(call, Resolve::Firm, step);
                Carried::Something
            }
        }
    }

    /// Running → Stopping, Warm → Stopping
    fn stop(&mut self, rest: Rest, why: Revocation, step: &mut Step) -> Carried {
        step.effects.push(Effect::Revoke(why));
        self.call(Call::Stopping(rest), Resolve::Firm, step);
        Carried::Something
    }

    fn follow_demand(&mut self, rest: Rest, step: &mut Step) {
        match (rest, step.demand) {
            (Rest::Running(_), Demand::Waiting) => {
                step.demand = Demand::Held;
                step.effects.push(Effect::Grant { epoch: self.epoch, woken_from: self.woken_from });
            }
            (Rest::Running(_), Demand::Held) => {}
            // Running → Pausing or Stopping
            (Rest::Running(awake), Demand::IdleSince(_)) => {
                if self.due(self.sinks_at(awake, step.demand), step) {
                    self.sink(awake, Depth::Warm, Resolve::Open, step);
                }
            }
            (Rest::Failed { retry_at }, Demand::Waiting) if step.now < retry_at => {
                let reason = self.trouble.as_ref().map_or_else(String::new, |trouble| trouble.reason.clone());
                step.refuse(Refusal::Failed(reason), Some(retry_at - step.now));
            }
            (Rest::Cold | Rest::Failed { .. } | Rest::Warm(_), Demand::Waiting) => self.want_wake(rest, step),
            // A wake that lost its sprite's memory goes on to its end, though nobody may wait any more.
            (Rest::Cold | Rest::Failed { .. }, Demand::Held | Demand::IdleSince(_)) => match self.slot {
                Slot::Admitted => self.wake(rest, step),
                Slot::None | Slot::Asked => {}
            },
            (Rest::Warm(asleep), Demand::Held | Demand::IdleSince(_)) => match self.slot {
                Slot::None => self.sink_deeper(asleep, step),
                // The scheduler is about to answer.
                Slot::Asked | Slot::Admitted => {}
            },
        }
    }

    fn want_wake(&mut self, rest: Rest, step: &mut Step) {
        match self.slot {
            Slot::None => {
                self.slot = Slot::Asked;
                step.effects.push(Effect::AskWake);
            }
            Slot::Asked => {}
            Slot::Admitted => self.wake(rest, step),
        }
    }

    fn admitted(&mut self, step: &mut Step) {
        if self.slot != Slot::Asked {
            // Cancelled: the scheduler has taken it out already.
            return;
        }
        self.slot = Slot::Admitted;
        let wakes = match (self.state, step.demand) {
            (State::Resting(rest), Demand::Waiting) => {
                self.orders == Orders::default() && !matches!(rest, Rest::Running(_))
            }
            // Nobody waits any more, or something else is under way; whoever waits at its end asks again.
            (State::Resting(_), Demand::Held | Demand::IdleSince(_))
            | (State::Draining { .. } | State::Busy(_) | State::Stuck { .. } | State::Destroyed, _) => false,
        };
        if !wakes {
            self.end_wake(step);
        }
    }

    /// Cold → Starting, Failed → Starting, Warm → Resuming
    fn wake(&mut self, rest: Rest, step: &mut Step) {
        self.woken_from = rest.public();
        match rest {
            Rest::Cold | Rest::Failed { .. } => {
                self.epoch = self.epoch.next();
                self.call(Call::Starting, Resolve::Open, step);
            }
            Rest::Warm(asleep) => {
                if asleep.memory == Memory::Disk {
                    self.epoch = self.epoch.next();
                }
                self.call(Call::Resuming(asleep), Resolve::Open, step);
            }
            Rest::Running(_) => {}
        }
    }

    fn sink_deeper(&mut self, asleep: Asleep, step: &mut Step) {
        let Timing { suspend_after, cold_after, .. } = self.settings.timing;
        let cold_at = (asleep.since + cold_after).max(asleep.not_before);
        // Warm → Stopping
        if self.due(cold_at, step) {
            self.call(Call::Stopping(Rest::Warm(asleep)), Resolve::Open, step);
            return;
        }
        // Warm → Suspending
        let suspends =
            self.settings.capabilities.suspend && asleep.memory == Memory::Ram && suspend_after < cold_after;
        if suspends && self.due((asleep.since + suspend_after).max(asleep.not_before), step) {
            self.call(Call::Suspending(asleep), Resolve::Open, step);
        }
    }

    /// Running → Pausing or Stopping, Draining → Pausing or Stopping
    fn sink(&mut self, awake: Awake, depth: Depth, resolve: Resolve, step: &mut Step) {
        match depth {
            Depth::Warm if self.settings.capabilities.pause => self.call(Call::Pausing(awake), resolve, step),
            Depth::Warm | Depth::Cold => self.call(Call::Stopping(Rest::Running(awake)), resolve, step),
        }
    }

    fn sinks_at(&self, awake: Awake, demand: Demand) -> Moment {
        match demand {
            Demand::IdleSince(idle) => {
                (idle.max(awake.since) + self.settings.timing.idle_timeout).max(awake.not_before)
            }
            Demand::Waiting | Demand::Held => Moment::from_origin(Duration::MAX),
        }
    }

    fn drain(&mut self, awake: Awake, until: Moment, step: &mut Step) {
        if self.orders.destroy || self.orders.shutdown || self.orders.restore {
            self.enter(State::Resting(Rest::Running(awake)), step);
        } else if self.due(until, step) {
            // Draining → Pausing or Stopping
            self.sink(awake, self.orders.sleep.unwrap_or(Depth::Warm), Resolve::Firm, step);
        }
    }

    /// A driver call is out. Takes it back if it was not made yet and its reason has gone.
    fn reconsider(&mut self, busy: Busy, step: &mut Step) {
        if self.orders.destroy {
            step.refuse_waiting(&Refusal::Destroying, None);
        } else if self.orders.shutdown {
            step.refuse_waiting(&Refusal::ShuttingDown, None);
        }
        if busy.resolve == Resolve::Firm {
            return;
        }
        let ends = self.orders.destroy || self.orders.shutdown;
        let back = match busy.call {
            // Pausing → Running, Stopping → Running
            Call::Pausing(awake) | Call::Stopping(Rest::Running(awake)) => {
                (step.now < self.sinks_at(awake, step.demand)).then_some(Rest::Running(awake))
            }
            // Suspending → Warm, Stopping → Warm
            Call::Suspending(asleep) | Call::Stopping(Rest::Warm(asleep)) => {
                (step.demand == Demand::Waiting).then_some(Rest::Warm(asleep))
            }
            // Starting → Cold
            Call::Starting => ends.then_some(Rest::Cold),
            // Resuming → Warm
            Call::Resuming(asleep) => ends.then_some(Rest::Warm(asleep)),
            Call::Stopping(Rest::Cold | Rest::Failed { .. })
            | Call::Checkpointing(_)
            | Call::Restoring
            | Call::Destroying => None,
        };
        if let Some(rest) = back {
            self.end_wake(step);
            self.enter(State::Resting(rest), step);
        }
    }

    /// Stuck → Stopping
    fn unstick(&mut self, retry_at: Moment, step: &mut Step) {
        if self.due(retry_at, step) {
            self.call(Call::Stopping(Rest::Cold), Resolve::Firm, step);
            return;
        }
        let refusal = match (self.orders.destroy, &self.trouble) {
            (true, _) => Refusal::Destroying,
            (false, Some(trouble)) => Refusal::Failed(trouble.reason.clone()),
            (false, None) => Refusal::Failed(String::new()),
        };
        step.refuse_waiting(&refusal, Some(retry_at - step.now));
    }

    /// A driver call ended.
    fn done(&mut self, busy: Busy, outcome: Result<(), String>, step: &mut Step) {
        let now = step.now;
        match (busy.call, outcome) {
            // Starting → Running, Resuming → Running
            (Call::Starting | Call::Resuming(_), Ok(())) => {
                self.end_wake(step);
                let awake = Awake { since: now, not_before: now };
                self.trouble = None;
                match busy.died {
                    false => self.enter(State::Resting(Rest::Running(awake)), step),
                    true => self.crash(awake, step),
                }
            }
            // Starting → Failed
            (Call::Starting, Err(reason)) => {
                self.end_wake(step);
                self.failures = self.failures.saturating_add(1);
                let retry_at = now + backoff::after(self.failures);
                self.fail(reason, Some(retry_at));
                self.enter(State::Resting(Rest::Failed { retry_at }), step);
            }
            // Resuming → Stopping. The memory is lost; the wake goes on as a start, in the same slot.
            (Call::Resuming(_), Err(reason)) => {
                self.fail(reason, None);
                self.call(Call::Stopping(Rest::Cold), Resolve::Firm, step);
            }
            // Pausing → Warm
            (Call::Pausing(_), Ok(())) => {
                self.slept();
                match busy.died {
                    false => self.enter(
                        State::Resting(Rest::Warm(Asleep {
                            memory: Memory::Ram,
                            since: now,
                            not_before: now,
                        })),
                        step,
                    ),
                    true => self.enter(State::Resting(Rest::Cold), step),
                }
            }
            // Pausing → Running
            (Call::Pausing(awake), Err(reason)) => match busy.died {
                false => {
                    let not_before = self.sink_failed(reason, now);
                    self.enter(State::Resting(Rest::Running(Awake { not_before, ..awake })), step);
                }
                true => self.crash(awake, step),
            },
            // Suspending → Warm
            (Call::Suspending(asleep), outcome) => {
                let asleep = match outcome {
                    Ok(()) => {
                        self.failed_sinks = 0;
                        Asleep { memory: Memory::Disk, ..asleep }
                    }
                    Err(reason) => Asleep { not_before: self.sink_failed(reason, now), ..asleep },
                };
                match busy.died {
                    false => self.enter(State::Resting(Rest::Warm(asleep)), step),
                    true => self.enter(State::Resting(Rest::Cold), step),
                }
            }
            // Stopping → Cold
            (Call::Stopping(before), Ok(())) => {
                match before {
                    Rest::Running(_) => self.slept(),
                    Rest::Warm(_) | Rest::Cold | Rest::Failed { .. } => self.failed_sinks = 0,
                }
                self.enter(State::Resting(Rest::Cold), step);
            }
            // Stopping → Stuck, Destroying → Stuck
            (Call::Stopping(_) | Call::Destroying, Err(reason)) => {
                self.end_wake(step);
                let retry_at = self.sink_failed(reason, now);
                self.enter(State::Stuck { retry_at }, step);
            }
            // Checkpointing → what it was. How it went is for whoever asked.
            (Call::Checkpointing(rest), Ok(()) | Err(_)) => match (rest, busy.died) {
                (Rest::Running(awake), true) => self.crash(awake, step),
                (Rest::Warm(_) | Rest::Cold | Rest::Failed { .. }, true) => {
                    self.enter(State::Resting(Rest::Cold), step);
                }
                (rest, false) => self.enter(State::Resting(rest), step),
            },
            // Restoring → Cold. How it went is for whoever asked.
            (Call::Restoring, Ok(()) | Err(_)) => self.enter(State::Resting(Rest::Cold), step),
            // Destroying → Destroyed
            (Call::Destroying, Ok(())) => {
                step.refuse_waiting(&Refusal::Destroying, None);
                self.enter(State::Destroyed, step);
                step.effects.push(Effect::Gone);
            }
        }
    }

    /// The sprite's first process ended, in this epoch.
    fn exited(&mut self, step: &mut Step) {
        match &mut self.state {
            // Running → Cold or Failed
            State::Resting(Rest::Running(awake)) | State::Draining { awake, .. } => {
                let awake = *awake;
                self.crash(awake, step);
            }
            // Warm → Cold: killed in its sleep, for want of memory perhaps
            State::Resting(Rest::Warm(_)) => {
                self.fail("its processes ended while it slept".to_owned(), None);
                self.enter(State::Resting(Rest::Cold), step);
            }
            State::Busy(busy) => busy.died = true,
            State::Resting(Rest::Cold | Rest::Failed { .. }) | State::Stuck { .. } | State::Destroyed => {}
        }
    }

    /// It died by itself: → Cold, or → Failed if it keeps dying soon after it woke.
    fn crash(&mut self, awake: Awake, step: &mut Step) {
        step.effects.push(Effect::Revoke(Revocation::Exited));
        self.orders.sleep = None;
        self.failures = match step.now - awake.since < STABLE_AFTER {
            true => self.failures.saturating_add(1),
            false => 1,
        };
        let rest = match self.failures {
            0 | 1 => Rest::Cold,
            failures => Rest::Failed { retry_at: step.now + backoff::after(failures - 1) },
        };
        let retry_at = match rest {
            Rest::Failed { retry_at } => Some(retry_at),
            Rest::Cold | Rest::Running(_) | Rest::Warm(_) => None,
        };
        self.fail("its first process ended by itself".to_owned(), retry_at);
        self.enter(State::Resting(rest), step);
    }

    /// It ran and was put to sleep as it should be.
    fn slept(&mut self) {
        self.failures = 0;
        self.failed_sinks = 0;
        self.trouble = None;
    }

    /// Notes a failed pause, suspend, stop or destroy, and says when to try again. An order to sleep is
    /// dropped with it, or it would be tried without end.
    fn sink_failed(&mut self, reason: String, now: Moment) -> Moment {
        self.failed_sinks = self.failed_sinks.saturating_add(1);
        self.orders.sleep = None;
        let retry_at = now + backoff::after(self.failed_sinks);
        self.fail(reason, Some(retry_at));
        retry_at
    }

    fn fail(&mut self, reason: String, retry_at: Option<Moment>) {
        self.trouble = Some(Trouble { reason, retry_at });
    }

    fn end_wake(&mut self, step: &mut Step) {
        if self.slot == Slot::Admitted {
            self.slot = Slot::None;
            step.effects.push(Effect::WakeDone);
        }
    }

    fn cancel_wake(&mut self, step: &mut Step) {
        match self.slot {
            Slot::None => {}
            Slot::Asked => {
                self.slot = Slot::None;
                step.effects.push(Effect::CancelWake);
            }
            Slot::Admitted => self.end_wake(step),
        }
    }

    /// Begins a driver call.
    fn call(&mut self, call: Call, resolve: Resolve, step: &mut Step) {
        self.transition = Transition(self.transition.0 + 1);
        let transition = self.transition;
        self.enter(State::Busy(Busy { transition, call, resolve, died: false }), step);
        step.effects.push(match call {
            Call::Starting => Effect::Start { transition, epoch: self.epoch },
            Call::Pausing(_) => Effect::Pause(transition),
            Call::Suspending(_) => Effect::Suspend(transition),
            Call::Resuming(_) => Effect::Resume { transition, epoch: self.epoch },
            Call::Stopping(_) => Effect::Stop(transition),
            Call::Checkpointing(_) => Effect::Checkpoint(transition),
            Call::Restoring => Effect::Restore(transition),
            Call::Destroying => Effect::Destroy(transition),
        });
    }

    fn enter(&mut self, state: State, step: &mut Step) {
        self.state = state;
        self.tell(step);
    }

    /// Before the driver call or grant that relies on it.
    fn tell(&mut self, step: &mut Step) {
        let now = (self.public(), self.epoch);
        if self.told != now {
            self.told = now;
            step.effects.push(Effect::Changed);
        }
    }

    /// Whether it is time; if not, asks for a tick when it is.
    fn due(&mut self, at: Moment, step: &Step) -> bool {
        if at <= step.now {
            return true;
        }
        self.wakeup = Some(self.wakeup.map_or(at, |other| other.min(at)));
        false
    }

    /// What the driver can do.
    #[must_use]
    pub const fn capabilities(&self) -> Capabilities {
        self.settings.capabilities
    }
}

/// Whether an order had something to do.
enum Carried {
    Something,
    Nothing,
}

/// One call of [`Machine::handle`] on its way.
struct Step {
    effects: Vec<Effect>,
    /// As it was told, then as the effects so far will have changed it.
    demand: Demand,
    now: Moment,
}

impl Step {
    fn refuse_waiting(&mut self, refusal: &Refusal, retry_after: Option<Duration>) {
        if self.demand == Demand::Waiting {
            self.refuse(refusal.clone(), retry_after);
        }
    }

    fn refuse(&mut self, refusal: Refusal, retry_after: Option<Duration>) {
        self.demand = Demand::IdleSince(self.now);
        self.effects.push(Effect::Refuse { refusal, retry_after });
    }
}
