//! What really goes on with the sprites, whatever the agent thinks: the driver's work, and sprites that die
//! by themselves.

use std::time::Duration;

use ids::{Epoch, Moment, OrgSlug, SpriteId};
use lifecycle::Transition;

use crate::{
    client::Place,
    world::{Event, World},
};

/// How long after an order (or an accident) a sprite's users may feel it.
const FELT_FOR: Duration = Duration::from_secs(40);

/// A sprite as it is.
#[derive(Debug)]
pub(crate) struct Sprite {
    pub(crate) id: SpriteId,
    pub(crate) organization: OrgSlug,
    /// What it is called in its URL.
    pub(crate) label: String,
    pub(crate) process: Process,
    /// The epoch in the agent's store.
    pub(crate) written: Epoch,
    /// The newest epoch that ever ran.
    newest: Epoch,
    /// Its destruction is in the agent's store.
    pub(crate) destroying: bool,
    pub(crate) gone: bool,
    /// Clients that are connected for it.
    pub(crate) visitors: u64,
    /// When it was last needed, as far as anyone could know.
    pub(crate) needed_at: Moment,
    /// When the last request or connection of those it served ended.
    pub(crate) used_at: Option<Moment>,
    /// When it last became awake.
    awake_at: Moment,
    /// When the host last was short of its memory.
    squeezed_at: Option<Moment>,
    /// Commands that run inside.
    pub(crate) commands: u64,
    /// Until when its users may be disturbed: somebody ordered it, or it died.
    excused_until: Moment,
}

impl Sprite {
    pub(crate) fn is_excused(&self, now: Moment) -> bool {
        self.destroying || now < self.excused_until
    }

    /// Whether the host has been short of memory since it became awake, so that it sleeps as soon as it may.
    fn is_squeezed(&self) -> bool {
        self.squeezed_at.is_some_and(|at| at >= self.awake_at)
    }
}

/// A sprite's processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Process {
    None,
    Running { epoch: Epoch },
    Paused { epoch: Epoch },
    Suspended { epoch: Epoch },
}

/// A call of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Start(Epoch),
    Pause,
    Suspend,
    Resume(Epoch),
    Stop,
    Checkpoint,
    Restore,
    Destroy,
}

impl Call {
    pub(crate) const fn is_wake(self) -> bool {
        matches!(self, Self::Start(_) | Self::Resume(_))
    }
}

impl World {
    pub(crate) fn create_sprite(&mut self) -> usize {
        let index = self.sprites.len();
        let organization = format!("org-{}", index % self.scenario.organizations);
        self.sprites.push(Sprite {
            id: SpriteId::from_u128(index as u128),
            organization: organization.parse().expect("it is an organization's name"),
            label: format!("sprite-{index}-abcde"),
            process: Process::None,
            written: Epoch(0),
            newest: Epoch(0),
            destroying: false,
            gone: false,
            visitors: 0,
            needed_at: self.now,
            used_at: None,
            awake_at: Moment::ZERO,
            squeezed_at: None,
            commands: 0,
            excused_until: Moment::ZERO,
        });
        self.adopt(index);
        index
    }

    /// The host is short of this one's memory.
    pub(crate) fn squeeze(&mut self, sprite: usize) {
        self.sprites[sprite].squeezed_at = Some(self.now);
    }

    /// From now on, for a while, this sprite's users may be disturbed.
    pub(crate) fn excuse(&mut self, sprite: usize) {
        self.sprites[sprite].excused_until = self.now + FELT_FOR;
    }

    /// What this sprite serves now may end badly, however late that is.
    fn excuse_served(&mut self, sprite: usize) {
        for request in self.requests.values_mut() {
            request.excused |= request.sprite == sprite && matches!(request.place, Place::Serving(_));
        }
    }

    /// The driver begins to work. What puts a sprite to sleep has its effect at once, what wakes it at the
    /// end: the worst for everybody else.
    pub(crate) fn begin_call(&mut self, run: u64, sprite: usize, transition: Transition, call: Call) {
        let fails = self.random.per_mille(self.scenario.faults.driver_failures_per_mille);
        let mut outcome = if fails { Err("the driver failed".to_owned()) } else { Ok(()) };
        if fails {
            // It may be tried again only after a while.
            self.sprites[sprite].needed_at = self.now + Duration::from_secs(30);
        }
        let process = self.sprites[sprite].process;
        match (call, process) {
            (Call::Start(epoch), Process::None) => self.check_start(sprite, epoch),
            (Call::Resume(epoch), Process::Paused { epoch: kept }) if epoch == kept => {
                self.check_wake(sprite);
            }
            (Call::Resume(epoch), Process::Suspended { epoch: old }) if epoch > old => {
                self.check_wake(sprite);
            }
            (Call::Pause, Process::Running { epoch }) => {
                if outcome.is_ok() {
                    self.sink(sprite, Process::Paused { epoch });
                }
            }
            (Call::Suspend, Process::Paused { epoch }) => {
                if outcome.is_ok() {
                    self.sink(sprite, Process::Suspended { epoch });
                }
            }
            (Call::Stop, _) => {
                if outcome.is_ok() {
                    self.sink(sprite, Process::None);
                }
            }
            (Call::Checkpoint, _) | (Call::Restore | Call::Destroy, Process::None) => {}
            // It has died, and the agent does not know yet.
            (Call::Resume(_) | Call::Pause | Call::Suspend, Process::None) => {
                outcome = Err("no such process".to_owned());
            }
            (
                Call::Start(_)
                | Call::Resume(_)
                | Call::Pause
                | Call::Suspend
                | Call::Restore
                | Call::Destroy,
                _,
            ) => {
                self.violated(|| format!("{call:?} of sprite {sprite}, which is {process:?}"));
            }
        }
        let duration = self.random.about(self.scenario.driver);
        self.plan(duration, Event::CallEnds { run, sprite, transition, outcome });
    }

