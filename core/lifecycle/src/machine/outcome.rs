//! How driver calls end, and sprites that end by themselves.

use std::time::Duration;

use ids::Moment;

use super::{Machine, Step};
use crate::{
    Effect, Refusal, Revocation, Trouble, backoff,
    state::{Asleep, Awake, Busy, Call, Memory, Resolve, Rest, State},
};

/// A sprite that dies sooner than this after it became awake is taken to crash.
const STABLE_AFTER: Duration = Duration::from_secs(10);

impl Machine {
    /// A driver call ended.
    pub(super) fn done(&mut self, busy: Busy, outcome: Result<(), String>, step: &mut Step) {
        let now = step.now;
        match (busy.call, outcome) {
            // Starting → Running, Resuming → Running
            (Call::Starting | Call::Resuming(_), Ok(())) => {
                self.end_wake(step);
                let awake = Awake { since: now, not_before: now };
                self.trouble = None;
                self.declined = 0;
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
                let ordered = self.orders.sleep.is_some();
                self.slept();
                match busy.died {
                    false => self.enter(
                        State::Resting(Rest::Warm(Asleep {
                            memory: Memory::Ram,
                            since: now,
                            not_before: now,
                            wakes_from: now,
                            ordered,
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
                self.declined = 0;
                match before {
                    Rest::Running(_) => self.slept(),
                    Rest::Warm(_) if self.squeezed => {
                        self.failed_sinks = 0;
                        self.fail("its memory was dropped, as the host was short of it".to_owned(), None);
                    }
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

    /// A driver call failed before it had changed anything. Only a wake makes use of that: whatever else fails leaves
    /// things as they were anyway, or is not trusted to.
    pub(super) fn declined(&mut self, busy: Busy, reason: String, step: &mut Step) {
        match (busy.call, busy.died) {
            // Resuming → Warm
            (Call::Resuming(asleep), false) => {
                self.end_wake(step);
                self.declined = self.declined.saturating_add(1);
                let wakes_from = step.now + backoff::after(self.declined);
                self.fail(reason, Some(wakes_from));
                self.enter(State::Resting(Rest::Warm(Asleep { wakes_from, ..asleep })), step);
            }
            (
                Call::Resuming(_)
                | Call::Starting
                | Call::Pausing(_)
                | Call::Suspending(_)
                | Call::Stopping(_)
                | Call::Checkpointing(_)
                | Call::Restoring
                | Call::Destroying,
                _,
            ) => self.done(busy, Err(reason), step),
        }
    }

    /// The sprite's first process ended, in this epoch.
    pub(super) fn exited(&mut self, step: &mut Step) {
        match self.state {
            // Running → Cold or Failed
            State::Resting(Rest::Running(awake)) | State::Draining { awake, .. } => self.crash(awake, step),
            // Warm → Cold
            State::Resting(Rest::Warm(_)) => self.die_asleep(step),
            State::Busy(busy) => match (busy.resolve, busy.call) {
                // Pausing → Cold or Failed, Stopping → Cold or Failed: the call is not made any more.
                (Resolve::Open, Call::Pausing(awake) | Call::Stopping(Rest::Running(awake))) => {
                    self.crash(awake, step);
                }
                // Suspending → Cold, Resuming → Cold, Stopping → Cold
                (Resolve::Open, Call::Suspending(_) | Call::Resuming(_) | Call::Stopping(Rest::Warm(_))) => {
                    self.end_wake(step);
                    self.die_asleep(step);
                }
                // The end of the call will show what is left.
                (
                    Resolve::Open,
                    Call::Starting
                    | Call::Stopping(Rest::Cold | Rest::Failed { .. })
                    | Call::Checkpointing(_)
                    | Call::Restoring
                    | Call::Destroying,
                )
                | (Resolve::Firm, _) => self.state = State::Busy(Busy { died: true, ..busy }),
            },
            State::Resting(Rest::Cold | Rest::Failed { .. }) | State::Stuck { .. } | State::Destroyed => {}
        }
    }

    /// It was killed in its sleep, for want of memory perhaps.
    fn die_asleep(&mut self, step: &mut Step) {
        self.fail("its processes ended while it slept".to_owned(), None);
        self.enter(State::Resting(Rest::Cold), step);
    }

    /// It died by itself: → Cold, or → Failed if it keeps dying soon after it woke.
    pub(super) fn crash(&mut self, awake: Awake, step: &mut Step) {
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
    pub(super) fn slept(&mut self) {
        self.failures = 0;
        self.failed_sinks = 0;
        self.trouble = None;
    }

    /// Notes a failed pause, suspend, stop or destroy, and says when to try again. An order to sleep is
    /// dropped with it, or it would be tried without end.
    pub(super) fn sink_failed(&mut self, reason: String, now: Moment) -> Moment {
        self.failed_sinks = self.failed_sinks.saturating_add(1);
        self.orders.sleep = None;
        let retry_at = now + backoff::after(self.failed_sinks);
        self.fail(reason, Some(retry_at));
        retry_at
    }

    pub(super) fn fail(&mut self, reason: String, retry_at: Option<Moment>) {
        self.trouble = Some(Trouble { reason, retry_at });
    }
}
