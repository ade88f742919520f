//! A gateway: one holder and one line for each sprite that somebody there needs.

use std::{collections::BTreeMap, time::Duration};

use hold::{Arrival, Line, Room, Ticket};
use ids::{Attempt, Epoch, HolderId, Moment};
use lease::holder::{Channel, Effect, Era, Grant, Holder, Limits};

use crate::{
    channel::{ChannelId, End, ToAgent, ToGateway},
    client::{Place, RequestId},
    world::{Ending, Event, World},
};

/// How long an agent may take to answer a re-assertion, if the sprite is awake and stays so.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

pub(crate) type Effects = Vec<Effect<(), ()>>;

#[derive(Debug)]
pub(crate) struct Gateway {
    /// A restarted gateway is another one.
    pub(crate) run: u64,
    pub(crate) holder: HolderId,
    pub(crate) alive: bool,
    /// The channel that it believes to be open.
    pub(crate) channel: Option<ChannelId>,
    /// Since when.
    pub(crate) channel_since: Moment,
    pub(crate) slots: BTreeMap<usize, Slot>,
    newest: Attempt,
    pub(crate) held: usize,
}

/// What a gateway has for one sprite.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) holder: Holder<(), ()>,
    pub(crate) line: Line,
    pub(crate) waiters: BTreeMap<Ticket, RequestId>,
    ticks_at: Option<Moment>,
}

impl World {
    pub(crate) fn start_gateway(&mut self, index: usize) {
        let run = self.number();
        let gateway = Gateway {
            run,
            holder: format!("gateway-{index}-{run}").parse().expect("it is a holder id"),
            alive: true,
            channel: None,
            channel_since: self.now,
            slots: BTreeMap::new(),
            newest: Attempt(0),
            held: 0,
        };
        match self.gateways.get_mut(index) {
            Some(place) => *place = gateway,
            None => self.gateways.push(gateway),
        }
        self.connect(run);
    }

    pub(crate) fn kill_gateway(&mut self, index: usize) {
        let gateway = &mut self.gateways[index];
        if !std::mem::replace(&mut gateway.alive, false) {
            return;
        }
        gateway.slots.clear();
        gateway.held = 0;
        gateway.channel = None;
        let (run, holder) = (gateway.run, gateway.holder.clone());
        self.agent.mourn(holder, self.now);
        self.end_is_gone(End::Gateway(run));
        self.lose_clients(index);
        let pause = self.random.about(Duration::from_secs(2));
        self.plan(pause, Event::GatewayStarts(index));
    }

    fn by_run(&self, run: u64) -> Option<usize> {
        self.gateways.iter().position(|gateway| gateway.run == run && gateway.alive)
    }

    pub(crate) fn heard_by_gateway(&mut self, run: u64, id: ChannelId, message: ToGateway) {
        let Some(gateway) = self.by_run(run) else { return };
        match message {
            ToGateway::Welcome => {
                self.gateways[gateway].channel = Some(id);
                self.gateways[gateway].channel_since = self.now;
                let ttl = self.scenario.holder.holder_ttl;
                for sprite in self.slots_of(gateway) {
                    self.with(gateway, sprite, |slot, now| slot.holder.channel_up(ttl, now));
                }
            }
            ToGateway::Granted { sprite, attempt, epoch } => {
                if self.gateways[gateway].slots.contains_key(&sprite) {
                    let grant = Grant { epoch, endpoint: () };
                    self.with(gateway, sprite, |slot, now| slot.holder.granted(attempt, grant, now));
                } else {
                    // A grant that comes for nobody is given back.
                    let release = ToAgent::Release { sprite, attempt, idle_for: Duration::ZERO };
                    self.send_to_agent(id, release);
                }
            }
            ToGateway::Refused { sprite, attempt } => {
                if self.gateways[gateway].slots.contains_key(&sprite) {
                    self.with(gateway, sprite, |slot, _| slot.holder.refused(attempt, ()));
                }
            }
            ToGateway::Revoked { sprite, epoch } => {
                if self.gateways[gateway].slots.contains_key(&sprite) {
                    self.with(gateway, sprite, |slot, _| slot.holder.revoked(epoch));
                }
            }
        }
    }

    pub(crate) fn channel_lost(&mut self, run: u64, id: ChannelId, heard_at: Moment) {
        let Some(gateway) = self.by_run(run) else { return };
        if self.gateways[gateway].channel == Some(id) {
            self.gateways[gateway].channel = None;
            for sprite in self.slots_of(gateway) {
                self.with(gateway, sprite, |slot, _| slot.holder.channel_lost(heard_at));
            }
        }
    }

    fn slots_of(&self, gateway: usize) -> Vec<usize> {
        self.gateways[gateway].slots.keys().copied().collect()
    }

