//! The world: its clock, what is going to happen, and who lives in it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use ids::{Epoch, Moment};
use lifecycle::{Depth, Transition};

use crate::{
    agent::Agent,
    channel::{Channel, ChannelId, ToAgent, ToGateway},
    chaos::Fault,
    client::{Client, ClientId, Request, RequestId, Visit},
    driver::Sprite,
    gateway::Gateway,
    random::Random,
    scenario::Scenario,
};

/// How many events a [`Violation`] tells.
const TRACE_LENGTH: usize = 60;

/// How many events there may be after the last one from outside.
const REST_WITHIN: u64 = 1_000_000;

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Some client comes, and the next one is planned.
    SomeClient,
    Comes {
        gateway: usize,
        sprite: usize,
        visit: Visit,
    },
    Happens(Happening),
    Leaves(ClientId),
    AsksAgain(ClientId),
    Retries(RequestId),
    Delivered(RequestId),
    Answered(RequestId),
    Served(RequestId),
    SlotTick {
        run: u64,
        sprite: usize,
    },
    ToAgent(ChannelId, ToAgent),
    ToGateway(ChannelId, ToGateway),
    ChannelBreaks(ChannelId),
    GatewayNotices(ChannelId),
    AgentNotices(ChannelId),
    Connects {
        run: u64,
    },
    GatewayStarts(usize),
    AgentStarts,
    SpriteTick {
        run: u64,
        sprite: usize,
    },
    Confirms {
        run: u64,
        sprite: usize,
    },
    Turn {
        run: u64,
        sprite: usize,
    },
    CallEnds {
        run: u64,
        sprite: usize,
        transition: Transition,
        outcome: Result<(), String>,
    },
    ExitSeen {
        run: u64,
        sprite: usize,
        epoch: Epoch,
    },
    CommandEnds(usize),
    /// There is memory again.
    MemoryBack {
        run: u64,
    },
    /// Some fault of this kind happens, and the next one is planned.
    Fault(Fault),
}

/// Something that a test has happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Happening {
    /// A client comes with one request for a sprite, and stays to the end.
    Visit {
        /// To which gateway.
        gateway: usize,
        /// For which sprite.
        sprite: usize,
    },
    /// A client comes with one request, and leaves after a while, whatever goes on.
    ShortVisit {
        /// To which gateway.
        gateway: usize,
        /// For which sprite.
        sprite: usize,
        /// It leaves so long after it came.
        leaves_after: Duration,
    },
    /// A client comes with one request for whatever it calls by this name. The sprites are
    /// `sprite-{n}-abcde.sprites.localhost`.
    VisitHost {
        /// To which gateway.
        gateway: usize,
        /// What stands in its `Host` header.
        authority: String,
    },
    /// Sleep is ordered.
    Sleep(usize, Depth),
    /// Destruction is ordered.
    Destroy(usize),
    /// A sprite's first process ends.
    SpriteDies(usize),
    /// A gateway is killed, and another one started a while later.
    GatewayDies(usize),
    /// The agent is killed, and started a while later.
    AgentDies,
    /// All channels break.
    ChannelsBreak,
}

/// What somebody orders.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Sleep(Depth),
    Checkpoint,
    Restore,
    Destroy,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ending {
    /// By the sprite.
    Served,
    /// With an error that says what happened.
    Refused,
    /// Because nothing more could be done within its time.
    Expired,
    /// The client left.
    Left,
    /// The gateway died.
    GatewayDied,
    /// The sprite died, or was put to sleep by order, while it served.
    Broken,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Events.
    pub steps: u64,
    /// Simulated time.
    pub elapsed: Duration,
    /// Requests, by how they ended.
    pub endings: BTreeMap<Ending, u64>,
    /// Starts of sprites that the driver made.
    pub starts: u64,
    /// Resumes that it made.
    pub resumes: u64,
    /// Pauses, suspends and stops that it made.
    pub sinks: u64,
    /// Driver calls that were decided and not made, because somebody came in time.
    pub abandoned: u64,
    /// Requests that found their sprite awake and nobody in line.
    pub passed: u64,
    /// Requests that reached a sprite which could not serve them, and were sent again.
    pub bounced: u64,
    /// The most wakes that were under way at once.
    pub most_wakes: usize,
    /// The longest that a request which was served then had waited before.
    pub longest_wait: Duration,
}

impl Report {
    /// How many requests ended like this.
    #[must_use]
    pub fn ended(&self, ending: Ending) -> u64 {
        self.endings.get(&ending).copied().unwrap_or(0)
    }

    /// How many requests ended.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.endings.values().sum()
    }

    /// Both reports in one.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.elapsed += other.elapsed;
        for (ending, count) in &other.endings {
            *self.endings.entry(*ending).or_default() += count;
        }
        self.starts += other.starts;
        self.resumes += other.resumes;
        self.sinks += other.sinks;
        self.abandoned += other.abandoned;
        self.passed += other.passed;
        self.bounced += other.bounced;
        self.most_wakes = self.most_wakes.max(other.most_wakes);
        self.longest_wait = self.longest_wait.max(other.longest_wait);
    }
}

/// A promise was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which, and how.
    pub what: String,
    /// The seed of the run.
    pub seed: u64,
    /// At which step.
    pub step: u64,
    /// The last events, the latest last.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {}, step {}: {}", self.seed, self.step, self.what)
    }
}

