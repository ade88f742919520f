//! The agent: one grantor and one machine for each sprite, and the host's wake scheduler.

use std::{collections::BTreeMap, time::Duration};

use ids::{HolderId, Moment};
use lease::grantor::{self, Grantor};
use lifecycle::{
    Ask, Confirmation, Demand, Effect, Event as Input, Found, Machine, Public, Refusal, Transition, Wakes,
};

use crate::{
    channel::{ChannelId, End, ToAgent, ToGateway},
    driver::{Call, Process},
    scenario::Scenario,
    world::{Event, Order, World},
};

#[derive(Debug)]
pub(crate) struct Agent {
    run: u64,
    pub(crate) since: Moment,
    living: Option<Living>,
    /// Gateways that died, and when.
    pub(crate) mourned: BTreeMap<HolderId, Moment>,
}

#[derive(Debug)]
pub(crate) struct Living {
    pub(crate) wakes: Wakes,
    pub(crate) tasks: BTreeMap<usize, Task>,
    /// Driver calls under way that wake a sprite.
    pub(crate) waking: usize,
}

/// What the agent has for one sprite.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) grantor: Grantor,
    pub(crate) machine: Machine,
    decided: Option<(Transition, Call)>,
    pub(crate) call: Option<(Transition, Call)>,
    ticks_at: Option<Moment>,
}

impl Task {
    fn demand(&self) -> Demand {
        match self.grantor.demand() {
            grantor::Demand::Waiting => Demand::Waiting,
            grantor::Demand::Held => Demand::Held,
            grantor::Demand::IdleSince(at) => Demand::IdleSince(at),
        }
    }
}

impl Agent {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let living = Living { wakes: Wakes::new(scenario.wakes), tasks: BTreeMap::new(), waking: 0 };
        Self { run: 0, since: Moment::ZERO, living: Some(living), mourned: BTreeMap::new() }
    }

    pub(crate) const fn run(&self) -> u64 {
        self.run
    }

    pub(crate) const fn is_alive(&self) -> bool {
        self.living.is_some()
    }

    pub(crate) const fn living(&self) -> Option<&Living> {
        self.living.as_ref()
    }

    fn task(&mut self, run: u64, sprite: usize) -> Option<&mut Task> {
        if run != self.run {
            return None;
        }
        self.living.as_mut()?.tasks.get_mut(&sprite)
    }

    /// A gateway has died.
    pub(crate) fn mourn(&mut self, holder: HolderId, now: Moment) {
        self.mourned.insert(holder, now);
    }
}

impl World {
    pub(crate) fn kill_agent(&mut self) {
        let Some(living) = self.agent.living.take() else { return };
        for (sprite, task) in living.tasks {
            // What the driver had begun may come to its end all the same.
            if let Some((_, call)) = task.call
                && self.random.per_mille(500)
            {
                self.finish_call(sprite, call);
            }
        }
        self.end_is_gone(End::Agent);
        let pause = if self.busy && self.random.per_mille(200) {
            Duration::from_secs(20)
        } else {
            Duration::from_secs(2)
        };
        let pause = self.random.about(pause);
        self.plan(pause, Event::AgentStarts);
    }

    pub(crate) fn start_agent(&mut self) {
        if self.agent.is_alive() {
            return;
        }
        self.agent.run = self.number();
        self.agent.since = self.now;
        let wakes = Wakes::new(self.scenario.wakes);
        self.agent.living = Some(Living { wakes, tasks: BTreeMap::new(), waking: 0 });
        for sprite in 0..self.sprites.len() {
            if !self.sprites[sprite].gone {
                self.adopt(sprite);
            }
        }
    }

    /// The agent takes a sprite as it finds it.
    pub(crate) fn adopt(&mut self, index: usize) {
        let (run, now, ttl) = (self.agent.run, self.now, self.scenario.holder.holder_ttl);
        let settings = self.scenario.settings;
        let sprite = &mut self.sprites[index];
        let (found, running) = match sprite.process {
            Process::None => (Found::Stopped, None),
            Process::Running { epoch } => (Found::Running, Some(epoch)),
            Process::Paused { epoch } => (Found::Paused, Some(epoch)),
            Process::Suspended { .. } => (Found::Suspended, None),
        };
        // Holders have until then to come back, and only then does idleness count.
        sprite.needed_at = sprite.needed_at.max(now + ttl);
        let written = sprite.written;
        if running.is_some_and(|running| running != written) {
            self.violated(|| format!("sprite {index} is found in epoch {running:?}; {written} is written"));
        }
        let mut grantor = Grantor::new(ttl, now);
        for id in 0..self.sprites[index].commands {
            grantor.activity_begun(id, "exec", "command", now);
        }
        let machine = Machine::new(settings, found, written, now, now + ttl);
        let task = Task { grantor, machine, decided: None, call: None, ticks_at: None };
        let Some(living) = &mut self.agent.living else { return };
        living.tasks.insert(index, task);
        let input = if self.sprites[index].destroying { Input::Destroy } else { Input::Tick };
        self.tell(run, index, input);
    }

