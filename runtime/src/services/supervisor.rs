//! One service's life, without a clock or a process.
//!
//! ```text
//!            start                 spawned              exited
//!  Stopped ─────────▶ Starting ─────────────▶ Running ─────────▶ Failed ──┐
//!     ▲                  │  ▲                    │                 ▲  │   │ back-off over,
//!     │                  │  └────────────────────┼─────────────────┼──┼───┘ or start
//!     │                  └── could not be spawned ┼────────────────┘  │
//!     │ exited                                   │ stop, restart      │ stop
//!     └──────────────────────── Stopping ◀───────┘                    │
//!     └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! A service is meant to run for ever: it is started again however it ended, after a pause that grows
//! while it keeps ending early.

use std::{fmt, time::Duration};

use ids::Moment;

/// The pause before the first restart.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest pause before a restart.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// A service that ran for so long has proved itself: its next restart is the first one again.
const PROVED_AFTER: Duration = Duration::from_secs(10);

/// Where a service is in its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// It does not run and nobody wants it to.
    Stopped {
        /// How its last run ended, if it ran.
        last: Option<Ended>,
    },
    /// It is being spawned.
    Starting,
    /// It runs.
    Running {
        /// Its process, which leads a process group.
        pid: i32,
        /// Since when.
        since: Moment,
    },
    /// It has been told to end.
    Stopping {
        /// Its process.
        pid: i32,
        /// When it is killed, unless it has been.
        kill_at: Option<Moment>,
        /// What comes after.
        then: Then,
    },
    /// It ended or could not be spawned, and is tried again.
    Failed {
        /// What happened.
        failure: Failure,
        /// When it is tried again.
        restart_at: Moment,
    },
}

/// What follows a stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Then {
    /// It stays stopped.
    Stay,
    /// It is started again.
    Start,
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl Ended {
    /// As a shell would say it.
    pub(crate) fn exit_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Why a service does not run although it should.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// There was no process at all, and why.
    NotSpawned(String),
    /// It ended by itself.
    Ended(Ended),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSpawned(error) => f.write_str(error),
            Self::Ended(Ended::Code(code)) => write!(f, "exited with code {code}"),
            Self::Ended(Ended::Signal(signal)) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "was ended by {name}"),
                Err(_) => write!(f, "was ended by signal {signal}"),
            },
        }
    }
}

/// What happens to a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// It shall run: a boot, a person, a request, or a service that needs it.
    Start,
    /// It shall not run; killed after `grace` if it does not obey.
    Stop { grace: Duration },
    /// It shall run anew.
    Restart { grace: Duration },
    /// The answer to [`Effect::Spawn`].
    Spawned { pid: i32 },
    /// The answer to [`Effect::Spawn`], with what went wrong.
    NotSpawned { error: String },
    /// Its process has ended.
    Exited(Ended),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[must_use = "a dropped effect is a service that hangs"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Spawn it and answer.
    Spawn,
    /// Send its process group a TERM.
    Terminate(i32),
    /// Send its process group a KILL.
    Kill(i32),
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    state: State,
    /// Ends in a row that came too early.
    early_ends: u32,
    /// How often it was started again after an end that nobody asked for, since it was last started
    /// by somebody.
    restarts: u32,
}

