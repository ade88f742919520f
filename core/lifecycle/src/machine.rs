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
//!           ▼ failed                       └──────┘ ▲ │ suspend_after      (failed, as it was: Warm)
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
    Confirmation, Demand, Depth, Effect, Event, Found, Public, Refusal, Residence, Settings, Timing,
    Transition, Trouble,
    state::{Asleep, Awake, Busy, Call, Memory, Resolve, Rest, State},
};

mod demand;
mod orders;
mod outcome;

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
    /// Resumes that failed and changed nothing, in a row.
    declined: u32,
    trouble: Option<Trouble>,
    woken_from: Public,
    /// The host is short of memory, and nobody has needed the sprite since it said so.
    squeezed: bool,
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
                Rest::Warm(Asleep {
                    memory: Memory::Ram,
                    since: now,
                    not_before: holders_back_by,
                    wakes_from: now,
                    ordered: true,
                }),
                Public::Warm,
            ),
            Found::Suspended => (
                Rest::Warm(Asleep {
                    memory: Memory::Disk,
                    since: now,
                    not_before: holders_back_by,
                    wakes_from: now,
                    ordered: true,
                }),
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
            declined: 0,
            trouble: None,
            woken_from: public,
            squeezed: false,
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
            Event::WakeRefused { refusal, retry_after } => {
                if self.slot == Slot::Asked {
                    self.slot = Slot::None;
                    self.wake_refused(refusal, retry_after, &mut step);
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
            Event::DriverDeclined { transition, reason } => match self.state {
                State::Busy(busy) if busy.transition == transition => self.declined(busy, reason, &mut step),
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
            Event::Squeeze => self.squeezed = true,
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

    /// What it was is lost, for people: told as trouble until it is awake again.
    pub fn note_loss(&mut self, reason: String) {
        self.fail(reason, None);
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

    /// Whether nothing of it runs, and no driver call is out.
    #[must_use]
    pub const fn is_down(&self) -> bool {
        match self.state {
            State::Resting(Rest::Cold | Rest::Failed { .. }) | State::Destroyed => true,
            State::Resting(Rest::Warm(Asleep { memory, .. })) => matches!(memory, Memory::Disk),
            State::Resting(Rest::Running(_))
            | State::Draining { .. }
            | State::Busy(_)
            | State::Stuck { .. } => false,
        }
    }

    /// Whether its memory is on disk, and no driver call is out.
    #[must_use]
    pub const fn is_suspended(&self) -> bool {
        matches!(self.state, State::Resting(Rest::Warm(Asleep { memory: Memory::Disk, .. })))
    }

    /// What it has of the host's RAM, if this is wanted of it.
    #[must_use]
    pub fn residence(&self, demand: Demand) -> Residence {
        match (self.state, demand) {
            (
                State::Resting(
                    Rest::Cold | Rest::Failed { .. } | Rest::Warm(Asleep { memory: Memory::Disk, .. }),
                )
                | State::Destroyed,
                _,
            ) => Residence::None,
            (State::Resting(Rest::Running(awake)), Demand::IdleSince(idle)) => {
                Residence::Idle(idle.max(awake.since))
            }
            (
                State::Busy(Busy {
                    call: Call::Pausing(awake) | Call::Stopping(Rest::Running(awake)), ..
                }),
                Demand::IdleSince(idle),
            ) => Residence::Idle(idle.max(awake.since)),
            (
                State::Resting(Rest::Warm(_))
                | State::Busy(Busy { call: Call::Suspending(_) | Call::Stopping(Rest::Warm(_)), .. }),
                Demand::IdleSince(idle),
            ) => Residence::Asleep(idle),
            // What an order froze can be put to sleep more deeply like everything else.
            (State::Resting(Rest::Warm(asleep)), Demand::Held) => Residence::Asleep(asleep.since),
            (
                State::Resting(Rest::Running(_) | Rest::Warm(_))
                | State::Draining { .. }
                | State::Busy(_)
                | State::Stuck { .. },
                _,
            ) => Residence::InUse,
        }
    }

    /// Brings orders and demand to bear on the state, until the driver or somebody else has to act.
    fn settle(&mut self, step: &mut Step) {
        self.squeezed &= match step.demand {
            Demand::IdleSince(_) => true,
            // What goes on inside was frozen by an order, and can as well be so on disk.
            Demand::Held => self.public() == Public::Warm && self.settings.capabilities.suspend,
            Demand::Waiting => false,
        };
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

    /// When it sinks, and how deep; at once, if the host is short of memory.
    const fn timing(&self) -> Timing {
        let usual = self.settings.timing;
        match (self.squeezed, self.settings.capabilities.suspend) {
            (false, _) => usual,
            (true, true) => Timing { idle_timeout: Duration::ZERO, suspend_after: Duration::ZERO, ..usual },
            (true, false) => Timing { idle_timeout: Duration::ZERO, cold_after: Duration::ZERO, ..usual },
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