    /// A request comes in, for the first time or again.
    pub(crate) fn enter(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.entered = self.now;
        let (gateway, sprite, client) = (request.gateway, request.sprite, request.client);
        let attached = self.clients.get(&client).is_some_and(|client| client.attached);
        let room = match self.gateways[gateway].held < self.scenario.held_in_all {
            true => Room::Free,
            false => Room::Full,
        };
        self.make_slot(gateway, sprite);
        let now = self.now;
        let Some(slot) = self.gateways[gateway].slots.get_mut(&sprite) else { return };
        match slot.line.arrive(now, room) {
            Arrival::Pass => {
                let Some(epoch) = slot.holder.published().map(|grant| grant.epoch) else {
                    self.violated(|| format!("the line of sprite {sprite} is open and leads nowhere"));
                    return;
                };
                self.report.passed += 1;
                // A connection that holds the sprite already needs no second use for each request.
                if !attached {
                    self.begin_use(gateway, sprite);
                    let relied = self.rely(gateway, sprite);
                    self.requests.entry(id).and_modify(|request| {
                        request.uses = true;
                        request.relied = relied;
                    });
                }
                self.go(id, epoch);
            }
            Arrival::Wait { ticket, .. } => {
                slot.waiters.insert(ticket, id);
                self.gateways[gateway].held += 1;
                self.requests.entry(id).and_modify(|request| {
                    request.ticket = Some(ticket);
                    request.uses = true;
                });
                self.begin_use(gateway, sprite);
            }
            Arrival::Refuse(_) => {
                self.with(gateway, sprite, |_, _| Vec::new());
                self.end(id, Ending::Refused);
            }
        }
    }

    fn make_slot(&mut self, gateway: usize, sprite: usize) {
        let scenario = self.scenario;
        let gateway = &mut self.gateways[gateway];
        let channel = if gateway.channel.is_some() { Channel::Up } else { Channel::Down };
        let (limits, newest): (Limits, Attempt) = (scenario.holder, gateway.newest);
        gateway.slots.entry(sprite).or_insert_with(|| Slot {
            holder: Holder::new(limits, channel, newest),
            line: Line::new(scenario.line),
            waiters: BTreeMap::new(),
            ticks_at: None,
        });
    }

    pub(crate) fn begin_use(&mut self, gateway: usize, sprite: usize) {
        self.with(gateway, sprite, |slot, now| slot.holder.use_begun(now));
    }

    /// A use goes on with what is published.
    pub(crate) fn rely(&mut self, gateway: usize, sprite: usize) -> Option<Era> {
        self.gateways[gateway].slots.get_mut(&sprite).map(|slot| slot.holder.rely())
    }

    pub(crate) fn end_use(&mut self, gateway: usize, sprite: usize, relied: Option<Era>) {
        self.with(gateway, sprite, |slot, now| slot.holder.use_ended(relied, now));
    }

    /// A place in line, waiting or released, is free.
    pub(crate) fn leave_line(&mut self, gateway: usize, sprite: usize, ticket: Ticket) {
        let Some(slot) = self.gateways[gateway].slots.get_mut(&sprite) else { return };
        let waited = slot.waiters.remove(&ticket).is_some();
        let going = slot.line.cancel(ticket);
        if waited {
            self.gateways[gateway].held -= 1;
        }
        self.release(gateway, sprite, going);
        self.with(gateway, sprite, |_, _| Vec::new());
    }

    pub(crate) fn slot_tick(&mut self, run: u64, sprite: usize) {
        let Some(gateway) = self.by_run(run) else { return };
        let now = self.now;
        let Some(slot) = self.gateways[gateway].slots.get_mut(&sprite) else { return };
        if slot.ticks_at.is_some_and(|at| at <= now) {
            slot.ticks_at = None;
        }
        let expired = slot.line.expire(now);
        let held_before = slot.holder.published().is_some() && slot.holder.uses() > 0;
        for ticket in expired {
            self.fail(gateway, sprite, ticket, Ending::Expired);
        }
        self.with(gateway, sprite, |slot, now| slot.holder.tick(now));
        let Some(slot) = self.gateways[gateway].slots.get(&sprite) else { return };
        if held_before && slot.holder.published().is_none() {
            // It was out of touch for so long that the agent may have let the lease go. What is in flight
            // may be frozen.
            let Gateway { channel, channel_since, .. } = self.gateways[gateway];
            let undisturbed = self.scenario.faults.disturb_no_sprite();
            let works =
                channel.is_some_and(|id| self.channels.get(&id).is_some_and(|channel| !channel.broken));
            if undisturbed && works && channel_since + ANSWERED_WITHIN < now {
                self.violated(|| format!("a lease of sprite {sprite} was lost while the channel was up"));
            }
            for request in self.requests.values_mut() {
                request.excused |= request.gateway == gateway && request.sprite == sprite;
            }
        }
        let Some(slot) = self.gateways[gateway].slots.get(&sprite) else { return };
        if slot.holder.is_unused() && slot.line.is_empty() {
            let newest = slot.holder.newest_attempt();
            let gateway = &mut self.gateways[gateway];
            gateway.newest = gateway.newest.max(newest);
            gateway.slots.remove(&sprite);
        }
    }

