//! One session's life, without a clock, a process or a socket.
//!
//! ```text
//!            the last client leaves         its time is up        it does not obey
//!  Attended ────────────────────────▶ Alone ───────────────▶ Told ───────────────▶ Killed
//!     ▲  │                              │                      ▲
//!     │  └─ a client attaches ──────────┘                      │ somebody asks for its end
//!     └────────────────────────────────────────────────────────┘
//!  from each of them: the process ends ──▶ Ended ── its last words are read ──▶ over
//! ```
//!
//! Clients come and go in every state; only how long a session may be without one depends on them.

use std::time::Duration;

use frames::Signal;
use ids::Moment;

/// Between TERM and KILL of a session whose client has not come back.
pub(crate) const ABANDONED_GRACE: Duration = Duration::from_secs(5);

/// What happens to a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A client attached.
    Attached,
    /// A client left.
    Detached,
    /// Somebody wants it to end: this signal now, and a KILL after `grace` if there is one.
    Asked { signal: Signal, grace: Option<Duration> },
    /// Its process has ended.
    Exited { code: u8 },
    /// All it had written has been read, or what holds its pipes is not waited for any more.
    Drained,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[must_use = "a dropped effect is a session that hangs"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Send its process group a signal.
    Signal(Signal),
    /// Kill everything that belongs to it.
    Kill,
    /// Read what its process left in the pipes, for a short time.
    Drain,
    /// Tell its clients the code and forget it.
    Finish { code: u8 },
}

/// What a session is for the sprite's sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Presence {
    /// It has a client.
    Attended,
    /// It runs without one.
    Unattended,
    /// It has ended.
    Over,
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    clients: usize,
    /// How long it may be without a client; `None` is for ever.
    limit: Option<Duration>,
    end: End,
    process: Process,
    drained: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Nobody wants it to end.
    None,
    /// It ends at this moment unless a client comes.
    Alone(Moment),
    /// It has been told to end, and is killed at this moment.
    Told(Moment),
    /// It has been killed.
    Killed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Process {
    Running,
    Ended(u8),
    Over,
}

impl Machine {
    /// A session that has just been started, by a client that is not attached yet. `limit` is how long it may
    /// be without one.
    pub(crate) fn new(limit: Option<Duration>, now: Moment) -> Self {
        let end = limit.map_or(End::None, |limit| End::Alone(now + limit));
        Self { clients: 0, limit, end, process: Process::Running, drained: false }
    }

    /// Takes an event and says what is to be done.
    pub(crate) fn handle(&mut self, event: Event, now: Moment) -> Option<Effect> {
        match (self.process, event) {
            (_, Event::Attached) => {
                self.clients += 1;
                if let End::Alone(_) = self.end {
                    self.end = End::None;
                }
                None
            }
            (_, Event::Detached) => {
                self.clients = self.clients.saturating_sub(1);
                if let (0, End::None, Some(limit)) = (self.clients, self.end, self.limit) {
                    self.end = End::Alone(now + limit);
                }
                None
            }
            (Process::Running, Event::Asked { signal, grace }) => {
                if let Some(kill_at) = grace.map(|grace| now + grace) {
                    self.end = match self.end {
                        End::Told(earlier) => End::Told(earlier.min(kill_at)),
                        End::Killed => End::Killed,
                        End::None | End::Alone(_) => End::Told(kill_at),
                    };
                }
                Some(Effect::Signal(signal))
            }
            (Process::Running, Event::Tick) => match self.end {
                End::Alone(until) if now >= until => {
                    self.end = End::Told(now + ABANDONED_GRACE);
                    Some(Effect::Signal(Signal::TERM))
                }
                End::Told(kill_at) if now >= kill_at => {
                    self.end = End::Killed;
                    Some(Effect::Kill)
                }
                End::None | End::Alone(_) | End::Told(_) | End::Killed => None,
            },
            (Process::Running, Event::Exited { code }) => {
                self.process = Process::Ended(code);
                if self.drained { self.finish(code) } else { Some(Effect::Drain) }
            }
            // It closed its output and goes on.
            (Process::Running, Event::Drained) => {
                self.drained = true;
                None
            }
            (Process::Ended(code), Event::Drained) => self.finish(code),
            // What changes nothing: wishes that came too late, and answers that can't come.
            (Process::Ended(_), Event::Asked { .. } | Event::Tick | Event::Exited { .. })
            | (Process::Over, Event::Asked { .. } | Event::Tick | Event::Exited { .. } | Event::Drained) => {
                None
            }
        }
    }

    fn finish(&mut self, code: u8) -> Option<Effect> {
        self.process = Process::Over;
        Some(Effect::Finish { code })
    }

    /// When it wants an [`Event::Tick`].
    pub(crate) fn wants_tick_at(&self) -> Option<Moment> {
        match (self.process, self.end) {
            (Process::Running, End::Alone(at) | End::Told(at)) => Some(at),
            (Process::Running, End::None | End::Killed) | (Process::Ended(_) | Process::Over, _) => None,
        }
    }

    /// What it is for the sprite's sleep.
    pub(crate) fn presence(&self) -> Presence {
        match (self.process, self.clients) {
            (Process::Over, _) => Presence::Over,
            (Process::Running | Process::Ended(_), 0) => Presence::Unattended,
            (Process::Running | Process::Ended(_), _) => Presence::Attended,
        }
    }

    /// Whether its process still runs.
    pub(crate) fn is_running(&self) -> bool {
        self.process == Process::Running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(10));