/// One run.
#[derive(Debug)]
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) random: Random,
    pub(crate) now: Moment,
    pub(crate) report: Report,
    /// Whether clients and faults still come.
    pub(crate) busy: bool,
    pub(crate) agent: Agent,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) channels: BTreeMap<ChannelId, Channel>,
    pub(crate) sprites: Vec<Sprite>,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    pub(crate) requests: BTreeMap<RequestId, Request>,
    pub(crate) violation: Option<String>,
    seed: u64,
    queue: BTreeMap<(Moment, u64), Event>,
    /// Counts everything that needs a number of its own.
    counter: u64,
    trace: VecDeque<(Moment, Event)>,
}

impl World {
    /// A world in which nothing has happened yet.
    #[must_use]
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        let mut world = Self {
            scenario,
            random: Random::new(seed),
            now: Moment::ZERO,
            report: Report::default(),
            busy: true,
            agent: Agent::new(&scenario),
            gateways: Vec::new(),
            channels: BTreeMap::new(),
            sprites: Vec::new(),
            clients: BTreeMap::new(),
            requests: BTreeMap::new(),
            violation: None,
            seed,
            queue: BTreeMap::new(),
            counter: 0,
            trace: VecDeque::new(),
        };
        for _ in 0..scenario.sprites {
            world.create_sprite();
        }
        for gateway in 0..scenario.gateways {
            world.start_gateway(gateway);
        }
        world.plan_chaos();
        world
    }

    /// Has something happen at a time.
    pub fn at(&mut self, at: Duration, happening: Happening) {
        self.plan_at(Moment::from_origin(at), Event::Happens(happening));
    }

    /// Runs so many steps, checking every promise after each.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn run(&mut self, steps: u64) -> Result<(), Box<Violation>> {
        for _ in 0..steps {
            if !self.step()? {
                break;
            }
        }
        Ok(())
    }

    /// Runs until `until`, with all that still comes.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn run_until(&mut self, until: Duration) -> Result<(), Box<Violation>> {
        let until = Moment::from_origin(until);
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= until) {
            self.step()?;
        }
        self.now = self.now.max(until);
        Ok(())
    }

    /// Lets no more clients come and nothing more go wrong, runs until nothing happens any more, and
    /// checks that nothing is left over. Returns what the run came to.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn finish(mut self) -> Result<Report, Box<Violation>> {
        self.busy = false;
        let before = self.report.steps;
        while self.step()? {
            if self.report.steps - before > REST_WITHIN {
                self.violated(|| "it never comes to rest".to_owned());
                self.raise()?;
            }
        }
        self.check_rest();
        self.raise()?;
        self.report.elapsed = self.now.since_origin();
        Ok(self.report)
    }

    /// What the run has come to so far.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }

    fn step(&mut self) -> Result<bool, Box<Violation>> {
        let Some(((at, _), event)) = self.queue.pop_first() else { return Ok(false) };
        self.now = at;
        self.report.steps += 1;
        if self.trace.len() == TRACE_LENGTH {
            self.trace.pop_front();
        }
        self.trace.push_back((at, event.clone()));
        self.happen(event);
        self.check();
        self.raise()?;
        Ok(true)
    }

    fn raise(&mut self) -> Result<(), Box<Violation>> {
        let Some(what) = self.violation.take() else { return Ok(()) };
        let trace = self.trace.iter().map(|(at, event)| format!("{at:?} {event:?}")).collect();
        Err(Box::new(Violation { what, seed: self.seed, step: self.report.steps, trace }))
    }

    /// Notes a broken promise; the first one counts.
    pub(crate) fn violated(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(crate) fn plan(&mut self, after: Duration, event: Event) {
        self.plan_at(self.now + after, event);
    }

    pub(crate) fn plan_at(&mut self, at: Moment, event: Event) {
        let number = self.number();
        self.queue.insert((at.max(self.now), number), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::SomeClient => self.some_client(),
            Event::Comes { gateway, sprite, visit } => self.come(gateway, sprite, visit),
            Event::Happens(happening) => self.happens(happening),
            Event::Leaves(client) => self.leave(client),
            Event::AsksAgain(client) => self.ask(client),
            Event::Retries(request) => self.enter(request),
            Event::Delivered(request) => self.deliver(request),
            Event::Answered(request) => self.answered(request),
            Event::Served(request) => self.served(request),
            Event::SlotTick { run, sprite } => self.slot_tick(run, sprite),
            Event::ToAgent(channel, message) => self.agent_hears(channel, message),
            Event::ToGateway(channel, message) => self.gateway_hears(channel, message),
            Event::ChannelBreaks(channel) => self.break_channel(channel),
            Event::GatewayNotices(channel) => self.gateway_notices(channel),
            Event::AgentNotices(channel) => self.agent_notices(channel),
            Event::Connects { run } => self.connect(run),
            Event::GatewayStarts(gateway) => self.start_gateway(gateway),
            Event::AgentStarts => self.start_agent(),
            Event::SpriteTick { run, sprite } => self.sprite_tick(run, sprite),
            Event::Confirms { run, sprite } => self.confirm(run, sprite),
            Event::Turn { run, sprite } => self.turn(run, sprite),
            Event::CallEnds { run, sprite, transition, outcome } => {
                self.call_ended(run, sprite, transition, outcome);
            }
            Event::ExitSeen { run, sprite, epoch } => self.exit_seen(run, sprite, epoch),
            Event::CommandEnds(sprite) => self.end_command(sprite),
            Event::MemoryBack { run } => self.memory_is_back(run),
            Event::Fault(fault) => self.fault(fault),
        }
    }
}