    /// Lets the holder decide, does what it says, and plans its next tick.
    fn with(&mut self, gateway: usize, sprite: usize, decide: impl FnOnce(&mut Slot, Moment) -> Effects) {
        let now = self.now;
        let Some(slot) = self.gateways[gateway].slots.get_mut(&sprite) else { return };
        let mut effects = decide(slot, now);
        while !effects.is_empty() {
            let mut more = Vec::new();
            for effect in effects {
                more.extend(self.perform(gateway, sprite, effect));
            }
            effects = more;
        }
        let run = self.gateways[gateway].run;
        let Some(slot) = self.gateways[gateway].slots.get_mut(&sprite) else { return };
        let unused = slot.holder.is_unused() && slot.line.is_empty();
        let forget = unused.then(|| now + Duration::from_secs(1));
        let next =
            [slot.holder.next_deadline(), slot.line.next_deadline(), forget].into_iter().flatten().min();
        if let Some(at) = next
            && slot.ticks_at.is_none_or(|planned| at < planned)
        {
            slot.ticks_at = Some(at);
            self.plan_at(at, Event::SlotTick { run, sprite });
        }
    }

    fn perform(&mut self, gateway: usize, sprite: usize, effect: Effect<(), ()>) -> Effects {
        match effect {
            Effect::Acquire(attempt) => self.tell_agent(gateway, ToAgent::Acquire { sprite, attempt }),
            Effect::Reassert { attempt, .. } => {
                self.tell_agent(gateway, ToAgent::Reassert { sprite, attempt });
            }
            Effect::Release { attempt, idle_for } => {
                self.tell_agent(gateway, ToAgent::Release { sprite, attempt, idle_for });
            }
            Effect::Publish(Some(_)) => {
                let slot = self.gateways[gateway].slots.get_mut(&sprite);
                let going = slot.map(|slot| slot.line.open()).unwrap_or_default();
                self.release(gateway, sprite, going);
            }
            Effect::Publish(None) => {
                let now = self.now;
                if let Some(slot) = self.gateways[gateway].slots.get_mut(&sprite) {
                    slot.line.close();
                    if slot.line.waiting() > 0 {
                        return slot.holder.wanted(now);
                    }
                }
            }
            Effect::Fail(_) => {
                let slot = self.gateways[gateway].slots.get_mut(&sprite);
                let failed = slot.map(|slot| slot.line.fail()).unwrap_or_default();
                for ticket in failed {
                    self.fail(gateway, sprite, ticket, Ending::Refused);
                }
            }
        }
        Vec::new()
    }

    fn tell_agent(&mut self, gateway: usize, message: ToAgent) {
        match self.gateways[gateway].channel {
            Some(channel) => self.send_to_agent(channel, message),
            None => self.violated(|| format!("{message:?} was to be sent without a channel")),
        }
    }

    /// These held requests go on.
    fn release(&mut self, gateway: usize, sprite: usize, tickets: Vec<Ticket>) {
        for ticket in tickets {
            let Some(slot) = self.gateways[gateway].slots.get_mut(&sprite) else { return };
            let epoch: Option<Epoch> = slot.holder.published().map(|grant| grant.epoch);
            match (slot.waiters.remove(&ticket), epoch) {
                (Some(request), Some(epoch)) => {
                    self.gateways[gateway].held -= 1;
                    let relied = self.rely(gateway, sprite);
                    self.requests.entry(request).and_modify(|request| request.relied = relied);
                    self.go(request, epoch);
                }
                (request, epoch) => {
                    self.violated(|| format!("{ticket:?} was released with {request:?} to {epoch:?}"));
                }
            }
        }
    }

    /// A held request ends without having gone on.
    fn fail(&mut self, gateway: usize, sprite: usize, ticket: Ticket, ending: Ending) {
        let Some(slot) = self.gateways[gateway].slots.get_mut(&sprite) else { return };
        let Some(id) = slot.waiters.remove(&ticket) else {
            self.violated(|| format!("{ticket:?} of sprite {sprite} failed twice"));
            return;
        };
        self.gateways[gateway].held -= 1;
        let place = self.requests.get(&id).map(|request| request.place);
        if place != Some(Place::Waiting) {
            self.violated(|| format!("{id:?} failed in line while {place:?}"));
        }
        self.end(id, ending);
    }
}