impl Supervisor {
    pub(crate) fn new() -> Self {
        Self { state: State::Stopped { last: None }, early_ends: 0, restarts: 0 }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// When it wants a [`Event::Tick`].
    pub(crate) fn wants_tick_at(&self) -> Option<Moment> {
        match &self.state {
            State::Stopping { kill_at, .. } => *kill_at,
            State::Failed { restart_at, .. } => Some(*restart_at),
            State::Stopped { .. } | State::Starting | State::Running { .. } => None,
        }
    }

    /// Takes an event and says what is to be done.
    pub(crate) fn handle(&mut self, event: Event, now: Moment) -> Option<Effect> {
        match (self.state.clone(), event) {
            // Stopped → Starting; Failed → Starting without waiting, for somebody asked
            (State::Stopped { .. } | State::Failed { .. }, Event::Start | Event::Restart { .. }) => {
                (self.early_ends, self.restarts) = (0, 0);
                self.spawn()
            }
            // Failed → Starting
            (State::Failed { restart_at, .. }, Event::Tick) if now >= restart_at => {
                self.restarts += 1;
                self.spawn()
            }
            // Failed → Stopped
            (State::Failed { .. }, Event::Stop { .. }) => {
                self.state = State::Stopped { last: None };
                None
            }
            // Starting → Running
            (State::Starting, Event::Spawned { pid }) => {
                self.state = State::Running { pid, since: now };
                None
            }
            // Starting → Failed
            (State::Starting, Event::NotSpawned { error }) => {
                self.fail(Failure::NotSpawned(error), now);
                None
            }
            // Running → Failed
            (State::Running { since, .. }, Event::Exited(ended)) => {
                if now - since >= PROVED_AFTER {
                    self.early_ends = 0;
                }
                self.fail(Failure::Ended(ended), now);
                None
            }
            // Running → Stopping
            (State::Running { pid, .. }, Event::Stop { grace }) => self.stop(pid, grace, Then::Stay, now),
            (State::Running { pid, .. }, Event::Restart { grace }) => self.stop(pid, grace, Then::Start, now),
            // Stopping, with another end in mind: the latest wish counts
            (State::Stopping { pid, kill_at, .. }, Event::Start | Event::Restart { .. }) => {
                self.state = State::Stopping { pid, kill_at, then: Then::Start };
                None
            }
            (State::Stopping { pid, kill_at, .. }, Event::Stop { grace }) => {
                let kill_at = kill_at.map(|at| at.min(now + grace));
                self.state = State::Stopping { pid, kill_at, then: Then::Stay };
                None
            }
            // Stopping, killed
            (State::Stopping { pid, kill_at: Some(at), then }, Event::Tick) if now >= at => {
                self.state = State::Stopping { pid, kill_at: None, then };
                Some(Effect::Kill(pid))
            }
            // Stopping → Stopped
            (State::Stopping { then: Then::Stay, .. }, Event::Exited(ended)) => {
                self.state = State::Stopped { last: Some(ended) };
                None
            }
            // Stopping → Starting
            (State::Stopping { then: Then::Start, .. }, Event::Exited(_)) => {
                (self.early_ends, self.restarts) = (0, 0);
                self.spawn()
            }
            // What changes nothing: wishes that are fulfilled, and answers that can't come.
            (State::Stopped { .. }, Event::Stop { .. } | Event::Tick)
            | (State::Failed { .. } | State::Stopping { .. } | State::Running { .. }, Event::Tick)
            | (State::Running { .. }, Event::Start)
            | (State::Starting, Event::Start | Event::Stop { .. } | Event::Restart { .. } | Event::Tick)
            | (State::Stopped { .. } | State::Failed { .. } | State::Starting, Event::Exited(_))
            | (
                State::Stopped { .. } | State::Failed { .. } | State::Running { .. } | State::Stopping { .. },
                Event::Spawned { .. } | Event::NotSpawned { .. },
            ) => None,
        }
    }

    fn spawn(&mut self) -> Option<Effect> {
        self.state = State::Starting;
        Some(Effect::Spawn)
    }

    fn stop(&mut self, pid: i32, grace: Duration, then: Then, now: Moment) -> Option<Effect> {
        self.state = State::Stopping { pid, kill_at: Some(now + grace), then };
        Some(Effect::Terminate(pid))
    }

    fn fail(&mut self, failure: Failure, now: Moment) {
        let doublings = self.early_ends.min(16);
        let backoff = FIRST_BACKOFF.saturating_mul(1 << doublings).min(LONGEST_BACKOFF);
        self.early_ends = self.early_ends.saturating_add(1);
        self.state = State::Failed { failure, restart_at: now + backoff };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment::from_origin(Duration::from_secs(seconds))
    }

    /// Ends at once each time; returns the pauses before its restarts.
    fn pauses(supervisor: &mut Supervisor, mut now: Moment, count: usize) -> (Vec<u64>, Moment) {
        let mut found = Vec::new();
        for _ in 0..count {
            let _ = supervisor.handle(Event::Spawned { pid: 7 }, now);
            let _ = supervisor.handle(Event::Exited(Ended::Code(1)), now);
            let due = supervisor.wants_tick_at().unwrap();
            found.push((due - now).as_secs());
            assert_eq!(supervisor.handle(Event::Tick, now), None, "not before it is due");
            now = due;
            assert_eq!(supervisor.handle(Event::Tick, now), Some(Effect::Spawn));
        }
        (found, now)
    }

    #[test]
    fn the_pause_grows_while_it_keeps_ending_and_shrinks_once_it_has_run() {
        let mut one = Supervisor::new();
        assert_eq!(one.handle(Event::Start, at(0)), Some(Effect::Spawn));
        let (seen, now) = pauses(&mut one, at(0), 8);
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(one.restarts(), 8);
        let _ = one.handle(Event::Spawned { pid: 8 }, now);
        let later = now + PROVED_AFTER;
        let _ = one.handle(Event::Exited(Ended::Signal(9)), later);
        assert_eq!(one.wants_tick_at(), Some(later + FIRST_BACKOFF));
        assert!(
            matches!(one.state(), State::Failed { failure, .. } if failure.to_string().contains("SIGKILL"))
        );
    }

    #[test]
    fn a_start_by_somebody_does_not_wait_for_the_pause() {
        let mut one = Supervisor::new();
        let _ = one.handle(Event::Start, at(0));
        let _ = one.handle(Event::NotSpawned { error: "no such file".into() }, at(0));
        assert!(
            matches!(one.state(), State::Failed { failure: Failure::NotSpawned(error), .. } if error == "no such file")
        );
        assert_eq!(one.handle(Event::Start, at(0)), Some(Effect::Spawn));
    }

    #[test]
    fn a_stop_is_obeyed_or_enforced() {
        let mut one = Supervisor::new();
        let _ = one.handle(Event::Start, at(0));
        let _ = one.handle(Event::Spawned { pid: 7 }, at(0));
        assert_eq!(one.handle(Event::Stop { grace: GRACE }, at(1)), Some(Effect::Terminate(7)));
        assert_eq!(one.handle(Event::Tick, at(10)), None);
        assert_eq!(one.handle(Event::Tick, at(11)), Some(Effect::Kill(7)));
        assert_eq!(one.handle(Event::Tick, at(12)), None, "once is enough");
        let _ = one.handle(Event::Exited(Ended::Signal(9)), at(13));
        assert_eq!(*one.state(), State::Stopped { last: Some(Ended::Signal(9)) });
        assert_eq!(one.wants_tick_at(), None, "it stays stopped");
    }

    #[test]
    fn a_start_during_a_stop_comes_after_it() {
        let mut one = Supervisor::new();
        let _ = one.handle(Event::Start, at(0));
        let _ = one.handle(Event::Spawned { pid: 7 }, at(0));
        let _ = one.handle(Event::Stop { grace: GRACE }, at(1));
        assert_eq!(one.handle(Event::Start, at(2)), None);
        assert_eq!(one.handle(Event::Exited(Ended::Code(0)), at(3)), Some(Effect::Spawn));
    }

    /// Any sequence of events: it never has two processes, never kills one that has ended, and never
    /// rests in a state that nothing would end although somebody wants it to run.
    #[test]
    fn no_sequence_of_events_leads_astray() {
        let mut state = 42u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..2_000 {
            let (mut one, mut now) = (Supervisor::new(), at(0));
            let (mut alive, mut next_pid, mut wanted) = (None, 1, false);
            for _ in 0..60 {
                now = now + Duration::from_millis(random(20_000));
                let event = match random(6) {
                    0 => Event::Start,
                    1 => Event::Stop { grace: GRACE },
                    2 => Event::Restart { grace: GRACE },
                    3 if alive.is_some() => {
                        alive = None;
                        Event::Exited(Ended::Code(1))
                    }
                    _ => Event::Tick,
                };
                match event {
                    // The shell takes no wishes between a spawn and its answer, which come in one step.
                    Event::Start | Event::Restart { .. } => wanted = true,
                    Event::Stop { .. } => wanted = false,
                    _ => {}
                }
                let mut effect = one.handle(event, now);
                while let Some(done) = effect.take() {
                    match done {
                        Effect::Spawn => {
                            assert!(alive.is_none(), "two processes");
                            let answer = if random(4) == 0 {
                                Event::NotSpawned { error: "x".into() }
                            } else {
                                next_pid += 1;
                                alive = Some(next_pid);
                                Event::Spawned { pid: next_pid }
                            };
                            effect = one.handle(answer, now);
                        }
                        Effect::Terminate(pid) | Effect::Kill(pid) => assert_eq!(alive, Some(pid)),
                    }
                }
                let runs_or_will = match one.state() {
                    State::Stopped { .. } => false,
                    State::Running { .. } | State::Failed { .. } => true,
                    State::Stopping { then, .. } => *then == Then::Start,
                    State::Starting => panic!("a spawn without an answer"),
                };
                assert_eq!(runs_or_will, wanted);
            }
        }
    }
}
