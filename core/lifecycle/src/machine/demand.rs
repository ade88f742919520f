//! What follows from whether the sprite is needed.

use std::time::Duration;

use ids::Moment;

use super::{Machine, Orders, Slot, Step};
use crate::{
    Demand, Depth, Effect, Load, Refusal, Timing,
    state::{Asleep, Awake, Busy, Call, Memory, Resolve, Rest, State},
};

impl Machine {
    pub(super) fn follow_demand(&mut self, rest: Rest, step: &mut Step) {
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
            // Its wake has failed, and it is as it was.
            (Rest::Warm(asleep), Demand::Waiting) if step.now < asleep.wakes_from => {
                let reason = self.trouble.as_ref().map_or_else(String::new, |trouble| trouble.reason.clone());
                step.refuse(Refusal::Failed(reason), Some(asleep.wakes_from - step.now));
                self.sink_deeper(asleep, step);
            }
            (Rest::Cold | Rest::Failed { .. } | Rest::Warm(_), Demand::Waiting) => self.want_wake(rest, step),
            // It began before the sprite slept, and was heard of too late.
            (Rest::Warm(asleep), Demand::Held) if !asleep.ordered => {
                if self.slot == Slot::Admitted || self.due(asleep.wakes_from, step) {
                    self.want_wake(rest, step);
                }
            }
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

    pub(super) fn want_wake(&mut self, rest: Rest, step: &mut Step) {
        match self.slot {
            Slot::None => {
                self.slot = Slot::Asked;
                let load = match rest {
                    Rest::Warm(Asleep { memory: Memory::Ram, .. }) => Load::Light,
                    Rest::Warm(_) | Rest::Running(_) | Rest::Cold | Rest::Failed { .. } => Load::Heavy,
                };
                step.effects.push(Effect::AskWake(load));
            }
            Slot::Asked => {}
            Slot::Admitted => self.wake(rest, step),
        }
    }

    pub(super) fn admitted(&mut self, step: &mut Step) {
        if self.slot != Slot::Asked {
            // Cancelled: the scheduler has taken it out already.
            return;
        }
        self.slot = Slot::Admitted;
        let wakes = match (self.state, step.demand) {
            (State::Resting(rest), Demand::Waiting) => {
                self.orders == Orders::default() && !matches!(rest, Rest::Running(_))
            }
            (State::Resting(Rest::Warm(asleep)), Demand::Held) => {
                self.orders == Orders::default() && !asleep.ordered
            }
            // Nobody waits any more, or something else is under way; whoever waits at its end asks again.
            (State::Resting(_), Demand::Held | Demand::IdleSince(_))
            | (State::Draining { .. } | State::Busy(_) | State::Stuck { .. } | State::Destroyed, _) => false,
        };
        if !wakes {
            self.end_wake(step);
        }
    }

    /// The host has no room: whoever waits may come again, and so does what began inside.
    pub(super) fn wake_refused(&mut self, refusal: Refusal, retry_after: Duration, step: &mut Step) {
        match &mut self.state {
            State::Resting(Rest::Warm(asleep)) if step.demand == Demand::Held => {
                asleep.wakes_from = step.now + retry_after;
            }
            State::Resting(_)
            | State::Draining { .. }
            | State::Busy(_)
            | State::Stuck { .. }
            | State::Destroyed => step.refuse(refusal, Some(retry_after)),
        }
    }

    /// Cold → Starting, Failed → Starting, Warm → Resuming
    pub(super) fn wake(&mut self, rest: Rest, step: &mut Step) {
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

    pub(super) fn sink_deeper(&mut self, asleep: Asleep, step: &mut Step) {
        let Timing { suspend_after, cold_after, .. } = self.timing();
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
    pub(super) fn sink(&mut self, awake: Awake, depth: Depth, resolve: Resolve, step: &mut Step) {
        match depth {
            Depth::Warm | Depth::Suspended if self.settings.capabilities.pause => {
                self.call(Call::Pausing(awake), resolve, step);
            }
            Depth::Warm | Depth::Suspended | Depth::Cold => {
                self.call(Call::Stopping(Rest::Running(awake)), resolve, step);
            }
        }
    }

    pub(super) fn sinks_at(&self, awake: Awake, demand: Demand) -> Moment {
        match demand {
            Demand::IdleSince(idle) => {
                (idle.max(awake.since) + self.timing().idle_timeout).max(awake.not_before)
            }
            Demand::Waiting | Demand::Held => Moment::from_origin(Duration::MAX),
        }
    }

    /// A driver call is out. Takes it back if it was not made yet and its reason has gone.
    pub(super) fn reconsider(&mut self, busy: Busy, step: &mut Step) {
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
}