    /// The driver has ended its work, or what it had begun went on without the agent.
    pub(crate) fn finish_call(&mut self, sprite: usize, call: Call) {
        match (call, self.sprites[sprite].process) {
            (Call::Start(epoch), Process::None) => {
                self.report.starts += 1;
                self.awake(sprite, epoch);
            }
            (Call::Resume(epoch), Process::Paused { .. } | Process::Suspended { .. }) => {
                self.report.resumes += 1;
                self.awake(sprite, epoch);
            }
            (
                Call::Start(_)
                | Call::Resume(_)
                | Call::Pause
                | Call::Suspend
                | Call::Stop
                | Call::Checkpoint
                | Call::Restore
                | Call::Destroy,
                _,
            ) => {}
        }
    }

    fn awake(&mut self, sprite: usize, epoch: Epoch) {
        let place = &mut self.sprites[sprite];
        place.process = Process::Running { epoch };
        place.newest = epoch;
        place.awake_at = self.now;
        place.needed_at = place.needed_at.max(self.now);
    }

    fn check_start(&mut self, sprite: usize, epoch: Epoch) {
        let Sprite { newest, written, .. } = self.sprites[sprite];
        if epoch <= newest || epoch > written {
            self.violated(|| {
                format!("sprite {sprite} starts in epoch {epoch}; {newest} has run and {written} is written")
            });
        }
        self.check_wake(sprite);
    }

    fn check_wake(&mut self, sprite: usize) {
        // T38
        if self.sprites[sprite].destroying {
            self.violated(|| format!("sprite {sprite} is woken to be destroyed"));
        }
    }

    /// A sprite falls asleep, or deeper. Promise 2: not under a lease.
    fn sink(&mut self, sprite: usize, to: Process) {
        self.report.sinks += 1;
        let from = std::mem::replace(&mut self.sprites[sprite].process, to);
        if to == Process::None {
            self.sprites[sprite].commands = 0;
        }
        let (Process::Running { epoch } | Process::Paused { epoch } | Process::Suspended { epoch }) = from
        else {
            return;
        };
        if self.sprites[sprite].is_excused(self.now) {
            // It may be felt for longer, if it came late.
            self.excuse(sprite);
            self.excuse_served(sprite);
            return;
        }
        let held = self.gateways.iter().find(|gateway| {
            let slot = gateway.slots.get(&sprite);
            slot.and_then(|slot| slot.holder.published()).is_some_and(|grant| grant.epoch == epoch)
        });
        if let Some(gateway) = held {
            let holder = gateway.holder.clone();
            self.violated(|| format!("sprite {sprite} became {to:?} under the lease of {holder}"));
        }
        let idle_timeout = match self.sprites[sprite].is_squeezed() {
            true => Duration::ZERO,
            false => self.scenario.settings.timing.idle_timeout,
        };
        // T17: nor sooner than it would have if it had been used when it was ready.
        if matches!(from, Process::Running { .. }) && self.now < self.sprites[sprite].awake_at + idle_timeout
        {
            self.violated(|| format!("sprite {sprite} became {to:?} when it had hardly become awake"));
        }
        // T5: nor too soon after it was used.
        let faults = self.scenario.faults;
        let rested = self.sprites[sprite].used_at.map(|used_at| used_at + idle_timeout);
        if faults.disturb_no_sprite()
            && faults.break_nothing()
            && rested.is_some_and(|rested| self.now < rested)
        {
            self.violated(|| {
                format!("sprite {sprite} became {to:?} too early: {rested:?} would have been right")
            });
        }
        let served = self.requests.iter().find(|(_, request)| {
            request.sprite == sprite && request.place == Place::Serving(epoch) && !request.excused
        });
        if let Some((&id, _)) = served {
            self.violated(|| format!("sprite {sprite} became {to:?} while it served {id:?}"));
        }
    }

    /// A sprite's first process ends by itself.
    pub(crate) fn die(&mut self, sprite: usize) {
        match self.sprites[sprite].process {
            Process::Running { epoch } | Process::Paused { epoch } => {
                self.sprites[sprite].process = Process::None;
                self.sprites[sprite].commands = 0;
                self.excuse(sprite);
                self.excuse_served(sprite);
                let delay = self.random.about(Duration::from_millis(20));
                let run = self.agent.run();
                self.plan(delay, Event::ExitSeen { run, sprite, epoch });
            }
            Process::None | Process::Suspended { .. } => {}
        }
    }
}