    pub(crate) fn heard_by_agent(&mut self, holder: &HolderId, id: ChannelId, message: ToAgent) {
        let (run, now) = (self.agent.run, self.now);
        let (ToAgent::Acquire { sprite, .. }
        | ToAgent::Reassert { sprite, .. }
        | ToAgent::Release { sprite, .. }) = message;
        let Some(task) = self.agent.task(run, sprite) else {
            match message {
                ToAgent::Acquire { attempt, .. } | ToAgent::Reassert { attempt, .. } => {
                    self.send_to_gateway(id, ToGateway::Refused { sprite, attempt });
                }
                ToAgent::Release { .. } => {}
            }
            return;
        };
        match message {
            ToAgent::Acquire { attempt, .. } => {
                task.grantor.acquire(holder.clone(), attempt, None, now);
                self.tell(run, sprite, Input::Tick);
            }
            ToAgent::Reassert { attempt, .. } => {
                task.grantor.reassert(holder.clone(), attempt, now);
                self.tell(run, sprite, Input::Tick);
            }
            ToAgent::Release { attempt, idle_for, .. } => {
                task.grantor.release(holder, attempt, idle_for, now);
                self.tell_released(run, sprite);
            }
        }
    }

    pub(crate) fn holder_lost(&mut self, holder: &HolderId) {
        let (run, now) = (self.agent.run, self.now);
        let Some(living) = &mut self.agent.living else { return };
        let sprites: Vec<_> = living.tasks.keys().copied().collect();
        for sprite in sprites {
            if let Some(task) = self.agent.task(run, sprite) {
                task.grantor.holder_lost(holder, now);
                self.tell_released(run, sprite);
            }
        }
    }

    /// A lease may have ended.
    fn tell_released(&mut self, run: u64, sprite: usize) {
        let Some(task) = self.agent.task(run, sprite) else { return };
        let input = if task.grantor.is_draining() { Input::Tick } else { Input::Drained };
        self.tell(run, sprite, input);
    }

    pub(crate) fn sprite_tick(&mut self, run: u64, sprite: usize) {
        let now = self.now;
        let Some(task) = self.agent.task(run, sprite) else { return };
        if task.ticks_at.is_some_and(|at| at <= now) {
            task.ticks_at = None;
        }
        task.grantor.expire(now);
        self.tell(run, sprite, Input::Tick);
    }

    pub(crate) fn turn(&mut self, run: u64, sprite: usize) {
        self.tell(run, sprite, Input::WakeAdmitted);
    }

    pub(crate) fn exit_seen(&mut self, run: u64, sprite: usize, epoch: ids::Epoch) {
        self.tell(run, sprite, Input::Exited { epoch });
    }

    pub(crate) fn ordered(&mut self, sprite: usize, order: Order) {
        if !self.agent.is_alive() || self.sprites[sprite].gone {
            return;
        }
        let input = match order {
            Order::Checkpoint => Input::Checkpoint,
            Order::Sleep(depth) => Input::Sleep(depth),
            Order::Restore => Input::Restore,
            Order::Destroy => {
                self.sprites[sprite].destroying = true;
                Input::Destroy
            }
        };
        if !matches!(order, Order::Checkpoint) {
            self.excuse(sprite);
        }
        self.tell(self.agent.run, sprite, input);
    }

