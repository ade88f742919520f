//! The promises, checked after every step.

use std::{collections::BTreeMap, time::Duration};

use lease::grantor::Who;

use crate::{channel::NOTICED_WITHIN, driver::Process, world::World};

/// What some checks cost is worth it only now and then.
const THOROUGH_EVERY: u64 = 61;

/// How long a wake may take when all is well.
const NEGLECTED_AFTER: Duration = Duration::from_secs(30);

impl World {
    /// Checks what must hold at every moment.
    pub(crate) fn check(&mut self) {
        self.check_lines();
        self.check_awake();
        if self.report.steps.is_multiple_of(THOROUGH_EVERY) {
            self.check_uses();
            self.check_dead_holders();
        }
    }

    /// Promise 1: nobody waits for nothing, or for too long. Promise 5: lines are bounded.
    fn check_lines(&mut self) {
        let scenario = self.scenario;
        let mut wrong = None;
        for gateway in &self.gateways {
            let mut held = 0;
            for (sprite, slot) in &gateway.slots {
                held += slot.line.waiting();
                let published = slot.holder.published().is_some();
                let waits_for_nothing =
                    slot.line.waiting() > 0 && !published && slot.holder.next_deadline().is_none();
                // When all is well, whoever waits is served or sent away soon. A wake may have to wait for
                // others, and machines may hesitate.
                let well_since = gateway.channel_since.max(self.agent.since);
                let oldest = slot
                    .line
                    .next_deadline()
                    .map(|deadline| deadline.saturating_before(scenario.line.budget));
                let neglected = !published
                    && gateway.channel.is_some()
                    && self.agent.is_alive()
                    && oldest.is_some_and(|oldest| oldest.max(well_since) + NEGLECTED_AFTER < self.now);
                let too_long = slot.line.next_deadline().is_some_and(|deadline| deadline < self.now);
                if slot.line.is_open() != published {
                    wrong = Some(format!(
                        "the line of sprite {sprite} at {} is wrongly open or shut",
                        gateway.holder
                    ));
                } else if waits_for_nothing {
                    wrong =
                        Some(format!("somebody at {} waits for sprite {sprite} for ever", gateway.holder));
                } else if neglected {
                    wrong = Some(format!(
                        "somebody at {} waits for sprite {sprite} though all is well",
                        gateway.holder
                    ));
                } else if too_long {
                    wrong = Some(format!(
                        "somebody at {} waits for sprite {sprite} beyond the budget",
                        gateway.holder
                    ));
                } else if slot.line.waiting() > scenario.line.max_waiting
                    || slot.line.released() > scenario.line.release_at_once
                {
                    wrong = Some(format!("the line of sprite {sprite} at {} is too long", gateway.holder));
                } else if slot.line.waiting() != slot.waiters.len() {
                    wrong =
                        Some(format!("the line of sprite {sprite} at {} forgot somebody", gateway.holder));
                }
            }
            if held != gateway.held || held > scenario.held_in_all {
                wrong = Some(format!("{} holds {held} requests and counts {}", gateway.holder, gateway.held));
            }
        }
        if let Some(wrong) = wrong {
            self.violated(|| wrong);
        }
    }

    /// Promise 3: no sprite is kept awake by nothing.
    fn check_awake(&mut self) {
        if !self.agent.is_alive() {
            return;
        }
        let scenario = &self.scenario;
        let slack = scenario.holder.linger
            + scenario.holder.holder_ttl
            + NOTICED_WITHIN
            + scenario.confirm * 4
            + scenario.driver * 8
            + Duration::from_secs(1);
        let asleep_by = scenario.settings.timing.idle_timeout + slack;
        let mut wrong = None;
        for (index, sprite) in self.sprites.iter().enumerate() {
            let awake = matches!(sprite.process, Process::Running { .. });
            let needed = sprite.visitors > 0 || sprite.commands > 0;
            if awake && !needed && self.now > sprite.needed_at + asleep_by {
                wrong = Some((index, sprite.needed_at));
            }
        }
        if let Some((sprite, needed_at)) = wrong {
            let living = self.agent.living();
            let task = living.and_then(|living| living.tasks.get(&sprite));
            let why = task.map(|task| (task.machine.phase(), task.grantor.why()));
            self.violated(|| format!("sprite {sprite} is awake and not needed since {needed_at:?}: {why:?}"));
        }
    }

    /// Every use has its beginning and its end.
    fn check_uses(&mut self) {
        let mut expected: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        for request in self.requests.values().filter(|request| request.uses) {
            *expected.entry((request.gateway, request.sprite)).or_default() += 1;
        }
        for client in self.clients.values().filter(|client| client.attached) {
            *expected.entry((client.gateway, client.sprite)).or_default() += 1;
        }
        let mut wrong = None;
        for (index, gateway) in self.gateways.iter().enumerate() {
            for (sprite, slot) in &gateway.slots {
                let counted = expected.remove(&(index, *sprite)).unwrap_or(0);
                if counted != slot.holder.uses() {
                    let uses = slot.holder.uses();
                    wrong = Some(format!(
                        "{} counts {uses} uses of sprite {sprite}, not {counted}",
                        gateway.holder
                    ));
                }
            }
        }
        if let Some(((gateway, sprite), uses)) = expected.pop_first() {
            wrong = Some(format!("gateway {gateway} forgot {uses} uses of sprite {sprite}"));
        }
        if let Some(wrong) = wrong {
            self.violated(|| wrong);
        }
    }

    /// Promise 2: no lease outlives its holder.
    fn check_dead_holders(&mut self) {
        let Some(living) = self.agent.living() else { return };
        let ends_within = NOTICED_WITHIN + self.scenario.holder.holder_ttl + Duration::from_millis(1);
        let mut wrong = None;
        for (index, task) in &living.tasks {
            for why in task.grantor.why() {
                let Who::Holder { holder, .. } = why.who else { continue };
                if self.agent.mourned.get(&holder).is_some_and(|died| *died + ends_within < self.now) {
                    wrong = Some(format!("{holder} is dead and still holds sprite {index}"));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.violated(|| wrong);
        }
    }

    /// Checks what must hold when nothing happens any more: everything has ended, and every count is
    /// back at zero.
    pub(crate) fn check_rest(&mut self) {
        let mut left = Vec::new();
        for (id, request) in &self.requests {
            left.push(format!("{id:?} is left: {request:?}"));
        }
        for (id, client) in &self.clients {
            left.push(format!("{id:?} is left: {client:?}"));
        }
        for gateway in &self.gateways {
            for (sprite, slot) in &gateway.slots {
                left.push(format!("{} has a slot left for sprite {sprite}: {slot:?}", gateway.holder));
            }
        }
        match self.agent.living() {
            None => left.push("the agent is dead".to_owned()),
            Some(living) => {
                if (living.wakes.under_way(), living.wakes.queued(), living.waking) != (0, 0, 0) {
                    left.push(format!("wakes are left: {:?}", living.wakes));
                }
                for (sprite, task) in &living.tasks {
                    if !matches!(task.machine.phase(), "cold" | "failed") || !task.grantor.why().is_empty() {
                        left.push(format!(
                            "sprite {sprite} is left {}: {:?}",
                            task.machine.phase(),
                            task.grantor.why()
                        ));
                    }
                }
            }
        }
        for (index, sprite) in self.sprites.iter().enumerate() {
            if sprite.process != Process::None || sprite.visitors != 0 || (sprite.destroying && !sprite.gone)
            {
                left.push(format!("sprite {index} is left: {sprite:?}"));
            }
        }
        if let Some(left) = left.into_iter().next() {
            self.violated(|| left);
        }
    }
}
