//! What a run is made of.

use std::time::Duration;

use hold::Limits as LineLimits;
use lease::holder::Limits as HolderLimits;
use lifecycle::{Capabilities, Settings, Timing, WakeLimits};

/// What goes wrong, and how often. Each number is the average time between two of the kind in the whole
/// world; zero is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A channel between a gateway and the agent breaks.
    pub channel_breaks: Duration,
    /// A gateway is killed, and another one started.
    pub gateway_dies: Duration,
    /// The agent is killed, and started again.
    pub agent_dies: Duration,
    /// A sprite's first process ends.
    pub sprite_dies: Duration,
    /// Somebody orders a sprite to sleep.
    pub sleep_ordered: Duration,
    /// Somebody orders a checkpoint or a restore.
    pub checkpoint_ordered: Duration,
    /// Somebody destroys a sprite (and makes another).
    pub destroyed: Duration,
    /// The host's memory is short: no wake that needs some begins for a while, and some sprite is to give its back.
    pub memory_short: Duration,
    /// How many of a thousand driver calls fail.
    pub driver_failures_per_mille: u64,
}

impl Faults {
    /// Whether whatever is in use may go on undisturbed: nobody orders anything, and no sprite dies.
    pub(crate) const fn disturb_no_sprite(&self) -> bool {
        self.sprite_dies.is_zero()
            && self.sleep_ordered.is_zero()
            && self.checkpoint_ordered.is_zero()
            && self.destroyed.is_zero()
    }

    /// Whether the gateways and the agent live on, and hear each other.
    pub(crate) const fn break_nothing(&self) -> bool {
        self.channel_breaks.is_zero() && self.gateway_dies.is_zero() && self.agent_dies.is_zero()
    }
}

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// How many sprites there are.
    pub sprites: usize,
    /// How many organizations own them.
    pub organizations: usize,
    /// How many gateways there are.
    pub gateways: usize,
    /// The average time between two clients in the whole world; zero if only the test sends some.
    pub clients: Duration,
    /// How many of a thousand requests begin a command that goes on by itself.
    pub commands_per_mille: u64,
    /// How long requests take inside.
    pub service: Duration,
    /// How long messages take.
    pub latency: Duration,
    /// How long driver calls take.
    pub driver: Duration,
    /// How long a decision of a machine may lie before it is confirmed and made.
    pub confirm: Duration,
    /// What goes wrong.
    pub faults: Faults,
    /// How gateways hold leases.
    pub holder: HolderLimits,
    /// How gateways hold requests.
    pub line: LineLimits,
    /// How many requests one gateway holds in all.
    pub held_in_all: usize,
    /// How sprites live.
    pub settings: Settings,
    /// How many sprites wake at once.
    pub wakes: WakeLimits,
}

impl Default for Scenario {
    /// Nothing goes wrong, and no clients come.
    fn default() -> Self {
        Self {
            sprites: 10,
            organizations: 3,
            gateways: 3,
            clients: Duration::ZERO,
            commands_per_mille: 0,
            service: Duration::from_millis(50),
            latency: Duration::from_millis(2),
            driver: Duration::from_millis(100),
            confirm: Duration::from_millis(5),
            faults: Faults::default(),
            holder: HolderLimits {
                linger: Duration::from_millis(100),
                acquire_timeout: Duration::from_secs(61),
                holder_ttl: Duration::from_secs(10),
            },
            line: LineLimits { max_waiting: 64, release_at_once: 8, budget: Duration::from_secs(60) },
            held_in_all: 256,
            settings: Settings {
                capabilities: Capabilities { pause: true, suspend: false },
                timing: Timing {
                    idle_timeout: Duration::from_millis(500),
                    suspend_after: Duration::from_secs(2),
                    cold_after: Duration::from_secs(4),
                },
                drain_grace: Duration::from_secs(5),
            },
            wakes: WakeLimits { at_once: 2, queued: 4, queued_per_organization: 3 },
        }
    }
}

