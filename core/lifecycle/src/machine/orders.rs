//! What somebody ordered, in the order of rank.

use ids::Moment;

use super::{Carried, Machine, Step};
use crate::{
    Demand, Depth, Effect, Refusal, Revocation,
    state::{Asleep, Awake, Call, Memory, Resolve, Rest, State},
};

impl Machine {
    pub(super) fn carry_out_orders(&mut self, rest: Rest, step: &mut Step) -> Carried {
        if self.orders.destroy {
            step.refuse_waiting(&Refusal::Destroying, None);
            self.cancel_wake(step);
            return self.stop_then(rest, Call::Destroying, Revocation::Destroy, step);
        }
        if self.orders.shutdown {
            step.refuse_waiting(&Refusal::ShuttingDown, None);
            self.cancel_wake(step);
            return match rest {
                // Nothing of it runs.
                Rest::Cold | Rest::Failed { .. } | Rest::Warm(Asleep { memory: Memory::Disk, .. }) => {
                    Carried::Something
                }
                Rest::Running(_) | Rest::Warm(Asleep { memory: Memory::Ram, .. }) => {
                    self.stop(rest, Revocation::Shutdown, step)
                }
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
            // Warm → Suspending
            (Rest::Warm(asleep), Depth::Suspended, _)
                if asleep.memory == Memory::Ram && self.settings.capabilities.suspend =>
            {
                self.call(Call::Suspending(asleep), Resolve::Firm, step);
                Carried::Something
            }
            // It sleeps as deep as was ordered, or as it can.
            (Rest::Warm(_), Depth::Warm | Depth::Suspended, _) | (Rest::Cold | Rest::Failed { .. }, _, _) => {
                self.orders.sleep = None;
                Carried::Nothing
            }
        }
    }

    /// Towards a call that needs the sprite stopped.
    pub(super) fn stop_then(&mut self, rest: Rest, call: Call, why: Revocation, step: &mut Step) -> Carried {
        match rest {
            Rest::Running(_) | Rest::Warm(_) => self.stop(rest, why, step),
            Rest::Cold | Rest::Failed { .. } => {
                self.call(call, Resolve::Firm, step);
                Carried::Something
            }
        }
    }

    /// Running → Stopping, Warm → Stopping
    pub(super) fn stop(&mut self, rest: Rest, why: Revocation, step: &mut Step) -> Carried {
        step.effects.push(Effect::Revoke(why));
        self.call(Call::Stopping(rest), Resolve::Firm, step);
        Carried::Something
    }

    pub(super) fn drain(&mut self, awake: Awake, until: Moment, step: &mut Step) {
        if self.orders.destroy || self.orders.shutdown || self.orders.restore {
            self.enter(State::Resting(Rest::Running(awake)), step);
        } else if self.due(until, step) {
            // Draining → Pausing or Stopping
            self.sink(awake, self.orders.sleep.unwrap_or(Depth::Warm), Resolve::Firm, step);
        }
    }

    /// Stuck → Stopping
    pub(super) fn unstick(&mut self, retry_at: Moment, step: &mut Step) {
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
}
