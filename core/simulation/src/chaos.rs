//! What goes wrong, and when.

use std::time::Duration;

use lifecycle::Depth;

use crate::{
    client::Visit,
    world::{Event, Happening, Order, World},
};

/// A kind of fault. See [`Faults`](crate::Faults).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    ChannelBreaks,
    GatewayDies,
    AgentDies,
    SpriteDies,
    SleepOrdered,
    CheckpointOrdered,
    Destroyed,
    MemoryShort,
}

impl World {
    pub(crate) fn plan_chaos(&mut self) {
        if !self.scenario.clients.is_zero() {
            self.plan(Duration::ZERO, Event::SomeClient);
        }
        for fault in [
            Fault::ChannelBreaks,
            Fault::GatewayDies,
            Fault::AgentDies,
            Fault::SpriteDies,
            Fault::SleepOrdered,
            Fault::CheckpointOrdered,
            Fault::Destroyed,
            Fault::MemoryShort,
        ] {
            self.plan_fault(fault);
        }
    }

    fn plan_fault(&mut self, fault: Fault) {
        let faults = self.scenario.faults;
        let every = match fault {
            Fault::ChannelBreaks => faults.channel_breaks,
            Fault::GatewayDies => faults.gateway_dies,
            Fault::AgentDies => faults.agent_dies,
            Fault::SpriteDies => faults.sprite_dies,
            Fault::SleepOrdered => faults.sleep_ordered,
            Fault::CheckpointOrdered => faults.checkpoint_ordered,
            Fault::Destroyed => faults.destroyed,
            Fault::MemoryShort => faults.memory_short,
        };
        if !every.is_zero() {
            let after = self.random.between(Duration::ZERO, every * 2);
            self.plan(after, Event::Fault(fault));
        }
    }

    pub(crate) fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Visit { gateway, sprite } => self.come(gateway, sprite, Visit::patient()),
            Happening::ShortVisit { gateway, sprite, leaves_after } => {
                self.come(gateway, sprite, Visit { requests: 1, patience: leaves_after });
            }
            Happening::VisitHost { gateway, authority } => self.come_for(gateway, &authority),
            Happening::Sleep(sprite, depth) => self.ordered(sprite, Order::Sleep(depth)),
            Happening::Destroy(sprite) => self.ordered(sprite, Order::Destroy),
            Happening::SpriteDies(sprite) => self.die(sprite),
            Happening::GatewayDies(gateway) => self.kill_gateway(gateway),
            Happening::AgentDies => self.kill_agent(),
            Happening::ChannelsBreak => {
                let channels: Vec<_> = self.channels.keys().copied().collect();
                channels.into_iter().for_each(|channel| self.break_channel(channel));
            }
        }
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        if !self.busy {
            return;
        }
        let sprite = self.random.index(self.sprites.len());
        match fault {
            Fault::ChannelBreaks => {
                if let Some(channel) = self.some_channel() {
                    self.break_channel(channel);
                }
            }
            Fault::GatewayDies => {
                let gateway = self.random.index(self.gateways.len());
                self.kill_gateway(gateway);
            }
            Fault::AgentDies => self.kill_agent(),
            Fault::SpriteDies => self.die(sprite),
            Fault::SleepOrdered => {
                let depth = if self.random.per_mille(600) { Depth::Warm } else { Depth::Cold };
                self.ordered(sprite, Order::Sleep(depth));
            }
            Fault::CheckpointOrdered => {
                let order = if self.random.per_mille(700) { Order::Checkpoint } else { Order::Restore };
                self.ordered(sprite, order);
            }
            Fault::Destroyed => {
                if self.agent.is_alive() && !self.sprites[sprite].destroying {
                    self.ordered(sprite, Order::Destroy);
                    self.create_sprite();
                }
            }
            Fault::MemoryShort => self.memory_is_short(sprite),
        }
        self.plan_fault(fault);
    }
}