    /// Feeds a sprite's machine, does what it decides, and plans its next tick.
    pub(crate) fn tell(&mut self, run: u64, sprite: usize, input: Input) {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.now;
            let Some(task) = self.agent.task(run, sprite) else { return };
            let demand = task.demand();
            let effects = task.machine.handle(input, demand, now);
            for effect in effects {
                inputs.extend(self.do_for_sprite(run, sprite, effect));
            }
        }
        self.plan_sprite_tick(run, sprite);
    }

    fn plan_sprite_tick(&mut self, run: u64, sprite: usize) {
        let Some(task) = self.agent.task(run, sprite) else { return };
        let next = [task.machine.next_wakeup(), task.grantor.next_expiry()].into_iter().flatten().min();
        if let Some(at) = next
            && task.ticks_at.is_none_or(|planned| at < planned)
        {
            task.ticks_at = Some(at);
            self.plan_at(at, Event::SpriteTick { run, sprite });
        }
    }

    fn do_for_sprite(&mut self, run: u64, sprite: usize, effect: Effect) -> Option<Input> {
        match effect {
            Effect::AskWake(load) => {
                let (id, organization) = (self.sprites[sprite].id, self.sprites[sprite].organization.clone());
                return match self.agent.living.as_mut()?.wakes.ask(id, &organization, load) {
                    Ask::Go => Some(Input::WakeAdmitted),
                    Ask::Queued => None,
                    Ask::Full(_) => Some(refused(Refusal::HostFull)),
                };
            }
            Effect::CancelWake => {
                let next = self.agent.living.as_mut()?.wakes.cancel(self.sprites[sprite].id);
                self.plan_turn(run, next);
            }
            Effect::WakeDone => {
                let next = self.agent.living.as_mut()?.wakes.finished(self.sprites[sprite].id);
                self.plan_turn(run, next);
            }
            Effect::Changed => {
                let now = self.now;
                let task = self.agent.task(run, sprite)?;
                let (public, epoch) = (task.machine.public(), task.machine.epoch());
                if public == Public::Cold {
                    task.grantor.activities_gone(now);
                }
                self.sprites[sprite].written = epoch;
            }
            Effect::Start { transition, epoch } => self.decide(run, sprite, transition, Call::Start(epoch)),
            Effect::Pause(transition) => self.decide(run, sprite, transition, Call::Pause),
            Effect::Suspend(transition) => self.decide(run, sprite, transition, Call::Suspend),
            Effect::Resume { transition, epoch } => self.decide(run, sprite, transition, Call::Resume(epoch)),
            Effect::Stop(transition) => self.decide(run, sprite, transition, Call::Stop),
            Effect::Checkpoint(transition) => self.decide(run, sprite, transition, Call::Checkpoint),
            Effect::Restore(transition) => self.decide(run, sprite, transition, Call::Restore),
            Effect::Destroy(transition) => self.decide(run, sprite, transition, Call::Destroy),
            Effect::Grant { epoch, .. } => {
                for (holder, attempt) in self.agent.task(run, sprite)?.grantor.granted(epoch) {
                    self.tell_gateway(&holder, ToGateway::Granted { sprite, attempt, epoch });
                }
            }
            Effect::Refuse { .. } => {
                for (holder, attempt) in self.agent.task(run, sprite)?.grantor.refused() {
                    self.tell_gateway(&holder, ToGateway::Refused { sprite, attempt });
                }
            }
            Effect::Revoke(_) => {
                let task = self.agent.task(run, sprite)?;
                let epoch = task.machine.epoch();
                let revoked = task.grantor.revoke();
                let draining = task.grantor.is_draining();
                for holder in revoked {
                    self.tell_gateway(&holder, ToGateway::Revoked { sprite, epoch });
                }
                return (!draining).then_some(Input::Drained);
            }
            Effect::Gone => {
                self.sprites[sprite].gone = true;
                self.agent.living.as_mut()?.tasks.remove(&sprite);
            }
        }
        None
    }

    fn tell_gateway(&mut self, holder: &HolderId, message: ToGateway) {
        if let Some(channel) = self.channel_of(holder) {
            self.send_to_gateway(channel, message);
        }
    }

    fn plan_turn(&mut self, run: u64, next: Option<ids::SpriteId>) {
        let Some(sprite) = next.and_then(|id| self.sprites.iter().position(|sprite| sprite.id == id)) else {
            return;
        };
        let delay = self.random.about(Duration::from_micros(200));
        self.plan(delay, Event::Turn { run, sprite });
    }

    /// One sprite is to give its memory back, and none gets any for a while.
    pub(crate) fn memory_is_short(&mut self, sprite: usize) {
        let run = self.agent.run;
        let Some(living) = &mut self.agent.living else { return };
        let nobody = living.wakes.set_room(0);
        if !nobody.is_empty() {
            self.violated(|| format!("{nobody:?} wake without memory"));
        }
        if !self.sprites[sprite].gone {
            self.squeeze(sprite);
            self.tell(run, sprite, Input::Squeeze);
        }
        let after = self.random.about(Duration::from_secs(2));
        self.plan(after, Event::MemoryBack { run });
    }

    /// There is memory again, or those who wait for it have waited for long enough.
    pub(crate) fn memory_is_back(&mut self, run: u64) {
        if run != self.agent.run {
            return;
        }
        let refuses = self.random.per_mille(300);
        let Some(living) = &mut self.agent.living else { return };
        let sent_away = if refuses { living.wakes.refuse_heavy() } else { Vec::new() };
        let next = living.wakes.set_room(usize::MAX);
        for id in sent_away {
            if let Some(sprite) = self.sprites.iter().position(|sprite| sprite.id == id) {
                self.tell(run, sprite, refused(Refusal::NoMemory));
            }
        }
        for next in next {
            self.plan_turn(run, Some(next));
        }
    }

    fn decide(&mut self, run: u64, sprite: usize, transition: Transition, call: Call) {
        if let Some(task) = self.agent.task(run, sprite) {
            task.decided = Some((transition, call));
            let delay = self.random.about(self.scenario.confirm);
            self.plan(delay, Event::Confirms { run, sprite });
        }
    }

    pub(crate) fn confirm(&mut self, run: u64, sprite: usize) {
        let now = self.now;
        let Some(task) = self.agent.task(run, sprite) else { return };
        let Some((transition, call)) = task.decided.take() else { return };
        let demand = task.demand();
        match task.machine.confirm(transition, demand, now) {
            Confirmation::Go => {
                if task.call.replace((transition, call)).is_some() {
                    self.violated(|| format!("two driver calls at once for sprite {sprite}"));
                }
                if call.is_wake() {
                    self.wake_begins();
                }
                self.begin_call(run, sprite, transition, call);
            }
            Confirmation::Abandoned(effects) => {
                self.report.abandoned += 1;
                let mut inputs = Vec::new();
                for effect in effects {
                    inputs.extend(self.do_for_sprite(run, sprite, effect));
                }
                for input in inputs {
                    self.tell(run, sprite, input);
                }
                self.plan_sprite_tick(run, sprite);
            }
        }
    }

    /// T18: at most so many at once.
    fn wake_begins(&mut self) {
        let most = self.scenario.wakes.at_once;
        let Some(living) = &mut self.agent.living else { return };
        living.waking += 1;
        let waking = living.waking;
        self.report.most_wakes = self.report.most_wakes.max(waking);
        if waking > most {
            self.violated(|| format!("{waking} sprites wake at once; {most} may"));
        }
    }

    pub(crate) fn call_ended(
        &mut self,
        run: u64,
        sprite: usize,
        transition: Transition,
        outcome: Result<(), String>,
    ) {
        let Some(task) = self.agent.task(run, sprite) else { return };
        let Some((_, call)) = task.call.take() else { return };
        if outcome.is_ok() {
            self.finish_call(sprite, call);
        }
        if call.is_wake()
            && let Some(living) = &mut self.agent.living
        {
            living.waking -= 1;
        }
        let kept = matches!(call, Call::Resume(_)) && self.sprites[sprite].process != Process::None;
        let input = match outcome {
            // Half of the wakes that fail do so before anything has changed.
            Err(reason) if kept && self.random.per_mille(500) => Input::DriverDeclined { transition, reason },
            outcome => Input::DriverDone { transition, outcome },
        };
        self.tell(run, sprite, input);
    }

    /// A command begins inside a sprite; it runs as long as it likes.
    pub(crate) fn begin_command(&mut self, sprite: usize) {
        let (run, now) = (self.agent.run, self.now);
        let Some(task) = self.agent.task(run, sprite) else { return };
        task.grantor.activity_begun(self.sprites[sprite].commands, "exec", "command", now);
        self.sprites[sprite].commands += 1;
        self.tell(run, sprite, Input::Tick);
        let takes = self.random.about(Duration::from_secs(4));
        self.plan(takes, Event::CommandEnds(sprite));
    }

    pub(crate) fn end_command(&mut self, sprite: usize) {
        if self.sprites[sprite].commands == 0 {
            return;
        }
        if !matches!(self.sprites[sprite].process, Process::Running { .. }) {
            // It is frozen with the sprite.
            self.plan(Duration::from_secs(1), Event::CommandEnds(sprite));
            return;
        }
        let (run, now) = (self.agent.run, self.now);
        self.sprites[sprite].commands -= 1;
        let id = self.sprites[sprite].commands;
        self.sprites[sprite].needed_at = self.sprites[sprite].needed_at.max(now);
        if let Some(task) = self.agent.task(run, sprite) {
            task.grantor.activity_ended(id, now);
            self.tell(run, sprite, Input::Tick);
        }
    }
}

fn refused(refusal: Refusal) -> Input {
    Input::WakeRefused { refusal, retry_after: Duration::from_secs(2) }
}
