//! Channels between gateways and the agent: in order, late, and broken at any moment, which each end
//! notices at its own time.

use std::time::Duration;

use ids::{Attempt, Epoch, HolderId, Moment};

use crate::world::{Event, World};

/// The longest until an end notices that its channel is broken.
pub(crate) const NOTICED_WITHIN: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ChannelId(u64);

/// From a gateway.
#[derive(Clone, Debug)]
pub(crate) enum ToAgent {
    Acquire { sprite: usize, attempt: Attempt },
    Reassert { sprite: usize, attempt: Attempt },
    Release { sprite: usize, attempt: Attempt, idle_for: Duration },
}

/// To a gateway.
#[derive(Clone, Debug)]
pub(crate) enum ToGateway {
    Welcome,
    Granted { sprite: usize, attempt: Attempt, epoch: Epoch },
    Refused { sprite: usize, attempt: Attempt },
    Revoked { sprite: usize, epoch: Epoch },
}

#[derive(Debug)]
pub(crate) struct Channel {
    /// Which run of a gateway it belongs to.
    pub(crate) gateway_run: u64,
    pub(crate) holder: HolderId,
    pub(crate) broken: bool,
    gateway_knows: bool,
    agent_knows: bool,
    /// When the agent was last heard at the gateway's end.
    heard_at: Moment,
    /// When the last message in each direction arrives: none overtakes another.
    last_to_agent: Moment,
    last_to_gateway: Moment,
}

impl World {
    /// A gateway tries to open a channel.
    pub(crate) fn connect(&mut self, run: u64) {
        let Some(gateway) = self.gateways.iter().find(|gateway| gateway.run == run && gateway.alive) else {
            return;
        };
        if gateway.channel.is_some() {
            return;
        }
        let holder = gateway.holder.clone();
        if !self.agent.is_alive() {
            let pause = self.random.between(Duration::from_millis(20), Duration::from_secs(1));
            self.plan(pause, Event::Connects { run });
            return;
        }
        // An older channel of the same holder ends first, or its end would be taken for the new one's.
        let older: Vec<_> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.gateway_run == run && !channel.agent_knows)
            .map(|(id, _)| *id)
            .collect();
        for id in older {
            self.agent_notices(id);
        }
        let id = ChannelId(self.number());
        let channel = Channel {
            gateway_run: run,
            holder,
            broken: false,
            gateway_knows: false,
            agent_knows: false,
            heard_at: self.now,
            last_to_agent: self.now,
            last_to_gateway: self.now,
        };
        self.channels.insert(id, channel);
        self.send_to_gateway(id, ToGateway::Welcome);
        if self.busy && !self.scenario.faults.channel_breaks.is_zero() && self.random.per_mille(200) {
            // It breaks in the middle of what is said first.
            let after = self.random.about(self.scenario.latency * 2);
            self.plan(after, Event::ChannelBreaks(id));
        }
    }

    pub(crate) fn send_to_agent(&mut self, id: ChannelId, message: ToAgent) {
        let delay = self.random.about(self.scenario.latency);
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.last_to_agent = channel.last_to_agent.max(self.now + delay);
        let at = channel.last_to_agent;
        self.plan_at(at, Event::ToAgent(id, message));
    }

    pub(crate) fn send_to_gateway(&mut self, id: ChannelId, message: ToGateway) {
        let delay = self.random.about(self.scenario.latency);
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.last_to_gateway = channel.last_to_gateway.max(self.now + delay);
        let at = channel.last_to_gateway;
        self.plan_at(at, Event::ToGateway(id, message));
    }

    /// The channel over which a holder is reached now, as far as the agent knows.
    pub(crate) fn channel_of(&self, holder: &HolderId) -> Option<ChannelId> {
        let open =
            self.channels.iter().rev().find(|(_, channel)| channel.holder == *holder && !channel.agent_knows);
        open.map(|(id, _)| *id)
    }

    pub(crate) fn agent_hears(&mut self, id: ChannelId, message: ToAgent) {
        let Some(channel) = self.channels.get(&id).filter(|channel| !channel.broken) else { return };
        let holder = channel.holder.clone();
        self.heard_by_agent(&holder, id, message);
    }

    pub(crate) fn gateway_hears(&mut self, id: ChannelId, message: ToGateway) {
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| !channel.broken) else { return };
        channel.heard_at = self.now;
        let run = channel.gateway_run;
        self.heard_by_gateway(run, id, message);
    }

    /// From now on nothing arrives any more.
    pub(crate) fn break_channel(&mut self, id: ChannelId) {
        let ttl = self.scenario.holder.holder_ttl;
        // Pings and pongs go all the time; they are not worth an event each.
        let silent_for = self.random.between(Duration::ZERO, ttl / 3);
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| !channel.broken) else { return };
        channel.broken = true;
        channel.heard_at = channel.heard_at.max(self.now.saturating_before(silent_for));
        // A gateway takes an agent that is silent for so long for lost.
        let lost_by = channel.heard_at + ttl;
        // A kill is noticed at once, a cable that was pulled is not.
        let most = if self.random.per_mille(500) { Duration::from_millis(5) } else { NOTICED_WITHIN };
        let gateway_notices = self.random.between(Duration::ZERO, most);
        let agent_notices = self.random.between(Duration::ZERO, most);
        self.plan_at(lost_by.min(self.now + gateway_notices), Event::GatewayNotices(id));
        self.plan(agent_notices, Event::AgentNotices(id));
    }

    pub(crate) fn gateway_notices(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| !channel.gateway_knows) else {
            return;
        };
        channel.gateway_knows = true;
        let (run, heard_at) = (channel.gateway_run, channel.heard_at);
        self.forget_channel(id);
        self.channel_lost(run, id, heard_at);
        let pause = self.random.between(Duration::from_millis(20), Duration::from_millis(500));
        self.plan(pause, Event::Connects { run });
    }

    pub(crate) fn agent_notices(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| !channel.agent_knows) else { return };
        channel.agent_knows = true;
        let holder = channel.holder.clone();
        self.forget_channel(id);
        self.holder_lost(&holder);
    }

    /// One end is gone, and with it all it knew.
    pub(crate) fn end_is_gone(&mut self, of: End) {
        let ids: Vec<_> = self.channels.keys().copied().collect();
        for id in ids {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            match of {
                End::Agent => channel.agent_knows = true,
                End::Gateway(run) if channel.gateway_run == run => channel.gateway_knows = true,
                End::Gateway(_) => continue,
            }
            self.break_channel(id);
            self.forget_channel(id);
        }
    }

    fn forget_channel(&mut self, id: ChannelId) {
        if self.channels.get(&id).is_some_and(|channel| channel.gateway_knows && channel.agent_knows) {
            self.channels.remove(&id);
        }
    }

    pub(crate) fn some_channel(&mut self) -> Option<ChannelId> {
        let open: Vec<_> = self.channels.iter().filter(|(_, c)| !c.broken).map(|(id, _)| *id).collect();
        match open.len() {
            0 => None,
            length => Some(open[self.random.index(length)]),
        }
    }
}

/// One end of all its channels.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Agent,
    Gateway(u64),
}