impl Scenario {
    /// Every kind of world, by name.
    #[must_use]
    pub fn all() -> [(&'static str, Self); 13] {
        [
            ("calm", Self::calm()),
            ("flaky", Self::flaky()),
            ("rough", Self::rough()),
            ("stormy", Self::stormy()),
            ("stormy, hesitant, suspending", Self::stormy().hesitant().suspending()),
            ("crowded", Self::crowded()),
            ("short", Self::short()),
            ("short, suspending", Self::short().suspending()),
            ("forgetful", Self::forgetful()),
            ("calm, hesitant", Self::calm().hesitant()),
            ("flaky, hesitant", Self::flaky().hesitant()),
            ("rough, suspending", Self::rough().suspending()),
            ("rough, stopping", Self::rough().stopping()),
        ]
    }

    /// A world of sprites that are used now and then, and nothing goes wrong.
    #[must_use]
    pub fn calm() -> Self {
        Self { clients: Duration::from_millis(500), commands_per_mille: 10, ..Self::default() }
    }

    /// The same, and everything goes wrong now and then.
    #[must_use]
    pub fn rough() -> Self {
        let faults = Faults {
            channel_breaks: Duration::from_secs(20),
            gateway_dies: Duration::from_secs(120),
            agent_dies: Duration::from_secs(120),
            sprite_dies: Duration::from_secs(60),
            sleep_ordered: Duration::from_secs(30),
            checkpoint_ordered: Duration::from_secs(90),
            destroyed: Duration::from_secs(120),
            memory_short: Duration::from_secs(60),
            driver_failures_per_mille: 30,
        };
        Self { faults, ..Self::calm() }
    }

    /// The machinery between clients and sprites breaks all the time, but nobody orders anything and no
    /// sprite dies: nothing that is in use may be disturbed.
    #[must_use]
    pub fn flaky() -> Self {
        let faults = Faults {
            channel_breaks: Duration::from_secs(4),
            gateway_dies: Duration::from_secs(30),
            agent_dies: Duration::from_secs(25),
            ..Faults::default()
        };
        Self { faults, ..Self::calm() }
    }

    /// Everything goes wrong at once, all the time.
    #[must_use]
    pub fn stormy() -> Self {
        let faults = Faults {
            channel_breaks: Duration::from_secs(3),
            gateway_dies: Duration::from_secs(20),
            agent_dies: Duration::from_secs(20),
            sprite_dies: Duration::from_secs(5),
            sleep_ordered: Duration::from_secs(3),
            checkpoint_ordered: Duration::from_secs(10),
            destroyed: Duration::from_secs(15),
            memory_short: Duration::from_secs(5),
            driver_failures_per_mille: 150,
        };
        Self { faults, ..Self::calm() }
    }

    /// Too many want too few wakes that take too long, so that many leave, or are sent away, before their
    /// turn has come.
    #[must_use]
    pub fn crowded() -> Self {
        let mut scenario = Self { driver: Duration::from_millis(800), ..Self::calm() };
        scenario.wakes = WakeLimits { at_once: 1, queued: 6, queued_per_organization: 4 };
        scenario.holder.acquire_timeout = Duration::from_secs(3);
        scenario
    }

    /// The host has too little memory, all the time: what nobody uses sinks at once, and wakes wait for room.
    #[must_use]
    pub fn short() -> Self {
        let faults = Faults { memory_short: Duration::from_secs(1), ..Faults::default() };
        Self { faults, ..Self::calm() }
    }

    /// Channels break so often, and the agent forgets silent holders so soon, that leases get lost.
    #[must_use]
    pub fn forgetful() -> Self {
        let mut scenario = Self::flaky();
        scenario.faults.channel_breaks = Duration::from_secs(2);
        scenario.holder.holder_ttl = Duration::from_secs(2);
        scenario
    }

    /// The same, with drivers that can suspend.
    #[must_use]
    pub const fn suspending(mut self) -> Self {
        self.settings.capabilities.suspend = true;
        self
    }

    /// The same, with drivers that can't even pause.
    #[must_use]
    pub const fn stopping(mut self) -> Self {
        self.settings.capabilities = Capabilities { pause: false, suspend: false };
        self
    }

    /// The same, with machines whose decisions lie for long (T1: up to 5 s).
    #[must_use]
    pub const fn hesitant(mut self) -> Self {
        self.confirm = Duration::from_millis(1_250);
        self
    }
}
