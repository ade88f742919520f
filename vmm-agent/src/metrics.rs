//! The agent's Prometheus metrics.

use agent_api::PublicState;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use telemetry::LostLines;

use crate::{agent::Agent, memory};

/// From a resume of a paused sprite (about a millisecond) to a slow cold start.
const BUCKETS: &[f64] =
    &[0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// See the module. Labels are closed sets: driver verbs, states, outcomes.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Time of each driver call.
    pub(crate) transitions: HistogramVec,
    /// Acquires answered with a refusal.
    pub(crate) refusals: IntCounterVec,
    /// Sprites that were told to give their memory back.
    pub(crate) squeezed: IntCounter,
    memory: IntGaugeVec,
    sprites: IntGaugeVec,
    wakes: IntGaugeVec,
    room: IntGauge,
    holders: IntGauge,
    lost_log_lines: LostLines,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let transitions = HistogramVec::new(
            HistogramOpts::new(
                "agent_transition_duration_seconds",
                "Time of a driver call, by verb and outcome",
            )
            .buckets(BUCKETS.to_vec()),
            &["verb", "outcome"],
        )?;
        let refusals = IntCounterVec::new(
            Opts::new("agent_lease_refusals_total", "Lease requests that were refused, by reason"),
            &["reason"],
        )?;
        let squeezed = IntCounter::new(
            "agent_squeezed_sprites_total",
            "Idle sprites that were told to sleep more deeply, as the host was short of memory",
        )?;
        let memory = IntGaugeVec::new(
            Opts::new("agent_memory_bytes", "What the sprites have of the host's memory, and what is free"),
            &["of"],
        )?;
        let sprites =
            IntGaugeVec::new(Opts::new("agent_sprites", "Sprites now, by public state"), &["state"])?;
        let wakes = IntGaugeVec::new(
            Opts::new("agent_wakes", "Wakes now, by whether they run or wait for their turn"),
            &["place"],
        )?;
        let room = IntGauge::new(
            "agent_wakes_with_memory",
            "Wakes that need memory for which the host has some, by memory.wake_mib",
        )?;
        let holders = IntGauge::new("agent_holders", "Connected lease channels now")?;
        registry.register(Box::new(transitions.clone()))?;
        registry.register(Box::new(refusals.clone()))?;
        registry.register(Box::new(squeezed.clone()))?;
        registry.register(Box::new(memory.clone()))?;
        registry.register(Box::new(sprites.clone()))?;
        registry.register(Box::new(wakes.clone()))?;
        registry.register(Box::new(room.clone()))?;
        registry.register(Box::new(holders.clone()))?;
        let lost_log_lines = LostLines::register(&registry, "agent_log_lines_lost_total")?;
        Ok(Self {
            registry,
            transitions,
            refusals,
            squeezed,
            memory,
            sprites,
            wakes,
            room,
            holders,
            lost_log_lines,
        })
    }

    /// The text exposition of everything, gauges read now. Blocks for a moment.
    pub(crate) fn render(&self, agent: &Agent) -> prometheus::Result<String> {
        let all = agent.directory.sprites();
        let states =
            [("running", PublicState::Running), ("warm", PublicState::Warm), ("cold", PublicState::Cold)];
        for (label, state) in states {
            let count = all.iter().filter(|sprite| sprite.state == state).count();
            self.sprites.with_label_values(&[label]).set(gauge(count));
        }
        let (sprites, free) = memory::measure(agent);
        for (of, bytes) in [("sprites", sprites), ("free", free)] {
            self.memory.with_label_values(&[of]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        let (running, queued, room) = agent.wakes.counts();
        self.room.set(gauge(room));
        self.wakes.with_label_values(&["running"]).set(gauge(running));
        self.wakes.with_label_values(&["queued"]).set(gauge(queued));
        self.holders.set(gauge(agent.holders.connected()));
        self.lost_log_lines.update();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