    fn at(seconds: u64) -> Moment {
        Moment::from_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn a_command_ends_when_its_client_stays_away() {
        let mut one = Machine::new(LIMIT, at(0));
        assert_eq!(one.handle(Event::Attached, at(0)), None);
        assert_eq!((one.presence(), one.wants_tick_at()), (Presence::Attended, None));
        assert_eq!(one.handle(Event::Detached, at(5)), None);
        assert_eq!((one.presence(), one.wants_tick_at()), (Presence::Unattended, Some(at(15))));
        assert_eq!(one.handle(Event::Tick, at(14)), None);
        assert_eq!(one.handle(Event::Tick, at(15)), Some(Effect::Signal(Signal::TERM)));
        assert_eq!(one.handle(Event::Tick, at(19)), None);
        assert_eq!(one.handle(Event::Tick, at(20)), Some(Effect::Kill));
        assert_eq!(one.wants_tick_at(), None);
        assert_eq!(one.handle(Event::Exited { code: 137 }, at(20)), Some(Effect::Drain));
        assert_eq!(one.handle(Event::Drained, at(20)), Some(Effect::Finish { code: 137 }));
        assert_eq!(one.presence(), Presence::Over);
    }

    #[test]
    fn a_client_that_comes_back_in_time_saves_it() {
        let mut one = Machine::new(LIMIT, at(0));
        let _ = one.handle(Event::Attached, at(0));
        let _ = one.handle(Event::Detached, at(1));
        let _ = one.handle(Event::Attached, at(10));
        assert_eq!(one.wants_tick_at(), None);
        // The first of two that leaves changes nothing.
        let _ = one.handle(Event::Attached, at(11));
        let _ = one.handle(Event::Detached, at(12));
        assert_eq!((one.presence(), one.wants_tick_at()), (Presence::Attended, None));
    }

    #[test]
    fn a_session_waits_for_ever() {
        let mut one = Machine::new(None, at(0));
        let _ = one.handle(Event::Attached, at(0));
        let _ = one.handle(Event::Detached, at(1));
        assert_eq!((one.wants_tick_at(), one.presence()), (None, Presence::Unattended));
    }

    #[test]
    fn an_end_that_was_asked_for_is_enforced_unless_nobody_wants_that() {
        let mut one = Machine::new(None, at(0));
        let asked = |grace| Event::Asked { signal: Signal::TERM, grace };
        assert_eq!(one.handle(asked(None), at(1)), Some(Effect::Signal(Signal::TERM)));
        assert_eq!(one.wants_tick_at(), None);
        assert_eq!(one.handle(asked(LIMIT), at(2)), Some(Effect::Signal(Signal::TERM)));
        assert_eq!(one.wants_tick_at(), Some(at(12)));
        // The earlier end counts, and a client that attaches does not put it off.
        let _ = one.handle(asked(Some(Duration::from_secs(100))), at(3));
        let _ = one.handle(Event::Attached, at(4));
        assert_eq!(one.wants_tick_at(), Some(at(12)));
        assert_eq!(one.handle(Event::Tick, at(12)), Some(Effect::Kill));
        assert_eq!(one.handle(Event::Exited { code: 137 }, at(13)), Some(Effect::Drain));
        assert_eq!(one.handle(asked(LIMIT), at(13)), None, "its process group may be another's by now");
    }

    #[test]
    fn a_process_may_close_its_output_long_before_it_ends() {
        let mut one = Machine::new(None, at(0));
        assert_eq!(one.handle(Event::Drained, at(1)), None);
        assert_eq!(one.handle(Event::Exited { code: 3 }, at(9)), Some(Effect::Finish { code: 3 }));
    }

    /// Whatever happens: nothing is signalled after it has ended, it is finished exactly once, and one that is
    /// alone with a limit always has an end in sight.
    #[test]
    fn no_sequence_of_events_leads_astray() {
        let mut state = 11u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..3_000 {
            let limit = if random(3) == 0 { None } else { LIMIT };
            let (mut one, mut now) = (Machine::new(limit, at(0)), at(0));
            let (mut clients, mut running, mut drained, mut finished) = (0, true, false, 0);
            for _ in 0..60 {
                now = now + Duration::from_millis(random(6_000));
                let event = match random(8) {
                    0 => {
                        clients += 1;
                        Event::Attached
                    }
                    1 if clients > 0 => {
                        clients -= 1;
                        Event::Detached
                    }
                    2 if running => {
                        running = false;
                        Event::Exited { code: 1 }
                    }
                    3 if !drained => {
                        drained = true;
                        Event::Drained
                    }
                    4 => Event::Asked {
                        signal: Signal::TERM,
                        grace: (random(2) == 0).then_some(Duration::from_secs(3)),
                    },
                    _ => Event::Tick,
                };
                match one.handle(event, now) {
                    Some(Effect::Signal(_) | Effect::Kill) => assert!(running),
                    Some(Effect::Drain) => assert!(!drained),
                    Some(Effect::Finish { code }) => {
                        assert!(!running && drained && code == 1);
                        finished += 1;
                    }
                    None => {}
                }
                assert!(finished <= 1 && (finished == 1) == (!running && drained));
                if running && clients == 0 && limit.is_some() && one.end != End::Killed {
                    assert!(one.wants_tick_at().is_some());
                }
                let presence = match (finished, clients) {
                    (1, _) => Presence::Over,
                    (_, 0) => Presence::Unattended,
                    _ => Presence::Attended,
                };
                assert_eq!(one.presence(), presence);
            }
        }
    }
}
